//! Keeps a cluster's server and nodes running.
//!
//! A server that dies is started again; a node that dies stays dead, as a machine does, until it
//! is asked for again. The supervisor's own death stops nothing: its successor finds what runs by
//! the pid files and goes on watching it.

use std::{
    fs,
    future::Future,
    io,
    path::Path,
    process::Stdio,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use stdx::{CancellationToken, Env, backoff::Backoff, chain};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, unix::AsyncFd},
    net::{UnixListener, UnixStream},
    process::Command,
    sync::Notify,
};

use crate::{ClusterConfig, Error, Layout, NodeConfig, host, pki::write_private};

const RESTART: Backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(5));
/// A server that ran this long has earned a quick restart.
const STEADY: Duration = Duration::from_secs(10);

/// A question to the supervisor; one JSON line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Request {
    Status,
    StartNode(String),
    StopNode(String),
    /// Ends nodes, server and supervisor.
    Stop,
}

/// The answer; one JSON line.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Answer {
    pub error: String,
    pub supervisor_pid: u32,
    pub server: PartStatus,
    pub nodes: Vec<PartStatus>,
}

/// Whether a part runs, and as which process (for a node: its PID 1, seen from the host).
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PartStatus {
    pub name: String,
    pub pid: Option<i32>,
    pub restarts: u32,
}

/// Runs a cluster until it is told to stop. `host_work` runs beside it: what the host itself does
/// for the cluster's network.
pub async fn run<F>(
    env: Env,
    layout: Layout,
    cancel: CancellationToken,
    host_work: F,
) -> Result<(), Error>
where
    F: Future<Output = ()> + Send + 'static,
{
    let config = layout.load()?;
    host::create_network(&config)?;
    let supervisor = Arc::new(Supervisor::new(env.clone(), layout, config, cancel.clone()));
    let control = supervisor.listen()?;
    let host_task = env.spawn("host network", host_work).abort_on_drop();
    env.spawn("server", supervisor.clone().keep_server());
    for part in &supervisor.nodes {
        part.wanted.set(true);
        env.spawn("node", supervisor.clone().run_node(part.clone()));
    }
    env.spawn("control", supervisor.clone().serve(control));
    cancel.cancelled().await;
    drop(host_task);
    supervisor.end().await;
    Ok(())
}

struct Supervisor {
    env: Env,
    layout: Layout,
    config: ClusterConfig,
    cancel: CancellationToken,
    server: Arc<Part>,
    nodes: Vec<Arc<Part>>,
}

/// One process that is looked after.
struct Part {
    name: String,
    wanted: Switch,
    state: Mutex<PartStatus>,
}

/// On or off, with a wake-up for who waits for it.
#[derive(Default)]
struct Switch {
    on: Mutex<bool>,
    changed: Notify,
}

impl Switch {
    fn set(&self, on: bool) {
        *self.on.lock().unwrap_or_else(PoisonError::into_inner) = on;
        self.changed.notify_one();
    }

    fn get(&self) -> bool {
        *self.on.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn wait_on(&self) {
        while !self.get() {
            self.changed.notified().await;
        }
    }
}

impl Part {
    fn new(name: &str) -> Arc<Self> {
        let state = PartStatus { name: name.into(), ..PartStatus::default() };
        Arc::new(Self { name: name.into(), wanted: Switch::default(), state: Mutex::new(state) })
    }

    fn status(&self) -> PartStatus {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn note(&self, pid: Option<i32>) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).pid = pid;
    }

    fn count_restart(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).restarts += 1;
    }
}

/// A process started by us or by a predecessor.
enum Running {
    Child(tokio::process::Child),
    Adopted(i32, AsyncFd<std::os::fd::OwnedFd>),
}

impl Running {
    fn pid(&self) -> i32 {
        match self {
            Self::Child(child) => child.id().map_or(0, |pid| pid as i32),
            Self::Adopted(pid, _) => *pid,
        }
    }

    async fn ended(&mut self) {
        match self {
            Self::Child(child) => drop(child.wait().await),
            Self::Adopted(_, pidfd) => drop(pidfd.readable().await),
        }
    }
}

impl Supervisor {
    fn new(env: Env, layout: Layout, config: ClusterConfig, cancel: CancellationToken) -> Self {
        let nodes = config.nodes.iter().map(|node| Part::new(&node.name)).collect();
        Self { env, layout, config, cancel, server: Part::new("server"), nodes }
    }

