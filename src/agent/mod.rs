//! The two threads of marple and the wiring between its modules.
//!
//! ```text
//!   HTTP ─┐                    thread `marple`                        thread `marple-capture`
//!   signal ┤  Event   ┌──────────────────────────────┐  Task   ┌────────────────────────────────┐
//!   file ──┼────────► │ run: one loop, one Core      │ ──────► │ Worker: collectors, store      │
//!   code ──┘  queue   │ tick: vitals ─► rules        │ Report  │ start, stop, symbolize, encode │
//!   config ─────────► │ Incidents: next command      │ ◄────── │ write, retain                  │
//!                     └──────────────────────────────┘         └────────────────────────────────┘
//! ```
//!
//! Neither thread belongs to the host, so a stuck executor is still observed and captured. Each
//! piece of state has one owner: the loop owns measurements, decisions and pending requests; the
//! worker owns collectors and files. They exchange values, one command at a time. The next command
//! is computed when the worker is free (`incidents`), so nothing queues up behind a slow disk.
//!
//! The CPU collector has a third thread, which empties its rings while the worker encodes. It
//! belongs to the collector and has no access to the agent's state. On-demand captures are encoded
//! by one more thread at low priority (`stream::encode`).
//!
//! Between ticks the loop also checks for stalls (`collect::stalls`). A stall triggers an
//! additional tick, so that rules are not evaluated a quarter of a second late. Where polls are not
//! recorded, stalls are inferred from the workers' counters (`collect::suspects`).

mod builder;
mod callbacks;
mod capture;
mod collect;
mod core;
mod custom_collectors;
mod deferred;
mod event;
mod fence;
mod handle;
#[cfg(feature = "heap")]
mod heap_writer;
mod history;
#[cfg(feature = "heap")]
mod memory_summary;
mod on_demand;
mod pending;
mod recent_stalls;
mod reload;
mod run;
mod service;
mod side_thread;
mod singleton;
mod stall_log;
mod standstill;
mod status;
mod threads;
mod ticker;

use std::time::Duration;

#[cfg(feature = "http")]
pub(crate) use crate::os::fork::NotInherited;
pub use crate::policy::replay::{
    Outcome as ReplayOutcome, ProcessHistory, ReplayTiming, ReplayedCapture as ReplayTaken, replay,
    replay_restarts,
};
pub use builder::Builder;
pub use callbacks::IncidentEvent;
pub use custom_collectors::{Collected, CollectorOptions, CollectorOutput};
pub use event::ToggleAction;
pub use handle::{AgentHandle, Pending};
#[cfg(feature = "heap")]
pub use heap_writer::{HeapWriter, ProcessMemory};
pub use on_demand::StreamStatus;
#[cfg(feature = "http")]
pub(crate) use on_demand::{HeapView, ProfileError, ProfileForm, ProfileKind, ThreadView};
#[cfg(feature = "http")]
pub(crate) use service::Service;
pub use singleton::Agent;
pub use status::{
    AgentCounters, BudgetStatus, Captured, ConfigStatus, IncidentStatus, PastDecision, RuleStatus,
    Status, Toggled,
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
    #[error(
        "no collector `{name}`: there is one of this name already, or there are {most}; register each once, \
         where the agent is started"
    )]
    Collector { name: crate::model::FileName, most: usize },
    #[error("the agent has stopped: its `Agent` was dropped or shut down")]
    Stopped,
    #[error("the agent's queue is full: somebody asks it in a loop; ask again later")]
    Crowded,
    #[error(
        "the agent has stopped, or it failed on this request; `panics` and `failures` in its status say more"
    )]
    Unanswered,
    #[error("the agent did not answer within {0:?}")]
    NoAnswer(Duration),
    #[error("the thread that captures has ended; restart the service to have captures again")]
    CaptureThreadGone,
    #[error("no incident directory: {0}")]
    NoDirectory(String),
    #[error(
        "a capture of no kind, or for {duration:?}: ask for at least one kind and for more than zero and \
         at most {most:?} (toggle.max_duration)"
    )]
    BadCapture { duration: Duration, most: Duration },
    #[error("cannot start the thread `{name}`: {error}")]
    Thread { name: &'static str, error: std::io::Error },
}
