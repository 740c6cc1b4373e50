//! A local copy of one resource, kept current by list and watch.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicI64, AtomicU8, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::StreamExt;
use machinery::{Map, Object, OwnerReference};
use serde::{Deserialize, de::DeserializeOwned};
use smol_str::SmolStr;
use stdx::{CancellationToken, Env, HashMap, Timestamp, backoff::Backoff, chain};
use tokio::sync::Notify;

use crate::{Client, Error, ListOptions, Resource, watch::WatchEventKind};

/// Namespace and name; the namespace is empty for cluster-wide kinds. Prints as `ns/name`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Key {
    pub namespace: SmolStr,
    pub name: SmolStr,
}

impl Key {
    pub fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            f.write_str(&self.name)
        } else {
            write!(f, "{}/{}", self.namespace, self.name)
        }
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// One object of an informer: the server's bytes and the metadata that indexes need.
pub struct Cached {
    pub key: Key,
    pub uid: SmolStr,
    pub revision: i64,
    pub labels: Map,
    pub owners: Vec<OwnerReference>,
    pub deletion_timestamp: Option<Timestamp>,
    /// When this process learned of this revision, by its own clock (zero if it came from no
    /// informer). Timeouts count from here, because another machine's clock is never trusted.
    pub received: Timestamp,
    bytes: Bytes,
}

impl Cached {
    /// Reads the metadata of an object's JSON.
    pub fn parse(bytes: Bytes) -> Result<Self, serde_json::Error> {
        let wire: Wire = serde_json::from_slice(&bytes)?;
        let meta = wire.metadata;
        Ok(Self {
            key: Key { namespace: meta.namespace, name: meta.name },
            uid: meta.uid,
            revision: meta.resource_version.parse().unwrap_or(0),
            labels: meta.labels.unwrap_or_default(),
            owners: meta.owner_references.iter().filter_map(OwnerReference::read).collect(),
            deletion_timestamp: meta.deletion_timestamp.as_deref().and_then(Timestamp::parse),
            received: Timestamp::default(),
            bytes,
        })
    }

    /// The object as the server sent it, in JSON.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Parses the tree; for one key at a time.
    pub fn object(&self) -> Result<Object, Error> {
        Object::from_json(&self.bytes).map_err(|source| self.malformed(source))
    }

    /// Decodes a typed struct such as `k8s_openapi::api::core::v1::Pod`; for one key at a time.
    pub fn typed<T: DeserializeOwned>(&self) -> Result<T, Error> {
        serde_json::from_slice(&self.bytes).map_err(|source| self.malformed(source))
    }

    pub fn controller(&self) -> Option<&OwnerReference> {
        self.owners.iter().find(|owner| owner.controller)
    }

    pub fn is_deleting(&self) -> bool {
        self.deletion_timestamp.is_some()
    }

    fn malformed(&self, source: impl std::error::Error + Send + Sync + 'static) -> Error {
        Error::Malformed { request: self.key.to_string(), source: Box::new(source) }
    }
}

impl fmt::Debug for Cached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.key, self.revision)
    }
}

#[derive(Deserialize)]
struct Wire {
    metadata: WireMeta,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct WireMeta {
    namespace: SmolStr,
    name: SmolStr,
    uid: SmolStr,
    resource_version: SmolStr,
    labels: Option<Map>,
    owner_references: Vec<machinery::Value>,
    deletion_timestamp: Option<SmolStr>,
}

/// What happened to one object. A relist may fold several changes into one.
#[derive(Clone, Debug)]
pub struct Change {
    /// `None` when the object is new.
    pub old: Option<Arc<Cached>>,
    /// `None` when the object is gone.
    pub new: Option<Arc<Cached>>,
}

impl Change {
    pub fn key(&self) -> &Key {
        let either = self.new.as_ref().or(self.old.as_ref());
        &either.expect("a change has an old or a new object").key
    }

