//! Namespaces without a process: network, IPC and UTS namespaces pinned by a bind mount.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use crate::{
    mount,
    process::{self, ns},
};

/// A namespace to create and where to pin it.
#[derive(Clone, Debug)]
pub struct Pin {
    /// One of [`ns::NET`], [`ns::IPC`], [`ns::UTS`].
    pub kind: u64,
    pub path: PathBuf,
}

/// Creates the namespaces of `pins`, runs `prepare` inside them and pins each. When anything
/// fails, nothing stays.
pub fn create<T, F>(pins: &[Pin], prepare: F) -> io::Result<T>
where
    F: FnOnce() -> io::Result<T> + Send,
    T: Send,
{
    let result = in_thread(|| {
        process::unshare(pins.iter().fold(0, |all, pin| all | pin.kind))?;
        let value = prepare()?;
        for pin in pins {
            fs::File::create(&pin.path)?;
            mount::bind(Path::new(own_file(pin.kind)), &pin.path)?;
        }
        Ok(value)
    });
    if result.is_err() {
        pins.iter().for_each(|pin| drop(release(&pin.path)));
    }
    result
}

fn own_file(kind: u64) -> &'static str {
    match kind {
        ns::NET => "/proc/thread-self/ns/net",
        ns::IPC => "/proc/thread-self/ns/ipc",
        _ => "/proc/thread-self/ns/uts",
    }
}

/// Unpins a namespace; the kernel ends it when its last process is gone. Absence is no error.
pub fn release(path: &Path) -> io::Result<()> {
    mount::detach(path)?;
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// A thread that changed its namespaces serves nobody else, so each gets its own and ends.
fn in_thread<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("netns".into()).spawn_scoped(scope, work)?;
        thread.join().unwrap_or_else(|_| Err(io::Error::other("the namespace thread panicked")))
    })
}
