//! Starting, repeating and stopping captures.

use crate::base::IncidentId;
use crate::base::failure::{catch_panic, error_chain};
use crate::capture::collectors;
use crate::capture::messages::{IncidentTask, TaskStats};
use crate::capture::worker::low_memory::phases;
use crate::capture::worker::pending_artifact::PendingArtifact;
use crate::capture::worker::stall_dump::stall_dump_artifact;
use crate::capture::worker::write::mark_capture_failed;
use crate::capture::worker::{CaptureWorker, RunningCapture};
use crate::model::{CaptureRecord, CaptureSet, Outcome, ThreadDump};

/// Value of an artifact's `phase` for look-back data, taken at the start of the capture.
pub(super) const LOOKBACK_PHASE: &str = "lookback";

/// Value of an artifact's `phase` for a snapshot taken while the capture is running.
const DURING_PHASE: &str = "during";

impl CaptureWorker {
    /// Starts all of `kinds`, phase by phase, and writes the evidence available at the start.
    /// Returns the running captures.
    pub(super) fn start(
        &mut self,
        id: IncidentId,
        kinds: CaptureSet,
        task: &IncidentTask,
        mut stall_dump: Option<Box<ThreadDump>>,
        stats: &mut TaskStats,
    ) -> CaptureSet {
        let mut phases = phases(kinds, task.headroom).peekable();
        let mut running = CaptureSet::EMPTY;
        while let Some(phase) = phases.next() {
            let is_last = phases.peek().is_none();
            let started = self.start_phase(id, phase, task, stall_dump.take(), is_last, stats);
            started.iter().for_each(|kind| running.insert(kind));
        }
        running
    }

    fn start_phase(
        &mut self,
        id: IncidentId,
        kinds: CaptureSet,
        task: &IncidentTask,
        stall_dump: Option<Box<ThreadDump>>,
        is_last: bool,
        stats: &mut TaskStats,
    ) -> CaptureSet {
        let Some((_, dir)) = self.incident_dirs.iter().find(|(open, _)| *open == id) else {
            return CaptureSet::EMPTY;
        };
        let first = dir.manifest().captures.len();
        let mut records = Vec::new();
        let mut artifacts = Vec::new();
        let mut running = CaptureSet::EMPTY;
        if let Some(dump) = stall_dump {
            records.push(self.stall_dump_record());
            artifacts.push(stall_dump_artifact(first, dump));
        }
        for (kind, skip_reason) in self.plan_captures(id, kinds) {
            let anchor = self.clock.anchor();
            let mut record = CaptureRecord::running(kind, String::new(), anchor.wall);
            if let Some(why) = collectors::disabled_reason(kind, &task.settings) {
                record.stopped = Some(anchor.wall);
                record.outcome = Outcome::Skipped;
                record.error = Some(why.to_owned());
                records.push(record);
                continue;
            }
            if let Some(why) = task.memory_shortage(kind).or(skip_reason) {
                record.stopped = Some(anchor.wall);
                record.outcome = Outcome::Skipped;
                record.error = Some(why.clone());
                stats.failures.push(("capture skipped", why));
                records.push(record);
                continue;
            }
            match catch_panic(|| collectors::start(kind, &task.settings, anchor)) {
                Ok(started) => {
                    let index = first + records.len();
                    stats.engines.push((kind, started.collector.engine().to_owned()));
                    record.engine = started.collector.engine().to_owned();
                    let collector = started.collector;
                    self.running.push(RunningCapture {
                        incident: id,
                        kind,
                        record_index: index,
                        collector,
                    });
                    artifacts.extend(started.initial_evidence.map(|evidence| PendingArtifact {
                        kind,
                        record_index: index,
                        phase: evidence.is_lookback().then_some(LOOKBACK_PHASE),
                        evidence,
                    }));
                    running.insert(kind);
                }
                Err(error) => {
                    stats.captures_failed += 1;
                    stats.record_failure("capture not started", &*error);
                    record.stopped = Some(anchor.wall);
                    record.outcome = Outcome::Failed;
                    record.error = Some(error_chain(&*error));
                }
            }
            records.push(record);
        }
        // A trace is in the last phase, and may record only from its start on.
        if is_last {
            self.incident_dirs.iter().filter(|(open, _)| *open == id).for_each(|(_, dir)| {
                let reasons = dir.manifest().reasons.iter();
                reasons.for_each(|reason| collectors::trace::record_reason(&reason.text));
            });
        }
        self.update_manifest(id, stats, |manifest| manifest.captures.extend(records));
        self.write(id, artifacts, stats);
        running
    }

