//! The `perf` engine: one perf event per thread; no code runs in the sampled thread.
//!
//! # Ring size
//!
//! A sample takes [`SHALLOW`] + 80 bytes of its ring regardless of the stack's depth, because the
//! kernel copies a fixed length. Between two drains a busy thread produces `frequency * interval`
//! samples. A ring holds at least twice that, in case a drain is late: 8 samples at 99 Hz and
//! below, 20 at 1000 Hz, so 64 and 256 KiB.
//!
//! All rings together stay within [`BUDGET`] (four times that above 100 Hz). Many threads share few
//! cores, so each produces few samples: the ring shrinks with the number of threads down to two
//! samples. The kernel counts overflows, and a thread whose ring overflowed gets twice the ring, up
//! to the size for a single thread: of 256 threads, two may do all the work. The unused rest of the
//! budget goes to the threads with the most CPU time so far.
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
//! [`DEEPEST`], and a ring to match.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::time::Duration;

use super::allotment::{EventExchange, NotSampled, Unsampled, WaitingThread, exchange};
use super::sampler::{CpuSampler, DrainScope, UnwindOutcome, drain_interval};
use crate::base::{Clock, Hertz, Moment, SystemClock};
use crate::os::clock::cpu_timer::cpu_time_of;
use crate::os::perf::{FilledRings, PerfEvent, Sampling};
use crate::os::quota::{self, DescriptorQuota, QuotaShare};
use crate::os::stack_snapshot::StackSnapshot;

/// Stack bytes copied at first. Two records of `SHALLOW + 80` bytes fit into 16 KiB.
const SHALLOW: u32 = 7 << 10;

/// Maximum stack bytes copied.
const DEEPEST: u32 = 56 << 10;

/// Memory of all rings at 100 Hz and below.
const BUDGET: usize = 4 << 20;

const SMALLEST: usize = 16 << 10;

/// Maximum number of events: their smallest rings take 20 MiB of kernel memory. Timers need no
/// memory per thread.
const MAX_EVENTS: u64 = 1024;

/// One in this many samples of a drain must be too short to increase the copied length.
const TOO_MANY_SHORT: u64 = 8;

/// Minimum interval between reviews of the waiting threads.
pub(super) const REVIEW_EVERY: Duration = Duration::from_millis(250);

struct PerfThread {
    event: PerfEvent,
    /// CPU time of the thread at the last read.
    told: Duration,
    /// Value of the event's counter at the last read.
    counted: Duration,
    /// CPU time of the thread at the last review.
    reviewed: Duration,
}

impl PerfThread {
    fn new(event: PerfEvent, told: Duration) -> Self {
        Self { event, told, counted: Duration::ZERO, reviewed: told }
    }

    /// Returns the CPU time of the thread. After the thread has ended, its event's counter provides
    /// the last part. The counter is the fallback only: its clock is coarser and also runs while a
    /// hypervisor has descheduled the guest. It is not read if the thread has not run.
    fn cpu_time(&mut self, tid: u32) -> Duration {
        let told = cpu_time_of(tid).ok();
        if told != Some(self.told) {
            let counted = self.event.counted().unwrap_or(self.counted);
            let since = counted.saturating_sub(std::mem::replace(&mut self.counted, counted));
            self.told = told.unwrap_or(self.told + since);
        }
        self.told
    }

    /// Returns the CPU time since the last call.
    fn used(&mut self, tid: u32) -> Duration {
        let now = self.cpu_time(tid);
        now.saturating_sub(std::mem::replace(&mut self.reviewed, now))
    }
}

pub(super) struct PerfSampler {
    events: HashMap<u32, PerfThread>,
    waiting: WaitingThread,
    frequency: Hertz,
    user_only: bool,
    wants_permission: bool,
    descriptors: DescriptorQuota,
    /// Limit for all rings including their header pages.
    locked: QuotaShare,
    reviewed: Moment,
    copied: StackSnapshot,
    /// `None` if epoll is unavailable; every ring is read then.
    filled: Option<FilledRings>,
    drained: Vec<u32>,
}

