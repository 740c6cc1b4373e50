//! Real connections: TLS on loopback, and streams to a node.

use std::{net::SocketAddr, sync::Arc};

use async_trait::async_trait;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject};
use serde_json::json;
use stdx::CancellationToken;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::client::TlsStream;

use super::{Answer, Fixture, read};
use crate::{
    body::{self, Body},
    nodes::{DialError, NodeAddress, NodeDialler, NodeStream},
};

/// A node that answers logs with the URL asked for, and echoes what is sent after an upgrade.
struct EchoNode;

#[async_trait]
impl NodeDialler for EchoNode {
    async fn connect(&self, _: &NodeAddress) -> Result<Box<dyn NodeStream>, DialError> {
        let (ours, theirs) = tokio::io::duplex(64 * 1024);
        stdx::Env::real().spawn("echo-node", async move {
            let served = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(theirs), service_fn(node_answer))
                .with_upgrades();
            let _ = served.await;
        });
        Ok(Box::new(ours))
    }
}

async fn node_answer(
    mut request: Request<Incoming>,
) -> Result<Response<Full<bytes::Bytes>>, std::convert::Infallible> {
    let uri = request.uri().to_string();
    if !request.headers().contains_key(header::UPGRADE) {
        return Ok(Response::new(uri.into()));
    }
    let protocol = request.headers()["sec-websocket-protocol"].clone();
    stdx::Env::real().spawn("echo", async move {
        let upgraded = hyper::upgrade::on(&mut request).await.unwrap();
        let (mut reader, mut writer) = tokio::io::split(TokioIo::new(upgraded));
        let _ = tokio::io::copy(&mut reader, &mut writer).await;
    });
    let mut response = Response::new(Full::default());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response.headers_mut().insert(header::UPGRADE, "websocket".parse().unwrap());
    response.headers_mut().insert(header::CONNECTION, "Upgrade".parse().unwrap());
    response.headers_mut().insert("sec-websocket-protocol", protocol);
    response.headers_mut().insert("x-uri", uri.parse().unwrap());
    Ok(response)
}

/// A served fixture with a pod on a node.
async fn serve() -> (Fixture, SocketAddr, CancellationToken) {
    let f = Fixture::start_with(|config| config.dialler = Arc::new(EchoNode)).await;
    let node = json!({"metadata": {"name": "n"}});
    assert_eq!(f.post("/api/v1/nodes", node).await.code, 201);
    let address =
        json!({"status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]}});
    let patch = super::request(
        Method::PATCH,
        "/api/v1/nodes/n/status",
        &[("content-type", "application/merge-patch+json")],
        address,
    );
    assert_eq!(f.ask(super::admin(), patch).await.code, 200);
    let pod = json!({"metadata": {"name": "p"}, "spec": {
        "nodeName": "n", "containers": [{"name": "c", "image": "i"}],
    }});
    assert_eq!(f.post("/api/v1/namespaces/default/pods", pod).await.code, 201);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let cancel = CancellationToken::new();
    let (server, stop) = (f.server.clone(), cancel.clone());
    stdx::Env::real().spawn("serve", async move { server.serve_tls(listener, stop).await });
    (f, address, cancel)
}

async fn connect(
    f: &Fixture,
    address: SocketAddr,
    groups: &[&str],
    protocol: &str,
) -> TlsStream<TcpStream> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(f.authority.ca_pem.as_bytes()).unwrap()).unwrap();
    let (chain, key) = f.authority.client("jane", groups);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap())
        .unwrap();
    config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let tcp = TcpStream::connect(address).await.unwrap();
    connector.connect(ServerName::try_from("127.0.0.1").unwrap(), tcp).await.unwrap()
}

