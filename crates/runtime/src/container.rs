//! Containers: created as a record, started by a shim, watched by pidfd, stopped, removed.
//!
//! ```text
//! Created ──start──▶ Running ──shim ends──▶ Exited ──remove──▶ gone
//!    └──────────────── start fails ───────────▲
//! ```

use std::{
    fs,
    os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt},
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use cri::v1::{self, ContainerEventType, NamespaceMode};
use linux::{
    cgroup::{Cgroup, Layout},
    process,
};
use prost::Message;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::{
    Runtime,
    error::{During, Error, Result},
    image::Image,
    launch::{
        CgroupView, DeviceNode, Ended, Join, Launch, PidNamespace, Reply, Request, Root, Started,
        file,
    },
    nursery::{Line, memory_file},
    plan, remove_directory,
    sandbox::{Sandbox, lock},
    write_whole,
};

/// A container, from its creation to its removal.
pub(crate) struct Container {
    pub id: String,
    pub sandbox_id: String,
    pub config: v1::ContainerConfig,
    pub record: Record,
    pub directory: PathBuf,
    pub phase: watch::Sender<Phase>,
    /// The limits as last set.
    pub resources: Mutex<v1::LinuxContainerResources>,
    /// One step on a container at a time.
    step: tokio::sync::Mutex<()>,
    slot: Mutex<Option<Slot>>,
}

/// What does not change.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Record {
    pub sandbox_id: String,
    pub image: Image,
    pub created_at: i64,
    pub cgroup: String,
}

#[derive(Clone, Debug)]
pub(crate) enum Phase {
    Created,
    Running(Started),
    Exited { started: Option<Started>, ended: Ended },
}

/// A shim whose child is, or soon will be, in the control group of a container to come.
pub(crate) struct Slot {
    pub id: String,
    cgroup: Cgroup,
    line: Line,
}

impl Slot {
    /// Lets the shim go and removes its group.
    pub async fn discard(self, runtime: &Runtime) {
        let cgroup = self.cgroup;
        drop(self.line);
        let gone = runtime.blocking(move || {
            cgroup
                .kill()
                .and_then(|()| cgroup.delete())
                .during(|| "removing a control group".into())
        });
        if let Err(error) = gone.await {
            tracing::warn!(error = %stdx::chain(&error), "discarding a prepared container");
        }
    }
}

/// Forks a shim for the container `id` and has its child move into the container's group; does
/// not wait for the move.
pub(crate) async fn prepare(runtime: &Runtime, sandbox: &Sandbox, id: String) -> Result<Slot> {
    let cgroup = sandbox.cgroup(runtime).child(&id);
    let group = cgroup.clone();
    runtime
        .blocking(move || {
            group.create().during(|| format!("creating the control group {}", group.path()))
        })
        .await?;
    let what = || "preparing a container".to_owned();
    let line = runtime.0.nursery.fork().await.during(what)?;
    line.send(&Request::Join(join(&cgroup)), &[]).during(what)?;
    Ok(Slot { id, cgroup, line })
}

pub(crate) fn join(cgroup: &Cgroup) -> Join {
    if cgroup.host().layout == Layout::V2 {
        return Join { unified: cgroup.unified(), procs: Vec::new() };
    }
    let procs = cgroup.directories().map(|directory| directory.join("cgroup.procs")).collect();
    Join { unified: None, procs }
}

impl Container {
    pub fn cgroup(&self, runtime: &Runtime) -> Cgroup {
        runtime.0.cgroups.cgroup(&self.record.cgroup)
    }

    /// The running process, or why there is none.
    pub fn running(&self) -> Result<Started> {
        match &*self.phase.borrow() {
            Phase::Running(started) => Ok(started.clone()),
            _ => Err(Error::Precondition(format!("the container {} is not running", self.id))),
        }
    }

    fn state(&self) -> v1::ContainerState {
        match &*self.phase.borrow() {
            Phase::Created => v1::ContainerState::ContainerCreated,
            Phase::Running(_) => v1::ContainerState::ContainerRunning,
            Phase::Exited { .. } => v1::ContainerState::ContainerExited,
        }
    }

