//! Heap profiles: one at the start and one at the stop, so that their difference shows what the incident
//! itself allocated. Each is taken while it is written, in memory reserved at the agent's start.

use crate::base::sync::Mutex;
use std::future;
use std::io::Write;
use std::mem;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use jiff::Timestamp;

use super::{Collector, Evidence, Failure, Live, Started, jemalloc};
use crate::agent::heap_writer::{HeapWriter, ProcessMemory};
use crate::agent::memory_summary::MemorySummary;
use crate::base::{Anchor, Bytes, Moment, log};
use crate::config::{HeapSettings, Settings};
use crate::heap;
use crate::model::{CaptureKind, Losses, Metric, Profile, Rule, Vitals};
use crate::os::wake::Listener;
use crate::unwind;

/// One dump at a time: there is one room.
static WRITER: Mutex<Option<HeapWriter>> = Mutex::new(None);
static RATES: Mutex<Rates> =
    Mutex::new(Rates { usual: None, during: None, captures: 0, asked: None });

/// The mean number of bytes between two samples during an incident, where the settings have no other: 500 tasks of 1 KiB
/// that pile up meanwhile have eight samples. At 1 GB/s of allocations it takes 5 % of a core.
const RATE_DURING_INCIDENT: Bytes = Bytes::kib(64);

/// What the last tick measured; 0 is unknown.
static RESIDENT: AtomicU64 = AtomicU64::new(0);
static WORKING_SET: AtomicU64 = AtomicU64::new(0);
static LIMIT: AtomicU64 = AtomicU64::new(0);

pub(super) fn start(_: CaptureKind, _: &Settings, anchor: Anchor) -> Result<Started, Failure> {
    if !heap::installed() {
        return jemalloc::start(anchor);
    }
    Ok(Started {
        collector: Box::new(Snapshots { anchor, _rate: FinerRate::begin() }),
        at_start: Some(Dump::at(anchor.wall)),
    })
}

/// Returns why there are no heap profiles in this program, if there are none.
pub(in crate::agent) fn why_absent() -> Option<String> {
    if heap::installed() { None } else { jemalloc::why_absent() }
}

/// The heap as it is when it is written.
pub(in crate::agent) fn now(wall: Timestamp) -> Result<Evidence, Failure> {
    if !heap::installed() {
        let mut evidence = Evidence::Profile(jemalloc::snapshot(wall)?);
        evidence.symbolize();
        return Ok(evidence);
    }
    Ok(Dump::at(wall))
}

/// The heap as a value.
pub(in crate::agent) fn snapshot(wall: Timestamp) -> Result<Box<Profile>, Failure> {
    if !heap::installed() {
        return jemalloc::snapshot(wall);
    }
    let mut profile = Box::new(heap::snapshot(wall)?);
    MemorySummary::describe(&mut profile);
    Ok(profile)
}

struct Snapshots {
    anchor: Anchor,
    /// Ends with the capture.
    _rate: FinerRate,
}

impl Collector for Snapshots {
    fn engine(&self) -> &str {
        "sampling allocator"
    }

    fn peek(&self, now: Moment) -> Result<Option<Evidence>, Failure> {
        Ok(Some(Dump::at(self.anchor.wall_at(now))))
    }

    fn stop(self: Box<Self>, now: Moment) -> Result<Option<Evidence>, Failure> {
        Ok(Some(Dump::at(self.anchor.wall_at(now))))
    }
}

/// The profile as it is when it is written.
struct Dump {
    wall: Timestamp,
    /// Of the last time it was written.
    summary: Mutex<Option<MemorySummary>>,
}

impl Dump {
    fn new(wall: Timestamp) -> Self {
        Self { wall, summary: Mutex::new(None) }
    }

    fn at(wall: Timestamp) -> Evidence {
        Evidence::Live(Box::new(Self::new(wall)))
    }
}

impl Live for Dump {
    fn asked(&self) -> Timestamp {
        self.wall
    }

    fn note(&self) -> Option<String> {
        let summary = self.summary.lock().unwrap_or_else(PoisonError::into_inner);
        summary.map(|summary| summary.to_string())
    }

    fn losses(&self) -> Losses {
        heap::losses()
    }

    fn write(&self, out: &mut dyn Write) -> Result<(), Failure> {
        let known = |figure: &AtomicU64| Some(figure.load(Relaxed)).filter(|&figure| figure > 0);
        let process = ProcessMemory {
            resident: known(&RESIDENT),
            working_set: known(&WORKING_SET),
            limit: known(&LIMIT),
        };
        let mut writer = WRITER.lock().unwrap_or_else(PoisonError::into_inner);
        let writer = writer.get_or_insert_with(HeapWriter::reserve);
        writer.write(self.wall, process, out)?;
        *self.summary.lock().unwrap_or_else(PoisonError::into_inner) = writer.summary();
        Ok(())
    }
}

