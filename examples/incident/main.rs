//! marple at its main job: a web service fails in three ways, and each failure leaves an incident.
//!
//! ```text
//! cargo run --release --example incident -- --dir DIR
//! ```
//!
//! The example itself loads the service (`faults.rs`) over HTTP (`load.rs`). Each fault lasts until
//! the incident that marple's rule opens has its files. Then the fault is repaired, and the
//! incident closes. The fourth incident is started by hand, through `/monitor/notify`. At the end
//! every file is read back, and a command that opens it is printed (`report.rs`). The exit code is
//! 0 only if all files are there.
//!
//! [`run`] contains all that a service with marple needs; the rest simulates its users and its
//! faults.

mod faults;
mod load;
mod report;

use std::alloc::System;
use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use marple::manifest::Origin;
use marple::task::Trace as _;
use marple::{AgentHandle, CaptureKind};
use sysinfo::{ProcessRefreshKind, ProcessesToUpdate};
use tokio::net::TcpListener;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::prelude::*;

use load::{Client, Load};
use report::Incident;

#[global_allocator]
static ALLOCATOR: marple::Allocator<System> = marple::Allocator::new(System);

const SETTINGS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/incident/marple.toml");

/// Limit for each wait of the example. An idle machine needs about a tenth of it.
const DEADLINE: Duration = Duration::from_secs(90);

