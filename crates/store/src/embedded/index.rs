//! The state in memory: every key's versions, the order of events, leases. No I/O.
//!
//! A key's newest version keeps its value in memory. Older ones lie in the log: their value stays
//! in memory while it is among the most recently replaced ones (`recent_bytes`), and is read back
//! from its [`Place`] after that. So history costs about 100 bytes a version.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    ops::Bound,
    sync::Arc,
};

use bytes::Bytes;
use stdx::{Instant, files::File};

use super::{record::Meta, watch::Channel};
use crate::{Event, EventKind, KeyValue, LeaseId, Revision};

/// Where a version's record lies. Segment 0 does not exist: the record is not on disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    pub segment: u32,
    pub offset: u32,
    pub length: u32,
}

pub struct State {
    pub revision: Revision,
    pub compacted: Revision,
    pub keys: BTreeMap<Bytes, History>,
    /// Which key each revision wrote, from `compacted` on, in order.
    pub events: VecDeque<(Revision, Bytes)>,
    pub leases: BTreeMap<i64, Lease>,
    pub deadlines: BTreeSet<(Instant, i64)>,
    /// Open files that hold versions: segments of the log, and the checkpoint.
    pub files: BTreeMap<u32, SegmentFile>,
    pub watchers: BTreeMap<u64, Arc<Channel>>,
    pub live_keys: u64,
    pub live_bytes: u64,
    recent: VecDeque<(Revision, Bytes, usize)>,
    recent_bytes: usize,
    recent_limit: usize,
}

pub struct SegmentFile {
    pub file: Arc<dyn File>,
    /// The newest revision written before this segment.
    pub start: Revision,
    pub bytes: u64,
}

pub struct Lease {
    pub ttl_seconds: i64,
    /// Milliseconds since the Unix epoch.
    pub deadline_ms: i64,
    pub deadline: Instant,
    pub keys: BTreeSet<Bytes>,
}

/// The versions of one key, at least one.
pub struct History {
    newest: Version,
    /// Ascending by revision.
    older: Vec<Version>,
}

pub struct Version {
    pub meta: Meta,
    value: Option<Bytes>,
    pub place: Place,
}

impl Version {
    fn is_deletion(&self) -> bool {
        self.meta.create_revision == 0
    }
}

/// A version as found: complete, or with its value still to be read from a file.
pub struct Found {
    pub item: KeyValue,
    pub unread: Option<(Arc<dyn File>, Place)>,
}

/// An event whose values may still have to be read.
pub struct FoundEvent {
    pub revision: Revision,
    pub key: Bytes,
    pub current: Option<Found>,
    pub previous: Option<Found>,
}

impl State {
    pub fn new(recent_limit: usize) -> Self {
        Self {
            revision: 1,
            compacted: 0,
            keys: BTreeMap::new(),
            events: VecDeque::new(),
            leases: BTreeMap::new(),
            deadlines: BTreeSet::new(),
            files: BTreeMap::new(),
            watchers: BTreeMap::new(),
            live_keys: 0,
            live_bytes: 0,
            recent: VecDeque::new(),
            recent_bytes: 0,
            recent_limit,
        }
    }

    /// What `key` holds now.
    pub fn current(&self, key: &[u8]) -> Option<KeyValue> {
        let (key, history) = self.keys.get_key_value(key)?;
        let newest = &history.newest;
        (!newest.is_deletion()).then(|| item(key, newest))
    }

    /// Writes a version and gives its event.
    pub fn put(
        &mut self,
        revision: Revision,
        key: &[u8],
        value: Bytes,
        lease: i64,
        place: Place,
    ) -> Event {
        let prior = self.replace(revision, key, Some(value), lease, place);
        self.event(revision, key, prior)
    }

    /// Deletes a key and gives the event; `None` when it did not exist.
    pub fn delete(&mut self, revision: Revision, key: &[u8]) -> Option<Event> {
        self.current(key)?;
        let prior = self.replace(revision, key, None, 0, Place::default());
        Some(self.event(revision, key, prior))
    }

