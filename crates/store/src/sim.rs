//! A simulated disk that forgets and tears what was not made durable.
//!
//! It is as mean as the rules allow: after [`SimFiles::lose_power`] each sector of each write since
//! the last sync of its file is there, or not, or half, independently of the others; so is every
//! change of length; every creation, rename and removal since the last sync of its directory is
//! there or not, each name on its own. Only what a sync promised is kept. One seed gives one fate.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, ErrorKind},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use stdx::files::{File, FileSystem};

const SECTOR_BYTES: usize = 512;

/// A file tree in memory.
pub struct SimFiles {
    world: Arc<Mutex<World>>,
}

#[derive(Default)]
struct World {
    random: u64,
    directories: BTreeSet<PathBuf>,
    names: BTreeMap<PathBuf, u64>,
    /// What a name stood for at the last sync of its directory and since, oldest first, without
    /// what it stands for now.
    unsynced_names: BTreeMap<PathBuf, Vec<Option<u64>>>,
    inodes: BTreeMap<u64, Inode>,
    next_inode: u64,
    locks: BTreeSet<PathBuf>,
    /// Handles of an earlier boot are dead.
    boot: u64,
    operations: u64,
    dies_at: Option<u64>,
    down: bool,
    capacity_bytes: Option<u64>,
}

#[derive(Clone, Default)]
struct Inode {
    live: Vec<u8>,
    durable: Vec<u8>,
    unsynced: Vec<Change>,
}

#[derive(Clone)]
enum Change {
    Write { offset: usize, bytes: Vec<u8> },
    Length(usize),
}

impl SimFiles {
    pub fn new(seed: u64) -> Arc<Self> {
        let world = World { random: seed ^ 0x5eed_d15c, ..World::default() };
        Arc::new(Self { world: Arc::new(Mutex::new(world)) })
    }

    /// Lets the machine go down in the midst of the `operations`-th file operation from now on
    /// (1 is the next one). From then on every operation fails.
    pub fn die_after(&self, operations: u64) {
        let mut world = self.lock_world();
        world.dies_at = Some(world.operations + operations);
    }

    pub fn is_down(&self) -> bool {
        self.lock_world().down
    }

    /// How many file operations there were.
    pub fn operations(&self) -> u64 {
        self.lock_world().operations
    }

    /// Ends the process as kill -9 would and starts anew: locks and handles are gone, the page
    /// cache is not.
    pub fn kill_process(&self) {
        self.lock_world().reboot();
    }

    /// Cuts the power and starts anew.
    pub fn lose_power(&self) {
        let mut world = self.lock_world();
        world.forget();
        world.reboot();
    }

