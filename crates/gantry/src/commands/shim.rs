//! `gantry shim`: the parent of one container, re-executed by the runtime. It parses its own
//! arguments and never returns to the table, because it must stay small and single-threaded.

use std::process::ExitCode;

/// Runs the shim when this process was started as one.
pub fn take_over() -> Option<ExitCode> {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next()? != "shim" {
        return None;
    }
    Some(ExitCode::from(crate::assemble::run_shim(arguments.collect())))
}
