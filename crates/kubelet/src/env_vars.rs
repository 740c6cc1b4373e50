//! A container's environment: services, `envFrom`, `env`, and `$(NAME)` in values.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{EnvVar, Service};

use crate::{
    context::Context,
    downward,
    objects::{Kind, Wake},
    pod::{Container, Pod, PodExt},
    volumes,
};

/// Why the environment cannot be made; shown as `CreateContainerConfigError`.
pub type EnvError = String;

/// The variables in the order in which they are defined.
pub async fn build(
    context: &Context,
    pod: &Pod,
    container: &Container,
    pod_ips: &[String],
    wake: &Wake,
) -> Result<Vec<(String, String)>, EnvError> {
    let mut known: BTreeMap<String, String> = service_variables(context, pod);
    let mut result = Variables::default();
    for source in container.env_from.iter().flatten() {
        let prefix = source.prefix.as_deref().unwrap_or_default();
        let (kind, name, optional) = if let Some(source) = &source.config_map_ref {
            (Kind::ConfigMap, &source.name, source.optional == Some(true))
        } else if let Some(source) = &source.secret_ref {
            (Kind::Secret, &source.name, source.optional == Some(true))
        } else {
            continue;
        };
        let Some(object) = fetch(context, pod, kind, name, optional, wake).await? else { continue };
        for (key, bytes) in volumes::data(kind, &object) {
            result.set(format!("{prefix}{key}"), String::from_utf8_lossy(&bytes).into_owned());
        }
    }
    for variable in container.env.iter().flatten() {
        let value = if let Some(text) = variable.value.as_ref().filter(|text| !text.is_empty()) {
            expand_with(text, |name| result.get(name).or_else(|| known.get(name).cloned()))
        } else {
            match from_source(context, pod, container, variable, pod_ips, wake).await? {
                Some(value) => value,
                None => continue,
            }
        };
        // A variable of the container hides a service's one of the same name.
        known.remove(&variable.name);
        result.set(variable.name.clone(), value);
    }
    for (name, value) in known {
        if result.get(&name).is_none() {
            result.set(name, value);
        }
    }
    Ok(result.0)
}

#[derive(Default)]
struct Variables(Vec<(String, String)>);

impl Variables {
    fn get(&self, name: &str) -> Option<String> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone())
    }

    fn set(&mut self, name: String, value: String) {
        match self.0.iter_mut().find(|(known, _)| *known == name) {
            Some(entry) => entry.1 = value,
            None => self.0.push((name, value)),
        }
    }
}

async fn fetch(
    context: &Context,
    pod: &Pod,
    kind: Kind,
    name: &str,
    optional: bool,
    wake: &Wake,
) -> Result<Option<machinery::Object>, EnvError> {
    match context.objects.get(kind, pod.namespace(), name, pod.uid(), wake).await {
        Ok(object) => Ok(Some(object)),
        Err(error) if error.is_not_found() && optional => Ok(None),
        Err(error) => Err(stdx::chain(&error).to_string()),
    }
}

/// `None` for an optional source that is missing.
async fn from_source(
    context: &Context,
    pod: &Pod,
    container: &Container,
    variable: &EnvVar,
    pod_ips: &[String],
    wake: &Wake,
) -> Result<Option<String>, EnvError> {
    let Some(source) = &variable.value_from else { return Ok(Some(String::new())) };
    if let Some(field) = &source.field_ref {
        return downward::field(pod, &field.field_path, pod_ips, &context.config).map(Some);
    }
    if let Some(resource) = &source.resource_field_ref {
        let name = resource.container_name.as_deref().filter(|name| !name.is_empty());
        let name = name.unwrap_or(&container.name);
        return downward::container_resource(pod, name, resource, &context.config).map(Some);
    }
    let (kind, name, key, optional) = if let Some(source) = &source.config_map_key_ref {
        (Kind::ConfigMap, &source.name, &source.key, source.optional == Some(true))
    } else if let Some(source) = &source.secret_key_ref {
        (Kind::Secret, &source.name, &source.key, source.optional == Some(true))
    } else {
        return Err(format!(
            "the source of variable {:?} is not supported by this node",
            variable.name
        ));
    };
    let Some(object) = fetch(context, pod, kind, name, optional, wake).await? else {
        return Ok(None);
    };
    match volumes::data(kind, &object).remove(key) {
        Some(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
        None if optional => Ok(None),
        None => {
            let what = if kind == Kind::Secret { "Secret" } else { "ConfigMap" };
            Err(format!("couldn't find key {key} in {what} {}/{name}", pod.namespace()))
        }
    }
}

/// Replaces `$(NAME)`; `$$` is a dollar sign, and a reference to nothing stays as it is.
pub fn expand_with(text: &str, mut lookup: impl FnMut(&str) -> Option<String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
            continue;
        }
        let reference = rest.strip_prefix('(').and_then(|inner| inner.split_once(')'));
        match reference {
            Some((name, after)) => {
                match lookup(name) {
                    Some(value) => out.push_str(&value),
                    None => {
                        out.push_str("$(");
                        out.push_str(name);
                        out.push(')');
                    }
                }
                rest = after;
            }
            None => out.push('$'),
        }
    }
    out.push_str(rest);
    out
}

