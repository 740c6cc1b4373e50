//! The watch cache of one kind: every object's bytes, a small index, and the recent events.
//!
//! It is filled by a list and a watch of the store and by nothing else, so it is right whoever
//! writes. Events lie in one shared log; a watcher is a position in it. A watcher that the log
//! has overtaken is ended alone; the others never wait for it.
//!
//! ```text
//! idle ──first list or watch──▶ listing ──▶ following ──watch lost──▶ listing (next epoch)
//! ```

pub mod entry;
pub mod list;
pub mod watch;

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc, Mutex, OnceLock, PoisonError, RwLock, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use api::Status;
use bytes::Bytes;
use futures::StreamExt;
use stdx::{backoff::Backoff, env::AbortOnDrop};
use store::{EventKind, Revision, WatchBatch};
use tokio::sync::{Notify, watch as signal};

use crate::storage::Storage;
pub use entry::{Budget, Entry};

/// A consistent read gives up when the cache lags behind the store for so long.
const FRESHNESS_WAIT: Duration = Duration::from_secs(3);
/// Keys per read while listing the store.
const LIST_PAGE: usize = 1000;
/// Encoded forms of events are kept for so many of the newest.
const ENCODED_EVENTS: usize = 256;

pub struct Cache {
    storage: Arc<Storage>,
    state: RwLock<State>,
    reached: signal::Sender<Reached>,
    progress: Mutex<Option<store::Progress>>,
    task: OnceLock<AbortOnDrop<()>>,
    waiter_ids: AtomicU64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Reached {
    ready: bool,
    revision: Revision,
}

#[derive(Default)]
struct State {
    items: BTreeMap<Bytes, Arc<Entry>>,
    log: VecDeque<Arc<LogEvent>>,
    log_bytes: usize,
    /// The sequence number of the first event in `log`.
    log_start: u64,
    /// All events after this revision are in `log`.
    floor: Revision,
    /// Everything up to this revision has been taken in.
    revision: Revision,
    /// Counts how often the cache was filled anew; watchers of an older epoch end.
    epoch: u64,
    waiters: BTreeMap<u64, Arc<Waiter>>,
}

impl State {
    fn log_end(&self) -> u64 {
        self.log_start + self.log.len() as u64
    }
}

/// One change, as it lies in the log.
pub(crate) struct LogEvent {
    pub revision: Revision,
    /// The object after the change; `None` for a delete.
    pub current: Option<Arc<Entry>>,
    /// The object before it; `None` for a creation.
    pub previous: Option<Arc<Entry>>,
    /// What leaves a watcher's view carries the state before, under this revision.
    pub last: OnceLock<Arc<Entry>>,
    pub encoded: RwLock<Arc<Encoded>>,
}

/// Wire forms of one event, each made once. By `added`, `modified`, `deleted`.
#[derive(Default)]
pub(crate) struct Encoded {
    pub json: [OnceLock<Bytes>; 3],
}

impl LogEvent {
    fn key(&self) -> &Bytes {
        let entry = self.current.as_ref().or(self.previous.as_ref());
        entry.map(|entry| &entry.key).expect("an event has a state before or after")
    }

    fn size(&self) -> usize {
        self.current.as_ref().map_or(0, |entry| entry.stored.len()) + 200
    }

    /// The last state of an object that goes out of sight.
    pub fn last_state(&self) -> Option<&Arc<Entry>> {
        let previous = self.previous.as_ref()?;
        Some(self.last.get_or_init(|| Arc::new(previous.at_revision(self.revision))))
    }
}

/// What part of the kind a reader sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    Prefix(Bytes),
    Key(Bytes),
}

impl Scope {
    fn holds(&self, key: &[u8]) -> bool {
        match self {
            Self::Prefix(prefix) => key.starts_with(prefix),
            Self::Key(own) => key == own,
        }
    }
}

/// A watcher as the cache sees it.
pub(crate) struct Waiter {
    notify: Notify,
    /// The next event of the log that it has not looked at.
    position: AtomicU64,
    scope: Scope,
    /// Only objects with this value of this field matter to it.
    trigger: Option<(usize, smol_str::SmolStr)>,
    /// It waits for a bookmark, so it wants to hear of progress without events.
    wants_progress: AtomicBool,
}

impl Waiter {
    fn concerned(&self, event: &LogEvent) -> bool {
        let hit = |entry: &Option<Arc<Entry>>| match (&self.trigger, entry) {
            (Some((field, value)), Some(entry)) => entry.field(*field) == value,
            (None, Some(_)) => true,
            (_, None) => false,
        };
        self.scope.holds(event.key()) && (hit(&event.current) || hit(&event.previous))
    }
}

