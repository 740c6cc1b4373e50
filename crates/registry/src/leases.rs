//! Leases of the store for objects that expire, shared by those that expire close together.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use api::Status;
use stdx::Instant;
use store::LeaseId;

use crate::{Shared, storage};

/// Objects written within this time share a lease, so they live up to so much longer.
const SHARE: Duration = Duration::from_secs(60);
const OBJECTS_PER_LEASE: usize = 1000;

#[derive(Debug, Default)]
pub(crate) struct Leases(Mutex<Option<Current>>);

#[derive(Clone, Copy, Debug)]
struct Current {
    id: LeaseId,
    seconds: i64,
    until: Instant,
    objects: usize,
}

impl Leases {
    pub async fn lease(&self, shared: &Shared, seconds: i64) -> Result<LeaseId, Status> {
        let now = shared.env.instant();
        if let Some(id) = self.reuse(seconds, now) {
            return Ok(id);
        }
        let id = shared
            .store
            .grant_lease(seconds + SHARE.as_secs() as i64)
            .await
            .map_err(storage::failed)?;
        let current = Current { id, seconds, until: now + SHARE, objects: 1 };
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(current);
        Ok(id)
    }

    fn reuse(&self, seconds: i64, now: Instant) -> Option<LeaseId> {
        let mut guard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let current = guard.as_mut()?;
        let fits = current.seconds == seconds
            && now < current.until
            && current.objects < OBJECTS_PER_LEASE;
        current.objects += 1;
        fits.then_some(current.id)
    }
}
