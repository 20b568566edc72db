//! Stall detection: finds polls that last too long and dumps the stack of their thread at once.
//!
//! Checks run on the agent's thread. Slower work (a signal, a stack, symbolization) runs on a
//! separate thread, `marple-stalls`, which clients reading files cannot keep busy. A stack counts
//! only if the poll is still in progress after it was taken.
//!
//! Recorded polls are timed exactly. Others can only be suspected (`suspects.rs`), and only if
//! threads may be signaled. Both are reported the same way.

use std::future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::oneshot::Receiver;
use tokio::time::Instant;

use super::poll_watch::{LongPoll, StallWatch, longest as longest_poll};
use super::recorded_polls::StarvedPoll;
use super::unrecorded_polls::{StallVerdict, SuspectedStall};
use crate::base::failure::{CaptureFailure, fence};
use crate::base::side_thread::SideThread;
use crate::base::{Clock, Moment, SystemClock, TimeAnchor, log, standstill};
use crate::config::{Settings, ThreadsMode};
use crate::model::{Metric, Profile, Stall, ThreadDump, TraceMode};
use crate::os;
use crate::os::clock::timerfd::TimerFd;
use crate::stacks::threads;
use crate::stalls::stack_budget::StackBudget;
use crate::stalls::standstill::StandstillDetector;
use crate::stalls::worker_samples::{StallCandidates, holds_up, is_in_place_function};
use crate::symbols;
use crate::vitals::Runtimes;

/// Lower bound of the threshold, the same as that of the settings.
const LEAST: Duration = Duration::from_millis(10);

/// Maximum CPU time charged for confirming suspected stalls. The first confirmation reads symbols,
/// 0.1 s for a large binary; charged in full, that would suspend the detector for over a minute.
const MAX_WEIGHING: Duration = Duration::from_millis(5);

/// Minimum time between two log lines about polls that waited for a core.
const STARVED_EVERY: Duration = Duration::from_secs(10);

/// A delay longer than any sleep of the agent.
const LONG: Duration = Duration::from_secs(24 * 60 * 60);

/// A stall and the dump of its thread at that time.
pub(crate) struct FoundStalls {
    pub(crate) stall: Stall,
    pub(crate) dump: Option<Box<ThreadDump>>,
    /// True if the poll has handed its worker to another thread (`tokio::task::block_in_place`) and
    /// therefore blocks no task.
    pub(crate) is_in_place: bool,
}

/// Start time of the oldest suspected poll in nanoseconds plus [`SINCE`], or one of the two values
/// below it.
static SUSPECTED: AtomicU64 = AtomicU64::new(NO_WORKERS);
const NO_WORKERS: u64 = 0;
const NOBODY: u64 = 1;
const SINCE: u64 = 2;

/// Returns the duration of the longest poll in progress, if known.
pub(crate) fn longest() -> Option<Duration> {
    let suspected = match SUSPECTED.load(Ordering::Relaxed) {
        NO_WORKERS => None,
        NOBODY => Some(Duration::ZERO),
        since => {
            let (since, now) = (Moment::from_nanos(since - SINCE), SystemClock.now());
            Some(standstill::running_time(since, now))
        }
    };
    crate::stalls::in_place::without(longest_poll()).max(suspected)
}

/// Returns the stall threshold, the smallest of that of the settings and those of the rules. `None`
/// if stall detection is disabled.
pub(crate) fn threshold(settings: &Settings) -> Option<Duration> {
    let rules = settings.rules.iter().filter(|rule| rule.metric == Metric::Stall);
    let shortest = rules.filter_map(|rule| Some(rule.abs?.max(rule.min))).reduce(f64::min);
    let shortest = shortest.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    let stall = settings.trace.stall.filter(|_| settings.trace.mode != TraceMode::Off)?;
    // Below the minimum of the settings a stall cannot be distinguished from CPU contention.
    Some(shortest.map_or(stall, |shortest| stall.min(shortest)).max(LEAST))
}

