//! The workers' threads, and the time since which each has used no CPU.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::base::Moment;

/// Maximum CPU time that a sleeping thread uses to answer one signal.
const MAX_HANDLER_CPU_TIME: Duration = Duration::from_micros(50);

/// State of a worker's thread at a check.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WorkerThread {
    pub(crate) tid: u32,
    /// CPU time used so far.
    pub(crate) cpu_time: Duration,
    /// `true` if the thread is in a recorded poll.
    pub(crate) in_recorded_poll: bool,
}

/// State of a worker's thread between two checks.
#[derive(Debug)]
pub(super) struct WorkerThreadState {
    pub(super) cpu_time: Duration,
    /// Time since which `cpu_time` is unchanged.
    pub(super) unchanged_since: Moment,
    in_recorded_poll: bool,
    /// `Unset` unless the thread was found parked and has slept since then.
    parked_baseline: SignalBaseline,
}

impl WorkerThreadState {
    /// Returns `true` if the thread was found parked and has slept since then.
    pub(super) fn is_parked(&self) -> bool {
        self.parked_baseline != SignalBaseline::Unset
    }
}

/// The threads of all workers, by thread ID.
#[derive(Debug, Default)]
pub(super) struct WorkerThreads(BTreeMap<u32, WorkerThreadState>);

impl WorkerThreads {
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Updates the threads with their CPU times at `now`.
    pub(super) fn update(&mut self, now: Moment, threads: &[WorkerThread]) {
        self.0.retain(|tid, _| threads.iter().any(|thread| thread.tid == *tid));
        for &WorkerThread { tid, cpu_time, in_recorded_poll } in threads {
            let known = self.0.entry(tid).or_insert(WorkerThreadState {
                cpu_time,
                unchanged_since: now,
                in_recorded_poll,
                parked_baseline: SignalBaseline::Unset,
            });
            if known.cpu_time != cpu_time {
                known.cpu_time = cpu_time;
                known.unchanged_since = now;
            }
            known.in_recorded_poll = in_recorded_poll;
            if known.parked_baseline.has_run(cpu_time) {
                known.parked_baseline = SignalBaseline::Unset;
            }
        }
    }

    /// Restarts the measurement of all threads at `now`, up to which the process was stopped.
    pub(super) fn restart_measurements(&mut self, now: Moment) {
        self.0.values_mut().for_each(|thread| thread.unchanged_since = now);
    }

    /// Records that a sample found a thread parked.
    pub(super) fn mark_parked(&mut self, tid: u32) {
        if let Some(thread) = self.0.get_mut(&tid) {
            thread.parked_baseline = SignalBaseline::Pending;
        }
    }

    /// Returns the CPU time of a thread at the last check. `None` if it belongs to no known worker.
    pub(super) fn cpu_time(&self, tid: u32) -> Option<Duration> {
        self.0.get(&tid).map(|thread| thread.cpu_time)
    }

    /// Returns the number of threads that are in recorded polls.
    pub(super) fn in_recorded_polls(&self) -> usize {
        self.0.values().filter(|thread| thread.in_recorded_poll).count()
    }

    /// Returns the threads that used CPU before the check at `now` and are in no recorded poll.
    pub(super) fn running(&self, now: Moment) -> impl Iterator<Item = u32> {
        let running = move |thread: &WorkerThreadState| {
            thread.unchanged_since == now && !thread.in_recorded_poll
        };
        self.0.iter().filter(move |(_, thread)| running(thread)).map(|(&tid, _)| tid)
    }

    /// Returns the threads that used no CPU before the check at `now` and are in no recorded poll.
    pub(super) fn sleeping(&self, now: Moment) -> impl Iterator<Item = (u32, &WorkerThreadState)> {
        let sleeping = move |thread: &WorkerThreadState| {
            thread.unchanged_since < now && !thread.in_recorded_poll
        };
        self.0
            .iter()
            .map(|(&tid, thread)| (tid, thread))
            .filter(move |(_, thread)| sleeping(thread))
    }
}

/// CPU time of a thread after it answered a signal. It becomes known at the next check.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum SignalBaseline {
    Unset,
    Pending,
    At(Duration),
}

impl SignalBaseline {
    /// Compares with the CPU time `cpu` read by a check. Returns `true` if the thread has run since
    /// it answered.
    pub(super) fn has_run(&mut self, cpu: Duration) -> bool {
        match *self {
            Self::Unset => true,
            Self::Pending => {
                *self = Self::At(cpu);
                false
            }
            Self::At(before) => cpu.saturating_sub(before) > MAX_HANDLER_CPU_TIME,
        }
    }
}
