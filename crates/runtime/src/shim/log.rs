//! The log file, in the format that the CRI prescribes.
//!
//! `<RFC 3339 time with nanoseconds> <stdout|stderr> <F|P> <text>`: F ends a line, P is a piece
//! of one that is longer than [`MAX_LINE_BYTES`].

use std::{
    fs, io,
    io::Write,
    path::{Path, PathBuf},
};

use stdx::{Env, Timestamp};

/// Longer lines are split into pieces of this size.
pub const MAX_LINE_BYTES: usize = 16 << 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    Stdout,
    Stderr,
}

/// An open log with the beginnings of unfinished lines.
pub struct Log {
    path: Option<PathBuf>,
    file: Option<fs::File>,
    pending: [Vec<u8>; 2],
}

impl Log {
    pub fn open(path: Option<&Path>) -> io::Result<Self> {
        let file = path.map(open).transpose()?;
        Ok(Self { path: path.map(Path::to_owned), file, pending: [Vec::new(), Vec::new()] })
    }

    /// Goes on in a new file of the same name, after the old one was moved away.
    pub fn reopen(&mut self) -> io::Result<()> {
        self.file = self.path.as_deref().map(open).transpose()?;
        Ok(())
    }

    /// Takes output as it comes. A log that cannot be written (a full disk) loses it; the
    /// container goes on.
    pub fn write(&mut self, stream: Stream, bytes: &[u8]) {
        let Some(file) = &mut self.file else { return };
        let mut out = Vec::with_capacity(bytes.len() + 128);
        format(&mut self.pending[stream as usize], bytes, stream, now(), &mut out);
        let _ = file.write_all(&out);
    }

    /// Ends a stream: what lacks its newline becomes a line.
    pub fn finish(&mut self, stream: Stream) {
        let rest = std::mem::take(&mut self.pending[stream as usize]);
        if let (Some(file), false) = (&mut self.file, rest.is_empty()) {
            let mut out = Vec::new();
            push_line(&mut out, &now().rfc3339_nano(), stream, b'F', &rest);
            let _ = file.write_all(&out);
        }
    }
}

fn open(path: &Path) -> io::Result<fs::File> {
    use std::os::unix::fs::OpenOptionsExt;
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::OpenOptions::new().create(true).append(true).mode(0o640).open(path)
}

fn now() -> Timestamp {
    Env::real().now()
}

/// The wall clock, in nanoseconds since the Unix epoch.
pub(super) fn now_ns() -> i64 {
    now().as_nanos() as i64
}

fn format(pending: &mut Vec<u8>, bytes: &[u8], stream: Stream, at: Timestamp, out: &mut Vec<u8>) {
    let at = at.rfc3339_nano();
    for part in bytes.split_inclusive(|byte| *byte == b'\n') {
        let mut part = part;
        while pending.len() + part.len() > MAX_LINE_BYTES + 1 {
            let (piece, rest) = part.split_at(MAX_LINE_BYTES - pending.len());
            pending.extend(piece);
            push_line(out, &at, stream, b'P', pending);
            pending.clear();
            part = rest;
        }
        pending.extend(part);
        if pending.last() == Some(&b'\n') {
            pending.pop();
            push_line(out, &at, stream, b'F', pending);
            pending.clear();
        }
    }
}

fn push_line(out: &mut Vec<u8>, at: &str, stream: Stream, tag: u8, text: &[u8]) {
    out.extend(at.as_bytes());
    out.extend(match stream {
        Stream::Stdout => &b" stdout "[..],
        Stream::Stderr => &b" stderr "[..],
    });
    out.extend([tag, b' ']);
    out.extend(text);
    out.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn formatted(chunks: &[&[u8]]) -> (Vec<String>, usize) {
        let (mut pending, mut out) = (Vec::new(), Vec::new());
        for chunk in chunks {
            format(&mut pending, chunk, Stream::Stdout, Timestamp::from_secs(0), &mut out);
        }
        (String::from_utf8(out).unwrap().lines().map(str::to_owned).collect(), pending.len())
    }

    #[test]
    fn a_line_waits_for_its_end() {
        let (lines, rest) = formatted(&[b"one\ntw", b"o\n\nthr"]);
        let at = "1970-01-01T00:00:00.000000000Z stdout F ";
        assert_eq!(lines, [format!("{at}one"), format!("{at}two"), at.to_owned()]);
        assert_eq!(rest, 3);
    }

    #[test]
    fn a_long_line_is_split_and_nothing_is_lost() {
        let long = vec![b'x'; MAX_LINE_BYTES * 2 + 5];
        let (lines, rest) = formatted(&[&long[..100], &long[100..], b"\n"]);
        let tags: Vec<&str> = lines.iter().map(|line| line.split(' ').nth(2).unwrap()).collect();
        assert_eq!((tags, rest), (vec!["P", "P", "F"], 0));
        let text: usize = lines.iter().map(|line| line.split(' ').nth(3).unwrap().len()).sum();
        assert_eq!(text, long.len());
    }

    #[test]
    fn a_line_of_exactly_the_limit_is_whole() {
        let mut line = vec![b'x'; MAX_LINE_BYTES];
        line.push(b'\n');
        assert_eq!(formatted(&[&line]).0.len(), 1);
    }
}
