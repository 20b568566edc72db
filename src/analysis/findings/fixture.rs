//! Fixtures shared by the tests of the rules.
//!
//! ```text
//! let incident = IncidentFixture::new()
//!     .reason("memory", 91.5, 80.0, "memory at 91.5 %, above 80 %")
//!     .vitals("memory.heap", -2, &[1e9, 1.1e9, 1.2e9])
//!     .heap(0, profile_table(0.0, &[(&["orders::insert", "orders::main"], 300_000_000)]));
//! let candidates = find(&incident.evidence());
//! ```

use jiff::{SignedDuration, Timestamp};

use super::Candidate;
use crate::analysis::evidence::{IncidentEvidence, Tables, Tabulated};
use crate::analysis::profile_table::LabelTotal;
use crate::analysis::task_table::SpawnSite;
use crate::analysis::{ProfileRow, ProfileTable, Symbol, TaskGroup, TaskTable};
use crate::analysis::{ThreadGroup, ThreadTable};
use crate::base::{Bytes, IncidentId};
use crate::model::{
    Artifact, CaptureKind, DescriptorDump, IncidentState, Limits, Losses, Manifest, Origin,
    PanicDump, ProcessInfo, Reason, TaskState, Versions, VitalsRow,
};

/// Start of every incident.
const OPENED_AT: &str = "2026-11-23T02:57:33Z";

/// An incident with its tables. File names are those of a real incident: `orders_eu-1.002.TYPE`.
#[derive(Clone, Debug)]
pub(super) struct IncidentFixture {
    pub(super) manifest: Manifest,
    pub(super) tables: Tables,
}

