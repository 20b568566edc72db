//! Records of the process as a whole: vitals as counters, and instants such as the trigger.
//!
//! The agent writes a few of them a second, so a vector under a lock suffices. They have
//! their own share of the memory, because all other data is interpreted with the help of these
//! tracks.

use crate::base::sync::Mutex;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use super::budget::EVENT_BYTES;
use super::flight;
use super::loss::{LossCause, LossCounts};
use super::recorder;
use crate::base::{Clock, Moment, SystemClock};
use crate::model::Vitals;

/// Maximum length of an instant's text in bytes.
const MAX_TEXT_BYTES: usize = 1 << 10;

/// Price of a value: `2 * value + event`. The factor covers the capacity of a growing vector.
const VALUE_COST: usize = 2 * size_of::<Value>() + EVENT_BYTES;

/// Number of counters, without those defined by the service.
const BUILTIN_COUNTERS: usize = 7;

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
    pub(super) track: CounterTrack,
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
    remaining: usize,
    pub(super) values: Vec<Value>,
    pub(super) instants: Vec<ProcessEvent>,
    pub(super) counts: LossCounts,
}

impl ProcessEvents {
    /// Creates an empty list that may use `left` bytes.
    pub(super) fn new(remaining: usize) -> Self {
        Self { remaining, values: Vec::new(), instants: Vec::new(), counts: LossCounts::default() }
    }

    fn push_value(&mut self, at: Moment, track: CounterTrack, value: f64) {
        if !value.is_finite() {
            self.counts.add(LossCause::NotFinite, 1);
        } else if self.try_charge(VALUE_COST) {
            self.values.push(Value { at, track, value });
        }
    }

    fn push_vitals(&mut self, vitals: &Vitals) {
        let builtin: [_; BUILTIN_COUNTERS] = [
            (CounterTrack::Rss, vitals.rss.map(|bytes| bytes.get() as f64)),
            (CounterTrack::WorkingSet, vitals.working_set.map(|bytes| bytes.get() as f64)),
            (CounterTrack::Cpu, vitals.cpu_cores),
            (CounterTrack::Tasks, vitals.tasks.map(|n| n as f64)),
            (CounterTrack::Threads, vitals.threads.map(|n| n as f64)),
            (CounterTrack::Fds, vitals.fds.map(|n| n as f64)),
            (CounterTrack::Lag, vitals.lag.map(|lag| lag.as_nanos() as f64)),
        ];
        for (series, value) in builtin {
            if let Some(value) = value {
                self.push_value(vitals.at, series, value);
            }
        }
        for (name, value) in &vitals.gauges {
            self.push_value(vitals.at, CounterTrack::Gauge(Arc::clone(name)), *value);
        }
        for (name, reading) in &vitals.counters {
            if let Some(rate) = reading.rate {
                self.push_value(vitals.at, CounterTrack::Rate(Arc::clone(name)), rate);
            }
        }
        for (name, reading) in vitals.histograms.iter().filter(|(_, reading)| reading.count > 0) {
            self.push_value(vitals.at, CounterTrack::P50(Arc::clone(name)), reading.p50);
            self.push_value(vitals.at, CounterTrack::P99(Arc::clone(name)), reading.p99);
        }
    }

    fn push_instant(&mut self, at: Moment, name: &str, text: &str) {
        let (name, text) = (truncate_text(name), truncate_text(text));
        if self
            .try_charge(2 * size_of::<ProcessEvent>() + EVENT_BYTES + 2 * (name.len() + text.len()))
        {
            self.instants.push(ProcessEvent { at, name, text });
        }
    }

    fn try_charge(&mut self, cost: usize) -> bool {
        let Some(remaining) = self.remaining.checked_sub(cost) else {
            self.counts.add(LossCause::ProcessEventsFull, 1);
            return false;
        };
        self.remaining = remaining;
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
    RECENT_VITALS.lock().unwrap_or_else(PoisonError::into_inner).push(vitals);
    if let Some(shared) = recorder::running_session() {
        shared.process_events().push_vitals(vitals);
    }
}

/// Fills the list of a new session with the vitals from before it, using at most half of its
/// memory.
pub(super) fn add_recent_vitals(shared: &recorder::RecorderState) {
    let recent = RECENT_VITALS.lock().unwrap_or_else(PoisonError::into_inner);
    let mut process_events = shared.process_events();
    let mut remaining = process_events.remaining / 2;
    let fitting = recent.newest_first().take_while(|vitals| {
        let custom_values =
            vitals.gauges.len() + vitals.counters.len() + 2 * vitals.histograms.len();
        let cost = (BUILTIN_COUNTERS + custom_values) * VALUE_COST;
        remaining.checked_sub(cost).inspect(|&left| remaining = left).is_some()
    });
    for vitals in fitting {
        process_events.push_vitals(vitals);
    }
}

/// Number of vitals kept while no session runs: one a second for two minutes.
const MAX_RECENT: usize = 120;

/// Minimum time between them. Less than a second, so that a tick that is slightly early is kept.
const MIN_RECENT_INTERVAL: Duration = Duration::from_millis(950);

static RECENT_VITALS: Mutex<RecentVitals> = Mutex::new(RecentVitals { rows: Vec::new(), next: 0 });

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

/// Records an event of the process as a whole, such as a trigger and its reason. Does nothing while
/// no session runs. A text longer than 1 KiB is cut.
pub fn record_instant(name: &str, text: &str) {
    if let Some(shared) = recorder::running_session() {
        let mut process_events = shared.process_events();
        process_events.push_instant(SystemClock.now(), name, text);
    }
}

fn truncate_text(text: &str) -> String {
    match text.char_indices().map(|(at, _)| at).take_while(|&at| at <= MAX_TEXT_BYTES).last() {
        Some(end) if text.len() > MAX_TEXT_BYTES => {
            text.get(..end).unwrap_or_default().to_owned() + "…"
        }
        _ => text.to_owned(),
    }
}
