//! Pods, with binding, status, ephemeral containers and resize.

use std::{collections::BTreeSet, sync::Arc};

use api::{Quantity, Status};
use machinery::{Map, Object, Value, value};
use smol_str::SmolStr;

use super::pod_columns::COLUMNS;
use crate::{
    Admission, RequestContext, Resource, UpdateOptions,
    compare::semantically_equal,
    edit::{copy_field, inside, list, maps, spec, text},
    errors::{Errors, Path},
    facts::{Facts, PLAIN, field_text},
    generic::update::keep,
    kinds::{
        pod_spec,
        pod_validation::{self, quantity},
    },
    request::DeleteOptions,
};

pub(crate) const FACTS: Facts = Facts {
    default: |pod| {
        spec(pod, |spec| {
            pod_spec::default(spec);
            pod_spec::default_pod(spec);
        });
        inside(pod.root_mut(), "status", default_status);
    },
    prepare_create: |_, pod| {
        // The scheduler's part; a pod that names its node was bound by its maker.
        pod.remove_at(&["spec", "ephemeralContainers"]);
    },
    prepare_update,
    validate: |pod, errors| {
        let spec = pod.map_at(&["spec"]).cloned().unwrap_or_default();
        pod_validation::validate(&spec, &Path::new("spec"), errors);
        let gated = !list(&spec, "schedulingGates").is_empty();
        if gated && !text(&spec, "nodeName").is_empty() && !pod.is_deleting() {
            let path = Path::new("spec").child("nodeName");
            errors.forbidden(&path, "cannot be set until all schedulingGates have been cleared");
        }
    },
    validate_update,
    initial_status: |pod| Some(value!({"phase": "Pending", "qosClass": (qos_class(pod))})),
    generation: true,
    returns_deleted: true,
    fields: &[
        "spec.nodeName",
        "spec.restartPolicy",
        "spec.schedulerName",
        "spec.serviceAccountName",
        "spec.hostNetwork",
        "status.phase",
        "status.podIP",
        "status.nominatedNodeName",
    ],
    field_value: Some(|pod, field| match field {
        "spec.hostNetwork" => SmolStr::new_static(if pod.bool_at(&["spec", "hostNetwork"]) {
            "true"
        } else {
            "false"
        }),
        field => field_text(pod, field),
    }),
    grace: grace_period_seconds,
    columns: &COLUMNS,
    ..PLAIN
};

fn default_status(status: &mut Map) {
    let first = maps(status, "podIPs").next().map(|ip| text(ip, "ip").to_owned());
    let ip = text(status, "podIP").to_owned();
    match (ip.is_empty(), first) {
        (true, Some(first)) => {
            status.insert("podIP", first);
        }
        (false, first) if first.as_ref() != Some(&ip) => {
            status.insert("podIPs", value!([{"ip": ip}]));
        }
        _ => {}
    }
}

/// The period asked for, or the spec's; none for a pod that runs nowhere.
fn grace_period_seconds(pod: &Object, options: &DeleteOptions) -> Option<i64> {
    let asked = options.grace_period_seconds;
    let period =
        asked.or_else(|| pod.i64_at(&["spec", "terminationGracePeriodSeconds"])).unwrap_or(0);
    let terminated = matches!(pod.str_at(&["status", "phase"]), "Failed" | "Succeeded");
    let unscheduled = pod.str_at(&["spec", "nodeName"]).is_empty();
    Some(match period {
        _ if terminated || unscheduled => 0,
        negative if negative < 0 => 1,
        period => period,
    })
}

fn prepare_update(subresource: &str, new: &mut Object, old: &Object) {
    match subresource {
        "status" => {
            // Owners and deletion are not the kubelet's to change.
            copy_field(new, old, &["metadata", "ownerReferences"]);
            copy_field(new, old, &["metadata", "deletionTimestamp"]);
        }
        "ephemeralcontainers" => {
            let wanted = new.at(&["spec", "ephemeralContainers"]).cloned();
            restore(new, old);
            if let Some(wanted) = wanted {
                new.set_at(&["spec", "ephemeralContainers"], wanted);
            }
        }
        "resize" => {
            let wanted = new.clone();
            restore(new, old);
            take_resources(new, &wanted);
        }
        _ => {}
    }
    // The class was decided when the pod was made.
    let class = old.at(&["status", "qosClass"]).cloned().unwrap_or_else(|| qos_class(new).into());
    new.set_at(&["status", "qosClass"], class);
}

