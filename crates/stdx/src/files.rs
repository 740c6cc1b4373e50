//! Files behind a trait, so that a simulation can tear, delay and forget writes.

use std::{
    fs,
    io::{self, Error},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

/// A file tree. All calls block; async code reaches them through [`crate::Env::blocking`].
pub trait FileSystem: Send + Sync + 'static {
    /// Opens a file for reading and writing, creating it (mode 0600) when `create` is set.
    fn open(&self, path: &Path, create: bool) -> io::Result<Box<dyn File>>;
    fn create_dir_all(&self, path: &Path) -> io::Result<()>;
    /// The names in a directory, sorted.
    fn list(&self, path: &Path) -> io::Result<Vec<PathBuf>>;
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Makes creations, renames and removals in a directory durable.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;

    /// Creates an empty file for many small durable writes. It bypasses the page cache where the
    /// file system can, so that a write costs its own blocks and not whole pages; offset and
    /// length of every write must then be multiples of [`File::block_bytes`].
    fn create_log(&self, path: &Path) -> io::Result<Box<dyn File>> {
        let file = self.open(path, true)?;
        file.set_len(0)?;
        Ok(file)
    }

    /// Takes an exclusive lock on a file, creating it; the lock lasts as long as the value
    /// returned. `WouldBlock` when another process (or another value) holds it.
    fn lock(&self, path: &Path) -> io::Result<Box<dyn File>>;
}

/// An open file with positioned reads and writes.
pub trait File: Send + Sync {
    fn len(&self) -> io::Result<u64>;
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// Fills `buffer` from `offset`; an end of file before that is an error.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// Makes all writes so far durable (`fdatasync`).
    fn sync(&self) -> io::Result<()>;

    /// Writes and makes this write durable, with everything needed to read it back.
    fn write_durable(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.write_at(offset, bytes)?;
        self.sync()
    }

    /// What offsets and lengths of writes must be multiples of.
    fn block_bytes(&self) -> usize {
        1
    }
}

/// The machine's own file system.
pub struct RealFiles;

impl FileSystem for RealFiles {
    fn open(&self, path: &Path, create: bool) -> io::Result<Box<dyn File>> {
        use std::os::unix::fs::OpenOptionsExt;
        let mut options = fs::OpenOptions::new();
        let file = options.read(true).write(true).create(create).mode(0o600).open(path)?;
        Ok(Box::new(RealFile(file)))
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        fs::create_dir_all(path)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<PathBuf>> {
        let mut names: Vec<PathBuf> = fs::read_dir(path)?
            .map(|entry| entry.map(|e| PathBuf::from(e.file_name())))
            .collect::<Result<_, Error>>()?;
        names.sort();
        Ok(names)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        fs::File::open(path)?.sync_all()
    }

    fn create_log(&self, path: &Path) -> io::Result<Box<dyn File>> {
        let buffered = create_empty(path)?;
        match direct::open(path)? {
            Some((direct, block_bytes)) => {
                buffered.set_len(0)?;
                Ok(Box::new(DirectFile { direct, buffered, block_bytes }))
            }
            None => Ok(Box::new(RealFile(buffered))),
        }
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn File>> {
        use std::os::unix::fs::OpenOptionsExt;
        let mut options = fs::OpenOptions::new();
        let file = options.read(true).write(true).create(true).mode(0o600).open(path)?;
        file.try_lock().map_err(|refused| match refused {
            fs::TryLockError::WouldBlock => io::ErrorKind::WouldBlock.into(),
            fs::TryLockError::Error(error) => error,
        })?;
        Ok(Box::new(RealFile(file)))
    }
}

fn create_empty(path: &Path) -> io::Result<fs::File> {
    use std::os::unix::fs::OpenOptionsExt;
    let mut options = fs::OpenOptions::new();
    options.read(true).write(true).create(true).truncate(true).mode(0o600).open(path)
}

/// A file whose reads and writes bypass the page cache. (Mixing the two ways could leave a stale
/// page behind, which the kernel then reports as a failed sync.)
struct DirectFile {
    direct: fs::File,
    buffered: fs::File,
    block_bytes: usize,
}

impl File for DirectFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.buffered.metadata()?.len())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.buffered.set_len(len)
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        direct::read_exact_at(&self.direct, offset, buffer, self.block_bytes)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        direct::with_aligned(bytes, |aligned| self.direct.write_all_at(aligned, offset))
    }

    fn sync(&self) -> io::Result<()> {
        self.direct.sync_data()
    }

    fn write_durable(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        direct::with_aligned(bytes, |aligned| direct::write_durable(&self.direct, aligned, offset))
    }

    fn block_bytes(&self) -> usize {
        self.block_bytes
    }
}

/// `O_DIRECT`: what it asks of memory, offsets and lengths.
mod direct {
    use std::{
        fs,
        io::{self, IoSlice},
        os::unix::fs::{FileExt, OpenOptionsExt},
        path::Path,
    };

