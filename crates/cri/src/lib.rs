//! The container runtime interface (CRI v1), the only language between kubelet and runtime.
//!
//! [`v1`] holds the messages and services that `build.rs` generates from `proto/runtime.v1.proto`.
//! An [`Endpoint`] says where the runtime is: in this process, or behind a unix socket
//! (containerd, CRI-O). [`RuntimeClient`] and [`ImageClient`] are the generated clients over
//! either, so their user never knows which one it has.
//!
//! Flow: `Endpoint::in_process(runtime)` or `Endpoint::connect("unix:///run/…")`, then
//! [`Endpoint::runtime`] and [`Endpoint::image`]; clients are cheap to clone. [`routes`] is the
//! same pair of services for a server on a socket.
//!
//! [`streaming`] is the one addition: in process, exec, attach and port-forward hand streams over
//! where a remote runtime answers with a URL.
//!
//! Invariants: no logic of runtime or kubelet lives here; the definition carries facts only, and
//! an in-process call goes through the same encoding as one over the socket.

pub mod defaults;
mod endpoint;
pub mod streaming;

pub use endpoint::{Endpoint, Error, ImageClient, MAX_MESSAGE_BYTES, RuntimeClient, routes};

/// Messages, clients and servers of package `runtime.v1`.
#[allow(clippy::all, clippy::disallowed_types, clippy::disallowed_methods, unsafe_code)]
pub mod v1 {
    tonic::include_proto!("runtime.v1");
}
