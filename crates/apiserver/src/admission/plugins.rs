//! The table of admission plugins. One file and one line each; the order is the order of calls.

use super::{
    Entry, certificates, default_class, default_toleration_seconds, escalation, limit_ranger,
    namespace_lifecycle, node_restriction, pod_security, priority, service_account, taint_nodes,
    unenforced,
};

pub const PLUGINS: &[Entry] = &[
    Entry { name: "NamespaceLifecycle", plugin: &namespace_lifecycle::PLUGIN },
    Entry { name: "LimitRanger", plugin: &limit_ranger::PLUGIN },
    Entry { name: "ServiceAccount", plugin: &service_account::PLUGIN },
    Entry { name: "NodeRestriction", plugin: &node_restriction::PLUGIN },
    Entry { name: "TaintNodesByCondition", plugin: &taint_nodes::PLUGIN },
    Entry { name: "Priority", plugin: &priority::PLUGIN },
    Entry { name: "DefaultTolerationSeconds", plugin: &default_toleration_seconds::PLUGIN },
    Entry { name: "DefaultStorageClass", plugin: &default_class::STORAGE },
    Entry { name: "DefaultIngressClass", plugin: &default_class::INGRESS },
    Entry { name: "CertificateApproval", plugin: &certificates::PLUGIN },
    Entry { name: "PodSecurity", plugin: &pod_security::PLUGIN },
    Entry { name: "RBACEscalation", plugin: &escalation::PLUGIN },
    Entry { name: "Unenforced", plugin: &unenforced::PLUGIN },
];
