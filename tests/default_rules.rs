//! Services that break in nine ways, with the lines of the quick start and no rule of their own: each leaves an
//! incident whose files name what is to blame. A service that is well leaves none.
//!
//! Each service is a process of its own: this binary again, with `MARPLE_SERVICE` set. It runs in a directory with
//! `config/minimal.toml`, on plain `#[tokio::main]`. A test prints how long after the fault the incident opened.
//! A new fault goes into `default_rules/faults.rs`, and what is well into `default_rules/healthy.rs`.

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
    main_of(agent, &name).unwrap();
}

#[tokio::main]
async fn main_of(
    agent: marple::agent::Builder,
    name: &str,
) -> Result<(), Box<dyn std::error::Error>> {
    let _agent = agent.start()?;
    match name {
        "healthy" => healthy::run().await,
        fault => faults::run(fault).await,
    }
    Ok(())
}

/// Waits until the fault called `name` has left files of each of these forms that contain all of these words.
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

#[test]
fn a_healthy_service_leaves_no_incident() {
    let mut service = Service::start("healthy", Neighbours::None);
    service.ends_without_incident();
}

#[test]
fn the_service_runs_with_the_shipped_settings() {
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/minimal.toml");
    let settings = marple::config::load(&shipped).unwrap();
    assert_eq!(settings.rules, marple::config::default_rules());
}
