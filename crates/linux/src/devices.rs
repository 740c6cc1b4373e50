//! Which devices a group of processes may use.
//!
//! Version 1 has a list per group. Version 2 asks a BPF program; ours is a chain of comparisons,
//! one link for each rule, that ends in a refusal.

use std::{fmt, fs, io, os::fd::AsRawFd, path::Path};

use crate::check;

/// One device or class of devices that may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceRule {
    /// `None` is both block and character devices.
    pub kind: Option<DeviceKind>,
    /// `None` is any number.
    pub major: Option<u32>,
    pub minor: Option<u32>,
    pub read: bool,
    pub write: bool,
    /// May make a node for it.
    pub mknod: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceKind {
    Block,
    Character,
}

impl DeviceRule {
    /// Every device in every way.
    pub const EVERYTHING: Self =
        Self { kind: None, major: None, minor: None, read: true, write: true, mknod: true };

    /// One character device in every way; `minor` of `None` is all of its class.
    pub const fn character(major: u32, minor: Option<u32>) -> Self {
        let kind = Some(DeviceKind::Character);
        Self { kind, major: Some(major), minor, read: true, write: true, mknod: true }
    }
}

/// The form that version 1's `devices.allow` reads.
impl fmt::Display for DeviceRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            None => "a",
            Some(DeviceKind::Block) => "b",
            Some(DeviceKind::Character) => "c",
        };
        let number = |n: Option<u32>| n.map_or("*".to_owned(), |n| n.to_string());
        let (major, minor) = (number(self.major), number(self.minor));
        let ways = [(self.read, 'r'), (self.write, 'w'), (self.mknod, 'm')];
        let ways: String = ways.iter().filter(|(on, _)| *on).map(|(_, way)| way).collect();
        write!(f, "{kind} {major}:{minor} {ways}")
    }
}

/// Attaches the program for `rules` to the version 2 group at `directory`.
pub(crate) fn attach_program(directory: &Path, rules: &[DeviceRule]) -> io::Result<()> {
    let program = program(rules);
    let license = c"Apache-2.0";
    let mut load = [0u64; 16];
    // Layout of `union bpf_attr` for BPF_PROG_LOAD: type and count, code, license.
    load[0] = PROG_TYPE_CGROUP_DEVICE | (program.len() as u64) << 32;
    load[1] = program.as_ptr() as u64;
    load[2] = license.as_ptr() as u64;
    let loaded = bpf(PROG_LOAD, &load)?;
    let group = fs::File::open(directory)?;
    let mut attach = [0u64; 16];
    attach[0] = group.as_raw_fd() as u64 | (loaded as u64) << 32;
    attach[1] = CGROUP_DEVICE | ALLOW_MULTI << 32;
    let attached = bpf(PROG_ATTACH, &attach);
    // SAFETY: `loaded` is a descriptor that we own and use no more; the group keeps the program.
    unsafe { libc::close(loaded as i32) };
    attached.map(drop)
}

const PROG_LOAD: i32 = 5;
const PROG_ATTACH: i32 = 8;
const PROG_TYPE_CGROUP_DEVICE: u64 = 15;
const CGROUP_DEVICE: u64 = 6;
const ALLOW_MULTI: u64 = 2;

fn bpf(command: i32, attributes: &[u64; 16]) -> io::Result<i64> {
    // SAFETY: the array is as long as the size says and lives through the call, as do the
    // program and license that it points to.
    check(unsafe {
        libc::syscall(libc::SYS_bpf, command, attributes.as_ptr(), size_of_val(attributes))
    })
}

// Registers: r1 points to the question {access << 16 | type, major, minor} on entry.
const KIND: u8 = 2;
const ACCESS: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;
const SCRATCH: u8 = 6;

