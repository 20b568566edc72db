//! The `perf` engine: one perf event per thread; no code runs in the sampled thread.
//!
//! # Start cost
//!
//! Three system calls per thread: its CPU time, the event, and the ring, whose pages the kernel
//! clears before it returns. The ring is the most expensive, so small rings make a start with many
//! threads fast.
//!
//! # Number of events
//!
//! An event takes a file descriptor, and its ring takes locked memory; `os::quota` returns the
//! limits. A thread without an event waits (`allotment`). Events are closed when the service needs
//! the quota.
//!
//! A thread whose stacks exceed the copied length gets twice the length, repeatedly up to
//! [`MAX_STACK_BYTES`], and a ring to match (`ring_size`).

mod ring_size;

use std::cmp::Reverse;
use std::collections::HashMap;
use std::time::Duration;

use super::allotment::{EventExchange, NotSampled, Unsampled, WaitingThreads, plan_exchange};
use super::sampler::{CpuSampler, DrainScope, UnwindOutcome};
use crate::base::{Clock, Hertz, Moment, SystemClock};
use crate::cpu::sampling::period::period;
use crate::os::clock::cpu_timer::thread_cpu_time;
use crate::os::perf::{FilledRings, PerfEvent, Sampling};
use crate::os::quota::{self, DescriptorQuota, QuotaShare};
use crate::os::stack_snapshot::StackSnapshot;
use ring_size::{INITIAL_STACK_BYTES, allocate_rings, ring_bytes};

/// Maximum stack bytes copied.
const MAX_STACK_BYTES: u32 = 56 << 10;

/// Maximum number of events: their smallest rings take 20 MiB of kernel memory. Timers need no
/// memory per thread.
const MAX_EVENTS: u64 = 1024;

/// One in this many samples of a drain must be too short to increase the copied length.
const SHORT_SAMPLE_DIVISOR: u64 = 8;

struct PerfThread {
    event: PerfEvent,
    /// CPU time of the thread at the last read.
    last_cpu_time: Duration,
    /// Value of the event's counter at the last read.
    last_counter: Duration,
    /// CPU time of the thread at the last review.
    cpu_time_at_rebalance: Duration,
}

impl PerfThread {
    fn new(event: PerfEvent, cpu_time: Duration) -> Self {
        Self {
            event,
            last_cpu_time: cpu_time,
            last_counter: Duration::ZERO,
            cpu_time_at_rebalance: cpu_time,
        }
    }

    /// Returns the CPU time of the thread. After the thread has ended, its event's counter provides
    /// the last part. The counter is the fallback only: its clock is coarser and also runs while a
    /// hypervisor has descheduled the guest. It is not read if the thread has not run.
    fn cpu_time(&mut self, tid: u32) -> Duration {
        let cpu_time = thread_cpu_time(tid).ok();
        if cpu_time != Some(self.last_cpu_time) {
            let counter = self.event.cpu_time().unwrap_or(self.last_counter);
            let increase =
                counter.saturating_sub(std::mem::replace(&mut self.last_counter, counter));
            self.last_cpu_time = cpu_time.unwrap_or(self.last_cpu_time + increase);
        }
        self.last_cpu_time
    }

    /// Returns the CPU time since the last call.
    fn take_usage(&mut self, tid: u32) -> Duration {
        let now = self.cpu_time(tid);
        now.saturating_sub(std::mem::replace(&mut self.cpu_time_at_rebalance, now))
    }
}

pub(super) struct PerfSampler {
    events: HashMap<u32, PerfThread>,
    waiting: WaitingThreads,
    frequency: Hertz,
    user_only: bool,
    lacks_permission: bool,
    descriptors: DescriptorQuota,
    /// Limit for all rings including their header pages.
    locked_memory_quota: QuotaShare,
    rebalanced_at: Moment,
    snapshot: StackSnapshot,
    /// `None` if epoll is unavailable; every ring is read then.
    filled_rings: Option<FilledRings>,
    drained_tids: Vec<u32>,
}

impl PerfSampler {
    /// Returns an engine without threads.
    pub(super) fn new(frequency: Hertz, user_only: bool) -> Self {
        Self {
            events: HashMap::new(),
            waiting: WaitingThreads::default(),
            frequency,
            user_only,
            lacks_permission: false,
            descriptors: DescriptorQuota::open(),
            locked_memory_quota: quota::locked_memory(),
            rebalanced_at: SystemClock.now(),
            snapshot: StackSnapshot::default(),
            filled_rings: FilledRings::new().ok(),
            drained_tids: Vec::new(),
        }
    }