    /// Old and new, whichever there are.
    pub fn both(&self) -> impl Iterator<Item = &Arc<Cached>> {
        self.old.iter().chain(self.new.iter())
    }
}

/// Read access to an informer's objects. Cheap to clone.
#[derive(Clone)]
pub struct Lister(Arc<Shared>);

struct Shared {
    items: RwLock<Items>,
    revision: AtomicI64,
    decode_failures: AtomicU64,
    /// Told after every change of the items, of the revision and of the progress. (A
    /// `tokio::sync::watch` would wake its waiters in random order.)
    advanced: Notify,
    /// One of [`LISTING`], [`SYNCED`], [`ENDED`].
    progress: AtomicU8,
}

const LISTING: u8 = 0;
const SYNCED: u8 = 1;
/// The informer ended before its first complete list.
const ENDED: u8 = 2;

#[derive(Default)]
struct Items {
    by_key: BTreeMap<Key, Arc<Cached>>,
    /// Keys of the objects that a controller owns, by the owner's uid.
    by_controller: HashMap<SmolStr, BTreeMap<Key, ()>>,
}

impl Items {
    fn replace(&mut self, key: &Key, new: Option<Arc<Cached>>) -> Option<Arc<Cached>> {
        let old = match &new {
            Some(cached) => self.by_key.insert(key.clone(), cached.clone()),
            None => self.by_key.remove(key),
        };
        if let Some(owner) = old.as_ref().and_then(|cached| cached.controller()) {
            if let Some(keys) = self.by_controller.get_mut(&owner.uid) {
                keys.remove(key);
                if keys.is_empty() {
                    self.by_controller.remove(&owner.uid);
                }
            }
        }
        if let Some(owner) = new.as_ref().and_then(|cached| cached.controller()) {
            self.by_controller.entry(owner.uid.clone()).or_default().insert(key.clone(), ());
        }
        old
    }
}

impl Lister {
    /// A lister without an informer, for tests and for worlds made by hand.
    pub fn from_objects(objects: impl IntoIterator<Item = Cached>) -> Self {
        let lister = Self::empty();
        {
            let mut items = lister.write();
            for cached in objects {
                let cached = Arc::new(cached);
                items.replace(&cached.key.clone(), Some(cached));
            }
        }
        lister
    }

