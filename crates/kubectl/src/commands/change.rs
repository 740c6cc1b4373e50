//! What commands that change objects have in common.

use client::{Client, Patch};
use http::Method;
use machinery::Object;

use crate::{Error, Result, output::Format, select::Item};

/// `--dry-run` and `-o`.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct ChangeOptions {
    /// none, client (only print) or server (send, but persist nothing)
    #[arg(long, default_value = "none", num_args = 0..=1, default_missing_value = "client")]
    pub dry_run: DryRun,
    /// Output format: name, json, yaml, jsonpath=..., custom-columns=...
    #[arg(short, long, default_value = "")]
    pub output: String,
}

#[derive(clap::ValueEnum, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DryRun {
    #[default]
    None,
    Client,
    Server,
}

impl DryRun {
    pub fn suffix(self) -> &'static str {
        match self {
            Self::None => "",
            Self::Client => " (dry run)",
            Self::Server => " (server dry run)",
        }
    }

    pub fn query(self) -> Vec<(&'static str, String)> {
        if self == Self::Server { vec![("dryRun", "All".into())] } else { Vec::new() }
    }
}

impl ChangeOptions {
    pub fn format(&self) -> Result<Format> {
        Format::parse(&self.output)
    }

    /// Prints the changed object, or a line such as `pod/web labeled`.
    pub fn report(&self, object: &Object, item: &Item, done: &str) -> Result<()> {
        self.format()?.report(object, &item.info, &format!("{done}{}", self.dry_run.suffix()))
    }

    /// Sends a patch under the client's field manager; with a client dry run nothing is sent.
    pub async fn patch(
        &self,
        client: &Client,
        item: &Item,
        subresource: &str,
        patch: &Patch,
    ) -> Result<Object> {
        if self.dry_run == DryRun::Client {
            return Ok(client.get(&item.info.resource, &item.namespace, &item.name).await?);
        }
        if self.dry_run == DryRun::None {
            return Ok(client
                .patch(&item.info.resource, &item.namespace, &item.name, subresource, patch)
                .await?);
        }
        let (media_type, body, force) = match patch {
            Patch::Json(value) => {
                ("application/json-patch+json", machinery::json::to_vec(value), false)
            }
            Patch::Merge(value) => {
                ("application/merge-patch+json", machinery::json::to_vec(value), false)
            }
            Patch::Strategic(value) => {
                ("application/strategic-merge-patch+json", machinery::json::to_vec(value), false)
            }
            Patch::Apply { object, force } => {
                ("application/apply-patch+yaml", object.to_json(), *force)
            }
        };
        let mut query = self.dry_run.query();
        query.push(("fieldManager", client.field_manager().to_owned()));
        if force {
            query.push(("force", "true".into()));
        }
        send(client, Method::PATCH, &item.path(subresource), &query, media_type, body).await
    }

    /// Creates an object; with a client dry run it is given back as it is.
    pub async fn create(&self, client: &Client, item: &Item, object: &Object) -> Result<Object> {
        if self.dry_run == DryRun::Client {
            return Ok(object.clone());
        }
        let mut query = self.dry_run.query();
        query.push(("fieldManager", client.field_manager().to_owned()));
        query.push(("fieldValidation", "Strict".into()));
        let path = item.info.resource.path(&item.namespace, "", "");
        send(client, Method::POST, &path, &query, "application/json", object.to_json()).await
    }
}

/// Sends a request that is answered with an object.
pub async fn send(
    client: &Client,
    method: Method,
    path: &str,
    query: &[(&'static str, String)],
    media_type: &str,
    body: Vec<u8>,
) -> Result<Object> {
    let answer = client.call(method, path, query, media_type, body.into()).await?;
    Object::from_json(&answer)
        .map_err(|e| Error::other(format!("the server sent something unreadable: {e}")))
}

/// A failure with the words that say what was being done.
pub fn during(error: Error, context: impl FnOnce() -> String) -> Error {
    match error {
        Error::Client(source @ client::Error::Api(_)) => {
            Error::During { context: context(), source }
        }
        other => other,
    }
}
