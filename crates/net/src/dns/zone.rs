//! The cluster's names and their answers: pure, by the Kubernetes DNS specification 1.1.0.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use hickory_proto::rr::{
    Name, RData, Record, RecordType,
    rdata::{A, AAAA, CNAME, NS, PTR, SOA, SRV, TXT},
};

/// What the cluster's names are made of: a small projection of Services and EndpointSlices.
#[derive(Clone, Debug, Default)]
pub struct Zone {
    services: BTreeMap<ServiceName, Arc<ServiceNames>>,
    /// How many Services each namespace has; one without any has no name.
    namespaces: BTreeMap<String, usize>,
    by_address: BTreeMap<IpAddr, BTreeSet<ServiceName>>,
}

/// A Service's namespace and name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ServiceName {
    pub namespace: String,
    pub name: String,
}

/// What one Service's names lead to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServiceNames {
    Cluster { addresses: Vec<IpAddr>, ports: Vec<Port> },
    Headless { endpoints: Vec<Endpoint> },
    External { target: String },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    pub address: IpAddr,
    /// The pod's hostname where it has one, by which it is known among its Service's endpoints.
    pub hostname: Option<String>,
    pub ports: Arc<[Port]>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    pub name: String,
    /// In lower case, as names have it.
    pub protocol: String,
    pub number: u16,
}

/// The cluster's domain and how long answers hold.
#[derive(Clone, Debug)]
pub struct Domain {
    pub name: Name,
    pub ttl_seconds: u32,
}

/// What a question about a name gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The name is not the cluster's: ask elsewhere.
    Elsewhere,
    Records {
        answers: Vec<Record>,
        additionals: Vec<Record>,
    },
    /// The name is another's: the alias, and the name to look up next.
    Alias {
        alias: Box<Record>,
        target: Name,
    },
    /// The name exists, without records of the type.
    NoData,
    NoSuchName,
}

/// The version of the specification, as told by `dns-version.<domain>`.
const VERSION: &str = "1.1.0";
const SRV_WEIGHT_TOTAL: usize = 100;

impl Zone {
    /// Sets or removes one Service.
    pub fn set(&mut self, name: &ServiceName, names: Option<ServiceNames>) {
        if let Some(old) = self.services.remove(name) {
            for address in old.addresses() {
                if let Some(owners) = self.by_address.get_mut(&address) {
                    owners.remove(name);
                    if owners.is_empty() {
                        self.by_address.remove(&address);
                    }
                }
            }
            if let Some(count) = self.namespaces.get_mut(&name.namespace) {
                *count -= 1;
                if *count == 0 {
                    self.namespaces.remove(&name.namespace);
                }
            }
        }
        let Some(names) = names else { return };
        for address in names.addresses() {
            self.by_address.entry(address).or_default().insert(name.clone());
        }
        *self.namespaces.entry(name.namespace.clone()).or_default() += 1;
        self.services.insert(name.clone(), Arc::new(names));
    }

    pub fn len(&self) -> usize {
        self.services.len()
    }

    pub fn is_empty(&self) -> bool {
        self.services.is_empty()
    }

    /// Answers a question. The records bear the question's own spelling of the name.
    pub fn answer(&self, domain: &Domain, name: &Name, kind: RecordType) -> Answer {
        if !domain.name.zone_of(name) {
            return self.reverse(domain, name, kind);
        }
        let own = usize::from(domain.name.num_labels());
        let Some(labels) = labels(name) else { return Answer::NoSuchName };
        let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
        let reply = Reply { domain, name, kind };
        match &labels[..labels.len() - own] {
            [] => reply.apex(),
            ["dns-version"] => reply.of(vec![RData::TXT(TXT::new(vec![VERSION.to_owned()]))]),
            // The name by which the apex's NS record knows this server.
            ["ns", "dns"] | ["svc" | "pod" | "dns"] => Answer::NoData,
            [namespace, "svc"] => self.namespace(namespace),
            [_, "pod"] => Answer::NoData,
            [rest @ .., service, namespace, "svc"] => {
                let key = ServiceName { namespace: (*namespace).into(), name: (*service).into() };
                match self.services.get(&key) {
                    Some(names) => reply.service(&key, names, rest),
                    None => Answer::NoSuchName,
                }
            }
            [address, _, "pod"] => match dashed(address) {
                Some(address) => reply.addresses(&[address]),
                None => Answer::NoSuchName,
            },
            _ => Answer::NoSuchName,
        }
    }

