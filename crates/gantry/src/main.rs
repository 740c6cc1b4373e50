//! The `gantry` binary: the table of subcommands and nothing else.
//!
//! Each subcommand is one file in `commands/`; the components that they start are wired together
//! in `assemble.rs`. Subcommands that clone or become containers run before any thread exists.

mod assemble;
mod commands;
mod hello;
#[cfg(test)]
mod simulation;
mod terminal;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Container orchestration that speaks the Kubernetes API, in one binary.
#[derive(Parser)]
#[command(
    name = "gantry",
    version = assemble::VERSION,
    propagate_version = true,
    after_help = "Example: sudo gantry up && sudo gantry kubectl get nodes"
)]
struct Cli {
    /// Say more about what happens (repeat for even more)
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
    #[command(subcommand)]
    command: Command,
}

/// The table: one line per subcommand, one file each.
#[derive(Subcommand)]
enum Command {
    // A cluster on this machine.
    Up(commands::up::Up),
    Down(commands::down::Down),
    Stop(commands::stop::Stop),
    Start(commands::start::Start),
    Status(commands::status::Status),
    Image(commands::image::Image),
    Kubeconfig(commands::kubeconfig::Kubeconfig),
    // Its parts, together and alone.
    Server(commands::server::Server),
    Agent(commands::agent::Agent),
    Apiserver(commands::apiserver::Apiserver),
    Scheduler(commands::scheduler::Scheduler),
    ControllerManager(commands::controller_manager::ControllerManager),
    // Everything else.
    #[command(disable_version_flag = true)]
    Kubectl(commands::kubectl::Kubectl),
    Version(commands::version::Version),
    Completion(commands::completion::Completion),
    // Started by the others.
    #[command(hide = true)]
    Supervise(commands::supervise::Supervise),
    #[command(hide = true)]
    NodeSandbox(commands::node_sandbox::NodeSandbox),
    #[command(hide = true)]
    Hello(hello::Hello),
}

fn main() -> ExitCode {
    if let Some(code) = commands::shim::take_over() {
        return code;
    }
    let cli = Cli::parse();
    terminal::start_logging(cli.verbose);
    let outcome = match cli.command {
        Command::Up(command) => command.run(),
        Command::Down(command) => command.run(),
        Command::Stop(command) => command.run(),
        Command::Start(command) => command.run(),
        Command::Status(command) => command.run(),
        Command::Image(command) => command.run(),
        Command::Kubeconfig(command) => command.run(),
        Command::Server(command) => command.run(),
        Command::Agent(command) => command.run(),
        Command::Kubectl(command) => command.run(),
        Command::Apiserver(command) => command.run(),
        Command::Scheduler(command) => command.run(),
        Command::ControllerManager(command) => command.run(),
        Command::Version(command) => command.run(),
        Command::Completion(command) => command.run(),
        Command::Supervise(command) => command.run(),
        Command::NodeSandbox(command) => command.run(),
        Command::Hello(command) => command.run(),
    };
    match outcome {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
