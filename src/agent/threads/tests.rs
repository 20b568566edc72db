//! Tests of panics injected through the clock, which every part of the agent reads.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self as std_mpsc, SyncSender};
use std::thread::JoinHandle;

use jiff::Timestamp;
use tempfile::TempDir;

use super::*;
use crate::agent::callbacks::CallbackSender;
use crate::agent::capture::directory::Directory;
use crate::agent::capture::{CaptureReport, CaptureTask};
use crate::agent::core::{AgentState, InitialState};
use crate::agent::custom_collectors::Collectors;
use crate::agent::deferred::{DeferredParts, FileWatch};
use crate::agent::event::QUEUE;
use crate::agent::pending::AgentThreads;
use crate::base::{Bytes, IncidentId, Moment, SystemClock};
use crate::config::{DiskReserve, Settings, StoreSettings};
use crate::metrics::Metrics;
use crate::model::{CaptureKind, Limits, Manifest, Outcome, ProcessInfo, Versions};
use crate::policy::incidents::{CommandResult, IncidentCommand, ManifestUpdate};
use crate::store::Location;
use crate::vitals::{Reader, Runtimes};

/// A clock that panics a given number of times.
#[derive(Default)]
struct Trap(AtomicUsize);

impl Trap {
    fn set(&self, panics: usize) {
        self.0.store(panics, Ordering::SeqCst);
    }

    fn spring(&self) {
        let sprung =
            self.0.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        assert!(sprung.is_err(), "an injected panic");
    }
}

impl Clock for Trap {
    fn now(&self) -> Moment {
        self.spring();
        SystemClock.now()
    }

    fn wall(&self) -> Timestamp {
        self.spring();
        SystemClock.wall()
    }
}

fn settings(dir: &TempDir) -> Settings {
    let store =
        StoreSettings { keep_free: DiskReserve::Bytes(Bytes(0)), ..StoreSettings::default() };
    Settings { dir: dir.path().to_owned(), store, rules: Vec::new(), ..Settings::default() }
}

/// A capture thread and the queues to and from it.
struct Capture {
    trap: Arc<Trap>,
    settings: Arc<Settings>,
    tasks: SyncSender<WorkerCommand>,
    done: mpsc::Receiver<AgentEvent>,
    thread: JoinHandle<()>,
}

impl Capture {
    fn start(dir: &TempDir) -> Self {
        panics::install_hook();
        let trap = Arc::new(Trap::default());
        let settings = Arc::new(settings(dir));
        let clock: Arc<dyn Clock> = trap.clone();
        let location = Location::new(&settings.dir);
        let store = settings.store.clone();
        let (directory, opened) = Directory::open(location, &store, Arc::clone(&clock));
        opened.unwrap();
        let process = ProcessInfo {
            pid: 1,
            exe: String::new(),
            build_id: String::new(),
            agent_started: SystemClock.wall(),
        };
        let versions =
            Versions { marple: String::new(), kernel: String::new(), arch: String::new() };
        let (events, done) = mpsc::channel(QUEUE);
        let (tasks, inbox) = std_mpsc::sync_channel(1);
        let (announcer, _) = CallbackSender::new(&[]);
        let collectors = Collectors::new(events.clone());
        let thread = thread::spawn(move || {
            let worker = CaptureWorker::new(
                Arc::clone(&clock),
                directory,
                process,
                versions,
                announcer,
                collectors,
            );
            work(worker, &*clock, &store, &inbox, &events);
        });
        Self { trap, settings, tasks, done, thread }
    }

    fn perform(&mut self, job: IncidentCommand) -> CaptureReport {
        let task = CaptureTask {
            job,
            settings: Arc::clone(&self.settings),
            state: None,
            limits: Limits::default(),
            headroom: None,
            vitals: Vec::new(),
            stuck: None,
        };
        self.tasks.send(WorkerCommand::Incident(Box::new(task))).unwrap();
        match self.done.blocking_recv().unwrap() {
            AgentEvent::Done(report) => report,
            _ => panic!("another event"),
        }
    }
}

