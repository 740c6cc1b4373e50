//! Field rules of pod specs, for pods and templates, in the order in which upstream reports.

use std::collections::{BTreeMap, BTreeSet};

use api::{Quantity, names};
use machinery::{Map, Value};

use crate::{
    edit::{flag, list, maps, text},
    errors::{Errors, Path},
    names::report,
};

/// The spec of a pod or of a template at `path`.
pub(crate) fn validate(spec: &Map, path: &Path, errors: &mut Errors) {
    let volumes = volumes(spec, &path.child("volumes"), errors);
    let grace = spec.get("terminationGracePeriodSeconds").and_then(Value::as_i64);
    let pod = Pod { volumes: &volumes, grace, host_network: flag(spec, "hostNetwork") };
    if list(spec, "containers").is_empty() {
        errors.required(&path.child("containers"), "");
    }
    let mut names = BTreeSet::new();
    containers(spec, "containers", &pod, path, &mut names, errors);
    containers(spec, "initContainers", &pod, path, &mut names, errors);
    containers(spec, "ephemeralContainers", &pod, path, &mut names, errors);
    match text(spec, "restartPolicy") {
        "" => errors.required(&path.child("restartPolicy"), ""),
        policy => {
            errors.one_of(&path.child("restartPolicy"), policy, &["Always", "OnFailure", "Never"])
        }
    }
    dns(spec, path, errors);
    node_selector(spec, path, errors);
    security_context(spec, path, errors);
    if let Some(affinity) = spec.get("affinity").and_then(Value::as_map) {
        affinities(affinity, &path.child("affinity"), errors);
    }
    topology_spread(spec, &path.child("topologySpreadConstraints"), errors);
    name_fields(spec, &["serviceAccountName", "nodeName"], path, errors);
    if let Some(seconds) = spec.get("activeDeadlineSeconds").and_then(Value::as_i64) {
        if !(1..=i64::from(i32::MAX)).contains(&seconds) {
            let path = path.child("activeDeadlineSeconds");
            errors.invalid(&path, seconds, &names::range_fault(1, i64::from(i32::MAX)));
        }
    }
    name_fields(spec, &["hostname", "subdomain"], path, errors);
    tolerations(spec, &path.child("tolerations"), errors);
    host_aliases(spec, &path.child("hostAliases"), errors);
    name_fields(spec, &["priorityClassName", "runtimeClassName"], path, errors);
    if let Some(policy) = spec.get("preemptionPolicy").and_then(Value::as_str) {
        errors.one_of(&path.child("preemptionPolicy"), policy, &["Never", "PreemptLowerPriority"]);
    }
}

/// What the containers of one pod refer to.
struct Pod<'a> {
    volumes: &'a BTreeMap<String, &'static str>,
    grace: Option<i64>,
    host_network: bool,
}

fn name_fields(spec: &Map, fields: &[&str], path: &Path, errors: &mut Errors) {
    for field in fields {
        let (name, label) = (text(spec, field), matches!(*field, "hostname" | "subdomain"));
        if !name.is_empty() {
            let faults = if label {
                names::dns1123_label(name)
            } else {
                names::name_is_subdomain(name, false)
            };
            report(&faults, &path.child(field), name, errors);
        }
    }
}

fn volumes(spec: &Map, path: &Path, errors: &mut Errors) -> BTreeMap<String, &'static str> {
    let mut known = BTreeMap::new();
    for (at, volume) in maps(spec, "volumes").enumerate() {
        let path = path.index(at);
        let name = text(volume, "name");
        if name.is_empty() {
            errors.required(&path.child("name"), "");
        } else {
            report(&names::dns1123_label(name), &path.child("name"), name, errors);
        }
        if known.contains_key(name) {
            errors.duplicate(&path.child("name"), name);
        }
        let before = errors.len();
        let mut sources: Vec<&str> = volume
            .iter()
            .filter(|(k, v)| *k != "name" && !v.is_null())
            .map(|(k, _)| k.as_str())
            .collect();
        sources.sort_by_key(|source| SOURCES.iter().position(|known| known == source));
        match sources.as_slice() {
            [] => errors.required(&path, "must specify a volume type"),
            [first, others @ ..] => {
                volume_source(volume, first, &path, errors);
                for other in others {
                    errors.forbidden(&path.child(other), "may not specify more than 1 volume type");
                }
            }
        }
        // What is broken in itself hides no other volume of its name.
        if errors.len() == before {
            known.insert(name.to_owned(), "");
        }
    }
    known
}

