//! Network devices, their addresses and neighbours, over rtnetlink.

use std::{
    net::IpAddr,
    os::fd::{AsRawFd, BorrowedFd},
};

use crate::{
    netlink::{
        APPEND, CREATE, EXCLUSIVE, Error, Message, Protocol, REPLACE, Result, Socket, attribute,
        attributes, ne32, text_of,
    },
    netns::NetNs,
};

/// A hardware address.
pub type Mac = [u8; 6];

/// Network devices and routes of one network namespace.
pub struct Rtnl {
    pub(crate) socket: Socket,
}

/// A network device as the kernel describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    pub index: u32,
    pub name: String,
    /// The driver's name (`veth`, `bridge`, `vxlan`); empty for physical devices and loopback.
    pub kind: String,
    pub mac: Option<Mac>,
    pub mtu_bytes: u32,
    pub master: Option<u32>,
    pub up: bool,
    pub loopback: bool,
}

/// An address of a device, with its prefix length in bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Address {
    pub index: u32,
    pub ip: IpAddr,
    pub prefix_bits: u8,
}

/// A pair of devices; the peer may be made in another network namespace.
pub struct Veth<'a> {
    pub name: &'a str,
    pub mac: Option<Mac>,
    pub peer_name: &'a str,
    pub peer_mac: Option<Mac>,
    pub peer_namespace: Option<BorrowedFd<'a>>,
    pub mtu_bytes: u32,
}

/// A VXLAN device without learning: who sits where is told by [`Rtnl::set_forwarding`].
pub struct Vxlan<'a> {
    pub name: &'a str,
    pub id: u32,
    pub local: IpAddr,
    pub port: u16,
    pub mac: Mac,
    pub mtu_bytes: u32,
}

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_GETADDR: u16 = 22;
const RTM_NEWNEIGH: u16 = 28;
const RTM_DELNEIGH: u16 = 29;
const RTM_GETNEIGH: u16 = 30;

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const VETH_INFO_PEER: u16 = 1;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
const NUD_PERMANENT: u16 = 0x80;
const NTF_SELF: u8 = 2;
const SCOPE_UNIVERSE: u8 = 0;
const SCOPE_HOST: u8 = 254;
const IFF_UP: u32 = 1;
const IFF_LOOPBACK: u32 = 8;

impl Rtnl {
    pub fn open() -> Result<Self> {
        Ok(Self { socket: Socket::open(Protocol::Route)? })
    }

    pub fn open_in(namespace: &NetNs) -> Result<Self> {
        Ok(Self { socket: Socket::open_in(Protocol::Route, namespace)? })
    }

    pub fn links(&mut self) -> Result<Vec<Link>> {
        let replies = self.socket.dump(Message::new(RTM_GETLINK, 0, &if_info(0, 0, 0)))?;
        replies.iter().map(|(_, body)| read_link(body).ok_or(Error::Malformed)).collect()
    }

    pub fn link(&mut self, name: &str) -> Result<Option<Link>> {
        let mut message = Message::new(RTM_GETLINK, 0, &if_info(0, 0, 0));
        message.text(IFLA_IFNAME, name);
        match self.socket.get(message) {
            Ok(Some((_, body))) => Ok(Some(read_link(&body).ok_or(Error::Malformed)?)),
            Ok(None) => Ok(None),
            Err(error) if error.is_missing() => Ok(None),
            Err(error) => Err(error.about(|_| format!("to show link {name}"))),
        }
    }

    /// Makes a pair of devices and brings up the first; the peer is its namespace's to bring up.
    pub fn add_veth(&mut self, veth: &Veth<'_>) -> Result<()> {
        let mut message = Message::new(RTM_NEWLINK, CREATE | EXCLUSIVE, &if_info(0, 0, 0));
        describe(&mut message, veth.name, veth.mac, veth.mtu_bytes);
        message.nest(IFLA_LINKINFO, |info| {
            info.text(IFLA_INFO_KIND, "veth").nest(IFLA_INFO_DATA, |data| {
                data.nest(VETH_INFO_PEER, |peer| {
                    peer.raw(&if_info(0, 0, 0));
                    describe(peer, veth.peer_name, veth.peer_mac, veth.mtu_bytes);
                    if let Some(namespace) = veth.peer_namespace {
                        peer.u32(IFLA_NET_NS_FD, namespace.as_raw_fd() as u32);
                    }
                });
            });
        });
        // A veth device cannot be up before its peer exists, so this takes a second message.
        let mut up = Message::new(RTM_NEWLINK, 0, &if_info(0, IFF_UP, IFF_UP));
        up.text(IFLA_IFNAME, veth.name);
        self.socket.requests(vec![message, up]).map_err(|error| {
            error.about(|_| format!("to add the veth pair {}, {}", veth.name, veth.peer_name))
        })
    }

