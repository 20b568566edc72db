//! Starting custom collectors and storing their output.

use crate::base::failure::error_chain;
use crate::base::{IncidentId, Moment};
use crate::capture::collectors::CaptureFailure;
use crate::capture::custom_collectors::CollectorOutcome;
use crate::capture::messages::{IncidentTask, TaskStats};
use crate::capture::worker::CaptureWorker;
use crate::model::{CaptureKind, CaptureRecord, CollectorSelection, Outcome};

impl CaptureWorker {
    /// Starts the collectors in `requested`. Returns the earliest deadline of the incident's
    /// collectors, or `None` if none is running.
    pub(super) fn start_collectors(
        &mut self,
        id: IncidentId,
        requested: &CollectorSelection,
        task: &IncidentTask,
        stats: &mut TaskStats,
    ) -> Option<Moment> {
        let (_, dir) = self.incident_dirs.iter().find(|(open, _)| *open == id)?;
        let first = dir.manifest().captures.len();
        let mut records = Vec::new();
        for (name, collector) in self.collectors.select(requested) {
            let anchor = self.clock.anchor();
            let mut record =
                CaptureRecord::running(CaptureKind::Custom, name.to_string(), anchor.wall);
            let started: Result<(), (Outcome, CaptureFailure)> = match collector {
                None => Err((Outcome::Skipped, "no collector of this name is registered".into())),
                Some(collector) => match collector.unavailable_reason(task.headroom) {
                    Some(why) => Err((Outcome::Skipped, why.into())),
                    None => {
                        let record_index = first + records.len();
                        dir.draft_custom(&name, anchor.wall)
                            .map_err(CaptureFailure::from)
                            .and_then(|draft| collector.start(id, record_index, draft, anchor))
                            .map(|run| self.collector_runs.push(run))
                            .map_err(|error| (Outcome::Failed, error))
                    }
                },
            };
            if let Err((outcome, error)) = started {
                record.stopped = Some(anchor.wall);
                record.outcome = outcome;
                record.error = Some(error_chain(&*error));
                stats.captures_failed += u64::from(outcome == Outcome::Failed);
                stats.record_failure("custom collector not started", &*error);
            }
            records.push(record);
        }
        self.update_manifest(id, stats, |manifest| manifest.captures.extend(records));
        self.next_deadline(id)
    }

    /// Stores the output of collectors that returned or timed out, or of `all` of them. Returns the
    /// earliest deadline of the others.
    pub(super) fn finish_collectors(
        &mut self,
        id: IncidentId,
        all: bool,
        stats: &mut TaskStats,
    ) -> Option<Moment> {
        let now = self.clock.now();
        let mut ended = Vec::new();
        self.collector_runs.retain(|run| {
            if run.incident != id {
                return true;
            }
            let Some(outcome) = run.try_finish(now, all) else { return true };
            ended.push((run.record_index, run.name.clone(), outcome));
            false
        });
        for (record, name, CollectorOutcome { draft, mut error }) in ended {
            let mut artifact = None;
            match draft.map(|draft| draft.commit()) {
                Some(Ok(written)) => artifact = Some(written),
                Some(Err(commit_error)) => {
                    error.get_or_insert_with(|| error_chain(&commit_error));
                }
                None => {}
            }
            let outcome = match (&error, &artifact) {
                (None, _) => Outcome::Done,
                (Some(_), Some(_)) => Outcome::Cut,
                (Some(_), None) => Outcome::Failed,
            };
            match &error {
                None => stats.captures += 1,
                Some(error) => {
                    stats.captures_failed += 1;
                    let cause = "custom collector output incomplete";
                    stats.failures.push((cause, format!("{name}: {error}")));
                }
            }
            if let Some(artifact) = &artifact {
                self.report_artifact(id, artifact, stats);
            }
            let stopped = self.clock.wall();
            self.update_manifest(id, stats, |manifest| {
                manifest.artifacts.extend(artifact);
                let Some(record) = manifest.captures.get_mut(record) else { return };
                record.stopped = Some(stopped);
                record.outcome = outcome;
                record.error = error;
            });
        }
        self.next_deadline(id)
    }

    fn next_deadline(&self, id: IncidentId) -> Option<Moment> {
        self.collector_runs.iter().filter(|run| run.incident == id).map(|run| run.deadline).min()
    }
}
