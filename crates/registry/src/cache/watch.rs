//! Watches: a position in the cache's log, with the view that the selector gives.

use std::{
    collections::VecDeque,
    sync::{
        Arc, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use api::Status;
use bytes::{BufMut, Bytes, BytesMut};
use machinery::{Object, Value, value};
use stdx::Instant;
use store::Revision;
use tokio::sync::Notify;

use super::{Cache, Entry, LogEvent, Scope, Waiter, list};
use crate::{Resource, request::ListOptions, selector::Selector};

/// Events read from the log under one lock.
const BATCH: usize = 128;
/// How long a bookmark waits for the store to say how far it is.
const PROGRESS_WAIT: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WatchKind {
    Added,
    Modified,
    Deleted,
    Bookmark,
}

impl WatchKind {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Added => "ADDED",
            Self::Modified => "MODIFIED",
            Self::Deleted => "DELETED",
            Self::Bookmark => "BOOKMARK",
        }
    }
}

/// One event as a watcher receives it.
#[derive(Clone)]
pub struct WatchEvent {
    pub kind: WatchKind,
    pub revision: Revision,
    resource: Arc<Resource>,
    source: Source,
}

#[derive(Clone)]
enum Source {
    /// A change in the log: its wire forms are shared by all watchers.
    Logged(Arc<LogEvent>, Arc<Entry>),
    /// An object that was there when the watch began.
    Initial(Arc<Entry>),
    Bookmark {
        initial_events_end: bool,
    },
}

impl WatchEvent {
    /// The object; a bookmark's has nothing but its version.
    pub fn object(&self) -> Result<Object, Status> {
        match &self.source {
            Source::Logged(_, entry) | Source::Initial(entry) => self.resource.object_of(entry),
            Source::Bookmark { initial_events_end } => Ok(self.bookmark(*initial_events_end)),
        }
    }

    /// `None` for a bookmark.
    pub fn entry(&self) -> Option<&Arc<Entry>> {
        match &self.source {
            Source::Logged(_, entry) | Source::Initial(entry) => Some(entry),
            Source::Bookmark { .. } => None,
        }
    }

    fn bookmark(&self, initial_events_end: bool) -> Object {
        let mut object = Object::default();
        object.set_gvk(&self.resource.info().gvk);
        object.set_resource_version(&self.revision.to_string());
        if initial_events_end {
            object
                .metadata_mut()
                .insert("annotations", value!({"k8s.io/initial-events-end": "true"}));
        }
        self.resource.bookmark_zero_values(&mut object);
        object
    }

    /// `{"type":…,"object":…}` and a line feed. Made once for all watchers of one version.
    pub fn json(&self) -> Result<Bytes, Status> {
        match &self.source {
            Source::Logged(event, entry) if !self.resource.info().converts() => {
                let encoded = event.encoded.read().unwrap_or_else(PoisonError::into_inner).clone();
                let slot = &encoded.json[self.kind as usize];
                if let Some(json) = slot.get() {
                    return Ok(json.clone());
                }
                let json = self.wrap(&self.resource.json_of(entry)?);
                Ok(slot.get_or_init(|| json).clone())
            }
            Source::Logged(_, entry) | Source::Initial(entry) => {
                Ok(self.wrap(&self.resource.json_of(entry)?))
            }
            Source::Bookmark { initial_events_end } => {
                Ok(self.wrap(&self.bookmark(*initial_events_end).to_json()))
            }
        }
    }

    fn wrap(&self, object: &[u8]) -> Bytes {
        let mut out = BytesMut::with_capacity(object.len() + 40);
        out.put_slice(b"{\"type\":\"");
        out.put_slice(self.kind.as_str().as_bytes());
        out.put_slice(b"\",\"object\":");
        out.put_slice(object);
        out.put_slice(b"}\n");
        out.freeze()
    }
}

impl std::fmt::Debug for WatchEvent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = self.entry().map(|entry| entry.name().to_owned()).unwrap_or_default();
        write!(f, "{} {name}@{}", self.kind.as_str(), self.revision)
    }
}

/// A running watch. Dropping it ends it.
pub struct WatchStream {
    resource: Arc<Resource>,
    cache: Arc<Cache>,
    selector: Selector,
    waiter: Arc<Waiter>,
    waiter_id: u64,
    epoch: u64,
    /// Events up to here are older than what the client asked for.
    after: Revision,
    pending: VecDeque<WatchEvent>,
    bookmarks: Bookmarks,
    deadline: Option<Instant>,
    ended: bool,
}

struct Bookmarks {
    allowed: bool,
    interval: Duration,
    next: Instant,
    /// Due, and waiting for progress.
    due: bool,
    /// The bookmark that ends the initial events is still to come, at or after this revision.
    initial_end: Option<Revision>,
    last: Revision,
}