fn manifest(report: &CaptureReport) -> Manifest {
    let path = report.dir.as_ref().unwrap().join("incident.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

#[test]
fn a_panic_in_a_task_costs_that_capture_only() {
    let dir = TempDir::new().unwrap();
    let mut capture = Capture::start(&dir);
    let id = IncidentId::new(SystemClock.wall());
    let open =
        |id| IncidentCommand::Open { id, name: "memory".into(), noted: ManifestUpdate::default() };
    let kinds = [CaptureKind::Threads].into();

    // Panic while a directory is created: the incident is lost and reported as lost.
    capture.trap.set(1);
    let lost = capture.perform(open(id));
    assert!(matches!(lost.done, CommandResult::Opened { ok: false, .. }), "{:?}", lost.done);
    let (cause, why) = lost.tally.failures.last().unwrap();
    assert_eq!(*cause, "capture thread panicked");
    assert!(why.starts_with("panicked: an injected panic (src/"), "{why}");

    // Panic while a capture starts: the incident continues and its next capture is taken.
    let opened = capture.perform(open(id));
    assert!(matches!(opened.done, CommandResult::Opened { ok: true, .. }));
    capture.trap.set(1);
    let failed = capture.perform(IncidentCommand::Start { id, kinds });
    assert!(
        matches!(failed.done, CommandResult::Started { running, .. } if running.is_empty()),
        "{:?}",
        failed.done
    );
    let started = capture.perform(IncidentCommand::Start { id, kinds });
    assert!(matches!(started.done, CommandResult::Started { running, .. } if running == kinds));

    // Panic while it stops: it is marked as failed, its engine is free, and the incident closes.
    capture.trap.set(1);
    let stopped = capture.perform(IncidentCommand::Stop { id, kinds });
    assert!(matches!(stopped.done, CommandResult::Stopped { .. }), "{:?}", stopped.done);
    capture.trap.set(1);
    let unclosed = capture.perform(IncidentCommand::Close { id, noted: ManifestUpdate::default() });
    assert!(
        matches!(unclosed.done, CommandResult::Closed { ok: false, .. }),
        "{:?}",
        unclosed.done
    );
    let closed = capture.perform(IncidentCommand::Close { id, noted: ManifestUpdate::default() });
    assert!(matches!(closed.done, CommandResult::Closed { ok: true, .. }), "{:?}", closed.done);
    let manifest = manifest(&opened);
    assert!(manifest.closed.is_some() && !manifest.artifacts.is_empty(), "{manifest:?}");
    let outcomes: Vec<_> = manifest.captures.iter().map(|it| it.outcome).collect();
    assert_eq!(outcomes, [Outcome::Failed; 2], "{:?}", manifest.captures);
    let why = manifest.captures[1].error.as_deref().unwrap();
    assert!(why.contains("panicked: an injected panic"), "{why}");

    let panics = panics::list().into_iter().find(|it| it.thread == CAPTURE).unwrap();
    assert!(panics.panics >= 4, "{panics:?}");
    drop(capture.tasks);
    capture.thread.join().unwrap();
}

#[test]
fn the_loop_goes_on_after_a_panic_with_its_state() {
    panics::install_hook();
    let dir = TempDir::new().unwrap();
    let trap = Arc::new(Trap::default());
    let (events, queue) = mpsc::channel(QUEUE);
    let (tasks, _inbox) = std_mpsc::sync_channel(1);
    let settings = Settings { interval: Duration::from_millis(10), ..settings(&dir) };
    let (runtimes, numbers) = (Runtimes::default(), Metrics::default());
    let collectors = Collectors::new(events.clone());
    let (location, threads) = (Location::new(&settings.dir), AgentThreads::new());
    let handle = AgentHandle::new(
        events.clone(),
        (runtimes.clone(), numbers.clone()),
        collectors.clone(),
        &settings,
        location.clone(),
        &threads,
    );
    let clock: Arc<dyn Clock> = trap.clone();
    let directory = Directory::open(location.clone(), &settings.store, Arc::clone(&clock)).1.ok();
    let endpoint = String::new();
    let begun = InitialState { settings, path: None, collectors, location, directory, endpoint };
    let leading = handle.clone();
    let deferred = DeferredParts::new(&threads, FileWatch::new(Vec::new(), events.clone()), None);
    let thread = thread::spawn(move || {
        let core = AgentState::new(clock, begun, Reader::new(runtimes.clone(), numbers), tasks);
        lead(AgentLoop::new(core, queue, runtimes, deferred), Vec::new(), leading);
    });
    let patience = Duration::from_secs(60);
    let ticks = || handle.status().wait(patience).unwrap().counters.ticks;
    let before = ticks();
    trap.set(usize::MAX);
    // The loop panics at its ticks and on requests. A request still returns an error.
    let error = handle.status().wait(patience).unwrap_err().to_string();
    assert!(error.contains("failed on this request"), "{error}");
    trap.set(0);
    let after = ticks();
    assert!(after >= before, "the counters are kept: {before} and then {after}");
    while ticks() == after {
        std::thread::yield_now();
    }
    let status = handle.status().wait(patience).unwrap();
    let panics = status.panics.iter().find(|it| it.thread == LOOP).unwrap();
    assert!(panics.message.starts_with("an injected panic"), "{panics:?}");
    events.blocking_send(AgentEvent::Shutdown).unwrap();
    thread.join().unwrap();
}
