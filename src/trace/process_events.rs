//! Records of the process as a whole: vitals as counters, and instants such as the trigger.
//!
//! The agent writes a few of them a second, so a vector under a lock suffices. They have
//! their own share of the memory, because all other data is interpreted with the help of these
//! tracks.

use std::sync::Arc;

use super::budget::EVENT_BYTES;
use super::loss::{LossCause, LossCounts};
use crate::base::Moment;
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
    /// Creates an empty list that may use `remaining` bytes.
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

    /// Returns the bytes that the list may still use.
    pub(super) fn remaining(&self) -> usize {
        self.remaining
    }

    /// Returns the maximum price of `vitals`.
    pub(super) fn cost_of(vitals: &Vitals) -> usize {
        let custom_values =
            vitals.gauges.len() + vitals.counters.len() + 2 * vitals.histograms.len();
        (BUILTIN_COUNTERS + custom_values) * VALUE_COST
    }

    /// Adds the values of `vitals` at `vitals.at`.
    pub(super) fn push_vitals(&mut self, vitals: &Vitals) {
        let builtin: [_; BUILTIN_COUNTERS] = [
            (CounterTrack::Rss, vitals.rss.map(|bytes| bytes.get() as f64)),
            (CounterTrack::WorkingSet, vitals.working_set.map(|bytes| bytes.get() as f64)),
            (CounterTrack::Cpu, vitals.cpu_cores),
            (CounterTrack::Tasks, vitals.tasks.map(|n| n as f64)),
            (CounterTrack::Threads, vitals.threads.map(|n| n as f64)),
            (CounterTrack::Fds, vitals.fds.map(|n| n as f64)),
            (CounterTrack::Lag, vitals.lag.map(|lag| lag.as_nanos() as f64)),
        ];
        for (track, value) in builtin {
            if let Some(value) = value {
                self.push_value(vitals.at, track, value);
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

    /// Adds an instant. Texts longer than 1 KiB are cut.
    pub(super) fn push_instant(&mut self, at: Moment, name: &str, text: &str) {
        let name = truncate_text(name);
        let text = truncate_text(text);
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

fn truncate_text(text: &str) -> String {
    match text.char_indices().map(|(at, _)| at).take_while(|&at| at <= MAX_TEXT_BYTES).last() {
        Some(end) if text.len() > MAX_TEXT_BYTES => {
            text.get(..end).unwrap_or_default().to_owned() + "…"
        }
        _ => text.to_owned(),
    }
}
