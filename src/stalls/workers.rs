//! Progress of the runtime's workers: which make none, and the time until the next check.

use std::time::Duration;

use crate::base::Moment;
use crate::model::WorkerProgress;
use crate::stalls::recorded_polls::{IDLE, PERIOD, REST};

/// Time between two checks while workers are busy and make progress.
pub(crate) const BUSY: Duration = Duration::from_millis(20);

/// Upper limit of a worker's usual batch duration, so that a long stall does not hide the next one.
const MAX_USUAL: Duration = Duration::from_secs(1);

/// Time between two checks after no worker has made progress for [`IDLE`]; at most twice the
/// threshold. Waking an idle core costs more than the check itself. Unrecorded polls trigger no
/// wake-up, so the first stall after such a pause is found up to one threshold later than others.
const IDLE_REST: Duration = Duration::from_millis(200);

/// Time for which a runtime that no thread drives is ignored, unless its counters change.
const DISMISSED: Duration = Duration::from_secs(1);

/// Progress state of one worker.
#[derive(Clone, Debug)]
pub(crate) struct WorkerState {
    pub(crate) beat: WorkerProgress,
    /// Time since which its counters are unchanged.
    pub(crate) since: Moment,
    /// Recent maximum time between two counter updates while busy; decays by a quarter per update.
    /// Counters are updated every 61 polls, so a worker with polls of 10 ms makes no visible
    /// progress for 0.6 s at a time.
    usual: Duration,
    /// End of the time for which the worker is ignored because no thread drives its runtime.
    dismissed_until: Option<Moment>,
}

impl WorkerState {
    fn is_dismissed(&self, now: Moment) -> bool {
        self.dismissed_until.is_some_and(|until| now < until)
    }

    /// Returns `true` if its counters have been unchanged for longer than usual: 1.25 x `usual`.
    pub(crate) fn is_late(&self, now: Moment) -> bool {
        now.since(self.since) > self.usual + self.usual / 4
    }
}

/// The workers of all runtimes.
#[derive(Debug)]
pub(crate) struct WorkerStates {
    threshold: Duration,
    workers: Vec<WorkerState>,
    /// Time at which a worker last made progress.
    stirred: Option<Moment>,
    /// Number of workers that were parked during the whole time since the last check.
    asleep: usize,
}

impl WorkerStates {
    pub(crate) fn new(threshold: Duration) -> Self {
        Self { threshold, workers: Vec::new(), stirred: None, asleep: 0 }
    }

    /// Updates the workers from their counters at `now`. Returns the time until the next check if
    /// every worker makes progress.
    pub(crate) fn look(&mut self, now: Moment, beats: &[WorkerProgress]) -> Duration {
        let is_same =
            |(worker, beat): (&WorkerState, &WorkerProgress)| worker.beat.worker == beat.worker;
        if self.workers.len() != beats.len() || !self.workers.iter().zip(beats).all(is_same) {
            // A runtime started or stopped.
            let known = std::mem::take(&mut self.workers);
            let known =
                |beat: &WorkerProgress| known.iter().find(|known| known.beat.worker == beat.worker);
            let worker = |beat| {
                known(beat).cloned().unwrap_or(WorkerState {
                    beat: *beat,
                    since: now,
                    usual: Duration::ZERO,
                    dismissed_until: None,
                })
            };
            self.workers = beats.iter().map(worker).collect();
            self.stirred = Some(now);
        }
        let (mut at_work, mut fresh) = (false, false);
        self.asleep = 0;
        for (worker, &beat) in self.workers.iter_mut().zip(beats) {
            if worker.beat != beat {
                worker.dismissed_until = None;
            }
            at_work |= !beat.parked && !worker.is_dismissed(now);
            self.asleep += usize::from(beat.parked && worker.beat == beat);
            if worker.beat != beat {
                self.stirred = Some(now);
            }
            if worker.beat != beat || beat.parked {
                fresh |= worker.beat.parked && !beat.parked;
                if worker.beat != beat {
                    let batch =
                        if worker.beat.parked { Duration::ZERO } else { now.since(worker.since) };
                    let usual = worker.usual - worker.usual / 4;
                    worker.usual = usual.max(batch).min(MAX_USUAL);
                }
                (worker.beat, worker.since) = (beat, now);
            }
        }
        match (at_work, fresh) {
            (false, _) => REST.max(self.threshold).max(self.idle_rest(now)),
            (true, true) => PERIOD,
            (true, false) => BUSY,
        }
    }

