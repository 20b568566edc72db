//! Cleanup after a command that panicked.

use crate::base::failure::panicked;
use crate::base::{IncidentId, panics};
use crate::capture::messages::{IncidentTaskResult, TaskStats};
use crate::capture::worker::CaptureWorker;
use crate::capture::worker::write::fail;
use crate::model::{CaptureRecord, CaptureSet, Losses, Outcome};
use crate::policy::incidents::CommandResult;
use crate::store::Store;

impl CaptureWorker {
    /// Reports a command that ended by `panic` as `lost`. Its captures are abandoned and marked as
    /// failed in the manifest; all others continue.
    pub(crate) fn give_up(&mut self, lost: CommandResult, panic: &str) -> IncidentTaskResult {
        let mut tally = TaskStats::default();
        tally.failures.push(("capture thread panicked", panicked(panic)));
        match &lost {
            CommandResult::Started { id, asked: kinds, .. }
            | CommandResult::Stopped { id, kinds } => {
                tally.captures_failed += kinds.iter().count() as u64;
                self.drop_running(*id, *kinds);
                self.mark_failed(*id, *kinds, panic, &mut tally);
            }
            CommandResult::Collecting { id, .. } => self.runs.retain(|run| run.incident != *id),
            // No later command would close it.
            CommandResult::Opened { id, .. } => self.dirs.retain(|(open, _)| open != id),
            CommandResult::Noted { .. }
            | CommandResult::Again { .. }
            | CommandResult::Closed { .. } => {}
        }
        tally.store = panics::fence_and_record("marple-capture", || {
            self.directory.store().ok().map(Store::holdings)
        })
        .flatten();
        IncidentTaskResult { result: lost, dir: None, stats: tally }
    }

    /// Drops the collectors of `kinds` in incident `id`, which frees their engines.
    fn drop_running(&mut self, id: IncidentId, kinds: CaptureSet) {
        let (dropped, kept) = std::mem::take(&mut self.running)
            .into_iter()
            .partition(|it| it.incident == id && kinds.contains(it.kind));
        self.running = kept;
        let dropped: Vec<crate::capture::worker::RunningCapture> = dropped;
        for running in dropped {
            panics::fence_and_record("marple-capture", || drop(running));
        }
    }

    /// Marks the captures of `kinds` as failed in the manifest: those that are running, and those
    /// that have no record yet.
    fn mark_failed(
        &mut self,
        id: IncidentId,
        kinds: CaptureSet,
        panic: &str,
        tally: &mut TaskStats,
    ) {
        let written = panics::fence(|| {
            let wall = self.clock.wall();
            self.update(id, tally, |manifest| {
                for kind in kinds.iter() {
                    let is_running =
                        |it: &CaptureRecord| it.kind == kind && it.outcome == Outcome::Running;
                    if !manifest.captures.iter().any(is_running) {
                        manifest.captures.push(CaptureRecord {
                            kind,
                            engine: String::new(),
                            started: wall,
                            stopped: None,
                            outcome: Outcome::Running,
                            error: None,
                            losses: Losses::default(),
                        });
                    }
                    for record in manifest.captures.iter_mut().filter(|it| is_running(it)) {
                        record.stopped = Some(wall);
                        fail(record, panicked(panic));
                    }
                }
            });
        });
        if let Err(panic) = written {
            panics::record("marple-capture", &panic);
        }
    }
}