/// The program as the kernel's 64-bit instructions.
fn program(rules: &[DeviceRule]) -> Vec<u64> {
    let mut code = vec![
        load_word(KIND, 0),
        instruction(0xbf, ACCESS, KIND, 0, 0),
        instruction(0x77, ACCESS, 0, 0, 16),
        instruction(0x57, KIND, 0, 0, 0xffff),
        load_word(MAJOR, 4),
        load_word(MINOR, 8),
    ];
    for rule in rules {
        let tests = rule_tests(rule);
        // Each failed test jumps behind this rule's `return 1`.
        let length = tests.iter().map(Vec::len).sum::<usize>() + 2;
        let mut at = 0;
        for test in tests {
            at += test.len();
            let (last, before) = test.split_last().expect("a test has an instruction");
            code.extend(before);
            code.push(last | ((length - at) as u64) << 16);
        }
        code.extend(answer(1));
    }
    code.extend(answer(0));
    code
}

/// The tests of one rule; the last instruction of each jumps when it fails.
fn rule_tests(rule: &DeviceRule) -> Vec<Vec<u64>> {
    let mut tests = Vec::new();
    if let Some(kind) = rule.kind {
        let number = if kind == DeviceKind::Block { 1 } else { 2 };
        tests.push(vec![instruction(0x55, KIND, 0, 0, number)]);
    }
    let asked = [(rule.mknod, 1), (rule.read, 2), (rule.write, 4)];
    let denied: i32 = asked.iter().filter(|(allowed, _)| !allowed).map(|(_, bit)| bit).sum();
    if denied != 0 {
        tests.push(vec![
            instruction(0xbf, SCRATCH, ACCESS, 0, 0),
            instruction(0x57, SCRATCH, 0, 0, denied),
            instruction(0x55, SCRATCH, 0, 0, 0),
        ]);
    }
    for (register, number) in [(MAJOR, rule.major), (MINOR, rule.minor)] {
        if let Some(number) = number {
            tests.push(vec![instruction(0x55, register, 0, 0, number as i32)]);
        }
    }
    tests
}

fn answer(value: i32) -> [u64; 2] {
    [instruction(0xb7, 0, 0, 0, value), instruction(0x95, 0, 0, 0, 0)]
}

fn load_word(register: u8, offset: i16) -> u64 {
    instruction(0x61, register, 1, offset, 0)
}

fn instruction(code: u8, to: u8, from: u8, offset: i16, value: i32) -> u64 {
    code as u64
        | (to as u64) << 8
        | (from as u64) << 12
        | (offset as u16 as u64) << 16
        | (value as u32 as u64) << 32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs the program as the kernel would, for the instructions that it uses.
    fn allowed(code: &[u64], kind: u64, access: u64, major: u64, minor: u64) -> bool {
        let words = [access << 16 | kind, major, minor];
        let mut registers = [0u64; 11];
        let mut at = 0usize;
        loop {
            let op = code[at];
            let (to, from) = ((op >> 8 & 15) as usize, (op >> 12 & 15) as usize);
            let (offset, value) = ((op >> 16) as i16, (op >> 32) as i32 as u64);
            at += 1;
            match op & 0xff {
                0x61 => registers[to] = words[offset as usize / 4],
                0xbf => registers[to] = registers[from],
                0x77 => registers[to] >>= value,
                0x57 => registers[to] &= value,
                0x55 if registers[to] != value => at += offset as usize,
                0x55 => {}
                0xb7 => registers[to] = value,
                0x95 => return registers[0] == 1,
                other => panic!("instruction {other:#x}"),
            }
        }
    }

    #[test]
    fn the_program_decides_as_the_rules_say() {
        let mknod_only = DeviceRule { read: false, write: false, ..DeviceRule::EVERYTHING };
        let code = program(&[
            mknod_only,
            DeviceRule::character(1, Some(3)),
            DeviceRule::character(136, None),
        ]);
        let (block, character, mknod, read) = (1, 2, 1, 2);
        assert!(allowed(&code, block, mknod, 8, 0));
        assert!(!allowed(&code, block, read, 8, 0));
        assert!(allowed(&code, character, read, 1, 3));
        assert!(!allowed(&code, character, read, 1, 4));
        assert!(allowed(&code, character, read | 4, 136, 9));
        assert!(!allowed(&code, block, read, 136, 9));
    }

    #[test]
    fn the_text_form_is_the_kernels() {
        assert_eq!(DeviceRule::character(5, Some(0)).to_string(), "c 5:0 rwm");
        assert_eq!(DeviceRule::EVERYTHING.to_string(), "a *:* rwm");
    }
}