    /// Takes another snapshot of `kinds`, which keep running.
    pub(super) fn recapture(&mut self, id: IncidentId, kinds: CaptureSet, stats: &mut TaskStats) {
        let now = self.clock.now();
        let is_selected =
            |running: &&RunningCapture| running.incident == id && kinds.contains(running.kind);
        let mut artifacts = Vec::new();
        for RunningCapture { kind, record_index: record, collector, .. } in
            self.running.iter().filter(is_selected)
        {
            match catch_panic(|| collector.snapshot(now)) {
                Ok(evidence) => {
                    let kind = *kind;
                    let record = *record;
                    artifacts.extend(evidence.map(|evidence| PendingArtifact {
                        kind,
                        record_index: record,
                        phase: Some(DURING_PHASE),
                        evidence,
                    }));
                }
                Err(error) => stats.record_failure("capture not repeated", &*error),
            }
        }
        self.write(id, artifacts, stats);
    }

    /// Stops all of `kinds`, within each phase the most transient first, then writes their
    /// evidence.
    pub(super) fn stop(
        &mut self,
        id: IncidentId,
        kinds: CaptureSet,
        task: &IncidentTask,
        stats: &mut TaskStats,
    ) {
        phases(kinds, task.headroom).for_each(|phase| self.stop_phase(id, phase, task, stats));
    }

    fn stop_phase(
        &mut self,
        id: IncidentId,
        kinds: CaptureSet,
        task: &IncidentTask,
        stats: &mut TaskStats,
    ) {
        let (stopping, remaining): (Vec<_>, Vec<_>) = std::mem::take(&mut self.running)
            .into_iter()
            .partition(|running| running.incident == id && kinds.contains(running.kind));
        self.running = remaining;
        let mut artifacts = Vec::new();
        let mut stopped = Vec::new();
        let mut ended = Vec::new();
        for RunningCapture { kind, record_index: record, collector, .. } in stopping {
            let now = self.clock.now();
            let wall = self.clock.wall();
            match catch_panic(|| collector.stop(now)) {
                Ok(evidence) => {
                    ended.push((record, wall, None));
                    stopped.push(record);
                    artifacts.extend(evidence.map(|evidence| PendingArtifact {
                        kind,
                        record_index: record,
                        phase: None,
                        evidence,
                    }));
                }
                Err(error) => {
                    stats.captures_failed += 1;
                    stats.record_failure("capture failed to stop", &*error);
                    ended.push((record, wall, Some(error_chain(&*error))));
                }
            }
        }
        self.sort_smallest_first(id, &mut artifacts);
        self.write(id, artifacts, stats);
        self.update_manifest(id, stats, |manifest| {
            manifest.vitals.clone_from(&task.vitals);
            for (record, wall, error) in ended {
                let Some(record) = manifest.captures.get_mut(record) else { continue };
                record.stopped = Some(wall);
                match error {
                    Some(error) => mark_capture_failed(record, error),
                    None if record.outcome == Outcome::Running => record.outcome = Outcome::Done,
                    None => {}
                }
            }
        });
        let Some((_, dir)) = self.incident_dirs.iter().find(|(open, _)| *open == id) else {
            return;
        };
        for record in stopped {
            match dir.manifest().captures.get(record).map(|record| record.outcome) {
                Some(Outcome::Done) => stats.captures += 1,
                _ => stats.captures_failed += 1,
            }
        }
    }
}
