//! One HTTP GET, as probes and lifecycle hooks make it.

use std::{sync::Arc, time::Duration};

use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use k8s_openapi::{api::core::v1::HTTPGetAction, apimachinery::pkg::util::intstr::IntOrString};
use stdx::Env;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::pod::{Container, Pod, PodExt};

/// How much of an answer is read, in bytes.
const BODY_LIMIT: usize = 10 << 10;

pub struct Answer {
    pub code: u16,
    pub body: String,
}

/// A port by number or by its name in the container.
pub fn resolve_port(port: &IntOrString, container: &Container) -> Result<u16, String> {
    let number = match port {
        IntOrString::Int(number) => *number,
        IntOrString::String(name) => {
            let ports = container.ports.iter().flatten();
            let named = ports.clone().find(|port| port.name.as_ref() == Some(name));
            match (named, name.parse()) {
                (Some(port), _) => port.container_port,
                (None, Ok(number)) => number,
                (None, Err(_)) => {
                    return Err(format!("couldn't find port: {name:?} in {:?}", container.name));
                }
            }
        }
    };
    u16::try_from(number)
        .ok()
        .filter(|&port| port > 0)
        .ok_or(format!("invalid port number: {number}"))
}

/// Where the pod's own address is, when an action names no host.
pub fn host_of(host: Option<&String>, pod: &Pod, pod_ips: &[String]) -> String {
    match host.filter(|host| !host.is_empty()) {
        Some(host) => host.clone(),
        None if pod.host_network() && pod_ips.is_empty() => "127.0.0.1".into(),
        None => pod_ips.first().cloned().unwrap_or_default(),
    }
}

/// Does the GET within `limit`; an error says what went wrong in words.
pub async fn get(
    env: &Env,
    action: &HTTPGetAction,
    host: &str,
    port: u16,
    agent: &str,
    limit: Duration,
) -> Result<Answer, String> {
    let path = action.path.as_deref().filter(|path| !path.is_empty()).unwrap_or("/");
    let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
    let https = action.scheme.as_deref() == Some("HTTPS");
    let shown = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
    let url = format!("{}://{shown}:{port}{path}", if https { "https" } else { "http" });
    let exchange = async {
        let stream = TcpStream::connect((host, port)).await.map_err(|error| error.to_string())?;
        let _ = stream.set_nodelay(true);
        let request = request(action, &path, &format!("{shown}:{port}"), agent)?;
        if https {
            let stream = insecure_tls(host, stream).await?;
            send(env, TokioIo::new(stream), request).await
        } else {
            send(env, TokioIo::new(stream), request).await
        }
    };
    match env.timeout(limit, exchange).await {
        Some(Ok(answer)) => Ok(answer),
        Some(Err(text)) => Err(format!("Get {url:?}: {text}")),
        None => Err(format!(
            "Get {url:?}: context deadline exceeded (Client.Timeout exceeded while awaiting headers)"
        )),
    }
}

fn request(
    action: &HTTPGetAction,
    path: &str,
    host: &str,
    agent: &str,
) -> Result<http::Request<Empty<bytes::Bytes>>, String> {
    let mut request = http::Request::get(path);
    let own = action.http_headers.as_deref().unwrap_or_default();
    let named = |name: &str| own.iter().any(|header| header.name.eq_ignore_ascii_case(name));
    if !named("host") {
        request = request.header("Host", host);
    }
    if !named("user-agent") {
        request = request.header("User-Agent", agent);
    }
    if !named("accept") {
        request = request.header("Accept", "*/*");
    }
    for header in own {
        request = request.header(&header.name, &header.value);
    }
    request.header("Connection", "close").body(Empty::new()).map_err(|error| error.to_string())
}

async fn send<T>(
    env: &Env,
    io: TokioIo<T>,
    request: http::Request<Empty<bytes::Bytes>>,
) -> Result<Answer, String>
where
    T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static,
{
    let words = |error: hyper::Error| stdx::chain(&error).to_string();
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(io).await.map_err(words)?;
    let driver = env.spawn("http check", async move { drop(connection.await) }).abort_on_drop();
    let response = sender.send_request(request).await.map_err(words)?;
    let code = response.status().as_u16();
    // A body that is too long or breaks off does not change the verdict.
    let body = match Limited::new(response.into_body(), BODY_LIMIT).collect().await {
        Ok(collected) => String::from_utf8_lossy(&collected.to_bytes()).into_owned(),
        Err(_) => String::new(),
    };
    drop(driver);
    Ok(Answer { code, body })
}

/// Probes do not check certificates: they ask whether the process answers, not who it is.
async fn insecure_tls(
    host: &str,
    stream: TcpStream,
) -> Result<tokio_rustls::client::TlsStream<TcpStream>, String> {
    let connection =
        client::config::Connection { insecure: true, ..client::config::Connection::default() };
    let config = client::tls::client_config(&connection, &[b"http/1.1"])
        .map_err(|error| stdx::chain(&error).to_string())?;
    let name = rustls::pki_types::ServerName::try_from(host.to_owned())
        .map_err(|error| error.to_string())?;
    let connector = TlsConnector::from(Arc::new(config));
    connector.connect(name, stream).await.map_err(|error| error.to_string())
}
