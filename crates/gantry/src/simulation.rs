//! The control plane on one thread, a virtual clock and a disk that forgets: API server,
//! scheduler and three controllers take a Deployment through a rollout with a crash in the
//! middle. Two runs of one seed must do the same to the byte.

use std::{
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use apiserver::{Server, ServerConfig};
use client::{Client, Informer, InformerOptions, Patch, Resource};
use cluster::pki::Pki;
use machinery::{Object, value};
use registry::Registry;
use stdx::{CancellationToken, Env, env::simulate};
use store::{embedded::Embedded, sim::SimFiles};

use crate::assemble::in_process;

const PODS: Resource = Resource::namespaced("", "v1", "pods", "Pod");
const NODES: Resource = Resource::cluster("", "v1", "nodes", "Node");
const DEPLOYMENTS: Resource = Resource::namespaced("apps", "v1", "deployments", "Deployment");
const REPLICA_SETS: Resource = Resource::namespaced("apps", "v1", "replicasets", "ReplicaSet");
const OBSERVED: [Resource; 3] = [DEPLOYMENTS, REPLICA_SETS, PODS];
const ADMIN: &str = "system:apiserver";
/// How long a container of the simulated nodes takes to start.
const START: Duration = Duration::from_millis(300);

/// What every watcher was told, line by line.
#[derive(Clone, Default)]
struct Trace(Arc<Mutex<Vec<u8>>>);

impl Trace {
    fn line(&self, what: &str, bytes: &[u8]) {
        let mut trace = self.0.lock().unwrap();
        trace.extend_from_slice(what.as_bytes());
        trace.push(b' ');
        trace.extend_from_slice(bytes);
        trace.push(b'\n');
    }
}

/// A process of the control plane, which a crash takes away whole.
struct Process {
    cancel: CancellationToken,
    admin: Client,
}

impl Process {
    async fn start(env: &Env, pki: &Pki, trace: &Trace) -> Self {
        let cancel = CancellationToken::new();
        let store = Embedded::open(env, Path::new("/data"), Default::default()).await.unwrap();
        let registry = Registry::open(env.clone(), store, registry::Options::default());
        let keys = (pki.read("ca.crt").unwrap(), pki.read("sa.key").unwrap());
        let server = Server::new(env.clone(), registry, ServerConfig::new(keys.0, keys.1)).unwrap();
        server.bootstrap().await.unwrap();
        server.ready().await;
        let admin = in_process::client_in_group(&server, ADMIN, "system:masters");
        let scheduler = in_process::client(&server, "system:kube-scheduler");
        let task = scheduler::run(env.clone(), scheduler, Default::default(), cancel.clone());
        env.spawn("scheduler", task);
        let (controllers_env, controllers_cancel) = (env.clone(), cancel.clone());
        let for_controllers = server.clone();
        env.spawn("controllers", async move {
            let config = controllers::Config {
                controllers: [
                    "deployment-controller",
                    "replicaset-controller",
                    "serviceaccount-controller",
                ]
                .map(str::to_owned)
                .to_vec(),
                ..controllers::Config::default()
            };
            let clients = |user: &str| in_process::client(&for_controllers, user);
            controllers::run(&controllers_env, clients, config, controllers_cancel).await;
        });
        for resource in &OBSERVED {
            observe(env, &admin, resource, trace, &cancel);
        }
        hollow_kubelets(env, &admin, &cancel);
        Self { cancel, admin }
    }
}

fn observe(
    env: &Env,
    client: &Client,
    resource: &Resource,
    trace: &Trace,
    cancel: &CancellationToken,
) {
    let options = InformerOptions::default();
    let informer = Informer::start(env, client.clone(), resource, options, cancel.clone());
    let (trace, kind) = (trace.clone(), resource.kind);
    informer.on_change(move |change| match &change.new {
        Some(object) => trace.line(kind, object.bytes()),
        None => trace.line(kind, change.key().to_string().as_bytes()),
    });
}

/// Nodes whose pods become Ready a while after they were bound, and go when told to.
fn hollow_kubelets(env: &Env, client: &Client, cancel: &CancellationToken) {
    let options = InformerOptions::default();
    let pods = Informer::start(env, client.clone(), &PODS, options, cancel.clone());
    let (env, client, cancel) = (env.clone(), client.clone(), cancel.clone());
    pods.on_change(move |change| {
        let Some(pod) = change.new.as_ref().and_then(|cached| cached.object().ok()) else { return };
        let (client, clock, cancel) = (client.clone(), env.clone(), cancel.clone());
        env.spawn("hollow kubelet", async move {
            cancel.run_until_cancelled(act_for_kubelet(&clock, &client, &pod)).await;
        });
    });
}

async fn act_for_kubelet(env: &Env, client: &Client, pod: &Object) {
    let (namespace, name) = (pod.namespace(), pod.name());
    if pod.str_at(&["spec", "nodeName"]).is_empty() {
        return;
    }
    if pod.is_deleting() {
        let options = client::DeleteOptions {
            grace_period_seconds: Some(0),
            ..client::DeleteOptions::of_uid(pod.uid())
        };
        let _ = client.delete(&PODS, namespace, name, &options).await;
    } else if pod.str_at(&["status", "phase"]) != "Running" {
        env.sleep(START).await;
        let now = env.now().rfc3339();
        let patch = value!({ "metadata": { "uid": pod.uid() }, "status": {
            "phase": "Running",
            "conditions": [{ "type": "Ready", "status": "True", "lastTransitionTime": now }],
        }});
        let _ = client.patch(&PODS, namespace, name, "status", &Patch::Strategic(patch)).await;
    }
}

fn node(name: &str) -> Object {
    let mut node = Object::new("v1", "Node", "", name);
    let amounts = value!({ "cpu": "4", "memory": "8Gi", "pods": "110" });
    node.set_at(&["status", "capacity"], amounts.clone());
    node.set_at(&["status", "allocatable"], amounts);
    node
}

fn deployment(image: &str) -> Object {
    Object::from_value(value!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": { "name": "web", "namespace": "default" },
        "spec": {
            "replicas": 4,
            "selector": { "matchLabels": { "app": "web" } },
            "template": {
                "metadata": { "labels": { "app": "web" } },
                "spec": {
                    "containers": [{ "name": "web", "image": image }],
                    // No node controller runs here that would take this taint away.
                    "tolerations": [{ "key": "node.kubernetes.io/not-ready", "operator": "Exists" }],
                },
            },
        },
    }))
    .unwrap()
}

