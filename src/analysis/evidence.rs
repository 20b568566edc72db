//! The input of all findings: tables of the artifacts, and the manifest.

use jiff::Timestamp;

use super::{ProfileTable, TaskTable, ThreadTable};
use crate::model::{DescriptorDump, Manifest, Metric, PanicDump, VitalsRow};

/// Maximum number of tables of one kind. The first is kept; of the others the latest.
const MAX_TABLES: usize = 8;

/// A table, and the artifact it was made from.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Tabulated<T> {
    /// File name in the incident's directory.
    pub(crate) file: String,
    /// [`Artifact::phase`](crate::model::Artifact::phase) of the artifact.
    pub(crate) phase: Option<String>,
    /// Wall-clock time at which the evidence was taken.
    pub(crate) taken: Timestamp,
    pub(crate) table: T,
}

/// The tables of an incident's artifacts, by kind, in the order in which they were written.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Tables {
    /// `inuse_space` of heap profiles.
    pub(crate) heap: Vec<Tabulated<ProfileTable>>,
    /// `cpu` of CPU profiles. The phase of the look-back profile is `lookback`.
    pub(crate) cpu: Vec<Tabulated<ProfileTable>>,
    /// The phase of the dump of a stalled thread is `stall`.
    pub(crate) threads: Vec<Tabulated<ThreadTable>>,
    pub(crate) tasks: Vec<Tabulated<TaskTable>>,
    pub(crate) descriptors: Vec<Tabulated<DescriptorDump>>,
    pub(crate) panics: Vec<Tabulated<PanicDump>>,
}

impl<T> Tabulated<T> {
    /// Appends this table to `tables`. If there are too many, removes the second: the first is the
    /// base of comparisons.
    pub(crate) fn push_to(self, tables: &mut Vec<Self>) {
        if tables.len() >= MAX_TABLES {
            tables.remove(1);
        }
        tables.push(self);
    }
}

/// All that is known about an incident.
#[derive(Clone, Copy, Debug)]
pub(crate) struct IncidentEvidence<'a> {
    pub(crate) manifest: &'a Manifest,
    pub(crate) tables: &'a Tables,
}

impl<'a> IncidentEvidence<'a> {
    /// Returns the metrics of the rules that opened or joined the incident.
    pub(crate) fn metrics(&self) -> impl Iterator<Item = &'a Metric> + use<'a> {
        self.manifest.reasons.iter().filter_map(|reason| reason.metric.as_ref())
    }

    /// Returns true if a rule for one of `names` opened or joined the incident.
    pub(crate) fn has_reason(&self, names: &[&str]) -> bool {
        self.metrics().any(|metric| names.contains(&&*metric.to_string()))
    }

    /// Returns the rows of the vitals.
    pub(crate) fn vitals(&self) -> &'a [VitalsRow] {
        &self.manifest.vitals
    }

    /// Returns the values of a metric with their times, in order.
    pub(crate) fn series(&self, metric: &str) -> Vec<(Timestamp, f64)> {
        let value = |row: &VitalsRow| Some((row.at, *row.values.get(metric)?));
        self.vitals().iter().filter_map(value).collect()
    }
}
