//! The loop of the thread `marple`.

use std::future;
use std::time::{Duration, Instant};

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time;

use super::collect;
use super::core::Core;
use super::event::{Event, ToggleAction};
use super::ticker::Ticker;
use crate::config::ToggleSignal;
use crate::model::Origin;
use crate::vitals::Runtimes;

/// How long a shutdown may take: what runs is stopped and written, and then the loop ends.
pub(super) const LAST_WORDS: Duration = Duration::from_secs(5);

/// Runs until a shutdown is through.
pub(super) async fn run(
    mut core: Core,
    mut events: mpsc::Receiver<Event>,
    toggle_signal: Option<ToggleSignal>,
    runtimes: Runtimes,
) {
    let mut signals = listen(toggle_signal);
    let mut ticker = Ticker::new(core.interval());
    let heap = collect::heap::Crossings::listen();
    let mut stalls = collect::stalls::Stalls::new(runtimes);
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
            tracing::error!(target: "marple", "{name} does not toggle: {error}");
        })
        .ok()
}

async fn next(signals: &mut Option<Signal>) -> Option<()> {
    match signals {
        Some(signals) => signals.recv().await,
        None => future::pending().await,
    }
}
