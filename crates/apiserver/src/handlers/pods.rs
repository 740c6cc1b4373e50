//! Binding and eviction of pods.

use std::sync::Arc;

use api::{Cause, GroupVersionKind, GroupVersionResource, Reason, Status, status::Details};
use http::Response;
use machinery::{Map, Object, Value, value};
use registry::{GetOptions, ListOptions, Resource, UpdateOptions};

use super::options;
use crate::{body::Body, negotiate::Accepted, pipeline::Call, respond};

/// `pods/binding`: puts a pod on a node.
pub async fn bind(call: &mut Call, resource: &Arc<Resource>) -> Result<Response<Body>, Status> {
    let accepted = call.accepted(false)?;
    let write = options::write("CreateOptions", &call.query)?;
    let binding = call
        .read_object(&GroupVersionKind::new("", "v1", "Binding"), write.field_validation)
        .await?;
    let name = call.info.name.clone();
    bind_pod(call, resource, &name, binding, &accepted).await
}

/// `bindings`: the same, with the pod's name in the body.
pub async fn bind_legacy(call: &mut Call) -> Result<Response<Body>, Status> {
    let accepted = call.accepted(false)?;
    let write = options::write("CreateOptions", &call.query)?;
    let binding = call
        .read_object(&GroupVersionKind::new("", "v1", "Binding"), write.field_validation)
        .await?;
    let pods = GroupVersionResource::fixed("", "v1", "pods");
    let resource = call
        .server
        .data
        .registry()
        .resource(&pods)
        .ok_or_else(|| Status::not_found("", "pods", ""))?;
    let name = binding.name().to_owned();
    bind_pod(call, &resource, &name, binding, &accepted).await
}

async fn bind_pod(
    call: &Call,
    resource: &Arc<Resource>,
    name: &str,
    binding: Object,
    accepted: &Accepted,
) -> Result<Response<Body>, Status> {
    if binding.name() != name {
        return Err(Status::bad_request("name in URL does not match name in Binding object"));
    }
    check_target(&binding)?;
    let time = call.context.time.rfc3339();
    let assign = move |pod: Option<&Object>| assign(pod, &binding, &time);
    let namespace = &call.info.namespace;
    resource
        .update(
            &call.context,
            namespace,
            name,
            "binding",
            &assign,
            &UpdateOptions::default(),
            &call.server.admission,
        )
        .await?;
    Ok(created(accepted))
}

/// `Status: Success` with the code of a creation.
fn created(accepted: &Accepted) -> Response<Body> {
    let mut status = respond::success("", "", "", "");
    status.root_mut().remove("details");
    status.root_mut().insert("code", 201);
    respond::object(201, &status, accepted)
}

/// Upstream hands these on as a plain error, not as one about fields.
fn check_target(binding: &Object) -> Result<(), Status> {
    let mut causes = Vec::new();
    let kind = binding.str_at(&["target", "kind"]);
    if !kind.is_empty() && kind != "Node" {
        causes.push(options::unsupported("target.kind", kind, &["Node", "<empty>"]));
    }
    if binding.str_at(&["target", "name"]).is_empty() {
        causes.push(Cause {
            reason: "FieldValueRequired".into(),
            message: "Required value".into(),
            field: "target.name".into(),
        });
    }
    let texts: Vec<String> =
        causes.iter().map(|cause| format!("{}: {}", cause.field, cause.message)).collect();
    match texts.as_slice() {
        [] => Ok(()),
        [one] => Err(Status::new(500, Reason::Unknown, one.clone())),
        many => Err(Status::new(500, Reason::Unknown, format!("[{}]", many.join(", ")))),
    }
}

/// The pod on its node. Fails when it is on one already, is going, or is another pod.
fn assign(pod: Option<&Object>, binding: &Object, time: &str) -> Result<Object, Status> {
    let pod = pod.ok_or_else(|| Status::not_found("", "pods", binding.name()))?;
    let name = pod.name();
    let conflict = |why: String| Status::conflict("", "pods/binding", name, &why);
    if !binding.uid().is_empty() && binding.uid() != pod.uid() {
        return Err(conflict(format!(
            "Precondition failed: UID in precondition: {}, UID in object meta: {}",
            binding.uid(),
            pod.uid()
        )));
    }
    if pod.is_deleting() {
        return Err(conflict(format!("pod {name} is being deleted, cannot be assigned to a host")));
    }
    let assigned = pod.str_at(&["spec", "nodeName"]);
    if !assigned.is_empty() {
        return Err(conflict(format!("pod {name} is already assigned to node {assigned:?}")));
    }
    if !pod.list_at(&["spec", "schedulingGates"]).is_empty() {
        return Err(conflict(format!("pod {name} has non-empty .spec.schedulingGates")));
    }
    let mut pod = pod.clone();
    pod.set_at(&["spec", "nodeName"], binding.str_at(&["target", "name"]));
    for field in ["annotations", "labels"] {
        for (key, value) in binding.map_at(&["metadata", field]).into_iter().flat_map(Map::iter) {
            pod.metadata_mut().map_entry(field).insert(key.clone(), value.clone());
        }
    }
    set_condition(
        &mut pod,
        value!({"type": "PodScheduled", "status": "True", "lastProbeTime": null, "lastTransitionTime": time}),
    );
    Ok(pod)
}

