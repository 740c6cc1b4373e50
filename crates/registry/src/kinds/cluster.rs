//! Leases, classes of priority and runtime, flow control, webhooks and policies of admission,
//! and the kinds that extend the API.

use machinery::{Map, Object, Value, value};

use super::cells::{condition, condition_true, number, text_or};
use crate::{
    edit::{each, flag, inside, list, maps, or, or_zero, spec, text},
    errors::{Errors, Path},
    facts::{Facts, PLAIN},
    table::{AGE, Column, NAME},
};

static LEASE_COLUMNS: [Column; 3] =
    [NAME, Column::text("Holder", |o, _| o.str_at(&["spec", "holderIdentity"]).into()), AGE];

pub(crate) const LEASES: Facts = Facts {
    validate: |lease, errors| {
        let path = Path::new("spec");
        for (field, least) in [("leaseDurationSeconds", 1), ("leaseTransitions", 0)] {
            if let Some(value) = lease.i64_at(&["spec", field]).filter(|&value| value < least) {
                let why = if least == 1 {
                    "must be greater than 0"
                } else {
                    "must be greater than or equal to 0"
                };
                errors.invalid(&path.child(field), value, why);
            }
        }
    },
    create_on_update: true,
    unconditional_update: false,
    columns: &LEASE_COLUMNS,
    ..PLAIN
};

static PRIORITY_COLUMNS: [Column; 5] = [
    NAME,
    Column::integer("Value", |o, _| number(o, &["value"])),
    Column {
        kind: "boolean",
        ..Column::text("Global-Default", |o, _| o.bool_at(&["globalDefault"]).into())
    },
    AGE,
    Column::text("PreemptionPolicy", |o, _| o.str_at(&["preemptionPolicy"]).into()),
];

/// The highest priority that is not the system's.
const HIGHEST_USER_PRIORITY: i64 = 1_000_000_000;

pub(crate) const PRIORITY_CLASSES: Facts = Facts {
    default: |class| or(class.root_mut(), "preemptionPolicy", "PreemptLowerPriority"),
    validate: |class, errors| {
        let value = class.i64_at(&["value"]).unwrap_or(0);
        let system = matches!(
            (class.name(), value),
            ("system-node-critical", 2_000_001_000) | ("system-cluster-critical", 2_000_000_000)
        );
        if class.name().starts_with("system-") {
            if !system {
                let why = format!(
                    "priority class names with 'system-' prefix are reserved for system use only. error: {} is not a known system priority class",
                    class.name()
                );
                errors.forbidden(&"metadata.name".into(), &why);
            }
        } else if value > HIGHEST_USER_PRIORITY {
            let why = format!(
                "maximum allowed value of a user defined priority is {HIGHEST_USER_PRIORITY}"
            );
            errors.forbidden(&"value".into(), &why);
        }
        let policy = class.str_at(&["preemptionPolicy"]);
        errors.one_of(&"preemptionPolicy".into(), policy, &["PreemptLowerPriority", "Never"]);
    },
    validate_update: |_, new, old, errors| {
        if new.at(&["value"]) != old.at(&["value"]) {
            errors.forbidden(&"value".into(), "may not be changed in an update.");
        }
        let field = "preemptionPolicy";
        errors.immutable(&field.into(), new.at(&[field]), old.at(&[field]));
    },
    generation: true,
    columns: &PRIORITY_COLUMNS,
    ..PLAIN
};

static RUNTIME_COLUMNS: [Column; 3] =
    [NAME, Column::text("Handler", |o, _| o.str_at(&["handler"]).into()), AGE];

pub(crate) const RUNTIME_CLASSES: Facts = Facts {
    validate: |class, errors| {
        let handler = class.str_at(&["handler"]);
        crate::names::report(
            &api::names::dns1123_label(handler),
            &"handler".into(),
            handler,
            errors,
        );
    },
    validate_update: |_, new, old, errors| {
        errors.immutable(&"handler".into(), new.at(&["handler"]), old.at(&["handler"]));
    },
    create_on_update: true,
    unconditional_update: false,
    columns: &RUNTIME_COLUMNS,
    ..PLAIN
};

static FLOW_COLUMNS: [Column; 6] = [
    NAME,
    Column::text("PriorityLevel", |o, _| {
        text_or(o, &["spec", "priorityLevelConfiguration", "name"], "<none>")
    }),
    Column::text("MatchingPrecedence", |o, _| number(o, &["spec", "matchingPrecedence"])),
    Column::text("DistinguisherMethod", |o, _| {
        text_or(o, &["spec", "distinguisherMethod", "type"], "<none>")
    }),
    AGE,
    Column::text("MissingPL", |o, _| text_or_question(condition(o, "Dangling"))),
];

