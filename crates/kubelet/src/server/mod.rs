//! The agent's own server: logs, exec, attach, port-forward, metrics.
//!
//! Flow: a stream that has been accepted ([`Server::serve_tls`]) or that the agent opened itself
//! ([`Server::serve`]) ▸ HTTP/1.1 ▸ who is it and may they ([`auth`]) ▸ the route's handler. The
//! API server passes upgraded connections through, so what arrives here is what its client spoke.

mod auth;
mod logs;
mod metrics;
mod port_forward;
mod remote;
mod remote_spdy;
mod stats;
mod upgrade;
mod websocket;

use std::{convert::Infallible, pin::Pin, sync::Arc};

use bytes::Bytes;
use futures::Stream;
use http::{Method, Request, Response, StatusCode, header};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use rustls::{
    RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::WebPkiClientVerifier,
};
use stdx::CancellationToken;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
};
use tokio_rustls::TlsAcceptor;

pub use self::auth::Identity;
use crate::{
    Error,
    context::Context,
    manager::Manager,
    pod::{Pod, PodExt, give_back},
    runtime_state::{self, Container, PodRuntime},
};

pub type Body = BoxBody<Bytes, std::io::Error>;
pub type Answer = Response<Body>;

/// Serves one agent's pods. Cheap to clone.
#[derive(Clone)]
pub struct Server {
    pub(crate) context: Arc<Context>,
    pub(crate) manager: Manager,
    authorizer: Arc<auth::Authorizer>,
}

/// A failure as the client sees it: a code and a line of text, as upstream's kubelet answers.
pub struct Refusal(pub StatusCode, pub String);

impl Refusal {
    fn not_found(text: impl Into<String>) -> Self {
        Self(StatusCode::NOT_FOUND, text.into())
    }

    fn bad_request(text: impl Into<String>) -> Self {
        Self(StatusCode::BAD_REQUEST, text.into())
    }

    fn internal(text: impl Into<String>) -> Self {
        Self(StatusCode::INTERNAL_SERVER_ERROR, text.into())
    }
}

impl Server {
    pub(crate) fn new(context: Arc<Context>, manager: Manager) -> Self {
        let authorizer = Arc::new(auth::Authorizer::new(context.clone()));
        Self { context, manager, authorizer }
    }

