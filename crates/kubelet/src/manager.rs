//! From the API's pods of this node to one worker each, and from the runtime's events to them.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use client::{Cached, Change, Informer, InformerOptions};
use cri::v1;
use k8s_openapi::api::core::v1::Node;
use stdx::{CancellationToken, backoff::Backoff, chain};
use tokio::sync::mpsc;

use crate::{
    admission,
    context::{Context, PODS},
    pod::{Pod, PodExt, take_in},
    pod_worker::{End, Message, PodWorker, Sender},
    runtime_state::{self, keys},
    volumes,
};

/// The pods of this node. Cheap to clone.
#[derive(Clone)]
pub struct Manager {
    context: Arc<Context>,
    pods: Arc<Mutex<BTreeMap<String, Entry>>>,
    informer: Informer,
}

struct Entry {
    pod: Arc<Pod>,
    sender: Sender,
    rejected: bool,
}

/// A change of the API's pods, or the end of a worker.
enum Event {
    Changed(Arc<Cached>),
    Gone(String),
    Ended(String, End),
}

impl Manager {
    pub fn start(context: Arc<Context>, cancel: &CancellationToken) -> Self {
        let options = InformerOptions {
            field_selector: format!("spec.nodeName={}", context.config.node_name),
            ..InformerOptions::default()
        };
        let informer =
            Informer::start(&context.env, context.client.clone(), &PODS, options, cancel.clone());
        Self { context, pods: Arc::default(), informer }
    }

