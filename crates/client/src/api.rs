//! The verbs of the API as calls.

use std::{fmt::Write, sync::Arc};

use ::api::{GroupVersionResource, Status};
use bytes::Bytes;
use http::{Method, header};
use machinery::{Map, Object, Value};
use serde::de::DeserializeOwned;

use crate::{
    Error,
    transport::{BodyStream, Transport, collect},
    watch::Watch,
};

/// A list may be large; everything else is bounded by the server.
const BODY_LIMIT: usize = 1 << 30;

/// A resource as the URL names it. Declared once per use:
/// `pub const PODS: Resource = Resource::namespaced("", "v1", "pods", "Pod");`
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Resource {
    pub gvr: GroupVersionResource,
    pub kind: &'static str,
    pub namespaced: bool,
}

impl Resource {
    pub const fn namespaced(
        group: &'static str,
        version: &'static str,
        plural: &'static str,
        kind: &'static str,
    ) -> Self {
        Self { gvr: GroupVersionResource::fixed(group, version, plural), kind, namespaced: true }
    }

    pub const fn cluster(
        group: &'static str,
        version: &'static str,
        plural: &'static str,
        kind: &'static str,
    ) -> Self {
        Self { gvr: GroupVersionResource::fixed(group, version, plural), kind, namespaced: false }
    }

    pub fn api_version(&self) -> String {
        self.gvr.group_version().to_string()
    }

    /// The URL path of a collection, or of one object. An empty namespace means all namespaces.
    pub fn path(&self, namespace: &str, name: &str, subresource: &str) -> String {
        let mut path = self.gvr.group_version().path();
        if self.namespaced && !namespace.is_empty() {
            let _ = write!(path, "/namespaces/{namespace}");
        }
        let _ = write!(path, "/{}", self.gvr.resource);
        for part in [name, subresource] {
            if !part.is_empty() {
                let _ = write!(path, "/{}", encode(part));
            }
        }
        path
    }
}

/// What to list or watch, and from when.
#[derive(Clone, Debug, Default)]
pub struct ListOptions {
    pub label_selector: String,
    pub field_selector: String,
    pub resource_version: String,
    pub resource_version_match: String,
    pub limit: usize,
    pub continue_token: String,
    pub allow_bookmarks: bool,
    pub timeout_seconds: u32,
}

impl ListOptions {
    fn query(&self) -> Vec<(&'static str, String)> {
        let mut query = vec![
            ("labelSelector", self.label_selector.clone()),
            ("fieldSelector", self.field_selector.clone()),
            ("resourceVersion", self.resource_version.clone()),
            ("resourceVersionMatch", self.resource_version_match.clone()),
            ("continue", self.continue_token.clone()),
        ];
        let number = |n: usize| if n == 0 { String::new() } else { n.to_string() };
        query.push(("limit", number(self.limit)));
        query.push(("timeoutSeconds", number(self.timeout_seconds as usize)));
        if self.allow_bookmarks {
            query.push(("allowWatchBookmarks", "true".into()));
        }
        query.retain(|(_, value)| !value.is_empty());
        query
    }
}

/// The items of a list, each as the server's own bytes.
#[derive(Clone, Debug)]
pub struct ObjectList {
    pub resource_version: String,
    pub continue_token: String,
    pub items: Vec<Bytes>,
}

/// What a delete insists on and how it treats dependents.
#[derive(Clone, Debug, Default)]
pub struct DeleteOptions {
    pub grace_period_seconds: Option<i64>,
    pub uid: Option<String>,
    pub resource_version: Option<String>,
    /// `Orphan`, `Background` or `Foreground`; empty for the kind's default.
    pub propagation_policy: &'static str,
    pub dry_run: bool,
}

impl DeleteOptions {
    /// Deletes this very object and no later one of the same name.
    pub fn of_uid(uid: &str) -> Self {
        Self { uid: Some(uid.into()), ..Self::default() }
    }

