//! Default rules in real services. Each of nine faults opens an incident whose files name the
//! cause, and no healthy service opens an incident. The services have the settings of the quick
//! start and add no rule.
//!
//! Twenty services are healthy. Fourteen are processes of this file, in addition to `healthy`,
//! which combines much of their load in one process:
//!
//! | service | healthy load |
//! |---|---|
//! | `healthy_start` | caches are read and computed on every core at once |
//! | `healthy_batch` | a job uses every core for 6 s |
//! | `healthy_copy` | files are copied into the page cache |
//! | `healthy_report` | reports of 300 of 700 MiB are built and freed |
//! | `healthy_deploy` | the process takes over the directory of its predecessor |
//! | `healthy_tasks` | 5,000 tasks are spawned within 5 s, and end |
//! | `healthy_threads` | 150 threads start within 5 s, and end |
//! | `healthy_descriptors` | 1,500 files are opened within 5 s, and closed |
//! | `healthy_connections` | hundreds of connections a second are made and closed |
//! | `healthy_blocking_pool` | bursts for the blocking pool are as large as the pool |
//! | `healthy_lock` | workers wait for a lock of `std` for a second in five |
//! | `healthy_panics` | a request panics every 3 s |
//! | `healthy_settings` | the settings file is rewritten, also with mistakes |
//! | `healthy_binary` | the program file is replaced |
//!
//! Six are histories of days in `tests/replay`: in `healthy.rs` a daily peak, weekly growth between
//! deploys, a nightly batch, a cache that warms up and deploys; in `cgroup.rs` page cache up to the
//! limit.
//!
//! Each service is a child process: this binary with `MARPLE_SERVICE` set. It runs in a directory
//! with `config/minimal.toml`, on plain `#[tokio::main]`. A test prints the time between the fault
//! and the start of the incident. A new fault goes into `default_rules/faults.rs`, and a healthy
//! load into `default_rules/healthy.rs`.

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

/// Entry point of a service process. Does nothing in the test run itself.
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

/// Waits until the fault called `name` has produced files with these suffixes, each of which
/// contains all of its words.
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

/// Runs the services called `names` at the same time, and checks that none opens an incident.
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
