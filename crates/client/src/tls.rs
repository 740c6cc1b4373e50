//! The transport to a server over TLS: HTTP/2 where the server offers it, one connection for
//! everything, made again when it breaks.

use std::{
    future::Future,
    io::{Error as IoError, Result as IoResult},
    path::PathBuf,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use http::{Uri, header, uri};
use http_body_util::{BodyStream as Frames, Full};
use hyper::rt;
use hyper_util::{
    client::legacy::{
        Client as Hyper,
        connect::{Connected, Connection as Negotiated},
    },
    rt::{TokioExecutor, TokioIo, TokioTimer},
};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::{
    Client, Error, Source,
    config::{Connection, Token},
    transport::{BodyStream, Transport},
};

impl Client {
    /// A client for a server reached over the network.
    pub fn connect(connection: &Connection, field_manager: &str) -> Result<Self, Error> {
        Ok(Self::new(Arc::new(TlsTransport::new(connection)?), field_manager))
    }
}

/// One server, one identity.
pub struct TlsTransport {
    http: Hyper<Connector, Full<Bytes>>,
    server: Uri,
    token: Option<TokenSource>,
}

enum TokenSource {
    Fixed(String),
    File(PathBuf),
}

impl TlsTransport {
    pub fn new(connection: &Connection) -> Result<Self, Error> {
        let server: Uri = connection.server.parse().map_err(|source: uri::InvalidUri| {
            config_error(format!("{:?} is not a URL", connection.server), source)
        })?;
        let tls = Arc::new(client_config(connection, &[b"h2", b"http/1.1"])?);
        let name = server_name(connection, &server)?;
        let connector = Connector { tls: TlsConnector::from(tls), name };
        let http = Hyper::builder(TokioExecutor::new())
            .timer(TokioTimer::new())
            .pool_timer(TokioTimer::new())
            .http2_keep_alive_interval(Duration::from_secs(30))
            .http2_keep_alive_timeout(Duration::from_secs(15))
            .http2_adaptive_window(true)
            .build(connector);
        let token = connection.token.clone().map(|token| match token {
            Token::Fixed(text) => TokenSource::Fixed(text),
            Token::File(path) => TokenSource::File(path),
        });
        Ok(Self { http, server, token })
    }

    fn bearer(&self) -> Result<Option<String>, Error> {
        match &self.token {
            None => Ok(None),
            Some(TokenSource::Fixed(text)) => Ok(Some(text.clone())),
            Some(TokenSource::File(path)) => std::fs::read_to_string(path)
                .map(|text| Some(text.trim().to_owned()))
                .map_err(|source| config_error(format!("cannot read {}", path.display()), source)),
        }
    }
}

#[async_trait]
impl Transport for TlsTransport {
    async fn send(
        &self,
        request: http::Request<Bytes>,
    ) -> Result<http::Response<BodyStream>, Error> {
        let (mut parts, body) = request.into_parts();
        let mut whole = self.server.clone().into_parts();
        whole.path_and_query = parts.uri.path_and_query().cloned();
        parts.uri = Uri::from_parts(whole).map_err(|e| Error::Transport(e.into()))?;
        if let Some(token) = self.bearer()? {
            let value = format!("Bearer {token}").parse().map_err(|_| Error::Config {
                what: "the bearer token has characters that no header may hold".into(),
                source: None,
            })?;
            parts.headers.insert(header::AUTHORIZATION, value);
        }
        let request = http::Request::from_parts(parts, Full::new(body));
        let response =
            self.http.request(request).await.map_err(|source| Error::Transport(source.into()))?;
        Ok(response.map(|body| -> BodyStream {
            Box::pin(Frames::new(body).filter_map(|frame| async move {
                match frame {
                    Ok(frame) => frame.into_data().ok().map(Ok),
                    Err(error) => Some(Err(Source::from(error))),
                }
            }))
        }))
    }
}

/// TLS settings for a connection: its CA alone is trusted; the client certificate is offered.
pub fn client_config(connection: &Connection, alpn: &[&[u8]]) -> Result<ClientConfig, Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|source| config_error("TLS cannot be set up".into(), source))?;
    let builder = if connection.insecure {
        builder.dangerous().with_custom_certificate_verifier(Arc::new(insecure::AcceptAll))
    } else {
        builder.with_root_certificates(roots(&connection.ca)?)
    };
    let mut config = match &connection.certificate {
        None => builder.with_no_client_auth(),
        Some((chain, key)) => {
            let chain: Vec<CertificateDer> =
                CertificateDer::pem_slice_iter(chain).collect::<Result<_, _>>().map_err(
                    |source| config_error("the client certificate is not PEM".into(), source),
                )?;
            let key = PrivateKeyDer::from_pem_slice(key)
                .map_err(|source| config_error("the client key is not PEM".into(), source))?;
            builder.with_client_auth_cert(chain, key).map_err(|source| {
                config_error("the client certificate is unusable".into(), source)
            })?
        }
    };
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    Ok(config)
}

