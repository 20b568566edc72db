//! Decisions of the stall detector about recorded polls: the polls that are too long, and the time
//! of the next check. Pure functions of their arguments, without a clock, ring or thread.

use std::time::Duration;

use crate::base::Moment;
use crate::model::TaskKey;
use crate::stalls::waits::ExcludedTime;

/// Maximum time between two checks while polls run, unless the stall threshold is longer.
pub(crate) const CHECK_INTERVAL: Duration = Duration::from_millis(10);

/// Minimum time between two checks.
const MIN_CHECK_INTERVAL: Duration = Duration::from_millis(5);

/// Time between two checks while no poll runs, unless the stall threshold is longer: at most 20
/// wake-ups a second, a few microseconds each.
pub(crate) const IDLE_CHECK_INTERVAL: Duration = Duration::from_millis(50);

/// Time without a poll after which the detector arms the wake-up and sleeps.
pub(crate) const IDLE_TIMEOUT: Duration = Duration::from_millis(500);

/// Fallback check interval while the wake-up is armed. Covers the race in which a poll starts just
/// before the wake-up bit is set and its thread is preempted.
const ARMED_CHECK_INTERVAL: Duration = Duration::from_secs(2);

/// Tolerance within which two start times belong to the same poll. Converting ticks to moments
/// gives slightly different results at different checks. Also the delay from which a check is late.
const START_TOLERANCE: Duration = Duration::from_millis(1);

/// Start, end and task of a poll that has ended.
pub(crate) type EndedPoll = (Moment, Moment, TaskKey);

/// State of one thread at a check.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ThreadPollState {
    pub(crate) thread: u64,
    /// Number of the next record in the ring.
    pub(crate) next_record: u64,
    /// Outermost open poll: start, task, start in ticks.
    pub(crate) open_poll: Option<(Moment, TaskKey, u64)>,
}

/// A poll measured by a check: a stall if `duration` reaches the threshold.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct FoundStall {
    pub(crate) thread: u64,
    pub(crate) task: TaskKey,
    pub(crate) start: Moment,
    /// Excludes the time in `excluded`.
    pub(crate) duration: Duration,
    pub(crate) excluded: ExcludedTime,
    /// Start in ticks. `None` if the poll has ended.
    pub(crate) start_tick: Option<u64>,
}

/// State of a thread, kept between checks.
#[derive(Debug)]
struct KnownThread {
    thread: u64,
    next_record: u64,
    reported_start: Option<Moment>,
    /// Start of the poll last counted in [`StarvedPolls`].
    starved_start: Option<Moment>,
}

/// Polls that were too long only because their threads waited for a core.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct StarvedPolls {
    pub(crate) polls: u64,
    /// Longest wait of a single poll.
    pub(crate) longest_wait: Duration,
}

/// State that the decisions depend on, kept between checks.
#[derive(Debug)]
pub(crate) struct RecordedPollDetector {
    threshold: Duration,
    /// Time of the next check.
    due: Option<Moment>,
    /// Time of the first check since which no poll has run. `None` if the last check found a poll.
    quiet_since: Option<Moment>,
    known: Vec<KnownThread>,
    starved: StarvedPolls,
}

impl RecordedPollDetector {
    pub(crate) fn new(threshold: Duration) -> Self {
        Self {
            threshold,
            due: None,
            quiet_since: None,
            known: Vec::new(),
            starved: StarvedPolls::default(),
        }
    }

