//! What every command starts from: the cluster, its namespace, and what it serves.

use std::{path::PathBuf, sync::OnceLock, time::Duration};

use client::{Client, config::Connection};
use stdx::Env;
use tokio::sync::OnceCell;

use crate::{Error, Result, config, discovery::Discovery};

/// Flags of every command.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct Global {
    /// Path of the kubeconfig file
    #[arg(long, global = true)]
    pub kubeconfig: Option<PathBuf>,
    /// The kubeconfig's context to use
    #[arg(long, global = true)]
    pub context: Option<String>,
    /// The namespace of the request
    #[arg(short, long, global = true)]
    pub namespace: Option<String>,
}

/// One run of one command.
pub struct Session {
    pub env: Env,
    pub global: Global,
    target: OnceLock<Target>,
    discovery: OnceCell<Discovery>,
}

/// The server, who we are to it, and the namespace that applies.
pub struct Target {
    pub client: Client,
    pub connection: Connection,
    pub namespace: String,
}

impl Session {
    pub fn new(env: Env, global: Global) -> Self {
        Self { env, global, target: OnceLock::new(), discovery: OnceCell::new() }
    }

    /// Finds the cluster at the first call.
    pub fn target(&self) -> Result<&Target> {
        if let Some(target) = self.target.get() {
            return Ok(target);
        }
        let found = config::load(self.global.kubeconfig.as_deref())?;
        let context = self.global.context.as_deref().unwrap_or_default();
        let connection = found
            .config
            .connection(context, &found.directory)
            .map_err(|e| Error::other(stdx::chain(&e).to_string()))?;
        let namespace =
            [self.global.namespace.as_deref().unwrap_or_default(), &connection.namespace]
                .into_iter()
                .find(|name| !name.is_empty())
                .unwrap_or("default")
                .to_owned();
        let client = Client::connect(&connection, "kubectl")?;
        Ok(self.target.get_or_init(|| Target { client, connection, namespace }))
    }

    pub fn client(&self) -> Result<&Client> {
        Ok(&self.target()?.client)
    }

    /// A client whose writes appear under kubectl's manager name for this kind of command.
    pub fn writer(&self, manager: &str) -> Result<Client> {
        Ok(self.client()?.with_field_manager(manager))
    }

    pub fn namespace(&self) -> Result<&str> {
        Ok(&self.target()?.namespace)
    }

    /// What the server serves, asked once.
    pub async fn discovery(&self) -> Result<&Discovery> {
        let client = self.client()?;
        self.discovery.get_or_try_init(|| Discovery::load(client)).await
    }
}

/// A Go duration such as `90s` or `1m30s`; a bare number is seconds.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("invalid duration {text:?}");
    if let Ok(seconds) = text.parse::<i64>() {
        return Ok(Duration::from_secs(seconds.max(0) as u64));
    }
    if let Some(rest) = text.strip_prefix('-') {
        return parse_duration(rest).map(|_| Duration::ZERO);
    }
    let (mut total, mut rest) = (0.0, text);
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(wrong)?;
        let number: f64 = rest[..digits].parse().map_err(|_| wrong())?;
        let tail = &rest[digits..];
        let unit = &tail[..tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len())];
        total += number
            * match unit {
                "h" => 3600.0,
                "m" => 60.0,
                "s" => 1.0,
                "ms" => 1e-3,
                "us" | "µs" => 1e-6,
                "ns" => 1e-9,
                _ => return Err(wrong()),
            };
        rest = &tail[unit.len()..];
    }
    Ok(Duration::from_secs_f64(total))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_those_of_go() {
        assert_eq!(parse_duration("1m30s"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_duration("60"), Ok(Duration::from_secs(60)));
        assert_eq!(parse_duration("1.5s"), Ok(Duration::from_millis(1500)));
        assert_eq!(parse_duration("-1s"), Ok(Duration::ZERO));
        assert!(parse_duration("1x").is_err() && parse_duration("s").is_err());
    }
}
