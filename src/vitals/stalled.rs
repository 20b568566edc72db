//! Fraction of the last ten seconds in which a runtime did not run ready work.
//!
//! A runtime whose workers block for 0.7 s at a time answers every request late, but its lag
//! returns to zero each time the probe has run. A rule that requires two seconds of lag never
//! fires. This metric is a fraction of time instead, based on the probe that each tick sends
//! (`probe.rs`):
//!
//! ```text
//! own lag = lag - time the process was suspended - largest growth of a worker's run delay
//! own lag > 100 ms           the time since the tick before counts as stalled
//! the probe still waits      undecided until the own lag is above 100 ms or the probe has run
//! otherwise, or not woken    does not count
//! ```
//!
//! **Workers that wait for a core** indicate load of the machine or a CPU quota, not a stall of the
//! service. The kernel counts such a wait when it ends, so the decision about a tick includes the
//! growth up to the next tick. The counters are read only for ten seconds after a late tick. They
//! cost a healthy runtime nothing, but the first late tick does not count.
//!
//! **Start-up.** The first ten seconds of a runtime do not count.

use std::time::Duration;

use crate::base::{Moment, Percent, standstill};

const WINDOW: Duration = Duration::from_secs(10);

/// Maximum lag that is considered normal. The default stall threshold is the same.
const MAX_NORMAL_LAG: Duration = Duration::from_millis(100);

/// Number of parts of the window: 20 complete ones and the current one.
const BUCKET_COUNT: usize = 21;
const BUCKET_DURATION: Duration = Duration::from_millis(500);

/// Maximum number of threads whose run delay is read: the last ones that ran the probe. Reading
/// takes 5 us per thread.
const MAX_THREADS: usize = 8;

/// State of the probe at a tick.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ProbeState {
    /// The probe was not woken at the last tick, because the runtime was idle, or this is the first
    /// tick.
    Asleep,
    /// The probe has waited for this time and has not run.
    Waiting(Duration),
    /// The probe has waited for this time and has run.
    Ran(Duration),
}

impl ProbeState {
    /// Returns the lag of the probe; zero if it was not woken.
    pub(super) const fn lag(self) -> Duration {
        match self {
            Self::Asleep => Duration::ZERO,
            Self::Waiting(lag) | Self::Ran(lag) => lag,
        }
    }
}

/// Stalled time of one runtime.
#[derive(Debug, Default)]
pub(super) struct StalledTime {
    first_tick: Option<Moment>,
    /// Stalled time in each part of the window.
    buckets: [Duration; BUCKET_COUNT],
    /// Number of the current part, counted from the origin of [`Moment`].
    current_bucket: u64,
    /// Time up to which the decision has been made.
    decided_until: Moment,
    /// Time that counts as stalled unless the next tick finds that the workers waited for a core.
    pending: Option<PendingTime>,
    /// Threads that ran the probe, with their run delays at the last tick if those were read.
    threads: Vec<(u32, Option<Duration>)>,
    /// Growth of the run delay since the probe was sent.
    run_delay_growth: Duration,
    /// Time until which run delays are read.
    read_delays_until: Moment,
}

#[derive(Clone, Copy, Debug)]
struct PendingTime {
    from: Moment,
    until: Moment,
    own_lag: Duration,
}

impl StalledTime {
    /// Adds a thread that ran the probe.
    pub(super) fn add_thread(&mut self, thread: u32) {
        if self.threads.iter().any(|(known, _)| *known == thread) {
            return;
        }
        if self.threads.len() == MAX_THREADS {
            self.threads.remove(0);
        }
        self.threads.push((thread, None));
    }

