//! The loop of one pod: read, plan, act, report, wait.
//!
//! Everything that happens reaches the loop as a [`Message`]; between messages it sleeps until
//! the plan's next deadline. Work runs in tasks that answer with a message, so that the loop is
//! never held up by a pull or a slow stop.

use std::{sync::Arc, time::Duration};

use client::{DeleteOptions, Patch, events::EventType};
use machinery::Object;
use stdx::{CancellationToken, Timestamp, chain};
use tokio::sync::mpsc;

use crate::{
    context::{Context, PODS},
    images::Refused,
    objects::Wake,
    pod::{Pod, PodExt, PodStatus, take_in},
    probes::{self, Prober, Report},
    runtime_state::{self, PodRuntime},
    status::{self, StatusInput},
    status_patch,
    steps::{self, Job},
    volumes::{self, Mounted},
    worker::{self, Action, Failure, InFlight, Memory, Plan, Probes, Verdict, World},
};

pub enum Message {
    /// A newer version of the API object.
    Pod(Arc<Pod>),
    /// The API object is gone.
    Gone,
    /// Something happened in the runtime.
    Runtime,
    Probe(probes::Outcome),
    /// An object that the pod uses has changed.
    Refresh,
    Refreshed(Result<Mounted, String>),
    SandboxMade(Result<Mounted, String>),
    Started {
        name: String,
        result: Result<Mounted, Refused>,
    },
    Killed {
        container_id: String,
    },
    Stopped {
        id: String,
    },
    Removed {
        id: String,
    },
    Cleaned(bool),
    StatusWritten(Result<Box<Pod>, client::Error>),
    Deleted(Result<(), client::Error>),
    /// A task of this pod panicked, so what is in flight is no longer known.
    Broken,
}

/// How a worker ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Nothing is left of the pod.
    Over,
    /// The pod needs a new worker, which reads everything anew.
    Broken,
}

pub type Sender = mpsc::UnboundedSender<Message>;

pub struct PodWorker {
    context: Arc<Context>,
    pod: Arc<Pod>,
    runtime: PodRuntime,
    probes: Probes,
    memory: Memory,
    in_flight: InFlight,
    prober: Prober,
    mounted: Option<Mounted>,
    sender: Sender,
    inbox: mpsc::UnboundedReceiver<Message>,
    /// Cancelled when the pod begins to end.
    cancel: CancellationToken,
    writing: bool,
    write_failures: u32,
    retry_at: Option<Timestamp>,
    /// A status that shows only a step's progress waits until then for the step's end.
    defer_until: Option<Timestamp>,
    refreshing: bool,
    clean_retry_at: Option<Timestamp>,
    broken: bool,
}

impl PodWorker {
    pub fn new(
        context: Arc<Context>,
        pod: Arc<Pod>,
        verdict: Option<Verdict>,
        gone: bool,
    ) -> (Self, Sender) {
        let (sender, inbox) = mpsc::unbounded_channel();
        let worker = Self {
            context,
            pod,
            runtime: PodRuntime::default(),
            probes: Probes::new(),
            memory: Memory { verdict, gone, ..Memory::default() },
            in_flight: InFlight::default(),
            prober: Prober::default(),
            mounted: None,
            sender: sender.clone(),
            inbox,
            cancel: CancellationToken::new(),
            writing: false,
            write_failures: 0,
            retry_at: None,
            defer_until: None,
            refreshing: false,
            clean_retry_at: None,
            broken: false,
        };
        (worker, sender)
    }

    /// Runs until nothing is left of the pod.
    pub async fn run(mut self) -> End {
        let mut stale = true;
        let mut first = true;
        loop {
            if stale {
                stale = !self.read_runtime().await;
            }
            if std::mem::take(&mut first) {
                self.adopt();
            }
            let plan = self.step();
            if plan.over {
                self.remove_logs().await;
                return End::Over;
            }
            let wake_at = [
                plan.wake_at,
                self.retry_at,
                self.defer_until,
                self.clean_retry_at,
                self.refresh_at(),
            ];
            let mut wake_at = wake_at.into_iter().flatten().min();
            if stale {
                // The runtime does not answer: ask again soon.
                let soon = self.context.env.now() + Duration::from_secs(1);
                wake_at = Some(wake_at.map_or(soon, |at| at.min(soon)));
            }
            stale |= self.wait(wake_at).await;
            if self.broken {
                return End::Broken;
            }
        }
    }

