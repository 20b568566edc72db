//! Who may be stuck, where nobody records polls: without a clock, a runtime or a thread.
//!
//! ```text
//! look   a worker that is not parked counts no further          -> stands still: which thread is it?
//! round  the stacks of threads like it: in which poll is each   -> followed
//! round  it has not run since, or shows the same poll again     -> told, once that is certain
//! ```
//!
//! A worker tells what it did every 61 polls, so that standing still is no more than a hint: at 5 ms a poll it
//! comes round every 300 ms. What a stack shows of a poll (its frames outside of the task's own code, and
//! what lies in them, the task's address above all) tells tasks apart, but not two polls of one task. So
//! there are two kinds of evidence:
//!
//! - **It slept.** A thread that was given no core between two looks was in one poll all the time. That, for
//!   as long as the threshold, is proof.
//! - **The same task whenever one looks**, for the threshold and for [`BATCH`] at least: the longest that 61
//!   polls of one task may take which are no stalls. What it waited for a core is not counted: on a loaded
//!   machine a poll of 5 ms takes as long as the others want.
//!
//! So some stalls are missed, none of them for good if they go on: one that ends before its worker was seen to stand
//! still (up to a threshold after it began; after half a second of idleness two, or 0.2 s), its thread was searched for
//! 10 ms later, and it slept for the threshold from there on; one that computes, and is over within 0.31 s
//! of that; and one that begins while no search may be made yet, for the last one found somebody else or nobody
//! ([`PAUSE`] to [`LONG_PAUSE`], by what it cost).
//!
//! Threads are not known by their workers. When more of them look stuck than workers stand still, some hold up
//! nobody, and none is told. One whose stack shows that it left its worker to another (`block_in_place`) is
//! acquitted.

use std::time::Duration;

use super::overdue::{PERIOD, REST};
use super::workers::{Worker, Workers};
use crate::base::Moment;
use crate::model::Beat;

/// What a worker may do without telling: 61 polls of 5 ms, and a little.
const BATCH: Duration = Duration::from_millis(310);

/// The shortest between two searches among threads, and as many times the CPU that one takes: a hundredth of a
/// core. A worker that is never parked may be in recorded polls at all searches but the one that matters, and a
/// stall is missed that began and ended between two. The longest: a search that reads many names is not to be the
/// last for long.
const PAUSE: Duration = Duration::from_millis(20);
const LONG_PAUSE: Duration = Duration::from_millis(500);
const SHARE: u32 = 100;

/// The threads that are followed at once.
pub(crate) const MAX_FOLLOWED: usize = 64;

/// What a round is to find out.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Ask {
    /// Where these threads are by now.
    pub(crate) follow: Vec<u32>,
    /// Whether others are to be searched.
    pub(crate) search: bool,
}

/// What a round says of a thread.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    pub(crate) tid: u32,
    /// The poll that it is in, if it is a worker in one.
    pub(crate) poll: Option<u64>,
    /// Whether it sleeps and has been given no core since it was last seen.
    pub(crate) slept: bool,
    /// How long it has waited for a core in all its life.
    pub(crate) waited: Duration,
}

/// A poll that has lasted for too long.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Suspicion {
    pub(crate) tid: u32,
    /// When it was first seen.
    pub(crate) since: Moment,
    pub(crate) lasted: Duration,
    /// Whose it is, where that is certain.
    pub(crate) worker: Option<(u64, u32)>,
}

/// What is known of workers and threads.
#[derive(Debug)]
pub(crate) struct Suspects {
    threshold: Duration,
    workers: Workers,
    followed: Vec<Followed>,
    /// When threads may be searched next.
    search: Option<Moment>,
}

#[derive(Debug)]
struct Followed {
    tid: u32,
    poll: u64,
    since: Moment,
    /// When it was last seen to run.
    ran: Moment,
    /// Whether it had slept when it was last looked at.
    slept: bool,
    /// How long it had waited for a core when it was first seen there, and when it last was.
    waited: (Duration, Duration),
    told: bool,
    /// Holds up nobody, or that is not known.
    acquitted: bool,
}

/// Threads to be looked at closely.
#[derive(Debug)]
pub(crate) struct Verdict {
    pub(crate) suspicions: Vec<Suspicion>,
    /// How many of them may be stuck.
    most: usize,
}

impl Followed {
    fn is_open(&self) -> bool {
        !self.told && !self.acquitted
    }
}

impl Suspects {
    pub(crate) fn new(threshold: Duration) -> Self {
        let workers = Workers::new(threshold);
        Self { threshold, workers, followed: Vec::new(), search: None }
    }

