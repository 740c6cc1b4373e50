//! `kubectl cluster-info`

use client::ListOptions;
use machinery::Object;

use crate::{Error, Result, output::emit, session::Session};

/// Print where the control plane and its services are
#[derive(clap::Args)]
#[command(after_help = "Example: kubectl cluster-info")]
pub struct ClusterInfo {}

impl ClusterInfo {
    pub async fn run(self, session: &Session) -> Result<()> {
        let target = session.target()?;
        let server = &target.connection.server;
        let services = session.discovery().await?.find("services.v1")?;
        let options = ListOptions {
            label_selector: "kubernetes.io/cluster-service=true".into(),
            ..ListOptions::default()
        };
        let list = target.client.list(&services.resource, "kube-system", &options).await?;
        emit(&format!("Kubernetes control plane is running at {server}\n"))?;
        for bytes in &list.items {
            let service = Object::from_json(bytes).map_err(|e| Error::other(e.to_string()))?;
            let port = service.list_at(&["spec", "ports"]).first().and_then(|p| p.get("name")?.as_str());
            let port = port.map(|name| format!(":{name}")).unwrap_or_default();
            let name = match service.label("kubernetes.io/name") {
                Some(name) if !name.is_empty() => name,
                _ => service.name(),
            };
            emit(&format!(
                "{name} is running at {server}/api/v1/namespaces/{}/services/{}{port}/proxy\n",
                service.namespace(),
                service.name()
            ))?;
        }
        Ok(())
    }
}
