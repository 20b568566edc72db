//! How things stand, as values that serialize.

use std::collections::BTreeMap;
use std::path::PathBuf;

use jiff::Timestamp;
use serde::Serialize;

use super::stream::StreamStatus;
use super::stream::allowance::Allowance;
use crate::base::{Anchor, Bytes, IncidentId, LogStatus, ThreadPanics, Warning};
use crate::config::BudgetSettings;
use crate::model::{CaptureKind, CaptureSet, Limits, Losses, Metric, Stall, VitalsRow};
use crate::rules::{Opening, State};
use crate::store::Holdings;
use crate::vitals::Distribution;

/// The toggle after a request.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Toggled {
    /// Whether it is on.
    pub on: bool,
    /// What captures run, or start as soon as their engine is free.
    pub running: CaptureSet,
    /// Since when it is on.
    pub since: Option<Timestamp>,
    /// When it goes off by itself.
    pub until: Option<Timestamp>,
    /// The incident it holds, or held until this request.
    pub incident: Option<IncidentId>,
    /// That incident's directory, once it is there.
    pub dir: Option<PathBuf>,
}

/// A capture that was asked for from code.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Captured {
    /// The incident it goes to: its own, or the one that is being captured already.
    pub incident: IncidentId,
    /// The incident's directory. Files appear in it as captures end.
    pub dir: PathBuf,
}

/// How the agent stands. Also the answer of `/status`.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    /// The version of marple.
    pub version: &'static str,
    /// The service.
    pub service: String,
    /// The part of the world it runs in.
    pub domain: String,
    /// Where incidents are written.
    pub dir: PathBuf,
    /// When the agent started.
    pub started: Timestamp,
    /// The settings file and how its last reading went.
    pub config: ConfigStatus,
    /// The toggle.
    pub toggle: Toggled,
    /// The open incidents, oldest first.
    pub incidents: Vec<IncidentStatus>,
    /// Captures that are handed to whoever asked over HTTP.
    pub streams: Vec<StreamStatus>,
    /// The last polls that lasted too long, oldest first; at most 16.
    pub stalls: Vec<Stall>,
    /// What rules and clients may still do.
    pub budget: BudgetStatus,
    /// The rules, in the order of the settings.
    pub rules: Vec<RuleStatus>,
    /// The limits in force.
    pub limits: Limits,
    /// The CPU engine, and why it is that one.
    pub cpu: String,
    /// The last vitals.
    pub vitals: VitalsRow,
    /// All that the service's own histograms have recorded.
    pub histograms: Vec<Distribution>,
    /// What the directory of incidents held, and had room for, when the last capture or incident ended.
    pub store: Holdings,
    /// What has been done since the start.
    pub counters: Counters,
    /// By what means each kind was captured last.
    pub engines: BTreeMap<CaptureKind, String>,
    /// Features that do not work in this process, or in a degraded way, and why.
    pub warnings: Vec<Warning>,
    /// Panics of marple's own threads, which go on after them.
    pub panics: Vec<ThreadPanics>,
    /// Log events on their way to the service's `tracing` subscriber.
    pub log: LogStatus,
    /// What went wrong since the start, by cause.
    pub failures: Losses,
    /// The last thing that went wrong.
    pub last_failure: Option<String>,
}

/// The settings file.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ConfigStatus {
    /// Where it is; none when the settings came from code.
    pub path: Option<PathBuf>,
    /// When the settings in force were read.
    pub applied: Option<Timestamp>,
    /// Why newer content is not in force.
    pub rejected: Option<String>,
    /// Settings that were changed in the file but take effect at the next start only.
    pub needs_restart: Vec<&'static str>,
}

/// An open incident.
#[derive(Clone, Debug, Serialize)]
pub struct IncidentStatus {
    /// Its id.
    pub id: IncidentId,
    /// What it is called after.
    pub name: String,
    /// When it opened.
    pub opened: Timestamp,
    /// Its directory, once it is there.
    pub dir: Option<PathBuf>,
    /// What is being captured.
    pub running: CaptureSet,
    /// The rules that have not cleared.
    pub held_by: Vec<String>,
}

