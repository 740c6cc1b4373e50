use std::{
    fs,
    process::{Command, ExitCode, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use client::{Client, Informer, InformerOptions};
use cluster::{
    ClusterConfig, Layout, NodeConfig,
    pki::{Subject, write_private},
    preflight,
};
use stdx::{CancellationToken, Env};

use super::{Outcome, block_on};
use crate::{
    assemble::{self, NODES, is_node_ready},
    terminal::{Output, Progress},
};

/// Make a cluster on this machine and wait until its nodes are Ready
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  sudo gantry up\n  sudo gantry up dev --nodes 1 --port 7443")]
pub struct Up {
    /// The cluster's name
    #[arg(default_value = "gantry")]
    name: String,
    /// How many nodes
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=100))]
    nodes: u8,
    /// The API server's port on this machine
    #[arg(long, default_value_t = 6443)]
    port: u16,
    /// Notice a dead node within two seconds and replace its pods at once
    #[arg(long)]
    fast_failover: bool,
    /// How long to wait for the nodes, in seconds
    #[arg(long, default_value_t = 60)]
    timeout: u64,
    /// How to print the result
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

impl Up {
    pub fn run(self) -> Outcome {
        check_name(&self.name)?;
        preflight::check_machine()?;
        let layout = Layout::of(&self.name);
        if layout.exists() {
            bail!(
                "a cluster {0:?} exists already; look at it with `gantry status {0}`, start it with \
                 `gantry start {0}` or remove it with `gantry down {0}`",
                self.name
            );
        }
        preflight::check_port(self.port)?;
        block_on(|env| async move {
            let outcome = self.bring_up(&env, &layout).await;
            if outcome.is_err() {
                // A half-made cluster helps nobody; its logs do.
                print_logs(&layout);
                super::down::remove(&env, &layout).await.context("cannot clean up")?;
            }
            outcome
        })
    }

    async fn bring_up(&self, env: &Env, layout: &Layout) -> Outcome {
        let mut progress = Progress::new(env, self.output != Output::Text);
        progress.step("Keys and certificates");
        let config = self.prepare(env, layout)?;
        progress.step("Server");
        start_supervisor(layout)?;
        let client = connect(layout)?;
        wait_for_server(env, &client, Duration::from_secs(self.timeout)).await?;
        progress.step(format!("{} node(s) Ready", config.nodes.len()));
        wait_for_nodes(env, &client, &config, Duration::from_secs(self.timeout)).await?;
        progress.finish();
        self.report(layout, &config, progress.elapsed_secs())
    }

    /// Decides everything, and writes it down before anything is started.
    fn prepare(&self, env: &Env, layout: &Layout) -> Result<ClusterConfig> {
        let index = cluster::host::free_index()?;
        layout.create()?;
        let node = |number: u8| NodeConfig {
            name: format!("node-{number}"),
            address: ClusterConfig::node_address(index, number),
        };
        let mut config = ClusterConfig {
            name: self.name.clone(),
            index,
            api_port: self.port,
            fast_failover: self.fast_failover,
            nodes: (1..=self.nodes).map(node).collect(),
            bootstrap_token: format!("{}.{}", env.name_suffix(6), env.name_suffix(16)),
            forwarding_was_off: false,
        };
        layout.save(&config)?;
        config.forwarding_was_off = cluster::host::create_network(&config)?;
        layout.save(&config)?;
        issue_certificates(env, layout, &config)?;
        Ok(config)
    }

