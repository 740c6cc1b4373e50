//! The node's Lease: the cheap sign of life.

use std::{sync::Arc, time::Duration};

use machinery::{Object, OwnerReference};
use stdx::{CancellationToken, backoff::Backoff, chain};

use crate::{
    Error,
    context::{Context, LEASES, NODES},
};

const NAMESPACE: &str = "kube-node-lease";

/// Renews until cancelled. A failed renewal is tried again sooner than the interval.
pub async fn run(context: Arc<Context>, cancel: CancellationToken) {
    const RETRY: Backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(7));
    let mut known: Option<Object> = None;
    let mut failures = 0;
    loop {
        let wait = match renew(&context, known.take()).await {
            Ok(lease) => {
                failures = 0;
                known = Some(lease);
                context.config.lease_renew_interval
            }
            Err(error) => {
                failures += 1;
                tracing::debug!(error = %chain(&error), "the lease was not renewed");
                RETRY.delay(failures).min(context.config.lease_renew_interval)
            }
        };
        if cancel.run_until_cancelled(context.env.sleep(wait)).await.is_none() {
            return;
        }
    }
}

async fn renew(context: &Context, known: Option<Object>) -> Result<Object, Error> {
    let node = &context.config.node_name;
    let found = match known {
        Some(lease) => Some(lease),
        None => context.client.find(&LEASES, NAMESPACE, node).await?,
    };
    let exists = found.is_some();
    let mut lease =
        found.unwrap_or_else(|| Object::new("coordination.k8s.io/v1", "Lease", NAMESPACE, node));
    lease.set_at(&["spec", "holderIdentity"], node.as_str());
    let seconds = context.config.lease_duration.as_secs() as i64;
    lease.set_at(&["spec", "leaseDurationSeconds"], seconds);
    lease.set_at(&["spec", "renewTime"], context.env.now().rfc3339_micro());
    if lease.owner_references().next().is_none() {
        if let Some(node) = context.client.find(&NODES, "", node).await? {
            let owner = OwnerReference {
                api_version: "v1".into(),
                kind: "Node".into(),
                name: node.name().into(),
                uid: node.uid().into(),
                controller: false,
                block_owner_deletion: false,
            };
            lease.set_at(&["metadata", "ownerReferences"], vec![owner.to_value()]);
        }
    }
    let written = if exists {
        context.client.update(&LEASES, "", &lease).await?
    } else {
        context.client.create(&LEASES, NAMESPACE, &lease).await?
    };
    Ok(written)
}
