//! Commands in running containers, attachments and port-forwards: streams for the kubelet.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    path::Path,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use cri::{
    streaming::{Duplex, Session, Streaming, TerminalSize},
    v1,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf, unix::AsyncFd},
    net::{
        UnixStream,
        unix::{OwnedWriteHalf, pipe},
    },
    sync::{mpsc, oneshot},
};
use tonic::Status;

use crate::{
    Runtime,
    container::{self, Container},
    error::{During, Error, Result},
    launch::{ExecLaunch, Process, Reply, Request, file, frame},
    nursery::{Line, memory_file},
    plan,
};

/// How much of a synchronous exec's output is kept, in bytes per stream.
const MAX_OUTPUT_BYTES: u64 = 16 << 20;

/// A started command.
struct Command {
    line: Line,
    pid: i32,
    terminal: Option<OwnedFd>,
}

/// Runs a command and waits for it; after `timeout` (zero is none) it is killed.
pub(crate) async fn exec_sync(
    runtime: &Runtime,
    request: v1::ExecSyncRequest,
) -> Result<v1::ExecSyncResponse> {
    let container = runtime.container(&request.container_id)?;
    let what = || "running a command".to_owned();
    let (stdout, stdout_of_command) = pipe_pair().during(what)?;
    let (stderr, stderr_of_command) = pipe_pair().during(what)?;
    let null: OwnedFd = std::fs::File::open("/dev/null").during(what)?.into();
    let fds = [null.as_fd(), stdout_of_command.as_fd(), stderr_of_command.as_fd()];
    let command = start(runtime, &container, request.cmd, false, &fds).await?;
    drop((stdout_of_command, stderr_of_command, null));
    let run = async {
        let (stdout, stderr, exit) =
            tokio::join!(collect(stdout), collect(stderr), wait(&command.line));
        (stdout, stderr, exit)
    };
    let limit = u64::try_from(request.timeout).unwrap_or(0);
    let finished = match limit {
        0 => Some(run.await),
        seconds => runtime.0.env.timeout(Duration::from_secs(seconds), run).await,
    };
    let Some((stdout, stderr, exit)) = finished else {
        kill(&command);
        let text = format!("the command did not end within {limit} s and was killed");
        return Err(Error::Timeout(text));
    };
    Ok(v1::ExecSyncResponse { stdout, stderr, exit_code: exit? })
}

fn kill(command: &Command) {
    // The shim is its parent and waits for it, so the pid is still the command's.
    let _ = linux::process::kill(command.pid, linux::process::signal::KILL);
}

fn pipe_pair() -> io::Result<(pipe::Receiver, OwnedFd)> {
    let (ours, theirs) = io::pipe()?;
    Ok((pipe::Receiver::from_owned_fd(nonblocking(ours.into())?)?, theirs.into()))
}

fn nonblocking(fd: OwnedFd) -> io::Result<OwnedFd> {
    rustix::io::ioctl_fionbio(&fd, true)?;
    Ok(fd)
}

async fn collect(stream: pipe::Receiver) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut limited = stream.take(MAX_OUTPUT_BYTES);
    let _ = limited.read_to_end(&mut bytes).await;
    // What is beyond the limit is read and forgotten, so that the command does not block.
    let _ = tokio::io::copy(limited.get_mut(), &mut tokio::io::sink()).await;
    bytes
}

async fn wait(line: &Line) -> Result<i32> {
    match line.receive::<Reply>().await.during(|| "waiting for a command".to_owned())? {
        Some((Reply::Exited(code), _)) => Ok(code),
        Some((Reply::Failed(text), _)) => Err(Error::Start(text)),
        // Its shim was killed, and with it our knowledge.
        _ => Ok(137),
    }
}

