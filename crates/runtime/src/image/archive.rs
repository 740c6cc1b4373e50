//! Archives and layouts of images: what lies where, and which image it makes.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{self, BufReader, Read, Seek},
    path::{Component, Path, PathBuf},
};

use serde::Deserialize;

use super::{
    Image, Incoming, LayerSource, Store, architecture_name, full_name, layer::decompress,
    layer::same_digest, sha256_hex,
};
use crate::error::{During, Error, Result};

/// The largest manifest or configuration, in bytes.
const MAX_DOCUMENT_BYTES: u64 = 16 << 20;

pub(super) fn load(store: &Store, path: &Path) -> Result<Vec<String>> {
    let what = || format!("reading the image {}", path.display());
    if fs::metadata(path).during(what)?.is_dir() {
        return load_from(store, &Source::Directory(path.to_owned()));
    }
    let file = fs::File::open(path).during(what)?;
    let Some(spool) = decompressed(store, &file)? else {
        return load_from(store, &Source::archive(file)?);
    };
    let result = fs::File::open(&spool).during(what).and_then(Source::archive);
    let result = result.and_then(|source| load_from(store, &source));
    let _ = fs::remove_file(&spool);
    result
}

/// A compressed archive cannot be read at any place, so its plain form is kept for the while.
fn decompressed(store: &Store, file: &fs::File) -> Result<Option<PathBuf>> {
    let mut beginning = [0; 4];
    let mut reader = file;
    let length = reader.read(&mut beginning).during(|| "reading the image".to_owned())?;
    reader.rewind().during(|| "reading the image".to_owned())?;
    let plain =
        !beginning[..length].starts_with(&[0x1f, 0x8b]) && beginning != [0x28, 0xb5, 0x2f, 0xfd];
    if plain {
        return Ok(None);
    }
    let spool = store.temporary("plain");
    let copied = decompress(BufReader::new(reader))
        .and_then(|mut plain| io::copy(&mut plain, &mut fs::File::create(&spool)?));
    match copied {
        Ok(_) => Ok(Some(spool)),
        Err(error) => {
            let _ = fs::remove_file(&spool);
            Err(Error::Image(format!("the image archive cannot be decompressed: {error}")))
        }
    }
}

/// Where the parts of images lie.
enum Source {
    Archive { file: fs::File, index: BTreeMap<PathBuf, Located> },
    Directory(PathBuf),
}

enum Located {
    At { offset: u64, length: u64 },
    Link(PathBuf),
}

impl Source {
    fn archive(file: fs::File) -> Result<Self> {
        let error = |error: io::Error| Error::Image(format!("this is no image archive: {error}"));
        let size = file.metadata().map_err(error)?.len();
        let mut index = BTreeMap::new();
        let mut archive = tar::Archive::new(&file);
        for entry in archive.entries_with_seek().map_err(error)? {
            let entry = entry.map_err(error)?;
            let name = plain(&entry.path().map_err(error)?);
            let (offset, length) = (entry.raw_file_position(), entry.size());
            let kind = entry.header().entry_type();
            if kind.is_file() {
                if offset + length > size {
                    return Err(Error::Image("the image archive is truncated".to_owned()));
                }
                index.insert(name, Located::At { offset, length });
            } else if (kind.is_symlink() || kind.is_hard_link())
                && let Some(target) = entry.link_name().map_err(error)?
            {
                let base = if kind.is_symlink() { name.parent() } else { None };
                let target = plain(&base.unwrap_or(Path::new("")).join(target));
                index.insert(name, Located::Link(target));
            }
        }
        Ok(Self::Archive { file, index })
    }

    fn has(&self, name: &str) -> bool {
        match self {
            Source::Archive { index, .. } => index.contains_key(Path::new(name)),
            Source::Directory(path) => path.join(name).is_file(),
        }
    }

    fn open(&self, name: &Path) -> Result<Box<dyn Read + '_>> {
        let missing = || Error::Image(format!("the image archive lacks {}", name.display()));
        match self {
            Source::Directory(path) => {
                let file = fs::File::open(path.join(plain(name))).map_err(|_| missing())?;
                Ok(Box::new(file))
            }
            Source::Archive { file, index } => {
                let mut name = plain(name);
                // Old archives name one layer twice by a link.
                for _ in 0..8 {
                    match index.get(&name) {
                        Some(Located::Link(target)) => name = target.clone(),
                        Some(Located::At { offset, length }) => {
                            return Ok(Box::new(Part { file, at: *offset, left: *length }));
                        }
                        None => break,
                    }
                }
                Err(missing())
            }
        }
    }

    fn document(&self, name: &Path) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let read = self.open(name)?.take(MAX_DOCUMENT_BYTES + 1).read_to_end(&mut bytes);
        read.during(|| format!("reading {} of the image", name.display()))?;
        if bytes.len() as u64 > MAX_DOCUMENT_BYTES {
            return Err(Error::Image(format!("{} of the image is too large", name.display())));
        }
        Ok(bytes)
    }

    /// A document by its digest, which is checked.
    fn blob(&self, digest: &str) -> Result<Vec<u8>> {
        let bytes = self.document(&blob_path(digest)?)?;
        same_digest("a part of the image", &format!("sha256:{}", sha256_hex(&bytes)), digest)?;
        Ok(bytes)
    }

    fn layer(&self, path: PathBuf, digest: Option<String>) -> LayerSource<'_> {
        LayerSource { open: Box::new(move || self.open(&path)), digest }
    }
}

