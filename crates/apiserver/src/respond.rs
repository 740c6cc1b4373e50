//! Responses: headers, and bodies in the form that was agreed on.

use api::Status;
use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use machinery::{Object, Value, value};

use crate::{
    body::{self, Body},
    negotiate::{Accepted, Format},
    wire,
};

/// A response with a plain text.
pub fn text(code: u16, text: impl Into<String>) -> Response<Body> {
    bytes(code, "text/plain; charset=utf-8", text.into())
}

/// A response of these bytes.
pub fn bytes(code: u16, media_type: &'static str, body: impl Into<Bytes>) -> Response<Body> {
    let body = body.into();
    let mut response = Response::new(body::empty());
    *response.status_mut() =
        StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
    response.headers_mut().insert(header::CONTENT_LENGTH, body.len().into());
    *response.body_mut() = body::full(body);
    response
}

/// A JSON document that is no API object.
pub fn json(code: u16, document: &serde_json::Value) -> Response<Body> {
    let mut text = document.to_string().into_bytes();
    text.push(b'\n');
    bytes(code, "application/json", text)
}

/// An object in the form that was agreed on.
pub fn object(code: u16, object: &Object, accepted: &Accepted) -> Response<Body> {
    match wire::encode(object, accepted.format, accepted.pretty) {
        Ok(body) => bytes(code, accepted.format.media_type(), body),
        Err(error) => failure(&error, &Accepted::default()),
    }
}

/// A failed request.
pub fn failure(status: &Status, accepted: &Accepted) -> Response<Body> {
    let tree = Object::from_json(&status.to_json()).unwrap_or_default();
    let encoded = wire::encode(&tree, accepted.format, accepted.pretty);
    let (format, body) = match encoded {
        Ok(body) => (accepted.format, body),
        Err(_) => (Format::Json, status.to_json().into()),
    };
    let mut response = bytes(status.code, format.media_type(), body);
    if let Some(seconds) = status.retry_after_seconds() {
        response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
    }
    response
}

/// `Status: Success` with details, as a tree.
pub fn success(name: &str, group: &str, resource: &str, uid: &str) -> Object {
    let mut details = machinery::Map::new();
    for (field, text) in [("name", name), ("group", group), ("kind", resource), ("uid", uid)] {
        if !text.is_empty() {
            details.insert(field, text);
        }
    }
    let status =
        value!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"});
    let mut status = Object::from_value(status).unwrap_or_default();
    status.root_mut().insert("details", Value::Map(details));
    status
}

/// Adds a `Warning` header per text, in the form of RFC 7234 that clients of Kubernetes read.
pub fn add_warnings(response: &mut Response<Body>, warnings: Vec<String>) {
    for text in warnings {
        let escaped: String = text
            .chars()
            .map(|c| if c.is_control() { ' ' } else { c })
            .flat_map(|c| matches!(c, '"' | '\\').then_some('\\').into_iter().chain([c]))
            .collect();
        if let Ok(value) = HeaderValue::from_bytes(format!("299 - \"{escaped}\"").as_bytes()) {
            response.headers_mut().append(header::WARNING, value);
        }
    }
}
