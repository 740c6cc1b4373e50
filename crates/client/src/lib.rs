//! How every component of Gantry talks to the API server: the same requests, in process or over
//! TLS.
//!
//! Flow: [`Client`] turns a verb into an HTTP request ▸ a [`Transport`] carries it ([`tls`] to a
//! server, or the in-process one that `gantry::assemble` makes from the server's own handler,
//! under the component's user) ▸ [`Informer`] lists and watches a resource and keeps a
//! [`Lister`]'s worth of it ▸ a [`WorkQueue`] hands keys to a reconciler, each key to one worker
//! at a time.
//!
//! Invariants: nothing here knows `registry` or `apiserver`. An informer keeps the bytes that the
//! server sent, by reference, and decodes only for the key at hand. A write names the revision or
//! uid it was decided on, or is a create.

pub mod api;
pub mod config;
pub mod events;
pub mod informer;
pub mod leader;
pub mod queue;
pub mod tls;
pub mod transport;
pub mod watch;

pub use api::{Client, DeleteOptions, ListOptions, ObjectList, Patch, Resource};
pub use config::Kubeconfig;
pub use events::EventRecorder;
pub use informer::{Cached, Change, Informer, InformerOptions, Key, Lister};
pub use queue::WorkQueue;
pub use transport::{BodyStream, Transport};

/// Why a call did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The server answered with a failure.
    #[error(transparent)]
    Api(#[from] ::api::Status),
    /// The server could not be reached, or the connection broke. A write may have happened.
    #[error("cannot reach the API server")]
    Transport(#[source] Source),
    /// The server answered with something that is not what the API promises.
    #[error("unexpected answer of the API server to {request}")]
    Malformed { request: String, source: Source },
    /// A kubeconfig or certificate that cannot be used.
    #[error("{what}")]
    Config { what: String, source: Option<Source> },
}

pub type Source = Box<dyn std::error::Error + Send + Sync>;

impl Error {
    pub fn status(&self) -> Option<&::api::Status> {
        match self {
            Self::Api(status) => Some(status),
            _ => None,
        }
    }

    pub fn is_not_found(&self) -> bool {
        self.status().is_some_and(::api::Status::is_not_found)
    }

    pub fn is_already_exists(&self) -> bool {
        self.status().is_some_and(::api::Status::is_already_exists)
    }

    pub fn is_conflict(&self) -> bool {
        self.status().is_some_and(::api::Status::is_conflict)
    }

    pub fn is_forbidden(&self) -> bool {
        self.status().is_some_and(::api::Status::is_forbidden)
    }

    /// The revision asked for is gone: list again.
    pub fn is_expired(&self) -> bool {
        self.status().is_some_and(::api::Status::is_expired)
    }
}
