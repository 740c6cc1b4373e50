//! The kernel's side: transactions, and connection tracking entries that went stale.

use std::net::IpAddr;

use linux::{
    conntrack::{Conntrack, Flow},
    netlink::Error,
    netns::NetNs,
    nft::{Family, Nft, Table},
    nft_ruleset::{Command, Ruleset, diff},
};

use crate::{
    model::Protocol,
    plan::{Policy, ServicePlan, Target},
};

/// The packet filter of one network namespace. Calls block for as long as the kernel takes.
pub struct Kernel {
    nft: Nft,
    conntrack: Conntrack,
}

/// Flows of a connectionless protocol that must be translated anew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stale {
    /// Those of a frontend that were sent to an endpoint which is gone.
    Translated { frontend: Target, endpoint: IpAddr },
    /// Those to a frontend that had no endpoints and were not translated at all.
    Untranslated { frontend: Target },
}

impl Kernel {
    pub fn open() -> Result<Self, Error> {
        Ok(Self { nft: Nft::open()?, conntrack: Conntrack::open()? })
    }

    pub fn open_in(namespace: &NetNs) -> Result<Self, Error> {
        Ok(Self { nft: Nft::open_in(namespace)?, conntrack: Conntrack::open_in(namespace)? })
    }

    /// Puts a whole ruleset in place of whatever the table holds.
    pub fn replace(&mut self, table: &Table, ruleset: &Ruleset) -> Result<(), Error> {
        self.nft.replace(table, &diff(&Ruleset::default(), ruleset))
    }

    pub fn commit(&mut self, table: &Table, commands: &[Command]) -> Result<(), Error> {
        self.nft.commit(table, commands)
    }

    /// Forgets stale UDP flows, in one pass over the table of flows.
    pub fn forget(&mut self, family: Family, stale: &[Stale]) -> Result<usize, Error> {
        if stale.is_empty() {
            return Ok(0);
        }
        self.conntrack.delete_where(family, |flow| stale.iter().any(|rule| rule.matches(flow)))
    }
}

impl Stale {
    fn matches(&self, flow: &Flow) -> bool {
        let (frontend, source) = match self {
            Self::Translated { frontend, endpoint } => (frontend, endpoint),
            Self::Untranslated { frontend } => (frontend, &frontend.address),
        };
        flow.original.protocol == Protocol::Udp as u8
            && flow.original.destination == frontend.address
            && flow.original.destination_port == frontend.port
            && flow.reply.source == *source
    }
}

/// What became stale when a Service's plan changed. TCP and SCTP notice by themselves.
pub fn stale_flows(old: &ServicePlan, new: &ServicePlan) -> Vec<Stale> {
    let mut stale = Vec::new();
    for before in old.ports.iter().filter(|port| port.protocol == Protocol::Udp) {
        let after =
            new.ports.iter().find(|p| (&p.name, p.protocol) == (&before.name, Protocol::Udp));
        let kept = |target: &Target| {
            after.is_some_and(|port| port.cluster.contains(target) || port.local.contains(target))
        };
        let gone = before.cluster.iter().chain(&before.local).filter(|target| !kept(target));
        for endpoint in gone.map(|target| target.address) {
            stale.extend(before.frontends.iter().map(|f| {
                let frontend = Target { address: f.address, port: f.port };
                Stale::Translated { frontend, endpoint }
            }));
        }
    }
    for after in new.ports.iter().filter(|port| port.protocol == Protocol::Udp) {
        let served_before = |address, port| {
            old.ports.iter().filter(|p| p.protocol == Protocol::Udp).any(|p| {
                let mut frontends = p.frontends.iter();
                frontends
                    .any(|f| (f.address, f.port) == (address, port) && f.policy != Policy::Refuse)
            })
        };
        let served = after.frontends.iter().filter(|f| f.policy != Policy::Refuse);
        stale.extend(
            served
                .filter(|f| !served_before(f.address, f.port))
                .map(|f| Target { address: f.address, port: f.port })
                .map(|frontend| Stale::Untranslated { frontend }),
        );
    }
    stale.dedup();
    stale
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Frontend, PortPlan};

    fn plan(endpoints: &[u8]) -> ServicePlan {
        let policy = if endpoints.is_empty() { Policy::Refuse } else { Policy::Cluster };
        let target = |last: &u8| Target { address: IpAddr::from([10, 244, 0, *last]), port: 53 };
        let frontend =
            Frontend { address: IpAddr::from([10, 96, 0, 9]), port: 53, policy, restricted: false };
        ServicePlan {
            ports: vec![PortPlan {
                name: "dns".into(),
                protocol: Protocol::Udp,
                frontends: vec![frontend],
                cluster: endpoints.iter().map(target).collect(),
                local: vec![],
                affinity_seconds: None,
                hairpins: vec![],
            }],
            ..ServicePlan::default()
        }
    }

    #[test]
    fn flows_to_lost_endpoints_and_to_former_voids_are_stale() {
        let frontend = Target { address: IpAddr::from([10, 96, 0, 9]), port: 53 };
        let endpoint = IpAddr::from([10, 244, 0, 2]);
        assert_eq!(stale_flows(&plan(&[1]), &plan(&[1, 2])), []);
        assert_eq!(
            stale_flows(&plan(&[1, 2]), &plan(&[1])),
            [Stale::Translated { frontend, endpoint }]
        );
        assert_eq!(stale_flows(&plan(&[]), &plan(&[1])), [Stale::Untranslated { frontend }]);
        assert_eq!(stale_flows(&ServicePlan::default(), &plan(&[])), []);
    }
}
