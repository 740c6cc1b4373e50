//! `metadata.managedFields` in memory.

use std::collections::BTreeMap;

use stdx::Timestamp;

use super::set::FieldSet;
use crate::{Map, Value};

/// More managers by update than this are folded into one.
const MAX_UPDATE_MANAGERS: usize = 10;
const OLD_CHANGES: &str = "ancient-changes";

/// Who owns fields. An applier is the same whatever version it applied in.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ManagerId {
    pub manager: String,
    pub operation: Operation,
    /// Empty for appliers.
    pub api_version: String,
    pub subresource: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    Apply,
    Update,
}

/// What one manager owns.
#[derive(Clone, Debug, PartialEq)]
pub struct Owned {
    pub set: FieldSet,
    pub api_version: String,
    pub time: Option<Timestamp>,
}

/// All managers of an object.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Managers(pub BTreeMap<ManagerId, Owned>);

impl ManagerId {
    pub fn new(manager: &str, operation: Operation, api_version: &str, subresource: &str) -> Self {
        let manager = if manager.is_empty() { "unknown" } else { manager };
        let api_version = if operation == Operation::Apply { "" } else { api_version };
        Self {
            manager: manager.into(),
            operation,
            api_version: api_version.into(),
            subresource: subresource.into(),
        }
    }

    /// As conflicts name it.
    pub fn describe(&self) -> String {
        let mut text = format!("{:?}", self.manager);
        if !self.subresource.is_empty() {
            text += &format!(" with subresource {:?}", self.subresource);
        }
        if self.operation == Operation::Update {
            text += &format!(" using {}", self.api_version);
        }
        text
    }
}

impl Managers {
    /// `None` when an entry is malformed.
    pub fn decode(entries: &[Value]) -> Option<Self> {
        let mut managers = BTreeMap::new();
        for entry in entries {
            let text = |key| entry.get(key).and_then(Value::as_str).unwrap_or_default();
            let operation = match text("operation") {
                "Apply" => Operation::Apply,
                "Update" => Operation::Update,
                _ => return None,
            };
            let id = ManagerId {
                manager: text("manager").into(),
                ..ManagerId::new("x", operation, text("apiVersion"), text("subresource"))
            };
            let set = match entry.get("fieldsV1") {
                Some(Value::Map(fields)) => FieldSet::decode(fields)?,
                _ => FieldSet::new(),
            };
            let api_version = text("apiVersion").to_owned();
            let owned = Owned { set, api_version, time: Timestamp::parse(text("time")) };
            managers.insert(id, owned);
        }
        Some(Self(managers))
    }

    /// In upstream's order: appliers first, then by time.
    pub fn encode(&self) -> Vec<Value> {
        let mut list: Vec<(&ManagerId, &Owned)> = self.0.iter().collect();
        list.sort_by(|(a, x), (b, y)| {
            let seconds = |owned: &Owned| owned.time.map_or(0, Timestamp::as_secs);
            let key = |id: &'_ ManagerId, owned: &Owned| {
                (
                    id.operation,
                    seconds(owned),
                    id.manager.clone(),
                    owned.api_version.clone(),
                    id.subresource.clone(),
                )
            };
            key(a, x).cmp(&key(b, y))
        });
        list.into_iter().map(|(id, owned)| entry(id, owned)).collect()
    }

    /// Folds the oldest managers by update into one when there are too many.
    pub fn cap(&mut self) {
        let mut updates: Vec<(Option<i64>, ManagerId)> = self
            .0
            .iter()
            .filter(|(id, _)| id.operation == Operation::Update)
            .map(|(id, owned)| (owned.time.map(Timestamp::as_secs), id.clone()))
            .collect();
        if updates.len() <= MAX_UPDATE_MANAGERS {
            return;
        }
        updates.sort();
        let mut left = updates.len();
        for (_, id) in updates {
            if left <= MAX_UPDATE_MANAGERS {
                return;
            }
            if id.manager == OLD_CHANGES {
                continue;
            }
            let Some(owned) = self.0.remove(&id) else { continue };
            let bucket =
                ManagerId { manager: OLD_CHANGES.into(), subresource: String::new(), ..id };
            match self.0.get_mut(&bucket) {
                Some(old) => {
                    old.set = old.set.union(&owned.set);
                    old.time = old.time.max(owned.time);
                    left -= 1;
                }
                None => {
                    self.0.insert(bucket, owned);
                }
            }
        }
    }
}

fn entry(id: &ManagerId, owned: &Owned) -> Value {
    let mut map = Map::new();
    map.insert("manager", id.manager.as_str());
    map.insert("operation", if id.operation == Operation::Apply { "Apply" } else { "Update" });
    map.insert("apiVersion", owned.api_version.as_str());
    if let Some(time) = owned.time {
        map.insert("time", time.rfc3339());
    }
    map.insert("fieldsType", "FieldsV1");
    map.insert("fieldsV1", owned.set.encode());
    if !id.subresource.is_empty() {
        map.insert("subresource", id.subresource.as_str());
    }
    map.into()
}
