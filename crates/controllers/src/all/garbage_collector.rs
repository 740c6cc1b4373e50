//! Deletes objects whose owners are gone, and carries out the three ways to delete an owner:
//! background (dependents follow), foreground (dependents first), orphan (dependents stay).
//!
//! ```text
//!   informers of every deletable resource ──▶ Graph (who owns whom, by uid)
//!        │ changes                                  │ what to look at
//!        └──────────────▶ queue of uids ──▶ Collector: look again at the server, then act
//! ```
//!
//! The graph only says what to look at. Before something is deleted, it and its absent owners are
//! read from the server, so an old view deletes nothing that should live.

mod collect;
mod graph;

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use client::{Change, Resource, WorkQueue, queue::CONTROLLER_BACKOFF};
use futures::{FutureExt, future::BoxFuture};
use smol_str::SmolStr;
use stdx::chain;

use self::{collect::Collector, graph::Graph};
use crate::{discovery::Discovery, discovery::discover, plan::*, resources::*, runner::TaskContext};

pub const CONTROLLER: Controller = Controller {
    name: "garbage-collector-controller",
    account: "generic-garbage-collector",
    primary: &CUSTOM_RESOURCE_DEFINITIONS,
    watches: &[],
    // Getting, patching and deleting is granted on everything.
    rbac: &[],
    workers: WORKERS,
    work: Work::Task(run),
};

const WORKERS: usize = 8;
/// After a definition changed, the server needs a moment to serve it.
const SETTLE: Duration = Duration::from_secs(1);
const DISCOVERY_RETRY: Duration = Duration::from_secs(5);

/// What to do about one object, by uid.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Item {
    /// See whether it should be deleted or stop waiting.
    Collect(SmolStr),
    /// Let its dependents go free, then it.
    Orphan(SmolStr),
}

/// What watching and collecting share.
pub struct Shared {
    pub graph: Mutex<Graph>,
    pub queue: Arc<WorkQueue<Item>>,
    pub discovery: Mutex<Arc<Discovery>>,
}

impl Shared {
    pub fn graph(&self) -> std::sync::MutexGuard<'_, Graph> {
        self.graph.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn discovery(&self) -> Arc<Discovery> {
        self.discovery.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn run(context: TaskContext) -> BoxFuture<'static, ()> {
    async move {
        let queue = WorkQueue::new(&context.env, CONTROLLER_BACKOFF);
        let shared = Arc::new(Shared { graph: Mutex::default(), queue, discovery: Mutex::default() });
        let cancel = context.cancel.clone();
        let watching = watch_everything(context.clone(), shared.clone());
        let collecting = async {
            let workers = (0..WORKERS).map(|_| {
                let collector = Collector { context: context.clone(), shared: shared.clone() };
                context.env.spawn("garbage-collector", async move { collector.work().await })
            });
            for worker in workers.collect::<Vec<_>>() {
                worker.await;
            }
        };
        cancel.run_until_cancelled(futures::future::join(watching, collecting)).await;
        shared.queue.close();
    }
    .boxed()
}

/// Starts an informer for every resource that can be collected, again whenever kinds are added.
async fn watch_everything(context: TaskContext, shared: Arc<Shared>) {
    let definitions_changed = Arc::new(tokio::sync::Notify::new());
    let notify = definitions_changed.clone();
    let definitions = context.informers.get(&CUSTOM_RESOURCE_DEFINITIONS);
    definitions.on_change(move |_| notify.notify_one());
    let mut watched: BTreeSet<Resource> = BTreeSet::new();
    loop {
        match discover(context.informers.client()).await {
            Ok(found) => {
                let complete = found.failed.is_empty();
                watch_new(&context, &shared, &mut watched, found).await;
                if complete {
                    definitions_changed.notified().await;
                    context.env.sleep(SETTLE).await;
                    continue;
                }
            }
            Err(error) => tracing::warn!(error = %chain(&error), "cannot discover what to collect"),
        }
        context.env.sleep(DISCOVERY_RETRY).await;
    }
}

async fn watch_new(
    context: &TaskContext,
    shared: &Arc<Shared>,
    watched: &mut BTreeSet<Resource>,
    found: Discovery,
) {
    let collectable = found.resources.iter().filter(|d| d.can(&["delete", "list", "watch"]));
    let collectable = collectable.filter(|d| d.resource.gvr.resource != "events");
    let new: Vec<Resource> =
        collectable.map(|d| d.resource.clone()).filter(|r| !watched.contains(r)).collect();
    *shared.discovery.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(found);
    let informers: Vec<_> = new.iter().map(|resource| context.informers.get(resource)).collect();
    for (resource, informer) in new.into_iter().zip(&informers) {
        let (of, shared) = (resource.clone(), shared.clone());
        informer.on_change(move |change| observe(&shared, &of, change));
        watched.insert(resource);
    }
    for informer in informers {
        // One that the server does not answer must not hold up the rest.
        context.env.timeout(Duration::from_secs(10), informer.synced()).await;
    }
    // What was seen before its owner is looked at now.
    let ownerless = shared.graph().start();
    ownerless.into_iter().for_each(|uid| shared.queue.add(Item::Collect(uid)));
}

fn observe(shared: &Shared, resource: &Resource, change: &Change) {
    let items = shared.graph().observe(resource, change);
    items.into_iter().for_each(|item| shared.queue.add(item));
}
