//! The agent's side of the nursery and of its shims.

use std::{
    ffi::OsString,
    fs, io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    process::{Child, Command, Stdio},
    sync::{Mutex, PoisonError},
};

use linux::{cgroup::Cgroup, exe::ProtectedExe, fdsocket};
use serde::{Serialize, de::DeserializeOwned};
use tokio::io::unix::AsyncFd;

use crate::launch::Reply;

/// The process that forks shims; started anew when it has been killed.
pub(crate) struct Nursery {
    exe: ProtectedExe,
    /// `argv` of the shim command, the name first.
    command: Vec<OsString>,
    cgroup: Option<Cgroup>,
    running: Mutex<Option<Running>>,
}

struct Running {
    socket: OwnedFd,
    child: Child,
}

impl Nursery {
    pub(crate) fn start(command: Vec<OsString>, cgroup: Option<Cgroup>) -> io::Result<Self> {
        let exe = ProtectedExe::open()?;
        let nursery = Self { exe, command, cgroup, running: Mutex::new(None) };
        *nursery.lock() = Some(nursery.spawn()?);
        Ok(nursery)
    }

    fn spawn(&self) -> io::Result<Running> {
        use std::os::unix::process::CommandExt;
        let (socket, theirs) = fdsocket::pair()?;
        let mut command = Command::new(self.exe.path());
        if let Some((name, arguments)) = self.command.split_first() {
            command.arg0(name).args(arguments);
        }
        let child = command.stdin(theirs).stdout(Stdio::null()).env_clear().spawn()?;
        if let Some(cgroup) = &self.cgroup {
            // Shims are born here, outside the agent's group, so that stopping it spares them.
            cgroup.create()?;
            cgroup.add(child.id() as i32)?;
        }
        Ok(Running { socket, child })
    }

    /// Forks a shim and answers the line to it, once it lives.
    pub(crate) async fn fork(&self) -> io::Result<Line> {
        match self.ask().await {
            Ok(line) => Ok(line),
            // Someone may have killed the nursery: a new one gets a second try.
            Err(_) => {
                if let Some(mut dead) = self.lock().take() {
                    let _ = dead.child.kill();
                    let _ = dead.child.wait();
                }
                self.ask().await
            }
        }
    }

    async fn ask(&self) -> io::Result<Line> {
        let (ours, theirs) = fdsocket::pair()?;
        {
            let mut running = self.lock();
            let alive = match running.take() {
                Some(alive) => alive,
                None => self.spawn()?,
            };
            let alive = running.insert(alive);
            fdsocket::send(&alive.socket, b"fork", &[theirs.as_fd()])?;
        }
        drop(theirs);
        let line = Line::new(ours)?;
        match line.receive::<Reply>().await? {
            Some((Reply::Born, _)) => Ok(line),
            _ => Err(io::Error::other("the nursery ended before it forked a shim")),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Nursery {
    fn drop(&mut self) {
        if let Some(Running { socket, mut child }) = self.lock().take() {
            // The closed socket ends it.
            drop(socket);
            let _ = child.wait();
        }
    }
}

/// A line to one shim: messages with descriptors, in order.
pub(crate) struct Line(AsyncFd<OwnedFd>);

impl Line {
    fn new(socket: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&socket, true)?;
        Ok(Self(linux::ready::register(socket)?))
    }

    /// Small messages always find room.
    pub(crate) fn send<T: Serialize>(&self, message: &T, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        fdsocket::send(self.0.get_ref(), &serde_json::to_vec(message)?, fds)
    }

    /// The next message; `None` when the shim is gone.
    pub(crate) async fn receive<T: DeserializeOwned>(
        &self,
    ) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
        let mut buffer = vec![0; 64 << 10];
        loop {
            let mut guard = self.0.readable().await?;
            match guard.try_io(|socket| fdsocket::receive(socket.get_ref(), &mut buffer)) {
                Ok(Ok((0, _))) => return Ok(None),
                Ok(Ok((length, fds))) => {
                    return Ok(Some((serde_json::from_slice(&buffer[..length])?, fds)));
                }
                Ok(Err(error)) => return Err(error),
                Err(_not_ready) => {}
            }
        }
    }
}

/// `value` in a file that lives in memory, to hand over by descriptor.
pub(crate) fn memory_file<T: Serialize>(value: &T) -> io::Result<OwnedFd> {
    use std::io::Write;
    let flags = rustix::fs::MemfdFlags::CLOEXEC;
    let mut file = fs::File::from(rustix::fs::memfd_create("launch", flags)?);
    file.write_all(&serde_json::to_vec(value)?)?;
    Ok(file.into())
}
