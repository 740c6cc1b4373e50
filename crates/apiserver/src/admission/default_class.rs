//! Claims and ingresses that name no class get the default one.

use api::Status;
use async_trait::async_trait;
use machinery::Object;
use registry::{Attributes, Operation};

use super::{Plugin, World, is};

/// The resource that gets a class, the resource of classes, the annotation of the default.
pub struct DefaultClass {
    group: &'static str,
    resource: &'static str,
    classes_group: &'static str,
    classes: &'static str,
    annotation: &'static str,
    field: &'static str,
}

pub const STORAGE: DefaultClass = DefaultClass {
    group: "",
    resource: "persistentvolumeclaims",
    classes_group: "storage.k8s.io",
    classes: "storageclasses",
    annotation: "storageclass.kubernetes.io/is-default-class",
    field: "storageClassName",
};

pub const INGRESS: DefaultClass = DefaultClass {
    group: "networking.k8s.io",
    resource: "ingresses",
    classes_group: "networking.k8s.io",
    classes: "ingressclasses",
    annotation: "ingressclass.kubernetes.io/is-default-class",
    field: "ingressClassName",
};

/// Annotations that named the class before there was a field.
const OLD: [&str; 2] = ["volume.beta.kubernetes.io/storage-class", "kubernetes.io/ingress.class"];

#[async_trait]
impl Plugin for DefaultClass {
    async fn mutate(&self, world: &World, attributes: &mut Attributes<'_>) -> Result<(), Status> {
        if !is(attributes, Operation::Create, self.group, self.resource) {
            return Ok(());
        }
        let Some(object) = &mut attributes.object else { return Ok(()) };
        let named = object.at(&["spec", self.field]).is_some()
            || OLD.iter().any(|a| object.annotation(a).is_some());
        if named {
            return Ok(());
        }
        let classes = world.data.list_cached(self.classes_group, "v1", self.classes, "").await?;
        let defaults =
            classes.into_iter().filter(|class| class.annotation(self.annotation) == Some("true"));
        // The newest wins; of two of the same second, the first by name.
        let newest = |a: &Object, b: &Object| {
            (a.creation_timestamp(), b.name()).cmp(&(b.creation_timestamp(), a.name()))
        };
        if let Some(class) = defaults.max_by(newest) {
            object.set_at(&["spec", self.field], class.name());
        }
        Ok(())
    }
}