    /// Lets writes that need more than this in all fail with `StorageFull`; `None` for no limit.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.lock_world().capacity_bytes = bytes;
    }

    /// The bytes of all files that have a name.
    pub fn used_bytes(&self) -> u64 {
        self.lock_world().used_bytes()
    }

    /// Flips one bit on the medium.
    pub fn flip_bit(&self, path: &Path, offset: usize) {
        let mut world = self.lock_world();
        let inode = world.names[path];
        let inode = world.inodes.get_mut(&inode).expect("a name stands for an inode");
        inode.live[offset] ^= 1;
        if let Some(byte) = inode.durable.get_mut(offset) {
            *byte ^= 1;
        }
    }

    /// A file's bytes as a reader sees them now.
    pub fn content(&self, path: &Path) -> Option<Vec<u8>> {
        let world = self.lock_world();
        world.names.get(path).map(|inode| world.inodes[inode].live.clone())
    }

    fn lock_world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl World {
    /// SplitMix64 (Steele, Lea, Flood 2014).
    fn random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.random() % bound.max(1) as u64) as usize
    }

    /// Counts an operation. `Ok(true)` when the machine goes down in its midst.
    fn operate(&mut self) -> io::Result<bool> {
        if self.down {
            return Err(down());
        }
        self.operations += 1;
        self.down = self.dies_at == Some(self.operations);
        Ok(self.down)
    }

    /// An operation that either happens or does not.
    fn operate_whole(&mut self) -> io::Result<()> {
        match self.operate()? {
            true => Err(down()),
            false => Ok(()),
        }
    }

    fn used_bytes(&self) -> u64 {
        let named: BTreeSet<&u64> = self.names.values().collect();
        named.iter().map(|inode| self.inodes[inode].live.len() as u64).sum()
    }

    fn point(&mut self, path: &Path, inode: Option<u64>) {
        let before = match inode {
            Some(inode) => self.names.insert(path.to_owned(), inode),
            None => self.names.remove(path),
        };
        self.unsynced_names.entry(path.to_owned()).or_default().push(before);
    }

    fn create(&mut self, path: &Path) -> u64 {
        let inode = self.next_inode;
        self.next_inode += 1;
        self.inodes.insert(inode, Inode::default());
        self.point(path, Some(inode));
        inode
    }

    fn reboot(&mut self) {
        self.boot += 1;
        self.locks.clear();
        self.down = false;
        self.dies_at = None;
        let named: BTreeSet<u64> = self.names.values().copied().collect();
        let older: BTreeSet<u64> =
            self.unsynced_names.values().flatten().flatten().copied().collect();
        self.inodes.retain(|inode, _| named.contains(inode) || older.contains(inode));
    }

    fn forget(&mut self) {
        for (path, mut fates) in std::mem::take(&mut self.unsynced_names) {
            fates.push(self.names.get(&path).copied());
            let fate = self.below(fates.len());
            match fates[fate] {
                Some(inode) => self.names.insert(path, inode),
                None => self.names.remove(&path),
            };
        }
        // All lost, all kept, or each on its own.
        let mood = self.below(4);
        let inodes: Vec<u64> = self.inodes.keys().copied().collect();
        for number in inodes {
            let inode = self.inodes[&number].clone();
            let mut survived = inode.durable;
            for change in inode.unsynced {
                self.half_apply(&mut survived, change, mood);
            }
            let inode = Inode { live: survived.clone(), durable: survived, unsynced: Vec::new() };
            self.inodes.insert(number, inode);
        }
    }

    fn half_apply(&mut self, bytes: &mut Vec<u8>, change: Change, mood: usize) {
        match change {
            Change::Length(length) => {
                if self.survives(mood) {
                    bytes.resize(length, 0);
                }
            }
            Change::Write { offset, bytes: written } => {
                let mut at = 0;
                while at < written.len() {
                    let sector_end = (offset + at + 1).next_multiple_of(SECTOR_BYTES) - offset;
                    let sector = &written[at..sector_end.min(written.len())];
                    if self.survives(mood) {
                        let torn = mood > 1 && self.below(8) == 0;
                        let length = if torn { self.below(sector.len()) } else { sector.len() };
                        overwrite(bytes, offset + at, &sector[..length]);
                    }
                    at += sector.len();
                }
            }
        }
    }

    fn survives(&mut self, mood: usize) -> bool {
        match mood {
            0 => false,
            1 => true,
            _ => self.below(2) == 0,
        }
    }
}

fn overwrite(bytes: &mut Vec<u8>, offset: usize, written: &[u8]) {
    let end = offset + written.len();
    if bytes.len() < end {
        bytes.resize(end, 0);
    }
    bytes[offset..end].copy_from_slice(written);
}

fn down() -> io::Error {
    io::Error::other("the simulated machine is down")
}

impl FileSystem for SimFiles {
    fn open(&self, path: &Path, create: bool) -> io::Result<Box<dyn File>> {
        let mut world = self.lock_world();
        world.operate_whole()?;
        let inode = match world.names.get(path) {
            Some(inode) => *inode,
            None if create => world.create(path),
            None => return Err(ErrorKind::NotFound.into()),
        };
        Ok(Box::new(SimFile { world: self.world.clone(), inode, boot: world.boot, lock: None }))
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        let mut world = self.lock_world();
        world.operate_whole()?;
        world.directories.insert(path.to_owned());
        Ok(())
    }

    fn list(&self, path: &Path) -> io::Result<Vec<PathBuf>> {
        let mut world = self.lock_world();
        world.operate_whole()?;
        if !world.directories.contains(path) {
            return Err(ErrorKind::NotFound.into());
        }
        let children = world.names.keys().filter(|name| name.parent() == Some(path));
        Ok(children.filter_map(|name| name.file_name()).map(PathBuf::from).collect())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut world = self.lock_world();
        world.operate_whole()?;
        let inode = *world.names.get(from).ok_or(ErrorKind::NotFound)?;
        world.point(from, None);
        world.point(to, Some(inode));
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut world = self.lock_world();
        world.operate_whole()?;
        if !world.names.contains_key(path) {
            return Err(ErrorKind::NotFound.into());
        }
        world.point(path, None);
        Ok(())
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let mut world = self.lock_world();
        world.operate_whole()?;
        world.unsynced_names.retain(|name, _| name.parent() != Some(path));
        Ok(())
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn File>> {
        let file = self.open(path, true)?;
        let mut world = self.lock_world();
        if !world.locks.insert(path.to_owned()) {
            return Err(ErrorKind::WouldBlock.into());
        }
        drop(file);
        let (inode, boot) = (world.names[path], world.boot);
        let lock = Some(path.to_owned());
        Ok(Box::new(SimFile { world: self.world.clone(), inode, boot, lock }))
    }
}

struct SimFile {
    world: Arc<Mutex<World>>,
    inode: u64,
    boot: u64,
    lock: Option<PathBuf>,
}

impl SimFile {
    fn world(&self) -> io::Result<MutexGuard<'_, World>> {
        let world = self.world.lock().unwrap_or_else(PoisonError::into_inner);
        match world.boot == self.boot {
            true => Ok(world),
            false => Err(down()),
        }
    }
}

