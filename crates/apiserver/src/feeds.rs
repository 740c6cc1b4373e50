//! Informers of the server itself: they keep the authorizers' indexes equal to the store.

use std::{
    collections::BTreeSet,
    sync::{Arc, PoisonError},
    time::Duration,
};

use api::Status;
use machinery::Object;
use registry::{ListOptions, Resource, WatchKind};
use stdx::{Env, env::AbortOnDrop};
use tokio::sync::watch;

use crate::{
    authz::{Authorizer, rbac::RbacKind},
    data::Data,
};

/// The running informers; dropping it ends them.
pub struct Feeds {
    synced: Vec<watch::Receiver<bool>>,
    _tasks: Vec<AbortOnDrop<()>>,
}

impl Feeds {
    /// Returns once every informer has seen all its objects.
    pub async fn synced(&self) {
        for feed in &self.synced {
            let _ = feed.clone().wait_for(|&done| done).await;
        }
    }

    pub fn is_synced(&self) -> bool {
        self.synced.iter().all(|feed| *feed.borrow())
    }
}

/// Where an informer's objects go.
trait Sink: Send + Sync + 'static {
    fn upsert(&self, object: &Object);
    fn remove(&self, namespace: &str, name: &str);
}

const RBAC: &str = "rbac.authorization.k8s.io";

pub fn start(env: &Env, data: &Data, authorizer: &Arc<Authorizer>) -> Feeds {
    let role = || Box::new(Rbac(authorizer.clone(), RbacKind::Role)) as Box<dyn Sink>;
    let binding = || Box::new(Rbac(authorizer.clone(), RbacKind::Binding)) as Box<dyn Sink>;
    let sources: Vec<(&str, &str, Box<dyn Sink>)> = vec![
        (RBAC, "clusterroles", role()),
        (RBAC, "roles", role()),
        (RBAC, "clusterrolebindings", binding()),
        (RBAC, "rolebindings", binding()),
        ("", "pods", Box::new(Pods(authorizer.clone()))),
        ("", "persistentvolumes", Box::new(Volumes(authorizer.clone()))),
    ];
    let (mut synced, mut tasks) = (Vec::new(), Vec::new());
    for (group, name, sink) in sources {
        let Ok(resource) = data.resource(group, "v1", name) else { continue };
        let (done, receiver) = watch::channel(false);
        let task = env.spawn("server-informer", follow(env.clone(), resource, sink, done));
        synced.push(receiver);
        tasks.push(task.abort_on_drop());
    }
    Feeds { synced, _tasks: tasks }
}

/// Lists, watches, and begins anew when the watch is lost.
async fn follow(
    env: Env,
    resource: Arc<Resource>,
    sink: Box<dyn Sink>,
    synced: watch::Sender<bool>,
) {
    let mut known: BTreeSet<(String, String)> = BTreeSet::new();
    loop {
        if let Err(status) = follow_once(&resource, &*sink, &synced, &mut known).await {
            tracing::debug!(resource = resource.info().resource(), error = %status, "informer starts again");
            env.sleep(Duration::from_millis(200)).await;
        }
    }
}

async fn follow_once(
    resource: &Arc<Resource>,
    sink: &dyn Sink,
    synced: &watch::Sender<bool>,
    known: &mut BTreeSet<(String, String)>,
) -> Result<(), Status> {
    let list = resource.list(None, &ListOptions::default()).await?;
    let mut seen = BTreeSet::new();
    for object in list.objects() {
        let object = object?;
        seen.insert((object.namespace().to_owned(), object.name().to_owned()));
        sink.upsert(&object);
    }
    for (namespace, name) in known.difference(&seen) {
        sink.remove(namespace, name);
    }
    *known = seen;
    synced.send_replace(true);
    let options =
        ListOptions { resource_version: list.revision.to_string(), ..ListOptions::default() };
    let mut watch = resource.watch(None, &options).await?;
    while let Some(event) = watch.next().await {
        let object = event.object()?;
        let key = (object.namespace().to_owned(), object.name().to_owned());
        match event.kind {
            WatchKind::Added | WatchKind::Modified => {
                sink.upsert(&object);
                known.insert(key);
            }
            WatchKind::Deleted => {
                sink.remove(&key.0, &key.1);
                known.remove(&key);
            }
            WatchKind::Bookmark => {}
        }
    }
    Ok(())
}

struct Rbac(Arc<Authorizer>, RbacKind);

impl Sink for Rbac {
    fn upsert(&self, object: &Object) {
        self.0.rbac.write().unwrap_or_else(PoisonError::into_inner).upsert(self.1, object);
    }
    fn remove(&self, namespace: &str, name: &str) {
        self.0.rbac.write().unwrap_or_else(PoisonError::into_inner).remove(self.1, namespace, name);
    }
}

struct Pods(Arc<Authorizer>);

impl Sink for Pods {
    fn upsert(&self, object: &Object) {
        self.0.nodes.write().unwrap_or_else(PoisonError::into_inner).upsert_pod(object);
    }
    fn remove(&self, namespace: &str, name: &str) {
        self.0.nodes.write().unwrap_or_else(PoisonError::into_inner).remove_pod(namespace, name);
    }
}

struct Volumes(Arc<Authorizer>);

impl Sink for Volumes {
    fn upsert(&self, object: &Object) {
        self.0.nodes.write().unwrap_or_else(PoisonError::into_inner).upsert_volume(object);
    }
    fn remove(&self, _: &str, name: &str) {
        self.0.nodes.write().unwrap_or_else(PoisonError::into_inner).remove_volume(name);
    }
}
