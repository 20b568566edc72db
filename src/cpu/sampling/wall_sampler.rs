//! The thread `marple-wall`, which checks all threads in turn.

mod stacks;

use std::any::Any;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use super::images::SeenImages;
use super::wall_report::WallCounts;
use crate::base::token_bucket::TokenBucket;
use crate::base::{Clock, Hertz, Moment, SystemClock, panics};
use crate::cpu::error::Error;
use crate::cpu::sampling::sample_table::SampleTable;
use crate::cpu::sampling::thread_state_key::{ThreadStateInterner, ThreadStateKey};
use crate::os::proc::thread_list::ThreadList;
use crate::os::proc::thread_reader::{ProcThreadReader, SchedStat};
use crate::os::proc::threads::{self, Thread};
use crate::unwind::StackWalker;
use crate::unwind::thread_sampler::{MAX_IN_FLIGHT, SIGNAL};

/// Maximum checks per second: 3 % of a core.
const MAX_CHECKS_PER_SECOND: u32 = 2000;

/// Maximum signals per second, over all threads.
const MAX_SIGNALS_PER_SECOND: u32 = 500;

/// Maximum interval between reads of the thread list; a changed number of threads also triggers a
/// read.
const THREAD_LIST_INTERVAL: Duration = Duration::from_millis(250);

/// Table entries, as in a CPU session.
const MAX_TABLE_ENTRIES: usize = 64 << 10;

/// A thread being sampled.
struct SampledThread {
    /// End of the time that is accounted for.
    accounted_until: Moment,
    last_schedstat: SchedStat,
    sleeping: Option<SleepingThread>,
}

/// Stack of a sleeping thread, valid while `timeslices` is unchanged.
struct SleepingThread {
    timeslices: u64,
    frames: Arc<[u64]>,
    is_truncated: bool,
}

/// A check that needs a signal.
struct PendingSignal {
    thread: Thread,
    schedstat: SchedStat,
    checked_at: Moment,
}

/// State of the thread `marple-wall`.
pub(super) struct WallSampler {
    frequency: Hertz,
    pub(super) allow_signals: bool,
    /// `true` if stacks of sleeping threads are read through /proc where possible.
    read_from_proc: bool,
    own_tid: u32,
    thread_list: ThreadList,
    listed_at: Option<Moment>,
    listed_tids: Vec<u32>,
    proc_reader: ProcThreadReader,
    walker: StackWalker,
    threads: HashMap<u32, SampledThread>,
    /// Threads in the order of their next check.
    queue: VecDeque<u32>,
    check_tokens: TokenBucket,
    signal_tokens: TokenBucket,
    last_tick: Moment,
    stack_buffer: Vec<u64>,
    pub(super) table: SampleTable,
    pub(super) states: ThreadStateInterner,
    pub(super) counts: WallCounts,
    pub(super) images: SeenImages,
}

impl WallSampler {
    pub(super) fn new(
        frequency: Hertz,
        allow_signals: bool,
        read_from_proc: bool,
    ) -> Result<Self, Error> {
        let unavailable = |reason| Error::EngineUnavailable { engine: "wall", why: reason };
        let mut sampler = Self {
            frequency,
            allow_signals,
            read_from_proc,
            own_tid: 0,
            thread_list: ThreadList::open().map_err(|source| Error::ThreadList { source })?,
            listed_at: None,
            listed_tids: Vec::new(),
            proc_reader: ProcThreadReader::open().map_err(unavailable)?,
            walker: StackWalker::new()?,
            threads: HashMap::new(),
            queue: VecDeque::new(),
            check_tokens: bucket_for(MAX_CHECKS_PER_SECOND, frequency),
            signal_tokens: bucket_for(MAX_SIGNALS_PER_SECOND, frequency),
            last_tick: SystemClock.now(),
            stack_buffer: Vec::new(),
            table: SampleTable::new(MAX_TABLE_ENTRIES),
            states: ThreadStateInterner::default(),
            counts: WallCounts::default(),
            images: SeenImages::default(),
        };
        // Threads that already exist are accounted for from the start of the profile.
        sampler.refresh_threads(sampler.last_tick);
        Ok(sampler)
    }

