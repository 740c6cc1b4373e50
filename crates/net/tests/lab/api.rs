//! An API server that serves lists and watches from memory, for informers.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use async_trait::async_trait;
use bytes::Bytes;
use client::{BodyStream, Client, Error, Transport};
use futures::stream;
use serde_json::{Value, json};
use tokio::sync::mpsc;

#[derive(Clone, Default)]
pub struct Api(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    revision: u64,
    /// By the collection's path for all namespaces, then by namespace and name.
    objects: BTreeMap<String, BTreeMap<String, Value>>,
    watchers: Vec<(String, mpsc::UnboundedSender<Bytes>)>,
}

impl Api {
    pub fn client(&self) -> Client {
        Client::new(Arc::new(self.clone()), "test")
    }

    /// Creates or replaces an object of a collection (`/api/v1/services`).
    pub fn put(&self, collection: &str, mut object: Value) {
        let mut state = self.0.lock().unwrap();
        state.revision += 1;
        object["metadata"]["resourceVersion"] = json!(state.revision.to_string());
        let key = key(&object);
        let objects = state.objects.entry(collection.to_owned()).or_default();
        let known = objects.insert(key, object.clone()).is_some();
        state.tell(collection, if known { "MODIFIED" } else { "ADDED" }, object);
    }

    pub fn delete(&self, collection: &str, namespace: &str, name: &str) {
        let mut state = self.0.lock().unwrap();
        state.revision += 1;
        let objects = state.objects.entry(collection.to_owned()).or_default();
        let mut object = objects.remove(&format!("{namespace}/{name}")).expect("it is there");
        object["metadata"]["resourceVersion"] = json!(state.revision.to_string());
        state.tell(collection, "DELETED", object);
    }
}

impl State {
    fn tell(&mut self, collection: &str, kind: &str, object: Value) {
        let line = format!("{}\n", json!({ "type": kind, "object": object }));
        let line = Bytes::from(line);
        self.watchers
            .retain(|(path, sender)| path != collection || sender.send(line.clone()).is_ok());
    }
}

fn key(object: &Value) -> String {
    let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
    format!("{}/{}", text("namespace"), text("name"))
}

#[async_trait]
impl Transport for Api {
    async fn send(
        &self,
        request: http::Request<Bytes>,
    ) -> Result<http::Response<BodyStream>, Error> {
        let path = request.uri().path().to_owned();
        let query = request.uri().query().unwrap_or_default().to_owned();
        let mut state = self.0.lock().unwrap();
        let body: BodyStream = if query.contains("watch=") {
            // Nothing is put while an informer is between its list and its watch: the lab's
            // informers have synced before objects change.
            let (sender, receiver) = mpsc::unbounded_channel();
            let since = query.split('&').find_map(|pair| pair.strip_prefix("resourceVersion="));
            let since: u64 = since.and_then(|text| text.parse().ok()).unwrap_or(0);
            for object in state.objects.get(&path).into_iter().flat_map(BTreeMap::values) {
                let text = object["metadata"]["resourceVersion"].as_str().unwrap();
                if text.parse::<u64>().unwrap() > since {
                    let line = json!({ "type": "ADDED", "object": object });
                    sender.send(Bytes::from(format!("{line}\n"))).unwrap();
                }
            }
            state.watchers.push((path, sender));
            Box::pin(stream::unfold(receiver, |mut receiver| async {
                receiver.recv().await.map(|line| (Ok(line), receiver))
            }))
        } else {
            let items: Vec<&Value> =
                state.objects.get(&path).into_iter().flat_map(BTreeMap::values).collect();
            let list = json!({
                "kind": "List",
                "apiVersion": "v1",
                "metadata": { "resourceVersion": state.revision.to_string() },
                "items": items,
            });
            Box::pin(stream::iter([Ok(Bytes::from(list.to_string()))]))
        };
        Ok(http::Response::new(body))
    }
}

pub const SERVICES: &str = "/api/v1/services";
pub const SLICES: &str = "/apis/discovery.k8s.io/v1/endpointslices";
pub const NODES: &str = "/api/v1/nodes";

pub fn service(name: &str, spec: Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": { "namespace": "default", "name": name, "uid": name },
        "spec": spec,
    })
}

/// A slice of the Service of the same name, with port 8080 named `http`.
pub fn slice(service: &str, endpoints: &[Value]) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {
            "namespace": "default", "name": format!("{service}-x"), "uid": format!("{service}-x"),
            "labels": { "kubernetes.io/service-name": service },
        },
        "endpoints": endpoints,
        "ports": [{ "name": "http", "port": 8080, "protocol": "TCP" }],
    })
}

pub fn endpoint(address: &str, node: &str, hostname: Option<&str>) -> Value {
    json!({
        "addresses": [address], "conditions": { "ready": true }, "nodeName": node,
        "hostname": hostname,
    })
}

pub fn node(name: &str, address: &str, range: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": { "name": name, "uid": name },
        "spec": { "podCIDR": range, "podCIDRs": [range] },
        "status": { "addresses": [{ "type": "InternalIP", "address": address }] },
    })
}
