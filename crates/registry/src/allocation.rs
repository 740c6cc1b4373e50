//! Addresses and ports of Services, decided by compare-and-put in the store.
//!
//! Both lie where and as upstream keeps them: an address is an `IPAddress` object whose key can
//! be created once; node ports are bits of one `RangeAllocation`. Servers on one store, of
//! either kind, therefore never give out the same twice.

use std::{net::IpAddr, str::FromStr, sync::Arc};

use api::{GroupVersionKind, GroupVersionResource, Status};
use machinery::{Object, scalars, value};
use store::{Txn, TxnResult};

use crate::{
    AdmitAll, CreateOptions, DeleteOptions, RequestContext, Resource, Shared, codec,
    storage::{self, failed},
};

const ADDRESSES: GroupVersionResource =
    GroupVersionResource::fixed("networking.k8s.io", "v1", "ipaddresses");
const PORTS_KEY: &str = "/registry/ranges/servicenodeports";
const ATTEMPTS: usize = 64;

/// A block of addresses for Services.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    base: u128,
    /// How many low bits are free to choose.
    bits: u32,
    v4: bool,
}

impl Block {
    /// Parses `10.96.0.0/12`.
    pub fn parse(text: &str) -> Option<Self> {
        let (address, prefix) = text.split_once('/')?;
        let prefix: u32 = prefix.parse().ok()?;
        let address = IpAddr::from_str(address).ok()?;
        let width = if address.is_ipv4() { 32 } else { 128 };
        let bits = width - (prefix <= width).then_some(prefix)?;
        let mask = if bits == 128 { 0 } else { u128::MAX << bits };
        Some(Self { base: number(address) & mask, bits, v4: address.is_ipv4() })
    }

    /// `IPv4` or `IPv6`
    pub fn family(&self) -> &'static str {
        if self.v4 { "IPv4" } else { "IPv6" }
    }

    pub fn contains(&self, address: IpAddr) -> bool {
        let offset = number(address).wrapping_sub(self.base);
        address.is_ipv4() == self.v4 && offset >= 1 && offset <= self.last()
    }

    /// The address with this offset from the block's start (1 is the first usable).
    pub fn nth(&self, offset: u128) -> IpAddr {
        let number = self.base + offset;
        if self.v4 { IpAddr::V4((number as u32).into()) } else { IpAddr::V6(number.into()) }
    }

    /// The highest usable offset: of IPv4 without the broadcast address. At most 2^64.
    fn last(&self) -> u128 {
        let size = 1u128 << self.bits.min(64);
        if self.v4 { size.saturating_sub(2).max(1) } else { size - 1 }
    }

    /// Offsets up to this one are tried last, so that they stay free for fixed addresses.
    fn reserved(&self) -> u128 {
        let size = 1u128 << self.bits.min(64);
        if size <= 16 { 0 } else { (size / 16).clamp(16, 256) }
    }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(u32::from(v4)),
        IpAddr::V6(v6) => v6.into(),
    }
}

/// Why nothing was given out.
#[derive(Debug)]
pub(crate) enum Refusal {
    Taken,
    OutOfRange(String),
    Full,
    Failed(Status),
}

impl Refusal {
    pub fn text(&self) -> String {
        match self {
            Self::Taken => "provided IP is already allocated".into(),
            Self::OutOfRange(why) => why.clone(),
            Self::Full => "range is full".into(),
            Self::Failed(status) => status.message.clone(),
        }
    }
}

impl From<Status> for Refusal {
    fn from(status: Status) -> Self {
        Self::Failed(status)
    }
}

fn addresses(at: &Resource) -> Result<Arc<Resource>, Status> {
    let registry =
        at.registry().ok_or_else(|| Status::internal("the registry is shutting down"))?;
    registry.resource(&ADDRESSES).ok_or_else(|| Status::internal("ipaddresses are not served"))
}

/// Claims one address for a Service.
pub(crate) async fn claim_address(
    at: &Resource,
    cx: &RequestContext,
    block: &Block,
    address: IpAddr,
    service: (&str, &str),
) -> Result<(), Refusal> {
    if !block.contains(address) {
        let start = block.nth(0);
        let prefix = if block.v4 { 32 } else { 128 } - block.bits;
        let range = format!("{start}/{prefix}");
        return Err(Refusal::OutOfRange(format!(
            "the provided IP ({address}) is not in the valid range. The range of valid IPs is {range}"
        )));
    }
    let addresses = addresses(at)?;
    if cx.dry_run {
        let found = addresses.get("", &address.to_string(), &Default::default()).await;
        return if found.is_ok() { Err(Refusal::Taken) } else { Ok(()) };
    }
    let object = address_object(block, address, service);
    let context = RequestContext::internal(cx.time);
    match addresses.create(&context, "", object, &CreateOptions::default(), &AdmitAll).await {
        Ok(_) => Ok(()),
        Err(status) if status.is_already_exists() => Err(Refusal::Taken),
        Err(status) => Err(Refusal::Failed(status)),
    }
}

