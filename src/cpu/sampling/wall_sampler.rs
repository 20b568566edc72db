//! The thread `marple-wall`, which checks all threads in turn.

use std::any::Any;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use super::images::SeenImages;
use super::wall_report::WallCounts;
use crate::base::{Clock, Hertz, Moment, SystemClock, panics};
use crate::cpu::error::Error;
use crate::cpu::sampling::sample_table::SampleTable;
use crate::cpu::sampling::thread_state_key::{ThreadStateInterner, ThreadStateKey};
use crate::os::proc::thread_list::ThreadList;
use crate::os::proc::thread_reader::{ProcThreadReader, SchedStat};
use crate::os::proc::threads::{self, Thread};
use crate::unwind::thread_sampler::{self, MAX_IN_FLIGHT, SIGNAL, ThreadSampler};
use crate::unwind::{MAX_FRAMES, StackWalker, WalkEnd};

/// Maximum checks per second: 3 % of a core.
const MAX_CHECKS_PER_SECOND: u32 = 2000;

/// Maximum signals per second, over all threads.
const MAX_SIGNALS_PER_SECOND: u32 = 500;

/// Maximum interval between reads of the thread list; a changed number of threads also triggers a
/// read.
const THREAD_LIST_INTERVAL: Duration = Duration::from_millis(250);

/// Table entries, as in a CPU session.
const MAX_TABLE_ENTRIES: usize = 64 << 10;

/// Stack bytes read first through /proc; deeper stacks are read again in full.
const SHALLOW_STACK_BYTES: usize = 16 << 10;

/// Maximum wait for a thread to sleep again after a signal woke it.
const RESLEEP_TIMEOUT: Duration = Duration::from_millis(5);

/// A thread being sampled.
struct SampledThread {
    /// End of the time that is accounted for.
    accounted_until: Moment,
    last_schedstat: SchedStat,
    sleeping: Option<SleepingThread>,
}

/// Stack of a sleeping thread, valid while `turns` is unchanged.
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

/// A token bucket, refilled with time.
struct TokenBucket {
    tokens_per_second: f64,
    tokens: f64,
}

impl TokenBucket {
    fn new(tokens_per_second: u32) -> Self {
        Self { tokens_per_second: tokens_per_second.into(), tokens: 0.0 }
    }

    /// Adds tokens, up to the larger of one tick's share and one batch of signals. Older unused
    /// tokens expire, so that they cannot cause a burst.
    fn refill(&mut self, elapsed: Duration, frequency: Hertz) {
        let max_tokens =
            (self.tokens_per_second / f64::from(frequency.get().max(1))).max(MAX_IN_FLIGHT as f64);
        self.tokens =
            (self.tokens + elapsed.as_secs_f64() * self.tokens_per_second).min(max_tokens);
    }

    fn is_empty(&self) -> bool {
        self.tokens < 1.0
    }
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
            check_tokens: TokenBucket::new(MAX_CHECKS_PER_SECOND),
            signal_tokens: TokenBucket::new(MAX_SIGNALS_PER_SECOND),
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

    /// Samples until `ends` closes.
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
        self.check_tokens.refill(elapsed, self.frequency);
        self.signal_tokens.refill(elapsed, self.frequency);
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
            let is_signal_limit_reached = self.signal_tokens.tokens - (pending.len() as f64) < 1.0;
            if self.check_tokens.is_empty() || (self.allow_signals && is_signal_limit_reached) {
                self.counts.incomplete_ticks += 1;
                break;
            }
            let Some(tid) = self.queue.pop_front() else { break };
            self.check_tokens.tokens -= 1.0;
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
            let (frames, is_truncated) = (Arc::clone(frames), *is_truncated);
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

