//! `kubectl label` and `kubectl annotate`

use client::Patch;
use machinery::{Map, Object, Value};

use super::change::ChangeOptions;
use crate::{
    Error, Result,
    manifests::Files,
    select::{Item, Selection},
    session::Session,
};

/// What both commands take. The changes stand among the arguments: `KEY=VALUE`, or `KEY-`.
#[derive(clap::Args)]
struct Marking {
    /// TYPE NAME... or TYPE/NAME..., then KEY=VALUE to set and KEY- to remove
    arguments: Vec<String>,
    #[command(flatten)]
    files: Files,
    /// Change a value that is already set
    #[arg(long)]
    overwrite: bool,
    /// Label selector such as app=web
    #[arg(short = 'l', long, default_value = "")]
    selector: String,
    /// Field selector such as status.phase=Running
    #[arg(long, default_value = "")]
    field_selector: String,
    /// All objects of the type in the namespace
    #[arg(long)]
    all: bool,
    /// In all namespaces
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    #[command(flatten)]
    options: ChangeOptions,
}

/// Set and remove labels
#[derive(clap::Args)]
#[command(after_help = "Example: kubectl label pod/web tier=front old-")]
pub struct Label {
    #[command(flatten)]
    marking: Marking,
}

/// Set and remove annotations
#[derive(clap::Args)]
#[command(after_help = "Example: kubectl annotate deployment/web kubernetes.io/change-cause='new image'")]
pub struct Annotate {
    #[command(flatten)]
    marking: Marking,
}

impl Label {
    pub async fn run(self, session: &Session) -> Result<()> {
        self.marking.run(session, "labels", "kubectl-label").await
    }
}

impl Annotate {
    pub async fn run(self, session: &Session) -> Result<()> {
        self.marking.run(session, "annotations", "kubectl-annotate").await
    }
}

impl Marking {
    async fn run(self, session: &Session, field: &str, manager: &str) -> Result<()> {
        let (arguments, changes) = split(&self.arguments)?;
        if changes.is_empty() {
            return Err(Error::other(format!("at least one change of {field} is needed, as KEY=VALUE or KEY-")));
        }
        let selection = Selection {
            arguments,
            files: self.files,
            selector: self.selector,
            field_selector: self.field_selector,
            all: self.all,
            all_namespaces: self.all_namespaces,
        };
        let client = session.writer(manager)?;
        let mut errors = Vec::new();
        for item in selection.items(session).await? {
            let outcome = mark(session, &client, &item, field, &changes, self.overwrite, &self.options).await;
            errors.extend(outcome.err());
        }
        Error::collect(errors)
    }
}

async fn mark(
    session: &Session,
    client: &client::Client,
    item: &Item,
    field: &str,
    changes: &[Change],
    overwrite: bool,
    options: &ChangeOptions,
) -> Result<()> {
    let object = item.get(session).await?;
    let (patch, done) = plan(&object, field, changes, overwrite)?;
    let Some(patch) = patch else {
        return options.report(&object, item, done);
    };
    let object = options.patch(client, item, "", &Patch::Merge(patch.into())).await?;
    options.report(&object, item, done)
}

/// A key and its new value, or `None` to remove it.
type Change = (String, Option<String>);

/// Takes the changes, which come last, from the arguments.
fn split(arguments: &[String]) -> Result<(Vec<String>, Vec<Change>)> {
    let (mut rest, mut changes) = (Vec::new(), Vec::new());
    for argument in arguments {
        match (argument.split_once('='), argument.strip_suffix('-')) {
            (Some((key, value)), _) if !key.is_empty() => changes.push((key.to_owned(), Some(value.to_owned()))),
            (None, Some(key)) if !key.is_empty() => changes.push((key.to_owned(), None)),
            _ if changes.is_empty() => rest.push(argument.clone()),
            _ => return Err(Error::other(format!("all resources must be specified before changes: {argument}"))),
        }
    }
    Ok((rest, changes))
}

/// The merge patch, or `None` when all is as wanted; and the word for what was done.
fn plan(object: &Object, field: &str, changes: &[Change], overwrite: bool) -> Result<(Option<Map>, &'static str)> {
    let present = object.map_at(&["metadata", field]);
    let mut patch = Map::new();
    let mut removed_only = true;
    for (key, wanted) in changes {
        let found = present.and_then(|map| map.get(key)).and_then(Value::as_str);
        match (found, wanted) {
            (None, None) => {
                let what = field.trim_end_matches('s');
                eprintln!("{what} {key:?} not found.");
            }
            (Some(_), None) => patch.set_at(&["metadata", field, key], Value::Null),
            (Some(found), Some(wanted)) if found == wanted => removed_only = false,
            (Some(found), Some(_)) if !overwrite => {
                return Err(Error::other(format!("'{key}' already has a value ({found}), and --overwrite is false")));
            }
            (_, Some(wanted)) => {
                removed_only = false;
                patch.set_at(&["metadata", field, key], wanted.as_str());
            }
        }
    }
    let done = match (field, patch.is_empty(), removed_only) {
        ("labels", true, _) => "not labeled",
        ("labels", false, true) => "unlabeled",
        ("labels", ..) => "labeled",
        _ => "annotated",
    };
    Ok(((!patch.is_empty()).then_some(patch), done))
}

#[cfg(test)]
mod tests {
    use super::*;
    use machinery::value;

    fn check(changes: &[&str], overwrite: bool, expected: Option<Value>, done: &str) {
        let object = Object::from_value(value!({"metadata": {"labels": {"a": "1", "b": "2"}}})).unwrap();
        let arguments: Vec<String> = changes.iter().map(|&c| c.into()).collect();
        let (_, changes) = split(&arguments).unwrap();
        let (patch, found) = plan(&object, "labels", &changes, overwrite).unwrap();
        assert_eq!((patch.map(Value::from), found), (expected, done), "{arguments:?}");
    }

    #[test]
    fn changes_become_a_patch() {
        check(&["c=3"], false, Some(value!({"metadata": {"labels": {"c": "3"}}})), "labeled");
        check(&["a-"], false, Some(value!({"metadata": {"labels": {"a": null}}})), "unlabeled");
        check(&["a=1", "x-"], false, None, "not labeled");
        check(&["a=9", "b-"], true, Some(value!({"metadata": {"labels": {"a": "9", "b": null}}})), "labeled");
    }

    #[test]
    fn a_value_is_not_overwritten_unasked() {
        let object = Object::from_value(value!({"metadata": {"labels": {"a": "1"}}})).unwrap();
        let error = plan(&object, "labels", &[("a".into(), Some("2".into()))], false).unwrap_err();
        assert_eq!(error.text(), "error: 'a' already has a value (1), and --overwrite is false");
    }

    #[test]
    fn changes_come_after_the_objects() {
        let arguments = |list: &[&str]| list.iter().map(|&a| a.to_owned()).collect::<Vec<_>>();
        let (rest, changes) = split(&arguments(&["pods", "web", "a=b=c", "d-"])).unwrap();
        assert_eq!(rest, ["pods", "web"]);
        assert_eq!(changes, [("a".into(), Some("b=c".into())), ("d".into(), None)]);
        assert!(split(&arguments(&["a=b", "pods"])).is_err());
    }
}
