//! System call filters: rules compiled to the kernel's classic BPF, and their installation.
//!
//! The filter searches the call's number in a binary tree of ranges, so that an allowed call
//! costs a handful of comparisons however long the list is; calls that are allowed whatever their
//! arguments come from the kernel's own cache after the first time.

use std::io;

use crate::check;

/// What the kernel does with a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Allow,
    /// The call is not made and fails with this `errno`.
    Errno(u16),
    KillProcess,
    KillThread,
    Trap,
    Trace(u16),
    Log,
}

/// A comparison of one argument with a value; all of a rule's must hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Condition {
    /// 0 to 5.
    pub argument: u8,
    pub compare: Compare,
    pub value: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compare {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    /// Equal in the bits of this mask.
    MaskedEqual(u64),
}

/// What to do with one call when the conditions hold. The first rule that holds decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// The number on this architecture, see [`crate::syscalls::number`].
    pub call: u32,
    pub conditions: Vec<Condition>,
    pub action: Action,
}

/// A compiled filter, one word for each instruction. Cheap to keep and to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter(pub Vec<u64>);

/// Compiles `rules`; what none of them names gets `default`. Fails only when the filter would be
/// longer than the kernel accepts.
pub fn compile(default: Action, rules: &[Rule]) -> io::Result<Filter> {
    let mut code = vec![
        statement(LOAD, ARCH_OFFSET),
        jump(EQUAL, ARCH, 1, 0),
        statement(RETURN, word(Action::KillProcess)),
        statement(LOAD, NUMBER_OFFSET),
    ];
    if cfg!(target_arch = "x86_64") {
        // The x32 calls share the architecture's name and must not slip past the table.
        code.push(jump(AT_LEAST, 0x4000_0000, 0, 1));
        code.push(statement(RETURN, word(Action::Errno(libc::ENOSYS as u16))));
    }
    code.extend(tree(&ranges(default, rules)));
    if code.len() > 4096 {
        return Err(io::Error::other(
            "the seccomp profile compiles to more than 4096 instructions",
        ));
    }
    Ok(Filter(code))
}

/// Installs `filter` for this process and its descendants. Needs SYS_ADMIN, or a process that has
/// given up new privileges.
pub fn install(filter: &Filter) -> io::Result<()> {
    let program =
        libc::sock_fprog { len: filter.0.len() as u16, filter: filter.0.as_ptr() as *mut _ };
    const SET_MODE_FILTER: u32 = 1;
    // SAFETY: each word has the layout of `sock_filter`; the kernel copies the program.
    check(unsafe { libc::syscall(libc::SYS_seccomp, SET_MODE_FILTER, 0, &raw const program) })?;
    Ok(())
}

const LOAD: u16 = 0x20;
const RETURN: u16 = 0x06;
const AND: u16 = 0x54;
const JUMP: u16 = 0x05;
const EQUAL: u16 = 0x15;
const GREATER: u16 = 0x25;
const AT_LEAST: u16 = 0x35;
const NUMBER_OFFSET: u32 = 0;
const ARCH_OFFSET: u32 = 4;
#[cfg(target_arch = "x86_64")]
const ARCH: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const ARCH: u32 = 0xc000_00b7;

fn statement(code: u16, value: u32) -> u64 {
    code as u64 | (value as u64) << 32
}

fn jump(code: u16, value: u32, when_true: u8, when_false: u8) -> u64 {
    statement(code, value) | (when_true as u64) << 16 | (when_false as u64) << 24
}

fn word(action: Action) -> u32 {
    match action {
        Action::Allow => 0x7fff_0000,
        Action::Errno(errno) => 0x0005_0000 | errno as u32,
        Action::KillProcess => 0x8000_0000,
        Action::KillThread => 0,
        Action::Trap => 0x0003_0000,
        Action::Trace(data) => 0x7ff0_0000 | data as u32,
        Action::Log => 0x7ffc_0000,
    }
}

/// Calls from `first` up to the next range's have this code.
struct Range {
    first: u32,
    code: Vec<u64>,
}

