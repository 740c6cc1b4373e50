//! Archives of every kind, honest and hostile, in a directory of the test's own.

use std::{
    io::{Read, Write},
    os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt},
};

use super::*;

enum Entry<'a> {
    File(&'a str, &'a [u8], u32),
    Directory(&'a str, u32),
    Link(&'a str, &'a str),
    HardLink(&'a str, &'a str),
}
use Entry::{Directory, File, HardLink, Link};

/// A tar with exactly these names; the library's own checks are gone round.
fn tar_of(entries: &[Entry<'_>]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for entry in entries {
        let mut header = tar::Header::new_gnu();
        let (name, kind, mode, content, target) = match entry {
            File(name, content, mode) => (name, tar::EntryType::Regular, *mode, *content, ""),
            Directory(name, mode) => (name, tar::EntryType::Directory, *mode, &[][..], ""),
            Link(name, target) => (name, tar::EntryType::Symlink, 0o777, &[][..], *target),
            HardLink(name, target) => (name, tar::EntryType::Link, 0o644, &[][..], *target),
        };
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_mtime(1_000_000);
        header.set_size(content.len() as u64);
        let old = header.as_old_mut();
        old.name[..name.len()].copy_from_slice(name.as_bytes());
        old.linkname[..target.len()].copy_from_slice(target.as_bytes());
        header.set_cksum();
        builder.append(&header, content).unwrap();
    }
    builder.into_inner().unwrap()
}

fn config_of(layers: &[Vec<u8>]) -> String {
    let ids: Vec<String> =
        layers.iter().map(|layer| format!("\"sha256:{}\"", sha256_hex(layer))).collect();
    format!(
        r#"{{"architecture":"{}","os":"linux","config":{{"Cmd":["/app"],"User":"web","Env":null}},
            "rootfs":{{"type":"layers","diff_ids":[{}]}}}}"#,
        architecture_name(),
        ids.join(",")
    )
}

fn docker(layers: &[Vec<u8>], config: &str) -> Vec<u8> {
    let names: Vec<String> =
        (0..layers.len()).map(|number| format!("{number}/layer.tar")).collect();
    let manifest = serde_json::json!([
        {"Config": "config.json", "RepoTags": ["example/app:1"], "Layers": names}
    ]);
    let manifest = manifest.to_string();
    let mut entries = vec![File("config.json", config.as_bytes(), 0o644)];
    for (name, layer) in names.iter().zip(layers) {
        entries.push(File(name, layer, 0o644));
    }
    entries.push(File("manifest.json", manifest.as_bytes(), 0o644));
    tar_of(&entries)
}

struct Bench {
    directory: tempfile::TempDir,
    store: Arc<Store>,
}

use std::sync::Arc;

impl Bench {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = Arc::new(Store::open(&directory.path().join("root")).unwrap());
        Self { directory, store }
    }

    fn load(&self, archive: &[u8]) -> Result<Vec<String>> {
        let path = self.directory.path().join("archive");
        fs::write(&path, archive).unwrap();
        self.store.load(&path)
    }

    fn load_layers(&self, layers: &[Vec<u8>]) -> Result<Vec<String>> {
        self.load(&docker(layers, &config_of(layers)))
    }

    /// A file of the image's layer `number`, the lowest being 0.
    fn path(&self, number: usize, path: &str) -> PathBuf {
        let image = self.store.find("example/app:1").unwrap();
        self.store.layers().join(&image.layers[number]).join(path)
    }

    /// Loading fails with one line that has `text`, and leaves nothing anywhere.
    #[track_caller]
    fn refuses(&self, archive: &[u8], text: &str) {
        let error = self.load(archive).unwrap_err();
        let shown = stdx::chain(&error).to_string();
        assert!(shown.contains(text) && !shown.contains('\n'), "{shown}");
        let count = |path: PathBuf| fs::read_dir(path).unwrap().count();
        assert_eq!(count(self.store.layers()), 0, "a layer is left");
        assert_eq!(count(self.store.root.join("tmp")), 0, "a temporary file is left");
        assert!(self.store.list().is_empty());
    }
}

#[test]
fn an_archive_is_loaded_named_and_removed() {
    let bench = Bench::new();
    let layer = tar_of(&[
        Directory("bin/", 0o750),
        File("bin/app", b"program", 0o4755),
        Link("app", "bin/app"),
        HardLink("bin/again", "bin/app"),
    ]);
    let names = bench.load_layers(&[layer]).unwrap();
    let image = bench.store.find("example/app:1").unwrap();
    assert_eq!(names, image.tags.iter().cloned().collect::<Vec<_>>());
    assert_eq!((image.config.cmd, image.config.user), (vec!["/app".to_owned()], "web".to_owned()));
    let app = fs::metadata(bench.path(0, "bin/app")).unwrap();
    assert_eq!((app.mode() & 0o7777, app.mtime(), app.nlink()), (0o4755, 1_000_000, 2));
    let mode = fs::metadata(bench.path(0, "bin")).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o750);
    assert_eq!(bench.store.find(&image.id[7..19]).unwrap().id, image.id);
    let again = Store::open(&bench.store.root).unwrap();
    assert_eq!(again.list().len(), 1);
    bench.store.remove("example/app:1").unwrap();
    assert!(bench.store.list().is_empty());
    assert_eq!(fs::read_dir(bench.store.layers()).unwrap().count(), 0);
}

