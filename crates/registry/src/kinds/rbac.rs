//! Roles and bindings: their names may hold colons.

use std::sync::Arc;

use crate::strategy::{NameRule, Strategy};

struct Rbac;

pub fn strategy() -> Arc<dyn Strategy> {
    Arc::new(Rbac)
}

impl Strategy for Rbac {
    fn name_rule(&self) -> NameRule {
        NameRule::PathSegment
    }
}