    fn body(&self) -> Bytes {
        let mut options = Map::new();
        options.insert("apiVersion", "v1");
        options.insert("kind", "DeleteOptions");
        if let Some(seconds) = self.grace_period_seconds {
            options.insert("gracePeriodSeconds", seconds);
        }
        if let Some(uid) = &self.uid {
            options.set_at(&["preconditions", "uid"], uid.as_str());
        }
        if let Some(version) = &self.resource_version {
            options.set_at(&["preconditions", "resourceVersion"], version.as_str());
        }
        if !self.propagation_policy.is_empty() {
            options.insert("propagationPolicy", self.propagation_policy);
        }
        if self.dry_run {
            options.insert("dryRun", vec!["All"]);
        }
        machinery::json::to_vec(&options).into()
    }
}

/// The four ways to patch.
#[derive(Clone, Debug)]
pub enum Patch {
    Json(Value),
    Merge(Value),
    Strategic(Value),
    Apply { object: Object, force: bool },
}

impl Patch {
    fn content_type(&self) -> &'static str {
        match self {
            Self::Json(_) => "application/json-patch+json",
            Self::Merge(_) => "application/merge-patch+json",
            Self::Strategic(_) => "application/strategic-merge-patch+json",
            Self::Apply { .. } => "application/apply-patch+yaml",
        }
    }

    fn body(&self) -> Bytes {
        match self {
            Self::Json(value) | Self::Merge(value) | Self::Strategic(value) => {
                machinery::json::to_vec(value).into()
            }
            Self::Apply { object, .. } => object.to_json().into(),
        }
    }
}

/// A user of the API: one identity, one field manager, one transport. Cheap to clone.
#[derive(Clone)]
pub struct Client {
    transport: Arc<dyn Transport>,
    field_manager: Arc<str>,
}

impl Client {
    /// `field_manager` names the writer in `managedFields` and is sent as the user agent.
    pub fn new(transport: Arc<dyn Transport>, field_manager: &str) -> Self {
        Self { transport, field_manager: field_manager.into() }
    }

    /// The same connection and identity under another field manager.
    pub fn with_field_manager(&self, field_manager: &str) -> Self {
        Self { transport: self.transport.clone(), field_manager: field_manager.into() }
    }

    pub fn field_manager(&self) -> &str {
        &self.field_manager
    }

    pub async fn get(
        &self,
        resource: &Resource,
        namespace: &str,
        name: &str,
    ) -> Result<Object, Error> {
        let path = resource.path(namespace, name, "");
        self.object(Method::GET, &path, &[], "", Bytes::new()).await
    }

