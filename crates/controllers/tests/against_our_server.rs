//! The controllers against our own API server, in process, each under its own identity; agents are
//! played by a task that runs pods.

use std::{sync::Arc, time::Duration};

use apiserver::{Server, ServerConfig, authn::Identity, body};
use async_trait::async_trait;
use bytes::Bytes;
use client::{
    BodyStream, Client, DeleteOptions, Error, Informer, InformerOptions, Key, Lister, Resource,
    Transport,
};
use controllers::{Config, resources::*};
use futures::StreamExt;
use machinery::{Object, Value, value};
use registry::UserInfo;
use stdx::{CancellationToken, Env};

struct InProcess {
    server: Arc<Server>,
    user: Arc<UserInfo>,
}

#[async_trait]
impl Transport for InProcess {
    async fn send(
        &self,
        request: http::Request<Bytes>,
    ) -> Result<http::Response<BodyStream>, Error> {
        let identity = Identity::Verified(self.user.clone());
        let response = self.server.handle(request.map(body::full), identity).await;
        Ok(response.map(|body| -> BodyStream {
            Box::pin(http_body_util::BodyStream::new(body).filter_map(|frame| async move {
                match frame {
                    Ok(frame) => frame.into_data().ok().map(Ok),
                    Err(error) => Some(Err(error)),
                }
            }))
        }))
    }
}

fn client(server: &Arc<Server>, user: &str) -> Client {
    let mut groups = vec!["system:authenticated".to_owned()];
    if user == "admin" {
        groups.push("system:masters".into());
    }
    if user.starts_with("system:serviceaccount:") {
        groups
            .extend(["system:serviceaccounts".into(), "system:serviceaccounts:kube-system".into()]);
    }
    let user = Arc::new(UserInfo { name: user.into(), groups, ..UserInfo::default() });
    Client::new(Arc::new(InProcess { server: server.clone(), user }), "test")
}

/// Nobody connects by TLS here; the server wants to know whom it would trust.
fn authority() -> String {
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().pem()
}

struct Cluster {
    env: Env,
    admin: Client,
    cancel: CancellationToken,
    _directory: tempfile::TempDir,
}

impl Cluster {
    async fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let env = Env::real();
        let store = store::embedded::Embedded::open(&env, directory.path(), Default::default())
            .await
            .unwrap();
        let registry = registry::Registry::open(env.clone(), store, registry::Options::default());
        let key = rcgen::KeyPair::generate().unwrap().serialize_pem();
        let config = ServerConfig::new(authority(), key);
        let server = Server::new(env.clone(), registry, config).unwrap();
        server.bootstrap().await.unwrap();
        server.ready().await;
        let cancel = CancellationToken::new();
        let admin = client(&server, "admin");
        let (running, environment) = (cancel.clone(), env.clone());
        env.spawn("controllers", async move {
            let config = Config {
                cluster_cidrs: vec!["10.8.0.0/16".into()],
                root_ca: Some("test".into()),
                ..Config::default()
            };
            controllers::run(&environment, |user: &str| client(&server, user), config, running)
                .await;
        });
        let cluster = Self { env, admin, cancel, _directory: directory };
        let node = value!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}});
        cluster.create(&NODES, node).await;
        cluster.run_pods().await;
        cluster
    }

    fn watch(&self, resource: &Resource) -> Informer {
        let options = InformerOptions::default();
        Informer::start(&self.env, self.admin.clone(), resource, options, self.cancel.clone())
    }

    async fn create(&self, resource: &Resource, object: Value) -> Object {
        let object = Object::from_value(object).unwrap();
        self.admin.create(resource, object.namespace(), &object).await.unwrap()
    }

    /// Waits for a state of a resource's objects.
    async fn until(&self, what: &str, resource: &Resource, condition: impl Fn(&Lister) -> bool) {
        let informer = self.watch(resource);
        informer.synced().await;
        let reached =
            self.env.timeout(Duration::from_secs(60), informer.lister().until(condition)).await;
        let found = informer.lister().all();
        let texts: Vec<_> = found.iter().map(|c| String::from_utf8_lossy(c.bytes())).collect();
        assert!(reached.is_some(), "{what} did not come about: {texts:#?}");
    }

    /// Plays scheduler and agent: binds, runs, ends.
    async fn run_pods(&self) {
        let (sender, mut changed) = tokio::sync::mpsc::unbounded_channel::<Object>();
        let informer = self.watch(&PODS);
        informer.on_change(move |change| {
            if let Some(pod) = &change.new {
                let _ = sender.send(pod.object().unwrap());
            }
        });
        let admin = self.admin.clone();
        self.env.spawn("agent", async move {
            let _informer = informer;
            while let Some(pod) = changed.recv().await {
                let (namespace, name) = (pod.namespace(), pod.name());
                if pod.is_deleting() {
                    let now = DeleteOptions { grace_period_seconds: Some(0), ..DeleteOptions::default() };
                    let _ = admin.delete(&PODS, namespace, name, &now).await;
                } else if pod.str_at(&["spec", "nodeName"]).is_empty() {
                    let mut binding = Object::new("v1", "Binding", namespace, name);
                    binding.root_mut().insert("target", value!({"kind": "Node", "name": "n1"}));
                    let _ = admin.create_sub(&PODS, namespace, name, "binding", &binding).await;
                } else if pod.str_at(&["status", "phase"]) != "Running" {
                    let address = format!("10.8.0.{}", 1 + pod.revision().unwrap_or(0) % 250);
                    let status = value!({"status": {
                        "phase": "Running", "podIP": address, "podIPs": [{"ip": address}],
                        "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}],
                    }});
                    let patch = client::Patch::Strategic(status);
                    let _ = admin.patch(&PODS, namespace, name, "status", &patch).await;
                }
            }
        });
    }
}

