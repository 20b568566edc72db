//! A memory incident of a service `orders`, for the expected texts.

use jiff::{SignedDuration, Timestamp};

use crate::analysis::evidence::{IncidentEvidence, Tables, Tabulated};
use crate::analysis::{
    ProfileRow, ProfileTable, Symbol, TaskGroup, TaskTable, ThreadGroup, ThreadTable,
};
use crate::base::{Bytes, IncidentId};
use crate::model::{
    Artifact, CaptureKind, CaptureRecord, Confidence, Finding, FindingEvidence, FindingKind,
    IncidentState, Limits, Losses, Manifest, Origin, Outcome, ProcessInfo, Reason, RemovedArtifact,
    TaskState, Versions, VitalsRow,
};

const MIB: f64 = 1024.0 * 1024.0;

/// An incident, and the tables of its artifacts.
pub(super) struct ReportFixture {
    pub(super) manifest: Manifest,
    pub(super) tables: Tables,
}

impl ReportFixture {
    /// Creates an open incident in which nothing is captured.
    pub(super) fn empty() -> Self {
        let manifest = Manifest {
            schema: Manifest::SCHEMA,
            id: "01KASB2C4GKTT4TVGSHDBJC1PH".parse::<IncidentId>().unwrap(),
            service: "orders".into(),
            instance: "eu-1".into(),
            state: IncidentState::Open,
            opened: time(0),
            closed: None,
            reasons: Vec::new(),
            limits: Limits::default(),
            process: ProcessInfo {
                pid: 4711,
                exe: "/srv/customer-17/bin/orders".into(),
                build_id: "9f86d081884c7d65".into(),
                agent_started: time(-7200),
            },
            versions: Versions {
                marple: "0.1.0".into(),
                kernel: "6.1.0-18-amd64".into(),
                arch: "x86_64".into(),
            },
            captures: Vec::new(),
            artifacts: Vec::new(),
            removed: Vec::new(),
            vitals: Vec::new(),
            findings: Vec::new(),
            losses: Losses::default(),
        };
        Self { manifest, tables: Tables::default() }
    }

    /// Creates a closed incident with all kinds of evidence.
    pub(super) fn full() -> Self {
        let mut fixture = Self::empty();
        let manifest = &mut fixture.manifest;
        manifest.state = IncidentState::Closed;
        manifest.closed = Some(time(125));
        manifest.reasons = vec![
            reason(0, "memory", 81.5, 80.0, "memory 81.5 % is above abs 80.0 %"),
            reason(9, "runtime.lag", 0.61, 0.5, "runtime.lag 610ms is above abs 500ms"),
        ];
        manifest.limits = Limits {
            memory: Some(Bytes::gib(1)),
            memory_source: Some("cgroup memory.max".into()),
            cpu_cores: Some(2.0),
            cpu_source: Some("cgroup cpu.max".into()),
        };
        manifest.vitals = (-120..60).map(vitals_row).collect();
        manifest.findings = findings();
        manifest.losses.add("vitals rows dropped: manifest too long", 3);
        fixture.add_captures();
        fixture.add_artifacts();
        fixture
    }

