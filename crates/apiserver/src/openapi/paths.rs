//! URLs and verbs of resources.

use api::{
    GroupVersionKind,
    schema::{Resource, schema},
};
use serde_json::{Map, Value as Json, json};

use super::schemas::{Style, TypeSet};

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1";
const WRITE: [(&str, &str); 3] =
    [("dryRun", "string"), ("fieldManager", "string"), ("fieldValidation", "string")];
const LIST: [(&str, &str); 10] = [
    ("allowWatchBookmarks", "boolean"),
    ("continue", "string"),
    ("fieldSelector", "string"),
    ("labelSelector", "string"),
    ("limit", "integer"),
    ("resourceVersion", "string"),
    ("resourceVersionMatch", "string"),
    ("sendInitialEvents", "boolean"),
    ("timeoutSeconds", "integer"),
    ("watch", "boolean"),
];
const DELETE: [(&str, &str); 4] = [
    ("dryRun", "string"),
    ("gracePeriodSeconds", "integer"),
    ("orphanDependents", "boolean"),
    ("propagationPolicy", "string"),
];
const PATCH_TYPES: [&str; 4] = [
    "application/apply-patch+yaml",
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
];

/// The paths of these resources; what they refer to goes into `types`.
pub fn of(resources: &[&Resource], style: Style, types: &mut TypeSet) -> Map<String, Json> {
    let mut writer = Writer { style, types, paths: Map::new() };
    for resource in resources {
        writer.resource(resource);
    }
    writer.paths
}

struct Writer<'a> {
    style: Style,
    types: &'a mut TypeSet,
    paths: Map<String, Json>,
}

