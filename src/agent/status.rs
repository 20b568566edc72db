//! The status of the agent, as serializable values.

use std::collections::BTreeMap;
use std::path::PathBuf;

use jiff::Timestamp;
use serde::Serialize;

use crate::base::{Bytes, IncidentId, LogStatus, ThreadPanics, TimeAnchor, Warning};
use crate::config::BudgetSettings;
use crate::metrics::Distribution;
use crate::model::{CaptureKind, CaptureSet, Finding, Limits, Losses, Metric, Stall, VitalsRow};
use crate::policy::daily_quota::DailyQuota;
use crate::policy::on_demand::OnDemandStatus;
use crate::rules::{Admission, State};
use crate::store::StoreUsage;

/// State of the toggle after a request.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[cfg_attr(not(feature = "internals"), non_exhaustive)]
pub struct ToggleStatus {
    /// True if the toggle is on.
    pub on: bool,
    /// Captures that are running or start as soon as their engine is free.
    pub running: CaptureSet,
    /// Time at which it was turned on.
    pub since: Option<Timestamp>,
    /// Time at which it turns off automatically.
    pub until: Option<Timestamp>,
    /// Incident that the toggle keeps open, or kept open until this request.
    pub incident: Option<IncidentId>,
    /// Directory of that incident, once created.
    pub dir: Option<PathBuf>,
}

/// A capture requested from code.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[cfg_attr(not(feature = "internals"), non_exhaustive)]
pub struct CaptureStarted {
    /// Incident of the capture: a new one, or one that was already being captured.
    pub incident: IncidentId,
    /// Incident directory. Artifacts appear in it as captures end.
    pub dir: PathBuf,
}

/// Status of the agent, also returned by `/status`.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(not(feature = "internals"), non_exhaustive)]
pub struct Status {
    /// Version of marple.
    pub version: &'static str,
    /// Name of the service.
    pub service: String,
    /// Deployment location (region, cluster or pod).
    pub instance: String,
    /// Directory in which incidents are stored.
    pub dir: PathBuf,
    /// Start time of the agent.
    pub started: Timestamp,
    /// Settings file and the result of reading it last.
    pub config: ConfigStatus,
    /// Toggle.
    pub toggle: ToggleStatus,
    /// Open incidents, oldest first.
    pub incidents: Vec<IncidentStatus>,
    /// On-demand captures in progress.
    pub on_demand_captures: Vec<OnDemandStatus>,
    /// Most recent stalls, oldest first; at most 16.
    pub stalls: Vec<Stall>,
    /// Budget usage.
    pub budget: BudgetStatus,
    /// Rules, in the order of the settings.
    pub rules: Vec<RuleStatus>,
    /// Resource limits in effect.
    pub limits: Limits,
    /// CPU engine and the reason for its selection.
    pub cpu: String,
    /// Vitals of the last tick.
    pub vitals: VitalsRow,
    /// Complete distributions of the custom histograms.
    pub histograms: Vec<Distribution>,
    /// Disk usage and limits of the incident directory after the last operation of the capture
    /// thread.
    pub store: StoreUsage,
    /// Event counts since the start.
    pub counters: AgentCounters,
    /// Engine last used by each kind of capture.
    pub engines: BTreeMap<CaptureKind, String>,
    /// Features that are unavailable or degraded in this process, with the reason.
    pub warnings: Vec<Warning>,
    /// Panics of marple's threads, which continue after a panic.
    pub panics: Vec<ThreadPanics>,
    /// Log events waiting for the service's `tracing` subscriber.
    pub log: LogStatus,
    /// Failures since the start, by cause.
    pub failures: Losses,
    /// Last failure.
    pub last_failure: Option<String>,
}

/// State of the settings file.
#[derive(Clone, Debug, Default, Serialize)]
#[cfg_attr(not(feature = "internals"), non_exhaustive)]
pub struct ConfigStatus {
    /// Path, or `None` if the settings come from code.
    pub path: Option<PathBuf>,
    /// Time at which the settings in effect were read.
    pub applied: Option<Timestamp>,
    /// Error in newer contents that were rejected.
    pub rejected: Option<String>,
    /// Changed settings that need a restart.
    pub needs_restart: Vec<&'static str>,
}

/// An open incident.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(not(feature = "internals"), non_exhaustive)]
pub struct IncidentStatus {
    /// ID.
    pub id: IncidentId,
    /// Name: its rule, or the origin of a manual request.
    pub name: String,
    /// Time of opening.
    pub opened: Timestamp,
    /// Incident directory, once created.
    pub dir: Option<PathBuf>,
    /// Running captures.
    pub running: CaptureSet,
    /// First finding of the captures so far: the best explanation.
    pub first_finding: Option<Finding>,
    /// Rules that fired and have not cleared.
    pub active_rules: Vec<String>,
}