    fn empty() -> Self {
        Self(Arc::new(Shared {
            items: RwLock::default(),
            revision: AtomicI64::new(0),
            decode_failures: AtomicU64::new(0),
            advanced: Notify::new(),
            progress: AtomicU8::new(LISTING),
        }))
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, Items> {
        self.0.items.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, Items> {
        self.0.items.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn get(&self, key: &Key) -> Option<Arc<Cached>> {
        self.read().by_key.get(key).cloned()
    }

    pub fn len(&self) -> usize {
        self.read().by_key.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Everything, in key order.
    pub fn all(&self) -> Vec<Arc<Cached>> {
        self.read().by_key.values().cloned().collect()
    }

    /// Everything of one namespace, in key order.
    pub fn in_namespace(&self, namespace: &str) -> Vec<Arc<Cached>> {
        let from = Key::new(namespace, "");
        let items = self.read();
        let range = items.by_key.range(from..);
        range.take_while(|(key, _)| key.namespace == namespace).map(|(_, c)| c.clone()).collect()
    }

    /// Everything whose controller has this uid, in key order.
    pub fn controlled_by(&self, uid: &str) -> Vec<Arc<Cached>> {
        let items = self.read();
        let Some(keys) = items.by_controller.get(uid) else { return Vec::new() };
        keys.keys().filter_map(|key| items.by_key.get(key).cloned()).collect()
    }

    /// The newest revision that this copy reflects.
    pub fn revision(&self) -> i64 {
        self.0.revision.load(Ordering::Acquire)
    }

    /// Waits until this copy satisfies `condition`, which is asked again after every change.
    pub async fn until(&self, condition: impl Fn(&Lister) -> bool) {
        loop {
            let advanced = self.0.advanced.notified();
            tokio::pin!(advanced);
            advanced.as_mut().enable();
            if condition(self) {
                return;
            }
            advanced.await;
        }
    }

    /// Waits until this copy reflects `revision`, such as that of one's own last write.
    pub async fn reached(&self, revision: i64) {
        self.until(|lister| lister.revision() >= revision).await;
    }

    fn advance(&self, revision: i64) {
        self.0.revision.fetch_max(revision, Ordering::AcqRel);
        self.0.advanced.notify_waiters();
    }

    fn progress(&self) -> u8 {
        self.0.progress.load(Ordering::Acquire)
    }

    /// The first end of listing stands.
    fn settle(&self, progress: u8) {
        let _ = self.0.progress.compare_exchange(
            LISTING,
            progress,
            Ordering::AcqRel,
            Ordering::Acquire,
        );
        self.0.advanced.notify_waiters();
    }

    /// How many objects the server sent that could not be read.
    pub fn decode_failures(&self) -> u64 {
        self.0.decode_failures.load(Ordering::Relaxed)
    }
}

/// What part of a resource to copy.
#[derive(Clone, Debug, Default)]
pub struct InformerOptions {
    /// Empty for all namespaces.
    pub namespace: String,
    pub label_selector: String,
    pub field_selector: String,
}

type Handler = Box<dyn Fn(&Change) + Send + Sync>;

/// Keeps a [`Lister`] current. Cheap to clone; ends with its cancellation token.
#[derive(Clone)]
pub struct Informer {
    lister: Lister,
    handlers: Arc<Mutex<Vec<Handler>>>,
}

impl Informer {
    /// Starts listing and watching as a task of `env`.
    pub fn start(
        env: &Env,
        client: Client,
        resource: &Resource,
        options: InformerOptions,
        cancel: CancellationToken,
    ) -> Self {
        let informer = Self { lister: Lister::empty(), handlers: Arc::default() };
        let reflector = Reflector {
            env: env.clone(),
            client,
            resource: resource.clone(),
            options,
            informer: informer.clone(),
        };
        let end = Ending(informer.lister.clone());
        env.spawn("informer", async move {
            let _end = end;
            cancel.run_until_cancelled(reflector.run()).await;
        });
        informer
    }

    pub fn lister(&self) -> &Lister {
        &self.lister
    }

    /// Calls `handler` for every object there is now (as an addition) and every later change, in
    /// order. The handler must be quick and must not call back into the informer.
    pub fn on_change(&self, handler: impl Fn(&Change) + Send + Sync + 'static) {
        let mut handlers = self.handlers.lock().unwrap_or_else(PoisonError::into_inner);
        for cached in self.lister.all() {
            handler(&Change { old: None, new: Some(cached) });
        }
        handlers.push(Box::new(handler));
    }

    pub fn has_synced(&self) -> bool {
        self.lister.progress() == SYNCED
    }

    /// Waits for the first complete list. `false` when the informer ended before.
    pub async fn synced(&self) -> bool {
        self.lister.until(|lister| lister.progress() != LISTING).await;
        self.has_synced()
    }

    /// Sets one object and tells the handlers. The handlers' lock is held throughout, so that
    /// every handler sees changes in order, also one that is being added.
    fn apply(&self, key: &Key, new: Option<Arc<Cached>>) {
        let handlers = self.handlers.lock().unwrap_or_else(PoisonError::into_inner);
        let old = self.lister.write().replace(key, new.clone());
        if old.is_none() && new.is_none() {
            return;
        }
        let change = Change { old, new };
        for handler in handlers.iter() {
            handler(&change);
        }
    }
}

/// Wakes those who wait for the first list when the informer's task ends, however it ends.
struct Ending(Lister);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.settle(ENDED);
    }
}

struct Reflector {
    env: Env,
    client: Client,
    resource: Resource,
    options: InformerOptions,
    informer: Informer,
}

/// How the wait grows while the server cannot be reached.
const RETRY: Backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(15));

impl Reflector {
    async fn run(self) {
        let mut failures = 0;
        let mut revision = String::new();
        loop {
            let outcome = self.once(&mut revision).await;
            match outcome {
                Ok(()) => failures = 0,
                Err(error) => {
                    failures += 1;
                    if error.is_expired() {
                        revision.clear();
                    }
                    let resource = self.resource.gvr.group_resource();
                    tracing::debug!(resource, error = %chain(&error), "list and watch broke off");
                }
            }
            self.env.sleep(RETRY.delay(failures)).await;
        }
    }

