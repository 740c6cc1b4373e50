//! Ends leases when their time is up: one timer, set to the earliest deadline.

use std::{sync::Arc, time::Duration};

use super::{Inner, commit::Work};

/// The wait after a lease could not be ended (a full disk).
const RETRY: Duration = Duration::from_secs(1);

/// Runs until the store is closed or has failed.
pub async fn run(inner: Arc<Inner>) {
    while inner.check().is_ok() {
        let earliest = inner.read().deadlines.first().copied();
        let Some((deadline, id)) = earliest else {
            inner.leases_changed.notified().await;
            continue;
        };
        if deadline > inner.env.instant() {
            tokio::select! {
                biased;
                () = inner.leases_changed.notified() => {}
                () = inner.env.sleep_until(deadline) => {}
            }
            continue;
        }
        if let Err(error) = inner.submit(Work::Expire { id }).await {
            tracing::warn!(lease = id, error = %stdx::chain(&error), "lease not ended yet");
            tokio::select! {
                biased;
                () = inner.leases_changed.notified() => {}
                () = inner.env.sleep(RETRY) => {}
            }
        }
    }
}