    /// The authority record for answers that have no records (RFC 2308).
    pub fn authority(&self, domain: &Domain) -> Record {
        let (primary, contact) = (server_name(domain), child("hostmaster", &domain.name));
        let soa = SOA::new(primary, contact, 1, 7200, 1800, 86_400, domain.ttl_seconds);
        Record::from_rdata(domain.name.clone(), domain.ttl_seconds, RData::SOA(soa))
    }

    fn namespace(&self, namespace: &str) -> Answer {
        if self.namespaces.contains_key(namespace) { Answer::NoData } else { Answer::NoSuchName }
    }

    /// Names of addresses, of cluster IPs and of headless Services' endpoints; others are not
    /// ours to deny.
    fn reverse(&self, domain: &Domain, name: &Name, kind: RecordType) -> Answer {
        let Some(address) = reverse_address(name) else { return Answer::Elsewhere };
        let Some(owners) = self.by_address.get(&address) else { return Answer::Elsewhere };
        let names = owners.iter().filter_map(|owner| {
            let service = service_name(domain, owner);
            match self.services.get(owner)?.as_ref() {
                ServiceNames::Headless { endpoints } => {
                    let mut endpoints = endpoints.iter();
                    let endpoint = endpoints.find(|endpoint| endpoint.address == address)?;
                    Some(child(&endpoint.label(), &service))
                }
                _ => Some(service),
            }
        });
        Reply { domain, name, kind }.of(names.map(|name| RData::PTR(PTR(name))).collect())
    }
}

impl ServiceNames {
    fn addresses(&self) -> Vec<IpAddr> {
        match self {
            Self::Cluster { addresses, .. } => addresses.clone(),
            Self::Headless { endpoints } => endpoints.iter().map(|e| e.address).collect(),
            Self::External { .. } => Vec::new(),
        }
    }
}

impl Endpoint {
    /// The hostname, or the address with dashes.
    fn label(&self) -> String {
        let dashes = || self.address.to_string().replace(['.', ':'], "-");
        self.hostname.clone().unwrap_or_else(dashes)
    }
}

/// A question under way to its answer.
struct Reply<'a> {
    domain: &'a Domain,
    name: &'a Name,
    kind: RecordType,
}

