//! Doing what a plan says: the calls to the runtime, with the events that tell of them.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use client::events::EventType;
use cri::v1;
use machinery::Object;
use stdx::{CancellationToken, Timestamp};

use crate::{
    context::{Context, RUNTIME_CLASSES},
    cri_config::{self, ContainerInputs},
    dns, hooks,
    images::{self, Refused},
    objects::{Kind, Wake},
    pod::{Container as Spec, Pod, PodExt, Qos},
    resources,
    runtime_state::{PodRuntime, Sandbox},
    volumes::{self, Mounted},
    worker::{Failure, Kill},
};

/// What every step on one pod needs.
#[derive(Clone)]
pub struct Job {
    pub context: Arc<Context>,
    pub pod: Arc<Pod>,
    pub wake: Wake,
    /// Cancelled when the pod begins to end, so that a long pull does not hold it up.
    pub cancel: CancellationToken,
}

/// How long to wait after a start that failed for a reason that may pass.
const RETRY: Duration = Duration::from_secs(10);

impl Job {
    fn event(&self, kind: EventType, reason: &str, message: impl Into<String>) {
        self.context.pod_event(&self.pod, kind, reason, message);
    }

    fn container_event(
        &self,
        name: &str,
        kind: EventType,
        reason: &str,
        message: impl Into<String>,
    ) {
        self.context.container_event(&self.pod, name, kind, reason, message);
    }

    /// Mounts the volumes and makes the sandbox. The error has been told in an event.
    pub async fn create_sandbox(&self, attempt: u32, replaces: bool) -> Result<Mounted, String> {
        let mounted = self.mount().await?;
        if replaces {
            let message = "Pod sandbox changed, it will be killed and re-created.";
            self.event(EventType::Normal, "SandboxChanged", message);
        }
        let config = self.sandbox_config(attempt).await?;
        let handler = self.runtime_handler().await.inspect_err(|text| {
            self.event(EventType::Warning, "FailedCreatePodSandBox", text.as_str());
        })?;
        let request = v1::RunPodSandboxRequest { config: Some(config), runtime_handler: handler };
        let answer = self.context.runtime.clone().run_pod_sandbox(request).await;
        match answer {
            Ok(_) => Ok(mounted),
            Err(status) => {
                let text = format!("Failed to create pod sandbox: {}", rpc_error(&status));
                self.event(EventType::Warning, "FailedCreatePodSandBox", text.clone());
                Err(text)
            }
        }
    }

    /// The handler that the pod's RuntimeClass names; empty for the default one.
    async fn runtime_handler(&self) -> Result<String, String> {
        let name = self.pod.spec().runtime_class_name.as_deref().filter(|name| !name.is_empty());
        let Some(name) = name else { return Ok(String::new()) };
        let found = self.context.client.get(&RUNTIME_CLASSES, "", name).await;
        let class = found.map_err(|error| {
            format!(
                "Failed to create pod sandbox: failed to get sandbox runtime: {}",
                stdx::chain(&error)
            )
        })?;
        Ok(class.str_at(&["handler"]).to_owned())
    }

    pub async fn mount(&self) -> Result<Mounted, String> {
        volumes::set_up(&self.context, &self.pod, &self.wake).await.map_err(|error| {
            let text = error.to_string();
            self.event(EventType::Warning, "FailedMount", text.clone());
            text
        })
    }

    async fn sandbox_config(&self, attempt: u32) -> Result<v1::PodSandboxConfig, String> {
        let context = self.context.clone();
        let logs =
            context.config.pod_log_dir(self.pod.namespace(), self.pod.name(), self.pod.uid());
        let resolv_conf = context.config.resolv_conf.clone();
        let prepared = context.env.blocking(move || {
            let made = std::fs::create_dir_all(&logs);
            (made, std::fs::read_to_string(resolv_conf).unwrap_or_default())
        });
        let (made, node_dns) = prepared.await.ok_or("the preparation of the sandbox panicked")?;
        made.map_err(|error| format!("cannot make the log directory: {error}"))?;
        Ok(cri_config::sandbox(&self.pod, attempt, &context.config, &node_dns))
    }

