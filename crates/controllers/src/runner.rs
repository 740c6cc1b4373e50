//! Running the table: informers, queues, workers.

use std::{
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use client::{
    Client, EventRecorder, Informer, InformerOptions, Key, Resource, WorkQueue,
    queue::CONTROLLER_BACKOFF,
};
use stdx::{CancellationToken, Env, chain, env::panic_text};
use tracing::Instrument;

use crate::{
    ALL, Config, Controller, Error, Plan, World,
    apply::{Applier, Expectation},
    metrics::QueueMetrics,
    plan::{Intent, Work},
};

/// The user that informers read as.
pub const READER: &str = "system:kube-controller-manager";
/// The field manager of every write, as upstream's.
const FIELD_MANAGER: &str = "kube-controller-manager";
/// After this long an unmet expectation is given up and the key decided on what is there.
const EXPECTATION_TIMEOUT: Duration = Duration::from_secs(300);

/// Runs every enabled controller until `cancel`. `clients` makes a client for a user:
/// [`READER`], or `system:serviceaccount:kube-system:ACCOUNT` for each controller's writes.
/// The caller has made sure that it leads.
pub async fn run<C>(env: &Env, clients: C, config: Config, cancel: CancellationToken)
where
    C: Fn(&str) -> Client + Send + Sync,
{
    run_table(env, &clients, config, cancel, ALL).await;
}

pub(crate) async fn run_table(
    env: &Env,
    clients: &(dyn Fn(&str) -> Client + Send + Sync),
    config: Config,
    cancel: CancellationToken,
    table: &[&'static Controller],
) {
    let config = Arc::new(config);
    let reader = clients(READER).with_field_manager(FIELD_MANAGER);
    let informers = Arc::new(Informers::new(env, reader, &cancel));
    let tasks: Vec<_> = table
        .iter()
        .filter(|controller| config.is_enabled(controller.name))
        .map(|controller| {
            let user = format!("system:serviceaccount:kube-system:{}", controller.account);
            let client = clients(&user).with_field_manager(FIELD_MANAGER);
            let context = TaskContext {
                env: env.clone(),
                recorder: EventRecorder::start(env, client.clone(), controller.account, ""),
                client,
                informers: informers.clone(),
                config: config.clone(),
                cancel: cancel.clone(),
            };
            env.spawn(controller.name, start(controller, context))
        })
        .collect();
    for task in tasks {
        task.await;
    }
}

async fn start(controller: &'static Controller, context: TaskContext) {
    match controller.work {
        Work::Task(task) => task(context).await,
        Work::Reconcile(_) | Work::Act(_) => Runner::start(controller, context).await,
    }
}

/// What a controller works with.
#[derive(Clone)]
pub struct TaskContext {
    pub env: Env,
    /// Under the controller's own identity.
    pub client: Client,
    pub recorder: EventRecorder,
    pub informers: Arc<Informers>,
    pub config: Arc<Config>,
    pub cancel: CancellationToken,
}

/// One informer per resource, shared by every controller of the process.
pub struct Informers {
    env: Env,
    client: Client,
    cancel: CancellationToken,
    started: Mutex<BTreeMap<Resource, Informer>>,
}

impl Informers {
    pub fn new(env: &Env, client: Client, cancel: &CancellationToken) -> Self {
        let started = Mutex::default();
        Self { env: env.clone(), client, cancel: cancel.clone(), started }
    }

    /// The resource's informer, started when first asked for.
    pub fn get(&self, resource: &Resource) -> Informer {
        let mut started = self.started.lock().unwrap_or_else(PoisonError::into_inner);
        let start = || {
            let options = InformerOptions::default();
            Informer::start(
                &self.env,
                self.client.clone(),
                resource,
                options,
                self.cancel.child_token(),
            )
        };
        started.entry(resource.clone()).or_insert_with(start).clone()
    }

    pub fn client(&self) -> &Client {
        &self.client
    }
}

/// What stopped a key's last plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub verb: &'static str,
    pub resource: &'static Resource,
    /// The object it was about.
    pub key: Key,
    pub already_exists: bool,
    pub message: String,
}

impl Failure {
    pub(crate) fn new(intent: &Intent, error: &client::Error) -> Self {
        Self {
            verb: intent.verb(),
            resource: intent.resource(),
            key: intent.key(),
            already_exists: error.is_already_exists(),
            message: chain(error).to_string(),
        }
    }
}

/// The last failure of each key that has not succeeded since.
#[derive(Clone, Default)]
pub struct Failures(Arc<Mutex<BTreeMap<Key, Failure>>>);

impl Failures {
    pub fn get(&self, key: &Key) -> Option<Failure> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(key).cloned()
    }

    pub fn set(&self, key: &Key, failure: Option<Failure>) {
        let mut failures = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match failure {
            Some(failure) => failures.insert(key.clone(), failure),
            None => failures.remove(key),
        };
    }
}

