//! The reply to a request for an on-demand capture.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::sync::{mpsc, oneshot};

use super::event::AgentEvent;
use crate::policy::on_demand::{ProfileError, ProfileResponse};

/// The future result of an on-demand capture. Dropping it cancels the capture: its recording is
/// stopped at once.
#[must_use = "dropping a pending profile cancels it"]
pub(crate) struct PendingProfile {
    receiver: oneshot::Receiver<Result<ProfileResponse, ProfileError>>,
    events: mpsc::Sender<AgentEvent>,
    is_complete: bool,
}

impl PendingProfile {
    pub(crate) fn new(
        receiver: oneshot::Receiver<Result<ProfileResponse, ProfileError>>,
        events: mpsc::Sender<AgentEvent>,
    ) -> Self {
        Self { receiver, events, is_complete: false }
    }
}

impl Future for PendingProfile {
    type Output = Result<ProfileResponse, ProfileError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let reply = Pin::new(&mut self.receiver).poll(context);
        self.is_complete = reply.is_ready();
        reply.map(|answer| answer.unwrap_or(Err(ProfileError::Stopped)))
    }
}

impl Drop for PendingProfile {
    fn drop(&mut self) {
        if !self.is_complete {
            self.receiver.close();
            // Only wakes the loop, which would detect the closed channel at its next tick anyway.
            let _ = self.events.try_send(AgentEvent::ClientDisconnected);
        }
    }
}
