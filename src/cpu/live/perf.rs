//! Perf events: one for each thread, none of it in the thread.
//!
//! # The size of a ring
//!
//! A sample fills [`SHALLOW`] and some 80 bytes of its ring, whatever is in it, as the kernel copies a
//! fixed stretch of stack. Between two drains a thread that never rests makes `frequency x interval`
//! samples; a ring holds twice that at least, in case the drain comes late: 8 at 99 Hz and below, 20 at
//! 1000 Hz, so 64 and 256 KiB. All rings together stay within [`BUDGET`] (four times that above
//! 100 Hz), and many threads share few cores, so that what each of many makes is little: the ring shrinks
//! with their number down to two samples. What overflows is counted by the kernel, and the one that
//! overflowed gets twice the ring, up to what it would have alone: of 256 threads two may do all the work.
//! What the budget has left when each has its share goes to those that have used most CPU time so far.
//!
//! # What a start costs
//!
//! Three system calls a thread: its CPU time, the event, and the ring, which the kernel clears page by page
//! before it answers. The last is the dearest, so small rings are what makes a start beside many threads fast.
//!
//! # How many events
//!
//! An event is a descriptor, and its ring is locked memory; `os::quota` says how many there may be. A thread
//! without one waits (`allotment`), and what is held is given back when the service needs it.
//!
//! A thread whose stacks proved deeper than the copy gets twice the copy, and again up to
//! [`DEEPEST`], and a ring for it.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::time::Duration;

use super::allotment::{Exchange, NotSampled, Unsampled, Waiting, exchange};
use super::sampler::{Drain, Sampler, Verdict, drain_interval};
use crate::base::{Clock, Hertz, Moment, SystemClock};
use crate::os::copied::Copied;
use crate::os::perf::{Event, FilledRings, Sampling};
use crate::os::quota::{self, Allowance, Descriptors};
use crate::os::timer::cpu_time_of;

/// The stack that is copied of a thread at first. With what else is in a record two fit into 16 KiB.
const SHALLOW: u32 = 7 << 10;

/// The stack that is copied at most.
const DEEPEST: u32 = 56 << 10;

/// What all rings take at 100 Hz and less.
const BUDGET: usize = 4 << 20;

/// The smallest ring.
const SMALLEST: usize = 16 << 10;

/// Events there are at most: their smallest rings are 20 MiB of kernel memory. Timers need none for each thread.
const MAX_EVENTS: u64 = 1024;

/// Samples that were too short in one drain, out of all, from which on more is copied: 1 in 8.
const TOO_MANY_SHORT: u64 = 8;

/// Threads that wait are looked at this often at most.
pub(super) const REVIEW_EVERY: Duration = Duration::from_millis(250);

/// A thread's event.
struct Watched {
    event: Event,
    /// The thread's CPU time when it was last asked for.
    told: Duration,
    /// What the event had counted then.
    counted: Duration,
    /// The thread's CPU time at the last review.
    reviewed: Duration,
}

impl Watched {
    fn new(event: Event, told: Duration) -> Self {
        Self { event, told, counted: Duration::ZERO, reviewed: told }
    }

    /// The thread's CPU time. The event counts on where the thread has ended; its clock is a coarser one,
    /// which runs on while a hypervisor lets others run. It is not asked of a thread that has not run.
    fn cpu_time(&mut self, tid: u32) -> Duration {
        let told = cpu_time_of(tid).ok();
        if told != Some(self.told) {
            let counted = self.event.counted().unwrap_or(self.counted);
            let since = counted.saturating_sub(std::mem::replace(&mut self.counted, counted));
            self.told = told.unwrap_or(self.told + since);
        }
        self.told
    }

    /// CPU time since this was asked last.
    fn used(&mut self, tid: u32) -> Duration {
        let now = self.cpu_time(tid);
        now.saturating_sub(std::mem::replace(&mut self.reviewed, now))
    }
}

pub(super) struct PerfSampler {
    events: HashMap<u32, Watched>,
    waiting: Waiting,
    frequency: Hertz,
    user_only: bool,
    wants_permission: bool,
    descriptors: Descriptors,
    /// What all rings with their first pages may take.
    locked: Allowance,
    reviewed: Moment,
    copied: Copied,
    /// `None` if there cannot be one: each ring is looked at then.
    filled: Option<FilledRings>,
    drained: Vec<u32>,
}

impl PerfSampler {
    /// An engine without threads.
    pub(super) fn new(frequency: Hertz, user_only: bool) -> Self {
        Self {
            events: HashMap::new(),
            waiting: Waiting::default(),
            frequency,
            user_only,
            wants_permission: false,
            descriptors: Descriptors::open(),
            locked: quota::locked_memory(),
            reviewed: SystemClock.now(),
            copied: Copied::default(),
            filled: FilledRings::new().ok(),
            drained: Vec::new(),
        }
    }

