//! exec, attach and run: a process's streams and a client's, joined.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use cri::v1;
use http::{Request, StatusCode};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use stdx::Env;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::mpsc,
};

use super::{
    Answer, Refusal, Server, query, remote_spdy,
    upgrade::{self, Wanted},
    websocket,
};
use crate::streaming::{Reader, Session, StreamError, Streams, TerminalSize, Writer};

const WEB_SOCKET: [&str; 2] = ["v5.channel.k8s.io", "v4.channel.k8s.io"];
const SPDY: [&str; 1] = ["v4.channel.k8s.io"];

/// One of a process's outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    Stdout,
    Stderr,
}

/// The client's side of the streams. Input channels end when the client has no more to send.
pub struct Remote {
    pub stdin: mpsc::Receiver<Bytes>,
    pub resize: mpsc::Receiver<TerminalSize>,
    pub sink: Box<dyn RemoteSink>,
}

/// Sends to the client; an error means that it is gone.
#[async_trait]
pub trait RemoteSink: Send + Sync {
    async fn write(&self, output: Output, bytes: Bytes) -> Result<(), ()>;
    /// The last word: how it ended, as a `Status` in JSON. Closes the connection.
    async fn finish(&self, status: Bytes);
}

pub async fn exec(
    server: &Server,
    request: Request<Incoming>,
    namespace: &str,
    pod: &str,
    container: &str,
) -> Result<Answer, Refusal> {
    let container = server.running(namespace, pod, container).await?;
    let parameters = query(&request);
    let command: Vec<String> = parameters
        .iter()
        .filter(|(name, _)| name == "command")
        .map(|(_, value)| value.clone())
        .collect();
    if command.is_empty() {
        return Err(Refusal::bad_request("you must specify a command"));
    }
    let streams = streams(&parameters)?;
    let context = server.context.clone();
    join(server, request, streams, async move {
        context.streaming.exec(&container.id, command, streams).await
    })
    .await
}

pub async fn attach(
    server: &Server,
    request: Request<Incoming>,
    namespace: &str,
    pod: &str,
    container: &str,
) -> Result<Answer, Refusal> {
    let (spec, _) = server.pod(namespace, pod).await?;
    let tty = crate::pod::PodExt::container(&*spec, container)
        .is_some_and(|(container, _)| container.tty == Some(true));
    let container = server.running(namespace, pod, container).await?;
    let streams = Streams { tty, ..streams(&query(&request))? };
    let context = server.context.clone();
    join(
        server,
        request,
        streams,
        async move { context.streaming.attach(&container.id, streams).await },
    )
    .await
}

/// Runs a command to its end and answers with its output.
pub async fn run(
    server: &Server,
    request: Request<Incoming>,
    namespace: &str,
    pod: &str,
    container: &str,
) -> Result<Answer, Refusal> {
    let container = server.running(namespace, pod, container).await?;
    let parameters = query(&request);
    let command = parameters.iter().find(|(name, _)| name == "cmd").map(|(_, value)| value.clone());
    let command = command.ok_or_else(|| Refusal::bad_request("you must specify cmd"))?;
    let asked = v1::ExecSyncRequest {
        container_id: container.id,
        cmd: command.split_whitespace().map(str::to_owned).collect(),
        timeout: 0,
    };
    let answer = server.context.runtime.clone().exec_sync(asked).await;
    let answer = answer.map_err(|status| Refusal::internal(status.message()))?.into_inner();
    let output = [answer.stdout, answer.stderr].concat();
    let text = String::from_utf8_lossy(&output).into_owned();
    if answer.exit_code == 0 {
        Ok(super::text(StatusCode::OK, &text))
    } else {
        Err(Refusal::internal(text))
    }
}

/// The kubelet's own parameter names; the API server's are understood too.
fn streams(parameters: &[(String, String)]) -> Result<Streams, Refusal> {
    let set = |names: [&str; 2]| {
        parameters.iter().any(|(name, value)| {
            names.contains(&name.as_str()) && matches!(value.as_str(), "1" | "true")
        })
    };
    let streams = Streams {
        stdin: set(["input", "stdin"]),
        stdout: set(["output", "stdout"]),
        stderr: set(["error", "stderr"]),
        tty: set(["tty", "tty"]),
    };
    if !(streams.stdin || streams.stdout || streams.stderr) {
        return Err(Refusal::bad_request("you must specify at least 1 of stdin, stdout, stderr"));
    }
    // With a terminal there is one output.
    Ok(Streams { stderr: streams.stderr && !streams.tty, ..streams })
}

/// Upgrades the connection and, once that is done, opens the process's streams and joins both.
async fn join(
    server: &Server,
    mut request: Request<Incoming>,
    streams: Streams,
    open: impl Future<Output = Result<Session, StreamError>> + Send + 'static,
) -> Result<Answer, Refusal> {
    let wanted = upgrade::wanted(request.headers(), &WEB_SOCKET, &SPDY)?;
    let (answer, upgraded) = upgrade::switch(&mut request, &wanted)?;
    let env = server.context.env.clone();
    server.context.env.spawn("remote command", async move {
        let stream = match upgraded.await {
            Ok(stream) => TokioIo::new(stream),
            Err(error) => {
                tracing::debug!(%error, "the connection was not upgraded");
                return;
            }
        };
        let remote = match wanted {
            Wanted::WebSocket { protocol } => {
                Some(websocket::remote(&env, stream, protocol == WEB_SOCKET[0]).await)
            }
            Wanted::Spdy { .. } => remote_spdy::remote(&env, stream, streams).await,
        };
        let Some(remote) = remote else { return };
        let status = match open.await {
            Ok(session) => drive(&env, session, remote.stdin, remote.resize, &*remote.sink).await,
            Err(error) => Some(failure(&format!("error executing command in container: {error}"))),
        };
        if let Some(status) = status {
            remote.sink.finish(status).await;
        }
    });
    Ok(answer)
}

