//! Services: defaults, addresses, ports.

use std::{collections::BTreeSet, net::IpAddr};

use api::{Status, names};
use async_trait::async_trait;
use machinery::{Map, Object, Value, value};

use crate::{
    Options, RequestContext, Resource,
    allocation::{self, Block, Refusal},
    compare::semantically_equal,
    edit::{copy_field, each, inside, list, maps, or, spec, text},
    errors::{Errors, Path},
    kinds::{
        cells::{labels, load_balancer},
        pod_validation::{IP_FAULT, port_or_name},
    },
    names::report,
    strategy::{NameRule, Strategy},
    table::{AGE, Column, NAME},
};

const NONE: &str = "None";

static COLUMNS: [Column; 7] = [
    NAME,
    Column::text("Type", |o, _| o.str_at(&["spec", "type"]).into()),
    Column::text("Cluster-IP", |o, _| {
        let first = o.list_at(&["spec", "clusterIPs"]).first().and_then(Value::as_str);
        first.unwrap_or("<none>").into()
    }),
    Column::text("External-IP", |o, _| external(o).into()),
    Column::text("Port(s)", |o, _| ports_text(o).into()),
    AGE,
    Column::text("Selector", |o, _| labels(o.map_at(&["spec", "selector"]))).wide(),
];

fn external(service: &Object) -> String {
    let fixed: Vec<&str> =
        service.list_at(&["spec", "externalIPs"]).iter().filter_map(Value::as_str).collect();
    match service.str_at(&["spec", "type"]) {
        "ClusterIP" | "NodePort" if fixed.is_empty() => "<none>".into(),
        "ClusterIP" | "NodePort" => fixed.join(","),
        "LoadBalancer" => {
            let given = load_balancer(service);
            let all: Vec<&str> =
                given.split(',').filter(|ip| !ip.is_empty()).chain(fixed).collect();
            if all.is_empty() { "<pending>".into() } else { all.join(",") }
        }
        "ExternalName" => service.str_at(&["spec", "externalName"]).into(),
        _ => "<unknown>".into(),
    }
}

fn ports_text(service: &Object) -> String {
    let all: Vec<String> = service
        .list_at(&["spec", "ports"])
        .iter()
        .filter_map(Value::as_map)
        .map(|port| {
            let number = |field| port.get(field).and_then(Value::as_i64).unwrap_or(0);
            match number("nodePort") {
                0 => format!("{}/{}", number("port"), text(port, "protocol")),
                node => format!("{}:{node}/{}", number("port"), text(port, "protocol")),
            }
        })
        .collect();
    if all.is_empty() { "<none>".into() } else { all.join(",") }
}

/// The strategy of Services: it alone claims addresses and ports.
pub(crate) struct Services;

#[async_trait]
impl Strategy for Services {
    fn default(&self, service: &mut Object) {
        spec(service, default_spec);
        let balanced = service.str_at(&["spec", "type"]) == "LoadBalancer";
        inside(service.root_mut(), "status", |status| {
            inside(status, "loadBalancer", |balancer| {
                each(balancer, "ingress", |point| {
                    if balanced && !text(point, "ip").is_empty() {
                        or(point, "ipMode", "VIP");
                    }
                });
            });
        });
    }

    fn prepare_create(&self, _: &RequestContext, service: &mut Object) {
        normalize_addresses(service, None);
    }

    fn prepare_update(
        &self,
        _: &RequestContext,
        subresource: &str,
        new: &mut Object,
        old: &Object,
    ) {
        if subresource == "status" {
            return;
        }
        drop_what_another_type_had(new, old);
        keep_allocated(new, old);
        normalize_addresses(new, Some(old));
    }

    fn initial_status(&self, _: &Object) -> Option<Value> {
        Some(value!({"loadBalancer": {}}))
    }

    fn validate_create(&self, service: &Object, errors: &mut Errors) {
        validate(service, errors);
    }

