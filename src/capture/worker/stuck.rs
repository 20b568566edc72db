//! Dump of the stalled thread, written before any other artifact.

use crate::base::IncidentId;
use crate::capture::collectors::Evidence;
use crate::capture::messages::TaskStats;
use crate::capture::worker::CaptureWorker;
use crate::capture::worker::write::PendingArtifact;
use crate::model::{CaptureKind, CaptureRecord, Losses, Outcome, ThreadDump};

/// Value of the artifact's `part` for the dump of a stalled thread.
const STUCK: &str = "stall";

impl CaptureWorker {
    /// Writes the dump of the stalled thread.
    pub(super) fn stuck(&mut self, id: IncidentId, dump: Box<ThreadDump>, tally: &mut TaskStats) {
        let Some((_, dir)) = self.dirs.iter().find(|(open, _)| *open == id) else { return };
        let (at, record) = (dir.manifest().captures.len(), self.stuck_record());
        self.update(id, tally, |manifest| manifest.captures.push(record));
        self.write(id, vec![of_stuck(at, dump)], tally);
    }

    pub(super) fn stuck_record(&self) -> CaptureRecord {
        let now = self.clock.wall();
        CaptureRecord {
            kind: CaptureKind::Threads,
            engine: "signal to the stuck thread".to_owned(),
            started: now,
            stopped: Some(now),
            outcome: Outcome::Done,
            error: None,
            losses: Losses::default(),
        }
    }
}

/// Returns the dump as evidence of capture `record`.
pub(super) fn of_stuck(record: usize, dump: Box<ThreadDump>) -> PendingArtifact {
    PendingArtifact {
        kind: CaptureKind::Threads,
        record,
        part: Some(STUCK),
        evidence: Evidence::Threads(dump),
    }
}
