//! Capabilities by name and number.

use std::{fmt, io};

use rustix::thread::{CapabilitySet, CapabilitySets};

use crate::check;

/// A set of capabilities, one bit each by the kernel's number.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Caps(pub u64);

/// Names without `CAP_`, at the index of their number.
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

impl Caps {
    pub const NONE: Self = Self(0);
    pub const ALL: Self = Self((1 << NAMES.len()) - 1);

    /// The capability of that name, with or without `CAP_`, in any case.
    pub fn named(name: &str) -> Option<Self> {
        let upper = name.to_ascii_uppercase();
        let bare = upper.strip_prefix("CAP_").unwrap_or(&upper);
        NAMES.iter().position(|known| *known == bare).map(|number| Self(1 << number))
    }

    pub fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    pub fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    pub fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    pub fn names(self) -> impl Iterator<Item = &'static str> {
        NAMES.iter().enumerate().filter(move |(n, _)| self.0 >> n & 1 == 1).map(|(_, name)| *name)
    }
}

impl fmt::Debug for Caps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.names()).finish()
    }
}

/// What this process may hand on: permitted and within the bounding set.
pub fn available() -> io::Result<Caps> {
    let permitted = rustix::thread::capabilities(None)?.permitted.bits();
    let mut bounding = 0;
    for number in 0..NAMES.len() {
        // SAFETY: a query by number.
        if unsafe { libc::prctl(libc::PR_CAPBSET_READ, number, 0, 0, 0) } == 1 {
            bounding |= 1 << number;
        }
    }
    Ok(Caps(permitted & bounding))
}

/// Reduces the bounding set to `keep`. Needs SETPCAP, so it comes before [`apply`].
pub fn bound(keep: Caps) -> io::Result<()> {
    for number in 0..64 {
        if keep.0 >> number & 1 == 1 {
            continue;
        }
        // SAFETY: plain integers. A number that this kernel lacks answers EINVAL and ends it.
        if unsafe { libc::prctl(libc::PR_CAPBSET_DROP, number, 0, 0, 0) } == -1 {
            let error = io::Error::last_os_error();
            match error.raw_os_error() {
                Some(libc::EINVAL) => break,
                _ => return Err(error),
            }
        }
    }
    Ok(())
}

/// Makes `caps` the permitted and effective set of this process, and `ambient` (within `caps`)
/// the ambient and inheritable one.
pub fn apply(caps: Caps, ambient: Caps) -> io::Result<()> {
    let bits = CapabilitySet::from_bits_retain;
    let ambient = ambient.and(caps);
    let sets = CapabilitySets {
        effective: bits(caps.0),
        permitted: bits(caps.0),
        inheritable: bits(ambient.0),
    };
    rustix::thread::set_capabilities(None, sets)?;
    for number in (0..NAMES.len()).filter(|number| ambient.0 >> number & 1 == 1) {
        // SAFETY: plain integers.
        check(unsafe {
            libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE, number, 0, 0)
        })?;
    }
    Ok(())
}

/// Forbids this process and its descendants to gain privileges by executing a file.
pub fn forbid_new_privileges() -> io::Result<()> {
    Ok(rustix::thread::set_no_new_privs(true)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_in_any_spelling() {
        assert_eq!(Caps::named("CAP_NET_RAW"), Some(Caps(1 << 13)));
        assert_eq!(Caps::named("net_raw"), Some(Caps(1 << 13)));
        assert_eq!(Caps::named("CHECKPOINT_RESTORE"), Some(Caps(1 << 40)));
        assert_eq!(Caps::named("NO_SUCH"), None);
    }

    #[test]
    fn sets_add_and_subtract() {
        let both = Caps::named("KILL").unwrap().with(Caps::named("CHOWN").unwrap());
        assert_eq!(both.names().collect::<Vec<_>>(), ["CHOWN", "KILL"]);
        assert_eq!(both.without(Caps(1)).names().collect::<Vec<_>>(), ["KILL"]);
    }
}