    /// Reads the stack of a sleeping thread through /proc. Returns `false` if that is impossible.
    fn read_stack_from_proc(
        &mut self,
        thread: &Thread,
        schedstat: SchedStat,
        checked_at: Moment,
    ) -> bool {
        for bytes in [SHALLOW_STACK_BYTES, thread_sampler::STACK_BYTES] {
            let Some(registers) = self.proc_reader.read_sleeping_stack(
                thread.tid,
                schedstat,
                bytes,
                &mut self.stack_buffer,
            ) else {
                return false;
            };
            let mut frames = [0; MAX_FRAMES];
            let walk = self.walker.walk(registers, &self.stack_buffer, false, &mut frames);
            let is_truncated = match walk.end {
                WalkEnd::Complete => Some(false),
                WalkEnd::TooManyFrames => Some(true),
                _ => None,
            };
            if let Some(is_truncated) = is_truncated {
                let frames = frames.get(..walk.depth).unwrap_or_default();
                self.counts.read_from_proc += 1;
                self.record_sample(thread, checked_at, frames, is_truncated, "");
                self.cache_stack(thread.tid, schedstat.timeslices, frames, is_truncated);
                return true;
            }
            if walk.end == WalkEnd::NoUnwindInfo {
                return false;
            }
        }
        false
    }

    /// Samples threads by signal.
    fn sample_by_signal(&mut self, pending: Vec<PendingSignal>) {
        let sampler = match ThreadSampler::lock() {
            Ok(sampler) => sampler,
            Err(reason) => {
                self.counts.without_stack += pending.len() as u64;
                self.counts.signal_error = Some(reason);
                for PendingSignal { thread, checked_at, .. } in &pending {
                    self.record_sample(
                        thread,
                        *checked_at,
                        &[],
                        true,
                        "no stack: no handler for SIGURG",
                    );
                }
                return;
            }
        };
        self.signal_tokens.tokens -= pending.len() as f64;
        self.counts.signalled += pending.len() as u64;
        let tids = pending.iter().map(|check| check.thread.tid);
        let mut stacks: HashMap<u32, (Box<[u64]>, WalkEnd)> = HashMap::new();
        let mut exited = Vec::new();
        let on_stack = |tid, frames: &[u64], end| drop(stacks.insert(tid, (frames.into(), end)));
        // Without maps no stack has bounds, and no thread is signalled.
        let _ =
            sampler.sample(&SystemClock, tids, &mut self.walker, |tid| exited.push(tid), on_stack);
        drop(sampler);
        exited.into_iter().for_each(|tid| self.remove_thread(tid, true));
        let deadline = SystemClock.now() + RESLEEP_TIMEOUT;
        for PendingSignal { thread, schedstat, checked_at } in pending {
            let Some((frames, end)) = stacks.remove(&thread.tid) else {
                if self.threads.contains_key(&thread.tid) {
                    self.counts.without_stack += 1;
                    self.record_sample(
                        &thread,
                        checked_at,
                        &[],
                        true,
                        "no stack: no reply to SIGURG within 100 ms",
                    );
                }
                continue;
            };
            let is_truncated = end != WalkEnd::Complete;
            self.record_sample(&thread, checked_at, &frames, is_truncated, "");
            if thread.state == 'S' && self.is_sleeping_again(thread.tid, schedstat, deadline) {
                self.cache_stack(thread.tid, schedstat.timeslices + 1, &frames, is_truncated);
            }
        }
    }

    /// Returns `true` if a thread that slept ran exactly once since `runs`, for the handler, and
    /// sleeps again.
    fn is_sleeping_again(&self, tid: u32, schedstat: SchedStat, deadline: Moment) -> bool {
        loop {
            match self.proc_reader.thread_state(tid) {
                Some((thread, schedstat_now))
                    if schedstat_now.timeslices == schedstat.timeslices + 1 =>
                {
                    if thread.state == 'S' {
                        return true;
                    }
                }
                _ => return false,
            }
            if SystemClock.now() >= deadline {
                return false;
            }
            thread::sleep(Duration::from_micros(50));
        }
    }

    fn cache_stack(&mut self, tid: u32, timeslices: u64, frames: &[u64], is_truncated: bool) {
        if let Some(entry) = self.threads.get_mut(&tid) {
            entry.sleeping =
                Some(SleepingThread { timeslices, frames: frames.into(), is_truncated });
        }
    }

    /// Records a sample with the time of the thread up to `at`.
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

#[cfg(test)]
#[path = "wall_tests.rs"]
mod tests;
