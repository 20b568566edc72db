//! Starting custom collectors and storing their output.

use crate::base::failure::chain;
use crate::base::{IncidentId, Moment};
use crate::capture::collectors::CaptureFailure;
use crate::capture::custom_collectors::CollectorOutcome;
use crate::capture::messages::{IncidentTask, TaskStats};
use crate::capture::worker::CaptureWorker;
use crate::model::{CaptureKind, CaptureRecord, Collect, Losses, Outcome};

impl CaptureWorker {
    /// Starts the collectors in `wanted`. Returns the earliest deadline of the incident's
    /// collectors, or `None` if none is running.
    pub(super) fn collect(
        &mut self,
        id: IncidentId,
        wanted: &Collect,
        task: &IncidentTask,
        tally: &mut TaskStats,
    ) -> Option<Moment> {
        let (_, dir) = self.dirs.iter().find(|(open, _)| *open == id)?;
        let first = dir.manifest().captures.len();
        let mut records = Vec::new();
        for (name, ready) in self.collectors.wanted(wanted) {
            let anchor = self.clock.anchor();
            let mut record = CaptureRecord {
                kind: CaptureKind::Custom,
                engine: name.to_string(),
                started: anchor.wall,
                stopped: None,
                outcome: Outcome::Running,
                error: None,
                losses: Losses::default(),
            };
            let begun: Result<(), (Outcome, CaptureFailure)> = match ready {
                None => Err((Outcome::Skipped, "no collector of this name is registered".into())),
                Some(ready) => match ready.unfit(task.headroom) {
                    Some(why) => Err((Outcome::Skipped, why.into())),
                    None => {
                        let at = (id, first + records.len());
                        dir.draft_custom(&name, anchor.wall)
                            .map_err(CaptureFailure::from)
                            .and_then(|draft| ready.start(at, draft, (anchor.moment, anchor.wall)))
                            .map(|run| self.runs.push(run))
                            .map_err(|error| (Outcome::Failed, error))
                    }
                },
            };
            if let Err((outcome, error)) = begun {
                record.stopped = Some(anchor.wall);
                record.outcome = outcome;
                record.error = Some(chain(&*error));
                tally.captures_failed += u64::from(outcome == Outcome::Failed);
                tally.fail("file of the service's own not collected", &*error);
            }
            records.push(record);
        }
        self.update(id, tally, |manifest| manifest.captures.extend(records));
        self.until(id)
    }

    /// Stores the output of collectors that returned or timed out, or of `all` of them. Returns the
    /// earliest deadline of the others.
    pub(super) fn gather(
        &mut self,
        id: IncidentId,
        all: bool,
        tally: &mut TaskStats,
    ) -> Option<Moment> {
        let now = self.clock.now();
        let mut ended = Vec::new();
        self.runs.retain(|run| {
            if run.incident != id {
                return true;
            }
            let Some(gathered) = run.gather(now, all) else { return true };
            ended.push((run.record, run.name.clone(), gathered));
            false
        });
        for (record, name, CollectorOutcome { draft, mut error }) in ended {
            let mut artifact = None;
            match draft.map(|draft| draft.commit()) {
                Some(Ok(written)) => artifact = Some(written),
                Some(Err(refused)) => {
                    error.get_or_insert_with(|| chain(&refused));
                }
                None => {}
            }
            let outcome = match (&error, &artifact) {
                (None, _) => Outcome::Done,
                (Some(_), Some(_)) => Outcome::Cut,
                (Some(_), None) => Outcome::Failed,
            };
            match &error {
                None => tally.captures += 1,
                Some(error) => {
                    tally.captures_failed += 1;
                    let cause = "file of the service's own not whole";
                    tally.failures.push((cause, format!("{name}: {error}")));
                }
            }
            if let Some(artifact) = &artifact {
                tally.artifacts += 1;
                tally.artifact_bytes += artifact.bytes.get();
                if let Some((_, dir)) = self.dirs.iter().find(|(open, _)| *open == id) {
                    tally.told(self.announcer.written(id, dir.path(), artifact));
                }
            }
            let stopped = self.clock.wall();
            self.update(id, tally, |manifest| {
                manifest.artifacts.extend(artifact);
                let Some(record) = manifest.captures.get_mut(record) else { return };
                record.stopped = Some(stopped);
                record.outcome = outcome;
                record.error = error;
            });
        }
        self.until(id)
    }

    fn until(&self, id: IncidentId) -> Option<Moment> {
        self.runs.iter().filter(|run| run.incident == id).map(|run| run.until).min()
    }
}
