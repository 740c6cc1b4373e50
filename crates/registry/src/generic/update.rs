//! Update: PUT, every PATCH and apply.

use api::Status;
use bytes::Bytes;
use machinery::{Map, Object, Value};
use store::{KeyValue, Txn, TxnResult};

use super::{ATTEMPTS, Target, create, delete, ensure_namespace, meta, options_value, served};
use crate::{
    compare::semantically_equal,
    request::{Admission, Operation, UpdateFn, UpdateOptions},
    storage, strategy,
};

/// The new object, and whether it was created.
pub(crate) async fn update(
    target: &Target<'_>,
    change: &dyn UpdateFn,
    options: &UpdateOptions,
    admission: &dyn Admission,
) -> Result<(Object, bool), Status> {
    for _ in 0..ATTEMPTS {
        let Some(stored) = read(target).await? else {
            match create_instead(target, change, options, admission).await {
                // Somebody else created it meanwhile: it is an update after all.
                Err(status) if status.is_already_exists() && !target.cx.dry_run => continue,
                done => return done.map(|object| (object, true)),
            }
        };
        if let Some(object) = attempt(target, change, options, admission, stored).await? {
            return Ok((served(target.resource, &object), false));
        }
        target.resource.storage.shared.metrics.conflicts_retried.add();
    }
    let info = target.resource.info();
    Err(Status::modified(info.group(), info.resource(), target.name))
}

pub(super) async fn read(target: &Target<'_>) -> Result<Option<KeyValue>, Status> {
    let range = store::Range::key(target.key());
    let read = target.resource.storage.shared.store.range(range).await;
    Ok(read.map_err(storage::failed)?.items.pop())
}

async fn create_instead(
    target: &Target<'_>,
    change: &dyn UpdateFn,
    options: &UpdateOptions,
    admission: &dyn Admission,
) -> Result<Object, Status> {
    let resource = target.resource;
    let allowed = options.apply || resource.strategy().allows_create_on_update();
    if !allowed || !target.subresource.is_empty() {
        return Err(resource.info().not_found(target.name));
    }
    let mut object = change.update(None)?;
    if !object.uid().is_empty() && options.apply {
        let why = format!(
            "uid mismatch: the provided object specified uid {}, and no existing object was found",
            object.uid()
        );
        return Err(resource.info().conflict(target.name, &why));
    }
    resource.to_stored(&mut object);
    super::default_stored(resource, &mut object);
    ensure_namespace(resource, target.namespace, &mut object)?;
    let values = options_value("UpdateOptions", target.cx);
    if !options.apply {
        object.set_resource_version("");
        meta::track(target, None, &mut object);
    }
    let object = target.mutate(admission, Operation::Create, object, None, values).await?;
    create::create_named(resource, target.cx, target.namespace, object, admission).await
}

/// One try against one stored version. `None`: the race was lost.
async fn attempt(
    target: &Target<'_>,
    change: &dyn UpdateFn,
    options: &UpdateOptions,
    admission: &dyn Admission,
    stored: KeyValue,
) -> Result<Option<Object>, Status> {
    let (resource, strategy) = (target.resource, target.resource.strategy().clone());
    let old = resource.storage.decode(&stored.value, stored.mod_revision)?;
    let mut new = change.update(Some(&served(resource, &old)))?;
    resource.to_stored(&mut new);
    super::default_stored(resource, &mut new);
    check_uid(target, &new, &old)?;
    let values = options_value("UpdateOptions", target.cx);
    if !options.apply {
        meta::track(target, Some(&old), &mut new);
    }
    let mut new =
        target.mutate(admission, Operation::Update, new, Some(&old), values.clone()).await?;
    check_version(target, &mut new, &old)?;
    prepare(target, &mut new, &old)?;
    validate(target, &new, &old)?;
    strategy.allocate(resource, target.cx, &mut new, Some(&old)).await?;
    let written = async {
        target.validate(admission, Operation::Update, Some(&new), Some(&old), values).await?;
        write(target, &mut new, &old, &stored).await
    };
    let written = written.await;
    match &written {
        // A dry run claimed nothing.
        _ if target.cx.dry_run => {}
        Ok(true) => strategy.release(resource, &old, Some(&new)).await,
        // What this try claimed beyond the old object goes back.
        _ => strategy.release(resource, &new, Some(&old)).await,
    }
    Ok(written?.then_some(new))
}

/// An object that was deleted and created again under its name is another one.
fn check_uid(target: &Target<'_>, new: &Object, old: &Object) -> Result<(), Status> {
    if new.uid().is_empty() || new.uid() == old.uid() {
        return Ok(());
    }
    let why = format!(
        "StorageError: invalid object, Code: 4, Key: {}, ResourceVersion: 0, AdditionalErrorMsg: Precondition failed: \
         UID in precondition: {}, UID in object meta: {}",
        target.key(),
        new.uid(),
        old.uid()
    );
    Err(target.resource.info().conflict(target.name, &why))
}

