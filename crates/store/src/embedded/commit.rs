//! The commit loop: many requests, one write.
//!
//! ```text
//!  callers ─▶ queue ─▶ plan (pure, on the state and the batch so far) ─▶ write and sync
//!                ▲                                                          │
//!                └── gathers while the disk is busy        apply ▸ publish ▸ answer
//! ```
//!
//! One batch is on its way at a time and the loop is the only one that changes keys, so what was
//! planned on is what it is applied to. Nothing is visible before it is durable.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use stdx::HashMap;

use super::{
    Failure, Inner,
    index::{Place, SegmentFile, State},
    log::{AppendError, Appended, LogWriter},
    queue::Request,
    record::{Batch, Record, Span},
    recover::{deadline, now_ms},
};
use crate::{Compare, Error, KeyValue, LeaseId, Op, Revision, Txn, TxnResult};

/// How long the loop stays on its thread for the next request. A client that waits for each
/// answer sends its next write within this time.
const LINGER: Duration = Duration::from_millis(1);

#[derive(Debug)]
pub enum Work {
    Txn(Txn),
    Grant {
        id: i64,
        ttl_seconds: i64,
    },
    /// Ends a lease and deletes its keys.
    Expire {
        id: i64,
    },
    Compact {
        revision: Revision,
    },
}

#[derive(Debug, PartialEq, Eq)]
pub enum Reply {
    Txn(TxnResult),
    Done,
}

/// What a batch will do, decided before it is written.
struct Plan {
    batch: Batch,
    effects: Vec<Effect>,
    answers: Vec<Result<Reply, Error>>,
    /// The newest revision before the batch, and within it so far.
    before: Revision,
    revision: Revision,
    /// What keys hold after the effects so far.
    overlay: HashMap<Bytes, Option<KeyValue>>,
}

enum Effect {
    Put { revision: Revision, key: Bytes, value: Bytes, lease: i64, span: Span },
    Delete { revision: Revision, key: Bytes },
    Grant { id: i64, ttl_seconds: i64, deadline_ms: i64 },
    Revoke { id: i64 },
    Compact { revision: Revision },
}

/// Runs until the store is closed.
pub async fn run(inner: Arc<Inner>, mut writer: LogWriter) {
    let _closes = CloseQueue(inner.clone());
    while inner.queue.arrival().await {
        let working = inner.clone();
        let worked = inner.env.blocking(move || {
            commit_all(&working, &mut writer);
            writer
        });
        match worked.await {
            Some(back) => writer = back,
            None => return inner.fail(Failure::Io("writing the log panicked".to_owned())),
        }
    }
}

/// Commits batch after batch until nothing waits. Blocks.
fn commit_all(inner: &Inner, writer: &mut LogWriter) {
    loop {
        let requests = inner.queue.take_batch();
        if !requests.is_empty() {
            commit(inner, writer, requests);
        } else if inner.env.is_simulated() || !inner.queue.linger(LINGER) {
            return;
        }
    }
}

fn commit(inner: &Inner, writer: &mut LogWriter, requests: Vec<Request>) {
    let (works, replies): (Vec<_>, Vec<_>) =
        requests.into_iter().map(|request| (request.work, request.reply)).unzip();
    let mut plan = Plan::make(inner, works);
    if !plan.batch.is_empty() {
        match writer.append(&mut plan.batch, plan.before) {
            Ok(appended) => plan.apply(inner, appended),
            Err(error) => plan.refuse(inner, error),
        }
    }
    for (reply, answer) in replies.into_iter().zip(plan.answers) {
        // A caller that went away needs no answer.
        let _ = reply.send(answer);
    }
}

impl Plan {
    fn make(inner: &Inner, works: Vec<Work>) -> Self {
        let state = inner.read();
        let mut plan = Self {
            batch: Batch::new(),
            effects: Vec::with_capacity(works.len()),
            answers: Vec::with_capacity(works.len()),
            before: state.revision,
            revision: state.revision,
            overlay: HashMap::default(),
        };
        let failed = inner.check().is_err();
        for work in works {
            let answer = if failed {
                inner.check().map(|()| Reply::Done)
            } else {
                plan.add(inner, &state, work)
            };
            plan.answers.push(answer);
        }
        plan
    }

    fn add(&mut self, inner: &Inner, state: &State, work: Work) -> Result<Reply, Error> {
        match work {
            Work::Txn(txn) => self.txn(state, txn).map(Reply::Txn),
            Work::Grant { id, ttl_seconds } => {
                let deadline_ms = now_ms(&inner.env) + ttl_seconds * 1000;
                self.batch.push(&Record::Grant { id, ttl_seconds, deadline_ms });
                self.effects.push(Effect::Grant { id, ttl_seconds, deadline_ms });
                Ok(Reply::Done)
            }
            Work::Expire { id } => {
                self.expire(state, id);
                Ok(Reply::Done)
            }
            Work::Compact { revision } => self.compact(state, revision).map(|()| Reply::Done),
        }
    }

    fn current(&self, state: &State, key: &Bytes) -> Option<KeyValue> {
        match self.overlay.get(key) {
            Some(written) => written.clone(),
            None => state.current(key),
        }
    }

