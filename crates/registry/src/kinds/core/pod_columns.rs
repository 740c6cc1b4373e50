//! What `kubectl get pods` prints.

use machinery::{Map, Object, Value};

use crate::{
    edit::{flag, list, maps, text},
    table::{AGE, Column, NAME, TableContext, age_of},
};

pub(crate) static COLUMNS: [Column; 9] = [
    NAME,
    Column::text("Ready", |pod, _| {
        let shown = summary(pod);
        format!("{}/{}", shown.ready, shown.total).into()
    }),
    Column::text("Status", |pod, _| summary(pod).reason.into()),
    Column::text("Restarts", |pod, cx| restarts(&summary(pod), cx).into()),
    AGE,
    Column::text("IP", |pod, _| {
        let first =
            pod.list_at(&["status", "podIPs"]).first().and_then(|ip| ip.get("ip")?.as_str());
        none(first.unwrap_or_default())
    })
    .wide(),
    Column::text("Node", |pod, _| none(pod.str_at(&["spec", "nodeName"]))).wide(),
    Column::text("Nominated Node", |pod, _| none(pod.str_at(&["status", "nominatedNodeName"])))
        .wide(),
    Column::text("Readiness Gates", |pod, _| readiness_gates(pod)).wide(),
];

/// A text, or `<none>`.
pub(crate) fn none(text: &str) -> Value {
    if text.is_empty() { "<none>".into() } else { text.into() }
}

struct Summary {
    ready: usize,
    total: usize,
    reason: String,
    restarts: i64,
    /// RFC 3339, empty when nothing restarted.
    last_restart: String,
}

fn restarts(shown: &Summary, cx: &TableContext) -> String {
    if shown.restarts == 0 || shown.last_restart.is_empty() {
        return shown.restarts.to_string();
    }
    format!("{} ({} ago)", shown.restarts, age_of(&shown.last_restart, cx))
}

fn summary(pod: &Object) -> Summary {
    let empty = Map::new();
    let (spec, status) =
        (pod.map_at(&["spec"]).unwrap_or(&empty), pod.map_at(&["status"]).unwrap_or(&empty));
    let sidecars: Vec<&str> = maps(spec, "initContainers")
        .filter(|c| text(c, "restartPolicy") == "Always")
        .map(|c| text(c, "name"))
        .collect();
    let phase = text(status, "phase");
    let mut shown = Summary {
        ready: 0,
        total: list(spec, "containers").len() + sidecars.len(),
        reason: [text(status, "reason"), phase]
            .into_iter()
            .find(|r| !r.is_empty())
            .unwrap_or_default()
            .into(),
        restarts: 0,
        last_restart: String::new(),
    };
    if maps(status, "conditions")
        .any(|c| text(c, "type") == "PodScheduled" && text(c, "reason") == "SchedulingGated")
    {
        shown.reason = "SchedulingGated".into();
    }
    let (initializing, side_restarts, side_last) =
        init_containers(spec, status, &sidecars, &mut shown);
    let initialized = maps(status, "conditions")
        .any(|c| text(c, "type") == "Initialized" && text(c, "status") == "True");
    if !initializing || initialized {
        shown.restarts = side_restarts;
        shown.last_restart = side_last;
        main_containers(status, &mut shown);
    }
    if pod.is_deleting() && text(status, "reason") == "NodeLost" {
        shown.reason = "Unknown".into();
    } else if pod.is_deleting() && !matches!(phase, "Failed" | "Succeeded") {
        shown.reason = "Terminating".into();
    }
    shown
}

fn later(last: &mut String, container: &Map) {
    let finished =
        container.get("lastState").and_then(|s| s.at(&["terminated", "finishedAt"])?.as_str());
    // RFC 3339 in UTC sorts as text.
    if let Some(finished) = finished.filter(|finished| *finished > last.as_str()) {
        *last = finished.to_owned();
    }
}

fn count(container: &Map) -> i64 {
    container.get("restartCount").and_then(Value::as_i64).unwrap_or(0)
}

/// Whether the pod still initializes, and the restarts of the sidecars alone.
fn init_containers(
    spec: &Map,
    status: &Map,
    sidecars: &[&str],
    shown: &mut Summary,
) -> (bool, i64, String) {
    let (mut side_restarts, mut side_last) = (0, String::new());
    for (at, container) in maps(status, "initContainerStatuses").enumerate() {
        shown.restarts += count(container);
        later(&mut shown.last_restart, container);
        let sidecar = sidecars.contains(&text(container, "name"));
        if sidecar {
            side_restarts += count(container);
            later(&mut side_last, container);
        }
        let state = container.get("state");
        let part = |name: &str| state.and_then(|s| s.get(name)?.as_map());
        let code =
            part("terminated").map(|t| t.get("exitCode").and_then(Value::as_i64).unwrap_or(0));
        if code == Some(0) {
            continue;
        }
        if sidecar && flag(container, "started") {
            shown.ready += usize::from(flag(container, "ready"));
            continue;
        }
        shown.reason = match (part("terminated"), part("waiting")) {
            (Some(terminated), _) => format!("Init:{}", ended(terminated)),
            (None, Some(waiting)) if !matches!(text(waiting, "reason"), "" | "PodInitializing") => {
                format!("Init:{}", text(waiting, "reason"))
            }
            _ => format!("Init:{at}/{}", list(spec, "initContainers").len()),
        };
        return (true, side_restarts, side_last);
    }
    (false, side_restarts, side_last)
}

