//! Which form a client wants to read and which it wrote: JSON, YAML, protobuf; whole objects,
//! Tables or metadata alone.

use api::{Reason, Status, status::Details};
use http::{HeaderMap, header};
pub use machinery::codec::Format;

pub const JSON: &str = "application/json";
pub const YAML: &str = "application/yaml";
pub const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";
const ALL: &str = "application/json, application/yaml, application/vnd.kubernetes.protobuf";

/// What of an object is sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Shape {
    #[default]
    Whole,
    /// `as=Table`: rows as `kubectl get` prints them.
    Table,
    /// `as=PartialObjectMetadata` or `…List`.
    Metadata,
}

/// What was agreed on for a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accepted {
    pub format: Format,
    pub shape: Shape,
    /// `meta.k8s.io/v1beta1` for shapes, instead of `v1`.
    pub beta: bool,
    pub pretty: bool,
}

impl Default for Accepted {
    fn default() -> Self {
        Self { format: Format::Json, shape: Shape::Whole, beta: false, pretty: false }
    }
}

/// One clause of an `Accept` header.
#[derive(Debug)]
pub struct Clause<'a> {
    pub media_type: &'a str,
    params: Vec<(&'a str, &'a str)>,
    quality: f32,
}

impl Clause<'_> {
    pub fn param(&self, name: &str) -> Option<&str> {
        self.params.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| *value)
    }

    fn format(&self) -> Option<Format> {
        match self.media_type {
            JSON | "*/*" | "application/*" => Some(Format::Json),
            YAML => Some(Format::Yaml),
            PROTOBUF => Some(Format::Protobuf),
            _ => None,
        }
    }

    fn accepted(&self, streams: bool) -> Option<Accepted> {
        let format = self.format()?;
        if streams && format == Format::Yaml {
            return None;
        }
        if self.param("stream").is_some_and(|stream| stream != "watch" || !streams) {
            return None;
        }
        let shape = match self.param("as") {
            None => Shape::Whole,
            Some("Table") if format != Format::Protobuf => Shape::Table,
            Some("PartialObjectMetadata" | "PartialObjectMetadataList") => Shape::Metadata,
            Some(_) => return None,
        };
        let group_fits = shape == Shape::Whole || self.param("g") == Some("meta.k8s.io");
        let version = self.param("v").unwrap_or("v1");
        let version_fits = shape == Shape::Whole || matches!(version, "v1" | "v1beta1");
        (group_fits && version_fits).then(|| Accepted {
            format,
            shape,
            beta: shape != Shape::Whole && version == "v1beta1",
            pretty: self.param("pretty").is_some_and(|value| value != "0"),
        })
    }
}

/// The clauses of an `Accept` header, best first.
pub fn clauses(header: &str) -> Vec<Clause<'_>> {
    let mut clauses: Vec<Clause<'_>> = header
        .split(',')
        .map(|clause| {
            let mut parts = clause.split(';').map(str::trim);
            let media_type = parts.next().unwrap_or_default();
            let params: Vec<_> = parts.filter_map(|param| param.split_once('=')).collect();
            let quality =
                params.iter().find(|(key, _)| *key == "q").and_then(|(_, q)| q.parse().ok());
            Clause { media_type, params, quality: quality.unwrap_or(1.0) }
        })
        .filter(|clause| !clause.media_type.is_empty())
        .collect();
    clauses.sort_by(|a, b| b.quality.total_cmp(&a.quality));
    clauses
}

/// The `Accept` headers as one text.
pub fn accept_header(headers: &HeaderMap) -> String {
    let values = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    values.collect::<Vec<_>>().join(",")
}

/// The form of a response; `streams` for watches. 406 when nothing on the list can be made.
pub fn response(
    headers: &HeaderMap,
    query_pretty: Option<&str>,
    streams: bool,
) -> Result<Accepted, Status> {
    let header = accept_header(headers);
    let clauses = clauses(&header);
    let found = if clauses.is_empty() {
        Some(Accepted::default())
    } else {
        clauses.iter().find_map(|clause| clause.accepted(streams))
    };
    let mut accepted = found.ok_or_else(|| not_acceptable(&clauses, streams))?;
    accepted.pretty |= match query_pretty {
        Some(value) => !matches!(value, "0" | "false"),
        None => is_for_eyes(headers),
    };
    Ok(accepted)
}

