//! Who is asking: the wiring of this process, a client certificate, a bearer token, or nobody.

pub mod bootstrap_token;
pub mod jwt;
pub mod service_account;
pub mod x509;

use std::sync::{Arc, PoisonError, RwLock};

use http::{HeaderMap, header};
use rustls::pki_types::CertificateDer;
use stdx::{Env, Timestamp};

use crate::{UserInfo, data::Data, query::percent_decode};
use service_account::ServiceAccounts;
use x509::{CertificateUser, ClientAuthority};

const AUTHENTICATED: &str = "system:authenticated";
const CREDENTIAL_ID: &str = "authentication.kubernetes.io/credential-id";

/// How a request reached the server.
#[derive(Clone, Debug)]
pub enum Identity {
    /// A caller in this process, whose user the wiring fixed as a client certificate would.
    Verified(Arc<UserInfo>),
    /// A network connection, with the certificates that the client showed (leaf first).
    Connection(Arc<Connection>),
}

/// One TLS connection.
#[derive(Debug, Default)]
pub struct Connection {
    pub peer: String,
    pub certificates: Vec<CertificateDer<'static>>,
    /// What the certificates were found to say, judged once per connection.
    judged: std::sync::OnceLock<Judged>,
}

#[derive(Debug)]
struct Judged {
    client: Option<CertificateUser>,
    front_proxy: Option<CertificateUser>,
}

impl Connection {
    pub fn new(peer: String, certificates: Vec<CertificateDer<'static>>) -> Self {
        Self { peer, certificates, judged: Default::default() }
    }
}

/// Names the user of a request.
pub struct Authenticator {
    pub client_authority: RwLock<ClientAuthority>,
    pub front_proxy: Option<FrontProxy>,
    pub service_accounts: Arc<ServiceAccounts>,
    pub data: Data,
    pub env: Env,
}

/// An authenticating proxy, trusted to name users in headers.
#[derive(Clone)]
pub struct FrontProxy {
    pub authority: ClientAuthority,
    /// Common names that it may have; empty for any.
    pub allowed_names: Vec<String>,
}

/// What came of it.
#[derive(Clone, Debug)]
pub enum Outcome {
    User(Arc<UserInfo>),
    /// No credentials at all.
    Anonymous,
    /// Credentials that are not valid.
    Refused,
}

impl Authenticator {
    pub async fn authenticate(&self, identity: &Identity, headers: &HeaderMap) -> Outcome {
        let connection = match identity {
            Identity::Verified(user) => return Outcome::User(user.clone()),
            Identity::Connection(connection) => connection,
        };
        let now = self.env.now();
        let judged = connection.judged.get_or_init(|| self.judge(connection, now));
        if let Some(user) = self.by_front_proxy(judged, headers, now) {
            return Outcome::User(Arc::new(user));
        }
        if let Some(certificate) = judged.client.as_ref().filter(|c| now <= c.not_after) {
            return Outcome::User(Arc::new(by_certificate(certificate)));
        }
        match bearer_token(headers) {
            Some(token) => match self.by_token(&token, &[]).await {
                Some((user, _)) => Outcome::User(Arc::new(user)),
                None => Outcome::Refused,
            },
            None if !connection.certificates.is_empty() => Outcome::Refused,
            None => Outcome::Anonymous,
        }
    }

    /// The user of a bearer token that is meant for one of `audiences` (empty: for this server),
    /// and the audiences that fit.
    pub async fn by_token(
        &self,
        token: &str,
        audiences: &[String],
    ) -> Option<(UserInfo, Vec<String>)> {
        let found = match bootstrap_token::looks_like_one(token) {
            true if audiences.is_empty() => {
                let user = bootstrap_token::authenticate(&self.data, token, self.env.now()).await?;
                (user, Vec::new())
            }
            true => return None,
            false => {
                self.service_accounts
                    .authenticate(&self.data, token, audiences, self.env.now())
                    .await?
            }
        };
        Some((authenticated(found.0), found.1))
    }

    fn judge(&self, connection: &Connection, now: Timestamp) -> Judged {
        let chain = &connection.certificates;
        let authority =
            self.client_authority.read().unwrap_or_else(PoisonError::into_inner).clone();
        let proxy = self.front_proxy.as_ref().and_then(|proxy| proxy.authority.verify(chain, now));
        Judged { client: authority.verify(chain, now), front_proxy: proxy }
    }

    fn by_front_proxy(
        &self,
        judged: &Judged,
        headers: &HeaderMap,
        now: Timestamp,
    ) -> Option<UserInfo> {
        let proxy = self.front_proxy.as_ref()?;
        let certificate = judged.front_proxy.as_ref().filter(|c| now <= c.not_after)?;
        let named = proxy.allowed_names.is_empty()
            || proxy.allowed_names.contains(&certificate.common_name);
        named.then(|| by_headers(headers)).flatten()
    }
}

fn by_certificate(certificate: &CertificateUser) -> UserInfo {
    authenticated(UserInfo {
        name: certificate.common_name.clone(),
        groups: certificate.organizations.clone(),
        extra: [(CREDENTIAL_ID.to_owned(), vec![certificate.credential_id.clone()])].into(),
        ..UserInfo::default()
    })
}

fn by_headers(headers: &HeaderMap) -> Option<UserInfo> {
    let text = |value: &http::HeaderValue| value.to_str().ok().map(str::to_owned);
    let name = headers.get("x-remote-user").and_then(text).filter(|name| !name.is_empty())?;
    let groups = headers.get_all("x-remote-group").iter().filter_map(text).collect();
    let mut user = UserInfo { name, groups, ..UserInfo::default() };
    user.uid = headers.get("x-remote-uid").and_then(text).unwrap_or_default();
    for (header, value) in headers {
        if let Some(key) = header.as_str().strip_prefix("x-remote-extra-") {
            user.extra.entry(percent_decode(key)).or_default().extend(text(value));
        }
    }
    Some(authenticated(user))
}

/// Adds the group of everybody who has credentials.
pub fn authenticated(mut user: UserInfo) -> UserInfo {
    if !user.groups.iter().any(|group| group == AUTHENTICATED || group == "system:unauthenticated")
    {
        user.groups.push(AUTHENTICATED.into());
    }
    user
}

/// The user of a request without credentials.
pub fn anonymous() -> UserInfo {
    UserInfo {
        name: "system:anonymous".into(),
        groups: vec!["system:unauthenticated".into()],
        ..UserInfo::default()
    }
}

/// The token of `Authorization: Bearer`, or of the WebSocket subprotocol that browsers use.
fn bearer_token(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.trim().split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then(|| token.to_owned())
}
