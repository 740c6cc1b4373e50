//! Certificates of the agent: its identity at the API server and its serving certificate, asked
//! for by CertificateSigningRequests, kept on disk, renewed in time.
//!
//! Flow: a bootstrap token or an older certificate ▸ key and request ▸ CSR ▸ approved and signed
//! by the controllers ▸ `DIR/kubelet-client-current.pem` ▸ [`connect`]'s client uses the newest
//! one for every new connection. [`serving`] does the same for the server's own certificate.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use async_trait::async_trait;
use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use client::{
    BodyStream, Client, Informer, InformerOptions, Resource, Transport, config::Connection,
    tls::TlsTransport,
};
use machinery::{Object, value};
use rcgen::{CertificateParams, DnType, KeyPair, SanType};
use rustls::ServerConfig;
use stdx::{CancellationToken, Env, Timestamp, backoff::Backoff, chain};
use tokio::sync::{mpsc, watch};

use crate::{Error, server::Server};

const REQUESTS: Resource = Resource::cluster(
    "certificates.k8s.io",
    "v1",
    "certificatesigningrequests",
    "CertificateSigningRequest",
);
const CLIENT_SIGNER: &str = "kubernetes.io/kube-apiserver-client-kubelet";
const SERVING_SIGNER: &str = "kubernetes.io/kubelet-serving";
const COMPONENT_SIGNER: &str = "kubernetes.io/kube-apiserver-client";
const NODES_GROUP: &str = "system:nodes";

/// A certificate chain and its key in PEM.
#[derive(Clone)]
pub struct Pair {
    pub certificate: Vec<u8>,
    pub key: Vec<u8>,
}

/// What a certificate is to say.
struct Wanted {
    user: String,
    group: Option<&'static str>,
    signer: &'static str,
    usage: &'static str,
    names: Vec<String>,
    addresses: Vec<IpAddr>,
    /// Where the pair is kept.
    file: PathBuf,
}

/// A client under the node's own identity. `bootstrap` is the connection to use as long as there
/// is no certificate; its server and CA hold for the result too. The certificate is renewed until
/// `cancel`.
pub async fn connect(
    env: &Env,
    bootstrap: &Connection,
    node_name: &str,
    directory: &Path,
    cancel: &CancellationToken,
) -> Result<Client, Error> {
    let wanted = Wanted {
        user: node_user(node_name),
        group: Some(NODES_GROUP),
        signer: CLIENT_SIGNER,
        usage: "client auth",
        names: Vec::new(),
        addresses: Vec::new(),
        file: directory.join("kubelet-client-current.pem"),
    };
    let first = Client::connect(bootstrap, "kubelet-bootstrap")?;
    connect_as(env, bootstrap, wanted, first, None, "kubelet", cancel).await
}

/// A client for another component of this node's agent, such as its proxy, under a user of its
/// own, which the node (`node`, a client under its identity) asks for and renews.
pub async fn connect_component(
    env: &Env,
    connection: &Connection,
    node: &Client,
    user: &str,
    component: &str,
    directory: &Path,
    cancel: &CancellationToken,
) -> Result<Client, Error> {
    let wanted = Wanted {
        user: user.to_owned(),
        group: None,
        signer: COMPONENT_SIGNER,
        usage: "client auth",
        names: Vec::new(),
        addresses: Vec::new(),
        file: directory.join(format!("{component}-client-current.pem")),
    };
    connect_as(env, connection, wanted, node.clone(), Some(node.clone()), component, cancel).await
}

