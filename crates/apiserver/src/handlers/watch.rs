//! Watches: events as lines of JSON or frames of protobuf, until the client or the time ends it.

use std::sync::Arc;

use api::{Reason, Status};
use bytes::Bytes;
use futures::stream;
use http::Response;
use machinery::{Object, Value, codec, value};
use registry::{Resource, WatchEvent, WatchKind, WatchStream};

use super::{
    options,
    resource::{Shaper, metadata_of},
};
use crate::{
    body::{self, Body, BodyError},
    negotiate::{Accepted, Format, Shape},
    pipeline::Call,
    respond, wire,
};

pub async fn watch(call: &mut Call, resource: &Arc<Resource>) -> Result<Response<Body>, Status> {
    let accepted = call.accepted(true)?;
    let options = options::list(&call.server, &call.query, true)?;
    let namespace = (!call.info.namespace.is_empty()).then_some(call.info.namespace.as_str());
    let encoder = Encoder {
        resource: resource.clone(),
        accepted,
        call: ShapeOptions::of(call, resource, &accepted)?,
    };
    let stream = match resource.watch(namespace, &options).await {
        Ok(stream) => stream,
        // The client reads the reason as an event and lists again.
        Err(status) if status.is_expired() => {
            let frame = encoder.failure(&status)?;
            return Ok(streaming(&accepted, body::full(frame)));
        }
        // Upstream finds a malformed version too late to blame the client.
        Err(status) if status.code == 400 && status.message.contains("strconv.ParseUint") => {
            return Err(Status { code: 500, reason: Reason::Unknown, ..status });
        }
        Err(status) => return Err(status),
    };
    let state = Running { stream, encoder, first: true, stopping: call.server.stopping.clone() };
    let frames = stream::unfold(Some(state), next_frame);
    Ok(streaming(&accepted, body::stream(frames)))
}

fn streaming(accepted: &Accepted, body: Body) -> Response<Body> {
    let media_type = match accepted.format {
        Format::Protobuf => "application/vnd.kubernetes.protobuf;stream=watch",
        _ => "application/json",
    };
    let mut response = respond::bytes(200, media_type, Bytes::new());
    response.headers_mut().remove(http::header::CONTENT_LENGTH);
    *response.body_mut() = body;
    response
}

struct Running {
    stream: WatchStream,
    encoder: Encoder,
    first: bool,
    stopping: stdx::CancellationToken,
}

type Frame = Result<Bytes, BodyError>;

async fn next_frame(state: Option<Running>) -> Option<(Frame, Option<Running>)> {
    let mut state = state?;
    let event = tokio::select! {
        biased;
        () = state.stopping.cancelled() => return None,
        event = state.stream.next() => event?,
    };
    let frame = state.encoder.event(&event, state.first);
    state.first = false;
    match frame {
        Ok(frame) => Some((Ok(frame), Some(state))),
        Err(status) => {
            tracing::error!(%status, "a watch event could not be encoded");
            let frame = state.encoder.failure(&status).map_err(|status| status.into());
            Some((frame, None))
        }
    }
}

/// What of the request decides how Tables look.
struct ShapeOptions {
    include_object: registry::table::IncludeObject,
    env: stdx::Env,
}

impl ShapeOptions {
    fn of(call: &Call, resource: &Resource, accepted: &Accepted) -> Result<Self, Status> {
        let shaper = Shaper::new(call, resource, accepted)?;
        Ok(Self { include_object: shaper.include, env: call.server.env.clone() })
    }
}

struct Encoder {
    resource: Arc<Resource>,
    accepted: Accepted,
    call: ShapeOptions,
}

impl Encoder {
    fn event(&self, event: &WatchEvent, first: bool) -> Result<Bytes, Status> {
        if self.accepted.shape == Shape::Whole && self.accepted.format == Format::Json {
            return event.json();
        }
        let object = self.shape(event, first)?;
        self.frame(event.kind.as_str(), &object)
    }

    fn shape(&self, event: &WatchEvent, first: bool) -> Result<Object, Status> {
        let object = event.object()?;
        match self.accepted.shape {
            Shape::Whole => Ok(object),
            Shape::Metadata => Ok(metadata_of(&object, &self.accepted)),
            Shape::Table => {
                let shaper = Shaper::at(
                    &self.resource,
                    &self.accepted,
                    self.call.env.now(),
                    self.call.include_object,
                );
                match event.kind {
                    WatchKind::Bookmark => shaper.bookmark(&object, first),
                    _ => shaper.of_event(object, first),
                }
            }
        }
    }

    fn failure(&self, status: &Status) -> Result<Bytes, Status> {
        let object = Object::from_json(&status.to_json()).map_err(Status::internal)?;
        self.frame("ERROR", &object)
    }

    fn frame(&self, kind: &str, object: &Object) -> Result<Bytes, Status> {
        if self.accepted.format == Format::Protobuf {
            let message =
                codec::protobuf_watch_event(kind, &wire::encode(object, Format::Protobuf, false)?);
            let mut frame = Vec::with_capacity(message.len() + 4);
            frame.extend_from_slice(&(message.len() as u32).to_be_bytes());
            frame.extend_from_slice(&message);
            return Ok(frame.into());
        }
        let mut event = value!({"type": kind});
        if let Value::Map(map) = &mut event {
            map.insert("object", object.clone().into_value());
        }
        let mut line = machinery::json::to_vec(&event);
        line.push(b'\n');
        Ok(line.into())
    }
}
