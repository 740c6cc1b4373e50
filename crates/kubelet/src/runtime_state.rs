//! What the container runtime has of one pod, as the planner reads it.

use std::collections::BTreeMap;

use cri::{RuntimeClient, v1};
use stdx::Timestamp;

use crate::container_log::{Formatter, LogOptions, LogReader};

/// Labels and annotations by which the agent finds its containers again after a restart. They
/// are the same as upstream's, so that tools which read them go on working.
pub mod keys {
    pub const POD_NAME: &str = "io.kubernetes.pod.name";
    pub const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
    pub const POD_UID: &str = "io.kubernetes.pod.uid";
    pub const CONTAINER_NAME: &str = "io.kubernetes.container.name";
    pub const HASH: &str = "io.kubernetes.container.hash";
    pub const RESTART_COUNT: &str = "io.kubernetes.container.restartCount";
    pub const TERMINATION_PATH: &str = "io.kubernetes.container.terminationMessagePath";
    pub const TERMINATION_POLICY: &str = "io.kubernetes.container.terminationMessagePolicy";
    pub const POD_GRACE: &str = "io.kubernetes.pod.terminationGracePeriod";
    pub const CONFIG_SOURCE: &str = "kubernetes.io/config.source";
}

/// Sandboxes and containers of one pod, each newest first.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PodRuntime {
    pub sandboxes: Vec<Sandbox>,
    pub containers: Vec<Container>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sandbox {
    pub id: String,
    pub attempt: u32,
    pub ready: bool,
    pub created_at: i64,
    pub ips: Vec<String>,
    pub host_network: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum State {
    #[default]
    Unknown,
    Created,
    Running,
    Exited,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Container {
    pub id: String,
    pub name: String,
    pub sandbox_id: String,
    pub restart_count: u32,
    pub state: State,
    /// Nanoseconds since the Unix epoch, as the runtime gives them; zero when it has not happened.
    pub created_at: i64,
    pub started_at: i64,
    pub finished_at: i64,
    pub exit_code: i32,
    pub reason: String,
    /// The termination message, read when the container ended.
    pub message: String,
    pub image: String,
    pub image_ref: String,
    pub hash: String,
    pub log_path: String,
    /// uid, gid and supplemental groups of the first process.
    pub user: Option<(i64, i64, Vec<i64>)>,
    pub stop_signal: String,
}

impl Container {
    pub fn started(&self) -> Timestamp {
        Timestamp::from_nanos(i128::from(self.started_at))
    }

    pub fn finished(&self) -> Timestamp {
        Timestamp::from_nanos(i128::from(self.finished_at))
    }

    pub fn is_running(&self) -> bool {
        self.state == State::Running
    }
}

impl PodRuntime {
    /// The newest container of a name.
    pub fn latest(&self, name: &str) -> Option<&Container> {
        self.containers.iter().find(|container| container.name == name)
    }

    pub fn container(&self, id: &str) -> Option<&Container> {
        self.containers.iter().find(|container| container.id == id)
    }

    /// The sandbox that the pod lives in: the newest one when it is ready.
    pub fn active_sandbox(&self) -> Option<&Sandbox> {
        self.sandboxes.first().filter(|sandbox| sandbox.ready)
    }

    pub fn running(&self) -> impl Iterator<Item = &Container> {
        self.containers.iter().filter(|container| container.is_running())
    }

    pub fn ips(&self) -> &[String] {
        self.active_sandbox().map_or(&[], |sandbox| &sandbox.ips)
    }
}

/// Reads one pod from the runtime. Containers that had ended in `before` are not asked again:
/// what has ended does not change.
pub async fn read(
    runtime: &RuntimeClient,
    uid: &str,
    before: &PodRuntime,
) -> Result<PodRuntime, tonic::Status> {
    let mut runtime = runtime.clone();
    let of_pod = [(keys::POD_UID.to_owned(), uid.to_owned())];
    let label_selector = of_pod.clone().into_iter().collect();
    let filter = v1::PodSandboxFilter { label_selector, ..Default::default() };
    let request = v1::ListPodSandboxRequest { filter: Some(filter) };
    let listed = runtime.list_pod_sandbox(request).await?.into_inner().items;
    let mut sandboxes = Vec::with_capacity(listed.len());
    for item in listed {
        if let Some(sandbox) = sandbox(&mut runtime, &item, before).await? {
            sandboxes.push(sandbox);
        }
    }
    let label_selector = of_pod.into_iter().collect();
    let filter = v1::ContainerFilter { label_selector, ..Default::default() };
    let request = v1::ListContainersRequest { filter: Some(filter) };
    let listed = runtime.list_containers(request).await?.into_inner().containers;
    let mut containers = Vec::with_capacity(listed.len());
    for item in listed {
        match before.container(&item.id) {
            Some(known) if known.state == State::Exited => containers.push(known.clone()),
            _ => containers.extend(container(&mut runtime, &item).await?),
        }
    }
    Ok(sorted(sandboxes, containers))
}

fn sorted(mut sandboxes: Vec<Sandbox>, mut containers: Vec<Container>) -> PodRuntime {
    sandboxes.sort_by_key(|sandbox| std::cmp::Reverse((sandbox.created_at, sandbox.attempt)));
    containers.sort_by_key(|c| std::cmp::Reverse((c.created_at, c.restart_count)));
    PodRuntime { sandboxes, containers }
}

async fn sandbox(
    runtime: &mut RuntimeClient,
    item: &v1::PodSandbox,
    before: &PodRuntime,
) -> Result<Option<Sandbox>, tonic::Status> {
    let ready = item.state == v1::PodSandboxState::SandboxReady as i32;
    // A sandbox keeps its addresses for life; what is known need not be asked again.
    if let Some(known) = before.sandboxes.iter().find(|known| known.id == item.id) {
        if known.ready == ready && (!known.ips.is_empty() || known.host_network || !ready) {
            return Ok(Some(known.clone()));
        }
    }
    let request = v1::PodSandboxStatusRequest { pod_sandbox_id: item.id.clone(), verbose: false };
    let answer = match runtime.pod_sandbox_status(request).await {
        Ok(answer) => answer.into_inner(),
        Err(status) if status.code() == tonic::Code::NotFound => return Ok(None),
        Err(status) => return Err(status),
    };
    Ok(answer.status.map(|status| read_sandbox(&status)))
}

fn read_sandbox(status: &v1::PodSandboxStatus) -> Sandbox {
    let network = status.network.as_ref();
    let first = network.map(|n| n.ip.clone()).filter(|ip| !ip.is_empty());
    let more = network.into_iter().flat_map(|n| &n.additional_ips).map(|ip| ip.ip.clone());
    let options = status.linux.as_ref().and_then(|l| l.namespaces.as_ref()?.options.as_ref());
    Sandbox {
        id: status.id.clone(),
        attempt: status.metadata.as_ref().map_or(0, |metadata| metadata.attempt),
        ready: status.state == v1::PodSandboxState::SandboxReady as i32,
        created_at: status.created_at,
        ips: first.into_iter().chain(more).collect(),
        host_network: options.is_some_and(|o| o.network == v1::NamespaceMode::Node as i32),
    }
}

async fn container(
    runtime: &mut RuntimeClient,
    item: &v1::Container,
) -> Result<Option<Container>, tonic::Status> {
    let request = v1::ContainerStatusRequest { container_id: item.id.clone(), verbose: false };
    let answer = match runtime.container_status(request).await {
        Ok(answer) => answer.into_inner(),
        Err(status) if status.code() == tonic::Code::NotFound => return Ok(None),
        Err(status) => return Err(status),
    };
    Ok(answer.status.map(|status| read_container(status, item)))
}

fn read_container(status: v1::ContainerStatus, item: &v1::Container) -> Container {
    let metadata = status.metadata.clone().unwrap_or_default();
    let annotation = |key: &str| status.annotations.get(key).cloned().unwrap_or_default();
    let state = match v1::ContainerState::try_from(status.state) {
        Ok(v1::ContainerState::ContainerCreated) => State::Created,
        Ok(v1::ContainerState::ContainerRunning) => State::Running,
        Ok(v1::ContainerState::ContainerExited) => State::Exited,
        _ => State::Unknown,
    };
    let user = status.user.and_then(|user| user.linux);
    let reason = match (state, status.reason.as_str(), status.exit_code) {
        (State::Exited, "", 0) => "Completed".to_owned(),
        (State::Exited, "", _) => "Error".to_owned(),
        _ => status.reason,
    };
    let signal = v1::Signal::try_from(status.stop_signal).unwrap_or_default();
    Container {
        id: status.id,
        name: metadata.name,
        sandbox_id: item.pod_sandbox_id.clone(),
        restart_count: annotation(keys::RESTART_COUNT).parse().unwrap_or(metadata.attempt),
        state,
        created_at: status.created_at,
        started_at: status.started_at,
        finished_at: status.finished_at,
        exit_code: status.exit_code,
        reason,
        message: termination_message(
            &annotation(keys::TERMINATION_PATH),
            &status.mounts,
            (annotation(keys::TERMINATION_POLICY) == "FallbackToLogsOnError"
                && status.exit_code != 0)
                .then_some(status.log_path.as_str()),
            status.message,
        ),
        image: status
            .image
            .map(|image| first_of(image.user_specified_image, image.image))
            .unwrap_or_default(),
        image_ref: first_of(status.image_ref, status.image_id),
        hash: annotation(keys::HASH),
        log_path: status.log_path,
        user: user.map(|user| (user.uid, user.gid, user.supplemental_groups)),
        stop_signal: signal.as_str_name().strip_prefix("SIGNAL_").unwrap_or_default().to_owned(),
    }
}

fn first_of(first: String, second: String) -> String {
    if first.is_empty() { second } else { first }
}

/// Upstream's limit on a termination message, in bytes.
const MESSAGE_LIMIT: usize = 4096;

/// The file that the container may have written, found by where it was mounted; else the end of
/// its log where that is asked for; else the runtime's own words.
fn termination_message(
    path: &str,
    mounts: &[v1::Mount],
    log: Option<&str>,
    fallback: String,
) -> String {
    let mount = mounts.iter().find(|mount| mount.container_path == path);
    let written = mount.map(|mount| read_start(&mount.host_path)).unwrap_or_default();
    if !written.is_empty() {
        return written;
    }
    let logged = log.map(end_of_log).unwrap_or_default();
    if logged.is_empty() { fallback } else { logged }
}

fn read_start(path: &str) -> String {
    let Ok(file) = std::fs::File::open(path) else { return String::new() };
    let mut bytes = Vec::new();
    let limited = std::io::Read::take(file, MESSAGE_LIMIT as u64);
    let _ = std::io::Read::read_to_end(&mut { limited }, &mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Upstream's share of a log: 80 lines, 2048 bytes.
fn end_of_log(path: &str) -> String {
    const LINES: usize = 80;
    const BYTES: usize = 2048;
    let options = LogOptions { tail: Some(LINES), ..LogOptions::default() };
    let mut formatter = Formatter::new(&options);
    let read = LogReader::open(std::path::Path::new(path), options.tail)
        .and_then(|mut reader| reader.read(&mut formatter));
    let bytes = read.unwrap_or_default();
    let start = bytes.len().saturating_sub(BYTES);
    String::from_utf8_lossy(&bytes[start..]).into_owned()
}

/// All pods that the runtime knows, by uid, with namespace and name: for adoption and clean-up.
pub async fn known_pods(
    runtime: &RuntimeClient,
) -> Result<BTreeMap<String, (String, String)>, tonic::Status> {
    let mut runtime = runtime.clone();
    let listed = runtime.list_pod_sandbox(v1::ListPodSandboxRequest { filter: None }).await?;
    let items = listed.into_inner().items;
    Ok(items
        .into_iter()
        .filter_map(|item| item.metadata)
        .map(|metadata| (metadata.uid, (metadata.namespace, metadata.name)))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_comes_from_the_file_or_the_log() {
        let root = tempfile::tempdir().unwrap();
        let (file, log) = (root.path().join("message"), root.path().join("0.log"));
        std::fs::write(&file, "").unwrap();
        std::fs::write(&log, "t stdout F first\nt stderr F last words\n").unwrap();
        let mount = v1::Mount {
            container_path: "/dev/termination-log".into(),
            host_path: file.to_string_lossy().into_owned(),
            ..v1::Mount::default()
        };
        let log = log.to_string_lossy().into_owned();
        let get = |log: Option<&str>| {
            let mounts = std::slice::from_ref(&mount);
            termination_message("/dev/termination-log", mounts, log, "runtime".into())
        };
        assert_eq!(get(None), "runtime");
        assert_eq!(get(Some(&log)), "first\nlast words\n");
        std::fs::write(&file, "said").unwrap();
        assert_eq!(get(Some(&log)), "said");
    }
}
