//! `kubectl version`

use serde_json::{Value as Json, json};

use crate::{
    Error, Result,
    output::{emit, yaml},
    session::Session,
};

/// The version of Kubernetes whose command line this is.
const VERSION: &str = "v1.37.2";

/// Print the versions of this program and of the server
#[derive(clap::Args)]
#[command(after_help = "Example: kubectl version -o yaml")]
pub struct Version {
    /// Only this program's, without asking a server
    #[arg(long)]
    client: bool,
    /// json, yaml, or nothing for text
    #[arg(short, long, default_value = "")]
    output: String,
}

impl Version {
    pub async fn run(self, session: &Session) -> Result<()> {
        let git_version = format!("{VERSION}+gantry");
        let server: Option<Json> = match self.client {
            true => None,
            false => Some(session.client()?.get_json("/version").await?),
        };
        let mut whole = json!({"clientVersion": {"major": "1", "minor": "37", "gitVersion": git_version}});
        if let Some(server) = &server {
            whole["serverVersion"] = server.clone();
        }
        match self.output.as_str() {
            "" => {
                emit(&format!("Client Version: {git_version}\n"))?;
                let found = server.as_ref().and_then(|s| s["gitVersion"].as_str());
                found.map_or(Ok(()), |version| emit(&format!("Server Version: {version}\n")))
            }
            "json" => emit(&format!("{whole:#}\n")),
            "yaml" => emit(&yaml::to_string(&whole.into())),
            _ => Err(Error::other("--output must be 'yaml' or 'json'")),
        }
    }
}
