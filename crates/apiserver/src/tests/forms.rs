//! Forms of bodies, watches, discovery.

use bytes::Bytes;
use http::Method;
use http_body_util::BodyExt;
use machinery::codec;
use serde_json::{Value as Json, json};

use super::{Answer, Fixture, admin, configmap, read, request};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

async fn accept(f: &Fixture, path: &str, accept: &str) -> Answer {
    f.ask(admin(), request(Method::GET, path, &[("accept", accept)], Json::Null)).await
}

#[tokio::test]
async fn one_object_in_every_form() {
    let f = Fixture::start().await;
    f.post(MAPS, configmap("a", "1")).await;
    let path = format!("{MAPS}/a");
    let yaml = accept(&f, &path, "application/yaml").await;
    assert!(String::from_utf8_lossy(&yaml.body).contains("kind: ConfigMap"));
    let protobuf = accept(&f, &path, "application/vnd.kubernetes.protobuf").await;
    assert_eq!(protobuf.header("content-type"), "application/vnd.kubernetes.protobuf");
    assert_eq!(codec::from_protobuf(&protobuf.body).unwrap().str_at(&["data", "k"]), "1");
    let table = accept(&f, MAPS, "application/json;as=Table;g=meta.k8s.io;v=v1").await.json();
    assert_eq!((&table["kind"], &table["rows"][0]["cells"][0]), (&json!("Table"), &json!("a")));
    assert_eq!(table["rows"][0]["object"]["kind"], "PartialObjectMetadata");
    let metadata =
        accept(&f, MAPS, "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1")
            .await
            .json();
    assert_eq!(metadata["items"][0]["metadata"]["name"], "a");
    assert!(metadata["items"][0].get("data").is_none());
    let list = accept(&f, MAPS, "application/vnd.kubernetes.protobuf").await;
    let list = codec::from_protobuf(&list.body).unwrap();
    assert_eq!((list.kind(), list.list_at(&["items"]).len()), ("ConfigMapList", 1));
    let refused = accept(&f, &path, "text/html").await;
    assert_eq!(refused.code, 406);
}

#[tokio::test]
async fn bodies_are_read_in_every_form() {
    let f = Fixture::start().await;
    let yaml = b"metadata: {name: written-in-yaml}\ndata: {k: v}\n";
    let object = codec::from_protobuf(
        &codec::to_protobuf(
            &machinery::Object::from_json(configmap("p", "1").to_string().as_bytes()).unwrap(),
        )
        .unwrap(),
    )
    .unwrap();
    let protobuf = codec::to_protobuf(&object).unwrap();
    for (media, body) in [
        ("application/yaml", Bytes::from_static(yaml)),
        ("application/vnd.kubernetes.protobuf", protobuf),
    ] {
        let mut request = request(Method::POST, MAPS, &[("content-type", media)], Json::Null);
        *request.body_mut() = crate::body::full(body);
        let made = f.ask(admin(), request).await;
        assert_eq!(made.code, 201, "{media} {}", made.message());
    }
    let other = f
        .ask(
            admin(),
            request(Method::POST, MAPS, &[("content-type", "text/csv")], configmap("c", "1")),
        )
        .await;
    assert_eq!(other.code, 415);
}

#[tokio::test]
async fn a_watch_tells_what_happens() {
    let f = Fixture::start().await;
    f.post(MAPS, configmap("a", "1")).await;
    let url = format!("{MAPS}?watch=true");
    let response = f.send(admin(), request(Method::GET, &url, &[], Json::Null)).await;
    let mut body = response.into_body();
    let mut next = async || -> Json {
        let frame = body.frame().await.unwrap().unwrap().into_data().unwrap();
        serde_json::from_slice(&frame).unwrap()
    };
    let first = next().await;
    assert_eq!(
        (&first["type"], &first["object"]["metadata"]["name"]),
        (&json!("ADDED"), &json!("a"))
    );
    f.post(MAPS, configmap("b", "1")).await;
    assert_eq!(next().await["object"]["metadata"]["name"], "b");
    f.admin(Method::DELETE, &format!("{MAPS}/a"), Json::Null).await;
    assert_eq!(next().await["type"], "DELETED");
}

#[tokio::test]
async fn a_watch_in_protobuf_is_framed() {
    let f = Fixture::start().await;
    f.post(MAPS, configmap("a", "1")).await;
    let accept = [("accept", "application/vnd.kubernetes.protobuf;stream=watch")];
    let url = format!("{MAPS}?watch=true");
    let response = f.send(admin(), request(Method::GET, &url, &accept, Json::Null)).await;
    assert_eq!(
        response.headers()["content-type"],
        "application/vnd.kubernetes.protobuf;stream=watch"
    );
    let frame = response.into_body().frame().await.unwrap().unwrap().into_data().unwrap();
    let length = u32::from_be_bytes(frame[..4].try_into().unwrap()) as usize;
    assert_eq!(length, frame.len() - 4);
    let (kind, object) = codec::read_protobuf_watch_event(&frame[4..]).unwrap();
    assert_eq!((kind.as_str(), codec::from_protobuf(&object).unwrap().name()), ("ADDED", "a"));
}

#[tokio::test]
async fn a_watch_ends_in_time_and_at_shutdown() {
    let f = Fixture::start().await;
    let url = format!("{MAPS}?watch=true&timeoutSeconds=1");
    let ended = f.get(&url).await;
    assert_eq!((ended.code, ended.body.len()), (200, 0));
    let open =
        f.send(admin(), request(Method::GET, &format!("{MAPS}?watch=true"), &[], Json::Null)).await;
    f.server.stopping.cancel();
    assert_eq!(read(open).await.body.len(), 0);
}

#[tokio::test]
async fn discovery_in_both_forms() {
    let f = Fixture::start().await;
    let groups = f.get("/apis").await.json();
    assert_eq!(groups["groups"][1]["name"], "apps");
    let apps = f.get("/apis/apps/v1").await.json();
    let names: Vec<&str> =
        apps["resources"].as_array().unwrap().iter().filter_map(|r| r["name"].as_str()).collect();
    assert!(names.contains(&"deployments") && names.contains(&"deployments/scale"), "{names:?}");
    let deployments =
        apps["resources"].as_array().unwrap().iter().find(|r| r["name"] == "deployments").unwrap();
    assert_eq!(deployments["storageVersionHash"], "8aSe+NMegvE=");
    let aggregated =
        "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json";
    let all = accept(&f, "/apis", aggregated).await;
    assert_eq!(
        all.header("content-type"),
        "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
    );
    let tag = all.header("etag").to_owned();
    let headers = [("accept", aggregated), ("if-none-match", tag.as_str())];
    let same = f.ask(admin(), request(Method::GET, "/apis", &headers, Json::Null)).await;
    assert_eq!(same.code, 304);
    assert_eq!(f.get("/version").await.json()["minor"], "37");
    let metrics = f.get("/metrics").await;
    assert!(String::from_utf8_lossy(&metrics.body).contains("apiserver_request_total{"));
    assert_eq!(f.get("/nothing").await.code, 404);
}

#[tokio::test]
async fn large_answers_are_compressed_for_those_who_take_it() {
    let f = Fixture::start().await;
    f.post(MAPS, configmap("large", &"x".repeat(300_000))).await;
    let headers = [("accept-encoding", "gzip")];
    let small =
        f.ask(admin(), request(Method::GET, &format!("{MAPS}/large"), &headers, Json::Null)).await;
    assert_eq!(small.header("content-encoding"), "gzip");
    assert!(small.body.len() < 10_000);
}
