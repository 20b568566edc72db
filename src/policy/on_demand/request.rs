//! Requests for on-demand captures and their replies.

use std::time::Duration;

use tokio::sync::oneshot;

use crate::policy::on_demand::profile_kind::ProfileKind;

/// A finished on-demand capture.
#[derive(Debug, Default)]
pub(crate) struct ProfileResponse {
    pub(crate) bytes: Vec<u8>,
    /// Reason it is shorter than requested.
    pub(crate) cut_short: Option<String>,
}

/// The reason an on-demand capture failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProfileError {
    /// The engine is in use.
    #[error("{by}")]
    Busy {
        by: String,
        /// Estimated time until the engine is free, if known.
        retry_after: Option<Duration>,
    },
    /// The quota of the last 24 hours is used up.
    #[error("budget.on_demand_captures_per_day ({limit}) is exhausted until {until}")]
    QuotaExhausted { limit: u64, until: String, wait: Duration },
    /// Disabled by the settings or the build.
    #[error("{0}")]
    Unavailable(String),
    /// The capture failed.
    #[error("{0}")]
    Failed(String),
    #[error("the agent has stopped: its `Agent` was dropped or shut down")]
    Stopped,
}

/// A request, its client and the channel for the reply.
pub(crate) struct ProfileRequest {
    pub(crate) kind: ProfileKind,
    pub(crate) client: String,
    pub(crate) reply: oneshot::Sender<Result<ProfileResponse, ProfileError>>,
}