    /// Runs until cancelled. Containers go on running after that.
    pub async fn run(&self, cancel: CancellationToken) {
        let (sender, mut events) = mpsc::unbounded_channel();
        if cancel.run_until_cancelled(self.informer.synced()).await != Some(true) {
            return;
        }
        // Secrets and services must be known before containers learn of them.
        let _ =
            self.context.env.timeout(Duration::from_secs(5), self.context.services.synced()).await;
        let watcher = self.clone();
        let runtime_events = self.context.env.spawn("runtime events", async move {
            watcher.watch_runtime().await;
        });
        let _runtime_events = runtime_events.abort_on_drop();
        self.adopt(&sender).await;
        let forward = sender.clone();
        self.informer.on_change(move |change: &Change| {
            let event = match (&change.new, &change.old) {
                (Some(new), _) => Event::Changed(new.clone()),
                (None, Some(old)) => Event::Gone(old.uid.to_string()),
                (None, None) => return,
            };
            let _ = forward.send(event);
        });
        while let Some(Some(event)) = cancel.run_until_cancelled(events.recv()).await {
            self.handle(event, &sender);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Entry>> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All pods that this node has, as the workers were last told.
    pub fn pods(&self) -> Vec<Arc<Pod>> {
        self.lock().values().map(|entry| entry.pod.clone()).collect()
    }

    /// A pod by namespace and name.
    pub fn find(&self, namespace: &str, name: &str) -> Option<Arc<Pod>> {
        let pods = self.lock();
        let found = pods.values().find(|e| e.pod.namespace() == namespace && e.pod.name() == name);
        found.map(|entry| entry.pod.clone())
    }

    fn handle(&self, event: Event, events: &mpsc::UnboundedSender<Event>) {
        match event {
            Event::Changed(cached) => match cached.typed::<Pod>() {
                Ok(pod) => self.dispatch(Arc::new(take_in(pod)), events),
                Err(error) => {
                    tracing::error!(pod = %cached.key, error = %chain(&error), "a pod cannot be read");
                }
            },
            Event::Gone(uid) => {
                if let Some(entry) = self.lock().get(&uid) {
                    let _ = entry.sender.send(Message::Gone);
                }
            }
            Event::Ended(uid, end) => {
                self.lock().remove(&uid);
                let all = self.informer.lister().all();
                let known = all.into_iter().find(|cached| cached.uid == uid);
                if let (End::Broken, Some(cached)) = (end, known) {
                    self.handle(Event::Changed(cached), events);
                }
            }
        }
    }

    fn dispatch(&self, pod: Arc<Pod>, events: &mpsc::UnboundedSender<Event>) {
        let mut pods = self.lock();
        if let Some(entry) = pods.get_mut(pod.uid()) {
            entry.pod = pod.clone();
            let _ = entry.sender.send(Message::Pod(pod));
            return;
        }
        let verdict = self.admit(&pod, &pods);
        if let Some(verdict) = &verdict {
            let kind = client::events::EventType::Warning;
            self.context.pod_event(
                &pod,
                kind,
                &verdict.reason,
                verdict.message.trim_start_matches("Pod was rejected: "),
            );
        }
        let rejected = verdict.is_some();
        let (worker, sender) = PodWorker::new(self.context.clone(), pod.clone(), verdict, false);
        pods.insert(pod.uid().to_owned(), Entry { pod: pod.clone(), sender, rejected });
        drop(pods);
        self.spawn(worker, pod.uid(), events);
    }

    fn spawn(&self, worker: PodWorker, uid: &str, events: &mpsc::UnboundedSender<Event>) {
        let (events, uid) = (events.clone(), uid.to_owned());
        let env = self.context.env.clone();
        let task = env.spawn("pod", worker.run());
        self.context.env.spawn("pod end", async move {
            let end = task.await.unwrap_or(End::Broken);
            if end == End::Broken {
                env.sleep(Duration::from_secs(1)).await;
            }
            let _ = events.send(Event::Ended(uid, end));
        });
    }

    /// A pod that has not begun yet must fit beside those that have.
    fn admit(&self, pod: &Pod, pods: &BTreeMap<String, Entry>) -> Option<crate::worker::Verdict> {
        let begun = pod.status.as_ref().is_some_and(|status| status.start_time.is_some());
        if pod.is_deleting() || begun {
            return None;
        }
        let active = |entry: &&Entry| {
            !entry.rejected && !matches!(entry.pod.phase(), "Succeeded" | "Failed")
        };
        let others: Vec<&Pod> = pods.values().filter(active).map(|entry| &*entry.pod).collect();
        let node = self.context.node.lister().all().first().and_then(|n| n.typed::<Node>().ok());
        admission::check(pod, &others, node.as_ref(), self.context.config.allocatable())
    }

    /// What runs without an API object is taken down; what lies around of pods that nobody knows
    /// any more is removed.
    async fn adopt(&self, events: &mpsc::UnboundedSender<Event>) {
        let known = match runtime_state::known_pods(&self.context.runtime).await {
            Ok(known) => known,
            Err(status) => {
                tracing::warn!(error = status.message(), "the runtime's pods are not known");
                return;
            }
        };
        let wanted: BTreeMap<String, ()> = self
            .informer
            .lister()
            .all()
            .iter()
            .map(|cached| (cached.uid.to_string(), ()))
            .collect();
        for (uid, (namespace, name)) in &known {
            if wanted.contains_key(uid) {
                continue;
            }
            tracing::info!(namespace, name, "taking down a pod that the API no longer has");
            let mut pod = Pod::default();
            pod.metadata.uid = Some(uid.clone());
            pod.metadata.namespace = Some(namespace.clone());
            pod.metadata.name = Some(name.clone());
            let pod = Arc::new(pod);
            let (worker, sender) = PodWorker::new(self.context.clone(), pod.clone(), None, true);
            self.lock().insert(uid.clone(), Entry { pod, sender, rejected: true });
            self.spawn(worker, uid, events);
        }
        self.remove_leftovers(|uid| known.contains_key(uid) || wanted.contains_key(uid)).await;
    }

    async fn remove_leftovers(&self, in_use: impl Fn(&str) -> bool) {
        let directory = self.context.config.root_dir.join("pods");
        let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
        for uid in entries.map(|entry| entry.file_name().to_string_lossy().into_owned()) {
            if in_use(&uid) {
                continue;
            }
            if let Err(text) = volumes::tear_down(&self.context, &uid).await {
                tracing::warn!(uid, text, "what a former pod left cannot be removed");
            }
        }
    }

    /// Tells workers of the runtime's events; asks all of them to look when events were missed.
    async fn watch_runtime(&self) {
        const RETRY: Backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(1));
        let mut failures = 0;
        loop {
            let mut runtime = self.context.runtime.clone();
            match runtime.get_container_events(v1::GetEventsRequest {}).await {
                Ok(stream) => {
                    failures = 0;
                    self.wake_all();
                    let mut stream = stream.into_inner();
                    while let Ok(Some(event)) = stream.message().await {
                        self.wake(&event);
                    }
                }
                Err(status) => tracing::debug!(error = status.message(), "no runtime events"),
            }
            failures += 1;
            self.context.env.sleep(RETRY.delay(failures)).await;
            // Without events, looking is the only way.
            self.wake_all();
        }
    }

    fn wake(&self, event: &v1::ContainerEventResponse) {
        self.context.runtime_events.send_modify(|count| *count += 1);
        let sandbox = event.pod_sandbox_status.as_ref().and_then(|status| status.metadata.as_ref());
        let labelled = event.containers_statuses.first().and_then(|s| s.labels.get(keys::POD_UID));
        match sandbox.map(|metadata| &metadata.uid).or(labelled) {
            Some(uid) => {
                if let Some(entry) = self.lock().get(uid) {
                    let _ = entry.sender.send(Message::Runtime);
                }
            }
            None => self.wake_all(),
        }
    }

    fn wake_all(&self) {
        for entry in self.lock().values() {
            let _ = entry.sender.send(Message::Runtime);
        }
    }
}