/// `first` asks for the first certificate, `renewer` (none: the new client itself) for later ones.
async fn connect_as(
    env: &Env,
    connection: &Connection,
    wanted: Wanted,
    first: Client,
    renewer: Option<Client>,
    component: &str,
    cancel: &CancellationToken,
) -> Result<Client, Error> {
    let pair = match load(&wanted.file, env.now()) {
        Some(pair) => pair,
        None => request_until_issued(env, &first, &wanted).await?,
    };
    let renewed = connection.clone();
    let with = move |pair: &Pair| Connection {
        certificate: Some((pair.certificate.clone(), pair.key.clone())),
        token: None,
        ..renewed.clone()
    };
    let transport = Arc::new(Rotating::new(TlsTransport::new(&with(&pair))?));
    let client = Client::new(transport.clone(), component);
    let (renewer, clock) = (renewer.unwrap_or_else(|| client.clone()), env.clone());
    let cancel = cancel.clone();
    env.spawn("client certificate", async move {
        let install = |pair: &Pair| match TlsTransport::new(&with(pair)) {
            Ok(next) => transport.replace(next),
            Err(error) => tracing::error!(error = %chain(&error), "a new certificate is unusable"),
        };
        cancel.run_until_cancelled(renew(&clock, &renewer, &wanted, pair, install)).await;
    });
    Ok(client)
}

fn node_user(node_name: &str) -> String {
    format!("system:node:{node_name}")
}

/// TLS settings of the agent's server, renewed until `cancel`. `ca` verifies clients.
pub async fn serving(
    env: &Env,
    client: &Client,
    config: &crate::KubeletConfig,
    ca: &[u8],
    directory: &Path,
    cancel: &CancellationToken,
) -> Result<watch::Receiver<Arc<ServerConfig>>, Error> {
    let wanted = Wanted {
        user: node_user(&config.node_name),
        group: Some(NODES_GROUP),
        signer: SERVING_SIGNER,
        usage: "server auth",
        names: vec![config.hostname.clone()],
        addresses: config.addresses.clone(),
        file: directory.join("kubelet-server-current.pem"),
    };
    let pair = match load(&wanted.file, env.now()) {
        Some(pair) => pair,
        None => request_until_issued(env, client, &wanted).await?,
    };
    let first = Server::tls_config(ca, &pair.certificate, &pair.key)?;
    let (sender, receiver) = watch::channel(first);
    let (env, client, ca) = (env.clone(), client.clone(), ca.to_vec());
    let (cancel, clock) = (cancel.clone(), env.clone());
    env.spawn("serving certificate", async move {
        let install = |pair: &Pair| match Server::tls_config(&ca, &pair.certificate, &pair.key) {
            Ok(next) => drop(sender.send_replace(next)),
            Err(error) => tracing::error!(error = %chain(&error), "a new certificate is unusable"),
        };
        cancel.run_until_cancelled(renew(&clock, &client, &wanted, pair, install)).await;
    });
    Ok(receiver)
}

/// Renews for ever, each time after four fifths of the certificate's life.
async fn renew(
    env: &Env,
    client: &Client,
    wanted: &Wanted,
    mut pair: Pair,
    install: impl Fn(&Pair),
) {
    loop {
        let now = env.now();
        let spread = Duration::from_secs(env.random_u64() % 60);
        let wait = renewal_wait(&pair, now).unwrap_or(Duration::from_secs(60));
        env.sleep(wait.saturating_sub(spread).max(Duration::from_secs(10))).await;
        match request_until_issued(env, client, wanted).await {
            Ok(next) => {
                install(&next);
                pair = next;
            }
            Err(error) => tracing::warn!(error = %chain(&error), "a certificate was not renewed"),
        }
    }
}

fn renewal_wait(pair: &Pair, now: Timestamp) -> Option<Duration> {
    let (from, until) = validity(&pair.certificate)?;
    let due = from + until.since(from).mul_f64(0.8);
    Some(due.since(now))
}

/// When the first certificate of a PEM chain is valid.
fn validity(pem: &[u8]) -> Option<(Timestamp, Timestamp)> {
    let (_, block) = x509_parser::pem::parse_x509_pem(pem).ok()?;
    let certificate = block.parse_x509().ok()?;
    let validity = certificate.validity();
    let at = |time: x509_parser::time::ASN1Time| Timestamp::from_secs(time.timestamp());
    Some((at(validity.not_before), at(validity.not_after)))
}

