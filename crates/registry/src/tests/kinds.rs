use machinery::value;

use super::*;
use crate::{
    WatchKind,
    kinds::core::{eviction, pods},
};

fn pod(name: &str) -> Value {
    value!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "ns"},
        "spec": {"containers": [{"name": "c", "image": "nginx"}]}})
}

fn causes<T>(result: Result<T, Status>) -> Vec<String> {
    match result {
        Ok(_) => vec!["no error".into()],
        Err(status) => {
            let details = status.details.unwrap_or_default();
            details
                .causes
                .iter()
                .map(|cause| format!("{}: {}", cause.field, cause.message))
                .collect()
        }
    }
}

#[test]
fn pods_get_their_defaults_and_die_gracefully() {
    run(Options::default(), |w| async move {
        let pods = w.core("pods");
        let made = w.create(&pods, pod("a")).await.unwrap();
        assert_eq!(made.str_at(&["status", "phase"]), "Pending");
        assert_eq!(made.str_at(&["status", "qosClass"]), "BestEffort");
        assert_eq!(made.str_at(&["spec", "dnsPolicy"]), "ClusterFirst");
        assert_eq!(made.generation(), 1);
        let container = &made.list_at(&["spec", "containers"])[0];
        assert_eq!(container.get("imagePullPolicy").unwrap().as_str(), Some("Always"));
        let binding = object(value!({"target": {"kind": "Node", "name": "n1"}}));
        pods::bind(&pods, &w.cx(), "ns", "a", &binding, &AdmitAll).await.unwrap();
        let again = pods::bind(&pods, &w.cx(), "ns", "a", &binding, &AdmitAll).await;
        assert_eq!(
            text(again),
            "Operation cannot be fulfilled on pods \"a\": pod a is already assigned to node \"n1\""
        );
        let bound = w.get(&pods, "ns", "a").await.unwrap();
        assert_eq!(bound.str_at(&["spec", "nodeName"]), "n1");
        let by_node =
            ListOptions { field_selector: "spec.nodeName=n1".into(), ..ListOptions::default() };
        assert_eq!(w.names(&pods, "", &by_node).await, ["a"]);
        let dying = w.delete(&pods, "ns", "a", DeleteOptions::default()).await.unwrap();
        assert!(!dying.is_gone());
        let dying = w.get(&pods, "ns", "a").await.unwrap();
        assert_eq!(dying.deletion_grace_period_seconds(), Some(30));
        let shorter = DeleteOptions { grace_period_seconds: Some(5), ..DeleteOptions::default() };
        w.delete(&pods, "ns", "a", shorter).await.unwrap();
        assert_eq!(w.get(&pods, "ns", "a").await.unwrap().deletion_grace_period_seconds(), Some(5));
        let now = DeleteOptions { grace_period_seconds: Some(0), ..DeleteOptions::default() };
        assert!(w.delete(&pods, "ns", "a", now).await.unwrap().is_gone());
        assert!(w.get(&pods, "ns", "a").await.is_err());
    });
}

#[test]
fn a_bad_pod_is_told_everything_at_once() {
    run(Options::default(), |w| async move {
        let pods = w.core("pods");
        let bad = value!({"metadata": {"name": "a", "namespace": "ns"}, "spec": {
            "containers": [
                {"name": "C", "image": "", "ports": [{"containerPort": 0}], "volumeMounts": [{"name": "v", "mountPath": "/v"}]},
                {"name": "d", "image": "x", "resources": {"limits": {"cpu": "1"}, "requests": {"cpu": "2"}}},
            ],
            "restartPolicy": "Sometimes",
            "tolerations": [{"operator": "Equal", "value": "x"}],
        }});
        let texts = causes(w.create(&pods, bad).await);
        let expected = [
            "spec.containers[0].name: Invalid value: \"C\": a lowercase RFC 1123 label must consist",
            "spec.containers[0].image: Required value",
            "spec.containers[0].ports[0].containerPort: Required value",
            "spec.containers[0].volumeMounts[0].name: Not found: \"v\"",
            "spec.containers[1].resources.requests: Invalid value: \"2\": must be less than or equal to cpu limit of 1",
            "spec.restartPolicy: Unsupported value: \"Sometimes\": supported values: \"Always\", \"OnFailure\", \"Never\"",
            "spec.tolerations[0].operator: Invalid value: \"Equal\": operator must be Exists when `key` is empty",
        ];
        assert_eq!(texts.len(), expected.len(), "{texts:#?}");
        for (text, start) in texts.iter().zip(expected) {
            assert!(text.starts_with(start), "{text}");
        }
    });
}

