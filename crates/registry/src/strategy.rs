//! What is particular to one kind.

use api::{Cause, Status};
use async_trait::async_trait;
use machinery::Object;
use smol_str::SmolStr;

use crate::{
    Options, RequestContext, Resource,
    errors::Errors,
    request::{DeleteOptions, Propagation},
    table::Column,
};

/// What is particular to one kind; the pipeline in `generic` does the rest. Objects are in the
/// storage version. Every method has a default that fits a kind without particulars.
#[async_trait]
pub trait Strategy: Send + Sync + 'static {
    /// Fills in what the schema's defaults lack. Must change nothing when called twice.
    fn default(&self, _object: &mut Object) {}

    /// Completes what the stored form does not hold.
    fn on_read(&self, _object: &mut Object) {}

    /// Drops what clients may not set on create. `status` has been reset before.
    fn prepare_create(&self, _cx: &RequestContext, _object: &mut Object) {}

    /// Drops what clients may not set on update. The other side of `status` and the main
    /// resource has been reset before.
    fn prepare_update(
        &self,
        _cx: &RequestContext,
        _subresource: &str,
        _new: &mut Object,
        _old: &Object,
    ) {
    }

    fn validate_create(&self, _object: &Object, _errors: &mut Errors) {}

    /// Validation of an update of the object or of a subresource. `validate_create` is called
    /// before it for the main resource alone, unless [`Strategy::revalidates`] says no.
    fn validate_update(
        &self,
        _subresource: &str,
        _new: &Object,
        _old: &Object,
        _errors: &mut Errors,
    ) {
    }

    /// Whether an update of the main resource goes through `validate_create` too.
    fn revalidates(&self) -> bool {
        true
    }

    /// How names of this kind are checked; the usual rule is a DNS subdomain.
    fn name_rule(&self) -> NameRule {
        NameRule::Subdomain
    }

    /// `Warning` headers for a create (`old` is `None`) or an update.
    fn warnings(&self, _new: &Object, _old: Option<&Object>) -> Vec<String> {
        Vec::new()
    }

    /// Claims what a create or update needs of others (addresses, ports), once per attempt,
    /// after validation of the fields. A dry run looks, but claims nothing.
    async fn allocate(
        &self,
        _at: &Resource,
        _cx: &RequestContext,
        _new: &mut Object,
        _old: Option<&Object>,
    ) -> Result<(), Status> {
        Ok(())
    }

    /// Gives back what `allocate` claimed: the write of `new` failed, or the object is gone
    /// (`new` is what was stored, `old` is `None`), or it changed from `old` to `new`.
    async fn release(&self, _at: &Resource, _gone: &Object, _kept: Option<&Object>) {}

    /// Whether `metadata.generation` counts changes of the spec.
    fn has_generation(&self) -> bool {
        false
    }

    /// The top-level fields whose change bumps the generation.
    fn generation_changes(&self, new: &Object, old: &Object) -> bool {
        let same = crate::compare::semantically_equal(new.at(&["spec"]), old.at(&["spec"]));
        !same
    }

    /// The status that a new object starts with; `None` when the kind has no status.
    fn initial_status(&self, _object: &Object) -> Option<machinery::Value> {
        None
    }

    /// Whether a PUT without `resourceVersion` overwrites.
    fn allows_unconditional_update(&self) -> bool {
        true
    }

    /// Whether a PUT of an object that does not exist creates it.
    fn allows_create_on_update(&self) -> bool {
        false
    }

    /// Whether a delete answers with the deleted object instead of a `Status`.
    fn returns_deleted_object(&self) -> bool {
        false
    }

    /// The field selectors beyond `metadata.name` and `metadata.namespace`.
    fn selectable_fields(&self) -> &'static [&'static str] {
        &[]
    }

    /// The value of a selectable field.
    fn selectable_value(&self, object: &Object, field: &str) -> SmolStr {
        let path: Vec<&str> = field.split('.').collect();
        object.str_at(&path).into()
    }

    /// The answer to a field selector that the kind does not know.
    fn unsupported_field(&self, field: &str) -> String {
        if self.selectable_fields().is_empty() {
            format!(
                "{field:?} is not a known field selector: only \"metadata.name\", \"metadata.namespace\""
            )
        } else {
            format!("field label not supported: {field}")
        }
    }

    /// Kinds that die gracefully give the period in seconds, others `None`.
    fn grace_period_seconds(&self, _object: &Object, _options: &DeleteOptions) -> Option<i64> {
        None
    }

    /// Called on the state that a delete writes when the object must stay for a while.
    fn mark_deleting(&self, _object: &mut Object) {}

    /// Whether an object whose finalizers are empty and whose deletion is due goes away.
    fn may_go(&self, _object: &Object) -> bool {
        true
    }

    /// What happens to dependents when the delete does not say.
    fn default_propagation(&self) -> Option<Propagation> {
        Some(Propagation::Background)
    }

    /// Objects of this kind vanish by themselves after so many seconds.
    fn ttl_seconds(&self, _options: &Options) -> Option<i64> {
        None
    }

    /// Where this kind keeps what the `scale` subresource shows.
    fn scale(&self) -> Option<&'static Scale> {
        None
    }

    /// The columns of `kubectl get`; empty for the usual Name and Age.
    fn columns(&self) -> &'static [Column] {
        &[]
    }

    /// Converts from the stored version to the one named.
    fn to_version(&self, _object: &mut Object, _version: &str) {}

    /// Converts from the version named to the stored one.
    fn from_version(&self, _object: &mut Object, _version: &str) {}
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameRule {
    /// RFC 1123 subdomain: most kinds.
    Subdomain,
    /// RFC 1123 label: namespaces, services.
    Label,
    /// RFC 1035 label: services.
    Label1035,
    /// A path segment: RBAC.
    PathSegment,
}

/// Dotted paths of a kind's scale subresource.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scale {
    pub replicas: &'static [&'static str],
    pub status_replicas: &'static [&'static str],
    /// `spec.selector`, a label selector or (replication controllers) a plain map.
    pub selector: &'static [&'static str],
}

/// The usual path of apps kinds.
pub const APPS_SCALE: Scale = Scale {
    replicas: &["spec", "replicas"],
    status_replicas: &["status", "replicas"],
    selector: &["spec", "selector"],
};

/// Causes as the result of a validation.
pub(crate) fn check(run: impl FnOnce(&mut Errors)) -> Vec<Cause> {
    let mut errors = Errors::default();
    run(&mut errors);
    errors.into_causes()
}
