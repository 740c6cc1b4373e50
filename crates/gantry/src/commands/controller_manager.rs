use std::{fs, path::PathBuf, process::ExitCode};

use anyhow::{Context, Result};
use client::leader::{Election, run_as_leader};

use super::{Component, Outcome, block_on, cancelled_by_signals};

/// Run the controllers alone, against any API server, all under the kubeconfig's user
#[derive(clap::Args)]
#[command(after_help = "Example: gantry controller-manager --kubeconfig controller-manager.conf")]
pub struct ControllerManager {
    #[command(flatten)]
    component: Component,
    /// Which controllers: names, `*` for all, `-NAME` for all but one
    #[arg(long, value_delimiter = ',', default_value = "*")]
    controllers: Vec<String>,
    /// The range from which nodes get theirs
    #[arg(long)]
    cluster_cidr: Vec<String>,
    /// The CA that signs certificate requests
    #[arg(long, requires = "cluster_signing_key_file")]
    cluster_signing_cert_file: Option<PathBuf>,
    #[arg(long, requires = "cluster_signing_cert_file")]
    cluster_signing_key_file: Option<PathBuf>,
    /// The certificates that pods are to trust
    #[arg(long)]
    root_ca_file: Option<PathBuf>,
}

impl ControllerManager {
    pub fn run(self) -> Outcome {
        let settings = self.settings()?;
        block_on(|env| async move {
            let client = self.component.connect("kube-controller-manager")?;
            let cancel = cancelled_by_signals(&env)?;
            let election = Election::new("kube-controller-manager", &self.component.identity(&env));
            run_as_leader(&env, &client, &election, &cancel, |leading| {
                let (env, client) = (&env, &client);
                async move {
                    let clients = |user: &str| {
                        client.with_field_manager(user.rsplit(':').next().unwrap_or(user))
                    };
                    controllers::run(env, clients, settings, leading).await;
                }
            })
            .await;
            Ok(ExitCode::SUCCESS)
        })
    }

    fn settings(&self) -> Result<controllers::Config> {
        let read = |path: &PathBuf| {
            fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
        };
        let pair =
            self.cluster_signing_cert_file.as_ref().zip(self.cluster_signing_key_file.as_ref());
        let signing = match pair {
            None => None,
            Some((certificate, key)) => Some(controllers::config::SigningKeyPair {
                certificate: read(certificate)?,
                key: read(key)?,
            }),
        };
        Ok(controllers::Config {
            controllers: self.controllers.clone(),
            cluster_cidrs: self.cluster_cidr.clone(),
            cluster_signing: signing,
            root_ca: self.root_ca_file.as_ref().map(read).transpose()?,
            ..controllers::Config::default()
        })
    }
}