    /// Starts one container in `sandbox`, from its image to its postStart hook.
    pub async fn start(
        &self,
        spec: &Spec,
        restart_count: u32,
        sandbox: &Sandbox,
        mounted: Option<Mounted>,
    ) -> Result<Mounted, Refused> {
        let mounted = match mounted {
            Some(mounted) => mounted,
            None => self.mount().await.map_err(|text| self.refuse("ContainerCreating", text))?,
        };
        let secrets = self.pull_secrets().await;
        let image_ref =
            images::ensure(&self.context, &self.pod, spec, &secrets, &self.cancel).await?;
        let config = self.describe(spec, restart_count, sandbox, &mounted, image_ref).await;
        let config = config.map_err(|text| {
            self.container_event(
                &spec.name,
                EventType::Warning,
                "Failed",
                format!("Error: {text}"),
            );
            self.refuse("CreateContainerConfigError", text)
        })?;
        let id = self.create(spec, sandbox, config).await?;
        self.container_event(&spec.name, EventType::Normal, "Created", "Container created");
        let request = v1::StartContainerRequest { container_id: id.clone() };
        if let Err(status) = self.context.runtime.clone().start_container(request).await {
            let text = rpc_error(&status);
            self.container_event(
                &spec.name,
                EventType::Warning,
                "Failed",
                format!("Error: {text}"),
            );
            return Err(self.refuse("RunContainerError", text));
        }
        self.container_event(&spec.name, EventType::Normal, "Started", "Container started");
        self.post_start(spec, &id, sandbox).await?;
        Ok(mounted)
    }

    fn refuse(&self, reason: &str, message: String) -> Refused {
        let retry_at = self.context.env.now() + RETRY;
        Refused { failure: Failure { reason: reason.into(), message }, retry_at }
    }

    async fn create(
        &self,
        spec: &Spec,
        sandbox: &Sandbox,
        config: v1::ContainerConfig,
    ) -> Result<String, Refused> {
        let told = |text: String| {
            self.container_event(
                &spec.name,
                EventType::Warning,
                "Failed",
                format!("Error: {text}"),
            );
            self.refuse("CreateContainerError", text)
        };
        let sandbox_config = self.sandbox_config(sandbox.attempt).await.map_err(told)?;
        let request = v1::CreateContainerRequest {
            pod_sandbox_id: sandbox.id.clone(),
            config: Some(config),
            sandbox_config: Some(sandbox_config),
        };
        match self.context.runtime.clone().create_container(request).await {
            Ok(answer) => Ok(answer.into_inner().container_id),
            Err(status) => Err(told(rpc_error(&status))),
        }
    }

    /// Secrets that the pod names for pulling; those that are missing are told and left out.
    async fn pull_secrets(&self) -> Vec<Object> {
        let mut found = Vec::new();
        let mut missing = Vec::new();
        for reference in self.pod.spec().image_pull_secrets.iter().flatten() {
            let (pod, name) = (&self.pod, reference.name.as_str());
            let objects = &self.context.objects;
            match objects.get(Kind::Secret, pod.namespace(), name, pod.uid(), &self.wake).await {
                Ok(secret) => found.push(secret),
                Err(_) => missing.push(name),
            }
        }
        if !missing.is_empty() {
            let message = format!(
                "Unable to retrieve some image pull secrets ({}); attempting to pull the image may not succeed.",
                missing.join(", ")
            );
            self.event(EventType::Warning, "FailedToRetrieveImagePullSecret", message);
        }
        found
    }

    /// Everything about a container that only shows when it is made.
    async fn describe(
        &self,
        spec: &Spec,
        restart_count: u32,
        sandbox: &Sandbox,
        mounted: &Mounted,
        image_ref: String,
    ) -> Result<v1::ContainerConfig, String> {
        let (context, pod) = (&self.context, &self.pod);
        let ips = if pod.host_network() { context.host_ips() } else { sandbox.ips.clone() };
        let variables = crate::env_vars::build(context, pod, spec, &ips, &self.wake).await?;
        let image = context.images.present(&image_ref).await.ok().flatten().unwrap_or_default();
        let files = self.files(spec, restart_count, &ips, mounted, &variables).await?;
        let inputs = ContainerInputs {
            image_ref,
            image_user: (image.uid.map(|uid| uid.value), image.username),
            restart_count,
            variables,
            volumes: &mounted.paths,
            sub_paths: files.sub_paths,
            hosts_file: files.hosts,
            termination_log: files.termination_log,
        };
        cri_config::container(pod, spec, &inputs, &context.config)
    }

