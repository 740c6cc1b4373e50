//! Remote commands over WebSocket: `v4.channel.k8s.io` and `v5.channel.k8s.io`, where the first
//! byte of each message names a channel; and bytes tunnelled in messages.

use std::io;

use async_trait::async_trait;
use bytes::{BufMut, Bytes, BytesMut};
use futures::{SinkExt, StreamExt, stream::SplitStream};
use stdx::Env;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::{Mutex, mpsc},
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Message,
        protocol::{CloseFrame, Role, frame::coding::CloseCode},
    },
};

use super::remote::{Output, Remote, RemoteSink};
use crate::spdy_session::{Incoming, Outgoing};

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;
/// Version 5: the next byte names a channel on which nothing more comes.
const CLOSE: u8 = 255;

/// The client's channels. `closes` is whether it can end one channel alone (version 5).
pub async fn remote<S>(env: &Env, stream: S, closes: bool) -> Remote
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let socket = WebSocketStream::from_raw_socket(stream, Role::Server, None).await;
    let (sink, messages) = socket.split();
    let (stdin_sender, stdin) = mpsc::channel(16);
    let (resize_sender, resize) = mpsc::channel(4);
    env.spawn("websocket reader", read(messages, stdin_sender, resize_sender, closes));
    let sink: Outbox = Box::pin(sink.sink_map_err(io::Error::other));
    Remote { stdin, resize, sink: Box::new(Channels(Mutex::new(sink))) }
}

type Outbox = std::pin::Pin<Box<dyn futures::Sink<Message, Error = io::Error> + Send>>;

async fn read<S>(
    mut messages: SplitStream<WebSocketStream<S>>,
    stdin: mpsc::Sender<Bytes>,
    resize: mpsc::Sender<crate::streaming::TerminalSize>,
    closes: bool,
) where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let mut stdin = Some(stdin);
    while let Some(Ok(message)) = messages.next().await {
        let mut bytes = match message {
            Message::Binary(bytes) => bytes,
            Message::Close(_) => return,
            _ => continue,
        };
        if bytes.is_empty() {
            continue;
        }
        match bytes.split_to(1)[0] {
            STDIN => {
                if let Some(sender) = stdin.as_ref().filter(|_| !bytes.is_empty()) {
                    // The process may have closed its input; the client may not know yet.
                    let _ = sender.send(bytes).await;
                }
            }
            RESIZE => {
                if let Ok(size) = serde_json::from_slice(&bytes) {
                    let _ = resize.send(size).await;
                }
            }
            CLOSE if closes && bytes.first() == Some(&STDIN) => stdin = None,
            _ => {}
        }
    }
}

struct Channels(Mutex<Outbox>);

impl Channels {
    async fn send(&self, channel: u8, bytes: &[u8]) -> Result<(), ()> {
        let mut message = BytesMut::with_capacity(bytes.len() + 1);
        message.put_u8(channel);
        message.extend_from_slice(bytes);
        self.0.lock().await.send(Message::Binary(message.freeze())).await.map_err(drop)
    }
}

#[async_trait]
impl RemoteSink for Channels {
    async fn write(&self, output: Output, bytes: Bytes) -> Result<(), ()> {
        let channel = if output == Output::Stdout { STDOUT } else { STDERR };
        self.send(channel, &bytes).await
    }

    async fn finish(&self, status: Bytes) {
        let _ = self.send(ERROR, &status).await;
        let mut sink = self.0.lock().await;
        let normal = CloseFrame { code: CloseCode::Normal, reason: Default::default() };
        let _ = sink.send(Message::Close(Some(normal))).await;
        let _ = sink.close().await;
    }
}

/// The bytes of a protocol that is tunnelled in binary messages.
pub async fn tunnel<S>(stream: S) -> (Incoming, Outgoing)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let socket = WebSocketStream::from_raw_socket(stream, Role::Server, None).await;
    let (sink, messages) = socket.split();
    let incoming = messages.filter_map(|message| async move {
        match message {
            Ok(Message::Binary(bytes)) => Some(Ok(bytes)),
            Ok(_) => None,
            Err(error) => Some(Err(io::Error::other(error))),
        }
    });
    let outgoing = sink
        .sink_map_err(io::Error::other)
        .with(|bytes: Bytes| futures::future::ready(Ok::<_, io::Error>(Message::Binary(bytes))));
    (Box::pin(incoming), Box::pin(outgoing))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn channels_carry_input_sizes_and_the_end() {
        let (ours, theirs) = tokio::io::duplex(4096);
        let env = Env::real();
        let mut remote = remote(&env, ours, true).await;
        let mut client = WebSocketStream::from_raw_socket(theirs, Role::Client, None).await;
        for message in [&b"\x00hello"[..], b"\x04{\"Width\":80,\"Height\":24}", b"\xff\x00"] {
            client.send(Message::Binary(Bytes::copy_from_slice(message))).await.unwrap();
        }
        assert_eq!(remote.stdin.recv().await.unwrap(), "hello");
        assert_eq!(remote.resize.recv().await.unwrap().width, 80);
        assert_eq!(remote.stdin.recv().await, None);
        remote.sink.write(Output::Stderr, Bytes::from_static(b"oops")).await.unwrap();
        remote.sink.finish(Bytes::from_static(b"{}")).await;
        let first = client.next().await.unwrap().unwrap();
        assert_eq!(first.into_data(), &b"\x02oops"[..]);
        let second = client.next().await.unwrap().unwrap();
        assert_eq!(second.into_data(), &b"\x03{}"[..]);
    }
}
