//! `kubectl logs`

use std::time::Duration;

use client::ListOptions;
use futures::StreamExt;
use machinery::{Object, Value};

use crate::{
    Error, Result,
    output::emit,
    select::{self, Item},
    session::{Session, parse_duration},
};

/// Print the output of a container
#[derive(clap::Args)]
#[command(after_help = "Example: kubectl logs -f deployment/web --since=10m")]
pub struct Logs {
    /// POD or TYPE/NAME, and the container
    arguments: Vec<String>,
    /// Go on with what is written from now
    #[arg(short, long)]
    follow: bool,
    /// The container; the first one when not given
    #[arg(short, long, default_value = "")]
    container: String,
    /// All containers of the pod, one after the other
    #[arg(long)]
    all_containers: bool,
    /// Lines from the end; -1 for all
    #[arg(long, allow_negative_numbers = true)]
    tail: Option<i64>,
    /// Only what is newer than this
    #[arg(long, value_parser = parse_duration)]
    since: Option<Duration>,
    /// Only what is newer than this time (RFC 3339)
    #[arg(long, default_value = "")]
    since_time: String,
    /// Of the instance before the last restart
    #[arg(short, long)]
    previous: bool,
    /// Each line with its time
    #[arg(long)]
    timestamps: bool,
    /// At most this many bytes
    #[arg(long)]
    limit_bytes: Option<u64>,
    /// All pods with these labels
    #[arg(short = 'l', long, default_value = "")]
    selector: String,
    /// Each line with pod and container
    #[arg(long)]
    prefix: bool,
}

impl Logs {
    pub async fn run(mut self, session: &Session) -> Result<()> {
        if let [_, container] = self.arguments.as_slice()
            && !self.arguments[0].is_empty()
            && self.container.is_empty()
        {
            self.container = container.clone();
            self.arguments.truncate(1);
        }
        let pods = self.pods(session).await?;
        if self.follow && pods.len() > 1 {
            return Err(Error::other("following several pods at once is not supported; name one"));
        }
        for pod in pods {
            for container in self.containers(&pod)? {
                self.print(session, &pod, &container).await?;
            }
        }
        Ok(())
    }

    async fn pods(&self, session: &Session) -> Result<Vec<Object>> {
        if self.selector.is_empty() {
            let item = select::one(session, &self.arguments, "pods").await?;
            return Ok(vec![pod_of(session, &item).await?]);
        }
        list_pods(session, session.namespace()?, &self.selector).await
    }

    fn containers(&self, pod: &Object) -> Result<Vec<String>> {
        match (self.all_containers, self.container.as_str()) {
            (true, _) => Ok(container_names(pod)),
            (_, "") => Ok(vec![default_container(pod)?]),
            (_, name) => Ok(vec![name.to_owned()]),
        }
    }

    async fn print(&self, session: &Session, pod: &Object, container: &str) -> Result<()> {
        let path = format!("/api/v1/namespaces/{}/pods/{}/log", pod.namespace(), pod.name());
        let mut body = session.client()?.get_stream(&path, &self.query(container)).await?;
        let prefix = match self.prefix {
            true => format!("[pod/{}/{container}] ", pod.name()),
            false => String::new(),
        };
        let mut at_line_start = true;
        while let Some(piece) = body.next().await {
            let piece = piece.map_err(client::Error::Transport)?;
            let text = String::from_utf8_lossy(&piece);
            if prefix.is_empty() {
                emit_bytes(&piece)?;
                continue;
            }
            for line in text.split_inclusive('\n') {
                emit(&if at_line_start { format!("{prefix}{line}") } else { line.to_owned() })?;
                at_line_start = line.ends_with('\n');
            }
        }
        Ok(())
    }

    fn query(&self, container: &str) -> Vec<(&'static str, String)> {
        let flag = |on: bool| if on { "true".to_owned() } else { String::new() };
        let default_tail = if self.selector.is_empty() { None } else { Some(10) };
        let tail = self.tail.or(default_tail).filter(|&lines| lines >= 0);
        let mut query = vec![
            ("container", container.to_owned()),
            ("follow", flag(self.follow)),
            ("previous", flag(self.previous)),
            ("timestamps", flag(self.timestamps)),
            ("tailLines", tail.map(|n| n.to_string()).unwrap_or_default()),
            ("sinceSeconds", self.since.map(|d| d.as_secs_f64().ceil().to_string()).unwrap_or_default()),
            ("sinceTime", self.since_time.clone()),
            ("limitBytes", self.limit_bytes.map(|n| n.to_string()).unwrap_or_default()),
        ];
        query.retain(|(_, value)| !value.is_empty());
        query
    }
}

fn emit_bytes(bytes: &[u8]) -> Result<()> {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    out.write_all(bytes).and_then(|()| out.flush()).map_err(Error::Output)
}

