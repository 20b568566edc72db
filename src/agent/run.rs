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
pub(super) const LAST_WORDS: Duration = Duration::from_secs(5);

/// Number of descriptors used by a runtime with a poller, including signals and timers.
pub(super) const DESCRIPTORS: usize = 8;

/// Name of the thread in panic counts.
const THREAD: &str = "marple";

/// Returns an error if fewer than [`DESCRIPTORS`] descriptors are available.
pub(super) fn check_descriptors() -> io::Result<()> {
    let pairs: Vec<_> = (0..DESCRIPTORS / 2).map(|_| UnixStream::pair()).collect();
    pairs.into_iter().try_for_each(|pair| pair.map(drop))
}

/// State of the loop, which survives a panic in one of its iterations.
pub(super) struct AgentLoop {
    core: AgentState,
    events: mpsc::Receiver<AgentEvent>,
    runtimes: Runtimes,
    deferred: DeferredParts,
    /// Time of the shutdown request.
    shutdown: Option<Instant>,
    turns: u64,
}

impl AgentLoop {
    pub(super) fn new(
        core: AgentState,
        events: mpsc::Receiver<AgentEvent>,
        runtimes: Runtimes,
        deferred: DeferredParts,
    ) -> Self {
        Self { core, events, runtimes, deferred, shutdown: None, turns: 0 }
    }

    /// Returns the number of iterations so far.
    pub(super) fn turns(&self) -> u64 {
        self.turns
    }

    /// Starts an iteration. Returns `true` if the shutdown is complete.
    ///
    /// Dispatching a command is fenced separately: if it panicked each time, the loop would do
    /// nothing else.
    fn begin_turn(&mut self) -> bool {
        self.turns += 1;
        panics::fence_and_record(THREAD, || self.core.pump());
        let is_over = self
            .shutdown
            .is_some_and(|since| self.core.is_at_rest() || since.elapsed() >= LAST_WORDS);
        if is_over {
            self.core.end();
        }
        is_over
    }

    /// Detects a standstill of the process after a wake-up. Must be called before anything is
    /// measured.
    fn woke(&mut self, detector: &mut StandstillDetector, due: tokio::time::Instant) {
        detector.woke(due);
        self.core.follow_standstills();
    }

    fn tick(&mut self) {
        panics::fence_and_record(THREAD, || {
            self.core.tick();
            self.core.watch();
        });
        panics::fence_and_record(THREAD, || self.deferred.tick(&mut self.core));
    }

    fn handle(&mut self, event: AgentEvent) {
        if matches!(event, AgentEvent::Shutdown) {
            self.shutdown.get_or_insert_with(Instant::now);
        }
        self.core.handle(event);
    }
}

/// Runs the loop until a shutdown is complete.
///
/// A caller may catch a panic and call this again with the same `agent`.
pub(super) async fn run(agent: &mut AgentLoop) {
    let mut signals = listen(agent.core.settings().toggle.signal);
    let mut ticker = TickTimer::new(agent.core.interval());
    let heap = collectors::heap::ThresholdEvents::listen();
    let mut stalls = detector::Stalls::new(agent.runtimes.clone(), side_thread("marple-stalls"));
    let mut detector = StandstillDetector::new();
    loop {
        if agent.begin_turn() {
            return;
        }
        let core = &mut agent.core;
        panics::fence_and_record(THREAD, || stalls.apply(core.settings()));
        let due = ticker.due();
        tokio::select! {
            () = ticker.tick() => {
                agent.woke(&mut detector, stalls.due().min(due));
                detector.tick();
                agent.tick();
            }
            () = heap.next() => {
                agent.woke(&mut detector, stalls.due().min(due));
                agent.core.tick();
            }
            found = stalls.next(&mut detector, due) => {
                agent.core.follow_standstills();
                agent.core.stalled(found);
            }
            Some(event) = agent.events.recv() => {
                agent.woke(&mut detector, stalls.due().min(due));
                agent.handle(event);
                ticker.set_period(agent.core.interval());
            }
            () = expiry(core.next_expiry()) => agent.core.expire(),
            Some(()) = next(&mut signals) => {
                agent.core.handle(AgentEvent::Toggle {
                    action: ToggleAction::Flip,
                    origin: Origin::Signal,
                    kinds: None,
                    reply: None,
                });
            }
        }
    }
}

/// Runs the loop for `duration` on a runtime that has only timers. Returns `true` if a shutdown is
/// complete.
pub(super) async fn run_without_poller(agent: &mut AgentLoop, duration: Duration) -> bool {
    let until = time::sleep(duration);
    tokio::pin!(until);
    let mut ticks = time::interval(agent.core.interval());
    ticks.set_missed_tick_behavior(time::MissedTickBehavior::Skip);
    loop {
        if agent.begin_turn() {
            return true;
        }
        tokio::select! {
            () = &mut until, if agent.shutdown.is_none() => return false,
            _ = ticks.tick() => agent.tick(),
            Some(event) = agent.events.recv() => agent.handle(event),
            () = expiry(agent.core.next_expiry()) => agent.core.expire(),
        }
    }
}

async fn expiry(left: Option<Duration>) {
    match left {
        Some(left) => time::sleep(left).await,
        None => future::pending().await,
    }
}

/// Installs the handler of the toggle signal. An existing handler of the host is called too. The
/// handler stays installed when the agent ends, since without it the next signal would kill the
/// process.
fn listen(toggle_signal: Option<ToggleSignal>) -> Option<Signal> {
    let toggle_signal = toggle_signal?;
    let kind = match toggle_signal {
        ToggleSignal::Usr1 => SignalKind::user_defined1(),
        ToggleSignal::Usr2 => SignalKind::user_defined2(),
    };
    signal(kind)
        .inspect_err(|error| {
            let name = toggle_signal.name();
            warnings::set("toggle.signal", format!("{name} does not toggle: {error}"));
        })
        .ok()
}

async fn next(signals: &mut Option<Signal>) -> Option<()> {
    match signals {
        Some(signals) => signals.recv().await,
        None => future::pending().await,
    }
}
