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
//! A thread whose stacks proved deeper than the copy gets twice the copy, and again up to
//! [`DEEPEST`], and a ring for it.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::io;
use std::time::Duration;

use super::sampler::{Refused, Sampler, Verdict, drain_interval};
use crate::base::{Hertz, Moment};
use crate::os::copied::Copied;
use crate::os::perf::{Event, Sampling};
use crate::os::tasks;
use crate::os::timer::cpu_time_of;

/// The stack that is copied of a thread at first. With what else is in a record two fit into 16 KiB.
const SHALLOW: u32 = 7 << 10;

/// The stack that is copied at most.
const DEEPEST: u32 = 56 << 10;

/// What all rings take at 100 Hz and less.
const BUDGET: usize = 4 << 20;

/// The smallest ring.
const SMALLEST: usize = 16 << 10;

/// Samples that were too short in one drain, out of all, from which on more is copied: 1 in 8.
const TOO_MANY_SHORT: u64 = 8;

/// A thread's event.
struct Watched {
    event: Event,
    /// The thread's CPU time when it was last asked for.
    told: Duration,
    /// What the event had counted then.
    counted: Duration,
}

impl Watched {
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
}

pub(super) struct PerfSampler {
    events: HashMap<u32, Watched>,
    frequency: Hertz,
    user_only: bool,
    /// One more than the highest number a descriptor of ours may have: the host needs the others.
    descriptors: i32,
    copied: Copied,
}

impl PerfSampler {
    /// An engine for some `threads` threads, or why there should be none.
    pub(super) fn new(frequency: Hertz, threads: usize, user_only: bool) -> Result<Self, String> {
        let limit = tasks::descriptor_limit().unwrap_or(u64::MAX);
        let descriptors = i32::try_from(limit / 4 * 3).unwrap_or(i32::MAX);
        if threads as u64 > limit / 4 {
            return Err(format!(
                "perf takes a file descriptor for each of {threads} threads, of {limit}"
            ));
        }
        let events = HashMap::new();
        Ok(Self { events, frequency, user_only, descriptors, copied: Copied::default() })
    }

    fn open(&self, tid: u32, stack_bytes: u32, ring_bytes: usize) -> io::Result<Event> {
        let event = Event::open(
            tid,
            Sampling {
                period: period(self.frequency),
                stack_bytes,
                ring_bytes,
                user_only: self.user_only,
            },
        )?;
        if event.descriptor() >= self.descriptors {
            return Err(rustix::io::Errno::MFILE.into());
        }
        Ok(event)
    }

    /// Another event in the place of the thread's, with a ring of at least `least` bytes; the old one stays
    /// when there can be none.
    fn reopen(&mut self, tid: u32, stack_bytes: u32, least: usize) -> bool {
        let ring = ring_bytes(self.frequency, stack_bytes, self.events.len()).max(least);
        let Ok(event) = self.open(tid, stack_bytes, ring) else { return false };
        if let Some(watched) = self.events.get_mut(&tid) {
            let told = watched.cpu_time(tid);
            *watched = Watched { event, told, counted: Duration::ZERO };
        }
        true
    }
}

impl Sampler for PerfSampler {
    fn attach(&mut self, tids: &[u32]) -> Refused {
        let mut refused = Refused::default();
        let time_of = |&tid: &u32| (cpu_time_of(tid).unwrap_or_default(), tid);
        let mut threads: Vec<(Duration, u32)> = tids.iter().map(time_of).collect();
        threads.sort_unstable_by_key(|&(told, tid)| (Reverse(told), tid));
        let taken = self.events.values().map(|Watched { event, .. }| event.sampling().ring_bytes);
        let rings = deal(self.frequency, self.events.len(), taken.sum(), threads.len());
        for ((told, tid), ring) in threads.into_iter().zip(rings) {
            match self.open(tid, SHALLOW, ring) {
                Ok(event) => {
                    let watched = Watched { event, told, counted: Duration::ZERO };
                    drop(self.events.insert(tid, watched));
                }
                Err(error) => refused.add(error),
            }
        }
        refused
    }

    fn detach(&mut self, tid: u32) {
        self.events.remove(&tid);
    }

    fn counted(&mut self, tid: u32) -> Option<Duration> {
        // It counts in the kernel what it does not sample there.
        if self.user_only {
            return None;
        }
        self.events.get_mut(&tid).map(|watched| watched.cpu_time(tid))
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
            if !self.reopen(tid, stack_bytes, 0)
                && let Some(Watched { event, .. }) = self.events.get_mut(&tid)
            {
                let _ = event.set_period(period(frequency));
            }
        }
    }

    fn drain(&mut self, take: &mut dyn FnMut(&Copied, Moment) -> Verdict) -> u64 {
        let mut lost = 0;
        let mut small = Vec::new();
        for (&tid, Watched { event, .. }) in &mut self.events {
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
        lost
    }

    fn broken(&mut self) -> Option<&'static str> {
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
