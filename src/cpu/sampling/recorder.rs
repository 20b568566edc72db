//! The thread `marple-cpu` and its state.

use std::any::Any;
use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::images::SeenImages;
use super::perf::period;
use super::relief::DescriptorRelief;
use super::report::{self, Subject};
use super::sampler::{DrainScope, SelectedEngine, UnwindOutcome, choose, drain_interval};
use super::window::LookbackWindow;
use crate::base::{Clock, Hertz, Moment, OfProcess, SystemClock, TimeAnchor, panics, warnings};
use crate::cpu::sampling::sample_table::SampleTable;
use crate::cpu::sampling::thread_cpu_clocks::ThreadCpuClocks;
use crate::cpu::sampling::thread_table::ThreadTable;
use crate::cpu::{Error, Options};
use crate::model::Profile;
use crate::os::own_thread;
use crate::os::proc::process::cpu_time;
use crate::os::stack_snapshot::StackSnapshot;
use crate::os::thread_start;
use crate::unwind::{MAX_FRAMES, OutermostFrames, StackWalker, WalkEnd};

/// Table entries of a session: 3 to 6 MB when full.
const NODES: usize = 64 << 10;

/// Maximum interval between reads of the thread list, in a session and in the look-back. The list
/// is also read whenever the number of threads changes. The interval covers a thread that ended
/// while another started.
const LOOK_EVERY: Duration = Duration::from_millis(250);
const LOOK_EVERY_IDLE: Duration = Duration::from_secs(1);

/// Minimum interval per thread between passes of work that takes 1 us per thread (reading the list,
/// charging CPU time). Each kind of work then takes at most `n * 1 us / (n * 2 ms)` = 0.05 % of a
/// core for n threads; 16 times that in a session.
const PAUSE_PER_THREAD: Duration = Duration::from_millis(2);

/// Pause between two batches of name reads, in which a caller can start or stop a session.
const NAME_EVERY: Duration = Duration::from_millis(1);

/// Minimum interval between wake-ups by thread-start notifications, for a host that starts threads
/// in a loop.
const HEAR_EVERY: Duration = Duration::from_millis(5);

/// Consecutive panics after which the thread ends.
const MAX_PANICS: u32 = 8;

pub(in crate::cpu) struct CpuRecorder {
    shared: Arc<RecorderShared>,
    thread: OfProcess<JoinHandle<()>>,
    /// Wakes the recorder when a thread reports its start.
    _births: thread_start::Subscription,
}

struct RecorderShared {
    state: Mutex<DrainState>,
    wake: Condvar,
}

pub(super) struct DrainState {
    pub(super) chosen: SelectedEngine,
    walker: StackWalker,
    /// Outermost frames of each thread, for stacks that are deeper than their copies.
    outermost: HashMap<u32, OutermostFrames>,
    pub(super) roster: ThreadTable,
    pub(super) charges: ThreadCpuClocks,
    pub(super) relief: DescriptorRelief,
    looked: Moment,
    images: SeenImages,
    pub(super) frequency: Hertz,
    pub(super) lookback: Option<(Hertz, LookbackWindow)>,
    pub(super) during: Option<RecordingSession>,
    copied_frames: Box<[u64; MAX_FRAMES]>,
    broken: Option<String>,
    is_over: bool,
}

/// Set of threads whose samples are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Extent {
    /// All threads.
    All,
    /// Threads whose samples cannot wait longer.
    Due,
}

/// A running session.
pub(super) struct RecordingSession {
    anchor: TimeAnchor,
    cpu: Duration,
    tally: SampleTable,
}

