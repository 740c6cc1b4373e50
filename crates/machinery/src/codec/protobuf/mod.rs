//! Protobuf as Kubernetes speaks it: the messages of the published definitions, driven by the
//! schema facts, inside the envelope `k8s\0` + `runtime.Unknown`.
//!
//! Bytes are equal to upstream's: parts in the order of their numbers, values that are no
//! pointers written even when zero, maps sorted.

mod decode;
mod encode;
mod wire;

use api::TypeId;
use bytes::Bytes;

use super::Error;
use crate::{Map, Object};

/// The first bytes of every enveloped object.
pub const MAGIC: &[u8] = b"k8s\0";

/// The fields of `runtime.Unknown`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Envelope<'a> {
    pub api_version: &'a str,
    pub kind: &'a str,
    pub raw: &'a [u8],
    pub content_encoding: &'a str,
    pub content_type: &'a str,
}

/// Whether the bytes are an enveloped object.
pub fn is_enveloped(bytes: &[u8]) -> bool {
    bytes.starts_with(MAGIC)
}

/// Opens the envelope, leaving the message as it is.
pub fn open(bytes: &[u8]) -> Result<Envelope<'_>, Error> {
    let bytes = bytes.strip_prefix(MAGIC).ok_or(Error::NoEnvelope)?;
    let mut envelope = Envelope::default();
    for field in wire::fields(bytes) {
        let (number, value) = field?;
        match number {
            1 => type_meta(value.bytes()?, &mut envelope)?,
            2 => envelope.raw = value.bytes()?,
            3 => envelope.content_encoding = value.str()?,
            4 => envelope.content_type = value.str()?,
            _ => {}
        }
    }
    Ok(envelope)
}

fn type_meta<'a>(bytes: &'a [u8], envelope: &mut Envelope<'a>) -> Result<(), Error> {
    for field in wire::fields(bytes) {
        let (number, value) = field?;
        match number {
            1 => envelope.api_version = value.str()?,
            2 => envelope.kind = value.str()?,
            _ => {}
        }
    }
    Ok(())
}

/// Writes an envelope around a message.
pub fn seal(api_version: &str, kind: &str, raw: &[u8]) -> Bytes {
    let mut out = wire::Reverse::with_capacity(raw.len() + api_version.len() + kind.len() + 24);
    out.raw_bytes(TRAILER);
    out.raw_bytes(raw);
    close(out, api_version, kind)
}

/// Puts type and magic before the message that `out` holds, trailer included.
fn close(mut out: wire::Reverse, api_version: &str, kind: &str) -> Bytes {
    let length = out.len() - TRAILER.len();
    out.tag_and_length(2, length);
    let before = out.len();
    out.field_bytes(2, kind.as_bytes());
    out.field_bytes(1, api_version.as_bytes());
    let meta = out.len() - before;
    out.tag_and_length(1, meta);
    out.raw_bytes(MAGIC);
    out.finish().into()
}

/// Empty `contentEncoding` and `contentType`, which upstream writes all the same.
const TRAILER: &[u8] = &[0x1a, 0, 0x22, 0];

/// Encodes an object of a built-in kind with its envelope.
pub fn encode(object: &Map, ty: TypeId, api_version: &str, kind: &str) -> Result<Bytes, Error> {
    let mut out = wire::Reverse::with_capacity(1024);
    out.raw_bytes(TRAILER);
    encode::message(object, ty, &mut out)?;
    Ok(close(out, api_version, kind))
}

/// Encodes a message without envelope.
pub fn encode_message(object: &Map, ty: TypeId) -> Result<Vec<u8>, Error> {
    let mut out = wire::Reverse::with_capacity(512);
    encode::message(object, ty, &mut out)?;
    Ok(out.finish())
}

/// Decodes a message into what Go's JSON encoder would write for it.
pub fn decode_message(bytes: &[u8], ty: TypeId) -> Result<Map, Error> {
    decode::message(bytes, ty)
}

/// Decodes an enveloped object; its kind is in the envelope.
pub fn decode(bytes: &[u8]) -> Result<Object, Error> {
    super::from_envelope(&open(bytes)?)
}

/// `metav1.WatchEvent` without envelope: type and the bytes of the object.
pub fn watch_event(bytes: &[u8]) -> Result<(String, Vec<u8>), Error> {
    let (mut kind, mut object) = (String::new(), Vec::new());
    for field in wire::fields(bytes) {
        match field? {
            (1, value) => kind = value.str()?.to_owned(),
            (2, value) => {
                for inner in wire::fields(value.bytes()?) {
                    if let (1, raw) = inner? {
                        object = raw.bytes()?.to_vec();
                    }
                }
            }
            _ => {}
        }
    }
    Ok((kind, object))
}
