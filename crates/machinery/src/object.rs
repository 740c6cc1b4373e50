//! An API object and views of what all kinds share.

use api::{GroupVersion, GroupVersionKind};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use smol_str::SmolStr;
use stdx::Timestamp;

use crate::{Map, Value};

/// A Kubernetes object of any kind: a tree with `apiVersion`, `kind` and usually `metadata`.
#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Object(Map);

/// One entry of `metadata.ownerReferences`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnerReference {
    pub api_version: SmolStr,
    pub kind: SmolStr,
    pub name: SmolStr,
    pub uid: SmolStr,
    pub controller: bool,
    pub block_owner_deletion: bool,
}

impl Object {
    /// An object of a kind with a name; an empty namespace leaves the field out.
    pub fn new(api_version: &str, kind: &str, namespace: &str, name: &str) -> Self {
        let mut object = Self::default();
        object.0.insert("apiVersion", api_version);
        object.0.insert("kind", kind);
        object.set_name(name);
        if !namespace.is_empty() {
            object.set_namespace(namespace);
        }
        object
    }

    pub fn from_map(map: Map) -> Self {
        Self(map)
    }

    pub fn from_value(value: Value) -> Option<Self> {
        match value {
            Value::Map(map) => Some(Self(map)),
            _ => None,
        }
    }

    /// Parses JSON; fails on anything but an object.
    pub fn from_json(bytes: &[u8]) -> Result<Self, crate::codec::Error> {
        Self::from_value(crate::json::parse(bytes)?).ok_or(crate::codec::Error::NotAnObject)
    }

    pub fn to_json(&self) -> Vec<u8> {
        crate::json::to_vec(self)
    }

    /// Decodes into a typed struct such as `k8s_openapi::api::core::v1::Pod`. For one key at a
    /// time; never written back as a whole, because it lacks fields that it does not know.
    pub fn to_typed<T: DeserializeOwned>(&self) -> Result<T, crate::typed::Error> {
        T::deserialize(crate::typed::FromMap(&self.0))
    }

