//! What would be stored but has no effect yet is said, and what others would rely on for safety
//! is refused: a policy that silently does nothing is worse than none.

use api::Status;
use async_trait::async_trait;
use registry::{Attributes, Operation};

use super::{Plugin, World, refuse};

pub struct Unenforced;
pub const PLUGIN: Unenforced = Unenforced;

enum Effect {
    /// Not accepted, so that nobody counts on it.
    Refuse(&'static str),
    /// Accepted with a warning.
    Warn(&'static str),
}

/// Group, resource and what is missing. A line goes when the thing works.
const MISSING: &[(&str, &str, Effect)] = &[
    (
        "admissionregistration.k8s.io",
        "mutatingwebhookconfigurations",
        Effect::Refuse("admission webhooks are not called by this version"),
    ),
    (
        "admissionregistration.k8s.io",
        "validatingwebhookconfigurations",
        Effect::Refuse("admission webhooks are not called by this version"),
    ),
    (
        "admissionregistration.k8s.io",
        "validatingadmissionpolicies",
        Effect::Refuse("admission policies are not evaluated by this version"),
    ),
    (
        "admissionregistration.k8s.io",
        "validatingadmissionpolicybindings",
        Effect::Refuse("admission policies are not evaluated by this version"),
    ),
    (
        "admissionregistration.k8s.io",
        "mutatingadmissionpolicies",
        Effect::Refuse("admission policies are not evaluated by this version"),
    ),
    (
        "admissionregistration.k8s.io",
        "mutatingadmissionpolicybindings",
        Effect::Refuse("admission policies are not evaluated by this version"),
    ),
    (
        "apiregistration.k8s.io",
        "apiservices",
        Effect::Warn(
            "APIService is stored but has no effect in this version: requests are not passed on to other servers",
        ),
    ),
    (
        "apiextensions.k8s.io",
        "customresourcedefinitions",
        Effect::Warn(
            "CustomResourceDefinition is stored but has no effect in this version: its resources are not served",
        ),
    ),
    (
        "networking.k8s.io",
        "networkpolicies",
        Effect::Warn(
            "NetworkPolicy is stored but not enforced by this version: traffic is not restricted",
        ),
    ),
    (
        "",
        "resourcequotas",
        Effect::Warn(
            "ResourceQuota is stored but not enforced by this version: usage is not limited",
        ),
    ),
    (
        "flowcontrol.apiserver.k8s.io",
        "flowschemas",
        Effect::Warn("FlowSchema is stored but has no effect in this version"),
    ),
    (
        "flowcontrol.apiserver.k8s.io",
        "prioritylevelconfigurations",
        Effect::Warn("PriorityLevelConfiguration is stored but has no effect in this version"),
    ),
];

#[async_trait]
impl Plugin for Unenforced {
    async fn validate(&self, _: &World, attributes: &Attributes<'_>) -> Result<(), Status> {
        let written = matches!(attributes.operation, Operation::Create | Operation::Update);
        if !written
            || !attributes.subresource.is_empty()
            || attributes.context.user.name == "system:apiserver"
        {
            return Ok(());
        }
        let (group, resource) = (attributes.resource.group(), attributes.resource.resource());
        match MISSING.iter().find(|(g, r, _)| *g == group && *r == resource) {
            Some((_, _, Effect::Refuse(why))) => Err(refuse(attributes, why)),
            Some((_, _, Effect::Warn(text))) => {
                attributes.context.warn(*text);
                Ok(())
            }
            None => Ok(()),
        }
    }
}
