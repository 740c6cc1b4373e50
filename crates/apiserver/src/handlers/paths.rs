//! Paths that are no resources: discovery, OpenAPI, version, health, metrics, token keys.

use api::Status;
use http::{Response, header};
use serde_json::{Value as Json, json};
use sha2::{Digest, Sha256};

use super::{no_such_path, virtual_kinds};
use crate::{body::Body, discovery::Discovery, negotiate, pipeline::Call, respond, version};

/// Serves a path, or says that there is none.
pub async fn serve(call: &mut Call) -> Result<Response<Body>, Status> {
    let path = call.info.path.trim_end_matches('/').to_owned();
    let parts: Vec<&str> = path.split('/').skip(1).collect();
    match parts.as_slice() {
        [] => Ok(respond::json(200, &root(call))),
        ["version"] => Ok(respond::json(200, &version::document())),
        ["healthz" | "livez" | "readyz", check @ ..] => {
            Ok(crate::health::serve(call, parts[0], &check.join("/")).await)
        }
        ["metrics"] => Ok(crate::health::metrics(call).await),
        ["api"] => discovery(call, true, |all| {
            Some(all.core_versions(&call.server.config.external_address))
        }),
        ["api", version] => discovery(call, false, |all| all.resource_list("", version)),
        ["apis"] => discovery(call, true, |all| Some(all.group_list())),
        ["apis", group] => discovery(call, false, |all| all.group(group)),
        ["apis", group, version] => discovery(call, false, |all| all.resource_list(group, version)),
        ["openapi", rest @ ..] => Ok(crate::openapi::serve(call, rest)),
        [".well-known", "openid-configuration"] => Ok(openid_configuration(call)),
        ["openid", "v1", "jwks"] => Ok(jwks(call)),
        _ => Ok(no_such_path()),
    }
}

/// Everything served right now, virtual kinds among it.
pub fn all(call: &Call) -> Discovery<std::sync::Arc<registry::ResourceInfo>> {
    let stored = call.server.data.registry().resources();
    let stored = stored.values().map(|resource| std::sync::Arc::new(resource.info().clone()));
    Discovery::new(stored.chain(virtual_kinds::infos()).collect())
}

type All = Discovery<std::sync::Arc<registry::ResourceInfo>>;

fn discovery(
    call: &Call,
    root: bool,
    document: impl FnOnce(&All) -> Option<Json>,
) -> Result<Response<Body>, Status> {
    let all = all(call);
    if root && wants_aggregated(call) {
        let document = all.aggregated(call.info.path.trim_end_matches('/') == "/api");
        let media_type = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
        let mut response = tagged(call, &document, media_type);
        response.headers_mut().insert(header::VARY, header::HeaderValue::from_static("Accept"));
        return Ok(response);
    }
    let Some(document) = document(&all) else { return Ok(no_such_path()) };
    let accepted = call.accepted(false)?;
    let tree =
        machinery::Object::from_json(document.to_string().as_bytes()).map_err(Status::internal)?;
    // Clients that ask for protobuf here take JSON as well.
    match crate::wire::encode(&tree, accepted.format, accepted.pretty) {
        Ok(body) => Ok(call.reply(200, accepted.format.media_type(), body)),
        Err(_) => Ok(respond::json(200, &document)),
    }
}

fn wants_aggregated(call: &Call) -> bool {
    let accept = negotiate::accept_header(&call.headers);
    let clauses = negotiate::clauses(&accept);
    let first =
        clauses.iter().find(|clause| matches!(clause.media_type, "application/json" | "*/*"));
    first.is_some_and(|clause| {
        clause.param("g") == Some("apidiscovery.k8s.io")
            && matches!(clause.param("v"), Some("v2"))
            && clause.param("as") == Some("APIGroupDiscoveryList")
    })
}

/// A document with its hash as `ETag`; 304 for clients that have it.
pub fn tagged(call: &Call, document: &Json, media_type: &'static str) -> Response<Body> {
    let text = document.to_string();
    let digest: String = Sha256::digest(&text).iter().map(|byte| format!("{byte:02X}")).collect();
    let tag = format!("\"{digest}\"");
    let held = call.headers.get(header::IF_NONE_MATCH).and_then(|value| value.to_str().ok());
    let mut response = match held == Some(&tag) {
        true => respond::bytes(304, media_type, ""),
        false => call.reply(200, media_type, text.into()),
    };
    if let Ok(tag) = tag.parse() {
        response.headers_mut().insert(header::ETAG, tag);
    }
    response
        .headers_mut()
        .insert(header::CACHE_CONTROL, header::HeaderValue::from_static("public"));
    response
}

fn root(call: &Call) -> Json {
    let mut paths: Vec<String> =
        ["/.well-known/openid-configuration", "/api", "/api/v1", "/apis"].map(String::from).into();
    for (group, versions) in all(call).groups().into_iter().filter(|(group, _)| !group.is_empty()) {
        paths.push(format!("/apis/{group}"));
        paths.extend(versions.iter().map(|version| format!("/apis/{group}/{version}")));
    }
    let rest = [
        "/healthz",
        "/livez",
        "/metrics",
        "/openapi/v2",
        "/openapi/v3",
        "/openid/v1/jwks",
        "/readyz",
        "/version",
    ];
    paths.extend(rest.map(String::from));
    paths.sort();
    json!({"paths": paths})
}

fn openid_configuration(call: &Call) -> Response<Body> {
    let accounts = &call.server.service_accounts;
    let mut algorithms: Vec<&str> = accounts.keys.iter().map(|key| key.algorithm()).collect();
    algorithms.sort_unstable();
    algorithms.dedup();
    let document = json!({
        "issuer": accounts.issuer,
        "jwks_uri": format!("https://{}/openid/v1/jwks", call.server.config.external_address),
        "response_types_supported": ["id_token"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": algorithms,
    });
    cacheable(respond::bytes(200, "application/json", document.to_string()))
}

fn jwks(call: &Call) -> Response<Body> {
    let keys: Vec<Json> =
        call.server.service_accounts.keys.iter().map(|key| key.to_jwk()).collect();
    cacheable(respond::bytes(200, "application/jwk-set+json", json!({"keys": keys}).to_string()))
}

fn cacheable(mut response: Response<Body>) -> Response<Body> {
    let value = header::HeaderValue::from_static("public, max-age=3600");
    response.headers_mut().insert(header::CACHE_CONTROL, value);
    response
}
