//! Bytes of requests to objects, and objects to bytes of responses.

use api::{GroupVersionKind, Reason, Status};
use bytes::Bytes;
use machinery::{Map, Object, Value, codec};

use crate::negotiate::Format;

/// A decoded body, and the fields that stood twice in it.
pub struct Decoded {
    pub object: Object,
    pub duplicates: Vec<String>,
}

/// Reads a body that should be of kind `expected`. What it says of version and kind must fit;
/// what it does not say is filled in.
pub fn decode(body: &[u8], format: Format, expected: &GroupVersionKind) -> Result<Decoded, Status> {
    let (value, duplicates) = codec::parse(body, format).map_err(|error| unreadable(&error, expected))?;
    let mut object = match value {
        Value::Map(map) => Object::from_map(map),
        Value::Null => Object::default(),
        other => return Err(unreadable_text(&not_an_object(&other), expected)),
    };
    check_kind(&mut object, expected)?;
    Ok(Decoded { object, duplicates })
}

/// Fills in or compares `apiVersion` and `kind`.
pub fn check_kind(object: &mut Object, expected: &GroupVersionKind) -> Result<(), Status> {
    let api_version = expected.api_version();
    let given_version = if object.api_version().is_empty() { &api_version } else { object.api_version() };
    let given_kind = if object.kind().is_empty() { expected.kind.as_str() } else { object.kind() };
    if given_kind != expected.kind {
        let known = api::GroupVersion::parse(given_version)
            .is_some_and(|version| api::schema::schema().kind(&version.kind(given_kind)).is_some());
        let why = match known {
            true => format!("converting ({given_version}.{given_kind}) to ({}.{}): unknown conversion", internal(expected), expected.kind),
            false => format!("no kind {given_kind:?} is registered for version {given_version:?} in scheme \"pkg/api/legacyscheme/scheme.go:30\""),
        };
        let what = format!("{given_kind} in version {:?} cannot be handled as a {}: {why}", version_of(given_version), expected.kind);
        return Err(Status::bad_request(what));
    }
    if *given_version != api_version {
        return Err(Status::bad_request(format!(
            "the API version in the data ({given_version}) does not match the expected API version ({api_version})"
        )));
    }
    object.set_gvk(expected);
    Ok(())
}

fn internal(gvk: &GroupVersionKind) -> &str {
    if gvk.group.is_empty() { "core" } else { gvk.group.split('.').next().unwrap_or_default() }
}

fn version_of(api_version: &str) -> &str {
    api_version.rsplit('/').next().unwrap_or_default()
}

fn not_an_object(value: &Value) -> String {
    format!("json: cannot unmarshal {} into Go value of type map[string]interface {{}}", value.type_name())
}

fn unreadable(error: &codec::Error, expected: &GroupVersionKind) -> Status {
    unreadable_text(&error.to_string(), expected)
}

/// The 400 of a body that cannot be decoded as the kind that its URL asks for.
pub fn unreadable_text(why: &str, expected: &GroupVersionKind) -> Status {
    let (kind, version) = (&expected.kind, &expected.version);
    Status::bad_request(format!("{kind} in version {:?} cannot be handled as a {kind}: {why}", version.as_str()))
}

/// The bytes of an object.
pub fn encode(object: &Object, format: Format, pretty: bool) -> Result<Bytes, Status> {
    match format {
        Format::Json if pretty => {
            let mut text = serde_json::to_vec_pretty(object).map_err(Status::internal)?;
            text.push(b'\n');
            Ok(text.into())
        }
        Format::Json => {
            let mut text = object.to_json();
            text.push(b'\n');
            Ok(text.into())
        }
        Format::Yaml => Ok(machinery::yaml::to_string(object.root()).map_err(Status::internal)?.into()),
        Format::Protobuf => codec::to_protobuf(object).map_err(|error| match error {
            codec::Error::UnknownKind { .. } => {
                let only = "only the following media types are accepted: application/json, application/yaml";
                Status::new(406, Reason::NotAcceptable, only)
            }
            other => Status::internal(other),
        }),
    }
}

/// An object from its parts.
pub fn object(entries: impl IntoIterator<Item = (&'static str, Value)>) -> Object {
    Object::from_map(entries.into_iter().collect::<Map>())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(body: &str, format: Format) -> Result<Object, String> {
        let pod = GroupVersionKind::new("", "v1", "Pod");
        decode(body.as_bytes(), format, &pod).map(|decoded| decoded.object).map_err(|status| status.message)
    }

    #[test]
    fn fills_in_what_the_url_says() {
        let object = check("metadata: {name: a}", Format::Yaml).unwrap();
        assert_eq!((object.api_version(), object.kind(), object.name()), ("v1", "Pod", "a"));
    }

    #[test]
    fn refuses_another_version_or_kind() {
        assert_eq!(
            check(r#"{"apiVersion":"v2","kind":"Pod"}"#, Format::Json).unwrap_err(),
            "the API version in the data (v2) does not match the expected API version (v1)"
        );
        let service = check(r#"{"apiVersion":"v1","kind":"Service"}"#, Format::Json).unwrap_err();
        assert!(service.starts_with("Service in version \"v1\" cannot be handled as a Pod"), "{service}");
        assert!(check("[1]", Format::Json).unwrap_err().contains("cannot unmarshal array"));
    }
}