impl PerfSampler {
    /// Returns an engine without threads.
    pub(super) fn new(frequency: Hertz, user_only: bool) -> Self {
        Self {
            events: HashMap::new(),
            waiting: WaitingThread::default(),
            frequency,
            user_only,
            wants_permission: false,
            descriptors: DescriptorQuota::open(),
            locked: quota::locked_memory(),
            reviewed: SystemClock.now(),
            copied: StackSnapshot::default(),
            filled: FilledRings::new().ok(),
            drained: Vec::new(),
        }
    }

    /// Opens an event if the limit for locked memory allows its ring.
    fn open(&self, tid: u32, stack_bytes: u32, ring_bytes: usize) -> Result<PerfEvent, NotSampled> {
        let page = rustix::param::page_size();
        let rings = self.events.values().map(|watched| watched.event.sampling().ring_bytes + page);
        let all = rings.sum::<usize>() + ring_bytes + page;
        if all as u64 > self.locked.count {
            let QuotaShare { count, limit } = self.locked;
            return Err(NotSampled::Why(format!(
                "marple locks at most {} KiB for the rings of perf events: {limit}",
                count >> 10
            )));
        }
        let period = period(self.frequency);
        let sampling = Sampling { period, stack_bytes, ring_bytes, user_only: self.user_only };
        PerfEvent::open(tid, sampling).map_err(NotSampled::from)
    }

    /// Replaces the thread's event by one with a ring of at least `least` bytes. Keeps the old
    /// event and returns `false` if the new one cannot be opened.
    fn reopen(&mut self, tid: u32, stack_bytes: u32, least: usize) -> bool {
        let ring = ring_bytes(self.frequency, stack_bytes, self.events.len()).max(least);
        let Ok(event) = self.open(tid, stack_bytes, ring) else { return false };
        self.note_filling_of(&event, tid);
        if let Some(watched) = self.events.get_mut(&tid) {
            let told = watched.cpu_time(tid);
            *watched = PerfThread::new(event, told);
        }
        true
    }

    /// Subscribes to the ring's fill notification. If that fails, every ring is read from then on.
    fn note_filling_of(&mut self, event: &PerfEvent, tid: u32) {
        self.filled.take_if(|filled| filled.add(event, tid).is_err());
    }

    /// Starts sampling a thread, or adds it to the waiting threads.
    fn begin(&mut self, tid: u32, told: Duration, ring: usize) {
        let smallest = ring_bytes(self.frequency, SHALLOW, usize::MAX);
        let opened = match self.open(tid, SHALLOW, ring) {
            Err(NotSampled::Why(_)) if ring > smallest => self.open(tid, SHALLOW, smallest),
            opened => opened,
        };
        self.waiting.remove(tid);
        match opened {
            Ok(event) => {
                self.note_filling_of(&event, tid);
                self.events.insert(tid, PerfThread::new(event, told));
            }
            Err(NotSampled::Gone) => {}
            Err(NotSampled::Permission(why)) => {
                self.wants_permission = true;
                self.waiting.add(tid, told, why);
            }
            Err(NotSampled::Why(why)) => self.waiting.add(tid, told, why),
        }
    }

    /// Returns the allowed number of events and the reason for the limit.
    fn allowed(&mut self, now: Moment) -> (usize, String) {
        let QuotaShare { count, limit } = self.descriptors.allowance(self.events.len() as u64, now);
        let why = if count > MAX_EVENTS {
            format!("there are at most {MAX_EVENTS} perf events, as each has a ring of its own")
        } else {
            format!("marple takes at most {count} descriptors for perf events: {limit}")
        };
        (count.min(MAX_EVENTS) as usize, why)
    }
}

impl CpuSampler for PerfSampler {
    fn attach(&mut self, tids: &[u32]) {
        if tids.is_empty() {
            return;
        }
        let (allowed, why) = self.allowed(SystemClock.now());
        let time_of = |&tid: &u32| (cpu_time_of(tid).unwrap_or_default(), tid);
        let mut threads: Vec<(Duration, u32)> = tids.iter().map(time_of).collect();
        threads.sort_unstable_by_key(|&(told, tid)| (Reverse(told), tid));
        let taken =
            self.events.values().map(|PerfThread { event, .. }| event.sampling().ring_bytes);
        let rings = deal(self.frequency, self.events.len(), taken.sum(), threads.len());
        for ((told, tid), ring) in threads.into_iter().zip(rings) {
            if self.events.len() < allowed {
                self.begin(tid, told, ring);
            } else {
                self.waiting.add(tid, told, &*why);
            }
        }
    }

