//! Exec, attach and port-forward with an embedded runtime: streams instead of a URL.
//!
//! Behind a socket the runtime answers `Exec`, `Attach` and `PortForward` with a URL to proxy to.
//! In process that detour falls away: the kubelet, which speaks WebSocket and SPDY to its
//! clients, takes the streams from a [`Streaming`] directly.

use std::{future::Future, pin::Pin};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::mpsc::UnboundedSender,
};
use tonic::Status;

use crate::v1::{AttachRequest, ExecRequest};

pub type ReadStream = Pin<Box<dyn AsyncRead + Send>>;
pub type WriteStream = Pin<Box<dyn AsyncWrite + Send>>;

/// Bytes in both directions, as a TCP connection has them.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// A terminal's size, in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TerminalSize {
    pub columns: u16,
    pub rows: u16,
}

/// A running exec or an attachment. Dropping a stream closes it for the process; dropping the
/// session leaves the process alone.
pub struct Session {
    /// Present when asked for; shutting it down is the end of input.
    pub stdin: Option<WriteStream>,
    /// Present when asked for; with a terminal it carries stderr too.
    pub stdout: Option<ReadStream>,
    pub stderr: Option<ReadStream>,
    /// Present with a terminal.
    pub resize: Option<UnboundedSender<TerminalSize>>,
    /// The exit code of the process (128 and the number for a signal), or why it is not known.
    /// Output may still lie in the streams when it resolves.
    pub exit: Pin<Box<dyn Future<Output = Result<i32, Status>> + Send>>,
}

/// A runtime in this process that hands its streams over.
#[tonic::async_trait]
pub trait Streaming: Send + Sync + 'static {
    /// Runs a command in a running container. `NotFound` when there is no such container,
    /// `FailedPrecondition` when it does not run, `Unknown` when the command cannot be started.
    async fn exec(&self, request: ExecRequest) -> Result<Session, Status>;

    /// Joins the streams of a container's own process; output begins now, not in the past.
    async fn attach(&self, request: AttachRequest) -> Result<Session, Status>;

    /// A connection to `port` on the loopback address of the sandbox's network.
    async fn port_forward(&self, sandbox_id: &str, port: u16) -> Result<Box<dyn Duplex>, Status>;
}