    async fn keep_server(self: Arc<Self>) {
        let mut failures = 0;
        loop {
            let started = self.env.instant();
            match self.start("server", &self.server_arguments()) {
                Ok(mut running) => {
                    self.server.note(Some(running.pid()));
                    running.ended().await;
                    self.server.note(None);
                }
                Err(error) => tracing::error!(error = %chain(&error), "cannot start the server"),
            }
            if self.cancel.is_cancelled() {
                return;
            }
            failures = if self.env.instant() - started > STEADY { 1 } else { failures + 1 };
            tracing::warn!(failures, "the server ended; starting it again");
            self.server.count_restart();
            self.env.sleep(RESTART.delay(failures)).await;
        }
    }

    fn server_arguments(&self) -> Vec<String> {
        let config = &self.config;
        let (first, last) = config.load_balancer_pool();
        let mut arguments = vec![
            "server".to_owned(),
            format!("--data-dir={}", self.layout.server_data().display()),
            format!("--pki-dir={}", self.layout.pki().path("").display()),
            format!("--listen=127.0.0.1:{}", config.api_port),
            format!("--listen={}:{}", config.host_address(), config.api_port),
            format!("--advertise-address={}", config.host_address()),
            format!("--pod-network={}", config.pod_network()),
            format!("--service-network={}", config.service_network()),
            format!("--load-balancer-pool={first}-{last}"),
            format!("--bootstrap-token={}", config.bootstrap_token),
        ];
        if config.fast_failover {
            arguments.push("--fast-failover".into());
        }
        arguments
    }

    async fn run_node(self: Arc<Self>, part: Arc<Part>) {
        loop {
            part.wanted.wait_on().await;
            let arguments =
                ["node-sandbox".to_owned(), self.config.name.clone(), part.name.clone()];
            match self.start(&format!("{}-launcher", part.name), &arguments) {
                Ok(mut running) => {
                    let pid = self.node_pid(&part.name).await;
                    part.note(pid);
                    running.ended().await;
                    part.note(None);
                    tracing::warn!(node = part.name, "the node ended");
                }
                Err(error) => {
                    tracing::error!(node = part.name, error = %chain(&error), "cannot start the node");
                }
            }
            part.wanted.set(false);
            if self.cancel.is_cancelled() {
                return;
            }
        }
    }

    /// The node's PID 1, once the launcher has written it down.
    async fn node_pid(&self, node: &str) -> Option<i32> {
        let path = self.layout.pid_file(node);
        for _ in 0..200 {
            if let Some(pid) = fs::read_to_string(&path).ok().and_then(|text| text.parse().ok()) {
                return Some(pid);
            }
            self.env.sleep(Duration::from_millis(10)).await;
        }
        None
    }