    fn validate_update(&self, subresource: &str, new: &Object, old: &Object, errors: &mut Errors) {
        if subresource.is_empty() {
            addresses_update(new, old, errors);
        }
    }

    async fn allocate(
        &self,
        at: &Resource,
        cx: &RequestContext,
        new: &mut Object,
        old: Option<&Object>,
    ) -> Result<(), Status> {
        let claimed = claim_addresses(at, cx, new, old).await?;
        if let Err(status) = claim_ports(at, cx, new, old).await {
            for address in claimed {
                allocation::release_address(at, &address, (new.namespace(), new.name())).await;
            }
            return Err(status);
        }
        Ok(())
    }

    async fn release(&self, at: &Resource, gone: &Object, kept: Option<&Object>) {
        let keep: BTreeSet<String> = kept.map(addresses_of).unwrap_or_default();
        for address in addresses_of(gone).difference(&keep) {
            allocation::release_address(at, address, (gone.namespace(), gone.name())).await;
        }
        let keep = kept.map(ports_of).unwrap_or_default();
        let ports: Vec<u16> = ports_of(gone).difference(&keep).copied().collect();
        allocation::release_ports(&at.storage.shared, &ports).await;
    }

    fn name_rule(&self) -> NameRule {
        NameRule::Label
    }

    fn allows_create_on_update(&self) -> bool {
        true
    }

    fn returns_deleted_object(&self) -> bool {
        true
    }

    fn selectable_fields(&self) -> &'static [&'static str] {
        &["spec.clusterIP", "spec.type"]
    }

    fn columns(&self) -> &'static [Column] {
        &COLUMNS
    }
}

fn default_spec(spec: &mut Map) {
    or(spec, "sessionAffinity", "None");
    match text(spec, "sessionAffinity") {
        "None" => {
            spec.remove("sessionAffinityConfig");
        }
        "ClientIP" => {
            let seconds = spec.at(&["sessionAffinityConfig", "clientIP", "timeoutSeconds"]);
            if seconds.is_none_or(Value::is_null) {
                spec.set_at(&["sessionAffinityConfig", "clientIP", "timeoutSeconds"], 10_800);
            }
        }
        _ => {}
    }
    or(spec, "type", "ClusterIP");
    each(spec, "ports", |port| {
        or(port, "protocol", "TCP");
        let number = port.get("port").and_then(Value::as_i64).unwrap_or(0);
        match port.get("targetPort") {
            Some(Value::Int(0)) => {
                port.insert("targetPort", number);
            }
            _ => or(port, "targetPort", number),
        }
    });
    let kind = text(spec, "type").to_owned();
    let outside = matches!(kind.as_str(), "NodePort" | "LoadBalancer")
        || (kind == "ClusterIP" && !list(spec, "externalIPs").is_empty());
    if outside {
        or(spec, "externalTrafficPolicy", "Cluster");
    }
    if kind != "ExternalName" {
        or(spec, "internalTrafficPolicy", "Cluster");
    }
    if kind == "LoadBalancer" {
        or(spec, "allocateLoadBalancerNodePorts", true);
    }
}

fn kind(service: &Object) -> &str {
    service.str_at(&["spec", "type"])
}

fn needs_address(service: &Object) -> bool {
    matches!(kind(service), "ClusterIP" | "NodePort" | "LoadBalancer")
}

fn needs_node_ports(service: &Object) -> bool {
    let unwanted = service.at(&["spec", "allocateLoadBalancerNodePorts"]).and_then(Value::as_bool)
        == Some(false);
    kind(service) == "NodePort" || (kind(service) == "LoadBalancer" && !unwanted)
}

fn is_headless(service: &Object) -> bool {
    service.str_at(&["spec", "clusterIP"]) == NONE
}

fn addresses_of(service: &Object) -> BTreeSet<String> {
    let all = service.list_at(&["spec", "clusterIPs"]).iter().filter_map(Value::as_str);
    all.filter(|ip| !ip.is_empty() && *ip != NONE).map(str::to_owned).collect()
}

