//! What a write costs: time, CPU, bytes to the device; beside the floor of one durable write, and
//! beside redb, a copy-on-write B-tree, doing the same.
//!
//! `cargo run --release -p store --example bench [DIRECTORY]` (default: the current one).

use std::{future::Future, path::Path, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::StreamExt;
use stdx::Env;
use store::{
    Op, Range, Store, Txn, WatchRequest,
    embedded::{Embedded, Options},
};

const VALUE_BYTES: usize = 2000;

fn main() {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.expect("a runtime");
    if let Some(dir) =
        std::env::args().nth(1).filter(|arg| arg == "--reopen").and(std::env::args().nth(2))
    {
        return runtime.block_on(reopen(Path::new(&dir)));
    }
    let base = std::env::args().nth(1).unwrap_or_else(|| ".".to_owned());
    let dir =
        tempfile::Builder::new().prefix("store-bench-").tempdir_in(base).expect("a directory");
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.expect("a runtime").block_on(run(dir.path()));
}

async fn run(dir: &Path) {
    let env = Env::real();
    println!(
        "{:<44} {:>9} {:>9} {:>11} {:>11}",
        "", "per s", "us each", "CPU us each", "bytes each"
    );
    floor(&env, dir).await;
    let path = dir.join("store");
    let store = Embedded::open(&env, &path, Options::default()).await.expect("it opens");
    writes(&env, &store, "1 writer, 2,000 bytes", 500, 1, VALUE_BYTES).await;
    writes(&env, &store, "1 writer, 400 bytes (a Lease)", 500, 1, 400).await;
    writes(&env, &store, "64 writers, 2,000 bytes", 20_000, 64, VALUE_BYTES).await;
    let watches: Vec<_> = watch_kinds(&store).await;
    writes(&env, &store, "64 writers, 2,000 bytes, 100 watches", 20_000, 64, VALUE_BYTES).await;
    drop(watches);
    fill_and_list(&env, &store).await;
    store.close().await;
    drop(store);
    let own = std::env::current_exe().expect("this program");
    let reopened = std::process::Command::new(own).arg("--reopen").arg(&path).status();
    assert!(reopened.expect("a process").success());
    redb_writes(&env, dir).await;
}

/// Opens a store that is there already, in a process of its own.
async fn reopen(path: &Path) {
    let env = Env::real();
    let start = env.instant();
    let store = Embedded::open(&env, path, Options::default()).await.expect("it opens again");
    let stats = store.stats().await.expect("stats");
    println!(
        "restart with {} keys, {} MB of data, {} MB on disk: {} ms; resident {} MB",
        stats.keys,
        stats.bytes_in_use >> 20,
        stats.bytes_on_disk >> 20,
        start.elapsed().as_millis(),
        resident_bytes() >> 20
    );
    store.close().await;
}

/// Measures `count` pieces of work done `at_once` at a time.
async fn measure<F: Future<Output = ()>>(
    env: &Env,
    name: &str,
    count: usize,
    at_once: usize,
    work: impl Fn(usize) -> F,
) {
    let (start, cpu, written) = (env.instant(), cpu_seconds(), written_bytes());
    futures::stream::iter((0..count).map(work)).buffer_unordered(at_once).collect::<()>().await;
    report(name, count, start.elapsed(), cpu_seconds() - cpu, written_bytes() - written);
}

fn report(name: &str, count: usize, took: Duration, cpu: f64, written: u64) {
    let each = |total: f64| total / count as f64;
    println!(
        "{name:<44} {:>9.0} {:>9.0} {:>11.1} {:>11.0}",
        count as f64 / took.as_secs_f64(),
        each(took.as_secs_f64() * 1e6),
        each(cpu * 1e6),
        each(written as f64),
    );
}

/// One durable write of as many bytes by the calls that the log makes, and nothing else.
async fn floor(env: &Env, dir: &Path) {
    let file = env.files().create_log(&dir.join("floor")).expect("a file");
    file.write_at(0, &vec![0; 4 << 20]).expect("zeros");
    file.sync().expect("a sync");
    let block = vec![7; 2048];
    measure(env, "floor: one durable write of 2,048 bytes", 500, 1, |n| {
        let (file, block) = (&file, &block);
        async move { file.write_durable(n as u64 * 2048, block).expect("a write") }
    })
    .await;
}

async fn writes(
    env: &Env,
    store: &Arc<Embedded>,
    name: &str,
    count: usize,
    at_once: usize,
    bytes: usize,
) {
    let tag = name.replace(' ', "-");
    measure(env, name, count, at_once, |n| {
        let key = format!("/registry/kind-{:02}/default/{tag}-{}", n % 100, n % 2000);
        let then =
            Op::Put { key: key.into(), value: Bytes::from(vec![n as u8; bytes]), lease: None };
        let store = store.clone();
        async move {
            store.txn(Txn { compares: vec![], then }).await.expect("a write");
        }
    })
    .await;
}

/// A watch of each kind, read by nobody but kept short by its buffer's bound.
async fn watch_kinds(store: &Arc<Embedded>) -> Vec<tokio::task::JoinHandle<()>> {
    let mut tasks = Vec::new();
    for kind in 0..100 {
        let start = Bytes::from(format!("/registry/kind-{kind:02}/"));
        let end = Some(store::prefix_end(&start));
        let mut watch = store.watch(WatchRequest { start, end, from: 0 }).await.expect("a watch");
        #[allow(clippy::disallowed_methods)] // A measuring program, never simulated.
        tasks.push(tokio::spawn(async move { while watch.events.next().await.is_some() {} }));
    }
    tasks
}

async fn fill_and_list(env: &Env, store: &Arc<Embedded>) {
    measure(env, "fill: 100,000 keys, 256 writers, 2,000 bytes", 100_000, 256, |n| {
        let key = format!("/registry/pods/namespace-{}/pod-{n}", n % 50);
        let txn = Txn::create(key, vec![n as u8; VALUE_BYTES]);
        let store = store.clone();
        async move {
            store.txn(txn).await.expect("a write");
        }
    })
    .await;
    let newest = store.current_revision().await.expect("a revision");
    store.compact(newest).await.expect("a compaction");
    measure(env, "list 100,000 keys by prefix", 10, 1, |_| async move {
        let all = store.range(Range::prefix("/registry/pods/")).await.expect("a list");
        assert_eq!(all.items.len(), 100_000);
    })
    .await;
    measure(env, "list 500 of 2,000 keys", 100, 1, |_| async move {
        let range = Range { limit: 500, ..Range::prefix("/registry/pods/namespace-7/") };
        assert_eq!(store.range(range).await.expect("a list").count, 2000);
    })
    .await;
}

/// The same writes in redb: one table, one commit each, durable.
async fn redb_writes(env: &Env, dir: &Path) {
    const TABLE: redb::TableDefinition<'_, &[u8], &[u8]> = redb::TableDefinition::new("keys");
    let database = redb::Database::create(dir.join("redb")).expect("a database");
    let commit = |from: usize, to: usize, bytes: usize| {
        let write = database.begin_write().expect("a transaction");
        {
            let mut table = write.open_table(TABLE).expect("a table");
            for n in from..to {
                let key = format!("/registry/pods/namespace-{}/pod-{n}", n % 50);
                table.insert(key.as_bytes(), &vec![n as u8; bytes][..]).expect("an insert");
            }
        }
        write.commit().expect("a commit");
    };
    for n in 0..10 {
        commit(n * 1000, (n + 1) * 1000, VALUE_BYTES);
    }
    measure(env, "redb, 10,000 keys: 1 writer, 2,000 bytes", 300, 1, |n| {
        commit(n * 7, n * 7 + 1, VALUE_BYTES);
        async {}
    })
    .await;
    measure(env, "redb, 10,000 keys: 1 writer, 400 bytes", 300, 1, |n| {
        commit(n % 3, n % 3 + 1, 400);
        async {}
    })
    .await;
    measure(env, "redb, 10,000 keys: batches of 64 (per batch)", 100, 1, |n| {
        commit(n * 64, n * 64 + 64, VALUE_BYTES);
        async {}
    })
    .await;
}

/// User and system time of this process.
fn cpu_seconds() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// Bytes that this process caused to be written to devices.
fn written_bytes() -> u64 {
    proc_number("/proc/self/io", "write_bytes:")
}

fn resident_bytes() -> u64 {
    proc_number("/proc/self/status", "VmRSS:") * 1024
}

fn proc_number(path: &str, name: &str) -> u64 {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
    line.split_whitespace().next().and_then(|number| number.parse().ok()).unwrap_or(0)
}