/// Suspected stalls confirmed by the stacks of their threads.
type ConfirmedStalls = Vec<(SuspectedStall, FoundStalls)>;

/// The stall detector.
pub(crate) struct Stalls {
    runtimes: Runtimes,
    wanted: Option<(Duration, bool)>,
    watch: Option<StallWatch>,
    suspicions: Option<StallCandidates>,
    due: Instant,
    alarm: TimerFd,
    /// The thread that signals and dumps other threads.
    thread: SideThread,
    examined: Option<Receiver<(Vec<FoundStalls>, Duration)>>,
    stacks: StackBudget,
    /// Polls to be logged that were too long only because they waited for a core, and the time of
    /// the last such log line.
    starved: StarvedPoll,
    starved_logged: Option<Moment>,
    /// Suspected stalls being confirmed.
    weighed: Option<(StallVerdict, Receiver<(ConfirmedStalls, Duration)>)>,
}

impl Stalls {
    /// Creates a detector that signals and dumps threads on `thread`. Must be called on the agent's
    /// runtime.
    pub(crate) fn new(runtimes: Runtimes, thread: SideThread) -> Self {
        Self {
            runtimes,
            wanted: None,
            watch: None,
            suspicions: None,
            due: Instant::now(),
            alarm: TimerFd::here(),
            thread,
            examined: None,
            stacks: StackBudget::default(),
            starved: StarvedPoll::default(),
            starved_logged: None,
            weighed: None,
        }
    }

    /// Applies the settings, including the thresholds of their rules.
    pub(crate) fn apply(&mut self, settings: &Settings) {
        let signals = settings.stacks.threads == ThreadsMode::Full;
        let wanted = threshold(settings).map(|threshold| (threshold, signals));
        if wanted != self.wanted {
            self.wanted = wanted;
            // The poller accepts the same descriptor only once, so the old watch is dropped first.
            self.watch = None;
            self.watch = wanted.map(|(threshold, _)| StallWatch::new(threshold));
            let suspects = wanted.filter(|&(_, signals)| signals);
            self.suspicions = suspects.map(|(threshold, _)| {
                StallCandidates::new(self.runtimes.clone(), threshold, self.thread.clone())
            });
            self.weighed = None;
            self.due = Instant::now();
            self.show_suspected();
        }
    }

    /// Returns the time at which the next check is due.
    pub(crate) fn due(&self) -> Instant {
        if self.watch.is_some() { self.due } else { Instant::now() + LONG }
    }

    /// Waits for the next stalls. Cancel safe. `tick_due` is the latest time at which the agent's
    /// thread wakes up.
    pub(crate) async fn next(
        &mut self,
        detector: &mut StandstillDetector,
        tick_due: Instant,
    ) -> Vec<FoundStalls> {
        loop {
            if let Some(examined) = &mut self.examined {
                let (found, cost) = examined.await.unwrap_or_default();
                self.examined = None;
                self.stacks.charge(cost);
                return found;
            }
            if let Some((_, weighed)) = &mut self.weighed {
                let (weighed, cost) = weighed.await.unwrap_or_default();
                if let Some(suspicions) = &mut self.suspicions {
                    suspicions.charge(cost.min(MAX_WEIGHING));
                }
                let found = self.settle(weighed);
                self.show_suspected();
                if !found.is_empty() {
                    return found;
                }
            }
            let Some(watch) = &mut self.watch else { return future::pending().await };
            tokio::select! {
                () = self.alarm.sleep_until(self.due) => {}
                () = watch.began() => {}
                verdict = heard(&mut self.suspicions) => {
                    if let Some(verdict) = verdict {
                        self.weigh(verdict);
                    }
                    self.show_suspected();
                    continue;
                }
            }
            // Must precede all measurements.
            detector.woke(self.due.min(tick_due));
            let before = os::proc::threads::cpu_time();
            let (overlong, next) = watch.look();
            let suspected = self.suspicions.as_mut().map(|suspicions| suspicions.look(before));
            self.due = Instant::now() + suspected.map_or(next, |suspected| suspected.min(next));
            let starved = watch.take_starved();
            self.show_suspected();
            self.log_starved(starved);
            if !overlong.is_empty() {
                self.examine(overlong);
            }
        }
    }

