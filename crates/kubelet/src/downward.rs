//! What a pod may learn about itself: `fieldRef` and `resourceFieldRef`.

use k8s_openapi::api::core::v1::ResourceFieldSelector;

use crate::{
    config::KubeletConfig,
    context::Context,
    pod::{Pod, PodExt},
    quantity::{self, ResourceList},
};

/// A field that needs nothing but the object and the node's settings.
pub fn pod_field(pod: &Pod, path: &str, context: &Context) -> Result<String, String> {
    field(pod, path, &[], &context.config)
}

/// A field of the pod by its path; `pod_ips` are those of the sandbox, which the object may not
/// have yet.
pub fn field(
    pod: &Pod,
    path: &str,
    pod_ips: &[String],
    config: &KubeletConfig,
) -> Result<String, String> {
    let metadata = &pod.metadata;
    if let Some((map, key)) = subscript(path) {
        let map = match map {
            "metadata.labels" => &metadata.labels,
            "metadata.annotations" => &metadata.annotations,
            _ => return Err(format!("field path {path:?} does not support a subscript")),
        };
        return Ok(map.as_ref().and_then(|map| map.get(key)).cloned().unwrap_or_default());
    }
    let listed = |map: &Option<std::collections::BTreeMap<String, String>>| -> String {
        let lines = map.iter().flatten().map(|(key, value)| format!("{key}={value:?}"));
        lines.collect::<Vec<_>>().join("\n")
    };
    let host_ips = || config.addresses.iter().map(ToString::to_string).collect::<Vec<_>>();
    let spec = pod.spec();
    let ips = if pod.host_network() { host_ips() } else { pod_ips.to_vec() };
    Ok(match path {
        "metadata.name" => pod.name().to_owned(),
        "metadata.namespace" => pod.namespace().to_owned(),
        "metadata.uid" => pod.uid().to_owned(),
        "metadata.labels" => listed(&metadata.labels),
        "metadata.annotations" => listed(&metadata.annotations),
        "spec.nodeName" => spec.node_name.clone().unwrap_or_default(),
        "spec.serviceAccountName" => spec.service_account_name.clone().unwrap_or_default(),
        "status.hostIP" => config.primary_address(),
        "status.hostIPs" => host_ips().join(","),
        "status.podIP" => ips.first().cloned().unwrap_or_default(),
        "status.podIPs" => ips.join(","),
        _ => return Err(format!("unsupported fieldPath: {path}")),
    })
}

fn subscript(path: &str) -> Option<(&str, &str)> {
    let (map, rest) = path.split_once("['")?;
    Some((map, rest.strip_suffix("']")?))
}

/// A container's request or limit, in units of the divisor, rounded up. A limit that is not set
/// is what the node can give.
pub fn container_resource(
    pod: &Pod,
    container: &str,
    source: &ResourceFieldSelector,
    config: &KubeletConfig,
) -> Result<String, String> {
    let (spec, _) = pod
        .container(container)
        .ok_or_else(|| format!("container {container:?} not found in pod"))?;
    let resources = spec.resources.as_ref();
    let limits = resources.and_then(|resources| resources.limits.as_ref());
    let requests = resources.and_then(|resources| resources.requests.as_ref());
    let (which, name) = source.resource.split_once('.').unwrap_or(("", &source.resource));
    let milli = match which {
        "limits" => limit(limits, name, config),
        "requests" => match quantity::milli_of(requests, name) {
            0 if requests.is_none_or(|requests| !requests.contains_key(name)) => {
                quantity::milli_of(limits, name)
            }
            milli => milli,
        },
        _ => return Err(format!("unsupported container resource : {}", source.resource)),
    };
    let divisor = source.divisor.as_ref().and_then(|divisor| quantity::milli(&divisor.0));
    let divisor = divisor.filter(|&divisor| divisor > 0).unwrap_or(1000);
    Ok(((i128::from(milli) + divisor - 1) / divisor).to_string())
}

fn limit(limits: Option<&ResourceList>, name: &str, config: &KubeletConfig) -> i64 {
    if limits.is_some_and(|limits| limits.contains_key(name)) {
        return quantity::milli_of(limits, name);
    }
    let allocatable = config.allocatable();
    match name {
        "cpu" => allocatable.cpu_milli,
        "memory" => allocatable.memory_bytes.saturating_mul(1000),
        "ephemeral-storage" => allocatable.ephemeral_storage_bytes.saturating_mul(1000),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod() -> Pod {
        let text = r#"{"metadata":{"name":"web","namespace":"a","uid":"u","labels":{"x":"1","y":"a\"b"}},
            "spec":{"nodeName":"n","containers":[{"name":"c","resources":{"limits":{"cpu":"1500m"},"requests":{"memory":"1Mi"}}}]}}"#;
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn fields_by_path() {
        let config = KubeletConfig::new("n");
        let get = |path: &str| field(&pod(), path, &["10.0.0.9".into()], &config);
        assert_eq!(get("metadata.labels['x']").unwrap(), "1");
        assert_eq!(get("metadata.labels").unwrap(), "x=\"1\"\ny=\"a\\\"b\"");
        assert_eq!(get("status.podIP").unwrap(), "10.0.0.9");
        assert_eq!(get("spec.nodeName").unwrap(), "n");
        assert!(get("spec.unknown").is_err());
    }

    #[test]
    fn resources_by_divisor() {
        let mut config = KubeletConfig::new("n");
        config.capacity.memory_bytes = 8 << 20;
        let get = |resource: &str, divisor: &str| {
            let source = ResourceFieldSelector {
                resource: resource.into(),
                divisor: (!divisor.is_empty()).then(|| {
                    k8s_openapi::apimachinery::pkg::api::resource::Quantity(divisor.into())
                }),
                container_name: None,
            };
            container_resource(&pod(), "c", &source, &config).unwrap()
        };
        assert_eq!(get("limits.cpu", ""), "2");
        assert_eq!(get("limits.cpu", "1m"), "1500");
        assert_eq!(get("requests.memory", "1Ki"), "1024");
        assert_eq!(get("limits.memory", "1Mi"), "8");
    }
}
