//! RBAC, certificate requests and trust bundles.

use machinery::{Map, Object, Value};

use super::cells::{labels, text_or};
use crate::{
    edit::{copy_field, each, inside, list, or, text},
    errors::{Errors, Path},
    facts::{Facts, PLAIN},
    strategy::NameRule,
    table::{AGE, Column, NAME, human_duration},
};

const RBAC: &str = "rbac.authorization.k8s.io";

static ROLE_COLUMNS: [Column; 2] = [
    NAME,
    Column {
        kind: "date",
        ..Column::text("Created At", |o, _| o.str_at(&["metadata", "creationTimestamp"]).into())
    },
];

fn rules(role: &Object, namespaced: bool, errors: &mut Errors) {
    for (at, rule) in role.list_at(&["rules"]).iter().filter_map(Value::as_map).enumerate() {
        let path = Path::new("rules").index(at);
        if !list(rule, "nonResourceURLs").is_empty() {
            let value = rule.get("nonResourceURLs").cloned().unwrap_or_default();
            if namespaced {
                let why = "namespaced rules cannot apply to non-resource URLs";
                errors.invalid(&path.child("nonResourceURLs"), value, why);
            } else if ["apiGroups", "resources", "resourceNames"]
                .iter()
                .any(|f| !list(rule, f).is_empty())
            {
                let why = "rules cannot apply to both regular resources and non-resource URLs";
                errors.invalid(&path.child("nonResourceURLs"), value, why);
            }
            continue;
        }
        if list(rule, "apiGroups").is_empty() {
            errors.required(
                &path.child("apiGroups"),
                "resource rules must supply at least one api group",
            );
        }
        if list(rule, "resources").is_empty() {
            errors.required(
                &path.child("resources"),
                "resource rules must supply at least one resource",
            );
        }
    }
}

const ROLE: Facts = Facts {
    name_rule: NameRule::PathSegment,
    create_on_update: true,
    columns: &ROLE_COLUMNS,
    ..PLAIN
};

pub(crate) const ROLES: Facts = Facts {
    validate: |role, errors| {
        rules(role, true, errors);
        verbs(role, errors);
    },
    ..ROLE
};

pub(crate) const CLUSTER_ROLES: Facts = Facts {
    validate: |role, errors| {
        rules(role, false, errors);
        let selectors = role.at(&["aggregationRule", "clusterRoleSelectors"]);
        if role.at(&["aggregationRule"]).is_some()
            && selectors.and_then(Value::as_list).is_none_or(<[_]>::is_empty)
        {
            let why = "at least one clusterRoleSelector required if aggregationRule is non-nil";
            errors.required(&Path::new("aggregationRule").child("clusterRoleSelectors"), why);
        }
        verbs(role, errors);
    },
    ..ROLE
};

/// Checks that upstream makes from declarations come after the others.
fn verbs(role: &Object, errors: &mut Errors) {
    for (at, rule) in role.list_at(&["rules"]).iter().filter_map(Value::as_map).enumerate() {
        if list(rule, "verbs").is_empty() {
            errors.required(&Path::new("rules").index(at).child("verbs"), "");
        }
    }
}

fn subjects(binding: &Object, kind: &str) -> Value {
    let names: Vec<String> = binding
        .list_at(&["subjects"])
        .iter()
        .filter_map(Value::as_map)
        .filter(|subject| text(subject, "kind") == kind)
        .map(|subject| match kind {
            "ServiceAccount" => format!("{}/{}", text(subject, "namespace"), text(subject, "name")),
            _ => text(subject, "name").to_owned(),
        })
        .collect();
    names.join(", ").into()
}

static BINDING_COLUMNS: [Column; 6] = [
    NAME,
    Column::text("Role", |o, _| {
        format!("{}/{}", o.str_at(&["roleRef", "kind"]), o.str_at(&["roleRef", "name"])).into()
    }),
    AGE,
    Column::text("Users", |o, _| subjects(o, "User")).wide(),
    Column::text("Groups", |o, _| subjects(o, "Group")).wide(),
    Column::text("ServiceAccounts", |o, _| subjects(o, "ServiceAccount")).wide(),
];