/// Volume types in the order in which the first of several is taken for the one meant.
const SOURCES: [&str; 30] = [
    "emptyDir",
    "hostPath",
    "gitRepo",
    "gcePersistentDisk",
    "awsElasticBlockStore",
    "secret",
    "nfs",
    "iscsi",
    "glusterfs",
    "flocker",
    "persistentVolumeClaim",
    "rbd",
    "cinder",
    "cephfs",
    "quobyte",
    "downwardAPI",
    "fc",
    "flexVolume",
    "configMap",
    "azureFile",
    "vsphereVolume",
    "photonPersistentDisk",
    "portworxVolume",
    "azureDisk",
    "storageos",
    "projected",
    "scaleIO",
    "csi",
    "ephemeral",
    "image",
];

fn volume_source(volume: &Map, kind: &str, path: &Path, errors: &mut Errors) {
    let path = path.child(kind);
    let Some(source) = volume.get(kind).and_then(Value::as_map) else { return };
    let required = |field: &str, errors: &mut Errors| {
        if text(source, field).is_empty() {
            errors.required(&path.child(field), "");
        }
    };
    match kind {
        "hostPath" => {
            required("path", errors);
            if text(source, "path").split('/').any(|part| part == "..") {
                errors.invalid(&path.child("path"), text(source, "path"), "must not contain '..'");
            }
            let types = [
                "",
                "BlockDevice",
                "CharDevice",
                "Directory",
                "DirectoryOrCreate",
                "File",
                "FileOrCreate",
                "Socket",
            ];
            errors.one_of(&path.child("type"), text(source, "type"), &types);
        }
        "secret" => {
            required("secretName", errors);
            modes(source, &path, errors);
        }
        "configMap" => {
            required("name", errors);
            modes(source, &path, errors);
        }
        "persistentVolumeClaim" => required("claimName", errors),
        "downwardAPI" => modes(source, &path, errors),
        "projected" => {
            for (at, entry) in maps(source, "sources").enumerate() {
                let path = path.child("sources").index(at);
                if entry.iter().filter(|(_, v)| !v.is_null()).count() > 1 {
                    errors.forbidden(&path, "may not specify more than 1 volume type");
                }
            }
        }
        "emptyDir" => {
            if let Some(Value::String(limit)) = source.get("sizeLimit") {
                if Quantity::parse(limit).is_ok_and(|q| q.is_negative()) {
                    let path = path.child("sizeLimit");
                    errors.forbidden(&path, "SizeLimit field must be a valid resource quantity");
                }
            }
        }
        "nfs" => {
            required("server", errors);
            required("path", errors);
        }
        "csi" => required("driver", errors),
        "image" => required("reference", errors),
        _ => {}
    }
}

fn modes(source: &Map, path: &Path, errors: &mut Errors) {
    let check = |value: Option<&Value>, path: Path, errors: &mut Errors| {
        if let Some(mode) = value.and_then(Value::as_i64).filter(|mode| !(0..=0o777).contains(mode))
        {
            errors.invalid(
                &path,
                mode,
                "must be a number between 0 and 0777 (octal), both inclusive",
            );
        }
    };
    check(source.get("defaultMode"), path.child("defaultMode"), errors);
    for (at, item) in maps(source, "items").enumerate() {
        let path = path.child("items").index(at);
        check(item.get("mode"), path.child("mode"), errors);
        let target = text(item, "path");
        if target.is_empty() {
            errors.required(&path.child("path"), "");
        } else {
            descending(target, &path.child("path"), errors);
        }
    }
}

/// A relative path that does not climb.
fn descending(target: &str, path: &Path, errors: &mut Errors) {
    if target.starts_with('/') {
        errors.invalid(path, target, "must be a relative path");
    }
    if target.split('/').any(|part| part == "..") {
        errors.invalid(path, target, "must not contain '..'");
    }
}

fn containers(
    spec: &Map,
    field: &str,
    pod: &Pod<'_>,
    path: &Path,
    names: &mut BTreeSet<String>,
    errors: &mut Errors,
) {
    let path = path.child(field);
    let mut host_ports = BTreeSet::new();
    for (at, container) in maps(spec, field).enumerate() {
        let path = path.index(at);
        common(container, pod, &path, errors);
        let name = text(container, "name");
        if !names.insert(name.to_owned()) {
            errors.duplicate(&path.child("name"), name);
        }
        match field {
            "initContainers" => init(container, pod, &path, errors),
            "ephemeralContainers" => ephemeral(container, &path, errors),
            _ => lifecycle(container, pod, &path, errors),
        }
        if field == "containers" {
            port_conflicts(container, &path, &mut host_ports, errors);
        }
    }
}