/// A failure of the service and the load that causes it.
struct Fault {
    /// Name of the rule that detects it.
    rule: &'static str,
    /// Path to request.
    path: &'static str,
    /// Number of threads that request it.
    threads: usize,
    /// Pause of each thread between two requests.
    pause: Duration,
    /// A function that the profile of this kind must name.
    culprit: Option<(CaptureKind, &'static str)>,
}

fn main() -> ExitCode {
    match run() {
        Ok(0) => {
            println!("\nevery file is there and was read back");
            ExitCode::SUCCESS
        }
        Ok(problems) => {
            eprintln!("\nincidents are incomplete: {problems} problems, listed above");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// Runs the example. Returns the number of problems found.
fn run() -> Result<usize, Box<dyn Error>> {
    let dir = dir_from(std::env::args().skip(1))?;
    tracing_subscriber::registry()
        // Events of the libraries at `trace` level would fill the traces.
        .with(LevelFilter::INFO)
        .with(marple::trace::layer())
        .with(tracing_subscriber::fmt::layer().with_ansi(false).with_filter(LevelFilter::WARN))
        .init();
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    marple::instrument_runtime(&mut builder);
    let runtime = builder.enable_all().build()?;
    let _entered = runtime.enter();

    let mut builder = marple::Builder::from_file(SETTINGS)?;
    let settings = builder.settings_mut();
    settings.dir.clone_from(&dir);
    let at_start = resident_bytes()?;
    for rule in settings.rules.iter_mut().filter(|rule| rule.name == "memory") {
        rule.abs = rule.abs.map(|above| above + at_start as f64);
    }
    let agent = builder.start()?;

    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0"))?;
    let base = format!("http://{}", listener.local_addr()?);
    let service = faults::router(&agent.handle());
    let server = async { axum::serve(listener, service).await };
    runtime.spawn(server.traced("server"));

    let scenario = Scenario { client: Client::new(base.clone()), base, agent: agent.handle(), dir };
    let incidents = scenario.run_all()?;
    drop(agent);

    let mut found = 0;
    for (incident, culprit) in incidents {
        incident.print();
        for problem in incident.problems(culprit) {
            println!("  PROBLEM: {problem}");
            found += 1;
        }
    }
    Ok(found)
}

/// Parses the value of `--dir`.
fn dir_from(mut args: impl Iterator<Item = String>) -> Result<PathBuf, String> {
    match (args.next().as_deref(), args.next(), args.next()) {
        (None, ..) => Ok("captures".into()),
        (Some("--dir"), Some(dir), None) => Ok(dir.into()),
        _ => Err("usage: incident [--dir DIR]".to_owned()),
    }
}

fn resident_bytes() -> Result<u64, Box<dyn Error>> {
    let pid = sysinfo::get_current_pid()?;
    let mut system = sysinfo::System::new();
    let memory = ProcessRefreshKind::nothing().with_memory();
    system.refresh_processes_specifics(ProcessesToUpdate::Some(&[pid]), false, memory);
    Ok(system.process(pid).ok_or("the list of processes does not contain this process")?.memory())
}

/// The running service, and the agent and directory that observe it.
struct Scenario {
    client: Client,
    base: String,
    agent: AgentHandle,
    dir: PathBuf,
}

type ExpectedFunction = Option<(CaptureKind, &'static str)>;

impl Scenario {
    fn run_all(&self) -> Result<Vec<(Incident, ExpectedFunction)>, Box<dyn Error>> {
        self.wait("the service to answer", || self.client.get("/orders").ok())?;
        println!("the service answers at {}", self.base);
        let ordinary = Load::start(&self.base, "/orders", 2, Duration::from_millis(5));

        let cores = thread::available_parallelism()?.get();
        let faults = [
            Fault {
                rule: "memory",
                path: "/report",
                threads: 1,
                pause: Duration::from_millis(400),
                culprit: Some((CaptureKind::Heap, "keep_every_report_ever_made")),
            },
            Fault {
                rule: "cpu",
                path: "/proof",
                threads: 4 * cores,
                pause: Duration::ZERO,
                culprit: Some((CaptureKind::Cpu, "search_for_a_proof_of_work")),
            },
            Fault {
                rule: "tasks",
                path: "/notices",
                threads: 1,
                pause: Duration::from_millis(20),
                culprit: Some((CaptureKind::Tasks, "wait_for_a_reply_that_never_comes")),
            },
        ];
        let mut incidents = Vec::new();
        for fault in &faults {
            incidents.push((self.run_fault(fault)?, fault.culprit));
        }
        incidents.push((self.toggle()?, None));

        let (answered, failed) = ordinary.finish();
        println!("{answered} ordinary requests were answered meanwhile, {failed} failed");
        Ok(incidents)
    }

    /// Causes a fault until its incident has its files, then repairs it.
    fn run_fault(&self, fault: &Fault) -> Result<Incident, Box<dyn Error>> {
        let started_at = Timestamp::now();
        println!("{}: requesting {} until its rule fires", fault.rule, fault.path);
        let load = Load::start(&self.base, fault.path, fault.threads, fault.pause);
        let of_rule = || {
            self.find(|incident| {
                let mut reasons = incident.manifest.reasons.iter();
                reasons.any(|r| r.rule.as_deref() == Some(fault.rule) && r.at >= started_at)
            })
        };
        let incident = self.wait(&format!("the {} rule to fire", fault.rule), of_rule)?;
        println!("{}: captured in {}", fault.rule, incident.dir.display());
        self.wait("its captures", || of_rule().filter(|i| i.is_captured() || i.is_closed()))?;
        let (requests, _) = load.finish();
        println!("{}: repairing it after {requests} requests", fault.rule);
        self.client.post("/repair")?;
        self.wait("the incident to close", || of_rule().filter(Incident::is_closed))
    }

    /// Starts and stops an incident by hand.
    fn toggle(&self) -> Result<Incident, Box<dyn Error>> {
        let started_at = Timestamp::now();
        println!("toggle: {}", self.client.post("/monitor/notify")?);
        let by_hand = || {
            self.find(|incident| {
                let mut reasons = incident.manifest.reasons.iter();
                reasons.any(|reason| reason.origin == Origin::Http && reason.at >= started_at)
            })
        };
        // Wait until all captures run, so that the files show what ordinary requests do.
        let running = || {
            let status = self.agent.status().wait(DEADLINE).ok()?;
            let kinds = status.toggle.running;
            CaptureKind::ALL.into_iter().all(|kind| kinds.contains(kind)).then_some(())
        };
        self.wait("the captures to run", running)?;
        thread::sleep(Duration::from_secs(3));
        println!("toggle: {}", self.client.post("/monitor/notify")?);
        self.wait("the incident to close", || by_hand().filter(Incident::is_closed))
    }

    fn find(&self, predicate: impl Fn(&Incident) -> bool) -> Option<Incident> {
        Incident::in_dir(&self.dir).into_iter().find(predicate)
    }

    /// Waits for a condition. The error on a timeout includes the agent's status.
    fn wait<T>(
        &self,
        condition_name: &str,
        ready: impl Fn() -> Option<T>,
    ) -> Result<T, Box<dyn Error>> {
        let started = Instant::now();
        while started.elapsed() < DEADLINE {
            if let Some(found) = ready() {
                return Ok(found);
            }
            thread::sleep(Duration::from_millis(100));
        }
        let status = self.agent.status().wait(Duration::from_secs(5))?;
        let rules: String = status
            .rules
            .iter()
            .map(|rule| format!("\n  rule {}: {}", rule.name, rule.explanation))
            .collect();
        let failure = status.last_failure.unwrap_or_else(|| "none".to_owned());
        Err(format!("waited {DEADLINE:?} for {condition_name}{rules}\n  last failure: {failure}")
            .into())
    }
}