fn set_condition(pod: &mut Object, condition: Value) {
    let conditions = pod.root_mut().map_entry("status").list_entry("conditions");
    let kind = condition.get("type").cloned();
    match conditions.iter_mut().find(|old| old.get("type") == kind.as_ref()) {
        Some(old) => *old = condition,
        None => conditions.push(condition),
    }
}

/// `pods/eviction`: deletes a pod unless a disruption budget forbids it.
pub async fn evict(call: &mut Call, resource: &Arc<Resource>) -> Result<Response<Body>, Status> {
    let accepted = call.accepted(false)?;
    let write = options::write("CreateOptions", &call.query)?;
    let eviction = call
        .read_object(&GroupVersionKind::new("policy", "v1", "Eviction"), write.field_validation)
        .await?;
    let (namespace, name) = (call.info.namespace.clone(), call.info.name.clone());
    if !eviction.name().is_empty() && eviction.name() != name {
        return Err(Status::bad_request("name in URL does not match name in Eviction object"));
    }
    let body = eviction.at(&["deleteOptions"]).cloned().and_then(Object::from_value);
    let (mut delete, dry_run) = options::delete(&call.query, body.as_ref())?;
    call.context.dry_run |= dry_run;
    let pod = resource.get(&namespace, &name, &GetOptions::default()).await?.object()?;
    if !may_go_freely(&pod) && !pod.is_deleting() {
        take_disruption(call, &pod).await?;
    }
    delete.precondition_uid.get_or_insert_with(|| pod.uid().to_owned());
    resource.delete(&call.context, &namespace, &name, &delete, &call.server.admission).await?;
    Ok(created(&accepted))
}

/// Pods that do not run count for no budget.
fn may_go_freely(pod: &Object) -> bool {
    matches!(pod.str_at(&["status", "phase"]), "Succeeded" | "Failed" | "Pending")
}

const BUDGETS: GroupVersionResource =
    GroupVersionResource::fixed("policy", "v1", "poddisruptionbudgets");

/// Takes one allowed disruption out of the pod's budget, or says why there is none.
async fn take_disruption(call: &Call, pod: &Object) -> Result<(), Status> {
    let Some(budgets) = call.server.data.registry().resource(&BUDGETS) else { return Ok(()) };
    let list = budgets.list(Some(pod.namespace()), &ListOptions::default()).await?;
    let mut covering = Vec::new();
    for budget in list.objects() {
        let budget = budget?;
        if selects(budget.at(&["spec", "selector"]), pod) {
            covering.push(budget);
        }
    }
    let budget = match covering.as_slice() {
        [] => return Ok(()),
        [one] => one,
        _ => {
            let text = "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.";
            return Err(Status::new(500, api::Reason::InternalError, text));
        }
    };
    if !is_ready(pod) && may_evict_unready(budget) {
        return Ok(());
    }
    let (name, time) = (pod.name().to_owned(), call.context.time.rfc3339());
    let take = move |budget: Option<&Object>| disrupt(budget, &name, &time);
    let (namespace, options) = (budget.namespace(), UpdateOptions::default());
    let mut internal = registry::RequestContext::internal(call.context.time);
    internal.dry_run = call.context.dry_run;
    budgets
        .update(&internal, namespace, budget.name(), "status", &take, &options, &registry::AdmitAll)
        .await?;
    Ok(())
}

fn is_ready(pod: &Object) -> bool {
    pod.list_at(&["status", "conditions"]).iter().any(|condition| {
        let field = |name| condition.get(name).and_then(Value::as_str);
        field("type") == Some("Ready") && field("status") == Some("True")
    })
}

/// Unready pods go when the policy says so, or when the budget is met without them.
fn may_evict_unready(budget: &Object) -> bool {
    let number = |field| budget.i64_at(&["status", field]).unwrap_or(0);
    budget.str_at(&["spec", "unhealthyPodEvictionPolicy"]) == "AlwaysAllow"
        || (number("currentHealthy") >= number("desiredHealthy") && number("desiredHealthy") > 0)
}

