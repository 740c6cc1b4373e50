//! Netlink sockets: messages, attributes, acknowledgements with the kernel's own words.
//!
//! One request is one [`Message`]; several go to the kernel in one system call and are answered
//! in order. Everything here blocks for the microseconds that the kernel takes, so that it may
//! be called where a lock is held or from `Env::blocking`.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
};

use crate::netns::NetNs;

/// A netlink socket, bound to the network namespace in which it was opened.
pub struct Socket {
    fd: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

/// Netlink families that Gantry speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Route = 0,
    Netfilter = 12,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("netlink {operation} failed")]
    Io { operation: &'static str, source: io::Error },
    /// The kernel said no. `request` is the index of the refused message in its batch.
    #[error("the kernel refused {what}{}", detail.as_deref().map(|d| format!(" ({d})")).unwrap_or_default())]
    Refused { what: String, request: usize, detail: Option<String>, source: io::Error },
    #[error("the kernel's netlink answer is malformed")]
    Malformed,
}

impl Error {
    pub fn is_exists(&self) -> bool {
        self.errno() == Some(libc::EEXIST)
    }

    /// The object named in the request is not there (`ENOENT`, `ENODEV`, `ESRCH`, `EADDRNOTAVAIL`).
    pub fn is_missing(&self) -> bool {
        matches!(
            self.errno(),
            Some(libc::ENOENT | libc::ENODEV | libc::ESRCH | libc::EADDRNOTAVAIL)
        )
    }

    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Io { source, .. } | Self::Refused { source, .. } => source.raw_os_error(),
            Self::Malformed => None,
        }
    }

    /// Replaces the generic name of what was refused.
    pub(crate) fn about(self, name: impl FnOnce(usize) -> String) -> Self {
        match self {
            Self::Refused { request, detail, source, .. } => {
                Self::Refused { what: name(request), request, detail, source }
            }
            other => other,
        }
    }
}

pub type Result<T> = std::result::Result<T, Error>;

pub(crate) const REQUEST: u16 = 0x1;
pub(crate) const ACK: u16 = 0x4;
pub(crate) const DUMP: u16 = 0x300;
pub(crate) const REPLACE: u16 = 0x100;
pub(crate) const EXCLUSIVE: u16 = 0x200;
pub(crate) const CREATE: u16 = 0x400;
pub(crate) const APPEND: u16 = 0x800;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const HEADER: usize = 16;
const FLAG_CAPPED: u16 = 0x100;
const FLAG_TLVS: u16 = 0x200;
const FLAG_DUMP_INTERRUPTED: u16 = 0x10;
const NESTED: u16 = 0x8000;
const RECEIVE_BYTES: usize = 256 << 10;

impl Socket {
    pub fn open(protocol: Protocol) -> Result<Self> {
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
        // SAFETY: socket(2) takes no pointers; the result is checked before it is owned.
        let raw = unsafe { libc::socket(libc::AF_NETLINK, kind, protocol as i32) };
        if raw < 0 {
            return Err(last_error("socket"));
        }
        // SAFETY: `raw` is a fresh descriptor that nothing else owns.
        let fd = unsafe { OwnedFd::from_raw_fd(raw) };
        let socket = Self { fd, sequence: 0, buffer: vec![0; RECEIVE_BYTES] };
        socket.bind(0)?;
        // Older kernels may lack these; they only make errors more telling.
        let _ = socket.set_option(libc::SOL_NETLINK, libc::NETLINK_EXT_ACK, 1);
        let _ = socket.set_option(libc::SOL_NETLINK, libc::NETLINK_CAP_ACK, 1);
        let _ = socket.set_option(libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, 4 << 20);
        Ok(socket)
    }

    /// Opens the socket inside another network namespace; it stays there.
    pub fn open_in(protocol: Protocol, namespace: &NetNs) -> Result<Self> {
        namespace
            .run(move || Self::open(protocol))
            .map_err(|source| Error::Io { operation: "entering the network namespace", source })?
    }

    /// Also receives the kernel's announcements to a multicast group.
    pub(crate) fn join(&self, group: i32) -> Result<()> {
        const ADD_MEMBERSHIP: i32 = 1;
        self.set_option(libc::SOL_NETLINK, ADD_MEMBERSHIP, group)
    }

