//! One file per subcommand; each has a `run`.

pub mod agent;
pub mod apiserver;
pub mod completion;
pub mod controller_manager;
pub mod down;
pub mod image;
pub mod kubeconfig;
pub mod kubectl;
pub mod node_sandbox;
pub mod scheduler;
pub mod server;
pub mod shim;
pub mod start;
pub mod status;
pub mod stop;
pub mod supervise;
pub mod up;
pub mod version;

use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use cluster::Layout;
use stdx::{CancellationToken, Env};

pub type Outcome = Result<ExitCode>;

/// Runs async work on a runtime of its own with the machine's environment.
pub fn block_on<F: Future<Output = Outcome>>(work: impl FnOnce(Env) -> F) -> Outcome {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("cannot start the async runtime")?;
    let outcome = runtime.block_on(work(Env::real()));
    runtime.shutdown_background();
    outcome
}

/// A cluster that exists, or an error that says how to make it.
pub fn existing(name: &str) -> Result<Layout> {
    let layout = Layout::of(name);
    if !layout.exists() {
        bail!("there is no cluster {name:?} on this machine; make it with `gantry up {name}`");
    }
    Ok(layout)
}

/// Cancelled by SIGTERM or SIGINT.
pub fn cancelled_by_signals(env: &Env) -> Result<CancellationToken> {
    use tokio::signal::unix::{SignalKind, signal};
    let cancel = CancellationToken::new();
    for kind in [SignalKind::terminate(), SignalKind::interrupt()] {
        let mut signals = signal(kind).context("cannot listen for signals")?;
        let cancel = cancel.clone();
        env.spawn("signals", async move {
            signals.recv().await;
            cancel.cancel();
        });
    }
    Ok(cancel)
}

/// What every component that runs alone is told.
#[derive(clap::Args)]
pub struct Component {
    /// Whom to talk to, and as whom
    #[arg(long, env = "KUBECONFIG")]
    kubeconfig: std::path::PathBuf,
}

impl Component {
    fn connect(&self, component: &str) -> Result<client::Client> {
        let directory = self.kubeconfig.parent().unwrap_or(std::path::Path::new("."));
        let connection = client::Kubeconfig::load(&self.kubeconfig)?.connection("", directory)?;
        Ok(client::Client::connect(&connection, component)?)
    }

    /// Who we are among several of a kind.
    fn identity(&self, env: &Env) -> String {
        let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
        format!("{name}_{}", env.uuid())
    }
}