impl CpuRecorder {
    /// Starts the engine, and the look-back window if `options` enable it.
    pub(in crate::cpu) fn start(options: &Options) -> Result<Self, Error> {
        let mut roster = ThreadTable::open().map_err(|source| Error::Tasks { source })?;
        let tids = roster.look_at_first();
        let frequency = match options.lookback_frequency {
            Hertz(0) => options.frequency,
            lookback => lookback,
        };
        let walker = StackWalker::new()?;
        let chosen = choose(options.engine, frequency, &tids)?;
        let window = (options.lookback_frequency > Hertz(0) && !options.lookback.is_zero())
            .then(|| (options.lookback_frequency, LookbackWindow::new(options.lookback)));
        let mut state = DrainState {
            chosen,
            walker,
            outermost: HashMap::new(),
            roster,
            charges: ThreadCpuClocks::default(),
            relief: DescriptorRelief::default(),
            looked: SystemClock.now(),
            images: SeenImages::default(),
            frequency,
            lookback: window,
            during: None,
            copied_frames: Box::new([0; MAX_FRAMES]),
            broken: None,
            is_over: false,
        };
        state.open_accounts(&tids);
        state.begin_window(SystemClock.now());
        let shared = Arc::new(RecorderShared { state: Mutex::new(state), wake: Condvar::new() });
        let thread = thread::Builder::new().name("marple-cpu".to_owned()).spawn({
            let (shared, guard) = (Arc::clone(&shared), options.guard);
            move || shared.run(guard)
        });
        let thread = thread.map_err(|source| Error::Thread { source })?;
        let recorder = Arc::downgrade(&shared);
        let _births = thread_start::listen(move || {
            if let Some(shared) = recorder.upgrade() {
                shared.wake.notify_one();
            }
        });
        Ok(Self { shared, thread: OfProcess::new(thread), _births })
    }

    /// Returns `true` if the recorder belongs to the parent process of this fork.
    pub(in crate::cpu) fn is_inherited(&self) -> bool {
        self.thread.is_inherited()
    }

    /// Returns the engine and the reason for its selection.
    pub(in crate::cpu) fn engine(&self) -> String {
        self.shared.lock().chosen.words.clone()
    }

    /// Starts a session and returns the content of the window, which stays empty until the session
    /// ends.
    pub(in crate::cpu) fn begin(
        &self,
        frequency: Hertz,
        anchor: TimeAnchor,
    ) -> Result<Option<Profile>, Error> {
        let mut state = self.shared.lock();
        state.turn(anchor.moment, Extent::All);
        if let Some(why) = state.broken.clone() {
            return Err(Error::Refused { engine: "timer", why });
        }
        let before = state.before(anchor);
        state.set_frequency(frequency);
        state.during =
            Some(RecordingSession { anchor, cpu: cpu_time(), tally: SampleTable::new(NODES) });
        self.shared.wake.notify_one();
        Ok(before)
    }

    /// Returns the content of the window and clears it.
    pub(in crate::cpu) fn take_window(&self, anchor: TimeAnchor) -> Option<Profile> {
        let mut state = self.shared.lock();
        state.turn(anchor.moment, Extent::All);
        let before = state.before(anchor);
        state.begin_window(anchor.moment);
        before
    }

    /// Stops the session and returns its profile.
    pub(in crate::cpu) fn end(&self, now: Moment) -> Option<Profile> {
        let mut state = self.shared.lock();
        state.turn(now, Extent::All);
        state.settle();
        let cpu = cpu_time();
        let RecordingSession { anchor, cpu: before, tally } = state.during.take()?;
        let duration = now.since(anchor.moment);
        let part = "part: the capture itself".to_owned();
        let span = (anchor.wall, duration, cpu.saturating_sub(before));
        let profile = state.profile(&[&tally], span, state.frequency, part);
        if let Some((frequency, _)) = state.lookback {
            state.set_frequency(frequency);
            state.begin_window(now);
        }
        Some(profile)
    }
}

