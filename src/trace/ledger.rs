//! What is recorded of the process as a whole: vitals as counters, and instants such as the trigger.
//!
//! Called a few times a second by the agent, so it is a vector under a lock. It has a share of the memory
//! to itself: these lines are what the rest of the picture is read against.

use crate::base::sync::Mutex;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use super::budget::EVENT;
use super::flight;
use super::loss::{Cause, Counts};
use super::recorder;
use crate::base::{Clock, Moment, SystemClock};
use crate::model::Vitals;

/// The longest text of an instant, in bytes.
const MAX_TEXT: usize = 1 << 10;

/// What a value costs: in the ledger, whose vector may have twice the room it needs, or in the timeline.
const VALUE: usize = 2 * size_of::<Value>() + EVENT;

/// How many counters there are besides the service's own.
const FIXED: usize = 7;

/// A line of the picture. The order is the order of the tracks.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Series {
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

impl Series {
    /// Its name in a timeline.
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

    /// The unit of its values.
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
    pub(super) series: Series,
    pub(super) value: f64,
}

/// Something that happened to the process.
#[derive(Clone, Debug)]
pub(super) struct Instant {
    pub(super) at: Moment,
    pub(super) name: String,
    pub(super) text: String,
}

/// All of it, in the order in which it was told.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    left: usize,
    pub(super) values: Vec<Value>,
    pub(super) instants: Vec<Instant>,
    pub(super) counts: Counts,
}

impl Ledger {
    /// An empty ledger that may use `left` bytes.
    pub(super) fn new(left: usize) -> Self {
        Self { left, values: Vec::new(), instants: Vec::new(), counts: Counts::default() }
    }

    fn value(&mut self, at: Moment, series: Series, value: f64) {
        if !value.is_finite() {
            self.counts.add(Cause::NotANumber, 1);
        } else if self.pay(VALUE) {
            self.values.push(Value { at, series, value });
        }
    }

    fn vitals(&mut self, vitals: &Vitals) {
        let fixed: [_; FIXED] = [
            (Series::Rss, vitals.rss.map(|bytes| bytes.get() as f64)),
            (Series::WorkingSet, vitals.working_set.map(|bytes| bytes.get() as f64)),
            (Series::Cpu, vitals.cpu_cores),
            (Series::Tasks, vitals.tasks.map(|n| n as f64)),
            (Series::Threads, vitals.threads.map(|n| n as f64)),
            (Series::Fds, vitals.fds.map(|n| n as f64)),
            (Series::Lag, vitals.lag.map(|lag| lag.as_nanos() as f64)),
        ];
        for (series, value) in fixed {
            if let Some(value) = value {
                self.value(vitals.at, series, value);
            }
        }
        for (name, value) in &vitals.gauges {
            self.value(vitals.at, Series::Gauge(Arc::clone(name)), *value);
        }
        for (name, reading) in &vitals.counters {
            if let Some(rate) = reading.rate {
                self.value(vitals.at, Series::Rate(Arc::clone(name)), rate);
            }
        }
        for (name, reading) in vitals.histograms.iter().filter(|(_, it)| it.count > 0) {
            self.value(vitals.at, Series::P50(Arc::clone(name)), reading.p50);
            self.value(vitals.at, Series::P99(Arc::clone(name)), reading.p99);
        }
    }

    fn instant(&mut self, at: Moment, name: &str, text: &str) {
        let (name, text) = (bounded(name), bounded(text));
        if self.pay(2 * size_of::<Instant>() + EVENT + 2 * (name.len() + text.len())) {
            self.instants.push(Instant { at, name, text });
        }
    }

    fn pay(&mut self, cost: usize) -> bool {
        let Some(left) = self.left.checked_sub(cost) else {
            self.counts.add(Cause::Ledger, 1);
            return false;
        };
        self.left = left;
        true
    }
}

/// Records one tick as counters, at `vitals.at`, and keeps one a second of the last two minutes for the
/// sessions to come.
///
/// `rss` and `working set` are in bytes, `cpu` in cores, `runtime lag` in nanoseconds; `tasks alive`,
/// `threads`, `fds`, every `gauge.NAME`, `counter.NAME.rate`, `histogram.NAME.p50` and `.p99` are counts. What could not be measured has no value.
pub fn record_vitals(vitals: &Vitals) {
    flight::calibrate();
    RECENT.lock().unwrap_or_else(PoisonError::into_inner).keep(vitals);
    if let Some(shared) = recorder::running() {
        shared.ledger().vitals(vitals);
    }
}

/// Lets the ledger of a session that begins hold the vitals from before it, in at most half of its room.
pub(super) fn begin(shared: &recorder::Shared) {
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

/// Rows of vitals kept while no session runs: two minutes of one a second.
const RECENT_ROWS: usize = 120;

/// How far they are apart at least; a tick that comes a little early is taken.
const RECENT_STEP: Duration = Duration::from_millis(950);

static RECENT: Mutex<Recent> = Mutex::new(Recent { rows: Vec::new(), next: 0 });

/// The last rows, in a ring.
#[derive(Default)]
struct Recent {
    rows: Vec<Vitals>,
    next: usize,
}

impl Recent {
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

/// Records that something happened to the process as a whole, such as a trigger and its reason. Does
/// nothing while no session runs; a text past 1 KiB is cut.
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
