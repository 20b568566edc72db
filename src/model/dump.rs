//! Where everything stood at one moment: threads, and tasks of the runtimes.
//!
//! Both dumps carry a [`Profile`], which has the tables their stacks are in, gets its names from
//! `symbols` like any other, and is what is written for pprof's readers; the rows say the rest.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;

use super::losses::Losses;
use super::profile::Profile;
use super::stacks::StackHandle;

/// Every thread of the process.
#[derive(Clone, Debug)]
pub struct ThreadDump {
    /// The stacks: one sample a thread.
    pub profile: Profile,
    /// The threads, in the order of their ids.
    pub threads: Vec<ThreadRow>,
}

/// One thread.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ThreadRow {
    /// Its id in the system.
    pub tid: u32,
    /// Its name.
    pub name: String,
    /// What the kernel says it does: `R` runs, `S` sleeps, `D` waits without being woken by signals.
    pub state: char,
    /// The kernel's function it waits in; empty when it does not wait or the kernel does not tell.
    pub wait_channel: String,
    /// CPU time since it began.
    pub cpu_time: Duration,
    /// Where it stands.
    pub stack: Option<StackHandle>,
    /// Why there is no stack, or not the whole of it; empty when there is.
    pub remark: &'static str,
}

/// The tasks that are known: all of them, or a sample of very many.
#[derive(Clone, Debug)]
pub struct TaskDump {
    /// The stacks: one sample for each stack, state, place of spawning and age.
    pub profile: Profile,
    /// The tasks, in the order they were made. Each stands for [`TaskRow::weight`] tasks of its spawn site.
    pub tasks: Vec<TaskRow>,
    /// The number of tasks of each spawn site, exact, the largest first.
    pub sites: Vec<SiteCount>,
    /// How many tasks of a runtime those are: a task may have wrapped futures inside of it.
    pub runtime_tasks: u64,
    /// Tasks alive on the observed runtimes that were not spawned through marple; none when it is not
    /// known.
    pub unwrapped: Option<u64>,
    /// How long it took to ask them.
    pub took: Duration,
    /// The stacks of the threads that the running tasks are on, by thread id.
    pub threads: BTreeMap<u32, StackHandle>,
}

impl TaskDump {
    /// When it was taken.
    pub fn taken(&self) -> Timestamp {
        self.profile.started
    }

    /// What it lacks.
    pub fn losses(&self) -> &Losses {
        &self.profile.losses
    }

    /// The number of tasks, those that are not listed among them.
    pub fn total(&self) -> u64 {
        self.sites.iter().map(|site| site.tasks).sum()
    }

    /// Whether only some of the tasks are listed.
    pub fn is_sample(&self) -> bool {
        self.total() > self.tasks.len() as u64
    }
}

/// The tasks of one spawn site.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SiteCount {
    /// The site.
    pub spawned: Spawned,
    /// Their name; empty without one.
    pub name: &'static str,
    /// How many there are.
    pub tasks: u64,
}

/// Where a task was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Spawned {
    /// The source file.
    pub file: &'static str,
    /// The line in it.
    pub line: u32,
}

/// What a task was doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TaskState {
    /// It waits, in the places its stacks show.
    Waiting,
    /// It waits for something that keeps no waker, so that nobody knows where.
    WaitingUnseen,
    /// It is being polled by this thread and did not come to an end in time.
    Running {
        /// The thread.
        tid: u32,
    },
    /// It was woken and no worker has come to it in time.
    Scheduled,
    /// Nobody has polled it.
    Fresh,
    /// It was not asked: tasks were to be listed only.
    NotAsked,
}

impl TaskState {
    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::WaitingUnseen => "waiting (no waker)",
            Self::Running { .. } => "running",
            Self::Scheduled => "scheduled",
            Self::Fresh => "not polled yet",
            Self::NotAsked => "not asked",
        }
    }
}

/// One task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskRow {
    /// Its number, counted from the start of the process.
    pub number: u64,
    /// The runtime's id for it, once it was polled by one.
    pub id: Option<u64>,
    /// Its name; empty without one.
    pub name: &'static str,
    /// Where it was made.
    pub spawned: Spawned,
    /// What it was doing.
    pub state: TaskState,
    /// How long ago its last poll began; for a running task, how long it has run. Within 4 ms.
    pub since_poll: Option<Duration>,
    /// Where it stands: one stack for each leaf it waits on (`select!` and `join!` have several).
    pub stacks: Vec<StackHandle>,
    /// How many more leaves there were.
    pub more_stacks: u32,
    /// How many tasks of its spawn site it stands for: 1, unless the dump is a sample.
    pub weight: u64,
}
