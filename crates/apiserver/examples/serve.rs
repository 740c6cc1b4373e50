//! A server on a loopback port over a store in a temporary directory, with certificates made for
//! this run: `serve [DIRECTORY] [PORT]` writes `admin.kubeconfig` into the directory and serves
//! until it is interrupted. For trying the real kubectl; not a way to run a cluster.

use std::path::PathBuf;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose as Usage, IsCa, Issuer,
    KeyPair,
};
use stdx::{CancellationToken, Env};

type AnyError = Box<dyn std::error::Error + Send + Sync>;

#[tokio::main]
async fn main() -> Result<(), AnyError> {
    let filter =
        tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let mut arguments = std::env::args().skip(1);
    let directory = PathBuf::from(arguments.next().unwrap_or_else(|| "serve-example".into()));
    let port: u16 = arguments.next().unwrap_or_else(|| "7443".into()).parse()?;
    std::fs::create_dir_all(&directory)?;

    let env = Env::real();
    let store =
        store::embedded::Embedded::open(&env, &directory.join("store"), Default::default()).await?;
    let registry = registry::Registry::open(env.clone(), store, registry::Options::default());
    let (ca, ca_key) = authority()?;
    let issuer = Issuer::new(ca.clone(), ca_key);
    let ca_pem = ca.self_signed(issuer.key())?.pem();
    let mut config =
        apiserver::ServerConfig::new(ca_pem.clone(), KeyPair::generate()?.serialize_pem());
    config.serving = Some(issue(&issuer, "apiserver", None, Usage::ServerAuth)?);
    config.external_address = format!("127.0.0.1:{port}");
    let (certificate, key) =
        issue(&issuer, "kubernetes-admin", Some("system:masters"), Usage::ClientAuth)?;
    std::fs::write(
        directory.join("admin.kubeconfig"),
        kubeconfig(port, &ca_pem, &certificate, &key),
    )?;

    let server = apiserver::Server::new(env, registry, config)?;
    server.bootstrap().await?;
    server.ready().await;
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", port)).await?;
    eprintln!("serving on 127.0.0.1:{port}; kubeconfig in {}", directory.display());
    let cancel = CancellationToken::new();
    let stop = cancel.clone();
    let serving = server.serve_tls(listener, cancel);
    let mut serving = std::pin::pin!(serving);
    tokio::select! {
        biased;
        done = &mut serving => done?,
        _ = tokio::signal::ctrl_c() => {
            stop.cancel();
            serving.await?;
        }
    }
    Ok(())
}

fn authority() -> Result<(CertificateParams, KeyPair), AnyError> {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "example-ca");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    Ok((params, KeyPair::generate()?))
}

fn issue(
    issuer: &Issuer<'_, KeyPair>,
    name: &str,
    group: Option<&str>,
    usage: Usage,
) -> Result<(String, String), AnyError> {
    let mut params = CertificateParams::new(["localhost".to_owned(), "127.0.0.1".to_owned()])?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    if let Some(group) = group {
        params.distinguished_name.push(DnType::OrganizationName, group);
    }
    params.extended_key_usages = vec![usage];
    let key = KeyPair::generate()?;
    Ok((params.signed_by(&key, issuer)?.pem(), key.serialize_pem()))
}

fn kubeconfig(port: u16, ca: &str, certificate: &str, key: &str) -> String {
    use base64::{Engine, engine::general_purpose::STANDARD};
    let encode = |text: &str| STANDARD.encode(text);
    format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: example\n\
         clusters:\n- name: example\n  cluster:\n    server: https://127.0.0.1:{port}\n    certificate-authority-data: {}\n\
         users:\n- name: admin\n  user:\n    client-certificate-data: {}\n    client-key-data: {}\n\
         contexts:\n- name: example\n  context: {{cluster: example, user: admin}}\n",
        encode(ca),
        encode(certificate),
        encode(key)
    )
}
