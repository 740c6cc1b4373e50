//! Verbs on stored objects.

use http::Method;
use serde_json::{Value as Json, json};

use super::{Fixture, admin, configmap, request};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

#[tokio::test]
async fn objects_come_change_and_go() {
    let f = Fixture::start().await;
    let made = f.post(MAPS, configmap("a", "1")).await;
    assert_eq!(made.code, 201);
    assert_eq!(made.json()["metadata"]["namespace"], "default");
    let again = f.post(MAPS, configmap("a", "1")).await;
    assert_eq!((again.code, again.message().as_str()), (409, "configmaps \"a\" already exists"));

    let mut object = f.get(&format!("{MAPS}/a")).await.json();
    object["data"]["k"] = "2".into();
    let updated = f.admin(Method::PUT, &format!("{MAPS}/a"), object.clone()).await;
    assert_eq!((updated.code, &updated.json()["data"]["k"]), (200, &json!("2")));
    let stale = f.admin(Method::PUT, &format!("{MAPS}/a"), object).await;
    assert_eq!(stale.code, 409);
    assert!(stale.message().contains("the object has been modified"), "{}", stale.message());

    let list = f.get(MAPS).await.json();
    assert_eq!(
        (&list["kind"], list["items"].as_array().unwrap().len()),
        (&json!("ConfigMapList"), 1)
    );
    let deleted = f.admin(Method::DELETE, &format!("{MAPS}/a"), Json::Null).await;
    assert_eq!((deleted.code, &deleted.json()["status"]), (200, &json!("Success")));
    let gone = f.get(&format!("{MAPS}/a")).await;
    assert_eq!((gone.code, gone.message().as_str()), (404, "configmaps \"a\" not found"));
}

#[tokio::test]
async fn names_and_namespaces_must_fit_the_url() {
    let f = Fixture::start().await;
    let mut object = configmap("a", "1");
    object["metadata"]["namespace"] = "other".into();
    let misplaced = f.post(MAPS, object).await;
    assert_eq!(misplaced.code, 400);
    assert!(misplaced.message().starts_with("the namespace of the provided object does not match"));
    let renamed = f.admin(Method::PUT, &format!("{MAPS}/b"), configmap("a", "1")).await;
    assert_eq!(
        renamed.message(),
        "the name of the object (a) does not match the name on the URL (b)"
    );
    let nowhere = f.post("/api/v1/namespaces/none/configmaps", configmap("a", "1")).await;
    assert_eq!((nowhere.code, nowhere.message().as_str()), (404, "namespaces \"none\" not found"));
    assert_eq!(f.get("/api/v1/configs").await.code, 404);
    assert_eq!(f.get("/api/v1/namespaces/default/nodes").await.code, 404);
    assert_eq!(f.post(&format!("{MAPS}/a"), configmap("a", "1")).await.code, 405);
}

#[tokio::test]
async fn bad_bodies_get_kubernetes_errors() {
    let f = Fixture::start().await;
    let mut object = configmap("a", "1");
    object["datum"] = json!({});
    let strict = f.post(&format!("{MAPS}?fieldValidation=Strict"), object.clone()).await;
    assert_eq!(strict.code, 400);
    assert!(
        strict.message().contains("strict decoding error: unknown field \"datum\""),
        "{}",
        strict.message()
    );
    let warned = f.post(&format!("{MAPS}?fieldValidation=Warn"), object).await;
    assert_eq!(
        (warned.code, warned.header("warning")),
        (201, "299 - \"unknown field \\\"datum\\\"\"")
    );
    let wrong = f.post(MAPS, json!({"metadata": {"name": 5}})).await;
    assert_eq!(wrong.code, 400);
    let large = f.post(MAPS, configmap("large", &"x".repeat(4 << 20))).await;
    assert_eq!(
        (large.code, large.message().as_str()),
        (413, "Request entity too large: limit is 3145728")
    );
    let options = f.post(&format!("{MAPS}?dryRun=maybe"), configmap("b", "1")).await;
    assert_eq!(options.code, 422);
}

#[tokio::test]
async fn a_dry_run_leaves_nothing() {
    let f = Fixture::start().await;
    let made = f.post(&format!("{MAPS}?dryRun=All"), configmap("a", "1")).await;
    assert_eq!(made.code, 201);
    assert_eq!(f.get(&format!("{MAPS}/a")).await.code, 404);
    f.post(MAPS, configmap("a", "1")).await;
    let body = json!({"kind": "DeleteOptions", "apiVersion": "v1", "dryRun": ["All"]});
    assert_eq!(f.admin(Method::DELETE, &format!("{MAPS}/a"), body).await.code, 200);
    assert_eq!(f.get(&format!("{MAPS}/a")).await.code, 200);
}

#[tokio::test]
async fn collections_are_deleted_by_selector() {
    let f = Fixture::start().await;
    for (name, app) in [("a", "web"), ("b", "web"), ("c", "db")] {
        let mut object = configmap(name, "1");
        object["metadata"]["labels"] = json!({"app": app});
        f.post(MAPS, object).await;
    }
    let deleted =
        f.admin(Method::DELETE, &format!("{MAPS}?labelSelector=app%3Dweb"), Json::Null).await;
    assert_eq!((deleted.code, deleted.json()["items"].as_array().unwrap().len()), (200, 2));
    let rest = f.get(MAPS).await.json();
    assert_eq!(rest["items"][0]["metadata"]["name"], "c");
}

