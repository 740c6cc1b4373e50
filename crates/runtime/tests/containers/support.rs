//! A node's runtime in a temporary directory, pods on it, and what the machine holds.

use std::{collections::BTreeSet, fs, path::Path, sync::Arc, time::Duration};

use cri::{Endpoint, RuntimeClient, v1};
use runtime::{Config, LoopbackOnly, Runtime};
use stdx::Env;

pub type Outcome = Result<()>;
pub type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

pub const IMAGE: &str = "gantry-test/busybox:1";

/// One runtime with the busybox image.
pub struct Node {
    pub runtime: Runtime,
    pub endpoint: Endpoint,
    pub directory: tempfile::TempDir,
}

pub fn config(directory: &Path) -> Config {
    Config {
        root: directory.join("root"),
        // In memory, as /run is.
        state: Path::new("/dev/shm").join(directory.file_name().unwrap_or_default()),
        cgroup_parent: format!("gantry-test-{}", std::process::id()),
        shim: vec!["gantry-test".into(), "shim".into()],
        seccomp_profiles: directory.join("seccomp"),
    }
}

impl Node {
    pub async fn start() -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("gantry-test-").tempdir()?;
        let archive = directory.path().join("busybox.tar");
        busybox_archive(&archive)?;
        let runtime = open(directory.path()).await?;
        let names = runtime.images().load(&archive)?;
        assert_eq!(names.len(), 1, "{names:?}");
        Ok(Self::around(runtime, directory))
    }

    fn around(runtime: Runtime, directory: tempfile::TempDir) -> Self {
        let endpoint = Endpoint::in_process(Arc::new(runtime.clone()));
        Self { runtime, endpoint, directory }
    }

    /// Ends the agent's side and begins it anew, as a restarted agent does.
    pub async fn restart(self) -> Result<Self> {
        self.restart_after(async { Ok(()) }).await
    }

    /// Begins the agent's side anew only after `pause`.
    pub async fn restart_after(self, pause: impl Future<Output = Outcome>) -> Result<Self> {
        let Self { runtime, endpoint, directory } = self;
        drop((runtime, endpoint));
        pause.await?;
        Ok(Self::around(open(directory.path()).await?, directory))
    }

    pub fn runtime_client(&self) -> RuntimeClient {
        self.endpoint.runtime()
    }

    pub async fn pod(&self) -> Result<Pod> {
        self.pod_with(|_| {}).await
    }

    pub async fn pod_with(&self, change: impl FnOnce(&mut v1::PodSandboxConfig)) -> Result<Pod> {
        let logs = self.directory.path().join("logs");
        let mut config = v1::PodSandboxConfig {
            metadata: Some(v1::PodSandboxMetadata {
                name: "test-pod".into(),
                uid: "1234".into(),
                namespace: "default".into(),
                attempt: 0,
            }),
            hostname: "test-pod".into(),
            log_directory: logs.display().to_string(),
            dns_config: Some(v1::DnsConfig {
                servers: vec!["10.0.0.10".into()],
                ..Default::default()
            }),
            ..Default::default()
        };
        change(&mut config);
        let request = v1::RunPodSandboxRequest {
            config: Some(config.clone()),
            runtime_handler: String::new(),
        };
        let id = self
            .runtime_client()
            .run_pod_sandbox(request)
            .await
            .map_err(told)?
            .into_inner()
            .pod_sandbox_id;
        Ok(Pod { id, config, client: self.runtime_client() })
    }

    /// Removes the groups that this node made; the directory goes with the value.
    pub async fn end(self) -> Result<()> {
        let Self { runtime, endpoint, directory } = self;
        drop((runtime, endpoint));
        let parent = config(directory.path()).cgroup_parent;
        linux::cgroup::Host::detect()?.cgroup(&parent).delete()?;
        Ok(fs::remove_dir_all(config(directory.path()).state)?)
    }
}

async fn open(directory: &Path) -> Result<Runtime> {
    Ok(Runtime::open(Env::real(), config(directory), Arc::new(LoopbackOnly)).await?)
}

pub struct Pod {
    pub id: String,
    pub config: v1::PodSandboxConfig,
    pub client: RuntimeClient,
}

impl Pod {
    pub fn container(&self, command: &[&str]) -> v1::ContainerConfig {
        static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let attempt = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        v1::ContainerConfig {
            metadata: Some(v1::ContainerMetadata { name: "main".into(), attempt }),
            image: Some(v1::ImageSpec { image: IMAGE.into(), ..Default::default() }),
            command: command.iter().map(|part| (*part).to_owned()).collect(),
            log_path: format!("{attempt}.log"),
            linux: Some(v1::LinuxContainerConfig {
                resources: Some(v1::LinuxContainerResources::default()),
                security_context: Some(v1::LinuxContainerSecurityContext {
                    namespace_options: Some(v1::NamespaceOption {
                        pid: v1::NamespaceMode::Container as i32,
                        ..Default::default()
                    }),
                    masked_paths: texts(cri::defaults::MASKED_PATHS),
                    readonly_paths: texts(cri::defaults::READONLY_PATHS),
                    ..Default::default()
                }),
            }),
            ..Default::default()
        }
    }

