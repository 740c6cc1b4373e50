//! One layer's tar stream onto disk, in the form that overlayfs reads.
//!
//! Every step goes from a directory's descriptor to a name within it and follows no link by
//! itself, so no entry can reach outside the layer, whatever links an archive plants. Links on
//! the way to an entry are followed within the image, as the container would see them: through
//! the layer itself and then the layers below it.

use std::{
    collections::VecDeque,
    ffi::{OsStr, OsString},
    fs,
    io::{self, BufReader, Read},
    os::{
        fd::{AsFd, OwnedFd},
        unix::{
            ffi::OsStrExt,
            fs::{FileTypeExt, MetadataExt},
        },
    },
    path::{Component, Path, PathBuf},
};

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags};

use super::Summing;
use crate::error::{Error, Result};

/// Unpacks a layer into the new directory `target` on top of `lower` (the topmost first), checks
/// both digests and answers the bytes of its files. On failure the caller removes `target`.
pub(super) fn unpack(
    reader: &mut dyn Read,
    target: &Path,
    lower: &[PathBuf],
    digest: Option<&str>,
    diff_id: &str,
) -> Result<u64> {
    let image_error =
        |error: io::Error| Error::Image(format!("a layer cannot be unpacked: {error}"));
    let mut packed = Summing::new(reader);
    let size = {
        let mut buffered = BufReader::with_capacity(128 << 10, &mut packed);
        let plain = decompress(&mut buffered).map_err(image_error)?;
        let mut plain = Summing::new(plain);
        let size = Unpacker::new(target, lower)
            .and_then(|unpacker| unpacker.run(&mut plain))
            .map_err(image_error)?;
        let actual = plain.finish().map_err(image_error)?;
        same_digest("a layer's content", &actual, diff_id)?;
        size
    };
    let actual = packed.finish().map_err(image_error)?;
    if let Some(digest) = digest {
        same_digest("a layer", &actual, digest)?;
    }
    Ok(size)
}

pub(super) fn same_digest(what: &str, actual: &str, expected: &str) -> Result<()> {
    if actual == expected {
        return Ok(());
    }
    Err(Error::Image(format!("{what} is damaged: its digest is {actual}, not {expected}")))
}

/// Reads gzip, zstd or plain bytes, told apart by their beginning.
pub(super) fn decompress<'a, R: io::BufRead + 'a>(mut reader: R) -> io::Result<Box<dyn Read + 'a>> {
    let beginning = reader.fill_buf()?;
    Ok(if beginning.starts_with(&[0x1f, 0x8b]) {
        Box::new(flate2::bufread::MultiGzDecoder::new(reader))
    } else if beginning.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
        Box::new(zstd::Decoder::with_buffer(reader)?)
    } else {
        Box::new(reader)
    })
}

struct Unpacker<'a> {
    root: OwnedFd,
    lower: &'a [PathBuf],
    /// Directories get their time last, because every entry in them changes it.
    times: Vec<(OwnedFd, i64)>,
    /// The last parent and its descriptor: entries come directory by directory.
    recent: Option<(PathBuf, OwnedFd)>,
    size: u64,
}

/// How many links may lie on the way to one entry.
const MAX_LINKS: usize = 40;
/// The deepest nesting of directories.
const MAX_DEPTH: usize = 1024;

const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

impl<'a> Unpacker<'a> {
    fn new(target: &Path, lower: &'a [PathBuf]) -> io::Result<Self> {
        fs::create_dir(target)?;
        let root = rustix::fs::open(target, DIRECTORY, Mode::empty())?;
        rustix::fs::fchmod(&root, Mode::from_raw_mode(0o755))?;
        Ok(Self { root, lower, times: Vec::new(), recent: None, size: 0 })
    }

    fn run(mut self, reader: &mut dyn Read) -> io::Result<u64> {
        let mut archive = tar::Archive::new(reader);
        for entry in archive.entries()? {
            let mut entry = entry?;
            let name = PathBuf::from(OsStr::from_bytes(&entry.path_bytes()));
            self.entry(&name, &mut entry).map_err(|error| {
                io::Error::new(error.kind(), format!("{}: {error}", name.display()))
            })?;
        }
        for (directory, seconds) in self.times {
            rustix::fs::futimens(&directory, &times(seconds))?;
        }
        Ok(self.size)
    }