fn lifecycle(container: &Map, pod: &Pod<'_>, path: &Path, errors: &mut Errors) {
    if let Some(hooks) = container.get("lifecycle").and_then(Value::as_map) {
        for hook in ["postStart", "preStop"] {
            if let Some(handler) = hooks.get(hook).and_then(Value::as_map) {
                self::handler(handler, pod.grace, &path.child("lifecycle").child(hook), errors);
            }
        }
    }
    for (field, one_success, may_terminate) in [
        ("livenessProbe", true, true),
        ("readinessProbe", false, false),
        ("startupProbe", true, true),
    ] {
        let Some(probe) = container.get(field).and_then(Value::as_map) else { continue };
        let path = path.child(field);
        self::probe(probe, &path, errors);
        let successes = probe.get("successThreshold").and_then(Value::as_i64).unwrap_or(1);
        if one_success && successes != 1 {
            errors.invalid(&path.child("successThreshold"), successes, "must be 1");
        }
        if let (false, Some(seconds)) = (may_terminate, probe.get("terminationGracePeriodSeconds"))
        {
            let why = "must not be set for readinessProbes";
            errors.invalid(&path.child("terminationGracePeriodSeconds"), seconds.clone(), why);
        }
    }
}

fn init(container: &Map, pod: &Pod<'_>, path: &Path, errors: &mut Errors) {
    if text(container, "restartPolicy") == "Always" {
        lifecycle(container, pod, path, errors);
        return;
    }
    if let Some(policy) = container.get("restartPolicy").and_then(Value::as_str) {
        errors.one_of(&path.child("restartPolicy"), policy, &["Always", "Never", "OnFailure"]);
    }
    for field in ["lifecycle", "livenessProbe", "readinessProbe", "startupProbe"] {
        if container.get(field).is_some_and(|value| !value.is_null()) {
            let why = "may not be set for init containers without restartPolicy=Always";
            errors.forbidden(&path.child(field), why);
        }
    }
}

fn ephemeral(container: &Map, path: &Path, errors: &mut Errors) {
    for field in
        ["lifecycle", "livenessProbe", "ports", "readinessProbe", "resources", "startupProbe"]
    {
        let set = match container.get(field) {
            Some(Value::Map(map)) => !map.is_empty(),
            Some(Value::List(list)) => !list.is_empty(),
            _ => false,
        };
        if set {
            errors.forbidden(&path.child(field), "cannot be set for an Ephemeral Container");
        }
    }
}

fn common(container: &Map, pod: &Pod<'_>, path: &Path, errors: &mut Errors) {
    match text(container, "name") {
        "" => errors.required(&path.child("name"), ""),
        name => report(&names::dns1123_label(name), &path.child("name"), name, errors),
    }
    let image = text(container, "image");
    if image.is_empty() {
        errors.required(&path.child("image"), "");
    } else if image != image.trim() {
        errors.invalid(&path.child("image"), image, "must not have leading or trailing whitespace");
    }
    match text(container, "terminationMessagePolicy") {
        "" => errors.required(&path.child("terminationMessagePolicy"), ""),
        policy => {
            errors.one_of(
                &path.child("terminationMessagePolicy"),
                policy,
                &["File", "FallbackToLogsOnError"],
            );
        }
    }
    ports(container, pod, &path.child("ports"), errors);
    env(container, path, errors);
    mounts(container, pod, &path.child("volumeMounts"), errors);
    match text(container, "imagePullPolicy") {
        "" => errors.required(&path.child("imagePullPolicy"), ""),
        policy => errors.one_of(
            &path.child("imagePullPolicy"),
            policy,
            &["Always", "IfNotPresent", "Never"],
        ),
    }
    if let Some(resources) = container.get("resources").and_then(Value::as_map) {
        self::resources(resources, &path.child("resources"), errors);
    }
    if let Some(context) = container.get("securityContext").and_then(Value::as_map) {
        let path = path.child("securityContext");
        ids(context, &["runAsUser", "runAsGroup"], &path, errors);
        let denied =
            context.get("allowPrivilegeEscalation").and_then(Value::as_bool) == Some(false);
        if denied && flag(context, "privileged") {
            errors.invalid(
                &path,
                Value::Map(context.clone()),
                "cannot set `allowPrivilegeEscalation` to false and `privileged` to true",
            );
        }
    }
}

