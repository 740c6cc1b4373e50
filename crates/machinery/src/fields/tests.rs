use super::*;
use crate::{json, value};

fn pod() -> GroupVersionKind {
    GroupVersionKind::new("", "v1", "Pod")
}

fn decode_pod(body: Value) -> Result<(Object, Vec<String>), Status> {
    decode_object(&body, &[], &pod(), FieldValidation::Warn)
}

fn failure(body: Value) -> String {
    let text = decode_pod(body).unwrap_err().message;
    text.trim_start_matches("Pod in version \"v1\" cannot be handled as a Pod: ").to_owned()
}

#[test]
fn a_round_trip_gives_gos_form() {
    let body = value!({
        "kind": "Pod", "apiVersion": "v1",
        "metadata": {"name": "a", "creationTimestamp": null, "labels": {}, "finalizers": []},
        "spec": {
            "hostNetwork": false,
            "nodeSelector": null,
            "containers": [{
                "name": "c",
                "resources": {"limits": {"cpu": 0.5, "memory": "1024Ki"}},
                "ports": [],
                "livenessProbe": {"httpGet": {"port": 80}, "initialDelaySeconds": 0},
            }],
            "terminationGracePeriodSeconds": 0,
        },
        "status": {"startTime": "2026-01-01T01:00:00+01:00", "conditions": [{"type": "Ready", "status": "True"}]},
    });
    let expected = value!({
        "kind": "Pod", "apiVersion": "v1",
        "metadata": {"name": "a"},
        "spec": {
            "containers": [{
                "name": "c",
                "resources": {"limits": {"cpu": "500m", "memory": "1Mi"}},
                "livenessProbe": {"httpGet": {"port": 80}},
            }],
            "terminationGracePeriodSeconds": 0,
        },
        "status": {
            "startTime": "2026-01-01T00:00:00Z",
            "conditions": [{"type": "Ready", "status": "True", "lastProbeTime": null, "lastTransitionTime": null}],
        },
    });
    let (object, warnings) = decode_pod(body).unwrap();
    assert_eq!(object.clone().into_value(), expected);
    assert!(warnings.is_empty());
    let again = decode_pod(object.clone().into_value()).unwrap().0;
    assert_eq!(again, object);
}

#[test]
fn wrong_types_have_gos_words() {
    assert_eq!(
        failure(value!({"spec": {"hostNetwork": "yes"}})),
        "json: cannot unmarshal string into Go struct field PodSpec.spec.hostNetwork of type bool"
    );
    assert_eq!(
        failure(value!({"spec": {"containers": [{"image": 1}]}})),
        "json: cannot unmarshal number into Go struct field Container.spec.containers.image of type string"
    );
    assert_eq!(
        failure(value!({"metadata": {"labels": {"a": 1}}})),
        "json: cannot unmarshal number into Go struct field ObjectMeta.metadata.labels of type string"
    );
    assert_eq!(
        failure(value!({"spec": "x"})),
        "json: cannot unmarshal string into Go struct field Pod.spec of type v1.PodSpec"
    );
    assert_eq!(
        failure(value!({"spec": {"containers": {}}})),
        "json: cannot unmarshal object into Go struct field PodSpec.spec.containers of type []v1.Container"
    );
    assert_eq!(
        failure(value!({"spec": {"restartPolicy": 1}})),
        "json: cannot unmarshal number into Go struct field PodSpec.spec.restartPolicy of type v1.RestartPolicy"
    );
    assert_eq!(
        failure(value!({"spec": {"priority": 3000000000i64}})),
        "json: cannot unmarshal number 3000000000 into Go struct field PodSpec.spec.priority of type int32"
    );
    assert_eq!(
        failure(value!({"metadata": {"creationTimestamp": "x"}})),
        "parsing time \"x\" as \"2006-01-02T15:04:05Z07:00\": cannot parse \"x\" as \"2006\""
    );
    assert!(
        failure(value!({"spec": {"overhead": {"cpu": "x"}}})).starts_with("quantities must match")
    );
}

#[test]
fn unknown_and_duplicate_fields() {
    let text = br#"{"spec":{"foo":1,"containers":[{"nam":"x"}],"hostPID":true,"hostPID":true}}"#;
    let (body, duplicates) = json::parse_noting_duplicates(text).unwrap();
    let expected = [
        "duplicate field \"spec.hostPID\"",
        "unknown field \"spec.containers[0].nam\"",
        "unknown field \"spec.foo\"",
    ];
    let (_, warnings) = decode_object(&body, &duplicates, &pod(), FieldValidation::Warn).unwrap();
    assert_eq!(warnings, expected);
    let (_, warnings) = decode_object(&body, &duplicates, &pod(), FieldValidation::Ignore).unwrap();
    assert!(warnings.is_empty());
    let status = decode_object(&body, &duplicates, &pod(), FieldValidation::Strict).unwrap_err();
    let message = format!(
        "Pod in version \"v1\" cannot be handled as a Pod: strict decoding error: {}",
        expected.join(", ")
    );
    assert_eq!((status.code, status.message), (400, message));
}

#[test]
fn lists_that_are_always_written() {
    let role = GroupVersionKind::new("rbac.authorization.k8s.io", "v1", "Role");
    let (object, _) =
        decode_object(&value!({"metadata": {"name": "r"}}), &[], &role, FieldValidation::Strict)
            .unwrap();
    assert_eq!(object.into_value(), value!({"metadata": {"name": "r"}, "rules": null}));
}
