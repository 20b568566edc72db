//! Polls that last too long, from the slices that threads are in.
//!
//! A look costs a few loads a thread. It need not be taken often: a poll that is in progress says when it
//! began, so the next look is due when the oldest of them will have lasted for the threshold, and while
//! nothing runs a look in each threshold's time sees every poll that will become a stall. So a process
//! is looked at ten times a second or not much oftener, and a stall is found within
//! 10 ms of having lasted for the threshold (`overdue.rs`).
//!
//! When nothing has been polled for half a second, whoever looks has the next poll that begins wake him
//! (`thread.rs`), looks once more as usual, and sleeps. A poll that he is not told of is then one whose thread read the
//! word that says so before it was set, and which showed no poll a threshold later: the thread was kept off
//! its core all that time, just there. He finds it no later than two seconds on.
//!
//! Whoever looks may himself come late, on a machine with more work than cores. A look that does reads in
//! the rings what ended meanwhile: nothing above the threshold goes untold, unless its ring went round.
//!
//! Polls that nobody records are suspected by what the runtime counts (`suspects.rs`).

mod budget;
mod overdue;
mod suspects;
mod workers;

use std::sync::atomic::Ordering;
use std::time::Duration;

use self::overdue::{Ended, Found, Overdue, Seen};
pub(crate) use self::suspects::{
    Ask, MAX_FOLLOWED, Sample, Still, Suspects, Suspicion, Verdict, WorkerThread,
};
use super::registry::{self, Tenancy};
use super::sites;
use super::thread::{self, BEGAN, EPOCH, Rings};
use crate::base::{Clock, Moment, SystemClock};
use crate::model::{Calibration, OpenSlice, RawKind, RawSlice};
use crate::os::ticks;
use crate::os::wake::Listener;

/// A poll that lasted too long.
#[derive(Clone, Debug)]
pub(crate) struct Overlong {
    pub(crate) tid: u32,
    pub(crate) thread: String,
    pub(crate) runtime: Option<u64>,
    pub(crate) worker: Option<u64>,
    pub(crate) task: String,
    pub(crate) number: u64,
    pub(crate) start: Moment,
    pub(crate) lasted: Duration,
    /// Whether it went on at the look.
    pub(crate) running: bool,
    tenancy: u64,
    /// Its start in ticks, while it goes on.
    tick: u64,
}

impl Overlong {
    /// Whether the poll still goes on.
    pub(crate) fn goes_on(&self) -> bool {
        self.running
            && registry::all().into_iter().any(|(rings, tenancy)| {
                tenancy.id == self.tenancy
                    && running(rings).is_some_and(|open| open.start == self.tick)
            })
    }
}

/// Whoever looks.
#[derive(Debug)]
pub(crate) struct Watch {
    overdue: Overdue,
    first: (u64, Moment),
    /// Of polls that begin; none where there is no such thing, and then a rest is as long as the threshold.
    began: Option<Listener>,
}

impl Watch {
    /// One that tells of polls of `threshold` and more; to be made on a runtime that has I/O enabled.
    pub(crate) fn new(threshold: Duration) -> Self {
        ticks::source();
        let began = Listener::new(&BEGAN).ok();
        Self { overdue: Overdue::new(threshold), first: ticks::pair(), began }
    }

    /// A poll has begun after a rest: it is time for a look. Nothing is lost when the future is dropped.
    pub(crate) async fn began(&self) {
        match &self.began {
            Some(began) => began.next().await,
            None => std::future::pending().await,
        }
    }

    /// The polls that have become too long since the last look, and how long until the next.
    pub(crate) fn look(&mut self) -> (Vec<Overlong>, Duration) {
        let told = self.began.is_some() && thread::rests();
        let (tick, now) = ticks::pair();
        let calibration = Calibration::new([self.first, (tick, now)]);
        let threads = registry::all();
        let seen: Vec<Seen> = threads
            .iter()
            .map(|(rings, tenancy)| Seen {
                thread: tenancy.id,
                next: rings.slices.next(),
                running: running(rings)
                    .map(|open| (calibration.moment(open.start), open.task, open.start)),
            })
            .collect();
        let of = |thread: u64| threads.iter().find(|(_, tenancy)| tenancy.id == thread);
        let ended = |thread: u64, from: u64| -> Vec<Ended> {
            let Some((rings, _)) = of(thread) else { return Vec::new() };
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
        let (found, next) = self.overdue.look(now, &seen, told, ended);
        if self.began.is_some() && self.overdue.is_quiet(now) {
            thread::rest();
        } else {
            thread::stir();
        }
        let found = found.into_iter().filter_map(|found| {
            let (rings, tenancy) = of(found.thread)?;
            Some(overlong(rings, tenancy, found))
        });
        (found.collect(), next)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // Nobody would hear.
        thread::stir();
    }
}

/// How long the longest poll that goes on has lasted; none while polls are not recorded, or no thread has
/// recorded any.
pub(crate) fn longest() -> Option<Duration> {
    if EPOCH.load(Ordering::Relaxed) == 0 {
        return None;
    }
    let threads = registry::all();
    let now = SystemClock.now();
    let calibration = super::flight::calibration();
    let lasted = threads.iter().map(|(rings, _)| {
        let start = running(rings).map(|open| calibration.moment(open.start));
        start.map_or(Duration::ZERO, |start| now.since(start))
    });
    lasted.max()
}

/// The threads that are in a poll that is recorded: their stalls are told exactly.
pub(crate) fn recorded() -> Vec<u32> {
    let threads = registry::all().into_iter();
    let polls = threads.filter(|(rings, own)| own.ended.is_none() && running(rings).is_some());
    polls.map(|(_, own)| own.tid).collect()
}

const fn is_poll(kind: RawKind) -> bool {
    matches!(kind, RawKind::HookedPoll | RawKind::WrappedPoll)
}

/// The outermost poll that goes on.
fn running(rings: &Rings) -> Option<OpenSlice> {
    rings.open().into_iter().find(|open| is_poll(open.kind))
}

fn overlong(rings: &Rings, tenancy: &Tenancy, found: Found) -> Overlong {
    let [runtime, worker] =
        [&rings.runtime, &rings.worker].map(|number| number.load(Ordering::Relaxed));
    Overlong {
        tid: tenancy.tid,
        thread: tenancy.thread.to_string(),
        runtime: Some(runtime).filter(|&runtime| runtime > 0),
        worker: worker.checked_sub(1),
        task: sites::name(found.task.site),
        number: found.task.short().number,
        start: found.start,
        lasted: found.lasted,
        running: found.tick.is_some(),
        tenancy: tenancy.id,
        tick: found.tick.unwrap_or(0),
    }
}
