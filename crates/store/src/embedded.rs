//! The embedded engine: an append-only log of checksummed batches on disk, an index in memory.
//!
//! Flow of a write: [`Embedded::txn`] queues it ▸ the commit loop (`commit`) plans all that waits
//! as one batch ▸ `log` appends it with one durable write ▸ the batch is applied to `index`, given
//! to the watchers (`watch`) and answered. Reads see the index alone; only replaced values that
//! are no longer recent are read back from the log. `checkpoint` keeps memory and disk bounded
//! after a compaction, `lease` ends leases by timer, `recover` brings everything back at start.
//!
//! Invariants: nothing is visible before it is durable. No lock is held across I/O. A block that
//! was acknowledged is never written again. What a crash left half written is cut off; anything
//! else that does not fit is [`Error::Corrupt`], and a write whose outcome the disk will not tell
//! ends all writing ([`Error::Unavailable`]) until the store is opened anew.
//!
//! # Why a log of our own
//!
//! The numbers to reach: at most 50 µs of CPU per write above one durable write of the device, and
//! at most 1 KB/s written at rest, where three node leases are renewed every ten seconds; with
//! every byte of I/O replaceable, so that simulation can tear it. `examples/bench.rs` measures
//! (release build, two cores shared with other work, ext4 on a virtual disk, the quietest of
//! several runs; redb holds 10,000 keys of 2,000 bytes):
//!
//! | | µs each | CPU µs each | bytes written each |
//! |---|---|---|---|
//! | the floor: one durable write of 2,048 bytes | 83 | 30 | 2,048 |
//! | this log, 1 writer, 2,000 bytes | 167 | 88 | 5,228 |
//! | this log, 1 writer, 400 bytes (a Lease) | 112 | 54 | 1,955 |
//! | this log, 64 writers, 2,000 bytes | 11 | 7.4 | 2,201 |
//! | the same with 100 watches | 11 | 9.9 | 2,142 |
//! | redb 4, 1 writer, 2,000 bytes | 373 | 154 | 36,864 |
//! | redb 4, 1 writer, 400 bytes | 312 | 136 | 36,864 |
//! | redb 4, batches of 64, 2,000 bytes (per write) | 46 | 20 | 7,601 |
//!
//! - `redb` has a storage trait, but a copy-on-write tree writes nine pages for one small value:
//!   three leases in ten seconds are 11 KB/s. Its values would be held in memory besides, for
//!   watches and lists.
//! - `raft-engine` is an append-only log with a file system trait, but lists and creates its
//!   directory past that trait, keeps an index of its own beside ours, cannot write less than a
//!   page, and brings a C compressor, Prometheus and an old protobuf.
//! - `fjall` opens files and starts threads itself.
//!
//! What an append-only log needs beyond that is small: `record`, `log`, `recover` and
//! `checkpoint` have about 1,000 lines, and `tests/faults.rs` runs them on a disk that forgets and
//! tears (`sim`). A batch is padded to 512 bytes and written past the page cache into blocks that
//! were zeroed before, by one system call: 2 KB for a lease, zeros included, hence 0.6 KB/s at
//! rest. 105,000 keys (203 MB) are open again in 1.2 s and take 248 MB of memory.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use async_trait::async_trait;
use bytes::Bytes;
use stdx::{Env, Task, files::File};
use tokio::sync::Notify;

use crate::{
    Error, KeyValue, LeaseId, Op, Range, RangeResult, Revision, Stats, Store, Txn, TxnResult,
    Watch, WatchRequest, error,
};

mod checkpoint;
mod commit;
mod index;
mod lease;
mod log;
mod queue;
mod record;
mod recover;
mod watch;

use commit::{Reply, Work};
use index::{Found, Place, State, Walk};
use queue::Queue;
use record::Record;

/// Keys looked at per hold of the state, so that a long list delays no commit for long.
const SCAN_KEYS: usize = 2048;
/// etcd's bound on a lease.
const MAX_TTL_SECONDS: i64 = 9_000_000_000;

/// Sizes. The defaults suit a cluster; tests make them small.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Bytes of key and value of one write. The default is etcd's limit on a request.
    pub request_bytes: usize,
    /// Where a segment of the log ends.
    pub segment_bytes: u64,
    /// Removable bytes on disk below which no checkpoint is written.
    pub garbage_bytes: u64,
    /// Bytes of replaced values that stay in memory.
    pub recent_bytes: usize,
    /// Events that a watcher may lag behind before it reads history.
    pub watch_buffer_events: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            request_bytes: 3 << 19,
            segment_bytes: 16 << 20,
            garbage_bytes: 16 << 20,
            recent_bytes: 4 << 20,
            watch_buffer_events: 4096,
        }
    }
}

