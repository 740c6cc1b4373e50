//! Keeps the zone current from informers of Services and EndpointSlices.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError, RwLock},
};

use client::{Cached, Change, Informer, Key, Lister};
use k8s_openapi::api::{core::v1 as core, discovery::v1 as discovery};
use stdx::chain;

use super::zone::{Endpoint, Port, ServiceName, ServiceNames, Zone};

/// The zone and what it is made from. Cheap to clone.
#[derive(Clone)]
pub struct World(Arc<Inner>);

struct Inner {
    services: Lister,
    slices: Lister,
    zone: RwLock<Zone>,
    slice_names: Mutex<BTreeMap<ServiceName, BTreeSet<String>>>,
}

const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";

impl World {
    /// Follows both informers from now on. A change is in the zone before its handler returns.
    pub fn follow(services: &Informer, slices: &Informer) -> Self {
        let inner = Inner {
            services: services.lister().clone(),
            slices: slices.lister().clone(),
            zone: RwLock::default(),
            slice_names: Mutex::default(),
        };
        let world = Self(Arc::new(inner));
        let of_slices = world.clone();
        slices.on_change(move |change| of_slices.slice_changed(change));
        let of_services = world.clone();
        services.on_change(move |change| of_services.refresh(&service_of(change.key())));
        world
    }

    pub fn read<T>(&self, read: impl FnOnce(&Zone) -> T) -> T {
        read(&self.0.zone.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn slice_changed(&self, change: &Change) {
        let mut touched = BTreeSet::new();
        {
            let mut names = self.0.slice_names.lock().unwrap_or_else(PoisonError::into_inner);
            let slice = change.key().name.as_str();
            if let Some(owner) = change.old.as_ref().and_then(|old| owner(old)) {
                if let Some(slices) = names.get_mut(&owner) {
                    slices.remove(slice);
                    if slices.is_empty() {
                        names.remove(&owner);
                    }
                }
                touched.insert(owner);
            }
            if let Some(owner) = change.new.as_ref().and_then(|new| owner(new)) {
                names.entry(owner.clone()).or_default().insert(slice.to_owned());
                touched.insert(owner);
            }
        }
        touched.iter().for_each(|service| self.refresh(service));
    }

    /// Projects one Service anew. Slices are decoded for headless Services only.
    fn refresh(&self, name: &ServiceName) {
        let cached = self.0.services.get(&Key::new(&name.namespace, &name.name));
        let service = cached.and_then(|cached| decoded::<core::Service>(&cached));
        let names = service.and_then(|service| self.names(name, &service));
        self.0.zone.write().unwrap_or_else(PoisonError::into_inner).set(name, names);
    }

    fn names(&self, name: &ServiceName, service: &core::Service) -> Option<ServiceNames> {
        let spec = service.spec.as_ref()?;
        if spec.type_.as_deref() == Some("ExternalName") {
            return Some(ServiceNames::External { target: spec.external_name.clone()? });
        }
        if spec.cluster_ip.as_deref() == Some("None") {
            return Some(ServiceNames::Headless { endpoints: self.endpoints(name) });
        }
        let listed = spec.cluster_ips.clone().filter(|list| !list.is_empty());
        let texts = listed.unwrap_or_else(|| spec.cluster_ip.clone().into_iter().collect());
        let addresses: Vec<IpAddr> = texts.iter().filter_map(|text| text.parse().ok()).collect();
        let ports = spec.ports.iter().flatten().filter_map(|port| {
            named_port(port.name.as_deref(), port.protocol.as_deref(), Some(port.port))
        });
        (!addresses.is_empty()).then(|| ServiceNames::Cluster { addresses, ports: ports.collect() })
    }

    fn endpoints(&self, name: &ServiceName) -> Vec<Endpoint> {
        let slices: Vec<String> = {
            let names = self.0.slice_names.lock().unwrap_or_else(PoisonError::into_inner);
            names.get(name).into_iter().flatten().cloned().collect()
        };
        let mut endpoints = Vec::new();
        for slice in slices {
            let cached = self.0.slices.get(&Key::new(&name.namespace, &slice));
            let slice = cached.and_then(|cached| decoded::<discovery::EndpointSlice>(&cached));
            endpoints.extend(slice.iter().flat_map(slice_endpoints));
        }
        endpoints
    }
}

/// The ready endpoints of a slice, each with all the slice's ports.
fn slice_endpoints(slice: &discovery::EndpointSlice) -> Vec<Endpoint> {
    let ports = slice.ports.iter().flatten();
    let ports: Arc<[Port]> = ports
        .filter_map(|port| named_port(port.name.as_deref(), port.protocol.as_deref(), port.port))
        .collect();
    let ready = |endpoint: &&discovery::Endpoint| {
        endpoint.conditions.as_ref().and_then(|conditions| conditions.ready).unwrap_or(true)
    };
    let project = |endpoint: &discovery::Endpoint| {
        Some(Endpoint {
            address: endpoint.addresses.first()?.parse().ok()?,
            hostname: endpoint.hostname.clone().filter(|hostname| !hostname.is_empty()),
            ports: ports.clone(),
        })
    };
    slice.endpoints.iter().flatten().filter(ready).filter_map(project).collect()
}

fn named_port(name: Option<&str>, protocol: Option<&str>, number: Option<i32>) -> Option<Port> {
    Some(Port {
        name: name.unwrap_or_default().to_owned(),
        protocol: protocol.unwrap_or("TCP").to_ascii_lowercase(),
        number: u16::try_from(number?).ok()?,
    })
}

fn service_of(key: &Key) -> ServiceName {
    ServiceName { namespace: key.namespace.to_string(), name: key.name.to_string() }
}

fn owner(slice: &Cached) -> Option<ServiceName> {
    let name = slice.labels.get(SERVICE_NAME_LABEL)?.as_str()?.to_owned();
    Some(ServiceName { namespace: slice.key.namespace.to_string(), name })
}

fn decoded<T: serde::de::DeserializeOwned>(cached: &Cached) -> Option<T> {
    cached
        .typed()
        .inspect_err(|error| tracing::warn!(error = %chain(error), "an object was not understood"))
        .ok()
}