#[tokio::test]
async fn pods_get_what_admission_adds_and_are_bound_once() {
    let f = Fixture::start().await;
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"},
        "spec": {"containers": [{"name": "c", "image": "i"}], "priorityClassName": "system-node-critical"},
    });
    let made = f.post("/api/v1/namespaces/default/pods", pod.clone()).await;
    assert_eq!(made.code, 201, "{}", made.message());
    let spec = &made.json()["spec"];
    assert_eq!(
        (&spec["serviceAccountName"], &spec["priority"]),
        (&json!("default"), &json!(2_000_001_000))
    );
    assert_eq!(spec["tolerations"].as_array().unwrap().len(), 2);
    assert!(spec["volumes"][0]["name"].as_str().unwrap().starts_with("kube-api-access-"));

    let mut lost = pod.clone();
    lost["spec"]["serviceAccountName"] = "ghost".into();
    lost["metadata"]["name"] = "q".into();
    let refused = f.post("/api/v1/namespaces/default/pods", lost).await;
    assert_eq!(
        refused.message(),
        "pods \"q\" is forbidden: error looking up service account default/ghost: serviceaccount \"ghost\" not found"
    );

    let binding = json!({"metadata": {"name": "p"}, "target": {"kind": "Node", "name": "n"}});
    let bound = f.post("/api/v1/namespaces/default/pods/p/binding", binding.clone()).await;
    assert_eq!(bound.code, 201, "{}", bound.message());
    assert_eq!(f.get("/api/v1/namespaces/default/pods/p").await.json()["spec"]["nodeName"], "n");
    let twice = f.post("/api/v1/namespaces/default/pods/p/binding", binding).await;
    assert_eq!(
        twice.message(),
        "Operation cannot be fulfilled on pods/binding \"p\": pod p is already assigned to node \"n\""
    );
}

#[tokio::test]
async fn what_is_not_enforced_is_refused_or_said() {
    let f = Fixture::start().await;
    let hook = json!({"metadata": {"name": "h"}, "webhooks": []});
    let refused =
        f.post("/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations", hook).await;
    assert_eq!(refused.code, 403);
    assert!(
        refused.message().contains("admission webhooks are not called"),
        "{}",
        refused.message()
    );
    let policy = json!({"metadata": {"name": "p"}, "spec": {"podSelector": {}}});
    let said =
        f.post("/apis/networking.k8s.io/v1/namespaces/default/networkpolicies", policy).await;
    assert_eq!(said.code, 201, "{}", said.message());
    assert!(said.header("warning").contains("not enforced"));
    let kept = f.admin(Method::DELETE, "/api/v1/namespaces/default", Json::Null).await;
    assert_eq!(
        kept.message(),
        "namespaces \"default\" is forbidden: this namespace may not be deleted"
    );
}

#[tokio::test]
async fn patches_change_objects() {
    let f = Fixture::start().await;
    f.post(MAPS, configmap("a", "1")).await;
    let patch = |media: &'static str, body: Json| {
        f.ask(
            admin(),
            request(Method::PATCH, &format!("{MAPS}/a"), &[("content-type", media)], body),
        )
    };
    let merged =
        patch("application/merge-patch+json", json!({"data": {"k": null, "l": "2"}})).await;
    assert_eq!((merged.code, &merged.json()["data"]), (200, &json!({"l": "2"})));
    let json_patch = json!([{"op": "add", "path": "/data/m", "value": "3"}]);
    let added = patch("application/json-patch+json", json_patch).await;
    assert_eq!((added.code, &added.json()["data"]), (200, &json!({"l": "2", "m": "3"})));
    let strategic = patch(
        "application/strategic-merge-patch+json",
        json!({"metadata": {"labels": {"a": "b"}}}),
    )
    .await;
    assert_eq!(
        (strategic.code, &strategic.json()["metadata"]["labels"]),
        (200, &json!({"a": "b"}))
    );
    let unknown = patch("application/json", json!({})).await;
    assert_eq!(unknown.code, 415);
}

#[tokio::test]
async fn apply_creates_merges_and_finds_conflicts() {
    let f = Fixture::start().await;
    let apply = |manager: &str, force: bool, body: Json| {
        let url =
            format!("{MAPS}/a?fieldManager={manager}{}", if force { "&force=true" } else { "" });
        let headers = [("content-type", "application/apply-patch+yaml")];
        f.ask(admin(), request(Method::PATCH, &url, &headers, body))
    };
    let made = apply("one", false, configmap("a", "1")).await;
    assert_eq!(made.code, 201, "{}", made.message());
    assert_eq!(made.json()["metadata"]["managedFields"][0]["manager"], "one");
    assert_eq!(apply("one", false, configmap("a", "1")).await.code, 200);
    let conflict = apply("two", false, configmap("a", "2")).await;
    assert_eq!(conflict.code, 409);
    assert!(conflict.message().contains("conflict with \"one\""), "{}", conflict.message());
    let forced = apply("two", true, configmap("a", "2")).await;
    assert_eq!((forced.code, &forced.json()["data"]["k"]), (200, &json!("2")));
    let headers = [("content-type", "application/apply-patch+yaml")];
    let nobody = f
        .ask(admin(), request(Method::PATCH, &format!("{MAPS}/a"), &headers, configmap("a", "1")))
        .await;
    assert_eq!(nobody.code, 422);
}
