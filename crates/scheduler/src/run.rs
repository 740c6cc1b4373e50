//! The scheduler at work: changes in, bindings out.

use std::sync::Arc;

use client::{
    Change, Client, Error, EventRecorder, Informer, InformerOptions, Key, Patch, Resource,
    events::ObjectReference,
};
use machinery::{Object, value};
use stdx::{CancellationToken, Env, chain};
use tokio::sync::mpsc;

use crate::{
    cluster::Cluster,
    cycle::{self, Decision, Unschedulable},
    node::Node,
    pod::Pod,
    queue::{Event, Queue},
};

const PODS: Resource = Resource::namespaced("", "v1", "pods", "Pod");
const NODES: Resource = Resource::cluster("", "v1", "nodes", "Node");

/// Settings of one scheduler.
#[derive(Clone, Debug)]
pub struct Config {
    /// Pods with this `spec.schedulerName` are ours.
    pub name: String,
}

impl Default for Config {
    fn default() -> Self {
        Self { name: "default-scheduler".into() }
    }
}

/// Schedules until cancelled. `client` is the identity `system:kube-scheduler`.
pub async fn run(env: Env, client: Client, config: Config, cancel: CancellationToken) {
    let (sender, inbox) = mpsc::unbounded_channel();
    let informer = |resource: &Resource, wrap: fn(Change) -> Message| {
        let informer = Informer::start(
            &env,
            client.clone(),
            resource,
            InformerOptions::default(),
            cancel.clone(),
        );
        let sender = sender.clone();
        informer.on_change(move |change| drop(sender.send(wrap(change.clone()))));
        informer
    };
    let nodes = informer(&NODES, Message::Node);
    let pods = informer(&PODS, Message::Pod);
    let synced = async { nodes.synced().await && pods.synced().await };
    if cancel.run_until_cancelled(synced).await != Some(true) {
        return;
    }
    let events = EventRecorder::start(&env, client.clone(), &config.name, "");
    let scheduler = Scheduler {
        actor: Actor { env: env.clone(), client, events, results: sender },
        config,
        inbox,
        cluster: Cluster::default(),
        queue: Queue::default(),
        turn: 0,
    };
    cancel.run_until_cancelled(scheduler.work()).await;
}

enum Message {
    Node(Change),
    Pod(Change),
    /// A binding ended; with an error, the pod wants a node again.
    Bound {
        pod: Arc<Pod>,
        attempts: u32,
        failed: bool,
    },
}

struct Scheduler {
    actor: Actor,
    config: Config,
    inbox: mpsc::UnboundedReceiver<Message>,
    cluster: Cluster,
    queue: Queue,
    turn: u64,
}

impl Scheduler {
    async fn work(mut self) {
        loop {
            // Whatever has happened is taken in before the next decision.
            while let Ok(message) = self.inbox.try_recv() {
                self.take(message);
            }
            let now = self.actor.env.instant();
            if let Some((pod, attempts)) = self.queue.pop(now) {
                self.decide(pod, attempts);
                // Lets bindings and informers run on a single thread too.
                tokio::task::yield_now().await;
                continue;
            }
            let due = self.queue.next_due();
            let env = self.actor.env.clone();
            tokio::select! {
                biased;
                message = self.inbox.recv() => match message {
                    Some(message) => self.take(message),
                    None => return,
                },
                () = async { env.sleep_until(due.unwrap_or(now)).await }, if due.is_some() => {}
            }
        }
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Node(change) => self.take_node(&change),
            Message::Pod(change) => self.take_pod(&change),
            Message::Bound { pod, failed: false, .. } => self.queue.done(&pod.key),
            Message::Bound { pod, attempts, failed: true } => {
                self.cluster.forget(&pod.key);
                let now = self.actor.env.instant();
                self.queue.notice(&Event::PodGone(&pod), now);
                let mut again = (*pod).clone();
                again.node_name = Default::default();
                self.queue.give_back(Arc::new(again), attempts, Vec::new(), now);
            }
        }
    }

    fn take_node(&mut self, change: &Change) {
        let Some(new) = &change.new else {
            return self.cluster.remove_node(&change.key().name);
        };
        match Node::read(new) {
            Ok(node) => {
                let name = node.name.clone();
                self.cluster.set_node(node);
                if let Some(node) = self.cluster.node(&name) {
                    self.queue.notice(&Event::NodeChanged(node), self.actor.env.instant());
                }
            }
            Err(error) => tracing::error!(error = %chain(&error), "a node cannot be read"),
        }
    }

    fn take_pod(&mut self, change: &Change) {
        let read =
            |cached: &Option<Arc<client::Cached>>| match cached.as_ref().map(|c| Pod::read(c)) {
                Some(Err(error)) => {
                    tracing::error!(error = %chain(&error), "a pod cannot be read");
                    None
                }
                Some(Ok(pod)) => Some(pod),
                None => None,
            };
        let now = self.actor.env.instant();
        let was_on_node = read(&change.old).filter(Pod::is_assigned);
        let Some(pod) = read(&change.new) else {
            self.cluster.remove_pod(change.key());
            self.queue.remove(change.key());
            if let Some(gone) = was_on_node {
                self.queue.notice(&Event::PodGone(&gone), now);
            }
            return;
        };
        self.cluster.set_pod(pod.clone());
        if pod.is_assigned() {
            self.queue.remove(&pod.key);
            self.queue.notice(&Event::PodChanged(&pod), now);
        } else if pod.finished || pod.deleting {
            self.queue.remove(&pod.key);
            if let Some(gone) = was_on_node {
                self.queue.notice(&Event::PodGone(&gone), now);
            }
        } else if pod.scheduler_name == self.config.name && !self.cluster.is_assumed(&pod.key) {
            self.queue.add(Arc::new(pod));
        }
    }

    fn decide(&mut self, pod: Arc<Pod>, attempts: u32) {
        self.turn += 1;
        match cycle::schedule(&pod, &self.cluster, self.turn) {
            Decision::Bind { node } => {
                let mut bound = (*pod).clone();
                bound.node_name = node;
                self.cluster.assume(bound.clone());
                self.actor.bind(Arc::new(bound), attempts);
            }
            Decision::Unschedulable(why) => {
                self.actor.tell(&pod, &why);
                let plugins = if why.plugins.is_empty() { vec!["NodeName"] } else { why.plugins };
                // Without any node every new node is worth a try.
                let plugins = if self.cluster.node_count() == 0 {
                    crate::plugins::PLUGINS.iter().map(|p| p.name).collect()
                } else {
                    plugins
                };
                self.queue.give_back(pod, attempts, plugins, self.actor.env.instant());
            }
        }
    }
}

