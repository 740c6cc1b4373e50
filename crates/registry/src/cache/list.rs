//! Lists: which revision, from the cache or the store, in pages.

use std::sync::Arc;

use api::{Cause, Status};
use bytes::{BufMut, Bytes, BytesMut};
use machinery::Object;
use store::Revision;

use super::{Cache, Entry, Scope};
use crate::{Resource, errors::Errors, request::ListOptions, selector::Selector, storage};

/// One page of a list.
pub struct ListResult {
    pub(crate) resource: Arc<Resource>,
    pub entries: Vec<Arc<Entry>>,
    /// The list's `resourceVersion`.
    pub revision: Revision,
    /// Empty on the last page.
    pub continue_token: String,
    /// How many objects follow, when that is known.
    pub remaining: Option<i64>,
}

impl ListResult {
    /// The objects, decoded one at a time.
    pub fn objects(&self) -> impl Iterator<Item = Result<Object, Status>> {
        self.entries.iter().map(|entry| self.resource.object_of(entry))
    }

    /// `metadata` of the list, as JSON.
    pub fn metadata_json(&self) -> String {
        let mut text = format!("{{\"resourceVersion\":\"{}\"", self.revision);
        if !self.continue_token.is_empty() {
            text.push_str(&format!(",\"continue\":\"{}\"", self.continue_token));
        }
        if let Some(remaining) = self.remaining {
            text.push_str(&format!(",\"remainingItemCount\":{remaining}"));
        }
        text.push('}');
        text
    }

    /// The whole list as JSON, put together from the objects' cached forms.
    pub fn json(&self) -> Result<Bytes, Status> {
        let info = self.resource.info();
        let head = format!(
            "{{\"kind\":\"{}\",\"apiVersion\":\"{}\",\"metadata\":{},\"items\":[",
            info.list_kind,
            info.gvk.api_version(),
            self.metadata_json()
        );
        let items: Vec<Bytes> = self
            .entries
            .iter()
            .map(|entry| self.resource.item_json(entry))
            .collect::<Result<_, _>>()?;
        let size = head.len() + items.iter().map(|item| item.len() + 2).sum::<usize>() + 3;
        let mut out = BytesMut::with_capacity(size);
        out.put_slice(head.as_bytes());
        for (at, item) in items.iter().enumerate() {
            if at > 0 {
                out.put_u8(b',');
            }
            if !info.custom {
                out.put_u8(b'{');
            }
            out.put_slice(item);
        }
        out.put_slice(b"]}\n");
        Ok(out.freeze())
    }
}

/// What a list reads.
enum Source {
    /// The cache, when it has reached this revision.
    Cache(Revision),
    /// The store at this revision, from this key on.
    Store(Revision, Bytes),
}

pub(crate) async fn list(
    resource: &Arc<Resource>,
    cache: &Arc<Cache>,
    namespace: Option<&str>,
    options: &ListOptions,
) -> Result<ListResult, Status> {
    check_list(options)?;
    let selector = Selector::parse(cache.storage(), options)?;
    let scope = scope(cache, namespace, &selector);
    let Some(scope) = scope else {
        let revision = cache.fresh().await?;
        return Ok(ListResult {
            resource: resource.clone(),
            entries: Vec::new(),
            revision,
            continue_token: String::new(),
            remaining: None,
        });
    };
    match source(cache, options).await? {
        Source::Cache(revision) => {
            cache.at_least(revision).await?;
            // A list "at any revision" is never cut into pages.
            let limit = if options.resource_version == "0" { 0 } else { options.limit };
            Ok(from_cache(resource, cache, &scope, &selector, limit))
        }
        Source::Store(revision, start) => {
            from_store(resource, cache, &scope, &selector, options, revision, start).await
        }
    }
}

async fn source(cache: &Arc<Cache>, options: &ListOptions) -> Result<Source, Status> {
    if !options.continue_token.is_empty() {
        if !options.resource_version.is_empty() && options.resource_version != "0" {
            return Err(Status::bad_request(
                "specifying resource version is not allowed when using continue",
            ));
        }
        let (revision, start) = token::decode(&options.continue_token, &cache.storage().root)
            .map_err(|why| Status::bad_request(format!("invalid continue token: {why}")))?;
        return Ok(Source::Store(revision, start));
    }
    let revision = parse_revision(&options.resource_version)?;
    match (options.resource_version.as_str(), options.resource_version_match.as_str()) {
        ("", _) => Ok(Source::Cache(cache.fresh().await?)),
        ("0", _) | (_, "NotOlderThan") => Ok(Source::Cache(revision)),
        (_, "Exact") => Ok(Source::Store(revision, Bytes::new())),
        // Before the match could be named, a limit asked for exactly this revision.
        _ if options.limit > 0 => Ok(Source::Store(revision, Bytes::new())),
        _ => Ok(Source::Cache(revision)),
    }
}

