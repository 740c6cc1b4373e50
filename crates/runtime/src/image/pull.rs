//! Images from a registry.

use std::{collections::BTreeSet, fs, io, path::PathBuf, sync::Arc};

use oci_client::{
    Client, Reference,
    client::{ClientConfig, ClientProtocol},
    manifest::OciDescriptor,
    secrets::RegistryAuth,
};
use stdx::Env;

use super::{Image, Incoming, LayerSource, Store};
use crate::error::{During, Error, Result};

/// How to prove oneself to a registry.
#[derive(Clone, Debug, Default)]
pub enum Credentials {
    #[default]
    None,
    Password {
        user: String,
        password: String,
    },
    Token(String),
}

impl Store {
    /// Pulls an image. Registries on this machine are spoken to in plain HTTP, all others by TLS.
    pub async fn pull(
        self: Arc<Self>,
        env: &Env,
        name: &str,
        credentials: Credentials,
    ) -> Result<Image> {
        let reference: Reference = name
            .parse()
            .map_err(|error| Error::Invalid(format!("{name:?} is no image name: {error}")))?;
        let auth = match credentials {
            Credentials::None => RegistryAuth::Anonymous,
            Credentials::Password { user, password } => RegistryAuth::Basic(user, password),
            Credentials::Token(token) => RegistryAuth::Bearer(token),
        };
        let failed =
            |error: &dyn std::fmt::Display| Error::Image(format!("pulling {name}: {error}"));
        let client = client(&reference);
        let (manifest, digest) =
            client.pull_image_manifest(&reference, &auth).await.map_err(|error| failed(&error))?;
        let mut files = Downloads(Vec::new());
        for blob in [&manifest.config].into_iter().chain(&manifest.layers) {
            let path = self.temporary("pull");
            files.0.push(path.clone());
            download(&client, &reference, blob, &path).await.map_err(|error| failed(&error))?;
        }
        let digests: Vec<String> = manifest.layers.into_iter().map(|layer| layer.digest).collect();
        let store = self.clone();
        env.blocking(move || store.add_downloaded(&reference, &digest, &files, &digests))
            .await
            .unwrap_or(Err(Error::Panic))
    }

    fn add_downloaded(
        &self,
        reference: &Reference,
        digest: &str,
        files: &Downloads,
        layer_digests: &[String],
    ) -> Result<Image> {
        let (config, layers) = files.0.split_first().ok_or(Error::Panic)?;
        let config = fs::read(config).during(|| format!("pulling {reference}"))?;
        let with_tag = (reference.digest().is_none()).then(|| reference.whole());
        let with_digest = format!("{}/{}@{digest}", reference.registry(), reference.repository());
        let layers = layers.iter().zip(layer_digests).map(|(path, digest)| LayerSource {
            open: Box::new(move || {
                let file = fs::File::open(path).during(|| "reading a layer".to_owned())?;
                Ok(Box::new(file) as Box<dyn io::Read>)
            }),
            digest: Some(digest.clone()),
        });
        self.add(Incoming {
            config,
            layers: layers.collect(),
            tags: with_tag.into_iter().collect(),
            digests: BTreeSet::from([with_digest]),
        })
    }
}

/// Downloaded files, removed whatever happens.
struct Downloads(Vec<PathBuf>);

impl Drop for Downloads {
    fn drop(&mut self) {
        self.0.iter().for_each(|path| drop(fs::remove_file(path)));
    }
}

fn client(reference: &Reference) -> Client {
    // The library takes the process's cryptography, and panics where nobody has chosen it. An
    // error says that somebody has, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let registry = reference.resolve_registry().to_owned();
    let host = registry.rsplit_once(':').map_or(&*registry, |(host, _)| host);
    let local = host == "localhost"
        || host
            .trim_matches(['[', ']'])
            .parse::<std::net::IpAddr>()
            .is_ok_and(|ip| ip.is_loopback());
    let protocol =
        if local { ClientProtocol::HttpsExcept(vec![registry]) } else { ClientProtocol::Https };
    Client::new(ClientConfig { protocol, ..ClientConfig::default() })
}

async fn download(
    client: &Client,
    reference: &Reference,
    blob: &OciDescriptor,
    path: &PathBuf,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let file = tokio::fs::File::create(path).await?;
    client.pull_blob(reference, blob, file).await?;
    Ok(())
}