const BINDING: Facts = Facts {
    default: |binding| {
        inside(binding.root_mut(), "roleRef", |role| or(role, "apiGroup", RBAC));
        each(binding.root_mut(), "subjects", |subject| {
            if matches!(text(subject, "kind"), "User" | "Group") {
                or(subject, "apiGroup", RBAC);
            }
        });
    },
    validate_update: |_, new, old, errors| {
        if new.at(&["roleRef"]) != old.at(&["roleRef"]) {
            let role = |field| new.str_at(&["roleRef", field]);
            let shown = format!(
                "{{\"APIGroup\":{:?},\"Kind\":{:?},\"Name\":{:?}}}",
                role("apiGroup"),
                role("kind"),
                role("name")
            );
            errors.shown(
                &"roleRef".into(),
                "FieldValueInvalid",
                "Invalid value",
                &shown,
                "field is immutable",
            );
        }
    },
    name_rule: NameRule::PathSegment,
    create_on_update: true,
    columns: &BINDING_COLUMNS,
    ..PLAIN
};

fn binding(binding: &Object, namespaced: bool, errors: &mut Errors) {
    let path = Path::new("roleRef");
    let role = |field| binding.str_at(&["roleRef", field]);
    errors.one_of(&path.child("apiGroup"), role("apiGroup"), &[RBAC]);
    let kinds: &[&str] = if namespaced { &["Role", "ClusterRole"] } else { &["ClusterRole"] };
    errors.one_of(&path.child("kind"), role("kind"), kinds);
    crate::names::check(NameRule::PathSegment, role("name"), &path.child("name"), errors);
    for (at, subject) in binding.list_at(&["subjects"]).iter().filter_map(Value::as_map).enumerate()
    {
        subject_at(subject, namespaced, &Path::new("subjects").index(at), errors);
    }
    for (at, subject) in binding.list_at(&["subjects"]).iter().filter_map(Value::as_map).enumerate()
    {
        if text(subject, "name").is_empty() {
            errors.required(&Path::new("subjects").index(at).child("name"), "");
        }
    }
    if role("name").is_empty() {
        errors.required(&path.child("name"), "");
    }
}

fn subject_at(subject: &Map, namespaced: bool, path: &Path, errors: &mut Errors) {
    let (name, group) = (text(subject, "name"), text(subject, "apiGroup"));
    match text(subject, "kind") {
        "ServiceAccount" => {
            if !name.is_empty() {
                crate::names::check(NameRule::Subdomain, name, &path.child("name"), errors);
            }
            if !group.is_empty() {
                errors.not_supported(&path.child("apiGroup"), group, &[""]);
            }
            if !namespaced && text(subject, "namespace").is_empty() {
                errors.required(&path.child("namespace"), "");
            }
        }
        "User" | "Group" => errors.one_of(&path.child("apiGroup"), group, &[RBAC]),
        other => {
            errors.not_supported(&path.child("kind"), other, &["ServiceAccount", "User", "Group"])
        }
    }
}

pub(crate) const ROLE_BINDINGS: Facts =
    Facts { validate: |o, errors| binding(o, true, errors), ..BINDING };
pub(crate) const CLUSTER_ROLE_BINDINGS: Facts =
    Facts { validate: |o, errors| binding(o, false, errors), ..BINDING };

static REQUEST_COLUMNS: [Column; 6] = [
    NAME,
    AGE,
    Column::text("SignerName", |o, _| text_or(o, &["spec", "signerName"], "<none>")),
    Column::text("Requestor", |o, _| o.str_at(&["spec", "username"]).into()),
    Column::text("RequestedDuration", |o, _| match o.i64_at(&["spec", "expirationSeconds"]) {
        Some(seconds) => human_duration(seconds).into(),
        None => "<none>".into(),
    }),
    Column::text("Condition", |o, _| request_state(o).into()),
];

fn request_state(request: &Object) -> String {
    let conditions = request.list_at(&["status", "conditions"]);
    let has =
        |kind: &str| conditions.iter().any(|c| c.get("type").and_then(Value::as_str) == Some(kind));
    let mut words = vec![if has("Denied") {
        "Denied"
    } else if has("Approved") {
        "Approved"
    } else {
        "Pending"
    }];
    if has("Failed") {
        words.push("Failed");
    }
    if !request.str_at(&["status", "certificate"]).is_empty() {
        words.push("Issued");
    }
    words.join(",")
}

