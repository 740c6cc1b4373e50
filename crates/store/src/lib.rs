//! The etcd role: a revisioned key-value log with watch, compaction and leases.
//!
//! [`Store`] is shaped like etcd v3, because one of its two engines *is* etcd:
//! [`embedded`] keeps everything in one file tree of this process, [`etcd`] talks to a cluster.
//! One suite ([`suite`]) holds both to the same contract, and [`sim`] is a disk that forgets and
//! tears, for simulated runs.
//!
//! Flow: a write is a [`Txn`] (compares and one operation) ▸ it commits durably with the next
//! revision ▸ every [`Watch`] whose range holds the key receives the [`Event`] in revision order.
//!
//! Invariants: the store knows no Kubernetes. One revision counter covers all keys, grows by one
//! per successful write and is never reused, also after a crash. What was acknowledged is
//! durable. A watch gets every event from its start revision on, once and in order, or
//! [`Error::Compacted`]. No lock is held across I/O.

pub mod embedded;
mod error;
pub mod etcd;
pub mod sim;
pub mod suite;

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;

/// A position in the log. The first write of an empty store has revision 2, as in etcd.
pub type Revision = i64;

/// The contract of both engines.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// Reads keys of a range, as of a revision or now.
    async fn range(&self, request: Range) -> Result<RangeResult, Error>;

    /// Compares and, if every comparison holds, writes. Durable when it returns.
    async fn txn(&self, txn: Txn) -> Result<TxnResult, Error>;

    /// Streams events of a range from a revision on. The stream ends only with an error, as its
    /// last item: [`Error::Compacted`] when that revision (or the position reached by a watcher
    /// that was too slow) is gone, also when it was gone from the start.
    async fn watch(&self, request: WatchRequest) -> Result<Watch, Error>;

    /// The newest committed revision (linearizable: asks the cluster when there is one).
    async fn current_revision(&self) -> Result<Revision, Error>;

    /// Forgets history below `revision`. Reads and watches from before it fail afterwards; reads
    /// and watches from it go on. [`Error::Compacted`] when that was done before, and
    /// [`Error::Future`] when it is not written yet.
    async fn compact(&self, revision: Revision) -> Result<(), Error>;

    /// Grants a lease of `ttl_seconds`; keys written with it vanish (as deletes with an event)
    /// when it runs out.
    async fn grant_lease(&self, ttl_seconds: i64) -> Result<LeaseId, Error>;

    /// Bytes on disk and other figures for `/metrics`.
    async fn stats(&self) -> Result<Stats, Error>;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LeaseId(pub i64);

/// Keys from `start` (inclusive) to `end` (exclusive), as of `revision` (0 = now), at most
/// `limit` (0 = all), in key order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Range {
    pub start: Bytes,
    /// `None` reads the single key `start`.
    pub end: Option<Bytes>,
    pub revision: Revision,
    pub limit: usize,
    /// Leave the values out (counts and existence checks).
    pub keys_only: bool,
}

impl Range {
    pub fn key(key: impl Into<Bytes>) -> Self {
        Self { start: key.into(), ..Self::default() }
    }

    /// Every key that begins with `prefix`.
    pub fn prefix(prefix: impl Into<Bytes>) -> Self {
        let start = prefix.into();
        let end = Some(prefix_end(&start));
        Self { start, end, ..Self::default() }
    }
}

