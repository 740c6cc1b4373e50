//! Kubeconfig files: where the server is and who we are.

use std::path::{Path, PathBuf};

use base64::{Engine, prelude::BASE64_STANDARD};
use serde::{Deserialize, Serialize};

use crate::Error;

/// A kubeconfig as kubectl reads and writes it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct Kubeconfig {
    #[serde(rename = "apiVersion")]
    pub api_version: String,
    pub kind: String,
    pub clusters: Vec<Named<ClusterEntry>>,
    pub users: Vec<Named<UserEntry>>,
    pub contexts: Vec<Named<ContextEntry>>,
    pub current_context: String,
}

/// One list entry; the payload stands under `cluster`, `user` or `context`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Named<T> {
    pub name: String,
    #[serde(alias = "cluster", alias = "user", alias = "context")]
    pub entry: T,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct ClusterEntry {
    pub server: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub certificate_authority: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub certificate_authority_data: String,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub insecure_skip_tls_verify: bool,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub tls_server_name: String,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct UserEntry {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub client_certificate: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub client_certificate_data: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub client_key: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub client_key_data: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub token: String,
    #[serde(rename = "tokenFile", skip_serializing_if = "String::is_empty")]
    pub token_file: String,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ContextEntry {
    pub cluster: String,
    pub user: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub namespace: String,
}

/// What one context amounts to, with all files read.
#[derive(Clone, Debug, Default)]
pub struct Connection {
    /// `https://host:port`, without a trailing slash.
    pub server: String,
    /// Checked instead of the host in `server` when not empty.
    pub server_name: String,
    pub namespace: String,
    /// PEM; empty to trust nobody.
    pub ca: Vec<u8>,
    pub insecure: bool,
    /// PEM certificate chain and key.
    pub certificate: Option<(Vec<u8>, Vec<u8>)>,
    pub token: Option<Token>,
}

/// A bearer token, or the file that holds the current one.
#[derive(Clone, Debug)]
pub enum Token {
    Fixed(String),
    File(PathBuf),
}

impl Kubeconfig {
    /// A kubeconfig of one cluster, one user and one context, all data inline.
    pub fn single(name: &str, server: &str, ca_pem: &[u8], user: UserEntry) -> Self {
        let user_name = format!("{name}-admin");
        let cluster = ClusterEntry {
            server: server.into(),
            certificate_authority_data: BASE64_STANDARD.encode(ca_pem),
            ..ClusterEntry::default()
        };
        let context = ContextEntry {
            cluster: name.into(),
            user: user_name.clone(),
            namespace: String::new(),
        };
        Self {
            api_version: "v1".into(),
            kind: "Config".into(),
            clusters: vec![Named { name: name.into(), entry: cluster }],
            users: vec![Named { name: user_name, entry: user }],
            contexts: vec![Named { name: name.into(), entry: context }],
            current_context: name.into(),
        }
    }

    pub fn load(path: &Path) -> Result<Self, Error> {
        let fail = |source: crate::Source| Error::Config {
            what: format!("cannot read the kubeconfig {}", path.display()),
            source: Some(source),
        };
        let text = std::fs::read_to_string(path).map_err(|e| fail(e.into()))?;
        Self::parse(&text).map_err(|e| fail(e.into()))
    }

    /// YAML, or JSON as its subset.
    pub fn parse(text: &str) -> Result<Self, serde_saphyr::Error> {
        serde_saphyr::from_str(text)
    }

    /// JSON text, which every reader of kubeconfigs takes for YAML.
    pub fn to_text(&self) -> String {
        let list = |entries: Vec<serde_json::Value>| serde_json::Value::Array(entries);
        fn named<T: Serialize>(entries: &[Named<T>], field: &str) -> Vec<serde_json::Value> {
            entries.iter().map(|n| serde_json::json!({"name": n.name, field: n.entry})).collect()
        }
        let whole = serde_json::json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": list(named(&self.clusters, "cluster")),
            "users": list(named(&self.users, "user")),
            "contexts": list(named(&self.contexts, "context")),
            "current-context": self.current_context,
        });
        serde_json::to_string_pretty(&whole).unwrap_or_default() + "\n"
    }

    /// Resolves a context (empty: the current one). Relative files count from `directory`.
    pub fn connection(&self, context: &str, directory: &Path) -> Result<Connection, Error> {
        let wanted = if context.is_empty() { &self.current_context } else { context };
        let context = find(&self.contexts, wanted, "context")?;
        let cluster = find(&self.clusters, &context.cluster, "cluster")?;
        let user = find(&self.users, &context.user, "user")?;
        let pem = |data: &str, file: &str| material(data, file, directory);
        let ca = pem(&cluster.certificate_authority_data, &cluster.certificate_authority)?;
        let certificate = pem(&user.client_certificate_data, &user.client_certificate)?;
        let key = pem(&user.client_key_data, &user.client_key)?;
        Ok(Connection {
            server: cluster.server.trim_end_matches('/').to_owned(),
            server_name: cluster.tls_server_name.clone(),
            namespace: context.namespace.clone(),
            ca: ca.unwrap_or_default(),
            insecure: cluster.insecure_skip_tls_verify,
            certificate: certificate.zip(key),
            token: token(user, directory),
        })
    }
}

