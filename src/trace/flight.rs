//! The flight recorder: controls recording into the rings and copies captures from them.
//!
//! A capture reads the rings twice. At its start it copies the records of the window before it,
//! because later records overwrite them. At its stop it copies the records written since. Together
//! they cover the window and the capture. Records that were overwritten before the second copy are
//! counted. Copying takes a millisecond per megabyte and does not slow down the writers.
//!
//! Everything stays within `max_bytes`: a quarter for the rings, which is held all the time, a
//! quarter for each of the two copies, and the last quarter for spans, events and vitals.
//!
//! A ring that has wrapped holds nothing before its oldest record. The data of all threads is
//! therefore complete only from the latest of the oldest records on
//! ([`FlightSnapshot::complete_from`]). Earlier slices are shown where they exist.

use crate::base::sync::Mutex;
use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::{MutexGuard, PoisonError};
use std::time::Duration;

use super::epoch::{self, EPOCH, RECORDING_START};
use super::registry;
use super::ring::Words;
use super::sites;
use super::thread::dropped_without_ring;
use super::thread_rings::{RingOwner, ThreadRings};
use crate::base::{Bytes, Moment};
use crate::model::{
    Activity, Calibration, Losses, OpenSlice, RawSlice, RawTask, StringTable, ThreadSlices,
    TraceMode,
};
use crate::os::clock::cycle_clock;

/// Divisor of `max_bytes` for the rings, and for each of the two copies of a capture.
pub(super) const RING_BYTES_DIVISOR: u64 = 4;

/// Default of `trace.window`.
const DEFAULT_WINDOW: Duration = Duration::from_secs(30);

/// Number of pairs of tick and moment that are kept. They are 1/6 of the window apart, so that the
/// oldest precedes the window.
const MAX_CLOCK_PAIRS: usize = 8;

static FLIGHT_RECORDER: Mutex<FlightRecorder> = Mutex::new(FlightRecorder::new());

struct FlightRecorder {
    mode: TraceMode,
    /// `None` until it is configured or a capture starts.
    max_bytes: Option<Bytes>,
    window: Duration,
    active_captures: u32,
    /// Number of times that recording was started.
    recordings: u64,
    clock_pairs: VecDeque<(u64, Moment)>,
}

impl FlightRecorder {
    const fn new() -> Self {
        Self {
            mode: TraceMode::OnDemand,
            max_bytes: None,
            window: DEFAULT_WINDOW,
            active_captures: 0,
            recordings: 0,
            clock_pairs: VecDeque::new(),
        }
    }
}

impl Default for FlightRecorder {
    fn default() -> Self {
        Self::new()
    }
}

/// Sets the mode and the limits of recording polls and parks. `max_bytes` limits all memory of a
/// runtime trace at any time; a quarter of it is held all the time. `window` is the length of the
/// history to keep. Memory that is already in use is not freed.
pub fn configure(mode: TraceMode, max_bytes: Bytes, window: Duration) {
    let mut flight = lock();
    flight.mode = mode;
    flight.max_bytes = Some(max_bytes);
    flight.window = window;
    flight.apply();
}

/// Records a pair of tick and moment if the last one is old enough.
pub(super) fn calibrate() {
    if EPOCH.load(Ordering::Relaxed) == 0 {
        return;
    }
    let mut flight = lock();
    let (tick, at) = cycle_clock::tick_and_time();
    let step = flight.window / (MAX_CLOCK_PAIRS as u32 - 2);
    if flight.clock_pairs.back().is_none_or(|(_, last)| at.since(*last) >= step) {
        flight.push_clock_pair(tick, at);
    }
}

/// Returns the current conversion of ticks to moments.
pub(crate) fn calibration() -> Calibration {
    let flight = lock();
    Calibration::new(flight.clock_pairs.iter().copied().chain([cycle_clock::tick_and_time()]))
}

