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
//! Slots are mapped at the first start. [`PREFAULTED_BYTES`] bytes of them are touched then, so
//! that the handler causes no page fault: whole slots of 32 KiB on up to four cores, 8 KiB of each
//! on 16. A deeper stack faults once per slot. The kernel may fault on a thread's signal stack at
//! its first signal.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::io;
use std::time::Duration;

use super::allotment::{EventExchange, NotSampled, Unsampled, WaitingThreads, plan_exchange};
use super::sampler::{CpuSampler, DrainScope, UnwindOutcome};
use crate::base::{Clock, Hertz, Moment, SystemClock};
use crate::cpu::sampling::period::{MIN_REBALANCE_INTERVAL, period};
use crate::model::Calibration;
use crate::os::clock::cpu_timer::{ThreadTimer, thread_cpu_time};
use crate::os::clock::cycle_clock;
use crate::os::proc::stack_bounds::StackBounds;
use crate::os::quota::{self, QuotaShare};
use crate::os::signal::{self, SignalCapture, ThreadSlot};
use crate::os::stack_snapshot::StackSnapshot;
use crate::os::syscalls::{OptionalCall, permit};

/// Maximum stack bytes copied.
const MAX_STACK_BYTES: usize = 32 << 10;

const SLOTS_PER_CORE: usize = 16;
const SLOT_COUNT_LIMITS: std::ops::RangeInclusive<usize> = 64..=1024;

/// Bytes of slots touched at the start.
const PREFAULTED_BYTES: usize = 2 << 20;

const SIGPROF: i32 = 27;

/// Minimum distance of two (tick, moment) pairs that define a rate: each is off by about 10 ns.
const MIN_CALIBRATION_INTERVAL: Duration = Duration::from_millis(5);

struct TimedThread {
    timer: ThreadTimer,
    slot: ThreadSlot,
    /// `true` if the handler has the thread's stack bounds, or finding them failed.
    has_stack_bounds: bool,
    /// CPU time of the thread at the last review.
    cpu_time_at_rebalance: Duration,
}

pub(super) struct TimerSampler {
    capture: &'static SignalCapture,
    threads: HashMap<u32, TimedThread>,
    waiting: WaitingThreads,
    /// `true` if threads wait for a quota that may become free.
    waits_for_quota: bool,
    /// Times of the last quota check and of the last review.
    quota_checked_at: Moment,
    rebalanced_at: Moment,
    free_slots: Vec<ThreadSlot>,
    frequency: Hertz,
    /// Losses of the target at the last drain.
    reported_losses: u64,
    rng_state: u64,
    snapshot: StackSnapshot,
    /// The (tick, moment) pairs of two drains. Samples are dated by them and the current pair.
    clock_pairs: [(u64, Moment); 2],
}

impl TimerSampler {
    /// Creates the sampler and installs the signal handler if necessary.
    pub(super) fn new(frequency: Hertz) -> io::Result<Self> {
        let cores = crate::os::proc::process::cores().unwrap_or(1) as usize;
        let slots =
            (cores * SLOTS_PER_CORE).clamp(*SLOT_COUNT_LIMITS.start(), *SLOT_COUNT_LIMITS.end());
        permit(OptionalCall::ThreadTimers)?;
        let capture = signal::install(SIGPROF, slots, MAX_STACK_BYTES)?;
        capture.invalidate_pending();
        if !capture.is_installed() {
            return Err(io::Error::other(HANDLER_REPLACED));
        }
        capture.slots().touch(PREFAULTED_BYTES);
        let mut snapshot = StackSnapshot::default();
        capture.slots().drain(&mut snapshot, |_| {});
        Ok(Self {
            capture,
            threads: HashMap::new(),
            waiting: WaitingThreads::default(),
            waits_for_quota: false,
            quota_checked_at: SystemClock.now(),
            rebalanced_at: SystemClock.now(),
            free_slots: (0..ThreadSlot::MAX).rev().collect(),
            frequency,
            reported_losses: capture.slots().lost(),
            rng_state: std::process::id().into(),
            snapshot,
            clock_pairs: [cycle_clock::tick_and_time(); 2],
        })
    }

