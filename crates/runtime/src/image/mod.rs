//! Images: names, configurations and unpacked layers on disk.
//!
//! ```text
//! archive or registry ─▶ blobs, digests checked ─▶ layer::unpack ─▶ layers/<chain> ─▶ images.json
//! ```
//!
//! A layer is unpacked once, into the form that overlayfs reads, under a name made from the chain
//! of layers below it; images share it. `images.json` is replaced as a whole after everything
//! that it names is on disk, so a crash leaves at worst a layer that nobody names, which the next
//! start removes.

mod archive;
mod layer;
mod pull;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{self, Read},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

pub use pull::Credentials;

use crate::error::{During, Error, Result};

/// An image that is ready to run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// `sha256:…` of the configuration.
    pub id: String,
    pub config: ImageConfig,
    /// Directory names below [`Store::layers`], the lowest first.
    pub layers: Vec<String>,
    /// Full names with a tag.
    pub tags: BTreeSet<String>,
    /// Full names with a digest.
    pub digests: BTreeSet<String>,
    /// Unpacked size, in bytes.
    pub size_bytes: u64,
}

/// What an image says about its containers (OCI image specification, `config`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ImageConfig {
    #[serde(deserialize_with = "or_default")]
    pub user: String,
    #[serde(deserialize_with = "or_default")]
    pub env: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    pub entrypoint: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    pub cmd: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    pub working_dir: String,
    #[serde(deserialize_with = "or_default")]
    pub stop_signal: String,
}

/// Archives write `null` where they mean nothing.
fn or_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// The whole configuration blob, as far as it concerns us.
#[derive(Deserialize)]
struct ConfigFile {
    #[serde(default, deserialize_with = "or_default")]
    config: ImageConfig,
    #[serde(default)]
    architecture: String,
    rootfs: RootFs,
}

#[derive(Deserialize)]
struct RootFs {
    diff_ids: Vec<String>,
}

/// An image to add: its configuration and a way to read each layer, the lowest first.
struct Incoming<'a> {
    config: Vec<u8>,
    layers: Vec<LayerSource<'a>>,
    tags: BTreeSet<String>,
    digests: BTreeSet<String>,
}

struct LayerSource<'a> {
    open: Box<dyn FnOnce() -> Result<Box<dyn Read + 'a>> + 'a>,
    /// Of the bytes as they come, when known.
    digest: Option<String>,
}

/// All images of one root directory.
pub struct Store {
    root: PathBuf,
    images: Mutex<BTreeMap<String, Image>>,
    /// One image is added or removed at a time.
    changing: Mutex<()>,
}

