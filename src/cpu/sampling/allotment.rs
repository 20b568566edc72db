//! Choice of the threads to sample if a quota allows fewer samplers than threads.
//!
//! The threads with the most CPU time since the last review get a sampler: a profile shows CPU
//! time, and a waiting thread has none to show. Threads that become busy later take samplers from
//! idle ones.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::time::Duration;

use crate::os::failed_call::FailedCall;

/// Number of threads without samples, and the reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Unsampled {
    pub(super) threads: u64,
    pub(super) reason: String,
}

/// Reason why a thread gets no sampler.
#[derive(Debug)]
pub(super) enum NotSampled {
    /// The thread has ended.
    ThreadExited,
    /// A permission is missing.
    PermissionDenied(String),
    /// Another reason.
    Other(String),
}

impl From<FailedCall> for NotSampled {
    fn from(failed: FailedCall) -> Self {
        match failed.has_thread_exited() {
            true => Self::ThreadExited,
            false if failed.is_permission_error() => Self::PermissionDenied(failed.to_string()),
            false => Self::Other(failed.to_string()),
        }
    }
}

/// Threads that wait for a sampler, with their CPU time at the last review.
#[derive(Debug, Default)]
pub(super) struct WaitingThreads {
    threads: HashMap<u32, Duration>,
    reason: String,
}

/// A thread and its CPU time since the last review.
pub(super) type ThreadUsage = (Duration, u32);

/// Changes of samplers between threads.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct EventExchange {
    pub(super) release: Vec<u32>,
    pub(super) acquire: Vec<u32>,
}

impl WaitingThreads {
    /// Adds a thread with its total CPU time.
    pub(super) fn add(&mut self, tid: u32, cpu: Duration, reason: impl Into<String>) {
        self.threads.insert(tid, cpu);
        self.reason = reason.into();
    }

    pub(super) fn remove(&mut self, tid: u32) {
        self.threads.remove(&tid);
    }

    pub(super) fn contains(&self, tid: u32) -> bool {
        self.threads.contains_key(&tid)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.threads.is_empty()
    }

    /// Returns the waiting threads with their CPU time since the last call; `cpu` returns the total
    /// of a thread.
    pub(super) fn take_usage(&mut self, cpu: impl Fn(u32) -> Option<Duration>) -> Vec<ThreadUsage> {
        let usage = self.threads.iter_mut().filter_map(|(&tid, last_read)| {
            let now = cpu(tid)?;
            Some((now.saturating_sub(std::mem::replace(last_read, now)), tid))
        });
        usage.collect()
    }

    pub(super) fn unsampled(&self) -> Option<Unsampled> {
        let threads = self.threads.len() as u64;
        (threads > 0).then(|| Unsampled { threads, reason: self.reason.clone() })
    }
}

/// Assigns `limit` samplers. A thread replaces another only if it used more than twice as much.
pub(super) fn plan_exchange(
    mut active: Vec<ThreadUsage>,
    mut waiting: Vec<ThreadUsage>,
    limit: usize,
) -> EventExchange {
    let mut exchange = EventExchange::default();
    active.sort_unstable_by_key(|&(used, tid)| (used, tid));
    waiting.sort_unstable_by_key(|&(used, tid)| (Reverse(used), tid));
    let excess = active.len().saturating_sub(limit);
    let mut active = active.into_iter();
    exchange.release.extend(active.by_ref().take(excess).map(|(_, tid)| tid));
    let free = limit - active.len();
    let mut waiting = waiting.into_iter();
    exchange.acquire.extend(waiting.by_ref().take(free).map(|(_, tid)| tid));
    for ((idle_time, idle), (busy_time, busy)) in active.zip(waiting) {
        if busy_time <= idle_time * 2 {
            break;
        }
        exchange.release.push(idle);
        exchange.acquire.push(busy);
    }
    exchange
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usages(all: &[(u64, u32)]) -> Vec<ThreadUsage> {
        all.iter().map(|&(millis, tid)| (Duration::from_millis(millis), tid)).collect()
    }

    #[test]
    fn samplers_go_to_busiest_threads() {
        for (held, waiting, room, give_up, take) in [
            // There are free samplers.
            (&[(5, 1)][..], &[(0, 2), (9, 3)][..], 2, &[][..], &[3][..]),
            // The quota has shrunk.
            (&[(5, 1), (0, 2), (7, 3)], &[(1, 4)], 1, &[2, 1], &[]),
            (&[(5, 1)], &[], 0, &[1], &[]),
            // An idle thread is replaced by a busy one.
            (&[(0, 1), (8, 2)], &[(4, 3), (17, 4)], 2, &[1], &[4]),
            (&[(0, 1), (0, 2)], &[(4, 3), (0, 4)], 2, &[1], &[3]),
            // Equally busy threads are not exchanged.
            (&[(5, 1)], &[(9, 2)], 1, &[], &[]),
        ] {
            let expected = EventExchange { release: give_up.to_vec(), acquire: take.to_vec() };
            assert_eq!(
                plan_exchange(usages(held), usages(waiting), room),
                expected,
                "{held:?} {waiting:?}"
            );
        }
    }

    #[test]
    fn waiting_thread_usage_counts_since_last_review() {
        let seconds = Duration::from_secs;
        let mut waiting = WaitingThreads::default();
        waiting.add(1, seconds(10), "full");
        waiting.add(2, seconds(0), "full");
        let cpu = |tid| (tid == 1).then(|| seconds(12));
        assert_eq!(waiting.take_usage(cpu), [(seconds(2), 1)], "the other has ended");
        assert_eq!(waiting.take_usage(cpu), [(seconds(0), 1)]);
        assert_eq!(waiting.unsampled().unwrap().threads, 2);
        waiting.remove(1);
        waiting.remove(2);
        assert!(waiting.unsampled().is_none());
    }
}