fn ports(container: &Map, pod: &Pod<'_>, path: &Path, errors: &mut Errors) {
    let mut seen = BTreeSet::new();
    for (at, port) in maps(container, "ports").enumerate() {
        let path = path.index(at);
        let name = text(port, "name");
        if !name.is_empty() {
            let faults = names::port_name(name);
            report(&faults, &path.child("name"), name, errors);
            if faults.is_empty() && !seen.insert(name) {
                errors.duplicate(&path.child("name"), name);
            }
        }
        let number = port.get("containerPort").and_then(Value::as_i64).unwrap_or(0);
        if number == 0 {
            errors.required(&path.child("containerPort"), "");
        } else {
            for fault in names::port_number(number) {
                errors.invalid(&path.child("containerPort"), number, &fault);
            }
        }
        let host = port.get("hostPort").and_then(Value::as_i64).unwrap_or(0);
        if host != 0 {
            for fault in names::port_number(host) {
                errors.invalid(&path.child("hostPort"), host, &fault);
            }
            if pod.host_network && host != number {
                let why = "must match `hostPort` when `hostNetwork` is true";
                errors.invalid(&path.child("containerPort"), number, why);
            }
        }
        match text(port, "protocol") {
            "" => errors.required(&path.child("protocol"), ""),
            protocol => errors.one_of(&path.child("protocol"), protocol, &["SCTP", "TCP", "UDP"]),
        }
    }
}

fn port_conflicts(container: &Map, path: &Path, seen: &mut BTreeSet<String>, errors: &mut Errors) {
    for (at, port) in maps(container, "ports").enumerate() {
        let number = port.get("hostPort").and_then(Value::as_i64).unwrap_or(0);
        if number == 0 {
            continue;
        }
        let key = format!("{}/{}/{number}", text(port, "protocol"), text(port, "hostIP"));
        if !seen.insert(key.clone()) {
            errors.duplicate(&path.child("ports").index(at).child("hostPort"), key);
        }
    }
}

fn env(container: &Map, path: &Path, errors: &mut Errors) {
    for (at, variable) in maps(container, "env").enumerate() {
        let path = path.child("env").index(at);
        match text(variable, "name") {
            "" => errors.required(&path.child("name"), ""),
            name => report(&names::relaxed_env_var_name(name), &path.child("name"), name, errors),
        }
        if let Some(source) = variable.get("valueFrom").and_then(Value::as_map) {
            env_source(
                source,
                !text(variable, "value").is_empty(),
                &path.child("valueFrom"),
                errors,
            );
        }
    }
    for (at, source) in maps(container, "envFrom").enumerate() {
        let path = path.child("envFrom").index(at);
        let refs: Vec<&str> =
            ["configMapRef", "secretRef"].into_iter().filter(|f| source.contains_key(f)).collect();
        match refs.as_slice() {
            [] => errors.invalid(&path, "", "must specify one of: `configMapRef` or `secretRef`"),
            [one]
                if text(source.get(one).and_then(Value::as_map).unwrap_or(source), "name")
                    .is_empty() =>
            {
                errors.required(&path.child(one).child("name"), "");
            }
            [_] => {}
            _ => errors.invalid(&path, "", "may not have more than one field specified at a time"),
        }
    }
}

fn env_source(source: &Map, has_value: bool, path: &Path, errors: &mut Errors) {
    let kinds: Vec<&str> =
        ["fieldRef", "resourceFieldRef", "configMapKeyRef", "secretKeyRef", "fileKeyRef"]
            .into_iter()
            .filter(|kind| source.get(kind).is_some_and(|v| !v.is_null()))
            .collect();
    for kind in &kinds {
        let Some(inner) = source.get(kind).and_then(Value::as_map) else { continue };
        let path = path.child(kind);
        match *kind {
            "fieldRef" => field_ref(inner, &path, errors),
            "resourceFieldRef" => {
                if text(inner, "resource").is_empty() {
                    errors.required(&path.child("resource"), "");
                }
            }
            "configMapKeyRef" | "secretKeyRef" => {
                for field in ["name", "key"] {
                    if text(inner, field).is_empty() {
                        errors.required(&path.child(field), "");
                    }
                }
            }
            _ => {}
        }
    }
    if kinds.is_empty() {
        let kinds =
            "`fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`";
        errors.invalid(path, "", &format!("must specify one of: {kinds}"));
    } else if has_value {
        errors.invalid(path, "", "may not be specified when `value` is not empty");
    } else if kinds.len() > 1 {
        errors.invalid(path, "", "may not have more than one field specified at a time");
    }
}