#[test]
fn a_pods_spec_is_fixed_but_for_its_images() {
    run(Options::default(), |w| async move {
        let pods = w.core("pods");
        w.create(&pods, pod("a")).await.unwrap();
        let change = |field: &'static str| {
            move |o: &mut Object| {
                let spec = o.root_mut().map_entry("spec");
                let container = spec.list_entry("containers")[0].as_map_mut().unwrap();
                container.insert(field, "busybox");
            }
        };
        w.edit(&pods, ("ns", "a"), "", change("image")).await.unwrap();
        let refused = text(w.edit(&pods, ("ns", "a"), "", change("workingDir")).await);
        assert!(refused.starts_with("Pod \"a\" is invalid: spec: Forbidden: pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`"), "{refused}");
        let status = w
            .edit(&pods, ("ns", "a"), "status", |o| {
                o.set_at(&["status", "phase"], "Running");
                o.set_at(&["spec", "hostname"], "ignored");
            })
            .await
            .unwrap();
        assert_eq!(
            (status.str_at(&["status", "phase"]), status.at(&["spec", "hostname"])),
            ("Running", None)
        );
    });
}

#[test]
fn namespaces_wait_for_their_finalizer() {
    run(Options::default(), |w| async move {
        let namespaces = w.core("namespaces");
        let made = w.create(&namespaces, value!({"metadata": {"name": "a"}})).await.unwrap();
        assert_eq!(made.label("kubernetes.io/metadata.name"), Some("a"));
        assert_eq!(made.str_at(&["status", "phase"]), "Active");
        w.delete(&namespaces, "", "a", DeleteOptions::default()).await.unwrap();
        let dying = w.get(&namespaces, "", "a").await.unwrap();
        assert_eq!(dying.str_at(&["status", "phase"]), "Terminating");
        assert!(dying.is_deleting() && dying.deletion_grace_period_seconds().is_none());
        let mut watch = namespaces
            .watch(
                None,
                &ListOptions {
                    resource_version: dying.resource_version().into(),
                    ..ListOptions::default()
                },
            )
            .await
            .unwrap();
        w.edit(&namespaces, ("", "a"), "finalize", |o| o.set_at(&["spec"], value!({})))
            .await
            .unwrap();
        assert_eq!(watch.next().await.unwrap().kind, WatchKind::Deleted);
        assert!(w.get(&namespaces, "", "a").await.unwrap_err().is_not_found());
    });
}

#[test]
fn secrets_take_texts_and_keep_their_type() {
    run(Options::default(), |w| async move {
        let secrets = w.core("secrets");
        let body = value!({"metadata": {"name": "a", "namespace": "ns"}, "stringData": {"k": "v"}});
        let made = w.create(&secrets, body).await.unwrap();
        assert_eq!((made.str_at(&["data", "k"]), made.at(&["stringData"])), ("dg==", None));
        let changed = w.edit(&secrets, ("ns", "a"), "", |o| o.set_at(&["type"], "x")).await;
        assert_eq!(
            text(changed),
            "Secret \"a\" is invalid: type: Invalid value: \"x\": field is immutable"
        );
    });
}

fn service(name: &str, spec: Value) -> Value {
    let mut object = Object::new("v1", "Service", "ns", name);
    object.set_at(&["spec"], spec);
    object.into_value()
}

#[test]
fn services_claim_addresses_and_ports_once() {
    let options = Options {
        service_cidrs: vec!["10.0.0.0/28".into()],
        node_ports: (30_000, 30_003),
        ..Options::default()
    };
    run(options, |w| async move {
        let services = w.core("services");
        let web = value!({"type": "NodePort", "ports": [{"port": 80}], "selector": {"app": "web"}});
        let made = w.create(&services, service("web", web.clone())).await.unwrap();
        let address = made.str_at(&["spec", "clusterIP"]).to_owned();
        assert!(
            address.starts_with("10.0.0.")
                && made.list_at(&["spec", "clusterIPs"])[0].as_str() == Some(&address)
        );
        let port = made.list_at(&["spec", "ports"])[0].get("nodePort").unwrap().as_i64().unwrap();
        assert!((30_000..=30_003).contains(&port));
        let mut fixed = web.clone();
        fixed.as_map_mut().unwrap().insert("clusterIP", address.as_str());
        let taken = causes(w.create(&services, service("other", fixed)).await);
        assert_eq!(
            taken,
            [format!(
                "spec.clusterIPs: Invalid value: [\"{address}\"]: failed to allocate IP {address}: provided IP is already allocated"
            )]
        );
        let node = value!({"type": "NodePort", "ports": [{"port": 80, "nodePort": port}]});
        let taken = causes(w.create(&services, service("other", node)).await);
        assert_eq!(
            taken,
            [format!(
                "spec.ports[0].nodePort: Invalid value: {port}: provided port is already allocated"
            )]
        );
        let moved = w
            .edit(&services, ("ns", "web"), "", |o| o.set_at(&["spec", "type"], "ClusterIP"))
            .await
            .unwrap();
        assert_eq!(moved.list_at(&["spec", "ports"])[0].get("nodePort"), None);
        let gone = w.delete(&services, "ns", "web", DeleteOptions::default()).await.unwrap();
        assert!(gone.is_gone());
        let mut again = web;
        again.as_map_mut().unwrap().insert("clusterIP", address.as_str());
        w.create(&services, service("again", again)).await.unwrap();
    });
}