impl Store {
    /// Opens the store below `root`, creating it if it is not there and removing what an
    /// interrupted load left.
    pub fn open(root: &Path) -> Result<Self> {
        let temporary = root.join("tmp");
        let _ = fs::remove_dir_all(&temporary);
        for directory in [&temporary, &root.join("layers")] {
            fs::create_dir_all(directory).during(|| format!("creating {}", directory.display()))?;
        }
        let index = root.join("images.json");
        let images: Vec<Image> = match fs::read(&index) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map_err(io::Error::from)
                .during(|| format!("reading {}", index.display()))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error).during(|| format!("reading {}", index.display())),
        };
        let images = images.into_iter().map(|image| (image.id.clone(), image)).collect();
        let store =
            Self { root: root.to_owned(), images: Mutex::new(images), changing: Mutex::new(()) };
        store.remove_unnamed_layers();
        Ok(store)
    }

    /// The directory that [`Image::layers`] are names in.
    pub fn layers(&self) -> PathBuf {
        self.root.join("layers")
    }

    /// Unpacked size of one layer.
    pub fn layer_bytes(&self, layer: &str) -> u64 {
        layer_size(&self.layers().join(layer))
    }

    pub fn list(&self) -> Vec<Image> {
        self.lock().values().cloned().collect()
    }

    /// The image of that name, ID, or unique beginning of an ID.
    pub fn find(&self, name: &str) -> Option<Image> {
        let images = self.lock();
        let bare = name.strip_prefix("sha256:").unwrap_or(name);
        if let Some(image) = images.get(&format!("sha256:{bare}")) {
            return Some(image.clone());
        }
        if let Ok(full) = full_name(name)
            && let Some(image) = images.values().find(|image| image.has(&full))
        {
            return Some(image.clone());
        }
        let hex = |text: &str| text.len() >= 6 && text.bytes().all(|b| b.is_ascii_hexdigit());
        let mut matching =
            images.values().filter(|image| hex(bare) && image.id[7..].starts_with(bare));
        matching.next().filter(|_| matching.next().is_none()).cloned()
    }

    /// Loads a docker archive, an OCI archive (either may be compressed) or an OCI layout
    /// directory, and answers the names that it brought (IDs for nameless images).
    pub fn load(&self, path: &Path) -> Result<Vec<String>> {
        archive::load(self, path)
    }

    /// Like [`Store::load`], for an archive that comes as a stream.
    pub fn load_stream(&self, reader: &mut dyn Read) -> Result<Vec<String>> {
        let spool = self.temporary("archive");
        let result = fs::File::create(&spool)
            .and_then(|mut file| io::copy(reader, &mut file))
            .during(|| "keeping the image archive".to_owned())
            .and_then(|_| self.load(&spool));
        let _ = fs::remove_file(&spool);
        result
    }

    /// Removes a name, or with the last name (or by ID) the image and the layers that no other
    /// image has. Absence is no error.
    pub fn remove(&self, name: &str) -> Result<()> {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(image) = self.find(name) else { return Ok(()) };
        let mut images = self.lock();
        let by_id = image.id.contains(name.strip_prefix("sha256:").unwrap_or(name));
        let full = full_name(name).unwrap_or_default();
        if let Some(kept) = images.get_mut(&image.id).filter(|_| !by_id) {
            kept.tags.remove(&full);
            kept.digests.remove(&full);
        }
        if by_id || images.get(&image.id).is_some_and(Image::is_nameless) {
            images.remove(&image.id);
        }
        self.write_index(&images)?;
        drop(images);
        self.remove_unnamed_layers();
        Ok(())
    }

    /// Adds an image: unpacks what is missing, then names it.
    fn add(&self, incoming: Incoming<'_>) -> Result<Image> {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let config: ConfigFile = serde_json::from_slice(&incoming.config).map_err(|error| {
            Error::Image(format!("the image's configuration is no JSON: {error}"))
        })?;
        check_architecture(&config.architecture)?;
        let diff_ids = config.rootfs.diff_ids;
        if diff_ids.len() != incoming.layers.len() {
            let (has, names) = (incoming.layers.len(), diff_ids.len());
            let text = format!("the image has {has} layers but its configuration names {names}");
            return Err(Error::Image(text));
        }
        let mut layers: Vec<String> = Vec::new();
        let mut chain = String::new();
        let mut added = Vec::new();
        for (source, diff_id) in incoming.layers.into_iter().zip(&diff_ids) {
            chain = sha256_hex(format!("{chain} {diff_id}").as_bytes());
            let name = chain[..24].to_owned();
            if !self.layers().join(&name).exists() {
                if let Err(error) = self.unpack(source, diff_id, &name, &layers) {
                    self.remove_unnamed_layers();
                    return Err(error);
                }
                added.push(name.clone());
            }
            layers.push(name);
        }
        if !added.is_empty() {
            sync_file_system(&self.layers())?;
        }
        let size_bytes = layers.iter().map(|layer| layer_size(&self.layers().join(layer))).sum();
        let id = format!("sha256:{}", sha256_hex(&incoming.config));
        let mut images = self.lock();
        // A name belongs to one image: the newest.
        for other in images.values_mut().filter(|other| other.id != id) {
            other.tags.retain(|tag| !incoming.tags.contains(tag));
        }
        let image = images.entry(id.clone()).or_insert_with(|| Image {
            id,
            config: config.config,
            layers,
            tags: BTreeSet::new(),
            digests: BTreeSet::new(),
            size_bytes,
        });
        image.tags.extend(incoming.tags);
        image.digests.extend(incoming.digests);
        let image = image.clone();
        self.write_index(&images)?;
        Ok(image)
    }

    fn unpack(
        &self,
        source: LayerSource<'_>,
        diff_id: &str,
        name: &str,
        below: &[String],
    ) -> Result<()> {
        let temporary = self.temporary(name);
        let lower: Vec<PathBuf> =
            below.iter().rev().map(|layer| self.layers().join(layer)).collect();
        let result = (source.open)().and_then(|mut reader| {
            layer::unpack(&mut *reader, &temporary, &lower, source.digest.as_deref(), diff_id)
        });
        let result = result.and_then(|size| {
            fs::write(self.layers().join(format!("{name}.size")), size.to_string())
                .and_then(|()| fs::rename(&temporary, self.layers().join(name)))
                .during(|| "placing an unpacked layer".to_owned())
        });
        if result.is_err() {
            let _ = fs::remove_dir_all(&temporary);
        }
        result
    }

    fn temporary(&self, name: &str) -> PathBuf {
        static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
        let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        self.root.join("tmp").join(format!("{name}-{number}"))
    }

    fn write_index(&self, images: &BTreeMap<String, Image>) -> Result<()> {
        let write = || -> io::Result<()> {
            use std::io::Write;
            let temporary = self.root.join("images.json.new");
            let mut file = fs::File::create(&temporary)?;
            file.write_all(&serde_json::to_vec(&images.values().collect::<Vec<_>>())?)?;
            file.sync_data()?;
            fs::rename(&temporary, self.root.join("images.json"))
        };
        write().during(|| "recording the images".to_owned())
    }

    fn remove_unnamed_layers(&self) {
        let named: BTreeSet<String> =
            self.lock().values().flat_map(|image| image.layers.iter().cloned()).collect();
        let Ok(entries) = fs::read_dir(self.layers()) else { return };
        for entry in entries.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if named.contains(name.trim_end_matches(".size")) {
                continue;
            }
            let removed = if name.ends_with(".size") {
                fs::remove_file(entry.path())
            } else {
                fs::remove_dir_all(entry.path())
            };
            if let Err(error) = removed {
                tracing::warn!(layer = name, %error, "an unused layer cannot be removed");
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Image>> {
        self.images.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Image {
    fn has(&self, full_name: &str) -> bool {
        self.tags.contains(full_name) || self.digests.contains(full_name)
    }

    fn is_nameless(&self) -> bool {
        self.tags.is_empty() && self.digests.is_empty()
    }

    /// What kubelets show as `imageID`: a name with a digest when there is one, else the ID.
    pub fn reference(&self) -> String {
        self.digests.first().unwrap_or(&self.id).clone()
    }
}

/// A name with registry, repository and tag or digest spelled out.
pub fn full_name(name: &str) -> Result<String> {
    let parsed: oci_client::Reference = name
        .parse()
        .map_err(|error| Error::Invalid(format!("{name:?} is no image name: {error}")))?;
    Ok(parsed.whole())
}

fn check_architecture(architecture: &str) -> Result<()> {
    let ours = architecture_name();
    if architecture.is_empty() || architecture == ours {
        return Ok(());
    }
    Err(Error::Image(format!("the image is for {architecture}, this machine is {ours}")))
}

/// This machine's architecture as images name it.
fn architecture_name() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn layer_size(layer: &Path) -> u64 {
    let text = fs::read_to_string(layer.with_extension("size")).unwrap_or_default();
    text.parse().unwrap_or(0)
}

fn sync_file_system(path: &Path) -> Result<()> {
    fs::File::open(path)
        .and_then(|directory| Ok(rustix::fs::syncfs(&directory)?))
        .during(|| "making an image durable".to_owned())
}

fn sha256_hex(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Passes bytes through and sums them up.
struct Summing<R> {
    reader: R,
    sum: Sha256,
}

impl<R: Read> Summing<R> {
    fn new(reader: R) -> Self {
        Self { reader, sum: Sha256::new() }
    }

    /// The digest of everything, after reading on to the end.
    fn finish(mut self) -> io::Result<String> {
        io::copy(&mut self, &mut io::sink())?;
        Ok(format!("sha256:{}", hex(&self.sum.finalize())))
    }
}

impl<R: Read> Read for Summing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.reader.read(buffer)?;
        self.sum.update(&buffer[..length]);
        Ok(length)
    }
}

#[cfg(test)]
mod tests;