    /// Samples until `stop_receiver` closes.
    pub(super) fn run(
        mut self,
        stop_receiver: &Receiver<()>,
        on_thread_start: fn() -> Box<dyn Any>,
    ) -> Self {
        let _guard = on_thread_start();
        crate::os::own_thread::enter();
        self.own_tid = threads::current_tid();
        let period = Duration::from_secs(1) / self.frequency.get().max(1);
        let mut random = u64::from(self.own_tid);
        loop {
            // Knuth's multiplier; only the upper bits are random enough.
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let fraction = (random >> 11) as f64 / (1u64 << 53) as f64;
            let should_stop = match stop_receiver.recv_timeout(period.mul_f64(0.5 + fraction)) {
                Err(RecvTimeoutError::Timeout) => false,
                Ok(()) | Err(RecvTimeoutError::Disconnected) => true,
            };
            panics::catch_and_record_panic("marple-wall", || self.tick());
            if should_stop {
                return self;
            }
        }
    }

    /// Checks the threads at the front of the queue.
    pub(super) fn tick(&mut self) {
        let now = SystemClock.now();
        let elapsed = now.since(self.last_tick);
        self.last_tick = now;
        self.check_tokens.refill(elapsed);
        self.signal_tokens.refill(elapsed);
        self.counts.ticks += 1;
        let is_list_due = self.listed_at.is_none_or(|at| now.since(at) >= THREAD_LIST_INTERVAL);
        if is_list_due
            || self.thread_list.count().is_none_or(|count| count != self.listed_tids.len())
        {
            self.refresh_threads(now);
        }
        if self.walker.refresh().unwrap_or(false) || self.images.is_empty() {
            self.images.add_current();
        }
        let mut pending = Vec::new();
        for _ in 0..self.queue.len() {
            let is_signal_limit_reached = !self.signal_tokens.has(pending.len() + 1);
            if !self.check_tokens.has(1) || (self.allow_signals && is_signal_limit_reached) {
                self.counts.incomplete_ticks += 1;
                break;
            }
            let Some(tid) = self.queue.pop_front() else { break };
            self.check_tokens.take(1);
            match self.proc_reader.thread_state(tid) {
                Some((thread, schedstat)) => {
                    self.queue.push_back(tid);
                    let checked_at = SystemClock.now();
                    pending.extend(self.check_thread(PendingSignal {
                        thread,
                        schedstat,
                        checked_at,
                    }));
                }
                None => self.remove_thread(tid, true),
            }
        }
        if !pending.is_empty() {
            self.sample_by_signal(pending);
        }
    }

    /// Updates the queue with started and ended threads.
    fn refresh_threads(&mut self, now: Moment) {
        let is_complete = self.thread_list.list(&mut self.listed_tids).is_ok();
        // A thread started since the last list has existed for half of that time, on average.
        let started_at = self.listed_at.map_or(now, |last| now - now.since(last) / 2);
        for &tid in &self.listed_tids {
            if tid != self.own_tid && !self.threads.contains_key(&tid) {
                let schedstat = self.proc_reader.sched_stat(tid).unwrap_or_default();
                let entry = SampledThread {
                    accounted_until: started_at,
                    last_schedstat: schedstat,
                    sleeping: None,
                };
                self.threads.insert(tid, entry);
                self.queue.push_back(tid);
            }
        }
        if is_complete {
            let listed = &self.listed_tids;
            let has_exited = |tid: &&u32| listed.binary_search(tid).is_err();
            let exited: Vec<u32> = self.threads.keys().filter(has_exited).copied().collect();
            exited.into_iter().for_each(|tid| self.remove_thread(tid, true));
        }
        self.remove_thread(self.own_tid, false);
        self.listed_at = Some(now);
    }