impl Cache {
    pub(crate) fn new(storage: Arc<Storage>) -> Arc<Self> {
        Arc::new(Self {
            storage,
            state: RwLock::default(),
            reached: signal::Sender::new(Reached::default()),
            progress: Mutex::default(),
            task: OnceLock::new(),
            waiter_ids: AtomicU64::new(0),
        })
    }

    pub(crate) fn storage(&self) -> &Arc<Storage> {
        &self.storage
    }

    fn start(self: &Arc<Self>) {
        self.task.get_or_init(|| {
            let env = self.storage.shared.env.clone();
            env.spawn("watch-cache", follow(Arc::downgrade(self))).abort_on_drop()
        });
    }

    /// Returns when the cache holds some state of the store.
    pub(crate) async fn ready(self: &Arc<Self>) -> Result<(), Status> {
        self.start();
        let mut reached = self.reached.subscribe();
        if reached.borrow().ready {
            return Ok(());
        }
        let env = &self.storage.shared.env;
        let waited = env.timeout(Duration::from_secs(30), reached.wait_for(|r| r.ready)).await;
        match waited {
            Some(Ok(_)) => Ok(()),
            _ => Err(Status::too_many_requests("storage is (re)initializing", 1)),
        }
    }

    /// Returns when the cache has reached everything that is committed now.
    pub(crate) async fn fresh(self: &Arc<Self>) -> Result<Revision, Status> {
        self.ready().await?;
        let revision =
            self.storage.shared.store.current_revision().await.map_err(crate::storage::failed)?;
        self.at_least(revision).await?;
        Ok(revision)
    }

    /// Returns when the cache has reached `revision`, or with "Too large resource version".
    pub(crate) async fn at_least(self: &Arc<Self>, revision: Revision) -> Result<(), Status> {
        self.ready().await?;
        let mut reached = self.reached.subscribe();
        if reached.borrow().revision >= revision {
            return Ok(());
        }
        self.request_progress();
        let env = &self.storage.shared.env;
        let waited =
            env.timeout(FRESHNESS_WAIT, reached.wait_for(|r| r.revision >= revision)).await;
        match waited {
            Some(Ok(_)) => Ok(()),
            _ => Err(too_large(revision, self.reached.borrow().revision)),
        }
    }

    fn request_progress(&self) {
        if let Some(progress) = &*self.progress.lock().unwrap_or_else(PoisonError::into_inner) {
            progress.request();
        }
    }

