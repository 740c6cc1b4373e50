//! Images: whether to pull, with which credentials, and how often to try again.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use base64::{Engine, prelude::BASE64_STANDARD};
use client::events::EventType;
use cri::{ImageClient, v1};
use machinery::Object;
use stdx::{CancellationToken, Timestamp, backoff::Backoff};

use crate::{
    context::Context,
    pod::{Container, Pod, PodExt, go_duration},
    worker::Failure,
};

/// Upstream's wait after a failed pull.
const PULL_BACKOFF: Backoff = Backoff::new(Duration::from_secs(10), Duration::from_secs(300));

pub struct Images {
    client: ImageClient,
    failures: Mutex<BTreeMap<(String, String), PullFailure>>,
}

#[derive(Clone)]
struct PullFailure {
    count: u32,
    at: Timestamp,
    message: String,
}

/// A failed attempt, and when the next may be made.
#[derive(Clone, Debug, PartialEq)]
pub struct Refused {
    pub failure: Failure,
    pub retry_at: Timestamp,
}

impl Images {
    pub fn new(client: ImageClient) -> Self {
        Self { client, failures: Mutex::default() }
    }

    pub fn client(&self) -> ImageClient {
        self.client.clone()
    }

    /// What the runtime calls the image, `None` when it does not have it.
    pub async fn present(&self, image: &str) -> Result<Option<v1::Image>, tonic::Status> {
        let request = v1::ImageStatusRequest { image: Some(spec_of(image)), verbose: false };
        Ok(self.client.clone().image_status(request).await?.into_inner().image)
    }

    pub fn forget_pod(&self, uid: &str) {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        failures.retain(|(pod, _), _| pod != uid);
    }

    fn known_failure(&self, key: &(String, String)) -> Option<PullFailure> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner).get(key).cloned()
    }

    fn note_failure(&self, key: (String, String), at: Timestamp, message: String) -> Timestamp {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        let failure =
            failures.entry(key).or_insert(PullFailure { count: 0, at, message: String::new() });
        failure.count += 1;
        failure.at = at;
        failure.message = message;
        at + PULL_BACKOFF.delay(failure.count)
    }

    fn note_success(&self, key: &(String, String)) {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
    }
}

pub fn spec_of(image: &str) -> v1::ImageSpec {
    v1::ImageSpec {
        image: image.to_owned(),
        user_specified_image: image.to_owned(),
        ..v1::ImageSpec::default()
    }
}

/// The policy by which an image is pulled; the API server has defaulted it.
fn policy(container: &Container) -> &str {
    container.image_pull_policy.as_deref().unwrap_or("IfNotPresent")
}

/// Sees to it that the container's image is there; gives the runtime's reference to it.
pub async fn ensure(
    context: &Context,
    pod: &Pod,
    container: &Container,
    secrets: &[Object],
    cancel: &CancellationToken,
) -> Result<String, Refused> {
    let image = container.image.as_deref().unwrap_or_default();
    let now = context.env.now();
    let retry_soon = now + Duration::from_secs(10);
    let event = |kind, reason: &str, message: &str| {
        context.container_event(pod, &container.name, kind, reason, message);
    };
    let refuse = |reason: &str, message: String, retry_at| Refused {
        failure: Failure { reason: reason.into(), message },
        retry_at,
    };
    let present = context.images.present(image).await.map_err(|status| {
        let message = format!("Failed to inspect image {image:?}: {}", status.message());
        event(EventType::Warning, "InspectFailed", &message);
        refuse("ImageInspectError", message, retry_soon)
    })?;
    match (policy(container), present) {
        ("Never", None) => {
            let message =
                format!("Container image {image:?} is not present with pull policy of Never");
            event(EventType::Warning, "ErrImageNeverPull", &message);
            return Err(refuse("ErrImageNeverPull", message, retry_soon));
        }
        ("Never" | "IfNotPresent", Some(found)) => {
            let message = format!(
                "Container image {image:?} already present on machine and can be accessed by the pod"
            );
            event(EventType::Normal, "Pulled", &message);
            return Ok(found.id);
        }
        _ => {}
    }
    let key = (pod.uid().to_owned(), image.to_owned());
    if let Some(known) = context.images.known_failure(&key) {
        let retry_at = known.at + PULL_BACKOFF.delay(known.count);
        if now < retry_at {
            let message = format!("Back-off pulling image {image:?}");
            event(EventType::Normal, "BackOff", &message);
            let message = format!("{message}: {}", known.message);
            return Err(refuse("ImagePullBackOff", message, retry_at));
        }
    }
    event(EventType::Normal, "Pulling", &format!("Pulling image {image:?}"));
    match pull(context, pod, image, secrets, cancel).await {
        Ok((reference, bytes)) => {
            context.images.note_success(&key);
            let took = go_duration(round_to_millis(context.env.now().since(now)));
            let message = format!(
                "Successfully pulled image {image:?} in {took} ({took} including waiting). Image size: {bytes} bytes."
            );
            event(EventType::Normal, "Pulled", &message);
            Ok(reference)
        }
        Err(text) => {
            let message = format!("Failed to pull image {image:?}: {text}");
            event(EventType::Warning, "Failed", &message);
            event(EventType::Warning, "Failed", "Error: ErrImagePull");
            let known = format!("ErrImagePull: {text}");
            // The next look at once shows ImagePullBackOff, as upstream's next sync does.
            context.images.note_failure(key, context.env.now(), known);
            let soon = context.env.now() + Duration::from_secs(2);
            Err(refuse("ErrImagePull", text, soon))
        }
    }
}