    /// Throws away what has arrived; says whether anything had. Announcements that were lost for
    /// want of buffer count as arrived.
    pub(crate) fn drain(&mut self) -> Result<bool> {
        let mut any = false;
        loop {
            match self.receive(libc::MSG_DONTWAIT) {
                Ok(_) | Err(Error::Malformed) => any = true,
                Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::WouldBlock => {
                    return Ok(any);
                }
                Err(Error::Io { source, .. }) if source.raw_os_error() == Some(libc::ENOBUFS) => {
                    any = true;
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn bind(&self, groups: u32) -> Result<()> {
        // SAFETY: an all-zero sockaddr_nl is valid.
        let mut address: libc::sockaddr_nl = unsafe { std::mem::zeroed() };
        address.nl_family = libc::AF_NETLINK as u16;
        address.nl_groups = groups;
        let size = size_of::<libc::sockaddr_nl>() as u32;
        // SAFETY: the pointer and size describe `address`, which outlives the call.
        let done = unsafe { libc::bind(self.fd.as_raw_fd(), (&raw const address).cast(), size) };
        if done < 0 { Err(last_error("bind")) } else { Ok(()) }
    }

    fn set_option(&self, level: i32, option: i32, value: i32) -> Result<()> {
        let size = size_of::<i32>() as u32;
        let pointer = (&raw const value).cast();
        // SAFETY: the pointer and size describe `value`, which outlives the call.
        let done = unsafe { libc::setsockopt(self.fd.as_raw_fd(), level, option, pointer, size) };
        if done < 0 { Err(last_error("setsockopt")) } else { Ok(()) }
    }

    /// Sends one request and waits for the kernel's acknowledgement.
    pub fn request(&mut self, message: Message) -> Result<()> {
        self.requests(vec![message])
    }

    /// Sends several requests at once; each is carried out even when an earlier one was refused.
    /// The error is that of the first refused one.
    pub fn requests(&mut self, mut messages: Vec<Message>) -> Result<()> {
        if messages.is_empty() {
            return Ok(());
        }
        let first = self.number(&mut messages, ACK);
        self.send(&messages)?;
        let mut outcome = Ok(());
        let mut answered = 0;
        while answered < messages.len() {
            for (sequence, result) in self.receive_acks(0)? {
                let index = sequence.wrapping_sub(first) as usize;
                if index < messages.len() {
                    answered += 1;
                    outcome = outcome.and(result.map_err(|refusal| refusal.at(index)));
                }
            }
        }
        outcome
    }

    /// Sends an nfnetlink batch, which the kernel carries out wholly or not at all before the
    /// call returns. `messages` includes the batch's begin and end markers.
    pub(crate) fn batch(&mut self, mut messages: Vec<Message>) -> Result<()> {
        let first = self.number(&mut messages, 0);
        let size: usize = messages.iter().map(|m| m.0.len()).sum();
        let _ = self.set_option(
            libc::SOL_SOCKET,
            libc::SO_SNDBUFFORCE,
            i32::try_from(size * 2 + (64 << 10)).unwrap_or(i32::MAX),
        );
        self.send(&messages)?;
        let mut outcome = Ok(());
        loop {
            match self.receive_acks(libc::MSG_DONTWAIT) {
                Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::WouldBlock => {
                    return outcome;
                }
                Err(error) => return outcome.and(Err(error)),
                Ok(acks) => {
                    for (sequence, result) in acks {
                        let index = sequence.wrapping_sub(first) as usize;
                        if index < messages.len() {
                            outcome = outcome.and(result.map_err(|refusal| refusal.at(index)));
                        }
                    }
                }
            }
        }
    }

    /// All answers to a dump request: message type and payload. A dump that the kernel marks as
    /// interrupted by a concurrent change is taken again.
    pub fn dump(&mut self, message: Message) -> Result<Vec<(u16, Vec<u8>)>> {
        loop {
            let mut attempt = vec![Message(message.0.clone())];
            let sequence = self.number(&mut attempt, DUMP);
            self.send(&attempt)?;
            if let Some(replies) = self.collect(sequence, true)? {
                return Ok(replies);
            }
        }
    }

    /// The answer to a request that yields one object.
    pub fn get(&mut self, message: Message) -> Result<Option<(u16, Vec<u8>)>> {
        let mut messages = vec![message];
        let sequence = self.number(&mut messages, 0);
        self.send(&messages)?;
        Ok(self.collect(sequence, false)?.and_then(|mut replies| replies.pop()))
    }

    fn collect(&mut self, sequence: u32, multi: bool) -> Result<Option<Vec<(u16, Vec<u8>)>>> {
        let mut replies = Vec::new();
        let mut interrupted = false;
        loop {
            let length = self.receive(0)?;
            for part in parts(&self.buffer[..length]) {
                let part = part?;
                if part.sequence != sequence {
                    continue;
                }
                interrupted |= part.flags & FLAG_DUMP_INTERRUPTED != 0;
                match part.kind {
                    NLMSG_DONE => return Ok((!interrupted).then_some(replies)),
                    NLMSG_ERROR => {
                        part.acknowledgement()?.map_err(|refusal| refusal.at(0))?;
                        return Ok(Some(replies));
                    }
                    kind => replies.push((kind, part.payload.to_vec())),
                }
            }
            if !multi && !replies.is_empty() {
                return Ok(Some(replies));
            }
        }
    }

    fn number(&mut self, messages: &mut [Message], flags: u16) -> u32 {
        let first = self.sequence.wrapping_add(1);
        for message in messages.iter_mut() {
            self.sequence = self.sequence.wrapping_add(1);
            message.seal(self.sequence, flags);
        }
        first
    }

    fn send(&self, messages: &[Message]) -> Result<()> {
        let joined;
        let bytes: &[u8] = match messages {
            [one] => &one.0,
            many => {
                joined = many.iter().flat_map(|m| m.0.iter().copied()).collect::<Vec<u8>>();
                &joined
            }
        };
        // SAFETY: the pointer and length describe `bytes`.
        let sent = unsafe {
            libc::send(self.fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), libc::MSG_NOSIGNAL)
        };
        if sent < 0 { Err(last_error("send")) } else { Ok(()) }
    }

    fn receive(&mut self, flags: i32) -> Result<usize> {
        loop {
            // SAFETY: the pointer and length describe `buffer`, which is exclusively borrowed.
            let length = unsafe {
                libc::recv(
                    self.fd.as_raw_fd(),
                    self.buffer.as_mut_ptr().cast(),
                    self.buffer.len(),
                    flags | libc::MSG_TRUNC,
                )
            };
            match usize::try_from(length) {
                Ok(length) if length > self.buffer.len() => return Err(Error::Malformed),
                Ok(length) => return Ok(length),
                Err(_) => {
                    let error = io::Error::last_os_error();
                    if error.kind() != io::ErrorKind::Interrupted {
                        return Err(Error::Io { operation: "receive", source: error });
                    }
                }
            }
        }
    }

    fn receive_acks(&mut self, flags: i32) -> Result<Vec<(u32, Verdict)>> {
        let length = self.receive(flags)?;
        let mut acks = Vec::new();
        for part in parts(&self.buffer[..length]) {
            let part = part?;
            if part.kind == NLMSG_ERROR {
                acks.push((part.sequence, part.acknowledgement()?));
            }
        }
        Ok(acks)
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// A request being built: header, family-specific header, attributes.
#[derive(Clone, Debug)]
pub struct Message(Vec<u8>);

impl Message {
    /// `header` is the family's fixed header (`ifinfomsg`, `nfgenmsg`, ...), 4-byte aligned.
    pub fn new(kind: u16, flags: u16, header: &[u8]) -> Self {
        let mut bytes = Vec::with_capacity(256);
        bytes.extend_from_slice(&0u32.to_ne_bytes());
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(&(flags | REQUEST).to_ne_bytes());
        bytes.extend_from_slice(&[0; 8]);
        bytes.extend_from_slice(header);
        Self(bytes)
    }

    fn seal(&mut self, sequence: u32, flags: u16) {
        let length = self.0.len() as u32;
        let old = u16::from_ne_bytes([self.0[6], self.0[7]]);
        self.0[..4].copy_from_slice(&length.to_ne_bytes());
        self.0[6..8].copy_from_slice(&(old | flags).to_ne_bytes());
        self.0[8..12].copy_from_slice(&sequence.to_ne_bytes());
    }

    pub(crate) fn with_ack(mut self) -> Self {
        self.seal(0, ACK);
        self
    }

    /// # Panics
    /// When the payload does not fit an attribute (64 KiB); callers split what may grow.
    pub fn attr(&mut self, kind: u16, payload: &[u8]) -> &mut Self {
        let length = u16::try_from(payload.len() + 4).expect("attributes stay under 64 KiB");
        self.0.extend_from_slice(&length.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(payload);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    /// A NUL-terminated string.
    pub fn text(&mut self, kind: u16, text: &str) -> &mut Self {
        let mut bytes = text.as_bytes().to_vec();
        bytes.push(0);
        self.attr(kind, &bytes)
    }

    /// Network byte order, as nfnetlink wants its numbers.
    pub fn be32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.attr(kind, &value.to_be_bytes())
    }

    pub fn be64(&mut self, kind: u16, value: u64) -> &mut Self {
        self.attr(kind, &value.to_be_bytes())
    }

    /// Host byte order, as rtnetlink wants its numbers.
    pub fn u32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.attr(kind, &value.to_ne_bytes())
    }

    pub fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) -> &mut Self {
        let start = self.0.len();
        self.0.extend_from_slice(&[0; 2]);
        self.0.extend_from_slice(&(kind | NESTED).to_ne_bytes());
        fill(self);
        let length = u16::try_from(self.0.len() - start).expect("nests stay under 64 KiB");
        self.0[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self
    }

    /// Bytes without an attribute header (a fixed structure inside a nest).
    pub(crate) fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend_from_slice(bytes);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Attributes without a header, to be put into a message later.
    pub(crate) fn fragment() -> Self {
        Self(Vec::with_capacity(96))
    }

    pub(crate) fn fragment_bytes(&self) -> &[u8] {
        &self.0
    }

    #[cfg(test)]
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }
}

/// The attributes of a payload: type without the nesting flag, and value. Stops at damage.
pub fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = u16::from_ne_bytes([*bytes.first()?, *bytes.get(1)?]) as usize;
        let kind = u16::from_ne_bytes([*bytes.get(2)?, *bytes.get(3)?]) & 0x3fff;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// The first attribute of a type.
pub fn attribute(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(k, _)| *k == kind).map(|(_, value)| value)
}

pub(crate) fn text_of(value: &[u8]) -> String {
    let end = value.iter().position(|b| *b == 0).unwrap_or(value.len());
    String::from_utf8_lossy(&value[..end]).into_owned()
}

pub(crate) fn ne32(value: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(value.get(..4)?.try_into().ok()?))
}

pub(crate) fn be32_of(value: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(value.get(..4)?.try_into().ok()?))
}

struct Part<'a> {
    kind: u16,
    flags: u16,
    sequence: u32,
    payload: &'a [u8],
}

