//! A table's contents as data, and the difference of two as commands.
//!
//! [`diff`] is pure and minimal: an element that stays is not mentioned, a chain is rewritten
//! only when its rules differ. [`Ruleset::apply`] is the model of what the kernel does with the
//! commands, as strict as the kernel about order and references; tests hold the two together.

use std::collections::{BTreeMap, BTreeSet};

use crate::nft_expr::Expr;

/// The sets and chains of one table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ruleset {
    pub sets: BTreeMap<String, Set>,
    pub chains: BTreeMap<String, Chain>,
}

/// A set or map with its elements.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Set {
    pub spec: SetSpec,
    pub elements: BTreeMap<Key, Value>,
}

/// What kind of set or map.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SetSpec {
    /// One field, or the parts of a concatenation.
    pub key: Vec<Field>,
    /// The fields that a map's elements hold.
    pub data: Option<Vec<Field>>,
    /// A map to verdicts.
    pub verdicts: bool,
    /// Keys are ranges.
    pub interval: bool,
    /// Rules add elements.
    pub dynamic: bool,
    /// Elements end by themselves after this many milliseconds, unless they say otherwise.
    pub timeout_ms: Option<u64>,
}

/// A part of a key, which takes whole 4-byte words in a concatenation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    Ipv4,
    Ipv6,
    Protocol,
    Port,
    /// A number in the machine's byte order.
    Mark,
}

/// The key of an element; in interval sets the first and last key that it covers.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    pub from: Vec<u8>,
    pub to: Option<Vec<u8>>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Value {
    None,
    Verdict(Verdict),
    Data(Vec<u8>),
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    Accept,
    Drop,
    Continue,
    Return,
    Jump(String),
    Goto(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Element {
    pub key: Key,
    pub value: Value,
}

/// A chain; one without a base is reached by jump or goto alone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    pub base: Option<Base>,
    pub rules: Vec<Rule>,
}

/// Where a chain hooks into the packet's path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Base {
    pub kind: Kind,
    pub hook: Hook,
    pub priority: i32,
    pub drop_by_default: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Filter,
    Nat,
    Route,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    Prerouting = 0,
    Input = 1,
    Forward = 2,
    Output = 3,
    Postrouting = 4,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule(pub Vec<Expr>);

/// One step of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    AddSet { set: String, spec: SetSpec },
    AddChain { chain: String, spec: Chain },
    FlushChain { chain: String },
    AddRule { chain: String, rule: Rule },
    DeleteElements { set: String, spec: SetSpec, keys: Vec<Key> },
    AddElements { set: String, spec: SetSpec, elements: Vec<Element> },
    DeleteChain { chain: String },
    DeleteSet { set: String },
}

/// The steps from one state of a table to another, in an order that the kernel accepts.
pub fn diff(old: &Ruleset, new: &Ruleset) -> Vec<Command> {
    let mut steps = Steps::default();
    for (name, set) in &new.sets {
        match old.sets.get(name) {
            Some(before) if before.spec == set.spec => steps.elements(name, before, set),
            Some(_) => unreachable!("a set's kind follows from its name"),
            None => {
                steps.add_sets.push(Command::AddSet { set: name.clone(), spec: set.spec.clone() });
                steps.elements(
                    name,
                    &Set { spec: set.spec.clone(), elements: BTreeMap::new() },
                    set,
                );
            }
        }
    }
    for (name, chain) in &new.chains {
        match old.chains.get(name) {
            Some(before) if before == chain => {}
            Some(_) => steps.rules(name, chain, true),
            None => {
                let spec = Chain { base: chain.base, rules: Vec::new() };
                steps.add_chains.push(Command::AddChain { chain: name.clone(), spec });
                steps.rules(name, chain, false);
            }
        }
    }
    for name in old.chains.keys().filter(|name| !new.chains.contains_key(*name)) {
        steps.flushes.push(Command::FlushChain { chain: name.clone() });
        steps.delete_chains.push(Command::DeleteChain { chain: name.clone() });
    }
    for (name, set) in old.sets.iter().filter(|(name, _)| !new.sets.contains_key(*name)) {
        steps.elements(name, set, &Set { spec: set.spec.clone(), elements: BTreeMap::new() });
        steps.delete_sets.push(Command::DeleteSet { set: name.clone() });
    }
    steps.in_order()
}

/// Commands by kind: what is referred to comes before what refers to it, and goes after.
#[derive(Default)]
struct Steps {
    add_sets: Vec<Command>,
    add_chains: Vec<Command>,
    flushes: Vec<Command>,
    rules: Vec<Command>,
    delete_elements: Vec<Command>,
    add_elements: Vec<Command>,
    delete_chains: Vec<Command>,
    delete_sets: Vec<Command>,
}

