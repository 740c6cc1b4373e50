//! What can go wrong, and how CRI tells it.

use std::io;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kind of thing and its ID or name.
    #[error("{0} {1:?} is not known to the runtime")]
    NotFound(&'static str, String),
    #[error("{0}")]
    Precondition(String),
    #[error("{0}")]
    Invalid(String),
    /// A container or command that could not be started; the text says why.
    #[error("{0}")]
    Start(String),
    #[error("{0}")]
    Image(String),
    #[error("{what}")]
    Io { what: String, source: io::Error },
    #[error("the pod's network cannot be {0}: {1}")]
    Network(&'static str, String),
    #[error("{0}")]
    Timeout(String),
    #[error("{0}")]
    Unsupported(String),
    #[error("the task ended unexpectedly")]
    Panic,
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Adds to an I/O error what was being done.
pub(crate) trait During<T> {
    fn during(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: Into<io::Error>> During<T> for std::result::Result<T, E> {
    fn during(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|source| Error::Io { what: what(), source: source.into() })
    }
}

impl From<Error> for tonic::Status {
    fn from(error: Error) -> Self {
        let text = stdx::chain(&error).to_string();
        match error {
            Error::NotFound(..) => Self::not_found(text),
            Error::Precondition(_) => Self::failed_precondition(text),
            Error::Invalid(_) => Self::invalid_argument(text),
            Error::Start(_) | Error::Image(_) | Error::Network(..) => Self::unknown(text),
            Error::Timeout(_) => Self::deadline_exceeded(text),
            Error::Unsupported(_) => Self::unimplemented(text),
            Error::Io { .. } | Error::Panic => Self::internal(text),
        }
    }
}
