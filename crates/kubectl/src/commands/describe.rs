//! `kubectl describe`: the whole object, readably, and the events about it.

use std::fmt::Write;

use client::ListOptions;
use machinery::{Map, Object, Value};

use crate::{
    Result,
    output::{age, emit, jsonpath::text, table::Layout},
    select::{Item, Selection},
    session::Session,
};

/// Show objects in detail, with their events
#[derive(clap::Args)]
#[command(after_help = "Example: kubectl describe pod web-1")]
pub struct Describe {
    #[command(flatten)]
    selection: Selection,
}

impl Describe {
    pub async fn run(mut self, session: &Session) -> Result<()> {
        // A type alone means all of its objects.
        self.selection.all = true;
        for (at, item) in self.selection.items(session).await?.iter().enumerate() {
            let object = item.get(session).await?;
            let gap = if at > 0 { "\n\n" } else { "" };
            let events = events(session, item, &object).await?;
            emit(&format!("{gap}{}{events}", describe(&object)))?;
        }
        Ok(())
    }
}

fn describe(object: &Object) -> String {
    let mut out = String::new();
    let mut line = |label: &str, value: &str| {
        let _ = writeln!(out, "{:<14}{value}", format!("{label}:"));
    };
    line("Name", object.name());
    if !object.namespace().is_empty() {
        line("Namespace", object.namespace());
    }
    for (label, field) in [("Labels", "labels"), ("Annotations", "annotations")] {
        let separator = if field == "labels" { "=" } else { ": " };
        let entries = object.map_at(&["metadata", field]);
        let shown = |(k, v): (&smol_str::SmolStr, &Value)| {
            let hidden = k.as_str() == super::apply::LAST_APPLIED;
            (!hidden).then(|| format!("{k}{separator}{}", text(v)))
        };
        let lines: Vec<String> = entries.into_iter().flat_map(|m| m.iter().filter_map(shown)).collect();
        line(label, lines.first().map_or("<none>", String::as_str));
        for more in lines.iter().skip(1) {
            line("", more);
        }
    }
    line("API Version", object.api_version());
    line("Kind", object.kind());
    let out = out.replace("\n:             ", "\n              ");
    let mut rest = object.root().clone();
    for field in ["apiVersion", "kind"] {
        rest.remove(field);
    }
    let metadata = rest.map_entry("metadata");
    for field in ["name", "namespace", "labels", "annotations", "managedFields"] {
        metadata.remove(field);
    }
    if object.kind() == "Secret" && object.api_version() == "v1" {
        hide_secrets(&mut rest);
    }
    let mut out = out;
    fields(&rest, 0, &mut out);
    out
}

/// Of a Secret only the sizes are shown.
fn hide_secrets(root: &mut Map) {
    let Some(data) = root.get_mut("data").and_then(Value::as_map_mut) else { return };
    for (_, value) in data.iter_mut() {
        let encoded = value.as_str().unwrap_or_default();
        let bytes = encoded.len() / 4 * 3 - encoded.bytes().filter(|&b| b == b'=').count();
        *value = format!("{bytes} bytes").into();
    }
}

fn fields(map: &Map, indent: usize, out: &mut String) {
    for (key, value) in map.iter() {
        let label = title(key);
        match value {
            Value::Map(inner) => {
                let _ = writeln!(out, "{:indent$}{label}:", "");
                fields(inner, indent + 2, out);
            }
            Value::List(items) => {
                let _ = writeln!(out, "{:indent$}{label}:", "");
                for item in items.iter() {
                    match item {
                        Value::Map(inner) => fields(inner, indent + 2, out),
                        other => {
                            let _ = writeln!(out, "{:1$}{2}", "", indent + 2, text(other));
                        }
                    }
                }
            }
            other => {
                let _ = writeln!(out, "{:indent$}{label}:  {}", "", text(other));
            }
        }
    }
}

/// `podIP` becomes `Pod IP`; a key that is no field name stays as it is.
fn title(key: &str) -> String {
    if !key.chars().all(char::is_alphanumeric) {
        return key.to_owned();
    }
    let mut out = String::new();
    let chars: Vec<char> = key.chars().collect();
    for (at, &c) in chars.iter().enumerate() {
        let starts_word = c.is_uppercase() && at > 0 && !chars[at - 1].is_uppercase();
        if starts_word {
            out.push(' ');
        }
        out.push(if at == 0 { c.to_ascii_uppercase() } else { c });
    }
    out
}

async fn events(session: &Session, item: &Item, object: &Object) -> Result<String> {
    let info = session.discovery().await?.find("events.v1")?;
    let options = ListOptions {
        field_selector: format!("involvedObject.name={},involvedObject.uid={}", object.name(), object.uid()),
        ..ListOptions::default()
    };
    let list = session.client()?.list(&info.resource, &item.namespace, &options).await?;
    let now = session.env.now();
    let mut found: Vec<Object> = list.items.iter().filter_map(|b| Object::from_json(b).ok()).collect();
    if found.is_empty() {
        return Ok("Events:  <none>\n".to_owned());
    }
    found.sort_by_key(|event| time_of(event).to_owned());
    let mut rows = vec![
        ["  Type", "Reason", "Age", "From", "Message"].map(str::to_owned).to_vec(),
        ["  ----", "------", "----", "----", "-------"].map(str::to_owned).to_vec(),
    ];
    rows.extend(found.iter().map(|event| {
        let since = stdx::Timestamp::parse(time_of(event)).map(|at| age(now.since(at).as_secs()));
        let source = [event.str_at(&["source", "component"]), event.str_at(&["reportingComponent"])];
        vec![
            format!("  {}", event.str_at(&["type"])),
            event.str_at(&["reason"]).to_owned(),
            since.unwrap_or_else(|| "<unknown>".into()),
            source.into_iter().find(|s| !s.is_empty()).unwrap_or_default().to_owned(),
            event.str_at(&["message"]).trim().to_owned(),
        ]
    }));
    Ok(format!("Events:\n{}", Layout::default().render(rows)))
}

fn time_of(event: &Object) -> &str {
    let times = [event.str_at(&["lastTimestamp"]), event.str_at(&["eventTime"])];
    times.into_iter().find(|t| !t.is_empty()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use machinery::value;

    #[test]
    fn an_object_is_shown_without_its_secrets() {
        let secret = Object::from_value(value!({
            "apiVersion": "v1", "kind": "Secret", "data": {"key": "c2VjcmV0"},
            "metadata": {"name": "s", "namespace": "n", "labels": {"a": "1", "b": "2"}, "managedFields": []},
        }))
        .unwrap();
        let shown = describe(&secret);
        let expected = "\
Name:         s
Namespace:    n
Labels:       a=1
              b=2
Annotations:  <none>
API Version:  v1
Kind:         Secret
Data:
  Key:  6 bytes
Metadata:
";
        assert_eq!(shown, expected);
    }

    #[test]
    fn field_names_become_words() {
        assert_eq!(title("podIP"), "Pod IP");
        assert_eq!(title("observedGeneration"), "Observed Generation");
        assert_eq!(title("app.kubernetes.io/name"), "app.kubernetes.io/name");
    }
}