    /// An event, unless there is no room for its ring.
    fn open(&self, tid: u32, stack_bytes: u32, ring_bytes: usize) -> Result<Event, NotSampled> {
        let page = rustix::param::page_size();
        let rings = self.events.values().map(|watched| watched.event.sampling().ring_bytes + page);
        let all = rings.sum::<usize>() + ring_bytes + page;
        if all as u64 > self.locked.count {
            let Allowance { count, limit } = self.locked;
            return Err(NotSampled::Why(format!(
                "marple locks at most {} KiB for the rings of perf events: {limit}",
                count >> 10
            )));
        }
        let period = period(self.frequency);
        let sampling = Sampling { period, stack_bytes, ring_bytes, user_only: self.user_only };
        Event::open(tid, sampling).map_err(NotSampled::from)
    }

    /// Another event in the place of the thread's, with a ring of at least `least` bytes; the old one stays
    /// when there can be none.
    fn reopen(&mut self, tid: u32, stack_bytes: u32, least: usize) -> bool {
        let ring = ring_bytes(self.frequency, stack_bytes, self.events.len()).max(least);
        let Ok(event) = self.open(tid, stack_bytes, ring) else { return false };
        self.note_filling_of(&event, tid);
        if let Some(watched) = self.events.get_mut(&tid) {
            let told = watched.cpu_time(tid);
            *watched = Watched::new(event, told);
        }
        true
    }

    /// From here on each ring is looked at, if this one cannot say that it fills.
    fn note_filling_of(&mut self, event: &Event, tid: u32) {
        self.filled.take_if(|filled| filled.add(event, tid).is_err());
    }

    /// Begins to sample a thread, or lets it wait.
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
                self.events.insert(tid, Watched::new(event, told));
            }
            Err(NotSampled::Gone) => {}
            Err(NotSampled::Permission(why)) => {
                self.wants_permission = true;
                self.waiting.add(tid, told, why);
            }
            Err(NotSampled::Why(why)) => self.waiting.add(tid, told, why),
        }
    }

    /// How many events there may be, and why not more.
    fn allowed(&mut self, now: Moment) -> (usize, String) {
        let Allowance { count, limit } = self.descriptors.allowance(self.events.len() as u64, now);
        let why = if count > MAX_EVENTS {
            format!("there are at most {MAX_EVENTS} perf events, as each has a ring of its own")
        } else {
            format!("marple takes at most {count} descriptors for perf events: {limit}")
        };
        (count.min(MAX_EVENTS) as usize, why)
    }
}

impl Sampler for PerfSampler {
    fn attach(&mut self, tids: &[u32]) {
        if tids.is_empty() {
            return;
        }
        let (allowed, why) = self.allowed(SystemClock.now());
        let time_of = |&tid: &u32| (cpu_time_of(tid).unwrap_or_default(), tid);
        let mut threads: Vec<(Duration, u32)> = tids.iter().map(time_of).collect();
        threads.sort_unstable_by_key(|&(told, tid)| (Reverse(told), tid));
        let taken = self.events.values().map(|Watched { event, .. }| event.sampling().ring_bytes);
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
        let Exchange { give_up, take } = exchange(held, waiting, allowed);
        for tid in give_up {
            if let Some(watched) = self.events.remove(&tid) {
                self.waiting.add(tid, watched.told, &*why);
            }
        }
        for tid in take {
            let ring = ring_bytes(self.frequency, SHALLOW, self.events.len() + 1);
            self.begin(tid, cpu_time_of(tid).unwrap_or_default(), ring);
            if self.waiting.has(tid) {
                // What stands in the way of this one does so for the next.
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
        // It counts in the kernel what it does not sample there.
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
            let Some(Watched { event, .. }) = self.events.get_mut(&tid) else { continue };
            let Sampling { stack_bytes, ring_bytes: has, .. } = event.sampling();
            // A ring that is large enough is kept, with the new period.
            let wants = ring_bytes(frequency, stack_bytes, threads);
            if wants <= has && event.set_period(period(frequency)).is_ok() {
                continue;
            }
            if self.reopen(tid, stack_bytes, 0) {
                continue;
            }
            let Some(watched) = self.events.get_mut(&tid) else { continue };
            if let Err(error) = watched.event.set_period(period(frequency)) {
                // Samples of another period than is said would be worse than none.
                let told = watched.told;
                self.events.remove(&tid);
                self.waiting.add(tid, told, format!("cannot set the period: {error}"));
            }
        }
    }

    fn drain(
        &mut self,
        extent: Drain<'_>,
        take: &mut dyn FnMut(&Copied, Moment) -> Verdict,
    ) -> u64 {
        let mut drained = std::mem::take(&mut self.drained);
        drained.clear();
        let is_read = match (extent, &mut self.filled) {
            (Drain::Filled(also), Some(filled)) => {
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
            let Some(Watched { event, .. }) = self.events.get_mut(&tid) else { continue };
            let (mut samples, mut short) = (0u64, 0u64);
            let overflowed = event.drain(&mut self.copied, |copied| {
                samples += 1;
                let at = Moment::from_nanos(copied.head.time);
                short += u64::from(take(copied, at) == Verdict::TooShort);
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

/// The ring for a thread among `threads`.
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

/// The rings for `more` threads beside `there`, which have taken `taken` bytes: a ring as for a thread alone as
/// long as what is left of the budget still has the share of each that comes after.
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
