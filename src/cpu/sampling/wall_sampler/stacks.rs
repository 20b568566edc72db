//! Stacks of the checked threads: through /proc if the thread sleeps, by a signal otherwise.

use std::collections::HashMap;
use std::thread;
use std::time::Duration;

use super::{PendingSignal, SleepingThread, WallSampler};
use crate::base::{Clock, Moment, SystemClock};
use crate::os::proc::thread_reader::SchedStat;
use crate::os::proc::threads::Thread;
use crate::unwind::thread_sampler::{self, ThreadSampler};
use crate::unwind::{MAX_FRAMES, WalkEnd};

/// Stack bytes read first through /proc; deeper stacks are read again in full.
const SHALLOW_STACK_BYTES: usize = 16 << 10;

/// Maximum wait for a thread to sleep again after a signal woke it.
const RESLEEP_TIMEOUT: Duration = Duration::from_millis(5);

impl WallSampler {
    /// Reads the stack of a sleeping thread through /proc. Returns `false` if that is impossible.
    pub(super) fn read_stack_from_proc(
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
    pub(super) fn sample_by_signal(&mut self, pending: Vec<PendingSignal>) {
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
                        "no stack: SIGURG cannot be used",
                    );
                }
                return;
            }
        };
        self.signal_tokens.take(pending.len());
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

    /// Returns `true` if a thread that slept ran exactly once since `schedstat` was read, for the
    /// handler, and sleeps again.
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
}
