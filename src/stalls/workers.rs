//! Progress of the runtime's workers: which make none, and the time until the next check.

use std::time::Duration;

use crate::base::Moment;
use crate::model::WorkerProgress;
use crate::stalls::recorded_polls::{CHECK_INTERVAL, IDLE_CHECK_INTERVAL, IDLE_TIMEOUT};

/// Time between two checks while workers are busy and make progress.
pub(crate) const BUSY_CHECK_INTERVAL: Duration = Duration::from_millis(20);

/// Upper limit of a worker's usual batch duration, so that a long stall does not hide the next one.
const MAX_USUAL_BATCH: Duration = Duration::from_secs(1);

/// Time between two checks after no worker has made progress for [`IDLE_TIMEOUT`]; at most twice
/// the threshold. Waking an idle core costs more than the check itself. Unrecorded polls trigger no
/// wake-up, so the first stall after such a pause is found up to one threshold later than others.
const LONG_IDLE_CHECK_INTERVAL: Duration = Duration::from_millis(200);

/// Time for which a runtime that no thread drives is ignored, unless its counters change.
const DISMISSAL_DURATION: Duration = Duration::from_secs(1);

/// Progress state of one worker.
#[derive(Clone, Debug)]
pub(crate) struct WorkerState {
    pub(crate) progress: WorkerProgress,
    /// Time since which its counters are unchanged.
    pub(crate) unchanged_since: Moment,
    /// Recent maximum time between two counter updates while busy; decays by a quarter per update.
    /// Counters are updated every 61 polls, so a worker with polls of 10 ms makes no visible
    /// progress for 0.6 s at a time.
    usual_batch: Duration,
    /// End of the time for which the worker is ignored because no thread drives its runtime.
    dismissed_until: Option<Moment>,
}

impl WorkerState {
    fn is_dismissed(&self, now: Moment) -> bool {
        self.dismissed_until.is_some_and(|until| now < until)
    }

    /// Returns `true` if its counters have been unchanged for longer than usual:
    /// `1.25 * usual_batch`.
    pub(crate) fn is_late(&self, now: Moment) -> bool {
        now.since(self.unchanged_since) > self.usual_batch + self.usual_batch / 4
    }
}

/// The workers of all runtimes.
#[derive(Debug)]
pub(crate) struct WorkerStates {
    threshold: Duration,
    workers: Vec<WorkerState>,
    /// Time at which a worker last made progress.
    last_progress: Option<Moment>,
    /// Number of workers that were parked during the whole time since the last check.
    parked_count: usize,
}

impl WorkerStates {
    pub(crate) fn new(threshold: Duration) -> Self {
        Self { threshold, workers: Vec::new(), last_progress: None, parked_count: 0 }
    }

    /// Updates the workers from their counters at `now`. Returns the time until the next check if
    /// every worker makes progress.
    pub(crate) fn update(&mut self, now: Moment, progress: &[WorkerProgress]) -> Duration {
        let is_same =
            |(worker, beat): (&WorkerState, &WorkerProgress)| worker.progress.worker == beat.worker;
        if self.workers.len() != progress.len() || !self.workers.iter().zip(progress).all(is_same) {
            // A runtime started or stopped.
            let known = std::mem::take(&mut self.workers);
            let known = |beat: &WorkerProgress| {
                known.iter().find(|known| known.progress.worker == beat.worker)
            };
            let worker = |beat| {
                known(beat).cloned().unwrap_or(WorkerState {
                    progress: *beat,
                    unchanged_since: now,
                    usual_batch: Duration::ZERO,
                    dismissed_until: None,
                })
            };
            self.workers = progress.iter().map(worker).collect();
            self.last_progress = Some(now);
        }
        let mut any_busy = false;
        let mut fresh = false;
        self.parked_count = 0;
        for (worker, &current) in self.workers.iter_mut().zip(progress) {
            if worker.progress != current {
                worker.dismissed_until = None;
            }
            any_busy |= !current.is_parked && !worker.is_dismissed(now);
            self.parked_count += usize::from(current.is_parked && worker.progress == current);
            if worker.progress != current {
                self.last_progress = Some(now);
            }
            if worker.progress != current || current.is_parked {
                fresh |= worker.progress.is_parked && !current.is_parked;
                if worker.progress != current {
                    let batch = if worker.progress.is_parked {
                        Duration::ZERO
                    } else {
                        now.since(worker.unchanged_since)
                    };
                    let usual = worker.usual_batch - worker.usual_batch / 4;
                    worker.usual_batch = usual.max(batch).min(MAX_USUAL_BATCH);
                }
                worker.progress = current;
                worker.unchanged_since = now;
            }
        }
        match (any_busy, fresh) {
            (false, _) => IDLE_CHECK_INTERVAL.max(self.threshold).max(self.idle_interval(now)),
            (true, true) => CHECK_INTERVAL,
            (true, false) => BUSY_CHECK_INTERVAL,
        }
    }

