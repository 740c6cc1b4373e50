//! Pods get the number behind their priority class; at most one class is the default.

use api::Status;
use async_trait::async_trait;
use machinery::Object;
use registry::{Attributes, Operation};

use super::{Plugin, World, is, refuse};

pub struct Priority;
pub const PLUGIN: Priority = Priority;

const GROUP: &str = "scheduling.k8s.io";

#[async_trait]
impl Plugin for Priority {
    async fn mutate(&self, world: &World, attributes: &mut Attributes<'_>) -> Result<(), Status> {
        if !is(attributes, Operation::Create, "", "pods") {
            return Ok(());
        }
        let Some(pod) = &attributes.object else { return Ok(()) };
        let class = match pod.str_at(&["spec", "priorityClassName"]) {
            "" => default_class(world).await?,
            name => Some(find(world, name).await?.ok_or_else(|| {
                refuse(attributes, &format!("no PriorityClass with name {name} was found"))
            })?),
        };
        let priority = class.as_ref().and_then(|class| class.i64_at(&["value"])).unwrap_or(0);
        let policy = class.as_ref().map_or("", |class| class.str_at(&["preemptionPolicy"]));
        let policy = if policy.is_empty() { "PreemptLowerPriority" } else { policy };
        if pod.i64_at(&["spec", "priority"]).is_some_and(|given| given != priority) {
            return Err(refuse(
                attributes,
                &format!(
                    "the integer value of priority ({}) must not be provided in pod spec; priority admission controller computed {priority} from the given PriorityClass name",
                    pod.i64_at(&["spec", "priority"]).unwrap_or_default()
                ),
            ));
        }
        let given = pod.str_at(&["spec", "preemptionPolicy"]);
        if !given.is_empty() && given != policy {
            return Err(refuse(
                attributes,
                &format!(
                    "the string value of PreemptionPolicy ({given}) must not be provided in pod spec; priority admission controller computed {policy} from the given PriorityClass name"
                ),
            ));
        }
        let Some(pod) = &mut attributes.object else { return Ok(()) };
        if let Some(class) = &class {
            pod.set_at(&["spec", "priorityClassName"], class.name());
        }
        pod.set_at(&["spec", "priority"], priority);
        pod.set_at(&["spec", "preemptionPolicy"], policy);
        Ok(())
    }

    async fn validate(&self, world: &World, attributes: &Attributes<'_>) -> Result<(), Status> {
        let written = is(attributes, Operation::Create, GROUP, "priorityclasses")
            || is(attributes, Operation::Update, GROUP, "priorityclasses");
        let Some(class) = attributes.object.as_ref().filter(|_| written) else { return Ok(()) };
        if !class.bool_at(&["globalDefault"]) {
            return Ok(());
        }
        match default_class(world).await? {
            Some(other) if other.name() != class.name() => Err(refuse(
                attributes,
                &format!(
                    "PriorityClass {} is already marked as default. Only one default can exist",
                    other.name()
                ),
            )),
            _ => Ok(()),
        }
    }
}

async fn find(world: &World, name: &str) -> Result<Option<Object>, Status> {
    match world.data.get(GROUP, "v1", "priorityclasses", "", name).await {
        Err(status) if status.is_not_found() => Ok(None),
        found => found.map(Some),
    }
}

/// Of several defaults, the one with the lowest value.
async fn default_class(world: &World) -> Result<Option<Object>, Status> {
    let classes = world.data.list_cached(GROUP, "v1", "priorityclasses", "").await?;
    let defaults = classes.into_iter().filter(|class| class.bool_at(&["globalDefault"]));
    Ok(defaults.min_by_key(|class| class.i64_at(&["value"]).unwrap_or(0)))
}
