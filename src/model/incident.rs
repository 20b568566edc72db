//! Why there is an incident, and where it stands.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::metric::Metric;

/// Where an incident stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum IncidentState {
    /// It goes on, or the process died without a chance to say otherwise.
    Open,
    /// It ended.
    Closed,
    /// The process that opened it is gone; found so at the next start.
    Interrupted,
}

/// Who asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// A rule fired.
    Rule,
    /// The HTTP endpoint.
    Http,
    /// The signal.
    Signal,
    /// The trigger file.
    TriggerFile,
    /// A call from the service's own code.
    Code,
}

impl Origin {
    /// Who it is, in words.
    pub const fn words(self) -> &'static str {
        match self {
            Self::Rule => "a rule",
            Self::Http => "an HTTP request",
            Self::Signal => "a signal",
            Self::TriggerFile => "the trigger file",
            Self::Code => "the service's own code",
        }
    }
}

/// Why a capture was made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reason {
    /// Who asked.
    pub origin: Origin,
    /// When.
    pub at: Timestamp,
    /// The rule, if one fired.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// What it watches.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metric: Option<Metric>,
    /// The value it fired on, in the metric's unit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<f64>,
    /// The threshold that value crossed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub threshold: Option<f64>,
    /// All of it in a sentence.
    pub text: String,
}
