//! The generic registry: every kind that the server serves, over the store.
//!
//! Flow: [`Registry::open`] makes one [`Resource`] per served resource of the schema. A request
//! finds its resource by name and version ▸ `generic` runs the pipeline of its verb (prepare,
//! admit, validate, write by compare-and-put) with the kind's [`Strategy`] for what is
//! particular to it ▸ the store commits ▸ the kind's watch cache, fed by list and watch of the
//! store alone, hands the event to watchers and keeps bytes for the next list.
//!
//! Invariants: this crate alone knows the store. Nothing is decided from memory that another
//! server on the same store could decide otherwise: every write compares the revision that it
//! was computed from. A cached form is never the source of a write. Objects are held as bytes;
//! a tree lives for one request.

mod allocation;
mod cache;
mod codec;
mod compare;
mod edit;
pub mod errors;
pub mod facts;
mod generic;
mod info;
pub mod kinds;
mod leases;
pub mod metrics;
mod names;
pub mod request;
mod resource;
pub mod selector;
mod storage;
pub mod strategy;
pub mod table;

use std::{
    collections::BTreeMap,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use api::GroupVersionResource;
use stdx::Env;
use store::Store;

pub use cache::{
    Entry,
    list::{ListResult, continue_of},
    watch::{WatchEvent, WatchKind, WatchStream, error_event},
};
pub use info::ResourceInfo;
pub use request::{
    Admission, AdmitAll, Attributes, CreateOptions, DeleteOptions, Deleted, GetOptions,
    ListOptions, Operation, Propagation, RequestContext, UpdateFn, UpdateOptions, UserInfo,
};
pub use resource::{Item, Resource};
pub use strategy::Strategy;

/// Tunables of the registry.
#[derive(Clone, Debug)]
pub struct Options {
    /// Events kept per kind for watches that resume.
    pub log_events: usize,
    /// Bytes that those events may hold per kind.
    pub log_bytes: usize,
    /// Bytes of encoded forms kept over all kinds.
    pub encoded_bytes: usize,
    /// How often the store forgets old revisions; zero: never by this server.
    pub compaction_interval: Duration,
    /// How often an idle watch gets a bookmark.
    pub bookmark_interval: Duration,
    /// Addresses of Services; the first block decides the primary family.
    pub service_cidrs: Vec<String>,
    /// Node ports from the first to the last, both included.
    pub node_ports: (u16, u16),
    /// Seconds that an Event lives.
    pub event_ttl_seconds: i64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            log_events: 8192,
            log_bytes: 24 << 20,
            encoded_bytes: 48 << 20,
            compaction_interval: Duration::from_secs(300),
            bookmark_interval: Duration::from_secs(60),
            service_cidrs: vec!["10.96.0.0/12".into()],
            node_ports: (30_000, 32_767),
            event_ttl_seconds: 3600,
        }
    }
}

/// What all resources share.
pub(crate) struct Shared {
    pub env: Env,
    pub store: Arc<dyn Store>,
    pub options: Options,
    pub budget: Arc<cache::Budget>,
    pub metrics: metrics::Metrics,
    pub leases: leases::Leases,
    /// For strategies that read other kinds; set right after opening.
    pub registry: std::sync::OnceLock<storage::RegistryRef>,
}

type Resources = BTreeMap<GroupVersionResource, Arc<Resource>>;

/// All served resources over one store.
pub struct Registry {
    shared: Arc<Shared>,
    resources: RwLock<Arc<Resources>>,
    compaction: std::sync::OnceLock<stdx::env::AbortOnDrop<()>>,
}

impl Registry {
    /// Opens every resource that the schema serves by default. Reads nothing yet: caches start
    /// with their first reader.
    pub fn open(env: Env, store: Arc<dyn Store>, options: Options) -> Arc<Self> {
        let shared = Arc::new(Shared {
            env,
            store,
            budget: cache::Budget::new(options.encoded_bytes),
            options,
            metrics: metrics::Metrics::default(),
            leases: leases::Leases::default(),
            registry: std::sync::OnceLock::new(),
        });
        let resources = RwLock::new(Arc::new(resource::open_builtin(&shared)));
        let registry = Arc::new(Self { shared, resources, compaction: std::sync::OnceLock::new() });
        let _ = registry.shared.registry.set(Arc::downgrade(&registry));
        registry
    }

    /// The handle of a resource; `None` when it is not served (here).
    pub fn resource(&self, gvr: &GroupVersionResource) -> Option<Arc<Resource>> {
        self.resources().get(gvr).cloned()
    }

    /// The first served resource with this kind.
    pub fn resource_of_kind(&self, gvk: &api::GroupVersionKind) -> Option<Arc<Resource>> {
        self.resources().values().find(|r| r.info().gvk == *gvk).cloned()
    }

    /// A snapshot of all handles, sorted by group, version and name.
    pub fn resources(&self) -> Arc<Resources> {
        self.resources.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Serves a resource that is not part of the schema (a custom resource), in all its
    /// versions, instead of what was served under these names before.
    pub fn install(&self, versions: Vec<ResourceInfo>, strategy: Arc<dyn Strategy>) {
        let opened = resource::open(&self.shared, versions, strategy);
        self.change(|map| map.extend(opened));
    }

    /// Stops serving these; running watches end.
    pub fn remove(&self, gvrs: &[GroupVersionResource]) {
        self.change(|map| map.retain(|gvr, _| !gvrs.contains(gvr)));
    }

    fn change(&self, edit: impl FnOnce(&mut Resources)) {
        let mut resources = self.resources.write().unwrap_or_else(PoisonError::into_inner);
        let mut next = (**resources).clone();
        edit(&mut next);
        *resources = Arc::new(next);
    }

    pub fn env(&self) -> &Env {
        &self.shared.env
    }

    pub fn options(&self) -> &Options {
        &self.shared.options
    }

    pub fn metrics(&self) -> &metrics::Metrics {
        &self.shared.metrics
    }

    /// The store below, for health checks and figures.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.shared.store
    }

    /// Bytes of encoded forms held right now.
    pub fn encoded_bytes(&self) -> usize {
        self.shared.budget.used_bytes()
    }

    /// Starts the timer that lets the store forget what is older than one interval. Servers on
    /// one store may all run it: compacting what is compacted is no failure.
    pub fn start_compaction(&self) {
        let interval = self.shared.options.compaction_interval;
        if !interval.is_zero() {
            let (env, store) = (self.shared.env.clone(), self.shared.store.clone());
            self.compaction.get_or_init(|| {
                env.clone().spawn("compaction", compact(env, store, interval)).abort_on_drop()
            });
        }
    }
}

async fn compact(env: Env, store: Arc<dyn Store>, interval: Duration) {
    let mut last = None;
    loop {
        let now = store.current_revision().await.ok();
        if let Some(revision) =
            last.filter(|&revision| revision > 0 && now.is_some_and(|now| revision <= now))
        {
            match store.compact(revision).await {
                Ok(()) | Err(store::Error::Compacted { .. }) => {}
                Err(error) => {
                    tracing::warn!(error = %stdx::chain(&error), revision, "compaction failed")
                }
            }
        }
        last = now;
        env.sleep(interval).await;
    }
}

#[cfg(test)]
mod tests;