type Reconcile = fn(&Key, &World, stdx::Timestamp) -> Plan;

struct Runner {
    controller: &'static Controller,
    context: TaskContext,
    world: World,
    applier: Applier,
    queue: Arc<WorkQueue<Key>>,
    metrics: Arc<QueueMetrics>,
}

impl Runner {
    /// Watches, and works on keys with as many workers as the controller wants, until cancelled.
    async fn start(controller: &'static Controller, context: TaskContext) {
        let mut resources = vec![controller.primary];
        resources.extend(controller.watches.iter().map(|watch| watch.resource));
        let informers: BTreeMap<Resource, Informer> =
            resources.iter().map(|r| ((*r).clone(), context.informers.get(r))).collect();
        let listers = informers.iter().map(|(r, i)| (r.clone(), i.lister().clone()));
        let world = World::new(listers, context.config.clone());
        let queue = WorkQueue::new(&context.env, CONTROLLER_BACKOFF);
        let metrics = context.config.metrics.queue(controller.name);
        let feed = Feed { queue: queue.clone(), metrics: metrics.clone() };
        connect(controller, &informers, &world, &feed);
        if let Some(streams) = &context.config.node_streams
            && controller.primary == &crate::resources::NODES
        {
            streams.on_change(move |key| feed.add(key.clone()));
        }
        for informer in informers.values() {
            if context.cancel.run_until_cancelled(informer.synced()).await != Some(true) {
                return;
            }
        }
        let applier = Applier {
            env: context.env.clone(),
            client: context.client.clone(),
            recorder: context.recorder.clone(),
        };
        let env = context.env.clone();
        let runner = Arc::new(Self { controller, context, world, applier, queue, metrics });
        let workers: Vec<_> = (0..controller.workers.max(1))
            .map(|_| {
                let runner = runner.clone();
                env.spawn(controller.name, async move { runner.work().await })
            })
            .collect();
        for worker in workers {
            worker.await;
        }
    }

    async fn work(&self) {
        let cancel = &self.context.cancel;
        while let Some(Some(key)) = cancel.run_until_cancelled(self.queue.next()).await {
            let span = tracing::debug_span!("reconcile", controller = self.controller.name, %key);
            let started = self.context.env.instant();
            let outcome = cancel.run_until_cancelled(self.once(&key).instrument(span)).await;
            let Some(outcome) = outcome else { return };
            self.measure(started);
            match outcome {
                Ok(requeue_after) => {
                    self.queue.forget(&key);
                    if let Some(delay) = requeue_after {
                        self.queue.add_after(key.clone(), delay);
                    }
                }
                Err(error) => {
                    let controller = self.controller.name;
                    tracing::debug!(controller, %key, error = %chain(&error), "will be tried again");
                    QueueMetrics::count(&self.metrics.retries);
                    self.queue.add_failed(key.clone());
                }
            }
            self.queue.done(&key);
        }
    }

