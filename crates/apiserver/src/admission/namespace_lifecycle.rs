//! Nothing is created in a namespace that is missing or going; some namespaces never go.

use api::{Cause, Status};
use async_trait::async_trait;
use registry::{Attributes, Operation};

use super::{Plugin, World, is, refuse};

pub struct NamespaceLifecycle;
pub const PLUGIN: NamespaceLifecycle = NamespaceLifecycle;

const IMMORTAL: [&str; 3] = ["default", "kube-public", "kube-system"];

#[async_trait]
impl Plugin for NamespaceLifecycle {
    async fn mutate(&self, world: &World, attributes: &mut Attributes<'_>) -> Result<(), Status> {
        if attributes.operation != Operation::Create || !attributes.resource.namespaced {
            return Ok(());
        }
        let name = attributes.namespace;
        let namespace = match world.data.get_cached("", "v1", "namespaces", "", name).await {
            // The cache may not have seen yet what was created a moment ago.
            Err(status) if status.is_not_found() => {
                world.data.get("", "v1", "namespaces", "", name).await?
            }
            found => found?,
        };
        let terminating =
            namespace.is_deleting() || namespace.str_at(&["status", "phase"]) == "Terminating";
        if !terminating || attributes.resource.resource() == "localsubjectaccessreviews" {
            return Ok(());
        }
        let why = format!(
            "unable to create new content in namespace {name} because it is being terminated"
        );
        let mut status = refuse(attributes, &why);
        if let Some(details) = &mut status.details {
            details.causes.push(Cause {
                reason: "NamespaceTerminating".into(),
                message: format!("namespace {name} is being terminated"),
                field: "metadata.namespace".into(),
            });
        }
        Err(status)
    }

    async fn validate(&self, _: &World, attributes: &Attributes<'_>) -> Result<(), Status> {
        let immortal = is(attributes, Operation::Delete, "", "namespaces")
            && IMMORTAL.contains(&attributes.name);
        if immortal { Err(refuse(attributes, "this namespace may not be deleted")) } else { Ok(()) }
    }
}
