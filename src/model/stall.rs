//! Polls that kept a thread for too long.

use std::fmt;
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;

/// A poll that lasted longer than it may.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Stall {
    /// The task that was polled: its name, or where it was spawned.
    pub task: String,
    /// Its number, as traces show it.
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
    /// How long it has lasted.
    pub lasted: Duration,
    /// Whether it goes on.
    pub running: bool,
    /// The function of the service that it was in, as far as symbols tell.
    pub function: Option<String>,
    /// Why that is not known; empty when it is.
    pub remark: &'static str,
}

impl fmt::Display for Stall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { task, thread, tid, started, .. } = self;
        let verb = if self.running { "has been" } else { "was" };
        let millis = self.lasted.as_millis();
        write!(f, "task `{task}` #{} {verb} polled for {millis} ms since {started}", self.number)?;
        write!(f, " on thread {tid} `{thread}`")?;
        if let Some(worker) = self.worker {
            write!(f, ", worker {worker}")?;
        }
        if let Some(runtime) = self.runtime {
            write!(f, " of runtime {runtime}")?;
        }
        match &self.function {
            Some(function) => write!(f, ", in {function}"),
            None if self.remark.is_empty() => Ok(()),
            None => write!(f, " ({})", self.remark),
        }
    }
}
