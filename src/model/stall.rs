//! Stalls: polls that lasted longer than the threshold.

use std::fmt;
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;

use crate::base::log::escape;

/// The progress counters of a runtime worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WorkerProgress {
    /// Runtime number, in the order of observation, and worker index.
    pub worker: (u64, u32),
    /// `true` if the worker is parked.
    pub is_parked: bool,
    /// Counters that grow as the worker makes progress: parks plus unparks, and busy time. tokio
    /// updates the busy time every 61 polls.
    pub counters: (u64, u64),
    /// Thread that drives the worker. Set only for a single-threaded runtime.
    pub driver_tid: Option<u32>,
}

/// Minimum wait for a core that is mentioned.
const MIN_REPORTED_WAIT: Duration = Duration::from_millis(1);

/// A poll that lasted longer than the threshold.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[cfg_attr(not(feature = "internals"), non_exhaustive)]
pub struct Stall {
    /// Name or spawn location of the polled task. Empty for an unrecorded stall.
    pub task: String,
    /// Task number, as shown in traces. 0 for an unrecorded stall.
    pub number: u64,
    /// Kernel id of the polling thread.
    pub tid: u32,
    /// Name of the thread.
    pub thread: String,
    /// Runtime of the worker, counted from 1 in the order of instrumentation. `None` if unknown.
    pub runtime: Option<u64>,
    /// Index of the worker in its runtime.
    pub worker: Option<u64>,
    /// Wall-clock time at which the poll started.
    pub started: Timestamp,
    /// Duration so far, excluding `waited` and time in which the whole process stood still.
    pub lasted: Duration,
    /// Upper bound of the time the thread waited for a core during the poll. This is machine load,
    /// not a stall of the service.
    pub waited: Duration,
    /// `true` if the poll is still in progress.
    pub running: bool,
    /// `true` for an unrecorded stall: the runtime's counters showed no progress of the worker, and
    /// two stacks of the thread showed the same poll. `lasted` is then a lower bound, and the poll
    /// started at `started` or earlier.
    pub suspected: bool,
    /// Function of the service in which the poll was, if symbols resolve it.
    pub function: Option<String>,
    /// Library function called by `function`, if any.
    pub via: Option<String>,
    /// Reason why `function` is unknown. Empty if it is known.
    pub remark: &'static str,
}

impl fmt::Display for Stall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { task, thread, tid, started, .. } = self;
        let task = escape(task);
        let verb = if self.running { "has been" } else { "was" };
        let millis = self.lasted.as_millis();
        if self.suspected {
            write!(
                f,
                "an unrecorded task {verb} polled for at least {millis} ms, since {started} or \
                 earlier,"
            )?;
        } else {
            write!(
                f,
                "task `{task}` #{} {verb} polled for {millis} ms since {started}",
                self.number
            )?;
        }
        write!(f, " on thread {tid} `{}`", escape(thread))?;
        if let Some(worker) = self.worker {
            write!(f, ", worker {worker}")?;
        }
        if let Some(runtime) = self.runtime {
            write!(f, " of runtime {runtime}")?;
        }
        match &self.function {
            Some(function) => {
                write!(f, ", in {function}")?;
                if let Some(via) = &self.via {
                    write!(f, " (via {via})")?;
                }
            }
            None if self.remark.is_empty() => {}
            None => write!(f, " ({})", self.remark)?,
        }
        if self.waited >= MIN_REPORTED_WAIT {
            let waited = self.waited.as_millis();
            write!(f, "; it also waited up to {waited} ms for a core (CPU contention)")?;
        }
        if self.suspected { f.write_str(" (suspected, confirmed by two stacks)") } else { Ok(()) }
    }
}
