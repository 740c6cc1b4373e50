//! `/openapi/v2` and `/openapi/v3`, made from the schema facts when asked for.
//!
//! Built-in kinds never change while the server runs, so a document's hash is that of what it is
//! made from: clients that have it are told so without making it again.

mod describe;
mod paths;
mod schemas;

use std::collections::BTreeSet;

use api::{
    GroupVersion,
    schema::{Resource, schema},
};
use http::{HeaderValue, Response, header};
use serde_json::{Map, Value as Json, json};
use sha2::{Digest, Sha256};

use crate::{body::Body, handlers::no_such_path, pipeline::Call, respond, version};
use schemas::{Style, TypeSet};

/// Serves what follows `/openapi/`.
pub fn serve(call: &Call, rest: &[&str]) -> Response<Body> {
    match rest {
        ["v2"] => v2(call),
        ["v3"] => index(call),
        ["v3", "api", version] => v3(call, "", version),
        ["v3", "apis", group, version] => v3(call, group, version),
        _ => no_such_path(),
    }
}

/// The groups and versions served, with the hash of each document.
fn index(call: &Call) -> Response<Body> {
    let mut paths = Map::new();
    for version in group_versions() {
        let path = version.path().trim_start_matches('/').to_owned();
        let url = format!("/openapi/v3/{path}?hash={}", hash(&path));
        paths.insert(path, json!({"serverRelativeURL": url}));
    }
    call.reply(200, "application/json", json!({"paths": paths}).to_string().into())
}

fn group_versions() -> BTreeSet<GroupVersion> {
    schema().served().map(|resource| resource.gvr.group_version()).collect()
}

/// What a document is made from, as a short text.
fn hash(path: &str) -> String {
    let digest =
        Sha256::digest(format!("{} {} {path}", version::GIT_VERSION, env!("CARGO_PKG_VERSION")));
    digest.iter().map(|byte| format!("{byte:02X}")).collect()
}

fn v3(call: &Call, group: &str, version: &str) -> Response<Body> {
    let group_version = GroupVersion::new(group, version);
    let resources: Vec<&Resource> =
        schema().served().filter(|r| r.gvr.group_version() == group_version).collect();
    if resources.is_empty() {
        return no_such_path();
    }
    let path = group_version.path().trim_start_matches('/').to_owned();
    tagged(call, &path, || {
        let mut types = TypeSet::default();
        let paths = paths::of(&resources, Style::V3, &mut types);
        json!({
            "openapi": "3.0.0",
            "info": {"title": "Kubernetes", "version": version::GIT_VERSION},
            "paths": paths,
            "components": {
                "schemas": types.documents(Style::V3),
                "securitySchemes": {"BearerToken": {"type": "apiKey", "in": "header", "name": "authorization"}},
            },
        })
    })
}

fn v2(call: &Call) -> Response<Body> {
    tagged(call, "v2", || {
        let mut types = TypeSet::default();
        let resources: Vec<&Resource> = schema().served().collect();
        let paths = paths::of(&resources, Style::V2, &mut types);
        json!({
            "swagger": "2.0",
            "info": {"title": "Kubernetes", "version": version::GIT_VERSION},
            "paths": paths,
            "definitions": types.documents(Style::V2),
            "securityDefinitions": {"BearerToken": {"type": "apiKey", "in": "header", "name": "authorization"}},
            "security": [{"BearerToken": []}],
        })
    })
}

/// The document, or 304 for a client that has it. A client that names the hash in the URL may
/// keep the document for good.
fn tagged(call: &Call, path: &str, make: impl FnOnce() -> Json) -> Response<Body> {
    let hash = hash(path);
    let tag = format!("\"{hash}\"");
    let held = call.headers.get(header::IF_NONE_MATCH).and_then(|value| value.to_str().ok());
    let mut response = match held == Some(&tag) {
        true => respond::bytes(304, "application/json", ""),
        false => call.reply(200, "application/json", make().to_string().into()),
    };
    let headers = response.headers_mut();
    if let Ok(tag) = tag.parse() {
        headers.insert(header::ETAG, tag);
    }
    let immutable = call.query.text("hash") == hash;
    let caching = if immutable { "public, immutable" } else { "no-cache, private" };
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static(caching));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(style: Style) -> (Json, Json) {
        let resources: Vec<&Resource> = schema().served().collect();
        let mut types = TypeSet::default();
        let paths = paths::of(&resources, style, &mut types);
        (Json::Object(paths), types.documents(style))
    }

    #[test]
    fn every_reference_leads_somewhere() {
        for (style, prefix) in [(Style::V2, "#/definitions/"), (Style::V3, "#/components/schemas/")]
        {
            let (paths, types) = document(style);
            let text = format!("{paths}{types}");
            for part in text.split("\"$ref\":\"").skip(1) {
                let target = part.split('"').next().unwrap().strip_prefix(prefix).unwrap();
                assert!(types.get(target).is_some(), "{target}");
            }
        }
    }

    #[test]
    fn kinds_carry_their_names_and_lists_their_keys() {
        let (paths, types) = document(Style::V3);
        let deployment = &types["io.k8s.api.apps.v1.Deployment"];
        assert_eq!(deployment["x-kubernetes-group-version-kind"][0]["kind"], "Deployment");
        let containers = &types["io.k8s.api.core.v1.PodSpec"]["properties"]["containers"];
        assert_eq!(containers["x-kubernetes-patch-merge-key"], "name");
        assert_eq!(containers["x-kubernetes-list-map-keys"], json!(["name"]));
        let patch = &paths["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"]["patch"];
        assert_eq!(patch["x-kubernetes-group-version-kind"]["group"], "apps");
        let parameters = patch["parameters"].as_array().unwrap();
        assert!(parameters.iter().any(|parameter| parameter["name"] == "fieldValidation"));
    }
}
