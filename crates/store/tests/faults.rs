//! The embedded engine on a disk that forgets and tears: many seeds of writers, compaction,
//! leases, full disks, kills and power cuts.
//!
//! `GANTRY_SEEDS=1000 cargo test -p store --test faults` runs that many; a failure names its seed,
//! and `GANTRY_SEED=n` runs that one alone.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use futures::StreamExt;
use stdx::{Env, env::simulate};
use store::{
    Compare, Error, Event, KeyValue, LeaseId, Op, Range, Revision, Store, Txn, TxnResult,
    WatchRequest,
    embedded::{Embedded, Options},
    sim::SimFiles,
};

const DIR: &str = "/store";
const KEYS: u64 = 8;
const LIVES: usize = 6;

const OPTIONS: Options = Options {
    request_bytes: 1 << 20,
    segment_bytes: 8192,
    garbage_bytes: 16_384,
    recent_bytes: 2048,
    watch_buffer_events: 3,
};

/// What one revision did: key and value, `None` for a deletion.
type Writes = Vec<(Bytes, Option<Bytes>)>;

#[test]
fn nothing_acknowledged_is_lost() {
    let var = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seeds = match var("GANTRY_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..var("GANTRY_SEEDS").unwrap_or(200),
    };
    let count = seeds.end - seeds.start;
    let mut total = Totals::default();
    for seed in seeds {
        let named = Named(seed);
        total.add(&run(seed).0);
        std::mem::forget(named);
    }
    println!("{count} seeds: {total:?}");
    assert!(
        count < 100 || total.exercised(),
        "the simulation misses what it is there for: {total:?}"
    );
}

#[test]
fn one_seed_gives_one_run() {
    for seed in 0..5 {
        assert!(run(seed).1 == run(seed).1, "seed {seed} ran in two ways");
    }
}

struct Named(u64);

impl Drop for Named {
    fn drop(&mut self) {
        eprintln!("failed with GANTRY_SEED={}", self.0);
    }
}

/// How often the interesting things happened.
#[derive(Clone, Debug, Default)]
struct Totals {
    acknowledged: usize,
    unknown: usize,
    appeared: usize,
    no_space: usize,
    expired: usize,
    checkpoints: usize,
    died_while_opening: usize,
    delivered: usize,
    compacted_watches: usize,
}

impl Totals {
    fn add(&mut self, other: &Self) {
        self.acknowledged += other.acknowledged;
        self.unknown += other.unknown;
        self.appeared += other.appeared;
        self.no_space += other.no_space;
        self.expired += other.expired;
        self.checkpoints += other.checkpoints;
        self.died_while_opening += other.died_while_opening;
        self.delivered += other.delivered;
        self.compacted_watches += other.compacted_watches;
    }

    fn exercised(&self) -> bool {
        let all = [
            self.acknowledged,
            self.unknown,
            self.appeared,
            self.no_space,
            self.expired,
            self.checkpoints,
            self.died_while_opening,
            self.delivered,
            self.compacted_watches,
        ];
        all.iter().all(|&count| count > 0)
    }
}

/// What the world outside the store knows.
#[derive(Default)]
struct Model {
    /// Certain: acknowledged, delivered by a watch, or found after a restart.
    history: BTreeMap<Revision, Writes>,
    /// Values whose outcome nobody told.
    unknown: BTreeSet<Bytes>,
    /// Values that were certainly not written.
    refused: BTreeSet<Bytes>,
    leased: BTreeSet<Bytes>,
    /// Deletions without an answer: one of them may have deleted what it says.
    unknown_deletes: BTreeSet<Bytes>,
    /// The watch goes on behind this.
    watched: Revision,
    compacted: Revision,
    totals: Totals,
}

type Shared = Arc<Mutex<Model>>;