    /// Puts a new newest version in and gives the one that was live before.
    fn replace(
        &mut self,
        revision: Revision,
        key: &[u8],
        value: Option<Bytes>,
        lease: i64,
        place: Place,
    ) -> Option<KeyValue> {
        let prior = self.current(key);
        let meta = match (&value, &prior) {
            (None, _) => Meta { mod_revision: revision, ..Meta::default() },
            (Some(_), Some(prior)) => Meta {
                mod_revision: revision,
                create_revision: prior.create_revision,
                version: prior.version + 1,
                lease,
            },
            (Some(_), None) => {
                Meta { mod_revision: revision, create_revision: revision, version: 1, lease }
            }
        };
        self.account(key, prior.as_ref(), value.as_ref());
        let key = self.push_version(key, Version { meta, value, place });
        self.move_lease(&key, prior.as_ref().and_then(|p| p.lease), lease);
        if let Some(prior) = &prior {
            self.remember_replaced(prior.mod_revision, key.clone(), prior.value.len());
        }
        self.revision = revision;
        self.events.push_back((revision, key));
        prior
    }

    fn account(&mut self, key: &[u8], prior: Option<&KeyValue>, value: Option<&Bytes>) {
        if let Some(prior) = prior {
            self.live_keys -= 1;
            self.live_bytes -= (key.len() + prior.value.len()) as u64;
        }
        if let Some(value) = value {
            self.live_keys += 1;
            self.live_bytes += (key.len() + value.len()) as u64;
        }
    }

    /// Adds the version and gives the key as the index holds it.
    fn push_version(&mut self, key: &[u8], version: Version) -> Bytes {
        let only = (Bound::Included(key), Bound::Included(key));
        if let Some((stored, history)) = self.keys.range_mut::<[u8], _>(only).next() {
            let replaced = std::mem::replace(&mut history.newest, version);
            history.older.push(replaced);
            return stored.clone();
        }
        let stored = Bytes::copy_from_slice(key);
        self.keys.insert(stored.clone(), History { newest: version, older: Vec::new() });
        stored
    }

    fn move_lease(&mut self, key: &Bytes, from: Option<LeaseId>, to: i64) {
        if let Some(lease) = from.and_then(|id| self.leases.get_mut(&id.0)) {
            lease.keys.remove(key);
        }
        if let Some(lease) = self.leases.get_mut(&to) {
            lease.keys.insert(key.clone());
        }
    }

    /// Keeps the last replaced values in memory, up to a number of bytes, and drops older ones
    /// that the log still has.
    fn remember_replaced(&mut self, revision: Revision, key: Bytes, bytes: usize) {
        self.recent.push_back((revision, key, bytes));
        self.recent_bytes += bytes;
        while self.recent_bytes > self.recent_limit {
            let Some((revision, key, bytes)) = self.recent.pop_front() else { break };
            self.recent_bytes -= bytes;
            let files = &self.files;
            let version = self.keys.get_mut(&key).and_then(|history| {
                let at = history.older.binary_search_by_key(&revision, |v| v.meta.mod_revision);
                at.ok().map(|at| &mut history.older[at])
            });
            if let Some(version) = version.filter(|v| files.contains_key(&v.place.segment)) {
                version.value = None;
            }
        }
    }

    fn event(&self, revision: Revision, key: &[u8], previous: Option<KeyValue>) -> Event {
        let (key, _) = self.keys.get_key_value(key).expect("the version was just written");
        let current = self.current(key);
        let kind = if current.is_some() { EventKind::Put } else { EventKind::Delete };
        Event { kind, key: key.clone(), revision, current, previous }
    }

    /// A version out of a checkpoint. Keys come in ascending order, each once.
    pub fn restore(&mut self, meta: Meta, key: &[u8], value: Bytes, place: Place) {
        self.account(key, None, Some(&value));
        let newest = Version { meta, value: Some(value), place };
        self.keys.insert(Bytes::copy_from_slice(key), History { newest, older: Vec::new() });
        self.revision = self.revision.max(meta.mod_revision);
    }