#[test]
fn names_that_lead_out_are_refused() {
    let bench = Bench::new();
    for entry in [
        File("../evil", b"x", 0o644),
        File("a/../../evil", b"x", 0o644),
        HardLink("passwd", "../../../etc/passwd"),
    ] {
        let layers = [tar_of(&[File("first", b"x", 0o644), entry])];
        bench.refuses(&docker(&layers, &config_of(&layers)), "leads out of the image");
    }
    assert!(!bench.directory.path().join("evil").exists());
}

#[test]
fn links_are_followed_within_the_image_only() {
    let bench = Bench::new();
    let outside = bench.directory.path().join("outside");
    fs::create_dir(&outside).unwrap();
    let target = outside.display().to_string();
    let layer = tar_of(&[
        Link("trap", &target),
        File("trap/file", b"caught", 0o644),
        Link("up", "../../../../.."),
        File("up/second", b"caught", 0o644),
        File("/absolute/file", b"inside", 0o644),
        Link("file", &target),
        File("file", b"replaced", 0o644),
    ]);
    bench.load_layers(&[layer]).unwrap();
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
    let inside = bench.path(0, target.trim_start_matches('/')).join("file");
    assert_eq!(fs::read(inside).unwrap(), b"caught");
    assert_eq!(fs::read(bench.path(0, "second")).unwrap(), b"caught");
    assert_eq!(fs::read(bench.path(0, "absolute/file")).unwrap(), b"inside");
    assert_eq!(fs::read(bench.path(0, "file")).unwrap(), b"replaced");
}

#[test]
fn links_in_a_circle_are_refused() {
    let bench = Bench::new();
    let layers = [tar_of(&[Link("a", "b"), Link("b", "a"), File("a/file", b"x", 0o644)])];
    bench.refuses(&docker(&layers, &config_of(&layers)), "too many links");
}

#[test]
fn damaged_archives_are_refused() {
    let bench = Bench::new();
    let layers = [tar_of(&[File("file", &[7; 5000], 0o644)])];
    let good = docker(&layers, &config_of(&layers));
    bench.refuses(&good[..good.len() / 2], "truncated");
    bench.refuses(b"", "neither manifest.json nor index.json");
    bench.refuses(&[0x1f, 0x8b, 8, 0, 1, 2], "cannot be decompressed");
    let wrong = config_of(&[b"something else".to_vec()]);
    bench.refuses(&docker(&layers, &wrong), "is damaged");
    bench.refuses(&docker(&layers, "{"), "configuration is no JSON");
    bench.refuses(&docker(&layers, &config_of(&[])), "1 layers but its configuration names 0");
    let foreign = config_of(&layers).replace(architecture_name(), "pdp11");
    bench.refuses(&docker(&layers, &foreign), "for pdp11");
    let short = layers[0][..2000].to_vec();
    let layers = [short];
    bench.refuses(&docker(&layers, &config_of(&layers)), "layer cannot be unpacked");
}

#[test]
fn an_upper_layer_fits_onto_the_lower_ones() {
    let bench = Bench::new();
    let base = tar_of(&[
        Directory("usr/", 0o755),
        Directory("usr/lib/", 0o711),
        File("usr/lib/old", b"old", 0o644),
        File("usr/lib/kept", b"kept", 0o600),
        Link("lib", "usr/lib"),
    ]);
    let upper = tar_of(&[
        File("lib/new", b"new", 0o644),
        File("usr/lib/.wh.old", b"", 0o644),
        HardLink("usr/lib/linked", "usr/lib/kept"),
    ]);
    bench.load_layers(&[base, upper]).unwrap();
    // The link of the lower layer leads the way, and the directory keeps its mode.
    assert_eq!(fs::read(bench.path(1, "usr/lib/new")).unwrap(), b"new");
    let mode = fs::metadata(bench.path(1, "usr/lib")).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o711);
    assert!(fs::symlink_metadata(bench.path(1, "lib")).is_err());
    let whiteout = fs::symlink_metadata(bench.path(1, "usr/lib/old")).unwrap();
    assert!(whiteout.file_type().is_char_device() && whiteout.rdev() == 0);
    assert_eq!(fs::read(bench.path(1, "usr/lib/linked")).unwrap(), b"kept");
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Manifest, and blobs by their digest.
fn oci_parts(layer: &[u8], packed: &[u8]) -> (String, BTreeMap<String, Vec<u8>>) {
    let config = config_of(&[layer.to_vec()]);
    let digest = |bytes: &[u8]| format!("sha256:{}", sha256_hex(bytes));
    let manifest = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": digest(config.as_bytes()), "size": config.len()},
        "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
            "digest": digest(packed), "size": packed.len()}],
    });
    let manifest = manifest.to_string();
    let blobs = [config.into_bytes(), packed.to_vec(), manifest.clone().into_bytes()];
    (manifest, blobs.into_iter().map(|bytes| (digest(&bytes), bytes)).collect())
}