    fn report(&self, layout: &Layout, config: &ClusterConfig, seconds: f64) -> Outcome {
        let data = serde_json::json!({
            "name": config.name,
            "server": config.local_url(),
            "kubeconfig": layout.kubeconfig(),
            "nodes": config.nodes,
            "seconds": (seconds * 1000.0).round() / 1000.0,
        });
        if !self.output.print(&data)? {
            println!("Cluster {:?} is up after {seconds:.1} s.", config.name);
            println!("  export KUBECONFIG={}", layout.kubeconfig().display());
            println!("  kubectl get nodes        (or: gantry kubectl get nodes)");
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// The last lines of every log.
fn print_logs(layout: &Layout) {
    let Ok(entries) = fs::read_dir(layout.root.join("logs")) else { return };
    for path in entries.flatten().map(|entry| entry.path()) {
        let text = fs::read_to_string(&path).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        let name = path.file_stem().map(|stem| stem.to_string_lossy().into_owned());
        for line in &lines[lines.len().saturating_sub(10)..] {
            eprintln!("{}: {line}", name.as_deref().unwrap_or_default());
        }
    }
}

fn check_name(name: &str) -> Result<()> {
    let fits = (1..=32).contains(&name.len());
    let plain = name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    if !fits || !plain || name.starts_with('-') || name.ends_with('-') {
        bail!("{name:?} cannot name a cluster: use up to 32 of a-z, 0-9 and inner dashes");
    }
    Ok(())
}

/// The server's own certificates, and the kubeconfig of the person who called.
fn issue_certificates(env: &Env, layout: &Layout, config: &ClusterConfig) -> Result<()> {
    let pki = layout.pki();
    pki.ensure_authority(env)?;
    let admin = Subject {
        common_name: "gantry-admin",
        organizations: &[assemble::ADMIN_GROUP],
        ..Subject::default()
    };
    pki.issue(env, "admin", &admin)?;
    let user = assemble::certificate_user(&pki, "admin")?;
    let ca = pki.read("ca.crt")?;
    let kubeconfig =
        client::Kubeconfig::single(&config.name, &config.local_url(), ca.as_bytes(), user);
    write_private(&layout.kubeconfig(), kubeconfig.to_text().as_bytes())?;
    Ok(())
}

/// Starts the supervisor as a process that outlives this one.
pub fn start_supervisor(layout: &Layout) -> Result<()> {
    let path = layout.log("supervisor");
    let log = fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(&path)
        .with_context(|| format!("cannot open {}", path.display()))?;
    Command::new(std::env::current_exe().context("cannot find this program")?)
        .args(["supervise", &layout.name])
        .env("GANTRY_LOG", std::env::var("GANTRY_LOG").unwrap_or_else(|_| "info".into()))
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(log.try_clone().context("cannot open a log")?)
        .stderr(log)
        .spawn()
        .context("cannot start the supervisor")?;
    Ok(())
}

/// The admin's client.
pub fn connect(layout: &Layout) -> Result<Client> {
    let path = layout.kubeconfig();
    let connection = client::Kubeconfig::load(&path)?.connection("", &layout.root)?;
    Ok(Client::connect(&connection, "gantry")?)
}

pub async fn wait_for_server(env: &Env, client: &Client, limit: Duration) -> Result<()> {
    let ready = async {
        while client.get_stream("/readyz", &[]).await.is_err() {
            env.sleep(Duration::from_millis(20)).await;
        }
    };
    let waited = env.timeout(limit, ready).await;
    waited.with_context(|| format!("the server was not ready within {} s", limit.as_secs()))
}

pub async fn wait_for_nodes(
    env: &Env,
    client: &Client,
    config: &ClusterConfig,
    limit: Duration,
) -> Result<()> {
    let cancel = CancellationToken::new();
    let _guard = cancel.clone().drop_guard();
    let options = InformerOptions::default();
    let informer = Informer::start(env, client.clone(), &NODES, options, cancel);
    let changed = std::sync::Arc::new(tokio::sync::Notify::new());
    let notify = changed.clone();
    informer.on_change(move |_| notify.notify_one());
    let ready_count = || {
        informer
            .lister()
            .all()
            .iter()
            .filter(|c| c.object().is_ok_and(|o| is_node_ready(&o)))
            .count()
    };
    let all_ready = async {
        while ready_count() < config.nodes.len() {
            changed.notified().await;
        }
    };
    if env.timeout(limit, all_ready).await.is_none() {
        let (ready, all) = (ready_count(), config.nodes.len());
        bail!("only {ready} of {all} nodes were Ready within {} s", limit.as_secs());
    }
    Ok(())
}
