//! Answers of kube-apiserver 1.37.2 to creates, without what its admission plugins add.

use machinery::Value;

use super::*;

/// Each line has an object to send and the answer; generated values are left out of both.
const ANSWERS: &str = include_str!("../../testdata/create.jsonl");

#[test]
fn creates_are_answered_as_upstream_answers_them() {
    let mut wrong = Vec::new();
    run(Options::default(), |w| async move {
        for line in ANSWERS.lines() {
            let line = machinery::json::parse(line.as_bytes()).expect("JSON");
            let sent = object(line.get("send").cloned().expect("something to send"));
            let label = format!("{} {}", sent.kind(), sent.name());
            let answer = create(&w, sent).await;
            let expected = line.get("answer").cloned().expect("an answer");
            if answer != expected {
                wrong.push(format!("{label}\n  expected {expected:?}\n  answered {answer:?}"));
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    });
}

async fn create(w: &World, sent: Object) -> Value {
    let resource = w.registry.resource_of_kind(&sent.gvk().expect("a kind")).expect("a served kind");
    let mut cx = w.cx();
    cx.field_manager = "probe".into();
    let namespace = sent.namespace().to_owned();
    let answer = match resource.create(&cx, &namespace, sent, &CreateOptions::default(), &AdmitAll).await {
        Ok(made) => made,
        Err(status) => Object::from_json(&status.to_json()).expect("a Status"),
    };
    without_generated(answer)
}

fn without_generated(mut answer: Object) -> Value {
    let metadata = answer.metadata_mut();
    for field in ["uid", "creationTimestamp", "resourceVersion"] {
        metadata.remove(field);
    }
    if let Some(entries) = metadata.get_mut("managedFields").and_then(Value::as_list_mut) {
        for entry in entries.iter_mut().filter_map(Value::as_map_mut) {
            entry.remove("time");
        }
    }
    // The time of a volume's phase is the server's.
    if answer.kind() == "PersistentVolume" {
        answer.remove_at(&["status", "lastPhaseTransitionTime"]);
    }
    answer.into_value()
}