/// The form of an error: that of the response when it can be told, else JSON.
pub fn for_error(headers: &HeaderMap) -> Accepted {
    let accepted = response(headers, None, false).unwrap_or_default();
    Accepted { shape: Shape::Whole, ..accepted }
}

const STREAMS: &str =
    "application/json;stream=watch, application/vnd.kubernetes.protobuf;stream=watch";

/// A media type that is never made is refused in other words than one that does not fit here.
fn not_acceptable(clauses: &[Clause<'_>], streams: bool) -> Status {
    let known = clauses.iter().any(|clause| clause.format().is_some());
    let (message, details) = match (known, streams) {
        (true, true) => (format!("only the following media types are accepted: {STREAMS}"), None),
        (true, false) => (format!("only the following media types are accepted: {ALL}"), None),
        (false, true) => (format!("{UNKNOWN}: {ALL}, {STREAMS}"), Some(Details::default())),
        (false, false) => (format!("{UNKNOWN}: {ALL}"), Some(Details::default())),
    };
    let status = Status::new(406, Reason::NotAcceptable, message);
    match details {
        Some(details) => status.with_details(details),
        None => status,
    }
}

const UNKNOWN: &str = "406: Not Acceptable\n\nAvailable representations";

/// Browsers and command-line fetchers get indented JSON.
fn is_for_eyes(headers: &HeaderMap) -> bool {
    let agent =
        headers.get(header::USER_AGENT).and_then(|agent| agent.to_str().ok()).unwrap_or_default();
    ["curl", "Wget", "Mozilla/5.0"].iter().any(|prefix| agent.starts_with(prefix))
}

/// The form of a request body. No `Content-Type` means JSON.
pub fn request(headers: &HeaderMap) -> Result<Format, Status> {
    match content_type(headers).as_str() {
        "" | JSON => Ok(Format::Json),
        YAML | "application/x-yaml" | "text/yaml" => Ok(Format::Yaml),
        PROTOBUF => Ok(Format::Protobuf),
        _ => Err(unsupported(ALL)),
    }
}

/// The media type of a request body in lower case, without parameters.
pub fn content_type(headers: &HeaderMap) -> String {
    let value =
        headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

pub fn unsupported(types: &str) -> Status {
    let message = format!(
        "the body of the request was in an unknown format - accepted media types include: {types}"
    );
    Status::new(415, Reason::UnsupportedMediaType, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(accept: &str, streams: bool) -> Result<Accepted, u16> {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, accept.parse().unwrap());
        response(&headers, None, streams).map_err(|status| status.code)
    }

    fn form(format: Format, shape: Shape) -> Result<Accepted, u16> {
        Ok(Accepted { format, shape, ..Accepted::default() })
    }

    #[test]
    fn the_first_clause_that_can_be_made_wins() {
        let kubectl = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";
        assert_eq!(check(kubectl, false), form(Format::Json, Shape::Table));
        let controller = "application/vnd.kubernetes.protobuf, */*";
        assert_eq!(check(controller, false), form(Format::Protobuf, Shape::Whole));
        assert_eq!(
            check("application/vnd.kubernetes.protobuf;stream=watch", true),
            form(Format::Protobuf, Shape::Whole)
        );
        let metadata =
            "application/vnd.kubernetes.protobuf;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1";
        assert_eq!(check(metadata, false), form(Format::Protobuf, Shape::Metadata));
        assert_eq!(
            check("application/yaml;q=0.1, application/json;q=0.9", false),
            form(Format::Json, Shape::Whole)
        );
        assert_eq!(check("", false), form(Format::Json, Shape::Whole));
    }

    #[test]
    fn what_cannot_be_made_is_406() {
        assert_eq!(check("text/plain", false), Err(406));
        assert_eq!(check("application/yaml", true), Err(406));
        assert_eq!(check("application/json;as=Chart;g=meta.k8s.io;v=v1", false), Err(406));
        assert_eq!(
            response(
                &[(header::ACCEPT, "text/plain".parse().unwrap())].into_iter().collect(),
                None,
                false
            )
            .unwrap_err()
            .message,
            "406: Not Acceptable\n\nAvailable representations: application/json, application/yaml, application/vnd.kubernetes.protobuf"
        );
    }
}