    /// Restarts the measurement of all workers at `now`, up to which the process was stopped.
    pub(crate) fn stood_still(&mut self, now: Moment) {
        self.workers.iter_mut().for_each(|worker| worker.since = now);
    }

    /// Returns the workers that are not parked and whose counters did not change between two
    /// checks.
    pub(crate) fn standing(&self, now: Moment) -> impl Iterator<Item = &WorkerState> {
        self.workers.iter().filter(move |worker| {
            !worker.beat.parked && worker.since < now && !worker.is_dismissed(now)
        })
    }

    /// Returns the worker of the single-threaded runtime that the thread `tid` drives, if any.
    pub(crate) fn driven_by(&self, tid: u32) -> Option<(u64, u32)> {
        let driven = self.workers.iter().find(|worker| worker.beat.driver == Some(tid))?;
        Some(driven.beat.worker)
    }

    /// Ignores, for a while, the runtime that the thread `tid` drives: the thread is not in the
    /// runtime's loop. A single-threaded runtime that no thread drives has the counters of a busy
    /// one.
    pub(crate) fn dismiss(&mut self, tid: u32, now: Moment) {
        for worker in self.workers.iter_mut().filter(|worker| worker.beat.driver == Some(tid)) {
            worker.dismissed_until = Some(now + DISMISSED);
        }
    }

    /// Returns the number of workers that were parked during the whole time between the last two
    /// checks.
    pub(crate) fn asleep(&self) -> usize {
        self.asleep
    }

    fn idle_rest(&self, now: Moment) -> Duration {
        match self.stirred {
            Some(last) if now.since(last) < IDLE => Duration::ZERO,
            _ => IDLE_REST.min(2 * self.threshold),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const THRESHOLD: Duration = Duration::from_millis(100);

    #[test]
    fn idle_workers_are_looked_at_less_often_until_one_does_something() {
        let beat = |parked, turns| {
            [WorkerProgress { worker: (1, 0), parked, mark: (turns, 0), driver: None }]
        };
        let mut workers = WorkerStates::new(THRESHOLD);
        let mut look = |millis: u64, parked, turns| {
            workers.look(Moment::from_nanos(millis * 1_000_000), &beat(parked, turns)).as_millis()
        };
        assert_eq!(look(0, true, 1), 100);
        assert_eq!(look(499, true, 1), 100);
        assert_eq!(look(500, true, 1), 200);
        assert_eq!(look(700, true, 1), 200);
        // It made progress in between; then it is busy.
        assert_eq!(look(900, true, 3), 100);
        assert_eq!(look(1000, false, 4), 10);
        assert_eq!(look(1010, false, 4), 20);
        assert_eq!(look(1030, true, 5), 100);
        assert_eq!(look(1600, true, 5), 200);
    }

    #[test]
    fn no_rest_is_longer_than_two_tenths_of_a_second_or_the_threshold() {
        let parked = [WorkerProgress { worker: (1, 0), parked: true, mark: (1, 0), driver: None }];
        for (threshold, rest) in [(10, 50), (50, 100), (100, 200), (150, 200), (1000, 1000)] {
            let mut workers = WorkerStates::new(Duration::from_millis(threshold));
            workers.look(Moment::from_nanos(0), &parked);
            let next = workers.look(Moment::from_nanos(1_000_000_000), &parked);
            assert_eq!(next.as_millis(), rest, "{threshold} ms");
        }
    }

    #[test]
    fn a_runtime_that_nothing_drives_does_not_stand_still_for_a_second() {
        let beat = |count| {
            [WorkerProgress { worker: (1, 0), parked: false, mark: (count, 0), driver: Some(7) }]
        };
        let at = |millis: u64| Moment::from_nanos(millis * 1_000_000);
        let mut workers = WorkerStates::new(THRESHOLD);
        let look = |workers: &mut WorkerStates, millis, count| {
            let next = workers.look(at(millis), &beat(count)).as_millis();
            (next, workers.standing(at(millis)).count())
        };
        look(&mut workers, 0, 2);
        assert_eq!(look(&mut workers, 100, 2), (20, 1));
        workers.dismiss(8, at(100));
        assert_eq!(look(&mut workers, 200, 2), (20, 1), "another thread's");
        workers.dismiss(7, at(200));
        assert_eq!(look(&mut workers, 300, 2), (100, 0));
        assert_eq!(look(&mut workers, 1199, 2), (200, 0));
        assert_eq!(look(&mut workers, 1200, 2), (20, 1));
        workers.dismiss(7, at(1200));
        // The counters change.
        look(&mut workers, 1300, 4);
        assert_eq!(look(&mut workers, 1400, 4), (20, 1));
    }
}
