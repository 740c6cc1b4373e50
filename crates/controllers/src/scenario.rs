//! Worlds made by hand, and scenarios in text files: `testdata/*.txt`, each a test.
//!
//! A file is a list of commands, one per line; `apply` takes the lines that follow it, up to an
//! empty one, as YAML.
//!
//! | command | |
//! |---|---|
//! | `apply` | creates or replaces objects |
//! | `tick 30s` | lets time pass |
//! | `kubelet ready` / `kubelet unready IMAGE` | runs every pod; those of an image never become ready |
//! | `node NAME` | adds a node whose agent lives (`node-1` is there from the start) |
//! | `kill NAME` | its agent says nothing any more |
//! | `delete RESOURCE NAME` | removes an object without further ado |
//! | `delay watches 2s` | every watch lags |
//! | `restart controllers` | they forget everything and start again |
//! | `refuse creates of RESOURCE` / `allow creates` | |
//! | `expect RESOURCE COUNT` | how many there are |
//! | `expect created RESOURCE COUNT` | how many were ever made |
//! | `expect FIELD.PATH RESOURCE NAME VALUE` | a field, in JSON |
//! | `serving IMAGE-PREFIX at least N` | from now on, checked after every tick |

mod fake;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use client::{Cached, Client, Lister, Resource};
use machinery::{Object, Value, value};
use stdx::{CancellationToken, Env, Task, env::simulate, files::RealFiles};

use self::fake::FakeApi;
use crate::{Config, World, views::Pod};

pub fn cached(object: Value) -> Cached {
    Cached::parse(machinery::json::to_vec(&object).into()).expect("a well-formed object")
}