/// Waits until the Deployment says that all of the newest template are available.
async fn rolled_out(env: &Env, client: &Client, generation: i64) {
    for _ in 0..6000 {
        let web = client.get(&DEPLOYMENTS, "default", "web").await.unwrap();
        let status = |field| web.i64_at(&["status", field]).unwrap_or(0);
        if status("observedGeneration") >= generation
            && (status("updatedReplicas"), status("availableReplicas"), status("replicas"))
                == (4, 4, 4)
        {
            return;
        }
        env.sleep(Duration::from_millis(100)).await;
    }
    panic!("the rollout did not end within ten minutes of virtual time");
}

/// The whole scenario; gives back everything that watchers saw.
fn run(seed: u64, pki: &Pki) -> Vec<u8> {
    let files = SimFiles::new(seed);
    let disk = files.clone();
    simulate(seed, files, |env| async move {
        let trace = Trace::default();
        let process = Process::start(&env, pki, &trace).await;
        for name in ["a", "b", "c"] {
            process.admin.create(&NODES, "", &node(name)).await.unwrap();
        }
        process.admin.create(&DEPLOYMENTS, "default", &deployment("web:1")).await.unwrap();
        rolled_out(&env, &process.admin, 1).await;
        let change = value!({ "spec": { "template": { "spec": {
            "containers": [{ "name": "web", "image": "web:2" }],
        }}}});
        let patch = Patch::Strategic(change);
        process.admin.patch(&DEPLOYMENTS, "default", "web", "", &patch).await.unwrap();
        // In the middle of the rollout everything stops, and what was not synced is lost.
        env.sleep(Duration::from_millis(450)).await;
        trace.line("crash", b"");
        process.cancel.cancel();
        disk.lose_power();
        env.sleep(Duration::from_secs(1)).await;
        let process = Process::start(&env, pki, &trace).await;
        rolled_out(&env, &process.admin, 2).await;
        process.cancel.cancel();
        trace.0.lock().unwrap().clone()
    })
}

#[test]
fn one_seed_gives_one_history() {
    let directory = std::env::temp_dir().join(format!("gantry-simulation-{}", Env::real().uuid()));
    let pki = Pki::at(&directory);
    pki.ensure_authority(&Env::real()).unwrap();
    let first = run(42, &pki);
    let second = run(42, &pki);
    let other = run(43, &pki);
    std::fs::remove_dir_all(&directory).unwrap();
    let at = first.iter().zip(&second).position(|(a, b)| a != b);
    let around = |trace: &[u8]| {
        let at = at.unwrap_or(0);
        String::from_utf8_lossy(&trace[at.saturating_sub(200)..(at + 200).min(trace.len())])
            .into_owned()
    };
    assert!(first == second, "differ at {at:?}:\n{}\n---\n{}", around(&first), around(&second));
    assert_ne!(first, other, "another seed tells another story");
    assert!(first.windows(5).any(|part| part == b"web:2"));
}
