//! The expressions that rules are made of.

use crate::{
    netlink::Message,
    nft::{Family, verdict_data},
    nft_ruleset::{Rule, Value, Verdict},
};

/// A 4-byte register, 0 to 15. A longer value takes the registers that follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reg(pub u32);

/// One step of a rule. A step that does not match ends the rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expr {
    /// Reads packet bytes.
    Payload {
        base: Layer,
        offset: u32,
        bytes: u32,
        to: Reg,
    },
    Meta {
        key: MetaKey,
        to: Reg,
    },
    SetMark {
        from: Reg,
    },
    Ct {
        key: CtKey,
        to: Reg,
    },
    /// A part of the connection's first packet as it came, before translation.
    CtOriginal {
        key: CtOriginalKey,
        to: Reg,
    },
    /// The connection's mark, which a nat chain may use to keep a number between rules.
    SetCtMark {
        from: Reg,
    },
    /// The kind of an address as the routing table sees it ([`ADDRESS_LOCAL`] and the like).
    AddressType {
        of: Side,
        to: Reg,
    },
    Immediate {
        to: Reg,
        value: Vec<u8>,
    },
    Compare {
        reg: Reg,
        op: Op,
        value: Vec<u8>,
    },
    /// `to = (from & mask) ^ xor`.
    Bitwise {
        from: Reg,
        to: Reg,
        mask: Vec<u8>,
        xor: Vec<u8>,
    },
    Lookup {
        set: String,
        key: Reg,
        result: Found,
    },
    /// A random number below `modulus`, in the machine's byte order.
    Random {
        modulus: u32,
        to: Reg,
    },
    /// A hash of register bytes below `modulus`.
    Hash {
        from: Reg,
        bytes: u32,
        modulus: u32,
        seed: u32,
        to: Reg,
    },
    /// Adds, refreshes or deletes an element of a dynamic set.
    Remember {
        set: String,
        op: Update,
        key: Reg,
        data: Option<Reg>,
        timeout_ms: u64,
    },
    Dnat {
        family: Family,
        address: Reg,
        port: Option<Reg>,
    },
    Snat {
        family: Family,
        address: Reg,
    },
    /// The source becomes an address of the device that the packet leaves by, with a random port.
    Masquerade,
    Reject(Reject),
    Counter,
    /// One line in the kernel's log.
    Log {
        prefix: String,
    },
    Verdict(Verdict),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layer {
    Network = 1,
    Transport = 2,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetaKey {
    Mark = 3,
    InputName = 6,
    OutputName = 7,
    /// `NFPROTO_IPV4` or `NFPROTO_IPV6`, one byte.
    NetworkProtocol = 15,
    /// TCP, UDP, ..., one byte.
    TransportProtocol = 16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CtKey {
    /// A bit set of [`CT_INVALID`], [`CT_ESTABLISHED`], ...
    State = 0,
    /// A bit set with [`CT_STATUS_DNAT`].
    Status = 2,
    Mark = 3,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CtOriginalKey {
    /// TCP's, UDP's or SCTP's destination port.
    DestinationPort = 12,
    DestinationIpv4 = 20,
    DestinationIpv6 = 22,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Source = 1,
    Destination = 2,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    Equal = 0,
    NotEqual = 1,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// Goes on when the key is in the set.
    Present,
    /// Goes on when it is not.
    Absent,
    /// Loads the map's value.
    Data(Reg),
    /// Does what the verdict map says.
    Verdict,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Update {
    /// Adds or, when it is there, starts its time anew (its data stays).
    Refresh = 1,
    Delete = 2,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reject {
    TcpReset,
    /// By ICMP; the table's family says which.
    PortUnreachable(Family),
}

pub const CT_INVALID: u32 = 1;
pub const CT_ESTABLISHED: u32 = 2;
pub const CT_RELATED: u32 = 4;
pub const CT_NEW: u32 = 8;
pub const CT_STATUS_DNAT: u32 = 1 << 5;
/// `RTN_LOCAL`: the machine's own address.
pub const ADDRESS_LOCAL: u32 = 2;

const FULLY_RANDOM_PORT: u32 = 16;

impl Reg {
    fn number(self) -> u32 {
        assert!(self.0 < 16, "nftables has sixteen registers");
        8 + self.0
    }
}

impl Expr {
    /// A test that a number in the machine's byte order has one of `bits` set.
    pub fn any_bit(reg: Reg, bits: u32) -> [Self; 2] {
        let (mask, xor) = (bits.to_ne_bytes().to_vec(), vec![0; 4]);
        [
            Self::Bitwise { from: reg, to: reg, mask, xor },
            Self::Compare { reg, op: Op::NotEqual, value: vec![0; 4] },
        ]
    }
}

pub(crate) fn rule_expressions(list: &mut Message, rule: &Rule) {
    for expr in &rule.0 {
        list.nest(1, |one| {
            one.text(1, name(expr)).nest(2, |data| encode(data, expr));
        });
    }
}

fn name(expr: &Expr) -> &'static str {
    match expr {
        Expr::Payload { .. } => "payload",
        Expr::Meta { .. } | Expr::SetMark { .. } => "meta",
        Expr::Ct { .. } | Expr::CtOriginal { .. } | Expr::SetCtMark { .. } => "ct",
        Expr::AddressType { .. } => "fib",
        Expr::Immediate { .. } | Expr::Verdict(_) => "immediate",
        Expr::Compare { .. } => "cmp",
        Expr::Bitwise { .. } => "bitwise",
        Expr::Lookup { .. } => "lookup",
        Expr::Random { .. } => "numgen",
        Expr::Hash { .. } => "hash",
        Expr::Remember { .. } => "dynset",
        Expr::Dnat { .. } | Expr::Snat { .. } => "nat",
        Expr::Masquerade => "masq",
        Expr::Reject(_) => "reject",
        Expr::Counter => "counter",
        Expr::Log { .. } => "log",
    }
}

fn encode(data: &mut Message, expr: &Expr) {
    match expr {
        Expr::Payload { base, offset, bytes, to } => {
            data.be32(1, to.number()).be32(2, *base as u32).be32(3, *offset).be32(4, *bytes);
        }
        Expr::Meta { key, to } => {
            data.be32(1, to.number()).be32(2, *key as u32);
        }
        Expr::SetMark { from } => {
            data.be32(2, MetaKey::Mark as u32).be32(3, from.number());
        }
        Expr::Ct { key, to } => {
            data.be32(1, to.number()).be32(2, *key as u32);
        }
        Expr::CtOriginal { key, to } => {
            const ORIGINAL: u8 = 0;
            data.be32(1, to.number()).be32(2, *key as u32).attr(3, &[ORIGINAL]);
        }
        Expr::SetCtMark { from } => {
            data.be32(2, CtKey::Mark as u32).be32(4, from.number());
        }
        Expr::AddressType { of, to } => {
            const RESULT_ADDRESS_TYPE: u32 = 3;
            data.be32(1, to.number()).be32(2, RESULT_ADDRESS_TYPE).be32(3, *of as u32);
        }
        Expr::Immediate { to, value } => {
            data.be32(1, to.number()).nest(2, |v| {
                v.attr(1, value);
            });
        }
        Expr::Verdict(verdict) => {
            data.be32(1, 0);
            verdict_data(data, 2, verdict);
        }
        Expr::Compare { reg, op, value } => {
            data.be32(1, reg.number()).be32(2, *op as u32).nest(3, |v| {
                v.attr(1, value);
            });
        }
        Expr::Bitwise { from, to, mask, xor } => {
            data.be32(1, from.number()).be32(2, to.number()).be32(3, mask.len() as u32);
            for (kind, value) in [(4, mask), (5, xor)] {
                data.nest(kind, |v| {
                    v.attr(1, value);
                });
            }
        }
        Expr::Lookup { set, key, result } => lookup(data, set, *key, *result),
        Expr::Random { modulus, to } => {
            const RANDOM: u32 = 1;
            data.be32(1, to.number()).be32(2, *modulus).be32(3, RANDOM);
        }
        Expr::Hash { from, bytes, modulus, seed, to } => {
            data.be32(1, from.number()).be32(2, to.number()).be32(3, *bytes);
            data.be32(4, *modulus).be32(5, *seed);
        }
        Expr::Remember { set, op, key, data: value, timeout_ms } => {
            data.text(1, set).be32(3, *op as u32).be32(4, key.number());
            if let Some(value) = value {
                data.be32(5, value.number());
            }
            if *timeout_ms > 0 {
                data.be64(6, *timeout_ms);
            }
        }
        Expr::Dnat { family, address, port } => nat(data, 1, *family, *address, *port),
        Expr::Snat { family, address } => nat(data, 0, *family, *address, None),
        Expr::Masquerade => {
            data.be32(1, FULLY_RANDOM_PORT);
        }
        Expr::Reject(Reject::TcpReset) => {
            data.be32(1, 1);
        }
        Expr::Reject(Reject::PortUnreachable(family)) => {
            // Each family's own code, or the neutral one that only `inet` tables know.
            let (kind, code) = match family {
                Family::Ipv4 => (0, 3),
                Family::Ipv6 => (0, 4),
                Family::Inet => (2, 1),
            };
            data.be32(1, kind).attr(2, &[code]);
        }
        Expr::Counter => {
            data.be64(1, 0).be64(2, 0);
        }
        Expr::Log { prefix } => {
            data.text(2, prefix);
        }
    }
}

fn lookup(data: &mut Message, set: &str, key: Reg, result: Found) {
    const INVERT: u32 = 1;
    data.text(1, set).be32(2, key.number());
    match result {
        Found::Present => {}
        Found::Absent => {
            data.be32(5, INVERT);
        }
        Found::Data(to) => {
            data.be32(3, to.number());
        }
        Found::Verdict => {
            data.be32(3, 0);
        }
    }
}

fn nat(data: &mut Message, kind: u32, family: Family, address: Reg, port: Option<Reg>) {
    data.be32(1, kind).be32(2, family as u32).be32(3, address.number());
    if let Some(port) = port {
        data.be32(5, port.number());
    }
}

pub(crate) fn encode_value(message: &mut Message, kind: u16, value: &Value) {
    match value {
        Value::None => {}
        Value::Verdict(verdict) => verdict_data(message, kind, verdict),
        Value::Data(bytes) => {
            message.nest(kind, |data| {
                data.attr(1, bytes);
            });
        }
    }
}

pub(crate) fn encode_verdict(data: &mut Message, verdict: &Verdict) {
    let (code, chain): (i32, Option<&str>) = match verdict {
        Verdict::Drop => (0, None),
        Verdict::Accept => (1, None),
        Verdict::Continue => (-1, None),
        Verdict::Jump(chain) => (-3, Some(chain)),
        Verdict::Goto(chain) => (-4, Some(chain)),
        Verdict::Return => (-5, None),
    };
    data.nest(2, |nest| {
        nest.be32(1, code as u32);
        if let Some(chain) = chain {
            nest.text(2, chain);
        }
    });
}
