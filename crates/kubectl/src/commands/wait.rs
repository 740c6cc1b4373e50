//! `kubectl wait`

use std::time::Duration;

use machinery::{Object, Value};

use crate::{
    Error, Result, follow,
    output::{
        emit,
        jsonpath::{self, JsonPath},
    },
    select::Selection,
    session::{Session, parse_duration},
};

/// Wait until something is true of objects
#[derive(clap::Args)]
#[command(after_help = "Example: kubectl wait --for=condition=Ready pod/web --timeout=60s")]
pub struct Wait {
    #[command(flatten)]
    selection: Selection,
    /// condition=NAME[=VALUE], jsonpath='{...}'[=VALUE], create or delete
    #[arg(long = "for")]
    goal: String,
    /// How long for each object; zero checks once, negative waits a week
    #[arg(long, default_value = "30s", allow_hyphen_values = true)]
    timeout: String,
}

/// What is waited for.
#[derive(Debug)]
enum Goal {
    Create,
    Delete,
    Condition(String, String),
    JsonPath(JsonPath, Option<String>),
}

impl Wait {
    pub async fn run(self, session: &Session) -> Result<()> {
        let goal = Goal::parse(&self.goal)?;
        let limit = match self.timeout.strip_prefix('-') {
            Some(_) => Duration::from_secs(7 * 24 * 3600),
            None => parse_duration(&self.timeout).map_err(Error::Other)?,
        };
        let items = self.selection.items(session).await?;
        if items.is_empty() {
            return Err(Error::other("no matching resources found"));
        }
        let mut errors = Vec::new();
        for item in items {
            let mut first = None;
            let reached = follow::until(session, &item, Some(limit.max(Duration::from_secs(1))), |object| {
                let uid = first.get_or_insert_with(|| object.map(|o| o.uid().to_owned()));
                match goal.reached(object, uid.as_deref()) {
                    Some(true) => Ok(Some(true)),
                    Some(false) if limit.is_zero() => Ok(Some(false)),
                    Some(false) => Ok(None),
                    None => Err(Error::Client(client::Error::Api(api::Status::not_found(
                        item.info.group(),
                        &item.info.resource.gvr.resource,
                        &item.name,
                    )))),
                }
            });
            match reached.await {
                Ok(Some(true)) => emit(&format!("{} {}\n", item.display(), goal.met()))?,
                Ok(_) => errors.push(Error::other(format!(
                    "timed out waiting for the condition on {}/{}",
                    item.info.resource.gvr.resource, item.name
                ))),
                Err(error) => errors.push(error),
            }
        }
        Error::collect(errors)
    }
}

impl Goal {
    fn parse(text: &str) -> Result<Self> {
        match text.split_once('=').unwrap_or((text, "")) {
            ("delete", "") => Ok(Self::Delete),
            ("create", "") => Ok(Self::Create),
            ("condition", rest) if !rest.is_empty() => {
                let (name, value) = rest.split_once('=').unwrap_or((rest, "true"));
                Ok(Self::Condition(name.to_owned(), value.to_owned()))
            }
            ("jsonpath", rest) if !rest.is_empty() => {
                let end = rest.rfind('}').map_or(rest.len(), |at| at + 1);
                let (path, tail) = rest.split_at(end);
                let value = match tail.strip_prefix('=') {
                    Some("") => return Err(Error::other("jsonpath wait value cannot be empty")),
                    value => value.map(str::to_owned),
                };
                Ok(Self::JsonPath(JsonPath::parse(path)?, value))
            }
            _ => Err(Error::other(format!("unrecognized condition: {text:?}"))),
        }
    }

    fn met(&self) -> &'static str {
        match self {
            Self::Delete => "deleted",
            _ => "condition met",
        }
    }

    /// `None` when the object is missing and must not be. `uid` is that of the first object seen.
    fn reached(&self, object: Option<&Object>, uid: Option<&str>) -> Option<bool> {
        match (self, object) {
            (Self::Delete, object) => Some(object.is_none_or(|o| Some(o.uid()) != uid)),
            (Self::Create, object) => Some(object.is_some()),
            (_, None) => None,
            (Self::Condition(name, value), Some(object)) => Some(condition(object, name, value)),
            (Self::JsonPath(path, value), Some(object)) => {
                let root = object.clone().into_value();
                let found = path.values(&root);
                Some(match (found.as_slice(), value) {
                    ([], _) => false,
                    (_, None) => true,
                    ([one], Some(value)) => jsonpath::text(one) == *value,
                    _ => false,
                })
            }
        }
    }
}

fn condition(object: &Object, name: &str, value: &str) -> bool {
    let text = |c: &Value, field| c.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
    let found = object.list_at(&["status", "conditions"]).iter().find(|c| text(c, "type").eq_ignore_ascii_case(name));
    found.is_some_and(|c| {
        let observed = c.get("observedGeneration").and_then(Value::as_i64);
        let observed = observed.or_else(|| object.i64_at(&["status", "observedGeneration"]));
        let is_current = observed.is_none_or(|generation| generation >= object.generation());
        is_current && text(c, "status").eq_ignore_ascii_case(value)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use machinery::value;

    fn check(goal: &str, expected: Option<bool>) {
        let object = Object::from_value(value!({
            "metadata": {"uid": "u", "generation": 1},
            "status": {"phase": "Running", "n": 3, "conditions": [
                {"type": "Ready", "status": "True"}, {"type": "Old", "status": "True", "observedGeneration": 0}]},
        }))
        .unwrap();
        assert_eq!(Goal::parse(goal).unwrap().reached(Some(&object), Some("u")), expected, "{goal}");
    }

    #[test]
    fn goals() {
        check("condition=ready", Some(true));
        check("condition=Ready=False", Some(false));
        check("condition=Missing", Some(false));
        check("condition=Old", Some(false));
        check("jsonpath={.status.phase}=Running", Some(true));
        check("jsonpath={.status.n}=4", Some(false));
        check("jsonpath={.status.n}", Some(true));
        check("jsonpath={.status.x}", Some(false));
        check("delete", Some(false));
        check("create", Some(true));
        assert_eq!(Goal::parse("delete").unwrap().reached(None, Some("u")), Some(true));
        assert_eq!(Goal::parse("condition=Ready").unwrap().reached(None, None), None);
        assert!(Goal::parse("x=y").is_err() && Goal::parse("jsonpath={.a}=").is_err());
    }
}
