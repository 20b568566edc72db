//! Requests for on-demand captures and their replies.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use crate::agent::event::AgentEvent;
use crate::agent::on_demand::profile_kind::ProfileKind;

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
        wait: Option<Duration>,
    },
    /// The quota of the last 24 hours is used up.
    #[error("budget.streams_per_day ({limit}) is spent until {until}")]
    Spent { limit: u64, until: String, wait: Duration },
    /// Disabled by the settings or the build.
    #[error("{0}")]
    Absent(String),
    /// The capture failed.
    #[error("{0}")]
    Failed(String),
}

/// A request, its client and the channel for the reply.
pub(crate) struct ProfileRequest {
    pub(crate) take: ProfileKind,
    pub(crate) who: String,
    pub(crate) reply: oneshot::Sender<Result<ProfileResponse, ProfileError>>,
}

/// The future result of an on-demand capture. Dropping it cancels the capture: its recording is
/// stopped at once.
#[must_use = "a stream that is dropped is given up"]
pub(crate) struct PendingProfile {
    answer: oneshot::Receiver<Result<ProfileResponse, ProfileError>>,
    events: mpsc::Sender<AgentEvent>,
    answered: bool,
}

impl PendingProfile {
    pub(in crate::agent) fn new(
        answer: oneshot::Receiver<Result<ProfileResponse, ProfileError>>,
        events: mpsc::Sender<AgentEvent>,
    ) -> Self {
        Self { answer, events, answered: false }
    }
}

impl Future for PendingProfile {
    type Output = Result<ProfileResponse, ProfileError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let answer = Pin::new(&mut self.answer).poll(context);
        self.answered = answer.is_ready();
        let stopped = || ProfileError::Failed(crate::agent::Error::Stopped.to_string());
        answer.map(|answer| answer.unwrap_or_else(|_| Err(stopped())))
    }
}

impl Drop for PendingProfile {
    fn drop(&mut self) {
        if !self.answered {
            self.answer.close();
            // Only wakes the loop, which would detect the closed channel at its next tick anyway.
            let _ = self.events.try_send(AgentEvent::StreamGone);
        }
    }
}