    /// Restarts the measurement of all workers at `now`, up to which the process was stopped.
    pub(crate) fn restart_measurements(&mut self, now: Moment) {
        self.workers.iter_mut().for_each(|worker| worker.unchanged_since = now);
    }

    /// Returns the workers that are not parked and whose counters did not change between two
    /// checks.
    pub(crate) fn without_progress(&self, now: Moment) -> impl Iterator<Item = &WorkerState> {
        self.workers.iter().filter(move |worker| {
            !worker.progress.is_parked && worker.unchanged_since < now && !worker.is_dismissed(now)
        })
    }

    /// Returns the worker of the single-threaded runtime that the thread `tid` drives, if any.
    pub(crate) fn driven_by(&self, tid: u32) -> Option<(u64, u32)> {
        let driven = self.workers.iter().find(|worker| worker.progress.driver_tid == Some(tid))?;
        Some(driven.progress.worker)
    }

    /// Ignores, for a while, the runtime that the thread `tid` drives: the thread is not in the
    /// runtime's loop. A single-threaded runtime that no thread drives has the counters of a busy
    /// one.
    pub(crate) fn dismiss(&mut self, tid: u32, now: Moment) {
        for worker in
            self.workers.iter_mut().filter(|worker| worker.progress.driver_tid == Some(tid))
        {
            worker.dismissed_until = Some(now + DISMISSAL_DURATION);
        }
    }

    /// Returns the number of workers that were parked during the whole time between the last two
    /// checks.
    pub(crate) fn parked_count(&self) -> usize {
        self.parked_count
    }

    fn idle_interval(&self, now: Moment) -> Duration {
        match self.last_progress {
            Some(last) if now.since(last) < IDLE_TIMEOUT => Duration::ZERO,
            _ => LONG_IDLE_CHECK_INTERVAL.min(2 * self.threshold),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const THRESHOLD: Duration = Duration::from_millis(100);

    #[test]
    fn idle_workers_are_checked_less_often_until_progress() {
        let progress = |parked, turns| {
            [WorkerProgress {
                worker: (1, 0),
                is_parked: parked,
                counters: (turns, 0),
                driver_tid: None,
            }]
        };
        let mut workers = WorkerStates::new(THRESHOLD);
        let mut update = |millis: u64, parked, turns| {
            workers
                .update(Moment::from_nanos(millis * 1_000_000), &progress(parked, turns))
                .as_millis()
        };
        assert_eq!(update(0, true, 1), 100);
        assert_eq!(update(499, true, 1), 100);
        assert_eq!(update(500, true, 1), 200);
        assert_eq!(update(700, true, 1), 200);
        // It made progress in between; then it is busy.
        assert_eq!(update(900, true, 3), 100);
        assert_eq!(update(1000, false, 4), 10);
        assert_eq!(update(1010, false, 4), 20);
        assert_eq!(update(1030, true, 5), 100);
        assert_eq!(update(1600, true, 5), 200);
    }

    #[test]
    fn idle_check_interval_is_bounded_by_200_ms_or_threshold() {
        let parked = [WorkerProgress {
            worker: (1, 0),
            is_parked: true,
            counters: (1, 0),
            driver_tid: None,
        }];
        for (threshold, rest) in [(10, 50), (50, 100), (100, 200), (150, 200), (1000, 1000)] {
            let mut workers = WorkerStates::new(Duration::from_millis(threshold));
            workers.update(Moment::from_nanos(0), &parked);
            let next = workers.update(Moment::from_nanos(1_000_000_000), &parked);
            assert_eq!(next.as_millis(), rest, "{threshold} ms");
        }
    }

    #[test]
    fn undriven_runtime_is_dismissed_for_one_second() {
        let progress = |count| {
            [WorkerProgress {
                worker: (1, 0),
                is_parked: false,
                counters: (count, 0),
                driver_tid: Some(7),
            }]
        };
        let at = |millis: u64| Moment::from_nanos(millis * 1_000_000);
        let mut workers = WorkerStates::new(THRESHOLD);
        let check = |workers: &mut WorkerStates, millis, count| {
            let next = workers.update(at(millis), &progress(count)).as_millis();
            (next, workers.without_progress(at(millis)).count())
        };
        check(&mut workers, 0, 2);
        assert_eq!(check(&mut workers, 100, 2), (20, 1));
        workers.dismiss(8, at(100));
        assert_eq!(check(&mut workers, 200, 2), (20, 1), "another thread's");
        workers.dismiss(7, at(200));
        assert_eq!(check(&mut workers, 300, 2), (100, 0));
        assert_eq!(check(&mut workers, 1199, 2), (200, 0));
        assert_eq!(check(&mut workers, 1200, 2), (20, 1));
        workers.dismiss(7, at(1200));
        // The counters change.
        check(&mut workers, 1300, 4);
        assert_eq!(check(&mut workers, 1400, 4), (20, 1));
    }
}
