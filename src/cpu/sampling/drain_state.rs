//! State of the CPU recorder: its threads, rings and tables, and one pass over them.

mod quotas;

use std::collections::HashMap;
use std::time::Duration;

use super::images::SeenImages;
use super::report::{self, CpuProfileInfo};
use super::sampler::{DrainScope, UnwindOutcome};
use super::window::LookbackWindow;
use crate::base::{Clock, Hertz, Moment, SystemClock, TimeAnchor};
use crate::cpu::error::Error;
use crate::cpu::options::Options;
use crate::cpu::sampling::engine::{SelectedEngine, select_engine};
use crate::cpu::sampling::period::period;
use crate::cpu::sampling::sample_table::SampleTable;
use crate::cpu::sampling::thread_cpu_clocks::ThreadCpuClocks;
use crate::cpu::sampling::thread_table::ThreadTable;
use crate::model::Profile;
use crate::os::proc::process::cpu_time;
use crate::os::stack_snapshot::StackSnapshot;
use crate::unwind::{MAX_FRAMES, OutermostFrames, StackWalker, WalkEnd};
use quotas::QuotaShortage;

/// Table entries of a session: 3 to 6 MB when full.
const MAX_TABLE_ENTRIES: usize = 64 << 10;

/// Maximum interval between reads of the thread list, in a session and in the look-back. The list
/// is also read whenever the number of threads changes. The interval covers a thread that ended
/// while another started.
const THREAD_SCAN_INTERVAL: Duration = Duration::from_millis(250);
const IDLE_THREAD_SCAN_INTERVAL: Duration = Duration::from_secs(1);

/// Minimum interval per thread between passes of work that takes 1 us per thread (reading the list,
/// charging CPU time). Each kind of work then takes at most `n * 1 us / (n * 2 ms)` = 0.05 % of a
/// core for n threads; 16 times that in a session.
const MIN_INTERVAL_PER_THREAD: Duration = Duration::from_millis(2);

/// State of the recorder, behind its lock.
pub(super) struct DrainState {
    pub(super) engine: SelectedEngine,
    walker: StackWalker,
    /// Outermost frames of each thread, for stacks that are deeper than their copies.
    outermost: HashMap<u32, OutermostFrames>,
    pub(super) thread_table: ThreadTable,
    cpu_clocks: ThreadCpuClocks,
    quota_shortage: QuotaShortage,
    scanned_at: Moment,
    images: SeenImages,
    pub(super) frequency: Hertz,
    lookback: Option<(Hertz, LookbackWindow)>,
    session: Option<RecordingSession>,
    frame_buffer: Box<[u64; MAX_FRAMES]>,
    /// Reason why sampling has ended.
    pub(super) failure: Option<String>,
    pub(super) should_stop: bool,
}

/// Set of threads whose samples are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Extent {
    /// All threads.
    All,
    /// Threads whose samples cannot wait longer.
    Due,
}

/// A running session.
struct RecordingSession {
    anchor: TimeAnchor,
    cpu_at_start: Duration,
    table: SampleTable,
}

impl DrainState {
    /// Starts the engine, and the look-back window if `options` enable it.
    pub(super) fn new(options: &Options) -> Result<Self, Error> {
        let mut thread_table =
            ThreadTable::open().map_err(|source| Error::ThreadList { source })?;
        let tids = thread_table.scan();
        let frequency = match options.lookback_frequency {
            Hertz(0) => options.frequency,
            lookback => lookback,
        };
        let walker = StackWalker::new()?;
        let engine = select_engine(options.engine, frequency, &tids)?;
        let window = (options.lookback_frequency > Hertz(0) && !options.lookback.is_zero())
            .then(|| (options.lookback_frequency, LookbackWindow::new(options.lookback)));
        let mut state = Self {
            engine,
            walker,
            outermost: HashMap::new(),
            thread_table,
            cpu_clocks: ThreadCpuClocks::default(),
            quota_shortage: QuotaShortage::default(),
            scanned_at: SystemClock.now(),
            images: SeenImages::default(),
            frequency,
            lookback: window,
            session: None,
            frame_buffer: Box::new([0; MAX_FRAMES]),
            failure: None,
            should_stop: false,
        };
        state.track_cpu_clocks(&tids);
        state.begin_window_bucket(SystemClock.now());
        Ok(state)
    }

    /// Starts a session and returns the content of the window, which stays empty until the session
    /// ends.
    pub(super) fn begin_session(
        &mut self,
        frequency: Hertz,
        anchor: TimeAnchor,
    ) -> Result<Option<Profile>, Error> {
        self.run_pass(anchor.moment, Extent::All);
        if let Some(reason) = self.failure.clone() {
            return Err(Error::EngineUnavailable { engine: "timer", why: reason });
        }
        let lookback = self.take_lookback_profile(anchor);
        self.set_frequency(frequency);
        self.session = Some(RecordingSession {
            anchor,
            cpu_at_start: cpu_time(),
            table: SampleTable::new(MAX_TABLE_ENTRIES),
        });
        Ok(lookback)
    }