    fn measure(&self, started: stdx::Instant) {
        use std::sync::atomic::Ordering::Relaxed;
        let nanos = (self.context.env.instant() - started).as_nanos() as u64;
        self.metrics.work_nanos.fetch_add(nanos, Relaxed);
        self.metrics.depth.store(self.queue.len() as u64, Relaxed);
        QueueMetrics::count(&self.metrics.reconciles);
    }

    /// Decides and acts once; returns when to look again.
    async fn once(&self, key: &Key) -> Result<Option<Duration>, Error> {
        let reconcile = match self.controller.work {
            Work::Reconcile(reconcile) => reconcile,
            Work::Act(act) => {
                return act(self.context.clone(), self.world.clone(), key.clone()).await;
            }
            Work::Task(_) => return Ok(None),
        };
        let plan = self.decide(reconcile, key)?;
        debug_assert!(
            self.permitted(&plan),
            "{}: rbac lacks a verb of {plan:?}",
            self.controller.name
        );
        let (expectations, outcome) = self.applier.apply(&plan).await;
        self.observe(&expectations).await;
        match outcome {
            Ok(()) => {
                self.world.failures().set(key, None);
                Ok(plan.requeue_after)
            }
            // Nothing can be made in a namespace that is going; its end is an event of its own.
            Err(stopped) if is_namespace_ending(&stopped.error) => Ok(None),
            Err(stopped) => {
                let lost_race = stopped.error.is_conflict() || stopped.error.is_not_found();
                if !lost_race {
                    self.world.failures().set(key, Some(stopped.failure));
                }
                Err(Error::Client(stopped.error))
            }
        }
    }

    fn decide(&self, reconcile: Reconcile, key: &Key) -> Result<Plan, Error> {
        let now = self.context.env.now();
        catch_unwind(AssertUnwindSafe(|| reconcile(key, &self.world, now))).map_err(|panic| {
            let text = panic_text(&*panic).to_owned();
            self.context.env.count_panic();
            QueueMetrics::count(&self.metrics.panics);
            tracing::error!(controller = self.controller.name, %key, panic = text, "reconcile panicked");
            Error::Panic(text)
        })
    }

    fn permitted(&self, plan: &Plan) -> bool {
        plan.steps.iter().all(|step| {
            let subresource = step.intent.subresource();
            self.controller.rbac.iter().any(|rule| {
                rule.resource == step.intent.resource()
                    && rule.subresource == subresource
                    && rule.verbs.contains(&step.intent.verb())
            })
        })
    }

    /// Holds the key until the view includes what was just written.
    async fn observe(&self, expectations: &[Expectation]) {
        let all = async {
            for expectation in expectations {
                expectation.met(&self.world).await;
            }
        };
        if self.context.env.timeout(EXPECTATION_TIMEOUT, all).await.is_none() {
            let controller = self.controller.name;
            tracing::error!(controller, ?expectations, "the watch never showed what was written");
        }
    }
}

#[derive(Clone)]
struct Feed {
    queue: Arc<WorkQueue<Key>>,
    metrics: Arc<QueueMetrics>,
}

impl Feed {
    fn add(&self, key: Key) {
        QueueMetrics::count(&self.metrics.adds);
        self.queue.add(key);
    }
}

/// Turns changes into keys.
fn connect(
    controller: &'static Controller,
    informers: &BTreeMap<Resource, Informer>,
    world: &World,
    feed: &Feed,
) {
    let primary = feed.clone();
    informers[controller.primary].on_change(move |change| primary.add(change.key().clone()));
    for watch in controller.watches {
        let (feed, world) = (feed.clone(), world.clone());
        informers[watch.resource].on_change(move |change| {
            for key in watch.keys_of(controller.primary, change, &world) {
                feed.add(key);
            }
        });
    }
}

fn is_namespace_ending(error: &client::Error) -> bool {
    let Some(status) = error.status().filter(|status| status.is_forbidden()) else { return false };
    let causes = status.details.iter().flat_map(|details| &details.causes);
    causes.into_iter().any(|cause| cause.reason == "NamespaceTerminating")
}