async fn http1(stream: TlsStream<TcpStream>) -> hyper::client::conn::http1::SendRequest<Body> {
    let (sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    stdx::Env::real().spawn("client", async move { connection.with_upgrades().await });
    sender
}

fn get(path: &str) -> Request<Body> {
    Request::get(path).header(header::HOST, "server").body(body::empty()).unwrap()
}

async fn answer(response: Response<Incoming>) -> Answer {
    read(response.map(|body| body.map_err(Into::into).boxed_unsync())).await
}

#[tokio::test]
async fn a_certificate_opens_the_door_over_both_http_versions() {
    let (f, address, cancel) = serve().await;
    let path = "/api/v1/namespaces/default/pods/p";
    let mut one = http1(connect(&f, address, &["system:masters"], "http/1.1").await).await;
    assert_eq!(
        answer(one.send_request(get(path)).await.unwrap()).await.json()["metadata"]["name"],
        "p"
    );
    let mut other = http1(connect(&f, address, &["nobody"], "http/1.1").await).await;
    assert_eq!(answer(other.send_request(get(path)).await.unwrap()).await.code, 403);

    let stream = connect(&f, address, &["system:masters"], "h2").await;
    let executor = hyper_util::rt::TokioExecutor::new();
    let (mut two, connection) =
        hyper::client::conn::http2::handshake(executor, TokioIo::new(stream)).await.unwrap();
    stdx::Env::real().spawn("client", connection);
    let request = Request::get(format!("https://server{path}")).body(body::empty()).unwrap();
    assert_eq!(answer(two.send_request(request).await.unwrap()).await.code, 200);
    cancel.cancel();
}

#[tokio::test]
async fn logs_come_from_the_node() {
    let (f, address, cancel) = serve().await;
    let mut client = http1(connect(&f, address, &["system:masters"], "http/1.1").await).await;
    let path = "/api/v1/namespaces/default/pods/p/log?follow=true&tailLines=5&fieldManager=x";
    let log = answer(client.send_request(get(path)).await.unwrap()).await;
    assert_eq!(log.body, "/containerLogs/default/p/c?follow=true&tailLines=5");
    let wrong = client
        .send_request(get("/api/v1/namespaces/default/pods/p/log?container=x"))
        .await
        .unwrap();
    assert_eq!(answer(wrong).await.message(), "container x is not valid for pod p");
    let metrics = client.send_request(get("/api/v1/nodes/n/proxy/metrics?a=b")).await.unwrap();
    assert_eq!(answer(metrics).await.body, "/metrics?a=b");
    cancel.cancel();
}

#[tokio::test]
async fn an_upgraded_connection_reaches_the_node() {
    let (f, address, cancel) = serve().await;
    let mut client = http1(connect(&f, address, &["system:masters"], "http/1.1").await).await;
    let path = "/api/v1/namespaces/default/pods/p/exec?command=sh&command=-c&stdin=true&stdout=true&tty=false";
    let mut request = get(path);
    for (name, value) in [
        ("upgrade", "websocket"),
        ("connection", "Upgrade"),
        ("sec-websocket-protocol", "v5.channel.k8s.io"),
    ] {
        request.headers_mut().insert(name, value.parse().unwrap());
    }
    let mut response = client.send_request(request).await.unwrap();
    assert_eq!(response.status(), 101);
    assert_eq!(response.headers()["sec-websocket-protocol"], "v5.channel.k8s.io");
    assert_eq!(
        response.headers()["x-uri"],
        "/exec/default/p/c?input=1&output=1&command=sh&command=-c"
    );
    let upgraded = hyper::upgrade::on(&mut response).await.unwrap();
    let mut stream = TokioIo::new(upgraded);
    stream.write_all(b"hello").await.unwrap();
    let mut echoed = [0; 5];
    stream.read_exact(&mut echoed).await.unwrap();
    assert_eq!(&echoed, b"hello");
    cancel.cancel();
}

#[tokio::test]
async fn a_plain_request_for_exec_is_refused() {
    let (f, address, cancel) = serve().await;
    let mut client = http1(connect(&f, address, &["system:masters"], "http/1.1").await).await;
    let refused = client
        .send_request(get("/api/v1/namespaces/default/pods/p/exec?command=sh"))
        .await
        .unwrap();
    assert_eq!(answer(refused).await.message(), "Upgrade request required");
    cancel.cancel();
}

#[tokio::test]
async fn the_certificate_is_replaced_while_serving() {
    let (f, address, cancel) = serve().await;
    let serial = async || {
        let stream = connect(&f, address, &[], "http/1.1").await;
        stream.get_ref().1.peer_certificates().unwrap()[0].to_vec()
    };
    let before = serial().await;
    assert_eq!(before, serial().await);
    let (chain, key) = f.authority.server();
    f.server.replace_certificate(chain.as_bytes(), key.as_bytes()).unwrap();
    assert_ne!(before, serial().await);
    cancel.cancel();
}