fn run(seed: u64) -> (Totals, String) {
    let files = SimFiles::new(seed);
    simulate(seed, files.clone(), |env| async move {
        let model = Shared::default();
        model.lock().unwrap().watched = 1;
        for life in 0..LIVES {
            live(&env, &files, &model, life + 1 == LIVES).await;
            match env.random_u64() % 3 {
                0 => files.kill_process(),
                _ => files.lose_power(),
            }
        }
        assert_eq!(env.panics(), 0);
        let model = model.lock().unwrap();
        let trace = format!("{:?} {} {:?}", model.history, files.operations(), env.now());
        (model.totals.clone(), trace)
    })
}

/// Opens, checks, works until the machine goes down. The last life ends in peace.
async fn live(env: &Env, files: &Arc<SimFiles>, model: &Shared, last: bool) {
    if !last && env.random_u64().is_multiple_of(4) {
        files.die_after(1 + env.random_u64() % 25);
    }
    let store = match Embedded::open(env, Path::new(DIR), OPTIONS).await {
        Ok(store) => store,
        Err(Error::Unavailable(_)) if files.is_down() => {
            model.lock().unwrap().totals.died_while_opening += 1;
            return;
        }
        Err(error) => panic!("the store does not open: {error:?}"),
    };
    if check(&store, model).await.is_err() {
        assert!(files.is_down());
        return;
    }
    if last {
        return store.close().await;
    }
    if !files.is_down() {
        files.die_after(1 + env.random_u64() % 250);
    }
    let mut tasks = vec![
        env.spawn("watcher", watch(store.clone(), model.clone())),
        env.spawn("slow watcher", watch_slowly(env.clone(), store.clone(), model.clone())),
    ];
    for writer in 0..4 {
        let world = World { env: env.clone(), store: store.clone(), model: model.clone(), writer };
        tasks.push(env.spawn("writer", world.write()));
    }
    tasks.push(env.spawn("compactor", compact(env.clone(), store.clone(), model.clone())));
    tasks.push(env.spawn("space", starve(env.clone(), files.clone())));
    for task in tasks {
        task.await;
    }
    assert!(files.is_down());
    files.set_capacity(None);
    store.close().await;
}

/// Everything certain must be there, everything there must be possible, with no gap.
async fn check(store: &Embedded, model: &Shared) -> Result<(), Error> {
    let newest = store.current_revision().await?;
    let compacted = store.stats().await?.compacted;
    let from = compacted.max(2);
    let mut found: BTreeMap<Revision, Writes> = BTreeMap::new();
    if newest >= from {
        let mut watch = store.watch(everything(from)).await?;
        while found.last_key_value().map_or(0, |(revision, _)| *revision) < newest {
            for event in watch.events.next().await.expect("the watch goes on")?.events {
                found.entry(event.revision).or_default().push(write_of(&event));
            }
        }
    }
    let items = store.range(Range { end: Some("\0".into()), ..Range::key("/") }).await?.items;
    let mut model = model.lock().unwrap();
    assert!(compacted >= model.compacted, "a compaction was undone");
    model.compacted = compacted;
    if let Some((last, _)) = model.history.last_key_value() {
        assert!(newest >= *last, "revision {last} is lost, the newest is {newest}");
    }
    let revisions: Vec<Revision> = found.keys().copied().collect();
    assert_eq!(revisions, (from..=newest).collect::<Vec<_>>(), "history has gaps");
    for (revision, writes) in found {
        match model.history.get(&revision) {
            Some(known) => assert!(known == &writes, "revision {revision} changed"),
            None => model.accept(revision, writes),
        }
    }
    model.check_state(&items);
    model.unknown.clear();
    model.unknown_deletes.clear();
    Ok(())
}

impl Model {
    /// A revision that nobody was told of: it must be one whose writer got no answer, or the end
    /// of a lease.
    fn accept(&mut self, revision: Revision, writes: Writes) {
        let state = self.state_before(revision);
        for (key, value) in &writes {
            match value {
                Some(value) => {
                    assert!(!self.refused.contains(value), "a refused write is there: {value:?}");
                    assert!(self.unknown.contains(value), "nobody wrote {value:?}");
                    self.totals.appeared += 1;
                }
                None => {
                    let value = state.get(key).expect("a deletion deletes something");
                    let expired = self.leased.contains(value);
                    assert!(
                        expired || self.unknown_deletes.contains(value),
                        "nobody deleted {value:?}"
                    );
                    self.totals.expired += usize::from(expired);
                }
            }
        }
        self.history.insert(revision, writes);
    }

