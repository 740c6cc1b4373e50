//! Remote commands over SPDY: one stream each for error, stdin, stdout, stderr and resize, named
//! by their `streamtype` header.

use std::{io, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use stdx::Env;
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    sync::mpsc,
};
use tokio_util::io::ReaderStream;

use super::remote::{Output, Remote, RemoteSink};
use crate::{
    spdy_session::{self, Incoming, Outgoing, Stream, StreamWriter},
    streaming::{Streams, TerminalSize},
};

/// Waits for the streams that the request announced; `None` when they do not come.
pub async fn remote<S>(env: &Env, stream: S, wanted: Streams) -> Option<Remote>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (incoming, outgoing) = raw(stream);
    let mut streams = spdy_session::serve(env, incoming, outgoing);
    let expected = 1
        + usize::from(wanted.stdin)
        + usize::from(wanted.stdout)
        + usize::from(wanted.stderr)
        + usize::from(wanted.tty);
    let mut opened: Vec<Stream> = Vec::new();
    while opened.len() < expected {
        let limit = Duration::from_secs(30);
        opened.push(env.timeout(limit, streams.recv()).await.flatten()?);
    }
    let mut take = |kind: &str| {
        let index = opened.iter().position(|stream| stream.header("streamtype") == kind)?;
        Some(opened.swap_remove(index))
    };
    let error = take("error")?;
    let stdin = take("stdin").map(|stream| stream.reader);
    let (stdout, stderr) = (take("stdout"), take("stderr"));
    let (sizes, resize) = mpsc::channel(4);
    if let Some(stream) = take("resize") {
        env.spawn("spdy resize", read_sizes(stream.reader, sizes));
    }
    let sink = Sink {
        error: error.writer,
        stdout: stdout.map(|stream| stream.writer),
        stderr: stderr.map(|stream| stream.writer),
    };
    Some(Remote {
        stdin: stdin.unwrap_or_else(|| mpsc::channel(1).1),
        resize,
        sink: Box::new(sink),
    })
}

/// A plain byte stream as the session wants it.
pub fn raw<S>(stream: S) -> (Incoming, Outgoing)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (reader, writer) = tokio::io::split(stream);
    let outgoing = futures::sink::unfold(writer, |mut writer, bytes: Bytes| async move {
        writer.write_all(&bytes).await?;
        writer.flush().await?;
        Ok::<_, io::Error>(writer)
    });
    (Box::pin(ReaderStream::with_capacity(reader, 32 << 10).boxed()), Box::pin(outgoing))
}

async fn read_sizes(mut reader: mpsc::Receiver<Bytes>, sizes: mpsc::Sender<TerminalSize>) {
    let mut pending = Vec::new();
    while let Some(bytes) = reader.recv().await {
        pending.extend_from_slice(&bytes);
        let mut values = serde_json::Deserializer::from_slice(&pending).into_iter();
        let mut used = 0;
        while let Some(Ok(size)) = values.next() {
            used = values.byte_offset();
            if sizes.send(size).await.is_err() {
                return;
            }
        }
        pending.drain(..used);
    }
}

struct Sink {
    error: StreamWriter,
    stdout: Option<StreamWriter>,
    stderr: Option<StreamWriter>,
}

#[async_trait]
impl RemoteSink for Sink {
    async fn write(&self, output: Output, bytes: Bytes) -> Result<(), ()> {
        let writer = if output == Output::Stdout { &self.stdout } else { &self.stderr };
        match writer {
            Some(writer) => writer.send(bytes).await.map_err(drop),
            None => Ok(()),
        }
    }

    async fn finish(&self, status: Bytes) {
        for writer in [&self.stdout, &self.stderr].into_iter().flatten() {
            writer.finish().await;
        }
        let _ = self.error.send(status).await;
        self.error.finish().await;
    }
}