impl Writer<'_> {
    fn resource(&mut self, resource: &Resource) {
        let root = resource.gvr.group_version().path();
        let plural = resource.gvr.resource.as_str();
        let base = match resource.namespaced {
            true => format!("{root}/namespaces/{{namespace}}/{plural}"),
            false => format!("{root}/{plural}"),
        };
        let named = format!("{base}/{{name}}");
        if resource.namespaced && resource.has_verb("list") {
            self.operation(&format!("{root}/{plural}"), "list", &resource.gvk, resource);
        }
        for &verb in resource.verbs.iter().filter(|&&verb| verb != "watch") {
            let path =
                if matches!(verb, "list" | "create" | "deletecollection") { &base } else { &named };
            self.operation(path, verb, &resource.gvk, resource);
        }
        for sub in &resource.subresources {
            let path = format!("{named}/{}", sub.name);
            for &verb in &sub.verbs {
                self.operation(&path, verb, &sub.gvk, resource);
            }
        }
        for path in [&base, &named] {
            if let Some(item) = self.paths.get_mut(path) {
                item["parameters"] = path_parameters(path, self.style);
            }
        }
    }

    fn operation(&mut self, path: &str, verb: &str, gvk: &GroupVersionKind, resource: &Resource) {
        let (method, action, parameters): (&str, &str, &[(&str, &str)]) = match verb {
            "get" => ("get", "get", &[]),
            "list" => ("get", "list", &LIST),
            "create" => ("post", "post", &WRITE),
            "update" => ("put", "put", &WRITE),
            "patch" => ("patch", "patch", &WRITE),
            "delete" => ("delete", "delete", &DELETE),
            "deletecollection" => ("delete", "deletecollection", &LIST),
            _ => return,
        };
        let answer = match verb {
            "list" => self.list_type(resource),
            "delete" | "deletecollection" => {
                self.types.named(&format!("{META}.Status"), self.style)
            }
            _ => self.kind(gvk),
        };
        let mut parameters: Vec<Json> =
            parameters.iter().map(|(name, ty)| query_parameter(name, ty, self.style)).collect();
        if verb == "patch" {
            parameters.push(query_parameter("force", "boolean", self.style));
        }
        let code = if verb == "create" { "201" } else { "200" };
        let mut operation = json!({
            "operationId": operation_id(path, verb, gvk),
            "x-kubernetes-action": action,
            "x-kubernetes-group-version-kind": {
                "group": gvk.group.as_str(), "version": gvk.version.as_str(), "kind": gvk.kind.as_str(),
            },
        });
        let body = match verb {
            "create" | "update" => Some(self.kind(gvk)),
            "patch" => Some(self.types.named(&format!("{META}.Patch"), self.style)),
            "delete" | "deletecollection" => {
                Some(self.types.named(&format!("{META}.DeleteOptions"), self.style))
            }
            _ => None,
        };
        self.add_body(&mut operation, &mut parameters, verb, body);
        operation["parameters"] = parameters.into();
        operation["responses"] = match self.style {
            Style::V2 => json!({code: {"description": "OK", "schema": answer}}),
            Style::V3 => {
                let content: Map<String, Json> =
                    ["application/json", "application/vnd.kubernetes.protobuf", "application/yaml"]
                        .map(|media| (media.to_owned(), json!({"schema": answer})))
                        .into_iter()
                        .collect();
                json!({code: {"description": "OK", "content": content}})
            }
        };
        let item = self.paths.entry(path.to_owned()).or_insert_with(|| json!({}));
        item[method] = operation;
    }

    fn add_body(
        &self,
        operation: &mut Json,
        parameters: &mut Vec<Json>,
        verb: &str,
        body: Option<Json>,
    ) {
        let Some(schema) = body else { return };
        let media: &[&str] = if verb == "patch" { &PATCH_TYPES } else { &["*/*"] };
        match self.style {
            Style::V2 => {
                operation["consumes"] = media.into();
                let required = !verb.starts_with("delete");
                parameters.push(
                    json!({"name": "body", "in": "body", "required": required, "schema": schema}),
                );
            }
            Style::V3 => {
                let content: Map<String, Json> = media
                    .iter()
                    .map(|media| ((*media).to_owned(), json!({"schema": schema})))
                    .collect();
                operation["requestBody"] = json!({"content": content});
            }
        }
    }

    fn kind(&mut self, gvk: &GroupVersionKind) -> Json {
        match schema().kind(gvk) {
            Some(kind) => self.types.reference(kind.ty, self.style),
            None => json!({"type": "object"}),
        }
    }

    fn list_type(&mut self, resource: &Resource) -> Json {
        let gvk = resource.gvr.group_version().kind(resource.list_kind);
        self.kind(&gvk)
    }
}

/// Unique over the document.
fn operation_id(path: &str, verb: &str, gvk: &GroupVersionKind) -> String {
    let words = path.split('/').filter(|part| !part.is_empty() && !part.starts_with('{'));
    let camel: String = words
        .flat_map(|word| word.split(['.', '-']))
        .map(|word| {
            let mut letters = word.chars();
            letters
                .next()
                .map(|first| first.to_ascii_uppercase().to_string() + letters.as_str())
                .unwrap_or_default()
        })
        .collect();
    let all = if verb == "list" && !path.contains("{namespace}") { "ForAllNamespaces" } else { "" };
    format!("{verb}{camel}{}{all}", gvk.kind)
}

fn query_parameter(name: &str, ty: &str, style: Style) -> Json {
    match style {
        Style::V2 => json!({"name": name, "in": "query", "type": ty, "uniqueItems": true}),
        Style::V3 => {
            json!({"name": name, "in": "query", "schema": {"type": ty, "uniqueItems": true}})
        }
    }
}

fn path_parameters(path: &str, style: Style) -> Json {
    let names =
        ["namespace", "name"].into_iter().filter(|name| path.contains(&format!("{{{name}}}")));
    let list = names.map(|name| match style {
        Style::V2 => json!({"name": name, "in": "path", "required": true, "type": "string", "uniqueItems": true}),
        Style::V3 => {
            json!({"name": name, "in": "path", "required": true, "schema": {"type": "string", "uniqueItems": true}})
        }
    });
    let mut list: Vec<Json> = list.collect();
    list.push(query_parameter("pretty", "string", style));
    list.into()
}