impl Drop for CpuRecorder {
    fn drop(&mut self) {
        if self.is_inherited() {
            return;
        }
        self.shared.lock().is_over = true;
        self.shared.wake.notify_one();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl RecorderShared {
    fn lock(&self) -> MutexGuard<'_, DrainState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self, guard: fn() -> Box<dyn Any>) {
        let _guard = guard();
        own_thread::enter();
        let mut state = self.lock();
        let mut heard = Moment::default();
        let mut panics_in_a_row = 0;
        while !state.is_over {
            let now = SystemClock.now();
            let turn = panics::fence_and_record("marple-cpu", || {
                state.turn(now, Extent::Due);
                state.roster.name_some()
            });
            if now.since(heard) >= HEAR_EVERY {
                heard = now;
                thread_start::want();
            }
            panics_in_a_row = if turn.is_some() { 0 } else { panics_in_a_row + 1 };
            if panics_in_a_row >= MAX_PANICS {
                let why = "the profiler's own thread panicked";
                state.broken = Some(why.to_owned());
                warnings::set("cpu.engine", format!("no CPU profiles any more: {why}"));
                return;
            }
            let has_more_to_name = turn.unwrap_or(false);
            // No longer wait: the smallest rings hold two samples and would overflow.
            let wait = if has_more_to_name { NAME_EVERY } else { drain_interval(state.frequency) };
            state = self.wake.wait_timeout(state, wait).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl DrainState {
    /// Handles new and ended threads and newly mapped files, and reads samples.
    fn turn(&mut self, now: Moment, extent: Extent) {
        let threads = u32::try_from(self.roster.len()).unwrap_or(u32::MAX);
        let pause = PAUSE_PER_THREAD.saturating_mul(threads);
        let (pause, every) = match self.during {
            Some(_) => (pause / 16, LOOK_EVERY),
            None => (pause, LOOK_EVERY_IDLE),
        };
        // If the number of threads is unchanged, a refresh checks only some of the threads.
        let is_due = now.since(self.looked) >= every;
        let has_changed = self.roster.has_changed() && now.since(self.looked) >= pause;
        let mut gone = Vec::new();
        if is_due || has_changed {
            self.looked = now;
            let change = self.roster.look();
            gone = change.gone;
            self.broken = self.broken.take().or_else(|| self.chosen.sampler.broken());
            if self.broken.is_none() {
                self.chosen.sampler.attach(&change.born);
                self.open_accounts(&change.born);
            }
        }
        let window_is_due =
            self.lookback.as_ref().is_some_and(|(_, window)| window.is_due(now, pause));
        // In the look-back, samples in rings that are not filling up stay there until the bucket is
        // full.
        let is_all = extent == Extent::All || self.during.is_some() || window_is_due;
        self.drain(if is_all { DrainScope::All } else { DrainScope::Filled(&gone) });
        self.charge(&gone);
        for &tid in &gone {
            self.charges.close(tid);
            self.chosen.sampler.detach(tid);
            self.outermost.remove(&tid);
        }
        self.roster.forget(&gone);
        if self.broken.is_none() {
            self.relieve(now, pause);
        }
        if window_is_due {
            self.settle();
            self.begin_window(now);
        }
    }

    pub(super) fn open_accounts(&mut self, tids: &[u32]) {
        for &tid in tids {
            if let Some(told) = self.chosen.sampler.counted(tid) {
                self.charges.open(tid, told);
            }
        }
    }

    /// Charges the CPU time of these threads since the last call to the current tally.
    fn charge(&mut self, tids: &[u32]) {
        let Self { chosen, roster, charges, during, lookback, frequency, .. } = self;
        let mut tally = tally_of(during, lookback);
        for &tid in tids {
            let told = chosen.sampler.counted(tid);
            let time = charges.settle(tid, told, period(*frequency));
            if let Some(tally) = &mut tally
                && !time.is_zero()
            {
                tally.charge(roster.name_of(tid), time);
            }
        }
    }

    /// Charges the CPU time of all threads: about 1 us each.
    pub(super) fn settle(&mut self) {
        self.charge(&self.charges.tids());
    }

    fn begin_window(&mut self, now: Moment) {
        if let Some((_, window)) = &mut self.lookback {
            window.begin(now, cpu_time());
        }
    }

    fn drain(&mut self, extent: DrainScope<'_>) {
        // If this fails, stacks end at the unreadable library, and the next pass retries.
        if self.walker.refresh().unwrap_or(false) || self.images.is_empty() {
            self.images.note();
        }
        let Self { chosen, walker, outermost, roster, copied_frames, lookback, during, .. } = self;
        let (charges, period) = (&mut self.charges, period(self.frequency));
        let mut tally = tally_of(during, lookback);
        let mut take = |copied: &StackSnapshot, at: Moment| {
            let frames = &mut copied_frames[..];
            let head = copied.head;
            let outermost = outermost.entry(head.tid).or_insert(OutermostFrames::NONE);
            let walk = walker.walk_joined(copied, frames, outermost);
            let name = roster.name_of(head.tid);
            let is_short = walk.end == WalkEnd::Truncated || walk.is_joined;
            if let Some(tally) = &mut tally {
                let weight = u64::from(head.weight);
                if !charges.note(head.tid, weight) {
                    tally.charge(name, period * head.weight);
                }
                match walk.end {
                    WalkEnd::Whole => {}
                    WalkEnd::Truncated => tally.short += weight,
                    WalkEnd::TooDeep => tally.too_deep += weight,
                    WalkEnd::Broken => tally.broken += weight,
                    WalkEnd::Elsewhere => tally.elsewhere += weight,
                }
                tally.omitted += if walk.omitted > 0 && !walk.is_joined { weight } else { 0 };
                tally.joined += if walk.is_joined { weight } else { 0 };
                tally.inferred += if walk.is_inferred { weight } else { 0 };
                let frames = frames.get(..walk.depth).unwrap_or_default();
                let place = tally.add(name, frames, head.weight, walk.end != WalkEnd::Whole);
                tally.log.push(head.tid, at, place, head.weight);
            }
            if is_short { UnwindOutcome::TooShort } else { UnwindOutcome::Walked }
        };
        let lost = chosen.sampler.drain(extent, &mut take);
        if let Some(tally) = tally {
            tally.lost += lost;
        }
    }

    /// Sets the sampling frequency. Discards samples of the old frequency since the last pass and
    /// the CPU time charged for them.
    fn set_frequency(&mut self, frequency: Hertz) {
        if frequency != std::mem::replace(&mut self.frequency, frequency) {
            self.chosen.sampler.set_frequency(frequency);
        }
        self.chosen.sampler.drain(DrainScope::All, &mut |_, _| UnwindOutcome::Walked);
        for tid in self.charges.tids() {
            let told = self.chosen.sampler.counted(tid);
            self.charges.settle(tid, told, Duration::ZERO);
        }
    }

    /// Returns the content of the window, or `None` if it is empty.
    fn before(&mut self, anchor: TimeAnchor) -> Option<Profile> {
        self.lookback.as_ref()?;
        self.settle();
        let cpu = cpu_time();
        let (frequency, window) = self.lookback.as_mut()?;
        let (frequency, buckets) = (*frequency, window.take());
        let first = buckets.first()?;
        let tallies: Vec<&SampleTable> = buckets.iter().map(|bucket| &bucket.tally).collect();
        if tallies.iter().all(|tally| tally.is_empty()) {
            return None;
        }
        let duration = anchor.moment.since(first.started);
        let part = format!("part: the {:.1} s before the capture", duration.as_secs_f64());
        let span = (anchor.wall_at(first.started), duration, cpu.saturating_sub(first.cpu));
        Some(self.profile(&tallies, span, frequency, part))
    }

    fn profile(
        &self,
        tallies: &[&SampleTable],
        (started, duration, cpu): (jiff::Timestamp, Duration, Duration),
        frequency: Hertz,
        part: String,
    ) -> Profile {
        let subject = Subject {
            engine: &self.chosen.words,
            user_only: self.chosen.user_only,
            frequency,
            started,
            duration,
            cpu,
            part,
            images: self.images.clone().into_mappings(),
            broken: self.broken.as_deref(),
        };
        report::profile(subject, tallies, &self.roster)
    }
}

/// Returns the tally for new samples: the session's, or the window's if no session runs.
pub(super) fn tally_of<'a>(
    during: &'a mut Option<RecordingSession>,
    lookback: &'a mut Option<(Hertz, LookbackWindow)>,
) -> Option<&'a mut SampleTable> {
    match (during, lookback) {
        (Some(during), _) => Some(&mut during.tally),
        (None, Some((_, window))) => window.present(),
        (None, None) => None,
    }
}
