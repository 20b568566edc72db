//! Stall detection: finds polls that last too long and dumps the stack of their thread at once.
//!
//! Checks run on the agent's thread. Slower work (a signal, a stack, symbolization) runs on a
//! separate thread, `marple-stalls`, which clients reading files cannot keep busy. A stack counts
//! only if the poll is still in progress after it was taken.
//!
//! Recorded polls are timed exactly. Others can only be suspected (`unrecorded_polls.rs`), and only
//! if threads may be signaled. Both are reported the same way.

use std::future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::oneshot::Receiver;
use tokio::time::Instant;

use super::poll_watch::{LongPoll, StallWatch, longest_poll};
use super::recorded_polls::StarvedPolls;
use super::unrecorded_polls::{StallSuspects, SuspectedStall};
use crate::base::failure::{CaptureFailure, catch_panic};
use crate::base::side_thread::SideThread;
use crate::base::{Clock, Moment, SystemClock, TimeAnchor, log, standstill};
use crate::config::{Settings, ThreadsMode};
use crate::model::{Metric, Profile, Stall, ThreadDump, TraceMode};
use crate::os;
use crate::os::clock::timerfd::TimerFd;
use crate::stacks::threads;
use crate::stalls::stack_budget::StackBudget;
use crate::stalls::standstill::StandstillDetector;
use crate::stalls::worker_samples::{StallCandidates, blocks_worker, is_in_place_function};
use crate::symbols;
use crate::vitals::Runtimes;

/// Lower bound of the threshold, the same as that of the settings.
const MIN_THRESHOLD: Duration = Duration::from_millis(10);

/// Maximum CPU time charged for confirming suspected stalls. The first confirmation reads symbols,
/// 0.1 s for a large binary; charged in full, that would suspend the detector for over a minute.
const MAX_CONFIRMATION_CHARGE: Duration = Duration::from_millis(5);

/// Minimum time between two log lines about polls that waited for a core.
const STARVED_LOG_INTERVAL: Duration = Duration::from_secs(10);

/// A delay longer than any sleep of the agent.
const DISABLED_CHECK_DELAY: Duration = Duration::from_secs(24 * 60 * 60);

/// A stall and the dump of its thread at that time.
pub(crate) struct DetectedStall {
    pub(crate) stall: Stall,
    pub(crate) dump: Option<Box<ThreadDump>>,
    /// True if the poll has handed its worker to another thread (`tokio::task::block_in_place`) and
    /// therefore blocks no task.
    pub(crate) is_in_place: bool,
}

/// Start time of the oldest suspected poll in nanoseconds plus [`START_OFFSET`], or one of the two
/// values below it.
static OLDEST_SUSPECTED: AtomicU64 = AtomicU64::new(NO_WORKERS);
const NO_WORKERS: u64 = 0;
const NONE_SUSPECTED: u64 = 1;
const START_OFFSET: u64 = 2;

/// Returns the duration of the longest poll in progress, if known.
pub(crate) fn longest_poll_in_progress() -> Option<Duration> {
    let suspected = match OLDEST_SUSPECTED.load(Ordering::Relaxed) {
        NO_WORKERS => None,
        NONE_SUSPECTED => Some(Duration::ZERO),
        since => {
            let since = Moment::from_nanos(since - START_OFFSET);
            Some(standstill::running_time(since, SystemClock.now()))
        }
    };
    crate::stalls::in_place::zero_if_in_place(longest_poll()).max(suspected)
}

/// Returns the stall threshold, the smallest of that of the settings and those of the rules. `None`
/// if stall detection is disabled.
pub(crate) fn threshold(settings: &Settings) -> Option<Duration> {
    let rules = settings.rules.iter().filter(|rule| rule.metric == Metric::Stall);
    let shortest = rules.filter_map(|rule| Some(rule.abs?.max(rule.min))).reduce(f64::min);
    let shortest = shortest.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    let stall = settings.trace.stall_threshold.filter(|_| settings.trace.mode != TraceMode::Off)?;
    // Below the minimum of the settings a stall cannot be distinguished from CPU contention.
    Some(shortest.map_or(stall, |shortest| stall.min(shortest)).max(MIN_THRESHOLD))
}

