//! Delete: grace, finalizers, and the end.

use std::{sync::Arc, time::Duration};

use api::Status;
use machinery::{Object, Value};
use stdx::Timestamp;
use store::{KeyValue, Txn, TxnResult};

use super::{ATTEMPTS, Target, options_value, served, update};
use crate::{
    RequestContext, Resource,
    cache::list::ListResult,
    request::{Admission, DeleteOptions, Deleted, ListOptions, Operation, Propagation},
    storage,
    strategy::Strategy,
};

const ORPHAN: &str = "orphan";
const FOREGROUND: &str = "foregroundDeletion";

/// What is to be done with one version of an object.
#[derive(Clone, Debug, PartialEq)]
enum Plan {
    /// Nothing changes: it is being deleted already.
    Pending,
    /// Write this state; the object stays until its finalizers or the grace period are over.
    Mark(Object),
    Remove,
}

pub(crate) async fn delete(
    target: &Target<'_>,
    options: &DeleteOptions,
    admission: &dyn Admission,
) -> Result<Deleted, Status> {
    let resource = target.resource;
    for _ in 0..ATTEMPTS {
        let stored =
            update::read(target).await?.ok_or_else(|| resource.info().not_found(target.name))?;
        let mut object = resource.storage.decode(&stored.value, stored.mod_revision)?;
        check_preconditions(target, &object, options)?;
        let values = delete_options_value(options, target.cx);
        let mut attributes = target.attributes(Operation::Delete, None, Some(&object), values);
        admission.mutate(&mut attributes).await?;
        admission.validate(&attributes).await?;
        let done = match plan(&**resource.strategy(), target.cx.time, &object, options) {
            Plan::Pending => {
                Some(Deleted::Object { object: served(resource, &object), gone: false })
            }
            Plan::Mark(marked) => mark(target, marked, &stored).await?,
            Plan::Remove => {
                let gone = target.cx.dry_run || remove(target, &mut object, &stored).await?;
                gone.then(|| answer(resource, &object))
            }
        };
        if let Some(done) = done {
            return Ok(done);
        }
    }
    let info = resource.info();
    Err(Status::modified(info.group(), info.resource(), target.name))
}

fn answer(resource: &Resource, object: &Object) -> Deleted {
    if resource.strategy().returns_deleted_object() {
        Deleted::Object { object: served(resource, object), gone: true }
    } else {
        Deleted::Status { name: object.name().into(), uid: object.uid().into() }
    }
}

fn delete_options_value(options: &DeleteOptions, cx: &RequestContext) -> Value {
    let mut value = options_value("DeleteOptions", cx);
    if let Some(map) = value.as_map_mut() {
        if let Some(seconds) = options.grace_period_seconds {
            map.insert("gracePeriodSeconds", seconds);
        }
        if let Some(policy) = options.propagation_policy {
            map.insert("propagationPolicy", format!("{policy:?}"));
        }
        if let Some(orphan) = options.orphan_dependents {
            map.insert("orphanDependents", orphan);
        }
        if let Some(uid) = &options.precondition_uid {
            map.set_at(&["preconditions", "uid"], uid.as_str());
        }
        if let Some(version) = &options.precondition_resource_version {
            map.set_at(&["preconditions", "resourceVersion"], version.as_str());
        }
    }
    value
}

fn check_preconditions(
    target: &Target<'_>,
    object: &Object,
    options: &DeleteOptions,
) -> Result<(), Status> {
    let info = target.resource.info();
    // Upstream names the kind here, not the resource.
    let conflict = |why: &str| Status::conflict(info.group(), info.kind(), target.name, why);
    if let Some(uid) = options.precondition_uid.as_deref().filter(|uid| *uid != object.uid()) {
        let why = format!(
            "the UID in the precondition ({uid}) does not match the UID in record ({}). The object might have been \
             deleted and then recreated",
            object.uid()
        );
        return Err(conflict(&why));
    }
    let version = options.precondition_resource_version.as_deref();
    if let Some(version) = version.filter(|version| *version != object.resource_version()) {
        let why = format!(
            "the ResourceVersion in the precondition ({version}) does not match the ResourceVersion in record ({}). \
             The object might have been modified",
            object.resource_version()
        );
        return Err(conflict(&why));
    }
    Ok(())
}

fn plan(strategy: &dyn Strategy, now: Timestamp, object: &Object, options: &DeleteOptions) -> Plan {
    let mut next = object.clone();
    let grace = grace(strategy, now, &mut next, options);
    if matches!(grace, Grace::Pending) {
        return Plan::Pending;
    }
    set_finalizers(strategy, &mut next, options);
    let held = next.finalizers().next().is_some() || !strategy.may_go(&next);
    match grace {
        Grace::Seconds(0) if !held => Plan::Remove,
        Grace::Seconds(_) => Plan::Mark(next),
        _ if held => {
            mark_as_deleting(&mut next, now);
            strategy.mark_deleting(&mut next);
            if next == *object { Plan::Pending } else { Plan::Mark(next) }
        }
        _ => Plan::Remove,
    }
}

enum Grace {
    /// The kind or the state of the object knows no grace.
    None,
    Pending,
    Seconds(i64),
}