impl IncidentFixture {
    /// Creates an incident without reasons, limits, vitals and artifacts.
    pub(super) fn new() -> Self {
        let opened = time(0);
        let manifest = Manifest {
            schema: Manifest::SCHEMA,
            id: IncidentId::new(opened),
            service: "orders".into(),
            instance: "eu-1".into(),
            state: IncidentState::Closed,
            opened,
            closed: Some(time(60)),
            reasons: Vec::new(),
            limits: Limits::default(),
            process: ProcessInfo {
                pid: 7,
                exe: "/bin/orders".into(),
                build_id: "abcd".into(),
                agent_started: time(-3600),
            },
            versions: Versions {
                marple: "0.1.0".into(),
                kernel: "6".into(),
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

    /// Adds the reason of a rule that fired at the start of the incident.
    pub(super) fn reason(mut self, metric: &str, value: f64, threshold: f64, text: &str) -> Self {
        self.manifest.reasons.push(Reason {
            origin: Origin::Rule,
            at: self.manifest.opened,
            rule: Some(metric.replace('.', "-")),
            metric: Some(metric.parse().unwrap()),
            value: Some(value),
            threshold: Some(threshold),
            text: text.into(),
        });
        self
    }

    pub(super) fn memory_limit(mut self, limit: Bytes) -> Self {
        self.manifest.limits.memory = Some(limit);
        self
    }

    /// Adds the values of a metric, one per second from `first_second` of the incident on.
    pub(super) fn vitals(mut self, metric: &str, first_second: i64, values: &[f64]) -> Self {
        let rows = &mut self.manifest.vitals;
        for (second, &value) in (first_second..).zip(values) {
            let at = time(second);
            let index = rows.binary_search_by_key(&at, |row| row.at).unwrap_or_else(|index| {
                rows.insert(index, VitalsRow { at, values: Default::default() });
                index
            });
            rows[index].values.insert(metric.to_owned(), value);
        }
        self
    }

    /// Adds a heap profile taken at `second` of the incident.
    pub(super) fn heap(mut self, second: i64, table: ProfileTable) -> Self {
        let tabulated = self.tabulated(CaptureKind::Heap, "memory.pprof", second, None, table);
        tabulated.push_to(&mut self.tables.heap);
        self
    }

    pub(super) fn cpu(mut self, second: i64, phase: Option<&str>, table: ProfileTable) -> Self {
        let tabulated = self.tabulated(CaptureKind::Cpu, "cpu.pprof", second, phase, table);
        tabulated.push_to(&mut self.tables.cpu);
        self
    }

    pub(super) fn threads(mut self, second: i64, phase: Option<&str>, table: ThreadTable) -> Self {
        let tabulated = self.tabulated(CaptureKind::Threads, "threads.txt", second, phase, table);
        tabulated.push_to(&mut self.tables.threads);
        self
    }

    pub(super) fn tasks(mut self, second: i64, table: TaskTable) -> Self {
        let tabulated = self.tabulated(CaptureKind::Tasks, "tasks.txt", second, None, table);
        tabulated.push_to(&mut self.tables.tasks);
        self
    }

    pub(super) fn descriptors(mut self, second: i64, dump: DescriptorDump) -> Self {
        let kind = CaptureKind::Descriptors;
        let tabulated = self.tabulated(kind, "descriptors.txt", second, None, dump);
        tabulated.push_to(&mut self.tables.descriptors);
        self
    }

    pub(super) fn panics(mut self, second: i64, dump: PanicDump) -> Self {
        let tabulated = self.tabulated(CaptureKind::Panics, "panics.txt", second, None, dump);
        tabulated.push_to(&mut self.tables.panics);
        self
    }

    /// Sets the note of the artifact that was added last.
    pub(super) fn note(mut self, note: &str) -> Self {
        self.manifest.artifacts.last_mut().unwrap().note = Some(note.to_owned());
        self
    }

    pub(super) fn evidence(&self) -> IncidentEvidence<'_> {
        IncidentEvidence { manifest: &self.manifest, tables: &self.tables }
    }

    /// Adds an artifact to the manifest, and returns its table.
    fn tabulated<T>(
        &mut self,
        kind: CaptureKind,
        extension: &str,
        second: i64,
        phase: Option<&str>,
        table: T,
    ) -> Tabulated<T> {
        let artifacts = &mut self.manifest.artifacts;
        let file = format!("orders_eu-1.{:03}.{extension}", artifacts.len() + 1);
        let phase = phase.map(str::to_owned);
        let taken = time(second);
        artifacts.push(Artifact {
            file: file.clone(),
            kind,
            bytes: Bytes(1000),
            sha256: String::new(),
            taken,
            phase: phase.clone(),
            note: None,
        });
        Tabulated { file, phase, taken, table }
    }
}

/// Returns the wall-clock time at `second` of the incident.
pub(super) fn time(second: i64) -> Timestamp {
    OPENED_AT.parse::<Timestamp>().unwrap() + SignedDuration::from_secs(second)
}

pub(super) fn symbols(names: &[&str]) -> Vec<Symbol> {
    names.iter().map(|&name| name.into()).collect()
}

/// Returns a profile table with a row for each stack and value, innermost function first, in the
/// given order. The variance of a row is `value * weight`, where `weight` is the value that one
/// sample stands for: 0 for exact values, the period in nanoseconds for CPU time.
pub(super) fn profile_table(weight: f64, rows: &[(&[&str], i64)]) -> ProfileTable {
    let row = |&(names, value): &(&[&str], i64)| {
        let variance = value as f64 * weight;
        ProfileRow { stack: symbols(names), value, variance }
    };
    let rows: Vec<ProfileRow> = rows.iter().map(row).collect();
    ProfileTable {
        duration: Default::default(),
        total: rows.iter().map(|row| row.value).sum(),
        variance: rows.iter().map(|row| row.variance).sum(),
        rows,
        other: 0,
        labels: Vec::new(),
    }
}

/// Adds the sum of the samples with a label, such as `task`, to a profile table.
pub(super) fn with_label(
    mut table: ProfileTable,
    key: &str,
    label: &str,
    value: i64,
) -> ProfileTable {
    table.labels.push(LabelTotal { key: key.into(), label: label.into(), value });
    table
}

/// Returns a thread table with a group of waiting threads for each number and stack, innermost
/// function first. The fields of a group that a test needs can be set afterwards.
pub(super) fn thread_table(groups: &[(u64, &[&str])]) -> ThreadTable {
    let group = |&(threads, names): &(u64, &[&str])| ThreadGroup {
        threads,
        running: 0,
        names: vec!["tokio-runtime-w".to_owned()],
        wait_channel: String::new(),
        cpu_time: Default::default(),
        stack: symbols(names),
    };
    let groups: Vec<ThreadGroup> = groups.iter().map(group).collect();
    ThreadTable { total: groups.iter().map(|group| group.threads).sum(), groups }
}

/// Returns a task table with a group of waiting tasks for each spawn site, number and stack,
/// innermost function first, and the sums by spawn site.
pub(super) fn task_table(groups: &[(&str, u64, &[&str])]) -> TaskTable {
    let mut sites: Vec<SpawnSite> = Vec::new();
    for &(location, tasks, _) in groups {
        match sites.iter_mut().find(|site| site.location == location) {
            Some(site) => site.tasks += tasks,
            None => {
                sites.push(SpawnSite { location: location.into(), name: String::new(), tasks });
            }
        }
    }
    let group = |&(location, tasks, names): &(&str, u64, &[&str])| TaskGroup {
        location: location.into(),
        name: String::new(),
        state: TaskState::Waiting,
        tasks,
        longest_since_poll: None,
        stack: symbols(names),
    };
    let groups: Vec<TaskGroup> = groups.iter().map(group).collect();
    let total = sites.iter().map(|site| site.tasks).sum();
    TaskTable { total, is_sample: false, sites, groups }
}

/// Returns the kind, the confidence and the subject of each candidate, for comparisons.
pub(super) fn summaries(candidates: &[Candidate]) -> Vec<String> {
    let summary = |candidate: &Candidate| {
        format!("{} {} {}", candidate.kind, candidate.confidence, candidate.subject)
    };
    candidates.iter().map(summary).collect()
}