    /// Returns the content of the window and clears it.
    pub(super) fn take_window(&mut self, anchor: TimeAnchor) -> Option<Profile> {
        self.run_pass(anchor.moment, Extent::All);
        let lookback = self.take_lookback_profile(anchor);
        self.begin_window_bucket(anchor.moment);
        lookback
    }

    /// Stops the session and returns its profile.
    pub(super) fn end_session(&mut self, now: Moment) -> Option<Profile> {
        self.run_pass(now, Extent::All);
        self.charge_all();
        let cpu = cpu_time();
        let RecordingSession { anchor, cpu_at_start, table } = self.session.take()?;
        let duration = now.since(anchor.moment);
        let phase = "phase: during the capture".to_owned();
        let cpu_time = cpu.saturating_sub(cpu_at_start);
        let span = ProfileSpan { started: anchor.wall, duration, cpu_time };
        let profile = self.build_profile(&[&table], span, self.frequency, phase);
        if let Some((frequency, _)) = self.lookback {
            self.set_frequency(frequency);
            self.begin_window_bucket(now);
        }
        Some(profile)
    }

    /// Handles new and ended threads and newly mapped files, and reads samples.
    pub(super) fn run_pass(&mut self, now: Moment, scope: Extent) {
        let threads = u32::try_from(self.thread_table.len()).unwrap_or(u32::MAX);
        let min_interval = MIN_INTERVAL_PER_THREAD.saturating_mul(threads);
        let (min_interval, scan_interval) = match self.session {
            Some(_) => (min_interval / 16, THREAD_SCAN_INTERVAL),
            None => (min_interval, IDLE_THREAD_SCAN_INTERVAL),
        };
        // If the number of threads is unchanged, a refresh checks only some of the threads.
        let is_due = now.since(self.scanned_at) >= scan_interval;
        let has_changed =
            self.thread_table.has_changed() && now.since(self.scanned_at) >= min_interval;
        let mut exited = Vec::new();
        if is_due || has_changed {
            self.scanned_at = now;
            let changes = self.thread_table.refresh();
            exited = changes.exited;
            self.failure = self.failure.take().or_else(|| self.engine.sampler.check_failure());
            if self.failure.is_none() {
                self.engine.sampler.attach(&changes.started);
                self.track_cpu_clocks(&changes.started);
            }
        }
        let window_is_due = self
            .lookback
            .as_ref()
            .is_some_and(|(_, window)| window.needs_rotation(now, min_interval));
        // In the look-back, samples in rings that are not filling up stay there until the bucket is
        // full.
        let is_all = scope == Extent::All || self.session.is_some() || window_is_due;
        self.drain(if is_all { DrainScope::All } else { DrainScope::Filled(&exited) });
        self.charge_cpu_time(&exited);
        for &tid in &exited {
            self.cpu_clocks.untrack(tid);
            self.engine.sampler.detach(tid);
            self.outermost.remove(&tid);
        }
        self.thread_table.remove(&exited);
        if self.failure.is_none() {
            self.apply_quotas(now, min_interval);
        }
        if window_is_due {
            self.charge_all();
            self.begin_window_bucket(now);
        }
    }

    fn track_cpu_clocks(&mut self, tids: &[u32]) {
        for &tid in tids {
            if let Some(cpu_time) = self.engine.sampler.thread_cpu_time(tid) {
                self.cpu_clocks.track(tid, cpu_time);
            }
        }
    }

    /// Charges the CPU time of these threads since the last call to the current table.
    fn charge_cpu_time(&mut self, tids: &[u32]) {
        let Self { engine, thread_table, cpu_clocks, session, lookback, frequency, .. } = self;
        let mut table = current_table(session, lookback);
        for &tid in tids {
            let cpu_time = engine.sampler.thread_cpu_time(tid);
            let time = cpu_clocks.take_delta(tid, cpu_time, period(*frequency));
            if let Some(table) = &mut table
                && !time.is_zero()
            {
                table.charge(thread_table.name_id(tid), time);
            }
        }
    }

    /// Charges the CPU time of all threads: about 1 us each.
    fn charge_all(&mut self) {
        self.charge_cpu_time(&self.cpu_clocks.tids());
    }

    fn begin_window_bucket(&mut self, now: Moment) {
        if let Some((_, window)) = &mut self.lookback {
            window.begin_bucket(now, cpu_time());
        }
    }

