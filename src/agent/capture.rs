//! The thread `marple-capture`: takes one [`Task`] at a time, does it, reports.
//!
//! It alone starts and stops collectors and writes files, so that neither a slow disk nor a long
//! conversion delays a tick, a rule or an answer. Nothing it meets ends it: a collector that fails or
//! panics is a line in the manifest, a disk that refuses is a failure in the report.

use std::path::PathBuf;
use std::sync::Arc;

use super::announce::Announcer;
use super::budget::State;
use super::collect::{self, Collector, Evidence, Failure};
use super::fence::{chain, fence};
use super::incidents::{Done, Job, Noted};
use crate::base::{Bytes, Clock, IncidentId};
use crate::config::Settings;
use crate::model::{
    Artifact, CaptureKind, CaptureRecord, CaptureSet, Form, IncidentState, Limits, Losses,
    Manifest, Outcome, ProcessInfo, ThreadDump, Versions, VitalsRow,
};
use crate::store::{IncidentDir, Store};

/// A job and what is needed to do it.
pub(super) struct Task {
    pub(super) job: Job,
    pub(super) settings: Arc<Settings>,
    /// What must outlive the process, if it has changed.
    pub(super) state: Option<State>,
    pub(super) limits: Limits,
    /// How much memory is left below the limit, if that is known.
    pub(super) headroom: Option<Bytes>,
    /// The vitals of the job's incident so far; empty where the job writes no manifest of its own.
    pub(super) vitals: Vec<VitalsRow>,
    /// The thread that was stuck when the rule fired.
    pub(super) stuck: Option<Box<ThreadDump>>,
}

impl Task {
    /// Why `kind` is not to be captured: it would take memory that is needed to stay alive.
    fn lacks_memory_for(&self, kind: CaptureKind) -> Option<String> {
        let (need, left) = (collect::memory(kind, &self.settings), self.headroom?);
        (left < need).then(|| {
            format!("{left} are left below the memory limit and the engine takes up to {need}")
        })
    }
}

/// What came of a task.
pub(crate) struct Report {
    pub(super) done: Done,
    /// The incident's directory, when it was made.
    pub(super) dir: Option<PathBuf>,
    pub(super) tally: Tally,
}

/// What a task got done and what it did not.
#[derive(Default)]
pub(super) struct Tally {
    pub(super) captures: u64,
    pub(super) captures_failed: u64,
    pub(super) artifacts: u64,
    pub(super) artifact_bytes: u64,
    /// By what means captures were started.
    pub(super) engines: Vec<(CaptureKind, String)>,
    /// Since the start.
    pub(super) incidents_removed: u64,
    /// A kind of failure, for counting, and the failure in full.
    pub(super) failures: Vec<(&'static str, String)>,
}

impl Tally {
    /// Counts an event the callbacks do not hear of.
    fn told(&mut self, told: bool) {
        if !told {
            self.failures
                .push(("event not told", "the callbacks of the service are behind".into()));
        }
    }

    fn fail(&mut self, cause: &'static str, error: &dyn std::error::Error) {
        self.failures.push((cause, chain(error)));
    }
}

/// The thread's state.
pub(super) struct Worker {
    clock: Arc<dyn Clock>,
    store: Store,
    process: ProcessInfo,
    versions: Versions,
    announcer: Announcer,
    dirs: Vec<(IncidentId, IncidentDir)>,
    running: Vec<Running>,
}

/// A collector at work and its line in the manifest.
struct Running {
    incident: IncidentId,
    kind: CaptureKind,
    record: usize,
    collector: Box<dyn Collector>,
}

/// The part of what was taken when the capture started: it is from before.
const BEFORE: &str = "before";

/// The part of what was taken while the capture went on.
const MEANWHILE: &str = "meanwhile";

/// The part of the one thread whose poll lasted too long, taken before all else.
const STUCK: &str = "stall";

/// Evidence on its way into a file.
struct Taken {
    kind: CaptureKind,
    record: usize,
    /// Which part of the capture it is.
    part: Option<&'static str>,
    evidence: Evidence,
}

impl Worker {
    pub(super) fn new(
        clock: Arc<dyn Clock>,
        store: Store,
        process: ProcessInfo,
        versions: Versions,
        announcer: Announcer,
    ) -> Self {
        Self { clock, store, process, versions, announcer, dirs: Vec::new(), running: Vec::new() }
    }

