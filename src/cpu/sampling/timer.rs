//! The `timer` engine: one CPU-clock timer per thread, which sends SIGPROF to that thread, whose
//! handler copies its stack.
//!
//! The handler and its slots are in `os::signal`: installed once, never removed, chained to the
//! previous handler. Timers end with the sampler; a later signal has an expired epoch and is
//! ignored.
//!
//! A timer of 99 Hz fires within one tick of its due time. A timer faster than the tick fires at
//! the tick, and its overruns become the sample's weight. Each timer starts at a random phase of
//! its period. If many threads each run less than one period, the right fraction of them is
//! sampled; timers that all start with a full period would sample none.
//!
//! Effect on the host: system calls that are never restarted (`epoll_wait`, `nanosleep`, `poll`)
//! return EINTR if the timer expires while the thread enters one. The thread must use CPU time for
//! that, so it is rare, and such calls may return EINTR at any time anyway. `perf` does not have
//! this effect.
//!
//! # Number of slots
//!
//! A core delivers at most one signal per tick, and slots are freed every 10 ms to 200 ms. Slots in
//! use per core: 3 at 250 Hz and 10 ms; 4 at 99 Hz and 40 ms, and at 19 Hz and 200 ms. With 16 per
//! core the drain may be 120 ms late at 99 Hz, and 50 ms late at 250 Hz and above.
//!
//! Slots are mapped at the first start. [`TOUCHED`] bytes of them are touched then, so that the
//! handler causes no page fault: whole slots of 32 KiB on up to four cores, 8 KiB of each on 16. A
//! deeper stack faults once per slot. The kernel may fault on a thread's signal stack at its first
//! signal.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::io;
use std::time::Duration;

use super::allotment::{EventExchange, NotSampled, Unsampled, WaitingThread, exchange};
use super::perf::{REVIEW_EVERY, period};
use super::sampler::{CpuSampler, DrainScope, UnwindOutcome};
use crate::base::{Clock, Hertz, Moment, SystemClock};
use crate::model::Calibration;
use crate::os::clock::cpu_timer::{ThreadTimer, cpu_time_of};
use crate::os::clock::cycle_clock;
use crate::os::proc::stack_bounds::StackBounds;
use crate::os::quota::{self, QuotaShare};
use crate::os::signal::{self, SignalCapture, ThreadSlot};
use crate::os::stack_snapshot::StackSnapshot;
use crate::os::syscalls::{OptionalCall, permit};

/// Maximum stack bytes copied.
const STACK: usize = 32 << 10;

const SLOTS_PER_CORE: usize = 16;
const SLOTS: std::ops::RangeInclusive<usize> = 64..=1024;

/// Bytes of slots touched at the start.
const TOUCHED: usize = 2 << 20;

const SIGPROF: i32 = 27;

/// Minimum distance of two (tick, moment) pairs that define a rate: each is off by about 10 ns.
const DATE_EVERY: Duration = Duration::from_millis(5);

struct TimedThread {
    timer: ThreadTimer,
    entry: ThreadSlot,
    /// `true` if the handler has the thread's stack bounds, or finding them failed.
    has_bounds: bool,
    /// CPU time of the thread at the last review.
    reviewed: Duration,
}

pub(super) struct TimerSampler {
    target: &'static SignalCapture,
    timed: HashMap<u32, TimedThread>,
    waiting: WaitingThread,
    /// `true` if threads wait for a quota that may become free.
    may_yet: bool,
    /// Times of the last quota check and of the last review.
    asked: Moment,
    reviewed: Moment,
    free: Vec<ThreadSlot>,
    frequency: Hertz,
    /// Losses of the target at the last drain.
    lost: u64,
    random: u64,
    copied: StackSnapshot,
    /// The (tick, moment) pairs of two drains. Samples are dated by them and the current pair.
    pairs: [(u64, Moment); 2],
}

impl TimerSampler {
    /// Creates the sampler and installs the signal handler if necessary.
    pub(super) fn new(frequency: Hertz) -> io::Result<Self> {
        let cores = crate::os::proc::process::cores().unwrap_or(1) as usize;
        let slots = (cores * SLOTS_PER_CORE).clamp(*SLOTS.start(), *SLOTS.end());
        permit(OptionalCall::ThreadTimers)?;
        let target = signal::install(SIGPROF, slots, STACK)?;
        target.forget_pending();
        if !target.is_in_place() {
            return Err(io::Error::other(TAKEN));
        }
        target.slots().touch(TOUCHED);
        let mut copied = StackSnapshot::default();
        target.slots().drain(&mut copied, |_| {});
        Ok(Self {
            target,
            timed: HashMap::new(),
            waiting: WaitingThread::default(),
            may_yet: false,
            asked: SystemClock.now(),
            reviewed: SystemClock.now(),
            free: (0..ThreadSlot::MAX).rev().collect(),
            frequency,
            lost: target.slots().lost(),
            random: std::process::id().into(),
            copied,
            pairs: [cycle_clock::pair(); 2],
        })
    }

    /// Returns `true` if waiting threads may get a timer once the service or the user's other
    /// processes need fewer.
    pub(super) fn may_yet(&self) -> bool {
        self.may_yet
    }

    fn time(&mut self, tid: u32, bounds: &StackBounds) -> Result<(), NotSampled> {
        let entry = *self.free.last().ok_or_else(|| {
            NotSampled::Why(format!("the {} places for timers are taken", ThreadSlot::MAX))
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
        self.timed.insert(tid, TimedThread { timer, entry, has_bounds, reviewed });
        Ok(())
    }

    /// Starts timers for these threads up to `allowed` in total; the others wait. Threads with more
    /// CPU time come first.
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
        let Some(TimedThread { timer, entry, .. }) = self.timed.remove(&tid) else { return false };
        drop(timer);
        self.target.set_stack(entry, 0..0);
        self.target.set_thread(entry, 0);
        self.free.push(entry);
        true
    }

    /// Returns the allowed number of timers and the reason for the limit.
    fn allowed(&self) -> (usize, String) {
        let QuotaShare { count, limit } = quota::pending_signals(self.timed.len() as u64);
        let why = format!("marple takes at most {count} timers: {limit}");
        (usize::try_from(count).unwrap_or(usize::MAX), why)
    }

    /// Returns a random part of the period, and the period.
    fn phase(&mut self) -> (Duration, Duration) {
        let period = period(self.frequency);
        // Knuth's multiplier; only the upper bits are random enough.
        self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let part = (self.random >> 11) as f64 / (1u64 << 53) as f64;
        (period.mul_f64(part), period)
    }

    /// Passes the stack bounds of threads whose thread pointer is known from a sample to the
    /// handler.
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

impl CpuSampler for TimerSampler {
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
        // The quota is per user, so other processes may need it too.
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
        let EventExchange { give_up, take } = exchange(held, self.waiting.used(cpu), allowed);
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

    /// Drains all threads, regardless of the extent: they share their slots.
    fn drain(
        &mut self,
        _extent: DrainScope<'_>,
        take: &mut dyn FnMut(&StackSnapshot, Moment) -> UnwindOutcome,
    ) -> u64 {
        let pair = cycle_clock::pair();
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
        let why = match permit(OptionalCall::ThreadTimers) {
            Ok(()) if self.target.is_in_place() => return None,
            // The host's handler must not receive marple's signals.
            Ok(()) => TAKEN.to_owned(),
            // The timers continue; the handler drops their signals.
            Err(denied) => denied.to_string(),
        };
        self.target.forget_pending();
        self.timed.clear();
        Some(why)
    }
}