impl Steps {
    fn elements(&mut self, name: &str, old: &Set, new: &Set) {
        let (set, spec) = (name.to_owned(), new.spec.clone());
        let changed = |from: &Set, to: &Set| -> Vec<Key> {
            let gone =
                from.elements.iter().filter(|(key, value)| to.elements.get(key) != Some(value));
            gone.map(|(key, _)| key.clone()).collect()
        };
        let keys = changed(old, new);
        if !keys.is_empty() {
            let command = Command::DeleteElements { set: set.clone(), spec: spec.clone(), keys };
            self.delete_elements.push(command);
        }
        let elements: Vec<Element> = changed(new, old)
            .into_iter()
            .map(|key| Element { value: new.elements[&key].clone(), key })
            .collect();
        if !elements.is_empty() {
            self.add_elements.push(Command::AddElements { set, spec, elements });
        }
    }

    fn rules(&mut self, name: &str, chain: &Chain, flush: bool) {
        if flush {
            self.flushes.push(Command::FlushChain { chain: name.to_owned() });
        }
        let add = |rule: &Rule| Command::AddRule { chain: name.to_owned(), rule: rule.clone() };
        self.rules.extend(chain.rules.iter().map(add));
    }

    fn in_order(self) -> Vec<Command> {
        let Self { add_sets, add_chains, flushes, rules, .. } = self;
        let first = [add_sets, add_chains, flushes, rules];
        let last = [self.delete_elements, self.add_elements, self.delete_chains, self.delete_sets];
        first.into_iter().chain(last).flatten().collect()
    }
}

impl Ruleset {
    /// Does to the model what the kernel does to the table.
    ///
    /// # Errors
    /// A sentence for each command that the kernel would refuse.
    pub fn apply(&mut self, commands: &[Command]) -> Result<(), String> {
        commands.iter().try_for_each(|command| {
            self.step(command).map_err(|why| format!("{}: {why}", command.text()))
        })
    }

    fn step(&mut self, command: &Command) -> Result<(), String> {
        let missing = |name: &String| format!("{name} does not exist");
        match command {
            Command::AddSet { set, spec } => {
                let new = Set { spec: spec.clone(), elements: BTreeMap::new() };
                if self.sets.insert(set.clone(), new).is_some() {
                    return Err("exists".into());
                }
            }
            Command::DeleteSet { set } => {
                if self.chains.values().any(|chain| chain.sets().contains(set.as_str())) {
                    return Err("a rule uses it".into());
                }
                self.sets.remove(set).ok_or_else(|| missing(set))?;
            }
            Command::AddChain { chain, spec } => {
                if self.chains.insert(chain.clone(), spec.clone()).is_some() {
                    return Err("exists".into());
                }
            }
            Command::DeleteChain { chain } => {
                if self.targets().contains(chain.as_str()) {
                    return Err("it is referred to".into());
                }
                self.chains.remove(chain).ok_or_else(|| missing(chain))?;
            }
            Command::FlushChain { chain } => {
                self.chains.get_mut(chain).ok_or_else(|| missing(chain))?.rules.clear();
            }
            Command::AddRule { chain, rule } => {
                let known = |set: &&str| self.sets.contains_key(*set);
                if !rule.sets().all(|set| known(&set)) {
                    return Err("it names a set that does not exist".into());
                }
                self.chains.get_mut(chain).ok_or_else(|| missing(chain))?.rules.push(rule.clone());
            }
            Command::AddElements { set, elements, .. } => {
                let chains: BTreeSet<&str> = self.chains.keys().map(String::as_str).collect();
                for target in elements.iter().filter_map(|e| e.value.target()) {
                    if !chains.contains(target) {
                        return Err(format!("chain {target} does not exist"));
                    }
                }
                let set = self.sets.get_mut(set).ok_or_else(|| missing(set))?;
                for Element { key, value } in elements {
                    if set.elements.insert(key.clone(), value.clone()).is_some_and(|v| v != *value)
                    {
                        return Err("an element is there with another value".into());
                    }
                }
            }
            Command::DeleteElements { set, keys, .. } => {
                let set = self.sets.get_mut(set).ok_or_else(|| missing(set))?;
                for key in keys {
                    set.elements.remove(key).ok_or("an element is not there")?;
                }
            }
        }
        Ok(())
    }

    /// Every chain that something jumps or goes to.
    fn targets(&self) -> BTreeSet<&str> {
        let by_rules = self.chains.values().flat_map(|chain| &chain.rules).flat_map(Rule::targets);
        let values = self.sets.values().flat_map(|set| set.elements.values());
        by_rules.chain(values.filter_map(Value::target)).collect()
    }
}

