use super::{Outcome, server::Settings};

/// Run an API server alone; scheduler and controllers run elsewhere
#[derive(clap::Args)]
#[command(after_help = "Example:\n  gantry apiserver --etcd-servers http://127.0.0.1:2379 \
                        --listen 0.0.0.0:6443 --advertise-address 192.0.2.10")]
pub struct Apiserver {
    #[command(flatten)]
    settings: Settings,
}

impl Apiserver {
    pub fn run(self) -> Outcome {
        self.settings.run(false, false)
    }
}
