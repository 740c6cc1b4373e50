//! Questions about permissions: the access reviews and what a user may do at all.

use std::collections::BTreeMap;

use api::{Cause, Status};
use machinery::{Map, Object, Value};
use smol_str::SmolStr;

use crate::{
    UserInfo,
    authz::{self, Decision, Query},
    pipeline::Call,
};

/// `SubjectAccessReview`: may somebody else do that?
pub fn access(call: &Call, review: &mut Object) -> Result<(), Status> {
    let user = subject(review);
    answer(call, review, &user, true)
}

/// `SelfSubjectAccessReview`: may I do that?
pub fn self_access(call: &Call, review: &mut Object) -> Result<(), Status> {
    answer(call, review, &call.user.clone(), false)
}

/// `LocalSubjectAccessReview`: may somebody else do that in this namespace?
pub fn local_access(call: &Call, review: &mut Object) -> Result<(), Status> {
    let asked = review.str_at(&["spec", "resourceAttributes", "namespace"]);
    if asked != call.info.namespace {
        let message = format!("Invalid value: {asked:?}: must match metadata.namespace");
        let field = "spec.resourceAttributes.namespace".into();
        let cause = Cause { reason: "FieldValueInvalid".into(), message, field };
        return Err(invalid(vec![cause]));
    }
    let user = subject(review);
    answer(call, review, &user, true)
}

fn answer(
    call: &Call,
    review: &mut Object,
    user: &UserInfo,
    names_user: bool,
) -> Result<(), Status> {
    let (resource, path) = (
        review.at(&["spec", "resourceAttributes"]).cloned(),
        review.at(&["spec", "nonResourceAttributes"]).cloned(),
    );
    let mut causes = Vec::new();
    match (&resource, &path) {
        (None, None) => causes.push(wrong(
            "spec",
            "null: exactly one of nonResourceAttributes or resourceAttributes must be specified",
        )),
        (Some(_), Some(_)) => causes.push(wrong(
            "spec.nonResourceAttributes",
            "null: cannot be specified in combination with resourceAttributes",
        )),
        _ => {}
    }
    if names_user && user.name.is_empty() && user.groups.is_empty() {
        causes.push(wrong("spec.user", "\"\": at least one of user or group must be specified"));
    }
    if !causes.is_empty() {
        return Err(invalid(causes));
    }
    let attributes = resource.as_ref().or(path.as_ref()).cloned().unwrap_or_default();
    let query = query_of(&attributes, resource.is_some());
    let status = match call.server.authorizer.authorize(user, &query) {
        Decision::Allow(reason) => status_of(true, &reason),
        Decision::NoOpinion(reason) => status_of(false, &reason),
    };
    review.root_mut().insert("status", status);
    Ok(())
}

fn status_of(allowed: bool, reason: &str) -> Map {
    let mut status = Map::new();
    status.insert("allowed", allowed);
    if !reason.is_empty() {
        status.insert("reason", reason);
    }
    status
}

fn query_of(attributes: &Value, is_resource: bool) -> Query<'_> {
    let text = |field: &str| attributes.get(field).and_then(Value::as_str).unwrap_or_default();
    Query {
        is_resource,
        verb: text("verb"),
        group: text("group"),
        version: text("version"),
        resource: text("resource"),
        subresource: text("subresource"),
        namespace: text("namespace"),
        name: text("name"),
        path: text("path"),
        field_selector: attributes
            .at(&["fieldSelector", "rawSelector"])
            .and_then(Value::as_str)
            .unwrap_or_default(),
    }
}

fn subject(review: &Object) -> UserInfo {
    let texts = |value: &Value| -> Vec<String> {
        value
            .as_list()
            .unwrap_or_default()
            .iter()
            .filter_map(Value::as_str)
            .map(str::to_owned)
            .collect()
    };
    let extra = review.map_at(&["spec", "extra"]).into_iter().flat_map(Map::iter);
    UserInfo {
        name: review.str_at(&["spec", "user"]).into(),
        uid: review.str_at(&["spec", "uid"]).into(),
        groups: review.at(&["spec", "groups"]).map(texts).unwrap_or_default(),
        extra: extra.map(|(key, values)| (key.to_string(), texts(values))).collect(),
    }
}

/// `SelfSubjectRulesReview`: everything that roles let me do in a namespace.
pub fn self_rules(call: &Call, review: &mut Object) -> Result<(), Status> {
    let namespace = review.str_at(&["spec", "namespace"]).to_owned();
    if namespace.is_empty() {
        return Err(Status::bad_request("no namespace on request"));
    }
    let mut rules = call.server.authorizer.rules_for(&call.user, &namespace);
    if call.user.groups.iter().any(|group| group == authz::MASTERS) {
        let all = || vec![SmolStr::new_static("*")];
        let rule = authz::rbac::Rule { verbs: all(), ..Default::default() };
        rules.push(authz::rbac::Rule { api_groups: all(), resources: all(), ..rule.clone() });
        rules.push(authz::rbac::Rule { non_resource_urls: all(), ..rule });
    }
    let list = |items: &[SmolStr]| Value::from(items.to_vec());
    let (mut resource, mut path): (Vec<Value>, Vec<Value>) = Default::default();
    for rule in &rules {
        if rule.non_resource_urls.is_empty() {
            let mut map = Map::new();
            map.insert("verbs", list(&rule.verbs));
            map.insert("apiGroups", list(&rule.api_groups));
            map.insert("resources", list(&rule.resources));
            if !rule.resource_names.is_empty() {
                map.insert("resourceNames", list(&rule.resource_names));
            }
            resource.push(map.into());
        } else {
            let mut map = Map::new();
            map.insert("verbs", list(&rule.verbs));
            map.insert("nonResourceURLs", list(&rule.non_resource_urls));
            path.push(map.into());
        }
    }
    let mut status = Map::new();
    status.insert("resourceRules", resource);
    status.insert("nonResourceRules", path);
    status.insert("incomplete", false);
    review.root_mut().insert("status", status);
    review.root_mut().insert("spec", Map::new());
    Ok(())
}

/// `SelfSubjectReview`: who am I?
pub fn self_subject(call: &Call, review: &mut Object) {
    review.set_at(&["metadata", "creationTimestamp"], call.context.time.rfc3339());
    review.set_at(&["status", "userInfo"], user_value(&call.user));
}

/// A user as `authentication.k8s.io` writes it.
pub fn user_value(user: &UserInfo) -> Value {
    let mut map: BTreeMap<&str, Value> = BTreeMap::new();
    map.insert("username", user.name.as_str().into());
    if !user.uid.is_empty() {
        map.insert("uid", user.uid.as_str().into());
    }
    if !user.groups.is_empty() {
        map.insert("groups", user.groups.clone().into());
    }
    if !user.extra.is_empty() {
        let extra: Map =
            user.extra.iter().map(|(key, values)| (key.as_str(), values.clone())).collect();
        map.insert("extra", extra.into());
    }
    Value::Map(map.into_iter().collect())
}

fn wrong(field: &str, what: &str) -> Cause {
    Cause {
        reason: "FieldValueInvalid".into(),
        message: format!("Invalid value: {what}"),
        field: field.into(),
    }
}

/// Upstream leaves the kind of these out.
fn invalid(causes: Vec<Cause>) -> Status {
    Status::invalid("authorization.k8s.io", "", "", causes)
}
