//! CPU-clock timers: one for each thread, SIGPROF to that thread, a handler that copies.
//!
//! The handler and its slots are `os::signal`'s: installed once, never taken away, chained to what was
//! there. Timers go with the sampler; a signal of theirs that comes later finds its epoch over.
//!
//! A timer of 99 Hz fires within a tick of when it should. Faster than the tick it fires at the tick
//! and its overruns become the sample's weight. Each begins at a random part of its period: of many
//! threads that each run less than one, the right share is seen, where timers that all began with a
//! whole period would see none.
//!
//! What a host notices: system calls that no restart covers (`epoll_wait`, `nanosleep`, `poll`) end with
//! EINTR when the timer expires just as the thread enters one. The thread must use CPU time for that, so
//! it is rare, and such calls may end so at any time; `perf` has none of it.
//!
//! # How many slots
//!
//! A core delivers at most a signal a tick, and slots are freed every 10 ms to 200 ms: at 250 Hz and
//! 10 ms 3 are taken on each core, at 99 Hz and 40 ms or 19 Hz and 200 ms 4. With 16 a core the drain may
//! come 120 ms late at 99 Hz, 50 ms late at 250 and more. They are mapped at the first start, and
//! [`TOUCHED`] bytes of them are touched then, so that the handler meets no page fault: whole slots of 32 KiB
//! on four cores and less, 8 KiB of each on 16. A deeper stack faults once for each slot. The other fault
//! there may be is the kernel's, on a thread's signal stack at its first signal.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::io;
use std::time::Duration;

use super::allotment::{Exchange, NotSampled, Unsampled, Waiting, exchange};
use super::perf::{REVIEW_EVERY, period};
use super::sampler::{Drain, Sampler, Verdict};
use crate::base::{Clock, Hertz, Moment, SystemClock};
use crate::model::Calibration;
use crate::os::copied::Copied;
use crate::os::quota::{self, Allowance};
use crate::os::signal::{self, Entry, Target};
use crate::os::stack_bounds::StackBounds;
use crate::os::syscalls::{Optional, permit};
use crate::os::ticks;
use crate::os::timer::{ThreadTimer, cpu_time_of};

/// The stack that is copied at most.
const STACK: usize = 32 << 10;

const SLOTS_PER_CORE: usize = 16;
const SLOTS: std::ops::RangeInclusive<usize> = 64..=1024;

/// The memory of slots that is touched at the start.
const TOUCHED: usize = 2 << 20;

const SIGPROF: i32 = 27;

/// Two pairs of tick and moment that are closer tell no rate: each is off by some ten nanoseconds.
const DATE_EVERY: Duration = Duration::from_millis(5);

struct Timed {
    timer: ThreadTimer,
    entry: Entry,
    /// Whether the handler knows its stack, or has tried in vain.
    has_bounds: bool,
    /// The thread's CPU time at the last review.
    reviewed: Duration,
}

pub(super) struct TimerSampler {
    target: &'static Target,
    timed: HashMap<u32, Timed>,
    waiting: Waiting,
    /// Whether threads wait for room in a quota, which there may be later.
    may_yet: bool,
    /// The last time the quota was asked for, and the last review.
    asked: Moment,
    reviewed: Moment,
    free: Vec<Entry>,
    frequency: Hertz,
    /// What the target had lost when this was last asked.
    lost: u64,
    random: u64,
    copied: Copied,
    /// Two drains, in ticks and as moments: what is sampled is dated by them and the next.
    pairs: [(u64, Moment); 2],
}

