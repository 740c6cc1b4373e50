//! Facts of one served resource.

use api::{GroupVersionKind, GroupVersionResource};
use smol_str::SmolStr;

/// One resource in one version, as it stands in discovery, and where it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResourceInfo {
    pub gvr: GroupVersionResource,
    pub gvk: GroupVersionKind,
    /// `PodList`
    pub list_kind: SmolStr,
    pub singular: SmolStr,
    pub short_names: Vec<SmolStr>,
    pub categories: Vec<SmolStr>,
    pub namespaced: bool,
    pub verbs: Vec<SmolStr>,
    /// `status`, `scale`, ...
    pub subresources: Vec<SmolStr>,
    /// The version that objects are stored in.
    pub storage: GroupVersionKind,
    /// Keys begin with `/registry/` + this + `/`.
    pub prefix: SmolStr,
    /// Defined by a CustomResourceDefinition.
    pub custom: bool,
}

impl ResourceInfo {
    pub fn group(&self) -> &str {
        &self.gvr.group
    }

    pub fn resource(&self) -> &str {
        &self.gvr.resource
    }

    pub fn kind(&self) -> &str {
        &self.gvk.kind
    }

    pub fn has_subresource(&self, name: &str) -> bool {
        self.subresources.iter().any(|s| s == name)
    }

    /// The key prefix of all objects, with a slash at the end.
    pub fn root_key(&self) -> String {
        format!("/registry/{}/", self.prefix)
    }

    pub fn key(&self, namespace: &str, name: &str) -> String {
        if self.namespaced {
            format!("/registry/{}/{namespace}/{name}", self.prefix)
        } else {
            format!("/registry/{}/{name}", self.prefix)
        }
    }

    /// Whether requests see another version than the stored one.
    pub fn converts(&self) -> bool {
        self.gvk != self.storage
    }

    pub fn not_found(&self, name: &str) -> api::Status {
        api::Status::not_found(self.group(), self.resource(), name)
    }

    pub fn invalid(&self, name: &str, causes: Vec<api::Cause>) -> api::Status {
        api::Status::invalid(self.group(), self.kind(), name, causes)
    }

    pub fn conflict(&self, name: &str, why: &str) -> api::Status {
        api::Status::conflict(self.group(), self.resource(), name, why)
    }
}
