//! The `marple-capture` thread: receives one [`IncidentTask`] at a time, performs it and returns a
//! [`IncidentTaskResult`].
//!
//! Only this thread starts and stops collectors and writes files. A slow disk or a long conversion
//! therefore delays no tick, rule or reply. No failure ends it: a collector that fails or panics is
//! recorded in the manifest, a failed write in the report.

mod abandon;
mod captures;
mod collector_runs;
pub(crate) mod directory;
mod disk_plan;
mod labels;
mod low_memory;
mod pending_artifact;
mod report;
mod stall_dump;
mod trace_overlays;
mod write;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use self::directory::{Directory, OpenedStore};
use crate::base::failure::{catch_panic, error_chain};
use crate::base::{Bytes, Clock, IncidentId, log, warnings};
use crate::capture::callbacks::CallbackSender;
use crate::capture::collectors::{self, Collector};
use crate::capture::custom_collectors::{CollectorRun, Collectors};
use crate::capture::messages::{IncidentTask, IncidentTaskResult, TaskStats};
use crate::capture::worker::trace_overlays::TraceOverlay;
use crate::config::StoreSettings;
use crate::model::{
    CaptureKind, IncidentState, Losses, Manifest, ProcessInfo, Versions, VitalsRow,
};
use crate::os::images;
use crate::policy::incident_budget::SavedState;
use crate::policy::incidents::{CommandResult, IncidentCommand, ManifestUpdate};
use crate::store::{IncidentDir, Store};
use crate::symbols;

impl IncidentTask {
    /// Returns the reason for skipping `kind` if it needs more memory than is left.
    fn memory_shortage(&self, kind: CaptureKind) -> Option<String> {
        let need = collectors::max_memory(kind, &self.settings);
        let left = self.headroom?;
        (left < need).then(|| {
            format!(
                "only {left} left below the memory limit or RLIMIT_AS; the engine needs up to {need}"
            )
        })
    }
}

/// State of the capture thread.
pub(crate) struct CaptureWorker {
    clock: Arc<dyn Clock>,
    directory: Directory,
    /// The opened directory, until the loop is notified.
    newly_opened: Option<OpenedStore>,
    process: ProcessInfo,
    versions: Versions,
    callbacks: CallbackSender,
    incident_dirs: Vec<(IncidentId, IncidentDir)>,
    running: Vec<RunningCapture>,
    collectors: Collectors,
    collector_runs: Vec<CollectorRun>,
    /// Evidence to be shown in running traces.
    overlays: Vec<TraceOverlay>,
    artifact_sizes: disk_plan::ArtifactSizes,
    /// Tables of the open incidents that have artifacts.
    tables: Vec<report::IncidentTables>,
    /// Memory left below the limit when the current command was sent.
    headroom: Option<Bytes>,
}

/// A running collector and the index of its record in the manifest.
struct RunningCapture {
    incident: IncidentId,
    kind: CaptureKind,
    record_index: usize,
    collector: Box<dyn Collector>,
}

impl CaptureWorker {
    pub(crate) fn new(
        clock: Arc<dyn Clock>,
        directory: Directory,
        process: ProcessInfo,
        versions: Versions,
        callbacks: CallbackSender,
        collectors: Collectors,
    ) -> Self {
        Self {
            clock,
            directory,
            newly_opened: None,
            process,
            versions,
            callbacks,
            incident_dirs: Vec::new(),
            running: Vec::new(),
            collectors,
            collector_runs: Vec::new(),
            overlays: Vec::new(),
            artifact_sizes: disk_plan::ArtifactSizes::default(),
            tables: Vec::new(),
            headroom: None,
        }
    }

    /// Reserves the resources that captures need when the system is short of them.
    pub(crate) fn prepare(&self) {
        self.log_removed_incidents();
        warn_if_no_symbols();
        let warmed_up = catch_panic(|| {
            collectors::heap::warm_up_dump();
            Ok(())
        });
        if let Err(error) = warmed_up {
            log::error(format!("cannot prepare heap profiles: {error}"));
        }
    }

    /// Saves the state that must survive a restart. Does nothing without a directory: the loop
    /// sends the state again once there is one.
    pub(crate) fn save(&self, state: &SavedState) -> Result<(), String> {
        let Ok(store) = self.directory.store() else { return Ok(()) };
        store.save_state(state).map_err(|error| error_chain(&error))
    }

