//! Jobs and CronJobs.

use machinery::{Object, Value, value};

use super::{
    apps::{default_template, validate_label_selector, validate_template},
    cells::{
        CONTAINERS, IMAGES, JOB_CONTAINERS, JOB_IMAGES, SELECTOR, condition_true, selector, text_or,
    },
    pod_spec,
};
use crate::{
    edit::{copy_field, inside, or, spec},
    errors::{Errors, Path},
    facts::{Facts, PLAIN},
    request::Propagation,
    selector::label_selector,
    table::{AGE, Column, NAME, TableContext, age_of, human_duration},
};
use stdx::Timestamp;

const CONTROLLER_UID: &str = "batch.kubernetes.io/controller-uid";
const JOB_NAME: &str = "batch.kubernetes.io/job-name";

static JOB_COLUMNS: [Column; 8] = [
    NAME,
    Column::text("Status", |job, _| job_status(job).into()),
    Column::text("Completions", |job, _| completions(job).into()),
    Column::text("Duration", |job, cx| duration(job, cx).into()),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];

fn job_status(job: &Object) -> &'static str {
    let is = |kind: &str| condition_true(job, kind);
    match () {
        () if is("Complete") => "Complete",
        () if is("Failed") => "Failed",
        () if job.is_deleting() => "Terminating",
        () if is("Suspended") => "Suspended",
        () if is("FailureTarget") => "FailureTarget",
        () if is("SuccessCriteriaMet") => "SuccessCriteriaMet",
        () => "Running",
    }
}

fn completions(job: &Object) -> String {
    let done = job.i64_at(&["status", "succeeded"]).unwrap_or(0);
    let parallelism = job.i64_at(&["spec", "parallelism"]).unwrap_or(0);
    match job.i64_at(&["spec", "completions"]) {
        Some(wanted) => format!("{done}/{wanted}"),
        None if parallelism > 1 => format!("{done}/1 of {parallelism}"),
        None => format!("{done}/1"),
    }
}

fn duration(job: &Object, cx: &TableContext) -> String {
    let time = |field| Timestamp::parse(job.str_at(&["status", field]));
    match (time("startTime"), time("completionTime")) {
        (None, _) => String::new(),
        (Some(start), end) => human_duration(end.unwrap_or(cx.now).since(start).as_secs() as i64),
    }
}