fn field_ref(source: &Map, path: &Path, errors: &mut Errors) {
    /// Fields that have a label, but not one that a variable may take.
    const LABELLED: [&str; 5] = [
        "metadata.annotations",
        "metadata.labels",
        "spec.restartPolicy",
        "spec.schedulerName",
        "status.phase",
    ];
    const KNOWN: [&str; 9] = [
        "metadata.name",
        "metadata.namespace",
        "metadata.uid",
        "spec.nodeName",
        "spec.serviceAccountName",
        "status.hostIP",
        "status.hostIPs",
        "status.podIP",
        "status.podIPs",
    ];
    let field = text(source, "fieldPath");
    if field.is_empty() {
        errors.required(&path.child("fieldPath"), "");
        return;
    }
    let subscript = field.strip_suffix("']").and_then(|f| f.split_once("['")).map(|(base, _)| base);
    let fine = match subscript {
        Some(base) => matches!(base, "metadata.annotations" | "metadata.labels"),
        None => KNOWN.contains(&field),
    };
    if !fine {
        let mut valid = KNOWN.to_vec();
        valid.sort_unstable();
        if LABELLED.contains(&field) {
            errors.not_supported(&path.child("fieldPath"), field, &valid);
        } else {
            let why = format!("error converting fieldPath: field label not supported: {field}");
            errors.invalid(&path.child("fieldPath"), field, &why);
        }
    }
}

fn mounts(container: &Map, pod: &Pod<'_>, path: &Path, errors: &mut Errors) {
    let mut points = BTreeSet::new();
    for (at, mount) in maps(container, "volumeMounts").enumerate() {
        let item = path.index(at);
        let name = text(mount, "name");
        if name.is_empty() {
            errors.required(&item.child("name"), "");
        }
        if !pod.volumes.contains_key(name) {
            errors.not_found(&item.child("name"), name);
        }
        let point = text(mount, "mountPath");
        if point.is_empty() {
            errors.required(&item.child("mountPath"), "");
        }
        if !points.insert(point) {
            errors.invalid(&item.child("mountPath"), point, "must be unique");
        }
        let (sub, expression) = (text(mount, "subPath"), text(mount, "subPathExpr"));
        if !sub.is_empty() {
            descending(sub, &path.child("subPath"), errors);
        }
        if !expression.is_empty() {
            if !sub.is_empty() {
                let why = "subPathExpr and subPath are mutually exclusive";
                errors.invalid(&item.child("subPathExpr"), expression, why);
            }
            descending(expression, &path.child("subPathExpr"), errors);
        }
        if let Some(mode) = mount.get("mountPropagation").and_then(Value::as_str) {
            errors.one_of(
                &path.child("mountPropagation"),
                mode,
                &["Bidirectional", "HostToContainer", "None"],
            );
        }
    }
}

fn probe(probe: &Map, path: &Path, errors: &mut Errors) {
    handler(probe, None, path, errors);
    for field in [
        "initialDelaySeconds",
        "timeoutSeconds",
        "periodSeconds",
        "successThreshold",
        "failureThreshold",
    ] {
        errors.non_negative(&path.child(field), probe.get(field).and_then(Value::as_i64));
    }
    let grace = probe.get("terminationGracePeriodSeconds").and_then(Value::as_i64);
    if let Some(grace) = grace.filter(|&grace| grace <= 0) {
        errors.invalid(
            &path.child("terminationGracePeriodSeconds"),
            grace,
            "must be greater than 0",
        );
    }
}

