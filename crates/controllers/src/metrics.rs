//! Counters of the work queues, under Kubernetes' names.

use std::{
    collections::BTreeMap,
    fmt::Write,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

/// Every controller's counters. Cheap to clone; the caller of [`crate::run`] keeps one to serve.
#[derive(Clone, Default)]
pub struct Metrics(Arc<Mutex<BTreeMap<&'static str, Arc<QueueMetrics>>>>);

impl Metrics {
    pub fn queue(&self, name: &'static str) -> Arc<QueueMetrics> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(name).or_default().clone()
    }

    /// Prometheus' text form.
    pub fn render(&self) -> String {
        let mut out = String::new();
        for (name, queue) in self.0.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            queue.write(name, &mut out);
        }
        out
    }
}

/// What one controller's queue and workers have done.
#[derive(Default)]
pub struct QueueMetrics {
    pub adds: AtomicU64,
    pub retries: AtomicU64,
    pub depth: AtomicU64,
    pub reconciles: AtomicU64,
    pub panics: AtomicU64,
    pub work_nanos: AtomicU64,
}

impl QueueMetrics {
    pub fn count(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// Prometheus' text form, `name` being the value of the label of that name.
    fn write(&self, name: &str, out: &mut String) {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let seconds = get(&self.work_nanos) as f64 / 1e9;
        let _ = writeln!(out, "workqueue_adds_total{{name=\"{name}\"}} {}", get(&self.adds));
        let _ = writeln!(out, "workqueue_retries_total{{name=\"{name}\"}} {}", get(&self.retries));
        let _ = writeln!(out, "workqueue_depth{{name=\"{name}\"}} {}", get(&self.depth));
        let _ = writeln!(out, "workqueue_work_duration_seconds_sum{{name=\"{name}\"}} {seconds}");
        let _ = writeln!(
            out,
            "workqueue_work_duration_seconds_count{{name=\"{name}\"}} {}",
            get(&self.reconciles)
        );
        let _ =
            writeln!(out, "gantry_reconcile_panics_total{{name=\"{name}\"}} {}", get(&self.panics));
    }
}
