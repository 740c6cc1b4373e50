//! Reading objects for the server's own decisions, whatever their user may see.

use std::sync::Arc;

use api::{GroupVersionResource, Status};
use machinery::Object;
use registry::{GetOptions, ListOptions, Registry, Resource};

/// A reader of every kind. Cheap to clone.
#[derive(Clone)]
pub struct Data(Arc<Registry>);

impl Data {
    pub fn new(registry: Arc<Registry>) -> Self {
        Self(registry)
    }

    pub fn registry(&self) -> &Arc<Registry> {
        &self.0
    }

    /// A served resource, or the 404 that its absence means.
    pub fn resource(
        &self,
        group: &str,
        version: &str,
        resource: &str,
    ) -> Result<Arc<Resource>, Status> {
        let gvr = GroupVersionResource {
            group: group.into(),
            version: version.into(),
            resource: resource.into(),
        };
        self.0.resource(&gvr).ok_or_else(|| Status::not_found(group, resource, ""))
    }

    /// The newest state of one object.
    pub async fn get(
        &self,
        group: &str,
        version: &str,
        resource: &str,
        namespace: &str,
        name: &str,
    ) -> Result<Object, Status> {
        let resource = self.resource(group, version, resource)?;
        resource.get(namespace, name, &GetOptions::default()).await?.object()
    }

    /// Like [`Data::get`], from what is at hand: maybe a moment old.
    pub async fn get_cached(
        &self,
        group: &str,
        version: &str,
        resource: &str,
        namespace: &str,
        name: &str,
    ) -> Result<Object, Status> {
        let resource = self.resource(group, version, resource)?;
        let options = GetOptions { resource_version: "0".into() };
        resource.get(namespace, name, &options).await?.object()
    }

    /// All objects of a namespace (empty: of all), from what is at hand.
    pub async fn list_cached(
        &self,
        group: &str,
        version: &str,
        resource: &str,
        namespace: &str,
    ) -> Result<Vec<Object>, Status> {
        let resource = self.resource(group, version, resource)?;
        let options = ListOptions { resource_version: "0".into(), ..ListOptions::default() };
        let namespace = (!namespace.is_empty()).then_some(namespace);
        resource.list(namespace, &options).await?.objects().collect()
    }
}