fn disrupt(budget: Option<&Object>, pod: &str, time: &str) -> Result<Object, Status> {
    let budget = budget.ok_or_else(|| Status::not_found("policy", "poddisruptionbudgets", ""))?;
    let name = budget.name();
    let number = |field| budget.i64_at(&["status", field]).unwrap_or(0);
    let refuse = |detail: String, retry: i32| {
        let cause =
            Cause { reason: "DisruptionBudget".into(), message: detail, field: String::new() };
        let details =
            Details { causes: vec![cause], retry_after_seconds: retry, ..Details::default() };
        let text = "Cannot evict pod as it would violate the pod's disruption budget.";
        Status::new(429, api::Reason::TooManyRequests, text).with_details(details)
    };
    if number("observedGeneration") < budget.generation() {
        return Err(refuse(
            format!("The disruption budget {name} is still being processed by the server."),
            10,
        ));
    }
    if number("disruptionsAllowed") <= 0 {
        return Err(refuse(
            format!(
                "The disruption budget {name} needs {} healthy pods and has {} currently",
                number("desiredHealthy"),
                number("currentHealthy")
            ),
            0,
        ));
    }
    let mut next = budget.clone();
    next.set_at(&["status", "disruptionsAllowed"], number("disruptionsAllowed") - 1);
    next.set_at(&["status", "disruptedPods", pod], time);
    Ok(next)
}

/// Whether a label selector selects a pod; an absent one selects nothing.
fn selects(selector: Option<&Value>, pod: &Object) -> bool {
    let Some(selector) = selector.and_then(Value::as_map) else { return false };
    let labels = selector.get("matchLabels").and_then(Value::as_map);
    let equal =
        labels.into_iter().flat_map(Map::iter).all(|(key, value)| pod.label(key) == value.as_str());
    let expressions = selector.get("matchExpressions").and_then(Value::as_list).unwrap_or_default();
    equal
        && expressions.iter().all(|expression| {
            let text = |field| expression.get(field).and_then(Value::as_str).unwrap_or_default();
            let values = expression.get("values").and_then(Value::as_list).unwrap_or_default();
            let label = pod.label(text("key"));
            let listed =
                label.is_some_and(|label| values.iter().any(|value| value.as_str() == Some(label)));
            match text("operator") {
                "In" => listed,
                "NotIn" => !listed,
                "Exists" => label.is_some(),
                "DoesNotExist" => label.is_none(),
                _ => false,
            }
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(json: Value) -> Object {
        Object::from_value(json).unwrap()
    }

    #[test]
    fn a_pod_is_bound_once() {
        let pod = object(value!({"metadata": {"name": "p", "uid": "1"}, "spec": {}}));
        let binding =
            object(value!({"metadata": {"name": "p"}, "target": {"kind": "Node", "name": "n"}}));
        let bound = assign(Some(&pod), &binding, "2026-01-01T00:00:00Z").unwrap();
        assert_eq!(bound.str_at(&["spec", "nodeName"]), "n");
        assert_eq!(bound.list_at(&["status", "conditions"]).len(), 1);
        assert_eq!(
            assign(Some(&bound), &binding, "").unwrap_err().message,
            "Operation cannot be fulfilled on pods/binding \"p\": pod p is already assigned to node \"n\""
        );
        assert!(check_target(&object(value!({"target": {"kind": "Pod"}}))).is_err());
    }

    #[test]
    fn a_budget_is_used_up() {
        let budget =
            object(value!({"metadata": {"name": "b"}, "status": {"disruptionsAllowed": 1}}));
        let once = disrupt(Some(&budget), "p", "t").unwrap();
        assert_eq!(once.i64_at(&["status", "disruptionsAllowed"]), Some(0));
        assert_eq!(once.str_at(&["status", "disruptedPods", "p"]), "t");
        assert_eq!(disrupt(Some(&once), "q", "t").unwrap_err().code, 429);
    }

    #[test]
    fn selectors_select_by_labels() {
        let pod = object(value!({"metadata": {"labels": {"app": "web"}}}));
        let check = |selector: Value| selects(Some(&selector), &pod);
        assert!(check(value!({"matchLabels": {"app": "web"}})) && check(value!({})));
        assert!(!check(
            value!({"matchExpressions": [{"key": "app", "operator": "NotIn", "values": ["web"]}]})
        ));
        assert!(!selects(None, &pod));
    }
}