    pub fn add_bridge(&mut self, name: &str) -> Result<()> {
        let mut message =
            Message::new(RTM_NEWLINK, CREATE | EXCLUSIVE, &if_info(0, IFF_UP, IFF_UP));
        message.text(IFLA_IFNAME, name).nest(IFLA_LINKINFO, |info| {
            info.text(IFLA_INFO_KIND, "bridge");
        });
        self.ask(message, || format!("to add the bridge {name}"))
    }

    pub fn add_vxlan(&mut self, vxlan: &Vxlan<'_>) -> Result<()> {
        const ID: u16 = 1;
        const LOCAL: u16 = 4;
        const LEARNING: u16 = 7;
        const PORT: u16 = 15;
        const LOCAL6: u16 = 17;
        let mut message =
            Message::new(RTM_NEWLINK, CREATE | EXCLUSIVE, &if_info(0, IFF_UP, IFF_UP));
        describe(&mut message, vxlan.name, Some(vxlan.mac), vxlan.mtu_bytes);
        message.nest(IFLA_LINKINFO, |info| {
            info.text(IFLA_INFO_KIND, "vxlan").nest(IFLA_INFO_DATA, |data| {
                data.u32(ID, vxlan.id).attr(LEARNING, &[0]);
                data.attr(PORT, &vxlan.port.to_be_bytes());
                data.attr(if vxlan.local.is_ipv4() { LOCAL } else { LOCAL6 }, &octets(vxlan.local));
            });
        });
        self.ask(message, || format!("to add the VXLAN device {}", vxlan.name))
    }

    /// Removes a device; one that is not there is fine.
    pub fn delete_link(&mut self, name: &str) -> Result<()> {
        let mut message = Message::new(RTM_DELLINK, 0, &if_info(0, 0, 0));
        message.text(IFLA_IFNAME, name);
        tolerate_missing(self.ask(message, || format!("to delete link {name}")))
    }

    pub fn set_up(&mut self, index: u32) -> Result<()> {
        let message = Message::new(RTM_NEWLINK, 0, &if_info(index, IFF_UP, IFF_UP));
        self.ask(message, || format!("to bring up link {index}"))
    }

    pub fn set_master(&mut self, index: u32, master: u32) -> Result<()> {
        let mut message = Message::new(RTM_NEWLINK, 0, &if_info(index, 0, 0));
        message.u32(IFLA_MASTER, master);
        self.ask(message, || format!("to attach link {index} to bridge {master}"))
    }

    pub fn set_mtu(&mut self, index: u32, mtu_bytes: u32) -> Result<()> {
        let mut message = Message::new(RTM_NEWLINK, 0, &if_info(index, 0, 0));
        message.u32(IFLA_MTU, mtu_bytes);
        self.ask(message, || format!("MTU {mtu_bytes} for link {index}"))
    }

    /// Moves a device into another network namespace.
    pub fn set_namespace(&mut self, index: u32, namespace: BorrowedFd<'_>) -> Result<()> {
        let mut message = Message::new(RTM_NEWLINK, 0, &if_info(index, 0, 0));
        message.u32(IFLA_NET_NS_FD, namespace.as_raw_fd() as u32);
        self.ask(message, || format!("to move link {index}"))
    }

    pub fn addresses(&mut self) -> Result<Vec<Address>> {
        let replies = self.socket.dump(Message::new(RTM_GETADDR, 0, &[0; 8]))?;
        Ok(replies.iter().filter_map(|(_, body)| read_address(body)).collect())
    }

    /// Adds an address; one that is there already is fine.
    pub fn add_address(&mut self, address: Address) -> Result<()> {
        self.add_scoped_address(address, SCOPE_UNIVERSE)
    }