    /// A record at the very revision of the checkpoint that was loaded: the state holds its
    /// effect, the event is still missing.
    pub fn restore_event(&mut self, revision: Revision, key: &[u8], place: Place) {
        let only = (Bound::Included(key), Bound::Included(key));
        let stored = match self.keys.range_mut::<[u8], _>(only).next() {
            Some((stored, history)) => {
                history.newest.place = place;
                stored.clone()
            }
            None => {
                let meta = Meta { mod_revision: revision, ..Meta::default() };
                self.push_version(key, Version { meta, value: None, place: Place::default() })
            }
        };
        self.revision = self.revision.max(revision);
        self.events.push_back((revision, stored));
    }

    /// Goes through keys from `start` on as of `at`, at most `keys` of them. Gives the key to go
    /// on from, or `None` at the end.
    pub fn scan(&self, walk: &mut Walk<'_>, start: &Bytes, keys: usize) -> Option<Bytes> {
        let range = bounds(start, walk.end)?;
        let mut left = keys;
        for (key, history) in self.keys.range::<[u8], _>(range) {
            if left == 0 {
                return Some(key.clone());
            }
            left -= 1;
            let Some(version) = history.at(walk.at) else { continue };
            walk.count += 1;
            if walk.limit == 0 || walk.found.len() < walk.limit {
                walk.found.push(self.found(key, version, walk.keys_only));
            }
        }
        None
    }

    fn found(&self, key: &Bytes, version: &Version, keys_only: bool) -> Found {
        let mut item = item(key, version);
        if keys_only {
            item.value = Bytes::new();
        }
        let unread = version.value.is_none() && !keys_only;
        let file = || self.files[&version.place.segment].file.clone();
        Found { item, unread: unread.then(|| (file(), version.place)) }
    }

    /// Events of a range from `from` on, as whole revisions, until one of the limits is reached.
    /// Gives the revision to go on from, or `None` when nothing is left.
    pub fn events_from(
        &self,
        from: Revision,
        channel: &Channel,
        limits: EventLimits,
    ) -> (Vec<FoundEvent>, Option<Revision>) {
        let mut found = Vec::new();
        let first = self.events.partition_point(|(revision, _)| *revision < from);
        let (mut bytes, mut last) = (0, 0);
        for (scanned, (revision, key)) in self.events.range(first..).enumerate() {
            let full =
                found.len() >= limits.events || bytes >= limits.bytes || scanned >= limits.scanned;
            if full && *revision != last {
                return (found, Some(*revision));
            }
            last = *revision;
            if channel.wants(key, *revision)
                && let Some(event) = self.event_at(*revision, key)
            {
                bytes += event.bytes();
                found.push(event);
            }
        }
        (found, None)
    }

    fn event_at(&self, revision: Revision, key: &Bytes) -> Option<FoundEvent> {
        let history = self.keys.get(key)?;
        let (version, previous) = history.version_and_previous(revision)?;
        let live = |v: &&Version| !v.is_deletion();
        Some(FoundEvent {
            revision,
            key: key.clone(),
            current: Some(version).filter(live).map(|v| self.found(key, v, false)),
            previous: previous.filter(live).map(|v| self.found(key, v, false)),
        })
    }

    /// Drops versions that no reader at `compacted` or later can see, for at most `steps` events.
    /// True when all is done.
    pub fn trim(&mut self, steps: usize) -> bool {
        for _ in 0..steps {
            match self.events.front() {
                Some((revision, _)) if *revision < self.compacted => {
                    let (_, key) = self.events.pop_front().expect("it has a front");
                    self.trim_key(&key);
                }
                _ => break,
            }
        }
        let done = self.events.front().is_none_or(|(revision, _)| *revision >= self.compacted);
        if done && self.events.capacity() > 4 * self.events.len() + 1024 {
            self.events.shrink_to_fit();
        }
        done
    }