pub(crate) const CERTIFICATE_REQUESTS: Facts = Facts {
    default: |request| {
        let spec = request.root_mut().map_entry("spec");
        if !spec.contains_key("usages") {
            spec.insert("usages", vec!["digital signature", "key encipherment"]);
        }
    },
    // Who asks is who sent the request, whatever it says.
    prepare_create: |cx, request| {
        let spec = request.root_mut().map_entry("spec");
        spec.insert("username", cx.user.name.as_str());
        for field in ["uid", "groups", "extra"] {
            spec.remove(field);
        }
        if !cx.user.uid.is_empty() {
            spec.insert("uid", cx.user.uid.as_str());
        }
        if !cx.user.groups.is_empty() {
            spec.insert("groups", cx.user.groups.clone());
        }
        if !cx.user.extra.is_empty() {
            let extra: Map =
                cx.user.extra.iter().map(|(k, v)| (k.as_str(), Value::from(v.clone()))).collect();
            spec.insert("extra", extra);
        }
    },
    prepare_update: |subresource, new, old| {
        copy_field(new, old, &["spec"]);
        match subresource {
            "approval" => {
                let conditions = new.at(&["status", "conditions"]).cloned();
                copy_field(new, old, &["status"]);
                if let Some(conditions) = conditions {
                    new.set_at(&["status", "conditions"], conditions);
                }
            }
            "status" => keep_decision(new, old),
            _ => {}
        }
    },
    validate: |request, errors| {
        let path = Path::new("spec");
        if request.str_at(&["spec", "request"]).is_empty() {
            errors.invalid(
                &path.child("request"),
                "",
                "PEM block type must be CERTIFICATE REQUEST",
            );
        }
        match request.str_at(&["spec", "signerName"]) {
            "" => errors.required(&path.child("signerName"), ""),
            name if !name.contains('/') => {
                errors.invalid(&path.child("signerName"), name, "must be a fully qualified domain and path of the form 'example.com/signer-name'");
            }
            _ => {}
        }
        if let Some(seconds) = request.i64_at(&["spec", "expirationSeconds"]).filter(|&s| s < 600) {
            let why = "may not specify a duration less than 600 seconds (10 minutes)";
            errors.invalid(&path.child("expirationSeconds"), seconds, why);
        }
    },
    validate_update: |subresource, new, old, errors| {
        let certificate = |o: &Object| o.str_at(&["status", "certificate"]).to_owned();
        if subresource == "status"
            && !certificate(old).is_empty()
            && certificate(new) != certificate(old)
        {
            let why = "updates may not remove or change an issued certificate";
            errors.forbidden(&Path::new("status").child("certificate"), why);
        }
    },
    fields: &["spec.signerName"],
    columns: &REQUEST_COLUMNS,
    ..PLAIN
};

/// The status subresource may add failures, but approving and denying are the approval's.
fn keep_decision(new: &mut Object, old: &Object) {
    let decision =
        |c: &&Value| matches!(c.get("type").and_then(Value::as_str), Some("Approved" | "Denied"));
    let kept: Vec<Value> =
        old.list_at(&["status", "conditions"]).iter().filter(decision).cloned().collect();
    let rest = new.list_at(&["status", "conditions"]).iter().filter(|c| !decision(c)).cloned();
    let all: Vec<Value> = kept.into_iter().chain(rest).collect();
    if all.is_empty() {
        new.remove_at(&["status", "conditions"]);
    } else {
        new.set_at(&["status", "conditions"], all);
    }
}

static POD_REQUEST_COLUMNS: [Column; 7] = [
    NAME,
    Column::text("PodName", |o, _| o.str_at(&["spec", "podName"]).into()),
    Column::text("ServiceAccountName", |o, _| o.str_at(&["spec", "serviceAccountName"]).into()),
    Column::text("NodeName", |o, _| o.str_at(&["spec", "nodeName"]).into()),
    Column::text("SignerName", |o, _| o.str_at(&["spec", "signerName"]).into()),
    Column::text("State", |o, _| {
        let conditions = o.list_at(&["status", "conditions"]).iter();
        let last = conditions
            .filter_map(|c| c.get("type")?.as_str())
            .rfind(|kind| matches!(*kind, "Issued" | "Denied" | "Failed"));
        last.unwrap_or("Pending").into()
    }),
    Column::text("UnverifiedUserAnnotations", |o, _| {
        labels(o.map_at(&["spec", "unverifiedUserAnnotations"]))
    }),
];

pub(crate) const POD_CERTIFICATE_REQUESTS: Facts = Facts {
    unconditional_update: false,
    validate_update: |subresource, new, old, errors| {
        if subresource.is_empty() {
            errors.immutable(&"spec".into(), new.at(&["spec"]), old.at(&["spec"]));
        }
    },
    columns: &POD_REQUEST_COLUMNS,
    ..PLAIN
};

pub(crate) const TRUST_BUNDLES: Facts = Facts {
    unconditional_update: false,
    fields: &["spec.signerName"],
    columns: &[
        NAME,
        Column::text("SignerName", |o, _| text_or(o, &["spec", "signerName"], "<none>")),
    ],
    ..PLAIN
};