/// A store in one directory of this machine. Dropping it ends its tasks; [`Embedded::close`]
/// also waits for them.
pub struct Embedded {
    inner: Arc<Inner>,
    tasks: Mutex<Vec<Task<()>>>,
}

struct Inner {
    env: Env,
    dir: PathBuf,
    options: Options,
    state: RwLock<State>,
    queue: Queue,
    leases_changed: Notify,
    compaction: Notify,
    failure: Mutex<Option<Failure>>,
}

/// Why the store serves no more.
#[derive(Clone, Debug)]
enum Failure {
    Closed,
    Io(String),
    Corrupt(String),
}

impl Embedded {
    /// Opens the store in `dir`, creating it if need be, and replays its log. Every other process
    /// gets [`Error::Locked`] as long as this one has it open.
    pub async fn open(env: &Env, dir: &Path, options: Options) -> Result<Arc<Self>, Error> {
        let (for_work, path) = (env.clone(), dir.to_owned());
        let opened = env.blocking(move || {
            let lock = lock(&for_work, &path)?;
            let recovered = recover::recover(&for_work, &path, options.recent_bytes)?;
            Ok::<_, Error>((lock, recovered))
        });
        let panicked = || Error::Unavailable("reading the store panicked".into());
        let (lock, recovered) = opened.await.ok_or_else(panicked)??;
        let inner = Arc::new(Inner {
            env: env.clone(),
            dir: dir.to_owned(),
            options,
            state: RwLock::new(recovered.state),
            queue: Queue::default(),
            leases_changed: Notify::new(),
            compaction: Notify::new(),
            failure: Mutex::new(None),
        });
        let writer = log::LogWriter::new(
            env.clone(),
            dir.to_owned(),
            options.segment_bytes,
            recovered.next,
            lock.clone(),
        );
        let tasks = vec![
            env.spawn("store commit", commit::run(inner.clone(), writer)),
            env.spawn("store checkpoint", checkpoint::run(inner.clone(), lock)),
            env.spawn("store leases", lease::run(inner.clone())),
        ];
        inner.compaction.notify_one();
        Ok(Arc::new(Self { inner, tasks: Mutex::new(tasks) }))
    }

    /// Ends everything and waits until the directory is free for another open. Writes in flight
    /// may or may not happen.
    pub async fn close(&self) {
        self.inner.close();
        let tasks = std::mem::take(&mut *self.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        for task in tasks {
            task.await;
        }
    }
}

/// The tasks end by themselves, after what they are writing; the directory stays locked so long.
impl Drop for Embedded {
    fn drop(&mut self) {
        self.inner.close();
    }
}

fn lock(env: &Env, dir: &Path) -> Result<Arc<dyn File>, Error> {
    let files = env.files();
    files.create_dir_all(dir).map_err(|e| error::from_io(dir, e))?;
    Ok(files.lock(&dir.join("lock")).map_err(|e| error::from_io(dir, e))?.into())
}

#[async_trait]
impl Store for Embedded {
    async fn range(&self, request: Range) -> Result<RangeResult, Error> {
        loop {
            if let Some((found, revision, count)) = self.inner.walk(&request).await? {
                let items = self.inner.read_values(found).await?;
                return Ok(RangeResult { items, revision, count });
            }
        }
    }

    async fn txn(&self, txn: Txn) -> Result<TxnResult, Error> {
        let limit = self.inner.options.request_bytes;
        let size = match &txn.then {
            Op::Put { key, value, .. } => key.len() + value.len(),
            Op::Delete { key } => key.len(),
        };
        if size > limit {
            return Err(Error::TooLarge { size, limit });
        }
        match self.inner.submit(Work::Txn(txn)).await? {
            Reply::Txn(result) => Ok(result),
            Reply::Done => unreachable!("a transaction is answered by its result"),
        }
    }

    async fn watch(&self, request: WatchRequest) -> Result<Watch, Error> {
        self.inner.check()?;
        Ok(watch::start(&self.inner, request))
    }

    async fn current_revision(&self) -> Result<Revision, Error> {
        self.inner.check()?;
        Ok(self.inner.read().revision)
    }

    async fn compact(&self, revision: Revision) -> Result<(), Error> {
        self.inner.submit(Work::Compact { revision }).await.map(|_| ())
    }

    async fn grant_lease(&self, ttl_seconds: i64) -> Result<LeaseId, Error> {
        let ttl_seconds = ttl_seconds.clamp(1, MAX_TTL_SECONDS);
        let id = self.inner.new_lease_id();
        self.inner.submit(Work::Grant { id, ttl_seconds }).await.map(|_| LeaseId(id))
    }

