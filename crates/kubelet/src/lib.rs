//! The node agent: it makes what the API says of this node's pods come true, and says what is.
//!
//! Flow: [`node`] registers the machine and [`lease`] says that it lives ▸ [`manager`] watches the
//! pods of this node and gives each a worker ▸ [`pod_worker`] reads the runtime's state, asks the
//! pure planner in [`worker`] what to do, has [`steps`] do it and writes the status that the pure
//! [`status`] made of it ▸ [`probes`], the runtime's events, watched objects and timers wake the
//! worker again.
//!
//! Invariants: decisions are in `worker`, `status` and `admission`, which do no I/O. Nothing polls
//! at rest: every wait ends by a message or a deadline of the plan. Containers are found again by
//! their labels, so that a new agent goes on where another was killed. The crate knows the runtime
//! by CRI alone; streams into containers come through [`Streaming`].

mod admission;
pub mod bootstrap;
pub mod config;
mod container_log;
mod context;
mod cri_config;
mod dns;
mod downward;
mod env_vars;
mod hooks;
mod http_check;
mod images;
mod lease;
mod log_rotation;
mod manager;
mod node;
mod objects;
mod pod;
mod pod_worker;
mod probes;
mod quantity;
mod resources;
mod runtime_state;
mod security;
pub mod server;
mod spdy;
mod spdy_session;
mod status;
mod status_patch;
mod steps;
pub mod streaming;
mod volumes;
mod worker;

use std::sync::{Arc, OnceLock};

use client::{Client, EventRecorder, Informer, InformerOptions};
use stdx::{CancellationToken, Env};
use tokio::sync::Notify;

pub use config::{Capacity, KubeletConfig};
pub use streaming::Streaming;

use crate::context::{Context, NODES, SERVICES};

/// Why the agent cannot do what it must.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Api(#[from] client::Error),
    #[error("the container runtime refused")]
    Runtime(#[source] Box<tonic::Status>),
    #[error("{what}")]
    Io { what: String, source: std::io::Error },
}

impl Error {
    fn is_not_found(&self) -> bool {
        matches!(self, Self::Api(error) if error.is_not_found())
    }
}

/// A running agent.
pub struct Kubelet {
    context: Arc<Context>,
    manager: manager::Manager,
    node_changed: Arc<Notify>,
    cancel: CancellationToken,
}

impl Kubelet {
    /// Prepares the agent: informers begin to fill, nothing is written yet.
    pub fn new(
        env: &Env,
        client: Client,
        config: KubeletConfig,
        cri: cri::Endpoint,
        streaming: Arc<dyn Streaming>,
        cancel: CancellationToken,
    ) -> Self {
        let informer = |resource, field_selector: String| {
            let options = InformerOptions { field_selector, ..InformerOptions::default() };
            Informer::start(env, client.clone(), resource, options, cancel.clone())
        };
        let context = Arc::new(Context {
            env: env.clone(),
            runtime: cri.runtime(),
            images: images::Images::new(cri.image()),
            events: EventRecorder::start(env, client.clone(), "kubelet", &config.node_name),
            objects: objects::Objects::new(env, client.clone()),
            tokens: volumes::Tokens::default(),
            services: informer(&SERVICES, String::new()),
            node: informer(&NODES, format!("metadata.name={}", config.node_name)),
            streaming,
            cgroups: linux::cgroup::Host::detect()
                .inspect_err(|error| tracing::warn!(%error, "control groups are not cleaned up"))
                .ok(),
            runtime_events: tokio::sync::watch::Sender::new(0),
            runtime_version: OnceLock::new(),
            client,
            config,
        });
        let manager = manager::Manager::start(context.clone(), &cancel);
        Self { context, manager, node_changed: Arc::default(), cancel }
    }

    /// Runs the node and its pods until cancelled. Containers go on running after that.
    pub async fn run(&self) {
        let (context, cancel) = (&self.context, &self.cancel);
        let node = node::run(context.clone(), self.node_changed.clone(), cancel.clone());
        let lease = lease::run(context.clone(), cancel.clone());
        let pods = self.manager.run(cancel.clone());
        let rotation = log_rotation::run(context.clone(), cancel.clone());
        futures::join!(node, lease, pods, rotation);
    }

    /// The server of this agent's logs, exec and metrics.
    pub fn server(&self) -> server::Server {
        server::Server::new(self.context.clone(), self.manager.clone())
    }

    /// Has the node's status looked at now, because something in it has changed (the network
    /// became ready, an image was loaded).
    pub fn node_changed(&self) {
        self.node_changed.notify_one();
    }
}

/// Runs a node agent until cancelled.
pub async fn run(
    env: Env,
    client: Client,
    config: KubeletConfig,
    cri: cri::Endpoint,
    streaming: Arc<dyn Streaming>,
    cancel: CancellationToken,
) {
    Kubelet::new(&env, client, config, cri, streaming, cancel).run().await;
}
