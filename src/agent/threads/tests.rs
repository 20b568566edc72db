//! A panic of the agent loop, injected through the clock.

use std::sync::Arc;
use std::sync::mpsc as std_mpsc;

use tempfile::TempDir;
use tokio::sync::mpsc;

use super::*;
use crate::agent::deferred::{DeferredParts, FileWatch};
use crate::agent::event::{AgentEvent, EVENT_QUEUE_CAPACITY, results};
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
        StoreSettings { min_free_space: DiskReserve::Bytes(Bytes(0)), ..StoreSettings::default() };
    Settings { dir: dir.path().to_owned(), store, rules: Vec::new(), ..Settings::default() }
}

#[test]
fn agent_loop_keeps_its_state_after_a_panic() {
    panics::install_hook();
    let dir = TempDir::new().unwrap();
    let trap = Arc::new(PanickingClock::default());
    let (events, queue) = mpsc::channel(EVENT_QUEUE_CAPACITY);
    let (commands, _inbox) = std_mpsc::sync_channel(1);
    let settings = Settings { interval: Duration::from_millis(10), ..settings(&dir) };
    let runtimes = Runtimes::default();
    let metrics = Metrics::default();
    let collectors = Collectors::new(results(events.clone()));
    let location = Location::new(&settings.dir);
    let threads = AgentThreads::new();
    let handle = AgentHandle::new(
        events.clone(),
        runtimes.clone(),
        metrics.clone(),
        collectors.clone(),
        &settings,
        location.clone(),
        &threads,
    );
    let clock: Arc<dyn Clock> = trap.clone();
    let directory = Directory::open(location.clone(), &settings.store, Arc::clone(&clock)).1.ok();
    let endpoint = String::new();
    let initial =
        InitialState { settings, config_path: None, collectors, location, directory, endpoint };
    let loop_handle = handle.clone();
    let deferred = DeferredParts::new(&threads, FileWatch::new(Vec::new(), events.clone()), None);
    let thread = thread::spawn(move || {
        let state =
            AgentState::new(clock, initial, Reader::new(runtimes.clone(), metrics), commands);
        run_agent_thread(AgentLoop::new(state, queue, runtimes, deferred), Vec::new(), loop_handle);
    });
    let timeout = Duration::from_secs(60);
    let ticks = || handle.status().wait(timeout).unwrap().counters.ticks;
    let before = ticks();
    trap.arm(usize::MAX);
    // The loop panics at its ticks and on requests. A request still returns an error.
    let error = handle.status().wait(timeout).unwrap_err().to_string();
    assert!(error.contains("or this request failed"), "{error}");
    trap.arm(0);
    let after = ticks();
    assert!(after >= before, "the counters are kept: {before} and then {after}");
    while ticks() == after {
        std::thread::yield_now();
    }
    let status = handle.status().wait(timeout).unwrap();
    let panics = status.panics.iter().find(|panics| panics.thread == LOOP_THREAD).unwrap();
    assert!(panics.message.starts_with("an injected panic"), "{panics:?}");
    events.blocking_send(AgentEvent::Shutdown).unwrap();
    thread.join().unwrap();
}
