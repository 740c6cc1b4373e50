//! From informers to the kernel: what changed is collected, planned and sent as one transaction.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use client::{Cached, Change, Informer, Key, Lister};
use k8s_openapi::api::{core::v1 as core, discovery::v1 as discovery};
use linux::nft::{Changes, Nft, Table};
use stdx::{CancellationToken, Env, backoff::Backoff, chain};
use tokio::sync::Notify;

use crate::{
    Error, ProxyConfig,
    apply::{Kernel, Stale, stale_flows},
    health::{HealthChecks, serve_healthz},
    model::{SERVICE_NAME_LABEL, Service, ServiceKey, Slice, Slices},
    plan::{ServicePlan, local_endpoints, plan},
    planner::Planner,
};

const RETRY: Backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(10));

/// Runs the proxy until cancelled, on informers that the caller keeps running.
pub async fn run_with(
    env: Env,
    services: &Informer,
    slices: &Informer,
    config: ProxyConfig,
    cancel: CancellationToken,
) -> Result<(), Error> {
    let pending = Arc::new(Pending::default());
    if !services.synced().await || !slices.synced().await {
        return if cancel.is_cancelled() { Ok(()) } else { Err(Error::Cancelled) };
    }
    watch(services, slices, &pending);
    let healthy = Arc::new(AtomicBool::new(false));
    if let Some(address) = config.healthz {
        let serving = serve_healthz(env.clone(), address, healthy.clone());
        let until = cancel.clone();
        env.spawn("proxy healthz", async move {
            if let Some(Err(error)) = until.run_until_cancelled(serving).await {
                tracing::warn!(error = %chain(&error), "the proxy's health is not served");
            }
        });
    }
    let lost = Arc::new(AtomicBool::new(false));
    let watching = watch_tables(env.clone(), config.clone(), pending.clone(), lost.clone());
    let until = cancel.clone();
    env.spawn("proxy tables", async move {
        if let Some(Err(error)) = until.run_until_cancelled(watching).await {
            tracing::warn!(error = %chain(&error), "tables lost to others come back late");
        }
    });
    let proxy = Proxy {
        lost,
        checks: HealthChecks::new(&env, healthy.clone()),
        planners: Arc::new(Mutex::new(Planners::new(&config)?)),
        env,
        config: Arc::new(config),
        services: services.lister().clone(),
        slices: slices.lister().clone(),
        pending,
        healthy,
    };
    cancel.run_until_cancelled(proxy.run()).await;
    Ok(())
}

struct Proxy {
    env: Env,
    config: Arc<ProxyConfig>,
    services: Lister,
    slices: Lister,
    pending: Arc<Pending>,
    planners: Arc<Mutex<Planners>>,
    checks: HealthChecks,
    healthy: Arc<AtomicBool>,
    /// Someone else removed our tables.
    lost: Arc<AtomicBool>,
}

/// Services to look at again, and the slices that each has.
#[derive(Default)]
struct Pending {
    state: Mutex<PendingState>,
    changed: Notify,
}

#[derive(Default)]
struct PendingState {
    services: BTreeSet<ServiceKey>,
    slices: BTreeMap<ServiceKey, BTreeSet<String>>,
}

struct Planners {
    kernel: Kernel,
    families: Vec<Planner>,
    /// The kernel's tables may differ from what the planners believe: write them whole.
    rewrite: bool,
}

impl Proxy {
    async fn run(mut self) {
        let mut failures = 0;
        loop {
            let changed = self.pending.take();
            if self.lost.swap(false, Ordering::Relaxed) {
                tracing::warn!("the tables were removed by another program; writing them again");
                self.planners.lock().unwrap_or_else(PoisonError::into_inner).rewrite = true;
                self.healthy.store(false, Ordering::Relaxed);
            }
            if changed.is_empty() && failures == 0 && self.healthy.load(Ordering::Relaxed) {
                self.pending.changed.notified().await;
                continue;
            }
            match self.sync(changed).await {
                Ok(()) => failures = 0,
                Err(error) => {
                    failures += 1;
                    tracing::error!(error = %chain(&error), failures, "the ruleset was not applied");
                    self.env.sleep(RETRY.delay(failures)).await;
                }
            }
            self.healthy.store(failures == 0, Ordering::Relaxed);
        }
    }

    async fn sync(&mut self, changed: Vec<(ServiceKey, BTreeSet<String>)>) -> Result<(), Error> {
        let mut inputs = Vec::with_capacity(changed.len());
        for (key, slice_names) in changed {
            let service = self.service(&key);
            let slices = self.slices_of(&key, &slice_names);
            if self.config.health_checks {
                self.set_health_check(&key, service.as_ref(), &slices).await;
            }
            inputs.push((key, service, slices));
        }
        let (planners, config) = (self.planners.clone(), self.config.clone());
        let work = move || {
            let mut planners = planners.lock().unwrap_or_else(PoisonError::into_inner);
            planners.sync(&config, inputs)
        };
        self.env.blocking(work).await.unwrap_or(Err(Error::Cancelled))
    }

    fn service(&self, key: &ServiceKey) -> Option<Service> {
        let cached = self.services.get(&Key::new(&key.namespace, &key.name))?;
        let service: core::Service = decoded(&cached)?;
        Service::of(&service)
    }