    /// Opens an event if the limit for locked memory allows its ring.
    fn open_event(
        &self,
        tid: u32,
        stack_bytes: u32,
        ring_bytes: usize,
    ) -> Result<PerfEvent, NotSampled> {
        let page = rustix::param::page_size();
        let rings = self.events.values().map(|thread| thread.event.sampling().ring_bytes + page);
        let total = rings.sum::<usize>() + ring_bytes + page;
        if total as u64 > self.locked_memory_quota.count {
            let QuotaShare { count, limit } = self.locked_memory_quota;
            return Err(NotSampled::Other(format!(
                "marple locks at most {} KiB for the ring buffers of perf events: {limit}",
                count >> 10
            )));
        }
        let period = period(self.frequency);
        let sampling = Sampling { period, stack_bytes, ring_bytes, user_only: self.user_only };
        PerfEvent::open(tid, sampling).map_err(NotSampled::from)
    }

    /// Replaces the thread's event by one with a ring of at least `min_ring_bytes`. Keeps the old
    /// event and returns `false` if the new one cannot be opened.
    fn reopen_event(&mut self, tid: u32, stack_bytes: u32, min_ring_bytes: usize) -> bool {
        let ring = ring_bytes(self.frequency, stack_bytes, self.events.len()).max(min_ring_bytes);
        let Ok(event) = self.open_event(tid, stack_bytes, ring) else { return false };
        self.subscribe_to_fill_events(&event, tid);
        if let Some(thread) = self.events.get_mut(&tid) {
            let cpu_time = thread.cpu_time(tid);
            *thread = PerfThread::new(event, cpu_time);
        }
        true
    }

    /// Subscribes to the ring's fill notification. If that fails, every ring is read from then on.
    fn subscribe_to_fill_events(&mut self, event: &PerfEvent, tid: u32) {
        self.filled_rings.take_if(|filled| filled.add(event, tid).is_err());
    }

    /// Starts sampling a thread, or adds it to the waiting threads.
    fn start_event(&mut self, tid: u32, cpu_time: Duration, ring: usize) {
        let min_ring_bytes = ring_bytes(self.frequency, INITIAL_STACK_BYTES, usize::MAX);
        let opened = match self.open_event(tid, INITIAL_STACK_BYTES, ring) {
            Err(NotSampled::Other(_)) if ring > min_ring_bytes => {
                self.open_event(tid, INITIAL_STACK_BYTES, min_ring_bytes)
            }
            opened => opened,
        };
        self.waiting.remove(tid);
        match opened {
            Ok(event) => {
                self.subscribe_to_fill_events(&event, tid);
                self.events.insert(tid, PerfThread::new(event, cpu_time));
            }
            Err(NotSampled::ThreadExited) => {}
            Err(NotSampled::PermissionDenied(reason)) => {
                self.lacks_permission = true;
                self.waiting.add(tid, cpu_time, reason);
            }
            Err(NotSampled::Other(reason)) => self.waiting.add(tid, cpu_time, reason),
        }
    }

    /// Returns the allowed number of events and the reason for the limit.
    fn event_quota(&mut self, now: Moment) -> (usize, String) {
        let QuotaShare { count, limit } = self.descriptors.allowance(self.events.len() as u64, now);
        let reason = if count > MAX_EVENTS {
            format!(
                "marple opens at most {MAX_EVENTS} perf events, because each has its own ring \
                buffer"
            )
        } else {
            format!("marple uses at most {count} descriptors for perf events: {limit}")
        };
        (count.min(MAX_EVENTS) as usize, reason)
    }
}

impl CpuSampler for PerfSampler {
    fn attach(&mut self, tids: &[u32]) {
        if tids.is_empty() {
            return;
        }
        let (event_quota, why) = self.event_quota(SystemClock.now());
        let time_of = |&tid: &u32| (thread_cpu_time(tid).unwrap_or_default(), tid);
        let mut threads: Vec<(Duration, u32)> = tids.iter().map(time_of).collect();
        threads.sort_unstable_by_key(|&(cpu_time, tid)| (Reverse(cpu_time), tid));
        let used_ring_bytes =
            self.events.values().map(|PerfThread { event, .. }| event.sampling().ring_bytes);
        let rings =
            allocate_rings(self.frequency, self.events.len(), used_ring_bytes.sum(), threads.len());
        for ((cpu_time, tid), ring) in threads.into_iter().zip(rings) {
            if self.events.len() < event_quota {
                self.start_event(tid, cpu_time, ring);
            } else {
                self.waiting.add(tid, cpu_time, &*why);
            }
        }
    }