    /// Lists unless a revision to go on from is known, then watches until the stream ends.
    async fn once(&self, revision: &mut String) -> Result<(), Error> {
        if revision.is_empty() {
            *revision = self.relist().await?;
            self.informer.lister.settle(SYNCED);
        }
        let options = ListOptions {
            resource_version: revision.clone(),
            allow_bookmarks: true,
            ..self.selection()
        };
        let mut events =
            self.client.watch(&self.resource, &self.options.namespace, &options).await?;
        while let Some(event) = events.next().await {
            let event = event?;
            let Some(cached) = self.read(event.object) else { continue };
            *revision = cached.revision.to_string();
            let (at, key) = (cached.revision, cached.key.clone());
            match event.kind {
                WatchEventKind::Bookmark | WatchEventKind::Error => {}
                WatchEventKind::Deleted => self.informer.apply(&key, None),
                WatchEventKind::Added | WatchEventKind::Modified => {
                    self.informer.apply(&key, Some(Arc::new(cached)));
                }
            }
            self.informer.lister.advance(at);
        }
        Ok(())
    }

    fn selection(&self) -> ListOptions {
        ListOptions {
            label_selector: self.options.label_selector.clone(),
            field_selector: self.options.field_selector.clone(),
            ..ListOptions::default()
        }
    }

    /// Lists everything and turns the difference to what is known into changes.
    async fn relist(&self) -> Result<String, Error> {
        let list =
            self.client.list(&self.resource, &self.options.namespace, &self.selection()).await?;
        let lister = &self.informer.lister;
        let mut gone: BTreeMap<Key, ()> =
            lister.read().by_key.keys().map(|key| (key.clone(), ())).collect();
        for bytes in &list.items {
            // Copied: a slice would keep the whole list's body alive.
            let Some(cached) = self.read(Bytes::copy_from_slice(bytes)) else { continue };
            gone.remove(&cached.key);
            let known = lister.get(&cached.key);
            if known.is_none_or(|k| k.revision != cached.revision || k.uid != cached.uid) {
                self.informer.apply(&cached.key.clone(), Some(Arc::new(cached)));
            }
        }
        for key in gone.keys() {
            self.informer.apply(key, None);
        }
        let revision = list.resource_version.parse().unwrap_or(0);
        lister.advance(revision);
        Ok(list.resource_version)
    }

    fn read(&self, bytes: Bytes) -> Option<Cached> {
        let received = self.env.now();
        Cached::parse(bytes)
            .map(|cached| Cached { received, ..cached })
            .inspect_err(|error| {
                self.informer.lister.0.decode_failures.fetch_add(1, Ordering::Relaxed);
                let resource = self.resource.gvr.group_resource();
                tracing::error!(resource, %error, "an object from the server cannot be read");
            })
            .ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cached(json: &'static str) -> Cached {
        Cached::parse(Bytes::from_static(json.as_bytes())).unwrap()
    }

    #[test]
    fn finds_by_namespace_and_controller() {
        let lister = Lister::from_objects([
            cached(
                r#"{"metadata":{"namespace":"a","name":"x","ownerReferences":[{"uid":"1","controller":true}]}}"#,
            ),
            cached(r#"{"metadata":{"namespace":"b","name":"y","ownerReferences":[{"uid":"1"}]}}"#),
            cached(r#"{"metadata":{"namespace":"ab","name":"z"}}"#),
        ]);
        let names = |list: Vec<Arc<Cached>>| -> Vec<String> {
            list.iter().map(|c| c.key.to_string()).collect()
        };
        assert_eq!(names(lister.in_namespace("a")), ["a/x"]);
        assert_eq!(names(lister.controlled_by("1")), ["a/x"]);
        lister.write().replace(&Key::new("a", "x"), None);
        assert!(lister.controlled_by("1").is_empty());
        assert_eq!(names(lister.all()), ["ab/z", "b/y"]);
    }
}
