//! Addresses of a node's pods: which one is next, in memory; `state` remembers them.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::IpNet;

use crate::Error;

/// The addresses of one range. Hands them out in order and comes back to a freed one last, so
/// that an address rests as long as the range allows.
#[derive(Debug)]
pub struct Pool {
    range: IpNet,
    taken: BTreeSet<IpAddr>,
    last: Option<IpAddr>,
}

/// Addresses at the start of a range that pods do not get: the network's own, which names the
/// node's tunnel end, and the first, which many tools take for a gateway.
const RESERVED: u128 = 2;

impl Pool {
    pub fn new(range: IpNet) -> Self {
        Self { range, taken: BTreeSet::new(), last: None }
    }

    pub fn range(&self) -> IpNet {
        self.range
    }

    /// The next free address.
    pub fn take(&mut self) -> Result<IpAddr, Error> {
        let (first, end) = (number(self.range.network()) + RESERVED, self.end());
        if first >= end {
            return Err(Error::Exhausted(self.range));
        }
        let start = self.last.map_or(first, |last| number(last) + 1);
        let start = if (first..end).contains(&start) { start } else { first };
        let free = self.free_from(start, end).or_else(|| self.free_from(first, start));
        let address = free.ok_or(Error::Exhausted(self.range))?;
        self.claim(address);
        self.last = Some(address);
        Ok(address)
    }

    /// Marks an address of an earlier run as taken.
    pub fn claim(&mut self, address: IpAddr) {
        if self.range.contains(&address) {
            self.taken.insert(address);
        }
    }

    pub fn release(&mut self, address: IpAddr) {
        self.taken.remove(&address);
    }

    pub fn in_use(&self) -> usize {
        self.taken.len()
    }

    /// One past the last address for pods; IPv4's broadcast address is not one.
    fn end(&self) -> u128 {
        let last = number(self.range.broadcast());
        if self.range.addr().is_ipv4() { last } else { last.saturating_add(1) }
    }

    /// Walks taken addresses in order beside the candidates: the gap found costs one step per
    /// taken address passed, not per address of the range.
    fn free_from(&self, start: u128, end: u128) -> Option<IpAddr> {
        let mut candidate = start;
        for taken in self.taken.range(self.address(start)..) {
            if candidate < number(*taken) {
                break;
            }
            candidate = number(*taken) + 1;
        }
        (candidate < end).then(|| self.address(candidate))
    }

    fn address(&self, number: u128) -> IpAddr {
        match self.range {
            IpNet::V4(_) => Ipv4Addr::from(number as u32).into(),
            IpNet::V6(_) => Ipv6Addr::from(number).into(),
        }
    }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u32::from(v4).into(),
        IpAddr::V6(v6) => v6.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(range: &str) -> Pool {
        Pool::new(range.parse().unwrap())
    }

    fn take(pool: &mut Pool) -> String {
        pool.take().unwrap().to_string()
    }

    #[test]
    fn reserved_addresses_are_never_handed_out() {
        let mut pool = pool("10.244.1.0/29");
        let all: Vec<String> = (0..5).map(|_| take(&mut pool)).collect();
        let wanted: Vec<String> = (2..7).map(|n| format!("10.244.1.{n}")).collect();
        assert_eq!(all, wanted);
        assert!(matches!(pool.take(), Err(Error::Exhausted(_))));
        assert!(Pool::new("10.0.0.0/32".parse().unwrap()).take().is_err());
    }

    #[test]
    fn a_freed_address_rests_longest() {
        let mut pool = pool("10.244.1.0/28");
        let first = pool.take().unwrap();
        pool.release(first);
        assert_eq!(take(&mut pool), "10.244.1.3");
        for _ in 0..11 {
            pool.take().unwrap();
        }
        assert_eq!(pool.take().unwrap(), first, "the round is over");
        assert!(pool.take().is_err());
        pool.release("10.244.1.9".parse().unwrap());
        assert_eq!(take(&mut pool), "10.244.1.9");
    }

    #[test]
    fn claimed_addresses_are_skipped_and_strangers_ignored() {
        let mut pool = pool("fd00::/120");
        pool.claim("fd00::2".parse().unwrap());
        pool.claim("fd00::3".parse().unwrap());
        pool.claim("10.0.0.1".parse().unwrap());
        assert_eq!(take(&mut pool), "fd00::4");
        assert_eq!(pool.in_use(), 3);
    }
}
