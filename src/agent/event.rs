//! Events of the agent: one queue, read by one loop.

use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use super::status::{CaptureStarted, Status, ToggleStatus};
use crate::base::Error;
use crate::capture::messages::{CaptureResult, ResultSender};
use crate::config::Settings;
use crate::model::{CaptureSet, Origin};
use crate::policy::on_demand;

/// Capacity of the event queue. An event takes some hundred bytes, and the loop handles thousands a
/// second. A full queue means a caller is polling in a loop; its request is rejected.
pub(crate) const EVENT_QUEUE_CAPACITY: usize = 4096;

/// Channel for the reply to a request.
pub(crate) type Reply<T> = oneshot::Sender<Result<T, Error>>;

/// A change of the capture toggle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ToggleAction {
    /// Turns the toggle on if it is off.
    Start,
    /// Turns the toggle off if it is on.
    Stop,
    /// Inverts the toggle.
    Flip,
}

/// An event handled by the agent loop.
pub(crate) enum AgentEvent {
    /// A request to change the toggle.
    Toggle {
        action: ToggleAction,
        origin: Origin,
        /// Captures to start, or `None` to use those of the settings.
        kinds: Option<CaptureSet>,
        /// Channel for the reply, or `None` if the caller does not wait for one.
        reply: Option<Reply<ToggleStatus>>,
    },
    /// A request from code for captures of a given duration.
    Capture { kinds: CaptureSet, duration: Duration, reply: Reply<CaptureStarted> },
    /// A request for the status.
    Status { reply: Reply<Box<Status>> },
    /// A result of the capture thread.
    Result(CaptureResult),
    /// A request for an on-demand capture.
    OnDemandRequested(on_demand::ProfileRequest),
    /// A client of an on-demand capture disconnected.
    ClientDisconnected,
    /// The settings file changed; holds the parsed settings or the error.
    SettingsChanged { settings: Result<Box<Settings>, Error> },
    /// The guard was dropped.
    Shutdown,
}

/// Returns a sender that puts the results of the capture thread into the queue of the loop.
pub(super) fn results(events: mpsc::Sender<AgentEvent>) -> ResultSender {
    ResultSender::new(move |result| events.blocking_send(AgentEvent::Result(result)).is_ok())
}