/// The keys to read; `None` when the selector contradicts the namespace asked for.
pub(crate) fn scope(cache: &Cache, namespace: Option<&str>, selector: &Selector) -> Option<Scope> {
    let storage = cache.storage();
    let root = &storage.root;
    if !storage.namespaced {
        return Some(match selector.single_name() {
            Some(name) => Scope::Key(format!("{root}{name}").into()),
            None => Scope::Prefix(root.clone().into()),
        });
    }
    let namespace = match (namespace.filter(|n| !n.is_empty()), selector.single_namespace()) {
        (Some(asked), Some(selected)) if asked != selected => return None,
        (asked, selected) => asked.or(selected),
    };
    Some(match (namespace, selector.single_name()) {
        (Some(namespace), Some(name)) => Scope::Key(format!("{root}{namespace}/{name}").into()),
        (Some(namespace), None) => Scope::Prefix(format!("{root}{namespace}/").into()),
        (None, _) => Scope::Prefix(root.clone().into()),
    })
}

fn from_cache(
    resource: &Arc<Resource>,
    cache: &Cache,
    scope: &Scope,
    selector: &Selector,
    limit: usize,
) -> ListResult {
    let state = cache.read();
    let mut page = Page::new(limit);
    match scope {
        Scope::Key(key) => {
            if let Some(entry) = state.items.get(key) {
                page.add(entry, selector);
            }
        }
        Scope::Prefix(prefix) => {
            let range = state.items.range(prefix.clone()..);
            for (_, entry) in range.take_while(|(key, _)| key.starts_with(prefix)) {
                page.add(entry, selector);
            }
        }
    }
    let revision = state.revision;
    drop(state);
    page.finish(resource, &cache.storage().root, revision, selector)
}

async fn from_store(
    resource: &Arc<Resource>,
    cache: &Cache,
    scope: &Scope,
    selector: &Selector,
    options: &ListOptions,
    revision: Revision,
    start: Bytes,
) -> Result<ListResult, Status> {
    let storage = cache.storage();
    let mut range = match scope {
        Scope::Key(key) => store::Range::key(key.clone()),
        Scope::Prefix(prefix) => store::Range::prefix(prefix.clone()),
    };
    if !start.is_empty() && range.end.is_some() {
        range.start = start.max(range.start);
    }
    // A token of -1 goes on at whatever is newest.
    range.revision = revision.max(0);
    let first = range.start.clone();
    let read = storage.shared.store.range(range).await;
    let read = read.map_err(|error| expired_page(error, options, &first, &storage.root))?;
    let revision = if revision > 0 { revision } else { read.revision };
    let mut page = Page::new(options.limit);
    for item in read.items {
        // The cache often holds this very version, with its index and encoded form.
        let cached = cache.peek(&item.key).filter(|entry| entry.revision == item.mod_revision);
        if let Some(entry) =
            cached.or_else(|| storage.entry(item.key, item.mod_revision, item.value))
        {
            page.add(&entry, selector);
        }
    }
    Ok(page.finish(resource, &storage.root, revision, selector))
}

fn expired_page(error: store::Error, options: &ListOptions, start: &[u8], root: &str) -> Status {
    match error {
        store::Error::Compacted { .. } if !options.continue_token.is_empty() => {
            let fresh = token::encode(-1, start, root);
            let status = Status::expired(
                "The provided continue parameter is too old to display a consistent list result. You can start a new \
                 list without the continue parameter, or use the continue token in this response to retrieve the \
                 remainder of the results. Continuing with the provided token results in an inconsistent list - \
                 objects that were created, modified, or deleted between the time the first chunk was returned and \
                 now may show up in the list.",
            );
            with_continue(status, fresh)
        }
        error => storage::failed(error),
    }
}

/// `Status` has no place for the list's metadata, so the token travels in the details' name,
/// from where [`continue_of`] takes it.
fn with_continue(status: Status, token: String) -> Status {
    status.with_details(api::status::Details { uid: token, ..Default::default() })
}

/// The token that an expired page offers to go on with (`metadata.continue` of the `Status`).
pub fn continue_of(status: &Status) -> Option<&str> {
    let details = status.details.as_ref().filter(|_| status.is_expired())?;
    Some(details.uid.as_str()).filter(|token| !token.is_empty())
}

/// Collects what matches, up to the limit, and sees whether there is more.
struct Page {
    limit: usize,
    entries: Vec<Arc<Entry>>,
    more: usize,
}

impl Page {
    fn new(limit: usize) -> Self {
        Self { limit, entries: Vec::new(), more: 0 }
    }

    fn add(&mut self, entry: &Arc<Entry>, selector: &Selector) {
        if !selector.matches(entry) {
        } else if self.limit == 0 || self.entries.len() < self.limit {
            self.entries.push(entry.clone());
        } else {
            self.more += 1;
        }
    }

    fn finish(
        self,
        resource: &Arc<Resource>,
        root: &str,
        revision: Revision,
        selector: &Selector,
    ) -> ListResult {
        let continue_token = match self.entries.last() {
            Some(last) if self.more > 0 => {
                let mut next = last.key.to_vec();
                next.push(0);
                token::encode(revision, &next, root)
            }
            _ => String::new(),
        };
        let remaining = (self.more > 0 && selector.is_everything()).then_some(self.more as i64);
        ListResult {
            resource: resource.clone(),
            entries: self.entries,
            revision,
            continue_token,
            remaining,
        }
    }
}

