//! Gives Services of type LoadBalancer an address of the cluster's pool, as a cloud would.

use std::{collections::BTreeSet, net::IpAddr};

use client::{Cached, Key};
use machinery::{Map, Object, Value, value};
use stdx::Timestamp;

use super::node_ipam::addresses_of;
use crate::{plan::*, resources::*};

pub const CONTROLLER: Controller = Controller {
    name: "service-lb-controller",
    account: "service-controller",
    primary: &SERVICES,
    watches: &[],
    rbac: &[allow_sub(&SERVICES, "status", &["update"])],
    // One at a time, so that two Services never get the same.
    workers: 1,
    work: Work::Reconcile(reconcile),
};

/// The `loadBalancerClass` that asks for this pool by name; a Service without class gets it too.
const CLASS: &str = "gantry.dev/pool";

fn reconcile(key: &Key, world: &World, _: Timestamp) -> Plan {
    let mut plan = Plan::none();
    let Some(service) = world.object(&SERVICES, key) else { return plan };
    if world.config().load_balancer_pool.is_empty() || service.is_deleting() {
        return plan;
    }
    let held = ingress(&service);
    let ours = |address: &IpAddr| pool(world).any(|a| a == *address);
    if !wants_address(&service) {
        let is_balancer = service.str_at(&["spec", "type"]) == "LoadBalancer";
        if !is_balancer && held.iter().any(ours) {
            set_ingress(&mut plan, &service, None);
        }
        return plan;
    }
    let taken = taken_by_others(world, key);
    let asked = service.str_at(&["spec", "loadBalancerIP"]).parse::<IpAddr>().ok();
    if held.first().is_some_and(|h| !taken.contains(h) && asked.is_none_or(|a| a == *h)) {
        return plan;
    }
    let wants_ipv6 = service.list_at(&["spec", "ipFamilies"]).first() == Some(&Value::from("IPv6"));
    let mut free = pool(world).filter(|a| a.is_ipv6() == wants_ipv6 && !taken.contains(a));
    let chosen = match asked {
        Some(asked) => free.find(|address| *address == asked),
        None => free.next(),
    };
    match chosen {
        Some(address) => {
            set_ingress(&mut plan, &service, Some(address));
            plan.event(Note::normal(&service, "EnsuredLoadBalancer", "Ensured load balancer"));
        }
        None => {
            let text = match asked {
                Some(asked) => format!("Error syncing load balancer: {asked} is not free in the pool"),
                None => "Error syncing load balancer: the pool has no free address".to_owned(),
            };
            plan.event(Note::warning(&service, "SyncLoadBalancerFailed", text));
        }
    }
    plan
}

fn wants_address(service: &Object) -> bool {
    let class = service.str_at(&["spec", "loadBalancerClass"]);
    service.str_at(&["spec", "type"]) == "LoadBalancer" && matches!(class, "" | CLASS)
}

fn pool(world: &World) -> impl Iterator<Item = IpAddr> {
    world.config().load_balancer_pool.iter().flat_map(|entry| addresses_of(entry))
}

fn ingress(service: &Object) -> Vec<IpAddr> {
    let list = service.list_at(&["status", "loadBalancer", "ingress"]);
    list.iter().filter_map(|entry| entry.get("ip")?.as_str()?.parse().ok()).collect()
}

fn taken_by_others(world: &World, key: &Key) -> BTreeSet<IpAddr> {
    let services = world.list(&SERVICES).all();
    let others = services.iter().filter(|cached| cached.key != *key);
    others.filter_map(|cached: &std::sync::Arc<Cached>| cached.object().ok()).flat_map(|s| ingress(&s)).collect()
}

fn set_ingress(plan: &mut Plan, service: &Object, address: Option<IpAddr>) {
    let mut status = service.map_at(&["status"]).cloned().unwrap_or_default();
    let balancer: Value = match address {
        Some(address) => value!({"ingress": [{"ip": address.to_string(), "ipMode": "VIP"}]}),
        None => Map::new().into(),
    };
    status.insert("loadBalancer", balancer);
    plan.set_status(&SERVICES, service, status);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Config, scenario::{cached, world_with}};

    fn service(name: &str, kind: &str, ip: &str) -> Cached {
        let ingress = if ip.is_empty() { value!([]) } else { value!([{"ip": ip}]) };
        let mut service = value!({"metadata": {"namespace": "d", "name": name}, "spec": {"type": kind}});
        service.as_map_mut().unwrap().set_at(&["status", "loadBalancer", "ingress"], ingress);
        cached(service)
    }

    fn given(services: Vec<Cached>) -> Option<String> {
        let config = Config { load_balancer_pool: vec!["10.9.0.1-10.9.0.2".into()], ..Config::default() };
        let plan = reconcile(&Key::new("d", "x"), &world_with(config, [(&SERVICES, services)]), Timestamp::default());
        let step = plan.steps.first()?;
        let Intent::Update { object, .. } = &step.intent else { panic!() };
        let ip = object.list_at(&["status", "loadBalancer", "ingress"]).first().and_then(|e| e.get("ip")?.as_str().map(str::to_owned));
        Some(ip.unwrap_or_default())
    }

    #[test]
    fn gives_the_first_free_address_and_takes_it_back() {
        let other = || service("y", "LoadBalancer", "10.9.0.1");
        assert_eq!(given(vec![service("x", "LoadBalancer", ""), other()]), Some("10.9.0.2".into()));
        assert_eq!(given(vec![service("x", "LoadBalancer", "10.9.0.2"), other()]), None);
        assert_eq!(given(vec![service("x", "ClusterIP", "10.9.0.2"), other()]), Some("".into()));
        let full = vec![service("x", "LoadBalancer", ""), other(), service("z", "LoadBalancer", "10.9.0.2")];
        assert_eq!(given(full), None);
    }
}