impl Reply<'_> {
    fn record(&self, name: &Name, data: RData) -> Record {
        Record::from_rdata(name.clone(), self.domain.ttl_seconds, data)
    }

    /// Those of the records at the asked name that have the asked type.
    fn of(&self, data: Vec<RData>) -> Answer {
        let wanted = |data: &RData| self.kind == RecordType::ANY || data.record_type() == self.kind;
        let answers: Vec<Record> =
            data.into_iter().filter(wanted).map(|data| self.record(self.name, data)).collect();
        match answers.is_empty() {
            true => Answer::NoData,
            false => Answer::Records { answers, additionals: Vec::new() },
        }
    }

    fn addresses(&self, addresses: &[IpAddr]) -> Answer {
        self.of(addresses.iter().map(|address| address_data(*address)).collect())
    }

    fn apex(&self) -> Answer {
        let soa = Zone::default().authority(self.domain).data;
        self.of(vec![soa, RData::NS(NS(server_name(self.domain)))])
    }

    /// A Service's own name, a port's, or an endpoint's, by the labels before it.
    fn service(&self, key: &ServiceName, names: &ServiceNames, rest: &[&str]) -> Answer {
        let of_port = |name: &str, protocol: &str| {
            let (name, protocol) = (name.strip_prefix('_')?, protocol.strip_prefix('_')?);
            Some((name.to_owned(), protocol.to_owned()))
        };
        match (names, rest) {
            (ServiceNames::External { target }, []) => self.alias(target),
            (ServiceNames::Cluster { addresses, ports }, []) => {
                self.cluster(key, addresses, &ports.iter().collect::<Vec<_>>())
            }
            (ServiceNames::Headless { endpoints }, []) => self.endpoints(key, endpoints, None),
            (ServiceNames::Cluster { addresses, ports }, [name, protocol]) => {
                let Some(wanted) = of_port(name, protocol) else { return Answer::NoSuchName };
                let found: Vec<&Port> = ports.iter().filter(|port| port.is(&wanted)).collect();
                match found.is_empty() {
                    true => Answer::NoSuchName,
                    false => self.cluster(key, addresses, &found),
                }
            }
            (ServiceNames::Headless { endpoints }, [name, protocol]) => {
                match of_port(name, protocol) {
                    Some(wanted) => self.endpoints(key, endpoints, Some(&wanted)),
                    None => Answer::NoSuchName,
                }
            }
            (ServiceNames::Headless { endpoints }, [label]) => self.endpoint(endpoints, label),
            _ => Answer::NoSuchName,
        }
    }

    fn cluster(&self, key: &ServiceName, addresses: &[IpAddr], ports: &[&Port]) -> Answer {
        if self.kind != RecordType::SRV {
            return self.addresses(addresses);
        }
        let target = service_name(self.domain, key);
        let services = ports.iter().map(|port| srv(port.number, ports.len(), target.clone()));
        let answers: Vec<Record> = services.map(|data| self.record(self.name, data)).collect();
        let additionals = addresses.iter().map(|ip| self.record(&target, address_data(*ip)));
        finished(answers, additionals.collect())
    }

    fn endpoints(
        &self,
        key: &ServiceName,
        endpoints: &[Endpoint],
        wanted: Option<&(String, String)>,
    ) -> Answer {
        let serves = |endpoint: &&Endpoint| {
            wanted.is_none_or(|wanted| endpoint.ports.iter().any(|port| port.is(wanted)))
        };
        let serving: Vec<&Endpoint> = endpoints.iter().filter(serves).collect();
        if serving.is_empty() {
            // The Service's own name stays while it has no endpoints; a port's does not.
            return if wanted.is_some() { Answer::NoSuchName } else { Answer::NoData };
        }
        if self.kind != RecordType::SRV {
            let addresses: BTreeSet<IpAddr> = serving.iter().map(|e| e.address).collect();
            return self.addresses(&addresses.into_iter().collect::<Vec<_>>());
        }
        let service = service_name(self.domain, key);
        let (mut answers, mut additionals) = (Vec::new(), Vec::new());
        for endpoint in &serving {
            let target = child(&endpoint.label(), &service);
            let ports = endpoint.ports.iter().filter(|p| wanted.is_none_or(|w| p.is(w)));
            for port in ports {
                let data = srv(port.number, serving.len(), target.clone());
                answers.push(self.record(self.name, data));
            }
            additionals.push(self.record(&target, address_data(endpoint.address)));
        }
        finished(answers, additionals)
    }

    fn endpoint(&self, endpoints: &[Endpoint], label: &str) -> Answer {
        let named = endpoints.iter().filter(|e| e.label().eq_ignore_ascii_case(label));
        let addresses: Vec<IpAddr> = named.map(|endpoint| endpoint.address).collect();
        if addresses.is_empty() { Answer::NoSuchName } else { self.addresses(&addresses) }
    }

    fn alias(&self, target: &str) -> Answer {
        let Ok(mut target) = Name::from_ascii(target) else { return Answer::NoData };
        target.set_fqdn(true);
        let alias = self.record(self.name, RData::CNAME(CNAME(target.clone())));
        if self.kind == RecordType::CNAME {
            return finished(vec![alias], Vec::new());
        }
        Answer::Alias { alias: Box::new(alias), target }
    }
}

impl Port {
    fn is(&self, (name, protocol): &(String, String)) -> bool {
        self.name.eq_ignore_ascii_case(name) && self.protocol == *protocol
    }
}

