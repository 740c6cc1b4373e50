//! The shim's long life: streams to the log and to attachments, then the exit code.

use std::{
    fs, io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::{UnixListener, UnixStream},
    },
    path::Path,
    time::Duration,
};

use linux::{process, pty};
use rustix::{
    event::{PollFd, PollFlags, poll},
    fs::{OFlags, fcntl_getfl, fcntl_setfl},
};

use super::{
    container::{Streams, write_whole},
    log::{Log, Stream},
};
use crate::launch::{Ended, Launch, PidNamespace, Started, file, frame};

/// While an attachment is this far behind, the container's output waits for it.
const ATTACHMENT_BUFFER_BYTES: usize = 1 << 20;
/// How long attachments get to take the last output after the container's end.
const FAREWELL: Duration = Duration::from_secs(1);

/// The socket on which the agent finds the shim again.
pub(super) fn listen(directory: &Path) -> io::Result<UnixListener> {
    let path = directory.join(file::SOCKET);
    let _ = fs::remove_file(&path);
    // Socket addresses hold some hundred bytes; the directory's descriptor keeps them short.
    let handle = fs::File::open(directory)?;
    let number = std::os::fd::AsRawFd::as_raw_fd(&handle);
    let listener = UnixListener::bind(format!("/proc/self/fd/{number}/{}", file::SOCKET))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Serves a container until it has ended and its results are on record.
pub(super) fn run(
    launch: &Launch,
    started: &Started,
    streams: Streams,
    log: Log,
    listener: UnixListener,
) -> io::Result<()> {
    let mut monitor = Monitor {
        log,
        stdin: streams.stdin,
        stdin_buffer: Vec::new(),
        close_stdin: false,
        outputs: [streams.stdout, streams.stderr],
        terminal: launch.process.terminal,
        stdin_once: launch.stdin_once,
        clients: Vec::new(),
        listener,
    };
    for fd in monitor.stdin.iter().chain(monitor.outputs.iter().flatten()) {
        set_nonblocking(fd)?;
    }
    let pidfd = process::pidfd_open(started.pid)?;
    while !monitor.turn(&pidfd)? {}
    let exit = process::wait_pid(started.pid, true)?.map_or(137, |(_, exit)| exit.code());
    if !matches!(launch.namespaces.pid, PidNamespace::Own)
        && let Some(kill) = &launch.cgroup.kill_file
    {
        // Without a PID namespace of its own, nothing else ends the processes it left.
        let _ = fs::write(kill, "1");
    }
    monitor.drain();
    let at = super::log::now_ns();
    let out_of_memory = exit != 0 && out_of_memory(launch);
    let ended = Ended { code: exit, out_of_memory, at, reason: None, message: String::new() };
    write_whole(&launch.directory, file::ENDED, &ended, true)?;
    monitor.say_farewell(exit);
    Ok(())
}

fn out_of_memory(launch: &Launch) -> bool {
    let Some(path) = &launch.cgroup.oom_file else { return false };
    let Ok(text) = fs::read_to_string(path) else { return false };
    let kills = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
    kills.is_some_and(|kills| kills.trim() != "0")
}

struct Monitor {
    log: Log,
    stdin: Option<OwnedFd>,
    stdin_buffer: Vec<u8>,
    /// Close standard input as soon as its buffer is empty.
    close_stdin: bool,
    /// Standard output and error; a terminal is the first alone.
    outputs: [Option<OwnedFd>; 2],
    terminal: bool,
    stdin_once: bool,
    clients: Vec<Client>,
    listener: UnixListener,
}

/// A connection of the agent.
struct Client {
    socket: UnixStream,
    incoming: Vec<u8>,
    outgoing: Vec<u8>,
    attached: bool,
    gave_stdin: bool,
    gone: bool,
}

const STREAMS: [Stream; 2] = [Stream::Stdout, Stream::Stderr];

impl Monitor {
    /// Waits for anything to happen and handles it; true when the container has ended.
    fn turn(&mut self, pidfd: &OwnedFd) -> io::Result<bool> {
        let behind =
            self.clients.iter().any(|client| client.outgoing.len() > ATTACHMENT_BUFFER_BYTES);
        let when = |on: bool, flags: PollFlags| if on { flags } else { PollFlags::empty() };
        let mut fds =
            vec![PollFd::new(pidfd, PollFlags::IN), PollFd::new(&self.listener, PollFlags::IN)];
        let output_at: Vec<usize> =
            (0..2).filter(|index| !behind && self.outputs[*index].is_some()).collect();
        for index in &output_at {
            if let Some(output) = &self.outputs[*index] {
                fds.push(PollFd::new(output, PollFlags::IN));
            }
        }
        let stdin_at = fds.len();
        if let Some(stdin) = self.stdin.as_ref().filter(|_| !self.stdin_buffer.is_empty()) {
            fds.push(PollFd::new(stdin, PollFlags::OUT));
        }
        let clients_at = fds.len();
        for client in &self.clients {
            let interest = PollFlags::IN | when(!client.outgoing.is_empty(), PollFlags::OUT);
            fds.push(PollFd::new(&client.socket, interest));
        }
        match poll(&mut fds, None) {
            Err(rustix::io::Errno::INTR) => return Ok(false),
            other => other?,
        };
        let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        drop(fds);
        for (index, ready) in output_at.into_iter().zip(&ready[2..]) {
            if *ready {
                self.read_output(index);
            }
        }
        if clients_at > stdin_at && ready[stdin_at] {
            self.write_stdin();
        }
        for (index, _) in ready[clients_at..].iter().enumerate().filter(|(_, ready)| **ready) {
            self.serve_client(index);
        }
        if ready[1] {
            self.accept();
        }
        self.drop_clients();
        Ok(ready[0])
    }

    /// Reads once; false when the stream has nothing now or has ended.
    fn read_output(&mut self, index: usize) -> bool {
        let Some(output) = &self.outputs[index] else { return false };
        let mut buffer = [0u8; 32 << 10];
        match rustix::io::read(output, &mut buffer) {
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => false,
            // A terminal whose last user is gone answers EIO.
            Ok(0) | Err(_) => {
                self.outputs[index] = None;
                self.log.finish(STREAMS[index]);
                false
            }
            Ok(length) => {
                let bytes = &buffer[..length];
                self.log.write(STREAMS[index], bytes);
                let kind = if index == 0 { frame::STDOUT } else { frame::STDERR };
                for client in self.clients.iter_mut().filter(|client| client.attached) {
                    client.outgoing.extend(frame::encode(kind, bytes));
                    client.flush();
                }
                true
            }
        }
    }

    fn drain(&mut self) {
        for index in 0..2 {
            while self.read_output(index) {}
            if self.outputs[index].take().is_some() {
                self.log.finish(STREAMS[index]);
            }
        }
    }

    fn accept(&mut self) {
        while let Ok((socket, _)) = self.listener.accept() {
            if socket.set_nonblocking(true).is_ok() {
                self.clients.push(Client {
                    socket,
                    incoming: Vec::new(),
                    outgoing: Vec::new(),
                    attached: false,
                    gave_stdin: false,
                    gone: false,
                });
            }
        }
    }

    fn serve_client(&mut self, index: usize) {
        let client = &mut self.clients[index];
        client.flush();
        let mut buffer = [0u8; 32 << 10];
        match rustix::io::read(&client.socket, &mut buffer) {
            Ok(0) => client.gone = true,
            Ok(length) => client.incoming.extend(&buffer[..length]),
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return,
            Err(_) => client.gone = true,
        }
        let incoming = std::mem::take(&mut client.incoming);
        let mut rest = &incoming[..];
        while let Some((kind, payload, length)) = frame::decode(rest) {
            self.handle(index, kind, payload);
            rest = &rest[length..];
        }
        self.clients[index].incoming = rest.to_vec();
    }

    fn handle(&mut self, index: usize, kind: u8, payload: &[u8]) {
        match kind {
            frame::ATTACH => self.clients[index].attached = true,
            frame::STDIN => {
                self.clients[index].gave_stdin = true;
                if self.stdin.is_some() {
                    self.stdin_buffer.extend(payload);
                    self.write_stdin();
                }
            }
            frame::CLOSE_STDIN if self.stdin_once && !self.terminal => {
                self.close_stdin = true;
                self.write_stdin();
            }
            frame::RESIZE if payload.len() == 4 => {
                let number = |at: usize| u16::from_be_bytes([payload[at], payload[at + 1]]);
                if let Some(terminal) = self.outputs[0].as_ref().filter(|_| self.terminal) {
                    let _ = pty::resize(terminal, number(0), number(2));
                }
            }
            frame::REOPEN_LOG => {
                let answer = match self.log.reopen() {
                    Ok(()) => frame::encode(frame::DONE, &[]),
                    Err(error) => frame::encode(frame::FAILED, error.to_string().as_bytes()),
                };
                self.clients[index].outgoing.extend(answer);
                self.clients[index].flush();
            }
            _ => {}
        }
    }

    fn write_stdin(&mut self) {
        let Some(stdin) = &self.stdin else { return };
        while !self.stdin_buffer.is_empty() {
            match rustix::io::write(stdin, &self.stdin_buffer) {
                Ok(length) => drop(self.stdin_buffer.drain(..length)),
                Err(rustix::io::Errno::AGAIN) => return,
                Err(_) => {
                    // The program closed its input.
                    self.stdin_buffer.clear();
                    self.stdin = None;
                    return;
                }
            }
        }
        if self.close_stdin {
            self.stdin = None;
        }
    }

    fn drop_clients(&mut self) {
        let left = self.clients.iter().any(|client| client.gone && client.gave_stdin);
        self.clients.retain(|client| !client.gone);
        if left && self.stdin_once && !self.terminal {
            self.close_stdin = true;
            self.write_stdin();
        }
    }

    fn say_farewell(&mut self, code: i32) {
        for client in &mut self.clients {
            client.outgoing.extend(frame::encode(frame::EXIT, &code.to_be_bytes()));
            // The agent reads these at once; a stuck one must not hold the container's end up.
            let _ = client.socket.set_nonblocking(false);
            let _ = client.socket.set_write_timeout(Some(FAREWELL));
            let _ = io::Write::write_all(&mut client.socket, &client.outgoing);
        }
    }
}

impl Client {
    fn flush(&mut self) {
        while !self.outgoing.is_empty() && !self.gone {
            let sent = rustix::net::send(
                self.socket.as_fd(),
                &self.outgoing,
                rustix::net::SendFlags::NOSIGNAL,
            );
            match sent {
                Ok(length) => drop(self.outgoing.drain(..length)),
                Err(rustix::io::Errno::AGAIN) => return,
                Err(_) => self.gone = true,
            }
        }
    }
}

fn set_nonblocking(fd: &OwnedFd) -> io::Result<()> {
    let flags = fcntl_getfl(fd)?;
    Ok(fcntl_setfl(fd, flags | OFlags::NONBLOCK)?)
}
