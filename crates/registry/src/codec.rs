//! Objects to stored bytes and back. The only place that knows the stored form.

use api::{GroupVersionKind, Status};
use bytes::Bytes;
use machinery::Object;
use store::Revision;

/// The stored bytes of an object in its storage version: upstream's protobuf, or JSON for what
/// has no message. `resourceVersion` is not part of them.
pub(crate) fn encode(gvk: &GroupVersionKind, object: &Object) -> Result<Bytes, Status> {
    let mut object = object.clone();
    object.set_resource_version("");
    object.set_gvk(gvk);
    match machinery::codec::to_protobuf(&object) {
        Err(machinery::codec::Error::UnknownKind { .. }) => {
            Ok(machinery::codec::encode_storage_json(&object))
        }
        encoded => encoded.map_err(|error| Status::bad_request(error.to_string())),
    }
}

/// Reads stored bytes; the revision becomes the `resourceVersion`.
pub(crate) fn decode(
    gvk: &GroupVersionKind,
    stored: &[u8],
    revision: Revision,
) -> Result<Object, Status> {
    let mut object = machinery::codec::decode_storage(stored).map_err(Status::internal)?;
    object.set_gvk(gvk);
    object.set_resource_version(&revision.to_string());
    Ok(object)
}

/// JSON with `kind` and `apiVersion` in front, so that list items can be cut out of it.
pub(crate) fn json(object: &Object) -> Bytes {
    let mut out = head(object.kind(), object.api_version());
    for (key, value) in object.root().iter() {
        if key != "kind" && key != "apiVersion" {
            if out.last() != Some(&b',') {
                out.push(b',');
            }
            // Writing into memory cannot fail, and a tree has no value that JSON lacks.
            let _ = serde_json::to_writer(&mut out, key.as_str());
            out.push(b':');
            let _ = serde_json::to_writer(&mut out, value);
            out.push(b',');
        }
    }
    if out.last() == Some(&b',') {
        out.pop();
    }
    out.push(b'}');
    out.into()
}

/// `{"kind":"Pod","apiVersion":"v1",`
fn head(kind: &str, api_version: &str) -> Vec<u8> {
    format!("{{\"kind\":\"{kind}\",\"apiVersion\":\"{api_version}\",").into_bytes()
}

/// How many bytes of [`json`] come before `metadata`.
pub(crate) fn head_len(gvk: &GroupVersionKind) -> usize {
    head(&gvk.kind, &gvk.api_version()).len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_item_is_the_tail_of_the_object() {
        let gvk = GroupVersionKind::new("", "v1", "ConfigMap");
        let mut object = Object::new("v1", "ConfigMap", "", "a");
        object.set_at(&["data", "k"], "v");
        let json = json(&object);
        assert_eq!(
            json,
            r#"{"kind":"ConfigMap","apiVersion":"v1","data":{"k":"v"},"metadata":{"name":"a"}}"#
        );
        assert_eq!(&json[head_len(&gvk)..], br#""data":{"k":"v"},"metadata":{"name":"a"}}"#);
    }

    #[test]
    fn reads_what_it_wrote() {
        let gvk = GroupVersionKind::new("", "v1", "ConfigMap");
        let mut object = Object::new("v1", "ConfigMap", "ns", "a");
        object.set_resource_version("3");
        let stored = encode(&gvk, &object).unwrap();
        object.set_resource_version("7");
        assert_eq!(decode(&gvk, &stored, 7).unwrap(), object);
    }
}
