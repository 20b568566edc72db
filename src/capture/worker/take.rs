//! Starting, repeating and stopping captures.

use crate::base::IncidentId;
use crate::base::failure::{chain, fence};
use crate::capture::collectors;
use crate::capture::messages::{IncidentTask, TaskStats};
use crate::capture::worker::low_memory::turns;
use crate::capture::worker::stuck::of_stuck;
use crate::capture::worker::write::{PendingArtifact, fail};
use crate::capture::worker::{CaptureWorker, RunningCapture};
use crate::model::{CaptureRecord, CaptureSet, Losses, Outcome, ThreadDump};

/// Value of an artifact's `part` for look-back data, taken at the start of the capture.
pub(super) const BEFORE: &str = "before";

/// Value of an artifact's `part` for a snapshot taken while the capture is running.
const MEANWHILE: &str = "meanwhile";

impl CaptureWorker {
    /// Starts all of `kinds`, phase by phase, and writes the evidence available at the start.
    /// Returns the running captures.
    pub(super) fn start(
        &mut self,
        id: IncidentId,
        kinds: CaptureSet,
        (task, mut stuck): (&IncidentTask, Option<Box<ThreadDump>>),
        tally: &mut TaskStats,
    ) -> CaptureSet {
        let mut turns = turns(kinds, task.headroom).peekable();
        let mut running = CaptureSet::EMPTY;
        while let Some(turn) = turns.next() {
            let is_last = turns.peek().is_none();
            let started = self.start_turn(id, turn, (task, stuck.take(), is_last), tally);
            started.iter().for_each(|kind| running.insert(kind));
        }
        running
    }

    fn start_turn(
        &mut self,
        id: IncidentId,
        kinds: CaptureSet,
        (task, stuck, is_last): (&IncidentTask, Option<Box<ThreadDump>>, bool),
        tally: &mut TaskStats,
    ) -> CaptureSet {
        let Some((_, dir)) = self.dirs.iter().find(|(open, _)| *open == id) else {
            return CaptureSet::EMPTY;
        };
        let first = dir.manifest().captures.len();
        let mut records = Vec::new();
        let mut taken = Vec::new();
        let mut running = CaptureSet::EMPTY;
        if let Some(dump) = stuck {
            records.push(self.stuck_record());
            taken.push(of_stuck(first, dump));
        }
        for (kind, no_room) in self.order(id, kinds) {
            let anchor = self.clock.anchor();
            let mut record = CaptureRecord {
                kind,
                engine: String::new(),
                started: anchor.wall,
                stopped: None,
                outcome: Outcome::Running,
                error: None,
                losses: Losses::default(),
            };
            if let Some(why) = collectors::switched_off(kind, &task.settings) {
                record.stopped = Some(anchor.wall);
                record.outcome = Outcome::Skipped;
                record.error = Some(why.to_owned());
                records.push(record);
                continue;
            }
            if let Some(why) = task.lacks_memory_for(kind).or(no_room) {
                record.stopped = Some(anchor.wall);
                record.outcome = Outcome::Skipped;
                record.error = Some(why.clone());
                tally.failures.push(("capture skipped", why));
                records.push(record);
                continue;
            }
            match fence(|| collectors::start(kind, &task.settings, anchor)) {
                Ok(started) => {
                    let at = first + records.len();
                    tally.engines.push((kind, started.collector.engine().to_owned()));
                    record.engine = started.collector.engine().to_owned();
                    let collector = started.collector;
                    self.running.push(RunningCapture { incident: id, kind, record: at, collector });
                    taken.extend(started.at_start.map(|evidence| PendingArtifact {
                        kind,
                        record: at,
                        part: evidence.is_from_before().then_some(BEFORE),
                        evidence,
                    }));
                    running.insert(kind);
                }
                Err(error) => {
                    tally.captures_failed += 1;
                    tally.fail("capture not started", &*error);
                    record.stopped = Some(anchor.wall);
                    record.outcome = Outcome::Failed;
                    record.error = Some(chain(&*error));
                }
            }
            records.push(record);
        }
        // A trace is in the last phase, and may record only from its start on.
        if is_last {
            self.dirs.iter().filter(|(open, _)| *open == id).for_each(|(_, dir)| {
                let reasons = dir.manifest().reasons.iter();
                reasons.for_each(|reason| collectors::trace::record_reason(&reason.text));
            });
        }
        self.update(id, tally, |manifest| manifest.captures.extend(records));
        self.write(id, taken, tally);
        running
    }

    /// Takes another snapshot of `kinds`, which keep running.
    pub(super) fn again(&mut self, id: IncidentId, kinds: CaptureSet, tally: &mut TaskStats) {
        let now = self.clock.now();
        let of = |running: &&RunningCapture| running.incident == id && kinds.contains(running.kind);
        let mut taken = Vec::new();
        for RunningCapture { kind, record, collector, .. } in self.running.iter().filter(of) {
            match fence(|| collector.peek(now)) {
                Ok(evidence) => {
                    let (kind, record) = (*kind, *record);
                    taken.extend(evidence.map(|evidence| PendingArtifact {
                        kind,
                        record,
                        part: Some(MEANWHILE),
                        evidence,
                    }));
                }
                Err(error) => tally.fail("capture not taken again", &*error),
            }
        }
        self.write(id, taken, tally);
    }

    /// Stops all of `kinds`, within each phase the most transient first, then writes their
    /// evidence.
    pub(super) fn stop(
        &mut self,
        id: IncidentId,
        kinds: CaptureSet,
        task: &IncidentTask,
        tally: &mut TaskStats,
    ) {
        turns(kinds, task.headroom).for_each(|turn| self.stop_turn(id, turn, task, tally));
    }

    fn stop_turn(
        &mut self,
        id: IncidentId,
        kinds: CaptureSet,
        task: &IncidentTask,
        tally: &mut TaskStats,
    ) {
        let (stopping, going): (Vec<_>, Vec<_>) = std::mem::take(&mut self.running)
            .into_iter()
            .partition(|running| running.incident == id && kinds.contains(running.kind));
        self.running = going;
        let mut taken = Vec::new();
        let (mut stopped, mut ended) = (Vec::new(), Vec::new());
        for RunningCapture { kind, record, collector, .. } in stopping {
            let (now, wall) = (self.clock.now(), self.clock.wall());
            match fence(|| collector.stop(now)) {
                Ok(evidence) => {
                    ended.push((record, wall, None));
                    stopped.push(record);
                    taken.extend(evidence.map(|evidence| PendingArtifact {
                        kind,
                        record,
                        part: None,
                        evidence,
                    }));
                }
                Err(error) => {
                    tally.captures_failed += 1;
                    tally.fail("capture lost at its stop", &*error);
                    ended.push((record, wall, Some(chain(&*error))));
                }
            }
        }
        self.cheap_first(id, &mut taken);
        self.write(id, taken, tally);
        self.update(id, tally, |manifest| {
            manifest.vitals.clone_from(&task.vitals);
            for (record, wall, error) in ended {
                let Some(record) = manifest.captures.get_mut(record) else { continue };
                record.stopped = Some(wall);
                match error {
                    Some(error) => fail(record, error),
                    None if record.outcome == Outcome::Running => record.outcome = Outcome::Done,
                    None => {}
                }
            }
        });
        let Some((_, dir)) = self.dirs.iter().find(|(open, _)| *open == id) else { return };
        for record in stopped {
            match dir.manifest().captures.get(record).map(|record| record.outcome) {
                Some(Outcome::Done) => tally.captures += 1,
                _ => tally.captures_failed += 1,
            }
        }
    }
}
