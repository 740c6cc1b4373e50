//! Defaults of pod specs: of pods and of every template of a workload.

use api::Quantity;
use machinery::{Map, Value};

use crate::edit::{each, flag, inside, or, or_zero, text};

/// Defaults of a `PodSpec`, the same for pods and templates.
pub(crate) fn default(spec: &mut Map) {
    let account = match (text(spec, "serviceAccountName"), text(spec, "serviceAccount")) {
        ("", deprecated) => deprecated.to_owned(),
        (name, _) => name.to_owned(),
    };
    if !account.is_empty() {
        spec.insert("serviceAccountName", account.as_str());
        spec.insert("serviceAccount", account);
    }
    or(spec, "dnsPolicy", "ClusterFirst");
    or(spec, "restartPolicy", "Always");
    or(spec, "securityContext", Map::new());
    or(spec, "terminationGracePeriodSeconds", 30);
    or(spec, "schedulerName", "default-scheduler");
    for field in ["initContainers", "containers", "ephemeralContainers"] {
        each(spec, field, default_container);
    }
    each(spec, "volumes", default_volume);
}

fn default_container(container: &mut Map) {
    let image = text(container, "image").to_owned();
    or(container, "imagePullPolicy", pull_policy(&image));
    or(container, "terminationMessagePath", "/dev/termination-log");
    or(container, "terminationMessagePolicy", "File");
    or(container, "resources", Map::new());
    inside(container, "resources", |resources| {
        for list in ["limits", "requests"] {
            inside(resources, list, canonical_quantities);
        }
    });
    each(container, "ports", |port| or(port, "protocol", "TCP"));
    for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
        inside(container, probe, default_probe);
    }
    inside(container, "lifecycle", |lifecycle| {
        for hook in ["postStart", "preStop"] {
            inside(lifecycle, hook, |handler| inside(handler, "httpGet", default_http_get));
        }
    });
    each(container, "env", |variable| {
        inside(variable, "valueFrom", |source| {
            inside(source, "fieldRef", |field| or(field, "apiVersion", "v1"));
            inside(source, "resourceFieldRef", default_divisor);
        });
    });
}

/// Quantities as the server writes them: `1000m` is `1`.
pub(crate) fn canonical_quantities(list: &mut Map) {
    for (_, value) in list.iter_mut() {
        let canonical = match &*value {
            Value::String(text) => Quantity::canonical(text).ok(),
            Value::Int(number) => Quantity::canonical(&number.to_string()).ok(),
            Value::Float(number) => Quantity::canonical(&number.to_string()).ok(),
            _ => None,
        };
        if let Some(canonical) = canonical {
            *value = canonical.into();
        }
    }
}

/// `Always` for `latest` and for no tag, else `IfNotPresent`.
fn pull_policy(image: &str) -> &'static str {
    let (name, digest) = image.split_once('@').map_or((image, false), |(name, _)| (name, true));
    let tag = name.rsplit('/').next().and_then(|last| last.split_once(':')).map(|(_, tag)| tag);
    match tag {
        Some("latest") => "Always",
        Some(_) => "IfNotPresent",
        None if digest || image.is_empty() => "IfNotPresent",
        None => "Always",
    }
}

fn default_probe(probe: &mut Map) {
    or_zero(probe, "timeoutSeconds", 1);
    or_zero(probe, "periodSeconds", 10);
    or_zero(probe, "successThreshold", 1);
    or_zero(probe, "failureThreshold", 3);
    inside(probe, "httpGet", default_http_get);
    inside(probe, "grpc", |grpc| {
        if !grpc.contains_key("service") {
            grpc.insert("service", "");
        }
    });
}

fn default_http_get(action: &mut Map) {
    or(action, "path", "/");
    or(action, "scheme", "HTTP");
}

fn default_divisor(field: &mut Map) {
    or(field, "divisor", "0");
}

fn default_volume(volume: &mut Map) {
    let has_source = volume.iter().any(|(key, value)| key != "name" && !value.is_null());
    if !has_source {
        volume.insert("emptyDir", Map::new());
    }
    for source in ["secret", "configMap"] {
        inside(volume, source, |source| or(source, "defaultMode", 420));
    }
    inside(volume, "downwardAPI", |source| {
        or(source, "defaultMode", 420);
        each(source, "items", default_downward_item);
    });
    inside(volume, "projected", |projected| {
        or(projected, "defaultMode", 420);
        each(projected, "sources", |source| {
            inside(source, "serviceAccountToken", |token| or(token, "expirationSeconds", 3600));
            inside(source, "downwardAPI", |api| each(api, "items", default_downward_item));
        });
    });
    inside(volume, "hostPath", |host| {
        if !host.contains_key("type") {
            host.insert("type", "");
        }
    });
    inside(volume, "image", |image| {
        let reference = text(image, "reference").to_owned();
        or(image, "pullPolicy", pull_policy(&reference));
    });
    inside(volume, "iscsi", |iscsi| or(iscsi, "iscsiInterface", "default"));
    inside(volume, "rbd", |rbd| {
        or(rbd, "pool", "rbd");
        or(rbd, "user", "admin");
        or(rbd, "keyring", "/etc/ceph/keyring");
    });
    inside(volume, "azureDisk", |disk| {
        or(disk, "cachingMode", "ReadWrite");
        or(disk, "kind", "Shared");
        or(disk, "fsType", "ext4");
        or(disk, "readOnly", false);
    });
    inside(volume, "scaleIO", |io| {
        or(io, "storageMode", "ThinProvisioned");
        or(io, "fsType", "xfs");
    });
    inside(volume, "ephemeral", |ephemeral| {
        inside(ephemeral, "volumeClaimTemplate", |template| {
            inside(template, "spec", |spec| or(spec, "volumeMode", "Filesystem"));
        });
    });
}

fn default_downward_item(item: &mut Map) {
    inside(item, "fieldRef", |field| or(field, "apiVersion", "v1"));
    inside(item, "resourceFieldRef", default_divisor);
}

/// What pods get beyond templates.
pub(crate) fn default_pod(spec: &mut Map) {
    if spec.get("terminationGracePeriodSeconds").and_then(Value::as_i64).is_some_and(|s| s < 0) {
        spec.insert("terminationGracePeriodSeconds", 1);
    }
    for field in ["initContainers", "containers"] {
        each(spec, field, |container| {
            inside(container, "resources", |resources| {
                let Some(limits) = resources.get("limits").and_then(Value::as_map).cloned() else {
                    return;
                };
                let requests = resources.map_entry("requests");
                for (name, limit) in limits.iter() {
                    if !requests.contains_key(name) {
                        requests.insert(name.clone(), limit.clone());
                    }
                }
            });
        });
    }
    or(spec, "enableServiceLinks", true);
    if flag(spec, "hostNetwork") {
        for field in ["initContainers", "containers"] {
            each(spec, field, |container| each(container, "ports", host_port));
        }
    }
}

fn host_port(port: &mut Map) {
    if let Some(number) = port.get("containerPort").and_then(Value::as_i64) {
        or_zero(port, "hostPort", number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tag_decides_the_pull_policy() {
        let cases = [
            ("nginx", "Always"),
            ("nginx:latest", "Always"),
            ("nginx:1.27", "IfNotPresent"),
            ("host:5000/nginx", "Always"),
            ("host:5000/a/nginx:1", "IfNotPresent"),
            ("nginx@sha256:00", "IfNotPresent"),
        ];
        for (image, policy) in cases {
            assert_eq!(pull_policy(image), policy, "{image}");
        }
    }
}
