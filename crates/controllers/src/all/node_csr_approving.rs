//! Approves what a joined node asks for beyond its own client certificate: its serving
//! certificate, and the users of its proxy and its DNS server. Upstream leaves these to an
//! administrator or to an add-on's service account; here they are part of the agent.

use client::Key;
use machinery::{Object, Value, value};
use rcgen::SanType;
use stdx::Timestamp;

use crate::{
    certificates::{API_SERVER_CLIENT, KUBELET_SERVING, Request, has},
    plan::*,
    resources::*,
};

pub const CONTROLLER: Controller = Controller {
    name: "node-certificatesigningrequest-approving-controller",
    account: "gantry-certificate-approver",
    primary: &CERTIFICATE_SIGNING_REQUESTS,
    watches: &[],
    rbac: &[allow_sub(&CERTIFICATE_SIGNING_REQUESTS, "approval", &["update"])],
    workers: 1,
    work: Work::Reconcile(reconcile),
};

/// The users, besides its own, that a node's agent acts as.
const COMPONENTS: &[&str] = &["system:kube-proxy", "system:gantry:dns"];

fn reconcile(key: &Key, world: &World, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    let Some(request) = world.object(&CERTIFICATE_SIGNING_REQUESTS, key) else { return plan };
    if !has(&request, "Approved") && !has(&request, "Denied") && is_due(&request) {
        plan.push(Intent::Update {
            resource: &CERTIFICATE_SIGNING_REQUESTS,
            subresource: "approval",
            object: approved(request, now),
        });
    }
    plan
}

/// Whether a node asks for what every node of ours has.
fn is_due(object: &Object) -> bool {
    let user = object.str_at(&["spec", "username"]);
    let groups = object.list_at(&["spec", "groups"]);
    let is_node = groups.iter().any(|group| group.as_str() == Some("system:nodes"));
    let Some(node) = user.strip_prefix("system:node:").filter(|_| is_node) else { return false };
    let Ok(request) = Request::read(object) else { return false };
    if request.validate().is_err() {
        return false;
    }
    match request.signer.as_str() {
        KUBELET_SERVING => request.common_name() == user && names_only(&request, node),
        API_SERVER_CLIENT => {
            let params = &request.params.params;
            let plain = params.subject_alt_names.is_empty()
                && params.distinguished_name.iter().count() == 1;
            plain && COMPONENTS.contains(&request.common_name())
        }
        _ => false,
    }
}

/// No DNS name but the node's own.
fn names_only(request: &Request, node: &str) -> bool {
    request.params.params.subject_alt_names.iter().all(|name| match name {
        SanType::DnsName(dns) => dns.as_str() == node,
        SanType::IpAddress(_) => true,
        _ => false,
    })
}

fn approved(mut request: Object, now: Timestamp) -> Object {
    let now = now.rfc3339();
    let mut conditions: Vec<Value> = request.list_at(&["status", "conditions"]).to_vec();
    conditions.push(value!({
        "type": "Approved",
        "status": "True",
        "reason": "AutoApproved",
        "message": "Auto approving a certificate of a joined node's agent.",
        "lastUpdateTime": now,
        "lastTransitionTime": now,
    }));
    request.set_at(&["status", "conditions"], conditions);
    request
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::{Engine, prelude::BASE64_STANDARD};
    use rcgen::{CertificateParams, DnType, DnValue, KeyPair};

    fn request(user: &str, signer: &str, common_name: &str, organization: &str) -> Object {
        request_for(CertificateParams::default(), "client auth", user, signer, common_name, organization)
    }

    fn request_for(
        mut params: CertificateParams,
        usage: &str,
        user: &str,
        signer: &str,
        common_name: &str,
        organization: &str,
    ) -> Object {
        let key = KeyPair::generate().unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        let text = |text: &str| DnValue::Utf8String(text.to_owned());
        params.distinguished_name.push(DnType::CommonName, text(common_name));
        if !organization.is_empty() {
            params.distinguished_name.push(DnType::OrganizationName, text(organization));
        }
        let pem = params.serialize_request(&key).unwrap().pem().unwrap();
        Object::from_value(value!({
            "spec": {
                "request": BASE64_STANDARD.encode(pem),
                "signerName": signer,
                "usages": ["digital signature", usage],
                "username": user,
                "groups": ["system:nodes", "system:authenticated"],
            },
        }))
        .unwrap()
    }

    #[test]
    fn a_node_may_serve_under_its_own_name_alone() {
        let ask = |dns: &str| {
            let mut params = CertificateParams::new(vec![dns.to_owned()]).unwrap();
            params.subject_alt_names.push(SanType::IpAddress([10, 0, 0, 1].into()));
            let user = "system:node:a";
            let object =
                request_for(params, "server auth", user, KUBELET_SERVING, user, "system:nodes");
            (is_due(&object), Request::read(&object).map(|r| r.validate()))
        };
        assert!(ask("a").0, "{:?}", ask("a").1);
        assert!(!ask("kubernetes.default").0);
    }

    #[test]
    fn a_node_gets_its_components_users_and_no_others() {
        let ask = |user, name, organization| {
            is_due(&request(user, API_SERVER_CLIENT, name, organization))
        };
        assert!(ask("system:node:a", "system:kube-proxy", ""));
        assert!(!ask("system:node:a", "system:kube-scheduler", ""));
        assert!(!ask("system:node:a", "system:kube-proxy", "system:masters"));
        assert!(!ask("mallory", "system:kube-proxy", ""));
    }
}
