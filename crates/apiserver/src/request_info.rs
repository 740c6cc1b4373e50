//! What a request is about, read from its method, path and query alone.

use http::Method;
use smol_str::SmolStr;

use crate::query::{Query, percent_decode};

/// The target of a request: a resource of an API group, or a bare path.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestInfo {
    pub is_resource: bool,
    /// `get`, `list`, `watch`, `create`, …; for a bare path the method in lower case.
    pub verb: SmolStr,
    pub path: String,
    pub group: SmolStr,
    pub version: SmolStr,
    pub resource: SmolStr,
    pub subresource: SmolStr,
    pub namespace: SmolStr,
    pub name: SmolStr,
    /// What follows the subresource, for `proxy`: `/a/b`, decoded no further than the URL was.
    pub rest: String,
}

impl RequestInfo {
    /// Follows the URL conventions of Kubernetes: `/api/v1/…` and `/apis/GROUP/VERSION/…` with
    /// `[watch/][namespaces/NAMESPACE/]RESOURCE[/NAME[/SUBRESOURCE[/REST]]]`.
    pub fn parse(method: &Method, path: &str, query: &Query) -> Self {
        let bare = Self { verb: lower(method), path: percent_decode(path), ..Self::default() };
        let trimmed = path.trim_matches('/');
        let parts: Vec<&str> = trimmed.split('/').filter(|part| !part.is_empty()).collect();
        match parts.as_slice() {
            ["api", version, rest @ ..] if !rest.is_empty() => {
                bare.resource_request(method, "", version, rest, path, query)
            }
            ["apis", group, version, rest @ ..] if !rest.is_empty() => {
                bare.resource_request(method, group, version, rest, path, query)
            }
            _ => bare,
        }
    }

    fn resource_request(
        mut self,
        method: &Method,
        group: &str,
        version: &str,
        mut parts: &[&str],
        path: &str,
        query: &Query,
    ) -> Self {
        self.is_resource = true;
        self.group = percent_decode(group).into();
        self.version = percent_decode(version).into();
        let legacy_watch = parts[0] == "watch" && parts.len() > 1;
        if legacy_watch {
            parts = &parts[1..];
        }
        if let ["namespaces", namespace, rest @ ..] = parts {
            self.namespace = percent_decode(namespace).into();
            if !matches!(rest, [] | ["status" | "finalize", ..]) {
                parts = rest;
            }
        }
        let part =
            |at: usize| parts.get(at).map(|p| SmolStr::from(percent_decode(p))).unwrap_or_default();
        (self.resource, self.name, self.subresource) = (part(0), part(1), part(2));
        self.rest = rest_of(path, parts);
        self.verb = verb_of(method, legacy_watch, self.name.is_empty(), query);
        if self.name.is_empty()
            && matches!(self.verb.as_str(), "list" | "watch" | "deletecollection")
        {
            self.name = name_in_field_selector(query.text("fieldSelector")).unwrap_or_default();
        }
        self
    }

    /// `pods` or `pods/log`.
    pub fn full_resource(&self) -> String {
        match self.subresource.as_str() {
            "" => self.resource.to_string(),
            subresource => format!("{}/{subresource}", self.resource),
        }
    }

    /// Whether the request runs as long as its client likes: no deadline, not counted in flight.
    pub fn is_long_running(&self) -> bool {
        let streams = ["proxy", "exec", "attach", "portforward", "log"];
        self.is_resource && (self.verb == "watch" || streams.contains(&self.subresource.as_str()))
    }

    pub fn is_mutating(&self) -> bool {
        !matches!(self.verb.as_str(), "get" | "list" | "watch" | "head" | "options")
    }
}

fn lower(method: &Method) -> SmolStr {
    method.as_str().to_ascii_lowercase().into()
}

fn verb_of(method: &Method, legacy_watch: bool, no_name: bool, query: &Query) -> SmolStr {
    let verb = match *method {
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE if no_name => "deletecollection",
        Method::DELETE => "delete",
        Method::GET | Method::HEAD if legacy_watch => "watch",
        Method::GET | Method::HEAD if no_name && query.flag("watch") => "watch",
        Method::GET | Method::HEAD if no_name => "list",
        Method::GET | Method::HEAD => "get",
        _ => return lower(method),
    };
    SmolStr::new_static(verb)
}

/// Everything from the fourth part on, with its slash and a trailing one kept.
fn rest_of(path: &str, parts: &[&str]) -> String {
    let Some(tail) = parts.get(3..) else { return String::new() };
    let slash = if path.ends_with('/') && !tail.is_empty() { "/" } else { "" };
    match tail.is_empty() {
        true if path.ends_with('/') => "/".to_owned(),
        true => String::new(),
        false => format!("/{}{slash}", tail.join("/")),
    }
}

fn name_in_field_selector(selector: &str) -> Option<SmolStr> {
    let found = selector.split(',').find_map(|term| term.trim().strip_prefix("metadata.name="))?;
    let name = found.strip_prefix('=').unwrap_or(found);
    (!name.is_empty() && !name.contains('/')).then(|| name.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(method: Method, url: &str, want: &str) {
        let (path, query) = url.split_once('?').unwrap_or((url, ""));
        let info = RequestInfo::parse(&method, path, &Query::parse(query));
        let target = if info.is_resource {
            format!(
                "{} g={} v={} r={} s={} ns={} n={} rest={}",
                info.verb,
                info.group,
                info.version,
                info.resource,
                info.subresource,
                info.namespace,
                info.name,
                info.rest
            )
        } else {
            format!("{} {}", info.verb, info.path)
        };
        assert_eq!(target, want, "{method} {url}");
    }

    #[test]
    fn reads_urls_as_kubernetes_does() {
        let (get, post, delete) = (Method::GET, Method::POST, Method::DELETE);
        check(get.clone(), "/healthz", "get /healthz");
        check(get.clone(), "/api/v1", "get /api/v1");
        check(get.clone(), "/apis/apps/v1", "get /apis/apps/v1");
        check(get.clone(), "/api/v1/namespaces", "list g= v=v1 r=namespaces s= ns= n= rest=");
        check(get.clone(), "/api/v1/namespaces/a", "get g= v=v1 r=namespaces s= ns=a n=a rest=");
        check(
            Method::PUT,
            "/api/v1/namespaces/a/finalize",
            "update g= v=v1 r=namespaces s=finalize ns=a n=a rest=",
        );
        check(
            get.clone(),
            "/api/v1/namespaces/a/pods?watch=true",
            "watch g= v=v1 r=pods s= ns=a n= rest=",
        );
        check(get.clone(), "/api/v1/watch/pods", "watch g= v=v1 r=pods s= ns= n= rest=");
        check(
            get.clone(),
            "/apis/apps/v1/namespaces/a/deployments?fieldSelector=metadata.name%3Dx",
            "list g=apps v=v1 r=deployments s= ns=a n=x rest=",
        );
        check(
            post,
            "/api/v1/namespaces/a/pods/p/exec",
            "create g= v=v1 r=pods s=exec ns=a n=p rest=",
        );
        check(
            delete,
            "/api/v1/namespaces/a/pods",
            "deletecollection g= v=v1 r=pods s= ns=a n= rest=",
        );
        check(
            get,
            "/api/v1/nodes/n:10250/proxy/logs/x/",
            "get g= v=v1 r=nodes s=proxy ns= n=n:10250 rest=/logs/x/",
        );
    }
}
