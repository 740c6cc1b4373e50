//! `containerLogs`: a container's output, from the past or as it comes.

use std::{
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use http::{Request, StatusCode};
use hyper::body::Incoming;
use rustix::fs::inotify;
use stdx::Timestamp;
use tokio::{io::unix::AsyncFd, sync::mpsc};

use super::{Answer, Refusal, Server, answer, query, streaming};
use crate::{
    container_log::{Formatter, LogOptions, LogReader},
    context::Context,
    pod::{Pod, PodExt},
    runtime_state::{Container, PodRuntime, State},
};

pub async fn serve(
    server: &Server,
    request: &Request<Incoming>,
    namespace: &str,
    pod: &str,
    container: &str,
) -> Result<Answer, Refusal> {
    let parameters = query(request);
    let now = server.context.env.now();
    let options = options(&parameters, now)?;
    let previous = get(&parameters, "previous").is_some_and(|value| value == "true");
    let (pod, runtime) = server.pod(namespace, pod).await?;
    let chosen = choose(&pod, &runtime, container, previous)?.clone();
    let path = log_path(&server.context, &pod, &chosen);
    let reader = LogReader::open(&path, options.tail).map_err(|error| {
        Refusal::internal(format!(
            "failed to try resolving symlinks in path {:?}: {error}",
            path.display().to_string()
        ))
    })?;
    let (sender, receiver) = mpsc::channel(4);
    let tail = Tail { context: server.context.clone(), path, id: chosen.id, options, sender };
    server.context.env.spawn("log reader", async move {
        tail.run(reader).await;
    });
    let pieces = tokio_stream::wrappers::ReceiverStream::new(receiver);
    let mut response = answer(StatusCode::OK, "text/plain", Vec::new());
    *response.body_mut() = streaming(Box::pin(pieces));
    Ok(response)
}

fn get<'a>(parameters: &'a [(String, String)], name: &str) -> Option<&'a str> {
    parameters.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
}

fn options(parameters: &[(String, String)], now: Timestamp) -> Result<LogOptions, Refusal> {
    let flag = |name: &str| get(parameters, name).is_some_and(|value| value == "true");
    let number = |name: &str| match get(parameters, name) {
        None | Some("") => Ok(None),
        Some(text) => text
            .parse::<u64>()
            .map(Some)
            .map_err(|_| Refusal::bad_request(format!("{name} must be a number, not {text:?}"))),
    };
    let since = match number("sinceSeconds")? {
        Some(seconds) => Some(now - Duration::from_secs(seconds)),
        None => get(parameters, "sinceTime").and_then(Timestamp::parse),
    };
    let stream = match get(parameters, "stream") {
        Some("Stdout") => "stdout",
        Some("Stderr") => "stderr",
        _ => "",
    };
    Ok(LogOptions {
        tail: number("tailLines")?.map(|lines| lines as usize),
        since,
        timestamps: flag("timestamps"),
        limit_bytes: number("limitBytes")?,
        follow: flag("follow"),
        stream: stream.into(),
    })
}

/// The container whose log is meant, or why there is none.
fn choose<'a>(
    pod: &Pod,
    runtime: &'a PodRuntime,
    name: &str,
    previous: bool,
) -> Result<&'a Container, Refusal> {
    if pod.container(name).is_none() {
        return Err(Refusal::bad_request(format!(
            "container {name:?} is not valid for pod {:?}",
            pod.name()
        )));
    }
    let mut of_name = runtime.containers.iter().filter(|container| container.name == name);
    let latest = of_name.next();
    if previous {
        // In a crash loop the newest one has ended and is the previous one of the next.
        let ended = of_name.find(|container| container.state == State::Exited);
        return ended.ok_or_else(|| {
            Refusal::bad_request(format!(
                "previous terminated container {name:?} in pod {:?} not found",
                pod.name()
            ))
        });
    }
    latest.filter(|container| container.state != State::Created).ok_or_else(|| {
        Refusal::bad_request(format!(
            "container {name:?} in pod {:?} is waiting to start: {}",
            pod.name(),
            waiting_reason(pod, name)
        ))
    })
}

fn waiting_reason(pod: &Pod, name: &str) -> String {
    let status = pod.status.as_ref();
    let lists = status.map(|status| [&status.container_statuses, &status.init_container_statuses]);
    let found = lists.into_iter().flatten().flatten().flatten().find(|status| status.name == name);
    let waiting = found.and_then(|status| status.state.as_ref()?.waiting.clone());
    let reason = waiting.map(|waiting| match (waiting.reason, waiting.message) {
        (Some(reason), Some(message)) if reason.contains("Image") => match reason.as_str() {
            "ErrImagePull" => "image can't be pulled".to_owned(),
            "ImagePullBackOff" => "trying and failing to pull image".to_owned(),
            _ => message,
        },
        (Some(reason), _) => reason,
        (None, _) => String::new(),
    });
    reason.unwrap_or_else(|| "ContainerCreating".into())
}