    fn entry(&mut self, name: &Path, entry: &mut tar::Entry<'_, &mut dyn Read>) -> io::Result<()> {
        let parts = components(name)?;
        let meta = Meta::of(entry)?;
        let Some((last, parents)) = parts.split_last() else {
            return self.set_directory(self.root.try_clone()?, &meta);
        };
        let parent = self.parent(parents)?;
        if let Some(hidden) = last.as_bytes().strip_prefix(b".wh.") {
            return white_out(&parent, hidden);
        }
        self.recent_invalid(last, parents);
        self.place(&parent, last, &meta, entry)
    }

    /// An entry may replace what the cached parent was reached through.
    fn recent_invalid(&mut self, last: &OsStr, parents: &[OsString]) {
        let path: PathBuf = parents.iter().map(OsString::as_os_str).chain([last]).collect();
        if self.recent.as_ref().is_some_and(|(recent, _)| recent.starts_with(&path)) {
            self.recent = None;
        }
    }

    fn place(
        &mut self,
        parent: &OwnedFd,
        name: &OsStr,
        meta: &Meta,
        entry: &mut tar::Entry<'_, &mut dyn Read>,
    ) -> io::Result<()> {
        let kind = entry.header().entry_type();
        if kind.is_dir() {
            return self.directory(parent, name, meta);
        }
        if kind.is_pax_global_extensions() {
            return Ok(());
        }
        remove(parent, name)?;
        if kind.is_file() || kind.is_contiguous() || kind.is_gnu_sparse() {
            self.file(parent, name, meta, entry)
        } else if kind.is_symlink() {
            let target = link_target(entry)?;
            rustix::fs::symlinkat(&*target, parent, name)?;
            meta.apply_to_name(parent, name, false)
        } else if kind.is_hard_link() {
            self.hard_link(parent, name, &link_target(entry)?)
        } else if kind.is_fifo() {
            rustix::fs::mknodat(parent, name, FileType::Fifo, Mode::empty(), 0)?;
            meta.apply_to_name(parent, name, true)
        } else if kind.is_character_special() || kind.is_block_special() {
            let number = |number: io::Result<Option<u32>>| number.map(Option::unwrap_or_default);
            let major = number(entry.header().device_major())?;
            let minor = number(entry.header().device_minor())?;
            let file_type = if kind.is_block_special() {
                FileType::BlockDevice
            } else {
                FileType::CharacterDevice
            };
            let device = rustix::fs::makedev(major, minor);
            rustix::fs::mknodat(parent, name, file_type, Mode::empty(), device)?;
            meta.apply_to_name(parent, name, true)
        } else {
            Err(io::Error::new(io::ErrorKind::InvalidData, "the entry is of an unknown type"))
        }
    }

    fn file(
        &mut self,
        parent: &OwnedFd,
        name: &OsStr,
        meta: &Meta,
        entry: &mut tar::Entry<'_, &mut dyn Read>,
    ) -> io::Result<()> {
        let mut file = create_file(parent, name)?;
        let expected = entry.size();
        let written = io::copy(entry, &mut file)?;
        if written != expected {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the archive is truncated"));
        }
        self.size += written;
        meta.apply(&file)
    }

