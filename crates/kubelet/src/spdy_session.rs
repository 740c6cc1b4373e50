//! A SPDY/3.1 connection on the server's side: streams that the client opens.
//!
//! One task reads, one writes; streams are channels between them and their users. A stream whose
//! user is slow holds up the whole connection, as TCP would.

use std::{collections::BTreeMap, io, pin::Pin};

use bytes::{Bytes, BytesMut};
use futures::{Sink, SinkExt, Stream as Items, StreamExt};
use stdx::Env;
use tokio::sync::mpsc;

use crate::spdy::{Decoder, Encoder, Frame, Headers};

/// The bytes of a connection, in whatever form they arrive.
pub type Incoming = Pin<Box<dyn Items<Item = io::Result<Bytes>> + Send>>;
pub type Outgoing = Pin<Box<dyn Sink<Bytes, Error = io::Error> + Send>>;

/// A stream that the client opened and that has been accepted.
pub struct Stream {
    pub headers: Headers,
    pub reader: mpsc::Receiver<Bytes>,
    pub writer: StreamWriter,
}

impl Stream {
    pub fn header(&self, name: &str) -> &str {
        let found = self.headers.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_str()).unwrap_or_default()
    }
}

/// Sends data on one stream.
#[derive(Clone)]
pub struct StreamWriter {
    id: u32,
    frames: mpsc::Sender<Frame>,
}

/// The connection is gone.
#[derive(Debug)]
pub struct Closed;

const MAX_DATA: usize = 32 << 10;

impl StreamWriter {
    pub async fn send(&self, mut bytes: Bytes) -> Result<(), Closed> {
        while !bytes.is_empty() {
            let piece = bytes.split_to(bytes.len().min(MAX_DATA));
            let frame = Frame::Data { stream: self.id, bytes: piece, fin: false };
            self.frames.send(frame).await.map_err(|_| Closed)?;
        }
        Ok(())
    }

    /// Says that nothing more comes on this stream.
    pub async fn finish(&self) {
        let frame = Frame::Data { stream: self.id, bytes: Bytes::new(), fin: true };
        let _ = self.frames.send(frame).await;
    }

    pub async fn reset(&self) {
        const CANCEL: u32 = 5;
        let _ = self.frames.send(Frame::RstStream { stream: self.id, code: CANCEL }).await;
    }
}

/// Serves the connection; accepted streams come out of the receiver, which ends with it.
pub fn serve(env: &Env, incoming: Incoming, outgoing: Outgoing) -> mpsc::Receiver<Stream> {
    let (accepted, streams) = mpsc::channel(16);
    let (frames, outbox) = mpsc::channel(64);
    env.spawn("spdy writer", write(outbox, outgoing));
    env.spawn("spdy reader", async move {
        let reader = Reader { accepted, frames, open: BTreeMap::new() };
        if let Err(error) = reader.run(incoming).await {
            tracing::debug!(error, "spdy connection ended");
        }
    });
    streams
}

async fn write(mut outbox: mpsc::Receiver<Frame>, mut outgoing: Outgoing) {
    let Ok(mut encoder) = Encoder::new() else { return };
    while let Some(frame) = outbox.recv().await {
        let mut buffer = BytesMut::new();
        let mut next = Some(frame);
        while let Some(frame) = next {
            if encoder.encode(&frame, &mut buffer).is_err() {
                return;
            }
            next = if buffer.len() < MAX_DATA { outbox.try_recv().ok() } else { None };
        }
        if outgoing.send(buffer.freeze()).await.is_err() {
            return;
        }
    }
    let _ = outgoing.close().await;
}

struct Reader {
    accepted: mpsc::Sender<Stream>,
    frames: mpsc::Sender<Frame>,
    open: BTreeMap<u32, mpsc::Sender<Bytes>>,
}

impl Reader {
    async fn run(mut self, mut incoming: Incoming) -> Result<(), String> {
        let mut decoder = Decoder::default();
        let mut buffer = BytesMut::new();
        while let Some(bytes) = incoming.next().await {
            buffer.extend_from_slice(&bytes.map_err(|error| error.to_string())?);
            while let Some(frame) =
                decoder.decode(&mut buffer).map_err(|error| error.to_string())?
            {
                if self.take(frame).await.is_err() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    async fn take(&mut self, frame: Frame) -> Result<(), Closed> {
        match frame {
            Frame::SynStream { stream, headers, fin } => self.accept(stream, headers, fin).await?,
            Frame::Data { stream, bytes, fin } => {
                if let Some(sender) = self.open.get(&stream).filter(|_| !bytes.is_empty()) {
                    // A user that no longer reads has lost interest; the rest is dropped.
                    let _ = sender.send(bytes).await;
                }
                if fin {
                    self.open.remove(&stream);
                }
            }
            Frame::Headers { stream, fin: true, .. } | Frame::RstStream { stream, .. } => {
                self.open.remove(&stream);
            }
            Frame::Ping { id } => self.frames.send(Frame::Ping { id }).await.map_err(|_| Closed)?,
            Frame::GoAway { .. } => return Err(Closed),
            Frame::SynReply { .. } | Frame::Headers { .. } | Frame::Other { .. } => {}
        }
        Ok(())
    }

    async fn accept(&mut self, id: u32, headers: Headers, fin: bool) -> Result<(), Closed> {
        let (sender, reader) = mpsc::channel(64);
        if !fin {
            self.open.insert(id, sender);
        }
        let reply = Frame::SynReply { stream: id, headers: Vec::new(), fin: false };
        self.frames.send(reply).await.map_err(|_| Closed)?;
        let writer = StreamWriter { id, frames: self.frames.clone() };
        self.accepted.send(Stream { headers, reader, writer }).await.map_err(|_| Closed)
    }
}
