//! The pipeline of each verb, the same for all kinds.
//!
//! ```text
//! create: default ▸ mutate ▸ system fields, name ▸ prepare ▸ validate ▸ allocate ▸ admit ▸ put if absent
//! update: read ▸ change ▸ default ▸ mutate ▸ version check ▸ prepare ▸ validate ▸ allocate ▸ admit ▸ put if unchanged
//! delete: admit ▸ preconditions ▸ grace, finalizers ▸ mark or delete if unchanged
//! ```

pub(crate) mod create;
pub(crate) mod delete;
pub(crate) mod meta;
pub(crate) mod update;

use std::sync::Arc;

use api::Status;
use machinery::{Object, Value};

use crate::{
    RequestContext, Resource,
    request::{Admission, Attributes, Operation},
};

/// A lost race is run again so many times before the client is told.
const ATTEMPTS: usize = 64;

/// What a request is aimed at.
pub(crate) struct Target<'a> {
    pub resource: &'a Arc<Resource>,
    pub cx: &'a RequestContext,
    pub namespace: &'a str,
    pub name: &'a str,
    pub subresource: &'a str,
}

impl Target<'_> {
    fn key(&self) -> String {
        self.resource.info().key(self.namespace, self.name)
    }

    /// Runs mutating admission on an object in the stored version.
    async fn mutate(
        &self,
        admission: &dyn Admission,
        operation: Operation,
        object: Object,
        old: Option<&Object>,
        options: Value,
    ) -> Result<Object, Status> {
        let mut attributes = self.attributes(operation, Some(&object), old, options);
        admission.mutate(&mut attributes).await?;
        let mut object = attributes.object.take().unwrap_or(object);
        self.resource.to_stored(&mut object);
        default_stored(self.resource, &mut object);
        Ok(object)
    }

    async fn validate(
        &self,
        admission: &dyn Admission,
        operation: Operation,
        object: Option<&Object>,
        old: Option<&Object>,
        options: Value,
    ) -> Result<(), Status> {
        admission.validate(&self.attributes(operation, object, old, options)).await
    }

    fn attributes<'b>(
        &'b self,
        operation: Operation,
        object: Option<&Object>,
        old: Option<&Object>,
        options: Value,
    ) -> Attributes<'b> {
        Attributes {
            operation,
            resource: self.resource.info(),
            subresource: self.subresource,
            namespace: self.namespace,
            name: self.name,
            object: object.map(|object| served(self.resource, object)),
            old_object: old.map(|object| served(self.resource, object)),
            context: self.cx,
            options,
        }
    }
}

/// A copy in the version of the request.
pub(crate) fn served(resource: &Resource, object: &Object) -> Object {
    let mut object = object.clone();
    resource.to_served(&mut object);
    object
}

/// Defaults of an object in the handle's version.
pub(crate) fn default(resource: &Resource, object: &mut Object) {
    resource.to_stored(object);
    default_stored(resource, object);
    resource.to_served(object);
}

fn default_stored(resource: &Resource, object: &mut Object) {
    if let Some(kind) = api::schema().kind(&resource.storage.gvk) {
        machinery::defaults::apply(object.root_mut(), kind.ty);
    }
    resource.strategy().default(object);
}

/// `CreateOptions`, `UpdateOptions` or `DeleteOptions`, as admission sees them.
fn options_value(kind: &str, cx: &RequestContext) -> Value {
    let mut options = Object::new("meta.k8s.io/v1", kind, "", "");
    options.root_mut().remove("metadata");
    if cx.dry_run {
        options.set_at(&["dryRun"], vec![Value::from("All")]);
    }
    if !cx.field_manager.is_empty() && kind != "DeleteOptions" {
        options.set_at(&["fieldManager"], cx.field_manager.as_str());
    }
    options.into_value()
}

/// The namespace of the object is the request's, or it is refused.
fn ensure_namespace(
    resource: &Resource,
    namespace: &str,
    object: &mut Object,
) -> Result<(), Status> {
    let wanted = if resource.info().namespaced { namespace } else { "" };
    if object.namespace() == wanted {
        return Ok(());
    }
    if object.namespace().is_empty() || wanted.is_empty() {
        object.set_namespace(wanted);
        return Ok(());
    }
    let why =
        "the namespace of the provided object does not match the namespace sent on the request";
    Err(Status::bad_request(why))
}
