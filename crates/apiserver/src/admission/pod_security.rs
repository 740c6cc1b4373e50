//! Says that the labels of the pod security standards are not enforced yet.

use api::Status;
use async_trait::async_trait;
use registry::{Attributes, Operation};

use super::{Plugin, World, is_resource};

pub struct PodSecurity;
pub const PLUGIN: PodSecurity = PodSecurity;

const PREFIX: &str = "pod-security.kubernetes.io/";

#[async_trait]
impl Plugin for PodSecurity {
    async fn validate(&self, _: &World, attributes: &Attributes<'_>) -> Result<(), Status> {
        let written = matches!(attributes.operation, Operation::Create | Operation::Update);
        if !written || !is_resource(attributes, "", "namespaces") {
            return Ok(());
        }
        let Some(labels) = attributes.object.as_ref().and_then(|namespace| namespace.labels())
        else {
            return Ok(());
        };
        let strict = labels.iter().any(|(key, value)| {
            key.starts_with(PREFIX) && matches!(value.as_str(), Some("baseline" | "restricted"))
        });
        if strict {
            attributes.context.warn(
                "the pod-security.kubernetes.io labels are stored but not enforced by this version: pods are not checked",
            );
        }
        Ok(())
    }
}
