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

/// A file whose writes bypass the page cache; reads go through it, which Linux keeps coherent.
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
        self.buffered.read_exact_at(buffer, offset)
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
        let Ok(file) = fs::OpenOptions::new().write(true).custom_flags(flags).open(path) else {
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
