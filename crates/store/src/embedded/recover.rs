//! From the files back to the state, at start.
//!
//! The newest checkpoint is loaded, then the log from there on is replayed. What a crash left
//! behind an unfinished write is cut off; everything else that does not fit is [`Error::Corrupt`].

use std::{io, path::Path, sync::Arc};

use bytes::Bytes;
use stdx::{Env, files::File};

use super::{
    index::{Place, SegmentFile, State},
    log::{BatchReader, Listing, Next, checkpoint_path, list, segment_path},
    record::{Record, decode},
};
use crate::{Error, Revision, error};

/// The first number that stands for a checkpoint file among [`State::files`].
pub const CHECKPOINT_NUMBER: u32 = 1 << 31;

pub struct Recovered {
    pub state: State,
    pub next: Next,
}

/// Reads the whole directory. Blocks.
pub fn recover(env: &Env, dir: &Path, recent_bytes: usize) -> Result<Recovered, Error> {
    let failed = |error: io::Error| error::from_io(dir, error);
    let listing = list(&**env.files(), dir).map_err(failed)?;
    let mut recovery = Recovery {
        env,
        dir,
        state: State::new(recent_bytes),
        next: Next { sequence: 1, number: 1 },
        base: 0,
    };
    recovery.run(listing)?;
    let Recovery { mut state, next, .. } = recovery;
    state.attach_all();
    state.trim(usize::MAX);
    Ok(Recovered { state, next })
}

struct Recovery<'a> {
    env: &'a Env,
    dir: &'a Path,
    state: State,
    next: Next,
    /// The checkpoint's revision, 0 without one.
    base: Revision,
}