    /// Returns `true` if waiting threads may get a timer once the service or the user's other
    /// processes need fewer.
    pub(super) fn waits_for_quota(&self) -> bool {
        self.waits_for_quota
    }

    fn start_timer(&mut self, tid: u32, bounds: &StackBounds) -> Result<(), NotSampled> {
        let slot = *self.free_slots.last().ok_or_else(|| {
            NotSampled::Other(format!("all {} timer slots are in use", ThreadSlot::MAX))
        })?;
        let stack = bounds.for_thread(tid);
        let mut timer = ThreadTimer::new(tid, self.capture.signal(), self.capture.value(slot))?;
        let has_stack_bounds = stack.is_some();
        self.capture.set_stack(slot, stack.unwrap_or(0..0));
        self.capture.set_thread(slot, tid);
        let (first, period) = self.random_phase();
        match timer.arm(first, period) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                return Err(NotSampled::Other(error.to_string()));
            }
            // The thread has ended.
            Err(_) => return Err(NotSampled::ThreadExited),
            Ok(()) => {}
        }
        self.free_slots.pop();
        let reviewed = thread_cpu_time(tid).unwrap_or_default();
        self.threads.insert(
            tid,
            TimedThread { timer, slot, has_stack_bounds, cpu_time_at_rebalance: reviewed },
        );
        Ok(())
    }

    /// Starts timers for these threads up to `timer_quota` in total; the others wait. Threads with
    /// more CPU time come first.
    fn start_timers(&mut self, tids: &[u32], timer_quota: usize, reason: &str) {
        let bounds = StackBounds::open();
        let available = timer_quota.saturating_sub(self.threads.len());
        let mut threads = tids.to_vec();
        let time_of = |tid: u32| thread_cpu_time(tid).unwrap_or_default();
        if available < threads.len() {
            threads.sort_by_cached_key(|&tid| Reverse(time_of(tid)));
        }
        for (index, tid) in threads.into_iter().enumerate() {
            let result = match &bounds {
                _ if index >= available => {
                    self.waits_for_quota = true;
                    Err(NotSampled::Other(reason.to_owned()))
                }
                Ok(bounds) => self.start_timer(tid, bounds),
                Err(error) => {
                    Err(NotSampled::Other(format!("cannot read /proc/self/maps: {error}")))
                }
            };
            self.waiting.remove(tid);
            if let Err(NotSampled::Other(reason) | NotSampled::PermissionDenied(reason)) = result {
                self.waiting.add(tid, time_of(tid), reason);
            }
        }
    }

    fn stop_timer(&mut self, tid: u32) -> bool {
        let Some(TimedThread { timer, slot, .. }) = self.threads.remove(&tid) else { return false };
        drop(timer);
        self.capture.set_stack(slot, 0..0);
        self.capture.set_thread(slot, 0);
        self.free_slots.push(slot);
        true
    }

    /// Returns the allowed number of timers and the reason for the limit.
    fn timer_quota(&self) -> (usize, String) {
        let QuotaShare { count, limit } = quota::pending_signals(self.threads.len() as u64);
        let reason = format!("marple uses at most {count} timers: {limit}");
        (usize::try_from(count).unwrap_or(usize::MAX), reason)
    }

    /// Returns a random part of the period, and the period.
    fn random_phase(&mut self) -> (Duration, Duration) {
        let period = period(self.frequency);
        // Knuth's multiplier; only the upper bits are random enough.
        self.rng_state = self.rng_state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let fraction = (self.rng_state >> 11) as f64 / (1u64 << 53) as f64;
        (period.mul_f64(fraction), period)
    }

    /// Passes the stack bounds of threads whose thread pointer is known from a sample to the
    /// handler.
    fn update_stack_bounds(&mut self, tids: &[(u32, u64, u64)]) {
        let Ok(bounds) = StackBounds::open() else { return };
        for &(tid, thread_pointer, sp) in tids {
            let Some(thread) = self.threads.get_mut(&tid) else { continue };
            thread.has_stack_bounds = true;
            if let Some(stack) = bounds.containing(thread_pointer)
                && stack.contains(&sp)
            {
                self.capture.set_stack(thread.slot, stack);
            }
        }
    }
}