    /// `None` when there is no such object.
    pub async fn find(
        &self,
        resource: &Resource,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Object>, Error> {
        match self.get(resource, namespace, name).await {
            Ok(object) => Ok(Some(object)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub async fn list(
        &self,
        resource: &Resource,
        namespace: &str,
        options: &ListOptions,
    ) -> Result<ObjectList, Error> {
        let path = resource.path(namespace, "", "");
        let body = self.call(Method::GET, &path, &options.query(), "", Bytes::new()).await?;
        parse_list(&body).map_err(|source| malformed(&path, source))
    }

    /// The stream ends when the server closes it; start again from the last revision seen.
    pub async fn watch(
        &self,
        resource: &Resource,
        namespace: &str,
        options: &ListOptions,
    ) -> Result<Watch, Error> {
        let path = resource.path(namespace, "", "");
        let mut query = options.query();
        query.push(("watch", "true".into()));
        let body = self.stream(Method::GET, &path, &query, "", Bytes::new()).await?;
        Ok(Watch::new(body))
    }

    pub async fn create(
        &self,
        resource: &Resource,
        namespace: &str,
        object: &Object,
    ) -> Result<Object, Error> {
        let path = resource.path(namespace, "", "");
        self.write(Method::POST, &path, &[], JSON, object.to_json().into()).await
    }

    /// Posts to a subresource such as `pods/NAME/binding` or `serviceaccounts/NAME/token`.
    pub async fn create_sub(
        &self,
        resource: &Resource,
        namespace: &str,
        name: &str,
        subresource: &str,
        object: &Object,
    ) -> Result<Object, Error> {
        let path = resource.path(namespace, name, subresource);
        self.write(Method::POST, &path, &[], JSON, object.to_json().into()).await
    }

    /// Replaces the object, which names its namespace, name and revision itself. `subresource` is
    /// empty, `status`, `approval`, ...
    pub async fn update(
        &self,
        resource: &Resource,
        subresource: &str,
        object: &Object,
    ) -> Result<Object, Error> {
        let path = resource.path(object.namespace(), object.name(), subresource);
        self.write(Method::PUT, &path, &[], JSON, object.to_json().into()).await
    }

    pub async fn patch(
        &self,
        resource: &Resource,
        namespace: &str,
        name: &str,
        subresource: &str,
        patch: &Patch,
    ) -> Result<Object, Error> {
        let path = resource.path(namespace, name, subresource);
        let forced = matches!(patch, Patch::Apply { force: true, .. });
        let query: &[_] = if forced { &[("force", "true".to_owned())] } else { &[] };
        self.write(Method::PATCH, &path, query, patch.content_type(), patch.body()).await
    }

    /// What the server answers is the object (still there, terminating) or a `Status` of success.
    pub async fn delete(
        &self,
        resource: &Resource,
        namespace: &str,
        name: &str,
        options: &DeleteOptions,
    ) -> Result<Object, Error> {
        let path = resource.path(namespace, name, "");
        self.object(Method::DELETE, &path, &[], JSON, options.body()).await
    }

    pub async fn delete_collection(
        &self,
        resource: &Resource,
        namespace: &str,
        selection: &ListOptions,
        options: &DeleteOptions,
    ) -> Result<(), Error> {
        let path = resource.path(namespace, "", "");
        self.call(Method::DELETE, &path, &selection.query(), JSON, options.body()).await?;
        Ok(())
    }

    /// Any other path that answers with JSON, such as `/version` or discovery.
    pub async fn get_json<T: DeserializeOwned>(&self, path: &str) -> Result<T, Error> {
        let body = self.call(Method::GET, path, &[], "", Bytes::new()).await?;
        serde_json::from_slice(&body).map_err(|source| malformed(path, source.into()))
    }

    /// The raw answer to a GET as it arrives (logs, `/metrics`, ...).
    pub async fn get_stream(
        &self,
        path: &str,
        query: &[(&str, String)],
    ) -> Result<BodyStream, Error> {
        self.stream(Method::GET, path, query, "", Bytes::new()).await
    }

    async fn write(
        &self,
        method: Method,
        path: &str,
        query: &[(&str, String)],
        content_type: &str,
        body: Bytes,
    ) -> Result<Object, Error> {
        let mut query = query.to_vec();
        query.push(("fieldManager", self.field_manager.to_string()));
        self.object(method, path, &query, content_type, body).await
    }

    async fn object(
        &self,
        method: Method,
        path: &str,
        query: &[(&str, String)],
        content_type: &str,
        body: Bytes,
    ) -> Result<Object, Error> {
        let body = self.call(method, path, query, content_type, body).await?;
        Object::from_json(&body).map_err(|source| malformed(path, source.into()))
    }

    /// Sends any request and collects the answer; a failure becomes [`Error::Api`].
    pub async fn call(
        &self,
        method: Method,
        path: &str,
        query: &[(&str, String)],
        content_type: &str,
        body: Bytes,
    ) -> Result<Bytes, Error> {
        let body = self.stream(method, path, query, content_type, body).await?;
        collect(body, BODY_LIMIT).await
    }

    /// A GET that asks for another form than plain JSON, such as a `meta.k8s.io` Table.
    pub async fn get_accepting(
        &self,
        accept: &str,
        path: &str,
        query: &[(&str, String)],
    ) -> Result<Bytes, Error> {
        let body =
            self.stream_accepting(accept, Method::GET, path, query, "", Bytes::new()).await?;
        collect(body, BODY_LIMIT).await
    }

    /// A watch of any path; `query` holds all parameters but `watch`.
    pub async fn watch_accepting(
        &self,
        accept: &str,
        path: &str,
        query: &[(&str, String)],
    ) -> Result<Watch, Error> {
        let mut query = query.to_vec();
        query.push(("watch", "true".into()));
        let body =
            self.stream_accepting(accept, Method::GET, path, &query, "", Bytes::new()).await?;
        Ok(Watch::new(body))
    }

    async fn stream(
        &self,
        method: Method,
        path: &str,
        query: &[(&str, String)],
        content_type: &str,
        body: Bytes,
    ) -> Result<BodyStream, Error> {
        self.stream_accepting(JSON, method, path, query, content_type, body).await
    }

    async fn stream_accepting(
        &self,
        accept: &str,
        method: Method,
        path: &str,
        query: &[(&str, String)],
        content_type: &str,
        body: Bytes,
    ) -> Result<BodyStream, Error> {
        let mut request = http::Request::builder()
            .method(method)
            .uri(uri(path, query))
            .header(header::ACCEPT, accept)
            .header(header::USER_AGENT, &*self.field_manager);
        if !content_type.is_empty() {
            request = request.header(header::CONTENT_TYPE, content_type);
        }
        let request = request.body(body).map_err(|source| Error::Transport(source.into()))?;
        let response = self.transport.send(request).await?;
        let code = response.status();
        let body = response.into_body();
        if code.is_success() {
            return Ok(body);
        }
        let text = collect(body, 1 << 20).await?;
        Err(Error::Api(Status::from_json(&text).unwrap_or_else(|| foreign_failure(code, &text))))
    }
}

const JSON: &str = "application/json";

/// A failure that did not come as a `Status`, from a proxy in between or a health endpoint.
fn foreign_failure(code: http::StatusCode, text: &[u8]) -> Status {
    let text = String::from_utf8_lossy(&text[..text.len().min(1024)]);
    Status::new(code.as_u16(), ::api::Reason::Unknown, format!("{code}: {}", text.trim()))
}

fn malformed(path: &str, source: crate::Source) -> Error {
    Error::Malformed { request: path.to_owned(), source }
}

fn uri(path: &str, query: &[(&str, String)]) -> String {
    let mut uri = path.to_owned();
    let mut separator = if path.contains('?') { '&' } else { '?' };
    for (key, value) in query {
        let _ = write!(uri, "{separator}{key}={}", encode(value));
        separator = '&';
    }
    uri
}

/// Percent-encodes everything outside RFC 3986's unreserved set.
pub fn encode(text: &str) -> String {
    text.bytes().fold(String::with_capacity(text.len()), |mut out, byte| {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                out.push(byte as char);
            }
            _ => {
                let _ = write!(out, "%{byte:02X}");
            }
        }
        out
    })
}

#[derive(serde::Deserialize)]
struct WireList<'a> {
    #[serde(default)]
    metadata: WireListMeta,
    #[serde(borrow, default)]
    items: Option<Vec<&'a serde_json::value::RawValue>>,
}

#[derive(serde::Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct WireListMeta {
    resource_version: String,
    r#continue: String,
}