    fn rebalance(&mut self, now: Moment, min_interval: Duration) {
        let (event_quota, why) = self.event_quota(now);
        let exceeds_quota = self.events.len() > event_quota;
        let is_due = !self.waiting.is_empty() && now.since(self.rebalanced_at) >= min_interval;
        if !exceeds_quota && !is_due {
            return;
        }
        self.rebalanced_at = now;
        self.locked_memory_quota = quota::locked_memory();
        let active =
            self.events.iter_mut().map(|(&tid, thread)| (thread.take_usage(tid), tid)).collect();
        let waiting = self.waiting.take_usage(|tid| thread_cpu_time(tid).ok());
        let EventExchange { release, acquire } = plan_exchange(active, waiting, event_quota);
        for tid in release {
            if let Some(thread) = self.events.remove(&tid) {
                self.waiting.add(tid, thread.last_cpu_time, &*why);
            }
        }
        for tid in acquire {
            let ring = ring_bytes(self.frequency, INITIAL_STACK_BYTES, self.events.len() + 1);
            self.start_event(tid, thread_cpu_time(tid).unwrap_or_default(), ring);
            if self.waiting.contains(tid) {
                // The cause of this failure also applies to the remaining threads.
                break;
            }
        }
    }

    fn unsampled(&self) -> Option<Unsampled> {
        self.waiting.unsampled()
    }

    fn lacks_permission(&self) -> bool {
        self.lacks_permission
    }

    fn detach(&mut self, tid: u32) {
        self.events.remove(&tid);
        self.waiting.remove(tid);
    }

    fn thread_cpu_time(&mut self, tid: u32) -> Option<Duration> {
        // The event counts CPU time in the kernel but does not sample it there.
        if self.user_only {
            return None;
        }
        match self.events.get_mut(&tid) {
            Some(thread) => Some(thread.cpu_time(tid)),
            None if self.waiting.contains(tid) => thread_cpu_time(tid).ok(),
            None => None,
        }
    }

    fn set_frequency(&mut self, frequency: Hertz) {
        self.frequency = frequency;
        let tids: Vec<u32> = self.events.keys().copied().collect();
        let threads = tids.len();
        for tid in tids {
            let Some(PerfThread { event, .. }) = self.events.get_mut(&tid) else { continue };
            let Sampling { stack_bytes, ring_bytes: current_ring_bytes, .. } = event.sampling();
            // A ring that is large enough is kept; only the period changes.
            let needed_ring_bytes = ring_bytes(frequency, stack_bytes, threads);
            if needed_ring_bytes <= current_ring_bytes
                && event.set_period(period(frequency)).is_ok()
            {
                continue;
            }
            if self.reopen_event(tid, stack_bytes, 0) {
                continue;
            }
            let Some(thread) = self.events.get_mut(&tid) else { continue };
            if let Err(error) = thread.event.set_period(period(frequency)) {
                // Samples whose period differs from the reported one are worse than no samples.
                let cpu_time = thread.last_cpu_time;
                self.events.remove(&tid);
                self.waiting.add(tid, cpu_time, format!("cannot set the period: {error}"));
            }
        }
    }

    fn drain(
        &mut self,
        scope: DrainScope<'_>,
        on_sample: &mut dyn FnMut(&StackSnapshot, Moment) -> UnwindOutcome,
    ) -> u64 {
        let mut drained = std::mem::take(&mut self.drained_tids);
        drained.clear();
        let is_read = match (scope, &mut self.filled_rings) {
            (DrainScope::Filled(requested_tids), Some(filled_rings)) => {
                drained.extend_from_slice(requested_tids);
                filled_rings.read(&mut drained).is_ok()
            }
            _ => false,
        };
        if !is_read {
            drained.clear();
            drained.extend(self.events.keys());
        }
        let mut lost = 0;
        let mut to_reopen = Vec::new();
        for &tid in &drained {
            let Some(PerfThread { event, .. }) = self.events.get_mut(&tid) else { continue };
            let mut samples = 0u64;
            let mut too_short = 0u64;
            let overflowed = event.drain(&mut self.snapshot, |copied| {
                samples += 1;
                let time = Moment::from_nanos(copied.header.time);
                too_short += u64::from(on_sample(copied, time) == UnwindOutcome::TooShort);
            });
            lost += overflowed;
            let Sampling { stack_bytes, ring_bytes: ring, .. } = event.sampling();
            let max_ring_bytes = ring_bytes(self.frequency, stack_bytes, 1);
            let copy_too_short = too_short > 0
                && too_short * SHORT_SAMPLE_DIVISOR >= samples
                && stack_bytes < MAX_STACK_BYTES;
            let ring_too_small = overflowed > 0 && ring < max_ring_bytes;
            if copy_too_short || ring_too_small {
                let new_stack_bytes = if copy_too_short {
                    (stack_bytes * 2).min(MAX_STACK_BYTES)
                } else {
                    stack_bytes
                };
                to_reopen.push((
                    tid,
                    new_stack_bytes,
                    if ring_too_small { ring * 2 } else { ring },
                ));
            }
        }
        for (tid, stack_bytes, ring) in to_reopen {
            self.reopen_event(tid, stack_bytes, ring);
        }
        self.drained_tids = drained;
        lost
    }

    fn check_failure(&mut self) -> Option<String> {
        None
    }
}