impl Chain {
    pub fn base(kind: Kind, hook: Hook, priority: i32, rules: Vec<Rule>) -> Self {
        Self { base: Some(Base { kind, hook, priority, drop_by_default: false }), rules }
    }

    pub fn of(rules: Vec<Rule>) -> Self {
        Self { base: None, rules }
    }

    fn sets(&self) -> BTreeSet<&str> {
        self.rules.iter().flat_map(Rule::sets).collect()
    }
}

impl Rule {
    fn sets(&self) -> impl Iterator<Item = &str> {
        self.0.iter().filter_map(|expr| match expr {
            Expr::Lookup { set, .. } | Expr::Remember { set, .. } => Some(set.as_str()),
            _ => None,
        })
    }

    fn targets(&self) -> impl Iterator<Item = &str> {
        self.0.iter().filter_map(|expr| match expr {
            Expr::Verdict(verdict) => verdict.target(),
            _ => None,
        })
    }
}

impl Value {
    fn target(&self) -> Option<&str> {
        match self {
            Self::Verdict(verdict) => verdict.target(),
            _ => None,
        }
    }
}

impl Verdict {
    fn target(&self) -> Option<&str> {
        match self {
            Self::Jump(chain) | Self::Goto(chain) => Some(chain),
            _ => None,
        }
    }
}

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Filter => "filter",
            Self::Nat => "nat",
            Self::Route => "route",
        }
    }
}

impl Field {
    pub const fn bytes(self) -> usize {
        match self {
            Self::Ipv4 | Self::Mark => 4,
            Self::Ipv6 => 16,
            Self::Protocol => 1,
            Self::Port => 2,
        }
    }

    pub const fn padded(self) -> usize {
        self.bytes().next_multiple_of(4)
    }

    /// The type's number in the `nft` program, which shows our sets the better for it.
    const fn number(self) -> u32 {
        match self {
            Self::Ipv4 => 7,
            Self::Ipv6 => 8,
            Self::Protocol => 12,
            Self::Port => 13,
            Self::Mark => 19,
        }
    }
}

pub(crate) fn type_of(fields: &[Field]) -> u32 {
    fields.iter().fold(0, |number, field| number << 6 | field.number())
}

impl SetSpec {
    pub fn set(key: &[Field]) -> Self {
        Self { key: key.to_vec(), ..Self::default() }
    }

    pub fn map(key: &[Field], data: &[Field]) -> Self {
        Self { data: Some(data.to_vec()), ..Self::set(key) }
    }

    pub fn verdict_map(key: &[Field]) -> Self {
        Self { verdicts: true, ..Self::set(key) }
    }

    pub fn with_intervals(self) -> Self {
        Self { interval: true, ..self }
    }

    pub fn empty(self) -> Set {
        Set { spec: self, elements: BTreeMap::new() }
    }

    pub(crate) fn key_type(&self) -> u32 {
        type_of(&self.key)
    }

    /// The width of a key: a lone field's own, a concatenation's words.
    pub(crate) fn key_bytes(&self) -> usize {
        match self.key.as_slice() {
            [one] => one.bytes(),
            many => many.iter().map(|field| field.padded()).sum(),
        }
    }
}

impl Key {
    pub fn one(bytes: impl Into<Vec<u8>>) -> Self {
        Self { from: bytes.into(), to: None }
    }

    pub fn range(from: impl Into<Vec<u8>>, to: impl Into<Vec<u8>>) -> Self {
        Self { from: from.into(), to: Some(to.into()) }
    }

    /// A concatenation: each part padded to whole words.
    pub fn concat(parts: &[&[u8]]) -> Self {
        Self::one(concat(parts))
    }
}

/// Bytes of a concatenation, each part padded to whole 4-byte words.
pub fn concat(parts: &[&[u8]]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(parts.iter().map(|p| p.len().next_multiple_of(4)).sum());
    for part in parts {
        bytes.extend_from_slice(part);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    bytes
}

impl Command {
    /// The command's name for messages.
    pub fn text(&self) -> String {
        match self {
            Self::AddSet { set, .. } => format!("to add set {set}"),
            Self::DeleteSet { set } => format!("to delete set {set}"),
            Self::AddChain { chain, .. } => format!("to add chain {chain}"),
            Self::DeleteChain { chain } => format!("to delete chain {chain}"),
            Self::FlushChain { chain } => format!("to flush chain {chain}"),
            Self::AddRule { chain, .. } => format!("a rule of chain {chain}"),
            Self::AddElements { set, elements, .. } => {
                format!("{} new elements of set {set}", elements.len())
            }
            Self::DeleteElements { set, keys, .. } => {
                format!("to delete {} elements of set {set}", keys.len())
            }
        }
    }
}
