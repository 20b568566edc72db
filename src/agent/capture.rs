//! The `marple-capture` thread: receives one [`CaptureTask`] at a time, performs it and returns a
//! [`CaptureReport`].
//!
//! Only this thread starts and stops collectors and writes files. A slow disk or a long conversion
//! therefore delays no tick, rule or reply. No failure ends it: a collector that fails or panics is
//! recorded in the manifest, a failed write in the report.

pub(super) mod directory;
mod disk_plan;
mod gather;
mod give_up;
mod labels;
mod low_memory;
mod stuck;
mod take;
mod trace_overlays;
mod write;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use self::directory::{Directory, OpenedStore};
use super::collect::{self, Collector};
use super::fence::{chain, fence};
use crate::agent::callbacks::CallbackSender;
use crate::agent::capture::trace_overlays::TraceOverlay;
use crate::agent::custom_collectors::{CollectorRun, Collectors};
use crate::base::{Bytes, Clock, IncidentId, log, warnings};
use crate::config::{Settings, StoreSettings};
use crate::model::{
    CaptureKind, IncidentState, Limits, Losses, Manifest, ProcessInfo, ThreadDump, Versions,
    VitalsRow,
};
use crate::os::images;
use crate::policy::incident_budget::SavedState;
use crate::policy::incidents::{CommandResult, IncidentCommand, ManifestUpdate};
use crate::store::{IncidentDir, Store, StoreUsage};
use crate::symbols;

/// A command and the values needed to perform it.
pub(super) struct CaptureTask {
    pub(super) job: IncidentCommand,
    pub(super) settings: Arc<Settings>,
    /// State to persist, if it has changed.
    pub(super) state: Option<SavedState>,
    pub(super) limits: Limits,
    /// Memory left below the limit or `RLIMIT_AS`, if known.
    pub(super) headroom: Option<Bytes>,
    /// Vitals of the incident so far; empty for commands that do not write them to the manifest.
    pub(super) vitals: Vec<VitalsRow>,
    /// Dump of the stalled thread at the time the rule fired.
    pub(super) stuck: Option<Box<ThreadDump>>,
}

impl CaptureTask {
    /// Returns the reason for skipping `kind` if it needs more memory than is left.
    fn lacks_memory_for(&self, kind: CaptureKind) -> Option<String> {
        let (need, left) = (collect::memory(kind, &self.settings), self.headroom?);
        (left < need).then(|| {
            format!(
                "{left} are left below the memory limit or RLIMIT_AS and the engine takes up to {need}"
            )
        })
    }
}

/// Result of a command.
pub(crate) struct CaptureReport {
    pub(super) done: CommandResult,
    /// The incident directory, if it was created.
    pub(super) dir: Option<PathBuf>,
    pub(super) tally: TaskStats,
}

/// Successes and failures of a command.
#[derive(Default)]
pub(super) struct TaskStats {
    pub(super) captures: u64,
    pub(super) captures_failed: u64,
    pub(super) artifacts: u64,
    pub(super) artifact_bytes: u64,
    /// Engine of each started capture.
    pub(super) engines: Vec<(CaptureKind, String)>,
    /// Disk usage of the store afterwards.
    pub(super) store: Option<StoreUsage>,
    /// Failure categories, for counting, each with the full error.
    pub(super) failures: Vec<(&'static str, String)>,
}

impl TaskStats {
    /// Counts an event that was dropped because the callback queue is full.
    fn told(&mut self, told: bool) {
        if !told {
            self.failures
                .push(("event not told", "the callbacks of the service are behind".into()));
        }
    }

    fn fail(&mut self, cause: &'static str, error: &dyn std::error::Error) {
        self.failures.push((cause, chain(error)));
    }

    fn fail_because(&mut self, cause: &'static str, why: &str) {
        self.failures.push((cause, why.to_owned()));
    }
}

/// State of the capture thread.
pub(super) struct CaptureWorker {
    clock: Arc<dyn Clock>,
    directory: Directory,
    /// The opened directory, until the loop is notified.
    opened: Option<OpenedStore>,
    process: ProcessInfo,
    versions: Versions,
    announcer: CallbackSender,
    dirs: Vec<(IncidentId, IncidentDir)>,
    running: Vec<RunningCapture>,
    collectors: Collectors,
    runs: Vec<CollectorRun>,
    /// Evidence to be shown in running traces.
    kept: Vec<TraceOverlay>,
    sizes: disk_plan::ArtifactSizes,
}

/// A running collector and the index of its record in the manifest.
struct RunningCapture {
    incident: IncidentId,
    kind: CaptureKind,
    record: usize,
    collector: Box<dyn Collector>,
}

impl CaptureWorker {
    pub(super) fn new(
        clock: Arc<dyn Clock>,
        directory: Directory,
        process: ProcessInfo,
        versions: Versions,
        announcer: CallbackSender,
        collectors: Collectors,
    ) -> Self {
        Self {
            clock,
            directory,
            opened: None,
            process,
            versions,
            announcer,
            dirs: Vec::new(),
            running: Vec::new(),
            collectors,
            runs: Vec::new(),
            kept: Vec::new(),
            sizes: disk_plan::ArtifactSizes::default(),
        }
    }