/// The whole number line as ranges of equal treatment, neighbours with equal code joined.
fn ranges(default: Action, rules: &[Rule]) -> Vec<Range> {
    let mut calls: Vec<u32> = rules.iter().map(|rule| rule.call).collect();
    calls.sort_unstable();
    calls.dedup();
    let mut ranges: Vec<Range> = Vec::new();
    let mut push = |first: u32, code: Vec<u64>| {
        if ranges.last().is_none_or(|last| last.code != code) {
            ranges.push(Range { first, code });
        }
    };
    let mut next = 0;
    for call in calls {
        if call > next {
            push(next, vec![statement(RETURN, word(default))]);
        }
        push(call, leaf(default, rules.iter().filter(|rule| rule.call == call)));
        next = call + 1;
    }
    push(next, vec![statement(RETURN, word(default))]);
    ranges
}

fn tree(ranges: &[Range]) -> Vec<u64> {
    if let [range] = ranges {
        return range.code.clone();
    }
    let (left, right) = ranges.split_at(ranges.len() / 2);
    let (boundary, left, right) = (right[0].first, tree(left), tree(right));
    let mut code = match u8::try_from(left.len()) {
        Ok(skip) => vec![jump(AT_LEAST, boundary, skip, 0)],
        // Conditional jumps reach 255 instructions, the plain one any distance.
        Err(_) => {
            vec![jump(AT_LEAST, boundary, 0, 1), statement(JUMP, left.len() as u32)]
        }
    };
    code.extend(left);
    code.extend(right);
    code
}

fn leaf<'a>(default: Action, rules: impl Iterator<Item = &'a Rule>) -> Vec<u64> {
    let mut code = Vec::new();
    for rule in rules {
        code.extend(conditional(&rule.conditions, rule.action));
        if rule.conditions.is_empty() {
            return code;
        }
    }
    code.push(statement(RETURN, word(default)));
    code
}

enum To {
    Next,
    /// Behind this condition: it holds.
    Pass,
    /// Behind the rule: it does not hold.
    Fail,
}

/// `return action` if all conditions hold, else falls through to the next instruction.
fn conditional(conditions: &[Condition], action: Action) -> Vec<u64> {
    let blocks: Vec<Vec<(u64, To, To)>> = conditions.iter().map(comparison).collect();
    let total: usize = blocks.iter().map(Vec::len).sum();
    let mut code = Vec::with_capacity(total + 1);
    let mut end = 0;
    for block in blocks {
        end += block.len();
        for (instruction, when_true, when_false) in block {
            let here = code.len() + 1;
            let offset = |to: &To| match to {
                To::Next => 0,
                To::Pass => end - here,
                // The final return is skipped too.
                To::Fail => total + 1 - here,
            } as u64;
            code.push(instruction | offset(&when_true) << 16 | offset(&when_false) << 24);
        }
    }
    code.push(statement(RETURN, word(action)));
    code
}

