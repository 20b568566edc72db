//! The loop of the thread `marple`.

use std::future;
use std::io;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time;

use super::collect;
use super::core::Core;
use super::deferred::Deferred;
use super::event::{Event, ToggleAction};
use super::ticker::Ticker;
use crate::base::warnings;
use crate::config::ToggleSignal;
use crate::model::Origin;
use crate::vitals::Runtimes;

/// How long a shutdown may take: what runs is stopped and written, and then the loop ends.
pub(super) const LAST_WORDS: Duration = Duration::from_secs(5);

/// How many descriptors a runtime with a poller takes, signals and timers included.
pub(super) const DESCRIPTORS: usize = 8;

/// Returns the error of a process that has not [`DESCRIPTORS`] left.
pub(super) fn check_descriptors() -> io::Result<()> {
    let pairs: Vec<_> = (0..DESCRIPTORS / 2).map(|_| UnixStream::pair()).collect();
    pairs.into_iter().try_for_each(|pair| pair.map(drop))
}

/// Runs until a shutdown is through.
pub(super) async fn run(
    core: &mut Core,
    events: &mut mpsc::Receiver<Event>,
    runtimes: &Runtimes,
    deferred: &mut Deferred,
) {
    let mut signals = listen(core.settings().toggle.signal);
    let mut ticker = Ticker::new(core.interval());
    let heap = collect::heap::Crossings::listen();
    let mut stalls = collect::stalls::Stalls::new(runtimes.clone());
    let mut shutdown: Option<Instant> = None;
    loop {
        core.pump();
        stalls.apply(core.settings());
        if let Some(since) = shutdown
            && (core.is_at_rest() || since.elapsed() >= LAST_WORDS)
        {
            core.end();
            return;
        }
        tokio::select! {
            () = ticker.tick() => {
                core.tick();
                core.watch();
                deferred.tick(core);
            }
            () = heap.next() => core.tick(),
            found = stalls.next() => core.stalled(found),
            Some(event) = events.recv() => {
                if matches!(event, Event::Shutdown) {
                    shutdown.get_or_insert_with(Instant::now);
                }
                core.handle(event);
                ticker.set_period(core.interval());
            }
            () = expiry(core.next_expiry()) => core.expire(),
            Some(()) = next(&mut signals) => {
                core.handle(Event::Toggle {
                    action: ToggleAction::Flip,
                    origin: Origin::Signal,
                    kinds: None,
                    reply: None,
                });
            }
        }
    }
}

/// As [`run`] on a runtime that has timers alone, for `duration`. Returns whether a shutdown is through.
pub(super) async fn run_without_poller(
    core: &mut Core,
    events: &mut mpsc::Receiver<Event>,
    deferred: &mut Deferred,
    duration: Duration,
) -> bool {
    let until = time::sleep(duration);
    tokio::pin!(until);
    let mut ticks = time::interval(core.interval());
    ticks.set_missed_tick_behavior(time::MissedTickBehavior::Skip);
    let mut shutdown: Option<Instant> = None;
    loop {
        core.pump();
        if let Some(since) = shutdown
            && (core.is_at_rest() || since.elapsed() >= LAST_WORDS)
        {
            core.end();
            return true;
        }
        tokio::select! {
            () = &mut until, if shutdown.is_none() => return false,
            _ = ticks.tick() => {
                core.tick();
                deferred.tick(core);
            }
            Some(event) = events.recv() => {
                if matches!(event, Event::Shutdown) {
                    shutdown.get_or_insert_with(Instant::now);
                }
                core.handle(event);
            }
            () = expiry(core.next_expiry()) => core.expire(),
        }
    }
}

async fn expiry(left: Option<Duration>) {
    match left {
        Some(left) => time::sleep(left).await,
        None => future::pending().await,
    }
}

/// The toggle's signal. A handler that somebody else has installed for it is called too; ours stays
/// when the agent ends, since taking it away would let the next signal kill the process.
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
