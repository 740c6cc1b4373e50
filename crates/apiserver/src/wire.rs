//! Objects to bytes of responses.

use api::{Reason, Status};
use bytes::Bytes;
use machinery::{Map, Object, Value, codec};

use crate::negotiate::Format;

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