    /// TLS settings: the serving certificate, and client certificates of the cluster's CA (a
    /// client without one may still show a token). All arguments are PEM.
    pub fn tls_config(
        ca: &[u8],
        certificate: &[u8],
        key: &[u8],
    ) -> Result<Arc<ServerConfig>, Error> {
        let fail = |what: &str, source: Box<dyn std::error::Error + Send + Sync>| Error::Io {
            what: what.to_owned(),
            source: std::io::Error::other(source),
        };
        let mut roots = RootCertStore::empty();
        for root in CertificateDer::pem_slice_iter(ca) {
            let root = root.map_err(|error| fail("the client CA is not PEM", error.into()))?;
            roots.add(root).map_err(|error| fail("the client CA is unusable", error.into()))?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone())
            .allow_unauthenticated()
            .build()
            .map_err(|error| fail("the client CA is unusable", error.into()))?;
        let chain: Vec<_> =
            CertificateDer::pem_slice_iter(certificate)
                .collect::<Result<_, _>>()
                .map_err(|error| fail("the serving certificate is not PEM", error.into()))?;
        let key = PrivateKeyDer::from_pem_slice(key)
            .map_err(|error| fail("the serving key is not PEM", error.into()))?;
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| fail("TLS cannot be set up", error.into()))?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, key)
            .map_err(|error| fail("the serving certificate is unusable", error.into()))?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }

    /// Accepts connections until cancelled. `tls` is read for each, so that a rotated
    /// certificate serves at once.
    pub async fn serve_tls(
        &self,
        listener: TcpListener,
        tls: tokio::sync::watch::Receiver<Arc<ServerConfig>>,
        cancel: CancellationToken,
    ) {
        while let Some(accepted) = cancel.run_until_cancelled(listener.accept()).await {
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "a connection was not accepted");
                    self.context.env.sleep(std::time::Duration::from_millis(100)).await;
                    continue;
                }
            };
            let _ = stream.set_nodelay(true);
            let acceptor = TlsAcceptor::from(tls.borrow().clone());
            let server = self.clone();
            self.context.env.spawn("kubelet connection", async move {
                let limit = std::time::Duration::from_secs(10);
                match server.context.env.timeout(limit, acceptor.accept(stream)).await {
                    Some(Ok(stream)) => {
                        let certificates = stream.get_ref().1.peer_certificates();
                        let identity = certificates.and_then(|chain| Identity::of(chain.first()?));
                        server.serve(stream, identity).await;
                    }
                    Some(Err(error)) => tracing::debug!(%error, "TLS handshake failed"),
                    None => tracing::debug!("TLS handshake took too long"),
                }
            });
        }
    }

    /// Serves one connection to its end. `identity` is who the stream has been proved to be, such
    /// as the API server on a stream that the agent opened to it; without one, each request must
    /// carry a token.
    pub async fn serve<S>(&self, stream: S, identity: Option<Identity>)
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let service = service_fn(|request| {
            let (server, identity) = (self.clone(), identity.clone());
            async move { Ok::<_, Infallible>(server.answer(request, identity).await) }
        });
        let served = hyper::server::conn::http1::Builder::new()
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades();
        if let Err(error) = served.await {
            tracing::debug!(%error, "kubelet connection ended");
        }
    }

    async fn answer(&self, request: Request<Incoming>, identity: Option<Identity>) -> Answer {
        if request.uri().path() == "/healthz"
            && request.method() == Method::GET
            && identity.is_none()
        {
            return text(StatusCode::OK, "ok");
        }
        let answered = match self.authorizer.check(&request, identity).await {
            Ok(()) => self.route(request).await,
            Err(refusal) => Err(refusal),
        };
        answered.unwrap_or_else(|Refusal(code, message)| text(code, &message))
    }

    /// The table of routes.
    async fn route(&self, request: Request<Incoming>) -> Result<Answer, Refusal> {
        let path = request.uri().path().to_owned();
        let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
        match parts.as_slice() {
            ["healthz"] => Ok(text(StatusCode::OK, "ok")),
            ["pods"] => Ok(self.pods(|_| true)),
            ["runningpods"] => Ok(self.pods(|pod| pod.phase() == "Running")),
            ["containerLogs", namespace, pod, container] => {
                logs::serve(self, &request, namespace, pod, container).await
            }
            ["exec", namespace, pod, container] | ["exec", namespace, pod, _, container] => {
                remote::exec(self, request, namespace, pod, container).await
            }
            ["attach", namespace, pod, container] | ["attach", namespace, pod, _, container] => {
                remote::attach(self, request, namespace, pod, container).await
            }
            ["run", namespace, pod, container] | ["run", namespace, pod, _, container] => {
                remote::run(self, request, namespace, pod, container).await
            }
            ["portForward", namespace, pod] | ["portForward", namespace, pod, _] => {
                port_forward::serve(self, request, namespace, pod).await
            }
            ["metrics"] => Ok(metrics::agent(self).await),
            ["metrics", "cadvisor"] => Ok(metrics::cadvisor(self).await),
            ["metrics", "resource"] => Ok(metrics::resource(self).await),
            ["metrics", "probes"] => Ok(metrics::probes(self).await),
            ["stats", "summary"] => stats::summary(self).await,
            ["configz"] => Ok(self.configz()),
            ["logs", rest @ ..] => logs::node_file(self, rest).await,
            _ => Err(Refusal::not_found("404 page not found")),
        }
    }

    fn pods(&self, wanted: impl Fn(&Pod) -> bool) -> Answer {
        let items: Vec<Arc<Pod>> =
            self.manager.pods().into_iter().filter(|pod| wanted(pod)).collect();
        let list = serde_json::json!({
            "kind": "PodList", "apiVersion": "v1", "metadata": {},
            "items": items.iter().map(|pod| give_back(pod)).collect::<Vec<_>>(),
        });
        json(&list)
    }

    fn configz(&self) -> Answer {
        let config = &self.context.config;
        json(&serde_json::json!({ "kubeletconfig": {
            "kind": "KubeletConfiguration",
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "port": config.port,
            "clusterDomain": config.cluster_domain,
            "clusterDNS": config.cluster_dns,
            "maxPods": config.capacity.pods,
            "nodeStatusReportFrequency": crate::pod::go_duration(config.status_interval),
            "nodeLeaseDurationSeconds": config.lease_duration.as_secs(),
            "containerLogMaxSize": format!("{}Mi", config.container_log_max_bytes >> 20),
            "containerLogMaxFiles": config.container_log_max_files,
            "seccompDefault": config.seccomp_default,
            "authentication": { "anonymous": { "enabled": false }, "webhook": { "enabled": true } },
            "authorization": { "mode": "Webhook" },
        } }))
    }

    /// A pod of this node and what the runtime has of it.
    async fn pod(&self, namespace: &str, name: &str) -> Result<(Arc<Pod>, PodRuntime), Refusal> {
        let found = self.manager.find(namespace, name);
        let pod = found.ok_or_else(|| Refusal::not_found("pod does not exist"))?;
        let nothing = PodRuntime::default();
        let read = runtime_state::read(&self.context.runtime, pod.uid(), &nothing);
        let runtime = read.await.map_err(|status| Refusal::internal(status.message()))?;
        Ok((pod, runtime))
    }

    /// The running container of a name.
    async fn running(
        &self,
        namespace: &str,
        name: &str,
        container: &str,
    ) -> Result<Container, Refusal> {
        let (_, runtime) = self.pod(namespace, name).await?;
        let found = runtime.latest(container).filter(|container| container.is_running());
        found
            .cloned()
            .ok_or_else(|| Refusal::internal(format!("container not found ({container:?})")))
    }
}