    /// Returns the time until [`Self::retry_open`] is due, or `None` if the directory is open.
    pub(crate) fn until_retry(&self) -> Option<Duration> {
        self.directory.until_retry()
    }

    pub(crate) fn retry_open(&mut self, settings: &StoreSettings) {
        if let Some(opened) = self.directory.retry(settings) {
            self.newly_opened = Some(opened);
        }
    }

    /// Returns the directory if it was opened since the last call.
    pub(crate) fn take_opened(&mut self) -> Option<OpenedStore> {
        self.newly_opened.take()
    }

    pub(crate) fn perform(&mut self, mut task: IncidentTask) -> IncidentTaskResult {
        let mut stats = TaskStats::default();
        let mut dir = None;
        if matches!(task.command, IncidentCommand::Open { .. }) {
            self.ensure_directory(&task, &mut stats);
        }
        if let Ok(store) = self.directory.store() {
            store.set_memory_left(task.headroom);
        }
        // Saved before the command, so that a command that kills the process counts against the
        // budget.
        if let Some(why) = task.state.as_ref().and_then(|state| self.save(state).err()) {
            stats.record_failure_message("state not saved", &why);
        }
        self.headroom = task.headroom;
        if let Some(stall_dump) =
            task.stall_dump.take_if(|_| !matches!(task.command, IncidentCommand::Start { .. }))
        {
            self.write_stall_dump(task.command.incident_id(), stall_dump, &mut stats);
        }
        let result = match &task.command {
            IncidentCommand::Open { id, name, update } => {
                dir = self.open(*id, name, update, &task, &mut stats);
                CommandResult::Opened { id: *id, ok: dir.is_some() }
            }
            IncidentCommand::Start { id, kinds } => {
                let stall_dump = task.stall_dump.take();
                let running = self.start(*id, *kinds, &task, stall_dump, &mut stats);
                self.report(*id, &mut stats);
                CommandResult::Started { id: *id, requested: *kinds, running }
            }
            IncidentCommand::StartCollectors { id, selection } => CommandResult::Collecting {
                id: *id,
                deadline: self.start_collectors(*id, selection, &task, &mut stats),
            },
            IncidentCommand::FinishCollectors { id, all } => CommandResult::Collecting {
                id: *id,
                deadline: self.finish_collectors(*id, *all, &mut stats),
            },
            IncidentCommand::Stop { id, kinds } => {
                self.stop(*id, *kinds, &task, &mut stats);
                self.report(*id, &mut stats);
                CommandResult::Stopped { id: *id, kinds: *kinds }
            }
            IncidentCommand::Recapture { id, kinds, update } => {
                self.update_manifest(*id, &mut stats, |manifest| {
                    apply_update(manifest, update, &task.vitals)
                });
                self.recapture(*id, *kinds, &mut stats);
                self.report(*id, &mut stats);
                CommandResult::Recaptured { id: *id }
            }
            IncidentCommand::UpdateManifest { id, update } => {
                for reason in &update.reasons {
                    collectors::trace::record_reason(&reason.text);
                }
                self.update_manifest(*id, &mut stats, |manifest| {
                    apply_update(manifest, update, &task.vitals)
                });
                CommandResult::ManifestUpdated { id: *id }
            }
            IncidentCommand::Close { id, update } => {
                self.overlays.retain(|overlay| overlay.incident != *id);
                let closed = self.clock.wall();
                let ok = self.update_manifest(*id, &mut stats, |manifest| {
                    apply_update(manifest, update, &task.vitals);
                    manifest.state = IncidentState::Closed;
                    manifest.closed = Some(closed);
                });
                self.ensure_tables(*id);
                self.report(*id, &mut stats);
                // An incident whose directory was deleted has nothing left to close.
                let removed =
                    self.incident_dirs.iter().any(|(open, dir)| open == id && dir.is_removed());
                if ok || removed {
                    if let Some((_, dir)) = self.incident_dirs.iter().find(|(open, _)| open == id) {
                        stats.record_notification(self.callbacks.notify_closed(*id, dir.path()));
                    }
                    self.incident_dirs.retain(|(open, _)| open != id);
                    self.drop_tables(*id);
                    self.enforce_limits(&task, &mut stats);
                }
                CommandResult::Closed { id: *id, ok: ok || removed }
            }
        };
        stats.store = self.directory.store().ok().map(Store::usage);
        self.log_removed_incidents();
        IncidentTaskResult { result, dir, stats }
    }

