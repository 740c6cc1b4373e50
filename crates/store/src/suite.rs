//! The contract of [`Store`] as one suite. Real etcd is the reference: a case is trusted once it
//! passed there, and every engine passes all of them.
//!
//! Cases run one after the other on one store that is empty at first. Each has its own key
//! prefix and speaks of revisions only relative to others. A case that fails panics; [`run`] says
//! which one it was in.

use std::{future::Future, pin::Pin, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::StreamExt;
use stdx::Env;

use crate::{
    Compare, Error, Event, EventKind, KeyValue, LeaseId, Op, Range, RangeResult, Revision, Store,
    Txn, TxnResult, Watch, WatchBatch, WatchRequest,
};

type Case = (&'static str, fn(Context) -> Pin<Box<dyn Future<Output = ()> + Send>>);

macro_rules! cases {
    ($($name:ident),* $(,)?) => {
        &[$((stringify!($name), |context| Box::pin($name(context)))),*]
    };
}

const CASES: &[Case] = cases![
    first_write_has_revision_two,
    create_update_delete,
    conflicts_change_nothing,
    compares_may_name_other_keys,
    deleting_nothing_takes_no_revision,
    ranges_are_ordered_limited_and_counted,
    ranges_at_past_and_future_revisions,
    pages_of_a_pinned_revision,
    a_watch_sees_its_range_in_order,
    a_watch_of_one_key,
    a_watch_from_the_past_sees_the_same,
    a_watch_from_the_future_skips_what_is_before,
    a_quiet_watch_tells_its_progress,
    a_slow_watch_misses_nothing,
    concurrent_writes_get_distinct_revisions,
    one_of_many_updates_wins,
    too_large_is_refused,
    a_lease_ends_with_its_keys,
    an_overwritten_key_leaves_its_lease,
    an_unknown_lease_is_refused,
    compaction_forgets_what_is_before,
    a_deletion_at_the_compacted_revision_is_seen,
];

/// Runs every case on a store that holds nothing yet.
pub async fn run(env: &Env, store: Arc<dyn Store>) {
    for (name, case) in CASES {
        let context =
            Context { env: env.clone(), store: store.clone(), prefix: format!("/{name}/") };
        let running = Running(name);
        case(context).await;
        std::mem::forget(running);
    }
}

/// Names the case when it unwinds.
struct Running(&'static str);

impl Drop for Running {
    fn drop(&mut self) {
        eprintln!("case {} failed", self.0);
    }
}

#[derive(Clone)]
struct Context {
    env: Env,
    store: Arc<dyn Store>,
    prefix: String,
}

impl Context {
    fn key(&self, name: &str) -> Bytes {
        format!("{}{name}", self.prefix).into()
    }

    async fn txn(&self, txn: Txn) -> TxnResult {
        self.store.txn(txn).await.expect("the transaction is answered")
    }

    async fn put(&self, name: &str, value: &str) -> Revision {
        self.put_with(name, value, None).await
    }

    async fn put_with(&self, name: &str, value: &str, lease: Option<LeaseId>) -> Revision {
        let then = Op::Put { key: self.key(name), value: value.to_owned().into(), lease };
        match self.txn(Txn { compares: vec![], then }).await {
            TxnResult::Written { revision, .. } => revision,
            conflict => panic!("an unconditional put conflicts: {conflict:?}"),
        }
    }

    async fn delete(&self, name: &str) -> Revision {
        match self.txn(Txn { compares: vec![], then: Op::Delete { key: self.key(name) } }).await {
            TxnResult::Written { revision, .. } => revision,
            conflict => panic!("an unconditional delete conflicts: {conflict:?}"),
        }
    }

    fn all(&self) -> Range {
        Range::prefix(self.prefix.clone())
    }

    async fn range(&self, range: Range) -> RangeResult {
        self.store.range(range).await.expect("the range is read")
    }

    async fn get(&self, name: &str) -> Option<KeyValue> {
        self.range(Range::key(self.key(name))).await.items.pop()
    }

    /// Names (without the prefix) and values.
    async fn pairs_at(&self, revision: Revision) -> Vec<(String, String)> {
        let result = self.range(Range { revision, ..self.all() }).await;
        result.items.iter().map(|item| (self.name(&item.key), text(&item.value))).collect()
    }

    fn name(&self, key: &Bytes) -> String {
        text(key).strip_prefix(&self.prefix).expect("the key is of this case").to_owned()
    }

    async fn watch(&self, from: Revision) -> Watch {
        let Range { start, end, .. } = self.all();
        self.watch_range(WatchRequest { start, end, from }).await
    }

    async fn watch_range(&self, request: WatchRequest) -> Watch {
        self.store.watch(request).await.expect("the watch is set up")
    }

    /// The next item of a watch.
    async fn next(&self, watch: &mut Watch) -> Result<WatchBatch, Error> {
        let item = self.env.timeout(Duration::from_secs(30), watch.events.next()).await;
        item.expect("the watch delivers within 30 s").expect("the watch has not ended")
    }

    /// The next `count` events; checks that batches are whole, ordered and never contradict
    /// themselves.
    async fn events(&self, watch: &mut Watch, count: usize) -> Vec<Event> {
        let mut events: Vec<Event> = Vec::new();
        while events.len() < count {
            let batch = self.next(watch).await.expect("the watch goes on");
            if let (Some(before), Some(first)) = (events.last(), batch.events.first()) {
                assert!(before.revision < first.revision, "a revision was split or repeated");
            }
            assert!(batch.events.iter().all(|e| e.revision <= batch.revision));
            assert!(batch.events.is_sorted_by_key(|e| e.revision));
            events.extend(batch.events);
        }
        assert_eq!(events.len(), count, "more events than expected: {events:?}");
        events
    }

    /// One line an event: `put name=value was old`.
    fn lines(&self, events: &[Event]) -> Vec<String> {
        events.iter().map(|event| self.line(event)).collect()
    }

    fn line(&self, event: &Event) -> String {
        let was =
            event.previous.as_ref().map_or(String::new(), |p| format!(" was {}", text(&p.value)));
        let name = self.name(&event.key);
        match (event.kind, &event.current) {
            (EventKind::Put, Some(current)) => {
                assert_eq!((&current.key, current.mod_revision), (&event.key, event.revision));
                format!("put {name}={}{was}", text(&current.value))
            }
            (EventKind::Delete, None) => format!("delete {name}{was}"),
            shape => panic!("an event of impossible shape: {shape:?}"),
        }
    }
}

fn text(bytes: &Bytes) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
    expected.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

async fn first_write_has_revision_two(c: Context) {
    assert_eq!(c.store.current_revision().await.unwrap(), 1);
    assert_eq!(c.put("first", "1").await, 2);
    assert_eq!(c.put("first", "2").await, 3);
    assert_eq!(c.store.current_revision().await.unwrap(), 3);
}

async fn create_update_delete(c: Context) {
    let TxnResult::Written { revision: created, previous: None } =
        c.txn(Txn::create(c.key("a"), "1")).await
    else {
        panic!("not created")
    };
    let result = c.txn(Txn::put_if(c.key("a"), "2", created)).await;
    let TxnResult::Written { revision: updated, previous: Some(previous) } = result else {
        panic!("not updated: {result:?}")
    };
    assert_eq!(updated, created + 1);
    assert_eq!(
        (text(&previous.value), previous.mod_revision, previous.version),
        ("1".into(), created, 1)
    );
    let item = c.get("a").await.unwrap();
    let expected = KeyValue {
        key: c.key("a"),
        value: "2".into(),
        create_revision: created,
        mod_revision: updated,
        version: 2,
        lease: None,
    };
    assert_eq!(item, expected);
    let result = c.txn(Txn::delete_if(c.key("a"), updated)).await;
    assert_eq!(result, TxnResult::Written { revision: updated + 1, previous: Some(expected) });
    assert_eq!(c.get("a").await, None);
    let again = c.put("a", "3").await;
    let item = c.get("a").await.unwrap();
    assert_eq!((item.create_revision, item.mod_revision, item.version), (again, again, 1));
}

async fn conflicts_change_nothing(c: Context) {
    let first = c.put("a", "1").await;
    let second = c.put("a", "2").await;
    let current = c.get("a").await;
    let newest = c.store.current_revision().await.unwrap();
    for txn in [
        Txn::create(c.key("a"), "x"),
        Txn::put_if(c.key("a"), "x", first),
        Txn::delete_if(c.key("a"), first),
        Txn::put_if(c.key("a"), "x", second + 100),
    ] {
        let conflict = TxnResult::Conflict { revision: newest, current: current.clone() };
        assert_eq!(c.txn(txn).await, conflict);
    }
    let missing = c.txn(Txn::put_if(c.key("missing"), "x", first)).await;
    assert_eq!(missing, TxnResult::Conflict { revision: newest, current: None });
    assert_eq!(c.store.current_revision().await.unwrap(), newest);
}

async fn compares_may_name_other_keys(c: Context) {
    let guard = c.put("guard", "1").await;
    let guarded = |revision| Txn {
        compares: vec![
            Compare::ModRevision { key: c.key("guard"), revision },
            Compare::ModRevision { key: c.key("a"), revision: 0 },
        ],
        then: Op::Put { key: c.key("a"), value: "1".into(), lease: None },
    };
    let refused = c.txn(guarded(guard + 1)).await;
    assert!(matches!(refused, TxnResult::Conflict { current: None, .. }), "{refused:?}");
    let written = c.txn(guarded(guard)).await;
    assert!(matches!(written, TxnResult::Written { .. }), "{written:?}");
}

async fn deleting_nothing_takes_no_revision(c: Context) {
    let newest = c.put("a", "1").await;
    let result = c.txn(Txn::delete_if(c.key("missing"), 0)).await;
    assert_eq!(result, TxnResult::Written { revision: newest, previous: None });
    assert_eq!(c.put("a", "2").await, newest + 1);
}

async fn ranges_are_ordered_limited_and_counted(c: Context) {
    for name in ["b", "a", "c", "b/x", "ab"] {
        c.put(name, name).await;
    }
    c.delete("c").await;
    let newest = c.store.current_revision().await.unwrap();
    let names = |result: &RangeResult| -> Vec<String> {
        result.items.iter().map(|i| c.name(&i.key)).collect()
    };
    let all = c.range(c.all()).await;
    assert_eq!(
        (names(&all), all.count, all.revision),
        (vec!["a".into(), "ab".into(), "b".into(), "b/x".into()], 4, newest)
    );
    let limited = c.range(Range { limit: 2, ..c.all() }).await;
    assert_eq!((names(&limited), limited.count), (vec!["a".into(), "ab".into()], 4));
    let bare = c.range(Range { keys_only: true, ..c.all() }).await;
    assert_eq!(names(&bare), names(&all));
    assert!(bare.items.iter().all(|item| item.value.is_empty() && item.mod_revision > 0));
    let between = Range { start: c.key("ab"), end: Some(c.key("b/x")), ..Range::default() };
    assert_eq!(names(&c.range(between).await), ["ab", "b"]);
    let nothing = Range { start: c.key("b"), end: Some(c.key("a")), ..Range::default() };
    assert_eq!(c.range(nothing).await.count, 0);
    let single = c.range(Range::key(c.key("b"))).await;
    assert_eq!((names(&single), single.count), (vec!["b".into()], 1));
    let open =
        Range { start: c.key("b/x"), end: Some(Bytes::from_static(b"\0")), ..Range::default() };
    assert_eq!(c.range(open).await.items[0].key, c.key("b/x"));
}

async fn ranges_at_past_and_future_revisions(c: Context) {
    let one = c.put("a", "1").await;
    c.put("b", "1").await;
    let three = c.put("a", "2").await;
    let four = c.delete("b").await;
    assert_eq!(c.pairs_at(one).await, pairs(&[("a", "1")]));
    assert_eq!(c.pairs_at(three).await, pairs(&[("a", "2"), ("b", "1")]));
    assert_eq!(c.pairs_at(four).await, pairs(&[("a", "2")]));
    assert_eq!(c.pairs_at(0).await, pairs(&[("a", "2")]));
    assert_eq!(c.range(Range { revision: one, ..c.all() }).await.revision, four);
    let ahead = c.store.range(Range { revision: four + 10, ..c.all() }).await;
    assert!(
        matches!(ahead, Err(Error::Future { requested, current }) if (requested, current) == (four + 10, four)),
        "{ahead:?}"
    );
}

async fn pages_of_a_pinned_revision(c: Context) {
    let writes = (0..1200).map(|n| {
        let c = c.clone();
        async move { c.put(&format!("{n:05}"), "v").await }
    });
    futures::stream::iter(writes).buffer_unordered(64).collect::<Vec<_>>().await;
    let pinned = c.store.current_revision().await.unwrap();
    let mut page = c.range(Range { limit: 500, ..c.all() }).await;
    let mut names: Vec<String> = Vec::new();
    loop {
        names.extend(page.items.iter().map(|item| c.name(&item.key)));
        let Some(last) = page.items.last().filter(|_| page.count > page.items.len()) else { break };
        // What is written between two pages does not show.
        c.delete(&c.name(&last.key)).await;
        c.put(&format!("{}-late", c.name(&last.key)), "v").await;
        let start = [&last.key[..], b"\0"].concat().into();
        page = c.range(Range { start, limit: 500, revision: pinned, ..c.all() }).await;
    }
    let expected: Vec<String> = (0..1200).map(|n| format!("{n:05}")).collect();
    assert_eq!(names, expected);
}

async fn a_watch_sees_its_range_in_order(c: Context) {
    let newest = c.store.current_revision().await.unwrap();
    let mut watch = c.watch(0).await;
    assert_eq!(watch.revision, newest);
    let first = c.put("a", "1").await;
    let outside = Op::Put {
        key: Bytes::from(format!("{}~", c.prefix.trim_end_matches('/'))),
        value: "1".into(),
        lease: None,
    };
    c.txn(Txn { compares: vec![], then: outside }).await;
    c.put("a", "2").await;
    c.delete("a").await;
    c.put("a", "3").await;
    let events = c.events(&mut watch, 4).await;
    assert_eq!(c.lines(&events), ["put a=1", "put a=2 was 1", "delete a was 2", "put a=3"]);
    let revisions: Vec<_> = events.iter().map(|e| e.revision - first).collect();
    assert_eq!(revisions, [0, 2, 3, 4]);
    let previous = events[1].previous.clone().unwrap();
    assert_eq!(
        (previous.create_revision, previous.mod_revision, previous.version),
        (first, first, 1)
    );
    let current = events[1].current.clone().unwrap();
    assert_eq!((current.create_revision, current.version), (first, 2));
}

async fn a_watch_of_one_key(c: Context) {
    let request = WatchRequest { start: c.key("a"), end: None, from: 0 };
    let mut watch = c.watch_range(request).await;
    c.put("a/b", "1").await;
    c.put("a", "1").await;
    c.put("aa", "1").await;
    c.put("a", "2").await;
    let events = c.events(&mut watch, 2).await;
    assert_eq!(c.lines(&events), ["put a=1", "put a=2 was 1"]);
}

async fn a_watch_from_the_past_sees_the_same(c: Context) {
    let mut live = c.watch(0).await;
    let first = c.put("a", "0").await;
    for n in 1..300 {
        match n % 10 {
            9 => c.delete("a").await,
            _ => c.put("a", &n.to_string()).await,
        };
    }
    let seen = c.events(&mut live, 300).await;
    let mut whole = c.watch(first).await;
    assert_eq!(c.events(&mut whole, 300).await, seen);
    let mut middle = c.watch(first + 150).await;
    assert_eq!(c.events(&mut middle, 150).await, seen[150..]);
    c.put("b", "live").await;
    for watch in [&mut live, &mut whole, &mut middle] {
        assert_eq!(c.lines(&c.events(watch, 1).await), ["put b=live"]);
    }
}

async fn a_watch_from_the_future_skips_what_is_before(c: Context) {
    let newest = c.put("a", "0").await;
    let mut watch = c.watch(newest + 3).await;
    for n in 1..5 {
        c.put("a", &n.to_string()).await;
    }
    let events = c.events(&mut watch, 2).await;
    assert_eq!(c.lines(&events), ["put a=3 was 2", "put a=4 was 3"]);
}

async fn a_quiet_watch_tells_its_progress(c: Context) {
    let quiet = Bytes::from(format!("{}quiet", c.prefix));
    let request =
        WatchRequest { start: quiet.clone(), end: Some(crate::prefix_end(&quiet)), from: 0 };
    let mut watch = c.watch_range(request).await;
    let newest = c.put("busy", "1").await;
    watch.progress.request();
    loop {
        let batch = c.next(&mut watch).await.unwrap();
        assert_eq!(batch.events, []);
        if batch.revision >= newest {
            break;
        }
        // etcd may answer for a moment before the write; asking again is allowed.
        watch.progress.request();
    }
    c.put("quiet", "1").await;
    assert_eq!(c.lines(&c.events(&mut watch, 1).await), ["put quiet=1"]);
}

async fn a_slow_watch_misses_nothing(c: Context) {
    let mut watch = c.watch(0).await;
    let writes = (0..6000).map(|n| {
        let c = c.clone();
        async move { c.put(&format!("{:02}", n % 20), "value").await }
    });
    let mut revisions: Vec<Revision> =
        futures::stream::iter(writes).buffer_unordered(64).collect().await;
    revisions.sort_unstable();
    let seen: Vec<Revision> = c.events(&mut watch, 6000).await.iter().map(|e| e.revision).collect();
    assert!(seen == revisions, "{} events of {} writes", seen.len(), revisions.len());
}

async fn concurrent_writes_get_distinct_revisions(c: Context) {
    let mut watch = c.watch(0).await;
    let before = c.store.current_revision().await.unwrap();
    let writes = (0..200).map(|n| {
        let c = c.clone();
        async move { c.put(&format!("{n:03}"), &n.to_string()).await }
    });
    let mut revisions = futures::future::join_all(writes).await;
    revisions.sort_unstable();
    assert_eq!(revisions, (before + 1..=before + 200).collect::<Vec<_>>());
    let events = c.events(&mut watch, 200).await;
    assert_eq!(events.iter().map(|e| e.revision).collect::<Vec<_>>(), revisions);
}

async fn one_of_many_updates_wins(c: Context) {
    let mut revision = c.put("a", "start").await;
    for round in 0..10 {
        let writes = (0..20).map(|n| {
            let txn = Txn::put_if(c.key("a"), format!("{round}-{n}"), revision);
            let c = c.clone();
            async move { c.txn(txn).await }
        });
        let results = futures::future::join_all(writes).await;
        let won: Vec<Revision> = results
            .iter()
            .filter_map(|result| match result {
                TxnResult::Written { revision, .. } => Some(*revision),
                TxnResult::Conflict { .. } => None,
            })
            .collect();
        assert_eq!(won, [revision + 1]);
        revision = won[0];
    }
}

async fn too_large_is_refused(c: Context) {
    let newest = c.store.current_revision().await.unwrap();
    for size in [(3 << 19) + 1, 8 << 20] {
        let result = c.store.txn(Txn::create(c.key("large"), vec![7u8; size])).await;
        assert!(matches!(result, Err(Error::TooLarge { .. })), "{result:?}");
    }
    assert_eq!(c.store.current_revision().await.unwrap(), newest);
    let fits = vec![7u8; 1 << 20];
    c.txn(Txn::create(c.key("fits"), fits.clone())).await;
    assert_eq!(c.get("fits").await.unwrap().value, fits);
}

async fn a_lease_ends_with_its_keys(c: Context) {
    let mut watch = c.watch(0).await;
    let lease = c.store.grant_lease(2).await.unwrap();
    c.put_with("b", "1", Some(lease)).await;
    let last = c.put_with("a", "1", Some(lease)).await;
    c.put("stays", "1").await;
    assert_eq!(c.get("a").await.unwrap().lease, Some(lease));
    let events = c.events(&mut watch, 3).await;
    assert_eq!(events[2].revision, last + 1);
    let ended = c.next(&mut watch).await.unwrap().events;
    assert_eq!(c.lines(&ended), ["delete a was 1", "delete b was 1"]);
    assert_eq!((ended[0].revision, ended[1].revision), (last + 2, last + 2));
    assert_eq!(ended[0].previous.as_ref().unwrap().lease, Some(lease));
    assert_eq!(c.pairs_at(0).await, pairs(&[("stays", "1")]));
}

async fn an_overwritten_key_leaves_its_lease(c: Context) {
    let mut watch = c.watch(0).await;
    let short = c.store.grant_lease(2).await.unwrap();
    let long = c.store.grant_lease(1000).await.unwrap();
    for name in ["free", "moved", "tied"] {
        c.put_with(name, "1", Some(short)).await;
    }
    c.put("free", "2").await;
    c.put_with("moved", "2", Some(long)).await;
    let events = c.events(&mut watch, 6).await;
    assert_eq!(c.line(&events[5]), "delete tied was 1");
    assert_eq!(c.pairs_at(0).await, pairs(&[("free", "2"), ("moved", "2")]));
}

async fn an_unknown_lease_is_refused(c: Context) {
    let unknown = LeaseId(123_456_789);
    let put = |compares| Txn {
        compares,
        then: Op::Put { key: c.key("a"), value: "1".into(), lease: Some(unknown) },
    };
    let result = c.store.txn(put(vec![])).await;
    assert!(matches!(result, Err(Error::LeaseNotFound(id)) if id == unknown), "{result:?}");
    let fails = vec![Compare::ModRevision { key: c.key("a"), revision: 7 }];
    assert!(matches!(c.txn(put(fails)).await, TxnResult::Conflict { current: None, .. }));
}

async fn compaction_forgets_what_is_before(c: Context) {
    let one = c.put("a", "1").await;
    c.put("b", "1").await;
    let three = c.put("a", "2").await;
    c.delete("b").await;
    let five = c.put("a", "3").await;
    let mut live = c.watch(0).await;
    c.store.compact(three).await.unwrap();
    for (revision, readable) in [(one, false), (three - 1, false), (three, true), (five, true)] {
        let result = c.store.range(Range { revision, ..c.all() }).await;
        match result {
            Ok(_) => assert!(readable, "revision {revision} is still readable"),
            Err(Error::Compacted { compacted }) => {
                assert_eq!((compacted, readable), (three, false))
            }
            Err(other) => panic!("{other:?}"),
        }
    }
    assert_eq!(c.pairs_at(three).await, pairs(&[("a", "2"), ("b", "1")]));
    let mut late = c.watch(three - 1).await;
    let ended = c.next(&mut late).await;
    assert!(
        matches!(ended, Err(Error::Compacted { compacted }) if compacted == three),
        "{ended:?}"
    );
    assert!(late.events.next().await.is_none());
    let mut kept = c.watch(three + 1).await;
    let events = c.events(&mut kept, 2).await;
    assert_eq!(c.lines(&events), ["delete b was 1", "put a=3 was 2"]);
    let mut at = c.watch(three).await;
    assert_eq!(c.events(&mut at, 3).await[0].revision, three);
    let again = c.store.compact(three).await;
    assert!(
        matches!(again, Err(Error::Compacted { compacted }) if compacted == three),
        "{again:?}"
    );
    let ahead = c.store.compact(five + 100).await;
    assert!(matches!(ahead, Err(Error::Future { current, .. }) if current == five), "{ahead:?}");
    c.put("a", "4").await;
    assert_eq!(c.lines(&c.events(&mut live, 1).await), ["put a=4 was 3"]);
}

async fn a_deletion_at_the_compacted_revision_is_seen(c: Context) {
    c.put("a", "1").await;
    let deleted = c.delete("a").await;
    c.put("b", "1").await;
    c.store.compact(deleted).await.unwrap();
    let mut watch = c.watch(deleted).await;
    let events = c.events(&mut watch, 2).await;
    let seen: Vec<_> = events.iter().map(|e| (e.kind, c.name(&e.key))).collect();
    assert_eq!(seen, [(EventKind::Delete, "a".to_owned()), (EventKind::Put, "b".to_owned())]);
}
