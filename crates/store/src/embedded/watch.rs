//! Watches: a bounded buffer each, and history for those that fall behind.
//!
//! ```text
//!            from ≤ newest                    caught up
//!  start ─────────────────▶ behind ─────────────────────────▶ live
//!    │ from > newest          ▲  │ history gone: Compacted      │
//!    └────────────▶ live      └──┴───── buffer full ◀───────────┘
//! ```
//!
//! A commit hands its events to the watchers whose range they touch, while it holds the state; a
//! watcher that is behind takes none and reads them from history at its own pace. So a slow
//! watcher holds a bounded number of values, and nobody waits for it.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use tokio::sync::Notify;

use super::{
    Inner,
    index::{EventLimits, State},
};
use crate::{Error, Event, EventKind, Progress, Revision, Watch, WatchBatch, WatchRequest};

/// How much history one step reads: events delivered, bytes of them, events looked at.
const STEP: EventLimits = EventLimits { events: 500, bytes: 1 << 20, scanned: 20_000 };
/// Bytes of values that a live watcher's buffer may hold.
const BUFFER_BYTES: usize = 8 << 20;

/// One watcher as the committer sees it.
pub struct Channel {
    start: Bytes,
    end: Option<Bytes>,
    from: Revision,
    limit: usize,
    buffer: Mutex<Buffer>,
    pub wake: Notify,
}

#[derive(Default)]
struct Buffer {
    events: VecDeque<Event>,
    bytes: usize,
    /// The first revision to be read from history; the buffer takes nothing meanwhile.
    behind: Option<Revision>,
    progress: bool,
}

impl Channel {
    pub fn wants(&self, key: &[u8], revision: Revision) -> bool {
        let within = match self.end.as_deref() {
            None => *key == self.start,
            Some(b"\0") => *key >= self.start[..],
            Some(end) => *key >= self.start[..] && key < end,
        };
        within && revision >= self.from
    }