/// Suspected stalls confirmed by the stacks of their threads.
type ConfirmedStalls = Vec<(SuspectedStall, DetectedStall)>;

/// The stall detector.
pub(crate) struct Stalls {
    runtimes: Runtimes,
    active_config: Option<(Duration, bool)>,
    watch: Option<StallWatch>,
    candidates: Option<StallCandidates>,
    next_check: Instant,
    timer: TimerFd,
    /// The thread that signals and dumps other threads.
    thread: SideThread,
    pending_examination: Option<Receiver<(Vec<DetectedStall>, Duration)>>,
    stack_budget: StackBudget,
    /// Polls to be logged that were too long only because they waited for a core, and the time of
    /// the last such log line.
    starved: StarvedPolls,
    starved_logged_at: Option<Moment>,
    /// Suspected stalls being confirmed.
    pending_confirmation: Option<(StallSuspects, Receiver<(ConfirmedStalls, Duration)>)>,
}

impl Stalls {
    /// Creates a detector that signals and dumps threads on `thread`. Must be called on the agent's
    /// runtime.
    pub(crate) fn new(runtimes: Runtimes, thread: SideThread) -> Self {
        Self {
            runtimes,
            active_config: None,
            watch: None,
            candidates: None,
            next_check: Instant::now(),
            timer: TimerFd::on_current_runtime(),
            thread,
            pending_examination: None,
            stack_budget: StackBudget::default(),
            starved: StarvedPolls::default(),
            starved_logged_at: None,
            pending_confirmation: None,
        }
    }

    /// Applies the settings, including the thresholds of their rules.
    pub(crate) fn apply(&mut self, settings: &Settings) {
        let signals = settings.stacks.threads == ThreadsMode::Full;
        let config = threshold(settings).map(|threshold| (threshold, signals));
        if config != self.active_config {
            self.active_config = config;
            // The poller accepts the same descriptor only once, so the old watch is dropped first.
            self.watch = None;
            self.watch = config.map(|(threshold, _)| StallWatch::new(threshold));
            let suspects = config.filter(|&(_, signals)| signals);
            self.candidates = suspects.map(|(threshold, _)| {
                StallCandidates::new(self.runtimes.clone(), threshold, self.thread.clone())
            });
            self.pending_confirmation = None;
            self.next_check = Instant::now();
            self.publish_oldest_suspected();
        }
    }

    /// Returns the time at which the next check is due.
    pub(crate) fn next_check(&self) -> Instant {
        if self.watch.is_some() { self.next_check } else { Instant::now() + DISABLED_CHECK_DELAY }
    }

    /// Waits for the next stalls. Cancel safe. `tick_due` is the latest time at which the agent's
    /// thread wakes up.
    pub(crate) async fn next(
        &mut self,
        detector: &mut StandstillDetector,
        tick_due: Instant,
    ) -> Vec<DetectedStall> {
        loop {
            if let Some(examination) = &mut self.pending_examination {
                let (found, cost) = examination.await.unwrap_or_default();
                self.pending_examination = None;
                self.stack_budget.charge(cost);
                return found;
            }
            if let Some((_, confirmation)) = &mut self.pending_confirmation {
                let (confirmed, cost) = confirmation.await.unwrap_or_default();
                if let Some(candidates) = &mut self.candidates {
                    candidates.charge(cost.min(MAX_CONFIRMATION_CHARGE));
                }
                let found = self.confirm(confirmed);
                self.publish_oldest_suspected();
                if !found.is_empty() {
                    return found;
                }
            }
            let Some(watch) = &mut self.watch else { return future::pending().await };
            tokio::select! {
                () = self.timer.sleep_until(self.next_check) => {}
                () = watch.poll_started() => {}
                verdict = next_verdict(&mut self.candidates) => {
                    if let Some(verdict) = verdict {
                        self.start_confirmation(verdict);
                    }
                    self.publish_oldest_suspected();
                    continue;
                }
            }
            // Must precede all measurements.
            detector.check_wakeup(self.next_check.min(tick_due));
            let before = os::proc::threads::cpu_time();
            let (long_polls, next) = watch.check();
            let suspected = self.candidates.as_mut().map(|suspicions| suspicions.check(before));
            self.next_check =
                Instant::now() + suspected.map_or(next, |suspected| suspected.min(next));
            let starved = watch.take_starved();
            self.publish_oldest_suspected();
            self.log_starved(starved);
            if !long_polls.is_empty() {
                self.start_examination(long_polls);
            }
        }
    }

