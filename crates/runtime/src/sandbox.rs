//! Pod sandboxes: namespaces without a process, shared memory, name resolution, network.

use std::{
    collections::BTreeMap,
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use cri::v1::{self, NamespaceMode};
use linux::{
    cgroup::Cgroup,
    links::Rtnl,
    mount,
    pinned::{self, Pin},
    process::{self, ns},
};
use prost::Message;
use serde::{Deserialize, Serialize};

use crate::{
    PodNetwork, Runtime,
    container::{self, Slot},
    error::{During, Error, Result},
    launch::{Namespaces, Reply, Request, Started},
    plan, remove_directory, write_whole,
};

/// A pod's sandbox.
pub(crate) struct Sandbox {
    pub id: String,
    pub config: v1::PodSandboxConfig,
    pub record: Record,
    pub directory: PathBuf,
    live: Mutex<Live>,
    /// One step on a sandbox at a time.
    pub step: tokio::sync::Mutex<()>,
    /// A shim whose child already sits in the control group of the pod's next container.
    pub spare: Mutex<Option<Slot>>,
}

/// What does not change.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Record {
    pub created_at: i64,
    pub cgroup: String,
    /// The group is ours to delete; else it is the kubelet's.
    pub owns_cgroup: bool,
    pub runtime_handler: String,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Live {
    pub ready: bool,
    pub ips: Vec<IpAddr>,
    /// The first process of the shared PID namespace, when the pod has one.
    pub pause: Option<Started>,
}

/// The size of a pod's /dev/shm, in bytes.
const SHARED_MEMORY_BYTES: u64 = 64 << 20;

impl Sandbox {
    pub fn live(&self) -> MutexGuard<'_, Live> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn metadata(&self) -> v1::PodSandboxMetadata {
        self.config.metadata.clone().unwrap_or_default()
    }

    pub fn cgroup(&self, runtime: &Runtime) -> Cgroup {
        runtime.0.cgroups.cgroup(&self.record.cgroup)
    }

    fn pin(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    pub fn netns(&self) -> Option<PathBuf> {
        (!plan::pod_namespaces(&self.config).host_network).then(|| self.pin("net"))
    }

    pub fn namespaces(&self) -> Namespaces {
        let wanted = plan::pod_namespaces(&self.config);
        Namespaces {
            net: self.netns(),
            ipc: (!wanted.host_ipc).then(|| self.pin("ipc")),
            uts: (!wanted.host_network).then(|| self.pin("uts")),
            ..Namespaces::default()
        }
    }

    pub fn view(&self) -> plan::SandboxView<'_> {
        let wanted = plan::pod_namespaces(&self.config);
        let shared = if wanted.host_ipc { "/dev/shm".into() } else { self.pin("shm") };
        plan::SandboxView {
            config: &self.config,
            namespaces: self.namespaces(),
            shared_memory: Some(shared),
            resolv_conf: Some(self.pin("resolv.conf")),
            hostname_file: Some(self.pin("hostname")),
            hostname: self.hostname(),
        }
    }

    fn hostname(&self) -> String {
        if plan::pod_namespaces(&self.config).host_network || self.config.hostname.is_empty() {
            let name = rustix::system::uname();
            return name.nodename().to_string_lossy().into_owned();
        }
        self.config.hostname.clone()
    }

    fn network(&self) -> Option<PodNetwork> {
        let metadata = self.metadata();
        Some(PodNetwork {
            sandbox_id: self.id.clone(),
            netns: self.netns()?,
            namespace: metadata.namespace,
            name: metadata.name,
            uid: metadata.uid,
            annotations: self.config.annotations.clone().into_iter().collect(),
            port_mappings: self.config.port_mappings.clone(),
        })
    }

    fn save(&self) -> Result<()> {
        let live = serde_json::to_vec(&*self.live()).unwrap_or_default();
        write_whole(&self.directory.join("live.json"), &live)
            .during(|| format!("recording the sandbox {}", self.id))
    }

    pub fn status(&self) -> v1::PodSandboxStatus {
        let live = self.live();
        let mut ips = live.ips.iter().map(IpAddr::to_string);
        let options = self.config.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
        let options = options.and_then(|security| security.namespace_options.clone());
        v1::PodSandboxStatus {
            id: self.id.clone(),
            metadata: self.config.metadata.clone(),
            state: state_number(live.ready),
            created_at: self.record.created_at,
            network: Some(v1::PodSandboxNetworkStatus {
                ip: ips.next().unwrap_or_default(),
                additional_ips: ips.map(|ip| v1::PodIp { ip }).collect(),
            }),
            linux: Some(v1::LinuxPodSandboxStatus {
                namespaces: Some(v1::Namespace { options: Some(options.unwrap_or_default()) }),
            }),
            labels: self.config.labels.clone(),
            annotations: self.config.annotations.clone(),
            runtime_handler: self.record.runtime_handler.clone(),
        }
    }

    pub fn summary(&self) -> v1::PodSandbox {
        v1::PodSandbox {
            id: self.id.clone(),
            metadata: self.config.metadata.clone(),
            state: state_number(self.live().ready),
            created_at: self.record.created_at,
            labels: self.config.labels.clone(),
            annotations: self.config.annotations.clone(),
            runtime_handler: self.record.runtime_handler.clone(),
        }
    }
}

