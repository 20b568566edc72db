//! The flight recorder: controls recording into the rings and copies captures from them.
//!
//! A capture reads the rings twice. At its start it copies the records of the window before,
//! because these will be overwritten. At its stop it copies the records written since. Together
//! they are the window before the capture and the capture, as far as they fit. Records overwritten
//! in between are counted. Copying takes a millisecond per megabyte and does not slow down the
//! writers.
//!
//! Everything stays within `max_bytes`: a quarter for the rings, which is held all the time, a
//! quarter for each of the two copies, and the last quarter for spans, events and vitals.
//!
//! The start of the complete data is reported exactly. A ring that has wrapped holds nothing before
//! its oldest record. Earlier slices of other threads are shown, but the data of all threads is
//! complete only from the latest of these start times on ([`FlightSnapshot::complete`]).

use crate::base::sync::Mutex;
use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::{MutexGuard, PoisonError};
use std::time::Duration;

use super::registry::{self, RingOwner};
use super::ring::Words;
use super::sites;
use super::thread::{self, EPOCH, SINCE, ThreadRings, astray};
use crate::base::{Bytes, Moment};
use crate::model::{
    Activity, Calibration, Losses, OpenSlice, RawSlice, RawTask, StringTable, ThreadSlices,
    TraceMode,
};
use crate::os::clock::cycle_clock;

/// Divisor of `max_bytes` for the rings, and for each of the two copies of a capture.
pub(super) const SHARE: u64 = 4;

/// Default of `trace.window`.
const WINDOW: Duration = Duration::from_secs(30);

/// Number of pairs of tick and moment that are kept. They are 1/6 of the window apart, so that one
/// is from before the window.
const PAIRS: usize = 8;

static FLIGHT: Mutex<FlightRecorder> = Mutex::new(FlightRecorder::new());

struct FlightRecorder {
    mode: TraceMode,
    /// `None` until it is configured or a capture starts.
    max_bytes: Option<Bytes>,
    window: Duration,
    captures: u32,
    epochs: u64,
    pairs: VecDeque<(u64, Moment)>,
}