impl TimerSampler {
    /// Installs the handler if that has not been done.
    pub(super) fn new(frequency: Hertz) -> io::Result<Self> {
        let cores = crate::os::process::cores().unwrap_or(1) as usize;
        let slots = (cores * SLOTS_PER_CORE).clamp(*SLOTS.start(), *SLOTS.end());
        permit(Optional::ThreadTimers)?;
        let target = signal::install(SIGPROF, slots, STACK)?;
        target.forget_pending();
        if !target.is_in_place() {
            return Err(io::Error::other(TAKEN));
        }
        target.slots().touch(TOUCHED);
        let mut copied = Copied::default();
        target.slots().drain(&mut copied, |_| {});
        Ok(Self {
            target,
            timed: HashMap::new(),
            waiting: Waiting::default(),
            may_yet: false,
            asked: SystemClock.now(),
            reviewed: SystemClock.now(),
            free: (0..Entry::MAX).rev().collect(),
            frequency,
            lost: target.slots().lost(),
            random: std::process::id().into(),
            copied,
            pairs: [ticks::pair(); 2],
        })
    }

    /// Whether threads may get a timer later, when the service or the user's other processes need fewer.
    pub(super) fn may_yet(&self) -> bool {
        self.may_yet
    }

    fn time(&mut self, tid: u32, bounds: &StackBounds) -> Result<(), NotSampled> {
        let entry = *self.free.last().ok_or_else(|| {
            NotSampled::Why(format!("the {} places for timers are taken", Entry::MAX))
        })?;
        let stack = bounds.of(tid);
        let mut timer = ThreadTimer::new(tid, self.target.signal(), self.target.value(entry))?;
        let has_bounds = stack.is_some();
        self.target.set_stack(entry, stack.unwrap_or(0..0));
        self.target.set_thread(entry, tid);
        let (first, period) = self.phase();
        match timer.set(first, period) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                return Err(NotSampled::Why(error.to_string()));
            }
            // The thread has ended.
            Err(_) => return Err(NotSampled::Gone),
            Ok(()) => {}
        }
        self.free.pop();
        let reviewed = cpu_time_of(tid).unwrap_or_default();
        self.timed.insert(tid, Timed { timer, entry, has_bounds, reviewed });
        Ok(())
    }

    /// Gives these threads timers, as long as there may be more than there are; the others wait. Threads that used
    /// more CPU time come first.
    fn begin(&mut self, tids: &[u32], allowed: usize, why: &str) {
        let bounds = StackBounds::open();
        let room = allowed.saturating_sub(self.timed.len());
        let mut threads = tids.to_vec();
        let time_of = |tid: u32| cpu_time_of(tid).unwrap_or_default();
        if room < threads.len() {
            threads.sort_by_cached_key(|&tid| Reverse(time_of(tid)));
        }
        for (place, tid) in threads.into_iter().enumerate() {
            let timed = match &bounds {
                _ if place >= room => {
                    self.may_yet = true;
                    Err(NotSampled::Why(why.to_owned()))
                }
                Ok(bounds) => self.time(tid, bounds),
                Err(error) => Err(NotSampled::Why(format!("cannot read /proc/self/maps: {error}"))),
            };
            self.waiting.remove(tid);
            if let Err(NotSampled::Why(why) | NotSampled::Permission(why)) = timed {
                self.waiting.add(tid, time_of(tid), why);
            }
        }
    }

    fn release(&mut self, tid: u32) -> bool {
        let Some(Timed { timer, entry, .. }) = self.timed.remove(&tid) else { return false };
        drop(timer);
        self.target.set_stack(entry, 0..0);
        self.target.set_thread(entry, 0);
        self.free.push(entry);
        true
    }

    /// How many timers there may be, and why not more.
    fn allowed(&self) -> (usize, String) {
        let Allowance { count, limit } = quota::pending_signals(self.timed.len() as u64);
        let why = format!("marple takes at most {count} timers: {limit}");
        (usize::try_from(count).unwrap_or(usize::MAX), why)
    }

    /// A random part of the period, and the period.
    fn phase(&mut self) -> (Duration, Duration) {
        let period = period(self.frequency);
        // Knuth's multiplier; the upper bits are the random ones.
        self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let part = (self.random >> 11) as f64 / (1u64 << 53) as f64;
        (period.mul_f64(part), period)
    }

    /// Lets the handler know the stack of a thread that told its own thread pointer.
    fn learn(&mut self, tids: &[(u32, u64, u64)]) {
        let Ok(bounds) = StackBounds::open() else { return };
        for &(tid, thread_pointer, sp) in tids {
            let Some(timed) = self.timed.get_mut(&tid) else { continue };
            timed.has_bounds = true;
            if let Some(stack) = bounds.below(thread_pointer)
                && stack.contains(&sp)
            {
                self.target.set_stack(timed.entry, stack);
            }
        }
    }
}

