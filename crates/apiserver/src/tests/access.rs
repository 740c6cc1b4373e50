//! Who may in, and who may do what.

use http::Method;
use serde_json::{Value as Json, json};

use super::{Fixture, admin, request, stranger, user};

const PODS: &str = "/api/v1/namespaces/default/pods";

#[tokio::test]
async fn strangers_are_told_about_health_alone() {
    let f = Fixture::start().await;
    for (path, code) in [
        ("/healthz", 200),
        ("/livez", 200),
        ("/readyz?verbose", 200),
        ("/version", 401),
        ("/api", 401),
    ] {
        let answer = f.ask(stranger(), request(Method::GET, path, &[], Json::Null)).await;
        assert_eq!(answer.code, code, "{path} {answer:?}");
    }
    let bad = [("authorization", "Bearer nonsense")];
    let refused = f.ask(stranger(), request(Method::GET, "/healthz", &bad, Json::Null)).await;
    assert_eq!((refused.code, refused.message().as_str()), (401, "Unauthorized"));
}

#[tokio::test]
async fn users_do_what_their_roles_say() {
    let f = Fixture::start().await;
    let jane = user("jane", &["devs"]);
    let refused = f.ask(jane.clone(), request(Method::GET, PODS, &[], Json::Null)).await;
    assert_eq!(
        refused.message(),
        r#"pods is forbidden: User "jane" cannot list resource "pods" in API group "" in the namespace "default""#
    );
    let binding = json!({
        "metadata": {"name": "devs"},
        "subjects": [{"kind": "Group", "apiGroup": "rbac.authorization.k8s.io", "name": "devs"}],
        "roleRef": {"kind": "ClusterRole", "apiGroup": "rbac.authorization.k8s.io", "name": "view"},
    });
    let bindings = "/apis/rbac.authorization.k8s.io/v1/namespaces/default/rolebindings";
    assert_eq!(f.post(bindings, binding).await.code, 201);
    f.until(&jane, Method::GET, PODS, Json::Null, 200).await;
    for path in [
        "/api/v1/namespaces/default/secrets",
        "/api/v1/pods",
        "/api/v1/namespaces/kube-system/pods",
    ] {
        assert_eq!(
            f.ask(jane.clone(), request(Method::GET, path, &[], Json::Null)).await.code,
            403,
            "{path}"
        );
    }
    let removed = f.admin(Method::DELETE, &format!("{bindings}/devs"), Json::Null).await;
    assert_eq!(removed.code, 200);
    f.until(&jane, Method::GET, PODS, Json::Null, 403).await;
}

#[tokio::test]
async fn nobody_grants_more_than_they_have() {
    let f = Fixture::start().await;
    let rbac = "/apis/rbac.authorization.k8s.io/v1";
    let joe = user("joe", &[]);
    let binding = |role: &str, name: &str| {
        json!({
            "metadata": {"name": role},
            "subjects": [{"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": name}],
            "roleRef": {"kind": "ClusterRole", "apiGroup": "rbac.authorization.k8s.io", "name": role},
        })
    };
    f.post(&format!("{rbac}/namespaces/default/rolebindings"), binding("admin", "joe")).await;
    let bindings = format!("{rbac}/namespaces/default/rolebindings");
    f.until(&joe, Method::POST, &bindings, binding("view", "ann"), 201).await;
    let refused =
        f.ask(joe, request(Method::POST, &bindings, &[], binding("cluster-admin", "ann"))).await;
    assert_eq!(refused.code, 403);
    assert!(
        refused.message().contains("is attempting to grant RBAC permissions not currently held")
    );
}