/// A pair on disk that is still valid: certificates first, the key last.
fn load(file: &Path, now: Timestamp) -> Option<Pair> {
    let text = std::fs::read_to_string(file).ok()?;
    let split = text.find("-----BEGIN PRIVATE KEY-----")?;
    let (certificate, key) = text.split_at(split);
    let pair = Pair { certificate: certificate.into(), key: key.into() };
    let (_, until) = validity(&pair.certificate)?;
    (now < until).then_some(pair)
}

/// Written beside and renamed, so that a crash leaves the old pair or the new one.
fn save(file: &Path, pair: &Pair) -> std::io::Result<()> {
    use std::{io::Write, os::unix::fs::OpenOptionsExt};
    if let Some(directory) = file.parent() {
        std::fs::create_dir_all(directory)?;
    }
    let next = file.with_extension("pem.next");
    let mut options = std::fs::OpenOptions::new();
    let mut written = options.create(true).write(true).truncate(true).mode(0o600).open(&next)?;
    written.write_all(&pair.certificate)?;
    written.write_all(&pair.key)?;
    written.sync_all()?;
    std::fs::rename(next, file)
}

/// Asks again after failures; a refusal by an approver is final.
async fn request_until_issued(env: &Env, client: &Client, wanted: &Wanted) -> Result<Pair, Error> {
    const RETRY: Backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(30));
    let mut failures = 0;
    loop {
        match request(env, client, wanted).await {
            Err(Error::Api(error)) if !error.is_forbidden() => {
                failures += 1;
                tracing::info!(signer = wanted.signer, error = %chain(&error), "no certificate yet");
                env.sleep(RETRY.delay(failures)).await;
            }
            other => return other,
        }
    }
}

async fn request(env: &Env, client: &Client, wanted: &Wanted) -> Result<Pair, Error> {
    let (pem, key) = signing_request(wanted)?;
    let mut object = Object::new("certificates.k8s.io/v1", "CertificateSigningRequest", "", "");
    object.set_at(&["metadata", "generateName"], "csr-");
    let spec = value!({
        "request": BASE64_STANDARD.encode(&pem),
        "signerName": wanted.signer,
        "usages": ["digital signature", wanted.usage],
    });
    object.root_mut().insert("spec", spec);
    let created = client.create(&REQUESTS, "", &object).await?;
    let certificate = issued(env, client, created.name()).await?;
    let pair = Pair { certificate, key: key.serialize_pem().into_bytes() };
    let (file, kept) = (wanted.file.clone(), pair.clone());
    let saved = env.blocking(move || save(&file, &kept)).await;
    saved.unwrap_or(Ok(())).map_err(|source| Error::Io {
        what: format!("cannot keep the certificate in {}", wanted.file.display()),
        source,
    })?;
    Ok(pair)
}

fn signing_request(wanted: &Wanted) -> Result<(String, KeyPair), Error> {
    let fail = |source: rcgen::Error| Error::Io {
        what: "a certificate request cannot be made".into(),
        source: std::io::Error::other(source),
    };
    let mut params = CertificateParams::new(wanted.names.clone()).map_err(fail)?;
    params.subject_alt_names.extend(wanted.addresses.iter().map(|ip| SanType::IpAddress(*ip)));
    params.distinguished_name = rcgen::DistinguishedName::new();
    if let Some(group) = wanted.group {
        params.distinguished_name.push(DnType::OrganizationName, group);
    }
    params.distinguished_name.push(DnType::CommonName, wanted.user.as_str());
    let key = KeyPair::generate().map_err(fail)?;
    let request = params.serialize_request(&key).map_err(fail)?;
    Ok((request.pem().map_err(fail)?, key))
}