impl FlightRecorder {
    const fn new() -> Self {
        Self {
            mode: TraceMode::OnDemand,
            max_bytes: None,
            window: WINDOW,
            captures: 0,
            epochs: 0,
            pairs: VecDeque::new(),
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
    let (tick, at) = cycle_clock::pair();
    let step = flight.window / (PAIRS as u32 - 2);
    if flight.pairs.back().is_none_or(|(_, last)| at.since(*last) >= step) {
        flight.pair(tick, at);
    }
}

/// Returns the current conversion of ticks to moments.
pub(crate) fn calibration() -> Calibration {
    let flight = lock();
    Calibration::new(flight.pairs.iter().copied().chain([cycle_clock::pair()]))
}

impl FlightRecorder {
    /// Starts or stops recording as the mode and the number of captures require.
    fn apply(&mut self) {
        let on = match self.mode {
            TraceMode::Always => true,
            TraceMode::OnDemand => self.captures > 0,
            TraceMode::Off => false,
        };
        let bytes = self.max_bytes.map_or(0, |bytes| bytes.get() / SHARE);
        let runs = EPOCH.load(Ordering::Relaxed) != 0;
        if on && !runs {
            // Selects the clock source, which must precede the first tick.
            cycle_clock::source();
            self.pairs.clear();
            let (tick, at) = cycle_clock::pair();
            self.pair(tick, at);
            self.epochs += 1;
            SINCE.store(tick, Ordering::Relaxed);
        }
        registry::limit(usize::try_from(bytes).unwrap_or(usize::MAX), self.window_in_ticks());
        thread::record(on.then_some(self.epochs));
    }

    fn pair(&mut self, tick: u64, at: Moment) {
        if self.pairs.len() == PAIRS {
            self.pairs.pop_front();
        }
        self.pairs.push_back((tick, at));
    }

    /// Returns the window in ticks. While the rate is unknown, a tick counts as a nanosecond. The
    /// result is then too small by a factor of the counter's rate in GHz, and rings are reused
    /// slightly early.
    fn window_in_ticks(&self) -> u64 {
        let calibration = Calibration::new(self.pairs.iter().copied());
        let now = Moment::from_nanos(u64::MAX / 4);
        let before = calibration.tick(now - self.window);
        calibration.tick(now).saturating_sub(before)
    }
}

/// The copy that a capture makes at its start.
#[derive(Debug)]
pub(super) struct Window {
    from: u64,
    lost_before: u64,
    threads: Vec<ThreadSnapshots>,
}

/// The records copied from one thread.
#[derive(Clone, Debug)]
struct ThreadSnapshots {
    rings: &'static ThreadRings,
    tenancy: RingOwner,
    slices: Vec<Words>,
    tasks: Vec<Words>,
    next_slice: u64,
    next_task: u64,
    /// `true` if older slices of the window were overwritten.
    cut: bool,
}

/// The data of a capture.
pub(super) struct FlightSnapshot {
    pub(super) activity: Activity,
    /// Time from which the data of all threads is complete, except for counted losses.
    pub(super) complete: Moment,
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
    flight.captures += 1;
    flight.apply();
    let (tick, at) = cycle_clock::pair();
    let now = [(tick, at)];
    let calibration = Calibration::new(flight.pairs.iter().copied().chain(now));
    let from = calibration.tick(at - flight.window).max(SINCE.load(Ordering::Relaxed));
    drop(flight);
    let threads = registry::all().into_iter();
    let threads =
        threads.map(|(rings, tenancy)| ThreadSnapshots::first(rings, tenancy, from)).collect();
    Some(Window { from, lost_before: lost_without_rings(), threads })
}

/// Ends the capture that started with `window` and returns its data.
pub(super) fn end(window: Window, strings: &mut StringTable) -> FlightSnapshot {
    let cutoff = cycle_clock::now();
    let Window { from, lost_before, mut threads } = window;
    let mut losses = Losses::default();
    let gone = go_on(&mut threads, from);
    let pairs = close();
    losses.add("polls and parks dropped: written over before they were read", gone);
    losses.add(
        "polls and parks dropped: no memory for another thread's ring",
        lost_without_rings().saturating_sub(lost_before),
    );
    if !cycle_clock::is_trusted() {
        losses.add("times that may be wrong: the kernel has turned from the CPU's counter", 1);
    }

    let calibration = Calibration::new(pairs);
    let oldest = threads
        .iter()
        .filter(|copies| copies.cut)
        .filter_map(|copies| copies.slices.first().map(|words| RawSlice(*words).start()));
    let complete = calibration.moment(oldest.max().map_or(from, |oldest| oldest.max(from)));
    let activity = show(threads, (from, cutoff), calibration, strings);
    FlightSnapshot { activity, complete, losses }
}

/// Returns the data so far of the capture that started with `window`, without ending it.
pub(super) fn peek(window: &Window, strings: &mut StringTable) -> Activity {
    let cutoff = cycle_clock::now();
    let mut threads = window.threads.clone();
    go_on(&mut threads, window.from);
    show(threads, (window.from, cutoff), calibration(), strings)
}

/// Appends records written since the last copy, including those of new threads. Returns the number
/// of slices overwritten before they were copied.
fn go_on(threads: &mut Vec<ThreadSnapshots>, from: u64) -> u64 {
    let mut gone = 0;
    for (rings, tenancy) in registry::all() {
        let of = |copies: &&mut ThreadSnapshots| copies.tenancy.id == tenancy.id;
        match threads.iter_mut().find(of) {
            Some(copies) => gone += copies.go_on(),
            None => threads.push(ThreadSnapshots::first(rings, tenancy, from)),
        }
    }
    gone
}

/// Builds the activity up to `cutoff` from the copied records.
fn show(
    threads: Vec<ThreadSnapshots>,
    (from, cutoff): (u64, u64),
    calibration: Calibration,
    strings: &mut StringTable,
) -> Activity {
    let several = runtimes(&threads) > 1;
    let mut tasks = Vec::with_capacity(threads.iter().map(|copies| copies.tasks.len()).sum());
    let mut shown = Vec::with_capacity(threads.len());
    for mut copies in threads {
        tasks.extend(copies.tasks.drain(..).map(RawTask).filter(|task| task.at() <= cutoff));
        let name = strings.intern(&copies.name(several));
        let tid = copies.tenancy.tid;
        let (slices, open) = copies.until(cutoff);
        if !slices.is_empty() || !open.is_empty() {
            shown.push(ThreadSlices { tid, name, slices, open });
        }
    }
    // Stable, because a stable sort merges the sorted runs of the threads.
    tasks.sort_by_key(|task| task.at());
    let from = calibration.moment(from);
    let sites = sites::names(strings);
    Activity { calibration, from, threads: shown, tasks, sites }
}

/// Discards a capture without reading its data.
pub(super) fn abandon() {
    close();
}

/// Unregisters a capture. Returns the pairs of tick and moment that date its records.
fn close() -> Vec<(u64, Moment)> {
    let mut flight = lock();
    flight.captures = flight.captures.saturating_sub(1);
    let pairs = flight.pairs.iter().copied().chain([cycle_clock::pair()]).collect();
    flight.apply();
    pairs
}

impl ThreadSnapshots {
    /// Copies a thread's records that ended at or after `from`.
    fn first(rings: &'static ThreadRings, tenancy: RingOwner, from: u64) -> Self {
        let slices = rings.slices.copy(tenancy.first_slice, |words| RawSlice(words).end() >= from);
        let tasks = rings.tasks.copy(tenancy.first_task, |words| RawTask(words).at() >= from);
        Self {
            rings,
            tenancy,
            // If the oldest record is in the window, earlier ones were too.
            cut: slices.gone > 0 && slices.gone + slices.records.len() as u64 == slices.next,
            slices: slices.records,
            tasks: tasks.records,
            next_slice: slices.next,
            next_task: tasks.next,
        }
    }

    /// Appends the records written since. Returns the number of slices overwritten before they were
    /// copied.
    fn go_on(&mut self) -> u64 {
        let ThreadRings { slices, tasks, .. } = self.rings;
        let (_, gone) = slices.copy_onto(&mut self.slices, self.next_slice, |_| true);
        tasks.copy_onto(&mut self.tasks, self.next_task, |_| true);
        gone
    }

    /// Returns the slices that had ended by `cutoff`, and those still open then.
    fn until(self, cutoff: u64) -> (Vec<RawSlice>, Vec<OpenSlice>) {
        // Read after the copy, so that a slice that ends meanwhile is in at least one of the two.
        let mut open: Vec<OpenSlice> = match registry::is_over(self.tenancy.id) {
            true => Vec::new(),
            false => self.rings.open(),
        };
        open.retain(|open| open.start <= cutoff);
        let mut slices: Vec<RawSlice> = self.slices.into_iter().map(RawSlice).collect();
        let ended = slices.partition_point(|slice| slice.end() <= cutoff);
        let late = slices.get(ended..).unwrap_or_default();
        let under_way = late.iter().filter_map(|slice| {
            let open = OpenSlice { kind: slice.kind()?, start: slice.start(), task: slice.task() };
            (open.start <= cutoff).then_some(open)
        });
        let under_way: Vec<OpenSlice> = under_way.collect();
        slices.truncate(ended);
        for late in under_way {
            let same = |open: &&OpenSlice| (open.kind, open.task.short()) == (late.kind, late.task);
            if open.iter().find(same).is_none() {
                open.push(late);
            }
        }
        open.sort_by_key(|open| open.start);
        (slices, open)
    }

    /// Returns the thread's name, its worker index, and the runtime's number if there are several
    /// runtimes.
    fn name(&self, several: bool) -> String {
        let mut name = self.tenancy.thread.to_string();
        let [runtime, worker] =
            [&self.rings.runtime, &self.rings.worker].map(|number| number.load(Ordering::Relaxed));
        if worker > 0 {
            name += &format!(" #{}", worker - 1);
        }
        if several && runtime > 0 {
            name += &format!(" (runtime {runtime})");
        }
        name
    }
}

fn runtimes(threads: &[ThreadSnapshots]) -> usize {
    let runtimes = threads.iter().map(|copies| copies.rings.runtime.load(Ordering::Relaxed));
    let mut known: Vec<u64> = runtimes.filter(|&runtime| runtime > 0).collect();
    known.sort_unstable();
    known.dedup();
    known.len()
}

/// Returns the number of records lost without a ring, plus slices nested too deep.
fn lost_without_rings() -> u64 {
    astray() + registry::too_deep()
}

/// Ignores poisoning: no code that can panic runs under the lock.
fn lock() -> MutexGuard<'static, FlightRecorder> {
    FLIGHT.lock().unwrap_or_else(PoisonError::into_inner)
}