fn round_to_millis(duration: Duration) -> Duration {
    Duration::from_millis(duration.as_millis() as u64)
}

/// Tries each credential that fits, then none.
async fn pull(
    context: &Context,
    pod: &Pod,
    image: &str,
    secrets: &[Object],
    cancel: &CancellationToken,
) -> Result<(String, u64), String> {
    let mut attempts: Vec<Option<v1::AuthConfig>> =
        credentials(secrets, image).into_iter().map(Some).collect();
    if attempts.is_empty() {
        attempts.push(None);
    }
    let mut last = String::new();
    for auth in attempts {
        let request = v1::PullImageRequest {
            image: Some(spec_of(image)),
            auth,
            sandbox_config: Some(v1::PodSandboxConfig {
                metadata: Some(v1::PodSandboxMetadata {
                    name: pod.name().into(),
                    uid: pod.uid().into(),
                    namespace: pod.namespace().into(),
                    attempt: 0,
                }),
                ..v1::PodSandboxConfig::default()
            }),
        };
        let mut client = context.images.client();
        let Some(answer) = cancel.run_until_cancelled(client.pull_image(request)).await else {
            return Err("the pod is being deleted".into());
        };
        match answer {
            Ok(answer) => {
                let reference = answer.into_inner().image_ref;
                let found = context.images.present(image).await.ok().flatten();
                let bytes = found.map_or(0, |image| image.size);
                return Ok((reference, bytes));
            }
            Err(status) => {
                last = format!(
                    "rpc error: code = {} desc = {}",
                    code_name(status.code()),
                    status.message()
                )
            }
        }
    }
    Err(last)
}

/// The name of a gRPC code as Go prints it.
pub fn code_name(code: tonic::Code) -> &'static str {
    match code {
        tonic::Code::Ok => "OK",
        tonic::Code::Cancelled => "Canceled",
        tonic::Code::InvalidArgument => "InvalidArgument",
        tonic::Code::DeadlineExceeded => "DeadlineExceeded",
        tonic::Code::NotFound => "NotFound",
        tonic::Code::AlreadyExists => "AlreadyExists",
        tonic::Code::PermissionDenied => "PermissionDenied",
        tonic::Code::ResourceExhausted => "ResourceExhausted",
        tonic::Code::FailedPrecondition => "FailedPrecondition",
        tonic::Code::Aborted => "Aborted",
        tonic::Code::OutOfRange => "OutOfRange",
        tonic::Code::Unimplemented => "Unimplemented",
        tonic::Code::Internal => "Internal",
        tonic::Code::Unavailable => "Unavailable",
        tonic::Code::DataLoss => "DataLoss",
        tonic::Code::Unauthenticated => "Unauthenticated",
        tonic::Code::Unknown => "Unknown",
    }
}