fn state_number(ready: bool) -> i32 {
    let state = if ready {
        v1::PodSandboxState::SandboxReady
    } else {
        v1::PodSandboxState::SandboxNotready
    };
    state as i32
}

/// Creates and starts a sandbox; answers its ID.
pub(crate) async fn run(runtime: &Runtime, request: v1::RunPodSandboxRequest) -> Result<String> {
    let config = request.config.ok_or_else(|| missing("config"))?;
    if config.metadata.is_none() {
        return Err(missing("metadata"));
    }
    if !request.runtime_handler.is_empty() {
        let text = format!("there is no runtime handler {:?}", request.runtime_handler);
        return Err(Error::Invalid(text));
    }
    let id = runtime.new_id();
    let asked = config.linux.as_ref().map(|linux| linux.cgroup_parent.clone()).unwrap_or_default();
    let owns_cgroup = asked.is_empty();
    let cgroup = if owns_cgroup {
        let parent = runtime.0.cgroups.cgroup(&runtime.0.config.cgroup_parent);
        parent.child(&format!("pod-{}", &id[..16])).path()
    } else {
        asked
    };
    let record = Record {
        created_at: runtime.now_ns(),
        cgroup,
        owns_cgroup,
        runtime_handler: request.runtime_handler,
    };
    let sandbox = Arc::new(Sandbox {
        directory: runtime.0.sandbox_directory(&id),
        id: id.clone(),
        config,
        record,
        live: Mutex::default(),
        step: tokio::sync::Mutex::default(),
        spare: Mutex::default(),
    });
    match start(runtime, &sandbox).await {
        Ok(()) => {
            runtime.state().sandboxes.insert(id.clone(), sandbox.clone());
            container::emit(runtime, &sandbox, &id, v1::ContainerEventType::ContainerCreatedEvent);
            container::emit(runtime, &sandbox, &id, v1::ContainerEventType::ContainerStartedEvent);
            Ok(id)
        }
        Err(error) => {
            if let Err(error) = release(runtime, &sandbox).await {
                tracing::warn!(sandbox = id, error = %stdx::chain(&error), "cleaning up a sandbox");
            }
            let _ = remove_files(runtime, &sandbox).await;
            Err(error)
        }
    }
}

fn missing(field: &str) -> Error {
    Error::Invalid(format!("the request lacks {field}"))
}

