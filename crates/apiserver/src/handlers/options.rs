//! Options of the verbs, read from the query and checked as Kubernetes checks them.

use std::time::Duration;

use api::{Cause, Status};
use machinery::{Object, Value, fields::FieldValidation};
use registry::{DeleteOptions, GetOptions, ListOptions, Propagation};

use crate::{Server, query::Query};

/// What create, update and patch have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WriteOptions {
    pub field_validation: FieldValidation,
}

/// Checks `dryRun`, `fieldManager` and `fieldValidation`. `kind` is `CreateOptions`, ….
pub fn write(kind: &str, query: &Query) -> Result<WriteOptions, Status> {
    let mut causes = Vec::new();
    check_dry_run(query, &mut causes);
    check_manager(query.text("fieldManager"), &mut causes);
    let text = query.text("fieldValidation");
    let field_validation = FieldValidation::parse(text).unwrap_or_else(|| {
        causes.push(unsupported("fieldValidation", text, &["", "Ignore", "Strict", "Warn"]));
        FieldValidation::Warn
    });
    invalid_when(kind, causes)?;
    Ok(WriteOptions { field_validation })
}

fn check_dry_run(query: &Query, causes: &mut Vec<Cause>) {
    let values: Vec<&str> = query.all("dryRun").collect();
    if values.iter().any(|value| *value != "All") {
        causes.push(unsupported_dry_run(&values));
    }
}

fn check_manager(manager: &str, causes: &mut Vec<Cause>) {
    if manager.chars().count() > 128 {
        causes.push(Cause {
            reason: "FieldValueTooLong".into(),
            message: "Too long: may not be more than 128 bytes".into(),
            field: "fieldManager".into(),
        });
    }
    if let Some((at, _)) = manager.char_indices().find(|(_, c)| c.is_control()) {
        causes.push(Cause {
            reason: "FieldValueInvalid".into(),
            message: format!("Invalid value: {manager:?}: invalid character at index {at}: should only contain printable characters"),
            field: "fieldManager".into(),
        });
    }
}

/// The list as a whole is what is wrong.
fn unsupported_dry_run(values: &[&str]) -> Cause {
    let shown: Vec<String> = values.iter().map(|value| format!("{value:?}")).collect();
    Cause {
        reason: "FieldValueNotSupported".into(),
        message: format!("Unsupported value: [{}]: supported values: \"All\"", shown.join(",")),
        field: "dryRun".into(),
    }
}

/// `Unsupported value` of a closed set.
pub fn unsupported(field: &str, value: &str, supported: &[&str]) -> Cause {
    let list: Vec<String> = supported.iter().map(|s| format!("{s:?}")).collect();
    Cause {
        reason: "FieldValueNotSupported".into(),
        message: format!("Unsupported value: {value:?}: supported values: {}", list.join(", ")),
        field: field.into(),
    }
}

/// A 422 about options, when there is anything to say.
pub fn invalid_when(kind: &str, causes: Vec<Cause>) -> Result<(), Status> {
    if causes.is_empty() { Ok(()) } else { Err(Status::invalid("meta.k8s.io", kind, "", causes)) }
}

pub fn get(query: &Query) -> GetOptions {
    GetOptions { resource_version: query.text("resourceVersion").into() }
}

/// Options of list, watch and deletecollection.
pub fn list(server: &Server, query: &Query, watches: bool) -> Result<ListOptions, Status> {
    let limit = number(query, "limit")?.unwrap_or(0);
    let seconds = number(query, "timeoutSeconds")?.filter(|&seconds| seconds > 0);
    let timeout = match seconds {
        Some(seconds) => Some(Duration::from_secs(seconds as u64)),
        None if watches => Some(default_watch_timeout(server)),
        None => None,
    };
    Ok(ListOptions {
        label_selector: query.text("labelSelector").into(),
        field_selector: query.text("fieldSelector").into(),
        limit: usize::try_from(limit).unwrap_or(0),
        continue_token: query.text("continue").into(),
        resource_version: query.text("resourceVersion").into(),
        resource_version_match: query.text("resourceVersionMatch").into(),
        allow_watch_bookmarks: query.flag("allowWatchBookmarks"),
        send_initial_events: query
            .get("sendInitialEvents")
            .map(|_| query.flag("sendInitialEvents")),
        timeout: if watches { timeout } else { None },
    })
}