/// Moves bytes until the process has ended and all its output is out. `None` when the client went.
async fn drive(
    env: &Env,
    session: Session,
    stdin: mpsc::Receiver<Bytes>,
    mut resize: mpsc::Receiver<TerminalSize>,
    sink: &dyn RemoteSink,
) -> Option<Bytes> {
    let _input =
        session.stdin.map(|writer| env.spawn("remote stdin", feed(stdin, writer)).abort_on_drop());
    let _sizes = session.resize.map(|sizes| {
        let forward = async move {
            while let Some(size) = resize.recv().await {
                if sizes.send(size).await.is_err() {
                    return;
                }
            }
        };
        env.spawn("remote resize", forward).abort_on_drop()
    });
    let stdout = pump(session.stdout, Output::Stdout, sink);
    let stderr = pump(session.stderr, Output::Stderr, sink);
    let outputs = async { futures::future::try_join(stdout, stderr).await };
    let exit = session.exit;
    let mut outputs = std::pin::pin!(outputs);
    let mut exit = std::pin::pin!(exit);
    tokio::select! {
        biased;
        written = &mut outputs => {
            if written.is_err() {
                return None;
            }
            Some(verdict(exit.await))
        }
        code = &mut exit => {
            // A process in the background may hold the outputs open; what is there is sent.
            match env.timeout(Duration::from_secs(2), outputs).await {
                Some(Err(())) => None,
                Some(Ok(_)) | None => Some(verdict(code)),
            }
        }
    }
}

async fn feed(mut stdin: mpsc::Receiver<Bytes>, mut writer: Writer) {
    while let Some(bytes) = stdin.recv().await {
        if writer.write_all(&bytes).await.is_err() || writer.flush().await.is_err() {
            return;
        }
    }
    let _ = writer.shutdown().await;
}

async fn pump(reader: Option<Reader>, output: Output, sink: &dyn RemoteSink) -> Result<(), ()> {
    let Some(mut reader) = reader else { return Ok(()) };
    let mut buffer = vec![0; 32 << 10];
    loop {
        match reader.read(&mut buffer).await {
            // A terminal whose last user is gone reads as an error.
            Ok(0) | Err(_) => return Ok(()),
            Ok(read) => sink.write(output, Bytes::copy_from_slice(&buffer[..read])).await?,
        }
    }
}

fn verdict(exit: Result<i32, StreamError>) -> Bytes {
    match exit {
        Ok(0) => Bytes::from_static(br#"{"metadata":{},"status":"Success"}"#),
        Ok(code) => {
            let status = serde_json::json!({
                "metadata": {},
                "status": "Failure",
                "message": format!("command terminated with non-zero exit code: error executing command, exit code {code}"),
                "reason": "NonZeroExitCode",
                "details": { "causes": [{ "reason": "ExitCode", "message": code.to_string() }] },
            });
            status.to_string().into()
        }
        Err(error) => failure(&error.to_string()),
    }
}

fn failure(message: &str) -> Bytes {
    let status = serde_json::json!({
        "metadata": {}, "status": "Failure", "message": message,
        "reason": "InternalError", "code": 500,
        "details": { "causes": [{ "message": message }] },
    });
    status.to_string().into()
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Recorder(Arc<Mutex<Vec<(Output, Bytes)>>>);

    #[async_trait]
    impl RemoteSink for Recorder {
        async fn write(&self, output: Output, bytes: Bytes) -> Result<(), ()> {
            self.0.lock().unwrap().push((output, bytes));
            Ok(())
        }
        async fn finish(&self, _: Bytes) {}
    }

    #[tokio::test]
    async fn input_and_output_are_joined() {
        let (ours, theirs) = tokio::io::duplex(64);
        let (reader, writer) = tokio::io::split(theirs);
        let (mut echo_in, mut echo_out) = tokio::io::split(ours);
        let exit = async move {
            let mut word = [0; 5];
            echo_in.read_exact(&mut word).await.unwrap();
            echo_out.write_all(&word).await.unwrap();
            echo_out.shutdown().await.unwrap();
            Ok(3)
        };
        let session = Session {
            stdin: Some(Box::pin(writer)),
            stdout: Some(Box::pin(reader)),
            stderr: None,
            resize: None,
            exit: Box::pin(exit),
        };
        let (stdin, inbox) = mpsc::channel(4);
        let (_, sizes) = mpsc::channel(1);
        stdin.send(Bytes::from_static(b"hello")).await.unwrap();
        let recorder = Recorder::default();
        let status = drive(&Env::real(), session, inbox, sizes, &recorder).await.unwrap();
        assert!(String::from_utf8_lossy(&status).contains("\"message\":\"3\""));
        let written: Vec<u8> =
            recorder.0.lock().unwrap().iter().flat_map(|(_, bytes)| bytes.to_vec()).collect();
        assert_eq!(written, b"hello");
    }

    #[test]
    fn a_terminal_has_one_output() {
        let parameters: Vec<(String, String)> = [("output", "1"), ("error", "1"), ("tty", "1")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .to_vec();
        let streams = streams(&parameters).ok().unwrap();
        assert!(streams.stdout && !streams.stderr && streams.tty);
        assert!(super::streams(&[]).is_err());
    }
}
