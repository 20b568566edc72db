//! Stall detection for recorded polls.
//!
//! The detector reads the open slices of all threads, which takes a few loads per thread. A poll in
//! progress has its start time, so the next check is due when the oldest open poll reaches the
//! threshold. While no poll is open, one check per threshold finds every poll that becomes a stall.
//! With the default threshold of 100 ms the process is checked ten times a second, or slightly more
//! often. A stall is found within 10 ms after it reaches the threshold (`recorded_polls.rs`).
//!
//! After 500 ms without a poll, the detector arms a wake-up that the next poll triggers
//! (`trace::open_polls`), checks once more at the usual time, and sleeps. One race is left: a
//! thread reads the epoch word before the wake-up bit is set, is preempted there, and does not show
//! its poll until a threshold later. The detector finds such a poll within 2 s.
//!
//! On a machine with more work than cores the detector itself can run late. A late check also reads
//! the polls that ended in the meantime from the rings. So every poll above the threshold is
//! reported unless its ring has wrapped.
//!
//! Stalls of polls that are not recorded are inferred from runtime counters
//! (`unrecorded_polls.rs`).

use std::sync::atomic::Ordering;
use std::sync::{MutexGuard, PoisonError};
use std::time::Duration;

use crate::base::sync::Mutex;
use crate::base::{Clock, Moment, SystemClock, standstill};
use crate::model::{Calibration, RawSlice};
use crate::os::clock::cycle_clock;
use crate::os::eventfd::EventListener;
use crate::stalls::recorded_polls::{
    EndedPoll, FoundStall, RecordedPollDetector, StarvedPolls, ThreadPollState,
};
use crate::stalls::waits::{ExcludedTime, PollingThread, WaitEstimator};
use crate::trace::open_polls::{
    self, POLL_STARTED, RingOwner, ThreadRings, arm_wakeup, disarm_wakeup, is_poll,
    is_wakeup_armed, outermost_poll,
};

/// A poll that lasted longer than the threshold.
#[derive(Clone, Debug)]
pub(crate) struct LongPoll {
    pub(crate) tid: u32,
    pub(crate) thread: String,
    pub(crate) runtime: Option<u64>,
    pub(crate) worker: Option<u64>,
    pub(crate) task: String,
    pub(crate) number: u64,
    pub(crate) start: Moment,
    /// Excludes the time in which the thread waited for a core or the process was stopped.
    pub(crate) duration: Duration,
    /// Upper bound of the time in which the thread waited for a core.
    pub(crate) run_delay: Duration,
    /// `true` if the poll was still in progress at the check.
    pub(crate) is_running: bool,
    owner_id: u64,
    /// Start in ticks; valid only while `is_running` is `true`.
    start_tick: u64,
}

impl LongPoll {
    /// Returns `true` if the poll is still in progress.
    pub(crate) fn is_still_running(&self) -> bool {
        self.is_running
            && open_polls::threads().into_iter().any(|(rings, tenancy)| {
                tenancy.id == self.owner_id
                    && outermost_poll(rings).is_some_and(|open| open.start == self.start_tick)
            })
    }
}

/// Polls shorter than this count in full: their waits for a core are not read.
const MIN_MEASURED_POLL: Duration = Duration::from_millis(10);

/// Run delays of the threads; `Some` while a [`StallWatch`] exists.
static WAIT_ESTIMATOR: Mutex<Option<WaitEstimator>> = Mutex::new(None);

fn wait_estimator() -> MutexGuard<'static, Option<WaitEstimator>> {
    WAIT_ESTIMATOR.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns the part of `from..until` that is not the own time of a poll on the thread of `own`.
fn excluded_time(
    waits: &mut Option<WaitEstimator>,
    own: &RingOwner,
    from: Moment,
    until: Moment,
) -> ExcludedTime {
    match waits {
        Some(waits) => waits.excluded_time(own.id, own.tid, from, until),
        None => {
            ExcludedTime { standstill: standstill::overlap(from, until), ..ExcludedTime::default() }
        }
    }
}

/// The detector for stalls of recorded polls.
#[derive(Debug)]
pub(crate) struct StallWatch {
    detector: RecordedPollDetector,
    first_pair: (u64, Moment),
    /// Receives a wake-up when a poll starts. `None` if no `eventfd` is available; the detector
    /// then checks once per threshold.
    poll_started: Option<EventListener>,
}

impl StallWatch {
    /// Creates a detector for polls of at least `threshold`. Must be called on a runtime with I/O
    /// enabled.
    pub(crate) fn new(threshold: Duration) -> Self {
        cycle_clock::source();
        let poll_started = EventListener::new(&POLL_STARTED).ok();
        *wait_estimator() = Some(WaitEstimator::new());
        Self {
            detector: RecordedPollDetector::new(threshold),
            first_pair: cycle_clock::tick_and_time(),
            poll_started,
        }
    }