/// Reads the loaded files, so that whatever is sampled from now on has its stack: some milliseconds. Were it
/// left to the thread that rehearses, samples taken meanwhile would find it at work and go without.
pub(in crate::agent) fn read_images() {
    if heap::installed() {
        // The next tick tries again.
        let _ = unwind::refresh();
    }
}

/// Makes the room for dumps, and one dump into nothing: the files it reads are open then, and all it
/// touches is in memory. Nothing if the program's allocator is another.
pub(in crate::agent) fn rehearse() {
    if heap::installed() {
        // What keeps it from working will be told by the first capture.
        let _ = Dump::new(Timestamp::UNIX_EPOCH).write(&mut std::io::sink());
    }
}

/// Keeps what this thread allocates out of heap profiles, until the guard is dropped.
pub(in crate::agent) fn exclude_current_thread() -> heap::Exclusion {
    heap::exclude_current_thread()
}

/// The same until the thread ends.
pub(in crate::agent) fn exclude_for_good() {
    mem::forget(heap::exclude_current_thread());
}

/// Lets stacks be walked through libraries that were loaded since the last tick, and adds to the vitals
/// what only the allocator knows. A microsecond when nothing was loaded. An image that cannot be read is
/// walked by frame pointers, and the next tick tries again.
pub(in crate::agent) fn tick(vitals: &mut Vitals) {
    if !heap::installed() {
        return;
    }
    let _ = unwind::refresh();
    let limit = vitals.memory_limit.as_ref().map(|limit| limit.value);
    for (figure, value) in
        [(&RESIDENT, vitals.rss), (&WORKING_SET, vitals.working_set), (&LIMIT, limit)]
    {
        figure.store(value.map_or(0, Bytes::get), Relaxed);
    }
    vitals.heap = heap::in_use();
}

/// Asks to be woken when the heap grows past the next of the rules' thresholds above what `vitals`
/// say: the tick sees to those below. To be called at regular ticks only, so that a heap that breathes
/// around a threshold costs one tick more in each interval.
pub(in crate::agent) fn watch<'r>(vitals: &Vitals, rules: impl Iterator<Item = &'r Rule>) {
    let Some(in_use) = vitals.heap else { return };
    let next = rules
        .filter(|rule| rule.metric == Metric::Heap)
        .filter_map(|rule| Some(Bytes(rule.abs?.max(rule.min) as u64)))
        .filter(|&threshold| threshold >= in_use)
        .min();
    match next {
        Some(threshold) => heap::watch(threshold),
        None => heap::unwatch(),
    }
}

/// Wakes when the heap has grown past what was asked for.
pub(in crate::agent) struct Crossings(Option<Listener>);

impl Crossings {
    /// To be made on the agent's runtime. Without it rules are asked at ticks only.
    pub(in crate::agent) fn listen() -> Self {
        let listener = heap::crossings().inspect_err(|error| {
            log::error(format!("heap rules are asked at ticks only: {error}"));
        });
        Self(listener.ok())
    }

    /// The next crossing.
    pub(in crate::agent) async fn next(&self) {
        match &self.0 {
            Some(listener) => listener.next().await,
            None => future::pending().await,
        }
    }
}

/// Samples as the settings say from here on.
pub(in crate::agent) fn set_rates(settings: &HeapSettings) {
    let mut rates = RATES.lock().unwrap_or_else(PoisonError::into_inner);
    let during = settings.rate_during_incident.unwrap_or(RATE_DURING_INCIDENT).min(settings.rate);
    (rates.usual, rates.during) = (Some(settings.rate), Some(during));
    rates.apply();
}

/// How much lies between two samples, usually and during a heap capture.
#[derive(Default)]
struct Rates {
    /// None until the settings are known.
    usual: Option<Bytes>,
    during: Option<Bytes>,
    captures: u32,
    /// What a client asked for, for a time.
    asked: Option<Bytes>,
}

impl Rates {
    fn apply(&self) {
        let during = self.during.filter(|_| self.captures > 0);
        if let Some(rate) = self.asked.or(during).or(self.usual) {
            heap::set_rate(rate);
        }
    }
}

/// Samples every `rate` bytes until it is asked for none.
pub(in crate::agent) fn ask_rate(rate: Option<Bytes>) {
    let mut rates = RATES.lock().unwrap_or_else(PoisonError::into_inner);
    rates.asked = rate;
    rates.apply();
}

/// While one lives, the rate is that of an incident, if the settings have one.
struct FinerRate(());

impl FinerRate {
    fn begin() -> Self {
        change(|captures| captures.saturating_add(1));
        Self(())
    }
}

impl Drop for FinerRate {
    fn drop(&mut self) {
        change(|captures| captures.saturating_sub(1));
    }
}

fn change(captures: impl FnOnce(u32) -> u32) {
    let mut rates = RATES.lock().unwrap_or_else(PoisonError::into_inner);
    rates.captures = captures(rates.captures);
    rates.apply();
}