    /// Reserves the resources that captures need when the system is short of them.
    pub(super) fn prepare(&self) {
        self.report_removed();
        report_nameless();
        let rehearsed = fence(|| {
            collect::heap::rehearse();
            Ok(())
        });
        if let Err(error) = rehearsed {
            log::error(format!("a heap profile cannot be prepared: {error}"));
        }
    }

    /// Saves the state that must survive a restart. Does nothing without a directory: the loop
    /// sends the state again once there is one.
    pub(super) fn save(&self, state: &SavedState) -> Result<(), String> {
        let Ok(store) = self.directory.store() else { return Ok(()) };
        store.save_state(state).map_err(|error| chain(&error))
    }

    /// Returns the time until [`Self::retry`] is due, or `None` if the directory is open.
    pub(super) fn until_retry(&self) -> Option<Duration> {
        self.directory.until_retry()
    }

    pub(super) fn retry(&mut self, settings: &StoreSettings) {
        if let Some(opened) = self.directory.retry(settings) {
            self.opened = Some(opened);
        }
    }

    /// Returns the directory if it was opened since the last call.
    pub(super) fn take_opened(&mut self) -> Option<OpenedStore> {
        self.opened.take()
    }

    pub(super) fn perform(&mut self, mut task: CaptureTask) -> CaptureReport {
        let mut tally = TaskStats::default();
        let mut dir = None;
        if matches!(task.job, IncidentCommand::Open { .. }) {
            self.find_directory(&task, &mut tally);
        }
        if let Ok(store) = self.directory.store() {
            store.set_headroom(task.headroom);
        }
        // Saved before the command, so that a command that kills the process counts against the
        // budget.
        if let Some(why) = task.state.as_ref().and_then(|state| self.save(state).err()) {
            tally.fail_because("state not saved", &why);
        }
        if let Some(stuck) =
            task.stuck.take_if(|_| !matches!(task.job, IncidentCommand::Start { .. }))
        {
            self.stuck(task.job.incident(), stuck, &mut tally);
        }
        let done = match &task.job {
            IncidentCommand::Open { id, name, noted } => {
                dir = self.open(*id, name, noted, &task, &mut tally);
                CommandResult::Opened { id: *id, ok: dir.is_some() }
            }
            IncidentCommand::Start { id, kinds } => {
                let stuck = task.stuck.take();
                let running = self.start(*id, *kinds, (&task, stuck), &mut tally);
                CommandResult::Started { id: *id, asked: *kinds, running }
            }
            IncidentCommand::Collect { id, wanted } => CommandResult::Collecting {
                id: *id,
                until: self.collect(*id, wanted, &task, &mut tally),
            },
            IncidentCommand::Gather { id, all } => {
                CommandResult::Collecting { id: *id, until: self.gather(*id, *all, &mut tally) }
            }
            IncidentCommand::Stop { id, kinds } => {
                self.stop(*id, *kinds, &task, &mut tally);
                CommandResult::Stopped { id: *id, kinds: *kinds }
            }
            IncidentCommand::Again { id, kinds, noted } => {
                self.update(*id, &mut tally, |manifest| note(manifest, noted, &task.vitals));
                self.again(*id, *kinds, &mut tally);
                CommandResult::Again { id: *id }
            }
            IncidentCommand::Note { id, noted } => {
                for reason in &noted.reasons {
                    collect::trace::record_reason(&reason.text);
                }
                self.update(*id, &mut tally, |manifest| note(manifest, noted, &task.vitals));
                CommandResult::Noted { id: *id }
            }
            IncidentCommand::Close { id, noted } => {
                self.kept.retain(|kept| kept.incident != *id);
                let closed = self.clock.wall();
                let ok = self.update(*id, &mut tally, |manifest| {
                    note(manifest, noted, &task.vitals);
                    manifest.state = IncidentState::Closed;
                    manifest.closed = Some(closed);
                });
                // An incident whose directory was deleted has nothing left to close.
                let gone = self.dirs.iter().any(|(open, dir)| open == id && dir.is_removed());
                if ok || gone {
                    if let Some((_, dir)) = self.dirs.iter().find(|(open, _)| open == id) {
                        tally.told(self.announcer.closed(*id, dir.path()));
                    }
                    self.dirs.retain(|(open, _)| open != id);
                    self.retain(&task, &mut tally);
                }
                CommandResult::Closed { id: *id, ok: ok || gone }
            }
        };
        tally.store = self.directory.store().ok().map(Store::holdings);
        self.report_removed();
        CaptureReport { done, dir, tally }
    }

