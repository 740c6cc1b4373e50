//! What a cluster needs beyond Kubernetes' own objects so that nodes can join, and how a joining
//! node comes to trust the server.

use std::sync::Arc;

use anyhow::{Context, Result};
use api::GroupVersionResource;
use base64::{Engine, prelude::BASE64_STANDARD};
use machinery::{Map, Object, value};
use registry::{AdmitAll, CreateOptions, Registry, RequestContext};
use stdx::Env;

use super::{ADMIN_GROUP, control_plane::ControlPlaneConfig};

const RBAC: &str = "rbac.authorization.k8s.io";

/// Bindings for the owner, for joining nodes and for the server's way to them, the DNS role and
/// the join token.
pub async fn ensure_cluster_objects(
    env: &Env,
    registry: &Arc<Registry>,
    config: &ControlPlaneConfig,
) -> Result<()> {
    let group = |name: &str| value!({ "apiGroup": RBAC, "kind": "Group", "name": name });
    let user = |name: &str| value!({ "apiGroup": RBAC, "kind": "User", "name": name });
    let bindings = [
        ("gantry:cluster-admins", "cluster-admin", group(ADMIN_GROUP)),
        (
            "gantry:apiserver-to-kubelet",
            "system:kubelet-api-admin",
            user("kube-apiserver-kubelet-client"),
        ),
        ("gantry:node-bootstrapper", "system:node-bootstrapper", group("system:bootstrappers")),
        (
            "gantry:node-client-certificates",
            "system:certificates.k8s.io:certificatesigningrequests:nodeclient",
            group("system:bootstrappers"),
        ),
        (
            "gantry:node-certificate-rotation",
            "system:certificates.k8s.io:certificatesigningrequests:selfnodeclient",
            group("system:nodes"),
        ),
        ("gantry:dns", "gantry:dns", user(super::node::DNS_USER)),
        (
            "gantry:certificate-approver",
            "gantry:certificate-approver",
            value!({
                "kind": "ServiceAccount",
                "namespace": "kube-system",
                "name": "gantry-certificate-approver",
            }),
        ),
    ];
    ensure(env, registry, "clusterroles", dns_role()).await?;
    ensure(env, registry, "clusterroles", approver_role()).await?;
    for (name, role, subject) in bindings {
        let mut binding = Object::new(&format!("{RBAC}/v1"), "ClusterRoleBinding", "", name);
        binding
            .root_mut()
            .insert("roleRef", value!({ "apiGroup": RBAC, "kind": "ClusterRole", "name": role }));
        binding.root_mut().insert("subjects", vec![subject]);
        ensure(env, registry, "clusterrolebindings", binding).await?;
    }
    match &config.bootstrap_token {
        Some(token) => ensure(env, registry, "secrets", token_secret(token)?).await,
        None => Ok(()),
    }
}

/// For the controller that approves what a joined node asks for.
fn approver_role() -> Object {
    const CERTIFICATES: &str = "certificates.k8s.io";
    let mut role =
        Object::new(&format!("{RBAC}/v1"), "ClusterRole", "", "gantry:certificate-approver");
    role.root_mut().insert(
        "rules",
        value!([
            {
                "apiGroups": [CERTIFICATES],
                "resources": ["certificatesigningrequests/approval"],
                "verbs": ["update"],
            },
            {
                "apiGroups": [CERTIFICATES],
                "resources": ["signers"],
                "resourceNames": [
                    "kubernetes.io/kube-apiserver-client",
                    "kubernetes.io/kubelet-serving",
                ],
                "verbs": ["approve"],
            },
        ]),
    );
    role
}

fn dns_role() -> Object {
    let mut role = Object::new(&format!("{RBAC}/v1"), "ClusterRole", "", "gantry:dns");
    role.root_mut().insert(
        "rules",
        value!([
            { "apiGroups": [""], "resources": ["services", "pods", "namespaces"], "verbs": ["list", "watch"] },
            { "apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"] },
        ]),
    );
    role
}

/// The Secret of a bootstrap token `id.secret`.
fn token_secret(token: &str) -> Result<Object> {
    let (id, secret) = token.split_once('.').context("a bootstrap token is id.secret")?;
    let mut object = Object::new("v1", "Secret", "kube-system", &format!("bootstrap-token-{id}"));
    object.root_mut().insert("type", "bootstrap.kubernetes.io/token");
    let data = [
        ("token-id", id),
        ("token-secret", secret),
        ("usage-bootstrap-authentication", "true"),
        ("usage-bootstrap-signing", "true"),
    ];
    let data: Map = data.into_iter().map(|(k, v)| (k, BASE64_STANDARD.encode(v))).collect();
    object.root_mut().insert("data", data);
    Ok(object)
}

/// Creates the object unless one of its name is there.
async fn ensure(env: &Env, registry: &Arc<Registry>, plural: &str, object: Object) -> Result<()> {
    let gvk = object.gvk().context("an object without a kind")?;
    let gvr =
        GroupVersionResource { group: gvk.group, version: gvk.version, resource: plural.into() };
    let resource = registry.resource(&gvr).with_context(|| format!("{gvr} is not served"))?;
    let context = RequestContext::internal(env.now());
    let namespace = object.namespace().to_owned();
    let name = object.name().to_owned();
    let created =
        resource.create(&context, &namespace, object, &CreateOptions::default(), &AdmitAll).await;
    match created {
        Err(status) if !status.is_already_exists() => {
            Err(status).with_context(|| format!("cannot create {plural} {name}"))
        }
        _ => Ok(()),
    }
}