    /// Reserves what captures will need when there is no more to be had.
    pub(super) fn prepare(&self) {
        let rehearsed = fence(|| {
            collect::heap::rehearse();
            Ok(())
        });
        if let Err(error) = rehearsed {
            tracing::error!(target: "marple", "a heap profile cannot be prepared: {error}");
        }
    }

    /// Saves what must outlive the process, or says why not.
    pub(super) fn save(&self, state: &State) -> Result<(), String> {
        self.store.save_state(state).map_err(|error| chain(&error))
    }

    /// Does one task.
    pub(super) fn perform(&mut self, mut task: Task) -> Report {
        let mut tally = Tally::default();
        let mut dir = None;
        if matches!(task.job, Job::Open { .. }) && self.store.is_removed() {
            self.make_again(&task, &mut tally);
        }
        // Before the job: should that be what ends the process, the budget knows of it.
        if let Some(error) =
            task.state.as_ref().and_then(|state| self.store.save_state(state).err())
        {
            tally.fail("state not saved", &error);
        }
        if let Some(stuck) = task.stuck.take_if(|_| !matches!(task.job, Job::Start { .. })) {
            let (Job::Again { id, .. }
            | Job::Note { id, .. }
            | Job::Stop { id, .. }
            | Job::Open { id, .. }
            | Job::Start { id, .. }
            | Job::Close { id, .. }) = task.job;
            self.stuck(id, stuck, &mut tally);
        }
        let done = match &task.job {
            Job::Open { id, name, noted } => {
                dir = self.open(*id, name, noted, &task, &mut tally);
                Done::Opened { id: *id, ok: dir.is_some() }
            }
            Job::Start { id, kinds } => {
                let stuck = task.stuck.take();
                let running = self.start(*id, *kinds, (&task, stuck), &mut tally);
                Done::Started { id: *id, asked: *kinds, running }
            }
            Job::Stop { id, kinds } => {
                self.stop(*id, *kinds, &task, &mut tally);
                Done::Stopped { id: *id, kinds: *kinds }
            }
            Job::Again { id, kinds, noted } => {
                self.update(*id, &mut tally, |manifest| note(manifest, noted, &task.vitals));
                self.again(*id, *kinds, &mut tally);
                Done::Again { id: *id }
            }
            Job::Note { id, noted } => {
                for reason in &noted.reasons {
                    collect::trace::record_reason(&reason.text);
                }
                self.update(*id, &mut tally, |manifest| note(manifest, noted, &task.vitals));
                Done::Noted { id: *id }
            }
            Job::Close { id, noted } => {
                let closed = self.clock.wall();
                let ok = self.update(*id, &mut tally, |manifest| {
                    note(manifest, noted, &task.vitals);
                    manifest.state = IncidentState::Closed;
                    manifest.closed = Some(closed);
                });
                // One that somebody removed is over: there is nothing left to be closed.
                let gone = self.dirs.iter().any(|(open, dir)| open == id && dir.is_removed());
                if ok || gone {
                    if let Some((_, dir)) = self.dirs.iter().find(|(open, _)| open == id) {
                        tally.told(self.announcer.closed(*id, dir.path()));
                    }
                    self.dirs.retain(|(open, _)| open != id);
                    self.retain(&task, &mut tally);
                }
                Done::Closed { id: *id, ok: ok || gone }
            }
        };
        tally.incidents_removed = self.store.removed();
        Report { done, dir, tally }
    }

