//! What is done with a request that passed the chain.
//!
//! [`resource`] serves objects, [`watch`] their changes, [`patch`] makes new objects from old
//! ones; [`subresources`] is the table of everything below an object; [`virtual_kinds`] the table
//! of kinds that are computed and not stored; [`paths`] serves what is no resource.

pub mod options;
pub mod patch;
pub mod paths;
pub mod pods;
pub mod proxy;
pub mod resource;
pub mod reviews;
pub mod scale;
pub mod subresources;
pub mod tokens;
pub mod virtual_kinds;
pub mod watch;

use std::io::Write;

use api::{GroupVersionKind, GroupVersionResource, Reason, Status, status::Details};
use bytes::Bytes;
use http::{Response, header};
use machinery::{
    Object,
    fields::{self, FieldValidation},
};

use crate::{
    Server,
    body::{self, Body, MAX_REQUEST_BYTES, ReadError},
    negotiate::{self, Accepted},
    pipeline::Call,
    request_info::RequestInfo,
    respond,
};

/// Responses of this size and more are compressed for clients that take it.
const COMPRESS_FROM_BYTES: usize = 128 * 1024;

/// Serves a request that passed the chain, and adds the warnings that came up.
pub async fn serve(mut call: Call) -> Result<Response<Body>, Status> {
    let mut result = match call.info.is_resource {
        true => subresources::route(&mut call).await,
        false => paths::serve(&mut call).await,
    };
    let warnings = call.context.take_warnings();
    if !warnings.is_empty() {
        let mut response = result.unwrap_or_else(|status| {
            respond::failure(&status, &negotiate::for_error(&call.headers))
        });
        respond::add_warnings(&mut response, warnings);
        result = Ok(response);
    }
    result
}

/// Whether the resource of a request exists.
pub fn is_served(server: &Server, info: &RequestInfo) -> bool {
    let gvr = gvr_of(info);
    server.data.registry().resource(&gvr).is_some() || virtual_kinds::find(info).is_some()
}

pub fn gvr_of(info: &RequestInfo) -> GroupVersionResource {
    GroupVersionResource {
        group: info.group.clone(),
        version: info.version.clone(),
        resource: info.resource.clone(),
    }
}

/// A path that nobody serves, as every HTTP server of Kubernetes says it.
pub fn no_such_path() -> Response<Body> {
    let mut response = respond::text(404, "404 page not found\n");
    response
        .headers_mut()
        .insert(header::X_CONTENT_TYPE_OPTIONS, header::HeaderValue::from_static("nosniff"));
    response
}

/// A resource that a served group and version lacks.
pub fn no_such_resource() -> Response<Body> {
    refused(404, Reason::NotFound, "the server could not find the requested resource")
}

pub fn no_such_method() -> Response<Body> {
    refused(
        405,
        Reason::MethodNotAllowed,
        "the server does not allow this method on the requested resource",
    )
}

fn refused(code: u16, reason: Reason, text: &str) -> Response<Body> {
    let status = Status::new(code, reason, text).with_details(Details::default());
    respond::failure(&status, &Accepted::default())
}

impl Call {
    /// The form of the response.
    pub fn accepted(&self, streams: bool) -> Result<Accepted, Status> {
        negotiate::response(&self.headers, self.query.get("pretty"), streams)
    }

    /// The whole body.
    pub async fn read_body(&mut self) -> Result<Bytes, Status> {
        let body = self.take_body();
        body::read(body, MAX_REQUEST_BYTES).await.map_err(|error| match error {
            ReadError::TooLarge { limit } => {
                let text = format!("Request entity too large: limit is {limit}");
                Status::new(413, api::Reason::RequestEntityTooLarge, text)
            }
            ReadError::Broken(source) => {
                Status::bad_request(format!("failed to read the request body: {source}"))
            }
        })
    }

    /// The body as an object of a kind. Unknown fields and fields that stand twice are dropped,
    /// warned about or refused.
    pub async fn read_object(
        &mut self,
        expected: &GroupVersionKind,
        validation: FieldValidation,
    ) -> Result<Object, Status> {
        let format = negotiate::request(&self.headers)?;
        let body = self.read_body().await?;
        let (object, warnings) = fields::decode_body(&body, format, expected, validation)?;
        for warning in warnings {
            self.context.warn(warning);
        }
        Ok(object)
    }

    /// A response of these bytes, compressed when that is worth it and wanted.
    pub fn reply(&self, code: u16, media_type: &'static str, body: Bytes) -> Response<Body> {
        let wanted =
            self.headers.get(header::ACCEPT_ENCODING).and_then(|value| value.to_str().ok());
        let gzip = wanted
            .is_some_and(|v| v.split(',').any(|e| e.trim().split(';').next() == Some("gzip")));
        if !gzip || body.len() < COMPRESS_FROM_BYTES {
            return respond::bytes(code, media_type, body);
        }
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        match encoder.write_all(&body).and_then(|()| encoder.finish()) {
            Ok(small) => {
                let mut response = respond::bytes(code, media_type, small);
                let headers = response.headers_mut();
                headers.insert(header::CONTENT_ENCODING, header::HeaderValue::from_static("gzip"));
                headers.insert(header::VARY, header::HeaderValue::from_static("Accept-Encoding"));
                response
            }
            Err(_) => respond::bytes(code, media_type, body),
        }
    }
}
