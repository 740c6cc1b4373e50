//! The agent's own socket, for what neither Kubernetes' API nor CRI can say: loading images.
//!
//! One JSON line each way. Only root of the machine can open it.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use cluster::Layout;
use runtime::Runtime;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use stdx::{CancellationToken, Env};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream},
};

/// Where the socket is, inside the node.
pub const SOCKET: &str = "/run/gantry/agent.sock";

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum AgentRequest {
    /// An archive at a path of the node.
    LoadImage(PathBuf),
    ListImages,
    RemoveImage(String),
}

/// Asks the agent of a local cluster's node, through the node's own file tree.
pub async fn ask_agent(layout: &Layout, node: &str, request: &AgentRequest) -> Result<Value> {
    let pid = fs::read_to_string(layout.pid_file(node))
        .ok()
        .and_then(|text| text.trim().parse::<i32>().ok())
        .with_context(|| format!("{node} does not run; start it with `gantry start {node}`"))?;
    let path = PathBuf::from(format!("/proc/{pid}/root{SOCKET}"));
    let stream = UnixStream::connect(&path)
        .await
        .with_context(|| format!("the agent of {node} does not answer"))?;
    let (read, mut write) = stream.into_split();
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    write.write_all(&line).await?;
    let mut answer = String::new();
    BufReader::new(read).read_line(&mut answer).await?;
    let answer: Value = serde_json::from_str(&answer)
        .with_context(|| format!("the agent of {node} ended midway"))?;
    match answer["error"].as_str() {
        Some(error) => bail!("{error}"),
        None => Ok(answer),
    }
}

/// Answers until cancelled. `changed` is called when the node's images have changed.
pub async fn serve(
    env: Env,
    runtime: Runtime,
    changed: impl Fn() + Clone + Send + Sync + 'static,
    cancel: CancellationToken,
) -> io::Result<()> {
    let path = Path::new(SOCKET);
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    let _ = fs::remove_file(path);
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    while let Some(Ok((stream, _))) = cancel.run_until_cancelled(listener.accept()).await {
        let (runtime, changed, for_task) = (runtime.clone(), changed.clone(), env.clone());
        env.spawn("agent socket", async move {
            if let Err(error) = converse(&for_task, &runtime, &changed, stream).await {
                tracing::debug!(%error, "the agent's socket was closed midway");
            }
        });
    }
    Ok(())
}

async fn converse(
    env: &Env,
    runtime: &Runtime,
    changed: &impl Fn(),
    stream: UnixStream,
) -> io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut lines = BufReader::new(read).lines();
    while let Some(line) = lines.next_line().await? {
        let answer = match serde_json::from_str(&line) {
            Ok(request) => {
                let images = runtime.images().clone();
                let answered = env.blocking(move || answer(&images, request)).await;
                changed();
                answered
                    .unwrap_or_else(|| json!({ "error": "the request failed inside the agent" }))
            }
            Err(error) => json!({ "error": error.to_string() }),
        };
        let mut text = serde_json::to_vec(&answer)?;
        text.push(b'\n');
        write.write_all(&text).await?;
    }
    Ok(())
}

fn answer(images: &runtime::Store, request: AgentRequest) -> Value {
    match request {
        AgentRequest::LoadImage(path) => match images.load(&path) {
            Ok(names) => json!({ "images": names }),
            Err(error) => json!({ "error": stdx::chain(&error).to_string() }),
        },
        AgentRequest::ListImages => {
            let listed: Vec<Value> = images
                .list()
                .iter()
                .map(|image| json!({ "id": image.id, "names": image.tags, "bytes": image.size_bytes }))
                .collect();
            json!({ "images": listed })
        }
        AgentRequest::RemoveImage(name) => match images.find(&name) {
            None => json!({ "removed": false }),
            Some(_) => match images.remove(&name) {
                Ok(()) => json!({ "removed": true }),
                Err(error) => json!({ "error": stdx::chain(&error).to_string() }),
            },
        },
    }
}