const HANDLER_REPLACED: &str = "the service has replaced marple's SIGPROF handler";

impl CpuSampler for TimerSampler {
    fn attach(&mut self, tids: &[u32]) {
        if !tids.is_empty() {
            let (timer_quota, why) = self.timer_quota();
            self.start_timers(tids, timer_quota, &why);
        }
    }

    fn detach(&mut self, tid: u32) {
        self.stop_timer(tid);
        self.waiting.remove(tid);
    }

    fn rebalance(&mut self, now: Moment, min_interval: Duration) {
        // The quota is per user, so other processes may need it too.
        if now.since(self.quota_checked_at) < MIN_REBALANCE_INTERVAL {
            return;
        }
        self.quota_checked_at = now;
        let (timer_quota, why) = self.timer_quota();
        let is_due = !self.waiting.is_empty() && now.since(self.rebalanced_at) >= min_interval;
        if !is_due && self.threads.len() <= timer_quota {
            return;
        }
        self.rebalanced_at = now;
        let cpu = |tid| thread_cpu_time(tid).ok();
        let active = self.threads.iter_mut().map(|(&tid, timed)| {
            let now = cpu(tid).unwrap_or_default();
            (now.saturating_sub(std::mem::replace(&mut timed.cpu_time_at_rebalance, now)), tid)
        });
        let active = active.collect();
        let EventExchange { release, acquire } =
            plan_exchange(active, self.waiting.take_usage(cpu), timer_quota);
        for tid in release {
            if self.stop_timer(tid) {
                self.waiting.add(tid, cpu(tid).unwrap_or_default(), &*why);
            }
        }
        if !acquire.is_empty() {
            self.start_timers(&acquire, timer_quota, &why);
        }
    }

    fn unsampled(&self) -> Option<Unsampled> {
        self.waiting.unsampled()
    }

    fn thread_cpu_time(&mut self, tid: u32) -> Option<Duration> {
        let is_known = self.threads.contains_key(&tid) || self.waiting.contains(tid);
        is_known.then(|| thread_cpu_time(tid).ok()).flatten()
    }

    fn set_frequency(&mut self, frequency: Hertz) {
        self.frequency = frequency;
        let tids: Vec<u32> = self.threads.keys().copied().collect();
        for tid in tids {
            let (first, period) = self.random_phase();
            if let Some(thread) = self.threads.get_mut(&tid) {
                let _ = thread.timer.arm(first, period);
            }
        }
    }

    /// Drains all threads, regardless of the extent: they share their slots.
    fn drain(
        &mut self,
        _scope: DrainScope<'_>,
        on_sample: &mut dyn FnMut(&StackSnapshot, Moment) -> UnwindOutcome,
    ) -> u64 {
        let pair = cycle_clock::tick_and_time();
        let [older, newer] = self.clock_pairs;
        let calibration = Calibration::new([older, newer, pair]);
        if pair.1.since(newer.1) >= MIN_CALIBRATION_INTERVAL {
            self.clock_pairs = [newer, pair];
        }
        let mut without_bounds = Vec::new();
        let threads = &self.threads;
        self.capture.slots().drain(&mut self.snapshot, |copied| {
            let head = copied.header;
            on_sample(copied, calibration.moment(head.time));
            if threads.get(&head.tid).is_some_and(|timed| !timed.has_stack_bounds) {
                without_bounds.push((head.tid, head.thread_pointer, head.registers.sp));
            }
        });
        if !without_bounds.is_empty() {
            self.update_stack_bounds(&without_bounds);
        }
        let lost = self.capture.slots().lost();
        lost - std::mem::replace(&mut self.reported_losses, lost)
    }

    fn check_failure(&mut self) -> Option<String> {
        let reason = match permit(OptionalCall::ThreadTimers) {
            Ok(()) if self.capture.is_installed() => return None,
            // The host's handler must not receive marple's signals.
            Ok(()) => HANDLER_REPLACED.to_owned(),
            // The timers continue; the handler drops their signals.
            Err(denied) => denied.to_string(),
        };
        self.capture.invalidate_pending();
        self.threads.clear();
        Some(reason)
    }
}
