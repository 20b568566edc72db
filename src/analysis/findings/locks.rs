//! `lock-wait`: functions in which threads or tasks wait for a lock.
//!
//! A dump is a sample of one moment. The number of waiting threads fluctuates by its square root,
//! and 0 refutes that threads wait for the lock regularly. The dumps of an incident are added up.
//!
//! A wait on a `Condvar` is no wait for a lock: idle threads of a pool wait like that.

use std::collections::BTreeMap;
use std::time::Duration;

use super::Candidate;
use super::confidence_above_zero;
use super::growth::{MIN_SHARE, duration, percent};
use super::tasks::{explains_tasks, sample_weight, total_at};
use crate::analysis::evidence::{IncidentEvidence, Tabulated};
use crate::analysis::{Symbol, TaskTable, ThreadTable, application_frame, display_name};
use crate::model::{Confidence, FindingKind};

/// Minimum number of threads of one dump, or of tasks, that wait for locks.
const MIN_WAITING: u64 = 2;

/// Minimum time for which a task waits for an exclusive lock before that is likely a fault. Locks
/// are held for less than a request lasts.
const MIN_TASK_WAIT: Duration = Duration::from_secs(10);

/// Metrics that rise if the workers of a runtime wait.
const WORKER_METRICS: &[&str] =
    &["runtime.lag", "runtime.lag_p99", "runtime.stalled", "runtime.stall", "runtime.blocked"];

/// Metrics that rise if the threads of the blocking pool wait.
const BLOCKING_POOL_METRICS: &[&str] = &["runtime.blocking_lag"];

/// Metrics that rise if threads wait that are created on demand.
const THREAD_METRICS: &[&str] = &["threads", "threads.rise"];

/// Functions in which a thread waits for a lock.
const LOCK_FUNCTIONS: &[LockFunction] = &[
    LockFunction { path: "std::sys", name: "lock_contended", lock: "std::sync::Mutex" },
    LockFunction { path: "std::sys", name: "read_contended", lock: "std::sync::RwLock" },
    LockFunction { path: "std::sys", name: "write_contended", lock: "std::sync::RwLock" },
    LockFunction { path: "parking_lot", name: "lock_slow", lock: "parking_lot::Mutex" },
    LockFunction { path: "parking_lot", name: "lock_shared_slow", lock: "parking_lot::RwLock" },
    LockFunction { path: "parking_lot", name: "lock_exclusive_slow", lock: "parking_lot::RwLock" },
    LockFunction { path: "parking_lot", name: "lock_upgradable_slow", lock: "parking_lot::RwLock" },
    LockFunction { path: "parking_lot", name: "upgrade_slow", lock: "parking_lot::RwLock" },
    LockFunction { path: "parking_lot", name: "wait_for_readers", lock: "parking_lot::RwLock" },
    LockFunction { path: "dashmap", name: "lock_shared_slow", lock: "dashmap::DashMap" },
    LockFunction { path: "dashmap", name: "lock_exclusive_slow", lock: "dashmap::DashMap" },
    LockFunction { path: "", name: "pthread_mutex_lock", lock: "pthread_mutex_t" },
    LockFunction { path: "", name: "__pthread_mutex_lock", lock: "pthread_mutex_t" },
    LockFunction { path: "", name: "___pthread_mutex_lock", lock: "pthread_mutex_t" },
    LockFunction { path: "", name: "pthread_rwlock_rdlock", lock: "pthread_rwlock_t" },
    LockFunction { path: "", name: "pthread_rwlock_wrlock", lock: "pthread_rwlock_t" },
    LockFunction { path: "", name: "__lll_lock_wait", lock: "pthread_mutex_t" },
    LockFunction { path: "", name: "__lll_lock_wait_private", lock: "lock of the C library" },
];

/// Modules of tokio whose futures wait for permits of its semaphore.
const TASK_LOCKS: &[TaskLock] = &[
    TaskLock { path: "tokio::sync::mutex::", lock: "tokio::sync::Mutex", is_exclusive: true },
    TaskLock { path: "tokio::sync::rwlock::", lock: "tokio::sync::RwLock", is_exclusive: true },
    TaskLock {
        path: "tokio::sync::semaphore::",
        lock: "tokio::sync::Semaphore",
        is_exclusive: false,
    },
    TaskLock {
        path: "tokio::sync::mpsc::",
        lock: "full tokio::sync::mpsc channel",
        is_exclusive: false,
    },
];

/// Module of the semaphore that all of [`TASK_LOCKS`] use.
const TOKIO_SEMAPHORE: TaskLock = TaskLock {
    path: "tokio::sync::batch_semaphore::",
    lock: "tokio::sync lock or semaphore",
    is_exclusive: false,
};

#[derive(Debug)]
struct LockFunction {
    /// Part of the name of the function.
    path: &'static str,
    /// Last component of the name.
    name: &'static str,
    lock: &'static str,
}

#[derive(Debug)]
struct TaskLock {
    path: &'static str,
    lock: &'static str,
    /// True if a task that holds it is expected to release it soon.
    is_exclusive: bool,
}