fn finished(answers: Vec<Record>, additionals: Vec<Record>) -> Answer {
    if answers.is_empty() {
        return Answer::NoData;
    }
    Answer::Records { answers, additionals }
}

fn srv(port: u16, of: usize, target: Name) -> RData {
    let weight = (SRV_WEIGHT_TOTAL / of.max(1)).max(1) as u16;
    RData::SRV(SRV::new(0, weight, port, target))
}

fn address_data(address: IpAddr) -> RData {
    match address {
        IpAddr::V4(v4) => RData::A(A(v4)),
        IpAddr::V6(v6) => RData::AAAA(AAAA(v6)),
    }
}

fn service_name(domain: &Domain, key: &ServiceName) -> Name {
    child(&key.name, &child(&key.namespace, &child("svc", &domain.name)))
}

fn server_name(domain: &Domain) -> Name {
    child("ns", &child("dns", &domain.name))
}

/// `label.parent`; the parent itself for a label that cannot be one.
fn child(label: &str, parent: &Name) -> Name {
    parent.prepend_label(label.as_bytes()).unwrap_or_else(|_| parent.clone())
}

fn labels(name: &Name) -> Option<Vec<String>> {
    name.iter().map(|label| Some(str::from_utf8(label).ok()?.to_ascii_lowercase())).collect()
}

/// `10-244-1-7`, or an IPv6 address with dashes for colons.
fn dashed(label: &str) -> Option<IpAddr> {
    let v4 = label.replace('-', ".").parse::<Ipv4Addr>().map(IpAddr::V4);
    v4.or_else(|_| label.replace('-', ":").parse::<Ipv6Addr>().map(IpAddr::V6)).ok()
}