/// The registry part of an image's name, empty when it names none.
fn registry_of(image: &str) -> String {
    let first = image.split('/').next().unwrap_or_default();
    let is_host = image.contains('/') && (first.contains(['.', ':']) || first == "localhost");
    if is_host { first.to_owned() } else { String::new() }
}

/// Credentials for `image` from pull secrets, those with the longest matching path first.
fn credentials(secrets: &[Object], image: &str) -> Vec<v1::AuthConfig> {
    let registry = registry_of(image);
    let mut found: Vec<(usize, v1::AuthConfig)> = Vec::new();
    for secret in secrets {
        for (server, entry) in docker_config(secret) {
            let host = server.trim_start_matches("https://").trim_start_matches("http://");
            let host = host.trim_end_matches('/').trim_end_matches("/v1").trim_end_matches("/v2");
            let (domain, path) = host.split_once('/').unwrap_or((host, ""));
            // Docker files the credentials of its default registry under an `index.` host.
            let default = registry.is_empty() && domain.starts_with("index.");
            let same = domain == registry || default || wildcard(domain, &registry);
            if same && (path.is_empty() || image.contains(&format!("/{path}"))) {
                found.push((path.len(), auth_config(&server, &entry)));
            }
        }
    }
    found.sort_by_key(|(length, _)| std::cmp::Reverse(*length));
    found.into_iter().map(|(_, auth)| auth).collect()
}

/// `*.example.com` stands for one label.
fn wildcard(pattern: &str, host: &str) -> bool {
    let Some(rest) = pattern.strip_prefix("*.") else { return false };
    host.split_once('.').is_some_and(|(label, tail)| !label.is_empty() && tail == rest)
}

fn docker_config(secret: &Object) -> Vec<(String, serde_json::Value)> {
    let decode = |key: &str| {
        let text = secret.at(&["data", key])?.as_str()?;
        let bytes = BASE64_STANDARD.decode(text).ok()?;
        serde_json::from_slice::<serde_json::Value>(&bytes).ok()
    };
    let entries = decode(".dockerconfigjson")
        .and_then(|config| config.get("auths").cloned())
        .or_else(|| decode(".dockercfg"));
    match entries {
        Some(serde_json::Value::Object(map)) => map.into_iter().collect(),
        _ => Vec::new(),
    }
}

fn auth_config(server: &str, entry: &serde_json::Value) -> v1::AuthConfig {
    let text = |key: &str| entry.get(key).and_then(|v| v.as_str()).unwrap_or_default().to_owned();
    let decoded = BASE64_STANDARD.decode(text("auth")).unwrap_or_default();
    let pair = String::from_utf8(decoded).unwrap_or_default();
    let (user, password) = pair.split_once(':').unwrap_or_default();
    let or = |own: String, other: &str| if own.is_empty() { other.to_owned() } else { own };
    v1::AuthConfig {
        username: or(text("username"), user),
        password: or(text("password"), password),
        server_address: server.to_owned(),
        identity_token: text("identitytoken"),
        registry_token: text("registrytoken"),
        ..v1::AuthConfig::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(config: &str) -> Object {
        let mut secret = Object::new("v1", "Secret", "default", "pull");
        secret.set_at(&["data", ".dockerconfigjson"], BASE64_STANDARD.encode(config));
        secret
    }

    #[test]
    fn credentials_match_by_registry_and_path() {
        let auth = BASE64_STANDARD.encode("bob:pass:word");
        let config = format!(
            r#"{{"auths":{{"reg.test:5000":{{"auth":"{auth}"}},"reg.test:5000/team":{{"username":"t","password":"p"}},"*.wild.test":{{"username":"w","password":"p"}}}}}}"#
        );
        let secrets = [secret(&config)];
        let of = |image: &str| -> Vec<String> {
            credentials(&secrets, image).into_iter().map(|auth| auth.username).collect()
        };
        assert_eq!(of("reg.test:5000/team/app:1"), ["t", "bob"]);
        assert_eq!(of("reg.test:5000/other/app"), ["bob"]);
        assert_eq!(of("a.wild.test/x"), ["w"]);
        assert!(of("a.b.wild.test/x").is_empty());
        assert!(of("library/busybox").is_empty());
        assert_eq!(credentials(&secrets, "reg.test:5000/x")[0].password, "pass:word");
    }
}