/// Sets a watch up. A revision that is too old is an error of the stream's start, which the
/// handler turns into an `ERROR` event.
pub(crate) async fn watch(
    resource: &Arc<Resource>,
    cache: &Arc<Cache>,
    namespace: Option<&str>,
    options: &ListOptions,
) -> Result<WatchStream, Status> {
    list::check_watch(options)?;
    let selector = Selector::parse(cache.storage(), options)?;
    let revision = list::parse_revision(&options.resource_version)?;
    cache.ready().await?;
    let (initial, fresh) = match (options.send_initial_events, options.resource_version.as_str()) {
        (Some(initial), "") => (initial, true),
        (Some(initial), _) => (initial, false),
        (None, "") => (true, true),
        (None, "0") => (true, false),
        (None, _) => (false, false),
    };
    let at_least = if fresh { cache.fresh().await? } else { revision };
    if initial && !fresh {
        cache.at_least(revision).await?;
    }
    // Contradicting selectors see nothing, ever; the empty key is nobody's.
    let scope = list::scope(cache, namespace, &selector).unwrap_or(Scope::Key(Bytes::new()));
    WatchStream::start(
        resource,
        cache,
        scope,
        selector,
        options,
        Start { initial, at_least, revision },
    )
}

struct Start {
    initial: bool,
    /// The revision that the initial state has at least.
    at_least: Revision,
    /// The revision to go on from; 0 for none.
    revision: Revision,
}

impl WatchStream {
    fn start(
        resource: &Arc<Resource>,
        cache: &Arc<Cache>,
        scope: Scope,
        selector: Selector,
        options: &ListOptions,
        start: Start,
    ) -> Result<Self, Status> {
        let env = &cache.storage().shared.env;
        let interval = cache.storage().shared.options.bookmark_interval;
        let now = env.instant();
        let deadline = options.timeout.map(|timeout| now + timeout);
        let mut state = cache.write();
        let (position, after) = if start.initial || start.revision == 0 {
            (state.log_end(), state.revision)
        } else if start.revision < state.floor {
            let (wanted, oldest) = (start.revision, state.floor);
            return Err(Status::expired(format!("too old resource version: {wanted} ({oldest})")));
        } else {
            (position_after(&state.log, start.revision) + state.log_start, start.revision)
        };
        let waiter = Arc::new(Waiter {
            notify: Notify::new(),
            position: AtomicU64::new(position),
            scope,
            trigger: selector.trigger(),
            wants_progress: AtomicBool::new(false),
        });
        let waiter_id = cache.waiter_ids.fetch_add(1, Ordering::Relaxed);
        state.waiters.insert(waiter_id, waiter.clone());
        let initial_end =
            options.send_initial_events == Some(true) && options.allow_watch_bookmarks;
        let mut stream = Self {
            resource: resource.clone(),
            cache: cache.clone(),
            selector,
            waiter,
            waiter_id,
            epoch: state.epoch,
            after,
            pending: VecDeque::new(),
            bookmarks: Bookmarks {
                allowed: options.allow_watch_bookmarks,
                interval,
                next: first_bookmark(now, interval, deadline),
                due: false,
                initial_end: initial_end.then_some(start.at_least),
                last: 0,
            },
            deadline,
            ended: false,
        };
        if start.initial {
            stream.load_initial(&state.items);
        }
        drop(state);
        Ok(stream)
    }

    fn load_initial(&mut self, items: &std::collections::BTreeMap<Bytes, Arc<Entry>>) {
        let visible: Vec<Arc<Entry>> = match &self.waiter.scope {
            Scope::Key(key) => items.get(key).cloned().into_iter().collect(),
            Scope::Prefix(prefix) => items
                .range(prefix.clone()..)
                .take_while(|(key, _)| key.starts_with(prefix))
                .map(|(_, entry)| entry.clone())
                .collect(),
        };
        for entry in visible.into_iter().filter(|entry| self.selector.matches(entry)) {
            self.pending.push_back(WatchEvent {
                kind: WatchKind::Added,
                revision: entry.revision,
                resource: self.resource.clone(),
                source: Source::Initial(entry),
            });
        }
    }

    /// The next event. `None`: the watch is over (its time is up, the server lost its own
    /// watch, or this watcher was too slow); the client watches again from where it was.
    pub async fn next(&mut self) -> Option<WatchEvent> {
        loop {
            if let Some(event) = self.pending.pop_front() {
                return Some(event);
            }
            if self.ended {
                return None;
            }
            match self.refill() {
                Refill::Events => continue,
                Refill::Ended => {
                    self.ended = true;
                    return None;
                }
                Refill::Drained(revision) => {
                    if let Some(bookmark) = self.bookmark_at(revision) {
                        return Some(bookmark);
                    }
                }
            }
            self.park().await;
        }
    }

    /// Everything that lies ready, without waiting (for handlers that write in bulk).
    pub fn ready(&mut self) -> Option<WatchEvent> {
        if self.pending.is_empty() && !self.ended && matches!(self.refill(), Refill::Ended) {
            self.ended = true;
        }
        self.pending.pop_front()
    }