/// Starts a command with the container's own confinement.
async fn start(
    runtime: &Runtime,
    container: &Arc<Container>,
    args: Vec<String>,
    terminal: bool,
    fds: &[std::os::fd::BorrowedFd<'_>],
) -> Result<Command> {
    if args.is_empty() {
        return Err(Error::Invalid("the command is empty".to_owned()));
    }
    let started = container.running()?;
    let sandbox = runtime.sandbox(&container.sandbox_id)?;
    let process = plan::exec_process(
        container::plan_launch(runtime, &sandbox, container)?.process,
        args,
        terminal,
    );
    let process = Process { oom_score_adj: None, ..process };
    let launch = ExecLaunch {
        process,
        target_pid: started.pid,
        target_start: started.start,
        cgroup: container::join(&container.cgroup(runtime)),
    };
    let what = || "running a command".to_owned();
    let plan = memory_file(&launch).during(what)?;
    let line = runtime.0.nursery.fork().await.during(what)?;
    let all: Vec<_> = [plan.as_fd()].into_iter().chain(fds.iter().copied()).collect();
    line.send(&Request::Exec, &all).during(what)?;
    match line.receive::<Reply>().await.during(what)? {
        Some((Reply::Started(started), mut fds)) => {
            Ok(Command { line, pid: started.pid, terminal: fds.pop() })
        }
        Some((Reply::Failed(text), _)) => Err(Error::Start(text)),
        _ => Err(Error::Start("the command's shim ended unexpectedly".to_owned())),
    }
}

#[tonic::async_trait]
impl Streaming for Runtime {
    async fn exec(&self, request: v1::ExecRequest) -> Result<Session, Status> {
        let container = self.container(&request.container_id)?;
        let session = if request.tty {
            exec_terminal(self, &container, request).await
        } else {
            exec_pipes(self, &container, request).await
        };
        Ok(session?)
    }

    async fn attach(&self, request: v1::AttachRequest) -> Result<Session, Status> {
        let container = self.container(&request.container_id)?;
        container.running()?;
        Ok(attach(self, &container, request).await?)
    }

    async fn port_forward(&self, sandbox_id: &str, port: u16) -> Result<Box<dyn Duplex>, Status> {
        let sandbox = self.sandbox(sandbox_id)?;
        if !sandbox.live().ready {
            return Err(Error::Precondition("the pod sandbox is not ready".to_owned()).into());
        }
        let netns = sandbox.netns();
        let socket = self.blocking(move || connect_inside(netns.as_deref(), port)).await?;
        let socket =
            tokio::net::TcpStream::from_std(socket).during(|| "forwarding a port".to_owned())?;
        Ok(Box::new(socket))
    }
}

/// Connects to the loopback address of a network namespace, by IPv4 or else IPv6.
fn connect_inside(netns: Option<&Path>, port: u16) -> Result<std::net::TcpStream> {
    use std::net::{Ipv4Addr, Ipv6Addr, TcpStream};
    let connect = || {
        TcpStream::connect((Ipv4Addr::LOCALHOST, port))
            .or_else(|refused| TcpStream::connect((Ipv6Addr::LOCALHOST, port)).map_err(|_| refused))
    };
    let what = || format!("connecting to port {port} of the pod");
    let socket = match netns {
        None => connect().during(what)?,
        Some(path) => {
            let namespace = linux::netns::NetNs::open(path).during(what)?;
            namespace.run(connect).during(what)?.during(what)?
        }
    };
    socket.set_nonblocking(true).during(what)?;
    Ok(socket)
}

async fn exec_pipes(
    runtime: &Runtime,
    container: &Arc<Container>,
    request: v1::ExecRequest,
) -> Result<Session> {
    let what = || "running a command".to_owned();
    let null = || -> Result<OwnedFd> {
        let null = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null");
        Ok(null.during(what)?.into())
    };
    let (stdin_of_command, stdin) = if request.stdin {
        let (theirs, ours) = io::pipe().during(what)?;
        let ours = nonblocking(ours.into()).and_then(pipe::Sender::from_owned_fd).during(what)?;
        (theirs.into(), Some(Box::pin(ours) as Pin<Box<dyn AsyncWrite + Send>>))
    } else {
        (null()?, None)
    };
    let output = |wanted: bool| -> Result<(OwnedFd, Option<Pin<Box<dyn AsyncRead + Send>>>)> {
        if !wanted {
            return Ok((null()?, None));
        }
        let (ours, theirs) = pipe_pair().during(what)?;
        Ok((theirs, Some(Box::pin(ours))))
    };
    let (stdout_of_command, stdout) = output(request.stdout)?;
    let (stderr_of_command, stderr) = output(request.stderr)?;
    let fds = [stdin_of_command.as_fd(), stdout_of_command.as_fd(), stderr_of_command.as_fd()];
    let command = start(runtime, container, request.cmd, false, &fds).await?;
    let exit = Box::pin(async move { Ok(wait(&command.line).await?) });
    Ok(Session { stdin, stdout, stderr, resize: None, exit })
}

async fn exec_terminal(
    runtime: &Runtime,
    container: &Arc<Container>,
    request: v1::ExecRequest,
) -> Result<Session> {
    let what = || "running a command".to_owned();
    let mut command = start(runtime, container, request.cmd, true, &[]).await?;
    let terminal = command
        .terminal
        .take()
        .ok_or_else(|| Error::Start("the command's shim sent no terminal".to_owned()))?;
    let for_resize = terminal.try_clone().during(what)?;
    let terminal = nonblocking(terminal).and_then(linux::ready::register).during(what)?;
    let terminal = Arc::new(terminal);
    let (resize, mut sizes) = mpsc::unbounded_channel::<TerminalSize>();
    runtime.0.env.spawn("exec-resize", async move {
        while let Some(size) = sizes.recv().await {
            let _ = linux::pty::resize(&for_resize, size.columns, size.rows);
        }
    });
    let end = |wanted: bool| wanted.then(|| Terminal(terminal.clone()));
    Ok(Session {
        stdin: end(request.stdin).map(|end| Box::pin(end) as _),
        stdout: end(request.stdout).map(|end| Box::pin(end) as _),
        stderr: None,
        resize: Some(resize),
        exit: Box::pin(async move { Ok(wait(&command.line).await?) }),
    })
}

/// Our end of a terminal as a stream. A terminal has no end of input of its own, so shutting it
/// down for writing does nothing.
struct Terminal(Arc<AsyncFd<OwnedFd>>);

impl AsyncRead for Terminal {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let mut guard = std::task::ready!(self.0.poll_read_ready(cx))?;
            let space = buffer.initialize_unfilled();
            match guard.try_io(|fd| rustix::io::read(fd.get_ref(), space).map_err(Into::into)) {
                Ok(Ok(length)) => {
                    buffer.advance(length);
                    return Poll::Ready(Ok(()));
                }
                // The program and its children have closed their side.
                Ok(Err(error)) if error.raw_os_error() == Some(5) => return Poll::Ready(Ok(())),
                Ok(Err(error)) => return Poll::Ready(Err(error)),
                Err(_not_ready) => {}
            }
        }
    }
}

