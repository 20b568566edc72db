//! `incident.json`: everything known about an incident besides the artifacts themselves.
//!
//! Fields are only ever added; a reader ignores those it does not know.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::capture::CaptureKind;
use super::incident::{IncidentState, Reason};
use super::losses::Losses;
use super::vitals::Vitals;
use crate::base::{Bytes, IncidentId};

/// The manifest of one incident.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// The version of this form.
    pub schema: u32,
    /// The incident.
    pub id: IncidentId,
    /// The service that had it.
    pub service: String,
    /// The part of the world the service runs in.
    pub domain: String,
    /// Where it stands.
    pub state: IncidentState,
    /// When it opened.
    pub opened: Timestamp,
    /// When it closed, or was found interrupted.
    #[serde(default)]
    pub closed: Option<Timestamp>,
    /// Why; the first opened it, the others joined.
    pub reasons: Vec<Reason>,
    /// The limits in force when it opened.
    pub limits: Limits,
    /// The process.
    pub process: ProcessInfo,
    /// What wrote this.
    pub versions: Versions,
    /// The captures, in the order they started.
    pub captures: Vec<CaptureRecord>,
    /// The finished files, in the order they were taken.
    pub artifacts: Vec<Artifact>,
    /// Files that were removed again to make room, in the order they went.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub removed: Vec<RemovedArtifact>,
    /// The vitals from before the incident to after it.
    pub vitals: Vec<VitalsRow>,
    /// What could not be kept of the incident itself.
    #[serde(default, skip_serializing_if = "Losses::is_empty")]
    pub losses: Losses,
}

impl Manifest {
    /// The version of the form that this marple writes.
    pub const SCHEMA: u32 = 1;
}

/// Limits and where they were read.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Limits {
    /// Memory, in bytes.
    pub memory: Option<Bytes>,
    /// Where that was read.
    pub memory_source: Option<String>,
    /// CPU, in cores.
    pub cpu_cores: Option<f64>,
    /// Where that was read.
    pub cpu_source: Option<String>,
}

impl From<&Vitals> for Limits {
    fn from(vitals: &Vitals) -> Self {
        let nearest = vitals.memory_wall().map(|wall| wall.limit);
        let (memory, cpu) =
            (nearest.as_ref().or(vitals.memory_limit.as_ref()), vitals.cpu_limit.as_ref());
        Self {
            memory: memory.map(|limit| limit.value),
            memory_source: memory.map(|limit| limit.source.to_string()),
            cpu_cores: cpu.map(|limit| limit.value),
            cpu_source: cpu.map(|limit| limit.source.to_string()),
        }
    }
}

/// The process an incident is of.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProcessInfo {
    /// Its process id.
    pub pid: u32,
    /// Its executable.
    pub exe: String,
    /// The GNU build id of the executable in lower-case hex; empty when it has none.
    pub build_id: String,
    /// When the agent in it started.
    pub agent_started: Timestamp,
}

/// What wrote a manifest, and on what.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Versions {
    /// marple.
    pub marple: String,
    /// The operating system's kernel.
    pub kernel: String,
    /// The machine's architecture.
    pub arch: String,
}

/// How a capture ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It has not ended.
    Running,
    /// All its artifacts are here.
    Done,
    /// It, or one of its artifacts, could not be made; `error` says why.
    Failed,
    /// It was not started, or not written; `error` says why.
    Skipped,
    /// Its file is here, but not all of it; `error` says where it ends and why.
    Cut,
}

/// One collector started and stopped.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CaptureRecord {
    /// What was captured.
    pub kind: CaptureKind,
    /// By what means.
    pub engine: String,
    /// When it started.
    pub started: Timestamp,
    /// When it stopped.
    #[serde(default)]
    pub stopped: Option<Timestamp>,
    /// How it ended.
    pub outcome: Outcome,
    /// Why it is not `done`, and what to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// What it did not record.
    #[serde(default, skip_serializing_if = "Losses::is_empty")]
    pub losses: Losses,
}

/// One finished file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Artifact {
    /// Its name in the incident's directory.
    pub file: String,
    /// What it is of.
    pub kind: CaptureKind,
    /// Its size.
    pub bytes: Bytes,
    /// Its SHA-256 in lower-case hex.
    pub sha256: String,
    /// When the evidence in it was taken.
    pub taken: Timestamp,
    /// Which part of its capture it is: `before` for what was seen up to the start, none for the capture
    /// itself. The two are to be compared: `go tool pprof -base BEFORE FILE`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub part: Option<String>,
    /// A sentence on what the file shows: of a heap profile, how much of the resident memory it explains and where the
    /// rest is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// A file that was removed again: of each form the first, the last and the largest stay.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RemovedArtifact {
    /// What it was.
    #[serde(flatten)]
    pub artifact: Artifact,
    /// When it went.
    pub removed: Timestamp,
    /// For what: the setting that asked for the room.
    pub why: String,
}

/// One tick, as a manifest shows it. Keys are names of metrics, values in their units.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VitalsRow {
    /// When.
    pub at: Timestamp,
    /// What was measured.
    #[serde(flatten)]
    pub values: BTreeMap<String, f64>,
}
