//! `spec.podFailurePolicy`: what a pod's failure means, by exit code or condition (KEP-3329).

use machinery::Value;

use super::{Job, outcome::Outcome};
use crate::views::{ContainerStatus, Pod};

/// What the first matching rule says.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// Counts towards the back-off limit, as without a policy.
    Count,
    /// Does not count; another pod takes its place.
    Ignore,
    FailJob(Outcome),
}

impl Job {
    pub fn has_failure_policy(&self) -> bool {
        self.object.at(&["spec", "podFailurePolicy"]).is_some()
    }

    pub fn judge_failure(&self, pod: &Pod) -> Verdict {
        let rules = self.object.list_at(&["spec", "podFailurePolicy", "rules"]);
        for (index, rule) in rules.iter().enumerate() {
            let Some(why) = by_exit_code(rule, pod).or_else(|| by_condition(rule, pod)) else { continue };
            let action = rule.get("action").and_then(Value::as_str).unwrap_or_default();
            return match action {
                "Ignore" => Verdict::Ignore,
                "FailJob" => Verdict::FailJob(Outcome {
                    succeeded: false,
                    reason: "PodFailurePolicy".into(),
                    message: format!("{why} matching {action} rule at index {index}"),
                }),
                _ => Verdict::Count,
            };
        }
        Verdict::Count
    }
}

fn by_exit_code(rule: &Value, pod: &Pod) -> Option<String> {
    let wanted = rule.get("onExitCodes")?;
    let only = wanted.get("containerName").and_then(Value::as_str);
    let values = wanted.get("values").and_then(Value::as_list).unwrap_or(&[]);
    let negated = wanted.get("operator").and_then(Value::as_str) == Some("NotIn");
    let failed = |status: &&ContainerStatus| {
        let code = status.state.terminated.as_ref().map_or(0, |terminated| terminated.exit_code);
        let listed = values.iter().any(|value| value.as_i64() == Some(code));
        code != 0 && only.is_none_or(|name| status.name == name) && listed != negated
    };
    let all = pod.status.init_container_statuses.iter().chain(&pod.status.container_statuses);
    let status = all.into_iter().find(failed)?;
    let code = status.state.terminated.as_ref().map_or(0, |terminated| terminated.exit_code);
    let place = format!("{}/{}", pod.metadata.namespace, pod.metadata.name);
    Some(format!("Container {} for pod {place} failed with exit code {code}", status.name))
}

fn by_condition(rule: &Value, pod: &Pod) -> Option<String> {
    let patterns = rule.get("onPodConditions")?.as_list()?;
    let text = |pattern: &Value, field| pattern.get(field).and_then(Value::as_str).map(str::to_owned);
    let matches = |pattern: &Value| {
        let kind = text(pattern, "type")?;
        let status = text(pattern, "status").unwrap_or_else(|| "True".into());
        pod.condition(&kind).filter(|condition| condition.status == status.as_str())
    };
    let condition = patterns.iter().find_map(matches)?;
    let place = format!("{}/{}", pod.metadata.namespace, pod.metadata.name);
    Some(format!("Pod {place} has condition {}", condition.r#type))
}
