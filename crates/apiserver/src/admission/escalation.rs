//! Nobody grants what they do not have: roles and bindings are held against their writer's rules.

use api::Status;
use async_trait::async_trait;
use registry::{Attributes, Operation};

use super::{Plugin, World, refuse};
use crate::authz::escalation;

pub struct RbacEscalation;
pub const PLUGIN: RbacEscalation = RbacEscalation;

#[async_trait]
impl Plugin for RbacEscalation {
    async fn validate(&self, world: &World, attributes: &Attributes<'_>) -> Result<(), Status> {
        let written = matches!(attributes.operation, Operation::Create | Operation::Update);
        if !written || attributes.resource.group() != "rbac.authorization.k8s.io" {
            return Ok(());
        }
        let Some(object) = &attributes.object else { return Ok(()) };
        let user = &attributes.context.user;
        let resource = attributes.resource.resource();
        match escalation::check(
            &world.authorizer,
            user,
            resource,
            object,
            attributes.old_object.as_ref(),
        ) {
            Ok(()) => Ok(()),
            Err(why) => Err(refuse(attributes, &why)),
        }
    }
}