fn address_object(block: &Block, address: IpAddr, (namespace, name): (&str, &str)) -> Object {
    let family = block.family();
    let address = address.to_string();
    Object::from_value(value!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "IPAddress",
        "metadata": {
            "name": address,
            "labels": {
                "ipaddress.kubernetes.io/ip-family": family,
                "ipaddress.kubernetes.io/managed-by": "ipallocator.k8s.io",
            },
        },
        "spec": {"parentRef": {"group": "", "resource": "services", "namespace": namespace, "name": name}},
    }))
    .unwrap_or_default()
}

/// Claims any address of a block, from a random place on, the reserved low ones last.
pub(crate) async fn claim_any_address(
    at: &Resource,
    cx: &RequestContext,
    block: &Block,
    service: (&str, &str),
) -> Result<IpAddr, Refusal> {
    let env = &at.storage.shared.env;
    let (last, reserved) = (block.last(), block.reserved());
    for (low, high) in [(reserved + 1, last), (1, reserved.min(last))] {
        if high < low {
            continue;
        }
        let count = high - low + 1;
        let start = u128::from(env.random_u64()) % count;
        for step in 0..count {
            let address = block.nth(low + (start + step) % count);
            match claim_address(at, cx, block, address, service).await {
                Ok(()) => return Ok(address),
                Err(Refusal::Taken) => {}
                Err(refusal) => return Err(refusal),
            }
        }
    }
    Err(Refusal::Full)
}

/// Gives an address back, if it is this Service's.
pub(crate) async fn release_address(at: &Resource, address: &str, service: (&str, &str)) {
    let Ok(addresses) = addresses(at) else { return };
    let context = RequestContext::internal(at.storage.shared.env.now());
    let Ok(item) = addresses.get("", address, &Default::default()).await else { return };
    let Ok(object) = item.object() else { return };
    let parent = |field| object.str_at(&["spec", "parentRef", field]);
    if (parent("namespace"), parent("name")) != service {
        return;
    }
    let options =
        DeleteOptions { precondition_uid: Some(object.uid().into()), ..DeleteOptions::default() };
    if let Err(status) = addresses.delete(&context, "", address, &options, &AdmitAll).await {
        if !status.is_not_found() {
            tracing::warn!(address, %status, "an address of a Service was not given back");
        }
    }
}

/// The bits of the node ports, as they stand in the store.
struct Ports {
    first: u16,
    last: u16,
    /// Bit `n` of this big-endian number is port `first + n`.
    bits: Vec<u8>,
    revision: i64,
}

impl Ports {
    async fn read(shared: &Shared) -> Result<Self, Status> {
        let (first, last) = shared.options.node_ports;
        let read = shared.store.range(store::Range::key(PORTS_KEY)).await.map_err(failed)?;
        let Some(found) = read.items.into_iter().next() else {
            return Ok(Self { first, last, bits: Vec::new(), revision: 0 });
        };
        let object = codec::decode(&range_kind(), &found.value, found.mod_revision)?;
        let bits = scalars::base64_decode(object.str_at(&["data"]))
            .map_err(|_| Status::internal("the allocation of node ports is not base64"))?;
        Ok(Self { first, last, bits, revision: found.mod_revision })
    }

    fn place(&self, port: u16) -> Option<(usize, u8)> {
        let offset = usize::from(port.checked_sub(self.first)?);
        (port <= self.last).then_some((offset / 8, 1 << (offset % 8)))
    }

    fn has(&self, port: u16) -> bool {
        let Some((byte, bit)) = self.place(port) else { return false };
        let at = self.bits.len().checked_sub(byte + 1);
        at.is_some_and(|at| self.bits[at] & bit != 0)
    }

    fn set(&mut self, port: u16, taken: bool) {
        let Some((byte, bit)) = self.place(port) else { return };
        while self.bits.len() <= byte {
            self.bits.insert(0, 0);
        }
        let at = self.bits.len() - byte - 1;
        if taken { self.bits[at] |= bit } else { self.bits[at] &= !bit }
    }