async fn list_pods(session: &Session, namespace: &str, selector: &str) -> Result<Vec<Object>> {
    let pods = session.discovery().await?.find("pods.v1")?;
    let options = ListOptions { label_selector: selector.into(), ..ListOptions::default() };
    let list = session.client()?.list(&pods.resource, namespace, &options).await?;
    let parse = |bytes: &bytes::Bytes| Object::from_json(bytes).map_err(|e| Error::other(e.to_string()));
    list.items.iter().map(parse).collect()
}

/// The pod itself, or the best pod of what selects pods: running and ready first.
pub async fn pod_of(session: &Session, item: &Item) -> Result<Object> {
    let object = item.get(session).await?;
    if item.info.kind == "Pod" {
        return Ok(object);
    }
    let selector = selector_of(&object).ok_or_else(|| {
        Error::other(format!("{} selects no pods", item.display()))
    })?;
    let mut pods = list_pods(session, &item.namespace, &selector).await?;
    pods.sort_by_key(|pod| {
        (pod.is_deleting(), pod.str_at(&["status", "phase"]) != "Running", !is_ready(pod), pod.name().to_owned())
    });
    if pods.is_empty() {
        return Err(Error::other(format!("{} has no pods", item.display())));
    }
    if pods.len() > 1 {
        eprintln!("Found {} pods, using pod/{}", pods.len(), pods[0].name());
    }
    Ok(pods.swap_remove(0))
}

fn is_ready(pod: &Object) -> bool {
    let text = |c: &Value, field| c.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
    let ready = |c: &Value| text(c, "type") == "Ready" && text(c, "status") == "True";
    pod.list_at(&["status", "conditions"]).iter().any(ready)
}

/// The label selector of a workload or Service, as text.
pub fn selector_of(object: &Object) -> Option<String> {
    let selector = object.map_at(&["spec", "selector"])?;
    let labels = match object.kind() {
        "Service" | "ReplicationController" => Some(selector),
        _ => selector.get("matchLabels").and_then(Value::as_map),
    };
    let equal = labels.into_iter().flat_map(|l| l.iter().map(|(k, v)| format!("{k}={}", v.as_str().unwrap_or_default())));
    let mut parts: Vec<String> = equal.collect();
    let expressions = selector.get("matchExpressions").and_then(Value::as_list).unwrap_or_default();
    for expression in expressions {
        let text = |field| expression.get(field).and_then(Value::as_str).unwrap_or_default();
        let values = expression.get("values").and_then(Value::as_list).unwrap_or_default();
        let values = values.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(",");
        let key = text("key");
        parts.push(match text("operator") {
            "In" => format!("{key} in ({values})"),
            "NotIn" => format!("{key} notin ({values})"),
            "DoesNotExist" => format!("!{key}"),
            _ => key.to_owned(),
        });
    }
    (!parts.is_empty()).then(|| parts.join(","))
}

pub fn container_names(pod: &Object) -> Vec<String> {
    let names = |field| {
        let list = pod.list_at(&["spec", field]).iter();
        list.filter_map(|c| c.get("name")?.as_str().map(str::to_owned)).collect::<Vec<_>>()
    };
    [names("initContainers"), names("containers"), names("ephemeralContainers")].concat()
}

/// The container that the pod's annotation names, else the first; says so when there are several.
pub fn default_container(pod: &Object) -> Result<String> {
    let named = pod.str_at(&["metadata", "annotations", "kubectl.kubernetes.io/default-container"]);
    if !named.is_empty() {
        return Ok(named.to_owned());
    }
    let first = pod.list_at(&["spec", "containers"]).first();
    let first = first.and_then(|c| c.get("name")?.as_str());
    let first = first.ok_or_else(|| Error::other("the pod has no containers"))?;
    let mut all = container_names(pod);
    if all.len() > 1 {
        all.sort_by_key(|name| name != first);
        eprintln!("Defaulted container {first:?} out of: {}", all.join(", "));
    }
    Ok(first.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use machinery::value;

    #[test]
    fn selectors_become_text() {
        let check = |object: Value, expected: Option<&str>| {
            assert_eq!(selector_of(&Object::from_value(object).unwrap()).as_deref(), expected);
        };
        check(value!({"kind": "Service", "spec": {"selector": {"a": "b"}}}), Some("a=b"));
        check(
            value!({"kind": "Deployment", "spec": {"selector": {"matchLabels": {"a": "b"}, "matchExpressions": [
                {"key": "c", "operator": "In", "values": ["d", "e"]}, {"key": "f", "operator": "Exists"}]}}}),
            Some("a=b,c in (d,e),f"),
        );
        check(value!({"kind": "Service", "spec": {}}), None);
    }

    #[test]
    fn the_default_container_is_annotated_or_first() {
        let mut pod = Object::from_value(value!({"spec": {"containers": [{"name": "a"}, {"name": "b"}]}})).unwrap();
        assert_eq!(default_container(&pod).unwrap(), "a");
        pod.set_at(&["metadata", "annotations", "kubectl.kubernetes.io/default-container"], "b");
        assert_eq!(default_container(&pod).unwrap(), "b");
    }
}