/// The address that a name below `in-addr.arpa` or `ip6.arpa` stands for.
fn reverse_address(name: &Name) -> Option<IpAddr> {
    let labels = labels(name)?;
    let (zone, digits) = (labels.get(labels.len().checked_sub(2)?..)?, &labels[..labels.len() - 2]);
    match (zone[0].as_str(), zone[1].as_str(), digits.len()) {
        ("in-addr", "arpa", 4) => {
            let text: Vec<&str> = digits.iter().rev().map(String::as_str).collect();
            text.join(".").parse::<Ipv4Addr>().ok().map(IpAddr::V4)
        }
        ("ip6", "arpa", 32) => {
            let mut number: u128 = 0;
            for digit in digits.iter().rev() {
                let value = u128::from_str_radix(digit, 16).ok().filter(|_| digit.len() == 1)?;
                number = number << 4 | value;
            }
            Some(Ipv6Addr::from(number).into())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(name: &str, number: u16) -> Port {
        Port { name: name.into(), protocol: "tcp".into(), number }
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn key(name: &str) -> ServiceName {
        ServiceName { namespace: "default".into(), name: name.into() }
    }

    fn zone() -> Zone {
        let mut zone = Zone::default();
        let addresses = vec![ip("10.96.0.5"), ip("fd00::5")];
        let ports = vec![port("http", 80), port("https", 443)];
        zone.set(&key("web"), Some(ServiceNames::Cluster { addresses, ports }));
        let endpoint = |last: u8, hostname: Option<&str>| Endpoint {
            address: IpAddr::from([10, 244, 0, last]),
            hostname: hostname.map(str::to_owned),
            ports: Arc::new([port("db", 5432)]),
        };
        let endpoints = vec![endpoint(1, Some("db-0")), endpoint(2, None)];
        zone.set(&key("db"), Some(ServiceNames::Headless { endpoints }));
        zone.set(&key("idle"), Some(ServiceNames::Headless { endpoints: vec![] }));
        let target = "example.com".to_owned();
        zone.set(&key("away"), Some(ServiceNames::External { target }));
        zone
    }

    fn domain() -> Domain {
        Domain { name: Name::from_ascii("cluster.local.").unwrap(), ttl_seconds: 5 }
    }

    /// One question and its answer in words.
    fn ask(name: &str, kind: RecordType) -> String {
        let name = Name::from_ascii(name).unwrap();
        let mut texts = match zone().answer(&domain(), &name, kind) {
            Answer::Records { answers, .. } => {
                answers.iter().map(|record| record.data.to_string()).collect()
            }
            Answer::Alias { target, .. } => vec![format!("alias {target}")],
            Answer::Elsewhere => vec!["elsewhere".to_owned()],
            Answer::NoData => vec!["no data".to_owned()],
            Answer::NoSuchName => vec!["no such name".to_owned()],
        };
        texts.sort();
        texts.join(", ")
    }

    #[test]
    fn names_of_the_specification() {
        use RecordType as T;
        for (name, kind, wanted) in [
            ("web.default.svc.cluster.local.", T::A, "10.96.0.5"),
            ("WEB.Default.svc.Cluster.local.", T::A, "10.96.0.5"),
            ("web.default.svc.cluster.local.", T::AAAA, "fd00::5"),
            ("web.default.svc.cluster.local.", T::TXT, "no data"),
            ("nothing.default.svc.cluster.local.", T::A, "no such name"),
            ("default.svc.cluster.local.", T::A, "no data"),
            ("other.svc.cluster.local.", T::A, "no such name"),
            ("svc.cluster.local.", T::A, "no data"),
            ("x.cluster.local.", T::A, "no such name"),
            (
                "_http._tcp.web.default.svc.cluster.local.",
                T::SRV,
                "0 100 80 web.default.svc.cluster.local.",
            ),
            ("_http._udp.web.default.svc.cluster.local.", T::SRV, "no such name"),
            ("http.tcp.web.default.svc.cluster.local.", T::SRV, "no such name"),
            (
                "web.default.svc.cluster.local.",
                T::SRV,
                "0 50 443 web.default.svc.cluster.local., 0 50 80 web.default.svc.cluster.local.",
            ),
            ("db.default.svc.cluster.local.", T::A, "10.244.0.1, 10.244.0.2"),
            ("db.default.svc.cluster.local.", T::AAAA, "no data"),
            ("db-0.db.default.svc.cluster.local.", T::A, "10.244.0.1"),
            ("10-244-0-2.db.default.svc.cluster.local.", T::A, "10.244.0.2"),
            ("db-1.db.default.svc.cluster.local.", T::A, "no such name"),
            (
                "_db._tcp.db.default.svc.cluster.local.",
                T::SRV,
                "0 50 5432 10-244-0-2.db.default.svc.cluster.local., \
                 0 50 5432 db-0.db.default.svc.cluster.local.",
            ),
            ("idle.default.svc.cluster.local.", T::A, "no data"),
            ("away.default.svc.cluster.local.", T::A, "alias example.com."),
            ("away.default.svc.cluster.local.", T::CNAME, "example.com."),
            ("10-1-2-3.default.pod.cluster.local.", T::A, "10.1.2.3"),
            ("10-1-2-300.default.pod.cluster.local.", T::A, "no such name"),
            ("dns-version.cluster.local.", T::TXT, "1.1.0"),
            ("cluster.local.", T::NS, "ns.dns.cluster.local."),
            ("5.0.96.10.in-addr.arpa.", T::PTR, "web.default.svc.cluster.local."),
            ("1.0.244.10.in-addr.arpa.", T::PTR, "db-0.db.default.svc.cluster.local."),
            ("9.0.244.10.in-addr.arpa.", T::PTR, "elsewhere"),
            (
                "5.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa.",
                T::PTR,
                "web.default.svc.cluster.local.",
            ),
            ("example.com.", T::A, "elsewhere"),
            ("notcluster.local.", T::A, "elsewhere"),
        ] {
            assert_eq!(ask(name, kind), wanted, "{name} {kind}");
        }
    }

    #[test]
    fn removed_services_leave_nothing() {
        let mut zone = zone();
        for name in ["web", "db", "idle", "away"] {
            zone.set(&key(name), None);
        }
        assert!(zone.is_empty() && zone.namespaces.is_empty() && zone.by_address.is_empty());
    }
}