    fn trim_key(&mut self, key: &[u8]) {
        let compacted = self.compacted;
        if let Some(history) = self.keys.get_mut(key)
            && history.trim(compacted)
        {
            self.keys.remove(key);
        }
    }

    /// The versions that a checkpoint as of `at` holds, from a key on.
    pub fn versions_at(
        &self,
        at: Revision,
        start: &Bytes,
        keys: usize,
    ) -> (Vec<(Meta, Found)>, Option<Bytes>) {
        let mut found = Vec::new();
        for (walked, (key, history)) in self.keys.range(start.clone()..).enumerate() {
            if walked == keys {
                return (found, Some(key.clone()));
            }
            if let Some(version) = history.at(at) {
                found.push((version.meta, self.found(key, version, false)));
            }
        }
        (found, None)
    }

    /// Notes that a version now also lies elsewhere.
    pub fn relocate(&mut self, key: &[u8], revision: Revision, place: Place) {
        if let Some(version) = self.keys.get_mut(key).and_then(|h| h.version_mut(revision)) {
            version.place = place;
        }
    }

    pub fn grant(&mut self, id: i64, ttl_seconds: i64, deadline_ms: i64, deadline: Instant) {
        self.revoke(id);
        self.deadlines.insert((deadline, id));
        self.leases.insert(id, Lease { ttl_seconds, deadline_ms, deadline, keys: BTreeSet::new() });
    }

    pub fn revoke(&mut self, id: i64) {
        if let Some(lease) = self.leases.remove(&id) {
            self.deadlines.remove(&(lease.deadline, id));
        }
    }

    /// Finds anew which keys hang on which lease, after a restart.
    pub fn attach_all(&mut self) {
        for (key, history) in &self.keys {
            if let Some(lease) = self.leases.get_mut(&history.newest.meta.lease) {
                lease.keys.insert(key.clone());
            }
        }
    }

    /// Hands events, whole revisions in order, to the watchers that want them.
    pub fn publish(&self, events: &[Event]) {
        for channel in self.watchers.values() {
            channel.push_all(events);
        }
    }
}

/// A read in progress over slices of the index.
pub struct Walk<'a> {
    pub end: Option<&'a Bytes>,
    pub at: Revision,
    pub limit: usize,
    pub keys_only: bool,
    pub found: Vec<Found>,
    pub count: usize,
}

#[derive(Clone, Copy)]
pub struct EventLimits {
    pub events: usize,
    pub bytes: usize,
    pub scanned: usize,
}

impl FoundEvent {
    fn bytes(&self) -> usize {
        let of = |found: &Option<Found>| {
            found.as_ref().map_or(0, |f| match &f.unread {
                Some((_, place)) => place.length as usize,
                None => f.item.value.len(),
            })
        };
        self.key.len() + of(&self.current) + of(&self.previous)
    }
}

impl History {
    /// The version that a reader at `revision` sees.
    fn at(&self, revision: Revision) -> Option<&Version> {
        let version = if self.newest.meta.mod_revision <= revision {
            &self.newest
        } else {
            let after = self.older.partition_point(|v| v.meta.mod_revision <= revision);
            &self.older[after.checked_sub(1)?]
        };
        (!version.is_deletion()).then_some(version)
    }

    fn version_and_previous(&self, revision: Revision) -> Option<(&Version, Option<&Version>)> {
        if self.newest.meta.mod_revision == revision {
            return Some((&self.newest, self.older.last()));
        }
        let at = self.older.binary_search_by_key(&revision, |v| v.meta.mod_revision).ok()?;
        Some((&self.older[at], at.checked_sub(1).map(|before| &self.older[before])))
    }

    fn version_mut(&mut self, revision: Revision) -> Option<&mut Version> {
        if self.newest.meta.mod_revision == revision {
            return Some(&mut self.newest);
        }
        let at = self.older.binary_search_by_key(&revision, |v| v.meta.mod_revision).ok()?;
        Some(&mut self.older[at])
    }