    fn directory(&mut self, parent: &OwnedFd, name: &OsStr, meta: &Meta) -> io::Result<()> {
        let open = |parent: &OwnedFd| rustix::fs::openat(parent, name, DIRECTORY, Mode::empty());
        let directory = match open(parent) {
            Ok(directory) => directory,
            Err(_) => {
                remove(parent, name)?;
                rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o700))?;
                open(parent)?
            }
        };
        self.set_directory(directory, meta)
    }

    fn set_directory(&mut self, directory: OwnedFd, meta: &Meta) -> io::Result<()> {
        let file = fs::File::from(directory);
        meta.apply(&file)?;
        self.times.push((file.into(), meta.seconds));
        // Descriptors are few; most layers have few directories.
        if self.times.len() >= 256 {
            for (directory, seconds) in self.times.drain(..) {
                rustix::fs::futimens(&directory, &times(seconds))?;
            }
        }
        Ok(())
    }

    fn hard_link(&mut self, parent: &OwnedFd, name: &OsStr, target: &OsStr) -> io::Result<()> {
        let parts = components(Path::new(target))?;
        let missing = || {
            let text = format!("the hard link's target {} is missing", target.to_string_lossy());
            io::Error::new(io::ErrorKind::NotFound, text)
        };
        let (last, parents) = parts.split_last().ok_or_else(missing)?;
        let target_parent = self.parent(parents)?;
        let exists = rustix::fs::statat(&target_parent, &**last, AtFlags::SYMLINK_NOFOLLOW).is_ok();
        if !exists {
            let below = parents.iter().chain([last]).collect::<PathBuf>();
            self.copy_up(&target_parent, last, &below)?.ok_or_else(missing)?;
        }
        Ok(rustix::fs::linkat(&target_parent, &**last, parent, name, AtFlags::empty())?)
    }

    /// Brings a file of a lower layer into this one, so that it can be linked to.
    fn copy_up(&mut self, parent: &OwnedFd, name: &OsStr, path: &Path) -> io::Result<Option<()>> {
        let Some((layer, meta)) = find_below(self.lower, path) else { return Ok(None) };
        if !meta.is_file() {
            return Ok(None);
        }
        let mut copy = create_file(parent, name)?;
        self.size += io::copy(&mut fs::File::open(layer.join(path))?, &mut copy)?;
        Meta::of_file(&meta).apply(&copy)?;
        Ok(Some(()))
    }

    /// The directory that `parts` lead to, created where it is missing.
    fn parent(&mut self, parts: &[OsString]) -> io::Result<OwnedFd> {
        let path: PathBuf = parts.iter().collect();
        if let Some((_, fd)) = self.recent.as_ref().filter(|(recent, _)| *recent == path) {
            return fd.try_clone();
        }
        let directory = self.walk(parts)?;
        self.recent = Some((path, directory.try_clone()?));
        Ok(directory)
    }

    fn walk(&self, parts: &[OsString]) -> io::Result<OwnedFd> {
        let mut left: VecDeque<OsString> = parts.iter().cloned().collect();
        let mut way: Vec<(OsString, OwnedFd)> = Vec::new();
        let mut links = 0;
        while let Some(part) = left.pop_front() {
            if part == ".." {
                way.pop();
                continue;
            }
            if way.len() > MAX_DEPTH {
                return Err(io::Error::other("the path is too deep"));
            }
            let here = way.last().map_or(self.root.as_fd(), |(_, fd)| fd.as_fd());
            let path: PathBuf = way.iter().map(|(name, _)| &**name).chain([&*part]).collect();
            let link = match self.look(here, &part, &path)? {
                Found::Directory(fd) => {
                    way.push((part, fd));
                    continue;
                }
                Found::Link(target) => target,
            };
            links += 1;
            if links > MAX_LINKS {
                return Err(io::Error::other("too many links lie on the way to the entry"));
            }
            if link.as_bytes().starts_with(b"/") {
                way.clear();
            }
            for component in Path::new(&link).components().rev() {
                match component {
                    Component::Normal(name) => left.push_front(name.to_owned()),
                    Component::ParentDir => left.push_front("..".into()),
                    _ => {}
                }
            }
        }
        match way.pop() {
            Some((_, fd)) => Ok(fd),
            None => self.root.try_clone(),
        }
    }

    fn look(
        &self,
        here: std::os::fd::BorrowedFd<'_>,
        name: &OsStr,
        path: &Path,
    ) -> io::Result<Found> {
        let open = || rustix::fs::openat(here, name, DIRECTORY, Mode::empty());
        match rustix::fs::statat(here, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => match FileType::from_raw_mode(stat.st_mode) {
                FileType::Directory => return Ok(Found::Directory(open()?)),
                FileType::Symlink => {
                    let target = rustix::fs::readlinkat(here, name, Vec::new())?;
                    return Ok(Found::Link(OsStr::from_bytes(target.as_bytes()).to_owned()));
                }
                _ => return Err(io::Error::other("a file lies where a directory is needed")),
            },
            Err(rustix::io::Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
        let below = find_below(self.lower, path);
        if let Some((layer, meta)) = below.as_ref().filter(|(_, meta)| meta.is_symlink()) {
            let _ = meta;
            return Ok(Found::Link(fs::read_link(layer.join(path))?.into_os_string()));
        }
        rustix::fs::mkdirat(here, name, Mode::from_raw_mode(0o755))?;
        let directory = fs::File::from(open()?);
        // The topmost layer's directory decides for all, so it takes over what lies below.
        if let Some((_, meta)) = below.filter(|(_, meta)| meta.is_dir()) {
            Meta::of_file(&meta).apply(&directory)?;
        }
        Ok(Found::Directory(directory.into()))
    }
}

enum Found {
    Directory(OwnedFd),
    Link(OsString),
}

/// Looks `path` up in the layers below as overlayfs would, without following links.
fn find_below<'a>(lower: &'a [PathBuf], path: &Path) -> Option<(&'a Path, fs::Metadata)> {
    'layers: for layer in lower {
        let mut at = layer.clone();
        let mut opaque = false;
        let mut parts = path.components().peekable();
        while let Some(part) = parts.next() {
            at.push(part);
            let meta = match fs::symlink_metadata(&at) {
                Ok(meta) => meta,
                Err(_) if opaque => return None,
                Err(_) => continue 'layers,
            };
            if meta.file_type().is_char_device() && meta.rdev() == 0 {
                return None;
            }
            if parts.peek().is_none() {
                return Some((layer, meta));
            }
            if !meta.is_dir() {
                return None;
            }
            let mut value = [0u8; 4];
            let length = rustix::fs::lgetxattr(&at, OPAQUE, &mut value).unwrap_or(0);
            opaque |= value[..length] == *b"y";
        }
    }
    None
}

