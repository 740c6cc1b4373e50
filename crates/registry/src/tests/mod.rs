//! Scenarios over a real embedded store in a temporary directory, on virtual time.

mod answers;
mod kinds;
mod lists;
mod pipeline;
mod shared;
mod watches;

use std::{future::Future, sync::Arc};

use api::{GroupVersionResource, Status};
use machinery::{Object, Value};
use stdx::{Env, files::RealFiles};

use crate::{
    AdmitAll, CreateOptions, DeleteOptions, Deleted, GetOptions, ListOptions, Options, Registry,
    RequestContext, Resource, UpdateOptions,
};

/// Runs a scenario on a fresh registry.
pub(crate) fn run<F, Fut>(options: Options, scenario: F)
where
    F: FnOnce(World) -> Fut,
    Fut: Future<Output = ()>,
{
    let dir = tempfile::tempdir().expect("a temporary directory");
    stdx::env::simulate(7, Arc::new(RealFiles), |env| async move {
        let store = store::embedded::Embedded::open(&env, dir.path(), Default::default())
            .await
            .expect("a new store");
        let registry = Registry::open(env.clone(), store.clone(), options);
        scenario(World { env, registry }).await;
        store.close().await;
    });
}

#[derive(Clone)]
pub(crate) struct World {
    pub env: Env,
    pub registry: Arc<Registry>,
}

pub(crate) fn object(value: Value) -> Object {
    Object::from_value(value).expect("an object")
}

impl World {
    pub fn cx(&self) -> RequestContext {
        RequestContext::internal(self.env.now())
    }

    pub fn at(&self, group: &str, version: &str, resource: &str) -> Arc<Resource> {
        let gvr = GroupVersionResource {
            group: group.into(),
            version: version.into(),
            resource: resource.into(),
        };
        self.registry.resource(&gvr).unwrap_or_else(|| panic!("{gvr} is served"))
    }

    pub fn core(&self, resource: &str) -> Arc<Resource> {
        self.at("", "v1", resource)
    }

    pub async fn create(&self, at: &Arc<Resource>, value: Value) -> Result<Object, Status> {
        let object = object(value);
        let namespace = object.namespace().to_owned();
        at.create(&self.cx(), &namespace, object, &CreateOptions::default(), &AdmitAll).await
    }

    pub async fn get(
        &self,
        at: &Arc<Resource>,
        namespace: &str,
        name: &str,
    ) -> Result<Object, Status> {
        at.get(namespace, name, &GetOptions::default()).await?.object()
    }

    /// A PUT of the current object after `edit`.
    pub async fn edit(
        &self,
        at: &Arc<Resource>,
        key: (&str, &str),
        subresource: &str,
        edit: impl Fn(&mut Object) + Send + Sync,
    ) -> Result<Object, Status> {
        let change = |current: Option<&Object>| {
            let mut object = current.cloned().expect("no create on update here");
            edit(&mut object);
            Ok(object)
        };
        let options = UpdateOptions::default();
        let (namespace, name) = key;
        let done = at
            .update(&self.cx(), namespace, name, subresource, &change, &options, &AdmitAll)
            .await?;
        Ok(done.0)
    }

    pub async fn delete(
        &self,
        at: &Arc<Resource>,
        namespace: &str,
        name: &str,
        options: DeleteOptions,
    ) -> Result<Deleted, Status> {
        at.delete(&self.cx(), namespace, name, &options, &AdmitAll).await
    }

    pub async fn names(
        &self,
        at: &Arc<Resource>,
        namespace: &str,
        options: &ListOptions,
    ) -> Vec<String> {
        let list = at.list(Some(namespace), options).await.expect("a list");
        list.entries.iter().map(|entry| entry.name().to_owned()).collect()
    }
}

/// A field error's text, or the message of any other failure.
pub(crate) fn text<T>(result: Result<T, Status>) -> String {
    match result {
        Ok(_) => "no error".into(),
        Err(status) => status.message,
    }
}
