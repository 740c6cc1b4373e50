//! Several servers on one store, and a store whose watches break.

use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use futures::StreamExt;
use machinery::value;
use store::{
    LeaseId, Range, RangeResult, Revision, Stats, Store, Txn, TxnResult, Watch, WatchRequest,
};
use tokio::sync::watch;

use super::*;
use crate::WatchKind;

/// Two registries, as two servers have them.
async fn two(w: &World) -> (World, World) {
    let open =
        || Registry::open(w.env.clone(), w.registry.store().clone(), w.registry.options().clone());
    (World { env: w.env.clone(), registry: open() }, World { env: w.env.clone(), registry: open() })
}

#[test]
fn servers_on_one_store_see_each_other() {
    run(Options::default(), |w| async move {
        let (a, b) = two(&w).await;
        let (maps_a, maps_b) = (a.core("configmaps"), b.core("configmaps"));
        let body = value!({"metadata": {"name": "m", "namespace": "ns"}, "data": {"n": "0"}});
        let made = a.create(&maps_a, body).await.unwrap();
        let options = ListOptions {
            resource_version: made.resource_version().into(),
            ..ListOptions::default()
        };
        let mut stream = maps_a.watch(None, &options).await.unwrap();
        let count = |o: &mut Object| {
            let n: i64 = o.str_at(&["data", "n"]).parse().unwrap();
            o.set_at(&["data", "n"], (n + 1).to_string());
        };
        let edits = (0..10).map(|at| {
            let (world, maps) = if at % 2 == 0 { (&a, &maps_a) } else { (&b, &maps_b) };
            world.edit(maps, ("ns", "m"), "", count)
        });
        for done in futures::future::join_all(edits).await {
            done.unwrap();
        }
        for n in 1..=10 {
            let event = stream.next().await.unwrap();
            assert_eq!(event.object().unwrap().str_at(&["data", "n"]), n.to_string());
        }
        assert_eq!(b.names(&maps_b, "ns", &ListOptions::default()).await, ["m"]);
    });
}

#[test]
fn servers_on_one_store_share_no_address() {
    let options = Options {
        service_cidrs: vec!["10.0.0.0/28".into()],
        node_ports: (30_000, 30_031),
        ..Options::default()
    };
    run(options, |w| async move {
        let (a, b) = two(&w).await;
        let makers = (0..14).map(|at| {
            let world = if at % 2 == 0 { &a } else { &b };
            let mut service = Object::new("v1", "Service", "ns", &format!("s{at}"));
            service.set_at(&["spec"], value!({"type": "NodePort", "ports": [{"port": 80}]}));
            let at = world.core("services");
            async move { world.create(&at, service.into_value()).await.unwrap() }
        });
        let made = futures::future::join_all(makers).await;
        let distinct = |values: Vec<String>| {
            values.into_iter().collect::<std::collections::BTreeSet<_>>().len()
        };
        assert_eq!(
            distinct(made.iter().map(|o| o.str_at(&["spec", "clusterIP"]).to_owned()).collect()),
            14
        );
        let ports =
            made.iter().map(|o| format!("{:?}", o.list_at(&["spec", "ports"])[0].get("nodePort")));
        assert_eq!(distinct(ports.collect()), 14);
    });
}

/// A store whose watches all end when told to.
struct Breaking {
    inner: Arc<dyn Store>,
    breaks: watch::Sender<u64>,
    watches: AtomicUsize,
}

#[async_trait]
impl Store for Breaking {
    async fn range(&self, request: Range) -> Result<RangeResult, store::Error> {
        self.inner.range(request).await
    }
    async fn txn(&self, txn: Txn) -> Result<TxnResult, store::Error> {
        self.inner.txn(txn).await
    }
    async fn watch(&self, request: WatchRequest) -> Result<Watch, store::Error> {
        self.watches.fetch_add(1, Ordering::Relaxed);
        let mut broken = self.breaks.subscribe();
        broken.mark_unchanged();
        let mut watch = self.inner.watch(request).await?;
        let until = async move {
            let _ = broken.changed().await;
        };
        watch.events = watch.events.take_until(Box::pin(until)).boxed();
        Ok(watch)
    }
    async fn current_revision(&self) -> Result<Revision, store::Error> {
        self.inner.current_revision().await
    }
    async fn compact(&self, revision: Revision) -> Result<(), store::Error> {
        self.inner.compact(revision).await
    }
    async fn grant_lease(&self, ttl_seconds: i64) -> Result<LeaseId, store::Error> {
        self.inner.grant_lease(ttl_seconds).await
    }
    async fn stats(&self) -> Result<Stats, store::Error> {
        self.inner.stats().await
    }
}

#[test]
fn a_broken_watch_ends_the_watchers_and_the_cache_lists_again() {
    run(Options::default(), |w| async move {
        let store = Arc::new(Breaking {
            inner: w.registry.store().clone(),
            breaks: watch::Sender::new(0),
            watches: AtomicUsize::new(0),
        });
        let registry = Registry::open(w.env.clone(), store.clone(), Options::default());
        let w = World { env: w.env.clone(), registry };
        let maps = w.core("configmaps");
        let make = |name: &str| value!({"metadata": {"name": name, "namespace": "ns"}});
        let first = w.create(&maps, make("a")).await.unwrap();
        let options = ListOptions {
            resource_version: first.resource_version().into(),
            ..ListOptions::default()
        };
        let mut stream = maps.watch(None, &options).await.unwrap();
        store.breaks.send_modify(|n| *n += 1);
        let unseen = w.create(&maps, make("b")).await.unwrap();
        assert!(stream.next().await.is_none(), "the watch ends instead of leaving something out");
        assert_eq!(w.names(&maps, "ns", &ListOptions::default()).await, ["a", "b"]);
        // What lies before the new list is gone; the client lists again and goes on.
        let mut again = match maps.watch(None, &options).await {
            Ok(stream) => stream,
            Err(status) => {
                assert!(status.is_expired());
                let version = unseen.resource_version().to_owned();
                maps.watch(
                    None,
                    &ListOptions { resource_version: version, ..ListOptions::default() },
                )
                .await
                .unwrap()
            }
        };
        w.create(&maps, make("c")).await.unwrap();
        let event = again.next().await.unwrap();
        assert_eq!((event.kind, event.entry().unwrap().name()), (WatchKind::Added, "c"));
        assert_eq!(store.watches.load(Ordering::Relaxed), 2);
    });
}