#[tokio::test]
async fn certificates_and_tokens_name_their_users() {
    let f = Fixture::start().await;
    let whoami = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
    let name = |answer: &super::Answer| {
        answer.json()["status"]["userInfo"]["username"].as_str().map(str::to_owned)
    };
    let (chain, _) = f.authority.client("jane", &["devs"]);
    let connection =
        crate::Identity::Connection(crate::Connection::new("192.0.2.1:2".into(), chain).into());
    let answer = f.ask(connection, request(Method::POST, whoami, &[], json!({}))).await;
    assert_eq!(name(&answer).as_deref(), Some("jane"), "{answer:?}");

    let asked = json!({"spec": {"expirationSeconds": 600}});
    let made = f.post("/api/v1/namespaces/default/serviceaccounts/default/token", asked).await;
    assert_eq!(made.code, 201, "{}", made.message());
    let token = made.json()["status"]["token"].as_str().unwrap().to_owned();
    let bearer = format!("Bearer {token}");
    let with_token = || request(Method::POST, whoami, &[("authorization", &bearer)], json!({}));
    let answer = f.ask(stranger(), with_token()).await;
    assert_eq!(name(&answer).as_deref(), Some("system:serviceaccount:default:default"));
    let review = json!({"spec": {"token": token}});
    let reviewed = f.post("/apis/authentication.k8s.io/v1/tokenreviews", review).await;
    assert_eq!(reviewed.json()["status"]["authenticated"], true);
    let short = f.post(
        "/api/v1/namespaces/default/serviceaccounts/default/token",
        json!({"spec": {"expirationSeconds": 5}}),
    );
    assert_eq!(short.await.code, 422);

    f.admin(Method::DELETE, "/api/v1/namespaces/default/serviceaccounts/default", Json::Null).await;
    assert_eq!(f.ask(stranger(), with_token()).await.code, 401, "the account is gone");
}

#[tokio::test]
async fn access_reviews_answer_as_requests_would() {
    let f = Fixture::start().await;
    let review = |user: &str, verb: &str| {
        json!({"spec": {"user": user, "groups": ["system:nodes"], "resourceAttributes": {
            "verb": verb, "resource": "nodes", "name": "n1",
        }}})
    };
    let url = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
    let own = f.post(url, review("system:node:n1", "patch")).await;
    assert_eq!((own.code, &own.json()["status"]["allowed"]), (201, &json!(true)));
    let other = f.post(url, review("system:node:n2", "get")).await;
    assert_eq!(other.json()["status"]["allowed"], false);
    let rules = f
        .post(
            "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews",
            json!({"spec": {"namespace": "a"}}),
        )
        .await;
    assert!(!rules.json()["status"]["resourceRules"].as_array().unwrap().is_empty());
}

#[tokio::test]
async fn impersonation_needs_its_permission() {
    let f = Fixture::start().await;
    let headers = [("impersonate-user", "jane"), ("impersonate-group", "devs")];
    let whoami = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
    let as_jane = f.ask(admin(), request(Method::POST, whoami, &headers, json!({}))).await;
    assert_eq!(as_jane.json()["status"]["userInfo"]["username"], "jane");
    let refused = f.ask(user("joe", &[]), request(Method::POST, whoami, &headers, json!({}))).await;
    assert_eq!(
        refused.message(),
        r#"users "jane" is forbidden: User "joe" cannot impersonate resource "users" in API group "" at the cluster scope"#
    );
}

#[tokio::test]
async fn a_node_touches_its_own_things() {
    let f = Fixture::start().await;
    let node = user("system:node:n1", &["system:nodes"]);
    let create = |name: &str| {
        request(Method::POST, "/api/v1/nodes", &[], json!({"metadata": {"name": name}}))
    };
    assert_eq!(f.ask(node.clone(), create("n1")).await.code, 201);
    let other = f.ask(node.clone(), create("n2")).await;
    assert_eq!(
        other.message(),
        "nodes \"n2\" is forbidden: node \"n1\" is not allowed to modify node \"n2\""
    );
    f.post("/api/v1/namespaces/default/secrets", json!({"metadata": {"name": "s"}})).await;
    let secret = "/api/v1/namespaces/default/secrets/s";
    let refused = f.ask(node.clone(), request(Method::GET, secret, &[], Json::Null)).await;
    assert_eq!(refused.code, 403);
    assert!(
        refused.message().ends_with("no relationship found between node 'n1' and this object"),
        "{}",
        refused.message()
    );
    let pod = json!({"metadata": {"name": "p"}, "spec": {
        "nodeName": "n1", "containers": [{"name": "c", "image": "i"}],
        "volumes": [{"name": "v", "secret": {"secretName": "s"}}],
    }});
    assert_eq!(f.post(PODS, pod).await.code, 201);
    f.until(&node, Method::GET, secret, Json::Null, 200).await;
    let url = "/api/v1/namespaces/default/serviceaccounts/default/token";
    let unbound = f.ask(node.clone(), request(Method::POST, url, &[], json!({"spec": {}}))).await;
    assert_eq!(
        unbound.message(),
        "serviceaccounts \"default\" is forbidden: node requested token not bound to a pod"
    );
    let uid = f.get(&format!("{PODS}/p")).await.json()["metadata"]["uid"].clone();
    let bound = json!({"spec": {"boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": uid}}});
    assert_eq!(f.ask(node, request(Method::POST, url, &[], bound)).await.code, 201);
}
