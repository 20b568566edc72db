//! Cleanup after a command that panicked.

use crate::base::failure::panic_message;
use crate::base::{IncidentId, panics};
use crate::capture::messages::{IncidentTaskResult, TaskStats};
use crate::capture::worker::write::mark_capture_failed;
use crate::capture::worker::{CaptureWorker, RunningCapture};
use crate::model::{CaptureRecord, CaptureSet, Outcome};
use crate::policy::incidents::CommandResult;
use crate::store::Store;

impl CaptureWorker {
    /// Reports a command that ended by `panic` as `lost`. Its captures are abandoned and marked as
    /// failed in the manifest; all others continue.
    pub(crate) fn abandon_command(
        &mut self,
        lost: CommandResult,
        panic: &str,
    ) -> IncidentTaskResult {
        let mut stats = TaskStats::default();
        stats.failures.push(("capture thread panicked", panic_message(panic)));
        match &lost {
            CommandResult::Started { id, requested: kinds, .. }
            | CommandResult::Stopped { id, kinds } => {
                stats.captures_failed += kinds.iter().count() as u64;
                self.drop_running(*id, *kinds);
                self.mark_failed(*id, *kinds, panic, &mut stats);
            }
            CommandResult::Collecting { id, .. } => {
                self.collector_runs.retain(|run| run.incident != *id)
            }
            // No later command would close it.
            CommandResult::Opened { id, .. } => self.incident_dirs.retain(|(open, _)| open != id),
            CommandResult::ManifestUpdated { .. }
            | CommandResult::Recaptured { .. }
            | CommandResult::Closed { .. } => {}
        }
        stats.store = panics::catch_and_record_panic("marple-capture", || {
            self.directory.store().ok().map(Store::usage)
        })
        .flatten();
        IncidentTaskResult { result: lost, dir: None, stats }
    }

    /// Drops the collectors of `kinds` in incident `id`, which frees their engines.
    fn drop_running(&mut self, id: IncidentId, kinds: CaptureSet) {
        let (dropped, remaining): (Vec<RunningCapture>, _) = std::mem::take(&mut self.running)
            .into_iter()
            .partition(|capture| capture.incident == id && kinds.contains(capture.kind));
        self.running = remaining;
        for capture in dropped {
            panics::catch_and_record_panic("marple-capture", || drop(capture));
        }
    }

    /// Marks the captures of `kinds` as failed in the manifest: those that are running, and those
    /// that have no record yet.
    fn mark_failed(
        &mut self,
        id: IncidentId,
        kinds: CaptureSet,
        panic: &str,
        stats: &mut TaskStats,
    ) {
        let written = panics::catch_panic(|| {
            let wall = self.clock.wall();
            self.update_manifest(id, stats, |manifest| {
                for kind in kinds.iter() {
                    let is_running = |record: &CaptureRecord| {
                        record.kind == kind && record.outcome == Outcome::Running
                    };
                    if !manifest.captures.iter().any(is_running) {
                        let record = CaptureRecord::running(kind, String::new(), wall);
                        manifest.captures.push(record);
                    }
                    for record in manifest.captures.iter_mut().filter(|record| is_running(record)) {
                        record.stopped = Some(wall);
                        mark_capture_failed(record, panic_message(panic));
                    }
                }
            });
        });
        if let Err(panic) = written {
            panics::record("marple-capture", &panic);
        }
    }
}
