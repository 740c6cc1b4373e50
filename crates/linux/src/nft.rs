//! nftables over netlink, without the `nft` program.
//!
//! A [`Ruleset`](crate::nft_ruleset::Ruleset) is data; `diff` of two gives [`Command`]s;
//! [`Nft::commit`] sends them as one transaction, which the kernel carries out wholly or not at
//! all. Only tables named by the caller are ever touched.

use std::os::fd::{AsFd, OwnedFd};

use tokio::io::unix::AsyncFd;

use crate::{
    netlink::{
        APPEND, CREATE, Error, Message, Protocol, Result, Socket, attribute, attributes, be32_of,
        text_of,
    },
    netns::NetNs,
    nft_expr::{encode_value, encode_verdict, rule_expressions},
    nft_ruleset::{Chain, Command, Element, Key, Rule, SetSpec, Value, Verdict},
};

/// A connection to the nftables of one network namespace.
pub struct Nft {
    socket: Socket,
}

/// Announces changes to the tables of a network namespace by anyone.
pub struct Changes {
    socket: Socket,
    ready: AsyncFd<OwnedFd>,
}

/// The packets a table sees; also how its addresses are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    Inet = 1,
    Ipv4 = 2,
    Ipv6 = 10,
}

/// A table's identity.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Table {
    pub family: Family,
    pub name: String,
}

/// An element as the kernel shows it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Shown {
    pub key: Vec<u8>,
    pub value: Value,
    /// Marks the end of an interval, exclusive.
    pub interval_end: bool,
    pub timeout_ms: u64,
}

const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const NEWTABLE: u16 = 0;
const GETTABLE: u16 = 1;
const DELTABLE: u16 = 2;
const NEWCHAIN: u16 = 3;
const GETCHAIN: u16 = 4;
const DELCHAIN: u16 = 5;
const NEWRULE: u16 = 6;
const GETRULE: u16 = 7;
const DELRULE: u16 = 8;
const NEWSET: u16 = 9;
const GETSET: u16 = 10;
const DELSET: u16 = 11;
const NEWSETELEM: u16 = 12;
const GETSETELEM: u16 = 13;
const DELSETELEM: u16 = 14;

/// The elements of one message stay well below an attribute's 64 KiB.
const ELEMENT_BYTES_PER_MESSAGE: usize = 40 << 10;

const SET_INTERVAL: u32 = 0x4;
const SET_MAP: u32 = 0x8;
const SET_TIMEOUT: u32 = 0x10;
const SET_EVAL: u32 = 0x20;
const SET_CONCAT: u32 = 0x80;
const VERDICT_TYPE: u32 = 0xffff_ff00;
const ELEMENT_INTERVAL_END: u32 = 1;

impl Table {
    pub fn new(family: Family, name: &str) -> Self {
        Self { family, name: name.to_owned() }
    }
}

impl Nft {
    pub fn open() -> Result<Self> {
        Ok(Self { socket: Socket::open(Protocol::Netfilter)? })
    }

    pub fn open_in(namespace: &NetNs) -> Result<Self> {
        Ok(Self { socket: Socket::open_in(Protocol::Netfilter, namespace)? })
    }

    /// Changes an existing table in one transaction.
    pub fn commit(&mut self, table: &Table, commands: &[Command]) -> Result<()> {
        if commands.is_empty() {
            return Ok(());
        }
        self.transact(table, commands, |_| {})
    }

    /// Puts the table that `commands` build in the place of whatever bears its name, at once.
    pub fn replace(&mut self, table: &Table, commands: &[Command]) -> Result<()> {
        self.transact(table, commands, |batch| {
            // Deleting what may not exist: create it first, which is no error when it does.
            batch.push(table.message(NEWTABLE, CREATE), usize::MAX);
            batch.push(table.message(DELTABLE, 0), usize::MAX);
            batch.push(table.message(NEWTABLE, CREATE), usize::MAX);
        })
    }

    /// Removes a table with all that is in it; one that is not there is fine.
    pub fn delete(&mut self, table: &Table) -> Result<()> {
        self.transact(table, &[], |batch| {
            batch.push(table.message(NEWTABLE, CREATE), usize::MAX);
            batch.push(table.message(DELTABLE, 0), usize::MAX);
        })
    }