    fn start_examination(&mut self, mut long_polls: Vec<LongPoll>) {
        // Polls in progress are examined first, the longest of them before the others.
        long_polls.sort_by_key(|poll| std::cmp::Reverse((poll.is_running, poll.duration)));
        let signals = self.active_config.is_some_and(|(_, signals)| signals);
        let now = SystemClock.now();
        let polls: Vec<(LongPoll, bool)> = long_polls
            .into_iter()
            .map(|poll| {
                let may_dump =
                    !signals || !poll.is_running || self.stack_budget.allows(now, &poll.task);
                (poll, may_dump)
            })
            .collect();
        self.pending_examination = Some(self.thread.run(move || {
            let before = os::proc::threads::cpu_time();
            let examine = |(poll, may_ask)| examine_poll(poll, signals, may_ask);
            let found = polls.into_iter().map(examine).collect();
            (found, os::proc::threads::cpu_time().saturating_sub(before))
        }));
    }

    fn log_starved(&mut self, fresh: StarvedPolls) {
        self.starved.polls += fresh.polls;
        self.starved.longest_wait = self.starved.longest_wait.max(fresh.longest_wait);
        let now = SystemClock.now();
        let is_due = self.starved_logged_at.is_none_or(|at| now.since(at) >= STARVED_LOG_INTERVAL);
        if self.starved.polls > 0 && is_due {
            let StarvedPolls { polls, longest_wait: longest } = std::mem::take(&mut self.starved);
            self.starved_logged_at = Some(now);
            log::info(format!(
                "{polls} polls exceeded the stall threshold only because their threads waited for \
                 a core (CPU contention), the longest for {} ms",
                longest.as_millis()
            ));
        }
    }

    fn start_confirmation(&mut self, verdict: StallSuspects) {
        let suspicions = verdict.suspects.clone();
        let receiver = self.thread.run(move || {
            let before = os::proc::threads::cpu_time();
            let suspected = suspicions.into_iter();
            let confirmed = suspected
                .filter_map(|suspicion| Some((suspicion, confirm_stall(&suspicion)?)))
                .collect();
            (confirmed, os::proc::threads::cpu_time().saturating_sub(before))
        });
        self.pending_confirmation = Some((verdict, receiver));
    }

    fn confirm(&mut self, confirmed: ConfirmedStalls) -> Vec<DetectedStall> {
        let Some((verdict, _)) = self.pending_confirmation.take() else { return Vec::new() };
        let Some(candidates) = &mut self.candidates else { return Vec::new() };
        let accepted = candidates
            .confirm(verdict, |tid| confirmed.iter().any(|(suspected, _)| suspected.tid == tid));
        let stalls = confirmed.into_iter().filter(|(suspicion, _)| accepted.contains(suspicion));
        stalls.map(|(_, found)| found).collect()
    }

    fn publish_oldest_suspected(&self) {
        let candidates = self.candidates.as_ref().filter(|candidates| candidates.has_workers());
        let encoded = candidates.map_or(NO_WORKERS, |suspicions| {
            let oldest = suspicions.oldest_start();
            oldest.map_or(NONE_SUSPECTED, |since| since.as_nanos().saturating_add(START_OFFSET))
        });
        OLDEST_SUSPECTED.store(encoded, Ordering::Relaxed);
    }
}