impl AsyncWrite for Terminal {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = std::task::ready!(self.0.poll_write_ready(cx))?;
            match guard.try_io(|fd| rustix::io::write(fd.get_ref(), bytes).map_err(Into::into)) {
                Ok(result) => return Poll::Ready(result),
                Err(_not_ready) => {}
            }
        }
    }
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// A connection to a running container's shim.
pub(crate) struct Shim(UnixStream);

pub(crate) async fn connect(container: &Container) -> Result<Shim> {
    let what = || format!("reaching the shim of the container {}", container.id);
    // Socket addresses are short; the directory's descriptor stands for its path.
    let directory = std::fs::File::open(&container.directory).during(what)?;
    let number = std::os::fd::AsRawFd::as_raw_fd(&directory);
    let path = format!("/proc/self/fd/{number}/{}", file::SOCKET);
    Ok(Shim(UnixStream::connect(path).await.during(what)?))
}

impl Shim {
    pub async fn reopen_log(&mut self) -> Result<()> {
        let what = || "reopening the container's log".to_owned();
        self.0.write_all(&frame::encode(frame::REOPEN_LOG, &[])).await.during(what)?;
        let mut buffer = Vec::new();
        loop {
            if let Some((kind, payload, _)) = frame::decode(&buffer) {
                return match kind {
                    frame::DONE => Ok(()),
                    _ => Err(Error::Start(String::from_utf8_lossy(payload).into_owned())),
                };
            }
            if self.0.read_buf(&mut buffer).await.during(what)? == 0 {
                return Err(Error::Precondition("the container has ended".to_owned()));
            }
        }
    }
}