pub(crate) const JOBS: Facts = Facts {
    default: |job| {
        let labels = job
            .map_at(&["spec", "template", "metadata", "labels"])
            .filter(|l| !l.is_empty())
            .cloned();
        if let (Some(labels), true) = (labels, job.labels().is_none_or(machinery::Map::is_empty)) {
            job.metadata_mut().insert("labels", labels);
        }
        spec(job, |spec| {
            let set =
                |field: &str, spec: &machinery::Map| spec.get(field).is_some_and(|v| !v.is_null());
            match (set("completions", spec), set("parallelism", spec)) {
                (false, false) => {
                    spec.insert("completions", 1);
                    spec.insert("parallelism", 1);
                }
                (true, false) => {
                    spec.insert("parallelism", 1);
                }
                _ => {}
            }
            let limit = if set("backoffLimitPerIndex", spec) { i64::from(i32::MAX) } else { 6 };
            or(spec, "backoffLimit", limit);
            or(spec, "completionMode", "NonIndexed");
            or(spec, "suspend", false);
            let replacement =
                if set("podFailurePolicy", spec) { "Failed" } else { "TerminatingOrFailed" };
            or(spec, "podReplacementPolicy", replacement);
            or(spec, "manualSelector", false);
            default_template(spec);
        });
    },
    prepare_create: |_, job| own_selector(job),
    prepare_update: |subresource, new, old| {
        if subresource.is_empty() {
            // The selector was made from the uid; who leaves it out means to keep it.
            if new.at(&["spec", "selector"]).is_none() {
                copy_field(new, old, &["spec", "selector"]);
            }
        }
    },
    validate: |job, errors| {
        let path = Path::new("spec");
        for field in [
            "parallelism",
            "completions",
            "activeDeadlineSeconds",
            "backoffLimit",
            "ttlSecondsAfterFinished",
        ] {
            errors.non_negative(&path.child(field), job.i64_at(&["spec", field]));
        }
        match job.map_at(&["spec", "selector"]) {
            None => errors.required(&path.child("selector"), ""),
            Some(selector) => validate_label_selector(selector, &path.child("selector"), errors),
        }
        let labels = job.map_at(&["spec", "template", "metadata", "labels"]);
        let label = |key: &str| labels?.get(key)?.as_str();
        if !label_selector(job.at(&["spec", "selector"])).matches(label) {
            let value = labels.cloned().map_or(Value::Null, Value::Map);
            let path = path.child("template").child("metadata").child("labels");
            errors.invalid(&path, value, "`selector` does not match template `labels`");
        }
        let mode = job.str_at(&["spec", "completionMode"]);
        errors.one_of(&path.child("completionMode"), mode, &["NonIndexed", "Indexed"]);
        if mode == "Indexed" && job.i64_at(&["spec", "completions"]).is_none() {
            let why = "when completion mode is Indexed";
            errors.required(&path.child("completions"), why);
        }
        restart_policy(job, errors);
    },
    validate_update: |subresource, new, old, errors| {
        if !subresource.is_empty() {
            return;
        }
        let path = Path::new("spec");
        for field in ["selector", "completionMode", "podFailurePolicy", "backoffLimitPerIndex"] {
            errors.immutable(
                &path.child(field),
                new.at(&["spec", field]),
                old.at(&["spec", field]),
            );
        }
        let indexed = new.str_at(&["spec", "completionMode"]) == "Indexed";
        if !indexed {
            let field = "completions";
            errors.immutable(
                &path.child(field),
                new.at(&["spec", field]),
                old.at(&["spec", field]),
            );
        }
        if !old.bool_at(&["spec", "suspend"]) {
            let field = "template";
            errors.immutable(
                &path.child(field),
                new.at(&["spec", field]),
                old.at(&["spec", field]),
            );
        }
    },
    generation: true,
    propagation: Some(Propagation::Orphan),
    fields: &["status.successful"],
    field_value: Some(|o, _| o.i64_at(&["status", "succeeded"]).unwrap_or(0).to_string().into()),
    unsupported_field: Some(|field| format!("field label {field:?} not supported for batchv1.Job")),
    columns: &JOB_COLUMNS,
    ..PLAIN
};

/// A Job selects its pods by its own uid, unless told to use the selector given.
fn own_selector(job: &mut Object) {
    if job.bool_at(&["spec", "manualSelector"]) {
        return;
    }
    let (uid, name) = (job.uid().to_owned(), job.name().to_owned());
    let labels =
        [(CONTROLLER_UID, &uid), ("controller-uid", &uid), (JOB_NAME, &name), ("job-name", &name)];
    for (label, value) in labels {
        job.set_at(&["spec", "template", "metadata", "labels", label], value.as_str());
    }
    if job.at(&["spec", "selector"]).is_none() {
        job.set_at(&["spec", "selector"], value!({"matchLabels": {CONTROLLER_UID: uid}}));
    }
}

fn restart_policy(job: &Object, errors: &mut Errors) {
    let path = Path::new("spec").child("template").child("spec");
    no_always(job.str_at(&["spec", "template", "spec", "restartPolicy"]), &path, errors);
    validate_template(job, "job", &["OnFailure", "Never", "Always"], errors);
}

/// A pod that always restarts never completes.
fn no_always(policy: &str, path: &Path, errors: &mut Errors) {
    if policy == "Always" {
        errors.required(&path.child("restartPolicy"), "valid values: \"OnFailure\", \"Never\"");
    }
}

