//! `cargo xtask e2e [--all] [--strict] [SCENARIO...]`: real containers on a real cluster, driven by
//! the real kubectl. One file per promise; each prints its figure. `--all` adds the slow ones,
//! `--strict` fails where a time misses its target.

mod converge;
mod everyday;
mod harness;
mod heal;
mod identity;
mod inventory;
mod load;
mod node_loss;
mod roll;

use std::time::Instant;

use anyhow::{Result, bail};

use harness::Cluster;

/// A promise and how it is shown.
struct Scenario {
    name: &'static str,
    /// Options of `gantry up` that it needs.
    up: &'static [&'static str],
    /// Takes minutes: only with `--all` or by name.
    slow: bool,
    run: fn(&Cluster) -> Result<String>,
}

/// The table: scenarios with the same options share a cluster, in this order.
const SCENARIOS: &[Scenario] = &[
    Scenario { name: "heal", up: &[], slow: false, run: heal::run },
    Scenario { name: "converge", up: &[], slow: false, run: converge::run },
    Scenario { name: "everyday", up: &[], slow: false, run: everyday::run },
    Scenario { name: "identity", up: &[], slow: false, run: identity::run },
    Scenario { name: "roll", up: &[], slow: false, run: roll::run },
    Scenario { name: "node-loss-default", up: &[], slow: true, run: node_loss::default },
    Scenario { name: "node-loss", up: &["--fast-failover"], slow: false, run: node_loss::fast },
];

pub fn run(arguments: &[String]) -> Result<()> {
    let all = arguments.iter().any(|a| a == "--all");
    let named: Vec<&String> = arguments.iter().filter(|a| !a.starts_with("--")).collect();
    if let Some(unknown) = named.iter().find(|n| SCENARIOS.iter().all(|s| s.name != n.as_str())) {
        let names: Vec<_> = SCENARIOS.iter().map(|s| s.name).collect();
        bail!("no scenario {unknown:?}; there are {}", names.join(", "));
    }
    let chosen = |s: &&Scenario| match named.as_slice() {
        [] => all || !s.slow,
        names => names.iter().any(|n| n.as_str() == s.name),
    };
    let chosen: Vec<&Scenario> = SCENARIOS.iter().filter(chosen).collect();
    let strict = arguments.iter().any(|a| a == "--strict");
    let before = inventory::take()?;
    let mut report = Report::default();
    for group in chosen.chunk_by(|a, b| a.up == b.up) {
        run_group(group, strict, &mut report);
    }
    report.note("leaves-nothing", Instant::now(), leaves_nothing(&before));
    report.close()
}

/// Runs scenarios on one cluster, which is removed in any case.
fn run_group(group: &[&Scenario], strict: bool, report: &mut Report) {
    let started = Instant::now();
    let cluster = match Cluster::up(group[0].up, strict) {
        Ok(cluster) => cluster,
        Err(error) => return report.note("up", started, Err(error)),
    };
    report.note("up", started, Ok(cluster.up_figure()));
    for scenario in group {
        let started = Instant::now();
        let mut outcome = (scenario.run)(&cluster);
        if let Err(error) = &outcome {
            cluster.describe();
            // A shared machine stalls now and then: one more attempt, and both are told.
            if !strict {
                println!("again {:<18} {error:#}", scenario.name);
                outcome = (scenario.run)(&cluster);
            }
        }
        report.note(scenario.name, started, outcome);
    }
    let started = Instant::now();
    report.note("down", started, cluster.down());
}

fn leaves_nothing(before: &inventory::Inventory) -> Result<String> {
    let after = inventory::take()?;
    let differences = before.differences(&after);
    if !differences.is_empty() {
        bail!("the machine is not as it was:\n  {}", differences.join("\n  "));
    }
    Ok(format!("{} kinds of things as before", before.kinds()))
}

#[derive(Default)]
struct Report {
    passed: u32,
    failed: u32,
}

impl Report {
    fn note(&mut self, name: &str, started: Instant, outcome: Result<String>) {
        let seconds = started.elapsed().as_secs_f64();
        match outcome {
            Ok(figure) => {
                self.passed += 1;
                println!("ok    {name:<18} {seconds:6.1} s  {figure}");
            }
            Err(error) => {
                self.failed += 1;
                println!("FAIL  {name:<18} {seconds:6.1} s  {error:#}");
            }
        }
    }

    fn close(self) -> Result<()> {
        println!("\n{} passed, {} failed", self.passed, self.failed);
        if self.failed > 0 {
            bail!("{} scenario(s) failed", self.failed);
        }
        Ok(())
    }
}
