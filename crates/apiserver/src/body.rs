//! Bodies of requests and responses: frames of bytes, whole or streamed.

use bytes::{Bytes, BytesMut};
use futures::{Stream, StreamExt};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};

/// What can go wrong while a body is read.
pub type BodyError = Box<dyn std::error::Error + Send + Sync>;

/// A body of frames, whatever carries it: a TLS connection or a caller in this process.
pub type Body = UnsyncBoxBody<Bytes, BodyError>;

/// The largest request body, as in Kubernetes.
pub const MAX_REQUEST_BYTES: usize = 3 * 1024 * 1024;

pub fn empty() -> Body {
    full(Bytes::new())
}

pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// A body whose chunks come one after another; it ends when the stream does.
pub fn stream(chunks: impl Stream<Item = Result<Bytes, BodyError>> + Send + 'static) -> Body {
    StreamBody::new(chunks.map(|chunk| chunk.map(Frame::data))).boxed_unsync()
}

/// Why a request body could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("request body is larger than {limit} bytes")]
    TooLarge { limit: usize },
    #[error("reading the request body")]
    Broken(#[source] BodyError),
}

/// Reads a whole body of at most `limit` bytes.
pub async fn read(mut body: Body, limit: usize) -> Result<Bytes, ReadError> {
    let mut first: Option<Bytes> = None;
    let mut rest = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(ReadError::Broken)?.into_data() else { continue };
        let so_far = first.as_ref().map_or(0, Bytes::len) + rest.len();
        if so_far + data.len() > limit {
            return Err(ReadError::TooLarge { limit });
        }
        match &first {
            None => first = Some(data),
            Some(_) => rest.extend_from_slice(&data),
        }
    }
    Ok(match first {
        None => Bytes::new(),
        Some(only) if rest.is_empty() => only,
        Some(head) => [head, rest.freeze()].concat().into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunks(parts: &[&'static str]) -> Body {
        let parts: Vec<_> =
            parts.iter().map(|part| Ok(Bytes::from_static(part.as_bytes()))).collect();
        stream(futures::stream::iter(parts))
    }

    #[test]
    fn joins_chunks_and_holds_the_limit() {
        let whole = futures::executor::block_on(read(chunks(&["ab", "cd", "e"]), 5)).unwrap();
        assert_eq!(whole, "abcde");
        let refused = futures::executor::block_on(read(chunks(&["ab", "cd", "e"]), 4));
        assert!(matches!(refused, Err(ReadError::TooLarge { limit: 4 })));
    }
}