    fn remove_thread(&mut self, tid: u32, has_ended: bool) {
        if self.threads.remove(&tid).is_some() {
            self.queue.retain(|&other| other != tid);
            self.counts.ended += u64::from(has_ended);
        }
    }

    /// Records a sample if no signal is needed; otherwise returns the check.
    fn check_thread(&mut self, check: PendingSignal) -> Option<PendingSignal> {
        let PendingSignal { thread, schedstat, checked_at } = &check;
        let entry = self.threads.get_mut(&thread.tid)?;
        self.counts.cpu_time += schedstat.cpu_time.saturating_sub(entry.last_schedstat.cpu_time);
        self.counts.run_delay += schedstat.run_delay.saturating_sub(entry.last_schedstat.run_delay);
        entry.last_schedstat = *schedstat;
        entry.sleeping.take_if(|asleep| asleep.timeslices != schedstat.timeslices);
        if let Some(SleepingThread { frames, is_truncated, .. }) = &entry.sleeping {
            let frames = Arc::clone(frames);
            let is_truncated = *is_truncated;
            self.counts.unchanged += 1;
            self.record_sample(thread, *checked_at, &frames, is_truncated, "");
            return None;
        }
        match thread.state {
            'Z' | 'X' => {
                self.record_sample(thread, *checked_at, &[], true, "thread has exited");
                return None;
            }
            'R' => {}
            _ if self.read_from_proc
                && self.read_stack_from_proc(thread, *schedstat, *checked_at) =>
            {
                return None;
            }
            // A stopped thread handles the signal only when it continues, which is too late.
            'S' => {}
            _ => {
                self.counts.without_stack += 1;
                self.record_sample(
                    thread,
                    *checked_at,
                    &[],
                    true,
                    "no stack: uninterruptible or stopped",
                );
                return None;
            }
        }
        let reason = match () {
            () if !self.allow_signals => "no stack: threads are not signalled",
            () if thread.blocked >> (SIGNAL - 1) & 1 == 1 => "no stack: blocks SIGURG",
            () => return Some(check),
        };
        self.counts.without_stack += 1;
        self.record_sample(thread, *checked_at, &[], true, reason);
        None
    }

    /// Records a sample with the time of the thread up to `checked_at`.
    fn record_sample(
        &mut self,
        thread: &Thread,
        checked_at: Moment,
        frames: &[u64],
        is_truncated: bool,
        missing_stack_reason: &'static str,
    ) {
        let Some(entry) = self.threads.get_mut(&thread.tid) else { return };
        let time = checked_at.since(entry.accounted_until);
        entry.accounted_until = checked_at;
        let state = match thread.state {
            // It slept and has not run since, so it waits for a core.
            'R' if entry.sleeping.is_some() => "runnable",
            'R' => "running",
            'S' => "sleeping",
            'D' => "disk-sleep",
            'T' | 't' => "stopped",
            'I' => "idle",
            'Z' | 'X' => "ended",
            _ => "unknown",
        };
        let key = ThreadStateKey {
            thread: thread.name.clone(),
            state,
            wait_channel: thread.wait_channel.clone(),
            missing_stack_reason,
        };
        let number = self.states.intern(key);
        let micros = u32::try_from(time.as_micros()).unwrap_or(u32::MAX);
        self.counts.checks += 1;
        self.table.add(number, frames, micros, is_truncated && missing_stack_reason.is_empty());
    }
}

/// Creates the bucket of a limit per second. Its capacity is the larger of one tick's share and one
/// batch of signals, so that older unused tokens cannot cause a burst.
fn bucket_for(limit_per_second: u32, frequency: Hertz) -> TokenBucket {
    let limit = f64::from(limit_per_second);
    let tick_share = limit / f64::from(frequency.get().max(1));
    TokenBucket::empty(tick_share.max(MAX_IN_FLIGHT as f64), limit)
}

#[cfg(test)]
mod tests;