/// Spread over a span as long as the minimum, so that clients do not all come back at once.
fn default_watch_timeout(server: &Server) -> Duration {
    let least = server.config.min_watch_timeout;
    let spread = server.env.random_u64() % (least.as_millis().max(1) as u64);
    least + Duration::from_millis(spread)
}

fn number(query: &Query, name: &str) -> Result<Option<i64>, Status> {
    let text = query.text(name);
    if text.is_empty() {
        return Ok(None);
    }
    let parsed = text.parse().map_err(|_| {
        Status::bad_request(format!("strconv.ParseInt: parsing {text:?}: invalid syntax"))
    });
    parsed.map(Some)
}

/// Options of delete: those of the body, or when there is none, those of the query.
pub fn delete(query: &Query, body: Option<&Object>) -> Result<(DeleteOptions, bool), Status> {
    let mut causes = Vec::new();
    check_dry_run(query, &mut causes);
    let mut dry_run = query.text("dryRun") == "All";
    let mut options = DeleteOptions {
        grace_period_seconds: number(query, "gracePeriodSeconds")?,
        orphan_dependents: query.get("orphanDependents").map(|_| query.flag("orphanDependents")),
        ..DeleteOptions::default()
    };
    let mut policy = query.text("propagationPolicy").to_owned();
    if let Some(body) = body {
        let values: Vec<&str> =
            body.list_at(&["dryRun"]).iter().filter_map(Value::as_str).collect();
        dry_run |= values.contains(&"All");
        if values.iter().any(|value| *value != "All") {
            causes.push(unsupported_dry_run(&values));
        }
        let text = |path: &[&str]| body.at(path).and_then(Value::as_str).map(str::to_owned);
        options = DeleteOptions {
            grace_period_seconds: body.i64_at(&["gracePeriodSeconds"]),
            precondition_uid: text(&["preconditions", "uid"]),
            precondition_resource_version: text(&["preconditions", "resourceVersion"]),
            orphan_dependents: body.at(&["orphanDependents"]).and_then(Value::as_bool),
            propagation_policy: None,
        };
        policy = text(&["propagationPolicy"]).unwrap_or_default();
    }
    if !policy.is_empty() {
        options.propagation_policy = Propagation::parse(&policy);
        if options.propagation_policy.is_none() {
            causes.push(unsupported(
                "propagationPolicy",
                &policy,
                &["Foreground", "Background", "Orphan", "nil"],
            ));
        }
        if options.orphan_dependents.is_some() {
            causes.push(Cause {
                reason: "FieldValueInvalid".into(),
                message: format!(
                    "Invalid value: {policy:?}: orphanDependents and deletionPropagation cannot be both set"
                ),
                field: "propagationPolicy".into(),
            });
        }
    }
    invalid_when("DeleteOptions", causes)?;
    Ok((options, dry_run))
}

/// A Go duration such as `1m30s`, `500ms` or `0`.
pub fn parse_duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let unit_end = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let unit = match &rest[..unit_end] {
            "ns" => 1e-9,
            "us" | "µs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        total += Duration::try_from_secs_f64(number * unit).ok()?;
        rest = &rest[unit_end..];
    }
    (!text.is_empty()).then_some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_gos() {
        assert_eq!(parse_duration("1m30s"), Some(Duration::from_secs(90)));
        assert_eq!(parse_duration("500ms"), Some(Duration::from_millis(500)));
        assert_eq!(parse_duration("1.5h"), Some(Duration::from_secs(5400)));
        assert_eq!(parse_duration("5"), None);
        assert_eq!(parse_duration(""), None);
    }

    #[test]
    fn wrong_options_are_422() {
        let error = write("CreateOptions", &Query::parse("dryRun=some")).unwrap_err();
        assert_eq!(
            error.message,
            r#"CreateOptions.meta.k8s.io "" is invalid: dryRun: Unsupported value: ["some"]: supported values: "All""#
        );
        let (options, dry_run) = delete(
            &Query::parse("dryRun=All&propagationPolicy=Foreground&gracePeriodSeconds=0"),
            None,
        )
        .unwrap();
        assert!(dry_run);
        assert_eq!(options.grace_period_seconds, Some(0));
        assert_eq!(options.propagation_policy, Some(Propagation::Foreground));
        assert!(delete(&Query::parse("propagationPolicy=Never"), None).is_err());
    }
}
