//! Approves the certificate requests by which agents join and renew, if their user may.

use client::Key;
use futures::FutureExt;
use machinery::{Object, Value, value};

use crate::{
    Error,
    certificates::{KUBELET_CLIENT, Request, has},
    plan::*,
    resources::*,
    runner::TaskContext,
};

pub const CONTROLLER: Controller = Controller {
    name: "certificatesigningrequest-approving-controller",
    account: "certificate-controller",
    primary: &CERTIFICATE_SIGNING_REQUESTS,
    watches: &[],
    rbac: &[
        allow_sub(&CERTIFICATE_SIGNING_REQUESTS, "approval", &["update"]),
        allow(&SUBJECT_ACCESS_REVIEWS, &["create"]),
    ],
    workers: 2,
    work: Work::Act(act),
};

fn act(context: TaskContext, world: World, key: Key) -> Acting {
    async move {
        let Some(request) = world.object(&CERTIFICATE_SIGNING_REQUESTS, &key) else { return Ok(None) };
        for (subresource, message) in recognized(&request) {
            if is_allowed(&context, &request, subresource).await? {
                approve(&context, request, message).await?;
                break;
            }
        }
        Ok(None)
    }
    .boxed()
}

/// The permissions any of which approves the request: renewing one's own certificate, or asking
/// for a node's first.
fn recognized(object: &Object) -> Vec<(&'static str, &'static str)> {
    let settled = has(object, "Approved") || has(object, "Denied");
    if settled || !object.str_at(&["status", "certificate"]).is_empty() {
        return Vec::new();
    }
    let Ok(request) = Request::read(object) else { return Vec::new() };
    if request.signer != KUBELET_CLIENT || request.validate_kubelet_client().is_err() {
        return Vec::new();
    }
    let mut found = Vec::new();
    if object.str_at(&["spec", "username"]) == request.common_name() {
        found.push(("selfnodeclient", "Auto approving self kubelet client certificate after SubjectAccessReview."));
    }
    found.push(("nodeclient", "Auto approving kubelet client certificate after SubjectAccessReview."));
    found
}

async fn is_allowed(context: &TaskContext, request: &Object, subresource: &str) -> Result<bool, Error> {
    let mut review = Object::new("authorization.k8s.io/v1", "SubjectAccessReview", "", "");
    let mut spec = value!({
        "user": request.str_at(&["spec", "username"]),
        "uid": request.str_at(&["spec", "uid"]),
        "resourceAttributes": {
            "group": "certificates.k8s.io",
            "resource": "certificatesigningrequests",
            "verb": "create",
            "subresource": subresource,
            "version": "*",
        },
    });
    if let Some(map) = spec.as_map_mut() {
        for field in ["groups", "extra"] {
            if let Some(value) = request.at(&["spec", field]) {
                map.insert(field, value.clone());
            }
        }
    }
    review.root_mut().insert("spec", spec);
    let answer = context.client.create(&SUBJECT_ACCESS_REVIEWS, "", &review).await?;
    Ok(answer.bool_at(&["status", "allowed"]))
}

async fn approve(context: &TaskContext, mut request: Object, message: &str) -> Result<(), Error> {
    let now = context.env.now().rfc3339();
    let mut conditions: Vec<Value> = request.list_at(&["status", "conditions"]).to_vec();
    conditions.push(value!({
        "type": "Approved", "status": "True", "reason": "AutoApproved", "message": message,
        "lastUpdateTime": now, "lastTransitionTime": now,
    }));
    request.set_at(&["status", "conditions"], conditions);
    context.client.update(&CERTIFICATE_SIGNING_REQUESTS, "approval", &request).await?;
    Ok(())
}