    /// Waits until a poll starts after the wake-up was armed; a check is then due. Cancel safe.
    pub(crate) async fn poll_started(&self) {
        match &self.poll_started {
            Some(listener) => listener.next().await,
            None => std::future::pending().await,
        }
    }

    /// Returns the polls that have become too long since the last check, and the time until the
    /// next check.
    pub(crate) fn check(&mut self) -> (Vec<LongPoll>, Duration) {
        let told = self.poll_started.is_some() && is_wakeup_armed();
        let (tick, now) = cycle_clock::tick_and_time();
        let calibration = Calibration::new([self.first_pair, (tick, now)]);
        let threads = open_polls::threads();
        let seen: Vec<ThreadPollState> = threads
            .iter()
            .map(|(rings, tenancy)| ThreadPollState {
                thread: tenancy.id,
                next_record: rings.slices.next(),
                open_poll: outermost_poll(rings)
                    .map(|open| (calibration.moment(open.start), open.task, open.start)),
            })
            .collect();
        let find_thread = |thread: u64| threads.iter().find(|(_, tenancy)| tenancy.id == thread);
        let ended = |thread: u64, from: u64| -> Vec<EndedPoll> {
            let Some((rings, _)) = find_thread(thread) else { return Vec::new() };
            let slices = rings.slices.copy(from, |_| true).records.into_iter().map(RawSlice);
            let polls = slices.filter(|slice| slice.kind().is_some_and(is_poll));
            polls
                .map(|slice| {
                    let [start, end] =
                        [slice.start(), slice.end()].map(|tick| calibration.moment(tick));
                    (start, end, slice.task())
                })
                .collect()
        };
        let mut waits = wait_estimator();
        if let Some(waits) = &mut *waits {
            let polling =
                threads.iter().zip(&seen).filter(|(_, seen)| self.detector.has_polled(seen));
            let polling = polling.map(|((_, own), seen)| PollingThread {
                thread: own.id,
                tid: own.tid,
                poll_start: seen.open_poll.map(|(start, ..)| start),
            });
            waits.read_polling(now, polling.collect());
        }
        let excluded = |thread: u64, from: Moment, until: Moment| match find_thread(thread) {
            Some((_, own)) => excluded_time(&mut waits, own, from, until),
            None => ExcludedTime::default(),
        };
        let (found, next) = self.detector.check(now, &seen, told, ended, excluded);
        drop(waits);
        if self.poll_started.is_some() && self.detector.is_quiet(now) {
            arm_wakeup();
        } else {
            disarm_wakeup();
        }
        let found = found.into_iter().filter_map(|found| {
            let (rings, tenancy) = find_thread(found.thread)?;
            Some(long_poll(rings, tenancy, found))
        });
        (found.collect(), next)
    }
}

impl StallWatch {
    /// Takes the polls since the last call that were too long only because their threads waited for
    /// a core.
    pub(crate) fn take_starved(&mut self) -> StarvedPolls {
        self.detector.take_starved()
    }
}

impl Drop for StallWatch {
    fn drop(&mut self) {
        *wait_estimator() = None;
        // The wake-up has no receiver any more.
        disarm_wakeup();
    }
}

/// Returns the duration of the longest poll in progress. `None` if polls are not recorded or no
/// thread has recorded any.
pub(crate) fn longest_poll() -> Option<Duration> {
    if !open_polls::are_recorded() {
        return None;
    }
    let threads = open_polls::threads();
    let now = SystemClock.now();
    let calibration = open_polls::calibration();
    let mut polls: Vec<(Moment, &RingOwner)> = threads
        .iter()
        .filter_map(|(rings, own)| Some((calibration.moment(outermost_poll(rings)?.start), own)))
        .collect();
    polls.sort_unstable_by_key(|(start, _)| *start);
    let mut longest = (!threads.is_empty()).then_some(Duration::ZERO)?;
    let mut waits = wait_estimator();
    for (start, own) in polls {
        let lasted = now.since(start);
        // The remaining polls started later.
        if lasted <= longest {
            break;
        }
        let excluded = if lasted < MIN_MEASURED_POLL {
            ExcludedTime::default()
        } else {
            excluded_time(&mut waits, own, start, now)
        };
        longest = longest.max(excluded.own_time(lasted));
    }
    Some(longest)
}

fn long_poll(rings: &ThreadRings, owner: &RingOwner, found: FoundStall) -> LongPoll {
    let [runtime, worker] =
        [&rings.runtime, &rings.worker].map(|number| number.load(Ordering::Relaxed));
    LongPoll {
        tid: owner.tid,
        thread: owner.thread.to_string(),
        runtime: Some(runtime).filter(|&runtime| runtime > 0),
        worker: worker.checked_sub(1),
        task: open_polls::task_name(found.task.site),
        number: found.task.truncated().number,
        start: found.start,
        duration: found.duration,
        run_delay: found.excluded.run_delay,
        is_running: found.start_tick.is_some(),
        owner_id: owner.id,
        start_tick: found.start_tick.unwrap_or(0),
    }
}