    pub async fn create(&self, config: v1::ContainerConfig) -> Result<String> {
        let request = v1::CreateContainerRequest {
            pod_sandbox_id: self.id.clone(),
            config: Some(config),
            sandbox_config: Some(self.config.clone()),
        };
        Ok(self
            .client
            .clone()
            .create_container(request)
            .await
            .map_err(told)?
            .into_inner()
            .container_id)
    }

    pub async fn start(&self, id: &str) -> Result<()> {
        let request = v1::StartContainerRequest { container_id: id.to_owned() };
        self.client.clone().start_container(request).await.map_err(told)?;
        Ok(())
    }

    pub async fn run(&self, command: &[&str]) -> Result<String> {
        self.run_with(command, |_| {}).await
    }

    pub async fn run_with(
        &self,
        command: &[&str],
        change: impl FnOnce(&mut v1::ContainerConfig),
    ) -> Result<String> {
        let mut config = self.container(command);
        change(&mut config);
        let id = self.create(config).await?;
        self.start(&id).await?;
        Ok(id)
    }

    /// Runs a command to its end; its exit code and output.
    pub async fn output(
        &self,
        command: &[&str],
        change: impl FnOnce(&mut v1::ContainerConfig),
    ) -> Result<(i32, String)> {
        let id = self.run_with(command, change).await?;
        let status = self.wait_exit(&id).await?;
        let text = |line: &str| line.splitn(4, ' ').nth(3).unwrap_or_default().to_owned() + "\n";
        Ok((status.exit_code, self.log(&id).await?.lines().map(text).collect()))
    }

    pub async fn status(&self, id: &str) -> Result<v1::ContainerStatus> {
        let request = v1::ContainerStatusRequest { container_id: id.to_owned(), verbose: false };
        let response = self.client.clone().container_status(request).await?.into_inner();
        Ok(response.status.ok_or("a status has content")?)
    }

    /// Waits by the event stream, never by polling.
    pub async fn wait_exit(&self, id: &str) -> Result<v1::ContainerStatus> {
        let mut events =
            self.client.clone().get_container_events(v1::GetEventsRequest {}).await?.into_inner();
        let limit = Duration::from_secs(20);
        loop {
            let status = self.status(id).await?;
            if status.state() == v1::ContainerState::ContainerExited {
                return Ok(status);
            }
            let event = Env::real().timeout(limit, events.message()).await;
            event.ok_or("the container did not exit in time")??;
        }
    }

    pub async fn log(&self, id: &str) -> Result<String> {
        Ok(fs::read_to_string(self.status(id).await?.log_path)?)
    }

    pub async fn exec(&self, id: &str, command: &[&str]) -> Result<(i32, String, String)> {
        let request = v1::ExecSyncRequest {
            container_id: id.to_owned(),
            cmd: command.iter().map(|part| (*part).to_owned()).collect(),
            timeout: 10,
        };
        let response = self.client.clone().exec_sync(request).await.map_err(told)?.into_inner();
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Ok((response.exit_code, text(response.stdout), text(response.stderr)))
    }

    pub async fn stop(&self, id: &str, timeout: i64) -> Result<()> {
        let request = v1::StopContainerRequest { container_id: id.to_owned(), timeout };
        self.client.clone().stop_container(request).await?;
        Ok(())
    }

    pub async fn remove(self) -> Result<()> {
        let id = self.id.clone();
        let stop = v1::StopPodSandboxRequest { pod_sandbox_id: id.clone() };
        self.client.clone().stop_pod_sandbox(stop).await?;
        let remove = v1::RemovePodSandboxRequest { pod_sandbox_id: id };
        self.client.clone().remove_pod_sandbox(remove).await?;
        Ok(())
    }
}

/// The security context of a configuration, to change.
pub fn security(config: &mut v1::ContainerConfig) -> &mut v1::LinuxContainerSecurityContext {
    let linux = config.linux.get_or_insert_default();
    linux.security_context.get_or_insert_default()
}

pub fn bind(source: &Path, target: &str) -> v1::Mount {
    v1::Mount {
        host_path: source.display().to_string(),
        container_path: target.to_owned(),
        ..Default::default()
    }
}

/// An error as its text alone.
fn told(status: tonic::Status) -> String {
    status.message().to_owned()
}

pub fn texts(list: &[&str]) -> Vec<String> {
    list.iter().map(|text| (*text).to_owned()).collect()
}