    /// The newest version that the cache holds, for readers that know its revision.
    pub(crate) fn peek(&self, key: &[u8]) -> Option<Arc<Entry>> {
        self.read().items.get(key).cloned()
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a new epoch with what the store holds at `revision`.
    fn replace(&self, items: BTreeMap<Bytes, Arc<Entry>>, revision: Revision) {
        let mut state = self.write();
        state.items = items;
        state.log_start = state.log_end();
        state.log.clear();
        state.log_bytes = 0;
        state.floor = revision;
        state.revision = revision;
        state.epoch += 1;
        for waiter in state.waiters.values() {
            waiter.notify.notify_one();
        }
        drop(state);
        self.reached.send_replace(Reached { ready: true, revision });
    }

    /// Takes in one batch and wakes the watchers that it concerns.
    fn publish(&self, batch: WatchBatch) {
        // Where somebody watches, the JSON form will be asked for.
        let watched = !self.read().waiters.is_empty();
        let entries: Vec<_> =
            batch.events.into_iter().map(|event| self.read_event(event, watched)).collect();
        let mut state = self.write();
        let before = state.log_end();
        for (key, revision, entry) in entries {
            let previous = match &entry {
                Some(entry) => state.items.insert(key, entry.clone()),
                None => state.items.remove(&key),
            };
            if entry.is_some() || previous.is_some() {
                push(&mut state, revision, entry, previous, &self.storage);
            }
        }
        state.revision = state.revision.max(batch.revision);
        let (revision, end) = (state.revision, state.log_end());
        let new_events = (end - before) as usize;
        let fresh = state.log.len().saturating_sub(new_events);
        for waiter in state.waiters.values() {
            let concerned = state.log.iter().skip(fresh).any(|event| waiter.concerned(event));
            let idle = waiter.position.load(Ordering::Relaxed) == before;
            if idle && !concerned {
                waiter.position.store(end, Ordering::Relaxed);
            }
            if concerned || waiter.wants_progress.load(Ordering::Relaxed) {
                waiter.notify.notify_one();
            }
        }
        drop(state);
        self.reached.send_replace(Reached { ready: true, revision });
    }

    fn read_event(
        &self,
        event: store::Event,
        watched: bool,
    ) -> (Bytes, Revision, Option<Arc<Entry>>) {
        let entry = match (event.kind, event.current) {
            (EventKind::Put, Some(now)) if watched => {
                self.storage.entry_with_json(now.key, now.mod_revision, now.value)
            }
            (EventKind::Put, Some(now)) => self.storage.entry(now.key, now.mod_revision, now.value),
            _ => None,
        };
        (event.key, event.revision, entry)
    }
}

fn push(
    state: &mut State,
    revision: Revision,
    current: Option<Arc<Entry>>,
    previous: Option<Arc<Entry>>,
    storage: &Storage,
) {
    let event =
        LogEvent { revision, current, previous, last: OnceLock::new(), encoded: RwLock::default() };
    state.log_bytes += event.size();
    state.log.push_back(Arc::new(event));
    if let Some(old) = state.log.len().checked_sub(ENCODED_EVENTS + 1) {
        *state.log[old].encoded.write().unwrap_or_else(PoisonError::into_inner) = Arc::default();
    }
    let options = &storage.shared.options;
    while state.log.len() > options.log_events || state.log_bytes > options.log_bytes {
        if state.log.len() <= 1 {
            break;
        }
        if let Some(oldest) = state.log.pop_front() {
            state.log_bytes -= oldest.size();
            state.log_start += 1;
            state.floor = oldest.revision;
        }
    }
}

/// The cache's task: list, follow, and again when the watch is lost.
async fn follow(cache: Weak<Cache>) {
    let backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(5));
    let mut failures = 0;
    while let Some(strong) = cache.upgrade() {
        let env = strong.storage.shared.env.clone();
        let storage = strong.storage.clone();
        drop(strong);
        let followed = async {
            let (items, revision) = list_store(&storage).await?;
            let Some(strong) = cache.upgrade() else { return Ok(()) };
            strong.replace(items, revision);
            drop(strong);
            failures = 0;
            follow_store(&cache, &storage, revision).await
        };
        match followed.await {
            Ok(()) => return,
            Err(error) => {
                failures += 1;
                tracing::warn!(
                    prefix = %storage.root,
                    error = %stdx::chain(&error),
                    "the watch cache lost its watch and lists again"
                );
                env.sleep(backoff.delay(failures)).await;
            }
        }
    }
}

async fn list_store(
    storage: &Storage,
) -> Result<(BTreeMap<Bytes, Arc<Entry>>, Revision), store::Error> {
    let mut items = BTreeMap::new();
    let mut range = store::Range::prefix(storage.root.clone().into_bytes());
    range.limit = LIST_PAGE;
    loop {
        let page = storage.shared.store.range(range.clone()).await?;
        let revision = if range.revision == 0 { page.revision } else { range.revision };
        range.revision = revision;
        let full = page.items.len() == LIST_PAGE;
        for item in page.items {
            let mut next = item.key.to_vec();
            next.push(0);
            range.start = next.into();
            if let Some(entry) = storage.entry(item.key.clone(), item.mod_revision, item.value) {
                items.insert(item.key, entry);
            }
        }
        if !full {
            return Ok((items, revision));
        }
    }
}

async fn follow_store(
    cache: &Weak<Cache>,
    storage: &Storage,
    revision: Revision,
) -> Result<(), store::Error> {
    let range = store::Range::prefix(storage.root.clone().into_bytes());
    let request = store::WatchRequest { start: range.start, end: range.end, from: revision + 1 };
    let mut watch = storage.shared.store.watch(request).await?;
    match cache.upgrade() {
        Some(cache) => {
            *cache.progress.lock().unwrap_or_else(PoisonError::into_inner) =
                Some(watch.progress.clone());
        }
        None => return Ok(()),
    }
    // A reader may have asked for progress before there was a watch to ask.
    watch.progress.request();
    while let Some(batch) = watch.events.next().await {
        match cache.upgrade() {
            Some(cache) => cache.publish(batch?),
            None => return Ok(()),
        }
    }
    Err(store::Error::Unavailable("the watch ended".into()))
}

/// The answer to a revision that does not come: the client may try again.
fn too_large(wanted: Revision, current: Revision) -> Status {
    let message = format!("Timeout: Too large resource version: {wanted}, current: {current}");
    let cause = api::Cause {
        reason: "ResourceVersionTooLarge".into(),
        message: "Too large resource version".into(),
        field: String::new(),
    };
    let details =
        api::status::Details { causes: vec![cause], retry_after_seconds: 1, ..Default::default() };
    Status::new(504, api::Reason::Timeout, message).with_details(details)
}