async fn start(runtime: &Runtime, sandbox: &Arc<Sandbox>) -> Result<()> {
    let (of_runtime, of_sandbox) = (runtime.clone(), sandbox.clone());
    runtime.blocking(move || lay_out(&of_runtime, &of_sandbox)).await?;
    // The slow part of the first container's start goes on while the network is set up.
    match container::prepare(runtime, sandbox, runtime.new_id()).await {
        Ok(slot) => *lock(&sandbox.spare) = Some(slot),
        Err(error) => tracing::warn!(error = %stdx::chain(&error), "preparing a container"),
    }
    if plan::pod_namespaces(&sandbox.config).pid == NamespaceMode::Pod {
        let pause = start_pause(runtime).await?;
        sandbox.live().pause = Some(pause);
    }
    if let Some(network) = sandbox.network() {
        let ips = runtime.0.network.setup(&network).await;
        sandbox.live().ips = ips.map_err(|error| Error::Network("set up", error.to_string()))?;
    }
    sandbox.live().ready = true;
    sandbox.save()
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Files, namespaces and groups of a new sandbox.
fn lay_out(runtime: &Runtime, sandbox: &Sandbox) -> Result<()> {
    let directory = &sandbox.directory;
    let what = || format!("creating the sandbox {}", sandbox.id);
    fs::create_dir(directory).during(what)?;
    fs::write(directory.join("config.pb"), sandbox.config.encode_to_vec()).during(what)?;
    fs::write(
        directory.join("record.json"),
        serde_json::to_vec(&sandbox.record).unwrap_or_default(),
    )
    .during(what)?;
    fs::write(directory.join("hostname"), format!("{}\n", sandbox.hostname())).during(what)?;
    let resolv = match &sandbox.config.dns_config {
        Some(dns) => plan::resolv_conf(dns),
        None => fs::read_to_string("/etc/resolv.conf").unwrap_or_default(),
    };
    fs::write(directory.join("resolv.conf"), resolv).during(what)?;
    create_namespaces(sandbox)?;
    let wanted = plan::pod_namespaces(&sandbox.config);
    if !wanted.host_ipc {
        let path = directory.join("shm");
        fs::create_dir(&path).during(what)?;
        let options =
            mount::Options { no_suid: true, no_dev: true, no_exec: true, read_only: false };
        mount::tmpfs(&path, Some(SHARED_MEMORY_BYTES), 0o1777, options)
            .during(|| "mounting the pod's shared memory".to_owned())?;
    }
    let cgroup = sandbox.cgroup(runtime);
    cgroup.create().during(|| format!("creating the control group {}", cgroup.path()))?;
    Ok(())
}

fn create_namespaces(sandbox: &Sandbox) -> Result<()> {
    let wanted = plan::pod_namespaces(&sandbox.config);
    let namespaces = sandbox.namespaces();
    let pins: Vec<Pin> =
        [(ns::NET, namespaces.net), (ns::IPC, namespaces.ipc), (ns::UTS, namespaces.uts)]
            .into_iter()
            .filter_map(|(kind, path)| Some(Pin { kind, path: path? }))
            .collect();
    let linux = sandbox.config.linux.clone().unwrap_or_default();
    let sysctls: BTreeMap<String, String> = linux.sysctls.into_iter().collect();
    check_sysctls(&sysctls, wanted)?;
    if pins.is_empty() {
        return Ok(());
    }
    let hostname = sandbox.config.hostname.clone();
    pinned::create(&pins, move || {
        if !wanted.host_network {
            Rtnl::open()
                .and_then(|mut rtnl| rtnl.set_up(LOOPBACK))
                .map_err(std::io::Error::other)?;
            if !hostname.is_empty() {
                rustix::system::sethostname(hostname.as_bytes())?;
            }
        }
        for (name, value) in &sysctls {
            let path = Path::new("/proc/sys").join(name.replace('.', "/"));
            fs::write(&path, value).map_err(|error| {
                std::io::Error::new(error.kind(), format!("setting the sysctl {name}: {error}"))
            })?;
        }
        Ok(())
    })
    .during(|| "creating the pod's namespaces".to_owned())
}

/// The index of a network namespace's first device.
const LOOPBACK: u32 = 1;

/// Only what a namespace of the pod's own holds may be set; the rest would change the host.
fn check_sysctls(sysctls: &BTreeMap<String, String>, wanted: plan::PodNamespaces) -> Result<()> {
    for name in sysctls.keys() {
        let dotted = name.replace('/', ".");
        let of_ipc = ["kernel.shm", "kernel.msg", "kernel.sem", "fs.mqueue."];
        let of_ipc = of_ipc.iter().any(|prefix| dotted.starts_with(prefix));
        let allowed = (dotted.starts_with("net.") && !wanted.host_network)
            || (of_ipc && !wanted.host_ipc)
            || (dotted == "kernel.domainname" && !wanted.host_network);
        if !allowed || dotted.contains("..") {
            let text = format!("the sysctl {name:?} is not within a namespace of the pod");
            return Err(Error::Invalid(text));
        }
    }
    Ok(())
}

async fn start_pause(runtime: &Runtime) -> Result<Started> {
    let what = || "starting the pod's first process".to_owned();
    let line = runtime.0.nursery.fork().await.during(what)?;
    line.send(&Request::Pause, &[]).during(what)?;
    match line.receive::<Reply>().await.during(what)? {
        Some((Reply::Started(started), _)) => Ok(started),
        Some((Reply::Failed(text), _)) => Err(Error::Start(text)),
        _ => Err(Error::Start("the pod's first process ended unexpectedly".to_owned())),
    }
}

/// Stops a sandbox: its containers, its network, its namespaces. Doing it twice is no error.
pub(crate) async fn stop(runtime: &Runtime, id: &str) -> Result<()> {
    let sandbox = match runtime.sandbox(id) {
        Ok(sandbox) => sandbox,
        // Kubelets stop what another of their steps has removed.
        Err(Error::NotFound(..)) => return Ok(()),
        Err(error) => return Err(error),
    };
    let _step = sandbox.step.lock().await;
    for container in runtime.containers_of(&sandbox.id) {
        container::stop(runtime, &container, 0).await?;
    }
    let was_ready = std::mem::replace(&mut sandbox.live().ready, false);
    sandbox.save()?;
    release(runtime, &sandbox).await?;
    if was_ready {
        let stopped = v1::ContainerEventType::ContainerStoppedEvent;
        container::emit(runtime, &sandbox, &sandbox.id, stopped);
    }
    Ok(())
}

/// Gives back everything that lives outside the sandbox's directory.
async fn release(runtime: &Runtime, sandbox: &Arc<Sandbox>) -> Result<()> {
    let spare = lock(&sandbox.spare).take();
    if let Some(slot) = spare {
        slot.discard(runtime).await;
    }
    if let Some(pause) = sandbox.live().pause.take()
        && process::is_running(pause.pid, pause.start)
    {
        let _ = process::kill(pause.pid, process::signal::KILL);
    }
    if let Some(network) = sandbox.network() {
        let result = runtime.0.network.teardown(&network).await;
        result.map_err(|error| Error::Network("torn down", error.to_string()))?;
    }
    let sandbox = sandbox.clone();
    runtime
        .blocking(move || {
            let what = || format!("releasing the sandbox {}", sandbox.id);
            for name in ["net", "ipc", "uts"] {
                pinned::release(&sandbox.pin(name)).during(what)?;
            }
            mount::detach(&sandbox.pin("shm")).during(what)
        })
        .await
}

/// Removes a sandbox with its containers. Absence is no error.
pub(crate) async fn remove(runtime: &Runtime, id: &str) -> Result<()> {
    let Ok(sandbox) = runtime.sandbox(id) else { return Ok(()) };
    stop(runtime, &sandbox.id).await?;
    for container in runtime.containers_of(&sandbox.id) {
        container::remove(runtime, &container.id).await?;
    }
    let _step = sandbox.step.lock().await;
    remove_files(runtime, &sandbox).await?;
    if runtime.state().sandboxes.remove(&sandbox.id).is_some() {
        let deleted = v1::ContainerEventType::ContainerDeletedEvent;
        container::emit(runtime, &sandbox, &sandbox.id, deleted);
    }
    Ok(())
}

async fn remove_files(runtime: &Runtime, sandbox: &Arc<Sandbox>) -> Result<()> {
    let (of_runtime, sandbox) = (runtime.clone(), sandbox.clone());
    runtime
        .blocking(move || {
            let what = || format!("removing the sandbox {}", sandbox.id);
            if sandbox.record.owns_cgroup {
                let cgroup = sandbox.cgroup(&of_runtime);
                cgroup.kill().and_then(|()| cgroup.delete()).during(what)?;
            }
            remove_directory(&sandbox.directory).during(what)
        })
        .await
}

/// Reads the sandboxes of an earlier agent back.
pub(crate) fn restore(runtime: &Runtime) -> Result<()> {
    let directory = runtime.0.config.state.join("sandboxes");
    let entries = fs::read_dir(&directory).during(|| format!("reading {}", directory.display()))?;
    let mounted = mount::table().during(|| "reading the mounts".to_owned())?;
    for entry in entries.flatten() {
        let id = entry.file_name().to_string_lossy().into_owned();
        match read(&entry.path(), &id) {
            Some(sandbox) => {
                // Without its pinned namespaces (a restarted machine) it cannot go on.
                let pinned = |path: &PathBuf| mounted.iter().any(|mounted| mounted.point == *path);
                if sandbox.netns().is_some_and(|netns| !pinned(&netns)) {
                    sandbox.live().ready = false;
                }
                runtime.state().sandboxes.insert(id, Arc::new(sandbox));
            }
            None => {
                tracing::warn!(sandbox = id, "removing a sandbox that was never completed");
                let _ = mount::detach_below(&entry.path());
                let _ = remove_directory(&entry.path());
            }
        }
    }
    Ok(())
}

fn read(directory: &Path, id: &str) -> Option<Sandbox> {
    let config = fs::read(directory.join("config.pb")).ok()?;
    let record = fs::read(directory.join("record.json")).ok()?;
    let live = fs::read(directory.join("live.json")).ok()?;
    Some(Sandbox {
        id: id.to_owned(),
        config: v1::PodSandboxConfig::decode(&*config).ok()?,
        record: serde_json::from_slice(&record).ok()?,
        directory: directory.to_owned(),
        live: Mutex::new(serde_json::from_slice(&live).ok()?),
        step: tokio::sync::Mutex::default(),
        spare: Mutex::default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_sysctls_of_the_pods_namespaces_are_set() {
        let pod =
            plan::PodNamespaces { host_network: false, host_ipc: false, pid: NamespaceMode::Pod };
        let host = plan::PodNamespaces { host_network: true, host_ipc: true, ..pod };
        let check = |name: &str, wanted| {
            check_sysctls(&BTreeMap::from([(name.to_owned(), "1".to_owned())]), wanted).is_ok()
        };
        assert!(check("net.ipv4.ip_unprivileged_port_start", pod));
        assert!(check("kernel.shm_rmid_forced", pod));
        assert!(!check("net.ipv4.ip_forward", host));
        assert!(!check("kernel.shmmax", host));
        assert!(!check("kernel.panic", pod));
        assert!(!check("net...kernel.panic", pod));
    }
}
