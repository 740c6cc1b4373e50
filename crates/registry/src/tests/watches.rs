use std::{collections::BTreeMap, time::Duration};

use machinery::value;

use super::*;
use crate::{WatchKind, WatchStream};

fn watch_options(version: &str) -> ListOptions {
    ListOptions {
        resource_version: version.into(),
        allow_watch_bookmarks: true,
        ..ListOptions::default()
    }
}

async fn put(w: &World, maps: &Arc<Resource>, name: &str, label: &str) -> Object {
    let body = value!({"metadata": {"name": name, "namespace": "ns", "labels": {"l": label}}});
    match w.create(maps, body).await {
        Ok(made) => made,
        Err(_) => w
            .edit(maps, ("ns", name), "", |o| o.set_at(&["metadata", "labels", "l"], label))
            .await
            .unwrap(),
    }
}

async fn take(stream: &mut WatchStream, count: usize) -> Vec<String> {
    let mut seen = Vec::new();
    for _ in 0..count {
        let event = stream.next().await.expect("an event");
        seen.push(format!(
            "{} {}",
            event.kind.as_str(),
            event.entry().map_or("", |entry| entry.name())
        ));
    }
    seen
}

#[test]
fn a_watch_sees_what_follows_its_revision() {
    run(Options::default(), |w| async move {
        let maps = w.core("configmaps");
        let first = put(&w, &maps, "a", "1").await;
        let mut from_first =
            maps.watch(None, &watch_options(first.resource_version())).await.unwrap();
        let mut all = maps.watch(None, &watch_options("")).await.unwrap();
        put(&w, &maps, "b", "1").await;
        put(&w, &maps, "a", "2").await;
        w.delete(&maps, "ns", "a", DeleteOptions::default()).await.unwrap();
        assert_eq!(take(&mut from_first, 3).await, ["ADDED b", "MODIFIED a", "DELETED a"]);
        assert_eq!(take(&mut all, 4).await, ["ADDED a", "ADDED b", "MODIFIED a", "DELETED a"]);
    });
}

#[test]
fn a_selector_adds_what_enters_and_deletes_what_leaves() {
    run(Options::default(), |w| async move {
        let maps = w.core("configmaps");
        let first = put(&w, &maps, "x", "0").await;
        let options =
            ListOptions { label_selector: "l=1".into(), ..watch_options(first.resource_version()) };
        let mut stream = maps.watch(Some("ns"), &options).await.unwrap();
        put(&w, &maps, "a", "1").await;
        put(&w, &maps, "b", "2").await;
        let left = put(&w, &maps, "a", "2").await;
        put(&w, &maps, "b", "1").await;
        assert_eq!(take(&mut stream, 1).await, ["ADDED a"]);
        let gone = stream.next().await.unwrap();
        assert_eq!((gone.kind, Some(gone.revision)), (WatchKind::Deleted, left.revision()));
        let last = gone.object().unwrap();
        assert_eq!((last.label("l"), last.revision()), (Some("1"), left.revision()));
        assert_eq!(take(&mut stream, 1).await, ["ADDED b"]);
    });
}

#[test]
fn initial_events_end_with_a_bookmark() {
    run(Options::default(), |w| async move {
        let maps = w.core("configmaps");
        put(&w, &maps, "a", "1").await;
        let last = put(&w, &maps, "b", "1").await;
        let options = ListOptions {
            send_initial_events: Some(true),
            resource_version_match: "NotOlderThan".into(),
            ..watch_options("")
        };
        let mut stream = maps.watch(None, &options).await.unwrap();
        assert_eq!(take(&mut stream, 2).await, ["ADDED a", "ADDED b"]);
        let end = stream.next().await.unwrap();
        assert_eq!(end.kind, WatchKind::Bookmark);
        let object = end.object().unwrap();
        assert_eq!(object.annotation("k8s.io/initial-events-end"), Some("true"));
        assert!(object.revision() >= last.revision());
        let wrong = ListOptions { send_initial_events: Some(true), ..watch_options("") };
        assert!(
            text(maps.watch(None, &wrong).await.map(|_| ())).contains(
                "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan"
            )
        );
    });
}

