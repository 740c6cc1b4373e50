use machinery::value;

use super::*;
use crate::request::Propagation;

#[test]
fn an_object_lives_through_all_verbs() {
    run(Options::default(), |w| async move {
        let maps = w.core("configmaps");
        let made = w
            .create(&maps, value!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": "a", "namespace": "ns"}, "data": {"k": "1"}}))
            .await
            .unwrap();
        assert!(!made.uid().is_empty() && made.revision().unwrap() > 1);
        assert_eq!(w.get(&maps, "ns", "a").await.unwrap(), made);
        let again = w.create(&maps, value!({"metadata": {"name": "a", "namespace": "ns"}})).await;
        assert_eq!(text(again), "configmaps \"a\" already exists");
        let changed =
            w.edit(&maps, ("ns", "a"), "", |o| o.set_at(&["data", "k"], "2")).await.unwrap();
        assert!(changed.revision() > made.revision());
        let same = w.edit(&maps, ("ns", "a"), "", |o| o.set_resource_version("")).await.unwrap();
        assert_eq!(same.revision(), changed.revision(), "nothing changed, nothing is written");
        let stale = w.edit(&maps, ("ns", "a"), "", |o| o.set_resource_version("2")).await;
        assert_eq!(
            text(stale),
            "Operation cannot be fulfilled on configmaps \"a\": the object has been modified; please apply your changes to the latest version and try again"
        );
        let gone = w.delete(&maps, "ns", "a", DeleteOptions::default()).await.unwrap();
        assert_eq!(gone, Deleted::Status { name: "a".into(), uid: made.uid().into() });
        assert_eq!(text(w.get(&maps, "ns", "a").await), "configmaps \"a\" not found");
    });
}

#[test]
fn metadata_follows_its_rules() {
    run(Options::default(), |w| async move {
        let maps = w.core("configmaps");
        let bad = w
            .create(
                &maps,
                value!({"metadata": {"name": "A_b", "namespace": "ns", "labels": {"x": "a b"}}}),
            )
            .await;
        let bad = bad.unwrap_err();
        let fields: Vec<&str> =
            bad.details.as_ref().unwrap().causes.iter().map(|cause| cause.field.as_str()).collect();
        assert_eq!((bad.code, fields), (422, vec!["metadata.name", "metadata.labels"]));
        let nameless = w.create(&maps, value!({"metadata": {"namespace": "ns"}})).await;
        assert_eq!(
            text(nameless),
            "ConfigMap \"\" is invalid: metadata.name: Required value: name or generateName is required"
        );
        let generated = w
            .create(&maps, value!({"metadata": {"generateName": "x-", "namespace": "ns"}}))
            .await
            .unwrap();
        assert_eq!(generated.name().len(), "x-".len() + 5);
        let other = maps
            .create(&w.cx(), "other", generated.clone(), &CreateOptions::default(), &AdmitAll)
            .await;
        assert!(text(other).starts_with("the namespace of the provided object does not match"));
        let immutable = w.edit(&maps, ("ns", generated.name()), "", |o| o.set_uid("u")).await;
        assert!(text(immutable).contains("Precondition failed: UID in precondition: u"));
    });
}

#[test]
fn finalizers_hold_a_deleted_object() {
    run(Options::default(), |w| async move {
        let maps = w.core("configmaps");
        let body = value!({"metadata": {"name": "a", "namespace": "ns", "finalizers": ["x.io/y"]}});
        w.create(&maps, body).await.unwrap();
        let held = w.delete(&maps, "ns", "a", DeleteOptions::default()).await.unwrap();
        assert!(!held.is_gone());
        let held = w.get(&maps, "ns", "a").await.unwrap();
        assert!(held.is_deleting());
        assert_eq!(held.deletion_grace_period_seconds(), Some(0));
        let added = w
            .edit(&maps, ("ns", "a"), "", |o| {
                o.metadata_mut().insert("finalizers", vec!["x.io/y", "x.io/z"]);
            })
            .await;
        assert_eq!(
            text(added),
            "ConfigMap \"a\" is invalid: metadata.finalizers: Forbidden: no new finalizers can be added if the object is being deleted, found new finalizers []string{\"x.io/z\"}"
        );
        w.edit(&maps, ("ns", "a"), "", |o| {
            o.metadata_mut().remove("finalizers");
        })
        .await
        .unwrap();
        assert!(w.get(&maps, "ns", "a").await.unwrap_err().is_not_found());
    });
}

#[test]
fn propagation_becomes_a_finalizer() {
    run(Options::default(), |w| async move {
        let maps = w.core("configmaps");
        for (policy, finalizer) in
            [(Propagation::Foreground, "foregroundDeletion"), (Propagation::Orphan, "orphan")]
        {
            let made = w
                .create(&maps, value!({"metadata": {"generateName": "a", "namespace": "ns"}}))
                .await
                .unwrap();
            let options =
                DeleteOptions { propagation_policy: Some(policy), ..DeleteOptions::default() };
            w.delete(&maps, "ns", made.name(), options).await.unwrap();
            let held = w.get(&maps, "ns", made.name()).await.unwrap();
            assert_eq!(held.finalizers().collect::<Vec<_>>(), [finalizer]);
        }
    });
}

#[test]
fn preconditions_guard_a_delete() {
    run(Options::default(), |w| async move {
        let maps = w.core("configmaps");
        w.create(&maps, value!({"metadata": {"name": "a", "namespace": "ns"}})).await.unwrap();
        let options =
            DeleteOptions { precondition_uid: Some("u".into()), ..DeleteOptions::default() };
        let refused = w.delete(&maps, "ns", "a", options).await.unwrap_err();
        assert!(
            refused.is_conflict() && refused.message.contains("the UID in the precondition (u)")
        );
    });
}

#[test]
fn a_dry_run_writes_nothing() {
    run(Options::default(), |w| async move {
        let maps = w.core("configmaps");
        let mut cx = w.cx();
        cx.dry_run = true;
        let body = object(value!({"metadata": {"name": "a", "namespace": "ns"}}));
        let made =
            maps.create(&cx, "ns", body, &CreateOptions::default(), &AdmitAll).await.unwrap();
        assert!(!made.uid().is_empty() && made.resource_version().is_empty());
        assert!(w.get(&maps, "ns", "a").await.unwrap_err().is_not_found());
    });
}

#[test]
fn racing_updates_all_count() {
    run(Options::default(), |w| async move {
        let maps = w.core("configmaps");
        w.create(&maps, value!({"metadata": {"name": "a", "namespace": "ns"}, "data": {"n": "0"}}))
            .await
            .unwrap();
        let writers = (0..20).map(|_| {
            w.edit(&maps, ("ns", "a"), "", |o| {
                let n: i64 = o.str_at(&["data", "n"]).parse().unwrap();
                o.set_at(&["data", "n"], (n + 1).to_string());
            })
        });
        for done in futures::future::join_all(writers).await {
            done.unwrap();
        }
        assert_eq!(w.get(&maps, "ns", "a").await.unwrap().str_at(&["data", "n"]), "20");
    });
}
