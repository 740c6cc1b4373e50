//! Carrying a plan out.

use std::{collections::BTreeMap, time::Duration};

use client::{Client, DeleteOptions, Error, EventRecorder, Key, Patch, Resource};
use futures::{FutureExt, StreamExt, future::BoxFuture, stream};
use machinery::{Object, Value};
use stdx::{Env, backoff::Backoff, chain};

use crate::{
    plan::{Intent, Note, Plan, Step, World},
    runner::Failure,
};

/// How many writes of one plan are under way at once.
const PARALLEL: usize = 32;
/// Waits between attempts of a create whose answer was lost.
const RETRY: Backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(5));

/// What the view must show before the key is decided on again.
#[derive(Clone, Debug)]
pub enum Expectation {
    Reached { resource: &'static Resource, revision: i64 },
    Deleting { resource: &'static Resource, key: Key, uid: String },
}

/// A plan that stopped early: what stopped it.
#[derive(Debug)]
pub struct Stopped {
    pub failure: Failure,
    pub error: Error,
}

/// Applies plans under one identity.
pub struct Applier {
    pub env: Env,
    pub client: Client,
    pub recorder: EventRecorder,
}

impl Applier {
    /// Applies the steps in order, neighbouring creates in batches of 1, 2, 4, ... so that a
    /// quota or a broken template costs few requests, neighbouring deletes together. The first
    /// failure ends it. Expectations are those of all that succeeded.
    pub async fn apply(&self, plan: &Plan) -> (Vec<Expectation>, Result<(), Stopped>) {
        let mut expectations = Vec::new();
        let mut versions = Versions::default();
        for group in plan.steps.chunk_by(|a, b| a.intent.joins(&b.intent)) {
            let slow_start = matches!(group[0].intent, Intent::Create { .. });
            let mut rest = group;
            let mut size = if slow_start { 1 } else { group.len() };
            while !rest.is_empty() {
                let (batch, later) = rest.split_at(size.min(rest.len()));
                let outcome = self.batch(batch, &mut versions, &mut expectations).await;
                if let Err(stopped) = outcome {
                    return (expectations, Err(stopped));
                }
                rest = later;
                size *= 2;
            }
        }
        for note in &plan.events {
            self.tell(note, "");
        }
        (expectations, Ok(()))
    }

    async fn batch(
        &self,
        steps: &[Step],
        versions: &mut Versions,
        expectations: &mut Vec<Expectation>,
    ) -> Result<(), Stopped> {
        let known = &*versions;
        let writes: Vec<BoxFuture<'_, _>> =
            steps.iter().map(|step| self.write(&step.intent, known).boxed()).collect();
        let outcomes: Vec<_> = stream::iter(writes).buffered(PARALLEL).collect().await;
        let mut stopped = None;
        for (step, outcome) in steps.iter().zip(outcomes) {
            match outcome {
                Ok(written) => {
                    if let Some(object) = &written {
                        versions.learn(&step.intent, object);
                    }
                    expectations.extend(expectation(&step.intent, written.as_ref()));
                    if let Some(note) = &step.done {
                        self.tell(note, "");
                    }
                }
                Err(error) => {
                    if let Some(note) = &step.failed {
                        self.tell(note, &chain(&error).to_string());
                    }
                    let failure = Failure::new(&step.intent, &error);
                    stopped.get_or_insert(Stopped { failure, error });
                }
            }
        }
        stopped.map_or(Ok(()), Err)
    }

    fn tell(&self, note: &Note, suffix: &str) {
        let message = format!("{}{suffix}", note.message);
        self.recorder.record(note.about.clone(), note.event_type, note.reason, message);
    }

    /// What was written, or `None` when the object to delete was gone already.
    async fn write(&self, intent: &Intent, versions: &Versions) -> Result<Option<Object>, Error> {
        match intent {
            Intent::Create { resource, object } => self.create(resource, object).await.map(Some),
            Intent::Update { resource, subresource, object } => {
                let object = versions.current(intent, object);
                self.client.update(resource, subresource, &object).await.map(Some)
            }
            Intent::Patch { resource, key, subresource, patch } => {
                let Key { namespace, name } = key;
                let patch = versions.current_patch(intent, patch);
                self.client.patch(resource, namespace, name, subresource, &patch).await.map(Some)
            }
            Intent::Delete {
                resource,
                key,
                uid,
                revision,
                grace_period_seconds,
                propagation_policy,
            } => {
                let options = DeleteOptions {
                    grace_period_seconds: *grace_period_seconds,
                    uid: Some(uid.clone()),
                    resource_version: revision.clone(),
                    propagation_policy,
                    dry_run: false,
                };
                match self.client.delete(resource, &key.namespace, &key.name, &options).await {
                    Ok(object) => Ok(Some(object)),
                    Err(error) if error.is_not_found() => Ok(None),
                    Err(error) => Err(error),
                }
            }
        }
    }

    /// When the answer is lost nobody knows whether the object was made; the same create again,
    /// under the same name, finds out.
    async fn create(&self, resource: &Resource, object: &Object) -> Result<Object, Error> {
        let mut attempts = 0;
        loop {
            match self.client.create(resource, object.namespace(), object).await {
                Err(Error::Transport(source)) => {
                    attempts += 1;
                    tracing::debug!(name = object.name(), error = %source, "create unanswered");
                    self.env.sleep(RETRY.delay(attempts)).await;
                }
                Err(error) if error.is_already_exists() && attempts > 0 => {
                    return self.client.get(resource, object.namespace(), object.name()).await;
                }
                other => return other,
            }
        }
    }
}

impl Intent {
    fn joins(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Create { resource: a, .. }, Self::Create { resource: b, .. })
            | (Self::Delete { resource: a, .. }, Self::Delete { resource: b, .. }) => a == b,
            _ => false,
        }
    }
}