impl World {
    fn inode(&mut self, number: u64) -> &mut Inode {
        self.inodes.get_mut(&number).expect("a handle keeps its inode")
    }
}

impl File for SimFile {
    fn len(&self) -> io::Result<u64> {
        let mut world = self.world()?;
        world.operate_whole()?;
        Ok(world.inode(self.inode).live.len() as u64)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut world = self.world()?;
        let dies = world.operate()?;
        let inode = world.inode(self.inode);
        inode.live.resize(len as usize, 0);
        inode.unsynced.push(Change::Length(len as usize));
        if dies { Err(down()) } else { Ok(()) }
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let mut world = self.world()?;
        world.operate_whole()?;
        let live = &world.inode(self.inode).live;
        let end = offset as usize + buffer.len();
        buffer.copy_from_slice(live.get(offset as usize..end).ok_or(ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    /// On a full disk, writes the part that fits.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut world = self.world()?;
        let dies = world.operate()?;
        let (used, capacity) = (world.used_bytes(), world.capacity_bytes);
        let inode = world.inode(self.inode);
        let offset = offset as usize;
        let grows = (offset + bytes.len()).saturating_sub(inode.live.len());
        let free = capacity.map_or(usize::MAX, |all| all.saturating_sub(used) as usize);
        let fits = bytes.len() - grows.saturating_sub(free).min(bytes.len());
        let written = bytes[..fits].to_vec();
        overwrite(&mut inode.live, offset, &written);
        inode.unsynced.push(Change::Write { offset, bytes: written });
        match (dies, fits < bytes.len()) {
            (true, _) => Err(down()),
            (false, true) => Err(ErrorKind::StorageFull.into()),
            (false, false) => Ok(()),
        }
    }

    fn sync(&self) -> io::Result<()> {
        let mut world = self.world()?;
        world.operate_whole()?;
        let inode = world.inode(self.inode);
        inode.durable = inode.live.clone();
        inode.unsynced.clear();
        Ok(())
    }
}

impl Drop for SimFile {
    fn drop(&mut self) {
        if let Some(path) = self.lock.take()
            && let Ok(mut world) = self.world()
        {
            world.locks.remove(&path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What 200 power cuts leave of a file, as text.
    fn fates(prepare: impl Fn(&SimFiles)) -> BTreeSet<Option<String>> {
        (0..200)
            .map(|seed| {
                let files = SimFiles::new(seed);
                files.create_dir_all(Path::new("/d")).unwrap();
                prepare(&files);
                files.lose_power();
                let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
                files.content(Path::new("/d/new")).map(text)
            })
            .collect()
    }

    #[test]
    fn what_was_synced_stays_and_all_else_may_go() {
        let kept = fates(|files| {
            let file = files.open(Path::new("/d/new"), true).unwrap();
            file.write_durable(0, b"ab").unwrap();
            files.sync_dir(Path::new("/d")).unwrap();
        });
        assert_eq!(kept, [Some("ab".to_owned())].into());
        let unsynced = fates(|files| {
            let file = files.open(Path::new("/d/new"), true).unwrap();
            file.write_durable(0, b"ab").unwrap();
            file.write_at(0, b"xy").unwrap();
        });
        let expected = [None, Some("ab".into()), Some("xb".into()), Some("xy".into())];
        assert_eq!(unsynced, expected.into());
    }

    #[test]
    fn a_rename_without_a_synced_directory_may_be_lost() {
        let fates = fates(|files| {
            for (name, text) in [("/d/new", b"old"), ("/d/tmp", b"new")] {
                files.open(Path::new(name), true).unwrap().write_durable(0, text).unwrap();
            }
            files.sync_dir(Path::new("/d")).unwrap();
            files.rename(Path::new("/d/tmp"), Path::new("/d/new")).unwrap();
        });
        assert_eq!(fates, [Some("old".to_owned()), Some("new".to_owned())].into());
    }

    #[test]
    fn a_lock_excludes_until_it_is_dropped_or_its_process_dies() {
        let files = SimFiles::new(0);
        let path = Path::new("/d/lock");
        let held = files.lock(path).unwrap();
        assert_eq!(files.lock(path).err().map(|e| e.kind()), Some(ErrorKind::WouldBlock));
        drop(held);
        let held = files.lock(path).unwrap();
        files.kill_process();
        let next = files.lock(path).unwrap();
        drop(held);
        assert!(files.lock(path).is_err(), "a dead process's handle releases nothing");
        drop(next);
        assert!(files.lock(path).is_ok());
    }
}
