//! The shape of every built-in kind, as data: types, fields, list keys, merge strategies,
//! protobuf numbers, and the resources that serve them.
//!
//! The facts lie in `data/types.txt` and `data/resources.txt`, written by `cargo xtask facts`
//! from the published API description; [`schema`] parses them once. Names are slices of the
//! embedded text, so that the whole schema costs about a megabyte.

mod load;

use std::sync::LazyLock;

use crate::{GroupVersion, GroupVersionKind, GroupVersionResource};

/// The schema of the built-in API, parsed on first use.
pub fn schema() -> &'static Schema {
    static SCHEMA: LazyLock<Schema> = LazyLock::new(load::embedded);
    &SCHEMA
}

/// All types, kinds and resources.
#[derive(Debug, Default)]
pub struct Schema {
    types: Vec<TypeDef>,
    /// Sorted by group, version, kind.
    kinds: Vec<Kind>,
    /// Sorted by group, version, plural.
    resources: Vec<Resource>,
    /// Types by name.
    type_names: stdx::HashMap<&'static str, TypeId>,
}

/// An index into the types of the [`Schema`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TypeId(u32);

/// A kind that can stand at the root of a body: `apps/v1, Kind=Deployment`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kind {
    pub gvk: GroupVersionKind,
    pub ty: TypeId,
}

/// A resource under `/api/v1` or `/apis/GROUP/VERSION`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resource {
    pub gvr: GroupVersionResource,
    pub gvk: GroupVersionKind,
    pub list_kind: &'static str,
    pub singular: &'static str,
    pub short_names: Vec<&'static str>,
    pub categories: Vec<&'static str>,
    pub namespaced: bool,
    pub verbs: Vec<&'static str>,
    pub subresources: Vec<Subresource>,
    /// Whether a server of this version serves it without further flags.
    pub served: bool,
    /// The version in which upstream writes it to the store.
    pub storage_version: GroupVersion,
    /// Where its keys begin below `/registry/`: `pods`, `services/specs`, `minions`.
    /// Empty when it is not stored (reviews, bindings).
    pub storage_prefix: &'static str,
}

/// `pods/log`, `deployments/scale`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subresource {
    pub name: &'static str,
    /// The kind of its body; group and version are filled in.
    pub gvk: GroupVersionKind,
    pub verbs: Vec<&'static str>,
}

/// One struct of the API.
#[derive(Clone, Debug, PartialEq)]
pub struct TypeDef {
    /// The name in OpenAPI: `io.k8s.api.core.v1.PodSpec`.
    pub name: &'static str,
    /// The last part of the name, as error texts of the decoder give it: `PodSpec`.
    pub short_name: &'static str,
    /// The type as Go prints it: `v1.PodSpec`.
    pub go_name: &'static str,
    /// Owned as a whole by one manager (`x-kubernetes-map-type: atomic` on the type).
    pub atomic: bool,
    /// Sorted by JSON name.
    pub fields: Vec<Field>,
    /// Indices into `fields` in the order in which Go declares, writes and checks them.
    pub declared: Vec<u16>,
}

/// One field of a struct, under its JSON name.
#[derive(Clone, Debug, PartialEq)]
pub struct Field {
    pub name: &'static str,
    pub ty: FieldType,
    /// Listed as required in the published description.
    pub required: bool,
    /// A default that the description declares; JSON text. Zero values are not given.
    pub default: Option<&'static str>,
    /// The protobuf field number; 0 when it is not part of the message (`apiVersion`, `kind`).
    pub proto: u32,
    /// Numbers of the messages that hold it inside its struct's message: a volume's source is
    /// inline in JSON but a message of its own in protobuf. Outermost first, mostly empty.
    pub proto_outer: Vec<u32>,
    /// A list that protobuf wraps into a message with one repeated field 1.
    pub proto_items: bool,
    pub list_type: Option<ListType>,
    /// Keys of a list of type `map`.
    pub map_keys: Vec<&'static str>,
    /// `atomic` for maps and structs that have one owner; otherwise granular.
    pub map_type: Option<MapType>,
    pub patch_strategy: PatchStrategy,
    /// The key by which strategic merge finds the same item; empty when none.
    pub patch_merge_key: &'static str,
    /// The values of a closed set of strings; empty when open.
    pub enum_values: Vec<&'static str>,
    /// Left out of JSON when empty: for scalars, lists, maps and pointers. A struct that is no
    /// pointer is written all the same, as `{}` (a zero time as `null`).
    pub omit_empty: bool,
    /// Left out of JSON when zero, structs too.
    pub omit_zero: bool,
    /// May be absent as opposed to zero (a pointer in Go).
    pub pointer: bool,
    /// The OpenAPI format when it does not follow from the type.
    pub format: &'static str,
    /// The name of a named scalar, list or map type (`v1.Protocol`); empty when unnamed.
    pub go_type: &'static str,
    /// The inline structs that declare it (`VolumeSource`), which error texts mention.
    pub inline: &'static str,
}

