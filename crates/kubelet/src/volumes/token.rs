//! Service account tokens for pods, requested from the API server and renewed in time.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use client::Resource;
use k8s_openapi::api::core::v1::ServiceAccountTokenProjection;
use machinery::{Object, value};
use stdx::Timestamp;

use crate::{
    context::Context,
    pod::{Pod, PodExt},
};

const SERVICE_ACCOUNTS: Resource =
    Resource::namespaced("", "v1", "serviceaccounts", "ServiceAccount");

#[derive(Clone)]
pub struct Issued {
    pub token: String,
    pub refresh_at: Timestamp,
}

/// Tokens by pod, audience and lifetime.
#[derive(Default)]
pub struct Tokens(Mutex<BTreeMap<(String, String, i64), Issued>>);

/// A token that is valid for a while yet.
pub async fn get(
    context: &Context,
    pod: &Pod,
    source: &ServiceAccountTokenProjection,
) -> Result<Issued, String> {
    let audience = source.audience.clone().unwrap_or_default();
    let seconds = source.expiration_seconds.unwrap_or(3600);
    let key = (pod.uid().to_owned(), audience.clone(), seconds);
    let now = context.env.now();
    let known = context.tokens.0.lock().unwrap_or_else(PoisonError::into_inner).get(&key).cloned();
    if let Some(known) = known.filter(|known| now < known.refresh_at) {
        return Ok(known);
    }
    let issued = request(context, pod, &audience, seconds).await?;
    context.tokens.0.lock().unwrap_or_else(PoisonError::into_inner).insert(key, issued.clone());
    Ok(issued)
}

impl Tokens {
    /// Forgets the tokens of a pod that is gone.
    pub fn forget(&self, uid: &str) {
        let mut cache = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        cache.retain(|(pod, _, _), _| pod != uid);
    }
}

async fn request(
    context: &Context,
    pod: &Pod,
    audience: &str,
    seconds: i64,
) -> Result<Issued, String> {
    let account = pod.spec().service_account_name.as_deref().unwrap_or("default");
    let mut spec = value!({
        "expirationSeconds": seconds,
        "boundObjectRef": {
            "apiVersion": "v1", "kind": "Pod", "name": pod.name(), "uid": pod.uid(),
        },
    });
    if !audience.is_empty() {
        if let Some(map) = spec.as_map_mut() {
            map.insert("audiences", vec![audience]);
        }
    }
    let mut body = Object::new("authentication.k8s.io/v1", "TokenRequest", "", "");
    body.root_mut().insert("spec", spec);
    let answer = context
        .client
        .create_sub(&SERVICE_ACCOUNTS, pod.namespace(), account, "token", &body)
        .await
        .map_err(|error| format!("failed to fetch token: {}", stdx::chain(&error)))?;
    let token = answer.str_at(&["status", "token"]).to_owned();
    let now = context.env.now();
    let expires = Timestamp::parse(answer.str_at(&["status", "expirationTimestamp"]))
        .unwrap_or(now + Duration::from_secs(3600));
    let lifetime = expires.since(now);
    // At four fifths of its life, or after a day, whichever is first, with some spread.
    let spread = Duration::from_millis(context.env.random_u64() % 10_000);
    let wait = lifetime.mul_f64(0.8).min(Duration::from_secs(86_400)).saturating_sub(spread);
    Ok(Issued { token, refresh_at: now + wait })
}

/// The user that runs every container of the pod, when there is one.
pub fn owner(pod: &Pod) -> Option<u32> {
    let of_pod = pod.spec().security_context.as_ref().and_then(|security| security.run_as_user);
    let mut users = pod.all_containers().into_iter().map(|(container, _)| {
        container.security_context.as_ref().and_then(|security| security.run_as_user).or(of_pod)
    });
    let first = users.next().flatten()?;
    users.all(|user| user == Some(first)).then_some(first as u32)
}
