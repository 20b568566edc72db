//! `incident.json`: the record of an incident, excluding the artifacts themselves.
//!
//! Fields are only ever added. Readers ignore unknown fields.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::capture::CaptureKind;
use super::finding::Finding;
use super::incident::{IncidentState, Reason};
use super::losses::Losses;
use super::vitals::Vitals;
use crate::base::{Bytes, IncidentId};

/// The manifest of one incident.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(not(feature = "internals"), non_exhaustive)]
pub struct Manifest {
    /// Version of the schema.
    pub schema: u32,
    /// Incident id.
    pub id: IncidentId,
    /// Name of the service.
    pub service: String,
    /// Instance of the service: its deployment, such as a region, cluster or pod.
    #[serde(alias = "domain")]
    pub instance: String,
    /// State of the incident.
    pub state: IncidentState,
    /// Wall-clock time at which the incident opened.
    pub opened: Timestamp,
    /// Wall-clock time at which it closed, or was found interrupted.
    #[serde(default)]
    pub closed: Option<Timestamp>,
    /// Reasons. The first opened the incident; later ones joined it.
    pub reasons: Vec<Reason>,
    /// Limits in force when the incident opened.
    pub limits: Limits,
    /// The process.
    pub process: ProcessInfo,
    /// Versions of the software that wrote the manifest.
    pub versions: Versions,
    /// Captures, in the order they started.
    pub captures: Vec<CaptureRecord>,
    /// Finished files, in the order they were taken.
    pub artifacts: Vec<Artifact>,
    /// Files deleted to free space, in the order of deletion.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub removed: Vec<RemovedArtifact>,
    /// Vitals from before the incident until after it.
    pub vitals: Vec<VitalsRow>,
    /// Conclusions from the captures so far, the best explanation first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub findings: Vec<Finding>,
    /// Data about the incident itself that could not be kept.
    #[serde(default, skip_serializing_if = "Losses::is_empty")]
    pub losses: Losses,
}

impl Manifest {
    /// Schema version written by this release.
    pub const SCHEMA: u32 = 1;
}

/// Resource limits and their sources.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(not(feature = "internals"), non_exhaustive)]
pub struct Limits {
    /// Memory limit in bytes.
    pub memory: Option<Bytes>,
    /// Source of the memory limit.
    pub memory_source: Option<String>,
    /// CPU limit in cores.
    pub cpu_cores: Option<f64>,
    /// Source of the CPU limit.
    pub cpu_source: Option<String>,
}

impl From<&Vitals> for Limits {
    fn from(vitals: &Vitals) -> Self {
        let nearest = vitals.nearest_memory_limit().map(|wall| wall.limit);
        let memory = nearest.as_ref().or(vitals.memory_limit.as_ref());
        let cpu = vitals.cpu_limit.as_ref();
        Self {
            memory: memory.map(|limit| limit.value),
            memory_source: memory.map(|limit| limit.source.to_string()),
            cpu_cores: cpu.map(|limit| limit.value),
            cpu_source: cpu.map(|limit| limit.source.to_string()),
        }
    }
}

/// The process of an incident.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(not(feature = "internals"), non_exhaustive)]
pub struct ProcessInfo {
    /// Process id.
    pub pid: u32,
    /// Path of the executable.
    pub exe: String,
    /// GNU build ID of the executable in lower-case hex. Empty if it has none.
    pub build_id: String,
    /// Wall-clock time at which the agent started.
    pub agent_started: Timestamp,
}

/// Versions of the software and the machine that wrote a manifest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(not(feature = "internals"), non_exhaustive)]
pub struct Versions {
    /// Version of marple.
    pub marple: String,
    /// Version of the operating system kernel.
    pub kernel: String,
    /// Architecture of the machine.
    pub arch: String,
}

/// The outcome of a capture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(not(feature = "internals"), non_exhaustive)]
pub enum Outcome {
    /// Still running.
    Running,
    /// Complete: all artifacts were written.
    Done,
    /// The capture or one of its artifacts failed; `error` gives the reason.
    Failed,
    /// Not started, or not written; `error` gives the reason.
    Skipped,
    /// The artifact is incomplete; `error` gives where it ends and why.
    Cut,
}

/// The record of one capture.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(not(feature = "internals"), non_exhaustive)]
pub struct CaptureRecord {
    /// Kind of evidence.
    pub kind: CaptureKind,
    /// Engine that took the capture.
    pub engine: String,
    /// Wall-clock time at which it started.
    pub started: Timestamp,
    /// Wall-clock time at which it stopped.
    #[serde(default)]
    pub stopped: Option<Timestamp>,
    /// Outcome.
    pub outcome: Outcome,
    /// Reason why the outcome is not `done`, and the remedy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Data that was not recorded, by cause.
    #[serde(default, skip_serializing_if = "Losses::is_empty")]
    pub losses: Losses,
}

impl CaptureRecord {
    /// Creates the record of a running capture.
    pub(crate) fn running(kind: CaptureKind, engine: String, started: Timestamp) -> Self {
        Self {
            kind,
            engine,
            started,
            stopped: None,
            outcome: Outcome::Running,
            error: None,
            losses: Losses::default(),
        }
    }
}

/// One finished file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(not(feature = "internals"), non_exhaustive)]
pub struct Artifact {
    /// File name in the incident's directory.
    pub file: String,
    /// Kind of capture that wrote it.
    pub kind: CaptureKind,
    /// File size.
    pub bytes: Bytes,
    /// SHA-256 in lower-case hex.
    pub sha256: String,
    /// Wall-clock time at which the evidence was taken.
    pub taken: Timestamp,
    /// Phase of the capture, or `None` for the capture itself:
    ///
    /// - `lookback`: state at the start of the capture. Compare it with the capture itself by
    ///   `go tool pprof -base LOOKBACK FILE`;
    /// - `during`: a snapshot taken while the capture was running;
    /// - `stall`: the thread of a poll that lasted too long.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<String>,
    /// One-sentence summary of the file. For a heap profile: the part of the resident memory it
    /// explains, and where the rest is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// A file that was deleted. Of each form the first, the last and the largest file are kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(not(feature = "internals"), non_exhaustive)]
pub struct RemovedArtifact {
    /// The deleted file.
    #[serde(flatten)]
    pub artifact: Artifact,
    /// Wall-clock time of the deletion.
    pub removed: Timestamp,
    /// The setting whose limit required the space.
    pub why: String,
}

/// The vitals of one tick in a manifest. Keys are metric names; values are in the metric's unit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(not(feature = "internals"), non_exhaustive)]
pub struct VitalsRow {
    /// Wall-clock time of the tick.
    pub at: Timestamp,
    /// Measured values by metric name.
    #[serde(flatten)]
    pub values: BTreeMap<String, f64>,
}
