//! The log on disk: numbered segment files of batches.
//!
//! A segment is created empty, filled with zeros a piece ahead of the writes (so that a commit
//! changes no file metadata and needs no journal commit), and cut to its length when the next one
//! begins. After a restart nothing is appended to an old segment: its valid end is made durable,
//! and the next write opens a new one. So every segment but the last must be whole, and its last
//! sequence number must join the next one's first: a lost or rotten acknowledged batch is found.

use std::{
    io::{self, ErrorKind},
    path::{Path, PathBuf},
    sync::Arc,
};

use stdx::{
    Env,
    files::{File, FileSystem},
};

use super::record::{BLOCK_BYTES, Batch, HEADER_BYTES, Header, Record};
use crate::Revision;

/// How far zeros are written ahead: little, so that a store at rest writes evenly. A bigger batch
/// extends the file by itself.
const AHEAD_BYTES: u64 = 64 << 10;
const LARGE_BATCH_BYTES: u64 = 32 << 10;

/// Appends batches. Used by one thread at a time, off the async threads.
pub struct LogWriter {
    env: Env,
    dir: PathBuf,
    segment_bytes: u64,
    sequence: u64,
    next_number: u32,
    current: Option<Segment>,
    /// Held until the last write is over, also when its task was aborted.
    _lock: Arc<dyn File>,
}

struct Segment {
    file: Arc<dyn File>,
    number: u32,
    salt: u64,
    block_bytes: usize,
    offset: u64,
    allocated: u64,
    /// The next segment may exist already: nothing may be appended here any more.
    closed: bool,
}

pub struct Appended {
    pub segment: u32,
    /// Where the batch begins in its segment.
    pub offset: u32,
    /// The file, when this append began it.
    pub opened: Option<Arc<dyn File>>,
    /// Bytes that the segment occupies.
    pub segment_bytes: u64,
}

#[derive(Debug)]
pub enum AppendError {
    /// Nothing was written, and the next append may succeed.
    NoSpace,
    /// What is on disk is not known.
    Broken(io::Error),
}

impl LogWriter {
    pub fn new(
        env: Env,
        dir: PathBuf,
        segment_bytes: u64,
        next: Next,
        lock: Arc<dyn File>,
    ) -> Self {
        let Next { sequence, number } = next;
        let segment_bytes = segment_bytes.next_multiple_of(4096);
        Self { env, dir, segment_bytes, sequence, next_number: number, current: None, _lock: lock }
    }

    /// Makes a batch durable. `revision` is the newest one before it.
    pub fn append(
        &mut self,
        batch: &mut Batch,
        revision: Revision,
    ) -> Result<Appended, AppendError> {
        let payload_end = batch.len();
        let full = |s: &Segment| s.closed || s.offset + payload_end as u64 > self.segment_bytes;
        let mut opened = None;
        if self.current.as_ref().is_none_or(full) {
            opened = Some(self.roll(revision)?);
        }
        let segment = self.current.as_mut().expect("a segment was opened");
        let bytes = batch.seal(self.sequence, segment.salt, payload_end, segment.block_bytes);
        let offset = segment.append(bytes, self.segment_bytes)?;
        self.sequence += 1;
        Ok(Appended {
            segment: segment.number,
            offset: offset as u32,
            opened,
            segment_bytes: segment.allocated.max(segment.offset),
        })
    }

    /// Closes the current segment and begins the next one.
    fn roll(&mut self, revision: Revision) -> Result<Arc<dyn File>, AppendError> {
        if let Some(current) = &mut self.current {
            current.seal().map_err(AppendError::Broken)?;
            current.closed = true;
        }
        let path = segment_path(&self.dir, self.next_number);
        let segment = self.create(&path, revision).map_err(|error| {
            // Half a segment without a batch is ignored at the next start; the next attempt
            // begins it anew.
            match is_no_space(&error) {
                true => AppendError::NoSpace,
                false => AppendError::Broken(error),
            }
        })?;
        let file = segment.file.clone();
        self.current = Some(segment);
        self.sequence += 1;
        self.next_number += 1;
        Ok(file)
    }

