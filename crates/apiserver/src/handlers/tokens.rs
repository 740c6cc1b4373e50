//! Tokens of service accounts: asked for by TokenRequest, judged by TokenReview.

use std::sync::Arc;

use api::{Cause, GroupVersionKind, Status};
use http::Response;
use machinery::{Map, Object, Value, apply};
use registry::{GetOptions, Resource};

use super::{options, reviews::user_value};
use crate::{
    authn::service_account::Bound, authz::node::node_of, body::Body, pipeline::Call, respond, wire,
};

const GROUP: &str = "authentication.k8s.io";

/// `TokenRequest` below a service account.
pub async fn request(call: &mut Call, resource: &Arc<Resource>) -> Result<Response<Body>, Status> {
    let accepted = call.accepted(false)?;
    let write = options::write("CreateOptions", &call.query)?;
    let kind = GroupVersionKind::new(GROUP, "v1", "TokenRequest");
    let mut request = call.read_object(&kind, write.field_validation).await?;
    let (namespace, name) = (call.info.namespace.clone(), call.info.name.clone());
    let account = resource.get(&namespace, &name, &GetOptions::default()).await?.object()?;
    let seconds = request.i64_at(&["spec", "expirationSeconds"]).unwrap_or(3600);
    check(&request, seconds)?;
    let audiences: Vec<String> = texts(request.at(&["spec", "audiences"]));
    request = own(call, &kind, "token", request);
    let bound = bound(call, &request, &account).await?;
    if let Some(why) = refuse_node(call, &request, bound.as_ref()) {
        return Err(Status::forbidden("", "serviceaccounts", &name, &why));
    }
    let issued = call.server.service_accounts.issue(
        &call.server.env,
        &account,
        &audiences,
        seconds,
        bound.as_ref(),
    );
    request.set_name(&name);
    request.set_namespace(&namespace);
    request.metadata_mut().insert("creationTimestamp", call.context.time.rfc3339());
    request.set_at(&["spec", "audiences"], issued.audiences);
    request.set_at(&["spec", "expirationSeconds"], seconds);
    request.set_at(&["status", "token"], issued.token);
    request.set_at(&["status", "expirationTimestamp"], issued.expires.rfc3339());
    let body = wire::encode(&request, accepted.format, accepted.pretty)?;
    Ok(respond::bytes(201, accepted.format.media_type(), body))
}

/// A kubelet gets tokens for pods on its own node and for nothing else: why not this one.
fn refuse_node(call: &Call, request: &Object, bound: Option<&Bound>) -> Option<String> {
    let node = node_of(&call.user)?;
    let Some(bound) = bound.filter(|bound| bound.claim == "pod") else {
        return Some("node requested token not bound to a pod".into());
    };
    if request.str_at(&["spec", "boundObjectRef", "uid"]).is_empty() {
        return Some("node requested token with a pod binding without a uid".into());
    }
    let here = bound.node.as_ref().is_some_and(|(name, _)| name == node);
    (!here).then(|| "node requested token bound to a pod scheduled on a different node".into())
}

/// The object with its `managedFields`, which upstream shows even of what is never stored.
pub fn own(call: &Call, kind: &GroupVersionKind, subresource: &str, object: Object) -> Object {
    let version = kind.api_version();
    match apply::Context::built_in(kind, &version, subresource, call.context.time) {
        Some(context) => apply::track_update(None, &object, &call.context.field_manager, &context),
        None => object,
    }
}

fn check(request: &Object, seconds: i64) -> Result<(), Status> {
    let why = match seconds {
        ..600 => "may not specify a duration less than 10 minutes",
        600..=0x1_0000_0000 => return Ok(()),
        _ => "may not specify a duration larger than 2^32 seconds",
    };
    let cause = Cause {
        reason: "FieldValueInvalid".into(),
        message: format!("Invalid value: {seconds}: {why}"),
        field: "spec.expirationSeconds".into(),
    };
    Err(Status::invalid(GROUP, "TokenRequest", request.name(), vec![cause]))
}

/// What the token shall be bound to, if it is there and the same one still.
async fn bound(call: &Call, request: &Object, account: &Object) -> Result<Option<Bound>, Status> {
    let Some(reference) = request.map_at(&["spec", "boundObjectRef"]) else { return Ok(None) };
    let field = |name| reference.get(name).and_then(Value::as_str).unwrap_or_default();
    let (kind, name, uid) = (field("kind"), field("name"), field("uid"));
    let namespace = account.namespace();
    let data = &call.server.data;
    let (claim, resource, place) = match kind {
        "Pod" => ("pod", "pods", namespace),
        "Secret" => ("secret", "secrets", namespace),
        "Node" => ("node", "nodes", ""),
        other => {
            let version = field("apiVersion");
            let (group, version) = version.split_once('/').unwrap_or(("", version));
            let text =
                format!("cannot bind token to object of type {group}/{version}, Kind={other}");
            return Err(Status::bad_request(text));
        }
    };
    let object = data.get("", "v1", resource, place, name).await?;
    if !uid.is_empty() && uid != object.uid() {
        let why = format!(
            "the UID in the bound object reference ({uid}) does not match the UID in record. The object might have been deleted and then recreated"
        );
        return Err(Status::conflict("", resource, name, &why));
    }
    let mut node = None;
    if kind == "Pod" {
        if object.str_at(&["spec", "serviceAccountName"]) != account.name() {
            let text = format!(
                "cannot bind token for serviceaccount {:?} to pod running with different serviceaccount name.",
                account.name()
            );
            return Err(Status::bad_request(text));
        }
        let name = object.str_at(&["spec", "nodeName"]);
        if !name.is_empty() {
            let uid = data
                .get_cached("", "v1", "nodes", "", name)
                .await
                .map(|node| node.uid().to_owned());
            node = Some((name.to_owned(), uid.unwrap_or_default()));
        }
    }
    Ok(Some(Bound { claim, name: name.into(), uid: object.uid().into(), node }))
}

/// `TokenReview`: whose token is this?
pub async fn review(call: &Call, review: &mut Object) -> Result<(), Status> {
    let token = review.str_at(&["spec", "token"]).to_owned();
    if token.is_empty() {
        return Err(Status::bad_request("token is required for TokenReview in authentication"));
    }
    let audiences = texts(review.at(&["spec", "audiences"]));
    let mut status = Map::new();
    match call.server.authenticator.by_token(&token, &audiences).await {
        Some((user, fitting)) => {
            status.insert("authenticated", true);
            status.insert("user", user_value(&user));
            status.insert("audiences", fitting);
        }
        None => {
            status.insert("user", Map::new());
            status.insert("error", "invalid bearer token");
        }
    }
    review.root_mut().insert("status", status);
    Ok(())
}

fn texts(list: Option<&Value>) -> Vec<String> {
    let items = list.and_then(Value::as_list).unwrap_or_default();
    items.iter().filter_map(Value::as_str).map(str::to_owned).collect()
}
