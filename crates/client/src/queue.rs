//! A queue of keys to reconcile.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use stdx::{Env, HashMap, HashSet, Instant, backoff::Backoff};
use tokio::sync::Notify;

/// Keys waiting for a worker. A key is in the queue at most once, and with one worker at most
/// once: added while it is being worked on, it is handed out again after [`WorkQueue::done`].
///
/// ```text
///   add ──▶ ready ──next──▶ working ──done──▶ (gone)
///   add_after ▸ delayed ┘       └─ added meanwhile: ready again
/// ```
pub struct WorkQueue<K> {
    env: Env,
    backoff: Backoff,
    state: Mutex<State<K>>,
    changed: Notify,
}

struct State<K> {
    ready: VecDeque<K>,
    queued: HashSet<K>,
    working: HashSet<K>,
    again: HashSet<K>,
    delayed: BTreeSet<(Instant, u64)>,
    delayed_keys: BTreeMap<u64, K>,
    due: HashMap<K, (Instant, u64)>,
    failures: HashMap<K, u32>,
    sequence: u64,
    closed: bool,
}

/// Kubernetes' default for controllers: 5 ms doubling up to 1,000 s.
pub const CONTROLLER_BACKOFF: Backoff =
    Backoff::new(Duration::from_millis(5), Duration::from_secs(1000));

impl<K: Clone + Eq + Hash> WorkQueue<K> {
    pub fn new(env: &Env, backoff: Backoff) -> Arc<Self> {
        let state = State {
            ready: VecDeque::new(),
            queued: HashSet::default(),
            working: HashSet::default(),
            again: HashSet::default(),
            delayed: BTreeSet::new(),
            delayed_keys: BTreeMap::new(),
            due: HashMap::default(),
            failures: HashMap::default(),
            sequence: 0,
            closed: false,
        };
        Arc::new(Self {
            env: env.clone(),
            backoff,
            state: Mutex::new(state),
            changed: Notify::new(),
        })
    }

    pub fn add(&self, key: K) {
        self.lock().add(key);
        self.changed.notify_one();
    }

    /// Adds the key after a while; of several such calls the earliest counts.
    pub fn add_after(&self, key: K, delay: Duration) {
        if delay.is_zero() {
            return self.add(key);
        }
        let at = self.env.instant() + delay;
        self.lock().delay(key, at);
        self.changed.notify_one();
    }

    /// Adds the key after a wait that doubles with each failure since [`WorkQueue::forget`].
    pub fn add_failed(&self, key: K) {
        let delay = {
            let mut state = self.lock();
            let failures = state.failures.entry(key.clone()).or_default();
            *failures = failures.saturating_add(1);
            self.backoff.delay(*failures)
        };
        self.add_after(key, delay);
    }

    /// The key succeeded: its next failure waits the shortest time again.
    pub fn forget(&self, key: &K) {
        self.lock().failures.remove(key);
    }

    /// The next key, which must be given back by [`WorkQueue::done`]. `None` when closed.
    pub async fn next(&self) -> Option<K> {
        loop {
            let deadline = {
                let mut state = self.lock();
                state.release_due(self.env.instant());
                if let Some(key) = state.take() {
                    // Another worker may be waiting for the rest.
                    if !state.ready.is_empty() {
                        self.changed.notify_one();
                    }
                    return Some(key);
                }
                if state.closed {
                    self.changed.notify_one();
                    return None;
                }
                state.delayed.first().map(|(at, _)| *at)
            };
            let wake = self.changed.notified();
            match deadline {
                Some(at) => {
                    tokio::select! {
                        biased;
                        () = wake => {}
                        () = self.env.sleep_until(at) => {}
                    }
                }
                None => wake.await,
            }
        }
    }

    pub fn done(&self, key: &K) {
        let mut state = self.lock();
        state.working.remove(key);
        if state.again.remove(key) {
            state.add(key.clone());
            drop(state);
            self.changed.notify_one();
        }
    }

    /// Ready and delayed keys.
    pub fn len(&self) -> usize {
        let state = self.lock();
        state.ready.len() + state.delayed.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Lets every worker's [`WorkQueue::next`] return `None` once the ready keys are taken.
    pub fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, State<K>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Clone + Eq + Hash> State<K> {
    fn add(&mut self, key: K) {
        if self.working.contains(&key) {
            self.again.insert(key);
        } else if self.queued.insert(key.clone()) {
            self.ready.push_back(key);
        }
    }

    fn take(&mut self) -> Option<K> {
        let key = self.ready.pop_front()?;
        self.queued.remove(&key);
        self.working.insert(key.clone());
        Some(key)
    }

    fn delay(&mut self, key: K, at: Instant) {
        if let Some(&(known, sequence)) = self.due.get(&key) {
            if known <= at {
                return;
            }
            self.delayed.remove(&(known, sequence));
            self.delayed_keys.remove(&sequence);
        }
        self.sequence += 1;
        self.delayed.insert((at, self.sequence));
        self.delayed_keys.insert(self.sequence, key.clone());
        self.due.insert(key, (at, self.sequence));
    }

    fn release_due(&mut self, now: Instant) {
        while let Some(&(at, sequence)) = self.delayed.first() {
            if at > now {
                return;
            }
            self.delayed.pop_first();
            if let Some(key) = self.delayed_keys.remove(&sequence) {
                self.due.remove(&key);
                self.add(key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use stdx::{env::simulate, files::RealFiles};

    fn run<F: Future<Output = ()>>(test: impl FnOnce(Env) -> F) {
        simulate(1, Arc::new(RealFiles), test);
    }

    #[test]
    fn a_key_is_with_one_worker_at_a_time() {
        run(|env| async move {
            let queue = WorkQueue::new(&env, CONTROLLER_BACKOFF);
            queue.add("a");
            queue.add("a");
            assert_eq!(queue.next().await, Some("a"));
            queue.add("a");
            let second = env.timeout(Duration::from_secs(60), queue.next()).await;
            assert_eq!(second, None, "still being worked on");
            queue.done(&"a");
            assert_eq!(queue.next().await, Some("a"));
            queue.done(&"a");
            assert!(queue.is_empty());
        });
    }

    #[test]
    fn the_earliest_delay_counts_and_failures_double_it() {
        run(|env| async move {
            let queue = WorkQueue::new(&env, CONTROLLER_BACKOFF);
            let start = env.instant();
            queue.add_after("a", Duration::from_secs(9));
            queue.add_after("a", Duration::from_secs(3));
            queue.add_after("a", Duration::from_secs(5));
            assert_eq!(queue.next().await, Some("a"));
            assert_eq!(env.instant() - start, Duration::from_secs(3));
            queue.done(&"a");
            for expected_ms in [5, 10, 20] {
                let start = env.instant();
                queue.add_failed("a");
                assert_eq!(queue.next().await, Some("a"));
                assert_eq!((env.instant() - start).as_millis(), expected_ms);
                queue.done(&"a");
            }
        });
    }

    #[test]
    fn closing_ends_every_worker() {
        run(|env| async move {
            let queue = WorkQueue::<u8>::new(&env, CONTROLLER_BACKOFF);
            let workers: Vec<_> = (0..3)
                .map(|_| {
                    let queue = queue.clone();
                    env.spawn("worker", async move { queue.next().await })
                })
                .collect();
            queue.close();
            for worker in workers {
                assert_eq!(worker.await, Some(None));
            }
        });
    }
}
