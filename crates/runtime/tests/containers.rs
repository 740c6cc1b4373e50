//! Real containers through CRI, as root: `GANTRY_ROOT_TESTS=1 cargo test -p runtime --test
//! containers [filter]`. Before and after, the inventory of processes, mounts and control groups
//! must be equal.

mod support;

use std::{process::ExitCode, time::Duration};

use cri::{
    streaming::{Streaming, TerminalSize},
    v1,
};
use support::{Node, Pod, inventory, wait_log};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

type Outcome = Result<(), Box<dyn std::error::Error>>;

macro_rules! cases {
    ($($name:ident),* $(,)?) => {
        const CASES: &[(&str, fn(&tokio::runtime::Runtime) -> Outcome)] =
            &[$((stringify!($name), |tokio| tokio.block_on($name()))),*];
    };
}

cases![
    output_goes_to_the_log,
];

fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some("shim") {
        return ExitCode::from(runtime::shim_main() as u8);
    }
    if std::env::var("GANTRY_ROOT_TESTS").as_deref() != Ok("1") {
        println!("skipped: containers need root; set GANTRY_ROOT_TESTS=1");
        return ExitCode::SUCCESS;
    }
    let filter = std::env::args().nth(1).filter(|arg| !arg.starts_with('-')).unwrap_or_default();
    let tokio = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a tokio runtime starts");
    let mut failed = 0;
    for (name, case) in CASES.iter().filter(|(name, _)| name.contains(&filter)) {
        let before = inventory();
        let outcome = case(&tokio).map_err(|error| error.to_string()).and_then(|()| {
            let left = support::settled_difference(&before);
            if left.is_empty() { Ok(()) } else { Err(format!("left behind: {left:#?}")) }
        });
        match outcome {
            Ok(()) => println!("ok      {name}"),
            Err(error) => {
                failed += 1;
                println!("FAILED  {name}: {error}");
            }
        }
    }
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

async fn output_goes_to_the_log() -> Outcome {
    let node = Node::start().await?;
    let pod = node.pod().await?;
    let id = pod.run(&["sh", "-c", "echo out; echo err >&2; exit 3"]).await?;
    let status = pod.wait_exit(&id).await?;
    assert_eq!((status.exit_code, &*status.reason), (3, "Error"));
    let log = pod.log(&id)?;
    let line = |stream: &str, text: &str| {
        log.lines().any(|line| line.ends_with(&format!(" {stream} F {text}")))
    };
    assert!(line("stdout", "out") && line("stderr", "err"), "{log}");
    let refused = pod.exec(&id, &["true"]).await.unwrap_err().to_string();
    assert!(refused.contains("is not running"), "{refused}");
    let id = pod.run(&["sleep", "1000"]).await?;
    let (code, out, _) = pod.exec(&id, &["sh", "-c", "hostname; id -u; cat /etc/resolv.conf"]).await?;
    assert_eq!((code, &*out), (0, "test-pod\n0\nnameserver 10.0.0.10\n"));
    pod.stop(&id, 0).await?;
    assert_eq!(pod.wait_exit(&id).await?.exit_code, 137);
    pod.remove().await?;
    node.end().await
}