fn ports_of(service: &Object) -> BTreeSet<u16> {
    let ports = service.list_at(&["spec", "ports"]).iter();
    let numbers = ports.filter_map(|port| port.get("nodePort")?.as_i64());
    let health = service.i64_at(&["spec", "healthCheckNodePort"]);
    numbers.chain(health).filter_map(|n| u16::try_from(n).ok()).filter(|&n| n != 0).collect()
}

/// `clusterIP` and `clusterIPs[0]` say the same; who changes one alone means both.
fn normalize_addresses(new: &mut Object, old: Option<&Object>) {
    let one = new.str_at(&["spec", "clusterIP"]).to_owned();
    let many = new.list_at(&["spec", "clusterIPs"]).to_vec();
    let Some(old) = old else {
        if !one.is_empty() && many.is_empty() {
            new.set_at(&["spec", "clusterIPs"], vec![one]);
        }
        return;
    };
    let before = old.str_at(&["spec", "clusterIP"]);
    let same_list =
        semantically_equal(new.at(&["spec", "clusterIPs"]), old.at(&["spec", "clusterIPs"]));
    if !before.is_empty() && one.is_empty() && same_list {
        new.remove_at(&["spec", "clusterIPs"]);
    } else if !one.is_empty() && (many.is_empty() || (one != before && same_list)) {
        new.set_at(&["spec", "clusterIPs"], vec![one]);
    }
}

fn keep_allocated(new: &mut Object, old: &Object) {
    if needs_address(new) && needs_address(old) {
        if new.str_at(&["spec", "clusterIP"]).is_empty() {
            copy_field(new, old, &["spec", "clusterIP"]);
        }
        if new.list_at(&["spec", "clusterIPs"]).is_empty()
            && new.str_at(&["spec", "clusterIP"]) == old.str_at(&["spec", "clusterIP"])
        {
            copy_field(new, old, &["spec", "clusterIPs"]);
        }
        for field in ["ipFamilies", "ipFamilyPolicy"] {
            if new.at(&["spec", field]).is_none() {
                copy_field(new, old, &["spec", field]);
            }
        }
    }
    if needs_node_ports(new) && needs_node_ports(old) {
        let before: Vec<Map> =
            old.list_at(&["spec", "ports"]).iter().filter_map(Value::as_map).cloned().collect();
        let used: BTreeSet<i64> = new
            .list_at(&["spec", "ports"])
            .iter()
            .filter_map(|port| port.get("nodePort")?.as_i64())
            .filter(|&number| number != 0)
            .collect();
        spec(new, |spec| {
            each(spec, "ports", |port| {
                let number = port.get("nodePort").and_then(Value::as_i64).unwrap_or(0);
                let twin = before.iter().find(|old| {
                    old.get("port") == port.get("port")
                        && text(old, "protocol") == text(port, "protocol")
                });
                let kept = twin.and_then(|old| old.get("nodePort")).and_then(Value::as_i64);
                if let (0, Some(kept)) = (number, kept.filter(|kept| !used.contains(kept))) {
                    port.insert("nodePort", kept);
                }
            });
        });
    }
    let health = old.i64_at(&["spec", "healthCheckNodePort"]).unwrap_or(0);
    if needs_health_port(new)
        && new.i64_at(&["spec", "healthCheckNodePort"]).unwrap_or(0) == 0
        && health != 0
    {
        new.set_at(&["spec", "healthCheckNodePort"], health);
    }
}

fn needs_health_port(service: &Object) -> bool {
    kind(service) == "LoadBalancer" && service.str_at(&["spec", "externalTrafficPolicy"]) == "Local"
}

