//! What a server is told at its start.

use std::{net::IpAddr, sync::Arc, time::Duration};

use crate::{
    authn::x509::AuthorityError,
    nodes::{NoNodes, NodeDialler},
    tls::TlsError,
};

/// Settings of a server. Certificates and keys are PEM texts; who reads them from files hands
/// fresh ones in through [`crate::Server::replace_certificate`].
#[derive(Clone)]
pub struct ServerConfig {
    /// The serving certificate chain and its key; `None` for servers without a listener.
    pub serving: Option<(String, String)>,
    /// Authorities that sign client certificates.
    pub client_ca_pem: String,
    pub front_proxy: Option<FrontProxyConfig>,
    /// The key that signs service account tokens.
    pub service_account_key_pem: String,
    pub service_account_issuer: String,
    /// What tokens for this server are meant for; empty: the issuer.
    pub api_audiences: Vec<String>,
    /// The longest lifetime of a service account token.
    pub max_token_expiration: Option<Duration>,
    /// `HOST:PORT` by which clients outside reach the server, for discovery.
    pub external_address: String,
    /// Where pods reach the server: the endpoint behind the `kubernetes` Service. `None` leaves
    /// that Service without endpoints of this server.
    pub advertise: Option<(IpAddr, u16)>,
    /// Other servers share the store: their endpoints stay beside this one's.
    pub one_of_many: bool,
    pub dialler: Arc<dyn NodeDialler>,
    /// Requests served at once; those that stream are not counted.
    pub max_read_only_in_flight: usize,
    pub max_mutating_in_flight: usize,
    /// The deadline of requests that do not stream.
    pub request_timeout: Duration,
    /// The shortest default lifetime of a watch; each lasts up to twice as long.
    pub min_watch_timeout: Duration,
    /// `tolerationSeconds` that pods get for unready and unreachable nodes.
    pub default_toleration_seconds: i64,
    /// Whether requests without credentials may ask for health.
    pub anonymous_health: bool,
}

/// An authenticating proxy in front of the server.
#[derive(Clone)]
pub struct FrontProxyConfig {
    pub ca_pem: String,
    /// Common names that its certificate may have; empty for any.
    pub allowed_names: Vec<String>,
}

impl ServerConfig {
    /// The usual settings around what every server needs.
    pub fn new(client_ca_pem: String, service_account_key_pem: String) -> Self {
        Self {
            serving: None,
            client_ca_pem,
            front_proxy: None,
            service_account_key_pem,
            service_account_issuer: "https://kubernetes.default.svc.cluster.local".into(),
            api_audiences: Vec::new(),
            max_token_expiration: None,
            external_address: "127.0.0.1:6443".into(),
            advertise: None,
            one_of_many: false,
            dialler: Arc::new(NoNodes),
            max_read_only_in_flight: 400,
            max_mutating_in_flight: 200,
            request_timeout: Duration::from_secs(60),
            min_watch_timeout: Duration::from_secs(1800),
            default_toleration_seconds: 300,
            anonymous_health: true,
        }
    }
}

/// Why a server cannot start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("client certificate authority")]
    ClientAuthority(#[source] AuthorityError),
    #[error("front proxy's certificate authority")]
    FrontProxy(#[source] AuthorityError),
    #[error("key for service account tokens")]
    ServiceAccountKey(#[from] crate::authn::jwt::KeyError),
    #[error("serving certificate")]
    Serving(#[from] TlsError),
    #[error("the server has no serving certificate")]
    NoCertificate,
    #[error("write of {what}")]
    Bootstrap { what: String, source: api::Status },
}