    fn create(&self, path: &Path, revision: Revision) -> io::Result<Segment> {
        let files = self.env.files();
        let file: Arc<dyn File> = files.create_log(path)?.into();
        let block_bytes = file.block_bytes().max(BLOCK_BYTES);
        let salt = self.env.random_u64();
        let mut batch = Batch::new();
        batch.push(&Record::Segment { number: self.next_number, revision });
        let payload_end = batch.len();
        let bytes = batch.seal(self.sequence, salt, payload_end, block_bytes);
        file.write_durable(0, bytes)?;
        files.sync_dir(&self.dir)?;
        let end = bytes.len() as u64;
        let (number, offset, allocated) = (self.next_number, end, end);
        Ok(Segment { file, number, salt, block_bytes, offset, allocated, closed: false })
    }
}

impl Segment {
    /// Writes a sealed batch and tells where it lies.
    fn append(&mut self, bytes: &[u8], segment_bytes: u64) -> Result<u64, AppendError> {
        let offset = self.offset;
        let written = self
            .allocate(bytes.len() as u64, segment_bytes)
            .and_then(|()| self.file.write_durable(offset, bytes));
        match written {
            Ok(()) => {
                self.offset += bytes.len() as u64;
                Ok(offset)
            }
            Err(error) if is_no_space(&error) => Err(self.undo()),
            Err(error) => Err(AppendError::Broken(error)),
        }
    }

    /// Writes zeros ahead when the next batch does not fit into the ones written before.
    fn allocate(&mut self, bytes: u64, segment_bytes: u64) -> io::Result<()> {
        let end = self.offset + bytes;
        if end <= self.allocated || bytes >= LARGE_BATCH_BYTES {
            self.allocated = self.allocated.max(end);
            return Ok(());
        }
        let target = (end + AHEAD_BYTES).min(segment_bytes).max(end);
        let target = target.next_multiple_of(self.block_bytes as u64);
        let zeros = vec![0; (target - self.allocated) as usize];
        self.file.write_at(self.allocated, &zeros)?;
        self.file.sync()?;
        self.allocated = target;
        Ok(())
    }

    /// Takes back what a full disk let through, so that it is certain that the batch is not there.
    fn undo(&mut self) -> AppendError {
        match self.seal() {
            Ok(()) => AppendError::NoSpace,
            Err(error) => AppendError::Broken(error),
        }
    }

    /// Cuts the file behind the last batch.
    fn seal(&mut self) -> io::Result<()> {
        self.file.set_len(self.offset)?;
        self.file.sync()?;
        self.allocated = self.offset;
        Ok(())
    }
}

pub fn is_no_space(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded)
}

/// What the writer goes on with after a restart.
#[derive(Clone, Copy, Debug)]
pub struct Next {
    pub sequence: u64,
    pub number: u32,
}

pub fn segment_path(dir: &Path, number: u32) -> PathBuf {
    dir.join(format!("log-{number:08x}"))
}

pub fn checkpoint_path(dir: &Path, revision: Revision) -> PathBuf {
    dir.join(format!("checkpoint-{revision:016x}"))
}

/// The files of a store, by what their names say.
#[derive(Debug, Default)]
pub struct Listing {
    pub segments: Vec<u32>,
    pub checkpoints: Vec<Revision>,
    pub unfinished: Vec<PathBuf>,
}

pub fn list(files: &dyn FileSystem, dir: &Path) -> io::Result<Listing> {
    let mut listing = Listing::default();
    for name in files.list(dir)? {
        let text = name.to_string_lossy().into_owned();
        if text.ends_with(".tmp") {
            listing.unfinished.push(dir.join(&name));
        } else if let Some(number) = hex(&text, "log-") {
            listing.segments.extend(u32::try_from(number).ok());
        } else if let Some(revision) = hex(&text, "checkpoint-") {
            listing.checkpoints.extend(Revision::try_from(revision).ok());
        }
    }
    listing.segments.sort_unstable();
    listing.checkpoints.sort_unstable();
    Ok(listing)
}

