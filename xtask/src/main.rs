//! Chores of the repository: `cargo xtask NAME`.

mod e2e;
mod edges;
mod facts;
mod peers;

use std::process::ExitCode;

/// A chore: its name, one line of help, and what runs it with the arguments after its name.
struct Chore {
    name: &'static str,
    help: &'static str,
    run: fn(&[String]) -> anyhow::Result<()>,
}

const CHORES: &[Chore] = &[
    Chore {
        name: "facts",
        help: "write the schema facts in crates/api/data; --check compares only",
        run: facts::run,
    },
    Chore {
        name: "edges",
        help: "check that crates depend on each other only as ARCHITECTURE.md says",
        run: edges::run,
    },
    Chore {
        name: "e2e",
        help: "run scenarios on a real cluster with the real kubectl; --all adds the slow ones",
        run: e2e::run,
    },
    Chore {
        name: "peers",
        help: "build the real kubectl, kube-apiserver and etcd from Go modules, once",
        run: peers::run,
    },
];

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let chore = args.first().and_then(|name| CHORES.iter().find(|c| c.name == name));
    let Some(chore) = chore else {
        eprintln!("usage: cargo xtask CHORE [ARGUMENTS]\n");
        for chore in CHORES {
            eprintln!("  {:<12} {}", chore.name, chore.help);
        }
        return ExitCode::from(2);
    };
    match (chore.run)(&args[1..]) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask {}: {error:#}", chore.name);
            ExitCode::FAILURE
        }
    }
}
