//! Snapshots of threads and of tokio tasks.
//!
//! Both dumps carry a [`Profile`], which owns the tables of their stacks. `symbols` resolves its
//! names like those of any other profile, and the pprof artifact is written from it. The rows hold
//! everything else.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;

use super::losses::Losses;
use super::profile::Profile;
use super::stacks::StackHandle;

/// A snapshot of all threads of the process.
#[derive(Clone, Debug)]
pub struct ThreadDump {
    /// The stacks, one sample per thread.
    pub profile: Profile,
    /// The threads, ordered by thread id.
    pub threads: Vec<ThreadRow>,
}

/// A thread in a [`ThreadDump`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ThreadRow {
    /// Kernel thread id.
    pub tid: u32,
    /// Thread name.
    pub name: String,
    /// Kernel state: `R` running, `S` sleeping, `D` uninterruptible sleep.
    pub state: char,
    /// Kernel function in which the thread waits. Empty if it does not wait or the kernel hides it.
    pub wait_channel: String,
    /// CPU time since the thread started.
    pub cpu_time: Duration,
    /// The stack, or `None` if it was not read.
    pub stack: Option<StackHandle>,
    /// Reason why the stack is missing or incomplete. Empty if it is complete.
    pub remark: &'static str,
}

/// A snapshot of all known tasks, or of a sample if there are very many.
#[derive(Clone, Debug)]
pub struct TaskDump {
    /// The stacks, one sample for each distinct stack, state, spawn site and age.
    pub profile: Profile,
    /// The tasks, in the order of creation. Each represents [`TaskRow::weight`] tasks of its spawn
    /// site.
    pub tasks: Vec<TaskRow>,
    /// The exact number of tasks per spawn site, the largest first.
    pub sites: Vec<SiteCount>,
    /// Number of runtime tasks among them. It can be smaller than the total, because one task can
    /// contain several wrapped futures.
    pub runtime_tasks: u64,
    /// Tasks alive on the observed runtimes that were not spawned through marple, or `None` if
    /// unknown.
    pub unwrapped_tasks: Option<u64>,
    /// Time taken to collect the dumps of all tasks.
    pub duration: Duration,
    /// Stacks of the threads that are running tasks, by thread id.
    pub threads: BTreeMap<u32, StackHandle>,
}

impl TaskDump {
    /// Returns the wall-clock time of the dump.
    pub fn taken_at(&self) -> Timestamp {
        self.profile.started
    }

    /// Returns the data missing from the dump, by cause.
    pub fn losses(&self) -> &Losses {
        &self.profile.losses
    }

    /// Returns the number of tasks, including those not listed.
    pub fn total(&self) -> u64 {
        self.sites.iter().map(|site| site.tasks).sum()
    }

    /// Returns `true` if only some of the tasks are listed.
    pub fn is_sample(&self) -> bool {
        self.total() > self.tasks.len() as u64
    }
}

/// The number of tasks of one spawn site.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SiteCount {
    /// The spawn site.
    pub location: SpawnLocation,
    /// Task name. Empty if the tasks are unnamed.
    pub name: &'static str,
    /// Number of tasks.
    pub tasks: u64,
}

/// The source location at which a task was created.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SpawnLocation {
    /// Source file.
    pub file: &'static str,
    /// Line in the source file.
    pub line: u32,
}

/// The state of a task in a dump.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TaskState {
    /// Waiting at the leaf futures shown by its stacks.
    Waiting,
    /// Waiting at a leaf that registered no waker, so the location is unknown.
    WaitingWithoutWaker,
    /// Being polled by this thread. The poll did not end before the dump timed out.
    Running {
        /// Kernel thread id.
        tid: u32,
    },
    /// Woken, but not polled by a worker before the dump timed out.
    Scheduled,
    /// Never polled.
    NeverPolled,
    /// Not dumped: only a list of tasks was requested.
    NotDumped,
}

impl TaskState {
    /// Returns the name shown in dumps.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::WaitingWithoutWaker => "waiting (no waker)",
            Self::Running { .. } => "running",
            Self::Scheduled => "scheduled",
            Self::NeverPolled => "not polled yet",
            Self::NotDumped => "not dumped",
        }
    }
}

/// A task in a [`TaskDump`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskRow {
    /// Sequence number, counted from the start of the process.
    pub number: u64,
    /// tokio's task id, or `None` if no runtime has polled it.
    pub id: Option<u64>,
    /// Task name. Empty if the task is unnamed.
    pub name: &'static str,
    /// Source location at which the task was created.
    pub location: SpawnLocation,
    /// State of the task.
    pub state: TaskState,
    /// Time since its last poll started; for a running task, time it has been running. Precision: 4
    /// ms.
    pub time_since_poll: Option<Duration>,
    /// Stacks of the leaf futures it waits on. `select!` and `join!` have several.
    pub stacks: Vec<StackHandle>,
    /// Number of further leaf futures, whose stacks are not included.
    pub omitted_stacks: u32,
    /// Number of tasks of its spawn site that this row represents: 1, unless the dump is a sample.
    pub weight: u64,
}