fn parse_list(body: &Bytes) -> Result<ObjectList, crate::Source> {
    let list: WireList = serde_json::from_slice(body)?;
    let items = list.items.unwrap_or_default();
    Ok(ObjectList {
        resource_version: list.metadata.resource_version,
        continue_token: list.metadata.r#continue,
        items: items.iter().map(|raw| body.slice_ref(raw.get().as_bytes())).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PODS: Resource = Resource::namespaced("", "v1", "pods", "Pod");
    const NODES: Resource = Resource::cluster("", "v1", "nodes", "Node");

    #[test]
    fn paths_are_those_of_the_api() {
        assert_eq!(PODS.path("a", "b", "status"), "/api/v1/namespaces/a/pods/b/status");
        assert_eq!(PODS.path("", "", ""), "/api/v1/pods");
        assert_eq!(NODES.path("ignored", "n", ""), "/api/v1/nodes/n");
        assert_eq!(uri("/x", &[("labelSelector", "a=b,c".into())]), "/x?labelSelector=a%3Db%2Cc");
    }

    #[test]
    fn list_items_share_the_body() {
        let body = Bytes::from_static(
            br#"{"kind":"PodList","metadata":{"resourceVersion":"7"},"items":[{"a":1},{"b":2}]}"#,
        );
        let list = parse_list(&body).unwrap();
        assert_eq!(list.resource_version, "7");
        assert_eq!(list.items, [&b"{\"a\":1}"[..], b"{\"b\":2}"]);
        assert!(body.as_ptr_range().contains(&list.items[1].as_ptr()));
    }
}