/// Who changes the type and leaves fields as they were does not mean to keep them.
fn drop_what_another_type_had(new: &mut Object, old: &Object) {
    let same = |new: &Object, field: &str| {
        semantically_equal(new.at(&["spec", field]), old.at(&["spec", field]))
    };
    if needs_address(old)
        && !needs_address(new)
        && same(new, "clusterIP")
        && same(new, "clusterIPs")
    {
        for field in
            ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy", "internalTrafficPolicy"]
        {
            if same(new, field) {
                new.remove_at(&["spec", field]);
            }
        }
    }
    if needs_node_ports(old) && !needs_node_ports(new) {
        let before = ports_of(old);
        spec(new, |spec| {
            each(spec, "ports", |port| {
                let number = port.get("nodePort").and_then(Value::as_i64).unwrap_or(0);
                if u16::try_from(number).is_ok_and(|number| before.contains(&number)) {
                    port.remove("nodePort");
                }
            });
        });
    }
    let outside = |kind: &str| matches!(kind, "NodePort" | "LoadBalancer");
    if outside(kind(old)) && !outside(kind(new)) && same(new, "externalTrafficPolicy") {
        new.remove_at(&["spec", "externalTrafficPolicy"]);
    }
    if needs_health_port(old) && !needs_health_port(new) && same(new, "healthCheckNodePort") {
        new.remove_at(&["spec", "healthCheckNodePort"]);
    }
    if kind(old) == "LoadBalancer" && kind(new) != "LoadBalancer" {
        for field in ["allocateLoadBalancerNodePorts", "loadBalancerClass"] {
            if same(new, field) {
                new.remove_at(&["spec", field]);
            }
        }
        new.set_at(&["status", "loadBalancer"], Map::new());
    }
    if kind(old) == "ExternalName" && kind(new) != "ExternalName" && same(new, "externalName") {
        new.remove_at(&["spec", "externalName"]);
    }
}