    fn examine(&mut self, mut overlong: Vec<LongPoll>) {
        // Polls in progress are examined first, the longest of them before the others.
        overlong.sort_by_key(|poll| std::cmp::Reverse((poll.running, poll.lasted)));
        let signals = self.wanted.is_some_and(|(_, signals)| signals);
        let now = SystemClock.now();
        let polls: Vec<(LongPoll, bool)> = overlong
            .into_iter()
            .map(|poll| {
                let may_ask = !signals || !poll.running || self.stacks.allows(now, &poll.task);
                (poll, may_ask)
            })
            .collect();
        self.examined = Some(self.thread.run(move || {
            let before = os::proc::threads::cpu_time();
            let examine = |(poll, may_ask)| examine(poll, signals, may_ask);
            let found = polls.into_iter().map(examine).collect();
            (found, os::proc::threads::cpu_time().saturating_sub(before))
        }));
    }

    fn log_starved(&mut self, fresh: StarvedPoll) {
        self.starved.polls += fresh.polls;
        self.starved.longest = self.starved.longest.max(fresh.longest);
        let now = SystemClock.now();
        let is_due = self.starved_logged.is_none_or(|at| now.since(at) >= STARVED_EVERY);
        if self.starved.polls > 0 && is_due {
            let StarvedPoll { polls, longest } = std::mem::take(&mut self.starved);
            self.starved_logged = Some(now);
            log::info(format!(
                "{polls} polls took too long only because their threads waited for a core (CPU contention), the \
                 longest for {} ms",
                longest.as_millis()
            ));
        }
    }

    fn weigh(&mut self, verdict: StallVerdict) {
        let suspicions = verdict.suspicions.clone();
        let weighed = self.thread.run(move || {
            let before = os::proc::threads::cpu_time();
            let weighed = suspicions.into_iter();
            let weighed =
                weighed.filter_map(|suspicion| Some((suspicion, weigh(&suspicion)?))).collect();
            (weighed, os::proc::threads::cpu_time().saturating_sub(before))
        });
        self.weighed = Some((verdict, weighed));
    }

    fn settle(&mut self, weighed: ConfirmedStalls) -> Vec<FoundStalls> {
        let Some((verdict, _)) = self.weighed.take() else { return Vec::new() };
        let Some(suspicions) = &mut self.suspicions else { return Vec::new() };
        let told = suspicions.settle(verdict, |tid| weighed.iter().any(|(it, _)| it.tid == tid));
        let held = weighed.into_iter().filter(|(suspicion, _)| told.contains(suspicion));
        held.map(|(_, found)| found).collect()
    }

    fn show_suspected(&self) {
        let suspicions = self.suspicions.as_ref().filter(|it| it.sees_workers());
        let shown = suspicions.map_or(NO_WORKERS, |suspicions| {
            let oldest = suspicions.oldest();
            oldest.map_or(NOBODY, |since| since.as_nanos().saturating_add(SINCE))
        });
        SUSPECTED.store(shown, Ordering::Relaxed);
    }
}

impl Drop for Stalls {
    fn drop(&mut self) {
        // The suspected polls of the next agent differ from these.
        SUSPECTED.store(NO_WORKERS, Ordering::Relaxed);
    }
}

/// Waits for the samples of the detector of unrecorded polls. Never completes while none are
/// requested.
async fn heard(suspicions: &mut Option<StallCandidates>) -> Option<StallVerdict> {
    match suspicions {
        Some(suspicions) => suspicions.heard().await,
        None => future::pending().await,
    }
}

