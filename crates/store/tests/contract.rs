//! The contract suite on every engine. Real etcd takes part when `GANTRY_ETCD` names its binary.

use std::{
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use futures::StreamExt;
use stdx::{Env, env::simulate, files::RealFiles};
use store::{
    Error, Range, Store, Txn, TxnResult, WatchRequest, embedded, embedded::Embedded, etcd, suite,
};

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

#[test]
fn embedded_on_real_files() {
    let dir = tempfile::tempdir().unwrap();
    runtime().block_on(async {
        let env = Env::real();
        let store = Embedded::open(&env, dir.path(), embedded::Options::default()).await.unwrap();
        suite::run(&env, store.clone()).await;
        store.close().await;
    });
}

/// Everything that is rare with the default sizes happens all the time: segments end, values are
/// read back, watchers fall behind, checkpoints are written.
#[test]
fn embedded_with_small_sizes_on_a_virtual_clock() {
    let dir = tempfile::tempdir().unwrap();
    simulate(1, Arc::new(RealFiles), |env| async move {
        let options = embedded::Options {
            segment_bytes: 8192,
            garbage_bytes: 8192,
            recent_bytes: 64,
            watch_buffer_events: 4,
            ..embedded::Options::default()
        };
        let store = Embedded::open(&env, dir.path(), options).await.unwrap();
        suite::run(&env, store.clone()).await;
        let all = || Range { end: Some("\0".into()), ..Range::key("\0") };
        let before = store.range(all()).await.unwrap();
        let stats = store.stats().await.unwrap();
        store.close().await;
        let again = Embedded::open(&env, dir.path(), options).await.unwrap();
        assert_eq!(again.range(all()).await.unwrap(), before);
        let same = again.stats().await.unwrap();
        assert_eq!((same.keys, same.compacted), (stats.keys, stats.compacted));
        assert_eq!(same.bytes_in_use, stats.bytes_in_use);
        again.close().await;
    });
}

/// The binary to hold the suite against; says so when there is none.
fn etcd_binary() -> Option<String> {
    let binary = std::env::var("GANTRY_ETCD").ok().filter(|path| !path.is_empty());
    if binary.is_none() {
        eprintln!("skipped: GANTRY_ETCD does not name an etcd binary");
    }
    binary
}

#[test]
fn etcd_itself() {
    let Some(binary) = etcd_binary() else { return };
    runtime().block_on(async {
        let env = Env::real();
        let server = EtcdServer::start(&binary, None);
        let store = server.connect(&env, None).await;
        suite::run(&env, store).await;
    });
}

#[test]
fn etcd_with_client_certificates() {
    let Some(binary) = etcd_binary() else { return };
    runtime().block_on(async {
        let env = Env::real();
        let certificates = Certificates::make();
        let server = EtcdServer::start(&binary, Some(&certificates));
        let store = server.connect(&env, Some(certificates.tls())).await;
        assert_eq!(store.current_revision().await.unwrap(), 1);
        let stranger = etcd::Tls { identity: None, ..certificates.tls() };
        let options = etcd::Options { tls: Some(stranger), ..server.options() };
        let refused = etcd::Etcd::connect(&env, options).await.err();
        assert!(matches!(refused, Some(Error::Unavailable(_))), "{refused:?}");
    });
}

#[test]
fn etcd_that_dies_and_comes_back() {
    let Some(binary) = etcd_binary() else { return };
    runtime().block_on(async {
        let env = Env::real();
        let mut server = EtcdServer::start(&binary, None);
        let store = server.connect(&env, None).await;
        let before = store.txn(Txn::create("/a", "1")).await.unwrap();
        let watch = || WatchRequest { start: "/a".into(), end: None, from: 0 };
        let mut watch = store.watch(watch()).await.unwrap();
        server.stop();
        let ended = env.timeout(Duration::from_secs(20), watch.events.next()).await.unwrap();
        assert!(matches!(ended, Some(Err(Error::Unavailable(_)))), "{ended:?}");
        let write = store.txn(Txn::create("/b", "1")).await;
        assert!(matches!(write, Err(Error::Unknown(_))), "{write:?}");
        let read = store.range(Range::key("/a")).await;
        assert!(matches!(read, Err(Error::Unavailable(_))), "{read:?}");
        server.go_on();
        server.connect(&env, None).await;
        let found = store.range(Range::key("/a")).await.unwrap();
        assert_eq!(
            before,
            TxnResult::Written { revision: found.items[0].mod_revision, previous: None }
        );
    });
}

/// An etcd on loopback in a directory of its own; ends with the value.
struct EtcdServer {
    command: Command,
    process: Child,
    url: String,
    _dir: tempfile::TempDir,
}

impl EtcdServer {
    fn start(binary: &str, certificates: Option<&Certificates>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let url = free_url(if certificates.is_some() { "https" } else { "http" });
        let peer = free_url("http");
        let mut command = Command::new(binary);
        command.arg("--data-dir").arg(dir.path().join("data"));
        command.args(["--listen-client-urls", &url, "--advertise-client-urls", &url]);
        command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
        command.args(["--initial-cluster", &format!("default={peer}"), "--log-level", "panic"]);
        if let Some(certificates) = certificates {
            let ca = certificates.write_to(dir.path());
            command.arg("--cert-file").arg(dir.path().join("server.crt"));
            command.arg("--key-file").arg(dir.path().join("server.key"));
            command.arg("--client-cert-auth").arg("--trusted-ca-file").arg(ca);
        }
        let process = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        Self { command, process, url, _dir: dir }
    }

    fn options(&self) -> etcd::Options {
        etcd::Options::new(vec![self.url.clone()])
    }

    /// Connects as soon as it answers.
    async fn connect(&self, env: &Env, tls: Option<etcd::Tls>) -> Arc<etcd::Etcd> {
        let mut failure = None;
        for _ in 0..100 {
            let options = etcd::Options { tls: tls.clone(), ..self.options() };
            match env.timeout(Duration::from_secs(2), etcd::Etcd::connect(env, options)).await {
                Some(Ok(store)) => return store,
                other => failure = other.and_then(Result::err),
            }
            env.sleep(Duration::from_millis(100)).await;
        }
        panic!("etcd does not answer at {}: {failure:?}", self.url);
    }

    fn stop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    fn go_on(&mut self) {
        self.process = self.command.spawn().unwrap();
    }
}

impl Drop for EtcdServer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn free_url(scheme: &str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    format!("{scheme}://{}", listener.local_addr().unwrap())
}

/// An authority, and what it issued to a server at 127.0.0.1 and to a client. PEM texts.
struct Certificates {
    ca: String,
    server: (String, String),
    client: (String, String),
}

impl Certificates {
    fn make() -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec![]).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let ca = params.self_signed(&key).unwrap().pem();
        let issuer = rcgen::Issuer::new(params, key);
        let issue = |usage| {
            let key = rcgen::KeyPair::generate().unwrap();
            let mut params = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
            params.extended_key_usages = vec![usage];
            (params.signed_by(&key, &issuer).unwrap().pem(), key.serialize_pem())
        };
        let server = issue(rcgen::ExtendedKeyUsagePurpose::ServerAuth);
        let client = issue(rcgen::ExtendedKeyUsagePurpose::ClientAuth);
        Self { ca, server, client }
    }

    /// Writes what etcd needs and gives the authority's path.
    fn write_to(&self, dir: &Path) -> PathBuf {
        let ca = dir.join("ca.crt");
        std::fs::write(&ca, &self.ca).unwrap();
        std::fs::write(dir.join("server.crt"), &self.server.0).unwrap();
        std::fs::write(dir.join("server.key"), &self.server.1).unwrap();
        ca
    }

    fn tls(&self) -> etcd::Tls {
        let identity = (self.client.0.clone().into_bytes(), self.client.1.clone().into_bytes());
        etcd::Tls { ca: self.ca.clone().into_bytes(), identity: Some(identity), server_name: None }
    }
}
