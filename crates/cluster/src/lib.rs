//! Clusters on one machine: `gantry up` and its kin.
//!
//! A cluster is a directory ([`Layout`]), a [`supervisor`] process, one server and some nodes.
//! Each node is a machine in small: its own network, mount, PID, UTS, IPC and cgroup namespaces,
//! with a tiny reaper as PID 1 ([`sandbox`]) under which the agent and the containers run. The
//! nodes hang on a bridge of the host ([`host`]).
//!
//! ```text
//!   up ──▶ supervisor ──▶ server
//!               ├───────▶ sandbox node-1 ─clone─▶ PID 1 ──▶ agent ──▶ shims, containers
//!               ├───────▶ sandbox node-2 …
//!               └ bridge, routes and the nft table of the host
//! ```
//!
//! Invariants: what a cluster adds to the host bears its name and is listed in its [`Layout`];
//! `down` needs nothing but that directory to take all of it away, also after everything was
//! killed.

pub mod host;
pub mod layout;
pub mod pki;
pub mod preflight;
pub mod sandbox;
pub mod supervisor;

use std::{io, path::Path};

pub use layout::{ClusterConfig, Layout, NodeConfig};

/// Why a cluster could not be made, changed or removed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{path}")]
    Io { path: String, source: io::Error },
    #[error("cannot {what}")]
    System { what: String, source: io::Error },
    #[error("cannot set up the network: {what}")]
    Network { what: String, source: Box<dyn std::error::Error + Send + Sync> },
    #[error("cannot issue a certificate")]
    Certificate(#[from] rcgen::Error),
    #[error("{what}")]
    Invalid { what: String },
    /// Something about this machine stands in the way; `remedy` says what to do.
    #[error("{problem}; {remedy}")]
    Preflight { problem: String, remedy: String },
}

impl Error {
    pub fn io(path: &Path, source: io::Error) -> Self {
        Self::Io { path: path.display().to_string(), source }
    }

    pub fn system(what: impl Into<String>, source: io::Error) -> Self {
        Self::System { what: what.into(), source }
    }

    fn network(what: &str, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Network { what: what.into(), source: source.into() }
    }
}
