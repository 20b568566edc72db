//! Default rules in real services. Each of nine faults opens an incident whose files and whose first
//! finding name the cause, and no healthy service opens an incident. The services have the settings of the quick
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
//! Six are histories of days in `tests/rules/replay`: in `healthy.rs` a daily peak, weekly growth
//! between deploys, a nightly batch, a cache that warms up and deploys; in `cgroup.rs` page cache
//! up to the limit.
//!
//! Each service is a child process: this binary with `MARPLE_SERVICE` set. It runs in a directory
//! with `config/minimal.toml`, on plain `#[tokio::main]`. A test prints the time between the fault
//! and the start of the incident. A new fault goes into `faults.rs`, and a healthy load into
//! `healthy.rs`. The allocator is marple's, as in a service. nextest runs the services that use all
//! of the CPU and the healthy ones one test at a time, and the others three at a time.

#[path = "../support/mod.rs"]
mod support;

mod faults;
mod healthy;
mod service;

use std::alloc::System;
use std::path::Path;

use marple::manifest::FindingKind;
use service::{Cause, Neighbours, Service};

#[global_allocator]
static ALLOCATOR: marple::Allocator<System> = marple::Allocator::new(System);

/// Entry point of a service process. Does nothing in the test run itself.
#[test]
fn service_process() {
    let Ok(name) = std::env::var(service::SERVICE_ENV) else { return };
    let agent = marple::Builder::from_file("minimal.toml").unwrap();
    faults::set_resource_limit(&name);
    healthy::prepare(&name);
    let predecessor = (name == "healthy_deploy").then(healthy::start_predecessor);
    run_service(agent, &name).unwrap();
    if let Some(mut predecessor) = predecessor {
        assert!(predecessor.wait().unwrap().success());
    }
}

#[tokio::main]
async fn run_service(
    agent: marple::internals::agent::Builder,
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
/// contains all of its words, and a first finding that states the cause.
fn assert_incident_contains(name: &str, evidence: &[(&str, &[&str])], cause: &Cause) {
    for neighbours in [Neighbours::None, Neighbours::TwoBusy] {
        let mut service = Service::start(name, neighbours);
        service.wait_for_evidence(evidence, cause);
    }
}

/// Kinds that state that threads wait in a function.
const WAITS: &[FindingKind] =
    &[FindingKind::LockWait, FindingKind::RuntimeStarved, FindingKind::Stall];

const fn cause(kinds: &'static [FindingKind], word: &'static str) -> Cause {
    Cause { kinds, word }
}

#[test]
fn memory_leak_incident_names_allocating_function() {
    let cause = cause(&[FindingKind::HeapGrowth], "faults::leak_reports");
    assert_incident_contains("leak", &[("memory.pprof", &["faults::leak_reports"])], &cause);
}

#[test]
fn cpu_burn_incident_names_computing_function() {
    assert_incident_contains(
        "cpu",
        &[("cpu.pprof", &["faults::validate_quadratic"]), ("threads.txt", &[])],
        &cause(&[FindingKind::CpuHot, FindingKind::CpuChanged], "faults::validate_quadratic"),
    );
}

#[test]
fn blocked_worker_incident_names_blocking_function() {
    let cause = cause(&[FindingKind::Stall, FindingKind::RuntimeStarved], "faults::look_up_name");
    assert_incident_contains("blocked", &[("threads.txt", &["faults::look_up_name"])], &cause);
}

#[test]
fn task_leak_incident_names_spawn_location() {
    assert_incident_contains(
        "pile",
        &[("memory.pprof", &["faults::deliver_webhooks"]), ("tasks.txt", &["150"])],
        &cause(&[FindingKind::HeapGrowth, FindingKind::TaskGrowth], "faults::deliver_webhooks"),
    );
    assert_incident_contains(
        "pile_wrapped",
        &[("tasks.txt", &["by spawn site\n  150000  ", "faults.rs:"])],
        &cause(&[FindingKind::TaskGrowth, FindingKind::TaskLeak], "faults.rs:"),
    );
}

#[test]
fn task_deadlock_incident_names_waiting_tasks() {
    assert_incident_contains(
        "task_deadlock",
        &[("memory.pprof", &["faults::accept_transfers"])],
        // Some hundred tasks that are not in the task dump can have too few heap samples.
        &cause(&[FindingKind::TaskGrowth, FindingKind::Unexplained], "tasks"),
    );
    let lock = "tokio::sync::mutex::Mutex";
    assert_incident_contains(
        "task_deadlock_wrapped",
        &[("tasks.txt", &[lock, "faults::transfer", "faults.rs:"])],
        &cause(&[FindingKind::LockWait, FindingKind::TaskGrowth], "faults::transfer"),
    );
}

#[test]
fn thread_deadlock_incident_names_both_threads() {
    let both_functions: &[&str] = &["faults::move_stock", "faults::move_money"];
    let cause = cause(WAITS, "faults::move_");
    assert_incident_contains("thread_deadlock", &[("threads.txt", both_functions)], &cause);
}

#[test]
fn lock_contention_incident_names_waiting_function() {
    let cause = cause(WAITS, "faults::check_rate_limit");
    let threads: &[&str] = &["faults::check_rate_limit"];
    assert_incident_contains("contention", &[("threads.txt", threads)], &cause);
}

#[test]
fn descriptor_leak_incident_names_open_files() {
    assert_incident_contains(
        "descriptors",
        &[("descriptors.txt", &["left-open.log"]), ("threads.txt", &[])],
        &cause(&[FindingKind::FdGrowth], "left-open"),
    );
}

#[test]
fn panic_loop_incident_names_location_message_and_task() {
    let words: &[&str] = &["faults.rs:", "no items", "tokio-rt-worker", "task id"];
    let cause = cause(&[FindingKind::Panics], "faults.rs:");
    assert_incident_contains("panics", &[("panics.txt", words), ("threads.txt", &[])], &cause);
}

/// Runs the services called `names` at the same time, and checks that none opens an incident.
fn assert_no_incident(names: &[&str]) {
    let services: Vec<_> =
        names.iter().map(|name| Service::start(name, Neighbours::None)).collect();
    let reasons: Vec<_> = services.into_iter().map(Service::reasons_at_end).collect();
    assert!(reasons.iter().all(Vec::is_empty), "{reasons:#?}");
}

#[test]
fn healthy_service_opens_no_incident() {
    assert_no_incident(&["healthy"]);
}

#[test]
fn healthy_services_with_little_cpu_load_open_no_incident() {
    assert_no_incident(&healthy::LIGHT);
}

#[test]
fn healthy_services_under_heavy_load_open_no_incident() {
    assert_no_incident(&healthy::BUSY);
}

#[test]
fn service_runs_with_shipped_settings() {
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/minimal.toml");
    let settings = marple::config::load(&shipped).unwrap();
    assert_eq!(settings.rules, marple::config::default_rules());
}