fn restore(new: &mut Object, old: &Object) {
    let version = new.resource_version().to_owned();
    let managed = new.at(&["metadata", "managedFields"]).cloned();
    for field in ["metadata", "spec", "status"] {
        keep(new, old, field);
    }
    new.set_resource_version(&version);
    if let Some(managed) = managed {
        new.set_at(&["metadata", "managedFields"], managed);
    }
}

/// Resources and resize policies of containers, by name; nothing else.
fn take_resources(pod: &mut Object, wanted: &Object) {
    for field in ["containers", "initContainers"] {
        let Some(containers) =
            pod.root_mut().map_entry("spec").get_mut(field).and_then(Value::as_list_mut)
        else {
            continue;
        };
        for container in containers.iter_mut().filter_map(Value::as_map_mut) {
            let name = text(container, "name");
            let twin = wanted
                .list_at(&["spec", field])
                .iter()
                .filter_map(Value::as_map)
                .find(|c| text(c, "name") == name);
            for part in ["resources", "resizePolicy"] {
                if let Some(value) = twin.and_then(|twin| twin.get(part)) {
                    container.insert(part, value.clone());
                }
            }
        }
    }
}

/// Guaranteed, Burstable or BestEffort, by the requests and limits of cpu and memory.
pub fn qos_class(pod: &Object) -> &'static str {
    let (mut requested, mut limited, mut guaranteed) = (false, false, true);
    let containers =
        ["containers", "initContainers"].into_iter().flat_map(|f| pod.list_at(&["spec", f]));
    for container in containers.filter_map(Value::as_map) {
        let resources = container.get("resources").and_then(Value::as_map);
        for name in ["cpu", "memory"] {
            let amount = |list: &str| {
                let value = resources?.get(list)?.get(name)?;
                quantity(value).filter(|q: &Quantity| !q.is_zero())
            };
            let (request, limit) = (amount("requests"), amount("limits"));
            requested |= request.is_some();
            limited |= limit.is_some();
            guaranteed &= limit.is_some()
                && request.as_ref().is_none_or(|request| Some(request) == limit.as_ref());
        }
    }
    match (requested || limited, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

fn validate_update(subresource: &str, new: &Object, old: &Object, errors: &mut Errors) {
    match subresource {
        "" => spec_update(new, old, errors),
        "ephemeralcontainers" => ephemeral_update(new, old, errors),
        "resize" => {
            let spec = new.map_at(&["spec"]).cloned().unwrap_or_default();
            pod_validation::validate(&spec, &Path::new("spec"), errors);
            if qos_class(new) != qos_class(old) {
                let path = Path::new("spec");
                errors.invalid(
                    &path,
                    qos_class(new),
                    "Pod QOS Class may not change as a result of resizing",
                );
            }
        }
        _ => {}
    }
}

const UPDATABLE: &str = "`spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

fn spec_update(new: &Object, old: &Object, errors: &mut Errors) {
    let path = Path::new("spec");
    let count = |pod: &Object, field: &str| pod.list_at(&["spec", field]).len();
    for field in ["containers", "initContainers"] {
        if count(new, field) != count(old, field) {
            errors.forbidden(&path.child(field), "pod updates may not add or remove containers");
            return;
        }
    }
    deadline_update(new, old, &path, errors);
    tolerations_update(new, old, &path, errors);
    gates_update(new, old, &path, errors);
    let mut munged = new.clone();
    for field in ["activeDeadlineSeconds", "tolerations", "schedulingGates", "ephemeralContainers"]
    {
        copy_field(&mut munged, old, &["spec", field]);
    }
    for field in ["containers", "initContainers"] {
        let Some(containers) =
            munged.root_mut().map_entry("spec").get_mut(field).and_then(Value::as_list_mut)
        else {
            continue;
        };
        for (container, before) in containers.iter_mut().zip(old.list_at(&["spec", field])) {
            if let (Some(container), Some(image)) = (container.as_map_mut(), before.get("image")) {
                container.insert("image", image.clone());
            }
        }
    }
    if !old.list_at(&["spec", "schedulingGates"]).is_empty() {
        // A gated pod may be narrowed to fewer nodes before the scheduler sees it.
        copy_field(&mut munged, old, &["spec", "nodeSelector"]);
        copy_field(&mut munged, old, &["spec", "affinity"]);
    }
    if !semantically_equal(munged.at(&["spec"]), old.at(&["spec"])) {
        let difference = difference(munged.at(&["spec"]), old.at(&["spec"]));
        let why = format!("pod updates may not change fields other than {UPDATABLE}\n{difference}");
        errors.forbidden(&path, &why);
    }
}

/// The top-level fields of two specs that differ, one line each side.
fn difference(new: Option<&Value>, old: Option<&Value>) -> String {
    let (empty, mut text) = (Map::new(), String::new());
    let (new, old) = (
        new.and_then(Value::as_map).unwrap_or(&empty),
        old.and_then(Value::as_map).unwrap_or(&empty),
    );
    let fields: BTreeSet<&SmolStr> = new.keys().chain(old.keys()).collect();
    for field in fields {
        let (before, after) = (old.get(field), new.get(field));
        if !semantically_equal(before, after) {
            let show =
                |value: Option<&Value>| value.map_or_else(|| "null".into(), |v| format!("{v:?}"));
            text.push_str(&format!("- {field}: {}\n+ {field}: {}\n", show(before), show(after)));
        }
    }
    text
}

fn deadline_update(new: &Object, old: &Object, path: &Path, errors: &mut Errors) {
    let path = path.child("activeDeadlineSeconds");
    let seconds = |pod: &Object| pod.i64_at(&["spec", "activeDeadlineSeconds"]);
    match (seconds(new), seconds(old)) {
        (Some(new), Some(old)) if new > old => {
            errors.invalid(&path, new, "must be less than or equal to previous value");
        }
        (None, Some(_)) => {
            errors.invalid(
                &path,
                Value::Null,
                "must not update from a positive integer to nil value",
            );
        }
        _ => {}
    }
}

fn tolerations_update(new: &Object, old: &Object, path: &Path, errors: &mut Errors) {
    let strip = |toleration: &Value| {
        let mut map = toleration.as_map().cloned().unwrap_or_default();
        map.remove("tolerationSeconds");
        Value::Map(map)
    };
    let now = new.list_at(&["spec", "tolerations"]);
    for before in old.list_at(&["spec", "tolerations"]) {
        if !now.iter().any(|t| semantically_equal(Some(&strip(t)), Some(&strip(before)))) {
            let why = "existing toleration can not be modified except its tolerationSeconds";
            errors.forbidden(&path.child("tolerations"), why);
            return;
        }
    }
}

fn gates_update(new: &Object, old: &Object, path: &Path, errors: &mut Errors) {
    let names = |pod: &Object| -> BTreeSet<SmolStr> {
        let gates = pod.list_at(&["spec", "schedulingGates"]).iter();
        gates.filter_map(|gate| gate.get("name")?.as_str().map(SmolStr::from)).collect()
    };
    let added: Vec<SmolStr> = names(new).difference(&names(old)).cloned().collect();
    if let Some(first) = added.first() {
        let at = new
            .list_at(&["spec", "schedulingGates"])
            .iter()
            .position(|g| g.get("name").and_then(Value::as_str) == Some(first));
        let path = path.child("schedulingGates").index(at.unwrap_or(0));
        let why = format!("only deletion is allowed, but found new scheduling gate '{first}'");
        errors.forbidden(&path, &why);
    }
}

fn ephemeral_update(new: &Object, old: &Object, errors: &mut Errors) {
    let spec = new.map_at(&["spec"]).cloned().unwrap_or_default();
    pod_validation::validate(&spec, &Path::new("spec"), errors);
    let path = Path::new("spec").child("ephemeralContainers");
    let now = new.list_at(&["spec", "ephemeralContainers"]);
    for before in old.list_at(&["spec", "ephemeralContainers"]) {
        let name = before.get("name").and_then(Value::as_str).unwrap_or_default();
        match now.iter().find(|c| c.get("name").and_then(Value::as_str) == Some(name)) {
            None => errors.forbidden(
                &path,
                &format!("existing ephemeral containers {name:?} may not be removed\n"),
            ),
            Some(after) if !semantically_equal(Some(after), Some(before)) => {
                errors.forbidden(
                    &path,
                    &format!("existing ephemeral containers {name:?} may not be changed\n"),
                );
            }
            Some(_) => {}
        }
    }
}

/// `POST pods/NAME/binding`: puts the pod onto the node of `binding.target`, once.
pub async fn bind(
    pods: &Arc<Resource>,
    cx: &RequestContext,
    namespace: &str,
    name: &str,
    binding: &Object,
    admission: &dyn Admission,
) -> Result<(), Status> {
    let node = binding.str_at(&["target", "name"]).to_owned();
    let kind = binding.str_at(&["target", "kind"]);
    let invalid = |run: &dyn Fn(&mut Errors)| {
        let causes = crate::strategy::check(|errors| run(errors));
        Status::invalid("", "Binding", name, causes)
    };
    if !matches!(kind, "" | "Node") {
        let kind = kind.to_owned();
        return Err(invalid(&|e| {
            e.not_supported(&"target.kind".into(), kind.as_str(), &["Node", "<empty>"])
        }));
    }
    if node.is_empty() {
        return Err(invalid(&|e| e.required(&"target.name".into(), "")));
    }
    let change = |current: Option<&Object>| {
        let mut pod = current.cloned().ok_or_else(|| pods.info().not_found(name))?;
        assign(&mut pod, pods, binding, &node, cx)?;
        Ok(pod)
    };
    let options = UpdateOptions { apply: false };
    pods.update(cx, namespace, name, "binding", &change, &options, admission).await.map(|_| ())
}

fn assign(
    pod: &mut Object,
    pods: &Resource,
    binding: &Object,
    node: &str,
    cx: &RequestContext,
) -> Result<(), Status> {
    let refuse = |why: String| Err(pods.info().conflict(pod.name(), &why));
    if !binding.uid().is_empty() && binding.uid() != pod.uid() {
        return refuse(format!(
            "Precondition failed: UID in precondition: {}, UID in object meta: {}",
            binding.uid(),
            pod.uid()
        ));
    }
    if pod.is_deleting() {
        return refuse(format!(
            "pod {} is being deleted, cannot be assigned to a host",
            pod.name()
        ));
    }
    let current = pod.str_at(&["spec", "nodeName"]);
    if !current.is_empty() {
        return refuse(format!("pod {} is already assigned to node {current:?}", pod.name()));
    }
    if !pod.list_at(&["spec", "schedulingGates"]).is_empty() {
        return refuse(format!("pod {} has non-empty .spec.schedulingGates", pod.name()));
    }
    pod.set_at(&["spec", "nodeName"], node);
    for (key, value) in binding.map_at(&["metadata", "annotations"]).into_iter().flat_map(Map::iter)
    {
        pod.set_at(&["metadata", "annotations", key], value.clone());
    }
    for key in ["topology.kubernetes.io/zone", "topology.kubernetes.io/region"] {
        if let Some(value) = binding.label(key) {
            pod.set_at(&["metadata", "labels", key], value);
        }
    }
    let now = cx.time.rfc3339();
    set_condition(
        pod,
        value!({"type": "PodScheduled", "status": "True", "lastTransitionTime": now}),
    );
    Ok(())
}

/// Puts a condition in place of the one of its type, keeping the transition time while the
/// status stays the same.
pub(crate) fn set_condition(object: &mut Object, mut condition: Value) {
    let kind = condition.get("type").cloned();
    let conditions = object.root_mut().map_entry("status").list_entry("conditions");
    match conditions.iter_mut().find(|c| c.get("type") == kind.as_ref()) {
        Some(slot) => {
            if slot.get("status") == condition.get("status") {
                if let (Some(time), Some(map)) =
                    (slot.get("lastTransitionTime").cloned(), condition.as_map_mut())
                {
                    map.insert("lastTransitionTime", time);
                }
            }
            *slot = condition;
        }
        None => conditions.push(condition),
    }
}

/// Whether the `Ready` condition is true.
pub(crate) fn is_ready(pod: &Object) -> bool {
    pod.list_at(&["status", "conditions"])
        .iter()
        .filter_map(Value::as_map)
        .any(|condition| text(condition, "type") == "Ready" && text(condition, "status") == "True")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resources_decide_the_class() {
        let class = |resources: Value| {
            let pod = Object::from_value(
                value!({"spec": {"containers": [{"name": "a", "resources": (serde_json::to_value(&resources).unwrap())}]}}),
            );
            qos_class(&pod.unwrap())
        };
        assert_eq!(class(value!({})), "BestEffort");
        assert_eq!(class(value!({"requests": {"cpu": "1"}})), "Burstable");
        let both = value!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1000m", "memory": "1Gi"}});
        assert_eq!(class(both), "Guaranteed");
        assert_eq!(class(value!({"limits": {"cpu": "1"}})), "Burstable");
    }
}