    pub fn summary(&self) -> v1::Container {
        v1::Container {
            id: self.id.clone(),
            pod_sandbox_id: self.sandbox_id.clone(),
            metadata: self.config.metadata.clone(),
            image: self.config.image.clone(),
            image_ref: self.record.image.reference(),
            state: self.state() as i32,
            created_at: self.record.created_at,
            labels: self.config.labels.clone(),
            annotations: self.config.annotations.clone(),
            image_id: self.record.image.id.clone(),
        }
    }

    pub fn status(&self, runtime: &Runtime) -> v1::ContainerStatus {
        let mut status = v1::ContainerStatus {
            id: self.id.clone(),
            metadata: self.config.metadata.clone(),
            state: self.state() as i32,
            created_at: self.record.created_at,
            image: self.config.image.clone(),
            image_ref: self.record.image.reference(),
            image_id: self.record.image.id.clone(),
            labels: self.config.labels.clone(),
            annotations: self.config.annotations.clone(),
            mounts: self.config.mounts.clone(),
            log_path: self
                .log_path(runtime)
                .map(|path| path.display().to_string())
                .unwrap_or_default(),
            resources: Some(v1::ContainerResources {
                linux: Some(lock(&self.resources).clone()),
                windows: None,
            }),
            stop_signal: self.config.stop_signal,
            ..v1::ContainerStatus::default()
        };
        match &*self.phase.borrow() {
            Phase::Created => {}
            Phase::Running(started) => add_started(&mut status, started),
            Phase::Exited { started, ended } => {
                if let Some(started) = started {
                    add_started(&mut status, started);
                }
                status.finished_at = ended.at;
                status.exit_code = ended.code;
                status.reason = reason(ended);
                status.message = ended.message.clone();
            }
        }
        status
    }

    fn log_path(&self, runtime: &Runtime) -> Option<PathBuf> {
        let sandbox = runtime.sandbox(&self.sandbox_id).ok()?;
        let (directory, log) = (&sandbox.config.log_directory, &self.config.log_path);
        (!directory.is_empty() && !log.is_empty()).then(|| PathBuf::from(directory).join(log))
    }
}

fn add_started(status: &mut v1::ContainerStatus, started: &Started) {
    status.started_at = started.at;
    let identity = &started.identity;
    status.user = Some(v1::ContainerUser {
        linux: Some(v1::LinuxContainerUser {
            uid: identity.uid.into(),
            gid: identity.gid.into(),
            supplemental_groups: identity.groups.iter().map(|gid| (*gid).into()).collect(),
        }),
    });
}

fn reason(ended: &Ended) -> String {
    let own = match (ended.out_of_memory, ended.code) {
        (true, _) => "OOMKilled",
        (false, 0) => "Completed",
        (false, _) => "Error",
    };
    ended.reason.clone().unwrap_or_else(|| own.to_owned())
}

/// Creates a container in a ready sandbox; answers its ID.
pub(crate) async fn create(
    runtime: &Runtime,
    request: v1::CreateContainerRequest,
) -> Result<String> {
    let config = request.config.ok_or_else(|| Error::Invalid("the request lacks config".into()))?;
    let sandbox = runtime.sandbox(&request.pod_sandbox_id)?;
    let _step = sandbox.step.lock().await;
    if !sandbox.live().ready {
        let text = format!("the pod sandbox {} is not ready", sandbox.id);
        return Err(Error::Precondition(text));
    }
    let name = config.image.as_ref().map(|image| image.image.clone()).unwrap_or_default();
    let image =
        runtime.0.images.find(&name).ok_or_else(|| Error::NotFound("image", name.clone()))?;
    check_profiles(&config)?;
    let spare = lock(&sandbox.spare).take();
    let slot = match spare {
        Some(slot) => slot,
        None => prepare(runtime, &sandbox, runtime.new_id()).await?,
    };
    let id = slot.id.clone();
    let record = Record {
        sandbox_id: sandbox.id.clone(),
        image,
        created_at: runtime.now_ns(),
        cgroup: slot.cgroup.path(),
    };
    let resources = config.linux.as_ref().and_then(|linux| linux.resources.clone());
    let container = Arc::new(Container {
        directory: runtime.0.container_directory(&id),
        id: id.clone(),
        sandbox_id: sandbox.id.clone(),
        config,
        record,
        phase: watch::Sender::new(Phase::Created),
        resources: Mutex::new(resources.unwrap_or_default()),
        step: tokio::sync::Mutex::default(),
        slot: Mutex::default(),
    });
    let (of_runtime, laid_out) = (runtime.clone(), container.clone());
    if let Err(error) = runtime.blocking(move || lay_out(&of_runtime, &laid_out)).await {
        slot.discard(runtime).await;
        let (of_runtime, left) = (runtime.clone(), container.clone());
        let _ = runtime.blocking(move || remove_files(&of_runtime, &left)).await;
        return Err(error);
    }
    *lock(&container.slot) = Some(slot);
    runtime.state().containers.insert(id.clone(), container);
    emit(runtime, &sandbox, &id, ContainerEventType::ContainerCreatedEvent);
    Ok(id)
}