const OPAQUE: &str = "trusted.overlay.opaque";

/// A whiteout entry: `hidden` is the name that it hides, or aufs's mark that hides all.
fn white_out(parent: &OwnedFd, hidden: &[u8]) -> io::Result<()> {
    if hidden == b".wh..opq" {
        rustix::fs::fsetxattr(parent, OPAQUE, b"y", XattrFlags::empty())?;
        return Ok(());
    }
    if hidden.starts_with(b".wh.") {
        return Ok(());
    }
    let name = OsStr::from_bytes(hidden);
    if matches!(hidden, b"" | b"." | b"..") {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the whiteout names nothing"));
    }
    remove(parent, name)?;
    Ok(rustix::fs::mknodat(parent, name, FileType::CharacterDevice, Mode::empty(), 0)?)
}

/// The parts of an entry's name; an absolute one counts from the image's root.
fn components(name: &Path) -> io::Result<Vec<OsString>> {
    let mut parts = Vec::new();
    for component in name.components() {
        match component {
            Component::Normal(part) => parts.push(part.to_owned()),
            Component::RootDir | Component::CurDir => {}
            Component::ParentDir | Component::Prefix(_) => {
                let text = "the name leads out of the image";
                return Err(io::Error::new(io::ErrorKind::InvalidData, text));
            }
        }
    }
    Ok(parts)
}

fn link_target(entry: &tar::Entry<'_, &mut dyn Read>) -> io::Result<OsString> {
    let bytes = entry.link_name_bytes().ok_or(io::ErrorKind::InvalidData)?;
    Ok(OsStr::from_bytes(&bytes).to_owned())
}

fn create_file(parent: &OwnedFd, name: &OsStr) -> io::Result<fs::File> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(parent, name, flags, Mode::from_raw_mode(0o600))?.into())
}

/// Removes whatever an earlier entry put there.
fn remove(parent: &OwnedFd, name: &OsStr) -> io::Result<()> {
    match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(rustix::io::Errno::NOENT) => return Ok(()),
        Err(rustix::io::Errno::ISDIR) => {}
        Err(error) => return Err(error.into()),
    }
    let directory = rustix::fs::openat(parent, name, DIRECTORY, Mode::empty())?;
    for entry in rustix::fs::Dir::read_from(&directory)? {
        let entry = entry?;
        let below = OsStr::from_bytes(entry.file_name().to_bytes());
        if below != "." && below != ".." {
            remove(&directory, below)?;
        }
    }
    Ok(rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR)?)
}

