//! A tiny API server in memory: enough of the verbs to run controllers against, with watches that
//! can be held back.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use api::Status;
use async_trait::async_trait;
use bytes::Bytes;
use client::{BodyStream, Error, Transport};
use futures::stream;
use machinery::{Map, Object, Value};
use stdx::Env;
use tokio::sync::Notify;

/// Resource (plural), namespace, name.
type Path = (String, String, String);

#[derive(Default)]
struct State {
    revision: i64,
    objects: BTreeMap<Path, Object>,
    log: Vec<(i64, String, &'static str, Object)>,
    watch_delay: Duration,
    /// Creates of this resource are refused.
    broken: Option<String>,
}

#[derive(Clone)]
pub struct FakeApi {
    env: Env,
    state: Arc<Mutex<State>>,
    changed: Arc<Notify>,
}

struct Call {
    path: Path,
    subresource: String,
    group_version: String,
    query: BTreeMap<String, String>,
}

impl FakeApi {
    pub fn new(env: &Env) -> Self {
        Self { env: env.clone(), state: Arc::default(), changed: Arc::default() }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Every watch sees events this much later.
    pub fn delay_watches(&self, delay: Duration) {
        self.state().watch_delay = delay;
    }

    pub fn break_creates(&self, resource: Option<&str>) {
        self.state().broken = resource.map(str::to_owned);
    }

    pub fn list(&self, resource: &str) -> Vec<Object> {
        let state = self.state();
        let of = state.objects.iter().filter(|((plural, _, _), _)| plural == resource);
        of.map(|(_, object)| object.clone()).collect()
    }

    /// How many objects of a resource have ever been made.
    pub fn created(&self, resource: &str) -> usize {
        self.state()
            .log
            .iter()
            .filter(|(_, plural, kind, _)| plural == resource && *kind == "ADDED")
            .count()
    }

    /// Every change there ever was, one per line.
    pub fn trace(&self) -> String {
        let line = |(revision, resource, kind, object): &(i64, String, &str, Object)| {
            format!("{revision} {kind} {resource} {}\n", String::from_utf8_lossy(&object.to_json()))
        };
        self.state().log.iter().map(line).collect()
    }

    pub fn get(&self, resource: &str, name: &str) -> Option<Object> {
        self.list(resource).into_iter().find(|object| object.name() == name)
    }

    /// Writes an object as it is, made or replaced; the generation moves with the spec.
    pub fn put(&self, resource: &str, mut object: Object) {
        let path = (resource.to_owned(), object.namespace().to_owned(), object.name().to_owned());
        let old = self.state().objects.get(&path).cloned();
        if let Some(old) = &old {
            object.set_uid(old.uid());
            for kept in ["creationTimestamp", "generation"] {
                if let Some(value) = old.at(&["metadata", kept]) {
                    object.metadata_mut().insert(kept, value.clone());
                }
            }
            if let Some(status) =
                old.root().get("status").filter(|_| object.root().get("status").is_none())
            {
                object.root_mut().insert("status", status.clone());
            }
        }
        self.store(&path, object);
    }

    pub fn delete(&self, resource: &str, name: &str) {
        let path =
            self.state().objects.keys().find(|(r, _, n)| r == resource && n == name).cloned();
        if let Some(path) = path {
            self.remove(&path);
        }
    }

    fn remove(&self, path: &Path) {
        let mut state = self.state();
        let Some(mut object) = state.objects.remove(path) else { return };
        state.revision += 1;
        let revision = state.revision;
        object.set_resource_version(&revision.to_string());
        state.log.push((revision, path.0.clone(), "DELETED", object));
        drop(state);
        self.changed.notify_waiters();
    }

    fn store(&self, path: &Path, mut object: Object) -> Object {
        let mut state = self.state();
        let old = state.objects.get(path).cloned();
        if object.uid().is_empty() {
            object.set_uid(&self.env.uuid());
            let now = self.env.now().rfc3339();
            object.metadata_mut().insert("creationTimestamp", now);
        }
        let spec = |o: &Object| o.root().get("spec").cloned();
        match &old {
            None => object.set_generation(1),
            Some(old) if spec(old) != spec(&object) => object.set_generation(old.generation() + 1),
            Some(_) => {}
        }
        let kind = if old.is_some() { "MODIFIED" } else { "ADDED" };
        state.revision += 1;
        let revision = state.revision;
        object.set_resource_version(&revision.to_string());
        state.objects.insert(path.clone(), object.clone());
        state.log.push((revision, path.0.clone(), kind, object.clone()));
        drop(state);
        self.changed.notify_waiters();
        object
    }

    fn answer(&self, call: &Call, method: &str, body: &[u8]) -> Result<Object, Status> {
        let (resource, _, name) = &call.path;
        let current = self.state().objects.get(&call.path).cloned();
        let missing = || Status::not_found("", resource, name);
        match method {
            "GET" => current.ok_or_else(missing),
            "POST" => self.create(call, body),
            "PUT" => {
                let new =
                    Object::from_json(body).map_err(|e| Status::bad_request(e.to_string()))?;
                self.update(call, current.ok_or_else(missing)?, new)
            }
            "PATCH" => {
                let current = current.ok_or_else(missing)?;
                let patch: Value =
                    serde_json::from_slice(body).map_err(|e| Status::bad_request(e.to_string()))?;
                let mut new = current.clone();
                merge(new.root_mut(), patch.as_map().unwrap_or(&Map::new()));
                self.update(call, current, new)
            }
            "DELETE" => self.delete_call(call, current.ok_or_else(missing)?, body),
            _ => Err(Status::method_not_allowed("", resource, method)),
        }
    }

    fn create(&self, call: &Call, body: &[u8]) -> Result<Object, Status> {
        let object = Object::from_json(body).map_err(|e| Status::bad_request(e.to_string()))?;
        let (resource, namespace, _) = &call.path;
        if self.state().broken.as_deref() == Some(resource) {
            return Err(Status::forbidden("", resource, object.name(), "exceeded quota"));
        }
        let path = (resource.clone(), namespace.clone(), object.name().to_owned());
        if self.state().objects.contains_key(&path) {
            return Err(Status::already_exists("", resource, object.name()));
        }
        Ok(self.store(&path, object))
    }

    fn update(&self, call: &Call, current: Object, new: Object) -> Result<Object, Status> {
        let (resource, _, name) = &call.path;
        let asked = new.resource_version();
        if (!asked.is_empty() && asked != current.resource_version()) || new.uid() != current.uid()
        {
            return Err(Status::modified("", resource, name));
        }
        let (mut whole, status) = match call.subresource.as_str() {
            "status" => {
                let mut whole = current.clone();
                whole.root_mut().insert("metadata", new.metadata().cloned().unwrap_or_default());
                (whole, new.root().get("status").cloned())
            }
            _ => (new, current.root().get("status").cloned()),
        };
        if let Some(status) = status {
            whole.root_mut().insert("status", status);
        }
        if whole.finalizers().next().is_none() && whole.is_deleting() && resource != "pods" {
            self.remove(&call.path);
            return Ok(whole);
        }
        Ok(if whole == current { current } else { self.store(&call.path, whole) })
    }

    fn delete_call(&self, call: &Call, mut object: Object, body: &[u8]) -> Result<Object, Status> {
        let options: Value = serde_json::from_slice(body).unwrap_or_default();
        let (resource, _, name) = &call.path;
        let uid = options.at(&["preconditions", "uid"]).and_then(Value::as_str);
        if uid.is_some_and(|uid| uid != object.uid()) {
            return Err(Status::conflict(
                "",
                resource,
                name,
                "the UID in the precondition differs",
            ));
        }
        let immediate = options.get("gracePeriodSeconds").and_then(Value::as_i64) == Some(0);
        let runs =
            resource == "pods" && !object.str_at(&["spec", "nodeName"]).is_empty() && !immediate;
        if runs || object.finalizers().next().is_some() {
            if object.is_deleting() {
                return Ok(object);
            }
            object.metadata_mut().insert("deletionTimestamp", self.env.now().rfc3339());
            return Ok(self.store(&call.path, object));
        }
        self.remove(&call.path);
        Ok(object)
    }

    fn list_body(&self, call: &Call) -> Bytes {
        let items: Vec<Value> = {
            let of = self.list(&call.path.0).into_iter();
            of.filter(|o| call.path.1.is_empty() || o.namespace() == call.path.1)
                .map(|mut object| {
                    // The items of a list lack their kind, as upstream's do.
                    object.root_mut().remove("kind");
                    object.root_mut().remove("apiVersion");
                    object.into_value()
                })
                .collect()
        };
        let revision = self.state().revision.to_string();
        let list = machinery::value!({"kind": "List", "apiVersion": call.group_version, "metadata": {"resourceVersion": revision}});
        let mut list = list.as_map().cloned().unwrap_or_default();
        list.insert("items", items);
        machinery::json::to_vec(&list).into()
    }

    fn watch_body(&self, call: &Call) -> BodyStream {
        let from: i64 = call.query.get("resourceVersion").and_then(|v| v.parse().ok()).unwrap_or(0);
        let (api, resource) = (self.clone(), call.path.0.clone());
        Box::pin(stream::unfold((api, resource, from), |(api, resource, from)| async move {
            let notify = api.changed.clone();
            loop {
                let changed = notify.notified();
                tokio::pin!(changed);
                changed.as_mut().enable();
                let (next, delay) = {
                    let state = api.state();
                    let mut later = state
                        .log
                        .iter()
                        .filter(|(r, plural, _, _)| *r > from && *plural == resource);
                    (later.next().cloned(), state.watch_delay)
                };
                let Some((revision, _, kind, object)) = next else {
                    changed.await;
                    continue;
                };
                api.env.sleep(delay).await;
                let mut event = Map::new();
                event.insert("type", kind);
                event.insert("object", object.into_value());
                let mut line = machinery::json::to_vec(&event);
                line.push(b'\n');
                return Some((Ok(Bytes::from(line)), (api, resource, revision)));
            }
        }))
    }
}

#[async_trait]
impl Transport for FakeApi {
    async fn send(
        &self,
        request: http::Request<Bytes>,
    ) -> Result<http::Response<BodyStream>, Error> {
        let call = parse(request.uri());
        let body: BodyStream = if call.query.contains_key("watch") {
            self.watch_body(&call)
        } else if request.method() == "GET" && call.path.2.is_empty() {
            once(self.list_body(&call))
        } else {
            match self.answer(&call, request.method().as_str(), request.body()) {
                Ok(object) => once(object.to_json().into()),
                Err(status) => {
                    let response = http::Response::builder().status(status.code);
                    let response = response.body(once(status.to_json().into()));
                    return Ok(response.expect("a well-formed response"));
                }
            }
        };
        Ok(http::Response::new(body))
    }
}

fn once(bytes: Bytes) -> BodyStream {
    Box::pin(stream::iter([Ok(bytes)]))
}

fn parse(uri: &http::Uri) -> Call {
    let parts: Vec<&str> = uri.path().trim_start_matches('/').split('/').collect();
    let (group_version, rest) = match parts[0] {
        "api" => (parts[1].to_owned(), &parts[2..]),
        _ => (format!("{}/{}", parts[1], parts[2]), &parts[3..]),
    };
    let (namespace, rest) = match rest {
        ["namespaces", namespace, rest @ ..] if !rest.is_empty() => (*namespace, rest),
        rest => ("", rest),
    };
    let at = |index: usize| rest.get(index).map(|part| (*part).to_owned()).unwrap_or_default();
    let pairs = uri.query().unwrap_or_default().split('&').filter_map(|pair| pair.split_once('='));
    let query = pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
    Call { path: (at(0), namespace.to_owned(), at(1)), subresource: at(2), group_version, query }
}

/// A merge patch, with the lists that controllers patch strategically merged by their keys.
fn merge(target: &mut Map, patch: &Map) {
    for (key, value) in patch.iter() {
        match value {
            Value::Null => {
                target.remove(key);
            }
            Value::Map(patch) => merge(target.map_entry(key), patch),
            Value::List(items) if list_key(key).is_some() => {
                merge_list(target.list_entry(key), items, list_key(key).unwrap_or_default());
            }
            other => {
                target.insert(key.clone(), other.clone());
            }
        }
    }
}

fn list_key(field: &str) -> Option<&'static str> {
    match field {
        "ownerReferences" => Some("uid"),
        "conditions" => Some("type"),
        _ => None,
    }
}

fn merge_list(target: &mut Vec<Value>, items: &[Value], key: &str) {
    for item in items {
        let position = target.iter().position(|known| known.get(key) == item.get(key));
        let deletes = item.get("$patch").is_some();
        match position {
            Some(at) if deletes => drop(target.remove(at)),
            Some(at) => {
                if let (Some(known), Some(patch)) = (target[at].as_map_mut(), item.as_map()) {
                    merge(known, patch);
                }
            }
            None if deletes => {}
            None => target.push(item.clone()),
        }
    }
}
