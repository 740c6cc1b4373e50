//! Asking in another's name: the `Impersonate-*` headers, each checked against the asker's roles.

use std::{collections::BTreeMap, sync::Arc};

use api::Status;
use http::HeaderMap;

use crate::{
    Server, UserInfo, authn, authn::service_account::USER_PREFIX, authz, query::percent_decode,
};

/// The user that the request counts for. Removes the headers, so that nothing behind sees them.
pub fn impersonate(
    server: &Server,
    asker: Arc<UserInfo>,
    headers: &mut HeaderMap,
) -> Result<Arc<UserInfo>, Status> {
    let Some(wanted) = Wanted::read(headers)? else { return Ok(asker) };
    for (group, resource, subresource, namespace, name) in wanted.permissions() {
        let query = authz::Query {
            is_resource: true,
            verb: "impersonate",
            group,
            version: "v1",
            resource,
            subresource: &subresource,
            namespace: &namespace,
            name: &name,
            ..authz::Query::default()
        };
        if let authz::Decision::NoOpinion(why) = server.authorizer.authorize(&asker, &query) {
            return Err(authz::forbidden(&asker, &query, &why));
        }
    }
    tracing::debug!(user = asker.name, as_user = wanted.user, "impersonation");
    Ok(Arc::new(wanted.into_user()))
}

struct Wanted {
    user: String,
    uid: String,
    groups: Vec<String>,
    extra: BTreeMap<String, Vec<String>>,
}

impl Wanted {
    fn read(headers: &mut HeaderMap) -> Result<Option<Self>, Status> {
        let all = |headers: &HeaderMap, name: &str| -> Vec<String> {
            headers
                .get_all(name)
                .iter()
                .filter_map(|v| v.to_str().ok())
                .map(str::to_owned)
                .collect()
        };
        let one = |headers: &HeaderMap, name: &str| {
            all(headers, name).into_iter().next().unwrap_or_default()
        };
        let mut wanted = Self {
            user: one(headers, "impersonate-user"),
            uid: one(headers, "impersonate-uid"),
            groups: all(headers, "impersonate-group"),
            extra: BTreeMap::new(),
        };
        let names: Vec<_> =
            headers.keys().filter(|n| n.as_str().starts_with("impersonate-")).cloned().collect();
        for name in &names {
            if let Some(key) = name.as_str().strip_prefix("impersonate-extra-") {
                wanted.extra.insert(percent_decode(key), all(headers, name.as_str()));
            }
        }
        let asked = !wanted.uid.is_empty() || !wanted.groups.is_empty() || !wanted.extra.is_empty();
        for name in names {
            headers.remove(name);
        }
        match (wanted.user.is_empty(), asked) {
            (true, false) => Ok(None),
            (true, true) => Err(wanted.nameless()),
            (false, _) => Ok(Some(wanted)),
        }
    }

    /// The 400 of a request in nobody's name, which upstream fills with its own view of a user.
    fn nameless(&self) -> Status {
        let quoted: Vec<String> = self.groups.iter().map(|group| format!("{group:?}")).collect();
        let groups = match quoted.is_empty() {
            true => "[]string(nil)".to_owned(),
            false => format!("[]string{{{}}}", quoted.join(", ")),
        };
        Status::bad_request(format!(
            "requested &user.DefaultInfo{{Name:\"\", UID:{:?}, Groups:{groups}, Extra:map[string][]string(nil)}} \
             without impersonating a user name",
            self.uid
        ))
    }

    /// What the asker must be allowed: group, resource, subresource, namespace, name.
    fn permissions(&self) -> Vec<(&'static str, &'static str, String, String, String)> {
        const AUTHN: &str = "authentication.k8s.io";
        let none = String::new;
        let mut needed = Vec::new();
        match self.service_account() {
            Some((namespace, name)) => {
                needed.push(("", "serviceaccounts", none(), namespace.to_owned(), name.to_owned()));
            }
            None => needed.push(("", "users", none(), none(), self.user.clone())),
        }
        needed
            .extend(self.groups.iter().map(|group| ("", "groups", none(), none(), group.clone())));
        if !self.uid.is_empty() {
            needed.push((AUTHN, "uids", none(), none(), self.uid.clone()));
        }
        for (key, values) in &self.extra {
            needed.extend(
                values.iter().map(|v| (AUTHN, "userextras", key.clone(), none(), v.clone())),
            );
        }
        needed
    }

    fn service_account(&self) -> Option<(&str, &str)> {
        self.user.strip_prefix(USER_PREFIX)?.split_once(':')
    }

    fn into_user(self) -> UserInfo {
        let mut groups = self.groups.clone();
        if groups.is_empty() {
            if let Some((namespace, _)) = self.service_account() {
                groups = vec![
                    "system:serviceaccounts".into(),
                    format!("system:serviceaccounts:{namespace}"),
                ];
            }
        }
        let user = UserInfo { name: self.user, uid: self.uid, groups, extra: self.extra };
        match user.name.as_str() {
            "system:anonymous" => {
                UserInfo { groups: vec!["system:unauthenticated".into()], ..user }
            }
            _ => authn::authenticated(user),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, value.parse().unwrap());
        }
        headers
    }

    #[test]
    fn reads_and_removes_the_headers() {
        let mut headers = headers(&[
            ("impersonate-user", "system:serviceaccount:a:bot"),
            ("impersonate-extra-acme.com%2fproject", "x"),
            ("accept", "*/*"),
        ]);
        let wanted = Wanted::read(&mut headers).unwrap().unwrap();
        assert_eq!(headers.len(), 1);
        let needed: Vec<_> =
            wanted.permissions().iter().map(|p| format!("{} {} {}", p.1, p.2, p.4)).collect();
        assert_eq!(needed, ["serviceaccounts  bot", "userextras acme.com/project x"]);
        let user = wanted.into_user();
        assert_eq!(
            user.groups,
            ["system:serviceaccounts", "system:serviceaccounts:a", "system:authenticated"]
        );
    }

    #[test]
    fn groups_without_a_user_are_an_error() {
        assert!(Wanted::read(&mut headers(&[("impersonate-group", "g")])).is_err());
        assert!(Wanted::read(&mut headers(&[])).unwrap().is_none());
    }
}