fn check_profiles(config: &v1::ContainerConfig) -> Result<()> {
    let apparmor = plan::security(config).apparmor;
    let wanted = apparmor
        .filter(|profile| profile.profile_type() == v1::security_profile::ProfileType::Localhost);
    if wanted.is_some() && !std::path::Path::new("/sys/kernel/security/apparmor").exists() {
        let text = "an AppArmor profile is asked for, and this host has no AppArmor";
        return Err(Error::Invalid(text.to_owned()));
    }
    Ok(())
}

/// Directories, record and limits of a new container.
fn lay_out(runtime: &Runtime, container: &Container) -> Result<()> {
    let what = || format!("creating the container {}", container.id);
    let snapshot = runtime.0.snapshot_directory(&container.id);
    for directory in [&container.directory, &container.directory.join("rootfs")] {
        fs::create_dir(directory).during(what)?;
    }
    for directory in [snapshot.join("upper"), snapshot.join("work")] {
        fs::create_dir_all(directory).during(what)?;
    }
    // The upper directory is the container's root: everyone may enter it.
    fs::set_permissions(snapshot.join("upper"), fs::Permissions::from_mode(0o755)).during(what)?;
    fs::write(container.directory.join("config.pb"), container.config.encode_to_vec())
        .during(what)?;
    let record = serde_json::to_vec(&container.record).unwrap_or_default();
    write_whole(&container.directory.join("record.json"), &record).during(what)?;
    let cgroup = container.cgroup(runtime);
    let limits = plan::limits(&lock(&container.resources));
    cgroup.apply(&limits).during(|| "setting the container's limits".to_owned())?;
    let devices = devices(&container.config)?;
    let rules = plan::device_rules(plan::security(&container.config).privileged, &devices);
    let restricted = cgroup.restrict_devices(&rules);
    if !restricted.during(|| "restricting the container's devices".to_owned())? {
        tracing::warn!(container = container.id, "this host cannot restrict devices");
    }
    Ok(())
}

/// The nodes of the request's devices, with their permissions. A directory stands for all in it.
fn devices(config: &v1::ContainerConfig) -> Result<Vec<(DeviceNode, String)>> {
    let mut nodes = Vec::new();
    for device in &config.devices {
        let host = PathBuf::from(&device.host_path);
        let what = || format!("looking at the device {}", host.display());
        let meta = fs::metadata(&host).during(what)?;
        let permissions =
            if device.permissions.is_empty() { "rwm" } else { &device.permissions }.to_owned();
        let mut push = |path: String, meta: &fs::Metadata| {
            let kind = meta.file_type();
            if !kind.is_block_device() && !kind.is_char_device() {
                return;
            }
            let node = DeviceNode {
                path,
                block: kind.is_block_device(),
                major: rustix::fs::major(meta.rdev()),
                minor: rustix::fs::minor(meta.rdev()),
                mode: meta.mode() & 0o7777,
                uid: meta.uid(),
                gid: meta.gid(),
            };
            nodes.push((node, permissions.clone()));
        };
        if meta.is_dir() {
            for entry in fs::read_dir(&host).during(what)?.flatten() {
                let name = entry.file_name().to_string_lossy().into_owned();
                let path = format!("{}/{name}", device.container_path.trim_end_matches('/'));
                push(path, &entry.metadata().during(what)?);
            }
        } else {
            push(device.container_path.clone(), &meta);
        }
    }
    Ok(nodes)
}