impl Recovery<'_> {
    fn run(&mut self, listing: Listing) -> Result<(), Error> {
        let files = self.env.files();
        for path in &listing.unfinished {
            files.remove(path).map_err(|e| self.io(e))?;
        }
        if let Some((&newest, older)) = listing.checkpoints.split_last() {
            self.load_checkpoint(newest)?;
            for &revision in older {
                files.remove(&checkpoint_path(self.dir, revision)).map_err(|e| self.io(e))?;
            }
        }
        let (stale, segments) = contiguous_tail(&listing.segments);
        for &number in stale {
            files.remove(&segment_path(self.dir, number)).map_err(|e| self.io(e))?;
        }
        for (at, &number) in segments.iter().enumerate() {
            let last = at + 1 == segments.len();
            self.replay_segment(number, at == 0, last)?;
        }
        if segments.is_empty() && self.base > 0 {
            return Err(self.corrupt(format!("no log follows checkpoint {}", self.base)));
        }
        Ok(())
    }

    fn load_checkpoint(&mut self, revision: Revision) -> Result<(), Error> {
        let path = checkpoint_path(self.dir, revision);
        let file: Arc<dyn File> =
            self.env.files().open(&path, false).map_err(|e| self.io(e))?.into();
        let mut reader = BatchReader::new(&*file).map_err(|e| self.io(e))?;
        let dir = self.dir;
        let broken = |what: &str| corrupt(dir, format!("checkpoint {revision}: {what}"));
        let now_ms = self.now_ms();
        let (mut versions, mut ended, mut salt, mut batches) = (0, false, None, 0);
        while !reader.at_end() {
            let batch = reader.next_batch().map_err(|e| self.io(e))?;
            let (header, at, payload) = batch.ok_or_else(|| broken("a checksum does not match"))?;
            let same_file = *salt.get_or_insert(header.salt) == header.salt;
            if !same_file || header.sequence != batches || ended {
                return Err(broken("batches are out of order"));
            }
            batches += 1;
            for parsed in records(payload, at, CHECKPOINT_NUMBER) {
                let (record, place) = parsed.ok_or_else(|| broken("a record is malformed"))?;
                match record {
                    Record::Version { meta, key, value } => {
                        self.state.restore(meta, key, Bytes::copy_from_slice(value), place);
                        versions += 1;
                    }
                    Record::Grant { id, ttl_seconds, deadline_ms } => {
                        let deadline = deadline(self.env, now_ms, ttl_seconds, deadline_ms);
                        self.state.grant(id, ttl_seconds, deadline_ms, deadline);
                    }
                    Record::End { revision: end, count }
                        if end == revision && count == versions =>
                    {
                        ended = true;
                    }
                    _ => return Err(broken("a record does not belong there")),
                }
            }
        }
        if !ended {
            return Err(broken("its end is missing"));
        }
        let bytes = file.len().map_err(|e| self.io(e))?;
        self.state.files.insert(CHECKPOINT_NUMBER, SegmentFile { file, start: 0, bytes });
        self.state.compacted = revision;
        self.base = revision;
        // The revision itself counts as seen once the log's own record of it was replayed; a
        // log that ends before it has lost acknowledged writes.
        Ok(())
    }

    fn replay_segment(&mut self, number: u32, first: bool, last: bool) -> Result<(), Error> {
        let path = segment_path(self.dir, number);
        let file: Arc<dyn File> =
            self.env.files().open(&path, false).map_err(|e| self.io(e))?.into();
        let mut reader = BatchReader::new(&*file).map_err(|e| self.io(e))?;
        let Some((salt, start)) = self.open_segment(&mut reader, number, first, last)? else {
            drop(reader);
            return self.env.files().remove(&path).map_err(|e| self.io(e));
        };
        self.state.files.insert(number, SegmentFile { file: file.clone(), start, bytes: 0 });
        while !reader.at_end() {
            let expected = self.next.sequence;
            let Some((header, at, payload)) = reader.next_batch().map_err(|e| self.io(e))? else {
                break;
            };
            if header.salt != salt || header.sequence != expected {
                return Err(self.corrupt(format!("segment {number}: batch {expected} is missing")));
            }
            for parsed in records(payload, at, number) {
                let (record, place) =
                    parsed.ok_or_else(|| self.corrupt(format!("segment {number}: bad record")))?;
                self.replay(record, place)?;
            }
            self.next.sequence += 1;
        }
        self.close_segment(&*file, &mut reader, number, salt, last)
    }

    /// Reads what opens a segment: its salt and the revision before it. `None` when a crash cut its creation short.
    fn open_segment(
        &mut self,
        reader: &mut BatchReader<'_>,
        number: u32,
        first: bool,
        last: bool,
    ) -> Result<Option<(u64, Revision)>, Error> {
        let opened = reader.next_batch().map_err(|e| self.io(e))?.map(|(header, _, payload)| {
            (header, decode(payload).map(|(record, _)| owned_segment(record)))
        });
        let Some((header, record)) = opened else {
            let unfinished = last && !reader.any_valid_after(None).map_err(|e| self.io(e))?;
            return match unfinished {
                true => Ok(None),
                false => Err(self.corrupt(format!("segment {number}: its beginning is damaged"))),
            };
        };
        let Some(Some((own_number, start))) = record else {
            return Err(self.corrupt(format!("segment {number}: it opens with no number")));
        };
        if own_number != number || (!first && header.sequence != self.next.sequence) {
            return Err(
                self.corrupt(format!("segment {number}: it does not follow the one before"))
            );
        }
        let reaches = if self.base > 0 { start < self.base } else { start <= 1 };
        if first && !reaches {
            return Err(self.corrupt(format!("the log begins at revision {start} only")));
        }
        if !first && start != self.state.revision.max(self.base) && start >= self.base {
            return Err(self.corrupt(format!("segment {number}: it begins at revision {start}")));
        }
        self.next = Next { sequence: header.sequence + 1, number: number + 1 };
        Ok(Some((header.salt, start)))
    }

    /// Cuts off an unfinished write behind the last segment and makes what is left durable: a
    /// batch that only the page cache holds must not be shown and then lost.
    fn close_segment(
        &mut self,
        file: &dyn File,
        reader: &mut BatchReader<'_>,
        number: u32,
        salt: u64,
        last: bool,
    ) -> Result<(), Error> {
        let end = reader.offset;
        if !reader.at_end() {
            if !last || reader.any_valid_after(Some(salt)).map_err(|e| self.io(e))? {
                return Err(self.corrupt(format!(
                    "segment {number}: a checksum at byte {end} does not match"
                )));
            }
            file.set_len(end).map_err(|e| self.io(e))?;
        }
        if last {
            file.sync().map_err(|e| self.io(e))?;
            self.env.files().sync_dir(self.dir).map_err(|e| self.io(e))?;
            if self.state.revision < self.base {
                return Err(self.corrupt(format!("the log ends before checkpoint {}", self.base)));
            }
        }
        if let Some(segment) = self.state.files.get_mut(&number) {
            segment.bytes = end;
        }
        Ok(())
    }

    fn replay(&mut self, record: Record<'_>, place: Place) -> Result<(), Error> {
        match record {
            Record::Put { revision, .. } | Record::Delete { revision, .. }
                if revision < self.base => {}
            Record::Put { revision, key, .. } | Record::Delete { revision, key }
                if revision == self.base =>
            {
                self.state.restore_event(revision, key, place);
            }
            Record::Put { revision, lease, key, value } => {
                self.follows(revision)?;
                self.state.put(revision, key, Bytes::copy_from_slice(value), lease, place);
            }
            Record::Delete { revision, key } => {
                self.follows(revision)?;
                self.state.delete(revision, key);
            }
            Record::Grant { id, ttl_seconds, deadline_ms } => {
                let deadline = deadline(self.env, self.now_ms(), ttl_seconds, deadline_ms);
                self.state.grant(id, ttl_seconds, deadline_ms, deadline);
            }
            Record::Revoke { id } => self.state.revoke(id),
            Record::Compact { revision } => {
                self.state.compacted = self.state.compacted.max(revision);
            }
            Record::Segment { .. } | Record::Version { .. } | Record::End { .. } => {
                return Err(self.corrupt("a record does not belong into the log".to_owned()));
            }
        }
        Ok(())
    }

    /// Revisions of the log grow one by one; several records of one batch may share one.
    fn follows(&self, revision: Revision) -> Result<(), Error> {
        let newest = self.state.revision.max(self.base);
        if revision == newest + 1 || (revision == newest && newest > 1) {
            return Ok(());
        }
        Err(self.corrupt(format!("revision {revision} follows {newest}")))
    }

    fn now_ms(&self) -> i64 {
        now_ms(self.env)
    }

    fn io(&self, error: io::Error) -> Error {
        error::from_io(self.dir, error)
    }

    fn corrupt(&self, what: String) -> Error {
        corrupt(self.dir, what)
    }
}

