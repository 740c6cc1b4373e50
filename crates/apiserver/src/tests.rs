//! Scenarios of a whole server, in process: requests go through the whole chain.

mod access;
mod forms;
mod network;
mod verbs;

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response};
use http_body_util::BodyExt;
use serde_json::{Value as Json, json};
use stdx::Env;

use crate::{Body, Connection, Identity, Server, ServerConfig, UserInfo, body, testing::Authority};

/// A server over a store in a temporary directory.
pub struct Fixture {
    pub server: Arc<Server>,
    pub authority: Authority,
    _directory: tempfile::TempDir,
}

/// An answer, read to its end.
#[derive(Debug)]
pub struct Answer {
    pub code: u16,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Answer {
    pub fn json(&self) -> Json {
        serde_json::from_slice(&self.body).unwrap_or(Json::Null)
    }

    pub fn message(&self) -> String {
        self.json()["message"].as_str().unwrap_or_default().to_owned()
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }
}

impl Fixture {
    pub async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    /// With settings of the test's own.
    pub async fn start_with(settings: impl FnOnce(&mut ServerConfig)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let env = Env::real();
        let store = store::embedded::Embedded::open(&env, directory.path(), Default::default())
            .await
            .unwrap();
        let registry = registry::Registry::open(env.clone(), store, registry::Options::default());
        let authority = Authority::new("test-ca");
        let key = rcgen::KeyPair::generate().unwrap().serialize_pem();
        let mut config = ServerConfig::new(authority.ca_pem.clone(), key);
        config.serving = Some(authority.server());
        settings(&mut config);
        let server = Server::new(env, registry, config).unwrap();
        server.bootstrap().await.unwrap();
        server.ready().await;
        let fixture = Self { server, authority, _directory: directory };
        let account = json!({"metadata": {"name": "default"}});
        let made = fixture.post("/api/v1/namespaces/default/serviceaccounts", account).await;
        assert_eq!(made.code, 201, "{made:?}");
        fixture
    }

    pub async fn send(&self, identity: Identity, request: Request<Body>) -> Response<Body> {
        self.server.handle(request, identity).await
    }

    pub async fn ask(&self, identity: Identity, request: Request<Body>) -> Answer {
        read(self.send(identity, request).await).await
    }

    /// A request of the administrator.
    pub async fn admin(&self, method: Method, path: &str, body: Json) -> Answer {
        self.ask(admin(), request(method, path, &[], body)).await
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.admin(Method::GET, path, Json::Null).await
    }

    pub async fn post(&self, path: &str, body: Json) -> Answer {
        self.admin(Method::POST, path, body).await
    }

    /// A GET of somebody, waiting until it is answered with `code`: roles take effect when the
    /// informers have seen them.
    pub async fn until(
        &self,
        user: &Identity,
        method: Method,
        path: &str,
        body: Json,
        code: u16,
    ) -> Answer {
        loop {
            let answer =
                self.ask(user.clone(), request(method.clone(), path, &[], body.clone())).await;
            if answer.code == code {
                return answer;
            }
            tokio::task::yield_now().await;
        }
    }
}

pub async fn read(response: Response<Body>) -> Answer {
    let (parts, body) = response.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    Answer { code: parts.status.as_u16(), headers: parts.headers, body }
}

pub fn request(method: Method, path: &str, headers: &[(&str, &str)], body: Json) -> Request<Body> {
    let bytes = if body.is_null() { Bytes::new() } else { body.to_string().into() };
    let mut builder = Request::builder().method(method).uri(path).header("user-agent", "tests/1.0");
    for (name, value) in headers {
        builder = builder.header(*name, *value);
    }
    builder.body(body::full(bytes)).unwrap()
}

pub fn user(name: &str, groups: &[&str]) -> Identity {
    let mut groups: Vec<String> = groups.iter().map(|&group| group.to_owned()).collect();
    groups.push("system:authenticated".into());
    Identity::Verified(Arc::new(UserInfo { name: name.into(), groups, ..UserInfo::default() }))
}

pub fn admin() -> Identity {
    user("admin", &["system:masters"])
}

/// Somebody from outside, without a certificate.
pub fn stranger() -> Identity {
    Identity::Connection(Arc::new(Connection::new("192.0.2.1:1".into(), Vec::new())))
}

pub fn configmap(name: &str, value: &str) -> Json {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"k": value}})
}
