//! Counters of the registry, read by `/metrics`.

use std::sync::atomic::{AtomicU64, Ordering};

#[derive(Debug, Default)]
pub struct Metrics {
    pub creates: Counter,
    pub updates: Counter,
    pub deletes: Counter,
    pub gets: Counter,
    pub lists: Counter,
    pub watches: Counter,
    /// Writes that lost a race and were tried again.
    pub conflicts_retried: Counter,
    /// Watchers that were overtaken by the log.
    pub watchers_dropped: Counter,
}

#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    pub fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