/// A plain answer; upstream ends each with a newline only where it is an error.
pub(crate) fn text(code: StatusCode, body: &str) -> Answer {
    let body = if code.is_success() { body.to_owned() } else { format!("{body}\n") };
    answer(code, "text/plain; charset=utf-8", body.into_bytes())
}

pub(crate) fn json(value: &serde_json::Value) -> Answer {
    answer(StatusCode::OK, "application/json", serde_json::to_vec(value).unwrap_or_default())
}

pub(crate) fn answer(code: StatusCode, kind: &'static str, body: Vec<u8>) -> Answer {
    let body = Full::new(Bytes::from(body)).map_err(|never| match never {}).boxed();
    let mut answer = Response::new(body);
    *answer.status_mut() = code;
    answer.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    answer
}

/// A body that arrives piece by piece.
pub(crate) fn streaming(
    pieces: Pin<Box<dyn Stream<Item = std::io::Result<Bytes>> + Send + Sync>>,
) -> Body {
    use futures::StreamExt;
    BodyExt::boxed(StreamBody::new(pieces.map(|piece| piece.map(Frame::data))))
}

/// The parameters of a request's query, decoded, in order.
pub(crate) fn query(request: &Request<Incoming>) -> Vec<(String, String)> {
    let raw = request.uri().query().unwrap_or_default();
    raw.split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .map(|(name, value)| (decode(name), decode(value)))
        .collect()
}

fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        match byte {
            b'+' => bytes.push(b' '),
            b'%' => {
                let pair = rest.get(..2).and_then(|pair| std::str::from_utf8(pair).ok());
                match pair.and_then(|pair| u8::from_str_radix(pair, 16).ok()) {
                    Some(value) => {
                        bytes.push(value);
                        rest = &rest[2..];
                    }
                    None => bytes.push(b'%'),
                }
            }
            other => bytes.push(other),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_decoded() {
        assert_eq!(decode("a%20b+c%2F"), "a b c/");
        assert_eq!(decode("100%"), "100%");
        assert_eq!(decode("%zz%"), "%zz%");
    }
}