fn handler(handler: &Map, grace: Option<i64>, path: &Path, errors: &mut Errors) {
    let mut found = 0;
    for kind in ["exec", "httpGet", "tcpSocket", "grpc", "sleep"] {
        let Some(action) = handler.get(kind).and_then(Value::as_map) else { continue };
        let path = path.child(kind);
        found += 1;
        if found > 1 {
            errors.forbidden(&path, "may not specify more than 1 handler type");
            continue;
        }
        match kind {
            "exec" => {
                if list(action, "command").is_empty() {
                    errors.required(&path.child("command"), "");
                }
            }
            "httpGet" => {
                if text(action, "path").is_empty() {
                    errors.required(&path.child("path"), "");
                }
                port_or_name(action.get("port"), &path.child("port"), errors);
                errors.one_of(&path.child("scheme"), text(action, "scheme"), &["HTTP", "HTTPS"]);
                for header in maps(action, "httpHeaders") {
                    let name = text(header, "name");
                    report(
                        &names::http_header_name(name),
                        &path.child("httpHeaders"),
                        name,
                        errors,
                    );
                }
            }
            "tcpSocket" => port_or_name(action.get("port"), &path.child("port"), errors),
            "grpc" => {
                let port = action.get("port").and_then(Value::as_i64).unwrap_or(0);
                for fault in names::port_number(port) {
                    errors.invalid(&path.child("port"), port, &fault);
                }
            }
            _ => {
                let seconds = action.get("seconds").and_then(Value::as_i64).unwrap_or(0);
                let limit = grace.unwrap_or(30);
                if seconds < 0 || seconds > limit {
                    let why = format!(
                        "must be non-negative and less than terminationGracePeriodSeconds ({limit}). Enable AllowPodLifecycleSleepActionZeroValue feature gate for zero sleep."
                    );
                    errors.invalid(&path, seconds, &why);
                }
            }
        }
    }
    if found == 0 {
        errors.required(path, "must specify a handler type");
    }
}

pub(crate) fn port_or_name(port: Option<&Value>, path: &Path, errors: &mut Errors) {
    match port {
        Some(Value::String(name)) => report(&names::port_name(name), path, name, errors),
        Some(Value::Int(number)) => {
            for fault in names::port_number(*number) {
                errors.invalid(path, *number, &fault);
            }
        }
        _ => {
            for fault in names::port_number(0) {
                errors.invalid(path, 0, &fault);
            }
        }
    }
}

fn resources(resources: &Map, path: &Path, errors: &mut Errors) {
    let (limits, requests) = (
        resources.get("limits").and_then(Value::as_map),
        resources.get("requests").and_then(Value::as_map),
    );
    for (field, map) in [("limits", limits), ("requests", requests)] {
        for (name, value) in map.into_iter().flat_map(Map::iter) {
            let path = path.child(field).key(name);
            resource_name(name, &path, errors);
            if let Some(quantity) = quantity(value).filter(Quantity::is_negative) {
                errors.invalid(&path, quantity.to_string(), "must be greater than or equal to 0");
            }
        }
    }
    for (name, value) in requests.into_iter().flat_map(Map::iter) {
        let limit = limits.and_then(|limits| limits.get(name)).and_then(quantity);
        if let (Some(request), Some(limit)) = (quantity(value), limit) {
            let path = path.child("requests");
            let overcommits = matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage");
            if !overcommits && request != limit {
                let why = format!("must be equal to {name} limit of {limit}");
                errors.invalid(&path, request.to_string(), &why);
            } else if request > limit {
                let why = format!("must be less than or equal to {name} limit of {limit}");
                errors.invalid(&path, request.to_string(), &why);
            }
        }
    }
}

fn resource_name(name: &str, path: &Path, errors: &mut Errors) {
    report(&names::qualified_name(name), path, name, errors);
    let standard =
        matches!(name, "cpu" | "memory" | "ephemeral-storage") || name.starts_with("hugepages-");
    if !name.contains('/') && !standard {
        errors.invalid(path, name, "must be a standard resource type or fully qualified");
        errors.invalid(path, name, "must be a standard resource for containers");
    }
}

pub(crate) fn quantity(value: &Value) -> Option<Quantity> {
    match value {
        Value::String(text) => Quantity::parse(text).ok(),
        Value::Int(number) => Quantity::parse(&number.to_string()).ok(),
        _ => None,
    }
}

