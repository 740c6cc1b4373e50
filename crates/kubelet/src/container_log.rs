//! Container logs in the runtime's format: `TIME STREAM TAG CONTENT`, one line each, where the tag
//! `P` marks a line that goes on in the next one.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
};

use stdx::Timestamp;

/// What of a log is wanted.
#[derive(Clone, Debug, Default)]
pub struct LogOptions {
    pub tail: Option<usize>,
    pub since: Option<Timestamp>,
    pub timestamps: bool,
    pub limit_bytes: Option<u64>,
    pub follow: bool,
    /// `stdout` or `stderr`; empty for both.
    pub stream: String,
}

/// Turns lines of the runtime's format into what a client sees.
pub struct Formatter {
    options: LogOptions,
    left: Option<u64>,
    /// The line before was not whole, so the next one goes on without a time of its own.
    inside: bool,
}

impl Formatter {
    pub fn new(options: &LogOptions) -> Self {
        Self { options: options.clone(), left: options.limit_bytes, inside: false }
    }

    /// Whether the client's limit has been reached.
    pub fn is_full(&self) -> bool {
        self.left == Some(0)
    }

    /// Appends what is to be shown of a line (without its newline).
    pub fn line(&mut self, line: &[u8], out: &mut Vec<u8>) {
        let Some(parsed) = parse(line) else { return };
        if !self.options.stream.is_empty() && parsed.stream != self.options.stream.as_bytes() {
            return;
        }
        if let Some(since) = self.options.since {
            let time = std::str::from_utf8(parsed.time).ok().and_then(Timestamp::parse);
            if time.is_none_or(|time| time < since) {
                return;
            }
        }
        let mut shown = Vec::with_capacity(line.len());
        if self.options.timestamps && !self.inside {
            shown.extend_from_slice(parsed.time);
            shown.push(b' ');
        }
        shown.extend_from_slice(parsed.content);
        if !parsed.partial {
            shown.push(b'\n');
        }
        self.inside = parsed.partial;
        if let Some(left) = &mut self.left {
            shown.truncate(usize::try_from(*left).unwrap_or(usize::MAX));
            *left -= shown.len() as u64;
        }
        out.append(&mut shown);
    }
}

struct Line<'a> {
    time: &'a [u8],
    stream: &'a [u8],
    partial: bool,
    content: &'a [u8],
}

fn parse(line: &[u8]) -> Option<Line<'_>> {
    let mut parts = line.splitn(4, |&byte| byte == b' ');
    let (time, stream, tags) = (parts.next()?, parts.next()?, parts.next()?);
    let partial = tags.split(|&byte| byte == b':').next() == Some(b"P");
    Some(Line { time, stream, partial, content: parts.next().unwrap_or_default() })
}

/// Reads a log file that grows and may be rotated away.
pub struct LogReader {
    path: PathBuf,
    file: File,
    inode: u64,
    pending: Vec<u8>,
}

impl LogReader {
    /// Opens the file at the place from which the last `tail` lines follow.
    pub fn open(path: &Path, tail: Option<usize>) -> io::Result<Self> {
        let mut file = File::open(path)?;
        if let Some(lines) = tail {
            let offset = tail_offset(&file, lines)?;
            file.seek(SeekFrom::Start(offset))?;
        }
        let inode = file.metadata()?.ino();
        Ok(Self { path: path.to_owned(), file, inode, pending: Vec::new() })
    }

    /// Formats what has been written since the last call, up to some 64 KiB. Empty at the end.
    pub fn read(&mut self, formatter: &mut Formatter) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        let mut chunk = vec![0; 64 << 10];
        while out.is_empty() && !formatter.is_full() {
            let read = self.file.read(&mut chunk)?;
            if read == 0 {
                break;
            }
            self.pending.extend_from_slice(&chunk[..read]);
            self.take_lines(formatter, &mut out);
        }
        Ok(out)
    }

    fn take_lines(&mut self, formatter: &mut Formatter, out: &mut Vec<u8>) {
        let mut start = 0;
        while let Some(length) = self.pending[start..].iter().position(|&byte| byte == b'\n') {
            formatter.line(&self.pending[start..start + length], out);
            start += length + 1;
            if formatter.is_full() {
                break;
            }
        }
        self.pending.drain(..start);
    }

    /// Goes on with the file that took this one's place. `false` when none did.
    pub fn reopen_if_rotated(&mut self) -> io::Result<bool> {
        let current = match std::fs::metadata(&self.path) {
            Ok(found) => found.ino(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        };
        if current == self.inode {
            return Ok(false);
        }
        self.file = File::open(&self.path)?;
        self.inode = self.file.metadata()?.ino();
        self.pending.clear();
        Ok(true)
    }
}