async fn attach(
    runtime: &Runtime,
    container: &Arc<Container>,
    request: v1::AttachRequest,
) -> Result<Session> {
    let what = || "attaching to the container".to_owned();
    let Shim(socket) = connect(container).await?;
    let (mut incoming, mut outgoing) = socket.into_split();
    outgoing.write_all(&frame::encode(frame::ATTACH, &[])).await.during(what)?;
    let (mut stdout_in, stdout) = tokio::io::duplex(64 << 10);
    let (mut stderr_in, stderr) = tokio::io::duplex(64 << 10);
    let (stdin, stdin_out) = tokio::io::duplex(64 << 10);
    let (resize, sizes) = mpsc::unbounded_channel();
    let (exit_in, exit) = oneshot::channel();
    let terminal = container.config.tty;
    if request.stdin && container.config.stdin {
        runtime.0.env.spawn("attach-input", send_input(outgoing, Some(stdin_out), sizes));
    } else {
        runtime.0.env.spawn("attach-input", send_input(outgoing, None, sizes));
    }
    let (wants_stdout, wants_stderr) = (request.stdout, request.stderr);
    runtime.0.env.spawn("attach-output", async move {
        let mut exit_in: oneshot::Sender<i32> = exit_in;
        let mut buffer = Vec::new();
        loop {
            while let Some((kind, payload, length)) = frame::decode(&buffer) {
                let taken = match kind {
                    frame::STDOUT if wants_stdout => stdout_in.write_all(payload).await,
                    frame::STDERR if wants_stderr => stderr_in.write_all(payload).await,
                    frame::EXIT if payload.len() == 4 => {
                        let code = i32::from_be_bytes(payload.try_into().unwrap_or_default());
                        let _ = exit_in.send(code);
                        return;
                    }
                    _ => Ok(()),
                };
                if taken.is_err() {
                    return;
                }
                buffer.drain(..length);
            }
            // A dropped session takes its exit future along: then nobody reads any more.
            let more = tokio::select! {
                biased;
                () = exit_in.closed() => false,
                read = incoming.read_buf(&mut buffer) => matches!(read, Ok(length) if length > 0),
            };
            if !more {
                return;
            }
        }
    });
    let ended = container.clone();
    Ok(Session {
        stdin: (request.stdin && container.config.stdin).then(|| Box::pin(stdin) as _),
        stdout: wants_stdout.then(|| Box::pin(stdout) as _),
        stderr: (wants_stderr && !terminal).then(|| Box::pin(stderr) as _),
        resize: terminal.then_some(resize),
        exit: Box::pin(async move {
            match exit.await {
                Ok(code) => Ok(code),
                Err(_) => {
                    container::wait_for_end(&ended).await;
                    Ok(137)
                }
            }
        }),
    })
}

/// Carries input and terminal sizes to the shim until both have ended.
async fn send_input(
    mut outgoing: OwnedWriteHalf,
    stdin: Option<tokio::io::DuplexStream>,
    mut sizes: mpsc::UnboundedReceiver<TerminalSize>,
) {
    let mut stdin = stdin;
    let mut buffer = vec![0; 32 << 10];
    let mut sizing = true;
    while stdin.is_some() || sizing {
        let message = tokio::select! {
            biased;
            size = sizes.recv(), if sizing => match size {
                Some(size) => {
                    let mut payload = size.columns.to_be_bytes().to_vec();
                    payload.extend(size.rows.to_be_bytes());
                    frame::encode(frame::RESIZE, &payload)
                }
                None => {
                    sizing = false;
                    continue;
                }
            },
            length = read_some(&mut stdin, &mut buffer), if stdin.is_some() => match length {
                0 => {
                    stdin = None;
                    frame::encode(frame::CLOSE_STDIN, &[])
                }
                length => frame::encode(frame::STDIN, &buffer[..length]),
            },
        };
        if outgoing.write_all(&message).await.is_err() {
            return;
        }
    }
    // The connection stays for output; only the container's end or the reader's closes it.
    outgoing.forget();
}

async fn read_some(stdin: &mut Option<tokio::io::DuplexStream>, buffer: &mut [u8]) -> usize {
    match stdin {
        Some(stdin) => stdin.read(buffer).await.unwrap_or(0),
        None => 0,
    }
}