/// Compares 64 bits as two halves of 32.
fn comparison(condition: &Condition) -> Vec<(u64, To, To)> {
    let offset = 16 + 8 * condition.argument as u32;
    let (high, low) = ((condition.value >> 32) as u32, condition.value as u32);
    let load_high = (statement(LOAD, offset + 4), To::Next, To::Next);
    let load_low = (statement(LOAD, offset), To::Next, To::Next);
    let test = |code: u16, value: u32, yes: To, no: To| (statement(code, value), yes, no);
    let high_differs = |greater: To, less: To| {
        vec![test(GREATER, high, greater, To::Next), test(EQUAL, high, To::Next, less)]
    };
    let mut code = vec![load_high];
    match condition.compare {
        Compare::Equal => {
            code.push(test(EQUAL, high, To::Next, To::Fail));
            code.push(load_low);
            code.push(test(EQUAL, low, To::Pass, To::Fail));
        }
        Compare::NotEqual => {
            code.push(test(EQUAL, high, To::Next, To::Pass));
            code.push(load_low);
            code.push(test(EQUAL, low, To::Fail, To::Pass));
        }
        Compare::MaskedEqual(mask) => {
            code.push(test(AND, (mask >> 32) as u32, To::Next, To::Next));
            code.push(test(EQUAL, high, To::Next, To::Fail));
            code.push(load_low);
            code.push(test(AND, mask as u32, To::Next, To::Next));
            code.push(test(EQUAL, low, To::Pass, To::Fail));
        }
        Compare::Greater | Compare::GreaterOrEqual => {
            let compare = if condition.compare == Compare::Greater { GREATER } else { AT_LEAST };
            code.extend(high_differs(To::Pass, To::Fail));
            code.push(load_low);
            code.push(test(compare, low, To::Pass, To::Fail));
        }
        Compare::Less | Compare::LessOrEqual => {
            let compare = if condition.compare == Compare::Less { AT_LEAST } else { GREATER };
            code.extend(high_differs(To::Fail, To::Pass));
            code.push(load_low);
            code.push(test(compare, low, To::Fail, To::Pass));
        }
    }
    code
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a filter as the kernel would.
    fn run(filter: &Filter, call: u32, arguments: [u64; 6]) -> u32 {
        let mut data = vec![call, ARCH, 0, 0];
        data.extend(arguments.iter().flat_map(|value| [*value as u32, (value >> 32) as u32]));
        let (mut accumulator, mut at) = (0u32, 0usize);
        loop {
            let op = filter.0[at];
            let (value, yes, no) = ((op >> 32) as u32, (op >> 16) as u8, (op >> 24) as u8);
            at += 1;
            let holds = match op as u16 {
                LOAD => {
                    accumulator = data[value as usize / 4];
                    continue;
                }
                AND => {
                    accumulator &= value;
                    continue;
                }
                JUMP => {
                    at += value as usize;
                    continue;
                }
                RETURN => return value,
                EQUAL => accumulator == value,
                GREATER => accumulator > value,
                AT_LEAST => accumulator >= value,
                other => panic!("instruction {other:#x}"),
            };
            at += if holds { yes } else { no } as usize;
        }
    }

    fn rule(call: u32, conditions: Vec<Condition>, action: Action) -> Rule {
        Rule { call, conditions, action }
    }

    #[test]
    fn every_listed_call_and_no_other_is_allowed() {
        let listed = |call: u32| call % 3 == 0 || (100..160).contains(&call);
        let rules: Vec<Rule> = (0..450)
            .filter(|call| listed(*call))
            .map(|call| rule(call, vec![], Action::Allow))
            .collect();
        let filter = compile(Action::Errno(1), &rules).unwrap();
        for call in 0..500 {
            let expected = if call < 450 && listed(call) { 0x7fff_0000 } else { 0x0005_0001 };
            assert_eq!(run(&filter, call, [0; 6]), expected, "call {call}");
        }
    }

    #[test]
    fn comparisons_hold_on_both_halves() {
        let big = 5 << 32 | 7;
        let samples = [0, 6, 7, 8, 4 << 32 | 9, big - 1, big, big + 1, 6 << 32, u64::MAX];
        let cases: [(Compare, fn(u64, u64) -> bool); 7] = [
            (Compare::Equal, |a, b| a == b),
            (Compare::NotEqual, |a, b| a != b),
            (Compare::Less, |a, b| a < b),
            (Compare::LessOrEqual, |a, b| a <= b),
            (Compare::Greater, |a, b| a > b),
            (Compare::GreaterOrEqual, |a, b| a >= b),
            (Compare::MaskedEqual(0xff_0000_000f), |a, b| a & 0xff_0000_000f == b),
        ];
        for (compare, holds) in cases {
            let condition = Condition { argument: 2, compare, value: big };
            let rules = [rule(9, vec![condition], Action::Allow)];
            let filter = compile(Action::Errno(1), &rules).unwrap();
            for sample in samples {
                let allowed = run(&filter, 9, [1, 1, sample, 1, 1, 1]) == 0x7fff_0000;
                assert_eq!(allowed, holds(sample, big), "{compare:?} {sample:#x}");
            }
        }
    }

    #[test]
    fn the_first_rule_that_holds_decides() {
        let is = |argument, value| Condition { argument, compare: Compare::Equal, value };
        let rules = [
            rule(5, vec![is(0, 1), is(1, 2)], Action::Errno(9)),
            rule(5, vec![is(0, 1)], Action::Log),
            rule(5, vec![], Action::Allow),
        ];
        let filter = compile(Action::KillProcess, &rules).unwrap();
        assert_eq!(run(&filter, 5, [1, 2, 0, 0, 0, 0]), 0x0005_0009);
        assert_eq!(run(&filter, 5, [1, 3, 0, 0, 0, 0]), 0x7ffc_0000);
        assert_eq!(run(&filter, 5, [2, 2, 0, 0, 0, 0]), 0x7fff_0000);
        assert_eq!(run(&filter, 6, [0; 6]), 0x8000_0000);
    }
}