    /// Adds the result of the tick at `now` and returns the fraction as a percentage. `run_delay`
    /// returns the total time that a thread has waited for a core.
    pub(super) fn push(
        &mut self,
        now: Moment,
        probe: ProbeState,
        run_delay: impl Fn(u32) -> Option<Duration>,
    ) -> Percent {
        let first_tick = *self.first_tick.get_or_insert(now);
        let lag = probe.lag();
        let should_read = now < self.read_delays_until || lag > MAX_NORMAL_LAG;
        let growth = if should_read { self.read_run_delays(run_delay) } else { None };
        if lag > MAX_NORMAL_LAG {
            self.read_delays_until = now + WINDOW;
        } else if !should_read {
            self.threads.iter_mut().for_each(|(_, delay)| *delay = None);
        }
        if let (Some(pending), Some(growth)) = (self.pending.take(), growth)
            && pending.own_lag.saturating_sub(growth) > MAX_NORMAL_LAG
        {
            self.add_stalled(pending.from.max(first_tick + WINDOW), pending.until);
        }
        self.run_delay_growth += growth.unwrap_or_default();
        let own_lag = lag.saturating_sub(self.run_delay_growth);
        // `growth` is `None` if no thread has run the probe, so that the runtime has not been
        // driven yet, and at the first reading of the run delays.
        if own_lag > MAX_NORMAL_LAG && growth.is_some() {
            self.pending = Some(PendingTime { from: self.decided_until, until: now, own_lag });
        }
        if own_lag > MAX_NORMAL_LAG || !matches!(probe, ProbeState::Waiting(_)) {
            self.decided_until = now;
        }
        if !matches!(probe, ProbeState::Waiting(_)) {
            self.run_delay_growth = Duration::ZERO;
        }
        self.stalled_percent(now)
    }

    /// Reads the run delays. Returns the largest growth since the last tick, or `None` if no thread
    /// has an earlier reading.
    fn read_run_delays(&mut self, run_delay: impl Fn(u32) -> Option<Duration>) -> Option<Duration> {
        let mut largest = None;
        for (thread, last) in &mut self.threads {
            let delay = run_delay(*thread);
            if let (Some(delay), Some(last)) = (delay, *last) {
                largest = largest.max(Some(delay.saturating_sub(last)));
            }
            *last = delay;
        }
        largest
    }

    /// Counts the time from `from` to `until`, which must not be in the future.
    fn add_stalled(&mut self, mut from: Moment, until: Moment) {
        while from < until {
            let number = bucket_number(from);
            self.advance_to(number);
            let end = until.min(bucket_start(number + 1));
            // A part that has left the window is skipped.
            if number + BUCKET_COUNT as u64 > self.current_bucket
                && let Some(bucket) = self.buckets.get_mut((number % BUCKET_COUNT as u64) as usize)
            {
                *bucket += standstill::running_time(from, end);
            }
            from = end;
        }
    }

    /// Clears the parts from the current one up to the part `number`, which becomes the current
    /// one.
    fn advance_to(&mut self, number: u64) {
        if number <= self.current_bucket {
            return;
        }
        let passed = (number - self.current_bucket).min(BUCKET_COUNT as u64);
        for number in number + 1 - passed..=number {
            if let Some(bucket) = self.buckets.get_mut((number % BUCKET_COUNT as u64) as usize) {
                *bucket = Duration::ZERO;
            }
        }
        self.current_bucket = number;
    }

    fn stalled_percent(&mut self, now: Moment) -> Percent {
        self.advance_to(bucket_number(now));
        let stalled: Duration = self.buckets.iter().sum();
        Percent((stalled.as_secs_f64() / WINDOW.as_secs_f64() * 100.0).min(100.0))
    }
}

fn bucket_number(moment: Moment) -> u64 {
    moment.as_nanos() / BUCKET_DURATION.as_nanos() as u64
}

fn bucket_start(number: u64) -> Moment {
    Moment::from_nanos(number.saturating_mul(BUCKET_DURATION.as_nanos() as u64))
}

#[cfg(test)]
mod tests {
    use super::ProbeState::{Asleep, Ran, Waiting};
    use super::*;

    const TICK: u64 = 250;