    fn drain(&mut self, scope: DrainScope<'_>) {
        // If this fails, stacks end at the unreadable library, and the next pass retries.
        if self.walker.refresh().unwrap_or(false) || self.images.is_empty() {
            self.images.add_current();
        }
        let Self {
            engine, walker, outermost, thread_table, frame_buffer, lookback, session, ..
        } = self;
        let cpu_clocks = &mut self.cpu_clocks;
        let period = period(self.frequency);
        let mut table = current_table(session, lookback);
        let mut on_sample = |snapshot: &StackSnapshot, time: Moment| {
            let frames = &mut frame_buffer[..];
            let head = snapshot.header;
            let outermost = outermost.entry(head.tid).or_insert(OutermostFrames::EMPTY);
            let walk = walker.walk_with_outermost(snapshot, frames, outermost);
            let name = thread_table.name_id(head.tid);
            let is_too_short = walk.end == WalkEnd::CopyTooShort || walk.is_joined;
            if let Some(table) = &mut table {
                let weight = u64::from(head.weight);
                if !cpu_clocks.record_sample(head.tid, weight) {
                    table.charge(name, period * head.weight);
                }
                match walk.end {
                    WalkEnd::Complete => {}
                    WalkEnd::CopyTooShort => table.copy_too_short += weight,
                    WalkEnd::TooManyFrames => table.too_deep += weight,
                    WalkEnd::NoUnwindInfo => table.no_unwind_info += weight,
                    WalkEnd::OtherStack => table.on_alternate_stack += weight,
                }
                table.omitted += if walk.omitted > 0 && !walk.is_joined { weight } else { 0 };
                table.joined += if walk.is_joined { weight } else { 0 };
                table.used_heuristics += if walk.used_heuristics { weight } else { 0 };
                let frames = frames.get(..walk.depth).unwrap_or_default();
                let key = table.add(name, frames, head.weight, walk.end != WalkEnd::Complete);
                table.log.push(head.tid, time, key, head.weight);
            }
            if is_too_short { UnwindOutcome::TooShort } else { UnwindOutcome::Walked }
        };
        let lost = engine.sampler.drain(scope, &mut on_sample);
        if let Some(table) = table {
            table.lost += lost;
        }
    }

    /// Sets the sampling frequency. Discards samples of the old frequency since the last pass and
    /// the CPU time charged for them.
    fn set_frequency(&mut self, frequency: Hertz) {
        if frequency != std::mem::replace(&mut self.frequency, frequency) {
            self.engine.sampler.set_frequency(frequency);
        }
        self.engine.sampler.drain(DrainScope::All, &mut |_, _| UnwindOutcome::Walked);
        for tid in self.cpu_clocks.tids() {
            let cpu_time = self.engine.sampler.thread_cpu_time(tid);
            self.cpu_clocks.take_delta(tid, cpu_time, Duration::ZERO);
        }
    }

    /// Returns the content of the window, or `None` if it is empty.
    fn take_lookback_profile(&mut self, anchor: TimeAnchor) -> Option<Profile> {
        self.lookback.as_ref()?;
        self.charge_all();
        let cpu = cpu_time();
        let (frequency, window) = self.lookback.as_mut()?;
        let frequency = *frequency;
        let buckets = window.take();
        let first = buckets.first()?;
        let tables: Vec<&SampleTable> = buckets.iter().map(|bucket| &bucket.table).collect();
        if tables.iter().all(|table| table.is_empty()) {
            return None;
        }
        let duration = anchor.moment.since(first.started);
        let phase = format!("phase: the {:.1} s before the capture", duration.as_secs_f64());
        let span = ProfileSpan {
            started: anchor.wall_at(first.started),
            duration,
            cpu_time: cpu.saturating_sub(first.cpu_at_start),
        };
        Some(self.build_profile(&tables, span, frequency, phase))
    }

    fn build_profile(
        &self,
        tables: &[&SampleTable],
        span: ProfileSpan,
        frequency: Hertz,
        phase: String,
    ) -> Profile {
        let subject = CpuProfileInfo {
            engine: &self.engine.description,
            user_only: self.engine.user_only,
            frequency,
            started: span.started,
            duration: span.duration,
            cpu_time: span.cpu_time,
            phase,
            images: self.images.clone().into_mappings(),
            failure: self.failure.as_deref(),
        };
        report::build_profile(subject, tables, &self.thread_table)
    }
}

/// The time that a profile covers, and the CPU time that the process used in it.
struct ProfileSpan {
    started: jiff::Timestamp,
    duration: Duration,
    cpu_time: Duration,
}

/// Returns the table for new samples: the session's, or the window's if no session runs.
fn current_table<'a>(
    session: &'a mut Option<RecordingSession>,
    lookback: &'a mut Option<(Hertz, LookbackWindow)>,
) -> Option<&'a mut SampleTable> {
    match (session, lookback) {
        (Some(session), _) => Some(&mut session.table),
        (None, Some((_, window))) => window.current(),
        (None, None) => None,
    }
}