fn corrupt(dir: &Path, what: String) -> Error {
    Error::Corrupt { path: dir.display().to_string(), what }
}

/// Segments that were removed out of order by a crash, and those that the log consists of.
fn contiguous_tail(numbers: &[u32]) -> (&[u32], &[u32]) {
    let gap = numbers.windows(2).rposition(|pair| pair[1] != pair[0] + 1);
    numbers.split_at(gap.map_or(0, |at| at + 1))
}

fn owned_segment(record: Record<'_>) -> Option<(u32, Revision)> {
    match record {
        Record::Segment { number, revision } => Some((number, revision)),
        _ => None,
    }
}

/// The records of a payload with their places; a `None` ends them where one is malformed.
fn records(
    payload: &[u8],
    at: u64,
    segment: u32,
) -> impl Iterator<Item = Option<(Record<'_>, Place)>> {
    let mut offset = 0;
    std::iter::from_fn(move || {
        if offset >= payload.len() {
            return None;
        }
        let Some((record, length)) = decode(&payload[offset..]) else {
            offset = payload.len();
            return Some(None);
        };
        let place = Place { segment, offset: (at + offset as u64) as u32, length: length as u32 };
        offset += length;
        Some(Some((record, place)))
    })
}

pub fn now_ms(env: &Env) -> i64 {
    (env.now().as_nanos() / 1_000_000) as i64
}

/// The deadline on the monotonic clock. Never more than the whole TTL away, should the wall clock
/// have been set back.
pub fn deadline(env: &Env, now_ms: i64, ttl_seconds: i64, deadline_ms: i64) -> stdx::Instant {
    let left = (deadline_ms - now_ms).clamp(0, ttl_seconds.saturating_mul(1000));
    env.instant() + std::time::Duration::from_millis(left as u64)
}