fn token(user: &UserEntry, directory: &Path) -> Option<Token> {
    if !user.token_file.is_empty() {
        return Some(Token::File(directory.join(&user.token_file)));
    }
    (!user.token.is_empty()).then(|| Token::Fixed(user.token.clone()))
}

fn find<'a, T>(entries: &'a [Named<T>], name: &str, what: &str) -> Result<&'a T, Error> {
    entries.iter().find(|n| n.name == name).map(|n| &n.entry).ok_or_else(|| Error::Config {
        what: format!("the kubeconfig has no {what} {name:?}"),
        source: None,
    })
}

/// Inline base64 data, else the file's content, else nothing.
fn material(data: &str, file: &str, directory: &Path) -> Result<Option<Vec<u8>>, Error> {
    if !data.is_empty() {
        let decoded = BASE64_STANDARD.decode(data.trim()).map_err(|source| Error::Config {
            what: "the kubeconfig holds data that is not base64".into(),
            source: Some(source.into()),
        })?;
        return Ok(Some(decoded));
    }
    if file.is_empty() {
        return Ok(None);
    }
    let path = directory.join(file);
    let content = std::fs::read(&path).map_err(|source| Error::Config {
        what: format!("cannot read {}", path.display()),
        source: Some(source.into()),
    })?;
    Ok(Some(content))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_writes_and_what_kubectl_writes() {
        let user = UserEntry { token: "secret".into(), ..UserEntry::default() };
        let config = Kubeconfig::single("dev", "https://127.0.0.1:6443/", b"PEM", user);
        let read = Kubeconfig::parse(&config.to_text()).unwrap();
        let connection = read.connection("", Path::new("/")).unwrap();
        assert_eq!(connection.server, "https://127.0.0.1:6443");
        assert_eq!(connection.ca, b"PEM");
        assert!(matches!(connection.token, Some(Token::Fixed(t)) if t == "secret"));

        let yaml = "apiVersion: v1\nkind: Config\nclusters:\n- name: a\n  cluster: {server: 'https://x'}\n\
                    contexts:\n- name: c\n  context: {cluster: a, user: u, namespace: n}\nusers:\n- name: u\n  user: {}\n\
                    current-context: c\npreferences: {}\n";
        let connection = Kubeconfig::parse(yaml).unwrap().connection("", Path::new("/")).unwrap();
        assert_eq!((connection.server.as_str(), connection.namespace.as_str()), ("https://x", "n"));
        let missing = Kubeconfig::parse(yaml).unwrap().connection("z", Path::new("/")).unwrap_err();
        assert_eq!(missing.to_string(), "the kubeconfig has no context \"z\"");
    }
}