fn number(lister: &Lister, key: &Key, path: &[&str]) -> i64 {
    let object = lister.get(key).and_then(|cached| cached.object().ok());
    object.and_then(|object| object.i64_at(path)).unwrap_or(-1)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deployment_lives_and_its_namespace_ends() {
    let cluster = Cluster::start().await;
    cluster
        .create(
            &NAMESPACES,
            value!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "t"}}),
        )
        .await;
    let has = |lister: &Lister, name: &str| lister.get(&Key::new("t", name)).is_some();
    cluster.until("the default account", &SERVICE_ACCOUNTS, |l| has(l, "default")).await;
    cluster.until("the root CA", &CONFIG_MAPS, |l| has(l, "kube-root-ca.crt")).await;
    cluster
        .create(&SERVICES, value!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "t", "name": "web"},
            "spec": {"selector": {"app": "web"}, "ports": [{"port": 80}]},
        }))
        .await;
    cluster
        .create(&DEPLOYMENTS, value!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"namespace": "t", "name": "web"},
            "spec": {
                "replicas": 3, "selector": {"matchLabels": {"app": "web"}},
                "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "v1"}]}},
            },
        }))
        .await;
    let web = Key::new("t", "web");
    let available = |l: &Lister| number(l, &web, &["status", "availableReplicas"]) == 3;
    cluster.until("three replicas", &DEPLOYMENTS, available).await;
    let endpoints = |l: &Lister| {
        let slices = l.in_namespace("t").into_iter().filter_map(|slice| slice.object().ok());
        slices.map(|slice| slice.list_at(&["endpoints"]).len()).sum::<usize>() == 3
    };
    cluster.until("three endpoints", &ENDPOINT_SLICES, endpoints).await;

    let image = client::Patch::Strategic(value!({
        "spec": {"template": {"spec": {"containers": [{"name": "c", "image": "v2"}]}}},
    }));
    cluster.admin.patch(&DEPLOYMENTS, "t", "web", "", &image).await.unwrap();
    let rolled = |l: &Lister| {
        available(l)
            && number(l, &web, &["status", "updatedReplicas"]) == 3
            && number(l, &web, &["status", "replicas"]) == 3
            && number(l, &web, &["status", "observedGeneration"]) == 2
    };
    cluster.until("the rollout", &DEPLOYMENTS, rolled).await;
    let deployment = cluster.admin.get(&DEPLOYMENTS, "t", "web").await.unwrap();
    assert_eq!(deployment.annotation("deployment.kubernetes.io/revision"), Some("2"));

    cluster.admin.delete(&DEPLOYMENTS, "t", "web", &DeleteOptions::default()).await.unwrap();
    cluster.until("no pods", &PODS, |l| l.in_namespace("t").is_empty()).await;
    cluster.until("no replica sets", &REPLICA_SETS, |l| l.in_namespace("t").is_empty()).await;

    cluster.admin.delete(&NAMESPACES, "", "t", &DeleteOptions::default()).await.unwrap();
    cluster.until("no namespace", &NAMESPACES, |l| l.get(&Key::new("", "t")).is_none()).await;
    assert_eq!(cluster.env.panics(), 0);
    cluster.cancel.cancel();
}
