//! Bootstrap tokens: how a machine that has no certificate yet asks to join.

use base64::{Engine, engine::general_purpose::STANDARD};
use machinery::Object;
use stdx::Timestamp;

use crate::{UserInfo, data::Data};

const GROUP: &str = "system:bootstrappers";

/// Whether a bearer token has the form `abcdef.0123456789abcdef`.
pub fn looks_like_one(token: &str) -> bool {
    let plain = |text: &str, length| {
        text.len() == length && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
    };
    token.split_once('.').is_some_and(|(id, secret)| plain(id, 6) && plain(secret, 16))
}

/// The user of a token whose secret lies in `kube-system`.
pub async fn authenticate(data: &Data, token: &str, now: Timestamp) -> Option<UserInfo> {
    let (id, _) = token.split_once('.')?;
    let secret = data
        .get("", "v1", "secrets", "kube-system", &format!("bootstrap-token-{id}"))
        .await
        .ok()?;
    judge(&secret, token, now)
}

fn judge(secret: &Object, token: &str, now: Timestamp) -> Option<UserInfo> {
    let (id, given) = token.split_once('.')?;
    let field = |name| {
        let bytes = STANDARD.decode(secret.str_at(&["data", name])).unwrap_or_default();
        String::from_utf8(bytes).unwrap_or_default()
    };
    let valid = secret.str_at(&["type"]) == "bootstrap.kubernetes.io/token"
        && !secret.is_deleting()
        && field("token-id") == id
        && equal_in_constant_time(field("token-secret").as_bytes(), given.as_bytes())
        && field("usage-bootstrap-authentication") == "true"
        && !is_expired(&field("expiration"), now);
    let extra = field("auth-extra-groups");
    let extra =
        extra.split(',').map(str::trim).filter(|group| group.starts_with("system:bootstrappers:"));
    valid.then(|| UserInfo {
        name: format!("system:bootstrap:{id}"),
        groups: std::iter::once(GROUP).chain(extra).map(str::to_owned).collect(),
        ..UserInfo::default()
    })
}

/// No expiration means never; one that cannot be read means that it has passed.
fn is_expired(expiration: &str, now: Timestamp) -> bool {
    !expiration.is_empty() && Timestamp::parse(expiration).is_none_or(|end| end <= now)
}

fn equal_in_constant_time(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |difference, (a, b)| difference | (a ^ b)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use machinery::Map;

    fn secret(expiration: &str) -> Object {
        let mut secret = Object::new("v1", "Secret", "kube-system", "bootstrap-token-abcdef");
        secret.root_mut().insert("type", "bootstrap.kubernetes.io/token");
        let data = [
            ("token-id", "abcdef"),
            ("token-secret", "0123456789abcdef"),
            ("usage-bootstrap-authentication", "true"),
            ("auth-extra-groups", "system:bootstrappers:edge,system:masters"),
            ("expiration", expiration),
        ];
        let data: Map =
            data.into_iter().map(|(key, value)| (key, STANDARD.encode(value))).collect();
        secret.root_mut().insert("data", data);
        secret
    }

    #[test]
    fn a_token_names_its_user_until_it_expires() {
        let now = Timestamp::parse("2026-01-01T00:00:00Z").unwrap();
        let user = judge(&secret("2026-02-01T00:00:00Z"), "abcdef.0123456789abcdef", now).unwrap();
        assert_eq!(user.name, "system:bootstrap:abcdef");
        assert_eq!(user.groups, ["system:bootstrappers", "system:bootstrappers:edge"]);
        assert!(judge(&secret("2026-01-01T00:00:00Z"), "abcdef.0123456789abcdef", now).is_none());
        assert!(judge(&secret(""), "abcdef.0123456789abcdee", now).is_none());
        assert!(looks_like_one("abcdef.0123456789abcdef") && !looks_like_one("eyJh.eyJp.c2ln"));
    }
}