/// Why a container ended, in one word.
fn ended(terminated: &Map) -> String {
    let number = |field| terminated.get(field).and_then(Value::as_i64).unwrap_or(0);
    match (text(terminated, "reason"), number("signal")) {
        ("", 0) => format!("ExitCode:{}", number("exitCode")),
        ("", signal) => format!("Signal:{signal}"),
        (reason, _) => reason.to_owned(),
    }
}

fn main_containers(status: &Map, shown: &mut Summary) {
    let (mut running, mut failed) = (false, String::new());
    for container in list(status, "containerStatuses").iter().rev().filter_map(Value::as_map) {
        shown.restarts += count(container);
        later(&mut shown.last_restart, container);
        let part = |name: &str| container.get("state").and_then(|s| s.get(name)?.as_map());
        let waiting =
            part("waiting").map(|w| text(w, "reason")).filter(|reason| !reason.is_empty());
        if let Some(reason) = waiting {
            shown.reason = reason.to_owned();
        } else if let Some(terminated) = part("terminated") {
            shown.reason = ended(terminated);
            if terminated.get("exitCode").and_then(Value::as_i64).unwrap_or(0) != 0 {
                failed = shown.reason.clone();
            }
        } else if flag(container, "ready") && part("running").is_some() {
            running = true;
            shown.ready += 1;
        }
    }
    if shown.reason == "Completed" {
        let ready = maps(status, "conditions")
            .any(|c| text(c, "type") == "Ready" && text(c, "status") == "True");
        if running && ready {
            shown.reason = "Running".into();
        } else if !failed.is_empty() {
            shown.reason = failed;
        } else if running {
            shown.reason = "NotReady".into();
        }
    }
}

fn readiness_gates(pod: &Object) -> Value {
    let gates = pod.list_at(&["spec", "readinessGates"]);
    if gates.is_empty() {
        return "<none>".into();
    }
    let conditions = pod.list_at(&["status", "conditions"]);
    let open = gates.iter().filter(|gate| {
        let of_gate = conditions.iter().find(|c| c.get("type") == gate.get("conditionType"));
        of_gate.and_then(|c| c.get("status")?.as_str()) == Some("True")
    });
    format!("{}/{}", open.count(), gates.len()).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use machinery::value;
    use stdx::Timestamp;

    fn shows(pod: Value) -> [String; 3] {
        let pod = Object::from_value(pod).unwrap();
        let cx = TableContext { now: Timestamp::parse("2026-01-01T01:00:00Z").unwrap() };
        let cell =
            |at: usize| (COLUMNS[at].cell)(&pod, &cx).as_str().unwrap_or_default().to_owned();
        [cell(1), cell(2), cell(3)]
    }

    #[test]
    fn the_status_tells_what_matters_most() {
        let two = value!({"containers": [{"name": "a"}, {"name": "b"}], "initContainers": [{"name": "i"}]});
        let pod = |status: Value| {
            let mut pod = Object::new("v1", "Pod", "ns", "p");
            pod.set_at(&["spec"], two.clone());
            pod.set_at(&["status"], status);
            pod.into_value()
        };
        assert_eq!(shows(pod(value!({"phase": "Pending"}))), ["0/2", "Pending", "0"]);
        let initializing = value!({"phase": "Pending", "initContainerStatuses": [{"name": "i", "state": {"running": {}}}]});
        assert_eq!(shows(pod(initializing)), ["0/2", "Init:0/1", "0"]);
        let crashing = value!({"phase": "Running", "containerStatuses": [
            {"name": "a", "ready": true, "state": {"running": {}}},
            {"name": "b", "restartCount": 3, "state": {"waiting": {"reason": "CrashLoopBackOff"}},
             "lastState": {"terminated": {"exitCode": 1, "finishedAt": "2026-01-01T00:50:00Z"}}},
        ]});
        assert_eq!(shows(pod(crashing)), ["1/2", "CrashLoopBackOff", "3 (10m ago)"]);
        let failed = value!({"phase": "Failed", "containerStatuses": [
            {"name": "a", "state": {"terminated": {"exitCode": 0, "reason": "Completed"}}},
            {"name": "b", "state": {"terminated": {"exitCode": 2, "reason": "Error"}}},
        ]});
        assert_eq!(shows(pod(failed)), ["0/2", "Error", "0"]);
    }
}
