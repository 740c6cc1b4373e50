//! Leader election by a Lease, as client-go does it.

use std::time::Duration;

use machinery::{Object, value};
use stdx::{CancellationToken, Env, Instant, Timestamp, chain};

use crate::{Client, Error, Resource};

pub const LEASES: Resource = Resource::namespaced("coordination.k8s.io", "v1", "leases", "Lease");

/// Which Lease to hold, as whom, with which timings.
#[derive(Clone, Debug)]
pub struct Election {
    pub namespace: String,
    pub name: String,
    pub identity: String,
    pub lease_duration: Duration,
    pub renew_deadline: Duration,
    pub retry_period: Duration,
}

impl Election {
    /// Kubernetes' timings: 15 s, 10 s, 2 s.
    pub fn new(name: &str, identity: &str) -> Self {
        Self {
            namespace: "kube-system".into(),
            name: name.into(),
            identity: identity.into(),
            lease_duration: Duration::from_secs(15),
            renew_deadline: Duration::from_secs(10),
            retry_period: Duration::from_secs(2),
        }
    }
}

/// Waits until this process leads, runs `lead` with a token that is cancelled when leadership is
/// lost, and returns when `lead` has ended. Gives the Lease back on a clean end.
pub async fn run_as_leader<F, Fut>(
    env: &Env,
    client: &Client,
    election: &Election,
    cancel: &CancellationToken,
    lead: F,
) where
    F: FnOnce(CancellationToken) -> Fut,
    Fut: Future<Output = ()>,
{
    let mut candidate = Candidate { env, client, election, seen: None };
    if cancel.run_until_cancelled(candidate.acquire()).await.is_none() {
        return;
    }
    tracing::info!(lease = election.name, identity = election.identity, "became leader");
    let leading = cancel.child_token();
    let renewing = async {
        candidate.keep().await;
        tracing::warn!(lease = election.name, "lost the lease");
    };
    let work = lead(leading.clone());
    tokio::pin!(work);
    tokio::select! {
        biased;
        () = &mut work => candidate_release(env, client, election).await,
        () = renewing => {
            leading.cancel();
            work.await;
        }
    }
}

struct Candidate<'a> {
    env: &'a Env,
    client: &'a Client,
    election: &'a Election,
    /// The Lease as last seen and when that was: another's clock is never trusted.
    seen: Option<(String, Instant)>,
}

impl Candidate<'_> {
    async fn acquire(&mut self) {
        loop {
            match self.attempt().await {
                Ok(true) => return,
                Ok(false) => {}
                Err(error) => {
                    let lease = &self.election.name;
                    tracing::debug!(lease, error = %chain(&error), "cannot acquire the lease");
                }
            }
            self.env.sleep(self.election.retry_period).await;
        }
    }

    /// Renews until that has failed for the renew deadline.
    async fn keep(&mut self) {
        let mut renewed = self.env.instant();
        loop {
            self.env.sleep(self.election.retry_period).await;
            let left = (renewed + self.election.renew_deadline) - self.env.instant();
            match self.env.timeout(left, self.attempt()).await {
                Some(Ok(true)) => renewed = self.env.instant(),
                Some(Ok(false)) | None => return,
                Some(Err(error)) => {
                    tracing::debug!(error = %chain(&error), "cannot renew the lease");
                    if self.env.instant() - renewed >= self.election.renew_deadline {
                        return;
                    }
                }
            }
        }
    }

    /// Takes or renews the Lease if it is ours, free or run out. `false`: another holds it.
    async fn attempt(&mut self) -> Result<bool, Error> {
        let Election { namespace, name, identity, .. } = self.election;
        let Some(lease) = self.client.find(&LEASES, namespace, name).await? else {
            let fresh =
                self.filled(Object::new("coordination.k8s.io/v1", "Lease", namespace, name), 0);
            self.client.create(&LEASES, namespace, &fresh).await?;
            return Ok(true);
        };
        let holder = lease.str_at(&["spec", "holderIdentity"]);
        if self.seen.as_ref().is_none_or(|(version, _)| version != lease.resource_version()) {
            self.seen = Some((lease.resource_version().into(), self.env.instant()));
        }
        let ours = holder == identity;
        if !ours && !holder.is_empty() && !self.has_run_out(&lease) {
            return Ok(false);
        }
        let transitions = lease.i64_at(&["spec", "leaseTransitions"]).unwrap_or(0);
        let next = if ours { transitions } else { transitions + 1 };
        let renewed = self.filled(lease, next);
        match self.client.update(&LEASES, "", &renewed).await {
            Ok(_) => Ok(true),
            Err(error) if error.is_conflict() && !ours => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn has_run_out(&self, lease: &Object) -> bool {
        let seconds = lease.i64_at(&["spec", "leaseDurationSeconds"]).unwrap_or(0).max(0) as u64;
        let seen = self.seen.as_ref().map(|(_, at)| *at);
        seen.is_some_and(|at| self.env.instant() - at > Duration::from_secs(seconds))
    }

    fn filled(&self, mut lease: Object, transitions: i64) -> Object {
        let now = self.env.now().rfc3339_micro();
        let ours = lease.str_at(&["spec", "holderIdentity"]) == self.election.identity;
        let acquired = match lease.str_at(&["spec", "acquireTime"]) {
            time if ours && Timestamp::parse(time).is_some() => time.to_owned(),
            _ => now.clone(),
        };
        let spec = value!({
            "holderIdentity": self.election.identity,
            "leaseDurationSeconds": self.election.lease_duration.as_secs(),
            "acquireTime": acquired,
            "renewTime": now,
            "leaseTransitions": transitions,
        });
        lease.root_mut().insert("spec", spec);
        lease
    }
}

/// Clears the holder so that another need not wait for the Lease to run out.
async fn candidate_release(env: &Env, client: &Client, election: &Election) {
    let release = async {
        let mut lease = client.get(&LEASES, &election.namespace, &election.name).await?;
        if lease.str_at(&["spec", "holderIdentity"]) == election.identity {
            lease.set_at(&["spec", "holderIdentity"], "");
            lease.set_at(&["spec", "leaseDurationSeconds"], 1);
            client.update(&LEASES, "", &lease).await?;
        }
        Ok::<_, Error>(())
    };
    if let Some(Err(error)) = env.timeout(Duration::from_secs(2), release).await {
        tracing::debug!(error = %chain(&error), "cannot release the lease");
    }
}