    async fn read_runtime(&mut self) -> bool {
        match runtime_state::read(&self.context.runtime, self.pod.uid(), &self.runtime).await {
            Ok(runtime) => {
                self.runtime = runtime;
                true
            }
            Err(status) => {
                tracing::warn!(error = steps::rpc_error(&status), "the runtime does not answer");
                false
            }
        }
    }

    /// Containers that ran before this agent did keep the readiness that was reported of them.
    fn adopt(&mut self) {
        let Some(status) = &self.pod.status else { return };
        let lists = [&status.init_container_statuses, &status.container_statuses];
        for reported in lists.into_iter().flatten().flatten() {
            let id = reported.container_id.as_deref().and_then(|id| id.split_once("://"));
            let Some(container) = id.and_then(|(_, id)| self.runtime.container(id)) else {
                continue;
            };
            if container.is_running() {
                let results = self.probes.entry(container.id.clone()).or_default();
                results.startup = (reported.started == Some(true)).then_some(true);
                results.readiness = reported.ready.then_some(true);
            }
        }
    }

    /// Plans, acts and reports; once more when reporting itself opens the way.
    fn step(&mut self) -> Plan {
        loop {
            self.note_ending();
            let plan = self.plan();
            self.note_failures(&plan);
            self.act(&plan);
            self.probe();
            let written = self.report();
            if written == self.memory.status_written {
                return plan;
            }
            self.memory.status_written = written;
            if !written {
                return plan;
            }
        }
    }

    fn plan(&self) -> Plan {
        worker::plan(&World {
            pod: &self.pod,
            runtime: &self.runtime,
            probes: &self.probes,
            memory: &self.memory,
            in_flight: &self.in_flight,
            now: self.context.env.now(),
        })
    }

    fn is_ending(&self) -> bool {
        worker::is_ending(&self.pod, &self.runtime, &self.memory)
    }

    fn note_ending(&mut self) {
        if self.is_ending() && self.memory.ending_since.is_none() {
            self.memory.ending_since = Some(self.context.env.now());
            self.cancel.cancel();
        }
    }

    /// Containers that begin to back off are told once per wait.
    fn note_failures(&mut self, plan: &Plan) {
        for (name, failure) in &plan.backing_off {
            if self.memory.failures.get(name) == Some(failure) {
                continue;
            }
            let message = format!(
                "Back-off restarting failed container {name} in pod {}",
                self.pod.full_name()
            );
            self.context.container_event(&self.pod, name, EventType::Warning, "BackOff", message);
            self.memory.failures.insert(name.clone(), failure.clone());
        }
    }

    fn job(&self) -> Job {
        Job {
            context: self.context.clone(),
            pod: self.pod.clone(),
            wake: self.wake(),
            cancel: self.cancel.clone(),
        }
    }

    fn wake(&self) -> Wake {
        let sender = self.sender.clone();
        Arc::new(move || {
            let _ = sender.send(Message::Refresh);
        })
    }