/// Starts a created container. A failure is also the container's end, with reason `StartError`.
pub(crate) async fn start(runtime: &Runtime, id: &str) -> Result<()> {
    let container = runtime.container(id)?;
    let _step = container.step.lock().await;
    if !matches!(*container.phase.borrow(), Phase::Created) {
        let text = format!("the container {} was started before", container.id);
        return Err(Error::Precondition(text));
    }
    let sandbox = runtime.sandbox(&container.sandbox_id)?;
    match launch(runtime, &sandbox, &container).await {
        Ok(started) => {
            container.phase.send_replace(Phase::Running(started));
            emit(runtime, &sandbox, &container.id, ContainerEventType::ContainerStartedEvent);
            watch(runtime, &container);
            Ok(())
        }
        Err(error) => {
            let ended = Ended {
                code: 128,
                out_of_memory: false,
                at: runtime.now_ns(),
                reason: Some("StartError".to_owned()),
                message: stdx::chain(&error).to_string(),
            };
            finish(runtime, &container, None, ended, true).await;
            Err(error)
        }
    }
}

async fn launch(
    runtime: &Runtime,
    sandbox: &Arc<Sandbox>,
    container: &Arc<Container>,
) -> Result<Started> {
    let slot = lock(&container.slot).take();
    let slot = match slot {
        Some(slot) => slot,
        // The agent restarted between creation and start.
        None => prepare(runtime, sandbox, container.id.clone()).await?,
    };
    let (of_runtime, of_sandbox, planned) = (runtime.clone(), sandbox.clone(), container.clone());
    let launch = plan_launch(&of_runtime, &of_sandbox, &planned)?;
    let what = || "starting the container".to_owned();
    expect(&slot.line, |reply| matches!(reply, Reply::Joined)).await?;
    use std::os::fd::AsFd;
    let plan = memory_file(&launch).during(what)?;
    slot.line.send(&Request::Launch, &[plan.as_fd()]).during(what)?;
    match expect(&slot.line, |reply| matches!(reply, Reply::Started(_))).await? {
        Reply::Started(started) => Ok(started),
        _ => Err(Error::Panic),
    }
}

async fn expect(line: &Line, wanted: impl Fn(&Reply) -> bool) -> Result<Reply> {
    match line.receive::<Reply>().await.during(|| "talking to the shim".to_owned())? {
        Some((Reply::Failed(text), _)) => Err(Error::Start(text)),
        Some((reply, _)) if wanted(&reply) => Ok(reply),
        _ => Err(Error::Start("the shim ended before the container ran".to_owned())),
    }
}

pub(crate) fn plan_launch(
    runtime: &Runtime,
    sandbox: &Sandbox,
    container: &Container,
) -> Result<Launch> {
    let security = plan::security(&container.config);
    let pid = pid_namespace(runtime, sandbox, &security)?;
    let snapshot = runtime.0.snapshot_directory(&container.id);
    let cgroup = container.cgroup(runtime);
    plan::launch(plan::Input {
        config: &container.config,
        image: &container.record.image.config,
        sandbox: sandbox.view(),
        directory: container.directory.clone(),
        root: Root {
            layers: runtime.0.images.layers(),
            lower: container.record.image.layers.iter().rev().cloned().collect(),
            upper: snapshot.join("upper"),
            work: snapshot.join("work"),
            mount_point: container.directory.join("rootfs"),
            read_only: false,
        },
        available: runtime.0.available,
        pid,
        seccomp: runtime.0.seccomp.filters(&security, runtime.0.available)?,
        devices: devices(&container.config)?.into_iter().map(|(node, _)| node).collect(),
        cgroup: cgroup_view(&cgroup),
    })
}