fn dns(spec: &Map, path: &Path, errors: &mut Errors) {
    let policy = text(spec, "dnsPolicy");
    if policy.is_empty() {
        errors.required(&path.child("dnsPolicy"), "");
    } else {
        let known = ["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"];
        errors.one_of(&path.child("dnsPolicy"), policy, &known);
    }
    let config = spec.get("dnsConfig").and_then(Value::as_map);
    let servers = config.map_or(0, |config| list(config, "nameservers").len());
    let config_path = path.child("dnsConfig");
    if policy == "None" && config.is_none() {
        errors.required(&config_path, "must provide `dnsConfig` when `dnsPolicy` is None");
    } else if policy == "None" && servers == 0 {
        let why = "must provide at least one DNS nameserver when `dnsPolicy` is None";
        errors.required(&config_path.child("nameservers"), why);
    }
    if servers > 3 {
        let value =
            config.and_then(|config| config.get("nameservers")).cloned().unwrap_or_default();
        errors.invalid(
            &config_path.child("nameservers"),
            value,
            "must not have more than 3 nameservers",
        );
    }
}

fn node_selector(spec: &Map, path: &Path, errors: &mut Errors) {
    let selector = spec.get("nodeSelector").and_then(Value::as_map);
    crate::names::labels(selector, &path.child("nodeSelector"), errors);
}

fn ids(context: &Map, fields: &[&str], path: &Path, errors: &mut Errors) {
    for field in fields {
        let id = context.get(field).and_then(Value::as_i64);
        if let Some(id) = id.filter(|id| !(0..=i64::from(i32::MAX)).contains(id)) {
            errors.invalid(&path.child(field), id, "must be between 0 and 2147483647, inclusive");
        }
    }
}

fn security_context(spec: &Map, path: &Path, errors: &mut Errors) {
    let Some(context) = spec.get("securityContext").and_then(Value::as_map) else { return };
    let path = path.child("securityContext");
    ids(context, &["fsGroup", "runAsUser", "runAsGroup"], &path, errors);
    for (at, group) in list(context, "supplementalGroups").iter().enumerate() {
        if let Some(id) = group.as_i64().filter(|id| !(0..=i64::from(i32::MAX)).contains(id)) {
            let path = path.child("supplementalGroups").index(at);
            errors.invalid(&path, id, "must be between 0 and 2147483647, inclusive");
        }
    }
    if let Some(policy) = context.get("fsGroupChangePolicy").and_then(Value::as_str) {
        errors.one_of(&path.child("fsGroupChangePolicy"), policy, &["Always", "OnRootMismatch"]);
    }
}

fn tolerations(spec: &Map, path: &Path, errors: &mut Errors) {
    for (at, toleration) in maps(spec, "tolerations").enumerate() {
        let path = path.index(at);
        let (key, value) = (text(toleration, "key"), text(toleration, "value"));
        let (operator, effect) = (text(toleration, "operator"), text(toleration, "effect"));
        if !key.is_empty() {
            crate::names::qualified_at(key, &path.child("key"), errors);
        } else if operator != "Exists" {
            let why = "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
            errors.invalid(&path.child("operator"), operator, why);
        }
        if toleration.get("tolerationSeconds").is_some_and(|s| !s.is_null())
            && effect != "NoExecute"
        {
            let why = "effect must be 'NoExecute' when `tolerationSeconds` is set";
            errors.invalid(&path.child("effect"), effect, why);
        }
        match operator {
            "" | "Equal" => {
                report(&names::label_value(value), &path.child("operator"), value, errors)
            }
            "Exists" => {
                if !value.is_empty() {
                    let why = "value must be empty when `operator` is 'Exists'";
                    errors.invalid(&path.child("operator"), value, why);
                }
            }
            "Gt" | "Lt" => {
                if value.parse::<i64>().is_err() {
                    errors.invalid(&path.child("value"), value, "must be a valid integer");
                }
            }
            other => errors.not_supported(&path.child("operator"), other, &["Equal", "Exists"]),
        }
        if !effect.is_empty() {
            errors.one_of(
                &path.child("effect"),
                effect,
                &["NoSchedule", "PreferNoSchedule", "NoExecute"],
            );
        }
    }
}

fn topology_spread(spec: &Map, path: &Path, errors: &mut Errors) {
    for (at, constraint) in maps(spec, "topologySpreadConstraints").enumerate() {
        let path = path.index(at);
        let skew = constraint.get("maxSkew").and_then(Value::as_i64).unwrap_or(0);
        if skew <= 0 {
            errors.invalid(&path.child("maxSkew"), skew, "must be greater than zero");
        }
        match text(constraint, "topologyKey") {
            "" => errors.required(&path.child("topologyKey"), "can not be empty"),
            key => crate::names::qualified_at(key, &path.child("topologyKey"), errors),
        }
        let action = text(constraint, "whenUnsatisfiable");
        errors.one_of(
            &path.child("whenUnsatisfiable"),
            action,
            &["DoNotSchedule", "ScheduleAnyway"],
        );
    }
}

