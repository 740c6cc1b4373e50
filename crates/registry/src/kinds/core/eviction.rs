//! `POST pods/NAME/eviction`: a delete that respects disruption budgets.

use std::sync::Arc;

use api::{Cause, Status};
use machinery::{Object, value};

use super::pods;
use crate::{
    Admission, DeleteOptions, ListOptions, RequestContext, Resource, UpdateOptions,
    selector::label_selector,
};

const BUDGETS: api::GroupVersionResource =
    api::GroupVersionResource::fixed("policy", "v1", "poddisruptionbudgets");
/// Evictions that the budget's controller has not confirmed yet.
const MOST_DISRUPTED: usize = 2000;
const REFUSED: &str = "Cannot evict pod as it would violate the pod's disruption budget.";

/// Evicts a pod. `options` are the eviction's `deleteOptions`.
pub async fn evict(
    at: &Arc<Resource>,
    cx: &RequestContext,
    namespace: &str,
    name: &str,
    options: &DeleteOptions,
    admission: &dyn Admission,
) -> Result<(), Status> {
    let pod = at.get(namespace, name, &Default::default()).await?.object()?;
    let mut options = options.clone();
    let budget = if ignores_budgets(&pod) { None } else { budget_of(at, &pod).await? };
    if let Some((budgets, budget)) = budget {
        if may_go_unhealthy(&pod, &budget) {
            options
                .precondition_resource_version
                .get_or_insert_with(|| pod.resource_version().into());
        } else {
            spend(&budgets, cx, &pod, &budget).await?;
        }
    }
    // The mark is written at the version asked for and moves the pod on, so that it is the mark
    // that keeps the promise.
    let version = options.precondition_resource_version.take();
    mark_disrupted(at, cx, &pod, version.as_deref()).await?;
    options.precondition_uid.get_or_insert_with(|| pod.uid().into());
    at.delete(cx, namespace, name, &options, admission).await.map(|_| ())
}

/// A pod that is done, waits for a node or is being deleted disturbs nobody when it goes.
fn ignores_budgets(pod: &Object) -> bool {
    matches!(pod.str_at(&["status", "phase"]), "Succeeded" | "Failed" | "Pending")
        || pod.is_deleting()
}

async fn budget_of(at: &Resource, pod: &Object) -> Result<Option<(Arc<Resource>, Object)>, Status> {
    let Some(budgets) = at.registry().and_then(|registry| registry.resource(&BUDGETS)) else {
        return Ok(None);
    };
    let list = budgets.list(Some(pod.namespace()), &ListOptions::default()).await?;
    let mut found = Vec::new();
    for budget in list.objects() {
        let budget = budget?;
        if label_selector(budget.at(&["spec", "selector"])).matches(|key| pod.label(key)) {
            found.push(budget);
        }
    }
    if found.len() > 1 {
        let why = "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.";
        return Err(Status::new(500, api::Reason::Unknown, why));
    }
    Ok(found.pop().map(|budget| (budgets, budget)))
}

/// A pod that is not ready counts nothing towards the budget.
fn may_go_unhealthy(pod: &Object, budget: &Object) -> bool {
    if pods::is_ready(pod) {
        return false;
    }
    let number = |field| budget.i64_at(&["status", field]).unwrap_or(0);
    budget.str_at(&["spec", "unhealthyPodEvictionPolicy"]) == "AlwaysAllow"
        || (number("currentHealthy") >= number("desiredHealthy") && number("desiredHealthy") > 0)
}