impl FlightRecorder {
    /// Starts or stops recording as the mode and the number of captures require.
    fn apply(&mut self) {
        let enabled = match self.mode {
            TraceMode::Always => true,
            TraceMode::OnDemand => self.active_captures > 0,
            TraceMode::Off => false,
        };
        let bytes = self.max_bytes.map_or(0, |bytes| bytes.get() / RING_BYTES_DIVISOR);
        let is_recording = EPOCH.load(Ordering::Relaxed) != 0;
        if enabled && !is_recording {
            // Selects the clock source, which must precede the first tick.
            cycle_clock::source();
            self.clock_pairs.clear();
            let (tick, at) = cycle_clock::tick_and_time();
            self.push_clock_pair(tick, at);
            self.recordings += 1;
            RECORDING_START.store(tick, Ordering::Relaxed);
        }
        registry::set_limits(usize::try_from(bytes).unwrap_or(usize::MAX), self.window_in_ticks());
        epoch::set_recording(enabled.then_some(self.recordings));
    }

    fn push_clock_pair(&mut self, tick: u64, at: Moment) {
        if self.clock_pairs.len() == MAX_CLOCK_PAIRS {
            self.clock_pairs.pop_front();
        }
        self.clock_pairs.push_back((tick, at));
    }

    /// Returns the window in ticks. While the rate is unknown, a tick counts as a nanosecond. The
    /// result is then too small by a factor of the counter's rate in GHz, and rings are reused
    /// slightly early.
    fn window_in_ticks(&self) -> u64 {
        let calibration = Calibration::new(self.clock_pairs.iter().copied());
        let now = Moment::from_nanos(u64::MAX / 4);
        let before = calibration.tick(now - self.window);
        calibration.tick(now).saturating_sub(before)
    }
}

/// The records that a capture copies at its start.
#[derive(Debug)]
pub(super) struct Window {
    /// Start of the window, in ticks.
    from: u64,
    /// Value of [`lost_records`] at the start of the capture.
    lost_before: u64,
    threads: Vec<ThreadSnapshot>,
}

/// The records copied from one thread.
#[derive(Clone, Debug)]
struct ThreadSnapshot {
    rings: &'static ThreadRings,
    owner: RingOwner,
    slices: Vec<Words>,
    tasks: Vec<Words>,
    next_slice: u64,
    next_task: u64,
    /// `true` if older slices of the window were overwritten.
    is_truncated: bool,
}

/// The data of a capture.
pub(super) struct FlightSnapshot {
    pub(super) activity: Activity,
    /// Time from which the data of all threads is complete, except for counted losses.
    pub(super) complete_from: Moment,
    pub(super) losses: Losses,
}

/// Starts a capture and copies the window before it from the rings. Returns `None` if recording
/// polls is off.
pub(super) fn begin(max_bytes: Bytes) -> Option<Window> {
    let mut flight = lock();
    if flight.mode == TraceMode::Off {
        return None;
    }
    flight.max_bytes.get_or_insert(max_bytes);
    flight.active_captures += 1;
    flight.apply();
    let (tick, at) = cycle_clock::tick_and_time();
    let now = [(tick, at)];
    let calibration = Calibration::new(flight.clock_pairs.iter().copied().chain(now));
    let from = calibration.tick(at - flight.window).max(RECORDING_START.load(Ordering::Relaxed));
    drop(flight);
    let threads = registry::all_rings().into_iter();
    let threads =
        threads.map(|(rings, owner)| ThreadSnapshot::copy_window(rings, owner, from)).collect();
    Some(Window { from, lost_before: lost_records(), threads })
}

