//! Polls that kept a thread for too long.

use std::fmt;
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;

use crate::base::log::escaped;

/// What a worker of a runtime tells of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Beat {
    /// The runtime, by the order in which they were observed, and its worker.
    pub worker: (u64, u32),
    /// Whether it has nothing to do.
    pub parked: bool,
    /// What grows as it works: how often it has parked and unparked, and for how long it was busy, which
    /// the runtime tells every 61 polls.
    pub mark: (u64, u64),
    /// The thread that drives it, of a runtime of one thread.
    pub driver: Option<u32>,
}

/// Shorter waits for a core are not mentioned.
const LEAST_WAIT: Duration = Duration::from_millis(1);

/// A poll that lasted longer than it may.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Stall {
    /// The task that was polled: its name, or where it was spawned; empty when nobody recorded its polls.
    pub task: String,
    /// Its number, as traces show it; 0 when nobody recorded its polls.
    pub number: u64,
    /// The thread that polled it.
    pub tid: u32,
    /// The thread's name.
    pub thread: String,
    /// Of which runtime it is a worker, counted from 1 in the order in which they were instrumented; none
    /// when that is not known.
    pub runtime: Option<u64>,
    /// Which of its workers.
    pub worker: Option<u64>,
    /// When the poll began.
    pub started: Timestamp,
    /// How long it has lasted, without the time in `waited` and without what the process stood still.
    pub lasted: Duration,
    /// How long its thread waited for a core meanwhile, at most: no stall of the service, but the load of the machine.
    pub waited: Duration,
    /// Whether it goes on.
    pub running: bool,
    /// Whether its polls are not recorded: the worker stood still by the runtime's count, and two stacks of the
    /// thread showed the same poll. It has lasted for `lasted` at least, and began at `started` or before.
    pub suspected: bool,
    /// The function of the service that it was in, as far as symbols tell.
    pub function: Option<String>,
    /// The library function that this one had called, if it had called one.
    pub via: Option<String>,
    /// Why that is not known; empty when it is.
    pub remark: &'static str,
}

impl fmt::Display for Stall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { task, thread, tid, started, .. } = self;
        let task = escaped(task);
        let verb = if self.running { "has been" } else { "was" };
        let millis = self.lasted.as_millis();
        if self.suspected {
            write!(
                f,
                "a task that is not recorded {verb} polled for {millis} ms or more, since {started}"
            )?;
        } else {
            write!(
                f,
                "task `{task}` #{} {verb} polled for {millis} ms since {started}",
                self.number
            )?;
        }
        write!(f, " on thread {tid} `{}`", escaped(thread))?;
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
        if self.waited >= LEAST_WAIT {
            let waited = self.waited.as_millis();
            write!(f, "; besides, it waited {waited} ms for a core (CPU contention)")?;
        }
        if self.suspected { f.write_str(" (suspected, confirmed by two stacks)") } else { Ok(()) }
    }
}