    /// Adds an address that is valid on this machine alone and never chosen as a source.
    pub fn add_host_address(&mut self, address: Address) -> Result<()> {
        self.add_scoped_address(address, SCOPE_HOST)
    }

    fn add_scoped_address(&mut self, address: Address, scope: u8) -> Result<()> {
        let message = address_message(RTM_NEWADDR, CREATE | REPLACE, address, scope);
        match self.ask(message, || format!("address {}/{}", address.ip, address.prefix_bits)) {
            Err(error) if error.is_exists() => Ok(()),
            other => other,
        }
    }

    pub fn delete_address(&mut self, address: Address) -> Result<()> {
        let message = address_message(RTM_DELADDR, 0, address, SCOPE_UNIVERSE);
        tolerate_missing(self.ask(message, || format!("to remove address {}", address.ip)))
    }

    /// Adds or replaces a permanent neighbour entry, so that no ARP or ND is spoken.
    pub fn set_neighbour(&mut self, index: u32, ip: IpAddr, mac: Mac) -> Result<()> {
        let message = neighbour_message(RTM_NEWNEIGH, CREATE | REPLACE, index, ip, mac);
        self.ask(message, || format!("neighbour {ip}"))
    }

    pub fn delete_neighbour(&mut self, index: u32, ip: IpAddr) -> Result<()> {
        let mut message = Message::new(RTM_DELNEIGH, 0, &nd_message(family_of(ip), index, 0, 0));
        message.attr(NDA_DST, &octets(ip));
        tolerate_missing(self.ask(message, || format!("to remove neighbour {ip}")))
    }

    /// The permanent neighbours of a device.
    pub fn neighbours(&mut self, index: u32) -> Result<Vec<(IpAddr, Mac)>> {
        let replies = self.socket.dump(Message::new(RTM_GETNEIGH, 0, &nd_message(0, 0, 0, 0)))?;
        Ok(replies.iter().filter_map(|(_, body)| read_permanent(body, index)).collect())
    }

    /// Tells a VXLAN device behind which machine a hardware address is found.
    pub fn set_forwarding(&mut self, index: u32, mac: Mac, machine: IpAddr) -> Result<()> {
        let message = forwarding_message(RTM_NEWNEIGH, CREATE | REPLACE, index, mac, machine);
        self.ask(message, || format!("forwarding entry for {machine}"))
    }

    /// Adds one more machine behind a hardware address.
    pub fn add_forwarding(&mut self, index: u32, mac: Mac, machine: IpAddr) -> Result<()> {
        let message = forwarding_message(RTM_NEWNEIGH, CREATE | APPEND, index, mac, machine);
        self.ask(message, || format!("forwarding entry for {machine}"))
    }

    pub fn delete_forwarding(&mut self, index: u32, mac: Mac, machine: IpAddr) -> Result<()> {
        let message = forwarding_message(RTM_DELNEIGH, 0, index, mac, machine);
        tolerate_missing(self.ask(message, || format!("to remove forwarding for {machine}")))
    }

    /// The forwarding entries of a VXLAN device.
    pub fn forwardings(&mut self, index: u32) -> Result<Vec<(Mac, IpAddr)>> {
        let header = nd_message(libc::AF_BRIDGE as u8, 0, 0, 0);
        let replies = self.socket.dump(Message::new(RTM_GETNEIGH, 0, &header))?;
        Ok(replies.iter().filter_map(|(_, body)| read_forwarding(body, index)).collect())
    }

    pub(crate) fn ask(&mut self, message: Message, what: impl Fn() -> String) -> Result<()> {
        self.socket.request(message).map_err(|error| error.about(|_| what()))
    }
}

pub(crate) fn tolerate_missing(result: Result<()>) -> Result<()> {
    match result {
        Err(error) if error.is_missing() => Ok(()),
        other => other,
    }
}

pub(crate) fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

pub(crate) fn ip_of(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => Some(IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?)),
        16 => Some(IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?)),
        _ => None,
    }
}

pub(crate) fn family_of(ip: IpAddr) -> u8 {
    (if ip.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 }) as u8
}

fn describe(message: &mut Message, name: &str, mac: Option<Mac>, mtu_bytes: u32) {
    message.text(IFLA_IFNAME, name).u32(IFLA_MTU, mtu_bytes);
    if let Some(mac) = mac {
        message.attr(IFLA_ADDRESS, &mac);
    }
}