    /// Reads on in the log until something visible is found or the end is reached.
    fn refill(&mut self) -> Refill {
        let cache = self.cache.clone();
        let state = cache.read();
        loop {
            let position = self.waiter.position.load(Ordering::Relaxed);
            if state.epoch != self.epoch || position < state.log_start {
                if state.epoch == self.epoch {
                    cache.storage().shared.metrics.watchers_dropped.add();
                }
                return Refill::Ended;
            }
            let from = (position - state.log_start) as usize;
            if from >= state.log.len() {
                return Refill::Drained(state.revision);
            }
            let to = state.log.len().min(from + BATCH);
            for event in state.log.range(from..to) {
                self.see(event);
            }
            self.waiter.position.store(state.log_start + to as u64, Ordering::Relaxed);
            if !self.pending.is_empty() {
                return Refill::Events;
            }
        }
    }

    /// Queues what this watcher sees of a change: an object that enters or leaves the selector
    /// is added or deleted for it.
    fn see(&mut self, event: &Arc<LogEvent>) {
        if event.revision <= self.after || !self.waiter.scope.holds(event.key()) {
            return;
        }
        let visible =
            |entry: &Option<Arc<Entry>>| entry.as_ref().is_some_and(|e| self.selector.matches(e));
        let (kind, entry) = match (visible(&event.previous), visible(&event.current)) {
            (false, false) => return,
            (false, true) => (WatchKind::Added, event.current.as_ref()),
            (true, true) => (WatchKind::Modified, event.current.as_ref()),
            (true, false) => (WatchKind::Deleted, event.last_state()),
        };
        if let Some(entry) = entry {
            self.pending.push_back(WatchEvent {
                kind,
                revision: event.revision,
                resource: self.resource.clone(),
                source: Source::Logged(event.clone(), entry.clone()),
            });
        }
    }

    /// A bookmark, when one is due and everything before it was handed out.
    fn bookmark_at(&mut self, revision: Revision) -> Option<WatchEvent> {
        let end = self.bookmarks.initial_end.is_some_and(|at| revision >= at);
        let due = self.bookmarks.due && revision > self.bookmarks.last;
        if !end && !due {
            return None;
        }
        if end {
            self.bookmarks.initial_end = None;
        }
        self.bookmarks.due = false;
        self.waiter.wants_progress.store(false, Ordering::Relaxed);
        let revision = revision.max(self.after);
        self.bookmarks.last = revision;
        Some(WatchEvent {
            kind: WatchKind::Bookmark,
            revision,
            resource: self.resource.clone(),
            source: Source::Bookmark { initial_events_end: end },
        })
    }

    /// Waits for news, for the next bookmark, or for the end of the watch's time.
    async fn park(&mut self) {
        let env = self.cache.storage().shared.env.clone();
        let wake = match (self.bookmarks.allowed, self.deadline) {
            (true, Some(deadline)) => Some(deadline.min(self.bookmarks.next)),
            (true, None) => Some(self.bookmarks.next),
            (false, deadline) => deadline,
        };
        let timer = async {
            match wake {
                Some(at) => env.sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = self.waiter.notify.notified() => return,
            () = timer => {}
        }
        let now = env.instant();
        if self.deadline.is_some_and(|deadline| now >= deadline) {
            self.ended = true;
        }
        if self.bookmarks.allowed && now >= self.bookmarks.next {
            self.bookmarks.next = now + self.bookmarks.interval;
            self.bookmarks.due = true;
            self.waiter.wants_progress.store(true, Ordering::Relaxed);
            self.cache.request_progress();
            // Without an answer the bookmark says what is known already.
            env.timeout(PROGRESS_WAIT, self.waiter.notify.notified()).await;
        }
    }
}

impl Drop for WatchStream {
    fn drop(&mut self) {
        self.cache.write().waiters.remove(&self.waiter_id);
    }
}

enum Refill {
    Events,
    Drained(Revision),
    Ended,
}

/// The index of the first event after a revision.
fn position_after(log: &VecDeque<Arc<LogEvent>>, revision: Revision) -> u64 {
    log.partition_point(|event| event.revision <= revision) as u64
}

/// Bookmarks come every interval, and shortly before the end so that little is repeated.
fn first_bookmark(now: Instant, interval: Duration, deadline: Option<Instant>) -> Instant {
    let regular = now + interval;
    match deadline.and_then(|deadline| deadline.checked_sub(Duration::from_secs(2))) {
        Some(last) if last > now => regular.min(last),
        _ => regular,
    }
}

/// The body of an `ERROR` event: a watch that cannot go on, in the client's terms.
pub fn error_event(status: &Status) -> Bytes {
    let object = machinery::json::parse(&status.to_json()).unwrap_or(Value::Null);
    let mut out = machinery::json::to_vec(&value!({"type": "ERROR"}));
    out.pop();
    out.extend_from_slice(b",\"object\":");
    out.extend_from_slice(&machinery::json::to_vec(&object));
    out.extend_from_slice(b"}\n");
    out.into()
}
