//! The analysis of an incident: tables of what was written, findings, and the report.
//!
//! An artifact becomes a table when it has been written. Heap profiles are never in memory as a
//! whole: they are read back, in a bounded part of the memory that is left. The findings and the
//! report are computed anew after each group of captures and when the incident closes.

use std::io::Read;
use std::path::Path;

use crate::analysis::evidence::{IncidentEvidence, Tables, Tabulated};
use crate::analysis::{ProfileTable, TaskTable, ThreadTable, findings};
use crate::base::failure::catch_panic;
use crate::base::{Bytes, IncidentId};
use crate::capture::collectors::{CaptureFailure, Evidence};
use crate::capture::messages::{ExplainedIncident, TaskStats};
use crate::capture::worker::CaptureWorker;
use crate::codec::pprof;
use crate::model::{Artifact, CaptureKind, Finding, Manifest, Profile};
use crate::render::markdown;
use crate::store::{self, IncidentDir};

/// Maximum memory for reading a heap profile.
const MAX_READ_BYTES: Bytes = Bytes::mib(64);

/// Share of the memory left below the limit that reading a heap profile may take.
const HEADROOM_DIVISOR: u64 = 4;

/// Share of that memory which the compressed file may take. A longer file is refused: its end is
/// missing.
const COMPRESSED_DIVISOR: u64 = 8;

/// Memory left below which the report has its short form and heap profiles are not read.
const MIN_HEADROOM: Bytes = Bytes::mib(16);

/// Tables of an open incident.
pub(super) struct IncidentTables {
    incident: IncidentId,
    tables: Tables,
}

impl CaptureWorker {
    /// Reduces evidence to a table. `artifact` is the first file it was written to.
    pub(super) fn tabulate(
        &mut self,
        id: IncidentId,
        artifact: &Artifact,
        evidence: &Evidence,
        stats: &mut TaskStats,
    ) {
        let Some((_, dir)) = self.incident_dirs.iter().find(|(open, _)| *open == id) else {
            return;
        };
        let path = dir.path().join(&artifact.file);
        let max_memory = readable_memory(self.headroom);
        self.ensure_tables(id);
        let Some(known) = self.tables.iter_mut().find(|known| known.incident == id) else { return };
        let added = catch_panic(|| add(&mut known.tables, artifact, evidence, &path, max_memory));
        if let Err(error) = added {
            stats.record_failure("evidence not analysed", &*error);
        }
    }

    /// Creates the tables of an incident if it has none. It has a report from then on.
    pub(super) fn ensure_tables(&mut self, id: IncidentId) {
        if !self.tables.iter().any(|known| known.incident == id) {
            self.tables.push(IncidentTables { incident: id, tables: Tables::default() });
        }
    }

    /// Computes the findings of an incident that has tables, and writes them to the manifest and
    /// the report.
    pub(super) fn report(&mut self, id: IncidentId, stats: &mut TaskStats) {
        let known = self.tables.iter().find(|known| known.incident == id);
        let Some(IncidentTables { tables, .. }) = known else { return };
        let Some((_, dir)) = self.incident_dirs.iter_mut().find(|(open, _)| *open == id) else {
            return;
        };
        let is_low = self.headroom.is_some_and(|left| left < MIN_HEADROOM);
        let earlier = dir.manifest().findings.first().map(|finding| finding.text.clone());
        let written = catch_panic(|| {
            let found = find(dir.manifest(), tables);
            if found != dir.manifest().findings {
                dir.update(|manifest| manifest.findings = found)?;
            }
            write_report(dir, tables, is_low)
        });
        if let Err(error) = written {
            stats.record_failure("report not written", &*error);
            return;
        }
        let first_finding = dir.manifest().findings.first().cloned();
        let is_new = first_finding.as_ref().map(|finding| &finding.text) != earlier.as_ref();
        let path = dir.path().join(store::REPORT_FILE);
        stats.explained = Some(Box::new(ExplainedIncident {
            incident: id,
            first_finding: first_finding.clone(),
        }));
        stats.record_notification(self.callbacks.notify_reported(id, path, first_finding, is_new));
    }

    /// Removes the tables of an incident.
    pub(super) fn drop_tables(&mut self, id: IncidentId) {
        self.tables.retain(|tables| tables.incident != id);
    }
}

fn find(manifest: &Manifest, tables: &Tables) -> Vec<Finding> {
    findings::find(&IncidentEvidence { manifest, tables })
}

fn write_report(
    dir: &mut IncidentDir,
    tables: &Tables,
    is_low_on_memory: bool,
) -> Result<(), CaptureFailure> {
    let evidence = IncidentEvidence { manifest: dir.manifest(), tables };
    let text = match is_low_on_memory {
        true => markdown::short_report(&evidence),
        false => markdown::report(&evidence),
    };
    Ok(dir.write_report(&text)?)
}

/// Returns the memory that reading a heap profile may take, or `None` if too little is left.
fn readable_memory(headroom: Option<Bytes>) -> Option<Bytes> {
    match headroom {
        Some(left) if left < MIN_HEADROOM => None,
        Some(left) => Some(MAX_READ_BYTES.min(Bytes(left.get() / HEADROOM_DIVISOR))),
        None => Some(MAX_READ_BYTES),
    }
}

/// Adds the table of `evidence`, which was written to `path`.
fn add(
    tables: &mut Tables,
    artifact: &Artifact,
    evidence: &Evidence,
    path: &Path,
    max_memory: Option<Bytes>,
) -> Result<(), CaptureFailure> {
    match (evidence, artifact.kind) {
        (Evidence::Profile(profile), CaptureKind::Cpu) => {
            push(ProfileTable::new(profile, "cpu"), artifact, &mut tables.cpu);
        }
        (Evidence::Profile(profile), CaptureKind::Heap) => {
            push(ProfileTable::new(profile, "inuse_space"), artifact, &mut tables.heap);
        }
        (Evidence::Streamed(_), CaptureKind::Heap) => {
            let Some(max_memory) = max_memory else { return Ok(()) };
            let profile = read_profile(path, max_memory)?;
            push(ProfileTable::new(&profile, "inuse_space"), artifact, &mut tables.heap);
        }
        (Evidence::Threads(dump), _) => {
            push(Some(ThreadTable::new(dump)), artifact, &mut tables.threads);
        }
        (Evidence::Tasks(dump), _) => {
            push(Some(TaskTable::new(dump)), artifact, &mut tables.tasks);
        }
        (Evidence::Descriptors(dump), _) => {
            push(Some((**dump).clone()), artifact, &mut tables.descriptors);
        }
        (Evidence::Panics(dump), _) => {
            push(Some((**dump).clone()), artifact, &mut tables.panics);
        }
        (Evidence::Profile(_) | Evidence::Timeline(_) | Evidence::Streamed(_), _) => {}
    }
    Ok(())
}

fn read_profile(path: &Path, max_memory: Bytes) -> Result<Profile, CaptureFailure> {
    let mut bytes = Vec::new();
    let mut file = std::fs::File::open(path)?;
    file.by_ref().take(max_memory.get() / COMPRESSED_DIVISOR).read_to_end(&mut bytes)?;
    Ok(pprof::read_model(&bytes, max_memory)?)
}

fn push<T>(table: Option<T>, artifact: &Artifact, tables: &mut Vec<Tabulated<T>>) {
    let Some(table) = table else { return };
    let tabulated = Tabulated {
        file: artifact.file.clone(),
        phase: artifact.phase.clone(),
        taken: artifact.taken,
        table,
    };
    tabulated.push_to(tables);
}