    fn transact(
        &mut self,
        table: &Table,
        commands: &[Command],
        before: impl FnOnce(&mut Batch),
    ) -> Result<()> {
        let mut batch = Batch::default();
        batch.push(marker(BATCH_BEGIN), usize::MAX);
        before(&mut batch);
        for (index, command) in commands.iter().enumerate() {
            command.encode(table, index, &mut batch);
        }
        if let Some(last) = batch.messages.pop() {
            batch.messages.push(last.with_ack());
        }
        batch.push(marker(BATCH_END), usize::MAX);
        let origins = batch.origins;
        self.socket.batch(batch.messages).map_err(|error| {
            error.about(|message| {
                let origin = origins.get(message).and_then(|index| commands.get(*index));
                let what = origin.map_or_else(|| "the transaction".to_owned(), Command::text);
                format!("{what} in nft table {}", table.name)
            })
        })
    }

    /// All tables.
    pub fn tables(&mut self) -> Result<Vec<Table>> {
        let replies = self.socket.dump(message(GETTABLE, 0, 0))?;
        Ok(replies
            .iter()
            .filter_map(|(_, body)| {
                let family = Family::of(*body.first()?)?;
                Some(Table { family, name: text_of(attribute(body.get(4..)?, 1)?) })
            })
            .collect())
    }

    /// The names of a table's chains, sorted.
    pub fn chains(&mut self, table: &Table) -> Result<Vec<String>> {
        self.names(table, GETCHAIN, 1, 3)
    }

    /// The names of a table's sets and maps, sorted.
    pub fn sets(&mut self, table: &Table) -> Result<Vec<String>> {
        self.names(table, GETSET, 1, 2)
    }

    /// How many rules each chain has, by the chain's name, sorted.
    pub fn rule_counts(&mut self, table: &Table) -> Result<Vec<(String, usize)>> {
        let mut counts = std::collections::BTreeMap::new();
        for chain in self.names(table, GETRULE, 1, 2)? {
            *counts.entry(chain).or_insert(0) += 1;
        }
        Ok(counts.into_iter().collect())
    }

    fn names(&mut self, table: &Table, get: u16, owner: u16, name: u16) -> Result<Vec<String>> {
        let mut request = message(get, 0, table.family as u8);
        request.text(owner, &table.name);
        let replies = self.socket.dump(request)?;
        let mut names: Vec<String> = replies
            .iter()
            .filter_map(|(_, body)| {
                let attributes = body.get(4..)?;
                let ours = text_of(attribute(attributes, owner)?) == table.name;
                ours.then(|| attribute(attributes, name).map(text_of))?
            })
            .collect();
        names.sort();
        Ok(names)
    }

    /// The elements of a set or map, sorted by key.
    pub fn elements(&mut self, table: &Table, set: &str) -> Result<Vec<Shown>> {
        let mut request = message(GETSETELEM, 0, table.family as u8);
        request.text(1, &table.name).text(2, set);
        let mut shown = Vec::new();
        for (_, body) in self.socket.dump(request)? {
            let list = body.get(4..).and_then(|a| attribute(a, 3)).unwrap_or_default();
            for (_, element) in attributes(list) {
                shown.push(read_element(element).ok_or(Error::Malformed)?);
            }
        }
        shown.sort();
        Ok(shown)
    }
}

impl Changes {
    /// Must be called within an async runtime.
    pub fn open() -> Result<Self> {
        const NFTABLES_GROUP: i32 = 7;
        let socket = Socket::open(Protocol::Netfilter)?;
        socket.join(NFTABLES_GROUP)?;
        let io = |source| Error::Io { operation: "registration", source };
        let twin = socket.as_fd().try_clone_to_owned().map_err(io)?;
        Ok(Self { socket, ready: crate::ready::register(twin).map_err(io)? })
    }

    /// Waits for a change. Several at once are one, and lost announcements are one too.
    pub async fn next(&mut self) -> Result<()> {
        loop {
            let ready = self.ready.readable().await;
            let mut ready = ready.map_err(|source| Error::Io { operation: "waiting", source })?;
            let any = self.socket.drain()?;
            ready.clear_ready();
            if any {
                return Ok(());
            }
        }
    }
}

