//! StorageClasses, attachments, CSI objects and volume attributes.

use machinery::{Map, Object, Value};

use super::cells::NAME_AGE;
use crate::{
    compare::semantically_equal,
    edit::{or, spec},
    facts::{Facts, PLAIN},
    table::{AGE, Column, NAME},
};

fn boolean(object: &Object, path: &[&str], default: bool) -> Value {
    object.at(path).and_then(Value::as_bool).unwrap_or(default).into()
}

const DEFAULT_CLASS: &str = "storageclass.kubernetes.io/is-default-class";

static CLASS_COLUMNS: [Column; 6] = [
    Column {
        cell: |o, _| match o.annotation(DEFAULT_CLASS) {
            Some("true") => format!("{} (default)", o.name()).into(),
            _ => o.name().into(),
        },
        ..NAME
    },
    Column::text("Provisioner", |o, _| o.str_at(&["provisioner"]).into()),
    Column::text("ReclaimPolicy", |o, _| super::cells::text_or(o, &["reclaimPolicy"], "Delete")),
    Column::text("VolumeBindingMode", |o, _| {
        super::cells::text_or(o, &["volumeBindingMode"], "Immediate")
    }),
    Column::text("AllowVolumeExpansion", |o, _| boolean(o, &["allowVolumeExpansion"], false)),
    AGE,
];

pub(crate) const CLASSES: Facts = Facts {
    default: |class| {
        or(class.root_mut(), "reclaimPolicy", "Delete");
        or(class.root_mut(), "volumeBindingMode", "Immediate");
    },
    validate: |class, errors| {
        errors.one_of(
            &"reclaimPolicy".into(),
            class.str_at(&["reclaimPolicy"]),
            &["Delete", "Retain"],
        );
        let mode = class.str_at(&["volumeBindingMode"]);
        errors.one_of(&"volumeBindingMode".into(), mode, &["Immediate", "WaitForFirstConsumer"]);
        if class.str_at(&["provisioner"]).is_empty() {
            errors.required(&"provisioner".into(), "");
        }
    },
    validate_update: |_, new, old, errors| {
        for field in ["parameters", "provisioner", "reclaimPolicy", "volumeBindingMode"] {
            if !semantically_equal(new.at(&[field]), old.at(&[field])) {
                // Upstream shows no value here.
                errors.invalid(&field.into(), Value::Null, "field is immutable");
            }
        }
    },
    returns_deleted: true,
    columns: &CLASS_COLUMNS,
    ..PLAIN
};

static ATTRIBUTES_COLUMNS: [Column; 3] =
    [NAME, Column::text("DriverName", |o, _| o.str_at(&["driverName"]).into()), AGE];

pub(crate) const ATTRIBUTES_CLASSES: Facts =
    Facts { returns_deleted: true, columns: &ATTRIBUTES_COLUMNS, ..PLAIN };

static ATTACHMENT_COLUMNS: [Column; 6] = [
    NAME,
    Column {
        format: "name",
        ..Column::text("Attacher", |o, _| o.str_at(&["spec", "attacher"]).into())
    },
    Column::text("PV", |o, _| o.str_at(&["spec", "source", "persistentVolumeName"]).into()),
    Column::text("Node", |o, _| o.str_at(&["spec", "nodeName"]).into()),
    Column {
        kind: "boolean",
        ..Column::text("Attached", |o, _| boolean(o, &["status", "attached"], false))
    },
    AGE,
];

pub(crate) const ATTACHMENTS: Facts = Facts {
    validate: |attachment, errors| {
        for field in ["attacher", "nodeName"] {
            if attachment.str_at(&["spec", field]).is_empty() {
                errors.required(&crate::errors::Path::new("spec").child(field), "");
            }
        }
    },
    validate_update: |subresource, new, old, errors| {
        if subresource.is_empty() {
            errors.immutable(&"spec".into(), new.at(&["spec"]), old.at(&["spec"]));
        }
    },
    unconditional_update: false,
    returns_deleted: true,
    initial_status: |_| Some(machinery::value!({"attached": false})),
    columns: &ATTACHMENT_COLUMNS,
    ..PLAIN
};

static NODE_COLUMNS: [Column; 3] = [
    NAME,
    Column::integer("Drivers", |o, _| (o.list_at(&["spec", "drivers"]).len() as i64).into()),
    AGE,
];

pub(crate) const CSI_NODES: Facts =
    Facts { unconditional_update: false, returns_deleted: true, columns: &NODE_COLUMNS, ..PLAIN };