/// Takes one disruption from the budget, by compare-and-put.
async fn spend(
    budgets: &Arc<Resource>,
    cx: &RequestContext,
    pod: &Object,
    budget: &Object,
) -> Result<(), Status> {
    let (name, time) = (pod.name().to_owned(), cx.time.rfc3339());
    let change = |current: Option<&Object>| {
        let mut budget = current.cloned().ok_or_else(|| budgets.info().not_found(""))?;
        check(&budget)?;
        let left = budget.i64_at(&["status", "disruptionsAllowed"]).unwrap_or(0) - 1;
        budget.set_at(&["status", "disruptionsAllowed"], left);
        budget.set_at(&["status", "disruptedPods", &name], time.as_str());
        if left == 0 {
            let generation = budget.generation();
            pods::set_condition(
                &mut budget,
                value!({
                    "type": "DisruptionAllowed", "status": "False", "reason": "InsufficientPods", "message": "",
                    "lastTransitionTime": (time.as_str()), "observedGeneration": generation,
                }),
            );
        }
        Ok(budget)
    };
    let mut internal = RequestContext::internal(cx.time);
    internal.dry_run = cx.dry_run;
    internal.field_manager.clear();
    let options = UpdateOptions::default();
    let (namespace, budget_name) = (budget.namespace(), budget.name());
    budgets
        .update(&internal, namespace, budget_name, "status", &change, &options, &crate::AdmitAll)
        .await
        .map(|_| ())
}

fn check(budget: &Object) -> Result<(), Status> {
    let name = budget.name();
    let number = |field| budget.i64_at(&["status", field]).unwrap_or(0);
    let with_cause = |mut status: Status, message: String| {
        let mut details = status.details.take().unwrap_or_default();
        details.causes.push(Cause {
            reason: "DisruptionBudget".into(),
            message,
            field: String::new(),
        });
        status.details = Some(details);
        status
    };
    if number("observedGeneration") < budget.generation() {
        let cause = format!("The disruption budget {name} is still being processed by the server.");
        return Err(with_cause(Status::too_many_requests(REFUSED, 10), cause));
    }
    let prefix = format!("The disruption budget {name} does not allow evicting pods currently");
    let allowed = number("disruptionsAllowed");
    if allowed < 0 {
        let status = Status::forbidden(
            "policy",
            "poddisruptionbudget",
            name,
            "pdb disruptions allowed is negative",
        );
        return Err(with_cause(status, format!("{prefix}: pdb disruptions allowed is negative")));
    }
    if budget.map_at(&["status", "disruptedPods"]).is_some_and(|pods| pods.len() > MOST_DISRUPTED) {
        let why = "DisruptedPods map too big - too many evictions not confirmed by PDB controller";
        let status = Status::forbidden("policy", "poddisruptionbudget", name, why);
        return Err(with_cause(
            status,
            format!("{prefix}: too many pending evictions not confirmed by PDB controller"),
        ));
    }
    if allowed == 0 {
        let (wanted, healthy) = (number("desiredHealthy"), number("currentHealthy"));
        let cause = if healthy <= wanted {
            format!(
                "The disruption budget {name} needs {wanted} healthy pods and has {healthy} currently"
            )
        } else {
            prefix
        };
        return Err(with_cause(Status::too_many_requests(REFUSED, 0), cause));
    }
    Ok(())
}

/// Tells on the pod why it goes.
async fn mark_disrupted(
    at: &Arc<Resource>,
    cx: &RequestContext,
    pod: &Object,
    version: Option<&str>,
) -> Result<(), Status> {
    let time = cx.time.rfc3339();
    let change = |current: Option<&Object>| {
        let mut pod = current.cloned().ok_or_else(|| at.info().not_found(pod.name()))?;
        if version.is_some_and(|version| version != pod.resource_version()) {
            return Err(Status::modified(at.info().group(), at.info().resource(), pod.name()));
        }
        pods::set_condition(
            &mut pod,
            value!({
                "type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI",
                "message": "Eviction API: evicting", "lastTransitionTime": (time.as_str()),
            }),
        );
        Ok(pod)
    };
    let mut internal = RequestContext::internal(cx.time);
    internal.dry_run = cx.dry_run;
    internal.field_manager.clear();
    let options = UpdateOptions::default();
    let (namespace, name) = (pod.namespace(), pod.name());
    at.update(&internal, namespace, name, "status", &change, &options, &crate::AdmitAll)
        .await
        .map(|_| ())
}
