//! The embedded container runtime: images, pod sandboxes and containers, served as CRI v1.
//!
//! Flow: a CRI call ([`service`]) becomes a step on a [`sandbox`] or a [`container`]; [`plan`]
//! decides everything about a container without touching the system; a shim ([`shim`]), forked
//! from one small process per agent, carries the plan out and stays as the container's parent.
//! Ends of containers arrive by pidfd and leave as CRI events, so nobody polls.
//!
//! On disk: `root` holds images and the writable layers of containers (it must be a real file
//! system or tmpfs, never an overlay); `state` holds what is true until the machine restarts
//! (sandboxes, containers, pinned namespaces, the shims' sockets and results). After a restart of
//! the agent [`Runtime::open`] reads the state back and finds every shim that still runs.
//!
//! Invariants: containers outlive the agent; a container's exit code is on disk before its shim
//! ends; nothing is mounted on the host for a container but its pod's pinned namespaces and
//! shared memory; a failed step leaves nothing behind; only `linux` has unsafe code.
//!
//! Why no OCI runtime library: most of what runc, crun or libcontainer need for a start (12-43 ms)
//! is one grace period of the kernel when a process moves into a version 1 control group, and the
//! execution of a helper. Here the helper is a fork, and the move happens while the pod's network
//! is set up: `docs/runtime.md` has the figures.

mod container;
mod error;
mod exec;
mod image;
mod image_service;
mod launch;
mod nursery;
mod plan;
mod sandbox;
mod seccomp_profile;
mod service;
mod shim;
mod stats;

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use cri::v1;
use linux::{caps::Caps, cgroup};
use stdx::Env;
use tokio::sync::broadcast;

use container::Container;
use error::During;
pub use error::{Error, Result};
pub use image::{Credentials, Image, ImageConfig, Store};
use nursery::Nursery;
use sandbox::Sandbox;

/// Where a runtime keeps its things and how it starts its shims.
#[derive(Clone, Debug)]
pub struct Config {
    /// Images and writable layers.
    pub root: PathBuf,
    /// What does not outlive the machine's run; `/run/…` is the place for it.
    pub state: PathBuf,
    /// Control group for pods whose request names none and for the shims, counted from the root
    /// of the mounted hierarchies.
    pub cgroup_parent: String,
    /// The hidden subcommand that ends in [`shim_main`], with the name to run under first:
    /// `["gantry", "shim"]`. It runs this process's own program.
    pub shim: Vec<OsString>,
    /// Seccomp profiles of pods (`Localhost`) lie here.
    pub seccomp_profiles: PathBuf,
}

/// What a network does for a pod.
#[derive(Clone, Debug)]
pub struct PodNetwork {
    pub sandbox_id: String,
    /// The pinned network namespace; its loopback device is up.
    pub netns: PathBuf,
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub annotations: BTreeMap<String, String>,
    pub port_mappings: Vec<v1::PortMapping>,
}

/// Connects pods; implemented by the network, called by the runtime.
#[tonic::async_trait]
pub trait SandboxNetwork: Send + Sync + 'static {
    /// Connects the pod and answers its addresses, the primary one first.
    async fn setup(&self, pod: &PodNetwork) -> Result<Vec<IpAddr>, BoxError>;
    /// Undoes [`SandboxNetwork::setup`], also a half done one; doing it twice is no error.
    async fn teardown(&self, pod: &PodNetwork) -> Result<(), BoxError>;
    /// Why pods cannot be connected now, in one sentence.
    fn not_ready(&self) -> Option<String> {
        None
    }
}

pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Pods with a loopback device and nothing else.
pub struct LoopbackOnly;

#[tonic::async_trait]
impl SandboxNetwork for LoopbackOnly {
    async fn setup(&self, _pod: &PodNetwork) -> Result<Vec<IpAddr>, BoxError> {
        Ok(Vec::new())
    }
    async fn teardown(&self, _pod: &PodNetwork) -> Result<(), BoxError> {
        Ok(())
    }
}

/// The entry of the hidden `shim` subcommand; its value is the process's exit code. Must be
/// called before the process starts a thread.
pub fn shim_main() -> i32 {
    shim::main()
}

/// A running runtime. Cheap to clone; serves CRI by [`cri::Endpoint::in_process`] or
/// [`cri::routes`], and streams by [`cri::streaming::Streaming`].
#[derive(Clone)]
pub struct Runtime(Arc<Inner>);

pub(crate) struct Inner {
    env: Env,
    config: Config,
    cgroups: Arc<cgroup::Host>,
    nursery: Nursery,
    images: Arc<Store>,
    network: Arc<dyn SandboxNetwork>,
    available: Caps,
    seccomp: seccomp_profile::Cache,
    state: Mutex<State>,
    events: broadcast::Sender<v1::ContainerEventResponse>,
}

#[derive(Default)]
struct State {
    sandboxes: BTreeMap<String, Arc<Sandbox>>,
    containers: BTreeMap<String, Arc<Container>>,
}