    pub fn from_typed<T: Serialize>(typed: &T) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(&serde_json::to_vec(typed)?)
    }

    pub fn root(&self) -> &Map {
        &self.0
    }

    pub fn root_mut(&mut self) -> &mut Map {
        &mut self.0
    }

    pub fn into_map(self) -> Map {
        self.0
    }

    pub fn into_value(self) -> Value {
        Value::Map(self.0)
    }

    pub fn at(&self, path: &[&str]) -> Option<&Value> {
        self.0.at(path)
    }

    pub fn str_at(&self, path: &[&str]) -> &str {
        self.0.str_at(path).unwrap_or_default()
    }

    pub fn i64_at(&self, path: &[&str]) -> Option<i64> {
        self.0.at(path)?.as_i64()
    }

    pub fn bool_at(&self, path: &[&str]) -> bool {
        self.0.at(path).and_then(Value::as_bool).unwrap_or(false)
    }

    pub fn list_at(&self, path: &[&str]) -> &[Value] {
        self.0.at(path).and_then(Value::as_list).unwrap_or(&[])
    }

    pub fn map_at(&self, path: &[&str]) -> Option<&Map> {
        self.0.at(path)?.as_map()
    }

    pub fn set_at(&mut self, path: &[&str], value: impl Into<Value>) {
        self.0.set_at(path, value);
    }

    pub fn remove_at(&mut self, path: &[&str]) -> Option<Value> {
        self.0.remove_at(path)
    }

    pub fn api_version(&self) -> &str {
        self.str_at(&["apiVersion"])
    }

    pub fn kind(&self) -> &str {
        self.str_at(&["kind"])
    }

    /// `None` when `apiVersion` or `kind` is missing or malformed.
    pub fn gvk(&self) -> Option<GroupVersionKind> {
        let kind = self.kind();
        let version = GroupVersion::parse(self.api_version())?;
        (!kind.is_empty()).then(|| version.kind(kind))
    }

    pub fn set_gvk(&mut self, gvk: &GroupVersionKind) {
        self.0.insert("apiVersion", gvk.api_version());
        self.0.insert("kind", gvk.kind.clone());
    }

    pub fn metadata(&self) -> Option<&Map> {
        self.map_at(&["metadata"])
    }

    pub fn metadata_mut(&mut self) -> &mut Map {
        self.0.map_entry("metadata")
    }

    fn meta_str(&self, field: &str) -> &str {
        self.str_at(&["metadata", field])
    }

    /// Sets a metadata field; an empty text removes it.
    fn set_meta_str(&mut self, field: &str, text: &str) {
        if text.is_empty() {
            self.0.remove_at(&["metadata", field]);
        } else {
            self.metadata_mut().insert(field, text);
        }
    }

    pub fn name(&self) -> &str {
        self.meta_str("name")
    }

    pub fn set_name(&mut self, name: &str) {
        self.set_meta_str("name", name);
    }

    pub fn generate_name(&self) -> &str {
        self.meta_str("generateName")
    }

    pub fn namespace(&self) -> &str {
        self.meta_str("namespace")
    }

    pub fn set_namespace(&mut self, namespace: &str) {
        self.set_meta_str("namespace", namespace);
    }

    pub fn uid(&self) -> &str {
        self.meta_str("uid")
    }

    pub fn set_uid(&mut self, uid: &str) {
        self.set_meta_str("uid", uid);
    }

    /// The opaque version text; empty when the object has not been stored.
    pub fn resource_version(&self) -> &str {
        self.meta_str("resourceVersion")
    }

    /// The version as the store's revision; `None` when empty or not a number.
    pub fn revision(&self) -> Option<i64> {
        self.resource_version().parse().ok()
    }

    pub fn set_resource_version(&mut self, version: &str) {
        self.set_meta_str("resourceVersion", version);
    }

    pub fn generation(&self) -> i64 {
        self.i64_at(&["metadata", "generation"]).unwrap_or(0)
    }

    pub fn set_generation(&mut self, generation: i64) {
        self.metadata_mut().insert("generation", generation);
    }

    pub fn creation_timestamp(&self) -> Option<Timestamp> {
        Timestamp::parse(self.meta_str("creationTimestamp"))
    }

    pub fn deletion_timestamp(&self) -> Option<Timestamp> {
        Timestamp::parse(self.meta_str("deletionTimestamp"))
    }

    pub fn is_deleting(&self) -> bool {
        !self.meta_str("deletionTimestamp").is_empty()
    }

    pub fn deletion_grace_period_seconds(&self) -> Option<i64> {
        self.i64_at(&["metadata", "deletionGracePeriodSeconds"])
    }

    pub fn labels(&self) -> Option<&Map> {
        self.map_at(&["metadata", "labels"])
    }

    pub fn label(&self, key: &str) -> Option<&str> {
        self.labels()?.get(key)?.as_str()
    }

    pub fn annotation(&self, key: &str) -> Option<&str> {
        self.map_at(&["metadata", "annotations"])?.get(key)?.as_str()
    }

    pub fn finalizers(&self) -> impl Iterator<Item = &str> {
        self.list_at(&["metadata", "finalizers"]).iter().filter_map(Value::as_str)
    }

    pub fn owner_references(&self) -> impl Iterator<Item = OwnerReference> {
        self.list_at(&["metadata", "ownerReferences"]).iter().filter_map(OwnerReference::read)
    }

    /// The owner with `controller: true`.
    pub fn controller_reference(&self) -> Option<OwnerReference> {
        self.owner_references().find(|owner| owner.controller)
    }
}

impl OwnerReference {
    /// Reads one list entry; `None` when it is not a map.
    pub fn read(value: &Value) -> Option<Self> {
        let map = value.as_map()?;
        let text = |key| match map.get(key) {
            Some(Value::String(text)) => text.clone(),
            _ => SmolStr::default(),
        };
        let flag = |key| map.get(key).and_then(Value::as_bool).unwrap_or(false);
        Some(Self {
            api_version: text("apiVersion"),
            kind: text("kind"),
            name: text("name"),
            uid: text("uid"),
            controller: flag("controller"),
            block_owner_deletion: flag("blockOwnerDeletion"),
        })
    }

    pub fn to_value(&self) -> Value {
        let mut map = Map::new();
        map.insert("apiVersion", self.api_version.clone());
        map.insert("kind", self.kind.clone());
        map.insert("name", self.name.clone());
        map.insert("uid", self.uid.clone());
        if self.controller {
            map.insert("controller", true);
        }
        if self.block_owner_deletion {
            map.insert("blockOwnerDeletion", true);
        }
        map.into()
    }
}

impl std::fmt::Debug for Object {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::value;

    #[test]
    fn reads_the_controlling_owner() {
        let object = Object::from_value(value!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "a", "ownerReferences": [
                {"apiVersion": "v1", "kind": "Node", "name": "n", "uid": "1"},
                {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "r", "uid": "2", "controller": true},
            ]},
        }))
        .unwrap();
        assert_eq!(object.controller_reference().unwrap().name, "r");
        assert_eq!(object.gvk().unwrap().to_string(), "v1, Kind=Pod");
    }

    #[test]
    fn an_empty_name_leaves_no_field() {
        let mut object = Object::new("v1", "Pod", "", "a");
        object.set_name("");
        assert_eq!(object.to_json(), br#"{"apiVersion":"v1","kind":"Pod","metadata":{}}"#);
    }
}