    /// Takes the events that this watcher wants; falls behind when they are too many.
    pub fn push_all(&self, events: &[Event]) {
        let mut wanted = events.iter().filter(|e| self.wants(&e.key, e.revision)).peekable();
        if wanted.peek().is_none() {
            return;
        }
        let mut buffer = self.lock();
        if buffer.behind.is_some() {
            return;
        }
        for event in wanted {
            if buffer.events.len() >= self.limit || buffer.bytes > BUFFER_BYTES {
                buffer.fall_behind(event.revision);
                break;
            }
            buffer.bytes += event_bytes(event);
            buffer.events.push_back(event.clone());
        }
        drop(buffer);
        self.wake.notify_one();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Buffer> {
        self.buffer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Buffer {
    /// Goes on from history at `revision`, or earlier when a part of that revision is in the
    /// buffer: it is delivered whole or not yet.
    fn fall_behind(&mut self, revision: Revision) {
        while self.events.back().is_some_and(|last| last.revision == revision) {
            self.events.pop_back();
        }
        self.behind = Some(revision);
    }
}

fn event_bytes(event: &Event) -> usize {
    let of = |item: &Option<crate::KeyValue>| item.as_ref().map_or(0, |item| item.value.len());
    event.key.len() + of(&event.current) + of(&event.previous)
}

/// Sets a watch up.
pub fn start(inner: &Arc<Inner>, request: WatchRequest) -> Watch {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let id = NEXT.fetch_add(1, Ordering::Relaxed);
    let mut state = inner.write();
    let revision = state.revision;
    let from = if request.from == 0 { revision + 1 } else { request.from };
    let behind = (from <= revision).then_some(from);
    let channel = Arc::new(Channel {
        start: request.start,
        end: request.end,
        from,
        limit: inner.options.watch_buffer_events,
        buffer: Mutex::new(Buffer { behind, ..Buffer::default() }),
        wake: Notify::new(),
    });
    state.watchers.insert(id, channel.clone());
    drop(state);
    let asked = channel.clone();
    let progress = Progress::new(move || {
        asked.lock().progress = true;
        asked.wake.notify_one();
    });
    let cursor = Cursor { inner: inner.clone(), channel, id, ended: false };
    let events = futures::stream::unfold(cursor, |mut cursor| async move {
        let item = cursor.next().await?;
        Some((item, cursor))
    });
    Watch { revision, events: Box::pin(events), progress }
}

/// One watcher as its reader sees it.
struct Cursor {
    inner: Arc<Inner>,
    channel: Arc<Channel>,
    id: u64,
    ended: bool,
}

enum Step {
    Deliver(WatchBatch),
    CatchUp(Revision),
    Progress,
    Wait,
}

impl Cursor {
    async fn next(&mut self) -> Option<Result<WatchBatch, Error>> {
        if self.ended {
            return None;
        }
        let item = self.step().await;
        self.ended = item.is_err();
        Some(item)
    }

    async fn step(&mut self) -> Result<WatchBatch, Error> {
        loop {
            self.inner.check()?;
            let batch = match self.plan() {
                Step::Deliver(batch) => Some(batch),
                Step::CatchUp(from) => self.catch_up(from).await?,
                Step::Progress => self.progress(),
                Step::Wait => {
                    self.channel.wake.notified().await;
                    None
                }
            };
            if let Some(batch) = batch {
                return Ok(batch);
            }
        }
    }

    /// What to do next. Events in the buffer come before those still in history.
    fn plan(&self) -> Step {
        let mut buffer = self.channel.lock();
        if let Some(last) = buffer.events.back() {
            let revision = last.revision;
            buffer.bytes = 0;
            let events = std::mem::take(&mut buffer.events).into();
            return Step::Deliver(WatchBatch { revision, events });
        }
        match buffer.behind {
            Some(from) => Step::CatchUp(from),
            None if buffer.progress => Step::Progress,
            None => Step::Wait,
        }
    }

    /// One step through history. At its end the watcher is live; both under one hold of the
    /// state, so that no commit falls between.
    async fn catch_up(&self, from: Revision) -> Result<Option<WatchBatch>, Error> {
        let (found, through) = {
            let state = self.inner.read();
            if from < state.compacted {
                return Err(Error::Compacted { compacted: state.compacted });
            }
            let (found, rest) = state.events_from(from, &self.channel, STEP);
            self.channel.lock().behind = rest;
            (found, rest.map_or(state.revision, |rest| rest - 1))
        };
        if found.is_empty() {
            // A long stretch without events of this range: let others run.
            tokio::task::yield_now().await;
            return Ok(None);
        }
        let mut founds = Vec::with_capacity(found.len() * 2);
        let mut shapes = Vec::with_capacity(found.len());
        for event in found {
            shapes.push((
                event.revision,
                event.key,
                event.current.is_some(),
                event.previous.is_some(),
            ));
            founds.extend(event.current);
            founds.extend(event.previous);
        }
        let mut items = self.inner.read_values(founds).await?.into_iter();
        let events = shapes
            .into_iter()
            .map(|(revision, key, current, previous)| {
                let current = current.then(|| items.next()).flatten();
                let previous = previous.then(|| items.next()).flatten();
                let kind = if current.is_some() { EventKind::Put } else { EventKind::Delete };
                Event { kind, key, revision, current, previous }
            })
            .collect();
        Ok(Some(WatchBatch { revision: through, events }))
    }

    /// An empty batch at the newest revision, if nothing came in between.
    fn progress(&self) -> Option<WatchBatch> {
        let state: std::sync::RwLockReadGuard<'_, State> = self.inner.read();
        let mut buffer = self.channel.lock();
        if !buffer.events.is_empty() || buffer.behind.is_some() {
            return None;
        }
        buffer.progress = false;
        Some(WatchBatch { revision: state.revision, events: Vec::new() })
    }
}

impl Drop for Cursor {
    fn drop(&mut self) {
        self.inner.write().watchers.remove(&self.id);
    }
}