    /// `false`: somebody else wrote meanwhile.
    async fn write(&self, shared: &Shared) -> Result<bool, Status> {
        let used =
            &self.bits[self.bits.iter().position(|&byte| byte != 0).unwrap_or(self.bits.len())..];
        let object = Object::from_value(value!({
            "apiVersion": "v1",
            "kind": "RangeAllocation",
            "metadata": {},
            "range": (format!("{}-{}", self.first, self.last)),
            "data": (scalars::base64_encode(used)),
        }));
        let bytes = codec::encode(&range_kind(), &object.unwrap_or_default())?;
        let txn = Txn::put_if(PORTS_KEY, bytes, self.revision);
        let done = shared.store.txn(txn).await.map_err(storage::failed)?;
        Ok(matches!(done, TxnResult::Written { .. }))
    }
}

fn range_kind() -> GroupVersionKind {
    GroupVersionKind::new("", "v1", "RangeAllocation")
}

/// Claims the ports asked for and as many more as wanted, all or none.
pub(crate) async fn claim_ports(
    shared: &Shared,
    cx: &RequestContext,
    wanted: &[u16],
    more: usize,
) -> Result<Vec<u16>, (u16, Refusal)> {
    let failed = |status: Status| (0, Refusal::Failed(status));
    for _ in 0..ATTEMPTS {
        let mut ports = Ports::read(shared).await.map_err(failed)?;
        for &port in wanted.iter().filter(|_| !cx.dry_run) {
            if ports.place(port).is_none() {
                let range = format!("{}-{}", ports.first, ports.last);
                let why = format!(
                    "provided port is not in the valid range. The range of valid ports is {range}"
                );
                return Err((port, Refusal::OutOfRange(why)));
            }
            if ports.has(port) {
                return Err((port, Refusal::Taken));
            }
            ports.set(port, true);
        }
        let mut found = Vec::new();
        let count = u64::from(ports.last - ports.first) + 1;
        let start = shared.env.random_u64() % count;
        for step in 0..count {
            if found.len() == more {
                break;
            }
            let port = ports.first + ((start + step) % count) as u16;
            if !ports.has(port) {
                ports.set(port, true);
                found.push(port);
            }
        }
        if found.len() < more {
            return Err((0, Refusal::Full));
        }
        if cx.dry_run
            || (wanted.is_empty() && more == 0)
            || ports.write(shared).await.map_err(failed)?
        {
            return Ok(found);
        }
    }
    Err((0, Refusal::Failed(Status::too_many_requests("too many Services change at once", 1))))
}

pub(crate) async fn release_ports(shared: &Shared, gone: &[u16]) {
    if gone.is_empty() {
        return;
    }
    for _ in 0..ATTEMPTS {
        let Ok(mut ports) = Ports::read(shared).await else { break };
        for &port in gone {
            ports.set(port, false);
        }
        match ports.write(shared).await {
            Ok(true) => return,
            Ok(false) => {}
            Err(_) => break,
        }
    }
    tracing::warn!(ports = ?gone, "node ports were not given back");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_know_their_addresses() {
        let block = Block::parse("10.96.0.0/12").unwrap();
        assert_eq!(block.nth(1).to_string(), "10.96.0.1");
        assert!(block.contains("10.111.255.254".parse().unwrap()));
        for outside in ["10.96.0.0", "10.111.255.255", "10.112.0.1", "fd00::1"] {
            assert!(!block.contains(outside.parse().unwrap()), "{outside}");
        }
        assert_eq!(block.reserved(), 256);
        assert_eq!(Block::parse("10.0.0.0/28").unwrap().reserved(), 0);
        let six = Block::parse("fd00::/108").unwrap();
        assert!(six.contains("fd00::1".parse().unwrap()));
        assert_eq!(six.family(), "IPv6");
        assert_eq!(Block::parse("10.0.0.0/33"), None);
    }

    #[test]
    fn bits_of_ports_follow_their_number() {
        let mut ports = Ports { first: 30_000, last: 32_767, bits: Vec::new(), revision: 0 };
        ports.set(30_000, true);
        ports.set(30_009, true);
        assert_eq!(ports.bits, [0b10, 0b1]);
        assert!(ports.has(30_009) && !ports.has(30_001) && !ports.has(29_999));
        ports.set(30_009, false);
        assert!(!ports.has(30_009) && ports.has(30_000));
    }
}