fn pid_namespace(
    runtime: &Runtime,
    sandbox: &Sandbox,
    security: &v1::LinuxContainerSecurityContext,
) -> Result<PidNamespace> {
    let options = security.namespace_options.clone();
    let mode = options.as_ref().map_or(NamespaceMode::Container, |options| options.pid());
    let of = |started: &Started| PidNamespace::Of { pid: started.pid, start: started.start };
    Ok(match mode {
        NamespaceMode::Node => PidNamespace::Host,
        NamespaceMode::Container => PidNamespace::Own,
        NamespaceMode::Pod => {
            let live = sandbox.live();
            live.pause.as_ref().map_or(PidNamespace::Own, of)
        }
        NamespaceMode::Target => {
            let target = options.map(|options| options.target_id).unwrap_or_default();
            of(&runtime.container(&target)?.running()?)
        }
    })
}

fn cgroup_view(cgroup: &Cgroup) -> CgroupView {
    let host = cgroup.host();
    let mut view = CgroupView::default();
    if host.layout != Layout::V2 {
        for hierarchy in host.hierarchies.iter().filter(|hierarchy| !hierarchy.has("unified")) {
            let name = hierarchy.controllers.join(",");
            view.version1.insert(name.clone(), name);
        }
    }
    let (controller, counter) = match host.layout {
        Layout::V2 => ("unified", "memory.events"),
        _ => ("memory", "memory.oom_control"),
    };
    let of =
        |controller: &str| host.hierarchies.iter().position(|hierarchy| hierarchy.has(controller));
    let directory = |index: Option<usize>| cgroup.directories().nth(index?);
    view.oom_file = directory(of(controller)).map(|directory| directory.join(counter));
    view.kill_file = directory(of("unified")).map(|directory| directory.join("cgroup.kill"));
    view
}

/// Waits for the end of a running container, on a task of its own.
pub(crate) fn watch(runtime: &Runtime, container: &Arc<Container>) {
    let Ok(started) = container.running() else { return };
    // The watch alone must not keep a runtime alive that everyone else has dropped.
    let (runtime_of_watch, watched) = (Arc::downgrade(&runtime.0), container.clone());
    runtime.0.env.spawn("container-exit", async move {
        wait_for_shim(&started).await;
        let Some(of_runtime) = runtime_of_watch.upgrade().map(Runtime) else { return };
        let ended = read_end(&watched).unwrap_or_else(|| Ended {
            code: 137,
            out_of_memory: false,
            at: of_runtime.now_ns(),
            reason: None,
            message: "the container's shim was killed, so the container was ended too".to_owned(),
        });
        let lost = !watched.directory.join(file::ENDED).exists();
        finish(&of_runtime, &watched, Some(started), ended, lost).await;
    });
}

async fn wait_for_shim(started: &Started) {
    let Ok(pidfd) = process::pidfd_open(started.shim_pid) else { return };
    // The pid may have gone to another process before the handle was opened.
    if !process::is_running(started.shim_pid, started.shim_start) {
        return;
    }
    match linux::ready::register(pidfd) {
        Ok(pidfd) => drop(pidfd.readable().await),
        Err(error) => tracing::error!(%error, "a container's end cannot be watched"),
    }
}

fn read_end(container: &Container) -> Option<Ended> {
    serde_json::from_slice(&fs::read(container.directory.join(file::ENDED)).ok()?).ok()
}

/// Records an end, ends what is left in the container's group, and tells everyone.
async fn finish(
    runtime: &Runtime,
    container: &Arc<Container>,
    started: Option<Started>,
    ended: Ended,
    write: bool,
) {
    let (cgroup, directory) = (container.cgroup(runtime), container.directory.clone());
    let kept = ended.clone();
    let cleaned = runtime.blocking(move || {
        if write {
            let bytes = serde_json::to_vec(&kept).unwrap_or_default();
            write_whole(&directory.join(file::ENDED), &bytes)
                .during(|| "recording a container's end".to_owned())?;
        }
        cgroup.kill().during(|| "ending a container's processes".to_owned())
    });
    if let Err(error) = cleaned.await {
        tracing::warn!(container = container.id, error = %stdx::chain(&error), "cleaning up");
    }
    container.phase.send_replace(Phase::Exited { started, ended });
    if let Ok(sandbox) = runtime.sandbox(&container.sandbox_id) {
        emit(runtime, &sandbox, &container.id, ContainerEventType::ContainerStoppedEvent);
    }
}

