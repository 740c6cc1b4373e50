//! Client and serving certificates of a node's components, asked for by CertificateSigningRequest
//! and kept on the node's disk.

use std::{
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use base64::{Engine, prelude::BASE64_STANDARD};
use client::{Client, Resource};
use cluster::pki::write_private;
use machinery::{Object, Value, value};
use rcgen::{CertificateParams, DnType, KeyPair, SanType};
use stdx::Env;

const REQUESTS: Resource = Resource::cluster(
    "certificates.k8s.io",
    "v1",
    "certificatesigningrequests",
    "CertificateSigningRequest",
);

/// A certificate that a component needs.
pub struct Wanted<'a> {
    /// The file name, without `.crt` and `.key`.
    pub name: &'a str,
    pub signer: &'a str,
    pub common_name: &'a str,
    pub organization: Option<&'a str>,
    pub addresses: &'a [IpAddr],
    pub dns_names: &'a [String],
    pub serving: bool,
}

/// PEM texts of a certificate chain and its key.
#[derive(Clone)]
pub struct Issued {
    pub certificate: Vec<u8>,
    pub key: Vec<u8>,
}

/// The certificate on disk, or a new one where there is none or it is past 70% of its life.
pub async fn ensure(env: &Env, client: &Client, dir: &Path, wanted: &Wanted<'_>) -> Result<Issued> {
    if let Some(issued) = read_valid(env, dir, wanted.name) {
        return Ok(issued);
    }
    fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let key = KeyPair::generate().context("cannot make a key")?;
    let request = signing_request(&key, wanted)?;
    let created = client.create(&REQUESTS, "", &request).await.context("cannot ask for a certificate")?;
    let certificate = wait_for_certificate(env, client, created.name())
        .await
        .with_context(|| format!("no certificate for {}", wanted.common_name))?;
    let key = key.serialize_pem().into_bytes();
    write_private(&file(dir, wanted.name, "key"), &key)?;
    write_private(&file(dir, wanted.name, "crt"), &certificate)?;
    Ok(Issued { certificate, key })
}

/// The certificate on disk if it is there and not yet due for renewal.
pub fn read_valid(env: &Env, dir: &Path, name: &str) -> Option<Issued> {
    let certificate = fs::read(file(dir, name, "crt")).ok()?;
    let key = fs::read(file(dir, name, "key")).ok()?;
    let renew_at = renewal_secs(&certificate)?;
    (env.now().as_secs() < renew_at).then_some(Issued { certificate, key })
}

/// When 70% of the certificate's life have passed, in seconds since the epoch.
fn renewal_secs(pem: &[u8]) -> Option<i64> {
    let (_, pem) = x509_parser::pem::parse_x509_pem(pem).ok()?;
    let certificate = pem.parse_x509().ok()?;
    let (from, to) = (
        certificate.validity().not_before.timestamp(),
        certificate.validity().not_after.timestamp(),
    );
    Some(from + (to - from) / 10 * 7)
}

fn file(dir: &Path, name: &str, ending: &str) -> PathBuf {
    dir.join(format!("{name}.{ending}"))
}

fn signing_request(key: &KeyPair, wanted: &Wanted<'_>) -> Result<Object> {
    let mut params = CertificateParams::new(wanted.dns_names.to_vec())?;
    params.subject_alt_names.extend(wanted.addresses.iter().map(|ip| SanType::IpAddress(*ip)));
    params.distinguished_name = rcgen::DistinguishedName::new();
    if let Some(organization) = wanted.organization {
        params.distinguished_name.push(DnType::OrganizationName, organization);
    }
    params.distinguished_name.push(DnType::CommonName, wanted.common_name);
    let pem = params.serialize_request(key)?.pem()?;
    let usage = if wanted.serving { "server auth" } else { "client auth" };
    let mut object =
        Object::new("certificates.k8s.io/v1", "CertificateSigningRequest", "", "");
    object.set_at(&["metadata", "generateName"], "csr-");
    object.root_mut().insert(
        "spec",
        value!({
            "request": BASE64_STANDARD.encode(pem),
            "signerName": wanted.signer,
            "usages": ["digital signature", usage],
        }),
    );
    Ok(object)
}

const PATIENCE: Duration = Duration::from_secs(60);

/// Watches the request until it is signed or denied.
async fn wait_for_certificate(env: &Env, client: &Client, name: &str) -> Result<Vec<u8>> {
    let signed = async {
        loop {
            let request = client.get(&REQUESTS, "", name).await?;
            if let Some(outcome) = outcome_of(&request) {
                return outcome;
            }
            let options = client::ListOptions {
                field_selector: format!("metadata.name={name}"),
                resource_version: request.resource_version().into(),
                ..client::ListOptions::default()
            };
            let mut events = client.watch(&REQUESTS, "", &options).await?;
            while let Some(event) = futures::StreamExt::next(&mut events).await {
                if let Some(outcome) = outcome_of(&Object::from_json(&event?.object)?) {
                    return outcome;
                }
            }
        }
    };
    env.timeout(PATIENCE, signed).await.context("nobody signed the request in time")?
}

fn outcome_of(request: &Object) -> Option<Result<Vec<u8>>> {
    let refused = request.list_at(&["status", "conditions"]).iter().find(|condition| {
        let kind = condition.get("type").and_then(Value::as_str);
        matches!(kind, Some("Denied" | "Failed"))
    });
    if let Some(condition) = refused {
        let message = condition.get("message").and_then(Value::as_str).unwrap_or_default();
        return Some(refuse(message));
    }
    let certificate = request.str_at(&["status", "certificate"]);
    let decoded = || BASE64_STANDARD.decode(certificate).context("the certificate is not base64");
    (!certificate.is_empty()).then(decoded)
}

fn refuse(message: &str) -> Result<Vec<u8>> {
    bail!("the request was refused: {message}")
}