/// Returns the suspected stall if the thread's stack shows that it blocks a worker.
fn weigh(suspicion: &SuspectedStall) -> Option<FoundStalls> {
    let anchor = SystemClock.anchor();
    let dump = picture(anchor, suspicion.tid).ok()?;
    let row = dump.threads.first()?;
    let names = functions(&dump.profile);
    if !holds_up(names.iter().copied(), suspicion.is_driver) {
        return None;
    }
    let own = symbols::own_function(&names);
    let stall = Stall {
        task: String::new(),
        number: 0,
        tid: suspicion.tid,
        thread: row.name.clone(),
        runtime: None,
        worker: suspicion.worker.map(|(_, worker)| worker.into()),
        started: anchor.wall_at(suspicion.since),
        lasted: suspicion.lasted,
        waited: Duration::ZERO,
        running: true,
        suspected: true,
        remark: if own.is_none() { row.remark } else { "" },
        function: own.map(|own| own.name.to_owned()),
        via: own.and_then(|own| own.via).map(str::to_owned),
    };
    Some(FoundStalls { stall, dump: Some(Box::new(dump)), is_in_place: false })
}

/// Dumps and symbolizes one thread.
fn picture(anchor: TimeAnchor, tid: u32) -> Result<ThreadDump, CaptureFailure> {
    fence(|| {
        let mut dump = threads::dump_one(&SystemClock, anchor, tid)?;
        symbols::name_functions(&mut dump.profile);
        Ok(dump)
    })
}

fn examine(mut poll: LongPoll, signals: bool, may_ask: bool) -> FoundStalls {
    let anchor = SystemClock.anchor();
    let mut remark = "";
    let mut dump = None;
    if !poll.running {
        remark = "it ended before it was looked at";
    } else if !signals {
        remark = "no stack: threads are not signalled";
    } else if !may_ask {
        remark = "no stack: those of other stalls took the CPU time there is for that";
    } else {
        match fence(|| Ok(threads::dump_one(&SystemClock, anchor, poll.tid)?)) {
            Ok(taken) if poll.goes_on() => dump = Some(Box::new(taken)),
            Ok(_) => {
                poll.running = false;
                remark = "it ended before its stack was taken";
            }
            Err(_) => remark = "no stack: its thread could not be asked",
        }
    }
    let (mut function, mut via) = (None, None);
    let mut is_in_place = false;
    if let Some(dump) = &mut dump {
        let _ = fence(|| {
            symbols::name_functions(&mut dump.profile);
            Ok(())
        });
        let names = functions(&dump.profile);
        is_in_place = names.iter().any(|name| is_in_place_function(name));
        if is_in_place {
            crate::stalls::in_place::remember(poll.start);
        }
        if let Some(own) = symbols::own_function(&names) {
            function = Some(own.name.to_owned());
            via = own.via.map(str::to_owned);
        }
        if function.is_none() {
            remark = dump.threads.first().map_or("", |row| row.remark);
        }
    }
    let stall = Stall {
        task: poll.task,
        number: poll.number,
        tid: poll.tid,
        thread: poll.thread,
        runtime: poll.runtime,
        worker: poll.worker,
        started: anchor.wall_at(poll.start),
        lasted: poll.lasted,
        waited: poll.waited,
        running: poll.running,
        suspected: false,
        function,
        via,
        remark,
    };
    FoundStalls { stall, dump, is_in_place }
}

/// Returns the function names of a profile with one stack, innermost first.
fn functions(profile: &Profile) -> Vec<&str> {
    let Some(stack) = profile.samples.first().and_then(|sample| sample.stack) else {
        return Vec::new();
    };
    let frames = profile.stacks.frames(Some(stack)).map(|frame| profile.frames.get(frame));
    let named = frames.filter_map(|frame| {
        let function = profile.functions.get(frame.lines.first()?.function.index())?;
        Some(profile.strings.get(function.name))
    });
    named.collect()
}
