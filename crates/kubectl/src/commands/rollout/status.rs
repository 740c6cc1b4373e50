//! `kubectl rollout status`

use std::time::Duration;

use machinery::{Object, Value};

use crate::{
    Error, Result, follow,
    output::emit,
    select::{self, Item},
    session::{Session, parse_duration},
};

/// Show the progress of a rollout until it is done
#[derive(clap::Args)]
#[command(after_help = "Example: kubectl rollout status deployment/web --timeout=60s")]
pub struct Status {
    /// TYPE/NAME or TYPE NAME
    arguments: Vec<String>,
    /// Go on until the rollout is done
    #[arg(short, long, default_value_t = true, num_args = 0..=1, require_equals = true, default_missing_value = "true", action = clap::ArgAction::Set)]
    watch: bool,
    /// How long to go on; zero has no end
    #[arg(long, default_value = "0s", value_parser = parse_duration)]
    timeout: Duration,
    /// The revision that must be rolled out; zero for any
    #[arg(long, default_value_t = 0)]
    revision: i64,
}

/// What a state of the object means.
#[derive(Debug, PartialEq)]
enum Progress {
    Waiting(String),
    Done(String),
    Failed(String),
}

impl Status {
    pub async fn run(self, session: &Session) -> Result<()> {
        let item = select::one(session, &self.arguments, "").await?;
        let judge = judge_of(&item)?;
        let limit = (!self.timeout.is_zero()).then_some(self.timeout);
        let (mut seen, mut last) = (false, String::new());
        let finished = follow::until(session, &item, limit, |object| {
            let Some(object) = object else {
                return Err(if seen {
                    Error::other("object has been deleted")
                } else {
                    Error::Client(client::Error::Api(api::Status::not_found(
                        item.info.group(),
                        &item.info.resource.gvr.resource,
                        &item.name,
                    )))
                });
            };
            seen = true;
            if self.revision > 0 {
                check_revision(object, self.revision)?;
            }
            let (text, done) = match judge(object) {
                Progress::Failed(why) => return Err(Error::Other(why)),
                Progress::Waiting(text) => (text, !self.watch),
                Progress::Done(text) => (text, true),
            };
            // Objects change in ways that do not show; each line appears once.
            if text != last {
                emit(&text)?;
                emit("\n")?;
                last = text;
            }
            Ok(done.then_some(()))
        });
        finished.await?.ok_or_else(|| Error::other("timed out waiting for the condition"))
    }
}

fn judge_of(item: &Item) -> Result<fn(&Object) -> Progress> {
    match item.info.kind.as_str() {
        "Deployment" => Ok(deployment),
        "DaemonSet" => Ok(daemon_set),
        "StatefulSet" => Ok(stateful_set),
        kind => Err(Error::other(format!("no status viewer has been implemented for {kind}"))),
    }
}

fn check_revision(object: &Object, wanted: i64) -> Result<()> {
    let annotation = object.str_at(&["metadata", "annotations", "deployment.kubernetes.io/revision"]);
    match annotation.parse::<i64>() {
        Ok(found) if found == wanted => Ok(()),
        Ok(found) => Err(Error::other(format!(
            "desired revision ({wanted}) is different from the running revision ({found})"
        ))),
        Err(_) => Err(Error::other("the running revision is not known")),
    }
}

fn number(object: &Object, part: &str, field: &str) -> i64 {
    object.i64_at(&[part, field]).unwrap_or(0)
}

fn is_observed(object: &Object) -> bool {
    object.generation() <= number(object, "status", "observedGeneration")
}

fn deployment(object: &Object) -> Progress {
    if !is_observed(object) {
        return Progress::Waiting("Waiting for deployment spec update to be observed...".into());
    }
    let name = object.name();
    let late = |condition: &Value| {
        let text = |field| condition.get(field).and_then(Value::as_str);
        text("type") == Some("Progressing") && text("reason") == Some("ProgressDeadlineExceeded")
    };
    if object.list_at(&["status", "conditions"]).iter().any(late) {
        return Progress::Failed(format!("deployment {name:?} exceeded its progress deadline"));
    }
    let status = |field| number(object, "status", field);
    let wanted = object.i64_at(&["spec", "replicas"]).unwrap_or(1);
    let (updated, replicas, available) =
        (status("updatedReplicas"), status("replicas"), status("availableReplicas"));
    let waiting = format!("Waiting for deployment {name:?} rollout to finish:");
    if updated < wanted {
        Progress::Waiting(format!("{waiting} {updated} out of {wanted} new replicas have been updated..."))
    } else if replicas > updated {
        Progress::Waiting(format!("{waiting} {} old replicas are pending termination...", replicas - updated))
    } else if available < updated {
        Progress::Waiting(format!("{waiting} {available} of {updated} updated replicas are available..."))
    } else {
        Progress::Done(format!("deployment {name:?} successfully rolled out"))
    }
}

/// `OnDelete` has no rollout that could be followed.
fn rolls(object: &Object) -> Result<(), Progress> {
    match object.str_at(&["spec", "updateStrategy", "type"]) {
        "" | "RollingUpdate" => Ok(()),
        _ => Err(Progress::Failed("rollout status is only available for RollingUpdate strategy type".into())),
    }
}