/// What the kernel said to one request.
type Verdict = std::result::Result<(), Refusal>;

struct Refusal {
    source: io::Error,
    detail: Option<String>,
}

impl Refusal {
    fn at(self, request: usize) -> Error {
        let what = "a netlink request".to_owned();
        Error::Refused { what, request, detail: self.detail, source: self.source }
    }
}

impl Part<'_> {
    /// The verdict inside an `NLMSG_ERROR`, which is also how success is said.
    fn acknowledgement(&self) -> Result<Verdict> {
        let code = ne32(self.payload).ok_or(Error::Malformed)? as i32;
        if code == 0 {
            return Ok(Ok(()));
        }
        Ok(Err(Refusal { source: io::Error::from_raw_os_error(-code), detail: self.detail() }))
    }

    fn detail(&self) -> Option<String> {
        if self.flags & FLAG_TLVS == 0 {
            return None;
        }
        let original = ne32(self.payload.get(4..)?)? as usize;
        let skipped = if self.flags & FLAG_CAPPED != 0 { HEADER } else { original };
        let tlvs = self.payload.get(4 + skipped.next_multiple_of(4)..)?;
        attribute(tlvs, 1).map(text_of)
    }
}

fn parts(mut bytes: &[u8]) -> impl Iterator<Item = Result<Part<'_>>> {
    std::iter::from_fn(move || {
        if bytes.is_empty() {
            return None;
        }
        let Some(part) = read_part(bytes) else {
            bytes = &[];
            return Some(Err(Error::Malformed));
        };
        let whole = (part.payload.len() + HEADER).next_multiple_of(4);
        bytes = bytes.get(whole..).unwrap_or_default();
        Some(Ok(part))
    })
}

