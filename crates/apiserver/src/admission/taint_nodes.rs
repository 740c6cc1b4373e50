//! A new node takes no pods until the node lifecycle controller has seen it ready.

use api::Status;
use async_trait::async_trait;
use machinery::{Value, value};
use registry::{Attributes, Operation};

use super::{Plugin, World, is};

pub struct TaintNodesByCondition;
pub const PLUGIN: TaintNodesByCondition = TaintNodesByCondition;

const NOT_READY: &str = "node.kubernetes.io/not-ready";

#[async_trait]
impl Plugin for TaintNodesByCondition {
    async fn mutate(&self, _: &World, attributes: &mut Attributes<'_>) -> Result<(), Status> {
        if !is(attributes, Operation::Create, "", "nodes") {
            return Ok(());
        }
        let Some(node) = &mut attributes.object else { return Ok(()) };
        let taints = node.root_mut().map_entry("spec").list_entry("taints");
        let there = taints.iter().any(|taint| {
            taint.get("key").and_then(Value::as_str) == Some(NOT_READY)
                && taint.get("effect").and_then(Value::as_str) == Some("NoSchedule")
        });
        if !there {
            taints.push(value!({"key": NOT_READY, "effect": "NoSchedule"}));
        }
        Ok(())
    }
}