/// Ends the capture that started with `window` and returns its data.
pub(super) fn end(window: Window, strings: &mut StringTable) -> FlightSnapshot {
    let cutoff = cycle_clock::now();
    let Window { from, lost_before, mut threads } = window;
    let mut losses = Losses::default();
    let overwritten = append_new(&mut threads, from);
    let pairs = unregister_capture();
    losses.add("polls and parks dropped: overwritten before they were read", overwritten);
    losses.add(
        "polls and parks dropped: no ring for the thread, or nested too deep",
        lost_records().saturating_sub(lost_before),
    );
    let is_clock_trusted = cycle_clock::is_trusted();
    let calibration = Calibration::new(pairs);
    let oldest = threads
        .iter()
        .filter(|snapshot| snapshot.is_truncated)
        .filter_map(|snapshot| snapshot.slices.first().map(|words| RawSlice(*words).start()));
    let complete_from = calibration.moment(oldest.max().map_or(from, |oldest| oldest.max(from)));
    let activity = build_activity(threads, from, cutoff, calibration, strings);
    if !is_clock_trusted {
        losses.add(
            "polls and parks with times that may be wrong: the kernel stopped using the CPU's \
             timestamp counter",
            record_count(&activity),
        );
    }
    FlightSnapshot { activity, complete_from, losses }
}

/// Returns the data so far of the capture that started with `window`, without ending it.
pub(super) fn peek(window: &Window, strings: &mut StringTable) -> Activity {
    let cutoff = cycle_clock::now();
    let mut threads = window.threads.clone();
    append_new(&mut threads, window.from);
    build_activity(threads, window.from, cutoff, calibration(), strings)
}

/// Appends the records written since the last copy, including those of threads started since.
/// Returns the number of slices overwritten before they were copied.
fn append_new(threads: &mut Vec<ThreadSnapshot>, from: u64) -> u64 {
    let mut overwritten = 0;
    for (rings, owner) in registry::all_rings() {
        let is_same_owner = |snapshot: &&mut ThreadSnapshot| snapshot.owner.id == owner.id;
        match threads.iter_mut().find(is_same_owner) {
            Some(snapshot) => overwritten += snapshot.append_new(),
            None => threads.push(ThreadSnapshot::copy_window(rings, owner, from)),
        }
    }
    overwritten
}

/// Builds the activity from tick `from` to tick `cutoff` from the copied records.
fn build_activity(
    threads: Vec<ThreadSnapshot>,
    from: u64,
    cutoff: u64,
    calibration: Calibration,
    strings: &mut StringTable,
) -> Activity {
    let has_several_runtimes = count_runtimes(&threads) > 1;
    let mut tasks = Vec::with_capacity(threads.iter().map(|snapshot| snapshot.tasks.len()).sum());
    let mut thread_slices = Vec::with_capacity(threads.len());
    for mut snapshot in threads {
        tasks.extend(snapshot.tasks.drain(..).map(RawTask).filter(|task| task.at() <= cutoff));
        let name = strings.intern(&snapshot.track_name(has_several_runtimes));
        let tid = snapshot.owner.tid;
        let (slices, open) = snapshot.into_slices(cutoff);
        if !slices.is_empty() || !open.is_empty() {
            thread_slices.push(ThreadSlices { tid, name, slices, open });
        }
    }
    // Stable, because a stable sort merges the sorted runs of the threads.
    tasks.sort_by_key(|task| task.at());
    let from = calibration.moment(from);
    let sites = sites::names(strings);
    Activity { calibration, start: from, threads: thread_slices, tasks, sites }
}

fn record_count(activity: &Activity) -> u64 {
    let slices = activity.threads.iter().map(|thread| thread.slices.len() + thread.open.len());
    (slices.sum::<usize>() + activity.tasks.len()) as u64
}

/// Ends a capture without reading its data.
pub(super) fn abandon() {
    unregister_capture();
}

/// Unregisters a capture. Returns the pairs of tick and moment that date its records.
fn unregister_capture() -> Vec<(u64, Moment)> {
    let mut flight = lock();
    flight.active_captures = flight.active_captures.saturating_sub(1);
    let pairs = flight.clock_pairs.iter().copied().chain([cycle_clock::tick_and_time()]).collect();
    flight.apply();
    pairs
}