    /// Memory alignment that every device accepts.
    const ALIGNMENT: usize = 4096;

    /// Opens for direct writes and finds the smallest block by trying, since file systems tell
    /// it only from Linux 6.1 on. `None` where direct writes are refused (tmpfs, some overlays).
    /// Leaves a block of zeros in the file.
    pub fn open(path: &Path) -> io::Result<Option<(fs::File, usize)>> {
        let flags = rustix::fs::OFlags::DIRECT.bits() as i32;
        let mut options = fs::OpenOptions::new();
        let Ok(file) = options.read(true).write(true).custom_flags(flags).open(path) else {
            return Ok(None);
        };
        for block_bytes in [512, ALIGNMENT] {
            let zeros = vec![0; block_bytes];
            match with_aligned(&zeros, |aligned| file.write_all_at(aligned, 0)) {
                Ok(()) => return Ok(Some((file, block_bytes))),
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// Hands a copy of `bytes` that lies where the device can fetch it.
    pub fn with_aligned<T>(bytes: &[u8], write: impl FnOnce(&[u8]) -> T) -> T {
        let mut memory = vec![0u8; bytes.len() + ALIGNMENT];
        let skip = memory.as_ptr().align_offset(ALIGNMENT);
        let aligned = &mut memory[skip..skip + bytes.len()];
        aligned.copy_from_slice(bytes);
        write(aligned)
    }

    /// Reads the blocks around a range and hands out the range.
    pub fn read_exact_at(
        file: &fs::File,
        offset: u64,
        buffer: &mut [u8],
        block_bytes: usize,
    ) -> io::Result<()> {
        let skip = offset as usize % block_bytes;
        let wanted = skip + buffer.len();
        let mut memory = vec![0u8; wanted.next_multiple_of(block_bytes) + ALIGNMENT];
        let start = memory.as_ptr().align_offset(ALIGNMENT);
        let blocks = &mut memory[start..start + wanted.next_multiple_of(block_bytes)];
        let mut read = 0;
        while read < wanted {
            match file.read_at(&mut blocks[read..], offset - skip as u64 + read as u64)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                more => read += more,
            }
        }
        buffer.copy_from_slice(&blocks[skip..wanted]);
        Ok(())
    }

    /// One system call that writes and waits for the device (`RWF_DSYNC`), half the time of a
    /// write followed by `fdatasync` where the device has forced unit access.
    pub fn write_durable(file: &fs::File, bytes: &[u8], offset: u64) -> io::Result<()> {
        let flags = rustix::io::ReadWriteFlags::DSYNC;
        match rustix::io::pwritev2(file, &[IoSlice::new(bytes)], offset, flags) {
            Ok(written) if written == bytes.len() => Ok(()),
            // A short write, or a kernel or file system without the flag: the plain way, which
            // writes the same bytes again.
            Ok(_) | Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::INTR) => {
                file.write_all_at(bytes, offset)?;
                file.sync_data()
            }
            Err(errno) => Err(errno.into()),
        }
    }
}

struct RealFile(fs::File);

impl File for RealFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.0.read_exact_at(buffer, offset)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all_at(bytes, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync_data()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_file_reads_what_was_written_at_any_offset() {
        let dir = std::env::temp_dir().join(format!("stdx-files-{}", std::process::id()));
        RealFiles.create_dir_all(&dir).unwrap();
        let log = RealFiles.create_log(&dir.join("log")).unwrap();
        assert_eq!(log.len().unwrap(), 0);
        let block = log.block_bytes();
        let bytes: Vec<u8> = (0..4 * block.max(512)).map(|n| n as u8 ^ (n >> 8) as u8).collect();
        log.write_durable(0, &bytes).unwrap();
        log.write_at(bytes.len() as u64, &bytes).unwrap();
        log.sync().unwrap();
        let mut part = vec![0; 700];
        log.read_at(bytes.len() as u64 - 333, &mut part).unwrap();
        assert_eq!(part, [&bytes[bytes.len() - 333..], &bytes[..367]].concat());
        let behind = log.read_at(2 * bytes.len() as u64 - 1, &mut part).unwrap_err();
        assert_eq!(behind.kind(), io::ErrorKind::UnexpectedEof);
        log.set_len(block as u64 * 2).unwrap();
        assert_eq!(log.len().unwrap(), block as u64 * 2);
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn a_lock_is_held_until_it_is_dropped() {
        let path = std::env::temp_dir().join(format!("stdx-lock-{}", std::process::id()));
        let held = RealFiles.lock(&path).unwrap();
        let second = RealFiles.lock(&path).err().map(|error| error.kind());
        assert_eq!(second, Some(io::ErrorKind::WouldBlock));
        drop(held);
        RealFiles.lock(&path).unwrap();
        fs::remove_file(&path).unwrap();
    }
}
