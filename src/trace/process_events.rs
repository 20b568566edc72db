//! Records of the process as a whole: vitals as counters, and instants such as the trigger.
//!
//! The agent writes a few of them a second, so a vector under a lock suffices. The ledger has its
//! own share of the memory, because all other data is interpreted with the help of these tracks.

use crate::base::sync::Mutex;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use super::budget::EVENT;
use super::flight;
use super::loss::{LossCause, LossCounts};
use super::recorder;
use crate::base::{Clock, Moment, SystemClock};
use crate::model::Vitals;

/// Maximum length of an instant's text in bytes.
const MAX_TEXT: usize = 1 << 10;

/// Price of a value: `2 * value + event`. The factor covers the capacity of a growing vector.
const VALUE: usize = 2 * size_of::<Value>() + EVENT;

/// Number of counters, without those defined by the service.
const FIXED: usize = 7;

/// A counter track. Variants are in the order of the tracks.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum CounterTrack {
    Rss,
    WorkingSet,
    Cpu,
    Tasks,
    Threads,
    Fds,
    Lag,
    Gauge(Arc<str>),
    Rate(Arc<str>),
    P50(Arc<str>),
    P99(Arc<str>),
}

impl CounterTrack {
    /// Returns the name in a timeline.
    pub(super) fn name(&self) -> String {
        match self {
            Self::Rss => "rss".to_owned(),
            Self::WorkingSet => "working set".to_owned(),
            Self::Cpu => "cpu".to_owned(),
            Self::Tasks => "tasks alive".to_owned(),
            Self::Threads => "threads".to_owned(),
            Self::Fds => "fds".to_owned(),
            Self::Lag => "runtime lag".to_owned(),
            Self::Gauge(name) => format!("gauge.{name}"),
            Self::Rate(name) => format!("counter.{name}.rate"),
            Self::P50(name) => format!("histogram.{name}.p50"),
            Self::P99(name) => format!("histogram.{name}.p99"),
        }
    }

    /// Returns the unit of the values.
    pub(super) const fn unit(&self) -> &'static str {
        match self {
            Self::Rss | Self::WorkingSet => "bytes",
            Self::Cpu => "cores",
            Self::Tasks | Self::Threads | Self::Fds => "count",
            Self::Gauge(_) | Self::Rate(_) | Self::P50(_) | Self::P99(_) => "count",
            Self::Lag => "ns",
        }
    }
}

/// One value of one counter.
#[derive(Clone, Debug)]
pub(super) struct Value {
    pub(super) at: Moment,
    pub(super) series: CounterTrack,
    pub(super) value: f64,
}

/// An event of the process.
#[derive(Clone, Debug)]
pub(super) struct ProcessEvent {
    pub(super) at: Moment,
    pub(super) name: String,
    pub(super) text: String,
}

/// All values and instants of a session, in the order in which they were recorded.
#[derive(Debug, Default)]
pub(super) struct ProcessEvents {
    left: usize,
    pub(super) values: Vec<Value>,
    pub(super) instants: Vec<ProcessEvent>,
    pub(super) counts: LossCounts,
}

impl ProcessEvents {
    /// Creates an empty ledger that may use `left` bytes.
    pub(super) fn new(left: usize) -> Self {
        Self { left, values: Vec::new(), instants: Vec::new(), counts: LossCounts::default() }
    }

    fn value(&mut self, at: Moment, series: CounterTrack, value: f64) {
        if !value.is_finite() {
            self.counts.add(LossCause::NotANumber, 1);
        } else if self.pay(VALUE) {
            self.values.push(Value { at, series, value });
        }
    }

    fn vitals(&mut self, vitals: &Vitals) {
        let fixed: [_; FIXED] = [
            (CounterTrack::Rss, vitals.rss.map(|bytes| bytes.get() as f64)),
            (CounterTrack::WorkingSet, vitals.working_set.map(|bytes| bytes.get() as f64)),
            (CounterTrack::Cpu, vitals.cpu_cores),
            (CounterTrack::Tasks, vitals.tasks.map(|n| n as f64)),
            (CounterTrack::Threads, vitals.threads.map(|n| n as f64)),
            (CounterTrack::Fds, vitals.fds.map(|n| n as f64)),
            (CounterTrack::Lag, vitals.lag.map(|lag| lag.as_nanos() as f64)),
        ];
        for (series, value) in fixed {
            if let Some(value) = value {
                self.value(vitals.at, series, value);
            }
        }
        for (name, value) in &vitals.gauges {
            self.value(vitals.at, CounterTrack::Gauge(Arc::clone(name)), *value);
        }
        for (name, reading) in &vitals.counters {
            if let Some(rate) = reading.rate {
                self.value(vitals.at, CounterTrack::Rate(Arc::clone(name)), rate);
            }
        }
        for (name, reading) in vitals.histograms.iter().filter(|(_, it)| it.count > 0) {
            self.value(vitals.at, CounterTrack::P50(Arc::clone(name)), reading.p50);
            self.value(vitals.at, CounterTrack::P99(Arc::clone(name)), reading.p99);
        }
    }

