//! Routes of one network namespace, over rtnetlink.

use std::net::{IpAddr, Ipv4Addr};

use crate::{
    links::{Rtnl, family_of, ip_of, octets, tolerate_missing},
    netlink::{CREATE, Message, REPLACE, Result, attributes, ne32},
};

/// The number by which routes made by Gantry are known (`ip route show proto 103`).
pub const PROTOCOL: u8 = 103;

/// A route of the main table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    /// Destination network; an unspecified address with zero bits is the default route.
    pub destination: IpAddr,
    pub prefix_bits: u8,
    pub gateway: Option<IpAddr>,
    /// The index of the device, zero to let the kernel find it by the gateway.
    pub index: u32,
    /// The gateway counts as reachable on the device whatever its addresses are.
    pub onlink: bool,
    /// The source address of packets of this machine; none leaves it to the kernel.
    pub source: Option<IpAddr>,
    /// Packets are refused instead of sent on.
    pub unreachable: bool,
    /// Who made it: [`PROTOCOL`] is us, 2 the kernel, 3 `ip route` by hand.
    pub protocol: u8,
}

/// Where a packet to some address would go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Path {
    pub gateway: Option<IpAddr>,
    pub index: u32,
    pub source: Option<IpAddr>,
    /// The address is this machine's own.
    pub local: bool,
}

const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const RTM_GETROUTE: u16 = 26;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PREFSRC: u16 = 7;
const TABLE_MAIN: u8 = 254;
const SCOPE_LINK: u8 = 253;
const TYPE_UNICAST: u8 = 1;
const TYPE_LOCAL: u8 = 2;
const TYPE_UNREACHABLE: u8 = 7;
const ONLINK: u32 = 4;

impl Route {
    /// A route by which a device reaches a network directly.
    pub fn direct(destination: IpAddr, prefix_bits: u8, index: u32) -> Self {
        Self {
            destination,
            prefix_bits,
            gateway: None,
            index,
            onlink: false,
            source: None,
            unreachable: false,
            protocol: PROTOCOL,
        }
    }

    pub fn via(destination: IpAddr, prefix_bits: u8, gateway: IpAddr, index: u32) -> Self {
        Self { gateway: Some(gateway), ..Self::direct(destination, prefix_bits, index) }
    }

    /// Refuses packets to a network; more specific routes go before it.
    pub fn refuse(destination: IpAddr, prefix_bits: u8) -> Self {
        Self { unreachable: true, ..Self::direct(destination, prefix_bits, 0) }
    }

    /// The IPv4 default route.
    pub fn default_v4(gateway: IpAddr, index: u32) -> Self {
        Self::via(Ipv4Addr::UNSPECIFIED.into(), 0, gateway, index)
    }

    pub fn with_onlink(self) -> Self {
        Self { onlink: true, ..self }
    }

    fn message(&self, kind: u16, flags: u16) -> Message {
        let direct = self.gateway.is_none() && !self.unreachable;
        let scope = if direct && kind == RTM_NEWROUTE { SCOPE_LINK } else { 0 };
        let mut header = [0; 12];
        header[0] = family_of(self.destination);
        header[1] = self.prefix_bits;
        header[4] = TABLE_MAIN;
        header[5] = self.protocol;
        header[6] = scope;
        header[7] = if self.unreachable { TYPE_UNREACHABLE } else { TYPE_UNICAST };
        header[8..12].copy_from_slice(&(if self.onlink { ONLINK } else { 0 }).to_ne_bytes());
        if kind == RTM_DELROUTE {
            header[6] = 255; // RT_SCOPE_NOWHERE: whatever the scope.
        }
        let mut message = Message::new(kind, flags, &header);
        if self.prefix_bits > 0 {
            message.attr(RTA_DST, &octets(self.destination));
        }
        if let Some(gateway) = self.gateway {
            message.attr(RTA_GATEWAY, &octets(gateway));
        }
        if self.index > 0 {
            message.u32(RTA_OIF, self.index);
        }
        if let Some(source) = self.source {
            message.attr(RTA_PREFSRC, &octets(source));
        }
        message
    }

    fn text(&self) -> String {
        format!("route {}/{}", self.destination, self.prefix_bits)
    }
}

impl Rtnl {
    /// The unicast and unreachable routes of the main table, both families.
    pub fn routes(&mut self) -> Result<Vec<Route>> {
        let replies = self.socket.dump(Message::new(RTM_GETROUTE, 0, &[0; 12]))?;
        Ok(replies.iter().filter_map(|(_, body)| read_route(body)).collect())
    }

    /// Adds a route, in place of one to the same destination.
    pub fn set_route(&mut self, route: Route) -> Result<()> {
        let message = route.message(RTM_NEWROUTE, CREATE | REPLACE);
        self.ask(message, || route.text())
    }

    /// Removes a route; one that is not there is fine.
    pub fn delete_route(&mut self, route: Route) -> Result<()> {
        let message = route.message(RTM_DELROUTE, 0);
        tolerate_missing(self.ask(message, || format!("to remove {}", route.text())))
    }

    /// How packets to `ip` would leave; `None` when there is no way.
    pub fn path_to(&mut self, ip: IpAddr) -> Result<Option<Path>> {
        let mut header = [0; 12];
        header[0] = family_of(ip);
        header[1] = if ip.is_ipv4() { 32 } else { 128 };
        let mut message = Message::new(RTM_GETROUTE, 0, &header);
        message.attr(RTA_DST, &octets(ip));
        match self.socket.get(message) {
            Ok(reply) => Ok(reply.and_then(|(_, body)| read_path(&body))),
            Err(error) if matches!(error.errno(), Some(libc::ENETUNREACH | libc::EHOSTUNREACH)) => {
                Ok(None)
            }
            Err(error) => Err(error.about(|_| format!("the path to {ip}"))),
        }
    }
}

fn read_route(body: &[u8]) -> Option<Route> {
    let header: [u8; 12] = body.get(..12)?.try_into().ok()?;
    let unreachable = header[7] == TYPE_UNREACHABLE;
    if header[4] != TABLE_MAIN || !(unreachable || header[7] == TYPE_UNICAST) {
        return None;
    }
    let unspecified = if i32::from(header[0]) == libc::AF_INET {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED)
    } else {
        IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED)
    };
    let mut route = Route::direct(unspecified, header[1], 0);
    route.protocol = header[5];
    route.unreachable = unreachable;
    route.onlink = ne32(&header[8..])? & ONLINK != 0;
    for (kind, value) in attributes(&body[12..]) {
        match kind {
            RTA_DST => route.destination = ip_of(value)?,
            RTA_OIF => route.index = ne32(value)?,
            RTA_GATEWAY => route.gateway = ip_of(value),
            RTA_PREFSRC => route.source = ip_of(value),
            _ => {}
        }
    }
    Some(route)
}

fn read_path(body: &[u8]) -> Option<Path> {
    let kind = *body.get(7)?;
    let mut path = Path { gateway: None, index: 0, source: None, local: kind == TYPE_LOCAL };
    for (kind, value) in attributes(body.get(12..)?) {
        match kind {
            RTA_OIF => path.index = ne32(value)?,
            RTA_GATEWAY => path.gateway = ip_of(value),
            RTA_PREFSRC => path.source = ip_of(value),
            _ => {}
        }
    }
    (path.local || kind == TYPE_UNICAST).then_some(path)
}
