//! Bytes to objects and back, in the three media types of the API and in the store's form.

pub mod protobuf;

use api::{GroupVersion, GroupVersionKind, Resource, TypeId, schema};
use bytes::Bytes;

use crate::{Map, Object, Value, json};

/// Why bytes are no object, or an object has no bytes.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]"
    )]
    NoEnvelope,
    #[error("proto: {0}")]
    Malformed(&'static str),
    #[error("no kind {kind:?} is registered for version {api_version:?}")]
    UnknownKind { api_version: String, kind: String },
    #[error("field {field}: a {found} does not fit its type")]
    WrongType { field: &'static str, found: &'static str },
    #[error(transparent)]
    Json(#[from] json::Error),
    #[error(transparent)]
    Yaml(crate::yaml::Error),
    #[error("an object was expected")]
    NotAnObject,
    #[error("object has no apiVersion and kind")]
    NoKind,
}

/// The media types of bodies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    Json,
    Yaml,
    Protobuf,
}

impl Format {
    /// By media type, with or without parameters.
    pub fn of_media_type(media_type: &str) -> Option<Self> {
        match media_type.split(';').next().unwrap_or_default().trim() {
            "application/json" => Some(Self::Json),
            "application/yaml" => Some(Self::Yaml),
            "application/vnd.kubernetes.protobuf" => Some(Self::Protobuf),
            _ => None,
        }
    }

    pub fn media_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Yaml => "application/yaml",
            Self::Protobuf => "application/vnd.kubernetes.protobuf",
        }
    }
}

/// Encodes an object of a built-in kind for the wire, with its own version and kind. Kinds
/// without a message (custom resources) fail with [`Error::UnknownKind`].
pub fn to_protobuf(object: &Object) -> Result<Bytes, Error> {
    let gvk = object.gvk().ok_or(Error::NoKind)?;
    let ty = type_of(&gvk)?;
    protobuf::encode(object.root(), ty, object.api_version(), object.kind())
}

/// Decodes an enveloped object.
pub fn from_protobuf(bytes: &[u8]) -> Result<Object, Error> {
    protobuf::decode(bytes)
}

fn type_of(gvk: &GroupVersionKind) -> Result<TypeId, Error> {
    let unknown =
        || Error::UnknownKind { api_version: gvk.api_version(), kind: gvk.kind.to_string() };
    Ok(schema().kind(gvk).ok_or_else(unknown)?.ty)
}

pub(crate) fn from_envelope(envelope: &protobuf::Envelope) -> Result<Object, Error> {
    from_envelope_with(envelope, protobuf::decode_message)
}

/// Decodes an envelope's content by a decoder of messages.
pub(crate) fn from_envelope_with(
    envelope: &protobuf::Envelope,
    message: impl FnOnce(&[u8], TypeId) -> Result<Map, Error>,
) -> Result<Object, Error> {
    if envelope.content_type == "application/json" {
        return Object::from_value(json::parse(envelope.raw)?).ok_or(Error::NotAnObject);
    }
    let version = GroupVersion::parse(envelope.api_version).ok_or(Error::NoKind)?;
    let gvk = version.kind(envelope.kind);
    let mut map = message(envelope.raw, type_of(&gvk)?)?;
    if envelope.kind.ends_with("List") && map.get("items").is_some_and(Value::is_null) {
        map.insert("items", Vec::<Value>::new());
    }
    map.insert("apiVersion", envelope.api_version);
    map.insert("kind", envelope.kind);
    let mut object = Object::from_map(map);
    crate::fields::complete(&mut object);
    Ok(object)
}

/// Groups whose objects upstream stores as JSON: their servers were once separate programs.
const STORED_AS_JSON: [&str; 2] = ["apiextensions.k8s.io", "apiregistration.k8s.io"];

/// The store's form: protobuf (for two groups JSON) in the version that upstream stores. The
/// object must already have that version's fields; only `apiVersion` is rewritten, which is all
/// that versions of one shape differ in.
pub fn encode_storage(object: &Object, resource: &Resource) -> Result<Bytes, Error> {
    let stored = resource.storage_version.kind(resource.gvk.kind.clone());
    if STORED_AS_JSON.contains(&resource.gvr.group.as_str()) {
        let mut object = object.clone();
        object.set_gvk(&stored);
        return Ok(encode_storage_json(&object));
    }
    protobuf::encode(object.root(), type_of(&stored)?, &stored.api_version(), &stored.kind)
}

/// The store's form of a custom resource: JSON.
pub fn encode_storage_json(object: &Object) -> Bytes {
    object.to_json().into()
}

/// Reads what [`encode_storage`], [`encode_storage_json`] or upstream wrote; `apiVersion` is the
/// stored one.
pub fn decode_storage(bytes: &[u8]) -> Result<Object, Error> {
    if protobuf::is_enveloped(bytes) {
        return protobuf::decode(bytes);
    }
    Object::from_value(json::parse(bytes)?).ok_or(Error::NotAnObject)
}

/// A list's protobuf bytes from the enveloped bytes of its items, without decoding them: each
/// must be an object of the list's item kind. `metadata` is the list's `ListMeta`.
pub fn protobuf_list<'a>(
    api_version: &str,
    list_kind: &str,
    metadata: &Map,
    items: impl Iterator<Item = &'a [u8]>,
) -> Result<Bytes, Error> {
    let list_meta = schema().type_named("io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta");
    let list_meta = list_meta.ok_or(Error::NotAnObject)?;
    let mut raw = Vec::new();
    push_field(&mut raw, 1, &protobuf::encode_message(metadata, list_meta)?);
    for item in items {
        push_field(&mut raw, 2, protobuf::open(item)?.raw);
    }
    Ok(protobuf::seal(api_version, list_kind, &raw))
}

/// One watch event in protobuf, as it stands in a frame: `object` is enveloped.
pub fn protobuf_watch_event(event_type: &str, object: &[u8]) -> Vec<u8> {
    let mut extension = Vec::with_capacity(object.len() + 6);
    push_field(&mut extension, 1, object);
    let mut out = Vec::with_capacity(extension.len() + 20);
    push_field(&mut out, 1, event_type.as_bytes());
    push_field(&mut out, 2, &extension);
    out
}

/// Reads a frame of a protobuf watch: the event's type and its object's enveloped bytes.
pub fn read_protobuf_watch_event(bytes: &[u8]) -> Result<(String, Vec<u8>), Error> {
    protobuf::watch_event(bytes)
}

fn push_field(out: &mut Vec<u8>, number: u8, bytes: &[u8]) {
    out.push(number << 3 | 2);
    let mut length = bytes.len();
    while length >= 0x80 {
        out.push(length as u8 | 0x80);
        length >>= 7;
    }
    out.push(length as u8);
    out.extend_from_slice(bytes);
}

/// Reads a body of any format into a tree; of JSON and YAML also the fields that stand twice.
pub fn parse(bytes: &[u8], format: Format) -> Result<(Value, Vec<String>), Error> {
    match format {
        Format::Json => Ok(json::parse_noting_duplicates(bytes)?),
        Format::Yaml => {
            let text = std::str::from_utf8(bytes).map_err(|_| Error::NotAnObject)?;
            let value = crate::yaml::parse(text).map_err(Error::Yaml)?;
            let duplicates = crate::yaml::parse_strict(text).err().map(|e| e.to_string());
            Ok((value, duplicates.into_iter().collect()))
        }
        Format::Protobuf => Ok((protobuf::decode(bytes)?.into_value(), Vec::new())),
    }
}

#[cfg(test)]
mod tests;