    /// Logs the incidents removed by recovery at startup or to free space.
    fn report_removed(&self) {
        let store = self.directory.store().ok();
        for removed in store.map(Store::take_removed).unwrap_or_default() {
            log::info(removed.to_string());
        }
    }

    fn open(
        &mut self,
        id: IncidentId,
        name: &str,
        noted: &ManifestUpdate,
        task: &CaptureTask,
        tally: &mut TaskStats,
    ) -> Option<PathBuf> {
        self.retain(task, tally);
        let mut manifest = Manifest {
            schema: Manifest::SCHEMA,
            id,
            service: task.settings.service.clone(),
            domain: task.settings.domain.clone(),
            state: IncidentState::Open,
            opened: noted.reasons.first().map_or_else(|| self.clock.wall(), |reason| reason.at),
            closed: None,
            reasons: Vec::new(),
            limits: task.limits.clone(),
            process: self.process.clone(),
            versions: self.versions.clone(),
            captures: Vec::new(),
            artifacts: Vec::new(),
            removed: Vec::new(),
            vitals: Vec::new(),
            losses: Losses::default(),
        };
        note(&mut manifest, noted, &task.vitals);
        let begun = match self.directory.store() {
            Ok(store) => store.begin(name, manifest).map_err(|error| chain(&error)),
            Err(why) => Err(why.to_owned()),
        };
        match begun {
            Ok(dir) => {
                let path = dir.path().to_owned();
                tally.told(self.announcer.opened(id, name, &path));
                self.dirs.push((id, dir));
                Some(path)
            }
            Err(why) => {
                tally.fail_because("incident directory not made", &why);
                None
            }
        }
    }

    /// Opens or recreates the directory without waiting for the next retry, since an incident needs
    /// it.
    fn find_directory(&mut self, task: &CaptureTask, tally: &mut TaskStats) {
        let settings = &task.settings.store;
        match self.directory.replace_if_removed(settings) {
            None => self.retry(settings),
            Some(Ok(opened)) => self.opened = Some(opened),
            Some(Err(error)) => tally.fail("directory not made again", &error),
        }
    }

    fn update(
        &mut self,
        id: IncidentId,
        tally: &mut TaskStats,
        change: impl FnOnce(&mut Manifest),
    ) -> bool {
        let Some((_, dir)) = self.dirs.iter_mut().find(|(open, _)| *open == id) else {
            return false;
        };
        match dir.update(change) {
            Ok(()) => true,
            Err(error) => {
                tally.fail("manifest not written", &error);
                false
            }
        }
    }

    fn retain(&mut self, task: &CaptureTask, tally: &mut TaskStats) {
        let Ok(store) = self.directory.store() else { return };
        store.set_limits(task.settings.store.clone());
        for error in &store.retain().failed {
            tally.fail("incident not removed", error);
        }
    }
}

/// Adds the changes to a manifest.
fn note(manifest: &mut Manifest, noted: &ManifestUpdate, vitals: &[VitalsRow]) {
    manifest.reasons.extend(noted.reasons.iter().cloned());
    manifest.losses.add("reasons not kept: too many", noted.dropped);
    manifest.vitals = vitals.to_vec();
}

/// Warns if the program's functions have no names. Stalls of unrecorded tasks are identified by
/// these names, too.
fn report_nameless() {
    let loaded = images::loaded().unwrap_or_default();
    match loaded.first().and_then(symbols::why_nameless) {
        Some(why) => warnings::set(
            "symbols",
            format!(
                "functions of the program have no names in profiles and dumps, and stalls of tasks that are not \
                 recorded are not found: {why}"
            ),
        ),
        None => warnings::clear("symbols"),
    }
}