    /// Logs the incidents removed by recovery at startup or to free space.
    fn log_removed_incidents(&self) {
        let store = self.directory.store().ok();
        for removed in store.map(Store::take_evicted).unwrap_or_default() {
            log::info(removed.to_string());
        }
    }

    fn open(
        &mut self,
        id: IncidentId,
        name: &str,
        update: &ManifestUpdate,
        task: &IncidentTask,
        stats: &mut TaskStats,
    ) -> Option<PathBuf> {
        self.enforce_limits(task, stats);
        let mut manifest = Manifest {
            schema: Manifest::SCHEMA,
            id,
            service: task.settings.service.clone(),
            instance: task.settings.instance.clone(),
            state: IncidentState::Open,
            opened: update.reasons.first().map_or_else(|| self.clock.wall(), |reason| reason.at),
            closed: None,
            reasons: Vec::new(),
            limits: task.limits.clone(),
            process: self.process.clone(),
            versions: self.versions.clone(),
            captures: Vec::new(),
            artifacts: Vec::new(),
            removed: Vec::new(),
            vitals: Vec::new(),
            findings: Vec::new(),
            losses: Losses::default(),
        };
        apply_update(&mut manifest, update, &task.vitals);
        let created = match self.directory.store() {
            Ok(store) => store.create_incident(name, manifest).map_err(|error| error_chain(&error)),
            Err(why) => Err(why.to_owned()),
        };
        match created {
            Ok(dir) => {
                let path = dir.path().to_owned();
                stats.record_notification(self.callbacks.notify_opened(id, name, &path));
                self.incident_dirs.push((id, dir));
                Some(path)
            }
            Err(why) => {
                stats.record_failure_message("incident directory not created", &why);
                None
            }
        }
    }

    /// Opens or recreates the directory without waiting for the next retry, since an incident needs
    /// it.
    fn ensure_directory(&mut self, task: &IncidentTask, stats: &mut TaskStats) {
        let settings = &task.settings.store;
        match self.directory.replace_if_removed(settings) {
            None => self.retry_open(settings),
            Some(Ok(opened)) => self.newly_opened = Some(opened),
            Some(Err(error)) => stats.record_failure("directory not recreated", &error),
        }
    }

    fn update_manifest(
        &mut self,
        id: IncidentId,
        stats: &mut TaskStats,
        change: impl FnOnce(&mut Manifest),
    ) -> bool {
        let Some((_, dir)) = self.incident_dirs.iter_mut().find(|(open, _)| *open == id) else {
            return false;
        };
        match dir.update(change) {
            Ok(()) => true,
            Err(error) => {
                stats.record_failure("manifest not written", &error);
                false
            }
        }
    }

    fn enforce_limits(&mut self, task: &IncidentTask, stats: &mut TaskStats) {
        let Ok(store) = self.directory.store() else { return };
        store.set_settings(task.settings.store.clone());
        for error in &store.enforce_limits().errors {
            stats.record_failure("incident not removed", error);
        }
    }
}

/// Adds the changes to a manifest.
fn apply_update(manifest: &mut Manifest, update: &ManifestUpdate, vitals: &[VitalsRow]) {
    manifest.reasons.extend(update.reasons.iter().cloned());
    manifest.losses.add("reasons dropped: too many", update.dropped_reasons);
    manifest.vitals = vitals.to_vec();
}

/// Warns if the program's functions have no names. Stalls of unrecorded tasks are identified by
/// these names, too.
fn warn_if_no_symbols() {
    let loaded = images::loaded().unwrap_or_default();
    match loaded.first().and_then(symbols::missing_symbols_reason) {
        Some(why) => warnings::set(
            "symbols",
            format!(
                "functions of the program have no names in profiles and dumps, and stalls of \
                 unrecorded tasks are not detected: {why}"
            ),
        ),
        None => warnings::clear("symbols"),
    }
}
