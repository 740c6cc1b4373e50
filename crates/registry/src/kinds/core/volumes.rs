//! PersistentVolumes and their claims.

use machinery::{Map, Object, Value, value};

use crate::{
    compare::semantically_equal,
    edit::{inside, or, spec},
    errors::Path,
    facts::{Facts, PLAIN},
    kinds::{cells::text_or, pod_spec::canonical_quantities},
    table::{AGE, Column, NAME},
};

/// `RWO,ROX`
fn modes(object: &Object, path: &[&str]) -> String {
    let has = |mode: &str| object.list_at(path).iter().any(|m| m.as_str() == Some(mode));
    let known = [
        ("ReadWriteOnce", "RWO"),
        ("ReadOnlyMany", "ROX"),
        ("ReadWriteMany", "RWX"),
        ("ReadWriteOncePod", "RWOP"),
    ];
    let short: Vec<&str> =
        known.into_iter().filter(|(mode, _)| has(mode)).map(|(_, short)| short).collect();
    short.join(",")
}

fn phase(object: &Object) -> Value {
    if object.is_deleting() {
        "Terminating".into()
    } else {
        object.str_at(&["status", "phase"]).into()
    }
}

fn class(object: &Object) -> Value {
    match object.annotation("volume.beta.kubernetes.io/storage-class") {
        Some(class) => class.into(),
        None => object.str_at(&["spec", "storageClassName"]).into(),
    }
}

const ATTRIBUTES_CLASS: Column = Column::text("VolumeAttributesClass", |o, _| {
    text_or(o, &["spec", "volumeAttributesClassName"], "<unset>")
});
const MODE: Column =
    Column::text("VolumeMode", |o, _| text_or(o, &["spec", "volumeMode"], "<unset>")).wide();

static VOLUME_COLUMNS: [Column; 11] = [
    NAME,
    Column::text("Capacity", |o, _| o.str_at(&["spec", "capacity", "storage"]).into()),
    Column::text("Access Modes", |o, _| modes(o, &["spec", "accessModes"]).into()),
    Column::text("Reclaim Policy", |o, _| {
        o.str_at(&["spec", "persistentVolumeReclaimPolicy"]).into()
    }),
    Column::text("Status", |o, _| phase(o)),
    Column::text("Claim", |o, _| {
        let claim = |field| o.str_at(&["spec", "claimRef", field]);
        if o.at(&["spec", "claimRef"]).is_none() {
            return "".into();
        }
        format!("{}/{}", claim("namespace"), claim("name")).into()
    }),
    Column::text("StorageClass", |o, _| class(o)),
    ATTRIBUTES_CLASS,
    Column::text("Reason", |o, _| o.str_at(&["status", "reason"]).into()),
    AGE,
    MODE,
];

pub(crate) const VOLUMES: Facts = Facts {
    default: |volume| {
        spec(volume, |spec| {
            or(spec, "persistentVolumeReclaimPolicy", "Retain");
            or(spec, "volumeMode", "Filesystem");
            inside(spec, "capacity", canonical_quantities);
            inside(spec, "hostPath", |host| {
                if !host.contains_key("type") {
                    host.insert("type", "");
                }
            });
        });
    },
    prepare_create: |cx, volume| {
        volume.set_at(&["status", "lastPhaseTransitionTime"], cx.time.rfc3339());
    },
    validate: |volume, errors| {
        let path = Path::new("spec");
        if volume.list_at(&["spec", "accessModes"]).is_empty() {
            errors.required(&path.child("accessModes"), "");
        }
        match volume.map_at(&["spec", "capacity"]) {
            Some(capacity) if capacity.len() == 1 && capacity.contains_key("storage") => {}
            Some(capacity) if !capacity.is_empty() => {
                let value = Value::Map(capacity.clone());
                errors.not_supported(&path.child("capacity"), value, &["storage"]);
            }
            _ => {
                errors.required(&path.child("capacity"), "");
                errors.not_supported(&path.child("capacity"), Value::Null, &["storage"]);
            }
        }
        if volume_source(volume).is_empty() {
            errors.required(&path, "must specify a volume type");
        }
        let policy = volume.str_at(&["spec", "persistentVolumeReclaimPolicy"]);
        let path = path.child("persistentVolumeReclaimPolicy");
        errors.one_of(&path, policy, &["Delete", "Recycle", "Retain"]);
    },
    validate_update: |subresource, new, old, errors| {
        if !subresource.is_empty() {
            return;
        }
        let source = |o: &Object| Value::Map(volume_source(o));
        if !semantically_equal(Some(&source(new)), Some(&source(old))) {
            let why = "spec.persistentvolumesource is immutable after creation";
            errors.forbidden(&"spec.persistentvolumesource".into(), why);
        }
        let path = "spec.volumeMode".into();
        errors.immutable(&path, new.at(&["spec", "volumeMode"]), old.at(&["spec", "volumeMode"]));
    },
    initial_status: |_| Some(value!({"phase": "Pending"})),
    returns_deleted: true,
    fields: &["spec.storageClassName", "name"],
    columns: &VOLUME_COLUMNS,
    ..PLAIN
};