impl Drop for Stalls {
    fn drop(&mut self) {
        // The suspected polls of the next agent differ from these.
        OLDEST_SUSPECTED.store(NO_WORKERS, Ordering::Relaxed);
    }
}

/// Waits for the samples of the detector of unrecorded polls. Never completes while none are
/// requested.
async fn next_verdict(candidates: &mut Option<StallCandidates>) -> Option<StallSuspects> {
    match candidates {
        Some(suspicions) => suspicions.next_verdict().await,
        None => future::pending().await,
    }
}

/// Returns the suspected stall if the thread's stack shows that it blocks a worker.
fn confirm_stall(suspicion: &SuspectedStall) -> Option<DetectedStall> {
    let anchor = SystemClock.anchor();
    let dump = dump_thread(anchor, suspicion.tid).ok()?;
    let row = dump.threads.first()?;
    let names = function_names(&dump.profile);
    if !blocks_worker(names.iter().copied(), suspicion.is_driver) {
        return None;
    }
    let own = symbols::application_function(&names);
    let stall = Stall {
        task: String::new(),
        number: 0,
        tid: suspicion.tid,
        thread: row.name.clone(),
        runtime: None,
        worker: suspicion.worker.map(|(_, worker)| worker.into()),
        started: anchor.wall_at(suspicion.first_seen),
        lasted: suspicion.duration,
        waited: Duration::ZERO,
        running: true,
        suspected: true,
        remark: if own.is_none() { row.remark } else { "" },
        function: own.map(|own| own.name.to_owned()),
        via: own.and_then(|own| own.via).map(str::to_owned),
    };
    Some(DetectedStall { stall, dump: Some(Box::new(dump)), is_in_place: false })
}

/// Dumps and symbolizes one thread.
fn dump_thread(anchor: TimeAnchor, tid: u32) -> Result<ThreadDump, CaptureFailure> {
    catch_panic(|| {
        let mut dump = threads::dump_one(&SystemClock, anchor, tid)?;
        symbols::symbolize(&mut dump.profile);
        Ok(dump)
    })
}

fn examine_poll(mut poll: LongPoll, signals: bool, may_dump: bool) -> DetectedStall {
    let anchor = SystemClock.anchor();
    let mut remark = "";
    let mut dump = None;
    if !poll.is_running {
        remark = "it ended before it was sampled";
    } else if !signals {
        remark = "no stack: threads are not signalled";
    } else if !may_dump {
        remark = "no stack: the CPU budget for stall stacks is used up by other stalls";
    } else {
        match catch_panic(|| Ok(threads::dump_one(&SystemClock, anchor, poll.tid)?)) {
            Ok(taken) if poll.is_still_running() => dump = Some(Box::new(taken)),
            Ok(_) => {
                poll.is_running = false;
                remark = "it ended before its stack was taken";
            }
            Err(_) => remark = "no stack: its thread could not be sampled",
        }
    }
    let (mut function, mut via) = (None, None);
    let mut is_in_place = false;
    if let Some(dump) = &mut dump {
        let _ = catch_panic(|| {
            symbols::symbolize(&mut dump.profile);
            Ok(())
        });
        let names = function_names(&dump.profile);
        is_in_place = names.iter().any(|name| is_in_place_function(name));
        if is_in_place {
            crate::stalls::in_place::record_start(poll.start);
        }
        if let Some(own) = symbols::application_function(&names) {
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
        lasted: poll.duration,
        waited: poll.run_delay,
        running: poll.is_running,
        suspected: false,
        function,
        via,
        remark,
    };
    DetectedStall { stall, dump, is_in_place }
}

/// Returns the function names of a profile with one stack, innermost first.
fn function_names(profile: &Profile) -> Vec<&str> {
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
