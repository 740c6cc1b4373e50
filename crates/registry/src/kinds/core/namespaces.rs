//! Namespaces: they stay `Terminating` until their content and `spec.finalizers` are gone.

use machinery::{Value, value};

use crate::{
    edit::{copy_field, spec},
    facts::{Facts, PLAIN},
    names,
    strategy::NameRule,
    table::{AGE, Column, NAME},
};

static COLUMNS: [Column; 3] =
    [NAME, Column::text("Status", |o, _| o.str_at(&["status", "phase"]).into()), AGE];

const FINALIZER: &str = "kubernetes";

pub(crate) const FACTS: Facts = Facts {
    default: |namespace| {
        let name = namespace.name().to_owned();
        if !name.is_empty() {
            namespace.set_at(&["metadata", "labels", "kubernetes.io/metadata.name"], name);
        }
    },
    prepare_create: |_, namespace| {
        spec(namespace, |spec| {
            let finalizers = spec.list_entry("finalizers");
            if !finalizers.iter().any(|f| f.as_str() == Some(FINALIZER)) {
                finalizers.push(FINALIZER.into());
            }
        });
    },
    prepare_update: |subresource, new, old| match subresource {
        "finalize" => copy_field(new, old, &["status"]),
        "status" => {}
        _ => copy_field(new, old, &["spec", "finalizers"]),
    },
    validate: |namespace, errors| {
        for finalizer in namespace.list_at(&["spec", "finalizers"]).iter().filter_map(Value::as_str)
        {
            names::qualified_at(finalizer, &"spec.finalizers".into(), errors);
            if !finalizer.contains('/') && finalizer != FINALIZER {
                let why = "name is neither a standard finalizer name nor is it fully qualified";
                errors.invalid(&"spec.finalizers".into(), finalizer, why);
            }
        }
    },
    validate_update: |subresource, new, _, errors| {
        if subresource == "status" {
            let phase = new.str_at(&["status", "phase"]);
            let path = "status.Phase".into();
            if new.is_deleting() && phase != "Terminating" {
                errors.invalid(
                    &path,
                    phase,
                    "may only be 'Terminating' if `deletionTimestamp` is not empty",
                );
            } else if !new.is_deleting() && phase != "Active" {
                errors.invalid(
                    &path,
                    phase,
                    "may only be 'Active' if `deletionTimestamp` is empty",
                );
            }
        }
    },
    initial_status: |_| Some(value!({"phase": "Active"})),
    returns_deleted: true,
    name_rule: NameRule::Label,
    fields: &["status.phase"],
    // Its content is deleted first, whatever the delete asks for.
    may_go: |namespace| namespace.list_at(&["spec", "finalizers"]).is_empty(),
    mark_deleting: |namespace| {
        namespace.set_at(&["status", "phase"], "Terminating");
        namespace.metadata_mut().remove("deletionGracePeriodSeconds");
    },
    columns: &COLUMNS,
    ..PLAIN
};