    /// Drops what no reader at `compacted` or later sees; true when the whole key can go. A
    /// deletion at `compacted` itself stays, since a watch may start there.
    fn trim(&mut self, compacted: Revision) -> bool {
        if self.newest.meta.mod_revision <= compacted {
            self.older = Vec::new();
            return self.newest.is_deletion() && self.newest.meta.mod_revision < compacted;
        }
        let seen = self.older.partition_point(|v| v.meta.mod_revision <= compacted);
        self.older.drain(..seen.saturating_sub(1));
        let first_is_gone = |v: &Version| v.is_deletion() && v.meta.mod_revision < compacted;
        if self.older.first().is_some_and(first_is_gone) {
            self.older.remove(0);
        }
        self.older.shrink_to_fit();
        false
    }
}

fn item(key: &Bytes, version: &Version) -> KeyValue {
    let Meta { mod_revision, create_revision, version: count, lease } = version.meta;
    KeyValue {
        key: key.clone(),
        value: version.value.clone().unwrap_or_default(),
        create_revision,
        mod_revision,
        version: count,
        lease: (lease != 0).then_some(LeaseId(lease)),
    }
}

type Bounds<'a> = (Bound<&'a [u8]>, Bound<&'a [u8]>);

/// `None` for a range that holds no key.
fn bounds<'a>(start: &'a Bytes, end: Option<&'a Bytes>) -> Option<Bounds<'a>> {
    let upper = match end.map(|end| &end[..]) {
        None => Bound::Included(&start[..]),
        Some(b"\0") => Bound::Unbounded,
        Some(end) if end <= &start[..] => return None,
        Some(end) => Bound::Excluded(end),
    };
    Some((Bound::Included(start), upper))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> State {
        State::new(usize::MAX)
    }

    fn put(state: &mut State, revision: Revision, key: &str, value: &str) -> Event {
        state.put(
            revision,
            key.as_bytes(),
            Bytes::copy_from_slice(value.as_bytes()),
            0,
            Place::default(),
        )
    }

    fn read(state: &State, at: Revision) -> Vec<(String, String)> {
        let end = Bytes::from_static(b"\0");
        let mut walk =
            Walk { end: Some(&end), at, limit: 0, keys_only: false, found: vec![], count: 0 };
        assert_eq!(state.scan(&mut walk, &Bytes::from_static(b"a"), usize::MAX), None);
        let text = |b: &Bytes| String::from_utf8_lossy(b).into_owned();
        walk.found.iter().map(|f| (text(&f.item.key), text(&f.item.value))).collect()
    }

    #[test]
    fn a_reader_sees_the_state_of_its_revision_until_that_is_trimmed() {
        let mut state = state();
        put(&mut state, 2, "a", "1");
        put(&mut state, 3, "b", "1");
        let event = put(&mut state, 4, "a", "2");
        assert_eq!(event.previous.map(|p| (p.mod_revision, p.version)), Some((2, 1)));
        state.delete(5, b"b").unwrap();
        assert!(state.delete(6, b"b").is_none());
        let pair = |k: &str, v: &str| (k.to_owned(), v.to_owned());
        assert_eq!(read(&state, 3), [pair("a", "1"), pair("b", "1")]);
        assert_eq!(read(&state, 5), [pair("a", "2")]);
        state.compacted = 4;
        assert!(state.trim(usize::MAX));
        assert_eq!(read(&state, 4), [pair("a", "2"), pair("b", "1")]);
        assert_eq!(state.keys[&b"a"[..]].older.len(), 0);
        state.compacted = 5;
        assert!(state.trim(usize::MAX));
        assert_eq!(state.events.len(), 1, "the deletion at the compacted revision stays");
        put(&mut state, 6, "c", "1");
        state.compacted = 6;
        assert!(state.trim(usize::MAX));
        assert_eq!(state.keys.len(), 2);
        assert_eq!((state.live_keys, state.live_bytes), (2, 4));
    }
}
