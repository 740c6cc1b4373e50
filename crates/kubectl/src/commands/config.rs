//! `kubectl config`

use crate::{
    Error, Result, config,
    output::{emit, table::Layout, yaml},
    session::Session,
};

/// Show the kubeconfig
#[derive(clap::Args)]
#[command(after_help = "Example: kubectl config view --minify")]
pub struct Config {
    #[command(subcommand)]
    action: Action,
}

#[derive(clap::Subcommand)]
enum Action {
    View(View),
    CurrentContext(CurrentContext),
    GetContexts(GetContexts),
}

/// Print the kubeconfig that applies, without secrets
#[derive(clap::Args)]
#[command(after_help = "Example: kubectl config view --raw")]
struct View {
    /// Keys, certificates and tokens too
    #[arg(long)]
    raw: bool,
    /// Only what the current context uses
    #[arg(long)]
    minify: bool,
    /// json, yaml or jsonpath=...
    #[arg(short, long, default_value = "yaml")]
    output: String,
}

/// Print the name of the current context
#[derive(clap::Args)]
#[command(after_help = "Example: kubectl config current-context")]
struct CurrentContext {}

/// List the contexts
#[derive(clap::Args)]
#[command(after_help = "Example: kubectl config get-contexts")]
struct GetContexts {
    /// Leave out the line of headers
    #[arg(long)]
    no_headers: bool,
    /// name, or nothing for a table
    #[arg(short, long, default_value = "")]
    output: String,
}

impl Config {
    pub async fn run(self, session: &Session) -> Result<()> {
        let mut kubeconfig = config::load(session.global.kubeconfig.as_deref())?.config;
        if let Some(context) = &session.global.context {
            kubeconfig.current_context = context.clone();
        }
        match self.action {
            Action::View(view) => view.run(kubeconfig),
            Action::CurrentContext(_) if kubeconfig.current_context.is_empty() => {
                Err(Error::other("current-context is not set"))
            }
            Action::CurrentContext(_) => emit(&format!("{}\n", kubeconfig.current_context)),
            Action::GetContexts(list) => list.run(&kubeconfig),
        }
    }
}

impl View {
    fn run(self, mut kubeconfig: client::Kubeconfig) -> Result<()> {
        if self.minify {
            let current = kubeconfig.current_context.clone();
            kubeconfig.contexts.retain(|c| c.name == current);
            let Some(context) = kubeconfig.contexts.first().map(|c| c.entry.clone()) else {
                return Err(Error::other("current-context must exist in order to minify"));
            };
            kubeconfig.clusters.retain(|c| c.name == context.cluster);
            kubeconfig.users.retain(|u| u.name == context.user);
        }
        if !self.raw {
            redact(&mut kubeconfig);
        }
        let text = kubeconfig.to_text();
        let value = machinery::json::parse(text.as_bytes()).map_err(|e| Error::other(e.to_string()))?;
        match self.output.as_str() {
            "yaml" => emit(&yaml::to_string(&value)),
            other => emit(&crate::output::Format::parse(other)?.render(&value, None)?),
        }
    }
}

fn redact(kubeconfig: &mut client::Kubeconfig) {
    let hide = |text: &mut String, with: &str| {
        if !text.is_empty() {
            *text = with.to_owned();
        }
    };
    for cluster in &mut kubeconfig.clusters {
        hide(&mut cluster.entry.certificate_authority_data, "DATA+OMITTED");
    }
    for user in &mut kubeconfig.users {
        hide(&mut user.entry.client_certificate_data, "DATA+OMITTED");
        hide(&mut user.entry.client_key_data, "DATA+OMITTED");
        hide(&mut user.entry.token, "REDACTED");
    }
}

impl GetContexts {
    fn run(self, kubeconfig: &client::Kubeconfig) -> Result<()> {
        if self.output == "name" {
            let names: String = kubeconfig.contexts.iter().map(|c| format!("{}\n", c.name)).collect();
            return emit(&names);
        }
        let mut rows = Vec::new();
        if !self.no_headers {
            rows.push(["CURRENT", "NAME", "CLUSTER", "AUTHINFO", "NAMESPACE"].map(str::to_owned).to_vec());
        }
        rows.extend(kubeconfig.contexts.iter().map(|c| {
            let mark = if c.name == kubeconfig.current_context { "*" } else { "" };
            let entry = &c.entry;
            vec![mark.to_owned(), c.name.clone(), entry.cluster.clone(), entry.user.clone(), entry.namespace.clone()]
        }));
        emit(&Layout::default().render(rows))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use machinery::Value;

    #[test]
    fn secrets_are_not_shown() {
        let text = "users: [{name: u, user: {token: secret, client-key-data: c2VjcmV0}}]\nclusters: [{name: c, cluster: {server: 'https://x'}}]\n";
        let mut kubeconfig = client::Kubeconfig::parse(text).unwrap();
        redact(&mut kubeconfig);
        let shown: Value = machinery::json::parse(kubeconfig.to_text().as_bytes()).unwrap();
        let shown = yaml::to_string(&shown);
        assert!(shown.contains("token: REDACTED") && shown.contains("client-key-data: DATA+OMITTED"), "{shown}");
        assert!(!shown.contains("c2VjcmV0") && !shown.contains("secret\n"), "{shown}");
    }
}