/// Asks a container to stop, and ends it after `timeout_secs`. Doing it twice is no error.
pub(crate) async fn stop(
    runtime: &Runtime,
    container: &Arc<Container>,
    timeout_secs: i64,
) -> Result<()> {
    let Ok(started) = container.running() else { return Ok(()) };
    let pidfd = process::pidfd_open(started.pid);
    let is_it = process::is_running(started.pid, started.start);
    if timeout_secs > 0
        && let Some(pidfd) = pidfd.ok().filter(|_| is_it)
    {
        use std::os::fd::AsFd;
        let signal = plan::stop_signal(&container.config, &container.record.image.config);
        // A process that ended meanwhile needs no signal.
        let _ = process::pidfd_signal(pidfd.as_fd(), signal);
        let limit = Duration::from_secs(timeout_secs.unsigned_abs());
        if runtime.0.env.timeout(limit, wait_for_end(container)).await.is_some() {
            return Ok(());
        }
    }
    let cgroup = container.cgroup(runtime);
    runtime
        .blocking(move || cgroup.kill().during(|| "ending a container's processes".to_owned()))
        .await?;
    let patience = Duration::from_secs(60);
    let ended = runtime.0.env.timeout(patience, wait_for_end(container)).await;
    ended.ok_or_else(|| {
        Error::Precondition(format!("the processes of the container {} do not end", container.id))
    })
}

/// Resolves when the container does not run.
pub(crate) async fn wait_for_end(container: &Container) {
    let mut phase = container.phase.subscribe();
    let _ = phase.wait_for(|phase| !matches!(phase, Phase::Running(_))).await;
}

/// Removes a container, ending it first. Absence is no error.
pub(crate) async fn remove(runtime: &Runtime, id: &str) -> Result<()> {
    let Ok(container) = runtime.container(id) else { return Ok(()) };
    let _step = container.step.lock().await;
    stop(runtime, &container, 0).await?;
    let slot = lock(&container.slot).take();
    if let Some(slot) = slot {
        slot.discard(runtime).await;
    }
    let (of_runtime, removed) = (runtime.clone(), container.clone());
    runtime.blocking(move || remove_files(&of_runtime, &removed)).await?;
    if runtime.state().containers.remove(&container.id).is_some()
        && let Ok(sandbox) = runtime.sandbox(&container.sandbox_id)
    {
        emit(runtime, &sandbox, &container.id, ContainerEventType::ContainerDeletedEvent);
    }
    Ok(())
}

fn remove_files(runtime: &Runtime, container: &Container) -> Result<()> {
    let what = || format!("removing the container {}", container.id);
    let cgroup = container.cgroup(runtime);
    cgroup.kill().and_then(|()| cgroup.delete()).during(what)?;
    remove_directory(&runtime.0.snapshot_directory(&container.id)).during(what)?;
    remove_directory(&container.directory).during(what)
}

/// Reads the containers of an earlier agent back; answers those that run, to be watched.
pub(crate) fn restore(runtime: &Runtime) -> Result<Vec<Arc<Container>>> {
    let directory = runtime.0.config.state.join("containers");
    let entries = fs::read_dir(&directory).during(|| format!("reading {}", directory.display()))?;
    let mut running = Vec::new();
    for entry in entries.flatten() {
        let id = entry.file_name().to_string_lossy().into_owned();
        let Some(container) = read(entry.path(), &id) else {
            tracing::warn!(container = id, "removing a container that was never completed");
            let _ = remove_directory(&entry.path());
            let _ = remove_directory(&runtime.0.snapshot_directory(&id));
            continue;
        };
        let container = Arc::new(container);
        if container.running().is_ok() {
            running.push(container.clone());
        }
        runtime.state().containers.insert(id, container);
    }
    remove_unknown_snapshots(runtime);
    Ok(running)
}

