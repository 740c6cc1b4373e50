//! The only place where components are wired together.
//!
//! [`control_plane`] puts API server, scheduler and controllers on one store; [`node`] puts
//! kubelet, proxy, DNS and runtime on one machine; [`host`] is what the machine of a local cluster
//! does for its network. In one process components talk to the server through [`in_process`],
//! each under its own user, so that authorization holds there too.

mod agent_socket;
pub mod control_plane;
mod discovery;
mod host;
pub mod in_process;
mod node;
mod streams;

use std::ffi::OsString;

use base64::{Engine, prelude::BASE64_STANDARD};
use client::{Resource, config::UserEntry};
use cluster::pki::Pki;
use machinery::{Object, Value};

pub use agent_socket::{AgentRequest, ask_agent};
pub use host::{host_network, remove_host_network};
pub use node::{AgentConfig, run_agent};

pub const VERSION: &str = env!("CARGO_PKG_VERSION");
/// The release whose API this is.
pub const KUBERNETES_VERSION: &str = "v1.37.2";
/// The group of a local cluster's owner; bound to cluster-admin, not system:masters.
pub const ADMIN_GROUP: &str = "gantry:cluster-admins";

pub const NODES: Resource = Resource::cluster("", "v1", "nodes", "Node");

/// Whether the node's Ready condition is True.
pub fn is_node_ready(node: &Object) -> bool {
    node.list_at(&["status", "conditions"]).iter().any(|condition| {
        let text = |key| condition.get(key).and_then(Value::as_str);
        text("type") == Some("Ready") && text("status") == Some("True")
    })
}

/// A kubeconfig user with this certificate of the PKI.
pub fn certificate_user(pki: &Pki, name: &str) -> Result<UserEntry, cluster::Error> {
    let encoded = |file: &str| Ok::<_, cluster::Error>(BASE64_STANDARD.encode(pki.read(file)?));
    Ok(UserEntry {
        client_certificate_data: encoded(&format!("{name}.crt"))?,
        client_key_data: encoded(&format!("{name}.key"))?,
        ..UserEntry::default()
    })
}

/// The body of the hidden subcommand `shim`.
pub fn run_shim(_arguments: Vec<OsString>) -> u8 {
    u8::try_from(runtime::shim_main()).unwrap_or(u8::MAX)
}