/// How many events a slow reader of the event stream may lag behind before it misses some.
const EVENT_BACKLOG: usize = 1024;

impl Runtime {
    /// Opens the runtime: reads back what an earlier agent left, and cleans up after containers
    /// whose shim is gone. An error says in one sentence what the host lacks.
    pub async fn open(env: Env, config: Config, network: Arc<dyn SandboxNetwork>) -> Result<Self> {
        let blocking_env = env.clone();
        let inner = blocking_env
            .blocking(move || Inner::open(env, config, network))
            .await
            .unwrap_or(Err(Error::Panic))?;
        let runtime = Self(Arc::new(inner));
        runtime.restore().await?;
        Ok(runtime)
    }

    /// The images, for tools that load, list and remove them without CRI.
    pub fn images(&self) -> &Arc<Store> {
        &self.0.images
    }

    async fn restore(&self) -> Result<()> {
        let runtime = self.clone();
        let containers = self.blocking(move || {
            sandbox::restore(&runtime)?;
            container::restore(&runtime)
        });
        for container in containers.await? {
            container::watch(self, &container);
        }
        Ok(())
    }

    /// Runs `work` where it may block.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.0.env.blocking(work).await.unwrap_or(Err(Error::Panic))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sandbox(&self, id: &str) -> Result<Arc<Sandbox>> {
        find(&self.state().sandboxes, id)
            .ok_or_else(|| Error::NotFound("pod sandbox", id.to_owned()))
    }

    fn container(&self, id: &str) -> Result<Arc<Container>> {
        find(&self.state().containers, id)
            .ok_or_else(|| Error::NotFound("container", id.to_owned()))
    }

    fn containers_of(&self, sandbox_id: &str) -> Vec<Arc<Container>> {
        let state = self.state();
        let own = state.containers.values().filter(|container| container.sandbox_id == sandbox_id);
        own.cloned().collect()
    }

    /// Nanoseconds since the Unix epoch.
    fn now_ns(&self) -> i64 {
        self.0.env.now().as_nanos() as i64
    }

    /// A new ID of 64 hexadecimal digits.
    fn new_id(&self) -> String {
        let mut bytes = [0; 32];
        self.0.env.fill_random(&mut bytes);
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// By ID or by a beginning of one that no other shares.
fn find<T>(map: &BTreeMap<String, Arc<T>>, id: &str) -> Option<Arc<T>> {
    if let Some(exact) = map.get(id) {
        return Some(exact.clone());
    }
    if id.is_empty() {
        return None;
    }
    let mut matching = map.range(id.to_owned()..).take_while(|(known, _)| known.starts_with(id));
    let first = matching.next();
    first.filter(|_| matching.next().is_none()).map(|(_, found)| found.clone())
}

impl Inner {
    fn open(env: Env, config: Config, network: Arc<dyn SandboxNetwork>) -> Result<Self> {
        let cgroups = cgroup::Host::detect().during(|| "finding the control groups".to_owned())?;
        for directory in [config.state.join("sandboxes"), config.state.join("containers")] {
            fs::create_dir_all(&directory)
                .during(|| format!("creating {}", directory.display()))?;
        }
        let images = Arc::new(Store::open(&config.root)?);
        check_file_system(&config.root)?;
        let shims = cgroups.cgroup(&config.cgroup_parent).child("shims");
        let nursery = Nursery::start(config.shim.clone(), Some(shims))
            .during(|| "starting the process that forks shims".to_owned())?;
        let available = linux::caps::available().during(|| "reading capabilities".to_owned())?;
        Ok(Self {
            seccomp: seccomp_profile::Cache::new(config.seccomp_profiles.clone()),
            env,
            config,
            cgroups,
            nursery,
            images,
            network,
            available,
            state: Mutex::default(),
            events: broadcast::Sender::new(EVENT_BACKLOG),
        })
    }

    fn sandbox_directory(&self, id: &str) -> PathBuf {
        self.config.state.join("sandboxes").join(id)
    }

    fn container_directory(&self, id: &str) -> PathBuf {
        self.config.state.join("containers").join(id)
    }

    /// The writable layer of a container.
    fn snapshot_directory(&self, id: &str) -> PathBuf {
        self.config.root.join("snapshots").join(id)
    }
}

/// An overlay's upper directory cannot lie on another overlay.
fn check_file_system(root: &Path) -> Result<()> {
    const OVERLAY: i64 = 0x794c_7630;
    let kind = rustix::fs::statfs(root).during(|| format!("looking at {}", root.display()))?;
    if kind.f_type == OVERLAY {
        return Err(Error::Precondition(format!(
            "{} lies on an overlay, where containers cannot have their layers; \
             give a directory on a disk or a tmpfs",
            root.display()
        )));
    }
    Ok(())
}

/// Writes a file so that it is whole or absent.
fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("new");
    fs::write(&temporary, bytes)?;
    fs::rename(&temporary, path)
}

/// Removes a directory; absence is no error.
fn remove_directory(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
