//! Signs approved certificate requests for Kubernetes' own signers with the cluster's CA.

use client::Key;
use machinery::{Value, value};
use stdx::{Timestamp, chain};

use crate::{
    certificates::{API_SERVER_CLIENT, KUBELET_CLIENT, KUBELET_SERVING, LEGACY_UNKNOWN, Refusal, Request, encode, has},
    plan::*,
    resources::*,
};

pub const CONTROLLER: Controller = Controller {
    name: "certificatesigningrequest-signing-controller",
    account: "certificate-controller",
    primary: &CERTIFICATE_SIGNING_REQUESTS,
    watches: &[],
    rbac: &[allow_sub(&CERTIFICATE_SIGNING_REQUESTS, "status", &["update"])],
    workers: 2,
    work: Work::Reconcile(reconcile),
};

const OURS: [&str; 4] = [KUBELET_SERVING, KUBELET_CLIENT, API_SERVER_CLIENT, LEGACY_UNKNOWN];

fn reconcile(key: &Key, world: &World, now: Timestamp) -> Plan {
    let mut plan = Plan::none();
    let Some(object) = world.object(&CERTIFICATE_SIGNING_REQUESTS, key) else { return plan };
    let Some(signing) = &world.config().cluster_signing else { return plan };
    let ours = OURS.contains(&object.str_at(&["spec", "signerName"]));
    let approved = has(&object, "Approved") && !has(&object, "Denied") && !has(&object, "Failed");
    if !ours || !approved || !object.str_at(&["status", "certificate"]).is_empty() {
        return plan;
    }
    let longest = world.config().cluster_signing_duration;
    let signed = Request::read(&object).and_then(|request| {
        request.validate()?;
        request.sign(signing, longest, object.uid(), now)
    });
    let mut status = object.map_at(&["status"]).cloned().unwrap_or_default();
    match signed {
        Ok(pem) => {
            status.insert("certificate", encode(&pem));
        }
        Err(refusal @ (Refusal::Rule(_) | Refusal::Unreadable(_))) => {
            let mut conditions: Vec<Value> = object.list_at(&["status", "conditions"]).to_vec();
            let time = now.rfc3339();
            conditions.push(value!({
                "type": "Failed", "status": "True", "reason": "SignerValidationFailure",
                "message": chain(&refusal).to_string(), "lastUpdateTime": time, "lastTransitionTime": time,
            }));
            status.insert("conditions", conditions);
        }
        // Our own key is at fault; the request may be signed when that has been mended.
        Err(refusal) => {
            tracing::error!(error = %chain(&refusal), "cannot sign certificate requests");
            return plan;
        }
    }
    plan.set_status(&CERTIFICATE_SIGNING_REQUESTS, &object, status);
    plan
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Config, config::SigningKeyPair, scenario::{cached, world_with}};
    use base64::{Engine, engine::general_purpose::STANDARD};
    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyPair};

    fn authority() -> SigningKeyPair {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "test-ca");
        SigningKeyPair { certificate: params.self_signed(&key).unwrap().pem(), key: key.serialize_pem() }
    }

    /// A request that also asks to be a CA, which it must not become.
    fn request(organization: &str) -> client::Cached {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, organization);
        params.distinguished_name.push(DnType::CommonName, "system:node:n1");
        let pem = params.serialize_request(&key).unwrap().pem().unwrap();
        cached(value!({
            "metadata": {"name": "csr", "uid": "u"},
            "spec": {"request": STANDARD.encode(pem), "signerName": KUBELET_CLIENT,
                "usages": ["digital signature", "client auth"], "expirationSeconds": 3600},
            "status": {"conditions": [{"type": "Approved", "status": "True"}]},
        }))
    }

    fn status(organization: &str) -> machinery::Object {
        let config = Config { cluster_signing: Some(authority()), ..Config::default() };
        let world = world_with(config, [(&CERTIFICATE_SIGNING_REQUESTS, vec![request(organization)])]);
        let plan = reconcile(&Key::new("", "csr"), &world, Timestamp::from_secs(1_800_000_000));
        let Intent::Update { object, subresource: "status", .. } = &plan.steps[0].intent else { panic!() };
        object.clone()
    }

    #[test]
    fn a_signed_certificate_has_the_name_and_usages_and_is_no_authority() {
        let object = status("system:nodes");
        let pem = STANDARD.decode(object.str_at(&["status", "certificate"])).unwrap();
        let (_, pem) = x509_parser::pem::parse_x509_pem(&pem).unwrap();
        let certificate = pem.parse_x509().unwrap();
        assert!(certificate.subject().to_string().contains("system:node:n1"));
        assert!(!certificate.is_ca());
        let usage = certificate.extended_key_usage().unwrap().unwrap();
        assert!(usage.value.client_auth && !usage.value.server_auth);
        assert_eq!(certificate.validity().not_after.timestamp(), 1_800_000_000 + 3600);
    }

    #[test]
    fn what_breaks_the_signers_rules_fails() {
        let object = status("system:masters");
        let failed = object.list_at(&["status", "conditions"]).last().unwrap();
        assert_eq!(failed.get("reason"), Some(&Value::from("SignerValidationFailure")));
    }
}