fn text_or_question(text: Option<&str>) -> Value {
    text.unwrap_or("?").into()
}

pub(crate) const FLOW_SCHEMAS: Facts = Facts {
    default: |schema| {
        spec(schema, |spec| {
            or_zero(spec, "matchingPrecedence", 1000);
        });
    },
    validate: |schema, errors| {
        let path = Path::new("spec");
        let precedence = schema.i64_at(&["spec", "matchingPrecedence"]).unwrap_or(0);
        if !(1..=10_000).contains(&precedence) {
            let path = path.child("matchingPrecedence");
            errors.invalid(&path, precedence, "must be between 1 and 10000, inclusive");
        }
        if schema.str_at(&["spec", "priorityLevelConfiguration", "name"]).is_empty() {
            errors.required(
                &path.child("priorityLevelConfiguration").child("name"),
                "must reference a priority level",
            );
        }
    },
    generation: true,
    columns: &FLOW_COLUMNS,
    ..PLAIN
};

static LEVEL_COLUMNS: [Column; 7] = [
    NAME,
    Column::text("Type", |o, _| o.str_at(&["spec", "type"]).into()),
    Column::text("NominalConcurrencyShares", |o, _| limited(o, &["nominalConcurrencyShares"])),
    Column::text("Queues", |o, _| limited(o, &["limitResponse", "queuing", "queues"])),
    Column::text("HandSize", |o, _| limited(o, &["limitResponse", "queuing", "handSize"])),
    Column::text("QueueLengthLimit", |o, _| {
        limited(o, &["limitResponse", "queuing", "queueLengthLimit"])
    }),
    AGE,
];

fn limited(level: &Object, path: &[&str]) -> Value {
    let found = level.map_at(&["spec", "limited"]).and_then(|limited| limited.at(path)?.as_i64());
    found.map_or_else(|| "<none>".into(), Value::from)
}

pub(crate) const PRIORITY_LEVELS: Facts = Facts {
    default: |level| {
        spec(level, |spec| {
            inside(spec, "exempt", |exempt| {
                or(exempt, "nominalConcurrencyShares", 0);
                or(exempt, "lendablePercent", 0);
            });
            inside(spec, "limited", |limited| {
                or(limited, "nominalConcurrencyShares", 30);
                or(limited, "lendablePercent", 0);
                inside(limited, "limitResponse", |response| {
                    inside(response, "queuing", |queuing| {
                        or_zero(queuing, "queues", 64);
                        or_zero(queuing, "handSize", 8);
                        or_zero(queuing, "queueLengthLimit", 50);
                    });
                });
            });
        });
    },
    validate: |level, errors| {
        errors.one_of(&"spec.type".into(), level.str_at(&["spec", "type"]), &["Exempt", "Limited"]);
    },
    generation: true,
    columns: &LEVEL_COLUMNS,
    ..PLAIN
};

fn length(object: &Object, path: &[&str]) -> Value {
    (object.list_at(path).len() as i64).into()
}

static WEBHOOK_COLUMNS: [Column; 3] =
    [NAME, Column::integer("Webhooks", |o, _| length(o, &["webhooks"])), AGE];

fn default_webhook(webhook: &mut Map) {
    or(webhook, "failurePolicy", "Fail");
    or(webhook, "matchPolicy", "Equivalent");
    or(webhook, "namespaceSelector", Map::new());
    or(webhook, "objectSelector", Map::new());
    or(webhook, "timeoutSeconds", 10);
    each(webhook, "rules", |rule| or(rule, "scope", "*"));
    inside(webhook, "clientConfig", |config| {
        inside(config, "service", |service| or(service, "port", 443))
    });
}

fn validate_webhooks(object: &Object, errors: &mut Errors) {
    let mut seen = std::collections::BTreeSet::new();
    for (at, webhook) in object.list_at(&["webhooks"]).iter().filter_map(Value::as_map).enumerate()
    {
        let path = Path::new("webhooks").index(at);
        let name = text(webhook, "name");
        if name.split('.').count() < 3 {
            errors.invalid(
                &path.child("name"),
                name,
                "should be a domain with at least three segments separated by dots",
            );
        }
        if !seen.insert(name) {
            errors.duplicate(&path.child("name"), name);
        }
        match text(webhook, "sideEffects") {
            "" => errors
                .required(&path.child("sideEffects"), "must specify one of None, NoneOnDryRun"),
            effects => {
                errors.one_of(&path.child("sideEffects"), effects, &["None", "NoneOnDryRun"])
            }
        }
        if list(webhook, "admissionReviewVersions").is_empty() {
            let why = "must specify one of v1, v1beta1";
            errors.required(&path.child("admissionReviewVersions"), why);
        }
        let seconds = webhook.get("timeoutSeconds").and_then(Value::as_i64).unwrap_or(10);
        if !(1..=30).contains(&seconds) {
            let why = "the timeout value must be between 1 and 30 seconds";
            errors.invalid(&path.child("timeoutSeconds"), seconds, why);
        }
        let config = webhook.get("clientConfig").and_then(Value::as_map);
        let has = |field: &str| config.is_some_and(|c| c.get(field).is_some_and(|v| !v.is_null()));
        if has("url") == has("service") {
            let why = "exactly one of url or service is required";
            errors.required(&path.child("clientConfig"), why);
        }
    }
}