/// Owner, mode, time and extended attributes of an entry.
struct Meta {
    uid: u32,
    gid: u32,
    mode: u32,
    seconds: i64,
    attributes: Vec<(OsString, Vec<u8>)>,
}

impl Meta {
    fn of(entry: &mut tar::Entry<'_, &mut dyn Read>) -> io::Result<Self> {
        let header = entry.header();
        // A field that was never written counts as zero, as everywhere else.
        let number = |field: &[u8], value: io::Result<u64>| match value {
            Err(_) if field.iter().all(|byte| matches!(byte, 0 | b' ')) => Ok(0),
            other => other,
        };
        let raw = header.as_old();
        let id = |field: &[u8], value: io::Result<u64>| -> io::Result<u32> {
            u32::try_from(number(field, value)?).map_err(|_| io::ErrorKind::InvalidData.into())
        };
        let (uid, gid) = (id(&raw.uid, header.uid())?, id(&raw.gid, header.gid())?);
        let (mode, seconds) = (header.mode()? & 0o7777, number(&raw.mtime, header.mtime())? as i64);
        let mut meta = Self { uid, gid, mode, seconds, attributes: Vec::new() };
        if let Some(extensions) = entry.pax_extensions()? {
            for extension in extensions.flatten() {
                meta.extend(extension.key_bytes(), extension.value_bytes());
            }
        }
        Ok(meta)
    }

    fn extend(&mut self, key: &[u8], value: &[u8]) {
        let number = || std::str::from_utf8(value).ok()?.parse().ok();
        match key {
            b"uid" => self.uid = number().unwrap_or(self.uid),
            b"gid" => self.gid = number().unwrap_or(self.gid),
            _ => {
                let Some(name) = key.strip_prefix(b"SCHILY.xattr.") else { return };
                // Overlayfs's own marks must come from whiteouts alone.
                if !name.starts_with(b"trusted.") {
                    self.attributes.push((OsStr::from_bytes(name).to_owned(), value.to_owned()));
                }
            }
        }
    }

    fn of_file(meta: &fs::Metadata) -> Self {
        Self {
            uid: meta.uid(),
            gid: meta.gid(),
            mode: meta.mode() & 0o7777,
            seconds: meta.mtime(),
            attributes: Vec::new(),
        }
    }

    fn apply(&self, file: &fs::File) -> io::Result<()> {
        forgive_ordinary_user(std::os::unix::fs::fchown(file, Some(self.uid), Some(self.gid)))?;
        // After the owner, because a change of owner clears the set-user bits.
        rustix::fs::fchmod(file, Mode::from_raw_mode(self.mode))?;
        for (name, value) in &self.attributes {
            match rustix::fs::fsetxattr(file, &**name, value, XattrFlags::empty()) {
                // The file system may lack them; the file is whole without.
                Ok(()) | Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::PERM) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(rustix::fs::futimens(file, &times(self.seconds))?)
    }

    fn apply_to_name(&self, parent: &OwnedFd, name: &OsStr, with_mode: bool) -> io::Result<()> {
        let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        let owned = rustix::fs::chownat(parent, name, Some(uid), Some(gid), flags);
        forgive_ordinary_user(owned.map_err(io::Error::from))?;
        if with_mode {
            let mode = Mode::from_raw_mode(self.mode);
            rustix::fs::chmodat(parent, name, mode, AtFlags::empty())?;
        }
        Ok(rustix::fs::utimensat(parent, name, &times(self.seconds), flags)?)
    }
}

/// Only root can give files away; an ordinary user (in tests) keeps them.
fn forgive_ordinary_user(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error)
            if error.kind() == io::ErrorKind::PermissionDenied
                && !rustix::process::geteuid().is_root() =>
        {
            Ok(())
        }
        other => other,
    }
}

fn times(seconds: i64) -> Timestamps {
    let at = Timespec { tv_sec: seconds, tv_nsec: 0 };
    Timestamps { last_access: at, last_modification: at }
}