fn grace(
    strategy: &dyn Strategy,
    now: Timestamp,
    next: &mut Object,
    options: &DeleteOptions,
) -> Grace {
    let Some(seconds) = strategy.grace_period_seconds(next, options).map(|seconds| seconds.max(0))
    else {
        return Grace::None;
    };
    if let Some(until) = next.deletion_timestamp() {
        let Some(current) = next.deletion_grace_period_seconds() else { return Grace::Pending };
        // Only a shorter period may follow.
        let Some(asked) =
            options.grace_period_seconds.map(|s| s.max(0)).filter(|&asked| asked < current)
        else {
            return Grace::Pending;
        };
        let since = until - Duration::from_secs(current.max(0) as u64);
        set_deletion(next, since + Duration::from_secs(asked as u64), asked);
        return Grace::Seconds(asked);
    }
    set_deletion(next, now + Duration::from_secs(seconds as u64), seconds);
    bump_generation(next);
    Grace::Seconds(seconds)
}

fn set_deletion(object: &mut Object, at: Timestamp, grace_seconds: i64) {
    let metadata = object.metadata_mut();
    metadata.insert("deletionTimestamp", at.rfc3339());
    metadata.insert("deletionGracePeriodSeconds", grace_seconds);
}

fn bump_generation(object: &mut Object) {
    if object.generation() > 0 {
        object.set_generation(object.generation() + 1);
    }
}

fn mark_as_deleting(object: &mut Object, now: Timestamp) {
    if object.deletion_grace_period_seconds().is_none() {
        bump_generation(object);
    }
    let due = object.deletion_timestamp().filter(|&at| at <= now);
    set_deletion(object, due.unwrap_or(now), 0);
}

/// The garbage collector's finalizers say what happens to dependents.
fn set_finalizers(strategy: &dyn Strategy, object: &mut Object, options: &DeleteOptions) {
    let Some(default) = strategy.default_propagation() else { return };
    let before: Vec<&str> = object.finalizers().collect();
    let had = |name: &str| before.contains(&name);
    let wanted = match (options.orphan_dependents, options.propagation_policy) {
        (Some(true), _) => Propagation::Orphan,
        (Some(false), _) => Propagation::Background,
        (None, Some(policy)) => policy,
        (None, None) if had(ORPHAN) => Propagation::Orphan,
        (None, None) if had(FOREGROUND) => Propagation::Foreground,
        (None, None) => default,
    };
    let add = match wanted {
        Propagation::Orphan => Some(ORPHAN),
        Propagation::Foreground => Some(FOREGROUND),
        Propagation::Background => None,
    };
    if had(ORPHAN) == (add == Some(ORPHAN)) && had(FOREGROUND) == (add == Some(FOREGROUND)) {
        return;
    }
    let kept = before.into_iter().filter(|f| *f != ORPHAN && *f != FOREGROUND);
    let list: Vec<Value> = kept.chain(add).map(Value::from).collect();
    if list.is_empty() {
        object.metadata_mut().remove("finalizers");
    } else {
        object.metadata_mut().insert("finalizers", list);
    }
}

/// Writes the mark. `None`: the race was lost.
async fn mark(
    target: &Target<'_>,
    mut marked: Object,
    stored: &KeyValue,
) -> Result<Option<Deleted>, Status> {
    let resource = target.resource;
    if !target.cx.dry_run {
        let bytes = resource.storage.encode(&marked)?;
        let mut txn = Txn::put_if(stored.key.clone(), bytes, stored.mod_revision);
        if let store::Op::Put { lease, .. } = &mut txn.then {
            *lease = stored.lease;
        }
        match resource.storage.shared.store.txn(txn).await.map_err(storage::failed)? {
            TxnResult::Written { revision, .. } => {
                marked.set_resource_version(&revision.to_string())
            }
            TxnResult::Conflict { .. } => return Ok(None),
        }
    }
    Ok(Some(Deleted::Object { object: served(resource, &marked), gone: false }))
}

/// Deletes the key. `false`: the race was lost.
pub(super) async fn remove(
    target: &Target<'_>,
    object: &mut Object,
    stored: &KeyValue,
) -> Result<bool, Status> {
    let resource = target.resource;
    let txn = Txn::delete_if(stored.key.clone(), stored.mod_revision);
    match resource.storage.shared.store.txn(txn).await.map_err(storage::failed)? {
        TxnResult::Written { revision, .. } => {
            object.set_resource_version(&revision.to_string());
            resource.strategy().release(resource, object, None).await;
            Ok(true)
        }
        TxnResult::Conflict { .. } => Ok(false),
    }
}

/// Whether an update took away the last thing that held a deleted object.
pub(super) fn due(resource: &Resource, new: &Object, old: &Object) -> bool {
    new.finalizers().next().is_none()
        && old.is_deleting()
        && old.deletion_grace_period_seconds().unwrap_or(0) == 0
        && resource.strategy().may_go(new)
}

pub(crate) async fn delete_collection(
    resource: &Arc<Resource>,
    cx: &RequestContext,
    namespace: Option<&str>,
    options: &DeleteOptions,
    list: &ListOptions,
    admission: &dyn Admission,
) -> Result<ListResult, Status> {
    let found = resource.list(namespace, list).await?;
    let options = DeleteOptions {
        precondition_uid: None,
        precondition_resource_version: None,
        ..options.clone()
    };
    for entry in &found.entries {
        let target = Target {
            resource,
            cx,
            namespace: entry.namespace(),
            name: entry.name(),
            subresource: "",
        };
        match delete(&target, &options, admission).await {
            Ok(_) => {}
            Err(status) if status.is_not_found() => {}
            Err(status) => return Err(status),
        }
    }
    Ok(found)
}
