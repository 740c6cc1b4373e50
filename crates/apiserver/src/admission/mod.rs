//! Admission: what is added to objects and what is refused, beyond roles and validation.
//!
//! Flow: the registry calls [`Chain`] before it validates (`mutate`) and before it writes
//! (`validate`); the chain calls every plugin of [`plugins::PLUGINS`] in order. A plugin looks at
//! the attributes first, so that one that has nothing to say costs nothing.

mod certificates;
mod default_class;
mod default_toleration_seconds;
mod escalation;
mod limit_ranger;
mod namespace_lifecycle;
mod node_restriction;
mod plugins;
mod pod_security;
mod priority;
mod service_account;
mod taint_nodes;
mod unenforced;

use std::sync::Arc;

use api::Status;
use async_trait::async_trait;
use registry::{Admission, Attributes, Operation};
use stdx::Env;

use crate::{authz::Authorizer, config::ServerConfig, data::Data};

pub use plugins::PLUGINS;

/// What plugins decide by.
pub struct World {
    pub env: Env,
    pub data: Data,
    pub authorizer: Arc<Authorizer>,
    pub default_toleration_seconds: i64,
}

/// One admission plugin.
#[async_trait]
pub trait Plugin: Send + Sync {
    /// May change `attributes.object`. Called again when a write lost a race.
    async fn mutate(&self, _world: &World, _attributes: &mut Attributes<'_>) -> Result<(), Status> {
        Ok(())
    }

    async fn validate(&self, _world: &World, _attributes: &Attributes<'_>) -> Result<(), Status> {
        Ok(())
    }
}

/// A line of the plugin table.
pub struct Entry {
    /// The name that `--disable-admission-plugins` of Kubernetes knows it by, where there is one.
    pub name: &'static str,
    pub plugin: &'static dyn Plugin,
}

/// All plugins, in order.
pub struct Chain {
    world: World,
}

impl Chain {
    pub fn new(
        env: &Env,
        data: &Data,
        authorizer: &Arc<Authorizer>,
        config: &ServerConfig,
    ) -> Self {
        Self {
            world: World {
                env: env.clone(),
                data: data.clone(),
                authorizer: authorizer.clone(),
                default_toleration_seconds: config.default_toleration_seconds,
            },
        }
    }
}

#[async_trait]
impl Admission for Chain {
    async fn mutate(&self, attributes: &mut Attributes<'_>) -> Result<(), Status> {
        for entry in PLUGINS {
            entry.plugin.mutate(&self.world, attributes).await?;
        }
        Ok(())
    }

    async fn validate(&self, attributes: &Attributes<'_>) -> Result<(), Status> {
        for entry in PLUGINS {
            entry.plugin.validate(&self.world, attributes).await?;
        }
        Ok(())
    }
}

/// Whether the attributes are about this operation on this resource itself.
fn is(attributes: &Attributes<'_>, operation: Operation, group: &str, resource: &str) -> bool {
    attributes.operation == operation
        && is_resource(attributes, group, resource)
        && attributes.subresource.is_empty()
}

fn is_resource(attributes: &Attributes<'_>, group: &str, resource: &str) -> bool {
    attributes.resource.resource() == resource && attributes.resource.group() == group
}

/// The 403 with which a plugin refuses an object.
fn refuse(attributes: &Attributes<'_>, why: &str) -> Status {
    let name = match (attributes.name, &attributes.object) {
        ("", Some(object)) => object.name(),
        (name, _) => name,
    };
    Status::forbidden(attributes.resource.group(), attributes.resource.resource(), name, why)
}
