//! Which handler serves which verb of which resource and subresource.

use std::sync::Arc;

use api::Status;
use http::{Method, Response};
use registry::Resource;

use super::{
    gvr_of, no_such_method, no_such_path, no_such_resource, patch, pods, proxy, resource, scale,
    tokens, virtual_kinds, watch,
};
use crate::{body::Body, pipeline::Call};

/// Group, resource, what its users are told.
const DEPRECATED: &[(&str, &str, &str)] = &[(
    "",
    "endpoints",
    "v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice",
)];

/// Finds the handler of a request for a resource.
pub async fn route(call: &mut Call) -> Result<Response<Body>, Status> {
    let Some(resource) = call.server.data.registry().resource(&gvr_of(&call.info)) else {
        return match virtual_kinds::find(&call.info) {
            Some(kind) => kind.serve(call).await,
            None if group_is_served(call) => Ok(no_such_resource()),
            None => Ok(no_such_path()),
        };
    };
    if !place_exists(call, &resource) {
        return Ok(no_such_resource());
    }
    if let Some((.., text)) =
        DEPRECATED.iter().find(|(g, r, _)| *g == call.info.group && *r == call.info.resource)
    {
        call.context.warn(*text);
    }
    match call.info.subresource.as_str() {
        "" => objects(call, &resource).await,
        name if !resource.info().has_subresource(name) => Ok(no_such_resource()),
        _ => below(call, &resource).await,
    }
}

fn group_is_served(call: &Call) -> bool {
    let resources = call.server.data.registry().resources();
    resources.keys().any(|gvr| gvr.group == call.info.group && gvr.version == call.info.version)
}

/// Whether the URL names a namespace where the resource needs one and none where it has none.
fn place_exists(call: &Call, resource: &Resource) -> bool {
    let info = &call.info;
    let namespaced = resource.info().namespaced;
    match (namespaced, info.namespace.is_empty()) {
        (true, true) => {
            matches!(info.verb.as_str(), "list" | "watch") && info.subresource.is_empty()
        }
        (false, false) => info.resource == "namespaces",
        _ => true,
    }
}

async fn objects(call: &mut Call, resource: &Arc<Resource>) -> Result<Response<Body>, Status> {
    if !resource.info().verbs.contains(&call.info.verb) {
        return Ok(no_such_method());
    }
    match call.info.verb.as_str() {
        "get" => resource::get(call, resource).await,
        "list" => resource::list(call, resource).await,
        "watch" => watch::watch(call, resource).await,
        "update" | "patch" if call.info.name.is_empty() => Ok(no_such_method()),
        // A name in the URL of a create belongs to subresources alone.
        "create" if call.method == Method::POST && has_name(call) => Ok(no_such_method()),
        "create" => resource::create(call, resource).await,
        "update" => resource::update(call, resource).await,
        "patch" => patch::patch(call, resource).await,
        "delete" => resource::delete(call, resource).await,
        "deletecollection" => resource::delete_collection(call, resource).await,
        _ => Ok(no_such_method()),
    }
}

fn has_name(call: &Call) -> bool {
    !call.info.name.is_empty()
        && !(call.info.resource == "namespaces" && call.info.namespace.is_empty())
}

async fn below(call: &mut Call, resource: &Arc<Resource>) -> Result<Response<Body>, Status> {
    let (group, plural) = (call.info.group.clone(), call.info.resource.clone());
    let subresource = call.info.subresource.clone();
    match (group.as_str(), plural.as_str(), subresource.as_str(), call.info.verb.as_str()) {
        (_, _, "scale", _) => scale::serve(call, resource).await,
        ("", "pods", "binding", "create") => pods::bind(call, resource).await,
        ("", "pods", "eviction", "create") => pods::evict(call, resource).await,
        ("", "pods", "log", "get") => proxy::log(call, resource).await,
        ("", "pods", "exec" | "attach" | "portforward", "get" | "create") => {
            proxy::stream(call, resource).await
        }
        ("", "pods" | "services" | "nodes", "proxy", _) => proxy::proxy(call, resource).await,
        ("", "serviceaccounts", "token", "create") => tokens::request(call, resource).await,
        (_, _, _, "get") => resource::get(call, resource).await,
        (_, _, _, "update") => resource::update(call, resource).await,
        (_, _, _, "patch") => patch::patch(call, resource).await,
        _ => Ok(no_such_method()),
    }
}