fn oci(parts: &(String, BTreeMap<String, Vec<u8>>)) -> Vec<u8> {
    let index = serde_json::json!({"schemaVersion": 2, "manifests": [{
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "digest": format!("sha256:{}", sha256_hex(parts.0.as_bytes())),
        "size": parts.0.len(),
        "annotations": {"org.opencontainers.image.ref.name": "example/app:1"},
    }]});
    let index = index.to_string();
    let paths: Vec<(String, &Vec<u8>)> = parts
        .1
        .iter()
        .map(|(digest, bytes)| (format!("blobs/{}", digest.replace(':', "/")), bytes))
        .collect();
    let mut entries = vec![File("index.json", index.as_bytes(), 0o644)];
    entries.extend(paths.iter().map(|(path, bytes)| File(path, bytes, 0o644)));
    tar_of(&entries)
}

#[test]
fn an_oci_archive_is_loaded_and_checked() {
    let layer = tar_of(&[File("file", b"content", 0o644)]);
    for packed in [gzip(&layer), zstd::encode_all(&layer[..], 1).unwrap(), layer.clone()] {
        let bench = Bench::new();
        let archive = oci(&oci_parts(&layer, &packed));
        bench.load(&gzip(&archive)).unwrap();
        assert_eq!(fs::read(bench.path(0, "file")).unwrap(), b"content");
        let image = bench.store.find("example/app:1").unwrap();
        assert!(image.reference().contains("/example/app@sha256:"), "{}", image.reference());
    }
    let bench = Bench::new();
    let (manifest, mut blobs) = oci_parts(&layer, &gzip(&layer));
    for bytes in blobs.values_mut().filter(|bytes| **bytes != manifest.as_bytes()) {
        let last = bytes.len() - 1;
        bytes[last] ^= 0x55;
    }
    bench.refuses(&oci(&(manifest, blobs)), "is damaged");
}

/// Serves one image in plain HTTP until the listener's thread sees the end of the test.
fn registry(parts: (String, BTreeMap<String, Vec<u8>>)) -> std::net::SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut socket in listener.incoming().flatten() {
            let mut request = Vec::new();
            let mut buffer = [0; 1024];
            while !request.windows(4).any(|end| end == b"\r\n\r\n") {
                match socket.read(&mut buffer) {
                    Ok(0) | Err(_) => break,
                    Ok(length) => request.extend(&buffer[..length]),
                }
            }
            let request = String::from_utf8_lossy(&request).into_owned();
            let path = request.split(' ').nth(1).unwrap_or_default();
            let blob = path.rsplit('/').next().and_then(|digest| parts.1.get(digest));
            let (status, kind, body) = if path == "/v2/" {
                ("200 OK", "application/json", &b"{}"[..])
            } else if path.ends_with("/manifests/1") {
                let kind = "application/vnd.oci.image.manifest.v1+json";
                ("200 OK", kind, parts.0.as_bytes())
            } else if let Some(blob) = blob {
                ("200 OK", "application/octet-stream", &blob[..])
            } else {
                ("404 Not Found", "application/json", &b"{\"errors\":[]}"[..])
            };
            let head = format!(
                "HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {}\r\n\
                 connection: close\r\n\r\n",
                body.len()
            );
            let _ = socket.write_all(head.as_bytes()).and_then(|()| socket.write_all(body));
        }
    });
    address
}

#[tokio::test]
async fn an_image_is_pulled_from_a_registry_on_this_machine() {
    let bench = Bench::new();
    let layer = tar_of(&[File("file", b"pulled", 0o644)]);
    let address = registry(oci_parts(&layer, &gzip(&layer)));
    let env = stdx::Env::real();
    let name = format!("{address}/example/app:1");
    let image = bench.store.clone().pull(&env, &name, Credentials::None).await.unwrap();
    let file = bench.store.layers().join(&image.layers[0]).join("file");
    assert_eq!(fs::read(file).unwrap(), b"pulled");
    assert_eq!(bench.store.find(&name).unwrap(), image);
    let absent = format!("{address}/example/app:2");
    let error = bench.store.clone().pull(&env, &absent, Credentials::None).await.unwrap_err();
    assert!(error.to_string().contains(&absent), "{error}");
    assert_eq!(fs::read_dir(bench.store.root.join("tmp")).unwrap().count(), 0);
}