pub(super) fn find(evidence: &IncidentEvidence<'_>) -> Vec<Candidate> {
    let threads = waiting_threads(evidence).into_iter();
    threads.chain(waiting_tasks(evidence)).collect()
}

/// The threads that wait for a lock in one function.
struct ThreadWait<'a> {
    lock: &'static str,
    /// Sum of all dumps.
    samples: u64,
    /// The dump with the most threads.
    dump: &'a Tabulated<ThreadTable>,
    waiting: u64,
    /// Stack of the largest group in that dump.
    stack: &'a [Symbol],
    explains: bool,
}

fn waiting_threads(evidence: &IncidentEvidence<'_>) -> Vec<Candidate> {
    let mut waits: BTreeMap<&str, ThreadWait<'_>> = BTreeMap::new();
    for dump in evidence.tables.threads.iter().filter(|dump| dump.phase.is_none()) {
        let in_dump = waits_of_dump(evidence, dump);
        // One thread that waits is normal. Two in different functions can be a deadlock.
        if in_dump.values().map(|wait| wait.waiting).sum::<u64>() < MIN_WAITING {
            continue;
        }
        for (function, wait) in in_dump {
            let samples = waits.get(function).map_or(0, |known| known.samples) + wait.samples;
            let known = waits.remove(function);
            let is_largest = known.as_ref().is_none_or(|known| wait.waiting > known.waiting);
            let kept = known.filter(|_| !is_largest).unwrap_or(wait);
            waits.insert(function, ThreadWait { samples, ..kept });
        }
    }
    waits.into_iter().map(|(function, wait)| wait.candidate(function)).collect()
}

/// Returns the waits of one dump by function of the application.
fn waits_of_dump<'a>(
    evidence: &IncidentEvidence<'_>,
    dump: &'a Tabulated<ThreadTable>,
) -> BTreeMap<&'a str, ThreadWait<'a>> {
    let mut waits: BTreeMap<&str, ThreadWait<'_>> = BTreeMap::new();
    for group in &dump.table.groups {
        // A running thread is about to get the lock.
        let waiting = group.threads.saturating_sub(group.running);
        let Some(lock) = lock_of_thread(&group.stack).filter(|_| waiting > 0) else { continue };
        let Some(function) = application_frame(&group.stack) else { continue };
        let wait = waits.entry(display_name(function)).or_insert(ThreadWait {
            lock,
            samples: 0,
            dump,
            waiting: 0,
            stack: &group.stack,
            explains: false,
        });
        wait.samples += waiting;
        wait.waiting += waiting;
        wait.explains |= explains_thread_wait(evidence, &group.stack);
    }
    for wait in waits.values_mut() {
        let share = wait.waiting as f64 / dump.table.total.max(1) as f64;
        wait.explains |= evidence.has_reason(THREAD_METRICS) && share >= MIN_SHARE;
    }
    waits
}

/// Returns true if the wait of this thread delays what a rule of the incident measures.
fn explains_thread_wait(evidence: &IncidentEvidence<'_>, stack: &[Symbol]) -> bool {
    // The stack of a worker has the frames of the blocking pool too, which started it.
    let is_below = |module| stack.iter().any(|name| name.contains(module));
    if is_below("tokio::runtime::scheduler::") {
        evidence.has_reason(WORKER_METRICS)
    } else {
        is_below("tokio::runtime::blocking::") && evidence.has_reason(BLOCKING_POOL_METRICS)
    }
}

impl ThreadWait<'_> {
    fn candidate(&self, function: &str) -> Candidate {
        let Self { lock, samples, dump, waiting, stack, explains } = *self;
        let total = dump.table.total;
        let confidence = confidence_above_zero(samples as f64, samples as f64)
            .unwrap_or(Confidence::Possible)
            .min(if explains { Confidence::Certain } else { Confidence::Likely });
        let share = waiting as f64 / total.max(1) as f64;
        let verb = if waiting == 1 { "waits" } else { "wait" };
        let mut text = format!(
            "{waiting} of {total} threads ({}) {verb} in {function} for a {lock}",
            percent(share)
        );
        let holder = possible_holder(&dump.table, function);
        if let Some(name) = holder {
            text += &format!(
                "; thread {name} is in the same function without waiting for a lock, and \
                 possibly holds it"
            );
        }
        let candidate = Candidate::new(FindingKind::LockWait, confidence, function)
            .text(text)
            .number("threads", waiting as f64)
            .number("total", total as f64)
            .label("lock", lock)
            .stack(stack)
            .share(share)
            .explains_reason(explains)
            .evidence(&dump.file, format!("less {}", dump.file));
        match holder {
            Some(name) => candidate.label("possible_holder", name),
            None => candidate,
        }
    }
}

/// Returns the name of a thread that is in `function` and waits for no lock.
fn possible_holder<'a>(table: &'a ThreadTable, function: &str) -> Option<&'a str> {
    let is_in_function = |stack: &[Symbol]| stack.iter().any(|name| display_name(name) == function);
    let mut groups = table.groups.iter();
    let group =
        groups.find(|group| lock_of_thread(&group.stack).is_none() && is_in_function(&group.stack));
    Some(group?.names.first()?)
}