const WEBHOOKS: Facts = Facts {
    validate: validate_webhooks,
    generation: true,
    generation_fields: &["webhooks"],
    unconditional_update: false,
    columns: &WEBHOOK_COLUMNS,
    ..PLAIN
};

pub(crate) const VALIDATING_WEBHOOKS: Facts =
    Facts { default: |object| each(object.root_mut(), "webhooks", default_webhook), ..WEBHOOKS };

pub(crate) const MUTATING_WEBHOOKS: Facts = Facts {
    default: |object| {
        each(object.root_mut(), "webhooks", |webhook| {
            default_webhook(webhook);
            or(webhook, "reinvocationPolicy", "Never");
        });
    },
    ..WEBHOOKS
};

fn param_kind(object: &Object) -> Value {
    let kind = |field| object.str_at(&["spec", "paramKind", field]);
    match kind("kind") {
        "" => "<unset>".into(),
        name => format!("{}/{name}", kind("apiVersion")).into(),
    }
}

fn default_match(constraints: &mut Map) {
    or(constraints, "matchPolicy", "Equivalent");
    or(constraints, "namespaceSelector", Map::new());
    or(constraints, "objectSelector", Map::new());
    for field in ["resourceRules", "excludeResourceRules"] {
        each(constraints, field, |rule| or(rule, "scope", "*"));
    }
}

static VALIDATING_COLUMNS: [Column; 4] = [
    NAME,
    Column::integer("Validations", |o, _| length(o, &["spec", "validations"])),
    Column::text("ParamKind", |o, _| param_kind(o)),
    AGE,
];
static MUTATING_COLUMNS: [Column; 4] = [
    NAME,
    Column::integer("Mutations", |o, _| length(o, &["spec", "mutations"])),
    Column::text("ParamKind", |o, _| param_kind(o)),
    AGE,
];

const POLICIES: Facts = Facts {
    default: |policy| {
        spec(policy, |spec| {
            or(spec, "failurePolicy", "Fail");
            inside(spec, "matchConstraints", default_match);
        });
    },
    generation: true,
    unconditional_update: false,
    ..PLAIN
};
pub(crate) const VALIDATING_POLICIES: Facts = Facts { columns: &VALIDATING_COLUMNS, ..POLICIES };
pub(crate) const MUTATING_POLICIES: Facts = Facts { columns: &MUTATING_COLUMNS, ..POLICIES };

static POLICY_BINDING_COLUMNS: [Column; 4] = [
    NAME,
    Column::text("PolicyName", |o, _| o.str_at(&["spec", "policyName"]).into()),
    Column::text("ParamRef", |o, _| {
        let reference = |field| o.str_at(&["spec", "paramRef", field]);
        match (reference("namespace"), reference("name")) {
            ("", "") => "<unset>".into(),
            ("", name) => name.into(),
            (namespace, name) => format!("{namespace}/{name}").into(),
        }
    }),
    AGE,
];

pub(crate) const POLICY_BINDINGS: Facts = Facts {
    default: |binding| spec(binding, |spec| inside(spec, "matchResources", default_match)),
    generation: true,
    unconditional_update: false,
    columns: &POLICY_BINDING_COLUMNS,
    ..PLAIN
};

static DEFINITION_COLUMNS: [Column; 8] = [
    NAME,
    Column::text("Scope", |o, _| o.str_at(&["spec", "scope"]).into()),
    Column::text("Versions", |o, _| {
        let versions = o.list_at(&["spec", "versions"]).iter().filter_map(Value::as_map);
        let shown = versions.map(|version| {
            let mark = if flag(version, "storage") { "(storage)" } else { "" };
            format!("{}{mark}", text(version, "name"))
        });
        shown.collect::<Vec<_>>().join(",").into()
    }),
    Column {
        kind: "date",
        ..Column::text("Created At", |o, _| o.str_at(&["metadata", "creationTimestamp"]).into())
    },
    Column::text("Group", |o, _| o.str_at(&["spec", "group"]).into()).wide(),
    Column::text("Kind", |o, _| o.str_at(&["spec", "names", "kind"]).into()).wide(),
    Column::text("ShortNames", |o, _| {
        let names = o.list_at(&["spec", "names", "shortNames"]).iter().filter_map(Value::as_str);
        names.collect::<Vec<_>>().join(",").into()
    })
    .wide(),
    Column {
        kind: "boolean",
        ..Column::text("Established", |o, _| condition_true(o, "Established").into())
    }
    .wide(),
];

