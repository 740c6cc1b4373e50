//! Create.

use std::sync::Arc;

use api::{Reason, Status};
use bytes::Bytes;
use machinery::Object;
use store::{Op, Txn, TxnResult};

use super::{Target, ensure_namespace, meta, options_value, served};
use crate::{
    RequestContext, Resource,
    request::{Admission, CreateOptions, Operation},
    storage, strategy,
};

/// A generated name that is taken is drawn anew so often.
const NAME_ATTEMPTS: usize = 8;
const SUFFIX: usize = 5;
const LONGEST_BASE: usize = 63 - SUFFIX;

pub(crate) async fn create(
    resource: &Arc<Resource>,
    cx: &RequestContext,
    namespace: &str,
    mut object: Object,
    options: &CreateOptions,
    admission: &dyn Admission,
) -> Result<Object, Status> {
    resource.to_stored(&mut object);
    super::default_stored(resource, &mut object);
    ensure_namespace(resource, namespace, &mut object)?;
    let name = object.name().to_owned();
    let target = Target { resource, cx, namespace, name: &name, subresource: "" };
    let values = options_value("CreateOptions", cx);
    // What admission adds is nobody's field.
    if !options.keep_managed_fields {
        meta::track(&target, None, &mut object);
    }
    let mut object = target.mutate(admission, Operation::Create, object, None, values).await?;
    ensure_namespace(resource, namespace, &mut object)?;
    let generate = object.name().is_empty() && !object.generate_name().is_empty();
    let mut attempt = 0;
    loop {
        attempt += 1;
        if generate {
            let base: String = object.generate_name().chars().take(LONGEST_BASE).collect();
            let suffix = resource.storage.shared.env.name_suffix(SUFFIX);
            object.set_name(&format!("{base}{suffix}"));
        }
        match create_named(resource, cx, namespace, object.clone(), admission).await {
            Err(status) if generate && status.is_already_exists() => {
                if attempt == NAME_ATTEMPTS {
                    return Err(name_conflict(resource, object.name()));
                }
            }
            done => return done,
        }
    }
}

fn name_conflict(resource: &Resource, name: &str) -> Status {
    let mut status =
        Status::already_exists(resource.info().group(), resource.info().resource(), name);
    status.message.push_str(", the server was not able to generate a unique name for the object");
    status
}

/// From an admitted object to the written one. Also how an update creates.
pub(super) async fn create_named(
    resource: &Arc<Resource>,
    cx: &RequestContext,
    namespace: &str,
    mut object: Object,
    admission: &dyn Admission,
) -> Result<Object, Status> {
    let strategy = resource.strategy().clone();
    prepare(resource, cx, &mut object);
    validate(resource, &object)?;
    for warning in strategy.warnings(&object, None) {
        cx.warn(warning);
    }
    let name = object.name().to_owned();
    let target = Target { resource, cx, namespace, name: &name, subresource: "" };
    strategy.allocate(resource, cx, &mut object, None).await?;
    let written = async {
        let options = options_value("CreateOptions", cx);
        target.validate(admission, Operation::Create, Some(&object), None, options).await?;
        let bytes = resource.storage.encode(&object)?;
        let version = write(&target, &object, bytes.clone()).await?;
        Ok((bytes, version))
    };
    let written: Result<(Bytes, String), Status> = written.await;
    // What was claimed goes back, unless the object may have been written after all.
    let maybe_written = written.as_ref().is_err_and(|status| status.reason == Reason::Timeout);
    if !cx.dry_run && written.is_err() && !maybe_written {
        strategy.release(resource, &object, None).await;
    }
    let (bytes, version) = written?;
    // The answer is what the next reader sees.
    let mut object = resource.storage.decode(&bytes, 0)?;
    object.set_resource_version(&version);
    Ok(served(resource, &object))
}

fn prepare(resource: &Resource, cx: &RequestContext, object: &mut Object) {
    let uid = resource.storage.shared.env.uuid();
    object.set_uid(&uid);
    let metadata = object.metadata_mut();
    metadata.insert("creationTimestamp", cx.time.rfc3339());
    for field in ["deletionTimestamp", "deletionGracePeriodSeconds", "selfLink"] {
        metadata.remove(field);
    }
    reset_status(resource, object);
    if resource.strategy().has_generation() {
        object.set_generation(1);
    }
    resource.strategy().prepare_create(cx, object);
}

/// A new object starts with its kind's first status, whatever the client sent.
fn reset_status(resource: &Resource, object: &mut Object) {
    let info = resource.info();
    if let Some(status) = resource.strategy().initial_status(object) {
        object.root_mut().insert("status", status);
    } else if info.has_subresource("status") && info.custom {
        object.root_mut().remove("status");
    } else if info.has_subresource("status") {
        object.root_mut().insert("status", machinery::Map::new());
    }
}

fn validate(resource: &Resource, object: &Object) -> Result<(), Status> {
    let causes = strategy::check(|errors| {
        meta::validate_new(resource.info(), resource.strategy().name_rule(), object, errors);
        resource.strategy().validate_create(object, errors);
    });
    if causes.is_empty() { Ok(()) } else { Err(resource.info().invalid(object.name(), causes)) }
}

/// Writes, and gives the new resourceVersion (empty for a dry run).
async fn write(target: &Target<'_>, object: &Object, bytes: Bytes) -> Result<String, Status> {
    let (resource, shared) = (target.resource, &target.resource.storage.shared);
    if !object.resource_version().is_empty() && object.resource_version() != "0" {
        let why = "resourceVersion should not be set on objects to be created";
        return Err(Status::new(500, Reason::Unknown, why));
    }
    let taken = || {
        Status::already_exists(resource.info().group(), resource.info().resource(), object.name())
    };
    let key = target.key();
    if target.cx.dry_run {
        let read =
            shared.store.range(store::Range { keys_only: true, ..store::Range::key(key) }).await;
        let exists = read.map_err(storage::failed)?.count > 0;
        return if exists { Err(taken()) } else { Ok(String::new()) };
    }
    let mut txn = Txn::create(key, bytes);
    if let (Op::Put { lease, .. }, Some(seconds)) =
        (&mut txn.then, resource.strategy().ttl_seconds(&shared.options))
    {
        *lease = Some(shared.leases.lease(shared, seconds).await?);
    }
    match shared.store.txn(txn).await.map_err(storage::failed)? {
        TxnResult::Written { revision, .. } => Ok(revision.to_string()),
        TxnResult::Conflict { .. } => Err(taken()),
    }
}