fn host_aliases(spec: &Map, path: &Path, errors: &mut Errors) {
    for (at, alias) in maps(spec, "hostAliases").enumerate() {
        let path = path.index(at);
        let ip = text(alias, "ip");
        if ip.parse::<std::net::IpAddr>().is_err() {
            errors.invalid(&path.child("ip"), ip, IP_FAULT);
        }
        for (at, name) in list(alias, "hostnames").iter().filter_map(Value::as_str).enumerate() {
            report(
                &names::dns1123_subdomain(name),
                &path.child("hostnames").index(at),
                name,
                errors,
            );
        }
    }
}

pub(crate) const IP_FAULT: &str = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";

fn affinities(affinity: &Map, path: &Path, errors: &mut Errors) {
    if let Some(node) = affinity.get("nodeAffinity").and_then(Value::as_map) {
        let path = path.child("nodeAffinity");
        let field = "requiredDuringSchedulingIgnoredDuringExecution";
        if let Some(required) = node.get(field).and_then(Value::as_map) {
            node_terms(required, &path.child(field), errors);
        }
        let field = "preferredDuringSchedulingIgnoredDuringExecution";
        for (at, term) in maps(node, field).enumerate() {
            let path = path.child(field).index(at);
            weight(term, &path, errors);
            if let Some(preference) = term.get("preference").and_then(Value::as_map) {
                node_term(preference, &path.child("preference"), errors);
            }
        }
    }
    for kind in ["podAffinity", "podAntiAffinity"] {
        let Some(pods) = affinity.get(kind).and_then(Value::as_map) else { continue };
        let path = path.child(kind);
        let field = "requiredDuringSchedulingIgnoredDuringExecution";
        for (at, term) in maps(pods, field).enumerate() {
            topology_key(term, &path.child(field).index(at), errors);
        }
        let field = "preferredDuringSchedulingIgnoredDuringExecution";
        for (at, term) in maps(pods, field).enumerate() {
            let path = path.child(field).index(at);
            weight(term, &path, errors);
            if let Some(inner) = term.get("podAffinityTerm").and_then(Value::as_map) {
                topology_key(inner, &path.child("podAffinityTerm"), errors);
            }
        }
    }
}

fn weight(term: &Map, path: &Path, errors: &mut Errors) {
    let weight = term.get("weight").and_then(Value::as_i64).unwrap_or(0);
    if !(1..=100).contains(&weight) {
        errors.invalid(&path.child("weight"), weight, "must be in the range 1-100");
    }
}

fn topology_key(term: &Map, path: &Path, errors: &mut Errors) {
    let key = text(term, "topologyKey");
    if key.is_empty() {
        errors.required(&path.child("topologyKey"), "can not be empty");
    }
    crate::names::qualified_at(key, &path.child("topologyKey"), errors);
}

pub(crate) fn node_terms(selector: &Map, path: &Path, errors: &mut Errors) {
    let path = path.child("nodeSelectorTerms");
    if list(selector, "nodeSelectorTerms").is_empty() {
        errors.required(&path, "must have at least one node selector term");
    }
    for (at, term) in maps(selector, "nodeSelectorTerms").enumerate() {
        node_term(term, &path.index(at), errors);
    }
}

fn node_term(term: &Map, path: &Path, errors: &mut Errors) {
    for (at, expression) in maps(term, "matchExpressions").enumerate() {
        let path = path.child("matchExpressions").index(at);
        let values = list(expression, "values").len();
        match text(expression, "operator") {
            "In" | "NotIn" if values == 0 => {
                errors.required(
                    &path.child("values"),
                    "must be specified when `operator` is 'In' or 'NotIn'",
                );
            }
            "Exists" | "DoesNotExist" if values > 0 => {
                let why = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
                errors.forbidden(&path.child("values"), why);
            }
            "Gt" | "Lt" if values != 1 => {
                let why = "must be specified single value when `operator` is 'Lt' or 'Gt'";
                errors.required(&path.child("values"), why);
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" | "Gt" | "Lt" => {}
            other => {
                errors.invalid(&path.child("operator"), other, "not a valid selector operator")
            }
        }
        crate::names::qualified_at(text(expression, "key"), &path.child("key"), errors);
    }
}
