//! A panic of the agent loop, injected through the clock.

use std::sync::Arc;
use std::sync::mpsc as std_mpsc;

use tempfile::TempDir;
use tokio::sync::mpsc;

use super::*;
use crate::agent::deferred::{DeferredParts, FileWatch};
use crate::agent::event::{AgentEvent, QUEUE, results};
use crate::agent::pending::AgentThreads;
use crate::agent::state::{AgentState, InitialState};
use crate::base::panicking_clock::PanickingClock;
use crate::base::{Bytes, Clock};
use crate::capture::custom_collectors::Collectors;
use crate::capture::worker::directory::Directory;
use crate::config::{DiskReserve, Settings, StoreSettings};
use crate::metrics::Metrics;
use crate::store::Location;
use crate::vitals::{Reader, Runtimes};

fn settings(dir: &TempDir) -> Settings {
    let store =
        StoreSettings { keep_free: DiskReserve::Bytes(Bytes(0)), ..StoreSettings::default() };
    Settings { dir: dir.path().to_owned(), store, rules: Vec::new(), ..Settings::default() }
}

#[test]
fn the_loop_goes_on_after_a_panic_with_its_state() {
    panics::install_hook();
    let dir = TempDir::new().unwrap();
    let trap = Arc::new(PanickingClock::default());
    let (events, queue) = mpsc::channel(QUEUE);
    let (tasks, _inbox) = std_mpsc::sync_channel(1);
    let settings = Settings { interval: Duration::from_millis(10), ..settings(&dir) };
    let (runtimes, numbers) = (Runtimes::default(), Metrics::default());
    let collectors = Collectors::new(results(events.clone()));
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