    pub(super) fn evidence(&self) -> IncidentEvidence<'_> {
        IncidentEvidence { manifest: &self.manifest, tables: &self.tables }
    }

    fn add_captures(&mut self) {
        let captures = &mut self.manifest.captures;
        for (kind, engine, seconds, outcome) in [
            (CaptureKind::Threads, "signals", 0, Outcome::Done),
            (CaptureKind::Tasks, "wakers", 0, Outcome::Done),
            (CaptureKind::Descriptors, "proc", 0, Outcome::Failed),
            (CaptureKind::Cpu, "perf", 10, Outcome::Done),
            (CaptureKind::Heap, "sampling", 10, Outcome::Done),
            (CaptureKind::Trace, "flight", 10, Outcome::Cut),
            (CaptureKind::Custom, "running_queries.txt", 0, Outcome::Skipped),
        ] {
            let mut capture = CaptureRecord::running(kind, engine.to_owned(), time(0));
            capture.stopped = Some(time(seconds));
            capture.outcome = outcome;
            captures.push(capture);
        }
        captures[0].losses.add("threads without a complete stack", 2);
        captures[2].error = Some("cannot read /proc/self/fd: permission denied".into());
        captures[5].error = Some("ends at 2026-11-23T02:57:40Z: max_bytes_per_incident".into());
        captures[5].losses.add("polls and parks dropped: overwritten before they were read", 1840);
        captures[6].error = Some("no collector of this name is registered".into());
    }

    fn add_artifacts(&mut self) {
        let Tables { heap, cpu, threads, tasks, .. } = &mut self.tables;
        let artifacts = &mut self.manifest.artifacts;
        let mut add = |kind, extension: &str, second, kib, phase: Option<&str>| {
            let file = format!("orders_eu-1.{:03}.{extension}", artifacts.len() + 1);
            artifacts.push(Artifact {
                file: file.clone(),
                kind,
                bytes: Bytes::kib(kib),
                sha256: String::new(),
                taken: time(second),
                phase: phase.map(str::to_owned),
                note: None,
            });
            file
        };
        let file = add(CaptureKind::Threads, "threads.txt", 0, 31, None);
        threads.push(tabulated(file, 0, thread_table()));
        add(CaptureKind::Threads, "threads.pprof", 0, 9, None);
        let file = add(CaptureKind::Tasks, "tasks.txt", 0, 58, None);
        tasks.push(tabulated(file, 0, task_table()));
        let file = add(CaptureKind::Heap, "memory.pprof", 0, 12, Some("lookback"));
        heap.push(tabulated(file, 0, heap_table(300, 90)));
        add(CaptureKind::Trace, "runtime.trace", 7, 512, None);
        let file = add(CaptureKind::Cpu, "cpu.pprof", 10, 40, None);
        cpu.push(tabulated(file, 10, cpu_table()));
        let file = add(CaptureKind::Heap, "memory.pprof", 10, 14, None);
        heap.push(tabulated(file, 10, heap_table(580, 94)));
        artifacts[6].note = Some(
            "memory: the heap profile explains at most 678.0 MiB of 871.3 MiB resident (77.8 %): \
             829.1 MiB anonymous, 42.2 MiB of files, 0 B shared"
                .into(),
        );
        let mut removed = artifacts[3].clone();
        removed.file = "orders_eu-1.005.memory.pprof".into();
        let why = "store.max_bytes_per_incident".into();
        self.manifest.removed.push(RemovedArtifact { artifact: removed, removed: time(60), why });
    }
}

/// Returns the wall-clock time at `second` of the incident.
pub(super) fn time(second: i64) -> Timestamp {
    let opened: Timestamp = "2026-11-23T02:57:33Z".parse().unwrap();
    opened + SignedDuration::from_secs(second)
}

pub(super) fn reason(second: i64, metric: &str, value: f64, threshold: f64, text: &str) -> Reason {
    Reason {
        origin: Origin::Rule,
        at: time(second),
        rule: Some(metric.replace('.', "-")),
        metric: Some(metric.parse().unwrap()),
        value: Some(value),
        threshold: Some(threshold),
        text: text.into(),
    }
}

/// A working set that grows in the minute before the incident, with a lag that follows.
fn vitals_row(second: i64) -> VitalsRow {
    let grown = (second + 60).clamp(0, 75) as f64 * 6.0;
    let working_set = (474.6 + grown) * MIB;
    let values = [
        ("memory", working_set / Bytes::gib(1).get() as f64 * 100.0),
        ("memory.working_set", working_set),
        ("memory.heap", working_set - 150.0 * MIB),
        ("cpu", 31.0 + grown / 20.0),
        ("tasks", (1204 + second.rem_euclid(3)) as f64),
        ("runtime.lag", 0.0008 + (second + 10).clamp(0, 20) as f64 * 0.04),
    ];
    let values = values.map(|(name, value)| (name.to_owned(), value)).into();
    VitalsRow { at: time(second), values }
}

