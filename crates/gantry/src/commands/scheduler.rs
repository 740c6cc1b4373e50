use std::process::ExitCode;

use client::leader::{Election, run_as_leader};

use super::{Component, Outcome, block_on, cancelled_by_signals};

/// Run a scheduler alone, against any API server
#[derive(clap::Args)]
#[command(after_help = "Example: gantry scheduler --kubeconfig scheduler.conf")]
pub struct Scheduler {
    #[command(flatten)]
    component: Component,
    /// Schedule pods that name this scheduler
    #[arg(long, default_value = "default-scheduler")]
    scheduler_name: String,
}

impl Scheduler {
    pub fn run(self) -> Outcome {
        block_on(|env| async move {
            let client = self.component.connect("kube-scheduler")?;
            let cancel = cancelled_by_signals(&env)?;
            let config = scheduler::Config { name: self.scheduler_name };
            let election = Election::new("kube-scheduler", &self.component.identity(&env));
            run_as_leader(&env, &client, &election, &cancel, |leading| {
                scheduler::run(env.clone(), client.clone(), config, leading)
            })
            .await;
            Ok(ExitCode::SUCCESS)
        })
    }
}
