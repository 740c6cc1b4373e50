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
