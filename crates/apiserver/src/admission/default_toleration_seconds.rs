//! Pods tolerate an unready or unreachable node for a while, unless they say otherwise.

use api::Status;
use async_trait::async_trait;
use machinery::{Value, value};
use registry::{Attributes, Operation};

use super::{Plugin, World, is};

pub struct DefaultTolerationSeconds;
pub const PLUGIN: DefaultTolerationSeconds = DefaultTolerationSeconds;

const TAINTS: [&str; 2] = ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"];

#[async_trait]
impl Plugin for DefaultTolerationSeconds {
    async fn mutate(&self, world: &World, attributes: &mut Attributes<'_>) -> Result<(), Status> {
        if !is(attributes, Operation::Create, "", "pods") {
            return Ok(());
        }
        let Some(pod) = &mut attributes.object else { return Ok(()) };
        for taint in TAINTS {
            let tolerated =
                pod.list_at(&["spec", "tolerations"]).iter().any(|t| tolerates(t, taint));
            if !tolerated {
                let seconds = world.default_toleration_seconds;
                let spec = pod.root_mut().map_entry("spec");
                spec.list_entry("tolerations").push(value!({
                    "key": taint, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": seconds,
                }));
            }
        }
        Ok(())
    }
}

/// Whether a toleration covers the `NoExecute` effect of a taint, for however long.
fn tolerates(toleration: &Value, taint: &str) -> bool {
    let field = |name| toleration.get(name).and_then(Value::as_str).unwrap_or_default();
    matches!(field("key"), key if key == taint || key.is_empty())
        && matches!(field("effect"), "NoExecute" | "")
}