fn validate(service: &Object, errors: &mut Errors) {
    // Addresses are looked at first, and what cannot be claimed is all that is told.
    let before = errors.len();
    for (at, ip) in
        service.list_at(&["spec", "clusterIPs"]).iter().filter_map(Value::as_str).enumerate()
    {
        if ip != NONE && ip.parse::<IpAddr>().is_err() {
            errors.invalid(&Path::new("spec").child("clusterIPs").index(at), ip, IP_FAULT);
        }
    }
    if errors.len() > before {
        return;
    }
    let path = Path::new("spec");
    let empty = Map::new();
    let spec = service.map_at(&["spec"]).unwrap_or(&empty);
    let (kind, headless) = (kind(service), is_headless(service));
    if list(spec, "ports").is_empty() && !headless && kind != "ExternalName" {
        errors.required(&path.child("ports"), "");
    }
    match kind {
        "LoadBalancer" | "NodePort" if headless => {
            let why = format!("may not be set to 'None' for {kind} services");
            errors.invalid(&path.child("clusterIPs").index(0), NONE, &why);
        }
        "ExternalName" => external_name(spec, &path, errors),
        _ => {}
    }
    ports(spec, &path.child("ports"), errors);
    crate::names::labels(
        spec.get("selector").and_then(Value::as_map),
        &path.child("selector"),
        errors,
    );
    match text(spec, "sessionAffinity") {
        "" => errors.required(&path.child("sessionAffinity"), ""),
        affinity => errors.one_of(&path.child("sessionAffinity"), affinity, &["ClientIP", "None"]),
    }
    if let Some(seconds) =
        spec.at(&["sessionAffinityConfig", "clientIP", "timeoutSeconds"]).and_then(Value::as_i64)
    {
        if !(1..=86_400).contains(&seconds) {
            let path =
                path.child("sessionAffinityConfig").child("clientIP").child("timeoutSeconds");
            errors.invalid(&path, seconds, "must be greater than 0 and less than 86400");
        }
    }
    addresses(spec, &path, errors);
    for (at, ip) in list(spec, "externalIPs").iter().filter_map(Value::as_str).enumerate() {
        if ip.parse::<IpAddr>().is_err() {
            errors.invalid(&path.child("externalIPs").index(at), ip, IP_FAULT);
        }
    }
    match kind {
        "" => errors.required(&path.child("type"), ""),
        kind => {
            let known = ["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];
            errors.one_of(&path.child("type"), kind, &known);
        }
    }
    traffic(spec, kind, &path, errors);
}

fn external_name(spec: &Map, path: &Path, errors: &mut Errors) {
    for field in ["clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
        let set = match spec.get(field) {
            Some(Value::List(list)) => !list.is_empty(),
            Some(Value::String(text)) => !text.is_empty(),
            _ => false,
        };
        if set {
            errors.forbidden(&path.child(field), "may not be set for ExternalName services");
        }
    }
    let name = text(spec, "externalName");
    match name.strip_suffix('.').unwrap_or(name) {
        "" => errors.required(&path.child("externalName"), ""),
        name => report(&names::dns1123_subdomain(name), &path.child("externalName"), name, errors),
    }
}

fn ports(spec: &Map, path: &Path, errors: &mut Errors) {
    let several = list(spec, "ports").len() > 1;
    let (mut known, mut places, mut node_places) =
        (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for (at, port) in maps(spec, "ports").enumerate() {
        let path = path.index(at);
        let name = text(port, "name");
        if name.is_empty() && several {
            errors.required(&path.child("name"), "");
        } else if !name.is_empty() {
            report(&names::dns1123_label(name), &path.child("name"), name, errors);
            if !known.insert(name) {
                errors.duplicate(&path.child("name"), name);
            }
        }
        let number = port.get("port").and_then(Value::as_i64).unwrap_or(0);
        for fault in names::port_number(number) {
            errors.invalid(&path.child("port"), number, &fault);
        }
        let protocol = text(port, "protocol");
        match protocol {
            "" => errors.required(&path.child("protocol"), ""),
            protocol => errors.one_of(&path.child("protocol"), protocol, &["SCTP", "TCP", "UDP"]),
        }
        port_or_name(port.get("targetPort"), &path.child("targetPort"), errors);
        let app = text(port, "appProtocol");
        if !app.is_empty() {
            crate::names::qualified_at(app, &path.child("appProtocol"), errors);
        }
        if !places.insert((number, protocol)) {
            let shown = format!(
                "{{\"Name\":\"\",\"Protocol\":{protocol:?},\"AppProtocol\":null,\"Port\":{number},\"TargetPort\":0,\"NodePort\":0}}"
            );
            errors.shown(&path, "FieldValueDuplicate", "Duplicate value", &shown, "");
        }
        let node = port.get("nodePort").and_then(Value::as_i64).unwrap_or(0);
        if node != 0 {
            if text(spec, "type") == "ClusterIP" {
                errors.forbidden(
                    &path.child("nodePort"),
                    "may not be used when `type` is 'ClusterIP'",
                );
            }
            if !node_places.insert((node, protocol)) {
                errors.duplicate(&path.child("nodePort"), node);
            }
        }
    }
}

fn addresses(spec: &Map, path: &Path, errors: &mut Errors) {
    let many = list(spec, "clusterIPs");
    let one = text(spec, "clusterIP");
    let path = path.child("clusterIPs");
    if let Some(first) = many.first().and_then(Value::as_str) {
        if one.is_empty() {
            errors.required(&"spec.clusterIP".into(), "must be set when `clusterIPs` is set");
        } else if first != one {
            errors.invalid(
                &path,
                Value::List(many.to_vec().into()),
                "first value must match `clusterIP`",
            );
        }
    }
    for (at, ip) in many.iter().filter_map(Value::as_str).enumerate() {
        let path = path.index(at);
        if at > 0 && ip == NONE {
            errors.invalid(
                &path,
                ip,
                "must not have more than one value when first value is 'None'",
            );
        } else if ip != NONE && ip.parse::<IpAddr>().is_err() {
            errors.invalid(&path, ip, IP_FAULT);
        }
    }
    if many.len() > 2 {
        errors.invalid(&path, Value::List(many.to_vec().into()), "may only hold up to 2 values");
    }
    let families = "spec.ipFamilies".into();
    for family in list(spec, "ipFamilies").iter().filter_map(Value::as_str) {
        errors.one_of(&families, family, &["IPv4", "IPv6"]);
    }
    let policy = text(spec, "ipFamilyPolicy");
    if !policy.is_empty() {
        let known = ["PreferDualStack", "RequireDualStack", "SingleStack"];
        errors.one_of(&"spec.ipFamilyPolicy".into(), policy, &known);
    }
}

fn traffic(spec: &Map, kind: &str, path: &Path, errors: &mut Errors) {
    let external = text(spec, "externalTrafficPolicy");
    let outside = matches!(kind, "NodePort" | "LoadBalancer")
        || (kind == "ClusterIP" && !list(spec, "externalIPs").is_empty());
    if !external.is_empty() && !outside {
        let why = "may only be set for externally-accessible services";
        errors.invalid(&path.child("externalTrafficPolicy"), external, why);
    } else if !external.is_empty() {
        errors.one_of(&path.child("externalTrafficPolicy"), external, &["Cluster", "Local"]);
    }
    let internal = text(spec, "internalTrafficPolicy");
    if !internal.is_empty() {
        errors.one_of(&path.child("internalTrafficPolicy"), internal, &["Cluster", "Local"]);
    }
    if kind != "LoadBalancer" && spec.contains_key("allocateLoadBalancerNodePorts") {
        let why = "may only be used when `type` is 'LoadBalancer'";
        errors.forbidden(&path.child("allocateLoadBalancerNodePorts"), why);
    }
    if kind != "LoadBalancer" && !text(spec, "loadBalancerClass").is_empty() {
        let why = "may only be used when `type` is 'LoadBalancer'";
        errors.forbidden(&path.child("loadBalancerClass"), why);
    }
    let health = spec.get("healthCheckNodePort").and_then(Value::as_i64).unwrap_or(0);
    if health != 0 && !(kind == "LoadBalancer" && external == "Local") {
        let why =
            "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'";
        errors.invalid(&path.child("healthCheckNodePort"), health, why);
    }
}

fn addresses_update(new: &Object, old: &Object, errors: &mut Errors) {
    if kind(new) == "ExternalName" || kind(old) == "ExternalName" {
        return;
    }
    let first = |service: &Object| -> String {
        service
            .list_at(&["spec", "clusterIPs"])
            .first()
            .and_then(Value::as_str)
            .unwrap_or_default()
            .into()
    };
    let (now, before) = (first(new), first(old));
    if !before.is_empty() && now != before {
        let value = new.at(&["spec", "clusterIPs"]).cloned().unwrap_or_default();
        let path = Path::new("spec").child("clusterIPs").index(0);
        let why = if now.is_empty() {
            "primary clusterIP can not be unset"
        } else {
            "may not change once set"
        };
        errors.invalid(&path, value, why);
    }
}

fn blocks(options: &Options) -> Vec<Block> {
    options.service_cidrs.iter().filter_map(|text| Block::parse(text)).collect()
}

fn invalid(at: &Resource, service: &Object, run: impl FnOnce(&mut Errors)) -> Status {
    at.info().invalid(service.name(), crate::strategy::check(run))
}

/// Decides families and addresses; the addresses that this call claimed.
async fn claim_addresses(
    at: &Resource,
    cx: &RequestContext,
    new: &mut Object,
    old: Option<&Object>,
) -> Result<Vec<String>, Status> {
    if !needs_address(new) {
        return Ok(Vec::new());
    }
    let blocks = blocks(&at.storage.shared.options);
    decide_families(at, new, &blocks)?;
    if is_headless(new) {
        new.set_at(&["spec", "clusterIPs"], vec![NONE]);
        return Ok(Vec::new());
    }
    let held = old.map(addresses_of).unwrap_or_default();
    let families: Vec<String> = new
        .list_at(&["spec", "ipFamilies"])
        .iter()
        .filter_map(Value::as_str)
        .map(str::to_owned)
        .collect();
    let asked: Vec<String> = new
        .list_at(&["spec", "clusterIPs"])
        .iter()
        .filter_map(Value::as_str)
        .map(str::to_owned)
        .collect();
    let (mut all, mut claimed) = (Vec::new(), Vec::new());
    for (position, family) in families.iter().enumerate() {
        let Some(block) = blocks.iter().find(|block| block.family() == family) else { continue };
        let wish = asked.get(position).filter(|ip| !ip.is_empty());
        match claim_one(at, cx, new, block, wish, &held).await {
            Ok((address, fresh)) => {
                if fresh {
                    claimed.push(address.clone());
                }
                all.push(address);
            }
            Err(status) => {
                for address in claimed {
                    allocation::release_address(at, &address, (new.namespace(), new.name())).await;
                }
                return Err(status);
            }
        }
    }
    if let Some(first) = all.first() {
        new.set_at(&["spec", "clusterIP"], first.as_str());
    }
    new.set_at(&["spec", "clusterIPs"], all);
    Ok(claimed)
}

async fn claim_one(
    at: &Resource,
    cx: &RequestContext,
    new: &Object,
    block: &Block,
    wish: Option<&String>,
    held: &BTreeSet<String>,
) -> Result<(String, bool), Status> {
    let service = (new.namespace(), new.name());
    let Some(wish) = wish else {
        return match allocation::claim_any_address(at, cx, block, service).await {
            Ok(address) => Ok((address.to_string(), true)),
            Err(Refusal::Failed(status)) => Err(status),
            Err(refusal) => {
                Err(Status::internal(format!("failed to allocate a serviceIP: {}", refusal.text())))
            }
        };
    };
    if held.contains(wish) {
        return Ok((wish.clone(), false));
    }
    let refused = |refusal: Refusal| match refusal {
        Refusal::Failed(status) => status,
        refusal => invalid(at, new, |errors| {
            let why = format!("failed to allocate IP {wish}: {}", refusal.text());
            errors.invalid(&"spec.clusterIPs".into(), vec![wish.as_str()], &why);
        }),
    };
    let address: IpAddr =
        wish.parse().map_err(|_| Status::bad_request(format!("{wish} is no address")))?;
    allocation::claim_address(at, cx, block, address, service).await.map_err(refused)?;
    Ok((address.to_string(), true))
}

fn decide_families(at: &Resource, new: &mut Object, blocks: &[Block]) -> Result<(), Status> {
    let available: Vec<&'static str> = blocks.iter().map(Block::family).collect();
    let Some(primary) = available.first().copied() else {
        return Err(Status::internal("no block of addresses for Services is configured"));
    };
    let asked: Vec<String> = new
        .list_at(&["spec", "ipFamilies"])
        .iter()
        .filter_map(Value::as_str)
        .map(str::to_owned)
        .collect();
    let selectorless = new.map_at(&["spec", "selector"]).is_none_or(Map::is_empty);
    let policy = match new.str_at(&["spec", "ipFamilyPolicy"]) {
        "" if is_headless(new) && selectorless && asked.len() != 1 => "RequireDualStack".to_owned(),
        "" if asked.len() == 2 || addresses_of(new).len() == 2 => "RequireDualStack".to_owned(),
        "" => "SingleStack".to_owned(),
        policy => policy.to_owned(),
    };
    let wished = new.list_at(&["spec", "clusterIPs"]).first().and_then(Value::as_str);
    let wished = wished.and_then(|ip| ip.parse::<IpAddr>().ok());
    let first = match (asked.first(), wished) {
        (Some(family), _) => family.clone(),
        (None, Some(ip)) => {
            if ip.is_ipv4() {
                "IPv4".into()
            } else {
                "IPv6".into()
            }
        }
        (None, None) => primary.to_owned(),
    };
    let free = is_headless(new) && selectorless;
    if !free && !available.contains(&first.as_str()) {
        let position = 0;
        return Err(invalid(at, new, |errors| {
            let path = Path::new("spec").child("ipFamilies").index(position);
            errors.invalid(&path, first.as_str(), "not configured on this cluster");
        }));
    }
    if policy == "RequireDualStack" && available.len() < 2 && !free {
        return Err(invalid(at, new, |errors| {
            let why = "this cluster is not configured for dual-stack services";
            errors.invalid(&"spec.ipFamilyPolicy".into(), policy.as_str(), why);
        }));
    }
    let other = if first == "IPv4" { "IPv6" } else { "IPv4" };
    let both = policy != "SingleStack" && (free || available.len() > 1);
    let families = if both { vec![first, other.to_owned()] } else { vec![first] };
    new.set_at(&["spec", "ipFamilies"], families);
    new.set_at(&["spec", "ipFamilyPolicy"], policy);
    Ok(())
}

async fn claim_ports(
    at: &Resource,
    cx: &RequestContext,
    new: &mut Object,
    old: Option<&Object>,
) -> Result<(), Status> {
    let held = old.map(ports_of).unwrap_or_default();
    let fixed: Vec<u16> = ports_of(new).difference(&held).copied().collect();
    let wants_ports = needs_node_ports(new);
    // One number serves a port of TCP and of UDP alike.
    let mut missing: Vec<i64> = Vec::new();
    if wants_ports {
        for port in new.list_at(&["spec", "ports"]).iter().filter_map(Value::as_map) {
            let number = |field| port.get(field).and_then(Value::as_i64).unwrap_or(0);
            if number("nodePort") == 0 && !missing.contains(&number("port")) {
                missing.push(number("port"));
            }
        }
    }
    let health =
        needs_health_port(new) && new.i64_at(&["spec", "healthCheckNodePort"]).unwrap_or(0) == 0;
    let more = missing.len() + usize::from(health);
    if fixed.is_empty() && more == 0 {
        return Ok(());
    }
    let shared = &at.storage.shared;
    let found =
        allocation::claim_ports(shared, cx, &fixed, more).await.map_err(|(port, refusal)| {
            match refusal {
                Refusal::Failed(status) => status,
                Refusal::Full => Status::internal("failed to allocate a nodePort: range is full"),
                refusal => {
                    let ports = new.list_at(&["spec", "ports"]);
                    let at_port = ports
                        .iter()
                        .position(|p| p.get("nodePort") == Some(&Value::Int(port.into())));
                    let why = match refusal {
                        Refusal::Taken => "provided port is already allocated".to_owned(),
                        refusal => refusal.text(),
                    };
                    invalid(at, new, |errors| {
                        let path = Path::new("spec")
                            .child("ports")
                            .index(at_port.unwrap_or(0))
                            .child("nodePort");
                        errors.invalid(&path, i64::from(port), &why);
                    })
                }
            }
        })?;
    let mut found = found.into_iter();
    let given: Vec<(i64, u16)> = missing.into_iter().zip(found.by_ref()).collect();
    spec(new, |spec| {
        each(spec, "ports", |port| {
            let number = port.get("port").and_then(Value::as_i64).unwrap_or(0);
            let free = port.get("nodePort").and_then(Value::as_i64).unwrap_or(0) == 0;
            if let (true, Some((_, node))) =
                (free && wants_ports, given.iter().find(|(p, _)| *p == number))
            {
                port.insert("nodePort", i64::from(*node));
            }
        });
    });
    if let (true, Some(port)) = (health, found.next()) {
        new.set_at(&["spec", "healthCheckNodePort"], i64::from(port));
    }
    Ok(())
}
