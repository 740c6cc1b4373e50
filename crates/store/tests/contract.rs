//! The contract suite on every engine. Real etcd takes part when `GANTRY_ETCD` names its binary.

use std::{
    net::TcpListener,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use stdx::{Env, env::simulate, files::RealFiles};
use store::{Range, Store, embedded, embedded::Embedded, etcd, suite};

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

#[test]
fn etcd_itself() {
    let Ok(binary) = std::env::var("GANTRY_ETCD") else {
        eprintln!("skipped: GANTRY_ETCD does not name an etcd binary");
        return;
    };
    runtime().block_on(async {
        let env = Env::real();
        let server = EtcdServer::start(&binary);
        let store = server.connect(&env).await;
        suite::run(&env, store).await;
    });
}

/// An etcd on loopback in a directory of its own; ends with the value.
struct EtcdServer {
    process: Child,
    url: String,
    _dir: tempfile::TempDir,
}

impl EtcdServer {
    fn start(binary: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (url, peer) = (free_url(), free_url());
        let process = Command::new(binary)
            .arg("--data-dir").arg(dir.path())
            .args(["--listen-client-urls", &url, "--advertise-client-urls", &url])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("default={peer}"), "--log-level", "error"])
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        Self { process, url, _dir: dir }
    }

    /// Connects as soon as it answers.
    async fn connect(&self, env: &Env) -> Arc<etcd::Etcd> {
        for _ in 0..100 {
            let options = etcd::Options::new(vec![self.url.clone()]);
            match env.timeout(Duration::from_secs(2), etcd::Etcd::connect(env, options)).await {
                Some(Ok(store)) => return store,
                _ => env.sleep(Duration::from_millis(100)).await,
            }
        }
        panic!("etcd does not answer at {}", self.url);
    }
}

impl Drop for EtcdServer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn free_url() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}