    /// Runs `work` as a task that answers with a message.
    fn spawn<F>(&self, name: &'static str, work: F)
    where
        F: Future<Output = Message> + Send + 'static,
    {
        let sender = self.sender.clone();
        let task = self.context.env.spawn(name, work);
        self.context.env.spawn("pod step", async move {
            let _ = sender.send(task.await.unwrap_or(Message::Broken));
        });
    }

    fn act(&mut self, plan: &Plan) {
        for action in &plan.actions {
            self.begin(action.clone());
        }
    }

    fn begin(&mut self, action: Action) {
        let job = self.job();
        match action {
            Action::CreateSandbox { attempt, replaces } => {
                self.in_flight.step = true;
                self.spawn("sandbox", async move {
                    Message::SandboxMade(job.create_sandbox(attempt, replaces).await)
                });
            }
            Action::Start { name, restart_count } => self.begin_start(job, name, restart_count),
            Action::Kill(kill) => {
                let until = self.context.env.now() + kill.grace;
                self.in_flight.kills.insert(kill.container_id.clone(), until);
                let ips = steps::pod_ips(&self.context, &self.pod, &self.runtime);
                self.spawn("kill", async move {
                    job.kill(&kill, &ips).await;
                    Message::Killed { container_id: kill.container_id }
                });
            }
            Action::StopSandbox { id } => {
                self.in_flight.stops.insert(id.clone());
                self.spawn("stop sandbox", async move {
                    job.stop_sandbox(&id).await;
                    Message::Stopped { id }
                });
            }
            Action::RemoveContainer { id } => {
                self.in_flight.removals.insert(id.clone());
                self.spawn("remove container", async move {
                    job.remove_container(&id).await;
                    Message::Removed { id }
                });
            }
            Action::RemoveSandbox { id } => {
                self.in_flight.removals.insert(id.clone());
                self.spawn("remove sandbox", async move {
                    job.remove_sandbox(&id).await;
                    Message::Removed { id }
                });
            }
            Action::Clean => {
                if self.clean_retry_at.is_some_and(|at| at > self.context.env.now()) {
                    return;
                }
                self.clean_retry_at = None;
                self.in_flight.cleaning = true;
                self.spawn("clean", async move { Message::Cleaned(job.clean().await) });
            }
            Action::Delete => self.begin_delete(),
            Action::Fail(verdict) => {
                let (reason, text) = (verdict.reason.clone(), verdict.message.clone());
                self.context.pod_event(&self.pod, EventType::Normal, &reason, text);
                self.memory.verdict = Some(verdict);
                let _ = self.sender.send(Message::Runtime);
            }
        }
    }

    fn begin_start(&mut self, job: Job, name: String, restart_count: u32) {
        let Some((spec, _)) = self.pod.container(&name) else { return };
        let Some(sandbox) = self.runtime.active_sandbox().cloned() else { return };
        if let Some(predecessor) = self.runtime.latest(&name) {
            self.memory.note_start(predecessor, self.context.env.now());
        }
        self.in_flight.step = true;
        let (spec, mounted) = (spec.clone(), self.mounted.clone());
        self.spawn("start", async move {
            let result = job.start(&spec, restart_count, &sandbox, mounted).await;
            Message::Started { name, result }
        });
    }

    fn begin_delete(&mut self) {
        self.in_flight.deleting = true;
        let (client, pod) = (self.context.client.clone(), self.pod.clone());
        self.spawn("delete pod", async move {
            let options =
                DeleteOptions { grace_period_seconds: Some(0), ..DeleteOptions::of_uid(pod.uid()) };
            let deleted = client.delete(&PODS, pod.namespace(), pod.name(), &options).await;
            Message::Deleted(deleted.map(drop))
        });
    }

    fn probe(&mut self) {
        let sender = self.sender.clone();
        let report: Report = Arc::new(move |outcome| {
            let _ = sender.send(Message::Probe(outcome));
        });
        let ending = self.is_ending();
        let probes = &self.probes;
        let passed = |spec: &_, container: &_| worker::is_started(spec, container, probes);
        self.prober.reconcile(&self.context, &self.pod, &self.runtime, passed, ending, &report);
    }

    /// Writes the status when it differs from what the API has. `true` when there is nothing to
    /// write.
    fn report(&mut self) -> bool {
        if self.memory.gone || self.memory.deleted {
            return true;
        }
        let host_ips = self.context.host_ips();
        let now = self.context.env.now();
        let wanted = status::generate(&StatusInput {
            pod: &self.pod,
            runtime: &self.runtime,
            probes: &self.probes,
            memory: &self.memory,
            host_ips: &host_ips,
            runtime_name: self.context.runtime_name(),
            now,
        });
        let Some(patch) = status_patch::patch(&self.pod, &wanted) else {
            self.defer_until = None;
            return !self.writing;
        };
        if self.writing || self.retry_at.is_some_and(|at| at > now) || self.defers(&wanted, now) {
            return false;
        }
        self.defer_until = None;
        self.writing = true;
        self.retry_at = None;
        let (client, pod) = (self.context.client.clone(), self.pod.clone());
        self.spawn("pod status", async move {
            let patch = Patch::Strategic(patch);
            let written = client.patch(&PODS, pod.namespace(), pod.name(), "status", &patch).await;
            Message::StatusWritten(written.and_then(|object| read_pod(&object)))
        });
        false
    }

    /// While a step runs, its parts (the sandbox is there, the container is made) are not worth a
    /// write each; they are told together at its end, or after a second.
    fn defers(&mut self, wanted: &PodStatus, now: Timestamp) -> bool {
        const PATIENCE: Duration = Duration::from_secs(1);
        let begun = self.pod.status.as_ref().is_some_and(|status| status.start_time.is_some());
        let same_phase = wanted.phase.as_deref() == Some(self.pod.phase());
        if !self.in_flight.step || !begun || !same_phase || self.is_ending() {
            return false;
        }
        let until = *self.defer_until.get_or_insert(now + PATIENCE);
        now < until
    }

    fn refresh_at(&self) -> Option<Timestamp> {
        let at = self.mounted.as_ref()?.refresh_at?;
        (!self.refreshing && !self.is_ending()).then_some(at)
    }

    /// Waits for something to happen; `true` when the runtime's state may have changed.
    async fn wait(&mut self, wake_at: Option<Timestamp>) -> bool {
        let env = self.context.env.clone();
        let message = match wake_at {
            None => self.inbox.recv().await,
            Some(at) => {
                let left = at.since(env.now());
                env.timeout(left, self.inbox.recv()).await.flatten()
            }
        };
        let mut stale = false;
        let mut next = message;
        while let Some(message) = next {
            stale |= self.take(message);
            next = self.inbox.try_recv().ok();
        }
        if self.refresh_at().is_some_and(|at| at <= env.now()) {
            self.begin_refresh();
        }
        stale
    }

    fn begin_refresh(&mut self) {
        if self.mounted.is_none() || self.refreshing || self.is_ending() {
            return;
        }
        self.refreshing = true;
        let job = self.job();
        self.spawn("refresh volumes", async move {
            let refreshed = volumes::refresh(&job.context, &job.pod, &job.wake).await;
            Message::Refreshed(refreshed.map_err(|error| error.to_string()))
        });
    }

    /// Takes note of what happened; `true` when the runtime is to be read again.
    fn take(&mut self, message: Message) -> bool {
        match message {
            Message::Pod(pod) => {
                self.update(pod);
                false
            }
            Message::Gone => {
                self.memory.gone = true;
                false
            }
            Message::Runtime => true,
            Message::Broken => {
                self.broken = true;
                false
            }
            Message::Probe(outcome) => {
                self.note_probe(outcome);
                false
            }
            Message::Refresh => {
                self.memory.start_retry_at.clear();
                self.memory.sandbox_retry_at = None;
                self.begin_refresh();
                false
            }
            Message::Refreshed(result) => {
                self.refreshing = false;
                self.note_refreshed(result);
                false
            }
            Message::SandboxMade(result) => {
                self.in_flight.step = false;
                self.note_sandbox(result);
                true
            }
            Message::Started { name, result } => {
                self.in_flight.step = false;
                self.note_start(name, result);
                true
            }
            Message::Killed { container_id } => {
                self.in_flight.kills.remove(&container_id);
                self.probes.remove(&container_id);
                true
            }
            Message::Stopped { id } => {
                self.in_flight.stops.remove(&id);
                true
            }
            Message::Removed { id } => {
                self.in_flight.removals.remove(&id);
                true
            }
            Message::Cleaned(done) => {
                self.in_flight.cleaning = false;
                self.memory.cleaned = done;
                let again = self.context.env.now() + Duration::from_secs(1);
                self.clean_retry_at = (!done).then_some(again);
                false
            }
            Message::StatusWritten(result) => {
                self.writing = false;
                self.note_written(result);
                false
            }
            Message::Deleted(result) => {
                self.in_flight.deleting = false;
                self.note_deleted(result);
                false
            }
        }
    }

    fn update(&mut self, pod: Arc<Pod>) {
        if revision(&pod) <= revision(&self.pod) {
            return;
        }
        let (old, new) = (&self.pod.metadata, &pod.metadata);
        let shown = old.labels != new.labels || old.annotations != new.annotations;
        let spec = self.pod.spec != pod.spec;
        self.pod = pod;
        if shown || spec {
            // What failed for want of a value may succeed with the new one.
            self.memory.start_retry_at.clear();
        }
        if shown {
            self.begin_refresh();
        }
    }

    fn note_probe(&mut self, outcome: probes::Outcome) {
        let results = self.probes.entry(outcome.container_id).or_default();
        let success = Some(outcome.success);
        match outcome.kind {
            probes::Kind::Startup => results.startup = success,
            probes::Kind::Liveness => results.liveness = success,
            probes::Kind::Readiness => results.readiness = success,
        }
    }

    fn note_refreshed(&mut self, result: Result<Mounted, String>) {
        match result {
            Ok(mounted) => self.mounted = Some(mounted),
            Err(text) => {
                self.context.pod_event(&self.pod, EventType::Warning, "FailedMount", text);
                // Shown content stays as it is; try again before a token can run out.
                let again = self.context.env.now() + Duration::from_secs(10);
                if let Some(mounted) = &mut self.mounted {
                    mounted.refresh_at = Some(again);
                }
            }
        }
    }

    fn note_sandbox(&mut self, result: Result<Mounted, String>) {
        match result {
            Ok(mounted) => {
                self.mounted = Some(mounted);
                self.memory.sandbox_failures = 0;
                self.memory.sandbox_retry_at = None;
            }
            Err(text) => {
                tracing::info!(pod = self.pod.full_name(), text, "the sandbox cannot be made");
                self.memory.sandbox_failures += 1;
                let now = self.context.env.now();
                let at = steps::sandbox_retry(self.memory.sandbox_failures, now);
                self.memory.sandbox_retry_at = Some(at);
            }
        }
    }

    fn note_start(&mut self, name: String, result: Result<Mounted, Refused>) {
        match result {
            Ok(mounted) => {
                self.mounted = Some(mounted);
                self.memory.failures.remove(&name);
                self.memory.start_retry_at.remove(&name);
            }
            Err(refused) => {
                self.memory.start_retry_at.insert(name.clone(), refused.retry_at);
                let Failure { reason, message } = &refused.failure;
                tracing::info!(
                    container = name,
                    reason,
                    message,
                    "the container cannot be started"
                );
                self.memory.failures.insert(name, refused.failure);
            }
        }
    }

    fn note_written(&mut self, result: Result<Box<Pod>, client::Error>) {
        match result {
            Ok(pod) => {
                self.write_failures = 0;
                self.update(Arc::from(pod));
            }
            Err(error) if error.is_not_found() => self.memory.gone = true,
            Err(error) => {
                self.write_failures += 1;
                let wait = stdx::backoff::Backoff::new(
                    Duration::from_millis(200),
                    Duration::from_secs(10),
                );
                let at = self.context.env.now() + wait.delay(self.write_failures);
                self.retry_at = Some(at);
                tracing::debug!(pod = self.pod.full_name(), error = %chain(&error), "status not written");
            }
        }
    }

    fn note_deleted(&mut self, result: Result<(), client::Error>) {
        match result {
            Ok(()) => self.memory.deleted = true,
            Err(error) if error.is_not_found() || error.is_conflict() => self.memory.deleted = true,
            Err(error) => {
                tracing::debug!(pod = self.pod.full_name(), error = %chain(&error), "pod not deleted");
                // Planned again when the retry comes.
                self.retry_at = Some(self.context.env.now() + Duration::from_secs(1));
            }
        }
    }

    async fn remove_logs(&self) {
        let pod = &self.pod;
        let logs = self.context.config.pod_log_dir(pod.namespace(), pod.name(), pod.uid());
        self.context.env.blocking(move || std::fs::remove_dir_all(logs)).await;
    }
}

fn revision(pod: &Pod) -> i64 {
    pod.metadata.resource_version.as_deref().and_then(|version| version.parse().ok()).unwrap_or(0)
}

fn read_pod(object: &Object) -> Result<Box<Pod>, client::Error> {
    object.to_typed().map(|pod| Box::new(take_in(pod))).map_err(|source| client::Error::Malformed {
        request: "pods/status".into(),
        source: source.into(),
    })
}
