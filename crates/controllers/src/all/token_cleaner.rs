//! Deletes bootstrap tokens, by which machines join, when they have expired.

use base64::{Engine, engine::general_purpose::STANDARD};
use client::Key;
use stdx::Timestamp;

use crate::{plan::*, resources::*};

pub const CONTROLLER: Controller = Controller {
    name: "token-cleaner-controller",
    account: "token-cleaner",
    primary: &SECRETS,
    watches: &[],
    rbac: &[allow(&SECRETS, &["delete"])],
    workers: 1,
    work: Work::Reconcile(reconcile),
};

fn reconcile(key: &Key, world: &World, now: Timestamp) -> Plan {
    let mut plan = Plan::none();
    if key.namespace != "kube-system" || !key.name.starts_with("bootstrap-token-") {
        return plan;
    }
    let Some(cached) = world.get(&SECRETS, key) else { return plan };
    let secret = tree(&SECRETS, &cached);
    if secret.str_at(&["type"]) != "bootstrap.kubernetes.io/token" {
        return plan;
    }
    let encoded = secret.str_at(&["data", "expiration"]);
    if encoded.is_empty() {
        return plan;
    }
    let text = STANDARD.decode(encoded).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    match text.and_then(|text| Timestamp::parse(&text)) {
        Some(expiration) if now < expiration => plan.requeue_in(expiration.since(now)),
        // One that cannot be read must not let anybody in for ever.
        _ => {
            plan.push(Intent::delete(&SECRETS, &cached));
        }
    }
    plan
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::{cached, world};
    use machinery::value;

    fn plan(expiration: &str, now: i64) -> Plan {
        let secret = value!({
            "metadata": {"namespace": "kube-system", "name": "bootstrap-token-abcdef"},
            "type": "bootstrap.kubernetes.io/token",
            "data": {"expiration": STANDARD.encode(expiration)},
        });
        let key = Key::new("kube-system", "bootstrap-token-abcdef");
        reconcile(&key, &world([(&SECRETS, vec![cached(secret)])]), Timestamp::from_secs(now))
    }

    #[test]
    fn goes_when_it_has_expired() {
        let at = "1970-01-01T00:01:00Z";
        assert_eq!(plan(at, 50).requeue_after, Some(std::time::Duration::from_secs(10)));
        assert_eq!(plan(at, 60).steps.len(), 1);
        assert_eq!(plan("soon", 0).steps.len(), 1);
    }
}
