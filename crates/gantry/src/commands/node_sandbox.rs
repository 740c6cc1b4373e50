use std::process::ExitCode;

use super::Outcome;

/// Run one node of a local cluster (started by the supervisor)
#[derive(clap::Args)]
pub struct NodeSandbox {
    cluster: String,
    node: String,
}

impl NodeSandbox {
    pub fn run(self) -> Outcome {
        let code = cluster::sandbox::launch(&self.cluster, &self.node)?;
        Ok(ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX)))
    }
}