/// Waits until the container's log has a line that contains `text`.
pub async fn wait_log(pod: &Pod, id: &str, text: &str) -> Result<String> {
    let env = Env::real();
    for _ in 0..200 {
        let log = pod.log(id).await.unwrap_or_default();
        if log.contains(text) {
            return Ok(log);
        }
        env.sleep(Duration::from_millis(10)).await;
    }
    Err(format!("{text:?} does not come into the log: {}", pod.log(id).await?).into())
}

/// A docker archive of busybox, with links for its applets.
pub fn busybox_archive(path: &Path) -> Result<()> {
    let busybox = fs::read("/bin/busybox")?;
    let mut layer = tar::Builder::new(Vec::new());
    let header = |name: &str, kind: tar::EntryType, mode: u32, size: usize| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(size as u64);
        header.set_path(name).map(|()| header)
    };
    for (name, mode) in [("bin/", 0o755), ("etc/", 0o755), ("root/", 0o700), ("tmp/", 0o1777)] {
        let mut header = header(name, tar::EntryType::Directory, mode, 0)?;
        header.set_cksum();
        layer.append(&header, &[][..])?;
    }
    let files: [(&str, u32, &[u8]); 3] = [
        ("bin/busybox", 0o755, &busybox),
        ("etc/passwd", 0o644, b"root:x:0:0:root:/root:/bin/sh\nweb:x:33:34:web:/srv:/bin/sh\n"),
        ("etc/group", 0o644, b"root:x:0:\nwww:x:34:\nmedia:x:50:web\n"),
    ];
    for (name, mode, content) in files {
        let mut header = header(name, tar::EntryType::Regular, mode, content.len())?;
        header.set_cksum();
        layer.append(&header, content)?;
    }
    let list = std::process::Command::new("/bin/busybox").arg("--list").output()?.stdout;
    for applet in String::from_utf8(list)?.lines().filter(|applet| *applet != "busybox") {
        let mut header = header(&format!("bin/{applet}"), tar::EntryType::Symlink, 0o777, 0)?;
        header.set_link_name("busybox")?;
        header.set_cksum();
        layer.append(&header, &[][..])?;
    }
    let layer = layer.into_inner()?;
    let diff_id = {
        use sha2::Digest;
        let sum = sha2::Sha256::digest(&layer);
        sum.iter().map(|byte| format!("{byte:02x}")).collect::<String>()
    };
    let config = format!(
        r#"{{"architecture":"amd64","os":"linux","config":{{"Env":["PATH=/bin","FROM=image"],"Cmd":["sh"]}},
            "rootfs":{{"type":"layers","diff_ids":["sha256:{diff_id}"]}}}}"#
    );
    let manifest =
        format!(r#"[{{"Config":"config.json","RepoTags":["{IMAGE}"],"Layers":["layer.tar"]}}]"#);
    let mut archive = tar::Builder::new(fs::File::create(path)?);
    for (name, content) in [
        ("config.json", config.as_bytes()),
        ("layer.tar", &layer),
        ("manifest.json", manifest.as_bytes()),
    ] {
        let mut header = header(name, tar::EntryType::Regular, 0o644, content.len())?;
        header.set_cksum();
        archive.append(&header, content)?;
    }
    Ok(archive.into_inner()?.sync_all()?)
}

/// What this suite could leave behind: our processes, mounts and control groups.
pub fn inventory() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(4));
    found.extend(
        points
            .filter(|point| point.contains("/gantry-test-"))
            .map(|point| format!("mount {point}")),
    );
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let name = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
        let ours = ["gantry-shim", "gantry-usher", "gantry-nursery", "pause", "sleep"];
        let own_children = fs::read_to_string(entry.path().join("cgroup")).unwrap_or_default();
        let tag = format!("gantry-test-{}", std::process::id());
        if ours.contains(&name.trim()) && own_children.contains(&tag) {
            found.insert(format!("process {} {}", entry.file_name().display(), name.trim()));
        }
    }
    if let Ok(host) = linux::cgroup::Host::detect() {
        let tag = format!("gantry-test-{}", std::process::id());
        for directory in host.cgroup(&tag).directories().filter(|directory| directory.exists()) {
            found.insert(format!("control group {}", directory.display()));
        }
    }
    found
}

/// Takes away what a failed case left, so that the next one fails for its own reasons only.
pub fn clean_up() {
    if let Ok(host) = linux::cgroup::Host::detect() {
        let parent = host.cgroup(&format!("gantry-test-{}", std::process::id()));
        let _ = parent.kill().and_then(|()| parent.delete());
    }
    let mounts = linux::mount::table().unwrap_or_default();
    for mount in mounts.iter().rev() {
        if mount.point.to_string_lossy().contains("/gantry-test-") {
            let _ = linux::mount::detach(&mount.point);
        }
    }
}

/// What is there now and was not before; processes and mounts get a moment to go.
pub fn settled_difference(before: &BTreeSet<String>) -> Vec<String> {
    let mut left = Vec::new();
    for _ in 0..100 {
        left = inventory().difference(before).cloned().collect();
        if left.is_empty() {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    left
}