/// The smallest key greater than every key that begins with `prefix`; `\0` (etcd's "to the very
/// end") when there is none.
pub fn prefix_end(prefix: &[u8]) -> Bytes {
    match prefix.iter().rposition(|&byte| byte < 0xff) {
        Some(last) => {
            let mut end = prefix[..=last].to_vec();
            end[last] += 1;
            end.into()
        }
        None => Bytes::from_static(b"\0"),
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RangeResult {
    pub items: Vec<KeyValue>,
    /// The store's revision when the read was served (not the revision read at).
    pub revision: Revision,
    /// How many keys the range holds, whatever the limit.
    pub count: usize,
}

/// One version of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyValue {
    pub key: Bytes,
    pub value: Bytes,
    pub create_revision: Revision,
    pub mod_revision: Revision,
    /// 1 for the first write after creation.
    pub version: i64,
    pub lease: Option<LeaseId>,
}

/// Writes only if every comparison holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Txn {
    pub compares: Vec<Compare>,
    pub then: Op,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Compare {
    /// The key's `mod_revision` is this; 0 means that the key does not exist.
    ModRevision { key: Bytes, revision: Revision },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    Put { key: Bytes, value: Bytes, lease: Option<LeaseId> },
    Delete { key: Bytes },
}

impl Op {
    pub fn key(&self) -> &Bytes {
        match self {
            Self::Put { key, .. } | Self::Delete { key } => key,
        }
    }
}

impl Txn {
    /// Creates `key`; fails when it exists.
    pub fn create(key: impl Into<Bytes>, value: impl Into<Bytes>) -> Self {
        Self::put_if(key, value, 0)
    }

    /// Writes `key` if it is still at `revision` (0: does not exist).
    pub fn put_if(key: impl Into<Bytes>, value: impl Into<Bytes>, revision: Revision) -> Self {
        let key = key.into();
        let compares = vec![Compare::ModRevision { key: key.clone(), revision }];
        Self { compares, then: Op::Put { key, value: value.into(), lease: None } }
    }

    /// Deletes `key` if it is still at `revision`.
    pub fn delete_if(key: impl Into<Bytes>, revision: Revision) -> Self {
        let key = key.into();
        let compares = vec![Compare::ModRevision { key: key.clone(), revision }];
        Self { compares, then: Op::Delete { key } }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TxnResult {
    /// Written at this revision. `previous` is what the operation's key held before. A delete of
    /// a key that does not exist takes no revision: it gives the store's, and no `previous`.
    Written { revision: Revision, previous: Option<KeyValue> },
    /// A comparison failed. `current` is what the operation's key holds at `revision`.
    Conflict { revision: Revision, current: Option<KeyValue> },
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WatchRequest {
    pub start: Bytes,
    pub end: Option<Bytes>,
    /// The first revision to deliver; 0 means the next one after now.
    pub from: Revision,
}

/// A running watch. Dropping it ends it.
pub struct Watch {
    /// The revision of the store when the watch was set up.
    pub revision: Revision,
    pub events: BoxStream<'static, Result<WatchBatch, Error>>,
    pub progress: Progress,
}

/// Asks a running watch how far it is. Cheap to clone; may outlive the watch.
#[derive(Clone)]
pub struct Progress(Arc<dyn Fn() + Send + Sync>);

impl Progress {
    pub fn new(request: impl Fn() + Send + Sync + 'static) -> Self {
        Self(Arc::new(request))
    }

    /// The watch soon delivers a batch (perhaps without events) whose revision is at least the
    /// store's revision of now. Never blocks; requests that come close together are answered by
    /// one batch.
    pub fn request(&self) {
        (self.0)();
    }
}

/// Everything of one or more whole revisions; a revision is never split over two batches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchBatch {
    /// Everything up to and including this revision has been delivered. A batch without events
    /// is a progress notice.
    pub revision: Revision,
    pub events: Vec<Event>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    pub kind: EventKind,
    pub key: Bytes,
    pub revision: Revision,
    /// The version written; for a delete, `None`.
    pub current: Option<KeyValue>,
    /// The version replaced or deleted; `None` for a creation, and where it was compacted away.
    pub previous: Option<KeyValue>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    Put,
    Delete,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Bytes that the store occupies on disk.
    pub bytes_on_disk: u64,
    /// Bytes of live data.
    pub bytes_in_use: u64,
    pub keys: u64,
    pub compacted: Revision,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The revision asked for has been compacted; the oldest one left is `compacted`.
    #[error("required revision has been compacted (oldest is {compacted})")]
    Compacted { compacted: Revision },
    /// The revision asked for has not been written yet.
    #[error("required revision {requested} is a future revision (newest is {current})")]
    Future { requested: Revision, current: Revision },
    #[error("lease {} not found", .0.0)]
    LeaseNotFound(LeaseId),
    #[error("value of {size} bytes is larger than the limit of {limit}")]
    TooLarge { size: usize, limit: usize },
    /// Another process has the store open.
    #[error("the store at {path} is in use by another process")]
    Locked { path: String },
    /// The disk is full; reads go on, writes fail until there is room.
    #[error("no space left for the store at {path}")]
    NoSpace { path: String },
    /// The write may or may not have happened (connection or leader lost midway).
    #[error("the outcome of the write is unknown")]
    Unknown(#[source] Source),
    /// The store cannot be reached or has failed.
    #[error("the store is unavailable")]
    Unavailable(#[source] Source),
    /// A checksum did not match or a structure is impossible. The process must stop.
    #[error("the store at {path} is corrupt: {what}")]
    Corrupt { path: String, what: String },
}

pub type Source = Box<dyn std::error::Error + Send + Sync>;
