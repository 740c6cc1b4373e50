//! Cells that several kinds share.

use machinery::{Map, Object, Value};

use crate::{
    edit::{maps, text},
    selector::label_selector,
    table::{AGE, Column},
};

/// A number, 0 when missing.
pub(crate) fn number(object: &Object, path: &[&str]) -> Value {
    object.i64_at(path).unwrap_or(0).into()
}

/// A text, or what stands in for none.
pub(crate) fn text_or(object: &Object, path: &[&str], none: &str) -> Value {
    match object.str_at(path) {
        "" => none.into(),
        text => text.into(),
    }
}

/// An `IntOrString`, or what stands in for none.
pub(crate) fn int_or_string(object: &Object, path: &[&str], none: &str) -> Value {
    match object.at(path) {
        Some(Value::Int(number)) => number.to_string().into(),
        Some(Value::String(text)) => text.clone().into(),
        _ => none.into(),
    }
}

/// `a=b,c=d`, or `<none>`.
pub(crate) fn labels(map: Option<&Map>) -> Value {
    let pairs: Vec<String> = map
        .into_iter()
        .flat_map(Map::iter)
        .map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()))
        .collect();
    if pairs.is_empty() { "<none>".into() } else { pairs.join(",").into() }
}

/// A `LabelSelector` as text: `<none>` selects everything.
pub(crate) fn selector(object: &Object, path: &[&str]) -> Value {
    let Some(value) = object.at(path) else { return "<none>".into() };
    match label_selector(Some(value)).to_string() {
        text if text.is_empty() => "<none>".into(),
        text => text.into(),
    }
}

fn containers(object: &Object, template: &[&str], field: &str) -> Value {
    let path: Vec<&str> = template.iter().copied().chain(["spec"]).collect();
    let names: Vec<&str> = object
        .map_at(&path)
        .into_iter()
        .flat_map(|spec| maps(spec, "containers"))
        .map(|c| text(c, field))
        .collect();
    names.join(",").into()
}

const TEMPLATE: [&str; 2] = ["spec", "template"];
pub(crate) const CONTAINERS: Column =
    Column::text("Containers", |o, _| containers(o, &TEMPLATE, "name")).wide();
pub(crate) const IMAGES: Column =
    Column::text("Images", |o, _| containers(o, &TEMPLATE, "image")).wide();
pub(crate) const SELECTOR: Column =
    Column::text("Selector", |o, _| selector(o, &["spec", "selector"])).wide();

const JOB_TEMPLATE: [&str; 4] = ["spec", "jobTemplate", "spec", "template"];
pub(crate) const JOB_CONTAINERS: Column =
    Column::text("Containers", |o, _| containers(o, &JOB_TEMPLATE, "name")).wide();
pub(crate) const JOB_IMAGES: Column =
    Column::text("Images", |o, _| containers(o, &JOB_TEMPLATE, "image")).wide();

pub(crate) const OWN_TEMPLATE_CONTAINERS: Column =
    Column::text("Containers", |o, _| containers(o, &["template"], "name"));
pub(crate) const OWN_TEMPLATE_IMAGES: Column =
    Column::text("Images", |o, _| containers(o, &["template"], "image"));

/// Name and age alone.
pub(crate) static NAME_AGE: [Column; 2] = [crate::table::NAME, AGE];

/// Addresses of a load balancer's ingress points.
pub(crate) fn load_balancer(object: &Object) -> String {
    let mut all: Vec<&str> = object
        .list_at(&["status", "loadBalancer", "ingress"])
        .iter()
        .filter_map(Value::as_map)
        .map(|point| match text(point, "ip") {
            "" => text(point, "hostname"),
            ip => ip,
        })
        .filter(|address| !address.is_empty())
        .collect();
    all.sort_unstable();
    all.dedup();
    all.join(",")
}

/// Whether a condition of this type is true.
pub(crate) fn condition_true(object: &Object, kind: &str) -> bool {
    condition(object, kind) == Some("True")
}

pub(crate) fn condition<'a>(object: &'a Object, kind: &str) -> Option<&'a str> {
    let conditions = object.list_at(&["status", "conditions"]).iter().filter_map(Value::as_map);
    let found = conditions.into_iter().find(|c| text(c, "type") == kind)?;
    Some(text(found, "status"))
}
