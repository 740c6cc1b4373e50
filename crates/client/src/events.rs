//! Events: what a component tells the user about an object.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
};

use machinery::{Map, Object, value};
use stdx::{Env, HashMap, chain};

use crate::{Client, Patch, Resource};

pub const EVENTS: Resource = Resource::namespaced("", "v1", "events", "Event");

/// The object that an event is about.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct ObjectReference {
    pub api_version: String,
    pub kind: String,
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub resource_version: String,
    pub field_path: String,
}

impl ObjectReference {
    pub fn of(object: &Object) -> Self {
        Self {
            api_version: object.api_version().into(),
            kind: object.kind().into(),
            namespace: object.namespace().into(),
            name: object.name().into(),
            uid: object.uid().into(),
            resource_version: object.resource_version().into(),
            field_path: String::new(),
        }
    }

    fn to_map(&self) -> Map {
        let fields = [
            ("apiVersion", &self.api_version),
            ("kind", &self.kind),
            ("namespace", &self.namespace),
            ("name", &self.name),
            ("uid", &self.uid),
            ("resourceVersion", &self.resource_version),
            ("fieldPath", &self.field_path),
        ];
        fields.into_iter().filter(|(_, v)| !v.is_empty()).map(|(k, v)| (k, v.as_str())).collect()
    }
}

/// `Normal` or `Warning`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EventType {
    Normal,
    Warning,
}

impl EventType {
    fn as_str(self) -> &'static str {
        match self {
            Self::Normal => "Normal",
            Self::Warning => "Warning",
        }
    }
}

/// Records events in order, from a task of its own; a repeated event raises the count of the one
/// before. Recording never blocks and never fails its caller. Cheap to clone.
#[derive(Clone)]
pub struct EventRecorder(tokio::sync::mpsc::Sender<Record>);

struct Record {
    about: ObjectReference,
    event_type: EventType,
    reason: String,
    message: String,
}

/// How many records may wait while the server is slow, and how many past ones are remembered.
const QUEUE: usize = 1000;
const REMEMBERED: usize = 4096;

impl EventRecorder {
    /// `component` is the reporter's name, `host` its node (empty for the control plane).
    pub fn start(env: &Env, client: Client, component: &str, host: &str) -> Self {
        let (sender, mut records) = tokio::sync::mpsc::channel(QUEUE);
        let writer = Writer {
            env: env.clone(),
            client,
            component: component.into(),
            host: host.into(),
            known: Mutex::default(),
        };
        env.spawn("events", async move {
            while let Some(record) = records.recv().await {
                writer.write(record).await;
            }
        });
        Self(sender)
    }

    pub fn record(
        &self,
        about: ObjectReference,
        event_type: EventType,
        reason: &str,
        message: impl Into<String>,
    ) {
        let record = Record { about, event_type, reason: reason.into(), message: message.into() };
        if self.0.try_send(record).is_err() {
            tracing::warn!(reason, "event dropped: too many are waiting");
        }
    }

    pub fn normal(&self, about: ObjectReference, reason: &str, message: impl Into<String>) {
        self.record(about, EventType::Normal, reason, message);
    }

    pub fn warning(&self, about: ObjectReference, reason: &str, message: impl Into<String>) {
        self.record(about, EventType::Warning, reason, message);
    }
}

struct Writer {
    env: Env,
    client: Client,
    component: Arc<str>,
    host: Arc<str>,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    events: HashMap<String, (String, i64)>,
    order: VecDeque<String>,
}

impl Writer {
    async fn write(&self, record: Record) {
        // The same thing told of a newer version of the object is the same event.
        let about = ObjectReference { resource_version: String::new(), ..record.about.clone() };
        let identity = format!(
            "{about:?}|{}|{}|{}",
            record.event_type.as_str(),
            record.reason,
            record.message
        );
        let outcome = match self.repeated(&identity) {
            Some((name, count)) => self.raise(&record, &name, count).await,
            None => self.create(&record, identity).await,
        };
        if let Err(error) = outcome {
            let reason = record.reason;
            tracing::debug!(reason, error = %chain(&error), "event not recorded");
        }
    }

    /// Name and new count of the event that this one repeats.
    fn repeated(&self, identity: &str) -> Option<(String, i64)> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let (name, count) = known.events.get_mut(identity)?;
        *count += 1;
        Some((name.clone(), *count))
    }

    fn remember(&self, identity: String, name: String) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.order.len() >= REMEMBERED {
            if let Some(oldest) = known.order.pop_front() {
                known.events.remove(&oldest);
            }
        }
        known.order.push_back(identity.clone());
        known.events.insert(identity, (name, 1));
    }

    async fn raise(&self, record: &Record, name: &str, count: i64) -> Result<(), crate::Error> {
        let patch = value!({ "count": count, "lastTimestamp": self.env.now().rfc3339() });
        let namespace = event_namespace(&record.about);
        let patched =
            self.client.patch(&EVENTS, namespace, name, "", &Patch::Strategic(patch)).await;
        match patched {
            // It has expired: the next one starts anew.
            Err(error) if error.is_not_found() => {
                let object = self.event(record, name, count);
                self.client.create(&EVENTS, namespace, &object).await.map(drop)
            }
            other => other.map(drop),
        }
    }

    async fn create(&self, record: &Record, identity: String) -> Result<(), crate::Error> {
        let name = format!("{}.{:x}", record.about.name, self.env.now().as_nanos());
        let object = self.event(record, &name, 1);
        self.client.create(&EVENTS, event_namespace(&record.about), &object).await?;
        self.remember(identity, name);
        Ok(())
    }

    fn event(&self, record: &Record, name: &str, count: i64) -> Object {
        let now = self.env.now().rfc3339();
        let mut event = Object::new("v1", "Event", event_namespace(&record.about), name);
        let root = event.root_mut();
        root.insert("involvedObject", record.about.to_map());
        root.insert("reason", record.reason.as_str());
        root.insert("message", truncate(&record.message, 1024));
        root.insert("type", record.event_type.as_str());
        root.insert("count", count);
        root.insert("firstTimestamp", now.as_str());
        root.insert("lastTimestamp", now.as_str());
        root.set_at(&["source", "component"], &*self.component);
        if !self.host.is_empty() {
            root.set_at(&["source", "host"], &*self.host);
        }
        root.insert("reportingComponent", &*self.component);
        root.insert("reportingInstance", &*self.host);
        event
    }
}

/// Events about cluster-wide objects live in `default`.
fn event_namespace(about: &ObjectReference) -> &str {
    if about.namespace.is_empty() { "default" } else { &about.namespace }
}

fn truncate(text: &str, limit: usize) -> &str {
    let mut end = text.len().min(limit);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}