fn read(directory: PathBuf, id: &str) -> Option<Container> {
    let load = |name: &str| fs::read(directory.join(name)).ok();
    let config = v1::ContainerConfig::decode(&*load("config.pb")?).ok()?;
    let record: Record = serde_json::from_slice(&load("record.json")?).ok()?;
    let started: Option<Started> =
        load(file::STARTED).and_then(|bytes| serde_json::from_slice(&bytes).ok());
    let ended: Option<Ended> =
        load(file::ENDED).and_then(|bytes| serde_json::from_slice(&bytes).ok());
    let phase = match (started, ended) {
        (started, Some(ended)) => Phase::Exited { started, ended },
        // Whether it still runs is for its watcher to find out.
        (Some(started), None) => Phase::Running(started),
        (None, None) => Phase::Created,
    };
    let resources = config.linux.as_ref().and_then(|linux| linux.resources.clone());
    Some(Container {
        id: id.to_owned(),
        sandbox_id: record.sandbox_id.clone(),
        config,
        record,
        directory,
        phase: watch::Sender::new(phase),
        resources: Mutex::new(resources.unwrap_or_default()),
        step: tokio::sync::Mutex::default(),
        slot: Mutex::default(),
    })
}

/// Writable layers whose container went with the machine's last run.
fn remove_unknown_snapshots(runtime: &Runtime) {
    let Ok(entries) = fs::read_dir(runtime.0.config.root.join("snapshots")) else { return };
    for entry in entries.flatten() {
        let id = entry.file_name().to_string_lossy().into_owned();
        if !runtime.state().containers.contains_key(&id) {
            let _ = remove_directory(&entry.path());
        }
    }
}

/// Sets limits of a container, and remembers them.
pub(crate) async fn update(
    runtime: &Runtime,
    id: &str,
    resources: v1::LinuxContainerResources,
) -> Result<()> {
    let container = runtime.container(id)?;
    let _step = container.step.lock().await;
    let (cgroup, limits) = (container.cgroup(runtime), plan::limits(&resources));
    runtime
        .blocking(move || {
            cgroup.apply(&limits).during(|| "setting the container's limits".to_owned())
        })
        .await?;
    merge(&mut lock(&container.resources), resources);
    Ok(())
}

/// Takes over what `new` says and keeps the rest.
fn merge(kept: &mut v1::LinuxContainerResources, new: v1::LinuxContainerResources) {
    let number = |kept: &mut i64, new: i64| {
        if new != 0 {
            *kept = new;
        }
    };
    number(&mut kept.cpu_period, new.cpu_period);
    number(&mut kept.cpu_quota, new.cpu_quota);
    number(&mut kept.cpu_shares, new.cpu_shares);
    number(&mut kept.memory_limit_in_bytes, new.memory_limit_in_bytes);
    number(&mut kept.memory_swap_limit_in_bytes, new.memory_swap_limit_in_bytes);
    for (kept, new) in
        [(&mut kept.cpuset_cpus, new.cpuset_cpus), (&mut kept.cpuset_mems, new.cpuset_mems)]
    {
        if !new.is_empty() {
            *kept = new;
        }
    }
    kept.unified.extend(new.unified);
}

/// Has the shim go on in a new log file.
pub(crate) async fn reopen_log(runtime: &Runtime, id: &str) -> Result<()> {
    let container = runtime.container(id)?;
    container.running()?;
    let mut shim = crate::exec::connect(&container).await?;
    shim.reopen_log().await
}

/// Sends an event, with the pod's and its containers' statuses, to whoever listens.
pub(crate) fn emit(runtime: &Runtime, sandbox: &Sandbox, id: &str, kind: ContainerEventType) {
    if runtime.0.events.receiver_count() == 0 {
        return;
    }
    let statuses = runtime.containers_of(&sandbox.id);
    let event = v1::ContainerEventResponse {
        container_id: id.to_owned(),
        container_event_type: kind as i32,
        created_at: runtime.now_ns(),
        pod_sandbox_status: Some(sandbox.status()),
        containers_statuses: statuses.iter().map(|container| container.status(runtime)).collect(),
    };
    let _ = runtime.0.events.send(event);
}
