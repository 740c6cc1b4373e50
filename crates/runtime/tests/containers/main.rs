//! Real containers through CRI, as root: `GANTRY_ROOT_TESTS=1 cargo test -p runtime --test
//! containers [filter]`. Before and after, the inventory of processes, mounts and control groups
//! must be equal.

mod confinement;
mod figures;
mod lifecycle;
mod recovery;
mod streams;
mod support;

use std::process::ExitCode;

use support::{Outcome, inventory};

type Case = fn(&tokio::runtime::Runtime) -> Outcome;

macro_rules! cases {
    ($($module:ident :: $name:ident),* $(,)?) => {
        const CASES: &[(&str, Case)] = &[$((
            concat!(stringify!($module), "::", stringify!($name)),
            |tokio| tokio.block_on(guarded($module::$name())),
        )),*];
    };
}

cases![
    lifecycle::output_goes_to_the_log,
    lifecycle::a_stop_signal_ends_in_grace,
    lifecycle::a_deaf_container_is_killed,
    lifecycle::a_command_that_is_missing_is_told,
    lifecycle::bad_requests_leave_nothing,
    lifecycle::containers_of_a_pod_share_what_they_should,
    lifecycle::pid_namespaces_are_as_asked,
    lifecycle::memory_beyond_the_limit_kills,
    lifecycle::limits_change_while_running,
    lifecycle::use_is_counted,
    lifecycle::a_log_is_rotated_without_loss,
    lifecycle::events_tell_a_containers_life,
    confinement::users_and_groups_are_the_images,
    confinement::capabilities_are_bounded,
    confinement::the_default_filter_is_on_also_for_execs,
    confinement::paths_are_masked_and_read_only,
    confinement::the_root_can_be_read_only,
    confinement::mounts_are_placed_within_the_root,
    confinement::propagation_is_as_asked,
    confinement::devices_are_restricted,
    confinement::a_privileged_container_sees_devices,
    confinement::our_program_cannot_be_overwritten,
    confinement::sysctls_stay_in_the_pod,
    streams::an_exec_has_its_streams,
    streams::an_exec_on_a_terminal_is_resized,
    streams::an_exec_is_killed_after_its_timeout,
    streams::an_attachment_gives_input_once,
    streams::a_terminal_is_attached,
    streams::a_port_is_forwarded,
    recovery::containers_outlive_the_agent,
    recovery::an_end_without_agent_is_known_later,
    recovery::a_killed_shim_ends_its_container,
    recovery::a_killed_nursery_is_replaced,
    recovery::a_created_container_starts_after_a_restart,
    figures::starts_are_quick,
    figures::fifty_at_once,
];

/// A case that panics fails alone.
async fn guarded(case: impl Future<Output = Outcome>) -> Outcome {
    use futures::FutureExt;
    let caught = std::panic::AssertUnwindSafe(case).catch_unwind().await;
    caught.unwrap_or_else(|panic| Err(stdx::env::panic_text(&*panic).to_owned().into()))
}

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
                support::clean_up();
                println!("FAILED  {name}: {error}");
            }
        }
    }
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
