//! The two threads of marple and the only wiring.
//!
//! ```text
//!   HTTP ─┐                    thread `marple`                        thread `marple-capture`
//!   signal ┤  Event   ┌──────────────────────────────┐  Task   ┌────────────────────────────────┐
//!   file ──┼────────► │ run: one loop, one Core      │ ──────► │ Worker: collectors, store      │
//!   code ──┘  queue   │ tick: vitals ─► rules        │ Report  │ start, stop, symbolize, encode │
//!   config ─────────► │ Incidents: what is to be done│ ◄────── │ write, retain                  │
//!                     └──────────────────────────────┘         └────────────────────────────────┘
//! ```
//!
//! Neither thread is the host's, so a stuck executor is still watched and captured. Each piece of state
//! has one owner: the loop owns what is measured, decided and promised, the worker owns collectors and
//! files. They exchange values, one task at a time; what is to be done next is computed when the worker
//! is free (`incidents`), so nothing queues up behind a slow disk. The CPU collector has a third thread,
//! which empties its rings while the worker encodes; it is the collector's and knows nothing of these. What is handed
//! over HTTP is encoded by one more, at low priority (`stream::encode`).
//!
//! Between ticks the loop also looks for polls that last too long (`collect::stalls`): one that does is a tick of
//! its own, so that a rule is not asked a quarter of a second late. Where polls are not recorded it looks at what
//! the workers count (`collect::suspects`).

mod announce;
mod budget;
mod builder;
mod capture;
mod collect;
mod collectors;
mod core;
mod decide;
mod deferred;
mod event;
mod fence;
mod guard;
mod handle;
#[cfg(feature = "heap")]
mod heap_writer;
mod history;
mod incidents;
#[cfg(feature = "heap")]
mod memory_summary;
mod pending;
mod reload;
mod replay;
mod run;
mod service;
mod side_thread;
mod stall_log;
mod standstill;
mod state;
mod status;
mod stream;
mod stuck;
mod threads;
mod ticker;

use std::time::Duration;

#[cfg(feature = "http")]
pub(crate) use crate::os::fork::NotInherited;
pub use announce::IncidentEvent;
pub use builder::Builder;
pub use collectors::{Collected, CollectorOptions, CollectorOutput};
pub use event::ToggleAction;
pub use guard::Agent;
pub use handle::{AgentHandle, Pending};
#[cfg(feature = "heap")]
pub use heap_writer::{HeapWriter, ProcessMemory};
pub use replay::{
    Outcome as ReplayOutcome, Pace, ProcessHistory, Taken as ReplayTaken, replay, replay_restarts,
};
#[cfg(feature = "http")]
pub(crate) use service::Service;
pub use status::{
    BudgetStatus, Captured, ConfigStatus, Counters, IncidentStatus, PastDecision, RuleStatus,
    Status, Toggled,
};
pub use stream::StreamStatus;
#[cfg(feature = "http")]
pub(crate) use stream::{Form, HeapView, StreamError, Take, ThreadView};

/// What the agent cannot do.
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