fn log_path(context: &Context, pod: &Pod, container: &Container) -> PathBuf {
    if container.log_path.starts_with('/') {
        return container.log_path.clone().into();
    }
    let directory = context.config.pod_log_dir(pod.namespace(), pod.name(), pod.uid());
    directory.join(&container.name).join(format!("{}.log", container.restart_count))
}

struct Tail {
    context: Arc<Context>,
    path: PathBuf,
    id: String,
    options: LogOptions,
    sender: mpsc::Sender<std::io::Result<Bytes>>,
}

impl Tail {
    async fn run(self, mut reader: LogReader) {
        let mut formatter = Formatter::new(&self.options);
        let watch = match self.watch() {
            Ok(watch) => watch,
            Err(error) => {
                let _ = self.sender.send(Err(error)).await;
                return;
            }
        };
        let mut events = self.context.runtime_events.subscribe();
        let mut running = self.options.follow && self.is_running().await;
        loop {
            // Looked at before reading, so that what came before the end is read.
            if events.has_changed().unwrap_or(false) {
                events.mark_unchanged();
                running = running && self.is_running().await;
            }
            if !self.drain(&mut reader, &mut formatter).await || formatter.is_full() {
                return;
            }
            match reader.reopen_if_rotated() {
                Ok(true) => continue,
                Ok(false) if running => {}
                Ok(false) => return,
                Err(error) => {
                    let _ = self.sender.send(Err(error)).await;
                    return;
                }
            }
            let Some(watch) = &watch else { return };
            tokio::select! {
                biased;
                () = self.sender.closed() => return,
                ready = watch.readable() => match ready {
                    Ok(mut guard) => {
                        clear(watch.get_ref());
                        guard.clear_ready();
                    }
                    Err(_) => return,
                },
                changed = events.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    events.mark_changed();
                }
            }
        }
    }

    /// Notices of the log's directory, for a client that follows.
    fn watch(&self) -> std::io::Result<Option<AsyncFd<OwnedFd>>> {
        if !self.options.follow {
            return Ok(None);
        }
        let flags = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
        let notices = inotify::init(flags)?;
        let wanted = inotify::WatchFlags::MODIFY
            | inotify::WatchFlags::CREATE
            | inotify::WatchFlags::MOVED_TO;
        let directory = self.path.parent().unwrap_or(Path::new("/"));
        inotify::add_watch(&notices, directory, wanted)?;
        // An owned descriptor cannot be closed under the reactor, which the warning is about.
        #[allow(deprecated)]
        let registered = AsyncFd::new(notices)?;
        Ok(Some(registered))
    }

    async fn is_running(&self) -> bool {
        let request =
            cri::v1::ContainerStatusRequest { container_id: self.id.clone(), verbose: false };
        let answer = self.context.runtime.clone().container_status(request).await;
        let state = answer.ok().and_then(|answer| answer.into_inner().status).map(|s| s.state);
        state == Some(cri::v1::ContainerState::ContainerRunning as i32)
    }

    /// Sends everything up to the end of the file; `false` when the client is gone.
    async fn drain(&self, reader: &mut LogReader, formatter: &mut Formatter) -> bool {
        loop {
            match reader.read(formatter) {
                Ok(piece) if piece.is_empty() => return true,
                Ok(piece) => {
                    if self.sender.send(Ok(piece.into())).await.is_err() {
                        return false;
                    }
                }
                Err(error) => {
                    let _ = self.sender.send(Err(error)).await;
                    return false;
                }
            }
        }
    }
}

/// Takes all notices; their content does not matter.
fn clear(notices: &OwnedFd) {
    let mut buffer = [0u8; 4096];
    while matches!(rustix::io::read(notices, &mut buffer), Ok(1..)) {}
}

/// A file under the node's `/var/log`.
pub async fn node_file(server: &Server, parts: &[&str]) -> Result<Answer, Refusal> {
    if parts.iter().any(|part| *part == "..") {
        return Err(Refusal::bad_request("the path must stay below /var/log"));
    }
    let root = server.context.config.log_dir.parent().unwrap_or(Path::new("/var/log")).to_owned();
    let path = root.join(parts.join("/"));
    let read = server.context.env.blocking(move || -> std::io::Result<Vec<u8>> {
        let real = path.canonicalize()?;
        if !real.starts_with(root.canonicalize()?) {
            return Err(std::io::ErrorKind::NotFound.into());
        }
        if real.is_dir() {
            let mut names: Vec<String> = std::fs::read_dir(real)?
                .flatten()
                .map(|entry| entry.file_name().to_string_lossy().into_owned())
                .collect();
            names.sort();
            let lines = names.iter().map(|name| format!("<a href=\"{name}\">{name}</a>\n"));
            return Ok(format!("<pre>\n{}</pre>\n", lines.collect::<String>()).into_bytes());
        }
        std::fs::read(real)
    });
    match read.await {
        Some(Ok(bytes)) => Ok(answer(StatusCode::OK, "text/plain; charset=utf-8", bytes)),
        _ => Err(Refusal::not_found("404 page not found")),
    }
}
