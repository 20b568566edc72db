//! Dump of the stalled thread, written before any other artifact.

use crate::base::IncidentId;
use crate::capture::collectors::Evidence;
use crate::capture::messages::TaskStats;
use crate::capture::worker::CaptureWorker;
use crate::capture::worker::pending_artifact::PendingArtifact;
use crate::model::{CaptureKind, CaptureRecord, Outcome, ThreadDump};

/// Value of the artifact's `phase` for the dump of a stalled thread.
const STALL_PHASE: &str = "stall";

impl CaptureWorker {
    /// Writes the dump of the stalled thread.
    pub(super) fn write_stall_dump(
        &mut self,
        id: IncidentId,
        dump: Box<ThreadDump>,
        stats: &mut TaskStats,
    ) {
        let Some((_, dir)) = self.incident_dirs.iter().find(|(open, _)| *open == id) else {
            return;
        };
        let record_index = dir.manifest().captures.len();
        let record = self.stall_dump_record();
        self.update_manifest(id, stats, |manifest| manifest.captures.push(record));
        self.write(id, vec![stall_dump_artifact(record_index, dump)], stats);
    }

    pub(super) fn stall_dump_record(&self) -> CaptureRecord {
        let now = self.clock.wall();
        let engine = "signal to the stalled thread".to_owned();
        CaptureRecord {
            stopped: Some(now),
            outcome: Outcome::Done,
            ..CaptureRecord::running(CaptureKind::Threads, engine, now)
        }
    }
}

/// Returns the dump as evidence of the capture at `record_index`.
pub(super) fn stall_dump_artifact(record_index: usize, dump: Box<ThreadDump>) -> PendingArtifact {
    PendingArtifact {
        kind: CaptureKind::Threads,
        record_index,
        phase: Some(STALL_PHASE),
        evidence: Evidence::Threads(dump),
    }
}