fn hex(name: &str, prefix: &str) -> Option<u64> {
    u64::from_str_radix(name.strip_prefix(prefix)?, 16).ok()
}

/// Reads the batches of one file in order.
pub struct BatchReader<'a> {
    file: &'a dyn File,
    length: u64,
    /// Where the next batch begins.
    pub offset: u64,
    window: Vec<u8>,
    window_at: u64,
}

const WINDOW_BYTES: u64 = 1 << 20;

impl<'a> BatchReader<'a> {
    pub fn new(file: &'a dyn File) -> io::Result<Self> {
        Ok(Self { file, length: file.len()?, offset: 0, window: Vec::new(), window_at: 0 })
    }

    pub fn at_end(&self) -> bool {
        self.offset >= self.length
    }

    /// The batch at `offset` and where its payload lies; `None` when there is no valid one.
    pub fn next_batch(&mut self) -> io::Result<Option<(Header, u64, &[u8])>> {
        let at = self.offset;
        let Some(header) = self.valid_at(at)? else { return Ok(None) };
        let payload_at = at + HEADER_BYTES as u64;
        let payload_bytes = u64::from(header.payload_bytes);
        // Blocks may be larger than the least one; padding is zeros and begins no batch.
        let end = (payload_at + payload_bytes).next_multiple_of(BLOCK_BYTES as u64);
        self.offset = self.skip_padding(end)?;
        let payload = self.slice(payload_at, payload_bytes)?.expect("it was checked");
        Ok(Some((header, payload_at, payload)))
    }

    /// True when a valid batch with this salt (any, when `None`) begins behind `offset`.
    pub fn any_valid_after(&mut self, salt: Option<u64>) -> io::Result<bool> {
        let mut at = self.offset + BLOCK_BYTES as u64;
        while at + (HEADER_BYTES as u64) <= self.length {
            if self.valid_at(at)?.is_some_and(|h| salt.is_none_or(|salt| salt == h.salt)) {
                return Ok(true);
            }
            at += BLOCK_BYTES as u64;
        }
        Ok(false)
    }

    fn valid_at(&mut self, at: u64) -> io::Result<Option<Header>> {
        let Some(header) = self.slice(at, HEADER_BYTES as u64)? else { return Ok(None) };
        let header: &[u8; HEADER_BYTES] = header.try_into().expect("the length was asked for");
        let Some((header, crc)) = Header::decode(header) else { return Ok(None) };
        let payload_at = at + HEADER_BYTES as u64;
        let payload = self.slice(payload_at, u64::from(header.payload_bytes))?;
        Ok(payload.is_some_and(|payload| header.crc(payload) == crc).then_some(header))
    }

    /// Devices with blocks of 4096 bytes have batches at multiples of that: steps over the zeros
    /// up to the next such multiple.
    fn skip_padding(&mut self, end: u64) -> io::Result<u64> {
        let aligned = end.next_multiple_of(4096);
        if aligned > self.length {
            return Ok(end);
        }
        let zeros = self.slice(end, aligned - end)?.is_some_and(|gap| gap.iter().all(|&b| b == 0));
        let follows = zeros && (aligned == self.length || self.valid_at(aligned)?.is_some());
        Ok(if follows { aligned } else { end })
    }

    /// Bytes of the file; `None` behind its end.
    fn slice(&mut self, at: u64, length: u64) -> io::Result<Option<&[u8]>> {
        let end = at.saturating_add(length);
        if end > self.length {
            return Ok(None);
        }
        let window_end = self.window_at + self.window.len() as u64;
        if at < self.window_at || end > window_end {
            let bytes = length.max(WINDOW_BYTES).min(self.length - at);
            self.window.resize(bytes as usize, 0);
            self.window_at = at;
            self.file.read_at(at, &mut self.window)?;
        }
        let start = (at - self.window_at) as usize;
        Ok(Some(&self.window[start..start + length as usize]))
    }
}
