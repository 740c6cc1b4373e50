//! The API server: HTTP in front of the registry.
//!
//! Flow: [`Server::serve_tls`] takes connections and [`Server::handle`] requests, whichever way
//! they come ▸ [`pipeline`] runs the chain in order (who asks, as whom, how much at once, whether
//! they may) ▸ [`handlers`] find the resource and verb ▸ bodies are decoded, [`admission`] and the
//! registry do the rest ▸ the answer is encoded in the form that was agreed on.
//!
//! Invariants: every request passes the whole chain, those of this process's own components too.
//! Nothing here knows the store. No kind is special but in the tables of `handlers` and
//! `admission`. The indexes of [`authz`] are fed by watches of the registry and by nothing else.

pub mod admission;
pub mod authn;
pub mod authz;
pub mod body;
mod bootstrap;
mod cluster_objects;
pub mod config;
mod data;
mod discovery;
mod feeds;
mod handlers;
mod health;
mod impersonation;
mod metrics;
pub mod negotiate;
pub mod nodes;
mod openapi;
pub mod pipeline;
mod query;
pub mod request_info;
mod respond;
mod server;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
pub mod tls;
pub mod version;
mod wire;

pub use authn::{Connection, Identity};
pub use body::Body;
pub use config::{Error, FrontProxyConfig, ServerConfig};
pub use nodes::{DialError, DirectDialler, NoNodes, NodeAddress, NodeDialler, NodeStream};
pub use registry::UserInfo;
pub use server::Server;