    fn review(&mut self, now: Moment, pause: Duration) {
        let (allowed, why) = self.allowed(now);
        let is_short = self.events.len() > allowed;
        let is_due = !self.waiting.is_empty() && now.since(self.reviewed) >= pause;
        if !is_short && !is_due {
            return;
        }
        self.reviewed = now;
        self.locked = quota::locked_memory();
        let held = self.events.iter_mut().map(|(&tid, watched)| (watched.used(tid), tid)).collect();
        let waiting = self.waiting.used(|tid| cpu_time_of(tid).ok());
        let EventExchange { give_up, take } = exchange(held, waiting, allowed);
        for tid in give_up {
            if let Some(watched) = self.events.remove(&tid) {
                self.waiting.add(tid, watched.told, &*why);
            }
        }
        for tid in take {
            let ring = ring_bytes(self.frequency, SHALLOW, self.events.len() + 1);
            self.begin(tid, cpu_time_of(tid).unwrap_or_default(), ring);
            if self.waiting.has(tid) {
                // The cause of this failure also applies to the remaining threads.
                break;
            }
        }
    }

    fn unsampled(&self) -> Option<Unsampled> {
        self.waiting.unsampled()
    }

    fn wants_permission(&self) -> bool {
        self.wants_permission
    }

    fn detach(&mut self, tid: u32) {
        self.events.remove(&tid);
        self.waiting.remove(tid);
    }

    fn counted(&mut self, tid: u32) -> Option<Duration> {
        // The event counts CPU time in the kernel but does not sample it there.
        if self.user_only {
            return None;
        }
        match self.events.get_mut(&tid) {
            Some(watched) => Some(watched.cpu_time(tid)),
            None if self.waiting.has(tid) => cpu_time_of(tid).ok(),
            None => None,
        }
    }

    fn set_frequency(&mut self, frequency: Hertz) {
        self.frequency = frequency;
        let tids: Vec<u32> = self.events.keys().copied().collect();
        let threads = tids.len();
        for tid in tids {
            let Some(PerfThread { event, .. }) = self.events.get_mut(&tid) else { continue };
            let Sampling { stack_bytes, ring_bytes: has, .. } = event.sampling();
            // A ring that is large enough is kept; only the period changes.
            let wants = ring_bytes(frequency, stack_bytes, threads);
            if wants <= has && event.set_period(period(frequency)).is_ok() {
                continue;
            }
            if self.reopen(tid, stack_bytes, 0) {
                continue;
            }
            let Some(watched) = self.events.get_mut(&tid) else { continue };
            if let Err(error) = watched.event.set_period(period(frequency)) {
                // Samples whose period differs from the reported one are worse than no samples.
                let told = watched.told;
                self.events.remove(&tid);
                self.waiting.add(tid, told, format!("cannot set the period: {error}"));
            }
        }
    }

