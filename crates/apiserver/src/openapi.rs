//! `/openapi/v2` and `/openapi/v3`.

use api::Status;
use http::Response;

use crate::{body::Body, handlers::no_such_path, pipeline::Call};

/// Documents made once.
#[derive(Default)]
pub struct OpenApi;

pub fn serve(_call: &Call, _rest: &[&str]) -> Response<Body> {
    let _: Option<Status> = None;
    no_such_path()
}