/// Variables that name the services of the pod's namespace, and the API server's always.
fn service_variables(context: &Context, pod: &Pod) -> BTreeMap<String, String> {
    let links = pod.spec().enable_service_links != Some(false);
    let lister = context.services.lister();
    let mut variables = BTreeMap::new();
    let key = client::Key::new("default", "kubernetes");
    let own = if links { lister.in_namespace(pod.namespace()) } else { Vec::new() };
    for cached in lister.get(&key).into_iter().chain(own) {
        if let Ok(service) = cached.typed::<Service>() {
            describe_service(&service, &mut variables);
        }
    }
    variables
}

fn describe_service(service: &Service, variables: &mut BTreeMap<String, String>) {
    let Some(spec) = &service.spec else { return };
    let ip = spec.cluster_ip.as_deref().unwrap_or_default();
    if ip.is_empty() || ip == "None" {
        return;
    }
    let name = service.metadata.name.as_deref().unwrap_or_default();
    let prefix = name.to_uppercase().replace('-', "_");
    let host = if ip.contains(':') { format!("[{ip}]") } else { ip.to_owned() };
    let ports = spec.ports.as_deref().unwrap_or_default();
    variables.insert(format!("{prefix}_SERVICE_HOST"), ip.to_owned());
    if let Some(first) = ports.first() {
        variables.insert(format!("{prefix}_SERVICE_PORT"), first.port.to_string());
    }
    for (index, port) in ports.iter().enumerate() {
        if let Some(name) = port.name.as_ref().filter(|name| !name.is_empty()) {
            let name = name.to_uppercase().replace('-', "_");
            variables.insert(format!("{prefix}_SERVICE_PORT_{name}"), port.port.to_string());
        }
        let protocol = port.protocol.as_deref().unwrap_or("TCP");
        let url = format!("{}://{host}:{}", protocol.to_lowercase(), port.port);
        if index == 0 {
            variables.insert(format!("{prefix}_PORT"), url.clone());
        }
        let base = format!("{prefix}_PORT_{}_{protocol}", port.port);
        variables.insert(base.clone(), url);
        variables.insert(format!("{base}_PROTO"), protocol.to_lowercase());
        variables.insert(format!("{base}_PORT"), port.port.to_string());
        variables.insert(format!("{base}_ADDR"), ip.to_owned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_replaced_as_in_kubernetes() {
        let lookup = |name: &str| (name == "A").then(|| "1".to_owned());
        for (text, expected) in [
            ("$(A)", "1"),
            ("x$(A)y", "x1y"),
            ("$(B)", "$(B)"),
            ("$$(A)", "$(A)"),
            ("$$$(A)", "$1"),
            ("$A", "$A"),
            ("$(A", "$(A"),
            ("$", "$"),
            ("100%$$", "100%$"),
        ] {
            assert_eq!(expand_with(text, lookup), expected, "{text}");
        }
    }

    #[test]
    fn services_are_described() {
        let service: Service = serde_json::from_str(
            r#"{"metadata":{"name":"my-db"},"spec":{"clusterIP":"10.96.0.7","ports":[{"name":"sql","port":5432}]}}"#,
        )
        .unwrap();
        let mut variables = BTreeMap::new();
        describe_service(&service, &mut variables);
        let get = |name: &str| variables.get(name).map(String::as_str);
        assert_eq!(get("MY_DB_SERVICE_HOST"), Some("10.96.0.7"));
        assert_eq!(get("MY_DB_SERVICE_PORT_SQL"), Some("5432"));
        assert_eq!(get("MY_DB_PORT"), Some("tcp://10.96.0.7:5432"));
        assert_eq!(get("MY_DB_PORT_5432_TCP_ADDR"), Some("10.96.0.7"));
    }
}