    /// Takes what workers tell at `now`; gives what to ask threads, and how long until the next look.
    pub(crate) fn look(&mut self, now: Moment, beats: &[Beat]) -> (Option<Ask>, Duration) {
        let rest = self.workers.look(now, beats);
        let standing = self.workers.standing(now).count();
        if standing == 0 {
            self.followed.clear();
            return (None, rest);
        }
        let told = self.followed.iter().filter(|thread| thread.told).count();
        let search = standing > self.followed.iter().filter(|thread| !thread.acquitted).count()
            && self.search.is_none_or(|at| now >= at);
        let follow: Vec<u32> = self.followed.iter().map(|thread| thread.tid).collect();
        let open = self.followed.iter().filter(|thread| thread.is_open());
        let next = match open.map(|thread| self.due(thread)).min() {
            Some(due) => due.since(now).clamp(PERIOD, self.threshold.max(PERIOD)),
            None if standing > told => PERIOD,
            None => REST,
        };
        let ask = Ask { follow, search };
        ((search || !ask.follow.is_empty()).then_some(ask), next)
    }

    /// Takes what a round that was begun at `asked` has said by `now`, at the price of `cost`. Call
    /// [`Self::look`] before.
    pub(crate) fn hear(
        &mut self,
        now: Moment,
        asked: Moment,
        samples: &[Sample],
        search: Option<Duration>,
    ) -> Option<Verdict> {
        if let Some(cost) = search {
            self.search = Some(now + cost.saturating_mul(SHARE).clamp(PAUSE, LONG_PAUSE));
        }
        for sample in samples {
            self.take(now, sample);
        }
        let standing: Vec<&Worker> = self.workers.standing(now).collect();
        let told = self.followed.iter().filter(|thread| thread.told).count();
        let most = standing.len().saturating_sub(told);
        let whole_batch = standing.iter().any(|worker| now.since(worker.since) >= BATCH);
        let worker = match standing[..] {
            [only] => Some(only.beat.worker),
            _ => None,
        };
        let is_certain = |thread: &&Followed| {
            let slept = thread.slept && asked.since(thread.ran) >= self.threshold;
            let waited = thread.waited.1.saturating_sub(thread.waited.0);
            let own = asked.since(thread.since).saturating_sub(waited);
            let same = whole_batch && own >= self.threshold.max(BATCH);
            thread.is_open() && (slept || same)
        };
        let suspicions = self.followed.iter().filter(is_certain).map(|thread| Suspicion {
            tid: thread.tid,
            since: thread.since,
            lasted: asked.since(thread.since),
            worker,
        });
        let suspicions: Vec<Suspicion> = suspicions.collect();
        (most > 0 && !suspicions.is_empty()).then_some(Verdict { suspicions, most })
    }

    /// Takes which of the threads are stuck, looked at closely; gives those to be told.
    pub(crate) fn settle(
        &mut self,
        verdict: Verdict,
        is_stuck: impl Fn(u32) -> bool,
    ) -> Vec<Suspicion> {
        let Verdict { mut suspicions, most } = verdict;
        let examined: Vec<u32> = suspicions.iter().map(|suspicion| suspicion.tid).collect();
        suspicions.retain(|suspicion| is_stuck(suspicion.tid));
        if suspicions.len() > most {
            suspicions.clear();
        }
        for thread in self.followed.iter_mut().filter(|thread| examined.contains(&thread.tid)) {
            thread.told = suspicions.iter().any(|suspicion| suspicion.tid == thread.tid);
            thread.acquitted = !thread.told;
        }
        suspicions
    }

    /// Since when the oldest poll that was told goes on.
    pub(crate) fn oldest(&self) -> Option<Moment> {
        self.followed.iter().filter(|thread| thread.told).map(|thread| thread.since).min()
    }

    fn take(&mut self, now: Moment, sample: &Sample) {
        let fresh = |poll| Followed {
            tid: sample.tid,
            poll,
            since: now,
            ran: now,
            slept: false,
            waited: (sample.waited, sample.waited),
            told: false,
            acquitted: false,
        };
        let room = self.followed.len() < MAX_FOLLOWED;
        let known = self.followed.iter_mut().find(|thread| thread.tid == sample.tid);
        match (known, sample.poll) {
            (Some(thread), _) if sample.slept => thread.slept = true,
            (Some(thread), Some(poll)) if thread.poll == poll => {
                thread.ran = now;
                thread.slept = false;
                thread.waited.1 = sample.waited;
            }
            (Some(thread), Some(poll)) => *thread = fresh(poll),
            (Some(_), None) => self.followed.retain(|thread| thread.tid != sample.tid),
            (None, Some(poll)) if room => self.followed.push(fresh(poll)),
            (None, _) => {}
        }
    }

    /// When a thread will have been seen for long enough.
    fn due(&self, thread: &Followed) -> Moment {
        // One that runs is looked at each period: what it does in between is not known.
        if thread.slept { thread.ran + self.threshold } else { thread.ran }
    }
}

#[cfg(test)]
mod tests;
