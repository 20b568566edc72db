//! State and reasons of an incident.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::metric::Metric;

/// The state of an incident.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(not(feature = "internals"), non_exhaustive)]
pub enum IncidentState {
    /// In progress, or the process died without closing it.
    Open,
    /// Ended.
    Closed,
    /// Left open by a process that is gone; detected at the next start.
    Interrupted,
}

/// The source of a capture request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(not(feature = "internals"), non_exhaustive)]
pub enum Origin {
    /// A rule that fired.
    Rule,
    /// The HTTP endpoint.
    Http,
    /// The toggle signal.
    Signal,
    /// The trigger file.
    TriggerFile,
    /// A call from the service's code.
    Code,
}

impl Origin {
    /// Returns a description for reasons and messages.
    pub const fn description(self) -> &'static str {
        match self {
            Self::Rule => "a rule",
            Self::Http => "an HTTP request",
            Self::Signal => "a signal",
            Self::TriggerFile => "the trigger file",
            Self::Code => "the service's code",
        }
    }
}

/// The reason for a capture.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(not(feature = "internals"), non_exhaustive)]
pub struct Reason {
    /// Source of the request.
    pub origin: Origin,
    /// Wall-clock time of the request.
    pub at: Timestamp,
    /// The rule, if one fired.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// The metric of that rule.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metric: Option<Metric>,
    /// The value on which it fired, in the metric's unit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<f64>,
    /// The threshold crossed by that value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub threshold: Option<f64>,
    /// The whole reason in one sentence.
    pub text: String,
}