static CRON_COLUMNS: [Column; 10] = [
    NAME,
    Column::text("Schedule", |o, _| o.str_at(&["spec", "schedule"]).into()),
    Column::text("Timezone", |o, _| text_or(o, &["spec", "timeZone"], "<none>")),
    Column {
        kind: "boolean",
        ..Column::text("Suspend", |o, _| {
            if o.bool_at(&["spec", "suspend"]) { "True".into() } else { "False".into() }
        })
    },
    Column::integer("Active", |o, _| (o.list_at(&["status", "active"]).len() as i64).into()),
    Column::text("Last Schedule", |o, cx| match o.str_at(&["status", "lastScheduleTime"]) {
        "" => "<none>".into(),
        time => age_of(time, cx).into(),
    }),
    AGE,
    JOB_CONTAINERS,
    JOB_IMAGES,
    Column::text("Selector", |o, _| selector(o, &["spec", "jobTemplate", "spec", "selector"]))
        .wide(),
];

pub(crate) const CRON_JOBS: Facts = Facts {
    default: |cron| {
        spec(cron, |spec| {
            or(spec, "concurrencyPolicy", "Allow");
            or(spec, "suspend", false);
            or(spec, "successfulJobsHistoryLimit", 3);
            or(spec, "failedJobsHistoryLimit", 1);
            inside(spec, "jobTemplate", |template| {
                inside(template, "spec", |job| {
                    inside(job, "template", |pod| pod_spec::default(pod.map_entry("spec")));
                });
            });
        });
    },
    validate: |cron, errors| {
        let path = Path::new("spec");
        match cron.str_at(&["spec", "schedule"]) {
            "" => errors.required(&path.child("schedule"), ""),
            schedule if !is_schedule(schedule) => {
                let why = format!(
                    "expected exactly 5 fields, found {}: [{schedule}]",
                    schedule.split_whitespace().count()
                );
                errors.invalid(&path.child("schedule"), schedule, &why);
            }
            schedule if schedule.contains("TZ") => {
                let why = "cannot use TZ or CRON_TZ in schedule, use timeZone field instead";
                errors.invalid(&path.child("schedule"), schedule, why);
            }
            _ => {}
        }
        let policy = cron.str_at(&["spec", "concurrencyPolicy"]);
        errors.one_of(&path.child("concurrencyPolicy"), policy, &["Allow", "Forbid", "Replace"]);
        for field in
            ["startingDeadlineSeconds", "successfulJobsHistoryLimit", "failedJobsHistoryLimit"]
        {
            errors.non_negative(&path.child(field), cron.i64_at(&["spec", field]));
        }
        if cron.name().len() > 52 {
            errors.invalid(
                &"metadata.name".into(),
                cron.name(),
                "must be no more than 52 characters",
            );
        }
        let job =
            cron.at(&["spec", "jobTemplate", "spec", "template", "spec"]).and_then(Value::as_map);
        let path = path.child("jobTemplate").child("spec").child("template").child("spec");
        let job = job.cloned().unwrap_or_default();
        super::pod_validation::validate(&job, &path, errors);
        no_always(job.str_at(&["restartPolicy"]).unwrap_or_default(), &path, errors);
    },
    generation: true,
    propagation: Some(Propagation::Background),
    columns: &CRON_COLUMNS,
    ..PLAIN
};

fn is_schedule(text: &str) -> bool {
    let text = text.trim();
    text.starts_with('@') || text.contains("TZ=") || text.split_whitespace().count() == 5
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_selects_by_its_uid() {
        let mut job = Object::new("batch/v1", "Job", "ns", "j");
        job.set_uid("u");
        own_selector(&mut job);
        assert_eq!(job.str_at(&["spec", "selector", "matchLabels", CONTROLLER_UID]), "u");
        assert_eq!(job.str_at(&["spec", "template", "metadata", "labels", "job-name"]), "j");
    }
}
