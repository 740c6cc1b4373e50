//! From the bytes of a request to an object, with upstream's failures.

use api::{GroupVersion, GroupVersionKind, Status};

use super::{FieldValidation, decode_noting, judge};
use crate::{
    Object, Value,
    codec::{self, Format},
    json,
};

/// Reads the body of a create, update or patch of a built-in kind. A body without kind and
/// version is taken for the expected one. Gives the object and the warnings to send.
pub fn decode_body(
    body: &[u8],
    format: Format,
    expected: &GroupVersionKind,
    validation: FieldValidation,
) -> Result<(Object, Vec<String>), Status> {
    if format == Format::Protobuf {
        let object = codec::from_protobuf(body)
            .map_err(|error| not_recognised(&expected.kind, &error.to_string(), body))?;
        check_kind(&object.gvk().unwrap_or_else(|| expected.clone()), expected)?;
        return Ok((object, Vec::new()));
    }
    let (mut value, duplicates) = parse(body, format, &expected.kind)?;
    let found =
        kind_of(&value, expected).map_err(|why| not_recognised(&expected.kind, &why, body))?;
    check_kind(&found, expected)?;
    if let Value::Map(map) = &mut value {
        map.insert("apiVersion", found.api_version());
        map.insert("kind", found.kind.clone());
    }
    let (object, mut strict) = decode_noting(&value, &duplicates, expected)?;
    if strict.len() > 1 && format == Format::Json {
        sort_as_in(body, &mut strict);
    }
    judge(object, strict, expected, validation)
}

/// Puts the objections of strict decoding into the order of the document.
fn sort_as_in(body: &[u8], strict: &mut [String]) {
    let order = json::field_order(body);
    let place = |objection: &String| {
        let path = objection.split('"').nth(1).unwrap_or_default();
        let places = order.iter().enumerate().filter(|(_, p)| *p == path).map(|(at, _)| at);
        // A duplicate is noticed when it comes again.
        if objection.starts_with("duplicate") { places.max() } else { places.min() }
    };
    strict.sort_by_key(place);
}

/// Parses a body that has to name its kind.
pub fn parse(body: &[u8], format: Format, expected: &str) -> Result<(Value, Vec<String>), Status> {
    codec::parse(body, format).map_err(|error| {
        let why = format!("couldn't get version/kind; json parse error: {error}");
        not_recognised(expected, &why, body)
    })
}

/// The kind that a body names; each part that it leaves out is the expected one.
pub fn kind_of(value: &Value, expected: &GroupVersionKind) -> Result<GroupVersionKind, String> {
    let map = match value {
        Value::Map(map) => map,
        Value::Null => return Ok(expected.clone()),
        other => {
            let found = other.type_name();
            return Err(format!(
                "couldn't get version/kind; json parse error: json: cannot unmarshal {found} into Go value of type struct {{ APIVersion string \"json:\\\"apiVersion,omitempty\\\"\"; Kind string \"json:\\\"kind,omitempty\\\"\" }}"
            ));
        }
    };
    let text = |key: &str| match map.get(key) {
        None | Some(Value::Null) => Ok(""),
        Some(Value::String(text)) => Ok(text.as_str()),
        Some(other) => {
            let found = other.type_name();
            Err(format!(
                "couldn't get version/kind; json parse error: json: cannot unmarshal {found} into Go struct field .{key} of type string"
            ))
        }
    };
    let (version, kind) = (text("apiVersion")?, text("kind")?);
    let version = match version {
        "" => expected.group_version(),
        _ => GroupVersion::parse(version)
            .ok_or_else(|| format!("unexpected GroupVersion string: {version}"))?,
    };
    Ok(version.kind(if kind.is_empty() { expected.kind.clone() } else { kind.into() }))
}

fn check_kind(found: &GroupVersionKind, expected: &GroupVersionKind) -> Result<(), Status> {
    if found == expected {
        return Ok(());
    }
    let Some(kind) = api::schema().kind(found) else {
        return Err(unregistered(found, &expected.kind));
    };
    if found.kind == expected.kind && found.group == expected.group {
        let (found, expected) = (found.group_version(), expected.group_version());
        return Err(Status::bad_request(format!(
            "the API version in the data ({found}) does not match the expected API version ({expected})"
        )));
    }
    let go = api::schema().type_of(kind.ty).go_name;
    let internal = match expected.group.split('.').next() {
        None | Some("") => "core",
        Some(group) => group,
    };
    let wanted = &expected.kind;
    Err(handled_as(
        found,
        wanted,
        &format!("converting ({go}) to ({internal}.{wanted}): unknown conversion"),
    ))
}

