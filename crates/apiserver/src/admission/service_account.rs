//! Every pod runs as a service account and finds its token, unless it says otherwise.

use api::Status;
use async_trait::async_trait;
use machinery::{Object, Value, value};
use registry::{Attributes, Operation};
use stdx::Env;

use super::{Plugin, World, is, refuse};

pub struct ServiceAccount;
pub const PLUGIN: ServiceAccount = ServiceAccount;

const MOUNT_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const VOLUME_PREFIX: &str = "kube-api-access-";
const MIRROR: &str = "kubernetes.io/config.mirror";
/// A little more than an hour, so that clients that refresh hourly never see it run out.
const TOKEN_SECONDS: i64 = 3607;

#[async_trait]
impl Plugin for ServiceAccount {
    async fn mutate(&self, world: &World, attributes: &mut Attributes<'_>) -> Result<(), Status> {
        if !is(attributes, Operation::Create, "", "pods") {
            return Ok(());
        }
        let Some(mut pod) = attributes.object.clone() else { return Ok(()) };
        if pod.annotation(MIRROR).is_some() {
            return check_mirror(attributes, &pod);
        }
        if pod.str_at(&["spec", "serviceAccountName"]).is_empty() {
            pod.set_at(&["spec", "serviceAccountName"], "default");
        }
        let name = pod.str_at(&["spec", "serviceAccountName"]).to_owned();
        let account = find(world, attributes.namespace, &name).await.map_err(|why| {
            refuse(
                attributes,
                &format!("error looking up service account {}/{name}: {why}", attributes.namespace),
            )
        })?;
        pod.set_at(&["spec", "serviceAccount"], name.as_str());
        if mounts_token(&pod, &account) {
            mount_token(&world.env, &mut pod);
        }
        if pod.list_at(&["spec", "imagePullSecrets"]).is_empty() {
            let secrets = account.list_at(&["imagePullSecrets"]);
            if !secrets.is_empty() {
                pod.set_at(&["spec", "imagePullSecrets"], secrets.to_vec());
            }
        }
        attributes.object = Some(pod);
        Ok(())
    }
}

async fn find(world: &World, namespace: &str, name: &str) -> Result<Object, Status> {
    match world.data.get_cached("", "v1", "serviceaccounts", namespace, name).await {
        Err(status) if status.is_not_found() => {
            world.data.get("", "v1", "serviceaccounts", namespace, name).await.map_err(|status| {
                // The text names the kind as the object's reader would.
                if status.is_not_found() {
                    Status::not_found("", "serviceaccount", name)
                } else {
                    status
                }
            })
        }
        found => found,
    }
}

/// Pods that a kubelet shows for its files hold nothing of the cluster.
fn check_mirror(attributes: &Attributes<'_>, pod: &Object) -> Result<(), Status> {
    if !pod.str_at(&["spec", "serviceAccountName"]).is_empty() {
        return Err(refuse(attributes, "a mirror pod may not reference service accounts"));
    }
    let volumes = pod.list_at(&["spec", "volumes"]);
    if volumes.iter().any(|volume| volume.get("secret").is_some()) {
        return Err(refuse(attributes, "a mirror pod may not reference secrets"));
    }
    let projected =
        volumes.iter().filter_map(|v| v.at(&["projected", "sources"])?.as_list()).flatten();
    let mut projected = projected;
    match projected.any(|source| source.get("serviceAccountToken").is_some()) {
        true => Err(refuse(
            attributes,
            "a mirror pod may not use ServiceAccountToken volume projections",
        )),
        false => Ok(()),
    }
}

/// The pod's word counts before the account's.
fn mounts_token(pod: &Object, account: &Object) -> bool {
    let said = |object: &Object, path: &[&str]| object.at(path).and_then(Value::as_bool);
    said(pod, &["spec", "automountServiceAccountToken"])
        .or_else(|| said(account, &["automountServiceAccountToken"]))
        .unwrap_or(true)
}

/// Adds the volume of token, authority and namespace to every container that has no mount there.
fn mount_token(env: &Env, pod: &mut Object) {
    let existing = pod.list_at(&["spec", "volumes"]).iter().find_map(|volume| {
        let name = volume.get("name").and_then(Value::as_str)?;
        name.starts_with(VOLUME_PREFIX).then(|| name.to_owned())
    });
    let is_new = existing.is_none();
    let name = existing.unwrap_or_else(|| format!("{VOLUME_PREFIX}{}", env.name_suffix(5)));
    let spec = pod.root_mut().map_entry("spec");
    let mut mounted = false;
    for list in ["initContainers", "containers"] {
        if !spec.contains_key(list) {
            continue;
        }
        for container in spec.list_entry(list).iter_mut().filter_map(Value::as_map_mut) {
            let mounts = container.get("volumeMounts").and_then(Value::as_list).unwrap_or_default();
            let taken = mounts
                .iter()
                .any(|m| m.get("mountPath").and_then(Value::as_str) == Some(MOUNT_PATH));
            if !taken {
                let mount =
                    value!({"name": name.as_str(), "readOnly": true, "mountPath": MOUNT_PATH});
                container.list_entry("volumeMounts").push(mount);
                mounted = true;
            }
        }
    }
    if mounted && is_new {
        spec.list_entry("volumes").push(token_volume(&name));
    }
}

fn token_volume(name: &str) -> Value {
    value!({
        "name": name,
        "projected": {
            "defaultMode": 420,
            "sources": [
                {"serviceAccountToken": {"expirationSeconds": TOKEN_SECONDS, "path": "token"}},
                {"configMap": {
                    "name": "kube-root-ca.crt",
                    "items": [{"key": "ca.crt", "path": "ca.crt"}],
                }},
                {"downwardAPI": {"items": [{
                    "path": "namespace",
                    "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"},
                }]}},
            ],
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_token_is_mounted_where_nothing_else_is() {
        let mut pod = Object::from_value(value!({
            "spec": {"containers": [
                {"name": "a"},
                {"name": "b", "volumeMounts": [{"name": "own", "mountPath": MOUNT_PATH}]},
            ]},
        }))
        .unwrap();
        let env = Env::real();
        mount_token(&env, &mut pod);
        let volume = pod.list_at(&["spec", "volumes"])[0].get("name").cloned();
        let containers = pod.list_at(&["spec", "containers"]);
        assert_eq!(
            containers[0].get("volumeMounts").unwrap().as_list().unwrap()[0].get("name"),
            volume.as_ref()
        );
        assert_eq!(containers[1].get("volumeMounts").unwrap().as_list().unwrap().len(), 1);
        let once = pod.clone();
        mount_token(&env, &mut pod);
        assert_eq!(pod, once, "a second round adds nothing");
    }

    #[test]
    fn the_pod_decides_before_its_account() {
        let says = |value: Value| Object::from_value(value).unwrap();
        let off = says(value!({"automountServiceAccountToken": false}));
        assert!(!mounts_token(&says(value!({"spec": {}})), &off));
        assert!(mounts_token(
            &says(value!({"spec": {"automountServiceAccountToken": true}})),
            &off
        ));
        assert!(mounts_token(&says(value!({"spec": {}})), &Object::default()));
    }
}