    async fn stats(&self) -> Result<Stats, Error> {
        let state = self.inner.read();
        Ok(Stats {
            bytes_on_disk: state.files.values().map(|segment| segment.bytes).sum(),
            bytes_in_use: state.live_bytes,
            keys: state.live_keys,
            compacted: state.compacted,
        })
    }
}

impl Inner {
    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands work to the commit loop and waits for its answer.
    async fn submit(&self, work: Work) -> Result<Reply, Error> {
        self.check()?;
        let closed = || Error::Unavailable("the store is closed".into());
        let answer = self.queue.push(work).ok_or_else(closed)?;
        answer.await.unwrap_or_else(|_| Err(Error::Unknown("the store was closed".into())))
    }

    /// What a range holds, in slices. `None` when a compaction overtook a read of the newest
    /// revision: it is to be read again.
    async fn walk(&self, request: &Range) -> Result<Option<(Vec<Found>, Revision, usize)>, Error> {
        self.check()?;
        let mut walk = Walk {
            end: request.end.as_ref(),
            at: 0,
            limit: request.limit,
            keys_only: request.keys_only,
            found: Vec::new(),
            count: 0,
        };
        let mut next = Some(request.start.clone());
        let mut served_at = 0;
        while let Some(start) = next {
            let more = {
                let state = self.read();
                if walk.at == 0 {
                    served_at = state.revision;
                    walk.at = if request.revision == 0 { state.revision } else { request.revision };
                }
                if walk.at > state.revision {
                    return Err(Error::Future { requested: walk.at, current: state.revision });
                }
                if walk.at < state.compacted {
                    return match request.revision {
                        0 => Ok(None),
                        _ => Err(Error::Compacted { compacted: state.compacted }),
                    };
                }
                state.scan(&mut walk, &start, SCAN_KEYS)
            };
            if more.is_some() {
                tokio::task::yield_now().await;
            }
            next = more;
        }
        Ok(Some((walk.found, served_at, walk.count)))
    }

    /// Completes what was found with the values that are on disk only.
    async fn read_values(&self, mut found: Vec<Found>) -> Result<Vec<KeyValue>, Error> {
        if found.iter().any(|found| found.unread.is_some()) {
            let path = self.dir.display().to_string();
            let read = self
                .env
                .blocking(move || found.iter_mut().try_for_each(read_value).map(|()| found));
            let panicked = || Error::Unavailable("reading the log panicked".into());
            found = read.await.ok_or_else(panicked)?.map_err(|unread| match unread {
                Unread::Io(error) => error::from_io(&self.dir, error),
                Unread::Corrupt(what) => {
                    self.fail(Failure::Corrupt(what.clone()));
                    Error::Corrupt { path, what }
                }
            })?;
        }
        Ok(found.into_iter().map(|found| found.item).collect())
    }

    fn new_lease_id(&self) -> i64 {
        loop {
            let id = (self.env.random_u64() >> 1) as i64;
            if id != 0 && !self.read().leases.contains_key(&id) {
                return id;
            }
        }
    }

    fn check(&self) -> Result<(), Error> {
        let failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match failure {
            None => Ok(()),
            Some(Failure::Closed) => Err(Error::Unavailable("the store is closed".into())),
            Some(Failure::Io(text)) => Err(Error::Unavailable(text.into())),
            Some(Failure::Corrupt(what)) => {
                Err(Error::Corrupt { path: self.dir.display().to_string(), what })
            }
        }
    }

    /// Lets every task end.
    fn close(&self) {
        self.fail(Failure::Closed);
        self.queue.close();
        self.leases_changed.notify_one();
        self.compaction.notify_one();
    }

    /// The first failure stays.
    fn fail(&self, failure: Failure) {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(failure);
        let watchers: BTreeMap<_, _> = self.read().watchers.clone();
        watchers.values().for_each(|channel| channel.wake.notify_one());
    }
}

enum Unread {
    Io(std::io::Error),
    Corrupt(String),
}

fn read_value(found: &mut Found) -> Result<(), Unread> {
    let Some((file, Place { segment, offset, length })) = found.unread.take() else {
        return Ok(());
    };
    let mut bytes = vec![0; length as usize];
    file.read_at(u64::from(offset), &mut bytes).map_err(Unread::Io)?;
    let value_bytes = match record::decode(&bytes) {
        Some((Record::Put { value, .. } | Record::Version { value, .. }, _)) => value.len(),
        _ => {
            return Err(Unread::Corrupt(format!(
                "file {segment}: the record at byte {offset} is damaged"
            )));
        }
    };
    let end = bytes.len();
    found.item.value = Bytes::from(bytes).slice(end - value_bytes..);
    Ok(())
}
