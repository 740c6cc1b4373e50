//! Port-forwarding: each connection of the client is a pair of SPDY streams, data and error, that
//! share a request id.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use http::Request;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{
    Answer, Refusal, Server, remote_spdy,
    upgrade::{self, Wanted},
    websocket,
};
use crate::{
    context::Context,
    spdy_session::{self, Stream},
};

const TUNNELLED: [&str; 1] = ["SPDY/3.1+portforward.k8s.io"];
const SPDY: [&str; 1] = ["portforward.k8s.io"];

pub async fn serve(
    server: &Server,
    mut request: Request<Incoming>,
    namespace: &str,
    pod: &str,
) -> Result<Answer, Refusal> {
    let (_, runtime) = server.pod(namespace, pod).await?;
    let sandbox = runtime.active_sandbox();
    let sandbox = sandbox.ok_or_else(|| Refusal::internal("the pod's sandbox is not running"))?;
    let sandbox_id = sandbox.id.clone();
    let wanted = upgrade::wanted(request.headers(), &TUNNELLED, &SPDY)?;
    let (answer, upgraded) = upgrade::switch(&mut request, &wanted)?;
    let context = server.context.clone();
    server.context.env.spawn("port forward", async move {
        let stream = match upgraded.await {
            Ok(stream) => TokioIo::new(stream),
            Err(error) => {
                tracing::debug!(%error, "the connection was not upgraded");
                return;
            }
        };
        let (incoming, outgoing) = match wanted {
            Wanted::WebSocket { .. } => websocket::tunnel(stream).await,
            Wanted::Spdy { .. } => remote_spdy::raw(stream),
        };
        let mut streams = spdy_session::serve(&context.env, incoming, outgoing);
        let mut waiting: BTreeMap<String, Stream> = BTreeMap::new();
        while let Some(stream) = streams.recv().await {
            pair(&context, &sandbox_id, stream, &mut waiting);
        }
    });
    Ok(answer)
}

/// Begins to forward once both streams of a request are there.
fn pair(
    context: &Arc<Context>,
    sandbox_id: &str,
    stream: Stream,
    waiting: &mut BTreeMap<String, Stream>,
) {
    let id = match stream.header("requestid") {
        // Old clients open the pair one after the other and name only the port.
        "" => stream.header("port").to_owned(),
        id => id.to_owned(),
    };
    let Some(other) = waiting.remove(&id) else {
        waiting.insert(id, stream);
        return;
    };
    let (data, error) = match stream.header("streamtype") {
        "data" => (stream, other),
        _ => (other, stream),
    };
    let (context, sandbox_id) = (context.clone(), sandbox_id.to_owned());
    let env = context.env.clone();
    env.spawn("forwarded connection", async move {
        let result = forward(&context, &sandbox_id, data).await;
        if let Err(text) = result {
            let _ = error.writer.send(Bytes::from(text)).await;
        }
        error.writer.finish().await;
    });
}

async fn forward(context: &Context, sandbox_id: &str, mut data: Stream) -> Result<(), String> {
    let port = data.header("port").to_owned();
    let number: u16 = port.parse().map_err(|_| format!("unable to parse port {port:?}"))?;
    let opened = context.streaming.port_forward(sandbox_id, number).await;
    let stream = match opened {
        Ok(stream) => stream,
        Err(error) => {
            data.writer.reset().await;
            return Err(format!("error forwarding port {port} to pod {sandbox_id}: {error}"));
        }
    };
    let (mut reader, mut writer) = tokio::io::split(stream);
    let upload = async {
        while let Some(bytes) = data.reader.recv().await {
            if writer.write_all(&bytes).await.is_err() {
                return;
            }
        }
        let _ = writer.shutdown().await;
    };
    let out = data.writer.clone();
    let download = async {
        let mut buffer = vec![0; 32 << 10];
        while let Ok(read @ 1..) = reader.read(&mut buffer).await {
            if out.send(Bytes::copy_from_slice(&buffer[..read])).await.is_err() {
                return;
            }
        }
        out.finish().await;
    };
    // The answer decides the end: a client may have nothing more to send long before.
    let mut upload = std::pin::pin!(upload);
    let mut download = std::pin::pin!(download);
    tokio::select! {
        biased;
        () = &mut download => {}
        () = &mut upload => download.await,
    }
    Ok(())
}
