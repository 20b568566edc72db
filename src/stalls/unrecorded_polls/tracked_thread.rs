//! A thread that was found in a poll, and the evidence that the poll is stalled.

use std::time::Duration;

use super::worker_threads::SignalBaseline;
use super::{MAX_BATCH_DURATION, PollSample, jittered};
use crate::base::Moment;

/// Samples in the same poll that are required before a computing thread is reported. If two tasks
/// alternate, one of them is in eight consecutive samples once in 128 times (`2 * 2^-8`). With
/// tasks 11 ms apart on average, over [`MAX_BATCH_DURATION`], this almost never happens.
const MIN_SAME_SAMPLES: u32 = 8;

/// Minimum time between two samples of a computing thread; at most twice as long. On average
/// [`MIN_SAME_SAMPLES`] of them fit into [`MAX_BATCH_DURATION`].
const SAMPLE_INTERVAL: Duration = Duration::from_millis(25);

/// The same for a thread whose stall was reported, to find the end of the stall.
const REPORTED_SAMPLE_INTERVAL: Duration = Duration::from_millis(150);

/// A thread that was found in a poll.
#[derive(Debug)]
pub(super) struct TrackedThread {
    pub(super) tid: u32,
    pub(super) poll_hash: u64,
    pub(super) first_seen: Moment,
    /// Time at which the thread was last seen running.
    last_ran: Moment,
    /// `true` if the thread had slept at the last sample.
    was_asleep: bool,
    /// Number of samples in this poll.
    pub(super) same_samples: u32,
    /// Time of the next sample.
    pub(super) next_sample: Moment,
    signal_baseline: SignalBaseline,
    /// `true` if the thread has run since it answered.
    pub(super) has_run: bool,
    /// Run delay of the thread at the first and at the last sample in this poll.
    run_delay: (Duration, Duration),
    pub(super) reported: bool,
    /// `true` if the thread blocks no worker, or if that is unknown.
    pub(super) dismissed: bool,
}

impl TrackedThread {
    /// Creates the state of a thread that `sample` shows in the poll `poll_hash`.
    pub(super) fn new(now: Moment, poll_hash: u64, sample: &PollSample) -> Self {
        let since = sample.asleep_since.unwrap_or(now);
        Self {
            tid: sample.tid,
            poll_hash,
            first_seen: since,
            last_ran: since,
            was_asleep: sample.asleep_since.is_some(),
            same_samples: 1,
            next_sample: now + jittered(SAMPLE_INTERVAL, now),
            signal_baseline: SignalBaseline::Pending,
            has_run: true,
            run_delay: (sample.run_delay, sample.run_delay),
            reported: false,
            dismissed: false,
        }
    }

    /// Adds a sample that shows the same poll.
    pub(super) fn add_sample(&mut self, now: Moment, sample: &PollSample) {
        self.same_samples += 1;
        self.was_asleep = sample.asleep_since.is_some();
        self.last_ran = sample.asleep_since.unwrap_or(now).max(self.last_ran);
        let interval = if self.is_undecided() {
            jittered(SAMPLE_INTERVAL, now)
        } else {
            REPORTED_SAMPLE_INTERVAL
        };
        self.next_sample = now + interval;
        self.signal_baseline = SignalBaseline::Pending;
        self.run_delay.1 = sample.run_delay;
    }

    /// Updates the thread with its CPU time at a check. A thread without one, which belongs to no
    /// known worker, is assumed to run.
    pub(super) fn update(&mut self, cpu_time: Option<Duration>) {
        self.has_run = cpu_time.is_none_or(|cpu_time| self.signal_baseline.has_run(cpu_time));
    }

    /// Returns `true` if the thread has slept in its poll for the threshold.
    pub(super) fn has_slept(&self, sampled_at: Moment, threshold: Duration) -> bool {
        self.was_asleep && sampled_at.since(self.last_ran) >= threshold
    }

    /// Returns `true` if every sample shows the same poll, for longer than a batch of 61 polls
    /// takes without a stall.
    pub(super) fn has_computed(&self, sampled_at: Moment, threshold: Duration) -> bool {
        let waited = self.run_delay.1.saturating_sub(self.run_delay.0);
        let own = sampled_at.since(self.first_seen).saturating_sub(waited);
        self.same_samples >= MIN_SAME_SAMPLES && own >= threshold.max(MAX_BATCH_DURATION)
    }

    /// Records the result of inspecting the thread's stack.
    pub(super) fn decide(&mut self, is_stalled: bool) {
        self.reported = is_stalled;
        self.dismissed = !is_stalled;
        self.next_sample = self.next_sample.max(self.last_ran + REPORTED_SAMPLE_INTERVAL);
    }

    pub(super) fn is_undecided(&self) -> bool {
        !self.reported && !self.dismissed
    }
}
