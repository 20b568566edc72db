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
mod waits;
mod workers;

use crate::base::sync::Mutex;
use std::sync::atomic::Ordering;
use std::sync::{MutexGuard, PoisonError};
use std::time::Duration;

pub(crate) use self::overdue::Starved;
use self::overdue::{Ended, Found, Overdue, Seen};
pub(crate) use self::suspects::{
    Ask, MAX_FOLLOWED, Sample, Still, Suspects, Suspicion, Verdict, WorkerThread,
};
use self::waits::{Excluded, Polling, Waits};
use super::registry::{self, Tenancy};
use super::sites;
use super::thread::{self, BEGAN, EPOCH, Rings};
use crate::base::{Clock, Moment, SystemClock, standstill};
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
    /// Without the times in which its thread waited for a core or the process stood still.
    pub(crate) lasted: Duration,
    /// Time in which its thread waited for a core, at most.
    pub(crate) waited: Duration,
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

/// Of shorter polls nobody wants to know whether they waited for a core.
const SHORT: Duration = Duration::from_millis(10);

/// The run delays of the threads, while a [`Watch`] looks.
static WAITS: Mutex<Option<Waits>> = Mutex::new(None);

fn waits() -> MutexGuard<'static, Option<Waits>> {
    WAITS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns what is not the own time of a poll of `tenancy`'s thread from `from` to `until`.
fn exclude(waits: &mut Option<Waits>, own: &Tenancy, from: Moment, until: Moment) -> Excluded {
    match waits {
        Some(waits) => waits.exclude(own.id, own.tid, from, until),
        None => Excluded { still: standstill::within(from, until), ..Excluded::default() },
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
        *waits() = Some(Waits::new());
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
        let mut waits = waits();
        if let Some(waits) = &mut *waits {
            let polling =
                threads.iter().zip(&seen).filter(|(_, seen)| self.overdue.has_moved(seen));
            let polling = polling.map(|((_, own), seen)| Polling {
                thread: own.id,
                tid: own.tid,
                since: seen.running.map(|(start, ..)| start),
            });
            waits.look(now, polling.collect());
        }
        let excluded = |thread: u64, from: Moment, until: Moment| match of(thread) {
            Some((_, own)) => exclude(&mut waits, own, from, until),
            None => Excluded::default(),
        };
        let (found, next) = self.overdue.look(now, &seen, told, ended, excluded);
        drop(waits);
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

impl Watch {
    /// Takes the polls since the last call that were too long only because their threads waited for a core.
    pub(crate) fn take_starved(&mut self) -> Starved {
        self.overdue.take_starved()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        *waits() = None;
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
    let mut polls: Vec<(Moment, &Tenancy)> = threads
        .iter()
        .filter_map(|(rings, own)| Some((calibration.moment(running(rings)?.start), own)))
        .collect();
    polls.sort_unstable_by_key(|(start, _)| *start);
    let mut longest = (!threads.is_empty()).then_some(Duration::ZERO)?;
    let mut waits = waits();
    for (start, own) in polls {
        let lasted = now.since(start);
        // The rest began later.
        if lasted <= longest {
            break;
        }
        let excluded =
            if lasted < SHORT { Excluded::default() } else { exclude(&mut waits, own, start, now) };
        longest = longest.max(lasted.saturating_sub(excluded.waited + excluded.still));
    }
    Some(longest)
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
        waited: found.excluded.waited,
        running: found.tick.is_some(),
        tenancy: tenancy.id,
        tick: found.tick.unwrap_or(0),
    }
}
