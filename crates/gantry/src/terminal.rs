//! What a person sees while a command works.

use std::io::{IsTerminal, Write};

use stdx::{Env, Instant};
use tracing_subscriber::EnvFilter;

/// Logs to standard error; `GANTRY_LOG` takes a filter such as `debug` or `kubelet=trace`.
pub fn start_logging(verbose: u8) {
    let default = match verbose {
        0 => "warn",
        1 => "info",
        2 => "debug",
        _ => "trace",
    };
    let filter = EnvFilter::try_from_env("GANTRY_LOG").unwrap_or_else(|_| EnvFilter::new(default));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
}

/// Steps of a command that takes longer than a moment, on standard error, each with its time.
pub struct Progress {
    env: Env,
    started: Instant,
    step: Option<(String, Instant)>,
    quiet: bool,
}

impl Progress {
    pub fn new(env: &Env, quiet: bool) -> Self {
        Self { env: env.clone(), started: env.instant(), step: None, quiet }
    }

    /// Ends the step before and begins the next.
    pub fn step(&mut self, what: impl Into<String>) {
        self.finish();
        let what = what.into();
        if !self.quiet && std::io::stderr().is_terminal() {
            eprint!("  … {what}");
            let _ = std::io::stderr().flush();
        }
        self.step = Some((what, self.env.instant()));
    }

    pub fn finish(&mut self) {
        let Some((what, started)) = self.step.take() else { return };
        if self.quiet {
            return;
        }
        let seconds = (self.env.instant() - started).as_secs_f64();
        let erase = if std::io::stderr().is_terminal() { "\r\x1b[2K" } else { "" };
        eprintln!("{erase}  ✓ {what} ({seconds:.1} s)");
    }

    /// Since the command began, in seconds.
    pub fn elapsed_secs(&self) -> f64 {
        (self.env.instant() - self.started).as_secs_f64()
    }
}

impl Drop for Progress {
    /// A step that did not finish leaves its line, for the error to stand below.
    fn drop(&mut self) {
        if self.step.is_some() && !self.quiet && std::io::stderr().is_terminal() {
            eprintln!();
        }
    }
}

/// `text` or, with `-o json` and `-o yaml`, data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Output {
    #[default]
    Text,
    Json,
    Yaml,
}

impl Output {
    /// Prints data in the chosen form; `false` when the caller is to print text.
    pub fn print(self, data: &serde_json::Value) -> anyhow::Result<bool> {
        match self {
            Self::Text => return Ok(false),
            Self::Json => println!("{}", serde_json::to_string_pretty(data)?),
            Self::Yaml => print!("{}", serde_saphyr::to_string(data)?),
        }
        Ok(true)
    }
}
