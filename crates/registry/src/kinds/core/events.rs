//! Events: one storage, two shapes (`v1` and `events.k8s.io/v1`).

use machinery::{Map, Object, Value};

use crate::{
    facts::{Facts, PLAIN, field_text},
    table::{Column, NAME, TableContext, age_of},
};

static COLUMNS: [Column; 10] = [
    Column::text("Last Seen", |event, cx| last_seen(event, cx).into()),
    Column::text("Type", |event, _| event.str_at(&["type"]).into()),
    Column::text("Reason", |event, _| event.str_at(&["reason"]).into()),
    Column::text("Object", |event, _| {
        let involved = |field| event.str_at(&["involvedObject", field]).to_owned();
        let kind = involved("kind").to_lowercase();
        match involved("name").as_str() {
            "" => kind.into(),
            name => format!("{kind}/{name}").into(),
        }
    }),
    Column::text("Subobject", |event, _| event.str_at(&["involvedObject", "fieldPath"]).into())
        .wide(),
    Column::text("Source", |event, _| source(event).into()).wide(),
    Column::text("Message", |event, _| event.str_at(&["message"]).trim().into()),
    Column::text("First Seen", |event, cx| first_seen(event, cx).into()).wide(),
    Column::text("Count", |event, _| {
        let series = event.i64_at(&["series", "count"]);
        series.or_else(|| event.i64_at(&["count"]).filter(|&count| count != 0)).unwrap_or(1).into()
    })
    .wide(),
    Column { priority: 1, ..NAME },
];

fn first_seen(event: &Object, cx: &TableContext) -> String {
    match event.str_at(&["firstTimestamp"]) {
        "" => age_of(event.str_at(&["eventTime"]), cx),
        first => age_of(first, cx),
    }
}

fn last_seen(event: &Object, cx: &TableContext) -> String {
    match (event.str_at(&["series", "lastObservedTime"]), event.str_at(&["lastTimestamp"])) {
        ("", "") => first_seen(event, cx),
        ("", last) => age_of(last, cx),
        (observed, _) => age_of(observed, cx),
    }
}

fn source(event: &Object) -> String {
    let either = |own: &[&str], new: &str| match event.str_at(own) {
        "" => event.str_at(&[new]).to_owned(),
        text => text.to_owned(),
    };
    let component = either(&["source", "component"], "reportingComponent");
    match either(&["source", "host"], "reportingInstance").as_str() {
        "" => component,
        host => format!("{component}, {host}"),
    }
}

pub(crate) const FACTS: Facts = Facts {
    default: |event| {
        let root = event.root_mut();
        for (field, empty) in [("source", true), ("involvedObject", true)] {
            if empty && !root.contains_key(field) {
                root.insert(field, Map::new());
            }
        }
        for field in ["eventTime", "firstTimestamp", "lastTimestamp"] {
            if !root.contains_key(field) {
                root.insert(field, Value::Null);
            }
        }
        for field in ["reportingComponent", "reportingInstance"] {
            if !root.contains_key(field) {
                root.insert(field, "");
            }
        }
    },
    validate: |event, errors| {
        let involved = event.str_at(&["involvedObject", "namespace"]);
        let own = event.namespace();
        let fits = if involved.is_empty() {
            matches!(own, "default" | "kube-system")
        } else {
            involved == own
        };
        if !fits {
            let why = "does not match event.namespace";
            errors.invalid(&"involvedObject.namespace".into(), involved, why);
        }
        if event.at(&["eventTime"]).is_some_and(|time| !time.is_null()) {
            if event.str_at(&["reportingComponent"]).is_empty() {
                errors.required(&"reportingController".into(), "");
            }
            if event.str_at(&["reportingInstance"]).is_empty() {
                errors.required(&"reportingInstance".into(), "");
            }
            if event.str_at(&["action"]).is_empty() {
                errors.required(&"action".into(), "");
            }
            if event.str_at(&["reason"]).is_empty() {
                errors.required(&"reason".into(), "");
            }
        }
    },
    create_on_update: true,
    propagation: None,
    fields: &[
        "involvedObject.kind",
        "involvedObject.namespace",
        "involvedObject.name",
        "involvedObject.uid",
        "involvedObject.apiVersion",
        "involvedObject.resourceVersion",
        "involvedObject.fieldPath",
        "reason",
        "reportingComponent",
        "source",
        "type",
    ],
    field_value: Some(|event, field| match field {
        "source" => match event.str_at(&["source", "component"]) {
            "" => event.str_at(&["reportingComponent"]).into(),
            component => component.into(),
        },
        field => field_text(event, field),
    }),
    ttl: |options| Some(options.event_ttl_seconds),
    columns: &COLUMNS,
    to_version: |event, version| {
        if version == "events.k8s.io/v1" {
            rename(event, &TO_NEW);
        }
    },
    from_version: |event, version| {
        if version == "events.k8s.io/v1" {
            rename(event, &TO_OLD);
        }
    },
    ..PLAIN
};

/// Names of the stored shape and of `events.k8s.io/v1`.
const FIELDS: [(&str, &str); 7] = [
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
    ("reportingComponent", "reportingController"),
];
const TO_NEW: [(&str, &str); 7] = FIELDS;
const TO_OLD: [(&str, &str); 7] = {
    let mut swapped = FIELDS;
    let mut at = 0;
    while at < swapped.len() {
        swapped[at] = (FIELDS[at].1, FIELDS[at].0);
        at += 1;
    }
    swapped
};

fn rename(event: &mut Object, names: &[(&str, &str)]) {
    for (from, to) in names {
        if let Some(value) = event.root_mut().remove(from) {
            event.root_mut().insert(*to, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use machinery::value;

    #[test]
    fn both_shapes_say_the_same() {
        let mut event = Object::from_value(
            value!({"involvedObject": {"name": "a"}, "message": "m", "count": 2}),
        )
        .unwrap();
        let stored = event.clone();
        (FACTS.to_version)(&mut event, "events.k8s.io/v1");
        assert_eq!((event.str_at(&["note"]), event.str_at(&["regarding", "name"])), ("m", "a"));
        (FACTS.from_version)(&mut event, "events.k8s.io/v1");
        assert_eq!(event, stored);
    }
}
