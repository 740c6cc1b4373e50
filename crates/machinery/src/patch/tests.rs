use api::schema;

use super::*;
use crate::value;

/// Cases of `testdata/patches.txt`: a kind of patch, a document, a patch and what comes of it,
/// a line each; a failure is `! CODE TEXT`.
#[test]
fn patches_as_upstream_applies_them() {
    let text = include_str!("../../testdata/patches.txt");
    let mut lines = text.lines().filter(|l| !l.is_empty() && !l.starts_with('#'));
    let mut count = 0;
    while let Some(kind) = lines.next() {
        let (document, patch) = (lines.next().unwrap(), lines.next().unwrap());
        let expected = lines.next().unwrap();
        let result = run(kind, document, patch);
        let text = match result {
            Ok(value) => format!("{value:?}"),
            Err(status) => {
                format!("! {} {}", status.code, status.message.lines().next().unwrap_or_default())
            }
        };
        assert_eq!(text, expected, "{kind}\n{document}\n{patch}");
        count += 1;
    }
    assert!(count > 30, "{count} cases");
}

fn run(kind: &str, document: &str, patch: &str) -> Result<Value, Status> {
    let document = Object::from_json(document.as_bytes()).unwrap();
    let (kind, ty) = kind.split_once(' ').unwrap_or((kind, "io.k8s.api.core.v1.Pod"));
    let patch_type = match kind {
        "json" => PatchType::Json,
        "merge" => PatchType::Merge,
        _ => PatchType::Strategic,
    };
    let ty = schema().type_named(ty).unwrap();
    apply(&document, patch.as_bytes(), patch_type, Some(ty)).map(|(value, _)| value)
}

#[test]
fn a_patched_object_is_decoded() {
    let pod = value!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"},
        "spec": {"containers": [{"name": "c"}]}, "status": {},
    });
    let pod = Object::from_value(pod).unwrap();
    let gvk = pod.gvk().unwrap();
    let patch = |text: &str, validation| {
        patch_object(&pod, text.as_bytes(), PatchType::Strategic, &gvk, validation)
    };
    let (object, warnings) =
        patch(r#"{"spec":{"foo":1,"nodeName":"n"}}"#, FieldValidation::Warn).unwrap();
    assert_eq!(object.str_at(&["spec", "nodeName"]), "n");
    assert_eq!(warnings, ["unknown field \"spec.foo\""]);
    let status = patch(r#"{"spec":{"hostPID":"x"}}"#, FieldValidation::Warn).unwrap_err();
    assert_eq!((status.code, status.reason), (422, Reason::Invalid));
    let text = " \"\" is invalid: patch: Invalid value: \"map[spec:map[hostPID:x]]\": unrecognized type: bool";
    assert_eq!(status.message, text);
}
