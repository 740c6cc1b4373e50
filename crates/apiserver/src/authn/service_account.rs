//! Tokens of service accounts: signed here, bound to a pod, secret or node, and valid only as
//! long as these live.

use api::Status;
use machinery::Object;
use serde_json::{Value as Json, json};
use std::time::Duration;
use stdx::{Env, Timestamp};

use super::jwt::{self, PublicKey, SigningKey};
use crate::{UserInfo, data::Data};

pub const USER_PREFIX: &str = "system:serviceaccount:";
const NAMESPACE_CLAIM: &str = "kubernetes.io";
/// How long after its deletion was asked for a bound object still counts.
const GRACE: Duration = Duration::from_secs(60);
/// The lifetime that pods ask for; such tokens live a year, for clients that never reread them.
const POD_TOKEN_SECONDS: i64 = 3607;
const EXTENDED_SECONDS: i64 = 365 * 24 * 3600;

/// Signs and verifies tokens.
pub struct ServiceAccounts {
    pub signing_key: SigningKey,
    /// Keys that verify, the signing key's among them.
    pub keys: Vec<PublicKey>,
    pub issuer: String,
    /// What tokens for this server are meant for; the first is put into new tokens.
    pub audiences: Vec<String>,
    /// The longest lifetime that is granted, in seconds.
    pub max_expiration_seconds: i64,
}

/// What a token shall be bound to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bound {
    /// `pod`, `secret` or `node`
    pub claim: &'static str,
    pub name: String,
    pub uid: String,
    /// The node of a bound pod: name and uid.
    pub node: Option<(String, String)>,
}

/// A signed token.
#[derive(Clone, Debug)]
pub struct Issued {
    pub token: String,
    /// When its holder should have a fresh one.
    pub expires: Timestamp,
    pub audiences: Vec<String>,
}

impl ServiceAccounts {
    /// Signs a token of `account` for `audiences` (empty: this server).
    pub fn issue(
        &self,
        env: &Env,
        account: &Object,
        audiences: &[String],
        expiration_seconds: i64,
        bound: Option<&Bound>,
    ) -> Issued {
        let audiences = if audiences.is_empty() { &self.audiences } else { audiences };
        let now = env.now().as_secs();
        let lifetime = expiration_seconds.min(self.max_expiration_seconds);
        let for_us = audiences.iter().all(|audience| self.audiences.contains(audience));
        let is_pods = bound.is_some_and(|bound| bound.claim == "pod");
        let extended = lifetime == POD_TOKEN_SECONDS && is_pods && for_us;
        let mut own = json!({
            "namespace": account.namespace(),
            "serviceaccount": {"name": account.name(), "uid": account.uid()},
        });
        if let Some(bound) = bound {
            own[bound.claim] = json!({"name": bound.name, "uid": bound.uid});
            if let Some((name, uid)) = &bound.node {
                own["node"] = match uid.as_str() {
                    "" => json!({"name": name}),
                    uid => json!({"name": name, "uid": uid}),
                };
            }
        }
        if extended {
            own["warnafter"] = (now + lifetime).into();
        }
        let claims = json!({
            "aud": audiences,
            "exp": now + if extended { EXTENDED_SECONDS } else { lifetime },
            "iat": now,
            "iss": self.issuer,
            "jti": env.uuid(),
            NAMESPACE_CLAIM: own,
            "nbf": now,
            "sub": format!("{USER_PREFIX}{}:{}", account.namespace(), account.name()),
        });
        let token = self.signing_key.sign(&claims);
        Issued {
            token,
            expires: Timestamp::from_secs(now + lifetime),
            audiences: audiences.to_vec(),
        }
    }

    /// The user of a valid token and the audiences of `wanted` (empty: this server's) that the
    /// token is meant for.
    pub async fn authenticate(
        &self,
        data: &Data,
        token: &str,
        wanted: &[String],
        now: Timestamp,
    ) -> Option<(UserInfo, Vec<String>)> {
        let claims = self.verify(token, wanted, now)?;
        let alive = claims.check_alive(data, now).await;
        if let Err(why) = &alive {
            tracing::debug!(subject = claims.subject(), why, "service account token refused");
        }
        alive.ok()?;
        Some((claims.user(), claims.audiences))
    }

    /// Everything about a token that can be told without looking at objects.
    fn verify(&self, token: &str, wanted: &[String], now: Timestamp) -> Option<Claims> {
        let raw = jwt::verify(token, &self.keys)?;
        let wanted = if wanted.is_empty() { &self.audiences } else { wanted };
        let audiences: Vec<String> = match &raw["aud"] {
            Json::String(one) => vec![one.clone()],
            Json::Array(list) => list.iter().filter_map(Json::as_str).map(str::to_owned).collect(),
            _ => Vec::new(),
        };
        let fitting: Vec<String> =
            wanted.iter().filter(|a| audiences.contains(a)).cloned().collect();
        let seconds = now.as_secs();
        let in_time = raw["exp"].as_i64().is_some_and(|exp| seconds <= exp)
            && raw["nbf"].as_i64().is_none_or(|nbf| nbf <= seconds);
        let ours = raw["iss"].as_str() == Some(&self.issuer) && !fitting.is_empty();
        let claims = Claims { audiences: fitting, raw };
        (in_time && ours && raw_subject_fits(&claims)).then_some(claims)
    }
}

fn raw_subject_fits(claims: &Claims) -> bool {
    claims.raw["sub"].as_str() == Some(&claims.subject())
}

struct Claims {
    raw: Json,
    audiences: Vec<String>,
}

impl Claims {
    fn own(&self, path: &[&str]) -> &str {
        let start = &self.raw[NAMESPACE_CLAIM];
        path.iter().fold(start, |json, key| &json[*key]).as_str().unwrap_or_default()
    }