/// Budget usage of rules and clients.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(not(feature = "internals"), non_exhaustive)]
pub struct BudgetStatus {
    /// Incidents opened by rules in the last 24 hours, including those of earlier processes.
    /// Exceeds `incidents_per_day` if some were critical or worse than any before.
    pub incidents_in_a_day: usize,
    /// Maximum number of incidents in 24 hours.
    pub incidents_per_day: usize,
    /// Admission of a new incident: `allowed`, `too_soon` (min_between_incidents) or
    /// `daily_budget_spent` (incidents_per_day). Individual rules may be subject to further limits:
    /// see their `explanation`.
    pub admission: &'static str,
    /// Time at which a new incident is admitted, or `None` if one is admitted now.
    pub until: Option<Timestamp>,
    /// On-demand captures in the last 24 hours, including those of earlier processes.
    pub on_demand_captures_24h: u64,
    /// Maximum number of on-demand captures in 24 hours.
    pub on_demand_captures_per_day: u64,
    /// Time at which quota is available again, or `None` if it is not exhausted.
    pub on_demand_captures_until: Option<Timestamp>,
}

impl BudgetStatus {
    pub(super) fn new(
        anchor: TimeAnchor,
        settings: &BudgetSettings,
        admission: Admission,
        incidents_in_a_day: usize,
        quota: &DailyQuota,
    ) -> Self {
        let (admission, until) = match admission {
            Admission::Allowed => ("allowed", None),
            Admission::TooSoon { until } => ("too_soon", Some(until)),
            Admission::DailyBudgetSpent { until } => ("daily_budget_spent", Some(until)),
            Admission::CaptureLimitReached => ("capture_limit", None),
        };
        let wall = |moment| anchor.wall_at(moment);
        Self {
            incidents_in_a_day,
            incidents_per_day: settings.incidents_per_day,
            admission,
            until: until.map(wall),
            on_demand_captures_24h: quota.used_count(anchor.moment),
            on_demand_captures_per_day: quota.limit(),
            on_demand_captures_until: quota.exhausted_until(anchor.moment).map(wall),
        }
    }
}

/// A rule and its last decision.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(not(feature = "internals"), non_exhaustive)]
pub struct RuleStatus {
    /// Name.
    pub name: String,
    /// Metric.
    pub metric: Metric,
    /// Last value, in the metric's unit; infinite, in JSON `null`, if no limit will be reached.
    pub value: Option<f64>,
    /// `capture` or `dry-run`.
    pub mode: &'static str,
    /// True while its incident is open.
    pub active: bool,
    /// Decision as one word: `fire`, or the reason it does not fire.
    pub decision: &'static str,
    /// Decision as a sentence, with the values it is based on.
    pub explanation: String,
    /// Time since which the decision is the same.
    pub since: Option<Timestamp>,
    /// Time at which the reason for not firing ends, if known.
    pub until: Option<Timestamp>,
    /// Incidents the rule opened or joined in the last 24 hours.
    pub incidents_in_a_day: usize,
    /// Last 16 changes of the decision, newest first.
    pub decisions: Vec<PastDecision>,
}

impl RuleStatus {
    /// Converts the state of a rule at its last tick to text and wall times.
    pub(super) fn new(state: &State<'_>, anchor: TimeAnchor) -> Self {
        let decisions = state.recent_decisions().map(|change| PastDecision {
            at: anchor.wall_at(change.at),
            value: change.value,
            decision: change.decision.name(),
            explanation: change.decision.explain(state.rule, change.at).to_string(),
        });
        Self {
            name: state.rule.name.clone(),
            metric: state.rule.metric.clone(),
            value: state.value,
            mode: state.rule.mode.name(),
            active: state.active,
            decision: state.decision.name(),
            explanation: state.explain().to_string(),
            since: state.changed_at.map(|since| anchor.wall_at(since)),
            until: state.decision.hold_ends_at().map(|until| anchor.wall_at(until)),
            incidents_in_a_day: state.incidents,
            decisions: decisions.collect(),
        }
    }
}

/// A decision of a rule that differed from the previous one.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(not(feature = "internals"), non_exhaustive)]
pub struct PastDecision {
    /// Time of the decision.
    pub at: Timestamp,
    /// Value at that time, in the metric's unit.
    pub value: Option<f64>,
    /// Decision as one word.
    pub decision: &'static str,
    /// Decision as a sentence, with the values at that time.
    pub explanation: String,
}

/// Event counts since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[cfg_attr(not(feature = "internals"), non_exhaustive)]
pub struct AgentCounters {
    /// Readings of the vitals.
    pub ticks: u64,
    /// Firings of rules.
    pub fired: u64,
    /// Firings of rules with `mode = "dry-run"`, which capture nothing.
    pub dry_run_fires: u64,
    /// Polls longer than `trace.stall_threshold` or the threshold of a rule over `runtime.stall`.
    pub stalls: u64,
    /// Incidents opened.
    pub incidents: u64,
    /// Incidents closed, with the manifest written.
    pub incidents_closed: u64,
    /// Captures that succeeded.
    pub captures: u64,
    /// Captures that failed to start or to complete.
    pub captures_failed: u64,
    /// Artifacts written.
    pub artifacts: u64,
    /// Total size of the artifacts.
    pub artifact_bytes: Bytes,
    /// On-demand captures returned to clients.
    pub on_demand_captures: u64,
    /// Total size of the on-demand captures.
    pub on_demand_bytes: Bytes,
}
