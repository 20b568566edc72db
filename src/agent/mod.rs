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
//! The CPU collector has a thread of its own, which empties its rings while the capture thread
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
    ProcessHistory, ReplayResult as ReplayOutcome, ReplayTiming, ReplayedCapture as ReplayTaken,
    replay, replay_restarts,
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

/// An error of the agent.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(
        "an agent is running in this process already: keep the one `Agent` and share its `handle()`; \
         the engines (signals, counters, the allocator) are one of a kind"
    )]
    AlreadyRunning,
    #[error(
        "this process is a fork of the one in which the agent runs, and has none: an agent's threads do \
         not come along; ask the agent of process {opener}"
    )]
    Forked { opener: u32 },
    #[error("the agent has stopped: its `Agent` was dropped or shut down")]
    Stopped,
    #[error("the agent's queue is full: somebody asks it in a loop; ask again later")]
    QueueFull,
    #[error(
        "the agent has stopped, or it failed on this request; `panics` and `failures` in its status say more"
    )]
    ReplyDropped,
    #[error("the agent did not answer within {0:?}")]
    ReplyTimeout(Duration),
    #[error("the thread that captures has ended; restart the service to have captures again")]
    CaptureThreadEnded,
    #[error("no incident directory: {0}")]
    NoDirectory(String),
    #[error(
        "a capture of no kind, or for {duration:?}: ask for at least one kind and for more than zero and \
         at most {most:?} (toggle.max_duration)"
    )]
    InvalidCapture { duration: Duration, most: Duration },
    #[error("cannot start the thread `{name}`: {error}")]
    ThreadNotStarted { name: &'static str, error: std::io::Error },
}