    fn millis(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    /// Simulates one worker thread with ticks of 250 ms. `tick` returns probe state and run delay
    /// at tick `n`.
    fn run(ticks: u64, tick: impl Fn(u64) -> (ProbeState, u64)) -> Vec<f64> {
        let mut stalled = StalledTime::default();
        let percents = (0..ticks).map(|n| {
            let (probe, waited) = tick(n);
            if n == 1 {
                stalled.add_thread(7);
            }
            let now = Moment::from_nanos((n + 1) * TICK * 1_000_000);
            stalled.push(now, probe, |_| Some(millis(waited))).get()
        });
        percents.collect()
    }

    /// A sawtooth of three ticks: the probe waits for 700 ms and is sent again at once.
    fn sawtooth(n: u64) -> ProbeState {
        match n % 3 {
            0 => Ran(millis(700)),
            rest => Waiting(millis(rest * TICK)),
        }
    }

    #[test]
    fn repeated_lag_is_reported_as_nearly_100_percent() {
        let percents = run(120, |n| (sawtooth(n), 0));
        assert!(percents.iter().take(40).all(|percent| *percent == 0.0), "start-up: {percents:?}");
        assert!(percents[60] > 40.0 && percents[60] < 60.0, "half of the window: {percents:?}");
        assert!(percents.iter().skip(82).all(|percent| *percent > 95.0), "{percents:?}");
    }

    #[test]
    fn share_falls_to_zero_after_lag_ends() {
        let percents = run(170, |n| if n < 120 { (sawtooth(n), 0) } else { (Asleep, 0) });
        assert!(
            percents[119] > 95.0 && percents[140] < 60.0 && percents[140] > 40.0,
            "{percents:?}"
        );
        assert_eq!(percents[165], 0.0);
    }

    #[test]
    fn partial_lag_is_reported_as_its_fraction() {
        // 2 s of every 6 s, which is never more than half of the window.
        let percents =
            run(200, |n| if n % 24 < 8 { (sawtooth(n), 0) } else { (Ran(millis(3)), 0) });
        assert!(
            percents.iter().skip(80).all(|percent| (15.0..45.0).contains(percent)),
            "{percents:?}"
        );
    }

    #[test]
    fn short_lag_and_waits_for_a_core_do_not_count() {
        for (name, probe, waits) in [
            ("busy: lags below the limit", Ran(millis(90)), 0),
            ("starved: the worker waits for a core all the time", Ran(millis(240)), TICK),
            ("throttled: it waits for two thirds of the time", Ran(millis(240)), TICK * 2 / 3),
        ] {
            let percents = run(120, |n| (probe, n * waits));
            assert!(percents.iter().all(|percent| *percent == 0.0), "{name}: {percents:?}");
        }
        // Long waits: counted by the kernel when they end, a second later.
        let percents = run(120, |n| {
            let probe = match n % 4 {
                0 => Ran(millis(1000)),
                rest => Waiting(millis(rest * TICK)),
            };
            (probe, n / 4 * 4 * TICK)
        });
        assert!(percents.iter().all(|percent| *percent < 51.0), "{percents:?}");
    }

    #[test]
    fn computing_polls_count_despite_waits_for_a_core() {
        // The thread waits for a core for a third of the time.
        let percents = run(120, |n| (sawtooth(n), n * TICK / 3));
        assert!(percents.iter().skip(82).all(|percent| *percent > 60.0), "{percents:?}");
    }

    #[test]
    fn undriven_runtime_and_unknown_run_delays_do_not_count() {
        let mut stalled = StalledTime::default();
        for n in 1..200 {
            let now = Moment::from_nanos(n * TICK * 1_000_000);
            let percent = stalled.push(now, Waiting(millis(n * TICK)), |_| Some(Duration::ZERO));
            assert_eq!(percent.get(), 0.0);
        }
        stalled.add_thread(7);
        for n in 200..300 {
            let now = Moment::from_nanos(n * TICK * 1_000_000);
            assert_eq!(stalled.push(now, sawtooth(n), |_| None).get(), 0.0);
        }
    }

    #[test]
    fn stalled_share_is_independent_of_tick_interval() {
        for tick in [20, 100, 250, 1000, 5000] {
            let mut stalled = StalledTime::default();
            stalled.add_thread(7);
            let (mut percent, mut sent) = (0.0, 0);
            for n in 1..=60_000 / tick {
                let now = n * tick;
                // Work always waits for 700 ms.
                let probe = match now - sent {
                    lag if lag < 700 => Waiting(millis(lag)),
                    _ => {
                        sent = now;
                        Ran(millis(700))
                    }
                };
                let now = Moment::from_nanos(now * 1_000_000);
                percent = stalled.push(now, probe, |_| Some(Duration::ZERO)).get();
            }
            let expected = if tick < 1000 { 90.0..=100.0 } else { 45.0..=100.0 };
            assert!(expected.contains(&percent), "{tick} ms: {percent}");
        }
    }
}