/// The type of a field's value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FieldType {
    Bool,
    Int32,
    Int64,
    UInt32,
    UInt64,
    Float64,
    String,
    /// Base64 in JSON.
    Bytes,
    Quantity,
    IntOrString,
    /// RFC 3339 in whole seconds.
    Time,
    /// RFC 3339 with six digits.
    MicroTime,
    /// A Go duration such as `1m30s`.
    Duration,
    /// Any object.
    RawExtension,
    /// The set of paths in `managedFields`.
    FieldsV1,
    /// Any JSON value.
    Json,
    /// `JSONSchemaProps` or a list of them.
    SchemaOrArray(TypeId),
    /// `JSONSchemaProps` or a bool.
    SchemaOrBool(TypeId),
    /// `JSONSchemaProps` or a list of strings.
    SchemaOrStrings(TypeId),
    Ref(TypeId),
    List(Box<FieldType>),
    /// String keys to values.
    Map(Box<FieldType>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListType {
    Atomic,
    Set,
    Map,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapType {
    Granular,
    Atomic,
}

/// `x-kubernetes-patch-strategy`, which is a set of flags.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PatchStrategy {
    pub merge: bool,
    pub replace: bool,
    pub retain_keys: bool,
}

impl Schema {
    /// The resource by its plural, served by default or not.
    pub fn resource(&self, group: &str, version: &str, plural: &str) -> Option<&Resource> {
        let key = (group, version, plural);
        let at = self.resources.binary_search_by(|r| resource_key(r).cmp(&key)).ok()?;
        Some(&self.resources[at])
    }

    /// Sorted by group, version and plural.
    pub fn resources(&self) -> &[Resource] {
        &self.resources
    }

    /// The resources that a server serves without further flags.
    pub fn served(&self) -> impl Iterator<Item = &Resource> {
        self.resources.iter().filter(|r| r.served)
    }

    /// The first resource whose objects are of this kind.
    pub fn resource_of_kind(&self, gvk: &GroupVersionKind) -> Option<&Resource> {
        self.resources.iter().find(|r| r.gvk == *gvk)
    }

    /// A kind by name. Kinds of the machinery (`DeleteOptions`, `Status`, `WatchEvent`, …) are
    /// found under every group and version.
    pub fn kind(&self, gvk: &GroupVersionKind) -> Option<&Kind> {
        self.exact_kind(&gvk.group, &gvk.version, &gvk.kind)
            .or_else(|| self.exact_kind("meta.k8s.io", "v1", &gvk.kind))
    }

    fn exact_kind(&self, group: &str, version: &str, kind: &str) -> Option<&Kind> {
        let key = (group, version, kind);
        let at = self.kinds.binary_search_by(|k| kind_key(k).cmp(&key)).ok()?;
        Some(&self.kinds[at])
    }

    /// Sorted by group, version and kind.
    pub fn kinds(&self) -> &[Kind] {
        &self.kinds
    }

    pub fn type_of(&self, id: TypeId) -> &TypeDef {
        &self.types[id.0 as usize]
    }

    /// A type by its OpenAPI name.
    pub fn type_named(&self, name: &str) -> Option<TypeId> {
        self.type_names.get(name).copied()
    }

    /// The struct of a kind.
    pub fn type_of_kind(&self, gvk: &GroupVersionKind) -> Option<&TypeDef> {
        Some(self.type_of(self.kind(gvk)?.ty))
    }

    pub fn types(&self) -> impl Iterator<Item = (TypeId, &TypeDef)> {
        self.types.iter().enumerate().map(|(at, ty)| (TypeId(at as u32), ty))
    }
}

fn resource_key(r: &Resource) -> (&str, &str, &str) {
    (&r.gvr.group, &r.gvr.version, &r.gvr.resource)
}

fn kind_key(k: &Kind) -> (&str, &str, &str) {
    (&k.gvk.group, &k.gvk.version, &k.gvk.kind)
}

impl Resource {
    pub fn subresource(&self, name: &str) -> Option<&Subresource> {
        self.subresources.iter().find(|s| s.name == name)
    }

    pub fn has_verb(&self, verb: &str) -> bool {
        self.verbs.contains(&verb)
    }

    /// The store's key prefix of all objects, with a slash at the end; `None` when not stored.
    pub fn storage_root(&self) -> Option<String> {
        (!self.storage_prefix.is_empty()).then(|| format!("/registry/{}/", self.storage_prefix))
    }
}

impl TypeId {
    /// The place of the type in [`Schema::types`].
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

impl TypeDef {
    pub fn field(&self, name: &str) -> Option<&Field> {
        let at = self.fields.binary_search_by(|f| f.name.cmp(name)).ok()?;
        Some(&self.fields[at])
    }

    /// Fields in the order of Go's declaration.
    pub fn declared_fields(&self) -> impl Iterator<Item = &Field> {
        self.declared.iter().map(|&at| &self.fields[usize::from(at)])
    }
}

impl FieldType {
    /// The struct behind a reference, also below lists and maps.
    pub fn struct_id(&self) -> Option<TypeId> {
        match self {
            Self::Ref(id) => Some(*id),
            Self::List(inner) | Self::Map(inner) => inner.struct_id(),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_pods() {
        let pods = schema().resource("", "v1", "pods").unwrap();
        assert_eq!(pods.short_names, ["po"]);
        assert!(pods.namespaced && pods.served && pods.has_verb("watch"));
        assert_eq!(pods.subresource("eviction").unwrap().gvk.api_version(), "policy/v1");
        assert_eq!(pods.storage_root().unwrap(), "/registry/pods/");
        let pod = schema().type_of_kind(&pods.gvk).unwrap();
        assert_eq!(pod.go_name, "v1.Pod");
        let FieldType::Ref(spec) = pod.field("spec").unwrap().ty else {
            panic!("spec is a struct")
        };
        let spec = schema().type_of(spec);
        let containers = spec.field("containers").unwrap();
        assert_eq!(containers.patch_merge_key, "name");
        assert_eq!((containers.list_type, containers.proto), (Some(ListType::Map), 2));
        assert_eq!(spec.field("restartPolicy").unwrap().go_type, "v1.RestartPolicy");
    }

    #[test]
    fn inline_structs_keep_their_message_in_protobuf() {
        let volume = schema().type_named("io.k8s.api.core.v1.Volume").unwrap();
        let source = schema().type_of(volume).field("hostPath").unwrap();
        assert_eq!((source.proto, source.proto_outer.as_slice()), (1, [2].as_slice()));
    }

    #[test]
    fn odd_storage_places_are_known() {
        let prefix = |group, plural| schema().resource(group, "v1", plural).unwrap().storage_prefix;
        assert_eq!(prefix("", "services"), "services/specs");
        assert_eq!(prefix("", "nodes"), "minions");
        assert_eq!(prefix("networking.k8s.io", "ingresses"), "ingress");
        let hpa = schema().resource("autoscaling", "v1", "horizontalpodautoscalers").unwrap();
        assert_eq!(hpa.storage_version.version, "v2");
    }

    #[test]
    fn machinery_kinds_are_found_in_every_group() {
        let options = GroupVersionKind::new("apps", "v1", "DeleteOptions");
        assert_eq!(schema().type_of_kind(&options).unwrap().short_name, "DeleteOptions");
    }

    #[test]
    fn every_resource_has_the_types_that_it_names() {
        for resource in schema().resources() {
            assert!(schema().kind(&resource.gvk).is_some(), "{}", resource.gvk);
            for sub in &resource.subresources {
                assert!(schema().kind(&sub.gvk).is_some(), "{}", sub.gvk);
            }
            if resource.has_verb("list") {
                let list = resource.gvr.group_version().kind(resource.list_kind);
                assert!(schema().kind(&list).is_some(), "{list}");
            }
        }
        assert_eq!(schema().served().count(), 72);
    }
}