    fn state_before(&self, revision: Revision) -> BTreeMap<Bytes, Bytes> {
        let mut state = BTreeMap::new();
        for (key, value) in self.history.range(..revision).flat_map(|(_, writes)| writes) {
            match value {
                Some(value) => state.insert(key.clone(), value.clone()),
                None => state.remove(key),
            };
        }
        state
    }

    fn check_state(&self, items: &[KeyValue]) {
        let expected: Vec<_> = self.state_before(Revision::MAX).into_iter().collect();
        let found: Vec<_> = items.iter().map(|i| (i.key.clone(), i.value.clone())).collect();
        assert!(found == expected, "the state is not what history makes of it");
        for item in items {
            let of_key = |writes: &Writes| writes.iter().any(|(key, _)| *key == item.key);
            let last = self.history.iter().rfind(|(_, writes)| of_key(writes)).map(|(at, _)| *at);
            assert_eq!(Some(item.mod_revision), last);
        }
    }

    fn know(&mut self, revision: Revision, key: Bytes, value: Option<Bytes>) {
        let write = (key, value);
        let writes = self.history.entry(revision).or_default();
        if !writes.contains(&write) {
            writes.push(write);
            writes.sort();
        }
    }
}

fn everything(from: Revision) -> WatchRequest {
    WatchRequest { start: "/".into(), end: Some("\0".into()), from }
}

fn write_of(event: &Event) -> (Bytes, Option<Bytes>) {
    (event.key.clone(), event.current.as_ref().map(|item| item.value.clone()))
}

/// Goes on where the watch of the life before stopped.
async fn watch(store: Arc<Embedded>, model: Shared) {
    let from = model.lock().unwrap().watched + 1;
    let Ok(mut watch) = store.watch(everything(from)).await else { return };
    while let Some(item) = watch.events.next().await {
        let Ok(batch) = item else {
            assert!(
                !matches!(item, Err(Error::Compacted { .. })),
                "nothing is compacted before it was seen"
            );
            return;
        };
        let mut model = model.lock().unwrap();
        for event in &batch.events {
            follows(model.watched, event.revision);
            model.watched = event.revision;
            let (key, value) = write_of(event);
            // An expiry has no answer, so the watch is the first to tell.
            let told = model.history.contains_key(&event.revision);
            if value.is_none()
                && !told
                && event.previous.as_ref().is_some_and(|p| p.lease.is_some())
            {
                model.totals.expired += 1;
            }
            model.totals.delivered += 1;
            model.know(event.revision, key, value);
        }
        assert!(batch.revision >= model.watched);
        model.watched = batch.revision;
    }
}

fn follows(before: Revision, revision: Revision) {
    assert!([before, before + 1].contains(&revision), "revision {revision} follows {before}");
}

/// Falls far behind at times, and loses its place when a compaction overtakes it.
async fn watch_slowly(env: Env, store: Arc<Embedded>, model: Shared) {
    let Ok(newest) = store.current_revision().await else { return };
    let mut seen = newest;
    let Ok(mut watch) = store.watch(everything(seen + 1)).await else { return };
    while let Some(item) = watch.events.next().await {
        match item {
            Ok(batch) => {
                for event in &batch.events {
                    follows(seen, event.revision);
                    seen = event.revision;
                    let mut model = model.lock().unwrap();
                    let (key, value) = write_of(event);
                    model.know(event.revision, key, value);
                }
            }
            Err(Error::Compacted { compacted }) => {
                assert!(compacted > seen + 1, "nothing was missing");
                model.lock().unwrap().totals.compacted_watches += 1;
                return;
            }
            Err(_) => return,
        }
        if env.random_u64().is_multiple_of(8) {
            env.sleep(Duration::from_millis(800)).await;
        }
    }
}

struct World {
    env: Env,
    store: Arc<Embedded>,
    model: Shared,
    writer: u64,
}

