//! The whole agent between an API server and a runtime that only keep books, on a virtual clock.

mod fake_api;
mod fake_runtime;

use std::sync::Arc;

use client::Client;
use fake_api::FakeApi;
use fake_runtime::FakeRuntime;
use kubelet::{Kubelet, KubeletConfig, streaming::NoStreaming};
use serde_json::{Value, json};
use stdx::{CancellationToken, Env, files::RealFiles};

struct World {
    env: Env,
    api: FakeApi,
    runtime: FakeRuntime,
    directory: tempfile::TempDir,
    agent: CancellationToken,
}

impl World {
    fn new(env: &Env) -> Self {
        let world = Self {
            env: env.clone(),
            api: FakeApi::new(),
            runtime: FakeRuntime::new(env),
            directory: tempfile::tempdir().unwrap(),
            agent: CancellationToken::new(),
        };
        world.start_agent(&world.agent);
        world
    }

    fn start_agent(&self, cancel: &CancellationToken) {
        let mut config = KubeletConfig::new("node");
        config.addresses = vec!["192.0.2.1".parse().unwrap()];
        config.root_dir = self.directory.path().join("kubelet");
        config.log_dir = self.directory.path().join("log");
        config.cgroup_root = "/gantry-kubelet-test-that-never-exists".into();
        let endpoint = cri::Endpoint::in_process(Arc::new(self.runtime.clone()));
        let client = Client::new(Arc::new(self.api.clone()), "kubelet");
        let agent = Kubelet::new(
            &self.env,
            client,
            config,
            endpoint,
            Arc::new(NoStreaming),
            cancel.clone(),
        );
        self.env.spawn("agent", async move { agent.run().await });
    }

    fn add_pod(&self, spec: Value) {
        self.api.put(|pod| {
            *pod = json!({
                "apiVersion": "v1", "kind": "Pod", "spec": spec,
                "metadata": { "name": "p", "namespace": "n", "uid": "u1" },
            });
        });
    }

    fn delete_pod(&self, grace: i64) {
        let at = self.env.now().rfc3339();
        self.api.put(|pod| {
            pod["metadata"]["deletionTimestamp"] = json!(at);
            pod["metadata"]["deletionGracePeriodSeconds"] = json!(grace);
        });
    }
}

fn scenario<F: Future<Output = ()>>(run: impl FnOnce(World) -> F) {
    stdx::env::simulate(7, Arc::new(RealFiles), |env| async move {
        let world = World::new(&env);
        run(world).await;
        assert_eq!(env.panics(), 0);
    });
}

fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array();
    conditions.into_iter().flatten().any(|c| c["type"] == "Ready" && c["status"] == "True")
}

fn restarts(pod: &Value) -> i64 {
    pod["status"]["containerStatuses"][0]["restartCount"].as_i64().unwrap_or(-1)
}

fn one_container() -> Value {
    json!({ "terminationGracePeriodSeconds": 5, "containers": [{ "name": "c", "image": "i" }] })
}

#[test]
fn a_pod_lives_and_is_deleted() {
    scenario(|world| async move {
        world.add_pod(one_container());
        let pod = world.api.wait_for("the pod is ready", is_ready).await;
        assert_eq!(pod["status"]["phase"], "Running");
        assert_eq!(pod["status"]["podIP"], "10.0.0.9");
        assert_eq!(pod["status"]["containerStatuses"][0]["containerID"], "fake://id2");
        assert_eq!(world.runtime.take_calls(), ["run sandbox", "create c 0", "start c"]);
        assert!(world.api.status_writes() <= 3, "{} writes", world.api.status_writes());

        world.delete_pod(5);
        world.api.wait_for("the pod is gone", Value::is_null).await;
        assert_eq!(world.runtime.take_calls()[..2], ["stop c 5s", "stop sandbox"]);
    });
}

#[test]
fn a_crash_restarts_at_once_and_then_backs_off() {
    scenario(|world| async move {
        world.add_pod(one_container());
        world.api.wait_for("the pod is ready", is_ready).await;
        let crashed = world.env.now();
        world.runtime.exit("c", 1);
        world.api.wait_for("the first restart", |pod| restarts(pod) == 1 && is_ready(pod)).await;
        assert!(world.env.now().since(crashed).as_millis() < 300);

        let crashed = world.env.now();
        world.runtime.exit("c", 1);
        let reason = |pod: &Value| {
            pod["status"]["containerStatuses"][0]["state"]["waiting"]["reason"]
                == "CrashLoopBackOff"
        };
        let pod = world.api.wait_for("the back-off is shown", reason).await;
        let last = &pod["status"]["containerStatuses"][0]["lastState"]["terminated"];
        assert_eq!(last["exitCode"], 1);
        world.api.wait_for("the second restart", |pod| restarts(pod) == 2 && is_ready(pod)).await;
        let waited = world.env.now().since(crashed).as_millis();
        assert!((10_000..10_500).contains(&waited), "{waited} ms");
    });
}

#[test]
fn a_new_agent_touches_nothing_that_runs() {
    scenario(|world| async move {
        world.add_pod(one_container());
        world.api.wait_for("the pod is ready", is_ready).await;
        world.agent.cancel();
        world.runtime.take_calls();
        let writes = world.api.status_writes();
        let second = CancellationToken::new();
        world.start_agent(&second);
        // It has taken the pod over when it reacts to the container's end.
        world.env.sleep(std::time::Duration::from_secs(120)).await;
        assert!(world.runtime.take_calls().is_empty());
        assert_eq!(world.api.status_writes(), writes);
        world.runtime.exit("c", 1);
        world.api.wait_for("the restart", |pod| restarts(pod) == 1 && is_ready(pod)).await;
    });
}

#[test]
fn a_pod_that_is_done_keeps_its_result() {
    scenario(|world| async move {
        let mut spec = one_container();
        spec["restartPolicy"] = json!("OnFailure");
        world.add_pod(spec);
        world.api.wait_for("the pod runs", is_ready).await;
        world.runtime.take_calls();
        world.runtime.exit("c", 0);
        let pod = world
            .api
            .wait_for("it has succeeded", |pod| pod["status"]["phase"] == "Succeeded")
            .await;
        assert_eq!(pod["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"], 0);
        world.env.sleep(std::time::Duration::from_secs(60)).await;
        assert_eq!(world.runtime.take_calls(), ["stop sandbox"]);
    });
}