/// A `resourceVersion` of a query; empty is 0.
pub(crate) fn parse_revision(text: &str) -> Result<Revision, Status> {
    if text.is_empty() {
        return Ok(0);
    }
    text.parse::<u64>().ok().and_then(|n| i64::try_from(n).ok()).ok_or_else(|| {
        Status::bad_request(format!("resourceVersion: Invalid value: {text:?}: strconv.ParseUint: parsing {text:?}: invalid syntax"))
    })
}

fn check_list(options: &ListOptions) -> Result<(), Status> {
    let mut errors = Errors::default();
    let matching = options.resource_version_match.as_str();
    if !matching.is_empty() {
        let path = &"resourceVersionMatch".into();
        if options.resource_version.is_empty() {
            errors.forbidden(
                path,
                "resourceVersionMatch is forbidden unless resourceVersion is provided",
            );
        }
        if !options.continue_token.is_empty() {
            errors.forbidden(path, "resourceVersionMatch is forbidden when continue is provided");
        }
        errors.one_of(path, matching, &["Exact", "NotOlderThan", ""]);
        if matching == "Exact" && options.resource_version == "0" {
            errors.forbidden(
                path,
                "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"",
            );
        }
    }
    if options.send_initial_events.is_some() {
        errors.forbidden(&"sendInitialEvents".into(), "sendInitialEvents is forbidden for list");
    }
    refuse(errors)
}

pub(crate) fn check_watch(options: &ListOptions) -> Result<(), Status> {
    let mut errors = Errors::default();
    let matching = options.resource_version_match.as_str();
    let path = &"resourceVersionMatch".into();
    if options.send_initial_events.is_some() && matching != "NotOlderThan" {
        errors.forbidden(
            path,
            "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
        );
    }
    if !matching.is_empty() {
        if options.send_initial_events.is_none() {
            let why =
                "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided";
            errors.forbidden(path, why);
        }
        errors.one_of(path, matching, &["NotOlderThan"]);
        if !options.continue_token.is_empty() {
            errors.forbidden(path, "resourceVersionMatch is forbidden when continue is provided");
        }
    }
    refuse(errors)
}

fn refuse(errors: Errors) -> Result<(), Status> {
    let causes: Vec<Cause> = errors.into_causes();
    if causes.is_empty() {
        Ok(())
    } else {
        Err(Status::invalid("meta.k8s.io", "ListOptions", "", causes))
    }
}

/// Continue tokens, in upstream's form: base64 of `{"v":…,"rv":…,"start":…}`.
pub(crate) mod token {
    use super::{Bytes, Revision};
    use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};

    /// `start` is the next key to read, below `root`.
    pub fn encode(revision: Revision, start: &[u8], root: &str) -> String {
        let start = String::from_utf8_lossy(start);
        let start = start.strip_prefix(root).unwrap_or(&start);
        let start = serde_json::to_string(start).unwrap_or_default();
        URL_SAFE_NO_PAD
            .encode(format!("{{\"v\":\"meta.k8s.io/v1\",\"rv\":{revision},\"start\":{start}}}\n"))
    }

    /// Why a token is refused is part of the client's error text.
    pub fn decode(token: &str, root: &str) -> Result<(Revision, Bytes), String> {
        let invalid = |why: String| format!("continue key is not valid: {why}");
        let data = URL_SAFE_NO_PAD.decode(token).map_err(|error| invalid(error.to_string()))?;
        let json: serde_json::Value =
            serde_json::from_slice(&data).map_err(|error| invalid(error.to_string()))?;
        match json["v"].as_str() {
            Some("meta.k8s.io/v1") => {}
            other => {
                let version = other.unwrap_or_default();
                return Err(invalid(format!(
                    "server does not recognize this encoded version {version}"
                )));
            }
        }
        let revision = json["rv"].as_i64().filter(|&rv| rv != 0);
        let revision = revision.ok_or_else(|| {
            invalid("incorrect encoded start resourceVersion (version meta.k8s.io/v1)".into())
        })?;
        let start = json["start"].as_str().filter(|start| !start.is_empty());
        let start = start
            .ok_or_else(|| invalid("encoded start key empty (version meta.k8s.io/v1)".into()))?;
        let start = start.strip_prefix('/').unwrap_or(start);
        // The key must stay below the root, whatever the client made of the token.
        if start.split('/').any(|part| matches!(part, "" | "." | "..")) {
            return Err(invalid(start.to_owned()));
        }
        Ok((revision, format!("{root}{start}").into()))
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn tokens_read_back_and_stay_below_the_root() {
            let token = encode(7, b"/registry/pods/default/a\0", "/registry/pods/");
            assert_eq!(
                decode(&token, "/registry/pods/"),
                Ok((7, Bytes::from_static(b"/registry/pods/default/a\0")))
            );
            let escape = encode(7, b"../secrets/x", "");
            assert!(decode(&escape, "/registry/pods/").is_err());
            assert!(decode("!", "/registry/pods/").is_err());
            assert!(decode(&encode(0, b"a", ""), "/registry/pods/").is_err());
        }
    }
}