fn expectation(intent: &Intent, written: Option<&Object>) -> Option<Expectation> {
    let resource = intent.resource();
    if let Intent::Delete { key, uid, .. } = intent {
        return Some(Expectation::Deleting { resource, key: key.clone(), uid: uid.clone() });
    }
    let revision = written?.revision()?;
    Some(Expectation::Reached { resource, revision })
}

impl Expectation {
    pub async fn met(&self, world: &World) {
        match self {
            Self::Reached { resource, revision } => {
                if let Some(lister) = world.find(resource) {
                    lister.reached(*revision).await;
                }
            }
            Self::Deleting { resource, key, uid } => {
                if let Some(lister) = world.find(resource) {
                    let gone = |found: std::sync::Arc<client::Cached>| {
                        found.uid != uid.as_str() || found.is_deleting()
                    };
                    lister.until(|lister| lister.get(key).is_none_or(gone)).await;
                }
            }
        }
    }
}

/// The revisions that the plan's own writes gave, so that a second write of the same object in
/// one plan (the object, then its status) does not conflict with the first.
#[derive(Default)]
struct Versions(BTreeMap<(Resource, Key), String>);

impl Versions {
    fn learn(&mut self, intent: &Intent, written: &Object) {
        let named = (intent.resource().clone(), intent.key());
        self.0.insert(named, written.resource_version().to_owned());
    }

    fn of(&self, intent: &Intent) -> Option<&String> {
        self.0.get(&(intent.resource().clone(), intent.key()))
    }

    fn current(&self, intent: &Intent, object: &Object) -> Object {
        let mut object = object.clone();
        if let Some(version) = self.of(intent) {
            object.set_resource_version(version);
        }
        object
    }

    fn current_patch(&self, intent: &Intent, patch: &Patch) -> Patch {
        let mut patch = patch.clone();
        if let (Some(version), Patch::Strategic(Value::Map(map)) | Patch::Merge(Value::Map(map))) =
            (self.of(intent), &mut patch)
            && map.at(&["metadata", "resourceVersion"]).is_some()
        {
            map.set_at(&["metadata", "resourceVersion"], version.as_str());
        }
        patch
    }
}
