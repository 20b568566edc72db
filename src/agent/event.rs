//! Everything that can happen to the agent. One queue holds it, one loop takes it out.

use std::time::Duration;

use tokio::sync::oneshot;

use super::capture::Report;
use super::capture::directory::Opened;
use super::status::{Captured, Status, Toggled};
use super::stream;
use crate::base::{Error, IncidentId};
use crate::config::Settings;
use crate::model::{CaptureSet, Origin};

/// How many events may wait. Each is some hundred bytes; the loop takes thousands a second, so a full
/// queue means that somebody asks in a loop, and he is refused.
pub(crate) const QUEUE: usize = 4096;

/// Where an answer goes.
pub(crate) type Reply<T> = oneshot::Sender<Result<T, Error>>;

/// What to do with the toggle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ToggleAction {
    /// On, if it is off.
    Start,
    /// Off, if it is on.
    Stop,
    /// The other way round.
    Flip,
}

/// Something that happened.
pub(crate) enum Event {
    /// Somebody wants the toggle changed.
    Toggle {
        action: ToggleAction,
        origin: Origin,
        /// What to capture; none: as the settings say.
        kinds: Option<CaptureSet>,
        /// None: nobody waits for the answer.
        reply: Option<Reply<Toggled>>,
    },
    /// Code wants a capture of its own.
    Capture { kinds: CaptureSet, duration: Duration, reply: Reply<Captured> },
    /// Somebody wants to know how things stand.
    Status { reply: Reply<Box<Status>> },
    /// The capture thread has finished a job.
    Done(Report),
    /// The capture thread has opened the incident directory.
    DirectoryOpened(Box<Opened>),
    /// A collector of the service's own has returned.
    Collected { id: IncidentId },
    /// Somebody wants a capture handed to him.
    Stream(stream::Ask),
    /// Somebody who wanted one has gone.
    StreamGone,
    /// The capture thread has finished a stream's job.
    Streamed(stream::Done),
    /// What a stream saw is encoded.
    Encoded(stream::Done),
    /// The capture thread could not save what must outlive the process.
    NotSaved(String),
    /// The settings file has other content; it was good, or it was not.
    Reloaded { settings: Result<Box<Settings>, Error> },
    /// The guard was dropped.
    Shutdown,
}