/// Where the last `lines` lines begin.
fn tail_offset(file: &File, lines: usize) -> io::Result<u64> {
    const BLOCK: u64 = 16 << 10;
    let end = file.metadata()?.len();
    if lines == 0 {
        return Ok(end);
    }
    let mut position = end;
    let mut seen = 0;
    while position > 0 {
        let start = position.saturating_sub(BLOCK);
        let mut block = vec![0; (position - start) as usize];
        file.read_exact_at(&mut block, start)?;
        for (index, _) in block.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n') {
            let after = start + index as u64 + 1;
            // The newline that ends the file ends a line; it does not begin one.
            if after == end {
                continue;
            }
            seen += 1;
            if seen == lines {
                return Ok(after);
            }
        }
        position = start;
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn log(count: usize) -> String {
        (0..count).map(|n| format!("2026-01-01T00:00:0{n}Z stdout F line {n}\n")).collect()
    }

    fn read_all(path: &Path, options: &LogOptions) -> String {
        let mut reader = LogReader::open(path, options.tail).unwrap();
        let mut formatter = Formatter::new(options);
        let mut all = Vec::new();
        loop {
            let piece = reader.read(&mut formatter).unwrap();
            if piece.is_empty() {
                return String::from_utf8(all).unwrap();
            }
            all.extend(piece);
        }
    }

    #[test]
    fn options_select() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("0.log");
        std::fs::write(&path, log(5)).unwrap();
        let with = |set: &dyn Fn(&mut LogOptions)| {
            let mut options = LogOptions::default();
            set(&mut options);
            read_all(&path, &options)
        };
        assert_eq!(with(&|_| {}).lines().count(), 5);
        assert_eq!(with(&|o| o.tail = Some(2)), "line 3\nline 4\n");
        assert_eq!(with(&|o| o.tail = Some(0)), "");
        assert_eq!(with(&|o| o.tail = Some(99)).lines().count(), 5);
        assert_eq!(with(&|o| o.limit_bytes = Some(8)), "line 0\nl");
        assert_eq!(with(&|o| o.since = Timestamp::parse("2026-01-01T00:00:04Z")), "line 4\n");
        assert_eq!(
            with(&|o| {
                o.timestamps = true;
                o.tail = Some(1);
            }),
            "2026-01-01T00:00:04Z line 4\n"
        );
        assert_eq!(with(&|o| o.stream = "stderr".into()), "");
    }

    #[test]
    fn partial_lines_are_joined() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("0.log");
        std::fs::write(&path, "t1 stdout P one \nt2 stdout F two\n").unwrap();
        let options = LogOptions { timestamps: true, ..LogOptions::default() };
        assert_eq!(read_all(&path, &options), "t1 one two\n");
    }

    #[test]
    fn rotation_loses_no_line() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("0.log");
        std::fs::write(&path, "t stdout F a\n").unwrap();
        let mut reader = LogReader::open(&path, None).unwrap();
        let mut formatter = Formatter::new(&LogOptions::default());
        assert_eq!(reader.read(&mut formatter).unwrap(), b"a\n");
        let mut old = std::fs::OpenOptions::new().append(true).open(&path).unwrap();
        std::fs::rename(&path, root.path().join("0.log.1")).unwrap();
        old.write_all(b"t stdout F b\n").unwrap();
        std::fs::write(&path, "t stdout F c\n").unwrap();
        assert_eq!(reader.read(&mut formatter).unwrap(), b"b\n");
        assert!(reader.reopen_if_rotated().unwrap());
        assert_eq!(reader.read(&mut formatter).unwrap(), b"c\n");
        assert!(!reader.reopen_if_rotated().unwrap());
    }
}
