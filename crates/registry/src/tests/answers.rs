//! Answers of kube-apiserver 1.37.2 to creates and updates, without what its admission plugins
//! add.

use machinery::{
    Value,
    fields::{FieldValidation, decode_object},
};

use super::*;

/// Each line has an object to send and the answer; generated values are left out of both.
const CREATES: &str = include_str!("../../testdata/create.jsonl");
/// The same in order: what exists is replaced. A line without answer changes what follows, but
/// its own answer holds a generated value or upstream's internal form.
const UPDATES: &str = include_str!("../../testdata/update.jsonl");

#[test]
fn creates_are_answered_as_upstream_answers_them() {
    check(CREATES, 91);
}

#[test]
fn updates_are_answered_as_upstream_answers_them() {
    check(UPDATES, 95);
}

fn check(lines: &'static str, answers: usize) {
    run(Options::default(), |w| async move {
        let (mut wrong, mut compared) = (Vec::new(), 0);
        for line in lines.lines() {
            let line = machinery::json::parse(line.as_bytes()).expect("JSON");
            let body = line.get("send").expect("something to send");
            let gvk = object(body.clone()).gvk().expect("a kind");
            let (sent, _) = decode_object(body, &[], &gvk, FieldValidation::Ignore)
                .expect("a body that decodes");
            let label = format!("{} {}", sent.kind(), sent.name());
            let answer = put(&w, sent).await;
            let Some(expected) = line.get("answer") else { continue };
            compared += 1;
            if answer != *expected {
                wrong.push(format!("{label}\n  expected {expected:?}\n  answered {answer:?}"));
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
        assert_eq!(compared, answers);
    });
}

/// Creates, or replaces what exists.
async fn put(w: &World, sent: Object) -> Value {
    let resource =
        w.registry.resource_of_kind(&sent.gvk().expect("a kind")).expect("a served kind");
    let mut cx = w.cx();
    cx.field_manager = "probe".into();
    let namespace = sent.namespace().to_owned();
    let made =
        resource.create(&cx, &namespace, sent.clone(), &CreateOptions::default(), &AdmitAll).await;
    let answer = match made {
        Err(status) if status.is_already_exists() => {
            let replace = |_: Option<&Object>| Ok(sent.clone());
            let options = UpdateOptions::default();
            let done = resource
                .update(&cx, &namespace, sent.name(), "", &replace, &options, &AdmitAll)
                .await;
            done.map(|(object, _)| object)
        }
        made => made,
    };
    let answer =
        answer.unwrap_or_else(|status| Object::from_json(&status.to_json()).expect("a Status"));
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