impl ThreadSnapshot {
    /// Copies a thread's records that ended at or after `from`.
    fn copy_window(rings: &'static ThreadRings, owner: RingOwner, from: u64) -> Self {
        let slices = rings.slices.copy(owner.first_slice, |words| RawSlice(words).end() >= from);
        let tasks = rings.tasks.copy(owner.first_task, |words| RawTask(words).at() >= from);
        // If the oldest record left is in the window, overwritten ones may have been too. A ring
        // that another thread had before counts on from its records.
        let accounted = owner.first_slice + slices.overwritten + slices.records.len() as u64;
        Self {
            rings,
            owner,
            is_truncated: slices.overwritten > 0 && accounted == slices.next,
            slices: slices.records,
            tasks: tasks.records,
            next_slice: slices.next,
            next_task: tasks.next,
        }
    }

    /// Appends the records written since. Returns the number of slices overwritten before they were
    /// copied.
    fn append_new(&mut self) -> u64 {
        let ThreadRings { slices, tasks, .. } = self.rings;
        let (_, overwritten) = slices.copy_into(&mut self.slices, self.next_slice, |_| true);
        tasks.copy_into(&mut self.tasks, self.next_task, |_| true);
        overwritten
    }

    /// Returns the slices that had ended by `cutoff`, and those that were open at that time.
    fn into_slices(self, cutoff: u64) -> (Vec<RawSlice>, Vec<OpenSlice>) {
        // Read after the copy, so that a slice that ends meanwhile is in at least one of the two.
        let mut open: Vec<OpenSlice> = match registry::owner_has_ended(self.owner.id) {
            true => Vec::new(),
            false => self.rings.open_slices(),
        };
        open.retain(|open| open.start <= cutoff);
        let mut slices: Vec<RawSlice> = self.slices.into_iter().map(RawSlice).collect();
        let ended = slices.partition_point(|slice| slice.end() <= cutoff);
        let late = slices.get(ended..).unwrap_or_default();
        let in_progress = late.iter().filter_map(|slice| {
            let open = OpenSlice { kind: slice.kind()?, start: slice.start(), task: slice.task() };
            (open.start <= cutoff).then_some(open)
        });
        let in_progress: Vec<OpenSlice> = in_progress.collect();
        slices.truncate(ended);
        for late in in_progress {
            let is_same_poll =
                |open: &&OpenSlice| (open.kind, open.task.truncated()) == (late.kind, late.task);
            if open.iter().find(is_same_poll).is_none() {
                open.push(late);
            }
        }
        open.sort_by_key(|open| open.start);
        (slices, open)
    }

    /// Returns the thread's name, its worker index, and the runtime's number if there are several
    /// runtimes.
    fn track_name(&self, has_several_runtimes: bool) -> String {
        let mut name = self.owner.thread.to_string();
        let [runtime, worker] =
            [&self.rings.runtime, &self.rings.worker].map(|number| number.load(Ordering::Relaxed));
        if worker > 0 {
            name += &format!(" #{}", worker - 1);
        }
        if has_several_runtimes && runtime > 0 {
            name += &format!(" (runtime {runtime})");
        }
        name
    }
}

fn count_runtimes(threads: &[ThreadSnapshot]) -> usize {
    let runtimes = threads.iter().map(|snapshot| snapshot.rings.runtime.load(Ordering::Relaxed));
    let mut numbers: Vec<u64> = runtimes.filter(|&runtime| runtime > 0).collect();
    numbers.sort_unstable();
    numbers.dedup();
    numbers.len()
}

/// Returns the number of records lost because their thread had no ring, plus slices nested too
/// deep.
fn lost_records() -> u64 {
    dropped_without_ring() + registry::too_deep()
}

/// Ignores poisoning: no code that can panic runs under the lock.
fn lock() -> MutexGuard<'static, FlightRecorder> {
    FLIGHT_RECORDER.lock().unwrap_or_else(PoisonError::into_inner)
}