    /// The files on this node that the container's mounts show.
    async fn files(
        &self,
        spec: &Spec,
        restart_count: u32,
        ips: &[String],
        mounted: &Mounted,
        variables: &[(String, String)],
    ) -> Result<NodeFiles, String> {
        let (context, pod, spec) = (self.context.clone(), self.pod.clone(), spec.clone());
        let (ips, mounted) = (ips.to_vec(), mounted.clone());
        let variables = variables.to_vec();
        let env = context.env.clone();
        let made = env.blocking(move || {
            let directory = context.config.pod_dir(pod.uid());
            let own = directory.join("containers").join(&spec.name);
            let failed =
                |error: std::io::Error| format!("cannot prepare the container's files: {error}");
            std::fs::create_dir_all(&own).map_err(failed)?;
            let termination_log = own.join(format!("termination-log-{restart_count}"));
            write_open(&termination_log, b"").map_err(failed)?;
            let hosts = directory.join("etc-hosts");
            let text = if pod.host_network() {
                let node = std::fs::read_to_string("/etc/hosts").unwrap_or_default();
                node + &dns::host_aliases(&pod)
            } else {
                dns::hosts_file(&pod, &context.config, &ips)
            };
            std::fs::write(&hosts, text).map_err(failed)?;
            let logs = context.config.pod_log_dir(pod.namespace(), pod.name(), pod.uid());
            std::fs::create_dir_all(logs.join(&spec.name)).map_err(failed)?;
            let sub_paths = sub_paths(&directory, &spec, &mounted, &variables)?;
            Ok(NodeFiles { sub_paths, hosts: Some(hosts), termination_log })
        });
        made.await.unwrap_or_else(|| Err("the preparation of files panicked".into()))
    }

    async fn post_start(&self, spec: &Spec, id: &str, sandbox: &Sandbox) -> Result<(), Refused> {
        let hook = spec.lifecycle.as_ref().and_then(|lifecycle| lifecycle.post_start.as_ref());
        let Some(hook) = hook else { return Ok(()) };
        let ips =
            if self.pod.host_network() { self.context.host_ips() } else { sandbox.ips.clone() };
        if let Err(text) = hooks::run(&self.context, &self.pod, spec, id, &ips, hook).await {
            tracing::info!(container = spec.name, text, "postStart hook failed");
            self.container_event(
                &spec.name,
                EventType::Warning,
                "FailedPostStartHook",
                "PostStartHook failed",
            );
            let kill = Kill {
                container_id: id.to_owned(),
                name: spec.name.clone(),
                message: "FailedPostStartHook".into(),
                grace: self.pod.spec_grace(),
                hook: true,
            };
            self.kill(&kill, &ips).await;
            return Err(self.refuse("PostStartHookError", text));
        }
        Ok(())
    }

    /// Runs the preStop hook, then stops the container, all within its grace.
    pub async fn kill(&self, kill: &Kill, ips: &[String]) {
        let env = &self.context.env;
        let began = env.instant();
        if kill.hook {
            self.container_event(&kill.name, EventType::Normal, "Killing", kill.message.clone());
        }
        let spec = self.pod.container(&kill.name).map(|(spec, _)| spec.clone());
        let hook = spec.as_ref().and_then(|spec| spec.lifecycle.as_ref()?.pre_stop.clone());
        if let (true, Some(spec), Some(hook)) = (kill.hook && !kill.grace.is_zero(), spec, hook) {
            let running =
                hooks::run(&self.context, &self.pod, &spec, &kill.container_id, ips, &hook);
            match env.timeout(kill.grace, running).await {
                Some(Ok(())) => {}
                Some(Err(text)) => {
                    tracing::info!(container = kill.name, text, "preStop hook failed");
                    self.container_event(
                        &kill.name,
                        EventType::Warning,
                        "FailedPreStopHook",
                        "PreStopHook failed",
                    );
                }
                None => tracing::info!(container = kill.name, "preStop hook used up the grace"),
            }
        }
        let spent = env.instant().saturating_duration_since(began);
        let left = kill.grace.saturating_sub(spent);
        let floor = if kill.hook { Duration::from_secs(2).min(kill.grace) } else { Duration::ZERO };
        let request = v1::StopContainerRequest {
            container_id: kill.container_id.clone(),
            timeout: left.max(floor).as_secs_f64().ceil() as i64,
        };
        match self.context.runtime.clone().stop_container(request).await {
            Ok(_) => {}
            Err(status) if status.code() == tonic::Code::NotFound => {}
            Err(status) => {
                let text = format!("error killing pod: {}", rpc_error(&status));
                self.event(EventType::Warning, "FailedKillPod", text);
            }
        }
    }

