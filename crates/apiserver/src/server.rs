//! The server: what all requests share, and how they come in.

use std::{
    net::SocketAddr,
    sync::{Arc, PoisonError},
};

use http::{Request, Response};
use http_body_util::BodyExt;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::conn::auto,
};
use registry::Registry;
use stdx::{CancellationToken, Env};
use tokio::{net::TcpListener, sync::Semaphore};
use tokio_rustls::TlsAcceptor;

use crate::{
    admission::Chain,
    authn::{
        Authenticator, Connection, FrontProxy, Identity, jwt::SigningKey,
        service_account::ServiceAccounts, x509::ClientAuthority,
    },
    authz::Authorizer,
    body::Body,
    config::{Error, ServerConfig},
    data::Data,
    feeds,
    health::Health,
    metrics::Metrics,
    pipeline,
    tls::{self, ServingCertificate, TlsError},
};

/// One API server. Everything in it is shared by all requests.
pub struct Server {
    pub(crate) env: Env,
    pub(crate) config: ServerConfig,
    pub(crate) data: Data,
    pub(crate) authenticator: Authenticator,
    pub(crate) authorizer: Arc<Authorizer>,
    pub(crate) admission: Chain,
    pub(crate) service_accounts: Arc<ServiceAccounts>,
    pub(crate) metrics: Metrics,
    pub(crate) health: Health,
    pub(crate) read_only: Arc<Semaphore>,
    pub(crate) mutating: Arc<Semaphore>,
    /// Cancelled when the server shuts down: watches end, new requests are refused.
    pub(crate) stopping: CancellationToken,
    certificate: Option<Arc<ServingCertificate>>,
    feeds: feeds::Feeds,
}

impl Server {
    /// Checks the settings and starts the informers behind authorization. Objects that every
    /// cluster has are written by [`Server::bootstrap`].
    pub fn new(
        env: Env,
        registry: Arc<Registry>,
        config: ServerConfig,
    ) -> Result<Arc<Self>, Error> {
        let data = Data::new(registry);
        let service_accounts = Arc::new(service_accounts(&config)?);
        let authority = ClientAuthority::from_pem(config.client_ca_pem.as_bytes());
        let front_proxy = config.front_proxy.as_ref().map(|proxy| {
            let authority =
                ClientAuthority::from_pem(proxy.ca_pem.as_bytes()).map_err(Error::FrontProxy)?;
            Ok::<_, Error>(FrontProxy { authority, allowed_names: proxy.allowed_names.clone() })
        });
        let serving = config.serving.as_ref();
        let certificate = serving
            .map(|(chain, key)| ServingCertificate::new(chain.as_bytes(), key.as_bytes()))
            .transpose()?;
        let authorizer = Arc::new(Authorizer::default());
        let feeds = feeds::start(&env, &data, &authorizer);
        Ok(Arc::new(Self {
            authenticator: Authenticator {
                client_authority: authority.map_err(Error::ClientAuthority)?.into(),
                front_proxy: front_proxy.transpose()?,
                service_accounts: service_accounts.clone(),
                data: data.clone(),
                env: env.clone(),
            },
            admission: Chain::new(&env, &data, &authorizer, &config),
            health: Health::default(),
            metrics: Metrics::default(),
            read_only: Arc::new(Semaphore::new(config.max_read_only_in_flight)),
            mutating: Arc::new(Semaphore::new(config.max_mutating_in_flight)),
            stopping: CancellationToken::new(),
            certificate: certificate.map(Arc::new),
            env,
            data,
            authorizer,
            service_accounts,
            feeds,
            config,
        }))
    }

    /// Answers one request through the whole chain. `identity` says how it came in; a caller in
    /// this process hands in the user that the wiring gave it.
    pub async fn handle(
        self: &Arc<Self>,
        request: Request<Body>,
        identity: Identity,
    ) -> Response<Body> {
        pipeline::handle(self, request, identity).await
    }

