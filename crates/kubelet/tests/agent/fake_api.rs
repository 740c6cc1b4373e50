//! An API server with as much behaviour as a kubelet sees: pods that can be listed, watched,
//! patched and deleted, and everything else accepted.

use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use client::{BodyStream, Error, Transport};
use futures::StreamExt;
use http::{Method, Request, Response, StatusCode};
use serde_json::{Value, json};
use tokio::sync::{broadcast, watch};

#[derive(Clone)]
pub struct FakeApi(Arc<Inner>);

struct Inner {
    state: Mutex<State>,
    events: broadcast::Sender<String>,
    /// Counts changes, so that tests can wait for one.
    changes: watch::Sender<u64>,
}

#[derive(Default)]
struct State {
    pod: Option<Value>,
    revision: u64,
    status_writes: usize,
}

impl FakeApi {
    pub fn new() -> Self {
        let (events, _) = broadcast::channel(64);
        Self(Arc::new(Inner { state: Mutex::default(), events, changes: watch::Sender::new(0) }))
    }

    /// Puts a pod on the node, or changes it.
    pub fn put(&self, change: impl FnOnce(&mut Value)) {
        self.update(change);
    }

    fn update(&self, change: impl FnOnce(&mut Value)) -> Value {
        let mut state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.revision += 1;
        let fresh = state.pod.is_none();
        let mut pod = state.pod.take().unwrap_or_else(|| json!({}));
        change(&mut pod);
        pod["metadata"]["resourceVersion"] = json!(state.revision.to_string());
        state.pod = Some(pod.clone());
        self.tell(if fresh { "ADDED" } else { "MODIFIED" }, &pod);
        pod
    }

    fn tell(&self, kind: &str, pod: &Value) {
        let _ = self.0.events.send(format!("{}\n", json!({ "type": kind, "object": pod })));
        self.0.changes.send_modify(|count| *count += 1);
    }

    pub fn status_writes(&self) -> usize {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner).status_writes
    }

    /// Waits until the pod (null when it is gone) is as wanted.
    pub async fn wait_for(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let mut changes = self.0.changes.subscribe();
        loop {
            let pod = {
                let state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
                state.pod.clone().unwrap_or_default()
            };
            if wanted(&pod) {
                return pod;
            }
            changes.changed().await.unwrap_or_else(|_| panic!("the server ended before {what}"));
        }
    }

    fn patch_status(&self, patch: &Value) -> Value {
        let updated = self.update(|pod| {
            for (field, value) in patch["status"].as_object().into_iter().flatten() {
                if field != "conditions" {
                    pod["status"][field] = value.clone();
                    continue;
                }
                let mut conditions = pod["status"][field].as_array().cloned().unwrap_or_default();
                for new in value.as_array().into_iter().flatten() {
                    conditions.retain(|old| old["type"] != new["type"]);
                    conditions.push(new.clone());
                }
                pod["status"][field] = json!(conditions);
            }
        });
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner).status_writes += 1;
        updated
    }

    fn delete(&self) -> (StatusCode, Value) {
        let taken = self.0.state.lock().unwrap_or_else(PoisonError::into_inner).pod.take();
        match taken {
            Some(pod) => {
                self.tell("DELETED", &pod);
                (StatusCode::OK, json!({ "kind": "Status", "status": "Success" }))
            }
            None => not_found(),
        }
    }

    fn answer(&self, method: &Method, path: &str, body: &Bytes) -> (StatusCode, Value) {
        let sent = || serde_json::from_slice::<Value>(body).unwrap_or_default();
        match (method.as_str(), path) {
            ("GET", "/api/v1/pods") => {
                let state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
                let items: Vec<&Value> = state.pod.iter().collect();
                let metadata = json!({ "resourceVersion": state.revision.to_string() });
                (StatusCode::OK, json!({ "kind": "PodList", "metadata": metadata, "items": items }))
            }
            ("GET", "/api/v1/services" | "/api/v1/nodes") => {
                (StatusCode::OK, json!({ "metadata": { "resourceVersion": "1" }, "items": [] }))
            }
            ("PATCH", path) if path.ends_with("/pods/p/status") => {
                (StatusCode::OK, self.patch_status(&sent()))
            }
            ("DELETE", path) if path.ends_with("/pods/p") => self.delete(),
            ("GET", _) => not_found(),
            _ => (StatusCode::OK, sent()),
        }
    }
}

fn not_found() -> (StatusCode, Value) {
    let status =
        json!({ "kind": "Status", "status": "Failure", "reason": "NotFound", "code": 404 });
    (StatusCode::NOT_FOUND, status)
}

#[async_trait]
impl Transport for FakeApi {
    async fn send(&self, request: Request<Bytes>) -> Result<Response<BodyStream>, Error> {
        let (path, query) = (request.uri().path(), request.uri().query().unwrap_or_default());
        if query.contains("watch=true") {
            let receiver = self.0.events.subscribe();
            let wanted = path == "/api/v1/pods";
            let lines = futures::stream::unfold(receiver, |mut receiver| async move {
                receiver.recv().await.ok().map(|line| (Ok(Bytes::from(line)), receiver))
            });
            let body: BodyStream =
                if wanted { Box::pin(lines) } else { futures::stream::pending().boxed() };
            return Ok(Response::new(body));
        }
        let (code, value) = self.answer(request.method(), path, request.body());
        let bytes = Bytes::from(value.to_string());
        let body: BodyStream = Box::pin(futures::stream::once(async move { Ok(bytes) }));
        let mut response = Response::new(body);
        *response.status_mut() = code;
        Ok(response)
    }
}