/// Carries decisions out.
struct Actor {
    env: Env,
    client: Client,
    events: EventRecorder,
    results: mpsc::UnboundedSender<Message>,
}

impl Actor {
    fn bind(&self, pod: Arc<Pod>, attempts: u32) {
        let (client, events, results) =
            (self.client.clone(), self.events.clone(), self.results.clone());
        self.env.spawn("bind", async move {
            let outcome = bind(&client, &pod).await;
            let about = reference(&pod);
            let failed = match &outcome {
                Ok(()) => {
                    let text = format!("Successfully assigned {} to {}", pod.key, pod.node_name);
                    events.normal(about, "Scheduled", text);
                    false
                }
                Err(error) => {
                    let text = format!("Binding rejected: {}", chain(error));
                    tracing::warn!(pod = %pod.key, error = %chain(error), "binding failed");
                    events.warning(about, "FailedScheduling", text);
                    true
                }
            };
            let _ = results.send(Message::Bound { pod, attempts, failed });
        });
    }

    /// Tells the user why the pod waits: an event and, when it changed, the pod's condition.
    fn tell(&self, pod: &Arc<Pod>, why: &Unschedulable) {
        self.events.warning(reference(pod), "FailedScheduling", why.message.clone());
        if pod.unschedulable_message.as_ref() == Some(&why.message) {
            return;
        }
        let (env, client, pod, message) =
            (self.env.clone(), self.client.clone(), pod.clone(), why.message.clone());
        self.env.spawn("pod condition", async move {
            let patch = value!({
                "metadata": { "uid": pod.uid.as_str() },
                "status": { "conditions": [{
                    "type": "PodScheduled",
                    "status": "False",
                    "reason": "Unschedulable",
                    "message": message,
                    "lastProbeTime": null,
                    "lastTransitionTime": env.now().rfc3339(),
                }]},
            });
            let (namespace, name) = (&pod.key.namespace, &pod.key.name);
            let patch = Patch::Strategic(patch);
            if let Err(error) = client.patch(&PODS, namespace, name, "status", &patch).await {
                tracing::debug!(pod = %pod.key, error = %chain(&error), "condition not written");
            }
        });
    }
}

/// Posts the binding, which insists on this very pod.
async fn bind(client: &Client, pod: &Pod) -> Result<(), Error> {
    let Key { namespace, name } = &pod.key;
    let mut binding = Object::new("v1", "Binding", namespace, name);
    binding.set_uid(&pod.uid);
    binding.root_mut().insert(
        "target",
        value!({ "kind": "Node", "apiVersion": "v1", "name": pod.node_name.as_str() }),
    );
    client.create_sub(&PODS, namespace, name, "binding", &binding).await.map(drop)
}

fn reference(pod: &Pod) -> ObjectReference {
    ObjectReference {
        api_version: "v1".into(),
        kind: "Pod".into(),
        namespace: pod.key.namespace.to_string(),
        name: pod.key.name.to_string(),
        uid: pod.uid.to_string(),
        resource_version: pod.revision.to_string(),
        field_path: String::new(),
    }
}