impl World {
    /// Writes until the store fails.
    async fn write(self) {
        let mut lease = None;
        for n in 0.. {
            if self.env.random_u64().is_multiple_of(8) {
                lease = self.lease().await;
            }
            if !self.write_one(n, lease).await {
                return;
            }
            if self.env.random_u64().is_multiple_of(2) {
                self.env.sleep(Duration::from_millis(self.env.random_u64() % 300)).await;
            }
        }
    }

    async fn lease(&self) -> Option<LeaseId> {
        match self.env.random_u64() % 3 {
            0 => None,
            1 => self.store.grant_lease(1).await.ok(),
            _ => self.store.grant_lease(100_000).await.ok(),
        }
    }

    async fn write_one(&self, n: u64, lease: Option<LeaseId>) -> bool {
        let key = Bytes::from(format!("/{}", self.env.random_u64() % KEYS));
        let Ok(current) = self.store.range(Range::key(key.clone())).await else { return false };
        let current = current.items.into_iter().next();
        let revision = current.as_ref().map_or(0, |item| item.mod_revision);
        let deletes = current.is_some() && self.env.random_u64().is_multiple_of(5);
        let life = self.env.now();
        let mut value = format!("{}-{n}-{life:?} ", self.writer).into_bytes();
        value.resize(value.len() + (self.env.random_u64() % 1500) as usize, b'v');
        let value = Bytes::from(value);
        let then = match deletes {
            true => Op::Delete { key: key.clone() },
            false => Op::Put { key: key.clone(), value: value.clone(), lease },
        };
        if lease.is_some() && !deletes {
            self.model.lock().unwrap().leased.insert(value.clone());
        }
        let txn = Txn { compares: vec![Compare::ModRevision { key: key.clone(), revision }], then };
        let result = self.store.txn(txn).await;
        let mut model = self.model.lock().unwrap();
        let written = (!deletes).then_some(value.clone());
        match result {
            Ok(TxnResult::Written { revision, previous }) => {
                assert_eq!(previous, current);
                model.totals.acknowledged += 1;
                model.know(revision, key, written);
            }
            Ok(TxnResult::Conflict { .. }) | Err(Error::LeaseNotFound(_)) => {
                model.refused.insert(value);
            }
            Err(Error::NoSpace { .. }) => {
                model.totals.no_space += 1;
                model.refused.insert(value);
            }
            Err(Error::Unavailable(_)) => {
                model.refused.insert(value);
                return false;
            }
            Err(Error::Unknown(_)) => {
                model.totals.unknown += 1;
                match current.filter(|_| deletes) {
                    Some(current) => model.unknown_deletes.insert(current.value),
                    None => model.unknown.insert(value),
                };
                return false;
            }
            Err(error) => panic!("{error:?}"),
        }
        true
    }
}

/// Compacts up to a random revision now and then.
async fn compact(env: Env, store: Arc<Embedded>, model: Shared) {
    loop {
        env.sleep(Duration::from_millis(env.random_u64() % 600)).await;
        let newest = model.lock().unwrap().watched;
        let before = store.stats().await.map(|stats| stats.bytes_on_disk).unwrap_or(0);
        let revision = newest - (env.random_u64() % 20) as Revision;
        match store.compact(revision).await {
            Ok(()) => model.lock().unwrap().compacted = revision,
            Err(Error::Compacted { .. } | Error::NoSpace { .. }) => {}
            Err(_) => return,
        }
        env.sleep(Duration::from_millis(1)).await;
        let after = store.stats().await.map(|stats| stats.bytes_on_disk).unwrap_or(0);
        model.lock().unwrap().totals.checkpoints += usize::from(after < before);
    }
}

/// Lets the disk be full at times.
async fn starve(env: Env, files: Arc<SimFiles>) {
    while !files.is_down() {
        env.sleep(Duration::from_millis(env.random_u64() % 4000)).await;
        let room = env.random_u64() % 3000;
        files.set_capacity(Some(files.used_bytes() + room));
        env.sleep(Duration::from_millis(env.random_u64() % 1000)).await;
        files.set_capacity(None);
    }
}
