//! Streams into containers, as the agent's server needs them. The binary that assembles the
//! agent implements [`Streaming`] over its runtime.

use std::pin::Pin;

use async_trait::async_trait;
use futures::future::BoxFuture;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::mpsc,
};

pub type Reader = Pin<Box<dyn AsyncRead + Send>>;
pub type Writer = Pin<Box<dyn AsyncWrite + Send>>;

/// A byte stream in both directions.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin + 'static {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Duplex for T {}

/// Which streams of a process are wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Streams {
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    pub tty: bool,
}

/// A terminal's size in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct TerminalSize {
    pub width: u16,
    pub height: u16,
}

/// The open streams of a process. With a terminal, its output comes on `stdout` alone.
pub struct Session {
    pub stdin: Option<Writer>,
    pub stdout: Option<Reader>,
    pub stderr: Option<Reader>,
    pub resize: Option<mpsc::Sender<TerminalSize>>,
    /// The exit code. For an attach: zero when the container has ended.
    pub exit: BoxFuture<'static, Result<i32, StreamError>>,
}

#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    #[error("{0}")]
    Failed(String),
    #[error("this container runtime offers no streams to the agent")]
    Unsupported,
}

/// Opens streams into containers and sandboxes, named by the runtime's ids.
#[async_trait]
pub trait Streaming: Send + Sync + 'static {
    async fn exec(
        &self,
        container_id: &str,
        command: Vec<String>,
        streams: Streams,
    ) -> Result<Session, StreamError>;

    async fn attach(&self, container_id: &str, streams: Streams) -> Result<Session, StreamError>;

    /// Connects to a port on the loopback device of the sandbox's network.
    async fn port_forward(
        &self,
        sandbox_id: &str,
        port: u16,
    ) -> Result<Box<dyn Duplex>, StreamError>;
}

/// For a runtime that is reached by CRI alone, until its streaming URLs are followed.
pub struct NoStreaming;

#[async_trait]
impl Streaming for NoStreaming {
    async fn exec(&self, _: &str, _: Vec<String>, _: Streams) -> Result<Session, StreamError> {
        Err(StreamError::Unsupported)
    }

    async fn attach(&self, _: &str, _: Streams) -> Result<Session, StreamError> {
        Err(StreamError::Unsupported)
    }

    async fn port_forward(&self, _: &str, _: u16) -> Result<Box<dyn Duplex>, StreamError> {
        Err(StreamError::Unsupported)
    }
}
