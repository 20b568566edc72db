//! Heap profiles, one at the start and one at the stop: their difference shows the allocations of
//! the incident. Each is taken while it is written, in memory reserved when the agent starts.

use crate::base::sync::Mutex;
use std::future;
use std::io::Write;
use std::mem;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use jiff::Timestamp;

use crate::base::{Bytes, Moment, TimeAnchor, log};
use crate::capture::collectors::{
    CaptureFailure, Collector, Evidence, StartedCapture, StreamedEvidence, Unavailable, jemalloc,
};
use crate::capture::heap_writer::{HeapWriter, ProcessMemory};
use crate::capture::memory_summary::MemorySummary;
use crate::config::{HeapSettings, Settings};
use crate::heap;
use crate::model::{CaptureKind, Losses, Metric, Profile, Rule, Vitals};
use crate::os::eventfd::EventListener;
use crate::os::mapped_memory::{ADDRESS_SPACE_DIVISOR, remaining_address_space};
use crate::unwind;

/// Dumps are serialized: there is one set of reserved buffers.
static WRITER: Mutex<Option<HeapWriter>> = Mutex::new(None);
static RATES: Mutex<SamplingRates> = Mutex::new(SamplingRates {
    normal: None,
    during_incident: None,
    active_captures: 0,
    requested: None,
});

/// Mean number of bytes between two samples during an incident, unless set in the settings. 500
/// tasks of 1 KiB that pile up during the capture have eight samples. At 1 GB/s of allocations it
/// takes 5 % of a core.
const RATE_DURING_INCIDENT: Bytes = Bytes::kib(64);

/// Values measured at the last tick; 0 if unknown.
static RESIDENT: AtomicU64 = AtomicU64::new(0);
static WORKING_SET: AtomicU64 = AtomicU64::new(0);
static MEMORY_LIMIT: AtomicU64 = AtomicU64::new(0);

pub(super) fn start(
    _: CaptureKind,
    _: &Settings,
    anchor: TimeAnchor,
) -> Result<StartedCapture, CaptureFailure> {
    if !heap::is_installed() {
        return jemalloc::start(anchor);
    }
    Ok(StartedCapture {
        collector: Box::new(HeapCollector { anchor, _rate: IncidentRate::start() }),
        initial_evidence: Some(HeapEvidence::boxed(anchor.wall)),
    })
}

/// Returns the reason this program has no heap profiles, or `None` if it has.
pub(crate) fn unavailable_reason() -> Option<String> {
    if heap::is_installed() { None } else { jemalloc::unavailable_reason() }
}

/// Returns a heap profile that is taken when it is written.
pub(crate) fn streamed_profile(wall: Timestamp) -> Result<Evidence, CaptureFailure> {
    if !heap::is_installed() {
        let mut evidence = Evidence::Profile(jemalloc::snapshot(wall)?);
        evidence.symbolize();
        return Ok(evidence);
    }
    Ok(HeapEvidence::boxed(wall))
}

/// Returns a profile of the heap.
pub(crate) fn snapshot(wall: Timestamp) -> Result<Box<Profile>, CaptureFailure> {
    if !heap::is_installed() {
        return jemalloc::snapshot(wall);
    }
    let mut profile = Box::new(heap::snapshot(wall)?);
    MemorySummary::prepend_to(&mut profile);
    Ok(profile)
}

struct HeapCollector {
    anchor: TimeAnchor,
    /// Released when the capture ends.
    _rate: IncidentRate,
}

impl Collector for HeapCollector {
    fn engine(&self) -> &str {
        "sampling allocator"
    }

    fn snapshot(&self, now: Moment) -> Result<Option<Evidence>, CaptureFailure> {
        Ok(Some(HeapEvidence::boxed(self.anchor.wall_at(now))))
    }

    fn stop(self: Box<Self>, now: Moment) -> Result<Option<Evidence>, CaptureFailure> {
        Ok(Some(HeapEvidence::boxed(self.anchor.wall_at(now))))
    }
}

/// A profile taken when it is written.
struct HeapEvidence {
    wall: Timestamp,
    /// Summary of the last write.
    summary: Mutex<Option<MemorySummary>>,
}

impl HeapEvidence {
    fn new(wall: Timestamp) -> Self {
        Self { wall, summary: Mutex::new(None) }
    }

    fn boxed(wall: Timestamp) -> Evidence {
        Evidence::Streamed(Box::new(Self::new(wall)))
    }
}

impl StreamedEvidence for HeapEvidence {
    fn requested_at(&self) -> Timestamp {
        self.wall
    }

    fn note(&self) -> Option<String> {
        let summary = self.summary.lock().unwrap_or_else(PoisonError::into_inner);
        summary.map(|summary| summary.to_string())
    }

    fn losses(&self) -> Losses {
        heap::losses()
    }

    fn write(&self, out: &mut dyn Write) -> Result<(), CaptureFailure> {
        let known = |figure: &AtomicU64| Some(figure.load(Relaxed)).filter(|&figure| figure > 0);
        let process = ProcessMemory {
            resident: known(&RESIDENT),
            working_set: known(&WORKING_SET),
            limit: known(&MEMORY_LIMIT),
        };
        let mut writer = WRITER.lock().unwrap_or_else(PoisonError::into_inner);
        let writer = match &mut *writer {
            Some(writer) => writer,
            empty => {
                check_address_space()?;
                empty.insert(HeapWriter::reserve())
            }
        };
        writer.write(self.wall, process, out)?;
        *self.summary.lock().unwrap_or_else(PoisonError::into_inner) = writer.summary();
        Ok(())
    }
}

