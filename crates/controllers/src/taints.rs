//! Taints of nodes and tolerations of pods.

use machinery::{Object, Value, value};
use stdx::Timestamp;

use crate::views::Toleration;

pub const NOT_READY: &str = "node.kubernetes.io/not-ready";
pub const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
pub const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";
pub const MEMORY_PRESSURE: &str = "node.kubernetes.io/memory-pressure";
pub const DISK_PRESSURE: &str = "node.kubernetes.io/disk-pressure";
pub const PID_PRESSURE: &str = "node.kubernetes.io/pid-pressure";
pub const NETWORK_UNAVAILABLE: &str = "node.kubernetes.io/network-unavailable";
pub const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";

/// `v1.Taint`
#[derive(Clone, Debug, PartialEq)]
pub struct Taint {
    pub key: String,
    pub value: String,
    pub effect: String,
    pub time_added: Option<Timestamp>,
}

impl Taint {
    pub fn new(key: &str, effect: &str) -> Self {
        Self { key: key.into(), value: String::new(), effect: effect.into(), time_added: None }
    }

    fn read(value: &Value) -> Self {
        let text = |field| value.get(field).and_then(Value::as_str).unwrap_or_default();
        Self {
            key: text("key").into(),
            value: text("value").into(),
            effect: text("effect").into(),
            time_added: Timestamp::parse(text("timeAdded")),
        }
    }

    pub fn to_value(&self) -> Value {
        let mut taint = value!({"key": self.key, "effect": self.effect});
        if let Some(map) = taint.as_map_mut() {
            if !self.value.is_empty() {
                map.insert("value", self.value.as_str());
            }
            if let Some(time) = self.time_added {
                map.insert("timeAdded", time.rfc3339());
            }
        }
        taint
    }

    pub fn is(&self, key: &str, effect: &str) -> bool {
        self.key == key && self.effect == effect
    }
}

pub fn of_node(node: &Object) -> Vec<Taint> {
    node.list_at(&["spec", "taints"]).iter().map(Taint::read).collect()
}

impl Toleration {
    /// The rules of `v1.Toleration`: an empty key tolerates every key, an empty effect every
    /// effect, and the operator is `Equal` unless it says `Exists`, `Lt` or `Gt`.
    pub fn tolerates(&self, taint: &Taint) -> bool {
        if !self.effect.is_empty() && self.effect != taint.effect.as_str() {
            return false;
        }
        if !self.key.is_empty() && self.key != taint.key.as_str() {
            return false;
        }
        let numbers = || Some((taint.value.parse::<i64>().ok()?, self.value.parse::<i64>().ok()?));
        match self.operator.as_str() {
            "" | "Equal" => !self.key.is_empty() && self.value == taint.value.as_str(),
            "Exists" => true,
            "Lt" => numbers().is_some_and(|(taint, own)| taint < own),
            "Gt" => numbers().is_some_and(|(taint, own)| taint > own),
            _ => false,
        }
    }
}
