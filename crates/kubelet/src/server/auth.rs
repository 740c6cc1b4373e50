//! Who asks, and whether they may: client certificates and tokens, decided by the API server.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use client::Resource;
use http::{Method, Request, StatusCode, header};
use hyper::body::Incoming;
use machinery::{Object, value};
use rustls::pki_types::CertificateDer;
use stdx::{Timestamp, chain};

use super::Refusal;
use crate::context::Context;

/// A user by name and groups.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Identity {
    pub user: String,
    pub groups: Vec<String>,
}

impl Identity {
    /// Common name and organizations of a verified client certificate.
    pub fn of(certificate: &CertificateDer) -> Option<Self> {
        let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
        let subject = parsed.subject();
        let user = subject.iter_common_name().next()?.as_str().ok()?.to_owned();
        let groups = subject.iter_organization().filter_map(|name| name.as_str().ok());
        let groups = groups.map(str::to_owned).chain(["system:authenticated".to_owned()]);
        Some(Self { user, groups: groups.collect() })
    }
}

const TOKEN_REVIEWS: Resource =
    Resource::cluster("authentication.k8s.io", "v1", "tokenreviews", "TokenReview");
const ACCESS_REVIEWS: Resource =
    Resource::cluster("authorization.k8s.io", "v1", "subjectaccessreviews", "SubjectAccessReview");

/// How long an answer of the API server is believed: upstream's defaults.
const ALLOWED_FOR: Duration = Duration::from_secs(300);
const DENIED_FOR: Duration = Duration::from_secs(30);
const TOKEN_FOR: Duration = Duration::from_secs(120);

pub struct Authorizer {
    context: Arc<Context>,
    tokens: Mutex<BTreeMap<String, (Option<Identity>, Timestamp)>>,
    decisions: Mutex<BTreeMap<(Identity, &'static str, &'static str), (bool, Timestamp)>>,
}

impl Authorizer {
    pub fn new(context: Arc<Context>) -> Self {
        Self { context, tokens: Mutex::default(), decisions: Mutex::default() }
    }

    /// Lets the request pass, or says how it is refused.
    pub async fn check(
        &self,
        request: &Request<Incoming>,
        identity: Option<Identity>,
    ) -> Result<(), Refusal> {
        let identity = match identity {
            Some(identity) => Some(identity),
            None => self.by_token(request).await?,
        };
        let unauthorized = || Refusal(StatusCode::UNAUTHORIZED, "Unauthorized".into());
        let identity = identity.ok_or_else(unauthorized)?;
        let verb = verb(request.method());
        let wanted = subresources(request.uri().path());
        for subresource in &wanted {
            if self.is_allowed(&identity, verb, subresource).await? {
                return Ok(());
            }
        }
        Err(Refusal(
            StatusCode::FORBIDDEN,
            format!(
                "Forbidden (user={}, verb={verb}, resource=nodes, subresource(s)=[{}])",
                identity.user,
                wanted.join(" ")
            ),
        ))
    }

    async fn by_token(&self, request: &Request<Incoming>) -> Result<Option<Identity>, Refusal> {
        let header = request.headers().get(header::AUTHORIZATION);
        let token = header.and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
        let Some(token) = token.map(str::trim).filter(|token| !token.is_empty()) else {
            return Ok(None);
        };
        let now = self.context.env.now();
        let known = self.tokens.lock().unwrap_or_else(PoisonError::into_inner).get(token).cloned();
        if let Some((identity, _)) = known.filter(|(_, until)| now < *until) {
            return Ok(identity);
        }
        let mut review = Object::new("authentication.k8s.io/v1", "TokenReview", "", "");
        review.set_at(&["spec", "token"], token);
        let answer = self.context.client.create(&TOKEN_REVIEWS, "", &review).await;
        let answer = answer.map_err(|error| Refusal::internal(chain(&error).to_string()))?;
        let identity = answer.bool_at(&["status", "authenticated"]).then(|| Identity {
            user: answer.str_at(&["status", "user", "username"]).to_owned(),
            groups: answer
                .list_at(&["status", "user", "groups"])
                .iter()
                .filter_map(|group| group.as_str().map(str::to_owned))
                .collect(),
        });
        let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        tokens.retain(|_, (_, until)| now < *until);
        tokens.insert(token.to_owned(), (identity.clone(), now + TOKEN_FOR));
        Ok(identity)
    }

    async fn is_allowed(
        &self,
        identity: &Identity,
        verb: &'static str,
        subresource: &'static str,
    ) -> Result<bool, Refusal> {
        let key = (identity.clone(), verb, subresource);
        let now = self.context.env.now();
        let known =
            self.decisions.lock().unwrap_or_else(PoisonError::into_inner).get(&key).copied();
        if let Some((allowed, _)) = known.filter(|(_, until)| now < *until) {
            return Ok(allowed);
        }
        let mut review = Object::new("authorization.k8s.io/v1", "SubjectAccessReview", "", "");
        let spec = value!({
            "user": identity.user,
            "groups": identity.groups,
            "resourceAttributes": {
                "verb": verb, "version": "v1", "resource": "nodes",
                "subresource": subresource, "name": self.context.config.node_name,
            },
        });
        review.root_mut().insert("spec", spec);
        let answer = self.context.client.create(&ACCESS_REVIEWS, "", &review).await;
        let answer = answer.map_err(|error| Refusal::internal(chain(&error).to_string()))?;
        let allowed = answer.bool_at(&["status", "allowed"]);
        let until = now + if allowed { ALLOWED_FOR } else { DENIED_FOR };
        let mut decisions = self.decisions.lock().unwrap_or_else(PoisonError::into_inner);
        decisions.retain(|_, (_, until)| now < *until);
        decisions.insert(key, (allowed, until));
        Ok(allowed)
    }
}

fn verb(method: &Method) -> &'static str {
    match *method {
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => "get",
    }
}

/// What of a node the path is about; any of these suffices.
fn subresources(path: &str) -> Vec<&'static str> {
    let first = path.trim_start_matches('/').split('/').next().unwrap_or_default();
    match first {
        "stats" => vec!["stats"],
        "metrics" => vec!["metrics"],
        "logs" => vec!["log"],
        "spec" => vec!["spec"],
        "configz" => vec!["configz", "proxy"],
        "healthz" => vec!["healthz", "proxy"],
        "pods" | "runningpods" => vec!["pods", "proxy"],
        _ => vec!["proxy"],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_parts_of_a_node() {
        assert_eq!(subresources("/metrics/cadvisor"), ["metrics"]);
        assert_eq!(subresources("/exec/a/b/c"), ["proxy"]);
        assert_eq!(subresources("/pods"), ["pods", "proxy"]);
        assert_eq!(verb(&Method::POST), "create");
    }

    #[test]
    fn a_certificate_names_a_user() {
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name.push(rcgen::DnType::CommonName, "kube-apiserver-kubelet-client");
        params.distinguished_name.push(rcgen::DnType::OrganizationName, "kubeadm:cluster-admins");
        let key = rcgen::KeyPair::generate().unwrap();
        let made = params.self_signed(&key).unwrap();
        let identity = Identity::of(made.der()).unwrap();
        assert_eq!(identity.user, "kube-apiserver-kubelet-client");
        assert_eq!(identity.groups, ["kubeadm:cluster-admins", "system:authenticated"]);
    }
}