/// `struct ifinfomsg`.
fn if_info(index: u32, flags: u32, change: u32) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[4..8].copy_from_slice(&index.to_ne_bytes());
    bytes[8..12].copy_from_slice(&flags.to_ne_bytes());
    bytes[12..16].copy_from_slice(&change.to_ne_bytes());
    bytes
}

/// `struct ndmsg`.
fn nd_message(family: u8, index: u32, state: u16, flags: u8) -> [u8; 12] {
    let mut bytes = [0; 12];
    bytes[0] = family;
    bytes[4..8].copy_from_slice(&index.to_ne_bytes());
    bytes[8..10].copy_from_slice(&state.to_ne_bytes());
    bytes[10] = flags;
    bytes
}

fn address_message(kind: u16, flags: u16, address: Address, scope: u8) -> Message {
    let mut header = [family_of(address.ip), address.prefix_bits, 0, scope, 0, 0, 0, 0];
    header[4..8].copy_from_slice(&address.index.to_ne_bytes());
    let mut message = Message::new(kind, flags, &header);
    let bytes = octets(address.ip);
    message.attr(IFA_LOCAL, &bytes).attr(IFA_ADDRESS, &bytes);
    message
}

fn neighbour_message(kind: u16, flags: u16, index: u32, ip: IpAddr, mac: Mac) -> Message {
    let header = nd_message(family_of(ip), index, NUD_PERMANENT, 0);
    let mut message = Message::new(kind, flags, &header);
    message.attr(NDA_DST, &octets(ip)).attr(NDA_LLADDR, &mac);
    message
}

fn forwarding_message(kind: u16, flags: u16, index: u32, mac: Mac, machine: IpAddr) -> Message {
    let header = nd_message(libc::AF_BRIDGE as u8, index, NUD_PERMANENT, NTF_SELF);
    let mut message = Message::new(kind, flags, &header);
    message.attr(NDA_DST, &octets(machine)).attr(NDA_LLADDR, &mac);
    message
}

fn read_link(body: &[u8]) -> Option<Link> {
    let flags = ne32(body.get(8..)?)?;
    let mut link = Link {
        index: ne32(body.get(4..)?)?,
        name: String::new(),
        kind: String::new(),
        mac: None,
        mtu_bytes: 0,
        master: None,
        up: flags & IFF_UP != 0,
        loopback: flags & IFF_LOOPBACK != 0,
    };
    for (kind, value) in attributes(body.get(16..)?) {
        match kind {
            IFLA_ADDRESS => link.mac = value.try_into().ok(),
            IFLA_IFNAME => link.name = text_of(value),
            IFLA_MTU => link.mtu_bytes = ne32(value)?,
            IFLA_MASTER => link.master = ne32(value),
            IFLA_LINKINFO => {
                link.kind = attribute(value, IFLA_INFO_KIND).map(text_of).unwrap_or_default();
            }
            _ => {}
        }
    }
    Some(link)
}

fn read_address(body: &[u8]) -> Option<Address> {
    let attributes = body.get(8..)?;
    let ip = attribute(attributes, IFA_LOCAL).or_else(|| attribute(attributes, IFA_ADDRESS))?;
    Some(Address { index: ne32(body.get(4..)?)?, ip: ip_of(ip)?, prefix_bits: body[1] })
}

fn read_permanent(body: &[u8], index: u32) -> Option<(IpAddr, Mac)> {
    let state = u16::from_ne_bytes(body.get(8..10)?.try_into().ok()?);
    if ne32(body.get(4..)?)? != index || state & NUD_PERMANENT == 0 {
        return None;
    }
    let attributes = body.get(12..)?;
    let mac = attribute(attributes, NDA_LLADDR)?.try_into().ok()?;
    Some((ip_of(attribute(attributes, NDA_DST)?)?, mac))
}

fn read_forwarding(body: &[u8], index: u32) -> Option<(Mac, IpAddr)> {
    if ne32(body.get(4..)?)? != index {
        return None;
    }
    let attributes = body.get(12..)?;
    let mac = attribute(attributes, NDA_LLADDR)?.try_into().ok()?;
    Some((mac, ip_of(attribute(attributes, NDA_DST)?)?))
}