fn roots(pem: &[u8]) -> Result<RootCertStore, Error> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let certificate = certificate
            .map_err(|source| config_error("the cluster's CA is not PEM".into(), source))?;
        roots
            .add(certificate)
            .map_err(|source| config_error("the cluster's CA is unusable".into(), source))?;
    }
    Ok(roots)
}

/// The name that the server's certificate must have.
pub fn server_name(connection: &Connection, server: &Uri) -> Result<ServerName<'static>, Error> {
    let host = match connection.server_name.as_str() {
        "" => server.host().unwrap_or_default().trim_matches(['[', ']']),
        name => name,
    };
    ServerName::try_from(host.to_owned())
        .map_err(|source| config_error(format!("{host:?} is not a host name"), source))
}

fn config_error(what: String, source: impl Into<Source>) -> Error {
    Error::Config { what, source: Some(source.into()) }
}

#[derive(Clone)]
struct Connector {
    tls: TlsConnector,
    name: ServerName<'static>,
}

impl tower_service::Service<Uri> for Connector {
    type Response = Stream;
    type Error = IoError;
    type Future = Pin<Box<dyn Future<Output = IoResult<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<IoResult<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, server: Uri) -> Self::Future {
        let Self { tls, name } = self.clone();
        Box::pin(async move {
            let host = server.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
            let port = server.port_u16().unwrap_or(443);
            let tcp = TcpStream::connect((host.as_str(), port)).await?;
            tcp.set_nodelay(true)?;
            Ok(Stream(TokioIo::new(tls.connect(name, tcp).await?)))
        })
    }
}

/// A TLS stream that tells hyper which protocol was agreed on.
pub struct Stream(TokioIo<TlsStream<TcpStream>>);

impl Negotiated for Stream {
    fn connected(&self) -> Connected {
        let (_, session) = self.0.inner().get_ref();
        let connected = Connected::new();
        if session.alpn_protocol() == Some(b"h2") { connected.negotiated_h2() } else { connected }
    }
}

impl rt::Read for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: rt::ReadBufCursor<'_>,
    ) -> Poll<IoResult<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl rt::Write for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<IoResult<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<IoResult<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<IoResult<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

/// Fetches the CA that a server presents at the end of its chain and checks that SHA-256 of its
/// public key information is `hash` (hex), as a join token carries it. Gives the CA as PEM.
pub async fn discover_ca(server: &str, hash: &str) -> Result<Vec<u8>, Error> {
    let uri: Uri = server.parse().map_err(|source: uri::InvalidUri| {
        config_error(format!("{server:?} is not a URL"), source)
    })?;
    let connection = Connection { insecure: true, ..Connection::default() };
    let tls = TlsConnector::from(Arc::new(client_config(&connection, &[])?));
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
    let tcp = TcpStream::connect((host.as_str(), uri.port_u16().unwrap_or(443))).await;
    let tcp = tcp.map_err(|source| Error::Transport(source.into()))?;
    let stream = tls
        .connect(server_name(&connection, &uri)?, tcp)
        .await
        .map_err(|source| Error::Transport(source.into()))?;
    let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
    let ca = chain.last().ok_or_else(|| Error::Config {
        what: "the server showed no certificate".into(),
        source: None,
    })?;
    let (_, parsed) = x509_parser::parse_x509_certificate(ca)
        .map_err(|source| config_error("the server's CA is malformed".into(), source))?;
    let digest = ring::digest::digest(&ring::digest::SHA256, parsed.public_key().raw);
    let found: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    if found != hash {
        return Err(Error::Config {
            what: format!("the server's CA has the hash {found}, the token says {hash}"),
            source: None,
        });
    }
    let body = base64::Engine::encode(&base64::prelude::BASE64_STANDARD, ca);
    let lines: Vec<&str> =
        (0..body.len()).step_by(64).map(|at| &body[at..(at + 64).min(body.len())]).collect();
    let pem =
        format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"));
    Ok(pem.into_bytes())
}

/// Only for a kubeconfig that says `insecure-skip-tls-verify`.
mod insecure {
    use rustls::{
        DigitallySignedStruct, Error, SignatureScheme,
        client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        crypto::ring::default_provider,
        pki_types::{CertificateDer, ServerName, UnixTime},
    };

    #[derive(Debug)]
    pub struct AcceptAll;

    impl ServerCertVerifier for AcceptAll {
        fn verify_server_cert(
            &self,
            _: &CertificateDer<'_>,
            _: &[CertificateDer<'_>],
            _: &ServerName<'_>,
            _: &[u8],
            _: UnixTime,
        ) -> Result<ServerCertVerified, Error> {
            Ok(ServerCertVerified::assertion())
        }

        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            Ok(HandshakeSignatureValid::assertion())
        }

        fn verify_tls13_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            Ok(HandshakeSignatureValid::assertion())
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            default_provider().signature_verification_algorithms.supported_schemes()
        }
    }
}