    fn open(
        &mut self,
        id: IncidentId,
        name: &str,
        noted: &Noted,
        task: &Task,
        tally: &mut Tally,
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
            vitals: Vec::new(),
            losses: Losses::default(),
        };
        note(&mut manifest, noted, &task.vitals);
        match self.store.begin(name, manifest) {
            Ok(dir) => {
                let path = dir.path().to_owned();
                tally.told(self.announcer.opened(id, name, &path));
                self.dirs.push((id, dir));
                Some(path)
            }
            Err(error) => {
                tally.fail("incident directory not made", &error);
                None
            }
        }
    }

    /// Opens the directory of incidents anew: somebody removed it.
    fn make_again(&mut self, task: &Task, tally: &mut Tally) {
        let dir = self.store.dir().to_owned();
        let settings = task.settings.store.clone();
        match Store::open(&dir, settings, Arc::clone(&self.clock)) {
            Ok((store, _)) => {
                tracing::warn!(target: "marple", "{} was removed and is made again", dir.display());
                self.store = store;
            }
            Err(error) => tally.fail("directory not made again", &error),
        }
    }

    /// Starts all of `kinds`, then writes what they saw at their start. Returns those that run.
    fn start(
        &mut self,
        id: IncidentId,
        kinds: CaptureSet,
        (task, stuck): (&Task, Option<Box<ThreadDump>>),
        tally: &mut Tally,
    ) -> CaptureSet {
        let Some((_, dir)) = self.dirs.iter().find(|(open, _)| *open == id) else {
            return CaptureSet::EMPTY;
        };
        let first = dir.manifest().captures.len();
        let reasons: Vec<String> =
            dir.manifest().reasons.iter().map(|reason| reason.text.clone()).collect();
        let mut records = Vec::new();
        let mut taken = Vec::new();
        let mut running = CaptureSet::EMPTY;
        if let Some(dump) = stuck {
            records.push(self.stuck_record());
            taken.push(of_stuck(first, dump));
        }
        for kind in kinds.iter() {
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
            if let Some(why) = collect::switched_off(kind, &task.settings) {
                record.stopped = Some(anchor.wall);
                record.outcome = Outcome::Skipped;
                record.error = Some(why.to_owned());
                records.push(record);
                continue;
            }
            if let Some(why) = task.lacks_memory_for(kind) {
                record.stopped = Some(anchor.wall);
                record.outcome = Outcome::Skipped;
                record.error = Some(why.clone());
                tally.failures.push(("capture skipped", why));
                records.push(record);
                continue;
            }
            match fence(|| collect::start(kind, &task.settings, anchor)) {
                Ok(started) => {
                    let at = first + records.len();
                    tally.engines.push((kind, started.collector.engine().to_owned()));
                    record.engine = started.collector.engine().to_owned();
                    let collector = started.collector;
                    self.running.push(Running { incident: id, kind, record: at, collector });
                    taken.extend(started.at_start.map(|evidence| Taken {
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
        for reason in &reasons {
            collect::trace::record_reason(reason);
        }
        self.update(id, tally, |manifest| manifest.captures.extend(records));
        self.write(id, taken, tally);
        running
    }

    /// Writes the thread that was stuck.
    fn stuck(&mut self, id: IncidentId, dump: Box<ThreadDump>, tally: &mut Tally) {
        let Some((_, dir)) = self.dirs.iter().find(|(open, _)| *open == id) else { return };
        let (at, record) = (dir.manifest().captures.len(), self.stuck_record());
        self.update(id, tally, |manifest| manifest.captures.push(record));
        self.write(id, vec![of_stuck(at, dump)], tally);
    }

    fn stuck_record(&self) -> CaptureRecord {
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

    /// Takes `kinds`, which run, once more and goes on with them.
    fn again(&mut self, id: IncidentId, kinds: CaptureSet, tally: &mut Tally) {
        let now = self.clock.now();
        let of = |running: &&Running| running.incident == id && kinds.contains(running.kind);
        let mut taken = Vec::new();
        for Running { kind, record, collector, .. } in self.running.iter().filter(of) {
            match fence(|| collector.peek(now)) {
                Ok(evidence) => {
                    let (kind, record) = (*kind, *record);
                    taken.extend(evidence.map(|evidence| Taken {
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

    /// Stops all of `kinds`, the quickest to vanish first, then writes what they saw.
    fn stop(&mut self, id: IncidentId, kinds: CaptureSet, task: &Task, tally: &mut Tally) {
        let (stopping, going): (Vec<_>, Vec<_>) = std::mem::take(&mut self.running)
            .into_iter()
            .partition(|running| running.incident == id && kinds.contains(running.kind));
        self.running = going;
        let mut taken = Vec::new();
        let (mut stopped, mut ended) = (Vec::new(), Vec::new());
        for Running { kind, record, collector, .. } in stopping {
            let (now, wall) = (self.clock.now(), self.clock.wall());
            match fence(|| collector.stop(now)) {
                Ok(evidence) => {
                    ended.push((record, wall, None));
                    stopped.push(record);
                    taken.extend(evidence.map(|evidence| Taken {
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

    /// Writes evidence into files. What cannot be written is a failure of its capture; the others follow.
    fn write(&mut self, id: IncidentId, taken: Vec<Taken>, tally: &mut Tally) {
        for Taken { kind, record, part, mut evidence } in taken {
            if let Err(error) = fence(|| {
                evidence.symbolize();
                Ok(())
            }) {
                tally.fail("evidence left without names", &*error);
            }
            let mut artifacts = Vec::new();
            let mut failed = None;
            for form in Form::of(kind) {
                match fence(|| self.write_as(id, form, &evidence)) {
                    Ok(mut artifact) => {
                        artifact.part = part.map(str::to_owned);
                        tally.artifacts += 1;
                        tally.artifact_bytes += artifact.bytes.get();
                        if let Some((_, dir)) = self.dirs.iter().find(|(open, _)| *open == id) {
                            tally.told(self.announcer.written(id, dir.path(), &artifact));
                        }
                        artifacts.push(artifact);
                    }
                    Err(error) => {
                        tally.fail("artifact not written", &*error);
                        failed.get_or_insert(chain(&*error));
                    }
                }
            }
            let losses = evidence.losses();
            self.update(id, tally, |manifest| {
                let written = !artifacts.is_empty();
                manifest.artifacts.extend(artifacts);
                let Some(record) = manifest.captures.get_mut(record) else { return };
                if written {
                    record.losses.merge(&losses);
                }
                if let Some(error) = failed {
                    fail(record, error);
                }
            });
        }
    }

    fn write_as(
        &mut self,
        id: IncidentId,
        form: Form,
        evidence: &Evidence,
    ) -> Result<Artifact, Failure> {
        let Some((_, dir)) = self.dirs.iter_mut().find(|(open, _)| *open == id) else {
            return Err("its incident is not open".into());
        };
        let mut draft = dir.draft(form, evidence.taken())?;
        evidence.write(form, &mut draft)?;
        Ok(draft.commit()?)
    }

    fn update(
        &mut self,
        id: IncidentId,
        tally: &mut Tally,
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

    fn retain(&mut self, task: &Task, tally: &mut Tally) {
        self.store.set_limits(task.settings.store.clone());
        for error in &self.store.retain().failed {
            tally.fail("incident not removed", error);
        }
    }
}

fn of_stuck(record: usize, dump: Box<ThreadDump>) -> Taken {
    Taken {
        kind: CaptureKind::Threads,
        record,
        part: Some(STUCK),
        evidence: Evidence::Threads(dump),
    }
}

/// Brings what is new into a manifest.
fn note(manifest: &mut Manifest, noted: &Noted, vitals: &[VitalsRow]) {
    manifest.reasons.extend(noted.reasons.iter().cloned());
    manifest.losses.add("reasons not kept: too many", noted.dropped);
    manifest.vitals = vitals.to_vec();
}

fn fail(record: &mut CaptureRecord, error: String) {
    record.outcome = Outcome::Failed;
    record.error = Some(match record.error.take() {
        Some(earlier) => format!("{earlier}; {error}"),
        None => error,
    });
}