fn check_version(target: &Target<'_>, new: &mut Object, old: &Object) -> Result<(), Status> {
    let info = target.resource.info();
    match new.resource_version() {
        "" | "0" if target.resource.strategy().allows_unconditional_update() => {
            new.set_resource_version(old.resource_version());
            Ok(())
        }
        "" | "0" => {
            let causes = strategy::check(|errors| {
                let path = "metadata.resourceVersion".into();
                errors.invalid(&path, 0, "must be specified for an update");
            });
            // Upstream names the resource here, not the kind.
            Err(Status::invalid(info.group(), info.resource(), target.name, causes))
        }
        version if version == old.resource_version() => Ok(()),
        version if version.parse::<u64>().is_err() => {
            let causes = strategy::check(|errors| {
                let detail = format!("strconv.ParseUint: parsing {version:?}: invalid syntax");
                errors.invalid(&"resourceVersion".into(), version, &detail);
            });
            Err(info.invalid(target.name, causes))
        }
        _ => Err(Status::modified(info.group(), info.resource(), target.name)),
    }
}

/// What an update cannot change stays; the two sides of `status` stay apart.
fn prepare(target: &Target<'_>, new: &mut Object, old: &Object) -> Result<(), Status> {
    let (resource, strategy) = (target.resource, target.resource.strategy());
    ensure_namespace(resource, target.namespace, new)?;
    meta::keep_system_fields(new, old);
    let has_status = resource.info().has_subresource("status");
    match target.subresource {
        "" if has_status => keep(new, old, "status"),
        "status" => keep_all_but_status(new, old),
        _ => {}
    }
    strategy.prepare_update(target.cx, target.subresource, new, old);
    let counts = !matches!(target.subresource, "status" | "binding");
    if strategy.has_generation() && counts && strategy.generation_changes(new, old) {
        new.set_generation(old.generation() + 1);
    }
    Ok(())
}

pub(crate) fn keep(new: &mut Object, old: &Object, field: &str) {
    match old.root().get(field) {
        Some(value) => new.root_mut().insert(field, value.clone()),
        None => new.root_mut().remove(field),
    };
}

fn keep_all_but_status(new: &mut Object, old: &Object) {
    let mut fields: Vec<_> = old.root().keys().chain(new.root().keys()).cloned().collect();
    fields.retain(|field| !matches!(field.as_str(), "status" | "metadata" | "kind" | "apiVersion"));
    for field in fields {
        keep(new, old, &field);
    }
}

fn validate(target: &Target<'_>, new: &Object, old: &Object) -> Result<(), Status> {
    let (info, strategy) = (target.resource.info(), target.resource.strategy());
    let causes = strategy::check(|errors| {
        meta::validate_update(info, strategy.name_rule(), new, old, errors);
        if matches!(target.subresource, "" | "scale") && strategy.revalidates() {
            strategy.validate_create(new, errors);
        }
        strategy.validate_update(target.subresource, new, old, errors);
    });
    if !causes.is_empty() {
        return Err(info.invalid(target.name, causes));
    }
    if target.subresource.is_empty() {
        for warning in strategy.warnings(new, Some(old)) {
            target.cx.warn(warning);
        }
    }
    Ok(())
}

/// Writes, unless nothing changed; deletes instead when the last finalizer went. `false`: the
/// race was lost.
async fn write(
    target: &Target<'_>,
    new: &mut Object,
    old: &Object,
    stored: &KeyValue,
) -> Result<bool, Status> {
    let (resource, shared) = (target.resource, &target.resource.storage.shared);
    if delete::due(resource, new, old) {
        return if target.cx.dry_run {
            Ok(true)
        } else {
            delete::remove(target, new, stored).await
        };
    }
    if unchanged(new, old) {
        *new = old.clone();
        return Ok(true);
    }
    let bytes: Bytes = resource.storage.encode(new)?;
    *new = resource.storage.decode(&bytes, stored.mod_revision)?;
    if target.cx.dry_run || bytes == stored.value {
        return Ok(true);
    }
    let mut txn = Txn::put_if(stored.key.clone(), bytes, stored.mod_revision);
    if let store::Op::Put { lease, .. } = &mut txn.then {
        *lease = stored.lease;
    }
    match shared.store.txn(txn).await.map_err(storage::failed)? {
        TxnResult::Written { revision, .. } => {
            new.set_resource_version(&revision.to_string());
            Ok(true)
        }
        TxnResult::Conflict { .. } => Ok(false),
    }
}

/// Whether nothing but the times in `managedFields` differs.
fn unchanged(new: &Object, old: &Object) -> bool {
    let rest = |object: &Object| {
        let mut map = object.root().clone();
        map.remove("metadata");
        Value::Map(map)
    };
    new == old
        || (semantically_equal(Some(&rest(new)), Some(&rest(old)))
            && semantically_equal(Some(&timeless(new)), Some(&timeless(old))))
}

fn timeless(object: &Object) -> Value {
    let mut metadata: Map = object.metadata().cloned().unwrap_or_default();
    if let Some(entries) = metadata.get_mut("managedFields").and_then(Value::as_list_mut) {
        for entry in entries.iter_mut().filter_map(Value::as_map_mut) {
            entry.remove("time");
        }
    }
    metadata.into()
}