    fn txn(&mut self, state: &State, txn: Txn) -> Result<TxnResult, Error> {
        let previous = self.current(state, txn.then.key());
        let holds = |Compare::ModRevision { key, revision }: &Compare| {
            let found = match key == txn.then.key() {
                true => previous.as_ref().map_or(0, |p| p.mod_revision),
                false => self.current(state, key).map_or(0, |p| p.mod_revision),
            };
            found == *revision
        };
        if !txn.compares.iter().all(holds) {
            return Ok(TxnResult::Conflict { revision: self.revision, current: previous });
        }
        match txn.then {
            Op::Put { key, value, lease } => {
                if let Some(id) = lease.filter(|id| !state.leases.contains_key(&id.0)) {
                    return Err(Error::LeaseNotFound(id));
                }
                self.put(key, value, lease, previous.as_ref());
            }
            Op::Delete { key } => {
                if previous.is_some() {
                    self.revision += 1;
                    self.delete(key);
                }
            }
        }
        Ok(TxnResult::Written { revision: self.revision, previous })
    }

    fn put(
        &mut self,
        key: Bytes,
        value: Bytes,
        lease: Option<LeaseId>,
        previous: Option<&KeyValue>,
    ) {
        self.revision += 1;
        let revision = self.revision;
        let id = lease.map_or(0, |lease| lease.0);
        let span = self.batch.push(&Record::Put { revision, lease: id, key: &key, value: &value });
        let item = KeyValue {
            key: key.clone(),
            value: value.clone(),
            create_revision: previous.map_or(revision, |p| p.create_revision),
            mod_revision: revision,
            version: previous.map_or(1, |p| p.version + 1),
            lease,
        };
        self.overlay.insert(key.clone(), Some(item));
        self.effects.push(Effect::Put { revision, key, value, lease: id, span });
    }

    /// Deletes a key at the current revision, which the caller has raised.
    fn delete(&mut self, key: Bytes) {
        let revision = self.revision;
        self.batch.push(&Record::Delete { revision, key: &key });
        self.overlay.insert(key.clone(), None);
        self.effects.push(Effect::Delete { revision, key });
    }

    /// All keys of a lease go in one revision, as in etcd.
    fn expire(&mut self, state: &State, id: i64) {
        let Some(lease) = state.leases.get(&id) else { return };
        if !lease.keys.is_empty() {
            self.revision += 1;
        }
        lease.keys.iter().for_each(|key| self.delete(key.clone()));
        self.batch.push(&Record::Revoke { id });
        self.effects.push(Effect::Revoke { id });
    }

    fn compact(&mut self, state: &State, revision: Revision) -> Result<(), Error> {
        let earlier = self.effects.iter().filter_map(|effect| match effect {
            Effect::Compact { revision } => Some(*revision),
            _ => None,
        });
        let compacted = earlier.fold(state.compacted, Revision::max);
        if revision <= compacted {
            return Err(Error::Compacted { compacted });
        }
        if revision > self.revision {
            return Err(Error::Future { requested: revision, current: self.revision });
        }
        self.batch.push(&Record::Compact { revision });
        self.effects.push(Effect::Compact { revision });
        Ok(())
    }

    /// Makes a durable batch visible and tells the watchers.
    fn apply(&mut self, inner: &Inner, appended: Appended) {
        let mut events = Vec::with_capacity(self.effects.len());
        let (mut leases, mut compaction) = (false, false);
        let mut state = inner.write();
        if let Some(file) = appended.opened {
            let start = state.revision;
            state.files.insert(appended.segment, SegmentFile { file, start, bytes: 0 });
        }
        if let Some(segment) = state.files.get_mut(&appended.segment) {
            segment.bytes = appended.segment_bytes;
        }
        for effect in self.effects.drain(..) {
            match effect {
                Effect::Put { revision, key, value, lease, span } => {
                    let offset = appended.offset + span.offset;
                    let place = Place { segment: appended.segment, offset, length: span.length };
                    events.push(state.put(revision, &key, value, lease, place));
                }
                Effect::Delete { revision, key } => events.extend(state.delete(revision, &key)),
                Effect::Grant { id, ttl_seconds, deadline_ms } => {
                    let at = deadline(&inner.env, now_ms(&inner.env), ttl_seconds, deadline_ms);
                    state.grant(id, ttl_seconds, deadline_ms, at);
                    leases = true;
                }
                Effect::Revoke { id } => state.revoke(id),
                Effect::Compact { revision } => {
                    state.compacted = revision;
                    compaction = true;
                }
            }
        }
        state.publish(&events);
        drop(state);
        if leases {
            inner.leases_changed.notify_one();
        }
        if compaction {
            inner.compaction.notify_one();
        }
    }

    /// Turns every answer into the reason why nothing was written.
    fn refuse(&mut self, inner: &Inner, error: AppendError) {
        let error = match error {
            AppendError::NoSpace => None,
            AppendError::Broken(error) => {
                tracing::error!(error = %error, "the store's log cannot be written; no more writes");
                inner.fail(Failure::Io(error.to_string()));
                Some(error.to_string())
            }
        };
        for answer in &mut self.answers {
            *answer = Err(match &error {
                None => Error::NoSpace { path: inner.dir.display().to_string() },
                Some(text) => Error::Unknown(text.clone().into()),
            });
        }
    }
}

/// Lets nobody wait for a loop that has ended.
struct CloseQueue(Arc<Inner>);

impl Drop for CloseQueue {
    fn drop(&mut self) {
        self.0.queue.close();
        self.0.fail(Failure::Closed);
    }
}
