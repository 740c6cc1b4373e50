//! ConfigMaps and Secrets that pods of this node use: each watched alone, as the node authorizer
//! permits, for as long as a pod needs it.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use client::{Client, Informer, InformerOptions, Key, Resource};
use machinery::Object;
use stdx::{CancellationToken, Env};

use crate::Error;

pub static SECRETS: Resource = Resource::namespaced("", "v1", "secrets", "Secret");
pub static CONFIG_MAPS: Resource = Resource::namespaced("", "v1", "configmaps", "ConfigMap");

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    Secret,
    ConfigMap,
}

impl Kind {
    fn resource(self) -> &'static Resource {
        match self {
            Self::Secret => &SECRETS,
            Self::ConfigMap => &CONFIG_MAPS,
        }
    }

    fn lower(self) -> &'static str {
        match self {
            Self::Secret => "secret",
            Self::ConfigMap => "configmap",
        }
    }
}

/// Called when an object that a pod uses has changed.
pub type Wake = Arc<dyn Fn() + Send + Sync>;

pub struct Objects {
    env: Env,
    client: Client,
    watched: Mutex<BTreeMap<(Kind, Key), Entry>>,
}

struct Entry {
    informer: Informer,
    cancel: CancellationToken,
    users: Arc<Mutex<BTreeMap<String, Wake>>>,
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

impl Objects {
    pub fn new(env: &Env, client: Client) -> Self {
        Self { env: env.clone(), client, watched: Mutex::default() }
    }

    /// The object's current content. From now on `wake` is called when it changes, until the pod
    /// is [released](Self::release).
    pub async fn get(
        &self,
        kind: Kind,
        namespace: &str,
        name: &str,
        pod_uid: &str,
        wake: &Wake,
    ) -> Result<Object, Error> {
        let key = Key::new(namespace, name);
        let informer = self.watch(kind, &key, pod_uid, wake);
        if informer.has_synced() {
            let cached = informer.lister().get(&key).ok_or_else(|| missing(kind, name))?;
            return Ok(cached.object()?);
        }
        // The watch has only begun: ask directly, which also gives the server's own error.
        match self.client.find(kind.resource(), namespace, name).await? {
            Some(object) => Ok(object),
            None => Err(missing(kind, name)),
        }
    }

    fn watch(&self, kind: Kind, key: &Key, pod_uid: &str, wake: &Wake) -> Informer {
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = watched.entry((kind, key.clone())).or_insert_with(|| self.start(kind, key));
        let mut users = entry.users.lock().unwrap_or_else(PoisonError::into_inner);
        users.insert(pod_uid.to_owned(), wake.clone());
        entry.informer.clone()
    }

    fn start(&self, kind: Kind, key: &Key) -> Entry {
        let cancel = CancellationToken::new();
        let options = InformerOptions {
            namespace: key.namespace.to_string(),
            field_selector: format!("metadata.name={}", key.name),
            ..InformerOptions::default()
        };
        let informer = Informer::start(
            &self.env,
            self.client.clone(),
            kind.resource(),
            options,
            cancel.clone(),
        );
        let users: Arc<Mutex<BTreeMap<String, Wake>>> = Arc::default();
        let listeners = users.clone();
        informer.on_change(move |_| {
            let listeners = listeners.lock().unwrap_or_else(PoisonError::into_inner);
            listeners.values().for_each(|wake| wake());
        });
        Entry { informer, cancel, users }
    }

    /// The pod no longer uses anything; what nobody uses is no longer watched.
    pub fn release(&self, pod_uid: &str) {
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        watched.retain(|_, entry| {
            let mut users = entry.users.lock().unwrap_or_else(PoisonError::into_inner);
            users.remove(pod_uid);
            !users.is_empty()
        });
    }
}

fn missing(kind: Kind, name: &str) -> Error {
    Error::Api(client::Error::Api(api::Status::not_found("", kind.lower(), name)))
}