fn findings() -> Vec<Finding> {
    let finding = |rank, kind, confidence, subject: &str, text: &str| Finding {
        rank,
        kind,
        confidence,
        subject: subject.into(),
        text: text.into(),
        numbers: Default::default(),
        labels: Default::default(),
        stack: Vec::new(),
        evidence: Vec::new(),
    };
    let mut heap = finding(
        1,
        FindingKind::HeapGrowth,
        Confidence::Certain,
        "orders::cache::insert",
        "orders::cache::insert holds 280.0 MiB more than at the start of the incident (98 % of \
         the growth), +- 5.9 MiB",
    );
    heap.numbers = [("bytes", 280.0 * MIB), ("standard_error", 5.9 * MIB), ("share", 0.982)]
        .map(|(name, value)| (name.to_owned(), value))
        .into();
    heap.labels = [("task".to_owned(), "importer".to_owned())].into();
    heap.stack = [
        "alloc::raw_vec::RawVec<T>::grow_one",
        "orders::cache::insert::{{closure}}",
        "orders::cache::insert",
        "hashbrown::map::HashMap<K,V>::insert",
        "orders::import::store_batch",
        "orders::import::run::{{closure}}",
        "tokio::runtime::task::harness::poll",
    ]
    .map(str::to_owned)
    .into();
    let command = |file: &str, command: &str| FindingEvidence {
        file: file.to_owned(),
        command: command.to_owned(),
    };
    heap.evidence = vec![command(
        "orders_eu-1.007.memory.pprof",
        "go tool pprof -top -base orders_eu-1.004.memory.pprof orders_eu-1.007.memory.pprof",
    )];
    let mut lag = finding(
        2,
        FindingKind::LockWait,
        Confidence::Likely,
        "orders::db::Pool::get",
        "14 of 21 threads wait for a lock in orders::db::Pool::get",
    );
    lag.numbers = [("threads".to_owned(), 14.0)].into();
    lag.evidence = vec![command("orders_eu-1.001.threads.txt", "less orders_eu-1.001.threads.txt")];
    vec![heap, lag]
}

fn tabulated<T>(file: String, second: i64, table: T) -> Tabulated<T> {
    Tabulated { file, phase: None, taken: time(second), table }
}

fn symbols(names: &[&str]) -> Vec<Symbol> {
    names.iter().map(|&name| name.into()).collect()
}

fn profile_table(rows: &[(&str, f64, f64)]) -> ProfileTable {
    let row = |&(name, value, standard_error): &(&str, f64, f64)| ProfileRow {
        stack: symbols(&["malloc", name]),
        value: value as i64,
        variance: standard_error * standard_error,
    };
    let rows: Vec<ProfileRow> = rows.iter().map(row).collect();
    let total = rows.iter().map(|row| row.value).sum();
    ProfileTable { total, rows, ..ProfileTable::default() }
}

fn heap_table(cache_mib: i64, session_mib: i64) -> ProfileTable {
    profile_table(&[
        ("orders::cache::insert", cache_mib as f64 * MIB, 4.2 * MIB),
        ("orders::session::open", session_mib as f64 * MIB, 1.1 * MIB),
        ("orders::config::load", 4.0 * MIB, 0.2 * MIB),
    ])
}

fn cpu_table() -> ProfileTable {
    profile_table(&[
        ("orders::import::parse", 5.18e9, 0.23e9),
        ("orders::search::rank", 1.4e9, 0.12e9),
        ("<orders::api::Filter<'_> as serde::de::Deserialize>::deserialize", 0.31e9, 0.06e9),
    ])
}

fn thread_table() -> ThreadTable {
    let group = |threads, running, name: &str, channel: &str, names: &[&str]| ThreadGroup {
        threads,
        running,
        names: vec![name.to_owned()],
        wait_channel: channel.to_owned(),
        cpu_time: Default::default(),
        stack: symbols(names),
    };
    let groups = vec![
        group(14, 0, "tokio-rt-worker", "futex_wait_queue", &["syscall", "orders::db::Pool::get"]),
        group(4, 1, "tokio-rt-worker", "ep_poll", &["epoll_wait", "tokio::runtime::driver::park"]),
        group(3, 0, "importer", "", &[]),
    ];
    ThreadTable { total: 21, groups }
}

fn task_table() -> TaskTable {
    let group = |location: &str, name: &str, state, tasks, names: &[&str]| TaskGroup {
        location: location.to_owned(),
        name: name.to_owned(),
        state,
        tasks,
        longest_since_poll: None,
        stack: symbols(names),
    };
    let read = &["tokio::net::TcpStream::read", "orders::api::serve::{{closure}}"];
    let groups = vec![
        group("src/server.rs:42", "connection", TaskState::Waiting, 1180, read),
        group("src/import.rs:7", "", TaskState::Scheduled, 24, &[]),
    ];
    TaskTable { total: 1204, is_sample: false, sites: Vec::new(), groups }
}
