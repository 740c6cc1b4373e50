//! Lets the kubelet's server reach into containers of the embedded runtime.

use async_trait::async_trait;
use cri::{
    streaming::Streaming as RuntimeStreams,
    v1::{AttachRequest, ExecRequest},
};
use futures::FutureExt;
use kubelet::streaming::{
    Duplex, Session, StreamError, Streaming as KubeletStreams, Streams, TerminalSize,
};
use runtime::Runtime;
use tokio::sync::mpsc;

pub struct Embedded {
    pub runtime: Runtime,
    pub env: stdx::Env,
}

#[async_trait]
impl KubeletStreams for Embedded {
    async fn exec(
        &self,
        container_id: &str,
        command: Vec<String>,
        streams: Streams,
    ) -> Result<Session, StreamError> {
        let request = ExecRequest {
            container_id: container_id.into(),
            cmd: command,
            tty: streams.tty,
            stdin: streams.stdin,
            stdout: streams.stdout,
            stderr: streams.stderr,
        };
        Ok(self.session(self.runtime.exec(request).await.map_err(failed)?))
    }

    async fn attach(&self, container_id: &str, streams: Streams) -> Result<Session, StreamError> {
        let request = AttachRequest {
            container_id: container_id.into(),
            tty: streams.tty,
            stdin: streams.stdin,
            stdout: streams.stdout,
            stderr: streams.stderr,
        };
        Ok(self.session(self.runtime.attach(request).await.map_err(failed)?))
    }

    async fn port_forward(
        &self,
        sandbox_id: &str,
        port: u16,
    ) -> Result<Box<dyn Duplex>, StreamError> {
        let stream = self.runtime.port_forward(sandbox_id, port).await.map_err(failed)?;
        Ok(Box::new(stream))
    }
}

impl Embedded {
    fn session(&self, inner: cri::streaming::Session) -> Session {
        let resize = inner.resize.map(|sizes| {
            let (sender, mut wanted) = mpsc::channel::<TerminalSize>(8);
            self.env.spawn("terminal size", async move {
                while let Some(TerminalSize { width, height }) = wanted.recv().await {
                    let size = cri::streaming::TerminalSize { columns: width, rows: height };
                    if sizes.send(size).is_err() {
                        return;
                    }
                }
            });
            sender
        });
        Session {
            stdin: inner.stdin,
            stdout: inner.stdout,
            stderr: inner.stderr,
            resize,
            exit: inner.exit.map(|outcome| outcome.map_err(failed)).boxed(),
        }
    }
}

fn failed(status: tonic::Status) -> StreamError {
    StreamError::Failed(status.message().to_owned())
}
