//! The events of a watch.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use ::api::Status;
use bytes::{Bytes, BytesMut};
use futures::Stream;
use serde::Deserialize;

use crate::{Error, transport::BodyStream};

/// A watch that has been accepted: a stream of events, one per line of the body.
pub struct Watch {
    body: BodyStream,
    partial: BytesMut,
    ready: std::collections::VecDeque<Bytes>,
}

/// One event; `object` holds the server's own bytes.
#[derive(Clone, Debug)]
pub struct WatchEvent {
    pub kind: WatchEventKind,
    pub object: Bytes,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum WatchEventKind {
    Added,
    Modified,
    Deleted,
    Bookmark,
    Error,
}

impl Watch {
    pub(crate) fn new(body: BodyStream) -> Self {
        Self { body, partial: BytesMut::new(), ready: Default::default() }
    }

    /// Takes whole lines out of a piece; a piece that is exactly one line is kept as it is.
    fn split(&mut self, mut piece: Bytes) {
        while let Some(end) = piece.iter().position(|&byte| byte == b'\n') {
            let line = piece.split_to(end + 1);
            if self.partial.is_empty() {
                self.ready.push_back(line.slice(..end));
            } else {
                self.partial.extend_from_slice(&line[..end]);
                self.ready.push_back(self.partial.split().freeze());
            }
        }
        self.partial.extend_from_slice(&piece);
    }
}

impl Stream for Watch {
    type Item = Result<WatchEvent, Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(line) = self.ready.pop_front() {
                if line.is_empty() {
                    continue;
                }
                return Poll::Ready(Some(parse(&line)));
            }
            match self.body.as_mut().poll_next(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Ready(Some(Err(source))) => {
                    return Poll::Ready(Some(Err(Error::Transport(source))));
                }
                Poll::Ready(Some(Ok(piece))) => self.split(piece),
            }
        }
    }
}

#[derive(Deserialize)]
struct Frame<'a> {
    r#type: WatchEventKind,
    #[serde(borrow)]
    object: &'a serde_json::value::RawValue,
}

/// An event of type ERROR becomes [`Error::Api`].
fn parse(line: &Bytes) -> Result<WatchEvent, Error> {
    let frame: Frame = serde_json::from_slice(line)
        .map_err(|source| Error::Malformed { request: "watch".into(), source: source.into() })?;
    let object = line.slice_ref(frame.object.get().as_bytes());
    if frame.r#type == WatchEventKind::Error {
        let unknown = || Status::internal(String::from_utf8_lossy(&object));
        return Err(Error::Api(Status::from_json(&object).unwrap_or_else(unknown)));
    }
    Ok(WatchEvent { kind: frame.r#type, object })
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::{StreamExt, executor::block_on, stream};

    #[test]
    fn lines_may_be_cut_anywhere() {
        let text = concat!(
            r#"{"type":"ADDED","object":{"metadata":{"name":"a"}}}"#,
            "\n",
            r#"{"type":"ERROR","object":{"kind":"Status","status":"Failure","code":410,"reason":"Expired","message":"too old"}}"#,
            "\n",
        );
        for size in [1, 7, 60, text.len()] {
            let pieces: Vec<_> =
                text.as_bytes().chunks(size).map(|c| Ok(Bytes::copy_from_slice(c))).collect();
            let watch = Watch::new(Box::pin(stream::iter(pieces)));
            let events: Vec<_> = block_on(watch.collect());
            assert_eq!(events.len(), 2, "pieces of {size}");
            assert_eq!(events[0].as_ref().unwrap().kind, WatchEventKind::Added);
            assert!(events[1].as_ref().unwrap_err().is_expired());
        }
    }
}