    /// Serves TLS connections until `cancel`; then open requests end and watches are closed.
    pub async fn serve_tls(
        self: &Arc<Self>,
        listener: TcpListener,
        cancel: CancellationToken,
    ) -> Result<(), Error> {
        let certificate = self.certificate.clone().ok_or(Error::NoCertificate)?;
        let acceptor = TlsAcceptor::from(Arc::new(tls::server_config(certificate)?));
        let connections = tracker::Connections::default();
        loop {
            let accepted = tokio::select! {
                biased;
                () = cancel.cancelled() => break,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, peer)) => {
                    let _ = stream.set_nodelay(true);
                    let (server, acceptor, guard) =
                        (self.clone(), acceptor.clone(), connections.enter());
                    let cancel = cancel.clone();
                    self.env.spawn("connection", async move {
                        server.serve_connection(acceptor, stream, peer, cancel).await;
                        drop(guard);
                    });
                }
                Err(error) => {
                    // Usually out of file descriptors: others must be closed first.
                    tracing::warn!(%error, "accept failed");
                    self.env.sleep(std::time::Duration::from_millis(50)).await;
                }
            }
        }
        self.stopping.cancel();
        let drained = self.env.timeout(self.config.request_timeout, connections.all_left()).await;
        if drained.is_none() {
            tracing::warn!("connections were still open at the end of the grace period");
        }
        Ok(())
    }

    async fn serve_connection(
        self: Arc<Self>,
        acceptor: TlsAcceptor,
        stream: tokio::net::TcpStream,
        peer: SocketAddr,
        cancel: CancellationToken,
    ) {
        let handshake =
            self.env.timeout(std::time::Duration::from_secs(10), acceptor.accept(stream)).await;
        let stream = match handshake {
            Some(Ok(stream)) => stream,
            Some(Err(error)) => return tracing::debug!(%peer, %error, "TLS handshake failed"),
            None => return tracing::debug!(%peer, "TLS handshake took too long"),
        };
        let certificates = stream.get_ref().1.peer_certificates().unwrap_or_default();
        let certificates = certificates.iter().map(|c| c.clone().into_owned()).collect();
        let connection = Arc::new(Connection::new(peer.to_string(), certificates));
        let service = hyper::service::service_fn(|request: Request<hyper::body::Incoming>| {
            let (server, connection) = (self.clone(), connection.clone());
            async move {
                let request = request.map(|body| body.map_err(Into::into).boxed_unsync());
                Ok::<_, std::convert::Infallible>(
                    server.handle(request, Identity::Connection(connection)).await,
                )
            }
        });
        let mut builder = auto::Builder::new(Spawner(self.env.clone()));
        builder.http1().timer(TokioTimer::new());
        builder
            .http2()
            .timer(TokioTimer::new())
            .max_concurrent_streams(1000)
            .initial_stream_window_size(1 << 20);
        let serving = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
        let mut serving = std::pin::pin!(serving);
        let ended = tokio::select! {
            biased;
            ended = serving.as_mut() => ended,
            () = cancel.cancelled() => {
                serving.as_mut().graceful_shutdown();
                serving.await
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%peer, error = %error, "connection ended");
        }
    }

    /// Serves another certificate from the next handshake on.
    pub fn replace_certificate(&self, chain_pem: &[u8], key_pem: &[u8]) -> Result<(), TlsError> {
        match &self.certificate {
            Some(certificate) => certificate.replace(chain_pem, key_pem),
            None => Ok(()),
        }
    }

    /// Trusts other authorities of client certificates from the next connection on.
    pub fn replace_client_authority(&self, ca_pem: &[u8]) -> Result<(), Error> {
        let fresh = ClientAuthority::from_pem(ca_pem).map_err(Error::ClientAuthority)?;
        *self.authenticator.client_authority.write().unwrap_or_else(PoisonError::into_inner) =
            fresh;
        Ok(())
    }

    pub(crate) fn is_synced(&self) -> bool {
        self.feeds.is_synced()
    }

    /// Waits until roles, bindings and pods have been read once, so that decisions are complete.
    pub async fn ready(&self) {
        self.feeds.synced().await;
    }
}

fn service_accounts(config: &ServerConfig) -> Result<ServiceAccounts, Error> {
    let signing_key = SigningKey::from_pem(config.service_account_key_pem.as_bytes())?;
    let issuer = config.service_account_issuer.clone();
    let audiences = match config.api_audiences.as_slice() {
        [] => vec![issuer.clone()],
        own => own.to_vec(),
    };
    let longest = config.max_token_expiration.map_or(1 << 32, |longest| longest.as_secs() as i64);
    let keys = vec![signing_key.public().clone()];
    Ok(ServiceAccounts { signing_key, keys, issuer, audiences, max_expiration_seconds: longest })
}

/// Lets hyper spawn its tasks through the environment.
#[derive(Clone)]
struct Spawner(Env);

impl<F> hyper::rt::Executor<F> for Spawner
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, future: F) {
        self.0.spawn("http2-stream", future);
    }
}

/// Counts open connections, so that the end can wait for them.
mod tracker {
    use std::sync::Arc;
    use tokio::sync::watch;

    pub struct Connections(Arc<watch::Sender<usize>>);

    pub struct Guard(Arc<watch::Sender<usize>>);

    impl Default for Connections {
        fn default() -> Self {
            Self(Arc::new(watch::channel(0).0))
        }
    }

    impl Connections {
        pub fn enter(&self) -> Guard {
            self.0.send_modify(|open| *open += 1);
            Guard(self.0.clone())
        }

        pub async fn all_left(&self) {
            let _ = self.0.subscribe().wait_for(|&open| open == 0).await;
        }
    }

    impl Drop for Guard {
        fn drop(&mut self) {
            self.0.send_modify(|open| *open -= 1);
        }
    }
}
