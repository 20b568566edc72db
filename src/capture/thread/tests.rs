//! Panics of the capture thread, injected through the clock.

use std::sync::Arc;
use std::sync::mpsc::{self, SyncSender};
use std::thread::{self, JoinHandle};

use tempfile::TempDir;

use super::*;
use crate::base::panicking_clock::PanickingClock;
use crate::base::{Bytes, IncidentId, SystemClock};
use crate::capture::callbacks::CallbackSender;
use crate::capture::custom_collectors::Collectors;
use crate::capture::worker::directory::Directory;
use crate::config::{DiskReserve, Settings};
use crate::model::{CaptureKind, Limits, Manifest, Outcome, ProcessInfo, Versions};
use crate::policy::incidents::{CommandResult, IncidentCommand, ManifestUpdate};
use crate::store::Location;

fn settings(dir: &TempDir) -> Settings {
    let store =
        StoreSettings { min_free_space: DiskReserve::Bytes(Bytes(0)), ..StoreSettings::default() };
    Settings { dir: dir.path().to_owned(), store, rules: Vec::new(), ..Settings::default() }
}

/// A capture thread and the queues to and from it.
struct CaptureThread {
    trap: Arc<PanickingClock>,
    settings: Arc<Settings>,
    tasks: SyncSender<CaptureCommand>,
    results: Receiver<CaptureResult>,
    thread: JoinHandle<()>,
}

impl CaptureThread {
    fn start(dir: &TempDir) -> Self {
        panics::install_hook();
        let trap = Arc::new(PanickingClock::default());
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
        let (sender, results) = mpsc::channel();
        let (tasks, inbox) = mpsc::sync_channel(1);
        let (callbacks, _) = CallbackSender::new(&[]);
        let sender = ResultSender::new(move |result| sender.send(result).is_ok());
        let collectors = Collectors::new(sender.clone());
        let thread = thread::spawn(move || {
            let worker = CaptureWorker::new(
                Arc::clone(&clock),
                directory,
                process,
                versions,
                callbacks,
                collectors,
            );
            run(worker, &*clock, &store, &inbox, &sender);
        });
        Self { trap, settings, tasks, results, thread }
    }

    fn perform(&mut self, job: IncidentCommand) -> IncidentTaskResult {
        let task = IncidentTask {
            command: job,
            settings: Arc::clone(&self.settings),
            state: None,
            limits: Limits::default(),
            headroom: None,
            vitals: Vec::new(),
            stall_dump: None,
        };
        self.tasks.send(CaptureCommand::Incident(Box::new(task))).unwrap();
        match self.results.recv().unwrap() {
            CaptureResult::Incident(result) => result,
            _ => panic!("another result"),
        }
    }
}

fn manifest(report: &IncidentTaskResult) -> Manifest {
    let path = report.dir.as_ref().unwrap().join("incident.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

#[test]
fn panic_in_a_command_fails_only_that_capture() {
    let dir = TempDir::new().unwrap();
    let mut capture = CaptureThread::start(&dir);
    let id = IncidentId::new(SystemClock.wall());
    let open =
        |id| IncidentCommand::Open { id, name: "memory".into(), update: ManifestUpdate::default() };
    let kinds = [CaptureKind::Threads].into();

    // Panic while a directory is created: the incident is lost and reported as lost.
    capture.trap.arm(1);
    let lost = capture.perform(open(id));
    assert!(matches!(lost.result, CommandResult::Opened { ok: false, .. }), "{:?}", lost.result);
    let (cause, why) = lost.stats.failures.last().unwrap();
    assert_eq!(*cause, "capture thread panicked");
    assert!(why.starts_with("panicked: an injected panic (src/"), "{why}");

    // Panic while a capture starts: the incident continues and its next capture is taken.
    let opened = capture.perform(open(id));
    assert!(matches!(opened.result, CommandResult::Opened { ok: true, .. }));
    capture.trap.arm(1);
    let failed = capture.perform(IncidentCommand::Start { id, kinds });
    assert!(
        matches!(failed.result, CommandResult::Started { running, .. } if running.is_empty()),
        "{:?}",
        failed.result
    );
    let started = capture.perform(IncidentCommand::Start { id, kinds });
    assert!(matches!(started.result, CommandResult::Started { running, .. } if running == kinds));

    // Panic while it stops: it is marked as failed, its engine is free, and the incident closes.
    capture.trap.arm(1);
    let stopped = capture.perform(IncidentCommand::Stop { id, kinds });
    assert!(matches!(stopped.result, CommandResult::Stopped { .. }), "{:?}", stopped.result);
    capture.trap.arm(1);
    let unclosed =
        capture.perform(IncidentCommand::Close { id, update: ManifestUpdate::default() });
    assert!(
        matches!(unclosed.result, CommandResult::Closed { ok: false, .. }),
        "{:?}",
        unclosed.result
    );
    let closed = capture.perform(IncidentCommand::Close { id, update: ManifestUpdate::default() });
    assert!(matches!(closed.result, CommandResult::Closed { ok: true, .. }), "{:?}", closed.result);
    let manifest = manifest(&opened);
    assert!(manifest.closed.is_some() && !manifest.artifacts.is_empty(), "{manifest:?}");
    let outcomes: Vec<_> = manifest.captures.iter().map(|it| it.outcome).collect();
    assert_eq!(outcomes, [Outcome::Failed; 2], "{:?}", manifest.captures);
    let why = manifest.captures[1].error.as_deref().unwrap();
    assert!(why.contains("panicked: an injected panic"), "{why}");

    let panics = panics::list().into_iter().find(|it| it.thread == NAME).unwrap();
    assert!(panics.panics >= 4, "{panics:?}");
    drop(capture.tasks);
    capture.thread.join().unwrap();
}