/// The failure of decoding a body whose kind is known.
pub fn not_handled(gvk: &GroupVersionKind, why: &str) -> Status {
    handled_as(gvk, &gvk.kind, why)
}

fn handled_as(gvk: &GroupVersionKind, wanted: &str, why: &str) -> Status {
    let (kind, version) = (&gvk.kind, &gvk.version);
    Status::bad_request(format!(
        "{kind} in version {version:?} cannot be handled as a {wanted}: {why}"
    ))
}

/// The failure for a kind that no version knows.
pub fn unregistered(gvk: &GroupVersionKind, wanted: &str) -> Status {
    let (kind, version) = (&gvk.kind, gvk.api_version());
    let why = format!(
        "no kind {kind:?} is registered for version {version:?} in scheme \"pkg/runtime/scheme.go:111\""
    );
    handled_as(gvk, wanted, &why)
}

/// The failure of decoding a body that does not even tell its kind. `expected` is the kind that
/// the path asks for.
pub fn not_recognised(expected: &str, why: &str, body: &[u8]) -> Status {
    const SHOWN_BYTES: usize = 30;
    let head = &body[..body.len().min(SHOWN_BYTES)];
    let dots = if body.len() > SHOWN_BYTES { " ..." } else { "" };
    let summary = match head.first() {
        None => "<empty>".into(),
        Some(b'{') => String::from_utf8_lossy(head).into_owned(),
        Some(_) => head.iter().map(|byte| format!("{byte:02x}")).collect(),
    };
    Status::bad_request(format!(
        "the object provided is unrecognized (must be of type {expected}): {why} ({summary}{dots})"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(body: &str) -> String {
        let pod = GroupVersionKind::new("", "v1", "Pod");
        let result = decode_body(body.as_bytes(), Format::Json, &pod, FieldValidation::Strict);
        result.map_or_else(|status| status.message, |(object, _)| format!("{object:?}"))
    }

    #[test]
    fn failures_read_as_upstreams() {
        for (body, expected) in [
            (
                r#"{"apiVersion":"v1","kind":"Pod""#,
                r#"the object provided is unrecognized (must be of type Pod): couldn't get version/kind; json parse error: unexpected end of JSON input ({"apiVersion":"v1","kind":"Pod ...)"#,
            ),
            (
                "{x",
                "the object provided is unrecognized (must be of type Pod): couldn't get version/kind; json parse error: invalid character 'x' looking for beginning of object key string ({x)",
            ),
            (
                "[]",
                r#"the object provided is unrecognized (must be of type Pod): couldn't get version/kind; json parse error: json: cannot unmarshal array into Go value of type struct { APIVersion string "json:\"apiVersion,omitempty\""; Kind string "json:\"kind,omitempty\"" } (5b5d)"#,
            ),
            (
                r#"{"kind":"Foo","apiVersion":"v1"}"#,
                r#"Foo in version "v1" cannot be handled as a Pod: no kind "Foo" is registered for version "v1" in scheme "pkg/runtime/scheme.go:111""#,
            ),
            (
                r#"{"kind":"Deployment","apiVersion":"apps/v1"}"#,
                r#"Deployment in version "v1" cannot be handled as a Pod: converting (v1.Deployment) to (core.Pod): unknown conversion"#,
            ),
            (
                r#"{"spec":{"volumes":[{"hostPath":{"path":true}}]}}"#,
                r#"Pod in version "v1" cannot be handled as a Pod: json: cannot unmarshal bool into Go struct field HostPathVolumeSource.spec.volumes.VolumeSource.hostPath.path of type string"#,
            ),
            (
                r#"{"spec":{"containers":[{"livenessProbe":{"httpGet":{"port":true}}}]}}"#,
                r#"Pod in version "v1" cannot be handled as a Pod: json: cannot unmarshal bool into Go struct field HTTPGetAction.spec.containers.livenessProbe.ProbeHandler.httpGet.port of type int32"#,
            ),
            (
                r#"{"spec":{"zoo":1,"foo":1,"containers":[{"nam":1}],"hostPID":true,"hostPID":true}}"#,
                r#"Pod in version "v1" cannot be handled as a Pod: strict decoding error: unknown field "spec.zoo", unknown field "spec.foo", unknown field "spec.containers[0].nam", duplicate field "spec.hostPID""#,
            ),
            (
                "{}",
                r#"{"apiVersion":"v1","kind":"Pod","metadata":{},"spec":{"containers":null},"status":{}}"#,
            ),
        ] {
            assert_eq!(message(body), expected);
        }
    }
}
