use machinery::value;

use super::*;

async fn fill(w: &World, count: usize) -> Arc<Resource> {
    let maps = w.core("configmaps");
    for at in 0..count {
        let parity = if at % 2 == 0 { "even" } else { "odd" };
        let body = value!({"metadata": {"name": (format!("m{at}")), "namespace": "ns", "labels": {"parity": parity}}});
        w.create(&maps, body).await.unwrap();
    }
    maps
}

#[test]
fn selectors_narrow_a_list() {
    run(Options::default(), |w| async move {
        let maps = fill(&w, 5).await;
        let by = |label: &str, field: &str| ListOptions {
            label_selector: label.into(),
            field_selector: field.into(),
            ..ListOptions::default()
        };
        assert_eq!(w.names(&maps, "ns", &by("parity=odd", "")).await, ["m1", "m3"]);
        assert_eq!(w.names(&maps, "ns", &by("", "metadata.name=m2")).await, ["m2"]);
        assert_eq!(w.names(&maps, "other", &by("", "")).await, [""; 0]);
        assert_eq!(w.names(&maps, "", &by("parity in (even),parity!=odd", "")).await.len(), 3);
        let wrong = maps.list(None, &by("", "spec.x=1")).await.map(|_| ());
        assert_eq!(
            text(wrong),
            "\"spec.x\" is not a known field selector: only \"metadata.name\", \"metadata.namespace\""
        );
    });
}

#[test]
fn pages_show_one_moment() {
    run(Options::default(), |w| async move {
        let maps = fill(&w, 5).await;
        let mut options = ListOptions { limit: 2, ..ListOptions::default() };
        let first = maps.list(Some("ns"), &options).await.unwrap();
        assert_eq!((first.entries.len(), first.remaining), (2, Some(3)));
        w.create(&maps, value!({"metadata": {"name": "m9", "namespace": "ns"}})).await.unwrap();
        w.delete(&maps, "ns", "m3", DeleteOptions::default()).await.unwrap();
        let mut names = Vec::new();
        options.continue_token = first.continue_token.clone();
        loop {
            let page = maps.list(Some("ns"), &options).await.unwrap();
            assert_eq!(page.revision, first.revision);
            names.extend(page.entries.iter().map(|entry| entry.name().to_owned()));
            if page.continue_token.is_empty() {
                break;
            }
            options.continue_token = page.continue_token;
        }
        assert_eq!(names, ["m2", "m3", "m4"]);
        w.registry
            .store()
            .compact(w.registry.store().current_revision().await.unwrap())
            .await
            .unwrap();
        options.continue_token = first.continue_token;
        let expired = maps.list(Some("ns"), &options).await.map(|_| ()).unwrap_err();
        assert!(
            expired.is_expired()
                && expired.message.starts_with("The provided continue parameter is too old")
        );
        options.continue_token = crate::continue_of(&expired).unwrap().into();
        let rest = maps.list(Some("ns"), &options).await.unwrap();
        assert_eq!(rest.entries.iter().map(|e| e.name()).collect::<Vec<_>>(), ["m2", "m4"]);
    });
}

#[test]
fn revisions_choose_the_moment() {
    run(Options::default(), |w| async move {
        let maps = fill(&w, 2).await;
        let before = maps.list(None, &ListOptions::default()).await.unwrap().revision;
        w.delete(&maps, "ns", "m0", DeleteOptions::default()).await.unwrap();
        let at = |version: &str, matching: &str| ListOptions {
            resource_version: version.into(),
            resource_version_match: matching.into(),
            ..ListOptions::default()
        };
        assert_eq!(w.names(&maps, "ns", &at(&before.to_string(), "Exact")).await.len(), 2);
        assert_eq!(w.names(&maps, "ns", &at("", "")).await.len(), 1);
        let future = maps.list(None, &at("1000", "NotOlderThan")).await.map(|_| ()).unwrap_err();
        assert_eq!(future.code, 504);
        assert!(future.message.starts_with("Timeout: Too large resource version: 1000, current: "));
        let bare = maps.list(None, &at("", "Exact")).await.map(|_| ());
        assert_eq!(
            text(bare),
            "ListOptions.meta.k8s.io \"\" is invalid: resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden unless resourceVersion is provided"
        );
    });
}

#[test]
fn a_list_is_put_together_from_bytes() {
    run(Options::default(), |w| async move {
        let maps = fill(&w, 2).await;
        let json = maps.list(None, &ListOptions::default()).await.unwrap().json().unwrap();
        let list = Object::from_json(&json).unwrap();
        assert_eq!((list.kind(), list.list_at(&["items"]).len()), ("ConfigMapList", 2));
        assert!(list.list_at(&["items"])[0].get("kind").is_none());
        assert_eq!(
            list.list_at(&["items"])[1].at(&["metadata", "name"]).unwrap().as_str(),
            Some("m1")
        );
        assert!(w.registry.encoded_bytes() > 0);
    });
}