/// Returns an error if the buffers of a dump would take much of the address space that is left: an
/// allocation that fails ends the process.
fn check_address_space() -> Result<(), CaptureFailure> {
    match remaining_address_space() {
        Some(left) if left.get() < HeapWriter::RESERVED.get() * ADDRESS_SPACE_DIVISOR => {
            Err(Unavailable(format!(
                "a heap profile needs {} of address space, and only {left} are left below \
                 RLIMIT_AS (ulimit -v), of which it may use an eighth",
                HeapWriter::RESERVED,
            ))
            .into())
        }
        _ => Ok(()),
    }
}

/// Reads the loaded files, so that all samples from here on have stacks. Takes some milliseconds.
/// It is not left to the thread that calls [`warm_up_dump`]: samples taken while that thread reads
/// would have no stack.
pub(crate) fn read_images() {
    if heap::is_installed() {
        // Retried at the next tick.
        let _ = unwind::refresh();
    }
}

/// Reserves the buffers of dumps and writes one dump to a sink. Afterwards the files it reads are
/// open and all memory it touches is resident. Does nothing if the program uses another allocator.
pub(crate) fn warm_up_dump() {
    if heap::is_installed() {
        // A persistent error is reported by the first capture.
        let _ = HeapEvidence::new(Timestamp::UNIX_EPOCH).write(&mut std::io::sink());
    }
}

/// Excludes the allocations of this thread from heap profiles until the guard is dropped.
pub(crate) fn exclude_current_thread() -> heap::ProfilerExclusion {
    heap::exclude_current_thread()
}

/// Excludes the allocations of this thread from heap profiles until the thread ends.
pub(crate) fn exclude_thread_permanently() {
    mem::forget(heap::exclude_current_thread());
}

/// Prepares stack walks through libraries loaded since the last tick, and adds the allocator's
/// values to the vitals. Takes a microsecond if nothing was loaded. An image that cannot be read is
/// walked by frame pointers and retried at the next tick.
pub(crate) fn tick(vitals: &mut Vitals) {
    if !heap::is_installed() {
        return;
    }
    let _ = unwind::refresh();
    let limit = vitals.memory_limit.as_ref().map(|limit| limit.value);
    for (figure, value) in
        [(&RESIDENT, vitals.rss), (&WORKING_SET, vitals.working_set), (&MEMORY_LIMIT, limit)]
    {
        figure.store(value.map_or(0, Bytes::get), Relaxed);
    }
    vitals.heap = heap::in_use();
}

/// Requests a wake-up when the heap grows past the lowest rule threshold at or above the value in
/// `vitals`; the tick evaluates the lower ones. Call at regular ticks only, so that a heap
/// oscillating around a threshold costs one additional tick per interval.
pub(crate) fn arm_threshold<'r>(vitals: &Vitals, rules: impl Iterator<Item = &'r Rule>) {
    let Some(in_use) = vitals.heap else { return };
    let next = rules
        .filter(|rule| rule.metric == Metric::Heap)
        .filter_map(|rule| Some(Bytes(rule.abs?.max(rule.min) as u64)))
        .filter(|&threshold| threshold >= in_use)
        .min();
    match next {
        Some(threshold) => heap::arm_threshold(threshold),
        None => heap::disarm_threshold(),
    }
}

/// Receiver of wake-ups when the heap grows past the requested threshold.
pub(crate) struct ThresholdEvents(Option<EventListener>);

impl ThresholdEvents {
    /// Creates a receiver. Must be called on the agent's runtime. If it fails, heap rules are
    /// evaluated at ticks only.
    pub(crate) fn subscribe() -> Self {
        let listener = heap::threshold_events().inspect_err(|error| {
            log::error(format!("heap rules are evaluated at ticks only: {error}"));
        });
        Self(listener.ok())
    }

    /// Waits for the next crossing.
    pub(crate) async fn next(&self) {
        match &self.0 {
            Some(listener) => listener.next().await,
            None => future::pending().await,
        }
    }
}

pub(crate) fn set_rates(settings: &HeapSettings) {
    let mut rates = RATES.lock().unwrap_or_else(PoisonError::into_inner);
    let during = settings.rate_during_incident.unwrap_or(RATE_DURING_INCIDENT).min(settings.rate);
    rates.normal = Some(settings.rate);
    rates.during_incident = Some(during);
    rates.apply();
}

/// Sampling rates: mean bytes between two samples, normally and during a heap capture.
#[derive(Default)]
struct SamplingRates {
    /// `None` until the settings are known.
    normal: Option<Bytes>,
    during_incident: Option<Bytes>,
    active_captures: u32,
    /// Temporary rate requested by a client.
    requested: Option<Bytes>,
}

impl SamplingRates {
    fn apply(&self) {
        let during = self.during_incident.filter(|_| self.active_captures > 0);
        if let Some(rate) = self.requested.or(during).or(self.normal) {
            heap::set_rate(rate);
        }
    }
}

/// Samples every `rate` bytes until this is called with `None`.
pub(crate) fn override_rate(rate: Option<Bytes>) {
    let mut rates = RATES.lock().unwrap_or_else(PoisonError::into_inner);
    rates.requested = rate;
    rates.apply();
}

/// Guard that applies the sampling rate of an incident while it exists.
struct IncidentRate(());

impl IncidentRate {
    fn start() -> Self {
        update_active_captures(|captures| captures.saturating_add(1));
        Self(())
    }
}

impl Drop for IncidentRate {
    fn drop(&mut self) {
        update_active_captures(|captures| captures.saturating_sub(1));
    }
}

fn update_active_captures(captures: impl FnOnce(u32) -> u32) {
    let mut rates = RATES.lock().unwrap_or_else(PoisonError::into_inner);
    rates.active_captures = captures(rates.active_captures);
    rates.apply();
}
