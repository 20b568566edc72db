//! The agent: its threads, the loop that reads every event, and the public handle.
//!
//! ```text
//!   HTTP ──┐                     thread `marple`                         thread `marple-capture`
//!   signal ┤ AgentEvent ┌────────────────────────────┐ CaptureCommand ┌─────────────────────────┐
//!   file ──┼──────────► │ run: one loop, AgentState  │ ─────────────► │ capture: collectors,    │
//!   code ──┘   queue    │ tick: vitals ─► policy     │                │ store; start, stop,     │
//!   settings ─────────► │ dispatch: next command     │ ◄───────────── │ symbolize, encode,      │
//!                       └────────────────────────────┘  CaptureResult │ write, limits           │
//!                                                                     └─────────────────────────┘
//! ```
//!
//! Neither thread belongs to the host, so a stuck executor is still observed and captured. Each
//! piece of state has one owner: the loop owns measurements, decisions and pending requests; the
//! capture thread owns collectors and files. They exchange values, one command at a time. The next
//! command is computed by `policy` when the capture thread is free, so nothing queues up behind a
//! slow disk.
//!
//! The CPU collector has a separate thread, which empties its rings while the capture thread
//! encodes. On-demand captures are encoded by one more thread at low priority.
//!
//! Between ticks the loop also checks for stalls (`stalls`). A stall triggers an additional tick,
//! so that rules are not evaluated a quarter of a second late.

mod builder;
mod deferred;
mod event;
mod handle;
mod history;
mod pending;
mod pending_profile;
mod reload;
mod run;
mod service;
mod singleton;
pub(crate) mod state;
mod status;
mod threads;
mod ticker;

use std::time::Duration;

use crate::base::{self, ErrorKind};

pub use crate::capture::callbacks::IncidentEvent;
pub use crate::capture::custom_collectors::{CollectorOptions, CollectorOutput, CollectorResult};
#[cfg(feature = "heap")]
pub use crate::capture::heap_writer::{HeapWriter, ProcessMemory};
#[cfg(feature = "http")]
pub(crate) use crate::os::fork::NotInherited;
pub use crate::policy::on_demand::OnDemandStatus;
#[cfg(feature = "http")]
pub(crate) use crate::policy::on_demand::{
    HeapView, ProfileError, ProfileForm, ProfileKind, ThreadView,
};
pub use crate::policy::replay::{
    ProcessHistory, ReplayResult as ReplayOutcome, ReplayTiming, ReplayedCapture, replay,
    replay_restarts,
};
pub use builder::Builder;
pub use event::ToggleAction;
pub use handle::{AgentHandle, Response};
#[cfg(feature = "http")]
pub(crate) use service::Service;
pub use singleton::Agent;
pub use status::{
    AgentCounters, BudgetStatus, CaptureStarted, ConfigStatus, IncidentStatus, PastDecision,
    RuleStatus, Status, ToggleStatus,
};

#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(
        "an agent is already running in this process: keep that `Agent` and share its `handle()`; \
         the engines (signals, counters, the allocator) exist once per process"
    )]
    AlreadyRunning,
    #[error(
        "no agent runs in this process, a fork of the one that started it: threads do not survive \
         a fork; use the agent of process {opener}"
    )]
    Forked { opener: u32 },
    #[error("the agent has stopped: its `Agent` was dropped or shut down")]
    Stopped,
    #[error(
        "the agent's request queue is full, probably because requests are sent in a loop; \
         retry later"
    )]
    QueueFull,
    #[error(
        "the agent has stopped, or this request failed; see `panics` and `failures` in its status"
    )]
    ReplyDropped,
    #[error("the agent did not reply within {0:?}")]
    ReplyTimeout(Duration),
    #[error("the capture thread has ended; restart the service to capture again")]
    CaptureThreadEnded,
    #[error("no incident directory: {0}")]
    NoDirectory(String),
    #[error(
        "invalid capture: no kind, or a duration of {duration:?}; request at least one kind and a \
         duration above zero and of at most {max_duration:?} (toggle.max_duration)"
    )]
    InvalidCapture { duration: Duration, max_duration: Duration },
    #[error(
        "the shutdown did not complete within {0:?}: a capture is still being written, and its thread \
         continues"
    )]
    ShutdownTimeout(Duration),
    #[error("cannot start the thread `{name}`: {error}")]
    ThreadNotStarted { name: &'static str, error: std::io::Error },
}

impl Error {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::AlreadyRunning => ErrorKind::AlreadyRunning,
            Self::Forked { .. } | Self::Stopped | Self::ReplyDropped => ErrorKind::Stopped,
            Self::QueueFull => ErrorKind::Busy,
            Self::ReplyTimeout(_) | Self::ShutdownTimeout(_) => ErrorKind::Timeout,
            Self::InvalidCapture { .. } => ErrorKind::InvalidInput,
            Self::CaptureThreadEnded | Self::NoDirectory(_) | Self::ThreadNotStarted { .. } => {
                ErrorKind::Unavailable
            }
        }
    }
}

impl From<Error> for base::Error {
    fn from(error: Error) -> Self {
        Self::with_kind(error.kind(), error)
    }
}
