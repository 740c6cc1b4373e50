//! Requests on their way to the commit loop.
//!
//! The loop runs on a thread that may block, and stays there for a moment after its queue ran
//! empty: a writer that sends one request after the other then costs two wake-ups for each
//! (the loop's and its own) and not four.

use std::{
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::{Notify, oneshot};

use super::commit::{Reply, Work};
use crate::{Error, Op, Txn};

/// A batch is closed when it holds this much, so that one sync stays short.
const BATCH_BYTES: usize = 4 << 20;

pub struct Request {
    pub work: Work,
    pub reply: oneshot::Sender<Result<Reply, Error>>,
}

#[derive(Default)]
pub struct Queue {
    waiting: Mutex<Waiting>,
    arrived: Notify,
    arrived_while_lingering: Condvar,
}

#[derive(Default)]
struct Waiting {
    requests: Vec<Request>,
    lingering: bool,
    closed: bool,
}

impl Queue {
    /// Hands a request over and gives where its answer will come; `None` when the queue is closed.
    pub fn push(&self, work: Work) -> Option<oneshot::Receiver<Result<Reply, Error>>> {
        let (reply, answer) = oneshot::channel();
        let mut waiting = self.lock();
        if waiting.closed {
            return None;
        }
        waiting.requests.push(Request { work, reply });
        let lingering = waiting.lingering;
        drop(waiting);
        match lingering {
            true => self.arrived_while_lingering.notify_one(),
            false => self.arrived.notify_one(),
        }
        Some(answer)
    }

    /// Waits until a request waits; false when the queue is closed.
    pub async fn arrival(&self) -> bool {
        loop {
            {
                let waiting = self.lock();
                if waiting.closed || !waiting.requests.is_empty() {
                    return !waiting.closed;
                }
            }
            self.arrived.notified().await;
        }
    }

    /// As many requests as make a batch; none when none wait.
    pub fn take_batch(&self) -> Vec<Request> {
        let mut waiting = self.lock();
        let count = batch_length(&waiting.requests);
        match count == waiting.requests.len() {
            true => std::mem::take(&mut waiting.requests),
            false => waiting.requests.drain(..count).collect(),
        }
    }

    /// Blocks until a request waits, at most `limit`; true when one does.
    pub fn linger(&self, limit: Duration) -> bool {
        let mut waiting = self.lock();
        waiting.lingering = true;
        let idle = |waiting: &mut Waiting| waiting.requests.is_empty() && !waiting.closed;
        let waited = self.arrived_while_lingering.wait_timeout_while(waiting, limit, idle);
        (waiting, _) = waited.unwrap_or_else(PoisonError::into_inner);
        waiting.lingering = false;
        !waiting.requests.is_empty()
    }

    /// Turns everyone away from now on. Who waits gets no answer.
    pub fn close(&self) {
        let dropped = {
            let mut waiting = self.lock();
            waiting.closed = true;
            std::mem::take(&mut waiting.requests)
        };
        drop(dropped);
        self.arrived_while_lingering.notify_one();
        self.arrived.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How many of the waiting requests go into one batch. The end of a lease goes alone: what hangs
/// on the lease is read from the state and must not change within the batch.
fn batch_length(waiting: &[Request]) -> usize {
    let mut bytes = 0;
    for (at, request) in waiting.iter().enumerate() {
        match &request.work {
            Work::Expire { .. } => return at.max(1),
            Work::Txn(Txn { then: Op::Put { key, value, .. }, .. }) => {
                bytes += key.len() + value.len()
            }
            _ => {}
        }
        if bytes > BATCH_BYTES {
            return at + 1;
        }
    }
    waiting.len()
}