pub fn world<const N: usize>(contents: [(&'static Resource, Vec<Cached>); N]) -> World {
    world_with(Config::default(), contents)
}

pub fn world_with<const N: usize>(
    config: Config,
    contents: [(&'static Resource, Vec<Cached>); N],
) -> World {
    let listers =
        contents.into_iter().map(|(r, objects)| (r.clone(), Lister::from_objects(objects)));
    World::new(listers, Arc::new(config))
}

struct Scenario {
    env: Env,
    api: FakeApi,
    running: Option<Running>,
    /// Pods of this image never become ready.
    unready: Option<String>,
    serving_at_least: Option<usize>,
    /// Nodes whose agents live.
    alive: Vec<String>,
}

/// Plays a scenario, and returns everything that the server was told, in order.
fn run(text: &str) -> String {
    simulate(1, Arc::new(RealFiles), |env| async move {
        let api = FakeApi::new(&env);
        let running = Running::start(&env, &api);
        let mut scenario = Scenario {
            env: env.clone(),
            api,
            running: Some(running),
            unready: None,
            serving_at_least: None,
            alive: Vec::new(),
        };
        scenario.add_node("node-1");
        scenario.tick(Duration::from_secs(1)).await;
        scenario.play(text).await;
        if let Some(running) = scenario.running.take() {
            running.stop().await;
        }
        assert_eq!(env.panics(), 0, "a controller panicked");
        scenario.api.trace()
    })
}

/// The controllers of one process.
struct Running {
    cancel: CancellationToken,
    task: Task<()>,
}

impl Running {
    fn start(env: &Env, api: &FakeApi) -> Self {
        let cancel = CancellationToken::new();
        let (api, running, environment) = (api.clone(), cancel.clone(), env.clone());
        let task = env.spawn("controllers", async move {
            let clients = move |_: &str| Client::new(Arc::new(api.clone()), "test");
            let without = ["*", "-garbage-collector-controller", "-namespace-controller"];
            let config =
                Config { controllers: without.map(str::to_owned).to_vec(), ..Config::default() };
            crate::run(&environment, clients, config, running).await;
        });
        Self { cancel, task }
    }

    async fn stop(self) {
        self.cancel.cancel();
        self.task.await;
    }
}

impl Scenario {
    async fn play(&mut self, text: &str) {
        let mut lines = text.lines().enumerate().peekable();
        while let Some((number, line)) = lines.next() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let mut block = String::new();
            if line == "apply" {
                while let Some((_, line)) = lines.next_if(|(_, line)| !line.trim().is_empty()) {
                    block.push_str(line);
                    block.push('\n');
                }
            }
            let place = format!("line {}: {line}", number + 1);
            self.command(&place, &line.split_whitespace().collect::<Vec<_>>(), &block).await;
        }
    }

    async fn command(&mut self, place: &str, words: &[&str], block: &str) {
        match words {
            ["apply"] => self.apply(block),
            ["tick", duration] => self.tick(seconds(duration)).await,
            ["kubelet", "ready"] => {
                self.unready = None;
                self.kubelet();
            }
            ["kubelet", "unready", image] => {
                self.unready = Some((*image).to_owned());
                self.kubelet();
            }
            ["node", name] => self.add_node(name),
            ["kill", name] => self.alive.retain(|node| node != name),
            ["delete", resource, name] => self.api.delete(resource, name),
            ["delete", "one", "of", resource] => {
                let first = self.api.list(resource).first().map(|o| o.name().to_owned());
                self.api.delete(resource, &first.expect(place));
            }
            ["restart", "controllers"] => {
                if let Some(running) = self.running.take() {
                    running.stop().await;
                }
                self.running = Some(Running::start(&self.env, &self.api));
            }
            ["delay", "watches", duration] => self.api.delay_watches(seconds(duration)),
            ["refuse", "creates", "of", resource] => self.api.break_creates(Some(resource)),
            ["allow", "creates"] => self.api.break_creates(None),
            ["serving", "at", "least", count] => self.serving_at_least = count.parse().ok(),
            ["expect", "created", resource, count] => {
                assert_eq!(self.api.created(resource).to_string(), *count, "{place}");
            }
            ["expect", resource, count] => {
                let found = self.api.list(resource);
                let names: Vec<&str> = found.iter().map(Object::name).collect();
                assert_eq!(found.len().to_string(), *count, "{place}: {names:?}");
            }
            ["expect", field, resource, name, wanted @ ..] => {
                let object = self.api.get(resource, name);
                let object =
                    object.unwrap_or_else(|| panic!("{place}: there is no {resource} {name}"));
                let path: Vec<&str> = field.split('.').collect();
                let found = find(&Value::Map(object.root().clone()), &path);
                let found = found
                    .map(|v| String::from_utf8(machinery::json::to_vec(&v)).unwrap_or_default());
                assert_eq!(found.unwrap_or("none".into()), wanted.join(" "), "{place}\n{object:?}");
            }
            _ => panic!("{place}: no such command"),
        }
    }

    /// Time passes second by second, and the kubelets keep working.
    async fn tick(&mut self, duration: Duration) {
        let end = self.env.instant() + duration;
        while self.env.instant() < end {
            self.env.sleep(Duration::from_millis(500)).await;
            self.kubelet();
            if let Some(minimum) = self.serving_at_least {
                let ready = self.api.list("pods").iter().filter(|p| is_serving(p)).count();
                assert!(ready >= minimum, "only {ready} pods serve");
            }
        }
    }

    fn apply(&self, block: &str) {
        for document in block.split("---\n") {
            let value = machinery::yaml::parse(document).expect("YAML");
            let object = Object::from_value(value).expect("an object");
            let plural = format!("{}s", object.kind().to_lowercase())
                .replace("ss", "sses")
                .replace("endpointsses", "endpoints");
            self.api.put(&plural, object);
        }
    }

    fn add_node(&mut self, name: &str) {
        self.alive.push(name.to_owned());
        let now = self.env.now().rfc3339();
        let node = value!({
            "apiVersion": "v1", "kind": "Node", "metadata": {"name": name}, "spec": {},
            "status": {"conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": now}]},
        });
        self.api.put("nodes", Object::from_value(node).expect("a map"));
        self.renew_lease(name);
    }

    fn renew_lease(&self, node: &str) {
        let mut lease = Object::new("coordination.k8s.io/v1", "Lease", "kube-node-lease", node);
        lease.set_at(&["spec", "renewTime"], self.env.now().rfc3339_micro());
        self.api.put("leases", lease);
    }

    /// The node that the pod is pinned to, else the first living one without taints.
    fn place(&self, pod: &Object) -> Option<String> {
        let affinity = pod.at(&["spec", "affinity"]).cloned().unwrap_or_default();
        if let Some(pinned) = crate::node_affinity::target_node("", &affinity) {
            return self.alive.contains(&pinned).then_some(pinned);
        }
        let untainted = |name: &&String| {
            let node = self.api.get("nodes", name);
            node.is_some_and(|node| node.list_at(&["spec", "taints"]).is_empty())
        };
        self.alive.iter().find(untainted).cloned()
    }

    /// Agents: binds pods to a living node, runs them, ends those that are to go, renews Leases.
    fn kubelet(&self) {
        for node in &self.alive {
            self.renew_lease(node);
        }
        for mut pod in self.api.list("pods") {
            let node = pod.str_at(&["spec", "nodeName"]).to_owned();
            if !node.is_empty() && !self.alive.contains(&node) {
                continue;
            }
            if pod.is_deleting() {
                let name = pod.name().to_owned();
                self.api.delete("pods", &name);
                continue;
            }
            let image = pod
                .list_at(&["spec", "containers"])
                .first()
                .and_then(|c| c.get("image"))
                .and_then(Value::as_str);
            let unready = self.unready.is_some() && image == self.unready.as_deref();
            let ready = if unready { "False" } else { "True" };
            let view = Pod::read(&cached(pod.clone().into_value())).expect("a pod");
            if view.is_finished() || (!view.spec.node_name.is_empty() && view.is_ready() != unready)
            {
                continue;
            }
            if pod.str_at(&["spec", "nodeName"]).is_empty() {
                let Some(node) = self.place(&pod) else { continue };
                pod.set_at(&["spec", "nodeName"], node);
            }
            let now = self.env.now().rfc3339();
            let ip = format!("10.1.0.{}", 1 + pod.revision().unwrap_or(0) % 250);
            let status = value!({
                "phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}], "startTime": now,
                "conditions": [{"type": "Ready", "status": ready, "lastTransitionTime": now}],
            });
            pod.root_mut().insert("status", status);
            self.api.put("pods", pod);
        }
    }
}

fn is_serving(pod: &Object) -> bool {
    !pod.is_deleting()
        && crate::conditions::is_true(pod.list_at(&["status", "conditions"]), "Ready")
}

/// Walks maps by field and lists by index or by `type`.
fn find(value: &Value, path: &[&str]) -> Option<Value> {
    let Some((first, rest)) = path.split_first() else { return Some(value.clone()) };
    let next = match value {
        Value::Map(map) => map.get(first)?,
        Value::List(list) => match first.parse::<usize>() {
            Ok(index) => list.get(index)?,
            Err(_) => {
                list.iter().find(|item| item.get("type").and_then(Value::as_str) == Some(first))?
            }
        },
        _ => return None,
    };
    find(next, rest)
}

fn seconds(text: &str) -> Duration {
    let (number, unit) = text.split_at(text.len() - 1);
    let number: u64 = number.parse().unwrap_or_else(|_| panic!("{text} is no duration"));
    Duration::from_secs(number * BTreeMap::from([("s", 1), ("m", 60), ("h", 3600)])[unit])
}

#[test]
fn one_seed_gives_one_trace() {
    let text = include_str!("../testdata/controller_restart.txt");
    let (first, second) = (run(text), run(text));
    for (a, b) in first.lines().zip(second.lines()) {
        assert_eq!(a, b);
    }
    assert_eq!(first.len(), second.len());
}

macro_rules! scenarios {
    ($($name:ident)*) => {
        $(#[test] fn $name() { run(include_str!(concat!("../testdata/", stringify!($name), ".txt"))); })*
        #[test]
        fn every_file_is_a_test() {
            let known = [$(stringify!($name)),*];
            let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata");
            for entry in std::fs::read_dir(directory).expect("testdata").flatten() {
                let name = entry.file_name().to_string_lossy().replace(".txt", "");
                assert!(known.contains(&name.as_str()), "{name} is not listed in scenario.rs");
            }
        }
    };
}

scenarios! {
    rollout
    late_watches
    refused
    node_loss
    late_workloads
    controller_restart
}