fn read_part(bytes: &[u8]) -> Option<Part<'_>> {
    let length = ne32(bytes)? as usize;
    Some(Part {
        kind: u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?),
        flags: u16::from_ne_bytes(bytes.get(6..8)?.try_into().ok()?),
        sequence: ne32(bytes.get(8..)?)?,
        payload: bytes.get(HEADER..length)?,
    })
}

fn last_error(operation: &'static str) -> Error {
    Error::Io { operation, source: io::Error::last_os_error() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_and_nested() {
        let mut message = Message::new(7, 0, &[1, 2, 3, 4]);
        message.text(1, "ab").nest(2, |nest| {
            nest.be32(3, 0x0102_0304);
        });
        let body = &message.bytes()[HEADER + 4..];
        let found: Vec<(u16, Vec<u8>)> = attributes(body).map(|(k, v)| (k, v.to_vec())).collect();
        assert_eq!(found[0], (1, b"ab\0".to_vec()));
        assert_eq!(attribute(&found[1].1, 3), Some(&[1, 2, 3, 4][..]));
    }

    #[test]
    fn damaged_input_is_no_panic() {
        assert_eq!(attributes(&[200, 0, 1, 0, 9]).count(), 0);
        assert_eq!(attributes(&[1]).count(), 0);
        assert!(parts(&[255, 255, 0, 0]).next().unwrap().is_err());
    }
}