impl Family {
    fn of(number: u8) -> Option<Self> {
        [Self::Inet, Self::Ipv4, Self::Ipv6].into_iter().find(|family| *family as u8 == number)
    }
}

/// Messages on their way, each with the index of the command that it came from.
#[derive(Default)]
struct Batch {
    messages: Vec<Message>,
    origins: Vec<usize>,
}

impl Batch {
    fn push(&mut self, message: Message, origin: usize) {
        self.messages.push(message);
        self.origins.push(origin);
    }
}

impl Table {
    fn message(&self, kind: u16, flags: u16) -> Message {
        let mut message = message(kind, flags, self.family as u8);
        message.text(1, &self.name);
        message
    }
}

impl Command {
    fn encode(&self, table: &Table, index: usize, batch: &mut Batch) {
        match self {
            Self::AddChain { chain, spec } => batch.push(add_chain(table, chain, spec), index),
            Self::DeleteChain { chain } => {
                let mut message = table.message(DELCHAIN, 0);
                message.text(3, chain);
                batch.push(message, index);
            }
            Self::FlushChain { chain } => {
                let mut message = table.message(DELRULE, 0);
                message.text(2, chain);
                batch.push(message, index);
            }
            Self::AddRule { chain, rule } => batch.push(add_rule(table, chain, rule), index),
            Self::AddSet { set, spec } => batch.push(add_set(table, set, spec, index), index),
            Self::DeleteSet { set } => {
                let mut message = table.message(DELSET, 0);
                message.text(2, set);
                batch.push(message, index);
            }
            Self::AddElements { set, spec, elements } => {
                let encoded = elements.iter().flat_map(|e| element_parts(spec, e));
                push_elements(table, NEWSETELEM, CREATE, set, encoded, index, batch);
            }
            Self::DeleteElements { set, spec, keys } => {
                let encoded = keys.iter().flat_map(|key| {
                    element_parts(spec, &Element { key: key.clone(), value: Value::None })
                });
                push_elements(table, DELSETELEM, 0, set, encoded, index, batch);
            }
        }
    }
}

fn add_chain(table: &Table, name: &str, chain: &Chain) -> Message {
    let mut message = table.message(NEWCHAIN, CREATE);
    message.text(3, name);
    if let Some(base) = &chain.base {
        message.nest(4, |hook| {
            hook.be32(1, base.hook as u32).be32(2, base.priority as u32);
        });
        message.be32(5, u32::from(!base.drop_by_default)).text(7, base.kind.name());
    }
    message
}

fn add_rule(table: &Table, chain: &str, rule: &Rule) -> Message {
    let mut message = table.message(NEWRULE, CREATE | APPEND);
    message.text(2, chain);
    message.nest(4, |list| rule_expressions(list, rule));
    message
}

fn add_set(table: &Table, name: &str, spec: &SetSpec, id: usize) -> Message {
    let mut flags = 0;
    let intervals_of_many = spec.interval && spec.key.len() > 1;
    for (wanted, flag) in [
        (spec.interval, SET_INTERVAL),
        (intervals_of_many, SET_CONCAT),
        (spec.data.is_some() || spec.verdicts, SET_MAP),
        (spec.timeout_ms.is_some(), SET_TIMEOUT),
        (spec.dynamic, SET_EVAL),
    ] {
        flags |= if wanted { flag } else { 0 };
    }
    let mut message = table.message(NEWSET, CREATE);
    message.text(2, name).be32(3, flags);
    message.be32(4, spec.key_type()).be32(5, spec.key_bytes() as u32);
    if spec.verdicts {
        message.be32(6, VERDICT_TYPE);
    } else if let Some(data) = &spec.data {
        let length: usize = data.iter().map(|field| field.padded()).sum();
        message.be32(6, crate::nft_ruleset::type_of(data)).be32(7, length as u32);
    }
    if intervals_of_many {
        message.nest(9, |description| {
            description.nest(2, |fields| {
                for field in &spec.key {
                    fields.nest(1, |one| {
                        one.be32(1, field.bytes() as u32);
                    });
                }
            });
        });
    }
    message.be32(10, id as u32 + 1);
    if let Some(timeout_ms) = spec.timeout_ms {
        message.be64(11, timeout_ms);
    }
    message
}

