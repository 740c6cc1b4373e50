//! Connection tracking entries: listing and deleting them over ctnetlink.

use std::net::IpAddr;

use crate::{
    links::ip_of,
    netlink::{Message, Protocol, Result, Socket, attribute, attributes},
    netns::NetNs,
    nft::Family,
};

/// The connection tracking table of one network namespace.
pub struct Conntrack {
    socket: Socket,
}

/// One tracked flow. `original` is what its first packet said; `reply` is what an answer says,
/// so a translated destination shows as `reply.source`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flow {
    pub original: Tuple,
    pub reply: Tuple,
    /// The original tuple and id as the kernel wrote them, to name the flow with.
    name: Vec<u8>,
    id: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tuple {
    pub protocol: u8,
    pub source: IpAddr,
    pub destination: IpAddr,
    pub source_port: u16,
    pub destination_port: u16,
}

const SUBSYSTEM: u16 = 1;
const GET: u16 = SUBSYSTEM << 8 | 1;
const DELETE: u16 = SUBSYSTEM << 8 | 2;
const CTA_TUPLE_ORIGINAL: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_ID: u16 = 12;

impl Conntrack {
    pub fn open() -> Result<Self> {
        Ok(Self { socket: Socket::open(Protocol::Netfilter)? })
    }

    pub fn open_in(namespace: &NetNs) -> Result<Self> {
        Ok(Self { socket: Socket::open_in(Protocol::Netfilter, namespace)? })
    }

    /// The flows of a family. Those without ports (ICMP) are left out.
    pub fn flows(&mut self, family: Family) -> Result<Vec<Flow>> {
        let request = Message::new(GET, 0, &[family as u8, 0, 0, 0]);
        let replies = self.socket.dump(request)?;
        Ok(replies.iter().filter_map(|(_, body)| read_flow(body.get(4..)?)).collect())
    }

    /// Forgets one flow, so that its next packet is translated anew. One that has ended is fine.
    pub fn delete(&mut self, family: Family, flow: &Flow) -> Result<()> {
        let mut message = Message::new(DELETE, 0, &[family as u8, 0, 0, 0]);
        message.nest(CTA_TUPLE_ORIGINAL, |tuple| {
            tuple.raw(&flow.name);
        });
        message.attr(CTA_ID, &flow.id);
        match self.socket.request(message) {
            Err(error) if error.is_missing() => Ok(()),
            other => other.map_err(|e| e.about(|_| "to delete a tracked connection".to_owned())),
        }
    }

    /// Deletes the flows that `stale` picks; gives their number.
    pub fn delete_where(
        &mut self,
        family: Family,
        mut stale: impl FnMut(&Flow) -> bool,
    ) -> Result<usize> {
        let mut deleted = 0;
        for flow in self.flows(family)?.iter().filter(|flow| stale(flow)) {
            self.delete(family, flow)?;
            deleted += 1;
        }
        Ok(deleted)
    }
}

fn read_flow(body: &[u8]) -> Option<Flow> {
    let original = attribute(body, CTA_TUPLE_ORIGINAL)?;
    Some(Flow {
        original: read_tuple(original)?,
        reply: read_tuple(attribute(body, CTA_TUPLE_REPLY)?)?,
        name: original.to_vec(),
        id: attribute(body, CTA_ID)?.to_vec(),
    })
}

fn read_tuple(bytes: &[u8]) -> Option<Tuple> {
    let addresses = attribute(bytes, 1)?;
    let address = |v4, v6| attribute(addresses, v4).or_else(|| attribute(addresses, v6));
    let mut tuple = Tuple {
        protocol: 0,
        source: ip_of(address(1, 3)?)?,
        destination: ip_of(address(2, 4)?)?,
        source_port: 0,
        destination_port: 0,
    };
    let mut ports = 0;
    for (kind, value) in attributes(attribute(bytes, 2)?) {
        match kind {
            1 => tuple.protocol = *value.first()?,
            2 => tuple.source_port = u16::from_be_bytes(value.try_into().ok()?),
            3 => tuple.destination_port = u16::from_be_bytes(value.try_into().ok()?),
            _ => continue,
        }
        ports += usize::from(kind > 1);
    }
    (ports == 2).then_some(tuple)
}