    fn instant(&mut self, at: Moment, name: &str, text: &str) {
        let (name, text) = (bounded(name), bounded(text));
        if self.pay(2 * size_of::<ProcessEvent>() + EVENT + 2 * (name.len() + text.len())) {
            self.instants.push(ProcessEvent { at, name, text });
        }
    }

    fn pay(&mut self, cost: usize) -> bool {
        let Some(left) = self.left.checked_sub(cost) else {
            self.counts.add(LossCause::Ledger, 1);
            return false;
        };
        self.left = left;
        true
    }
}

/// Records the vitals of one tick as counters at `vitals.at`. Also keeps one reading a second of
/// the last two minutes for future sessions.
///
/// `rss` and `working set` are in bytes, `cpu` in cores, `runtime lag` in nanoseconds. `tasks
/// alive`, `threads`, `fds`, every `gauge.NAME`, `counter.NAME.rate`, `histogram.NAME.p50` and
/// `.p99` are counts. Values that could not be measured are omitted.
pub fn record_vitals(vitals: &Vitals) {
    flight::calibrate();
    RECENT.lock().unwrap_or_else(PoisonError::into_inner).keep(vitals);
    if let Some(shared) = recorder::running() {
        shared.ledger().vitals(vitals);
    }
}

/// Fills the ledger of a new session with the vitals from before it, using at most half of its
/// memory.
pub(super) fn begin(shared: &recorder::RecorderState) {
    let recent = RECENT.lock().unwrap_or_else(PoisonError::into_inner);
    let mut ledger = shared.ledger();
    let mut room = ledger.left / 2;
    let fitting = recent.newest_first().take_while(|vitals| {
        let own = vitals.gauges.len() + vitals.counters.len() + 2 * vitals.histograms.len();
        let cost = (FIXED + own) * VALUE;
        room.checked_sub(cost).inspect(|&left| room = left).is_some()
    });
    for vitals in fitting {
        ledger.vitals(vitals);
    }
}

/// Number of vitals kept while no session runs: one a second for two minutes.
const RECENT_ROWS: usize = 120;

/// Minimum time between them. Less than a second, so that a tick that is slightly early is kept.
const RECENT_STEP: Duration = Duration::from_millis(950);

static RECENT: Mutex<RecentEvents> = Mutex::new(RecentEvents { rows: Vec::new(), next: 0 });

/// Ring buffer of the last vitals.
#[derive(Default)]
struct RecentEvents {
    rows: Vec<Vitals>,
    next: usize,
}

impl RecentEvents {
    fn keep(&mut self, vitals: &Vitals) {
        let last = self.newest_first().next();
        if last.is_some_and(|last| vitals.at.since(last.at) < RECENT_STEP) {
            return;
        }
        match self.rows.get_mut(self.next) {
            Some(row) => *row = vitals.clone(),
            None => self.rows.push(vitals.clone()),
        }
        self.next = (self.next + 1) % RECENT_ROWS;
    }

    fn newest_first(&self) -> impl Iterator<Item = &Vitals> {
        let (newer, older) = self.rows.split_at_checked(self.next).unwrap_or((&self.rows, &[]));
        newer.iter().rev().chain(older.iter().rev())
    }
}

/// Records an event of the process as a whole, such as a trigger and its reason. Does nothing while
/// no session runs. A text longer than 1 KiB is cut.
pub fn record_instant(name: &str, text: &str) {
    if let Some(shared) = recorder::running() {
        let mut ledger = shared.ledger();
        ledger.instant(SystemClock.now(), name, text);
    }
}

fn bounded(text: &str) -> String {
    match text.char_indices().map(|(at, _)| at).take_while(|&at| at <= MAX_TEXT).last() {
        Some(end) if text.len() > MAX_TEXT => text.get(..end).unwrap_or_default().to_owned() + "…",
        _ => text.to_owned(),
    }
}