#[test]
fn racing_services_share_no_address() {
    let options = Options {
        service_cidrs: vec!["10.0.0.0/28".into()],
        node_ports: (30_000, 30_019),
        ..Options::default()
    };
    run(options, |w| async move {
        let services = w.core("services");
        let makers = (0..20).map(|at| {
            let spec = value!({"type": "NodePort", "ports": [{"port": 80}]});
            w.create(&services, service(&format!("s{at}"), spec))
        });
        let done: Vec<_> = futures::future::join_all(makers).await;
        let made: Vec<&Object> = done.iter().filter_map(|d| d.as_ref().ok()).collect();
        let mut addresses: Vec<&str> =
            made.iter().map(|o| o.str_at(&["spec", "clusterIP"])).collect();
        addresses.sort_unstable();
        addresses.dedup();
        assert_eq!((made.len(), addresses.len()), (14, 14), "the block holds 14");
        let mut ports: Vec<i64> = made
            .iter()
            .map(|o| o.list_at(&["spec", "ports"])[0].get("nodePort").unwrap().as_i64().unwrap())
            .collect();
        ports.sort_unstable();
        ports.dedup();
        assert_eq!(ports.len(), 14);
    });
}

#[test]
fn headless_services_have_no_address() {
    run(Options::default(), |w| async move {
        let services = w.core("services");
        let spec = value!({"clusterIP": "None", "selector": {"a": "b"}, "ports": [{"port": 80}]});
        let made = w.create(&services, service("a", spec)).await.unwrap();
        assert_eq!(made.list_at(&["spec", "clusterIPs"]), [Value::from("None")]);
        assert_eq!(made.str_at(&["spec", "ipFamilyPolicy"]), "SingleStack");
    });
}

#[test]
fn evictions_spend_the_budget() {
    run(Options::default(), |w| async move {
        let (pods, budgets) = (w.core("pods"), w.at("policy", "v1", "poddisruptionbudgets"));
        for name in ["a", "b"] {
            let mut body = object(pod(name));
            body.set_at(&["metadata", "labels", "app"], "web");
            w.create(&pods, body.into_value()).await.unwrap();
            w.edit(&pods, ("ns", name), "status", |o| {
                o.set_at(&["status"], value!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}));
            })
            .await
            .unwrap();
        }
        let body = value!({"metadata": {"name": "pdb", "namespace": "ns"}, "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "web"}}}});
        w.create(&budgets, body).await.unwrap();
        w.edit(&budgets, ("ns", "pdb"), "status", |o| {
            o.set_at(&["status"], value!({"observedGeneration": 1, "disruptionsAllowed": 1, "desiredHealthy": 1, "currentHealthy": 2, "expectedPods": 2}));
        })
        .await
        .unwrap();
        let evict = |name: &'static str| {
            let (pods, cx) = (pods.clone(), w.cx());
            async move {
                eviction::evict(&pods, &cx, "ns", name, &DeleteOptions::default(), &AdmitAll).await
            }
        };
        let stale = DeleteOptions {
            precondition_resource_version: Some("2".into()),
            ..DeleteOptions::default()
        };
        let refused =
            eviction::evict(&pods, &w.cx(), "ns", "b", &stale, &AdmitAll).await.unwrap_err();
        assert!(refused.is_conflict());
        w.edit(&budgets, ("ns", "pdb"), "status", |o| {
            o.set_at(&["status", "disruptionsAllowed"], 1)
        })
        .await
        .unwrap();
        evict("a").await.unwrap();
        assert!(w.get(&pods, "ns", "a").await.unwrap_err().is_not_found());
        let refused = evict("b").await.unwrap_err();
        assert_eq!(
            (refused.code, refused.message.as_str()),
            (429, "Cannot evict pod as it would violate the pod's disruption budget.")
        );
    });
}

