//! Printing what kubectl would print.

pub mod columns;
pub mod jsonpath;
pub mod table;
pub mod yaml;

use std::io::Write;

use machinery::{Object, Value};

use crate::{Error, Result, discovery::ResourceInfo};
use columns::Columns;
use jsonpath::JsonPath;

/// Writes to standard output at once, so that a watch is seen as it happens.
pub fn emit(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(Error::Output)
}

/// The value of `-o`.
#[derive(Clone, Debug)]
pub enum Format {
    /// Tables made by the server, or a line that says what was done.
    Human,
    Wide,
    Name,
    Json,
    Yaml,
    JsonPath(JsonPath),
    Columns(Columns),
}

impl Format {
    pub fn parse(text: &str) -> Result<Self> {
        let (name, argument) = text.split_once('=').unwrap_or((text, ""));
        Ok(match name {
            "" => Self::Human,
            "wide" => Self::Wide,
            "name" => Self::Name,
            "json" => Self::Json,
            "yaml" => Self::Yaml,
            "jsonpath" => Self::JsonPath(JsonPath::parse(argument)?),
            "jsonpath-file" => Self::JsonPath(JsonPath::parse(&read(argument)?)?),
            "custom-columns" => Self::Columns(Columns::parse(argument)?),
            "custom-columns-file" => Self::Columns(Columns::parse_file(&read(argument)?)?),
            other => {
                return Err(Error::other(format!(
                    "unable to match a printer suitable for the output format {other:?}, allowed formats are: custom-columns,custom-columns-file,json,jsonpath,jsonpath-file,name,wide,yaml"
                )));
            }
        })
    }

    pub fn is_table(&self) -> bool {
        matches!(self, Self::Human | Self::Wide)
    }

    /// The text for one object or one list. Not for tables.
    pub fn render(&self, object: &Value, info: Option<&ResourceInfo>) -> Result<String> {
        Ok(match self {
            Self::Json => json(object) + "\n",
            Self::Yaml => yaml::to_string(object),
            Self::JsonPath(path) => path.evaluate(object),
            Self::Columns(columns) => columns.render(objects(object)),
            Self::Name => objects(object).iter().map(|o| name_line(o, info)).collect(),
            Self::Human | Self::Wide => {
                return Err(Error::other("tables are made by the server"));
            }
        })
    }

    /// After a change: the object in the chosen form, or `pod/web created`.
    pub fn report(&self, object: &Object, info: &ResourceInfo, done: &str) -> Result<()> {
        match self {
            Self::Human | Self::Wide => emit(&format!("{} {done}\n", info.display(object.name()))),
            _ => emit(
                &self.render(&without_managed_fields(object.clone()).into_value(), Some(info))?,
            ),
        }
    }
}

fn read(path: &str) -> Result<String> {
    std::fs::read_to_string(path).map_err(|e| Error::other(format!("cannot read {path}: {e}")))
}

/// The items of a list, or the object itself.
pub fn objects(value: &Value) -> &[Value] {
    let is_list = value.get("kind").and_then(Value::as_str).is_some_and(|k| k.ends_with("List"));
    match value.get("items").and_then(Value::as_list) {
        Some(items) if is_list => items,
        _ => std::slice::from_ref(value),
    }
}

fn name_line(object: &Value, info: Option<&ResourceInfo>) -> String {
    let name = object.at(&["metadata", "name"]).and_then(Value::as_str).unwrap_or_default();
    let kind = match info {
        Some(info) => info.display_kind(),
        None => {
            let text = |key| object.get(key).and_then(Value::as_str).unwrap_or_default();
            let kind = text("kind").to_lowercase();
            match text("apiVersion").split_once('/') {
                Some((group, _)) => format!("{kind}.{group}"),
                None => kind,
            }
        }
    };
    format!("{kind}/{name}\n")
}

/// Indented by four, as kubectl does.
fn json(value: &Value) -> String {
    use serde::Serialize;
    let mut out = Vec::new();
    let indent = serde_json::ser::PrettyFormatter::with_indent(b"    ");
    let mut serializer = serde_json::Serializer::with_formatter(&mut out, indent);
    match value.serialize(&mut serializer) {
        Ok(()) => String::from_utf8_lossy(&out).into_owned(),
        Err(error) => format!("{error}"),
    }
}

pub fn without_managed_fields(mut object: Object) -> Object {
    object.remove_at(&["metadata", "managedFields"]);
    object
}

/// How long ago, as tables write ages: `5s`, `3m20s`, `2d4h`, `95d`, `2y30d`.
pub fn age(seconds: u64) -> String {
    let two = |a: u64, unit_a: &str, b: u64, unit_b: &str| match b {
        0 => format!("{a}{unit_a}"),
        b => format!("{a}{unit_a}{b}{unit_b}"),
    };
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    match seconds {
        _ if seconds < 120 => format!("{seconds}s"),
        _ if minutes < 10 => two(minutes, "m", seconds % 60, "s"),
        _ if minutes < 180 => format!("{minutes}m"),
        _ if hours < 8 => two(hours, "h", minutes % 60, "m"),
        _ if hours < 48 => format!("{hours}h"),
        _ if days < 8 => two(days, "d", hours % 24, "h"),
        _ if days < 730 => format!("{days}d"),
        _ if days < 365 * 8 => two(days / 365, "y", days % 365, "d"),
        _ => format!("{}y", days / 365),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use machinery::value;

    #[test]
    fn forms_of_output() {
        let pod = value!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}});
        let render = |format: &str, object: &Value| {
            Format::parse(format).unwrap().render(object, None).unwrap()
        };
        assert_eq!(render("name", &pod), "pod/a\n");
        let list = value!({"kind": "List", "items": [
            {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "b"}}]});
        assert_eq!(render("name", &list), "deployment.apps/b\n");
        assert_eq!(
            render("json", &pod),
            "{\n    \"apiVersion\": \"v1\",\n    \"kind\": \"Pod\",\n    \"metadata\": {\n        \"name\": \"a\"\n    }\n}\n"
        );
        assert_eq!(render("jsonpath={.metadata.name}", &pod), "a");
        assert!(Format::parse("toml").is_err());
    }

    #[test]
    fn ages() {
        let cases = [
            (5, "5s"),
            (119, "119s"),
            (125, "2m5s"),
            (600, "10m"),
            (3 * 3600, "3h"),
            (3 * 3600 + 60, "3h1m"),
            (86400, "24h"),
            (50 * 3600, "2d2h"),
            (100 * 86400, "100d"),
            (800 * 86400, "2y70d"),
        ];
        for (seconds, text) in cases {
            assert_eq!(age(seconds), text);
        }
    }
}