/// Waits until the request is signed, or refused.
async fn issued(env: &Env, client: &Client, name: &str) -> Result<Vec<u8>, Error> {
    let cancel = CancellationToken::new();
    let _ended = cancel.clone().drop_guard();
    let options = InformerOptions {
        field_selector: format!("metadata.name={name}"),
        ..InformerOptions::default()
    };
    let informer = Informer::start(env, client.clone(), &REQUESTS, options, cancel);
    let (sender, mut changes) = mpsc::unbounded_channel();
    informer.on_change(move |change| {
        let _ = sender.send(change.new.clone());
    });
    while let Some(change) = changes.recv().await {
        let Some(object) = change.and_then(|cached| cached.object().ok()) else {
            return Err(refused(format!("the request {name} was deleted")));
        };
        for condition in object.list_at(&["status", "conditions"]) {
            let field =
                |field: &str| condition.get(field).and_then(|v| v.as_str()).unwrap_or_default();
            if matches!(field("type"), "Denied" | "Failed") {
                let (kind, why) = (field("type"), field("message"));
                return Err(refused(format!("the request {name} is {kind}: {why}")));
            }
        }
        let certificate = object.str_at(&["status", "certificate"]);
        if !certificate.is_empty() {
            let decoded = BASE64_STANDARD.decode(certificate);
            return decoded
                .map_err(|_| refused(format!("the certificate of {name} is not base64")));
        }
    }
    Err(refused("the watch of the request ended".into()))
}

fn refused(what: String) -> Error {
    Error::Io { what, source: std::io::ErrorKind::PermissionDenied.into() }
}

/// A transport whose connection settings can be exchanged while it is in use.
struct Rotating(RwLock<Arc<TlsTransport>>);

impl Rotating {
    fn new(first: TlsTransport) -> Self {
        Self(RwLock::new(Arc::new(first)))
    }

    fn replace(&self, next: TlsTransport) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(next);
    }
}

#[async_trait]
impl Transport for Rotating {
    async fn send(
        &self,
        request: http::Request<Bytes>,
    ) -> Result<http::Response<BodyStream>, client::Error> {
        let current = self.0.read().unwrap_or_else(PoisonError::into_inner).clone();
        current.send(request).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(file: PathBuf) -> Wanted {
        Wanted {
            user: "system:node:node-1".into(),
            group: Some("system:nodes"),
            signer: SERVING_SIGNER,
            usage: "server auth",
            names: vec!["node-1".into()],
            addresses: vec!["192.0.2.7".parse().unwrap()],
            file,
        }
    }

    #[test]
    fn a_request_names_the_node() {
        let (pem, _) = signing_request(&wanted(PathBuf::new())).unwrap();
        let (_, block) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).unwrap();
        use x509_parser::prelude::FromDer;
        let (_, request) =
            x509_parser::certification_request::X509CertificationRequest::from_der(&block.contents)
                .unwrap();
        let subject = request.certification_request_info.subject.to_string();
        assert_eq!(subject, "O=system:nodes, CN=system:node:node-1");
        assert!(pem.contains("CERTIFICATE REQUEST"));
    }

    #[test]
    fn a_pair_survives_on_disk_until_it_expires() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("pki/client.pem");
        let mut params = CertificateParams::default();
        params.not_before = rcgen::date_time_ymd(2026, 1, 1);
        params.not_after = rcgen::date_time_ymd(2026, 1, 11);
        let key = KeyPair::generate().unwrap();
        let pair = Pair {
            certificate: params.self_signed(&key).unwrap().pem().into_bytes(),
            key: key.serialize_pem().into_bytes(),
        };
        save(&file, &pair).unwrap();
        let at = |text: &str| Timestamp::parse(text).unwrap();
        let loaded = load(&file, at("2026-01-02T00:00:00Z")).unwrap();
        assert_eq!(loaded.certificate, pair.certificate);
        assert!(load(&file, at("2026-01-12T00:00:00Z")).is_none());
        let wait = renewal_wait(&pair, at("2026-01-02T00:00:00Z")).unwrap();
        assert_eq!(wait, Duration::from_secs(7 * 86_400));
    }
}