/// Returns the lock for which a thread with this stack waits.
fn lock_of_thread(stack: &[Symbol]) -> Option<&'static str> {
    let application = application_frame(stack)?;
    let depth = stack.iter().position(|name| name == application)?;
    let innermost = stack.get(..=depth)?.iter();
    innermost.rev().find_map(|name| {
        // `pthread_mutex_lock@GLIBC_2.2.5`
        let name = name.split('@').next().unwrap_or(name);
        let last = display_name(name).rsplit("::").next();
        let function = LOCK_FUNCTIONS
            .iter()
            .find(|function| last == Some(function.name) && name.contains(function.path));
        function.map(|function| function.lock)
    })
}

/// The tasks that wait for a lock in one function.
struct TaskWait<'a> {
    lock: &'static TaskLock,
    tasks: u64,
    longest: Option<Duration>,
    /// Stack of the largest group.
    stack: &'a [Symbol],
    /// Number of tasks that wait in the same function for something else.
    elsewhere: u64,
}

fn waiting_tasks(evidence: &IncidentEvidence<'_>) -> Vec<Candidate> {
    let Some(dump) = evidence.tables.tasks.last() else { return Vec::new() };
    let mut waits: BTreeMap<&str, TaskWait<'_>> = BTreeMap::new();
    let mut elsewhere: BTreeMap<&str, u64> = BTreeMap::new();
    for group in &dump.table.groups {
        let Some(function) = application_frame(&group.stack) else { continue };
        let function = display_name(function);
        let Some(lock) = lock_of_task(&group.stack) else {
            *elsewhere.entry(function).or_default() += group.tasks;
            continue;
        };
        let wait = waits.entry(function).or_insert(TaskWait {
            lock,
            tasks: 0,
            longest: None,
            stack: &group.stack,
            elsewhere: 0,
        });
        wait.tasks += group.tasks;
        wait.longest = wait.longest.max(group.longest_since_poll);
    }
    let waits = waits.into_iter().filter(|(_, wait)| wait.tasks >= MIN_WAITING);
    let candidates = waits.map(|(function, wait)| {
        let elsewhere = elsewhere.get(function).copied().unwrap_or(0);
        TaskWait { elsewhere, ..wait }.candidate(evidence, dump, function)
    });
    candidates.collect()
}

impl TaskWait<'_> {
    fn candidate(
        &self,
        evidence: &IncidentEvidence<'_>,
        dump: &Tabulated<TaskTable>,
        function: &str,
    ) -> Candidate {
        let tasks = self.tasks as f64;
        let total = total_at(evidence, dump);
        let share = tasks / total.max(1) as f64;
        let explains = explains_tasks(evidence, share);
        let weight = sample_weight(&dump.table);
        // With a rule over the number of tasks: most of them wait here. Else: some wait for long.
        let is_long =
            self.lock.is_exclusive && self.longest.is_some_and(|wait| wait >= MIN_TASK_WAIT);
        let confidence = if explains {
            confidence_above_zero(2.0 * tasks - total as f64, total as f64 * weight)
        } else if is_long {
            confidence_above_zero(tasks, tasks * weight).map(|known| known.min(Confidence::Likely))
        } else {
            None
        };
        let about = if dump.table.is_sample { "about " } else { "" };
        let mut text = format!(
            "{about}{} of {total} tasks ({}) wait in {function} for a {}",
            self.tasks,
            percent(share),
            self.lock.lock
        );
        if let Some(longest) = self.longest {
            text +=
                &format!("; the longest was last polled {} ago", duration(longest.as_secs_f64()));
        }
        if self.elsewhere > 0 {
            text += &format!(
                "; {} more in the same function wait for something else, and possibly hold it",
                self.elsewhere
            );
        }
        let longest = self.longest.map_or(f64::NAN, |wait| wait.as_secs_f64());
        Candidate::new(FindingKind::LockWait, confidence.unwrap_or(Confidence::Possible), function)
            .text(text)
            .number("tasks", tasks)
            .number("total", total as f64)
            .number("longest_since_poll", longest)
            .label("lock", self.lock.lock)
            .stack(self.stack)
            .share(share)
            .explains_reason(explains)
            .evidence(&dump.file, format!("less {}", dump.file))
    }
}

/// Returns the lock for which a task with this stack waits.
fn lock_of_task(stack: &[Symbol]) -> Option<&'static TaskLock> {
    // `<tokio::sync::batch_semaphore::Acquire as core::future::future::Future>::poll`
    let has = |lock: &TaskLock| {
        stack.iter().any(|name| name.trim_start_matches(['<', '&']).starts_with(lock.path))
    };
    let has_semaphore = has(&TOKIO_SEMAPHORE);
    // A receiver of a channel uses no semaphore.
    let known = TASK_LOCKS
        .iter()
        .find(|lock| has(lock) && (has_semaphore || !lock.path.starts_with("tokio::sync::mpsc")));
    known.or(has_semaphore.then_some(&TOKIO_SEMAPHORE))
}

#[cfg(test)]
mod tests;