/// What of a volume's spec says where it is.
fn volume_source(volume: &Object) -> Map {
    let mut map = volume.map_at(&["spec"]).cloned().unwrap_or_default();
    for field in [
        "accessModes",
        "capacity",
        "claimRef",
        "mountOptions",
        "nodeAffinity",
        "persistentVolumeReclaimPolicy",
        "storageClassName",
        "volumeAttributesClassName",
        "volumeMode",
    ] {
        map.remove(field);
    }
    map
}

static CLAIM_COLUMNS: [Column; 9] = [
    NAME,
    Column::text("Status", |o, _| phase(o)),
    Column::text("Volume", |o, _| o.str_at(&["spec", "volumeName"]).into()),
    Column::text("Capacity", |o, _| {
        bound(o, || o.str_at(&["status", "capacity", "storage"]).into())
    }),
    Column::text("Access Modes", |o, _| bound(o, || modes(o, &["status", "accessModes"]))),
    Column::text("StorageClass", |o, _| class(o)),
    ATTRIBUTES_CLASS,
    AGE,
    MODE,
];

fn bound(claim: &Object, cell: impl FnOnce() -> String) -> Value {
    if claim.str_at(&["spec", "volumeName"]).is_empty() { "".into() } else { cell().into() }
}

pub(crate) const CLAIMS: Facts = Facts {
    default: |claim| {
        spec(claim, |spec| {
            or(spec, "volumeMode", "Filesystem");
            or(spec, "resources", machinery::Map::new());
            inside(spec, "resources", |resources| {
                for field in ["requests", "limits"] {
                    inside(resources, field, canonical_quantities);
                }
            });
        });
    },
    validate: |claim, errors| {
        let path = Path::new("spec");
        if claim.list_at(&["spec", "accessModes"]).is_empty() {
            errors.required(&path.child("accessModes"), "at least 1 access mode is required");
        }
        for mode in claim.list_at(&["spec", "accessModes"]).iter().filter_map(Value::as_str) {
            let path = path.child("accessModes");
            errors.one_of(
                &path,
                mode,
                &["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"],
            );
        }
        if claim.at(&["spec", "resources", "requests", "storage"]).is_none() {
            errors.required(&path.child("resources").key("storage"), "");
        }
    },
    validate_update: |subresource, new, old, errors| {
        if !subresource.is_empty() {
            return;
        }
        let fixed = |o: &Object| {
            let mut spec = o.map_at(&["spec"]).cloned().unwrap_or_default();
            spec.remove("volumeAttributesClassName");
            if old.str_at(&["status", "phase"]) == "Bound" {
                spec.remove_at(&["resources", "requests", "storage"]);
            }
            if old.str_at(&["spec", "volumeName"]).is_empty() {
                spec.remove("volumeName");
            }
            Value::Map(spec)
        };
        if !semantically_equal(Some(&fixed(new)), Some(&fixed(old))) {
            let why = "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims\n";
            errors.forbidden(&"spec".into(), why);
        }
    },
    initial_status: |_| Some(value!({"phase": "Pending"})),
    returns_deleted: true,
    fields: &["spec.volumeName", "name"],
    columns: &CLAIM_COLUMNS,
    ..PLAIN
};
