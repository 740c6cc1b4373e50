//! The shim: the small, single-threaded process that is a container's parent.
//!
//! ```text
//! agent ──spawn──▶ nursery ──fork──▶ shim ──clone──▶ usher ──clone (sibling)──▶ container
//!                                     │ ◀───────────── parent of ──────────────────┘
//! ```
//!
//! The nursery is our program executed once per agent: it does nothing but fork, so that a shim
//! costs a fork instead of an execution and shares nearly all of its memory with its siblings. A
//! shim leads its own session, keeps the container's streams, log and exit code, and outlives the
//! agent. The usher joins the container's control groups (slow on cgroup version 1, so it may be
//! asked to do so ahead of time) and namespaces, and its sibling clone becomes the container.
//!
//! Invariants: no process here ever has a second thread; nothing here decides, it carries a
//! [`crate::launch`] plan out; whatever fails before the container's program runs is told to the
//! agent in one sentence.

mod container;
mod exec;
mod log;
mod monitor;
mod prepare;
mod user;

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use linux::{fdsocket, process};
use serde::{Serialize, de::DeserializeOwned};

use crate::launch::{Reply, Request};

/// The longest message between agent, shim and usher; bulk data travels in memory files.
const MESSAGE_BYTES: usize = 64 << 10;

/// Entry of the hidden `shim` subcommand: the nursery. Standard input is the agent's socket; each
/// message on it brings the control socket of one shim to fork. Returns the exit code.
///
/// Must be called before the process starts any thread.
pub fn main() -> i32 {
    let _ = process::set_name("gantry-nursery");
    // SIGCHLD ignored: the kernel reaps the shims, whose ends the agent learns by pidfd.
    process::ignore_signal(process::signal::CHILD);
    let _ = process::hide_from_others();
    // A new session: neither a terminal's nor the agent's signals reach us.
    let _ = rustix::process::setsid();
    let socket = io::stdin();
    let mut buffer = [0; 64];
    loop {
        match fdsocket::receive(socket.as_fd(), &mut buffer) {
            Ok((0, _)) => return 0,
            Ok((_, mut fds)) if fds.len() == 1 => fork_shim(fds.remove(0)),
            Ok(_) => {}
            Err(error) => {
                eprintln!("gantry shim: the agent's socket failed: {error}");
                return 1;
            }
        }
    }
}

fn fork_shim(control: OwnedFd) {
    match process::clone_into(process::CloneOptions::default()) {
        Ok(process::Forked::Parent { .. }) => {}
        Ok(process::Forked::Child) => {
            let code = serve(control);
            process::exit_now(code);
        }
        Err(error) => {
            let text = format!("a shim cannot be forked: {error}");
            let _ = send(&control, &Reply::Failed(text), &[]);
        }
    }
}

/// The life of one shim.
fn serve(control: OwnedFd) -> i32 {
    process::reset_signals();
    process::ignore_signal(process::signal::PIPE);
    let _ = rustix::process::setsid();
    let _ = process::set_name("gantry-shim");
    // Nothing of the agent's may stay open here: neither the nursery's socket, whose close tells
    // the nursery's end, nor the agent's own error output.
    if let Ok(null) = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null") {
        for number in 0..3 {
            let _ = linux::pty::set_standard(&null, number);
        }
    }
    if send(&control, &Reply::Born, &[]).is_err() {
        return 0;
    }
    let result = match receive::<Request>(&control) {
        Ok(Some((Request::Join(join), _))) => container::run(&control, join),
        Ok(Some((Request::Exec, fds))) => exec::run(&control, fds),
        Ok(Some((Request::Pause, _))) => container::pause(&control),
        Ok(Some((Request::Launch, _))) => Err(io::Error::other("a launch must follow a join")),
        // The agent went away before it said what to do.
        Ok(None) => return 0,
        Err(error) => Err(error),
    };
    match result {
        Ok(()) => 0,
        Err(error) => {
            let _ = send(&control, &Reply::Failed(error.to_string()), &[]);
            1
        }
    }
}

fn send<T: Serialize>(socket: &OwnedFd, message: &T, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    fdsocket::send(socket, &serde_json::to_vec(message)?, fds)
}

/// The next message; `None` when the peer is gone.
fn receive<T: DeserializeOwned>(socket: &OwnedFd) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    let mut buffer = vec![0; MESSAGE_BYTES];
    match fdsocket::receive(socket, &mut buffer)? {
        (0, _) => Ok(None),
        (length, fds) => Ok(Some((serde_json::from_slice(&buffer[..length])?, fds))),
    }
}

/// Reads a value from a memory file that the peer wrote.
fn read_memory<T: DeserializeOwned>(file: OwnedFd) -> io::Result<T> {
    use std::os::unix::fs::FileExt;
    let file = std::fs::File::from(file);
    let mut bytes = vec![0; file.metadata()?.len() as usize];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(serde_json::from_slice(&bytes)?)
}

/// Adds to an error what was being done.
trait During<T> {
    fn during(self, what: impl FnOnce() -> String) -> io::Result<T>;
}

impl<T, E: Into<io::Error>> During<T> for Result<T, E> {
    fn during(self, what: impl FnOnce() -> String) -> io::Result<T> {
        self.map_err(|error| {
            let error: io::Error = error.into();
            io::Error::new(error.kind(), format!("{}: {error}", what()))
        })
    }
}
