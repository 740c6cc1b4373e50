//! What the embedded engine promises beyond the contract: restarts, full disks, damage, bounds.

use std::{path::Path, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::StreamExt;
use stdx::{Env, env::simulate, files::FileSystem};
use store::{
    Error, Op, Range, Revision, Store, Txn, TxnResult, WatchRequest,
    embedded::{Embedded, Options},
    sim::SimFiles,
};

const DIR: &str = "/store";

fn small() -> Options {
    Options { segment_bytes: 8192, garbage_bytes: 8192, recent_bytes: 256, ..Options::default() }
}

async fn open(env: &Env, options: Options) -> Arc<Embedded> {
    Embedded::open(env, Path::new(DIR), options).await.expect("the store opens")
}

async fn put(store: &Embedded, key: &str, value: impl Into<Bytes>) -> Result<Revision, Error> {
    let then = Op::Put { key: key.to_owned().into(), value: value.into(), lease: None };
    match store.txn(Txn { compares: vec![], then }).await? {
        TxnResult::Written { revision, .. } => Ok(revision),
        conflict => panic!("{conflict:?}"),
    }
}

fn all() -> Range {
    Range { end: Some("\0".into()), ..Range::key("/") }
}

/// Runs a scenario on a simulated disk.
fn on_disk<F: Future<Output = ()>>(scenario: impl FnOnce(Env, Arc<SimFiles>) -> F) {
    let files = SimFiles::new(1);
    simulate(1, files.clone(), |env| async move {
        scenario(env.clone(), files).await;
        assert_eq!(env.panics(), 0);
    });
}

#[test]
fn a_second_opener_is_turned_away() {
    on_disk(|env, _| async move {
        let store = open(&env, small()).await;
        let second = Embedded::open(&env, Path::new(DIR), small()).await;
        assert!(matches!(second, Err(Error::Locked { .. })));
        store.close().await;
        open(&env, small()).await.close().await;
    });
}

#[test]
fn a_second_process_is_turned_away_on_real_files() {
    let dir = tempfile::tempdir().unwrap();
    let files = stdx::files::RealFiles;
    let held = files.lock(&dir.path().join("lock")).unwrap();
    let opened = simulate(1, Arc::new(files), |env| async move {
        Embedded::open(&env, dir.path(), small()).await.err()
    });
    assert!(matches!(opened, Some(Error::Locked { .. })), "{opened:?}");
    drop(held);
}

#[test]
fn a_closed_store_says_so() {
    on_disk(|env, _| async move {
        let store = open(&env, small()).await;
        let watch = WatchRequest { start: "/".into(), end: Some("\0".into()), from: 0 };
        let mut watch = store.watch(watch).await.unwrap();
        store.close().await;
        assert!(matches!(watch.events.next().await, Some(Err(Error::Unavailable(_)))));
        assert!(matches!(put(&store, "/a", "1").await, Err(Error::Unavailable(_))));
        assert!(matches!(store.range(all()).await, Err(Error::Unavailable(_))));
    });
}

#[test]
fn leases_keep_their_time_over_restarts_and_checkpoints() {
    on_disk(|env, _| async move {
        let store = open(&env, small()).await;
        let lease = store.grant_lease(60).await.unwrap();
        let then = Op::Put { key: "/leased".into(), value: "1".into(), lease: Some(lease) };
        store.txn(Txn { compares: vec![], then }).await.unwrap();
        let mut last = 0;
        for n in 0..100 {
            last = put(&store, "/busy", vec![n; 500]).await.unwrap();
        }
        store.compact(last).await.unwrap();
        env.sleep(Duration::from_secs(40)).await;
        store.close().await;
        let store = open(&env, small()).await;
        let stats = store.stats().await.unwrap();
        assert!(stats.bytes_on_disk < 20_000, "no checkpoint was written: {stats:?}");
        env.sleep(Duration::from_secs(19)).await;
        assert_eq!(store.range(Range::key("/leased")).await.unwrap().count, 1);
        env.sleep(Duration::from_secs(2)).await;
        assert_eq!(store.range(Range::key("/leased")).await.unwrap().count, 0);
        store.close().await;
        // What ran out while nobody was there ends at once.
        let store = open(&env, small()).await;
        let lease = store.grant_lease(60).await.unwrap();
        let then = Op::Put { key: "/late".into(), value: "1".into(), lease: Some(lease) };
        store.txn(Txn { compares: vec![], then }).await.unwrap();
        store.close().await;
        env.sleep(Duration::from_secs(100)).await;
        let store = open(&env, small()).await;
        env.sleep(Duration::from_millis(1)).await;
        assert_eq!(store.range(Range::key("/late")).await.unwrap().count, 0);
    });
}

#[test]
fn a_full_disk_refuses_writes_and_nothing_else() {
    on_disk(|env, files| async move {
        let store = open(&env, small()).await;
        let first = put(&store, "/a", "1").await.unwrap();
        files.set_capacity(Some(files.used_bytes()));
        let mut refused = 0;
        while refused < 5 {
            refused += match put(&store, "/b", vec![7; 1000]).await {
                Ok(_) => 0,
                Err(Error::NoSpace { path }) => {
                    assert_eq!(path, DIR);
                    1
                }
                Err(other) => panic!("{other:?}"),
            };
        }
        let items = store.range(Range { revision: first, ..all() }).await.unwrap().items;
        assert_eq!(items.len(), 1);
        let full = store.current_revision().await.unwrap();
        store.close().await;
        let store = open(&env, small()).await;
        assert_eq!(store.current_revision().await.unwrap(), full);
        assert!(matches!(put(&store, "/c", vec![7; 5000]).await, Err(Error::NoSpace { .. })));
        files.set_capacity(None);
        assert_eq!(put(&store, "/c", vec![7; 5000]).await.unwrap(), full + 1);
        store.close().await;
        assert_eq!(open(&env, small()).await.current_revision().await.unwrap(), full + 1);
    });
}

/// A bit that flips anywhere in a closed segment is noticed. (In the very last batch of the log it
/// looks like a write that a crash cut short, and nobody can tell.)
#[test]
fn damage_is_noticed_at_start() {
    let (mut noticed, mut unseen) = (0, 0);
    for at in (0..8192).step_by(97) {
        on_disk(|env, files| {
            let (noticed, unseen) = (&mut noticed, &mut unseen);
            async move {
                let store = open(&env, small()).await;
                for n in 0..20 {
                    put(&store, "/a", vec![n; 700]).await.unwrap();
                }
                let before = store.current_revision().await.unwrap();
                store.close().await;
                let path = Path::new(DIR).join("log-00000001");
                let length = files.content(&path).unwrap().len();
                files.flip_bit(&path, at % length);
                match Embedded::open(&env, Path::new(DIR), small()).await {
                    Err(Error::Corrupt { .. }) => *noticed += 1,
                    Err(other) => panic!("{other:?}"),
                    Ok(store) => {
                        // Only a bit of padding may go unseen.
                        assert_eq!(store.current_revision().await.unwrap(), before);
                        *unseen += 1;
                    }
                }
            }
        });
    }
    assert!(noticed > 50 && unseen < noticed, "{noticed} noticed, {unseen} not");
}

#[test]
fn damage_is_noticed_when_an_old_value_is_read() {
    on_disk(|env, files| async move {
        let store = open(&env, small()).await;
        let first = put(&store, "/a", vec![b'x'; 700]).await.unwrap();
        put(&store, "/a", vec![b'y'; 700]).await.unwrap();
        let path = Path::new(DIR).join("log-00000001");
        let content = files.content(&path).unwrap();
        let at = content.windows(16).position(|bytes| bytes == [b'x'; 16]).unwrap();
        files.flip_bit(&path, at);
        let old = store.range(Range { revision: first, ..Range::key("/a") }).await;
        assert!(matches!(old, Err(Error::Corrupt { .. })), "{old:?}");
        // It has stopped: what else is damaged is not known.
        assert!(matches!(put(&store, "/b", "1").await, Err(Error::Corrupt { .. })));
        assert!(matches!(store.range(all()).await, Err(Error::Corrupt { .. })));
    });
}

#[test]
fn a_missing_segment_is_noticed() {
    on_disk(|env, files| async move {
        let store = open(&env, small()).await;
        for n in 0..60 {
            put(&store, "/a", vec![n; 700]).await.unwrap();
        }
        store.close().await;
        files.remove(&Path::new(DIR).join("log-00000002")).unwrap();
        let opened = Embedded::open(&env, Path::new(DIR), small()).await.err();
        assert!(matches!(opened, Some(Error::Corrupt { .. })), "{opened:?}");
    });
}

#[test]
fn disk_stays_bounded_under_compaction() {
    on_disk(|env, files| async move {
        let store = open(&env, small()).await;
        let mut most = 0;
        for round in 0..200u32 {
            for key in 0..10 {
                put(&store, &format!("/{key}"), vec![round as u8; 500]).await.unwrap();
            }
            store.compact(store.current_revision().await.unwrap()).await.unwrap();
            env.sleep(Duration::from_millis(1)).await;
            most = most.max(files.used_bytes());
        }
        // One million bytes were written, 5,000 are alive.
        assert!(most < 60_000, "{most} bytes on disk");
        let found = store.range(all()).await.unwrap();
        assert!(found.items.iter().all(|item| item.version == 200 && item.value[0] == 199));
        store.close().await;
        let store = open(&env, small()).await;
        assert_eq!(store.range(all()).await.unwrap().items, found.items);
    });
}

/// Twenty restarts between two writes leave no trace, and revisions go on.
#[test]
fn restarts_cost_nothing() {
    on_disk(|env, files| async move {
        for n in 2..10 {
            let store = open(&env, small()).await;
            assert_eq!(put(&store, "/a", "1").await.unwrap(), n);
            store.close().await;
            for _ in 0..20 {
                open(&env, small()).await.close().await;
            }
        }
        assert!(files.used_bytes() < 9 * 1024, "{} bytes", files.used_bytes());
    });
}