    fn drain(
        &mut self,
        extent: DrainScope<'_>,
        take: &mut dyn FnMut(&StackSnapshot, Moment) -> UnwindOutcome,
    ) -> u64 {
        let mut drained = std::mem::take(&mut self.drained);
        drained.clear();
        let is_read = match (extent, &mut self.filled) {
            (DrainScope::Filled(also), Some(filled)) => {
                drained.extend_from_slice(also);
                filled.read(&mut drained).is_ok()
            }
            _ => false,
        };
        if !is_read {
            drained.clear();
            drained.extend(self.events.keys());
        }
        let mut lost = 0;
        let mut small = Vec::new();
        for &tid in &drained {
            let Some(PerfThread { event, .. }) = self.events.get_mut(&tid) else { continue };
            let (mut samples, mut short) = (0u64, 0u64);
            let overflowed = event.drain(&mut self.copied, |copied| {
                samples += 1;
                let at = Moment::from_nanos(copied.head.time);
                short += u64::from(take(copied, at) == UnwindOutcome::TooShort);
            });
            lost += overflowed;
            let Sampling { stack_bytes, ring_bytes: ring, .. } = event.sampling();
            let largest = ring_bytes(self.frequency, stack_bytes, 1);
            let is_shallow =
                short > 0 && short * TOO_MANY_SHORT >= samples && stack_bytes < DEEPEST;
            let is_narrow = overflowed > 0 && ring < largest;
            if is_shallow || is_narrow {
                let deeper = if is_shallow { (stack_bytes * 2).min(DEEPEST) } else { stack_bytes };
                small.push((tid, deeper, if is_narrow { ring * 2 } else { ring }));
            }
        }
        for (tid, stack_bytes, ring) in small {
            self.reopen(tid, stack_bytes, ring);
        }
        self.drained = drained;
        lost
    }

    fn broken(&mut self) -> Option<String> {
        None
    }
}

/// Returns the ring size for one of `threads` threads.
fn ring_bytes(frequency: Hertz, stack_bytes: u32, threads: usize) -> usize {
    let between = frequency.get() as f64 * drain_interval(frequency).as_secs_f64();
    let samples = (between * 2.0).ceil() as usize;
    let record = stack_bytes as usize + 80;
    let share = budget(frequency) / threads.max(1);
    let share = if share.is_power_of_two() { share } else { share.next_power_of_two() / 2 };
    let smallest = (2 * record).next_power_of_two().max(SMALLEST);
    (samples * record).next_power_of_two().min(share.max(1)).max(smallest)
}

fn budget(frequency: Hertz) -> usize {
    if frequency > Hertz(100) { 4 * BUDGET } else { BUDGET }
}

/// Returns the ring sizes for `more` threads in addition to `there` threads whose rings take
/// `taken` bytes. A thread gets the ring of a single thread as long as the rest of the budget
/// covers the equal share of every later thread.
fn deal(frequency: Hertz, there: usize, taken: usize, more: usize) -> impl Iterator<Item = usize> {
    let share = ring_bytes(frequency, SHALLOW, there + more);
    let largest = ring_bytes(frequency, SHALLOW, 1);
    let mut left = budget(frequency).saturating_sub(taken);
    (0..more).rev().map(move |after| {
        let ring = if left >= largest + after * share { largest } else { share };
        left = left.saturating_sub(ring);
        ring
    })
}

pub(super) fn period(frequency: Hertz) -> Duration {
    Duration::from_secs(1) / frequency.get().max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rings_hold_what_comes_and_stay_within_the_budget() {
        for (frequency, threads, kib) in [
            (19, 1, 64),
            (99, 8, 64),
            (99, 64, 64),
            (99, 65, 32),
            (99, 256, 16),
            (99, 5000, 16),
            (1000, 1, 256),
            (1000, 64, 256),
            (1000, 256, 64),
        ] {
            let bytes = ring_bytes(Hertz(frequency), SHALLOW, threads);
            assert_eq!(bytes >> 10, kib, "{threads} threads at {frequency} Hz");
        }
        assert_eq!(ring_bytes(Hertz(99), DEEPEST, 256) >> 10, 128, "two of the deepest");
    }

    #[test]
    fn what_is_left_of_the_budget_goes_to_the_first() {
        for (there, taken, more, large, kib) in [
            (0, 0, 1, 1, 64),
            (0, 0, 64, 64, 4096),
            (0, 0, 65, 63, 4096),
            (0, 0, 200, 18, 4064),
            (0, 0, 256, 0, 4096),
            (0, 0, 300, 0, 4800),
            (200, 4064 << 10, 1, 0, 16),
            (3, 192 << 10, 2, 2, 128),
        ] {
            let rings: Vec<usize> = deal(Hertz(99), there, taken, more).collect();
            let few = rings.iter().take_while(|&&ring| ring == 64 << 10).count();
            let all: usize = rings.iter().sum();
            assert_eq!((rings.len(), few, all >> 10), (more, large, kib), "{more} beside {there}");
        }
    }
}