pub(crate) const DEFINITIONS: Facts = Facts {
    default: |definition| {
        spec(definition, |spec| {
            inside(spec, "names", |names| {
                let kind = text(names, "kind").to_owned();
                if !kind.is_empty() {
                    or(names, "singular", kind.to_lowercase());
                    or(names, "listKind", format!("{kind}List"));
                }
            });
            or(spec.map_entry("conversion"), "strategy", "None");
        });
    },
    validate: |definition, errors| {
        let path = Path::new("spec");
        let of = |path: &[&str]| definition.str_at(path).to_owned();
        let wanted = format!("{}.{}", of(&["spec", "names", "plural"]), of(&["spec", "group"]));
        if definition.name() != wanted {
            let why = "must be spec.names.plural+\".\"+spec.group";
            errors.invalid(&"metadata.name".into(), definition.name(), why);
        }
        if of(&["spec", "group"]).split('.').count() < 2 {
            errors.invalid(
                &path.child("group"),
                of(&["spec", "group"]),
                "should be a domain with at least one dot",
            );
        }
        errors.one_of(&path.child("scope"), &of(&["spec", "scope"]), &["Cluster", "Namespaced"]);
        let empty = Map::new();
        let spec = definition.map_at(&["spec"]).unwrap_or(&empty);
        let storages = maps(spec, "versions").filter(|v| flag(v, "storage")).count();
        if storages != 1 {
            let value = spec.get("versions").cloned().unwrap_or_default();
            errors.invalid(
                &path.child("versions"),
                value,
                "must have exactly one version marked as storage version",
            );
        }
        for (at, version) in maps(spec, "versions").enumerate() {
            if version.at(&["schema", "openAPIV3Schema"]).is_none() {
                let path =
                    path.child("versions").index(at).child("schema").child("openAPIV3Schema");
                errors.required(&path, "schemas are required");
            }
        }
    },
    // Serving them is not part of this server yet, and it does not pretend.
    warnings: |_, old| match old {
        None => vec![
            "this server stores CustomResourceDefinitions but does not serve custom resources yet"
                .into(),
        ],
        Some(_) => Vec::new(),
    },
    initial_status: |definition| {
        let versions = definition.list_at(&["spec", "versions"]).iter().filter_map(Value::as_map);
        let stored: Vec<&str> =
            versions.filter(|v| flag(v, "storage")).map(|v| text(v, "name")).collect();
        Some(
            value!({"conditions": null, "acceptedNames": {"plural": "", "kind": ""}, "storedVersions": stored}),
        )
    },
    generation: true,
    unconditional_update: false,
    columns: &DEFINITION_COLUMNS,
    ..PLAIN
};

static MIGRATION_COLUMNS: [Column; 3] = [
    Column { format: "", ..NAME },
    Column::text("Resource", |o, _| {
        let resource = |field| o.str_at(&["spec", "resource", field]);
        match resource("group") {
            "" => resource("resource").into(),
            group => format!("{}.{group}", resource("resource")).into(),
        }
    }),
    Column::text("Status", |o, _| {
        let state =
            ["Succeeded", "Failed", "Running"].into_iter().find(|kind| condition_true(o, kind));
        state.unwrap_or("Pending").into()
    }),
];

pub(crate) const MIGRATIONS: Facts =
    Facts { unconditional_update: false, columns: &MIGRATION_COLUMNS, ..PLAIN };

static SERVICE_COLUMNS: [Column; 4] = [
    NAME,
    Column::text("Service", |o, _| {
        let service = |field| o.str_at(&["spec", "service", field]);
        match service("name") {
            "" => "Local".into(),
            name => format!("{}/{name}", service("namespace")).into(),
        }
    }),
    Column::text("Available", |o, _| match condition(o, "Available") {
        Some("True") => "True".into(),
        Some(status) => {
            let conditions = o.list_at(&["status", "conditions"]).iter().filter_map(Value::as_map);
            let found = conditions.into_iter().find(|c| text(c, "type") == "Available");
            format!("{status} ({})", found.map_or("", |c| text(c, "reason"))).into()
        }
        None => "Unknown".into(),
    }),
    AGE,
];

pub(crate) const API_SERVICES: Facts = Facts {
    default: |service| {
        spec(service, |spec| inside(spec, "service", |service| or(service, "port", 443)))
    },
    unconditional_update: false,
    columns: &SERVICE_COLUMNS,
    ..PLAIN
};
