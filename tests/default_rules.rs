//! Services that break in nine ways, with the lines of the quick start and no rule of their own:
//! each leaves an incident whose files name what is to blame. A service that is well leaves none.
//!
//! Twenty services are well. Fourteen are processes of this file, beside `healthy`, which does much
//! of it in one:
//!
//! | service | is well although |
//! |---|---|
//! | `healthy_start` | its caches are read and computed on every core at once |
//! | `healthy_batch` | a job takes every core for 6 s |
//! | `healthy_copy` | files are copied into the page cache |
//! | `healthy_report` | reports of 300 of 700 MiB are built and freed |
//! | `healthy_deploy` | it takes over the directory of the process before it |
//! | `healthy_tasks` | 5,000 tasks come within 5 s, and end |
//! | `healthy_threads` | 150 threads start within 5 s, and end |
//! | `healthy_descriptors` | 1,500 files are opened within 5 s, and closed |
//! | `healthy_connections` | hundreds of connections a second are made and closed |
//! | `healthy_blocking_pool` | bursts for the blocking pool are as large as the pool |
//! | `healthy_lock` | workers wait for a lock of `std` for a second in five |
//! | `healthy_panics` | a request panics every 3 s |
//! | `healthy_settings` | its settings file is rewritten, also with mistakes |
//! | `healthy_binary` | its program is replaced |
//!
//! Six are histories of days in `tests/replay`: in `healthy.rs` a daily peak, weekly growth between
//! deploys, a nightly batch, a cache that warms up and deploys; in `cgroup.rs` page cache up to the
//! limit.
//!
//! Each service is a process of its own: this binary again, with `MARPLE_SERVICE` set. It runs in a
//! directory with `config/minimal.toml`, on plain `#[tokio::main]`. A test prints how long after
//! the fault the incident opened. A new fault goes into `default_rules/faults.rs`, and what is well
//! into `default_rules/healthy.rs`.

mod host;

#[path = "default_rules/faults.rs"]
mod faults;
#[path = "default_rules/healthy.rs"]
mod healthy;
#[path = "default_rules/service.rs"]
mod service;

use std::alloc::System;
use std::path::Path;

use service::{Neighbours, Service};

#[global_allocator]
static ALLOCATOR: marple::Allocator<System> = marple::Allocator::new(System);

/// The service itself, when this binary is run as one.
#[test]
fn service_process() {
    let Ok(name) = std::env::var(service::NAME) else { return };
    let agent = marple::Agent::from_file("minimal.toml").unwrap();
    faults::limit(&name);
    healthy::prepare(&name);
    let predecessor = (name == "healthy_deploy").then(healthy::start_predecessor);
    main_of(agent, &name).unwrap();
    if let Some(mut predecessor) = predecessor {
        assert!(predecessor.wait().unwrap().success());
    }
}

#[tokio::main]
async fn main_of(
    agent: marple::agent::Builder,
    name: &str,
) -> Result<(), Box<dyn std::error::Error>> {
    let agent = agent.start()?;
    match name.starts_with("healthy") {
        true => healthy::run(name, &agent.handle()).await,
        false => faults::run(name).await,
    }
    Ok(())
}

/// Waits until the fault called `name` has left files of each of these forms that contain all of
/// these words.
fn leaves(name: &str, evidence: &[(&str, &[&str])]) {
    for neighbours in [Neighbours::None, Neighbours::TwoBusy] {
        let mut service = Service::start(name, neighbours);
        service.wait_for_evidence(evidence);
    }
}

#[test]
fn a_memory_leak_names_what_allocates() {
    leaves("leak", &[("memory.pprof", &["faults::keep_reports"])]);
}

#[test]
fn a_cpu_burn_names_what_computes() {
    leaves("cpu", &[("cpu.pprof", &["faults::validate_quadratic"]), ("threads.txt", &[])]);
}

#[test]
fn a_blocked_worker_names_what_blocks() {
    leaves("blocked", &[("threads.txt", &["faults::look_up_name"])]);
}

#[test]
fn a_pile_of_tasks_names_what_spawns() {
    leaves("pile", &[("memory.pprof", &["faults::deliver_webhooks"]), ("tasks.txt", &["150"])]);
    leaves("pile_wrapped", &[("tasks.txt", &["by spawn site\n  150000  ", "faults.rs:"])]);
}

#[test]
fn a_deadlock_of_tasks_names_what_queues_up() {
    leaves("task_deadlock", &[("memory.pprof", &["faults::accept_transfers"])]);
    let lock = "tokio::sync::mutex::Mutex";
    leaves("task_deadlock_wrapped", &[("tasks.txt", &[lock, "faults::transfer", "faults.rs:"])]);
}

#[test]
fn a_deadlock_of_threads_names_both() {
    let both: &[&str] = &["faults::move_stock", "faults::move_money"];
    leaves("thread_deadlock", &[("threads.txt", both)]);
}

#[test]
fn lock_contention_names_what_waits() {
    leaves("contention", &[("threads.txt", &["faults::check_rate_limit"])]);
}

#[test]
fn a_leak_of_descriptors_names_what_is_open() {
    leaves("descriptors", &[("descriptors.txt", &["left-open.log"]), ("threads.txt", &[])]);
}

#[test]
fn a_panic_loop_names_place_message_and_task() {
    let words: &[&str] = &["faults.rs:", "no items", "tokio-rt-worker", "task id"];
    leaves("panics", &[("panics.txt", words), ("threads.txt", &[])]);
}

/// Runs the services called `names` beside each other; none may leave an incident.
fn leave_nothing(names: &[&str]) {
    let services: Vec<_> =
        names.iter().map(|name| Service::start(name, Neighbours::None)).collect();
    let reasons: Vec<_> = services.into_iter().map(Service::reasons_at_end).collect();
    assert!(reasons.iter().all(Vec::is_empty), "{reasons:#?}");
}

#[test]
fn a_healthy_service_leaves_no_incident() {
    leave_nothing(&["healthy"]);
}

#[test]
fn healthy_services_that_hardly_compute_leave_no_incident() {
    leave_nothing(&healthy::LIGHT);
}

#[test]
fn healthy_services_that_compute_copy_or_allocate_much_leave_no_incident() {
    leave_nothing(&healthy::BUSY);
}

#[test]
fn the_service_runs_with_the_shipped_settings() {
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/minimal.toml");
    let settings = marple::config::load(&shipped).unwrap();
    assert_eq!(settings.rules, marple::config::default_rules());
}