/// What rules and clients have used up of what they may.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BudgetStatus {
    /// Incidents that rules opened in the last 24 hours, those of earlier processes included. More than
    /// `incidents_per_day` if some were worse than anything before, or critical.
    pub incidents_in_a_day: usize,
    /// How many there may be.
    pub incidents_per_day: usize,
    /// Whether a rule that fires would have an incident: `free`, or `gap` (min_between_incidents) or `spent`
    /// (incidents_per_day). Each rule by itself may be held back by more: see its `explanation`.
    pub opening: &'static str,
    /// When that ends.
    pub until: Option<Timestamp>,
    /// Captures handed over without an incident in the last 24 hours, likewise.
    pub streams_in_a_day: u64,
    /// How many there may be.
    pub streams_per_day: u64,
    /// When there may be another; none: at once.
    pub streams_until: Option<Timestamp>,
}

impl BudgetStatus {
    pub(super) fn new(
        anchor: Anchor,
        settings: &BudgetSettings,
        (opening, incidents): (Opening, usize),
        streams: &Allowance,
    ) -> Self {
        let (opening, until) = match opening {
            Opening::Free => ("free", None),
            Opening::Gap { until } => ("gap", Some(until)),
            Opening::Spent { until } => ("spent", Some(until)),
            Opening::Exhausted => ("exhausted", None),
        };
        let wall = |moment| anchor.wall_at(moment);
        Self {
            incidents_in_a_day: incidents,
            incidents_per_day: settings.incidents_per_day,
            opening,
            until: until.map(wall),
            streams_in_a_day: streams.spent(anchor.moment),
            streams_per_day: streams.limit(),
            streams_until: streams.spent_until(anchor.moment).map(wall),
        }
    }
}

/// A rule and what it last decided.
#[derive(Clone, Debug, Serialize)]
pub struct RuleStatus {
    /// Its name.
    pub name: String,
    /// What it watches.
    pub metric: Metric,
    /// The last value, in the metric's unit; infinite, in JSON `null`, when a limit is not in sight.
    pub value: Option<f64>,
    /// `capture` or `dry-run`.
    pub mode: &'static str,
    /// Whether its incident is open.
    pub active: bool,
    /// The decision in one word: `fire`, or what holds it back.
    pub decision: &'static str,
    /// The decision in a sentence, with the numbers it was made on.
    pub explanation: String,
    /// Since when it decides so.
    pub since: Option<Timestamp>,
    /// When what holds it back ends, if that is a matter of time.
    pub until: Option<Timestamp>,
    /// Incidents it had in the last 24 hours, opened or joined.
    pub incidents_in_a_day: usize,
    /// The last 16 decisions that were other than the one before, the newest first.
    pub decisions: Vec<PastDecision>,
}

impl RuleStatus {
    /// A rule at its last tick, in words and wall time.
    pub(super) fn new(state: &State<'_>, anchor: Anchor) -> Self {
        let decisions = state.past().map(|said| PastDecision {
            at: anchor.wall_at(said.at),
            value: said.value,
            decision: said.decision.name(),
            explanation: said.decision.explain(state.rule, said.at).to_string(),
        });
        Self {
            name: state.rule.name.clone(),
            metric: state.rule.metric.clone(),
            value: state.value,
            mode: state.rule.mode.name(),
            active: state.active,
            decision: state.decision.name(),
            explanation: state.explain().to_string(),
            since: state.since.map(|since| anchor.wall_at(since)),
            until: state.decision.until().map(|until| anchor.wall_at(until)),
            incidents_in_a_day: state.incidents,
            decisions: decisions.collect(),
        }
    }
}

/// A decision of a rule that was other than the one before it.
#[derive(Clone, Debug, Serialize)]
pub struct PastDecision {
    /// When.
    pub at: Timestamp,
    /// The value then, in the metric's unit.
    pub value: Option<f64>,
    /// The decision in one word.
    pub decision: &'static str,
    /// The decision in a sentence, as it was then.
    pub explanation: String,
}

/// What has been done since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counters {
    /// Times the vitals were read.
    pub ticks: u64,
    /// Times a rule fired.
    pub fired: u64,
    /// Times a rule with `mode = "dry-run"` would have fired.
    pub would_have_fired: u64,
    /// Polls that lasted longer than `trace.stall`, or than a rule over `runtime.stall` allows.
    pub stalls: u64,
    /// Incidents opened.
    pub incidents: u64,
    /// Incidents that are over and whose manifest says so.
    pub incidents_closed: u64,
    /// Captures that ended well.
    pub captures: u64,
    /// Captures that did not start or did not end well.
    pub captures_failed: u64,
    /// Files written.
    pub artifacts: u64,
    /// Their sizes together.
    pub artifact_bytes: Bytes,
    /// Captures that were handed over without a file.
    pub streams: u64,
    /// Their sizes together.
    pub stream_bytes: Bytes,
}