static DRIVER_COLUMNS: [Column; 8] = [
    NAME,
    Column {
        kind: "boolean",
        ..Column::text("AttachRequired", |o, _| boolean(o, &["spec", "attachRequired"], true))
    },
    Column {
        kind: "boolean",
        ..Column::text("PodInfoOnMount", |o, _| boolean(o, &["spec", "podInfoOnMount"], false))
    },
    Column {
        kind: "boolean",
        ..Column::text("StorageCapacity", |o, _| boolean(o, &["spec", "storageCapacity"], false))
    },
    Column::text("TokenRequests", |o, _| {
        let audiences: Vec<&str> = o
            .list_at(&["spec", "tokenRequests"])
            .iter()
            .filter_map(|request| request.get("audience")?.as_str())
            .collect();
        if audiences.is_empty() { "<unset>".into() } else { audiences.join(",").into() }
    }),
    Column {
        kind: "boolean",
        ..Column::text("RequiresRepublish", |o, _| {
            boolean(o, &["spec", "requiresRepublish"], false)
        })
    },
    Column::text("Modes", |o, _| {
        let modes: Vec<&str> =
            o.list_at(&["spec", "volumeLifecycleModes"]).iter().filter_map(Value::as_str).collect();
        if modes.is_empty() { "<none>".into() } else { modes.join(",").into() }
    }),
    AGE,
];

pub(crate) const CSI_DRIVERS: Facts = Facts {
    default: |driver| {
        spec(driver, |spec| {
            or(spec, "attachRequired", true);
            or(spec, "podInfoOnMount", false);
            or(spec, "storageCapacity", false);
            or(spec, "fsGroupPolicy", "ReadWriteOnceWithFSType");
            if !spec.contains_key("volumeLifecycleModes") {
                spec.insert("volumeLifecycleModes", vec!["Persistent"]);
            }
            or(spec, "requiresRepublish", false);
            or(spec, "seLinuxMount", false);
            or(spec, "preventPodSchedulingIfMissing", false);
        });
    },
    // Only changes are counted.
    prepare_create: |_, driver| {
        driver.metadata_mut().remove("generation");
    },
    generation: true,
    unconditional_update: false,
    returns_deleted: true,
    columns: &DRIVER_COLUMNS,
    ..PLAIN
};

static CAPACITY_COLUMNS: [Column; 3] = [
    NAME,
    Column::text("StorageClassName", |o, _| o.str_at(&["storageClassName"]).into()),
    Column::text("Capacity", |o, _| super::cells::text_or(o, &["capacity"], "<unset>")),
];

pub(crate) const CSI_CAPACITIES: Facts =
    Facts { unconditional_update: false, columns: &CAPACITY_COLUMNS, ..PLAIN };

/// Dynamic resource allocation: deletes answer with the object.
pub(crate) const RESOURCE_OBJECTS: Facts =
    Facts { returns_deleted: true, columns: &NAME_AGE, ..PLAIN };

static CLAIM_COLUMNS: [Column; 3] = [
    NAME,
    Column::text("State", |o, _| {
        let mut states = Vec::new();
        if o.is_deleting() {
            states.push("deleted");
        }
        if o.at(&["status", "allocation"]).is_none() {
            if !o.is_deleting() {
                states.push("pending");
            }
        } else {
            states.push("allocated");
            states.push(if o.list_at(&["status", "reservedFor"]).is_empty() {
                ""
            } else {
                "reserved"
            });
        }
        states.into_iter().filter(|s| !s.is_empty()).collect::<Vec<_>>().join(",").into()
    }),
    AGE,
];

pub(crate) const RESOURCE_CLAIMS: Facts = Facts {
    initial_status: |_| Some(Map::new().into()),
    validate_update: |subresource, new, old, errors| {
        if subresource.is_empty() {
            errors.immutable(&"spec".into(), new.at(&["spec"]), old.at(&["spec"]));
        }
    },
    returns_deleted: true,
    columns: &CLAIM_COLUMNS,
    ..PLAIN
};

static TAINT_COLUMNS: [Column; 6] = [
    NAME,
    Column::text("Key", |o, _| o.str_at(&["spec", "taint", "key"]).into()),
    Column::text("Value", |o, _| o.str_at(&["spec", "taint", "value"]).into()),
    Column::text("Effect", |o, _| o.str_at(&["spec", "taint", "effect"]).into()),
    Column::text("TimeAdded", |o, cx| {
        crate::table::age_of(o.str_at(&["spec", "taint", "timeAdded"]), cx).into()
    }),
    AGE,
];

pub(crate) const TAINT_RULES: Facts = Facts { generation: true, columns: &TAINT_COLUMNS, ..PLAIN };

static SLICE_COLUMNS: [Column; 5] = [
    NAME,
    Column::text("Node", |o, _| super::cells::text_or(o, &["spec", "nodeName"], "<unset>")),
    Column::text("Driver", |o, _| o.str_at(&["spec", "driver"]).into()),
    Column::text("Pool", |o, _| o.str_at(&["spec", "pool", "name"]).into()),
    AGE,
];

pub(crate) const RESOURCE_SLICES: Facts = Facts {
    generation: true,
    returns_deleted: true,
    fields: &["spec.nodeName", "spec.driver"],
    columns: &SLICE_COLUMNS,
    ..PLAIN
};