    /// Starts a part of this program in its cgroup, unless it still runs from before.
    fn start(&self, part: &str, arguments: &[String]) -> Result<Running, Error> {
        let pid_file = self.layout.pid_file(part);
        if let Some(running) = adopt(&pid_file) {
            tracing::info!(part, pid = running.pid(), "found running");
            return Ok(running);
        }
        let exe = std::env::current_exe().map_err(|e| Error::system("find this program", e))?;
        let log = self.log(part)?;
        let errors = log.try_clone().map_err(|e| Error::system("open a log", e))?;
        let child = Command::new(exe)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors)
            .spawn()
            .map_err(|e| Error::system(format!("start {part}"), e))?;
        let running = Running::Child(child);
        let pid = running.pid();
        if part == "server" {
            host::cgroup(&self.layout, part)?
                .add(pid)
                .map_err(|e| Error::system("move the server to its cgroup", e))?;
        }
        let start = linux::process::start_time(pid).unwrap_or(0);
        write_private(&pid_file, format!("{pid} {start}").as_bytes())?;
        Ok(running)
    }

    fn log(&self, part: &str) -> Result<fs::File, Error> {
        let path = self.layout.log(part);
        fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .map_err(|source| Error::io(&path, source))
    }

    fn listen(&self) -> Result<UnixListener, Error> {
        let path = self.layout.control_socket();
        if std::os::unix::net::UnixStream::connect(&path).is_ok() {
            return Err(Error::Invalid {
                what: format!("cluster {:?} already has a supervisor", self.layout.name),
            });
        }
        let _ = fs::remove_file(&path);
        UnixListener::bind(&path).map_err(|source| Error::io(&path, source))
    }

    async fn serve(self: Arc<Self>, control: UnixListener) {
        while let Ok((stream, _)) = control.accept().await {
            let supervisor = self.clone();
            self.env.spawn("control connection", async move {
                if let Err(error) = supervisor.converse(stream).await {
                    tracing::debug!(%error, "control connection ended");
                }
            });
        }
    }

    async fn converse(&self, stream: UnixStream) -> io::Result<()> {
        let (read, mut write) = stream.into_split();
        let mut lines = BufReader::new(read).lines();
        while let Some(line) = lines.next_line().await? {
            let answer = match serde_json::from_str(&line) {
                Ok(request) => self.answer(request).await,
                Err(error) => Answer { error: error.to_string(), ..Answer::default() },
            };
            let mut text = serde_json::to_vec(&answer)?;
            text.push(b'\n');
            write.write_all(&text).await?;
        }
        Ok(())
    }

    async fn answer(&self, request: Request) -> Answer {
        let error = match request {
            Request::Status => String::new(),
            Request::StartNode(name) => self.with_node(&name, |part| part.wanted.set(true)),
            Request::StopNode(name) => self.with_node(&name, |part| {
                if let Some(pid) = part.status().pid {
                    let _ = linux::process::kill(pid, 9);
                }
            }),
            Request::Stop => {
                self.cancel.cancel();
                String::new()
            }
        };
        Answer {
            error,
            supervisor_pid: std::process::id(),
            server: self.server.status(),
            nodes: self.nodes.iter().map(|part| part.status()).collect(),
        }
    }

    fn with_node(&self, name: &str, act: impl FnOnce(&Part)) -> String {
        match self.nodes.iter().find(|part| part.name == name) {
            Some(part) => {
                act(part);
                String::new()
            }
            None => format!("cluster {:?} has no node {name:?}", self.layout.name),
        }
    }

    /// Nodes first, as a power cut does; then the server, which may close its store.
    async fn end(&self) {
        for pid in self.nodes.iter().filter_map(|part| part.status().pid) {
            let _ = linux::process::kill(pid, 9);
        }
        if let Some(pid) = self.server.status().pid {
            let _ = linux::process::kill(pid, 15);
            let ended = async {
                while self.server.status().pid.is_some() {
                    self.env.sleep(Duration::from_millis(10)).await;
                }
            };
            if self.env.timeout(Duration::from_secs(5), ended).await.is_none() {
                let _ = linux::process::kill(pid, 9);
            }
        }
        let _ = fs::remove_file(self.layout.control_socket());
    }
}

/// The process that a pid file names, if it is still that one.
fn adopt(pid_file: &Path) -> Option<Running> {
    let (pid, start) = read_pid_file(pid_file)?;
    if !linux::process::is_running(pid, start) {
        return None;
    }
    let pidfd = linux::process::pidfd_open(pid).ok()?;
    // Deprecated because other types may close their descriptor early; an OwnedFd does not.
    #[expect(deprecated)]
    let pidfd = AsyncFd::new(pidfd).ok()?;
    Some(Running::Adopted(pid, pidfd))
}

/// Pid and start time from a file written by [`Supervisor::start`].
pub fn read_pid_file(path: &Path) -> Option<(i32, u64)> {
    let text = fs::read_to_string(path).ok()?;
    let (pid, start) = text.split_once(' ')?;
    Some((pid.parse().ok()?, start.trim().parse().ok()?))
}

/// Asks a running supervisor. `None` when there is none.
pub async fn ask(layout: &Layout, request: &Request) -> Option<Result<Answer, Error>> {
    let stream = UnixStream::connect(layout.control_socket()).await.ok()?;
    Some(exchange(stream, request).await.map_err(|e| Error::system("ask the supervisor", e)))
}

async fn exchange(stream: UnixStream, request: &Request) -> io::Result<Answer> {
    let (read, mut write) = stream.into_split();
    let mut text = serde_json::to_vec(request)?;
    text.push(b'\n');
    write.write_all(&text).await?;
    let mut line = String::new();
    BufReader::new(read).read_line(&mut line).await?;
    Ok(serde_json::from_str(&line)?)
}

/// The node of a configuration, by name.
pub fn node<'a>(config: &'a ClusterConfig, name: &str) -> Option<&'a NodeConfig> {
    config.nodes.iter().find(|node| node.name == name)
}
