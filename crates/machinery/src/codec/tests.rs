use super::*;
use crate::value;

fn object(value: Value) -> Object {
    Object::from_value(value).unwrap()
}

#[test]
fn a_pod_survives_protobuf() {
    let pod = object(value!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": "web", "namespace": "default", "uid": "1-2",
            "creationTimestamp": "2026-11-24T00:00:01Z",
            "labels": {"a": "b", "c": ""},
            "managedFields": [{
                "manager": "m", "operation": "Apply", "apiVersion": "v1",
                "time": "2026-11-24T00:00:01Z", "fieldsType": "FieldsV1",
                "fieldsV1": {"f:spec": {"f:hostNetwork": {}}},
            }],
        },
        "spec": {
            "hostNetwork": true,
            "terminationGracePeriodSeconds": 0,
            "containers": [{
                "name": "c", "image": "i", "command": ["a", ""],
                "resources": {"limits": {"cpu": "100m", "memory": "1Gi"}},
                "livenessProbe": {"httpGet": {"path": "/", "port": "http"}, "periodSeconds": 3},
                "readinessProbe": {"tcpSocket": {"port": 80}},
            }],
            "volumes": [{"name": "v", "hostPath": {"path": "/x", "type": ""}}, {"name": "e", "emptyDir": {}}],
        },
        "status": {"conditions": [{
            "type": "Ready", "status": "True", "lastProbeTime": null,
            "lastTransitionTime": "2026-11-24T00:00:02Z",
        }]},
    }));
    let bytes = to_protobuf(&pod).unwrap();
    assert_eq!(from_protobuf(&bytes).unwrap(), pod);
    let pods = schema().resource("", "v1", "pods").unwrap();
    assert_eq!(encode_storage(&pod, pods).unwrap(), bytes);
    assert_eq!(decode_storage(&bytes).unwrap(), pod);
}

#[test]
fn an_empty_namespace_has_upstreams_bytes() {
    // As a client of the real server sends it.
    let namespace =
        object(value!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "a"}}));
    let bytes = to_protobuf(&namespace).unwrap();
    let mut expected = b"k8s\0\x0a\x0f\x0a\x02v1\x12\x09Namespace\x12".to_vec();
    let meta = b"\x0a\x01a\x12\x00\x1a\x00\x22\x00\x2a\x00\x32\x00\x38\x00\x42\x00";
    let mut raw = vec![0x0a, meta.len() as u8];
    raw.extend_from_slice(meta);
    raw.extend_from_slice(b"\x12\x00\x1a\x02\x0a\x00");
    expected.push(raw.len() as u8);
    expected.extend_from_slice(&raw);
    expected.extend_from_slice(b"\x1a\x00\x22\x00");
    assert_eq!(bytes, expected);
}

#[test]
fn lists_of_lists_and_wrapped_lists() {
    let review = object(value!({
        "apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "metadata": {},
        "spec": {"user": "u", "extra": {"scopes": ["a", "b"], "none": []}},
        "status": {"allowed": false},
    }));
    assert_eq!(from_protobuf(&to_protobuf(&review).unwrap()).unwrap(), review);
    let admission = object(value!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicy",
        "metadata": {"name": "p"},
        "spec": {"matchConstraints": {"resourceRules": [{
            "resourceNames": ["x"], "operations": ["CREATE"], "apiGroups": ["apps"],
            "apiVersions": ["v1"], "resources": ["deployments"],
        }]}},
        "status": {},
    }));
    assert_eq!(from_protobuf(&to_protobuf(&admission).unwrap()).unwrap(), admission);
}

#[test]
fn schemas_of_custom_resources() {
    let crd = object(value!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "w.x"},
        "spec": {
            "group": "x", "names": {"plural": "w", "kind": "W"}, "scope": "Namespaced",
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {
                "openAPIV3Schema": {"type": "object", "properties": {
                    "a": {"type": "array", "items": {"type": "string"}, "default": ["x"]},
                    "b": {"additionalProperties": {"type": "integer", "minimum": 1.5}},
                    "c": {"additionalProperties": true, "x-kubernetes-preserve-unknown-fields": true},
                    "d": {"enum": ["a", 1, null]},
                }},
            }}],
        },
        "status": {"conditions": null, "acceptedNames": {"plural": "", "kind": ""}, "storedVersions": null},
    }));
    assert_eq!(from_protobuf(&to_protobuf(&crd).unwrap()).unwrap(), crd);
}

#[test]
fn lists_and_watch_events_are_put_together_from_bytes() {
    let item = |name: &str| {
        let map =
            object(value!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}}));
        to_protobuf(&map).unwrap()
    };
    let items = [item("a"), item("b")];
    let meta = value!({"resourceVersion": "7"});
    let bytes =
        protobuf_list("v1", "ConfigMapList", meta.as_map().unwrap(), items.iter().map(|b| &b[..]));
    let list = from_protobuf(&bytes.unwrap()).unwrap();
    let expected = value!({
        "apiVersion": "v1", "kind": "ConfigMapList", "metadata": {"resourceVersion": "7"},
        "items": [{"metadata": {"name": "a"}}, {"metadata": {"name": "b"}}],
    });
    assert_eq!(list.into_value(), expected);
    let frame = protobuf_watch_event("ADDED", &items[0]);
    let (kind, object) = read_protobuf_watch_event(&frame).unwrap();
    assert_eq!((kind.as_str(), &object[..]), ("ADDED", &items[0][..]));
}

#[test]
fn the_wrong_type_is_an_error() {
    let pod = object(value!({"apiVersion": "v1", "kind": "Pod", "spec": {"hostNetwork": "yes"}}));
    assert!(matches!(to_protobuf(&pod), Err(Error::WrongType { field: "hostNetwork", .. })));
    let other = object(value!({"apiVersion": "x/v1", "kind": "Pod"}));
    assert!(matches!(to_protobuf(&other), Err(Error::UnknownKind { .. })));
    assert!(matches!(from_protobuf(b"k8s"), Err(Error::NoEnvelope)));
}