#[test]
fn events_vanish_and_have_two_shapes() {
    run(Options { event_ttl_seconds: 60, ..Options::default() }, |w| async move {
        let (old, new) = (w.core("events"), w.at("events.k8s.io", "v1", "events"));
        let body = value!({"metadata": {"name": "e", "namespace": "ns"}, "involvedObject": {"namespace": "ns", "name": "p", "kind": "Pod"}, "message": "m", "reason": "R", "type": "Normal"});
        w.create(&old, body).await.unwrap();
        let seen = w.get(&new, "ns", "e").await.unwrap();
        assert_eq!(
            (seen.api_version(), seen.str_at(&["note"]), seen.str_at(&["regarding", "name"])),
            ("events.k8s.io/v1", "m", "p")
        );
        w.env.sleep(std::time::Duration::from_secs(200)).await;
        assert!(w.get(&old, "ns", "e").await.unwrap_err().is_not_found());
    });
}

#[test]
fn deployments_are_defaulted_and_count_generations() {
    run(Options::default(), |w| async move {
        let deployments = w.at("apps", "v1", "deployments");
        let body = value!({"metadata": {"name": "d", "namespace": "ns"}, "spec": {
            "selector": {"matchLabels": {"app": "web"}},
            "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "nginx:1"}]}}}});
        let made = w.create(&deployments, body.clone()).await.unwrap();
        assert_eq!(made.i64_at(&["spec", "replicas"]), Some(1));
        assert_eq!(made.str_at(&["spec", "strategy", "rollingUpdate", "maxSurge"]), "25%");
        assert_eq!(made.str_at(&["spec", "template", "spec", "restartPolicy"]), "Always");
        let scaled = w
            .edit(&deployments, ("ns", "d"), "", |o| o.set_at(&["spec", "replicas"], 3))
            .await
            .unwrap();
        assert_eq!(scaled.generation(), 2);
        let status = w
            .edit(&deployments, ("ns", "d"), "status", |o| o.set_at(&["status", "replicas"], 3))
            .await
            .unwrap();
        assert_eq!(status.generation(), 2);
        let mut wrong = object(body);
        wrong.set_name("e");
        wrong.set_at(&["spec", "template", "metadata", "labels"], value!({"app": "other"}));
        assert_eq!(
            text(w.create(&deployments, wrong.into_value()).await),
            "Deployment.apps \"e\" is invalid: spec.template.metadata.labels: Invalid value: {\"app\":\"other\"}: `selector` does not match template `labels`"
        );
    });
}

#[test]
fn every_line_of_the_table_is_a_served_resource() {
    run(Options::default(), |w| async move {
        let served = w.registry.resources();
        for (group, resource) in crate::kinds::table() {
            let known = served
                .values()
                .any(|r| r.info().storage.group == group && r.info().resource() == resource);
            assert!(known, "{resource}.{group}");
        }
    });
}

#[test]
fn owners_of_fields_are_recorded() {
    run(Options::default(), |w| async move {
        let maps = w.core("configmaps");
        let by = |manager: &str| {
            let mut cx = w.cx();
            cx.field_manager = manager.into();
            cx
        };
        let body = object(
            value!({"metadata": {"name": "a", "namespace": "ns"}, "data": {"x": "1", "y": "1"}}),
        );
        maps.create(&by("one"), "ns", body, &CreateOptions::default(), &AdmitAll).await.unwrap();
        let change = |current: Option<&Object>| {
            let mut object = current.cloned().unwrap();
            object.set_at(&["data", "x"], "2");
            Ok(object)
        };
        let options = UpdateOptions::default();
        let (changed, _) =
            maps.update(&by("two"), "ns", "a", "", &change, &options, &AdmitAll).await.unwrap();
        let owners: Vec<(String, String)> = changed
            .list_at(&["metadata", "managedFields"])
            .iter()
            .map(|entry| {
                let fields = serde_json::to_string(entry.get("fieldsV1").unwrap()).unwrap();
                (entry.get("manager").unwrap().as_str().unwrap().to_owned(), fields)
            })
            .collect();
        assert_eq!(
            owners,
            [
                ("one".to_owned(), r#"{"f:data":{".":{},"f:y":{}}}"#.to_owned()),
                ("two".to_owned(), r#"{"f:data":{"f:x":{}}}"#.to_owned()),
            ]
        );
    });
}
