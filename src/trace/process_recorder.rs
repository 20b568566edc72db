//! Recording of the process as a whole: into the running session, and the vitals of the last two
//! minutes for future sessions.

use std::sync::PoisonError;
use std::time::Duration;

use super::flight;
use super::process_events::ProcessEvents;
use super::recorder::{self, RecorderState};
use crate::base::sync::Mutex;
use crate::base::{Clock, SystemClock};
use crate::model::Vitals;

/// Number of vitals kept while no session runs: one a second for two minutes.
const MAX_RECENT: usize = 120;

/// Minimum time between them. Less than a second, so that a tick that is slightly early is kept.
const MIN_RECENT_INTERVAL: Duration = Duration::from_millis(950);

static RECENT_VITALS: Mutex<RecentVitals> = Mutex::new(RecentVitals { rows: Vec::new(), next: 0 });

/// Records the vitals of one tick as counters at `vitals.at`. Also keeps one reading a second of
/// the last two minutes for future sessions.
///
/// `rss` and `working set` are in bytes, `cpu` in cores, `runtime lag` in nanoseconds. `tasks
/// alive`, `threads`, `fds`, every `gauge.NAME`, `counter.NAME.rate`, `histogram.NAME.p50` and
/// `.p99` are counts. Values that could not be measured are omitted.
pub fn record_vitals(vitals: &Vitals) {
    flight::calibrate();
    RECENT_VITALS.lock().unwrap_or_else(PoisonError::into_inner).push(vitals);
    if let Some(shared) = recorder::running_session() {
        shared.process_events().push_vitals(vitals);
    }
}

/// Fills the list of a new session with the vitals from before it, using at most half of its
/// memory.
pub(super) fn add_recent_vitals(shared: &RecorderState) {
    let recent = RECENT_VITALS.lock().unwrap_or_else(PoisonError::into_inner);
    let mut process_events = shared.process_events();
    let mut remaining = process_events.remaining() / 2;
    let fitting = recent.newest_first().take_while(|vitals| {
        let cost = ProcessEvents::cost_of(vitals);
        remaining.checked_sub(cost).inspect(|&left| remaining = left).is_some()
    });
    for vitals in fitting {
        process_events.push_vitals(vitals);
    }
}

/// Records an event of the process as a whole, such as a trigger and its reason. Does nothing while
/// no session runs. A text longer than 1 KiB is cut.
pub fn record_instant(name: &str, text: &str) {
    if let Some(shared) = recorder::running_session() {
        let mut process_events = shared.process_events();
        process_events.push_instant(SystemClock.now(), name, text);
    }
}

/// Ring buffer of the last vitals.
#[derive(Default)]
struct RecentVitals {
    rows: Vec<Vitals>,
    next: usize,
}

impl RecentVitals {
    fn push(&mut self, vitals: &Vitals) {
        let last = self.newest_first().next();
        if last.is_some_and(|last| vitals.at.since(last.at) < MIN_RECENT_INTERVAL) {
            return;
        }
        match self.rows.get_mut(self.next) {
            Some(row) => *row = vitals.clone(),
            None => self.rows.push(vitals.clone()),
        }
        self.next = (self.next + 1) % MAX_RECENT;
    }

    fn newest_first(&self) -> impl Iterator<Item = &Vitals> {
        let (newer, older) = self.rows.split_at_checked(self.next).unwrap_or((&self.rows, &[]));
        newer.iter().rev().chain(older.iter().rev())
    }
}