#[test]
fn an_idle_watch_gets_bookmarks_and_ends_in_time() {
    run(Options::default(), |w| async move {
        let maps = w.core("configmaps");
        let first = put(&w, &maps, "a", "1").await;
        let options = ListOptions {
            timeout: Some(Duration::from_secs(90)),
            ..watch_options(first.resource_version())
        };
        let mut stream = maps.watch(None, &options).await.unwrap();
        // A write elsewhere moves the store on without an event here.
        let elsewhere =
            w.create(&w.core("nodes"), value!({"metadata": {"name": "n"}})).await.unwrap();
        let bookmark = stream.next().await.unwrap();
        assert_eq!(bookmark.kind, WatchKind::Bookmark);
        assert!(Some(bookmark.revision) >= elsewhere.revision());
        let started = w.env.instant();
        assert!(stream.next().await.is_none());
        assert!(w.env.instant() - started <= Duration::from_secs(31));
    });
}

#[test]
fn what_the_log_forgot_is_expired_and_a_slow_watcher_ends_alone() {
    let options = Options { log_events: 4, ..Options::default() };
    run(options, |w| async move {
        let maps = w.core("configmaps");
        let first = put(&w, &maps, "a", "0").await;
        let mut slow = maps.watch(None, &watch_options(first.resource_version())).await.unwrap();
        let mut quick = maps.watch(None, &watch_options(first.resource_version())).await.unwrap();
        for at in 1..10 {
            put(&w, &maps, "a", &at.to_string()).await;
            assert_eq!(take(&mut quick, 1).await, ["MODIFIED a"]);
        }
        assert!(slow.next().await.is_none());
        let old = maps
            .watch(None, &watch_options(first.resource_version()))
            .await
            .map(|_| ())
            .unwrap_err();
        let floor = old
            .message
            .strip_prefix(&format!("too old resource version: {} (", first.resource_version()));
        assert!(old.is_expired() && floor.is_some_and(|rest| rest.ends_with(')')), "{old}");
    });
}

#[test]
fn events_are_encoded_once() {
    run(Options::default(), |w| async move {
        let maps = w.core("configmaps");
        let first = put(&w, &maps, "a", "0").await;
        let mut one = maps.watch(None, &watch_options(first.resource_version())).await.unwrap();
        let mut two = maps.watch(None, &watch_options(first.resource_version())).await.unwrap();
        put(&w, &maps, "b", "1").await;
        let (one, two) =
            (one.next().await.unwrap().json().unwrap(), two.next().await.unwrap().json().unwrap());
        assert_eq!(one.as_ptr(), two.as_ptr());
        assert!(one.starts_with(
            b"{\"type\":\"ADDED\",\"object\":{\"kind\":\"ConfigMap\",\"apiVersion\":\"v1\","
        ));
    });
}

/// Whatever is written and wherever a watch is cut and resumed, the events rebuild the state.
#[test]
fn resumed_watches_have_no_gap_and_no_duplicate() {
    for seed in 0..8u64 {
        run(Options::default(), |w| async move {
            let maps = w.core("configmaps");
            let start = put(&w, &maps, "m0", "start").await;
            let writer = {
                let (w, maps) = (w.clone(), maps.clone());
                w.env.clone().spawn("writer", async move {
                    for step in 0..60u64 {
                        let name = format!("m{}", (step * 7 + seed) % 5);
                        if (step + seed) % 4 == 3 {
                            let _ = w.delete(&maps, "ns", &name, DeleteOptions::default()).await;
                        } else {
                            put(&w, &maps, &name, &format!("s{step}")).await;
                        }
                    }
                    put(&w, &maps, "end", "end").await
                })
            };
            let mut state: BTreeMap<String, i64> =
                BTreeMap::from([("m0".into(), start.revision().unwrap())]);
            let mut revision = start.revision().unwrap();
            let mut events = 0;
            'resume: loop {
                let mut stream =
                    maps.watch(None, &watch_options(&revision.to_string())).await.unwrap();
                for _ in 0..(seed + 1) {
                    let event = stream.next().await.unwrap();
                    assert!(event.revision > revision, "revisions only rise");
                    revision = event.revision;
                    let name = event.entry().unwrap().name().to_owned();
                    let known = match event.kind {
                        WatchKind::Deleted => state.remove(&name).is_some(),
                        WatchKind::Added => state.insert(name.clone(), revision).is_none(),
                        WatchKind::Modified => state.insert(name.clone(), revision).is_some(),
                        WatchKind::Bookmark => continue,
                    };
                    assert!(known, "{event:?} fits the state before it");
                    events += 1;
                    if name == "end" {
                        break 'resume;
                    }
                }
            }
            assert!(writer.await.is_some() && events > 30);
            let list = maps.list(None, &ListOptions::default()).await.unwrap();
            let listed: BTreeMap<String, i64> = list
                .entries
                .iter()
                .map(|entry| (entry.name().to_owned(), entry.revision))
                .collect();
            assert_eq!(state, listed);
        });
    }
}