    pub async fn stop_sandbox(&self, id: &str) -> bool {
        let request = v1::StopPodSandboxRequest { pod_sandbox_id: id.to_owned() };
        done(self.context.runtime.clone().stop_pod_sandbox(request).await.map(drop), "stop sandbox")
    }

    pub async fn remove_container(&self, id: &str) -> bool {
        let request = v1::RemoveContainerRequest { container_id: id.to_owned() };
        done(
            self.context.runtime.clone().remove_container(request).await.map(drop),
            "remove container",
        )
    }

    pub async fn remove_sandbox(&self, id: &str) -> bool {
        let request = v1::RemovePodSandboxRequest { pod_sandbox_id: id.to_owned() };
        done(
            self.context.runtime.clone().remove_pod_sandbox(request).await.map(drop),
            "remove sandbox",
        )
    }

    /// Unmounts the volumes and forgets what was kept for the pod.
    pub async fn clean(&self) -> bool {
        let uid = self.pod.uid();
        self.context.objects.release(uid);
        self.context.tokens.forget(uid);
        self.context.images.forget_pod(uid);
        self.remove_cgroups().await;
        match volumes::tear_down(&self.context, uid).await {
            Ok(()) => true,
            Err(text) => {
                tracing::warn!(
                    pod = self.pod.full_name(),
                    text,
                    "volumes cannot be taken down yet"
                );
                false
            }
        }
    }
}

impl Job {
    /// Removes the pod's control group. A pod that is known by its labels alone could be of any
    /// class.
    async fn remove_cgroups(&self) {
        let Some(host) = self.context.cgroups.clone() else { return };
        let (context, pod) = (self.context.clone(), self.pod.clone());
        let removed = self.context.env.blocking(move || {
            for class in [Qos::Guaranteed, Qos::Burstable, Qos::BestEffort] {
                let path = resources::cgroup_of(class, pod.uid(), &context.config);
                if let Err(error) = host.cgroup(&path).delete() {
                    tracing::warn!(path, %error, "a control group was not removed");
                }
            }
        });
        removed.await;
    }
}

struct NodeFiles {
    sub_paths: BTreeMap<usize, PathBuf>,
    hosts: Option<PathBuf>,
    termination_log: PathBuf,
}

/// A file that every user of the container may write.
fn write_open(path: &std::path::Path, bytes: &[u8]) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::write(path, bytes)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666))
}

fn sub_paths(
    pod_dir: &std::path::Path,
    spec: &Spec,
    mounted: &Mounted,
    variables: &[(String, String)],
) -> Result<BTreeMap<usize, PathBuf>, String> {
    let lookup = |name: &str| {
        variables.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone())
    };
    let mut prepared = BTreeMap::new();
    for (index, mount) in spec.volume_mounts.iter().flatten().enumerate() {
        let part = match (&mount.sub_path_expr, &mount.sub_path) {
            (Some(text), _) if !text.is_empty() => volumes::expand_sub_path(text, lookup)?,
            (_, Some(text)) if !text.is_empty() => text.clone(),
            _ => continue,
        };
        let Some(volume) = mounted.paths.get(&mount.name) else { continue };
        let target = pod_dir
            .join("volume-subpaths")
            .join(&mount.name)
            .join(&spec.name)
            .join(index.to_string());
        prepared.insert(index, volumes::prepare_sub_path(volume, &part, &target)?);
    }
    Ok(prepared)
}

/// A gRPC status as events and statuses show it.
pub fn rpc_error(status: &tonic::Status) -> String {
    format!("rpc error: code = {} desc = {}", images::code_name(status.code()), status.message())
}

/// Gone already is as good as done.
fn done(result: Result<(), tonic::Status>, what: &str) -> bool {
    match result {
        Ok(()) => true,
        Err(status) if status.code() == tonic::Code::NotFound => true,
        Err(status) => {
            tracing::warn!(what, error = rpc_error(&status), "the runtime refused");
            false
        }
    }
}

/// When the next attempt at a sandbox may begin: quickly at first, then every ten seconds.
pub fn sandbox_retry(failures: u32, now: Timestamp) -> Timestamp {
    const BACKOFF: stdx::backoff::Backoff =
        stdx::backoff::Backoff::new(Duration::from_millis(500), Duration::from_secs(10));
    now + BACKOFF.delay(failures)
}

/// The addresses that hooks and probes of a pod use.
pub fn pod_ips(context: &Context, pod: &Pod, runtime: &PodRuntime) -> Vec<String> {
    if pod.host_network() { context.host_ips() } else { runtime.ips().to_vec() }
}