    /// Evaluates the states of all threads at `now`. Returns the stalls found and the time until
    /// the next check.
    ///
    /// * `was_armed`: `true` if the wake-up was armed, so that a poll started since the last check
    ///   would have triggered this check earlier.
    /// * `ended(thread, from)`: the ended polls of a thread from record number `from` on, ordered
    ///   by end.
    /// * `exclude(thread, from, until)`: the part of the interval that is not the thread's own
    ///   time.
    pub(crate) fn check(
        &mut self,
        now: Moment,
        threads: &[ThreadPollState],
        was_armed: bool,
        ended: impl Fn(u64, u64) -> Vec<EndedPoll>,
        mut exclude: impl FnMut(u64, Moment, Moment) -> ExcludedTime,
    ) -> (Vec<FoundStall>, Duration) {
        // A check in time finds each long poll while it is open. Only a late one has to read the
        // records of polls that have ended.
        let is_late = self.due.is_some_and(|due| now.since(due) > START_TOLERANCE);
        self.known.retain(|known| threads.iter().any(|state| state.thread == known.thread));
        let mut found = Vec::new();
        let mut has_polled = false;
        let mut due = Duration::MAX;
        for &ThreadPollState { thread, next_record, open_poll } in threads {
            if !self.known.iter().any(|known| known.thread == thread) {
                self.known.push(KnownThread {
                    thread,
                    next_record,
                    reported_start: None,
                    starved_start: None,
                });
            }
            let Some(known) = self.known.iter_mut().find(|known| known.thread == thread) else {
                continue;
            };
            has_polled |= known.next_record != next_record || open_poll.is_some();
            let mut measure = |task, start: Moment, until: Moment, start_tick| {
                let excluded = exclude(thread, start, until);
                let duration = excluded.own_time(until.since(start));
                FoundStall { thread, task, start, duration, excluded, start_tick }
            };
            if is_late && known.next_record != next_record {
                let open_since = open_poll.map(|(start, ..)| start);
                let long = outermost_long_polls(
                    &ended(thread, known.next_record),
                    self.threshold,
                    open_since,
                );
                for (start, end, task) in long {
                    if is_same_poll(known.reported_start, start) {
                        continue;
                    }
                    let poll = measure(task, start, end, None);
                    if poll.duration >= self.threshold {
                        found.push(poll);
                    } else {
                        self.starved.count(&mut known.starved_start, &poll);
                    }
                }
            }
            known.next_record = next_record;
            let Some((start, task, tick)) = open_poll else { continue };
            let lasted = now.since(start);
            if lasted < self.threshold {
                due = due.min(self.threshold - lasted);
            } else if !is_same_poll(known.reported_start, start) {
                let poll = measure(task, start, now, Some(tick));
                if poll.duration >= self.threshold {
                    known.reported_start = Some(start);
                    found.push(poll);
                } else {
                    due = due.min(self.threshold - poll.duration);
                    self.starved.count(&mut known.starved_start, &poll);
                }
            }
        }
        if has_polled {
            self.quiet_since = None;
        } else {
            self.quiet_since.get_or_insert(now);
        }
        let max_interval = match has_polled {
            true => CHECK_INTERVAL,
            false if was_armed && self.is_quiet(now) => ARMED_CHECK_INTERVAL,
            false => IDLE_CHECK_INTERVAL,
        };
        let max_interval = self.threshold.max(max_interval);
        // The margin `START_TOLERANCE` keeps a timer that fires slightly early from finding a poll
        // just below the threshold.
        let interval =
            due.saturating_add(START_TOLERANCE).min(max_interval).max(MIN_CHECK_INTERVAL);
        self.due = Some(now + interval);
        (found, interval)
    }

    /// Returns `true` if the thread has polled since the last check, or if no check has included
    /// it.
    pub(crate) fn has_polled(&self, state: &ThreadPollState) -> bool {
        let known = self.known.iter().find(|known| known.thread == state.thread);
        state.open_poll.is_some()
            || known.is_none_or(|known| known.next_record != state.next_record)
    }

    /// Returns the polls counted since the last call.
    pub(crate) fn take_starved(&mut self) -> StarvedPolls {
        std::mem::take(&mut self.starved)
    }

    /// Returns `true` if no poll has run for [`IDLE_TIMEOUT`], so that the detector can sleep until
    /// one starts.
    pub(crate) fn is_quiet(&self, now: Moment) -> bool {
        self.quiet_since.is_some_and(|since| now.since(since) >= IDLE_TIMEOUT)
    }
}

impl StarvedPolls {
    /// Counts a poll if its thread waited for a core. `last_counted` is the start of the thread's
    /// poll that was counted last, and is not counted again.
    fn count(&mut self, last_counted: &mut Option<Moment>, poll: &FoundStall) {
        let run_delay = poll.excluded.run_delay;
        self.longest_wait = self.longest_wait.max(run_delay);
        if !run_delay.is_zero() && !is_same_poll(*last_counted, poll.start) {
            self.polls += 1;
            *last_counted = Some(poll.start);
        }
    }
}

/// Returns the outermost polls in `ended` that lasted for at least `threshold`. Skips polls inside
/// the open poll that started at `open_since`.
fn outermost_long_polls(
    ended: &[EndedPoll],
    threshold: Duration,
    open_since: Option<Moment>,
) -> Vec<EndedPoll> {
    let mut found: Vec<EndedPoll> = Vec::new();
    for &(start, end, task) in ended.iter().rev() {
        let is_nested = found.last().is_some_and(|&(outer, ..)| start >= outer)
            || open_since.is_some_and(|outer| start >= outer);
        if !is_nested && end.since(start) >= threshold {
            found.push((start, end, task));
        }
    }
    found.reverse();
    found
}

fn is_same_poll(known: Option<Moment>, start: Moment) -> bool {
    known.is_some_and(|known| known.since(start).max(start.since(known)) < START_TOLERANCE)
}

#[cfg(test)]
mod tests;