    fn subject(&self) -> String {
        format!(
            "{USER_PREFIX}{}:{}",
            self.own(&["namespace"]),
            self.own(&["serviceaccount", "name"])
        )
    }

    fn user(&self) -> UserInfo {
        let namespace = self.own(&["namespace"]);
        let mut extra = std::collections::BTreeMap::new();
        let mut add = |key: &str, value: String| {
            extra.insert(format!("authentication.kubernetes.io/{key}"), vec![value]);
        };
        if let Some(id) = self.raw["jti"].as_str() {
            add("credential-id", format!("JTI={id}"));
        }
        for claim in ["pod", "node"] {
            let (name, uid) = (self.own(&[claim, "name"]), self.own(&[claim, "uid"]));
            if !name.is_empty() {
                add(&format!("{claim}-name"), name.into());
                if !uid.is_empty() {
                    add(&format!("{claim}-uid"), uid.into());
                }
            }
        }
        UserInfo {
            name: self.subject(),
            uid: self.own(&["serviceaccount", "uid"]).into(),
            groups: vec![
                "system:serviceaccounts".into(),
                format!("system:serviceaccounts:{namespace}"),
            ],
            extra,
        }
    }

    /// Whether the account, and what the token is bound to, live and are the same ones still.
    async fn check_alive(&self, data: &Data, now: Timestamp) -> Result<(), String> {
        let namespace = self.own(&["namespace"]);
        let account =
            data.get("", "v1", "serviceaccounts", namespace, self.own(&["serviceaccount", "name"]));
        same_and_alive(account.await, self.own(&["serviceaccount", "uid"]), now)?;
        let bindings = [("pod", "pods", namespace), ("secret", "secrets", namespace)];
        for (claim, resource, namespace) in bindings {
            let name = self.own(&[claim, "name"]);
            if !name.is_empty() {
                let object = data.get("", "v1", resource, namespace, name).await;
                same_and_alive(object, self.own(&[claim, "uid"]), now)?;
            }
        }
        // The node of a pod-bound token is only told; that of a node-bound one must live.
        let node = self.own(&["node", "name"]);
        if !node.is_empty() && self.own(&["pod", "name"]).is_empty() {
            same_and_alive(
                data.get("", "v1", "nodes", "", node).await,
                self.own(&["node", "uid"]),
                now,
            )?;
        }
        Ok(())
    }
}

fn same_and_alive(object: Result<Object, Status>, uid: &str, now: Timestamp) -> Result<(), String> {
    let object = object.map_err(|status| status.message)?;
    if object.uid() != uid {
        return Err(format!("{} {} has another uid", object.kind(), object.name()));
    }
    let dead = object.deletion_timestamp().is_some_and(|at| now.since(at) > GRACE);
    if dead { Err(format!("{} {} is deleted", object.kind(), object.name())) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accounts() -> ServiceAccounts {
        let pem = rcgen::KeyPair::generate().unwrap().serialize_pem();
        let signing_key = SigningKey::from_pem(pem.as_bytes()).unwrap();
        ServiceAccounts {
            keys: vec![signing_key.public().clone()],
            signing_key,
            issuer: "https://kubernetes.default.svc".into(),
            audiences: vec!["https://kubernetes.default.svc".into()],
            max_expiration_seconds: i64::MAX,
        }
    }

    fn account() -> Object {
        let mut account = Object::new("v1", "ServiceAccount", "a", "bot");
        account.set_uid("u1");
        account
    }

    #[test]
    fn a_token_names_its_account_and_pod() {
        let (accounts, env) = (accounts(), Env::real());
        let pod = Bound {
            claim: "pod",
            name: "p".into(),
            uid: "u2".into(),
            node: Some(("n".into(), "u3".into())),
        };
        let issued = accounts.issue(&env, &account(), &[], 600, Some(&pod));
        let claims = accounts.verify(&issued.token, &[], env.now()).unwrap();
        let user = claims.user();
        assert_eq!(user.name, "system:serviceaccount:a:bot");
        assert_eq!(user.groups, ["system:serviceaccounts", "system:serviceaccounts:a"]);
        assert_eq!(user.extra["authentication.kubernetes.io/pod-uid"], ["u2"]);
        assert_eq!(user.extra["authentication.kubernetes.io/node-name"], ["n"]);
        assert!(user.extra["authentication.kubernetes.io/credential-id"][0].starts_with("JTI="));
    }

    #[test]
    fn time_issuer_and_audience_count() {
        let (mine, env) = (accounts(), Env::real());
        let issued = mine.issue(&env, &account(), &["vault".into()], 600, None);
        let now = env.now();
        assert!(mine.verify(&issued.token, &[], now).is_none(), "another audience");
        assert!(mine.verify(&issued.token, &["vault".into()], now).is_some());
        assert!(
            mine.verify(&issued.token, &["vault".into()], now + Duration::from_secs(700)).is_none()
        );
        assert!(accounts().verify(&issued.token, &["vault".into()], now).is_none(), "another key");
    }

    #[test]
    fn pods_tokens_are_extended_for_this_server_only() {
        let (mine, env) = (accounts(), Env::real());
        let pod = Bound { claim: "pod", name: "p".into(), uid: "u".into(), node: None };
        let lifetime = |audiences: &[String]| {
            let issued = mine.issue(&env, &account(), audiences, POD_TOKEN_SECONDS, Some(&pod));
            let claims = jwt::claims_unverified(&issued.token).unwrap();
            claims["exp"].as_i64().unwrap() - claims["iat"].as_i64().unwrap()
        };
        assert_eq!(lifetime(&[]), EXTENDED_SECONDS);
        assert_eq!(lifetime(&["vault".into()]), POD_TOKEN_SECONDS);
    }
}