    fn slices_of(&self, key: &ServiceKey, names: &BTreeSet<String>) -> Slices {
        let slice = |name: &String| {
            let cached = self.slices.get(&Key::new(&key.namespace, name))?;
            let slice: discovery::EndpointSlice = decoded(&cached)?;
            Some((name.clone(), Slice::of(&slice)))
        };
        names.iter().filter_map(slice).collect()
    }

    async fn set_health_check(
        &mut self,
        key: &ServiceKey,
        service: Option<&Service>,
        slices: &Slices,
    ) {
        let port = service.and_then(|service| service.health_check_node_port);
        let count = service.map_or(0, |s| local_endpoints(s, slices, &self.config.node));
        self.checks.set(key, port, count).await;
    }
}

impl Planners {
    fn new(config: &ProxyConfig) -> Result<Self, Error> {
        let families = config.families.iter().map(|family| Planner::new(*family, &config.rules));
        Ok(Self { kernel: Kernel::open()?, families: families.collect(), rewrite: true })
    }

    fn sync(
        &mut self,
        config: &ProxyConfig,
        inputs: Vec<(ServiceKey, Option<Service>, Slices)>,
    ) -> Result<(), Error> {
        for planner in &mut self.families {
            let table = config.table_of(planner.family());
            let mut stale = Vec::new();
            for (key, service, slices) in &inputs {
                stale.extend(set_service(planner, key, service.as_ref(), slices, config));
            }
            let commands = planner.commands();
            let sent = if self.rewrite {
                self.kernel.replace(&table, &planner.ruleset())
            } else {
                self.kernel.commit(&table, &commands)
            };
            if let Err(error) = sent {
                self.rewrite = true;
                return Err(error.into());
            }
            if let Err(error) = self.kernel.forget(planner.family(), &stale) {
                tracing::warn!(error = %chain(&error), "stale UDP flows stay until they time out");
            }
        }
        self.rewrite = false;
        Ok(())
    }
}

fn set_service(
    planner: &mut Planner,
    key: &ServiceKey,
    service: Option<&Service>,
    slices: &Slices,
    config: &ProxyConfig,
) -> Vec<Stale> {
    let family = planner.family();
    let new = service.map_or_else(ServicePlan::default, |s| plan(s, slices, &config.node, family));
    let nothing = ServicePlan::default();
    let stale = stale_flows(planner.plan_of(key).unwrap_or(&nothing), &new);
    planner.set(key, new);
    stale
}

fn decoded<T: serde::de::DeserializeOwned>(cached: &Cached) -> Option<T> {
    cached
        .typed()
        .inspect_err(|error| tracing::warn!(error = %chain(error), "an object was not understood"))
        .ok()
}

fn watch(services: &Informer, slices: &Informer, pending: &Arc<Pending>) {
    let of_services = pending.clone();
    services.on_change(move |change| of_services.add_service(change));
    let of_slices = pending.clone();
    slices.on_change(move |change| of_slices.add_slice(change));
}

impl Pending {
    fn add_service(&self, change: &Change) {
        let Key { namespace, name } = change.key();
        let key = ServiceKey { namespace: namespace.to_string(), name: name.to_string() };
        self.with(|state| {
            state.services.insert(key);
        });
    }

    fn add_slice(&self, change: &Change) {
        self.with(|state| {
            if let Some(old) = change.old.as_ref().and_then(|old| owner(old)) {
                if let Some(names) = state.slices.get_mut(&old) {
                    names.remove(change.key().name.as_str());
                    if names.is_empty() {
                        state.slices.remove(&old);
                    }
                }
                state.services.insert(old);
            }
            if let Some(new) = change.new.as_ref().and_then(|new| owner(new)) {
                let names = state.slices.entry(new.clone()).or_default();
                names.insert(change.key().name.to_string());
                state.services.insert(new);
            }
        });
    }

    fn with(&self, change: impl FnOnce(&mut PendingState)) {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.notify_one();
    }

    fn take(&self) -> Vec<(ServiceKey, BTreeSet<String>)> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let services = std::mem::take(&mut state.services);
        let with_slices = |key: ServiceKey| {
            let names = state.slices.get(&key).cloned().unwrap_or_default();
            (key, names)
        };
        services.into_iter().map(with_slices).collect()
    }
}

/// Looks after our tables whenever anyone changes any: a firewall that is loaded anew often
/// begins with removing every table there is.
async fn watch_tables(
    env: Env,
    config: ProxyConfig,
    pending: Arc<Pending>,
    lost: Arc<AtomicBool>,
) -> Result<(), Error> {
    const SETTLE: Duration = Duration::from_millis(200);
    let tables: Vec<Table> = config.families.iter().map(|f| config.table_of(*f)).collect();
    let mut changes = Changes::open()?;
    let mut known = false;
    loop {
        changes.next().await?;
        let present = env
            .blocking(|| Nft::open()?.tables())
            .await
            .unwrap_or(Err(linux::netlink::Error::Malformed))?;
        let all = tables.iter().all(|table| present.contains(table));
        if known && !all {
            lost.store(true, Ordering::Relaxed);
            pending.changed.notify_one();
        }
        known = all;
        env.sleep(SETTLE).await;
    }
}

/// The Service that a slice belongs to.
fn owner(slice: &Cached) -> Option<ServiceKey> {
    let name = slice.labels.get(SERVICE_NAME_LABEL)?.as_str()?.to_owned();
    Some(ServiceKey { namespace: slice.key.namespace.to_string(), name })
}