const TAKEN: &str = "this process has put a SIGPROF handler of its own over ours";

impl Sampler for TimerSampler {
    fn attach(&mut self, tids: &[u32]) {
        if !tids.is_empty() {
            let (allowed, why) = self.allowed();
            self.begin(tids, allowed, &why);
        }
    }

    fn detach(&mut self, tid: u32) {
        self.release(tid);
        self.waiting.remove(tid);
    }

    fn review(&mut self, now: Moment, pause: Duration) {
        // The quota is the user's, so other processes may need it too.
        if now.since(self.asked) < REVIEW_EVERY {
            return;
        }
        self.asked = now;
        let (allowed, why) = self.allowed();
        let is_due = !self.waiting.is_empty() && now.since(self.reviewed) >= pause;
        if !is_due && self.timed.len() <= allowed {
            return;
        }
        self.reviewed = now;
        let cpu = |tid| cpu_time_of(tid).ok();
        let held = self.timed.iter_mut().map(|(&tid, timed)| {
            let now = cpu(tid).unwrap_or_default();
            (now.saturating_sub(std::mem::replace(&mut timed.reviewed, now)), tid)
        });
        let held = held.collect();
        let Exchange { give_up, take } = exchange(held, self.waiting.used(cpu), allowed);
        for tid in give_up {
            if self.release(tid) {
                self.waiting.add(tid, cpu(tid).unwrap_or_default(), &*why);
            }
        }
        if !take.is_empty() {
            self.begin(&take, allowed, &why);
        }
    }

    fn unsampled(&self) -> Option<Unsampled> {
        self.waiting.unsampled()
    }

    fn counted(&mut self, tid: u32) -> Option<Duration> {
        let is_known = self.timed.contains_key(&tid) || self.waiting.has(tid);
        is_known.then(|| cpu_time_of(tid).ok()).flatten()
    }

    fn set_frequency(&mut self, frequency: Hertz) {
        self.frequency = frequency;
        let tids: Vec<u32> = self.timed.keys().copied().collect();
        for tid in tids {
            let (first, period) = self.phase();
            if let Some(timed) = self.timed.get_mut(&tid) {
                let _ = timed.timer.set(first, period);
            }
        }
    }

    /// All threads: they share their slots.
    fn drain(
        &mut self,
        _extent: Drain<'_>,
        take: &mut dyn FnMut(&Copied, Moment) -> Verdict,
    ) -> u64 {
        let pair = ticks::pair();
        let [older, newer] = self.pairs;
        let dates = Calibration::new([older, newer, pair]);
        if pair.1.since(newer.1) >= DATE_EVERY {
            self.pairs = [newer, pair];
        }
        let mut unknown = Vec::new();
        let timed = &self.timed;
        self.target.slots().drain(&mut self.copied, |copied| {
            let head = copied.head;
            take(copied, dates.moment(head.time));
            if timed.get(&head.tid).is_some_and(|timed| !timed.has_bounds) {
                unknown.push((head.tid, head.thread_pointer, head.registers.sp));
            }
        });
        if !unknown.is_empty() {
            self.learn(&unknown);
        }
        let lost = self.target.slots().lost();
        lost - std::mem::replace(&mut self.lost, lost)
    }

    fn broken(&mut self) -> Option<String> {
        let why = match permit(Optional::ThreadTimers) {
            Ok(()) if self.target.is_in_place() => return None,
            // Its handler must not get our signals.
            Ok(()) => TAKEN.to_owned(),
            // The timers go on, and what they send is dropped.
            Err(denied) => denied.to_string(),
        };
        self.target.forget_pending();
        self.timed.clear();
        Some(why)
    }
}
