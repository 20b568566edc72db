//! Which workers stand still, by what they tell of themselves, and how soon to look again while none does.

use std::time::Duration;

use super::overdue::{IDLE, PERIOD, REST};
use crate::base::Moment;
use crate::model::Beat;

/// Between two looks while workers work and get on.
pub(super) const BUSY: Duration = Duration::from_millis(20);

/// A worker's usual batch is taken for no longer than this, so that a long stall does not hide the next.
const MAX_USUAL: Duration = Duration::from_secs(1);

/// Between two looks when no worker has done anything for [`IDLE`], but at twice the threshold: who wakes an idle
/// core for a look pays for that and not for what he sees. Of tasks that nobody records nobody tells when a
/// poll begins, so the first stall after such a rest is told a threshold later than others.
const IDLE_REST: Duration = Duration::from_millis(200);

/// How long a runtime that nothing drives is left alone, unless its counters move.
const DISMISSED: Duration = Duration::from_secs(1);

/// What is known of a worker.
#[derive(Clone, Debug)]
pub(super) struct Worker {
    pub(super) beat: Beat,
    /// Since when it tells the same.
    pub(super) since: Moment,
    /// How long it told the same while it worked, lately. It tells something every 61 polls, so that a worker whose
    /// polls take 10 ms each stands still for 0.6 s at a time.
    usual: Duration,
    /// Until when it does not count: nothing drives its runtime.
    dismissed_until: Option<Moment>,
}

impl Worker {
    fn is_dismissed(&self, now: Moment) -> bool {
        self.dismissed_until.is_some_and(|until| now < until)
    }

    /// Whether it has told the same for longer than it usually does.
    pub(super) fn is_late(&self, now: Moment) -> bool {
        now.since(self.since) > self.usual + self.usual / 4
    }
}

/// All of them.
#[derive(Debug)]
pub(super) struct Workers {
    threshold: Duration,
    workers: Vec<Worker>,
    /// When one last did anything.
    stirred: Option<Moment>,
    /// How many were parked all the time since the last look.
    asleep: usize,
}

impl Workers {
    pub(super) fn new(threshold: Duration) -> Self {
        Self { threshold, workers: Vec::new(), stirred: None, asleep: 0 }
    }

    /// Takes what they tell at `now`; how long until the next look, if none stands still.
    pub(super) fn look(&mut self, now: Moment, beats: &[Beat]) -> Duration {
        let is_same = |(worker, beat): (&Worker, &Beat)| worker.beat.worker == beat.worker;
        if self.workers.len() != beats.len() || !self.workers.iter().zip(beats).all(is_same) {
            // A runtime came or went.
            let known = std::mem::take(&mut self.workers);
            let known = |beat: &Beat| known.iter().find(|known| known.beat.worker == beat.worker);
            let worker = |beat| {
                known(beat).cloned().unwrap_or(Worker {
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

    /// Has all of them get on at `now`, until which the process stood still.
    pub(super) fn stood_still(&mut self, now: Moment) {
        self.workers.iter_mut().for_each(|worker| worker.since = now);
    }

    /// Those that are not parked and told nothing between two looks.
    pub(super) fn standing(&self, now: Moment) -> impl Iterator<Item = &Worker> {
        self.workers.iter().filter(move |worker| {
            !worker.beat.parked && worker.since < now && !worker.is_dismissed(now)
        })
    }

    /// Returns the worker of the runtime of one thread that the thread `tid` drives, if it drives one.
    pub(super) fn driven_by(&self, tid: u32) -> Option<(u64, u32)> {
        let driven = self.workers.iter().find(|worker| worker.beat.driver == Some(tid))?;
        Some(driven.beat.worker)
    }

    /// Leaves the runtime that the thread `tid` drives alone for a while: it is not in its loop. A runtime of one thread
    /// that nothing drives has the counters of one that is at work.
    pub(super) fn dismiss(&mut self, tid: u32, now: Moment) {
        for worker in self.workers.iter_mut().filter(|worker| worker.beat.driver == Some(tid)) {
            worker.dismissed_until = Some(now + DISMISSED);
        }
    }

    /// How many were parked all the time between the last two looks.
    pub(super) fn asleep(&self) -> usize {
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
        let beat =
            |parked, turns| [Beat { worker: (1, 0), parked, mark: (turns, 0), driver: None }];
        let mut workers = Workers::new(THRESHOLD);
        let mut look = |millis: u64, parked, turns| {
            workers.look(Moment::from_nanos(millis * 1_000_000), &beat(parked, turns)).as_millis()
        };
        assert_eq!(look(0, true, 1), 100);
        assert_eq!(look(499, true, 1), 100);
        assert_eq!(look(500, true, 1), 200);
        assert_eq!(look(700, true, 1), 200);
        // It did something in between; then it works.
        assert_eq!(look(900, true, 3), 100);
        assert_eq!(look(1000, false, 4), 10);
        assert_eq!(look(1010, false, 4), 20);
        assert_eq!(look(1030, true, 5), 100);
        assert_eq!(look(1600, true, 5), 200);
    }

    #[test]
    fn no_rest_is_longer_than_two_tenths_of_a_second_or_the_threshold() {
        let parked = [Beat { worker: (1, 0), parked: true, mark: (1, 0), driver: None }];
        for (threshold, rest) in [(10, 50), (50, 100), (100, 200), (150, 200), (1000, 1000)] {
            let mut workers = Workers::new(Duration::from_millis(threshold));
            workers.look(Moment::from_nanos(0), &parked);
            let next = workers.look(Moment::from_nanos(1_000_000_000), &parked);
            assert_eq!(next.as_millis(), rest, "{threshold} ms");
        }
    }

    #[test]
    fn a_runtime_that_nothing_drives_does_not_stand_still_for_a_second() {
        let beat =
            |count| [Beat { worker: (1, 0), parked: false, mark: (count, 0), driver: Some(7) }];
        let at = |millis: u64| Moment::from_nanos(millis * 1_000_000);
        let mut workers = Workers::new(THRESHOLD);
        let look = |workers: &mut Workers, millis, count| {
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
        // It goes on.
        look(&mut workers, 1300, 4);
        assert_eq!(look(&mut workers, 1400, 4), (20, 1));
    }
}