/// One element as the kernel wants it: an interval over a single field is two, its start and its
/// exclusive end; one over several fields has both ends in one.
fn element_parts(spec: &SetSpec, element: &Element) -> Vec<Message> {
    let Key { from, to } = &element.key;
    let single_interval = spec.interval && spec.key.len() == 1;
    let mut start = Message::fragment();
    start.nest(1, |key| {
        key.attr(1, from);
    });
    encode_value(&mut start, 2, &element.value);
    if spec.interval && !single_interval {
        start.nest(10, |end| {
            end.attr(1, to.as_ref().unwrap_or(from));
        });
    }
    let mut parts = vec![start];
    if single_interval && let Some(beyond) = successor(to.as_ref().unwrap_or(from)) {
        let mut end = Message::fragment();
        end.nest(1, |key| {
            key.attr(1, &beyond);
        });
        end.be32(3, ELEMENT_INTERVAL_END);
        parts.push(end);
    }
    parts
}

/// The next key in order; `None` after the last.
fn successor(key: &[u8]) -> Option<Vec<u8>> {
    let mut next = key.to_vec();
    for byte in next.iter_mut().rev() {
        *byte = byte.wrapping_add(1);
        if *byte != 0 {
            return Some(next);
        }
    }
    None
}

fn push_elements(
    table: &Table,
    kind: u16,
    flags: u16,
    set: &str,
    elements: impl Iterator<Item = Message>,
    index: usize,
    batch: &mut Batch,
) {
    let mut elements = elements.peekable();
    while elements.peek().is_some() {
        let mut message = table.message(kind, flags);
        message.text(2, set).nest(3, |list| {
            let start = list.len();
            while list.len() - start < ELEMENT_BYTES_PER_MESSAGE
                && let Some(element) = elements.next()
            {
                list.nest(1, |one| {
                    one.raw(element.fragment_bytes());
                });
            }
        });
        batch.push(message, index);
    }
}

fn read_element(bytes: &[u8]) -> Option<Shown> {
    let mut shown =
        Shown { key: Vec::new(), value: Value::None, interval_end: false, timeout_ms: 0 };
    for (kind, value) in attributes(bytes) {
        match kind {
            1 => shown.key = attribute(value, 1)?.to_vec(),
            2 => shown.value = read_value(value)?,
            3 => shown.interval_end = be32_of(value)? & ELEMENT_INTERVAL_END != 0,
            4 => shown.timeout_ms = u64::from_be_bytes(value.try_into().ok()?),
            _ => {}
        }
    }
    Some(shown)
}

fn read_value(bytes: &[u8]) -> Option<Value> {
    if let Some(data) = attribute(bytes, 1) {
        return Some(Value::Data(data.to_vec()));
    }
    let verdict = attribute(bytes, 2)?;
    let chain = attribute(verdict, 2).map(text_of).unwrap_or_default();
    let verdict = match be32_of(attribute(verdict, 1)?)? as i32 {
        0 => Verdict::Drop,
        1 => Verdict::Accept,
        -1 => Verdict::Continue,
        -3 => Verdict::Jump(chain),
        -4 => Verdict::Goto(chain),
        -5 => Verdict::Return,
        _ => return None,
    };
    Some(Value::Verdict(verdict))
}

fn message(kind: u16, flags: u16, family: u8) -> Message {
    Message::new(SUBSYSTEM << 8 | kind, flags, &[family, 0, 0, 0])
}

fn marker(kind: u16) -> Message {
    let [high, low] = SUBSYSTEM.to_be_bytes();
    Message::new(kind, 0, &[0, 0, high, low])
}

/// For `nft_expr`, which nests verdicts the same way.
pub(crate) fn verdict_data(message: &mut Message, kind: u16, verdict: &Verdict) {
    message.nest(kind, |data| encode_verdict(data, verdict));
}
