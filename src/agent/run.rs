//! The loop of the `marple` thread.

use crate::capture::own_thread::side_thread;
use crate::stalls::detector;
use std::future;
use std::io;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time;

use super::deferred::DeferredParts;
use super::event::{AgentEvent, ToggleAction};
use super::ticker::TickTimer;
use crate::agent::state::AgentState;
use crate::base::{panics, warnings};
use crate::capture::collectors;
use crate::config::ToggleSignal;
use crate::model::Origin;
use crate::stalls::standstill::StandstillDetector;
use crate::vitals::Runtimes;

/// Time allowed for a shutdown: running captures are stopped and written, then the loop ends.
pub(super) const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(5);

/// Number of descriptors used by a tokio runtime that polls I/O, including its signals and timers.
pub(super) const POLLER_DESCRIPTORS: usize = 8;

/// Name of the thread in panic counts.
const THREAD_NAME: &str = "marple";

/// Returns an error if fewer than [`POLLER_DESCRIPTORS`] descriptors are available.
pub(super) fn check_descriptors() -> io::Result<()> {
    let pairs: Vec<_> = (0..POLLER_DESCRIPTORS / 2).map(|_| UnixStream::pair()).collect();
    pairs.into_iter().try_for_each(|pair| pair.map(drop))
}

/// State of the loop, which survives a panic in one of its iterations.
pub(super) struct AgentLoop {
    state: AgentState,
    events: mpsc::Receiver<AgentEvent>,
    runtimes: Runtimes,
    deferred: DeferredParts,
    /// Time of the shutdown request.
    shutdown_requested_at: Option<Instant>,
    iterations: u64,
}

impl AgentLoop {
    pub(super) fn new(
        state: AgentState,
        events: mpsc::Receiver<AgentEvent>,
        runtimes: Runtimes,
        deferred: DeferredParts,
    ) -> Self {
        Self { state, events, runtimes, deferred, shutdown_requested_at: None, iterations: 0 }
    }

    pub(super) fn iterations(&self) -> u64 {
        self.iterations
    }

    /// Starts an iteration. Returns `true` if the loop has to end: a shutdown is complete or has
    /// taken [`SHUTDOWN_TIMEOUT`].
    ///
    /// A panic of the dispatch is caught here. If it ended the iteration each time, the loop would
    /// not handle any event.
    fn begin_iteration(&mut self) -> bool {
        self.iterations += 1;
        panics::catch_and_record_panic(THREAD_NAME, || self.state.dispatch_next());
        let must_end = self.shutdown_requested_at.is_some_and(|requested_at| {
            self.state.is_idle() || requested_at.elapsed() >= SHUTDOWN_TIMEOUT
        });
        if must_end {
            self.state.stop_recording();
        }
        must_end
    }

    /// Detects a standstill of the process after a wake-up. Must be called before anything is
    /// measured.
    fn on_wakeup(&mut self, detector: &mut StandstillDetector, due: tokio::time::Instant) {
        detector.check_wakeup(due);
        self.state.apply_standstills();
    }

    fn tick(&mut self) {
        panics::catch_and_record_panic(THREAD_NAME, || {
            self.state.tick();
            self.state.arm_early_ticks();
        });
        panics::catch_and_record_panic(THREAD_NAME, || self.deferred.tick(&mut self.state));
    }

    fn handle(&mut self, event: AgentEvent) {
        if matches!(event, AgentEvent::Shutdown) {
            self.shutdown_requested_at.get_or_insert_with(Instant::now);
        }
        self.state.handle(event);
    }
}

/// Runs the loop until a shutdown ends it.
///
/// A caller may catch a panic and call this again with the same `agent`.
pub(super) async fn run(agent: &mut AgentLoop) {
    let mut toggle_signal = install_toggle_signal(agent.state.settings().toggle.signal);
    let mut ticker = TickTimer::new(agent.state.interval());
    let heap = collectors::heap::ThresholdEvents::subscribe();
    let mut stalls = detector::Stalls::new(agent.runtimes.clone(), side_thread("marple-stalls"));
    let mut detector = StandstillDetector::new();
    loop {
        if agent.begin_iteration() {
            return;
        }
        let state = &mut agent.state;
        panics::catch_and_record_panic(THREAD_NAME, || stalls.apply(state.settings()));
        let due = ticker.due();
        tokio::select! {
            () = ticker.tick() => {
                agent.on_wakeup(&mut detector, stalls.next_check().min(due));
                detector.update_baseline();
                agent.tick();
            }
            () = heap.next() => {
                agent.on_wakeup(&mut detector, stalls.next_check().min(due));
                agent.state.tick();
            }
            found = stalls.next(&mut detector, due) => {
                agent.state.apply_standstills();
                agent.state.on_stalls(found);
            }
            Some(event) = agent.events.recv() => {
                agent.on_wakeup(&mut detector, stalls.next_check().min(due));
                agent.handle(event);
                ticker.set_period(agent.state.interval());
            }
            () = wait_for_expiry(state.next_expiry()) => agent.state.expire(),
            Some(()) = next_signal(&mut toggle_signal) => {
                agent.state.handle(AgentEvent::Toggle {
                    action: ToggleAction::Flip,
                    origin: Origin::Signal,
                    kinds: None,
                    reply: None,
                });
            }
        }
    }
}

/// Runs the loop for `duration` on a runtime that has only timers. Returns `true` if a shutdown
/// ended it earlier.
pub(super) async fn run_without_poller(agent: &mut AgentLoop, duration: Duration) -> bool {
    let deadline = time::sleep(duration);
    tokio::pin!(deadline);
    let mut ticks = time::interval(agent.state.interval());
    ticks.set_missed_tick_behavior(time::MissedTickBehavior::Skip);
    loop {
        if agent.begin_iteration() {
            return true;
        }
        tokio::select! {
            () = &mut deadline, if agent.shutdown_requested_at.is_none() => return false,
            _ = ticks.tick() => agent.tick(),
            Some(event) = agent.events.recv() => agent.handle(event),
            () = wait_for_expiry(agent.state.next_expiry()) => agent.state.expire(),
        }
    }
}

async fn wait_for_expiry(remaining: Option<Duration>) {
    match remaining {
        Some(remaining) => time::sleep(remaining).await,
        None => future::pending().await,
    }
}

/// Installs the handler of the toggle signal. An existing handler of the host is called too. The
/// handler stays installed after the agent has ended. Without it, the next signal would kill the
/// process.
fn install_toggle_signal(toggle_signal: Option<ToggleSignal>) -> Option<Signal> {
    let toggle_signal = toggle_signal?;
    let kind = match toggle_signal {
        ToggleSignal::Usr1 => SignalKind::user_defined1(),
        ToggleSignal::Usr2 => SignalKind::user_defined2(),
    };
    signal(kind)
        .inspect_err(|error| {
            let name = toggle_signal.name();
            warnings::set(
                "toggle.signal",
                format!("cannot use {name} as the toggle signal: {error}"),
            );
        })
        .ok()
}

async fn next_signal(signal: &mut Option<Signal>) -> Option<()> {
    match signal {
        Some(signal) => signal.recv().await,
        None => future::pending().await,
    }
}