fn daemon_set(object: &Object) -> Progress {
    if let Err(failed) = rolls(object) {
        return failed;
    }
    if !is_observed(object) {
        return Progress::Waiting("Waiting for daemon set spec update to be observed...".into());
    }
    let name = object.name();
    let status = |field| number(object, "status", field);
    let (desired, updated, available) =
        (status("desiredNumberScheduled"), status("updatedNumberScheduled"), status("numberAvailable"));
    let waiting = format!("Waiting for daemon set {name:?} rollout to finish:");
    if updated < desired {
        Progress::Waiting(format!("{waiting} {updated} out of {desired} new pods have been updated..."))
    } else if available < desired {
        Progress::Waiting(format!("{waiting} {available} of {desired} updated pods are available..."))
    } else {
        Progress::Done(format!("daemon set {name:?} successfully rolled out"))
    }
}

fn stateful_set(object: &Object) -> Progress {
    if let Err(failed) = rolls(object) {
        return failed;
    }
    if number(object, "status", "observedGeneration") == 0 || !is_observed(object) {
        return Progress::Waiting("Waiting for statefulset spec update to be observed...".into());
    }
    let status = |field| number(object, "status", field);
    let wanted = object.i64_at(&["spec", "replicas"]).unwrap_or(1);
    if status("readyReplicas") < wanted {
        let missing = wanted - status("readyReplicas");
        return Progress::Waiting(format!("Waiting for {missing} pods to be ready..."));
    }
    let updated = status("updatedReplicas");
    let partition = object.i64_at(&["spec", "updateStrategy", "rollingUpdate", "partition"]);
    if let Some(partition) = partition.filter(|&p| p > 0) {
        return match updated < wanted - partition {
            true => Progress::Waiting(format!(
                "Waiting for partitioned roll out to finish: {updated} out of {} new pods have been updated...",
                wanted - partition
            )),
            false => Progress::Done(format!("partitioned roll out complete: {updated} new pods have been updated...")),
        };
    }
    let revision = |field| object.str_at(&["status", field]).to_owned();
    if revision("updateRevision") != revision("currentRevision") {
        return Progress::Waiting(format!(
            "waiting for statefulset rolling update to complete {updated} pods at revision {}...",
            revision("updateRevision")
        ));
    }
    Progress::Done(format!(
        "statefulset rolling update complete {} pods at revision {}...",
        status("currentReplicas"),
        revision("currentRevision")
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use machinery::value;

    fn object(value: Value) -> Object {
        Object::from_value(value).unwrap()
    }

    #[test]
    fn a_deployment_goes_through_its_stages() {
        let state = |observed: i64, updated: i64, replicas: i64, available: i64| {
            deployment(&object(value!({
                "metadata": {"name": "web", "generation": 2}, "spec": {"replicas": 3},
                "status": {"observedGeneration": observed, "updatedReplicas": updated, "replicas": replicas, "availableReplicas": available},
            })))
        };
        let waiting = |text: &str| Progress::Waiting(text.into());
        assert_eq!(state(1, 3, 3, 3), waiting("Waiting for deployment spec update to be observed..."));
        assert_eq!(state(2, 1, 3, 3), waiting("Waiting for deployment \"web\" rollout to finish: 1 out of 3 new replicas have been updated..."));
        assert_eq!(state(2, 3, 4, 3), waiting("Waiting for deployment \"web\" rollout to finish: 1 old replicas are pending termination..."));
        assert_eq!(state(2, 3, 3, 2), waiting("Waiting for deployment \"web\" rollout to finish: 2 of 3 updated replicas are available..."));
        assert_eq!(state(2, 3, 3, 3), Progress::Done("deployment \"web\" successfully rolled out".into()));
    }

    #[test]
    fn a_missed_deadline_is_a_failure() {
        let late = object(value!({
            "metadata": {"name": "web"},
            "status": {"conditions": [{"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded"}]},
        }));
        assert_eq!(deployment(&late), Progress::Failed("deployment \"web\" exceeded its progress deadline".into()));
    }

    #[test]
    fn sets_say_what_they_wait_for() {
        let daemon = object(value!({"metadata": {"name": "d"}, "status": {"desiredNumberScheduled": 2, "updatedNumberScheduled": 2, "numberAvailable": 1}}));
        assert_eq!(
            daemon_set(&daemon),
            Progress::Waiting("Waiting for daemon set \"d\" rollout to finish: 1 of 2 updated pods are available...".into())
        );
        let stateful = object(value!({"spec": {"replicas": 2}, "status": {"observedGeneration": 1, "readyReplicas": 2, "currentReplicas": 2, "currentRevision": "a", "updateRevision": "a"}}));
        assert_eq!(
            stateful_set(&stateful),
            Progress::Done("statefulset rolling update complete 2 pods at revision a...".into())
        );
        let on_delete = object(value!({"spec": {"updateStrategy": {"type": "OnDelete"}}}));
        assert!(matches!(stateful_set(&on_delete), Progress::Failed(_)));
    }
}
