//! What controllers read of pods, without decoding the rest.

use std::time::Duration;

use client::Cached;
use machinery::Map;
use serde::{Deserialize, Deserializer, de::DeserializeOwned};
use smol_str::SmolStr;
use stdx::Timestamp;

/// A pod as controllers see it. Fields are those of `v1.Pod`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Pod {
    pub metadata: Meta,
    pub spec: PodSpec,
    pub status: PodStatus,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Meta {
    pub name: SmolStr,
    pub namespace: SmolStr,
    pub uid: SmolStr,
    pub resource_version: SmolStr,
    #[serde(deserialize_with = "or_default")]
    pub labels: Map,
    #[serde(deserialize_with = "or_default")]
    pub annotations: Map,
    #[serde(deserialize_with = "or_default")]
    pub finalizers: Vec<SmolStr>,
    #[serde(deserialize_with = "time")]
    pub creation_timestamp: Option<Timestamp>,
    #[serde(deserialize_with = "time")]
    pub deletion_timestamp: Option<Timestamp>,
    pub deletion_grace_period_seconds: Option<i64>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodSpec {
    pub node_name: SmolStr,
    pub hostname: SmolStr,
    pub subdomain: SmolStr,
    pub restart_policy: SmolStr,
    #[serde(deserialize_with = "or_default")]
    pub containers: Vec<Container>,
    #[serde(deserialize_with = "or_default")]
    pub init_containers: Vec<Container>,
    #[serde(deserialize_with = "or_default")]
    pub tolerations: Vec<Toleration>,
    pub affinity: machinery::Value,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Container {
    pub name: SmolStr,
    pub image: SmolStr,
    pub restart_policy: Option<SmolStr>,
    #[serde(deserialize_with = "or_default")]
    pub ports: Vec<ContainerPort>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ContainerPort {
    pub name: SmolStr,
    pub container_port: i64,
    pub protocol: SmolStr,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Toleration {
    pub key: SmolStr,
    pub operator: SmolStr,
    pub value: SmolStr,
    pub effect: SmolStr,
    pub toleration_seconds: Option<i64>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodStatus {
    pub phase: SmolStr,
    pub reason: SmolStr,
    #[serde(rename = "podIP")]
    pub pod_ip: SmolStr,
    #[serde(rename = "podIPs", deserialize_with = "or_default")]
    pub pod_ips: Vec<PodIp>,
    #[serde(deserialize_with = "or_default")]
    pub conditions: Vec<Condition>,
    #[serde(deserialize_with = "or_default")]
    pub container_statuses: Vec<ContainerStatus>,
    #[serde(deserialize_with = "or_default")]
    pub init_container_statuses: Vec<ContainerStatus>,
    #[serde(deserialize_with = "time")]
    pub start_time: Option<Timestamp>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct PodIp {
    pub ip: SmolStr,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Condition {
    pub r#type: SmolStr,
    pub status: SmolStr,
    pub reason: SmolStr,
    pub message: String,
    #[serde(deserialize_with = "time")]
    pub last_transition_time: Option<Timestamp>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ContainerStatus {
    pub name: SmolStr,
    pub ready: bool,
    pub restart_count: i64,
    pub state: ContainerState,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ContainerState {
    pub terminated: Option<Terminated>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Terminated {
    pub exit_code: i64,
    #[serde(deserialize_with = "time")]
    pub finished_at: Option<Timestamp>,
}

fn or_default<'de, D: Deserializer<'de>, T: DeserializeOwned + Default>(
    d: D,
) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(d)?.unwrap_or_default())
}

fn time<'de, D: Deserializer<'de>>(d: D) -> Result<Option<Timestamp>, D::Error> {
    Ok(Option::<SmolStr>::deserialize(d)?.as_deref().and_then(Timestamp::parse))
}

impl Pod {
    /// `None` when the object is not a readable pod, which the server does not send.
    pub fn read(cached: &Cached) -> Option<Self> {
        cached.typed().ok()
    }

    pub fn name(&self) -> &str {
        &self.metadata.name
    }

    pub fn is_deleting(&self) -> bool {
        self.metadata.deletion_timestamp.is_some()
    }

    /// `Succeeded` or `Failed`: its containers will not run again.
    pub fn is_finished(&self) -> bool {
        matches!(self.status.phase.as_str(), "Succeeded" | "Failed")
    }

    /// Neither finished nor being deleted: it counts as a replica.
    pub fn is_active(&self) -> bool {
        !self.is_finished() && !self.is_deleting()
    }

    pub fn condition(&self, kind: &str) -> Option<&Condition> {
        self.status.conditions.iter().find(|condition| condition.r#type == kind)
    }

    pub fn is_ready(&self) -> bool {
        self.condition("Ready").is_some_and(|ready| ready.status == "True")
    }

    /// Ready for at least `min_ready_seconds`.
    pub fn is_available(&self, min_ready_seconds: i64, now: Timestamp) -> bool {
        self.available_in(min_ready_seconds, now) == Some(Duration::ZERO)
    }

    /// How long until it is available if it stays ready. `None` when it is not ready.
    pub fn available_in(&self, min_ready_seconds: i64, now: Timestamp) -> Option<Duration> {
        let ready = self.condition("Ready").filter(|ready| ready.status == "True")?;
        if min_ready_seconds <= 0 {
            return Some(Duration::ZERO);
        }
        let since = ready.last_transition_time?;
        let at = since + Duration::from_secs(min_ready_seconds as u64);
        Some(at.since(now))
    }

    pub fn restarts(&self) -> i64 {
        self.status.container_statuses.iter().map(|status| status.restart_count).sum()
    }
}
