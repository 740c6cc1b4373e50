//! Carrying a request to the API server and the answer back.

use std::pin::Pin;

use async_trait::async_trait;
use bytes::Bytes;
use futures::{Stream, StreamExt};

use crate::{Error, Source};

/// The body of an answer, in pieces as they arrive. A watch frame that the server encoded once is
/// one piece, shared with every other in-process watcher.
pub type BodyStream = Pin<Box<dyn Stream<Item = Result<Bytes, Source>> + Send>>;

/// One connection to the API server under one identity.
#[async_trait]
pub trait Transport: Send + Sync + 'static {
    /// The URI carries path and query only; the transport knows the server.
    async fn send(
        &self,
        request: http::Request<Bytes>,
    ) -> Result<http::Response<BodyStream>, Error>;
}

/// Reads a whole body, at most `limit` bytes.
pub async fn collect(mut body: BodyStream, limit: usize) -> Result<Bytes, Error> {
    let Some(first) = body.next().await else { return Ok(Bytes::new()) };
    let first = first.map_err(Error::Transport)?;
    let mut whole: Option<Vec<u8>> = None;
    while let Some(piece) = body.next().await {
        let piece = piece.map_err(Error::Transport)?;
        let buffer = whole.get_or_insert_with(|| first.to_vec());
        if buffer.len() + piece.len() > limit {
            return Err(Error::Transport(
                format!("the answer is larger than {limit} bytes").into(),
            ));
        }
        buffer.extend_from_slice(&piece);
    }
    Ok(whole.map_or(first, Bytes::from))
}