/// A part of the archive's file; parts are read by position, so they do not disturb each other.
struct Part<'a> {
    file: &'a fs::File,
    at: u64,
    left: u64,
}

impl Read for Part<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        use std::os::unix::fs::FileExt;
        let wanted = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let length = self.file.read_at(&mut buffer[..wanted], self.at)?;
        self.at += length as u64;
        self.left -= length as u64;
        Ok(length)
    }
}

/// `name` without `.`, `..` and leading slashes.
fn plain(name: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for component in name.components() {
        match component {
            Component::Normal(part) => plain.push(part),
            Component::ParentDir => drop(plain.pop()),
            _ => {}
        }
    }
    plain
}

fn blob_path(digest: &str) -> Result<PathBuf> {
    match digest.strip_prefix("sha256:") {
        Some(hex) if hex.len() == 64 && hex.bytes().all(|byte| byte.is_ascii_hexdigit()) => {
            Ok(Path::new("blobs/sha256").join(hex))
        }
        _ => Err(Error::Image(format!("{digest:?} is no sha256 digest"))),
    }
}

fn load_from(store: &Store, source: &Source) -> Result<Vec<String>> {
    if source.has("manifest.json") {
        load_docker(store, source)
    } else if source.has("index.json") {
        load_oci(store, source)
    } else {
        let text = "this is no image archive: it has neither manifest.json nor index.json";
        Err(Error::Image(text.to_owned()))
    }
}

fn parse<'de, T: Deserialize<'de>>(what: &str, bytes: &'de [u8]) -> Result<T> {
    serde_json::from_slice(bytes)
        .map_err(|error| Error::Image(format!("the image's {what} is malformed: {error}")))
}

fn names_of(images: Vec<(Image, BTreeSet<String>)>) -> Vec<String> {
    let names = |(image, tags): (Image, BTreeSet<String>)| {
        if tags.is_empty() { vec![image.id] } else { tags.into_iter().collect() }
    };
    images.into_iter().flat_map(names).collect()
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerManifest {
    config: PathBuf,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<PathBuf>,
}

fn load_docker(store: &Store, source: &Source) -> Result<Vec<String>> {
    let document = source.document(Path::new("manifest.json"))?;
    let manifests: Vec<DockerManifest> = parse("manifest.json", &document)?;
    let mut loaded = Vec::new();
    for manifest in manifests {
        let tags = manifest.repo_tags.unwrap_or_default();
        let tags: BTreeSet<String> =
            tags.iter().map(|tag| full_name(tag)).collect::<Result<_>>()?;
        let layers = manifest.layers.into_iter().map(|path| source.layer(path, None)).collect();
        let config = source.document(&manifest.config)?;
        let digests = BTreeSet::new();
        let image = store.add(Incoming { config, layers, tags: tags.clone(), digests })?;
        loaded.push((image, tags));
    }
    Ok(names_of(loaded))
}

#[derive(Deserialize)]
struct Index {
    manifests: Vec<Descriptor>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
    platform: Option<Platform>,
}

#[derive(Deserialize)]
struct Platform {
    architecture: String,
    os: String,
}

#[derive(Deserialize)]
struct Manifest {
    config: Descriptor,
    layers: Vec<Descriptor>,
}

fn load_oci(store: &Store, source: &Source) -> Result<Vec<String>> {
    let document = source.document(Path::new("index.json"))?;
    let index: Index = parse("index.json", &document)?;
    let mut loaded = Vec::new();
    for descriptor in index.manifests {
        let tags = oci_names(&descriptor.annotations)?;
        let manifest: Manifest = parse("manifest", &resolve(source, &descriptor)?)?;
        let config = source.blob(&manifest.config.digest)?;
        let layers = manifest
            .layers
            .into_iter()
            .map(|layer| Ok(source.layer(blob_path(&layer.digest)?, Some(layer.digest))))
            .collect::<Result<_>>()?;
        let with_digest =
            |tag: &String| Some(format!("{}@{}", repository(tag)?, descriptor.digest));
        let digests = tags.iter().filter_map(with_digest).collect();
        let image = store.add(Incoming { config, layers, tags: tags.clone(), digests })?;
        loaded.push((image, tags));
    }
    Ok(names_of(loaded))
}

/// A full name without its tag.
fn repository(tag: &str) -> Option<&str> {
    tag.rsplit_once(':').map(|(repository, _)| repository)
}

/// The manifest behind a descriptor; an index of platforms is asked for ours.
fn resolve(source: &Source, descriptor: &Descriptor) -> Result<Vec<u8>> {
    let bytes = source.blob(&descriptor.digest)?;
    if !descriptor.media_type.contains("index") && !descriptor.media_type.contains("manifest.list")
    {
        return Ok(bytes);
    }
    let index: Index = parse("index", &bytes)?;
    let ours = index.manifests.iter().find(|manifest| {
        manifest.platform.as_ref().is_none_or(|platform| {
            platform.os == "linux" && platform.architecture == architecture_name()
        })
    });
    let ours = ours.ok_or_else(|| {
        Error::Image(format!("the image has no variant for linux/{}", architecture_name()))
    })?;
    source.blob(&ours.digest)
}

fn oci_names(annotations: &BTreeMap<String, String>) -> Result<BTreeSet<String>> {
    let name = annotations
        .get("io.containerd.image.name")
        .or_else(|| annotations.get("org.opencontainers.image.ref.name"));
    name.map(|name| full_name(name)).into_iter().collect()
}
