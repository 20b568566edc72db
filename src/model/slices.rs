//! Packed polls, parks and task events: 16 bytes each, in the form in which they were recorded.
//!
//! ```text
//! slice   word 0   end, in ticks 61 | kind 3
//!         word 1   duration 28 | site 12 | number 24
//! task    word 0   time, in ticks 61 | kind 3
//!         word 1   site 12 | number 52
//! ```
//!
//! A trace has hundreds of thousands of them. A timeline event takes four times as much memory, and
//! a slice needs two; slices therefore stay packed until they are written to the file.
//!
//! The end is exact. The duration has a mantissa of 23 bits and an exponent of 5 bits. It is exact
//! up to about 3 ms; beyond, it is rounded down with a relative error below 1 / 4 million. Because
//! of the rounding direction, a slice never overlaps the previous one.
//!
//! The *site* is the index of the task's spawn location or name in a table. A poll thus has a name
//! even if its task was spawned a week ago. The *number* distinguishes tasks of one site; in a
//! slice it is the low 24 bits of the task's full number.

use super::strings::StringHandle;
use crate::base::{Moment, SITE_BITS};

const NUMBER_BITS: u32 = 24;
const MANTISSA_BITS: u32 = 23;

/// The kind of a slice or task event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u64)]
pub enum RawKind {
    /// A worker was parked.
    Park = 1,
    /// A poll recorded by tokio's hooks. The number is tokio's task id.
    HookedPoll = 2,
    /// A poll recorded by marple's task wrapper. The number is marple's.
    WrappedPoll = 3,
    /// A task was spawned.
    Spawned = 4,
    /// A task ended.
    Ended = 5,
}

impl RawKind {
    const fn from_word(word: u64) -> Option<Self> {
        match word & 7 {
            1 => Some(Self::Park),
            2 => Some(Self::HookedPoll),
            3 => Some(Self::WrappedPoll),
            4 => Some(Self::Spawned),
            5 => Some(Self::Ended),
            _ => None,
        }
    }
}

/// The site and number of a task.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct TaskKey {
    /// Index in the table of sites.
    pub site: u16,
    /// Task number; in a slice, its low 24 bits.
    pub number: u64,
}

impl TaskKey {
    /// Returns the key with the number truncated to 24 bits, as stored in a slice.
    pub const fn truncated(self) -> Self {
        Self { number: self.number & ((1 << NUMBER_BITS) - 1), ..self }
    }
}

/// A packed slice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawSlice(pub [u64; 2]);

impl RawSlice {
    /// Packs a slice from `start` to `end`, in ticks.
    #[inline]
    pub const fn new(kind: RawKind, start: u64, end: u64, task: TaskKey) -> Self {
        let task = task.truncated();
        let duration = pack_duration(end.saturating_sub(start));
        let task_bits = ((task.site as u64) << NUMBER_BITS) | task.number;
        Self([(end << 3) | kind as u64, (duration << (SITE_BITS + NUMBER_BITS)) | task_bits])
    }

    /// Returns the kind, or `None` if the words are not a slice.
    pub const fn kind(self) -> Option<RawKind> {
        match RawKind::from_word(self.0[0]) {
            Some(RawKind::Spawned | RawKind::Ended) => None,
            kind => kind,
        }
    }

    /// Returns the end, in ticks.
    pub const fn end(self) -> u64 {
        self.0[0] >> 3
    }

    /// Returns the start, in ticks. Late by the rounding error of the duration.
    pub const fn start(self) -> u64 {
        self.end().saturating_sub(unpack_duration(self.0[1] >> (SITE_BITS + NUMBER_BITS)))
    }

    /// Returns the earliest possible start, in ticks, given the rounding of the duration.
    pub const fn earliest_start(self) -> u64 {
        let exponent = self.0[1] >> (SITE_BITS + NUMBER_BITS + MANTISSA_BITS);
        self.start().saturating_sub((1 << exponent) - 1)
    }

    /// Returns the polled task.
    pub const fn task(self) -> TaskKey {
        let site = (self.0[1] >> NUMBER_BITS) as u16 & ((1 << SITE_BITS) - 1);
        TaskKey { site, number: self.0[1] & ((1 << NUMBER_BITS) - 1) }
    }
}

/// A packed task event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawTask(pub [u64; 2]);

impl RawTask {
    /// Packs an event at `at`, in ticks.
    #[inline]
    pub const fn new(kind: RawKind, at: u64, task: TaskKey) -> Self {
        let number = task.number & (u64::MAX >> SITE_BITS);
        Self([(at << 3) | kind as u64, ((task.site as u64) << (64 - SITE_BITS)) | number])
    }

    /// Returns the kind, or `None` if the words are not a task event.
    pub const fn kind(self) -> Option<RawKind> {
        match RawKind::from_word(self.0[0]) {
            kind @ Some(RawKind::Spawned | RawKind::Ended) => kind,
            _ => None,
        }
    }

    /// Returns the time, in ticks.
    pub const fn at(self) -> u64 {
        self.0[0] >> 3
    }

    /// Returns the task.
    pub const fn task(self) -> TaskKey {
        let site = (self.0[1] >> (64 - SITE_BITS)) as u16;
        TaskKey { site, number: self.0[1] & (u64::MAX >> SITE_BITS) }
    }
}

#[inline]
const fn pack_duration(ticks: u64) -> u64 {
    // Nearly all durations take this path: their exponent is 0.
    if ticks >> MANTISSA_BITS == 0 {
        return ticks;
    }
    let width = u64::BITS - ticks.leading_zeros();
    let shift = width.saturating_sub(MANTISSA_BITS);
    if shift > 31 {
        return (31 << MANTISSA_BITS) | ((1 << MANTISSA_BITS) - 1);
    }
    ((shift as u64) << MANTISSA_BITS) | (ticks >> shift)
}

const fn unpack_duration(packed: u64) -> u64 {
    (packed & ((1 << MANTISSA_BITS) - 1)) << (packed >> MANTISSA_BITS)
}

/// A conversion from ticks to moments: a line through pairs that were read together.
///
/// The error between two pairs is at most that of the pairs, some tens of nanoseconds, however
/// `CLOCK_MONOTONIC` is slewed. Converting a tick takes one multiplication.
#[derive(Clone, Debug, Default)]
pub struct Calibration {
    /// In time order.
    segments: Vec<CalibrationSegment>,
}

/// The line from one pair to the next. The last line continues the slope of the one before.
#[derive(Clone, Copy, Debug)]
struct CalibrationSegment {
    tick: u64,
    at: Moment,
    /// Nanoseconds per tick, `* 2^RATE_BITS`.
    rate: u64,
}

/// Fractional bits of a rate. Relative error: `2^-44 / rate`, below 1e-12 from 0.1 ns per tick on.
const RATE_BITS: u32 = 44;

impl CalibrationSegment {
    #[inline]
    fn moment(&self, tick: u64) -> Moment {
        if let Some(ticks) = tick.checked_sub(self.tick) {
            // The common case: one multiplication.
            let nanos =
                (u128::from(ticks) * u128::from(self.rate) + (1 << (RATE_BITS - 1))) >> RATE_BITS;
            let nanos = u64::try_from(nanos).unwrap_or(u64::MAX);
            return Moment::from_nanos(self.at.as_nanos().saturating_add(nanos));
        }
        let ticks = i128::from(tick.wrapping_sub(self.tick) as i64);
        let nanos = (ticks * i128::from(self.rate) + (1 << (RATE_BITS - 1))) >> RATE_BITS;
        Moment::from_nanos(self.at.as_nanos().saturating_add_signed(nanos as i64))
    }
}

impl Calibration {
    /// Creates a calibration through these pairs, in time order. Skips pairs that do not increase.
    pub fn new(pairs: impl IntoIterator<Item = (u64, Moment)>) -> Self {
        // A single pair gives no rate: assume one nanosecond per tick.
        let one_nano_per_tick = 1 << RATE_BITS;
        let mut lines: Vec<CalibrationSegment> = Vec::new();
        for (tick, at) in pairs {
            let Some(last) = lines.last_mut() else {
                lines.push(CalibrationSegment { tick, at, rate: one_nano_per_tick });
                continue;
            };
            if last.tick < tick && last.at < at {
                let nanos = u128::from(at.as_nanos() - last.at.as_nanos());
                let rate = (nanos << RATE_BITS) / u128::from(tick - last.tick);
                let rate = u64::try_from(rate).unwrap_or(u64::MAX);
                last.rate = rate;
                lines.push(CalibrationSegment { tick, at, rate });
            }
        }
        Self { segments: lines }
    }

    /// Returns the moment of a tick.
    #[inline]
    pub fn moment(&self, tick: u64) -> Moment {
        let index = self.segments.iter().rposition(|line| line.tick <= tick).unwrap_or(0);
        self.segments.get(index).map_or(Moment::from_nanos(tick), |line| line.moment(tick))
    }

    /// Returns a converter for many ticks in approximate time order. It caches the line of the
    /// previous tick.
    pub fn converter(&self) -> TickConverter<'_> {
        // Without pairs, assume one nanosecond per tick.
        let line = CalibrationSegment { tick: 0, at: Moment::default(), rate: 1 << RATE_BITS };
        TickConverter { segments: &self.segments, segment: line, valid_ticks: 0 }
    }

    /// Returns the tick of a moment.
    pub fn tick(&self, moment: Moment) -> u64 {
        let pairs = self.segments.iter();
        let inverse =
            Self::new(pairs.map(|line| (line.at.as_nanos(), Moment::from_nanos(line.tick))));
        inverse.moment(moment.as_nanos()).as_nanos()
    }
}

/// A converter for ticks in approximate time order. See [`Calibration::converter`].
#[derive(Clone, Debug)]
pub struct TickConverter<'a> {
    segments: &'a [CalibrationSegment],
    /// Line of the previous tick, and the number of ticks for which it is valid.
    segment: CalibrationSegment,
    valid_ticks: u64,
}

impl TickConverter<'_> {
    /// Returns the moment of a tick, as [`Calibration::moment`] does.
    #[inline]
    pub fn moment(&mut self, tick: u64) -> Moment {
        if tick.wrapping_sub(self.segment.tick) >= self.valid_ticks {
            self.switch_segment(tick);
        }
        self.segment.moment(tick)
    }

    #[cold]
    fn switch_segment(&mut self, tick: u64) {
        let index = self.segments.iter().rposition(|line| line.tick <= tick).unwrap_or(0);
        if let Some(line) = self.segments.get(index) {
            self.segment = *line;
            self.valid_ticks =
                self.segments.get(index + 1).map_or(u64::MAX, |next| next.tick) - line.tick;
        }
    }
}

/// A slice in progress at the time of the capture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenSlice {
    /// Kind of the slice.
    pub kind: RawKind,
    /// Start, in ticks.
    pub start: u64,
    /// The task being polled.
    pub task: TaskKey,
}

/// The activity of one thread.
#[derive(Clone, Debug)]
pub struct ThreadSlices {
    /// Kernel thread id.
    pub tid: u32,
    /// Thread name.
    pub name: StringHandle,
    /// Finished slices, ordered by end.
    pub slices: Vec<RawSlice>,
    /// Slices in progress, the outermost first.
    pub open: Vec<OpenSlice>,
}

/// The contents of the rings of all threads.
#[derive(Clone, Debug, Default)]
pub struct Activity {
    /// Conversion of ticks to moments.
    pub calibration: Calibration,
    /// Start of the recording. Earlier data is cut off.
    pub start: Moment,
    /// Activity by thread.
    pub threads: Vec<ThreadSlices>,
    /// Task events, in time order.
    pub tasks: Vec<RawTask>,
    /// Names of the sites, by site index.
    pub sites: Vec<StringHandle>,
}

#[cfg(test)]
mod tests {
    use super::*;

    const TASK: TaskKey = TaskKey { site: 4095, number: 0xff_ffff };

    #[test]
    fn slice_round_trips_through_packing() {
        let end = (1 << 61) - 1;
        let exact = 1 << MANTISSA_BITS;
        for duration in [0, 1, exact - 1, exact, exact + 1, 1 << 40, (1 << 53) + 12345] {
            for kind in [RawKind::Park, RawKind::HookedPoll, RawKind::WrappedPoll] {
                let slice = RawSlice::new(kind, end - duration, end, TASK);
                assert_eq!((slice.kind(), slice.end(), slice.task()), (Some(kind), end, TASK));
                let start_error = slice.start() - (end - duration);
                assert!(
                    start_error <= duration >> 22 && (duration > exact || start_error == 0),
                    "{duration}"
                );
                assert!(slice.earliest_start() <= end - duration, "{duration}");
                assert_eq!(slice.earliest_start() == slice.start(), duration < exact, "{duration}");
            }
        }
    }

    #[test]
    fn overlong_slice_saturates_at_maximum_duration() {
        let slice = RawSlice::new(RawKind::Park, 0, 1 << 60, TaskKey::default());
        assert!(slice.end() - slice.start() >= 1 << 53);
    }

    #[test]
    fn task_event_round_trips_through_packing() {
        let task = TaskKey { site: 4095, number: (1 << 52) - 1 };
        for kind in [RawKind::Spawned, RawKind::Ended] {
            let raw = RawTask::new(kind, 77, task);
            assert_eq!((raw.kind(), raw.at(), raw.task()), (Some(kind), 77, task));
            assert_eq!(RawSlice(raw.0).kind(), None);
        }
        assert_eq!(task.truncated(), TaskKey { site: 4095, number: (1 << 24) - 1 });
        assert_eq!(RawTask([0, 0]).kind(), None);
    }

    #[test]
    fn calibration_interpolates_and_extrapolates() {
        let at = Moment::from_nanos;
        let calibration = Calibration::new([(1000, at(100)), (3000, at(1100)), (4000, at(2100))]);
        for (tick, nanos) in [(1000, 100), (2000, 600), (3000, 1100), (3500, 1600), (5000, 3100)] {
            assert_eq!(calibration.moment(tick), at(nanos), "{tick}");
            assert_eq!(calibration.tick(at(nanos)), tick, "{nanos}");
        }
        let ticks = [1000, 2000, 2999, 3000, 3500, 4000, 5000, 900, 4001, 1];
        let mut converter = calibration.converter();
        assert_eq!(
            ticks.map(|tick| converter.moment(tick)),
            ticks.map(|tick| calibration.moment(tick))
        );
        assert_eq!(calibration.moment(900), at(50));
        assert_eq!(Calibration::default().moment(5), at(5));
        assert_eq!(Calibration::default().converter().moment(5), at(5));
        assert_eq!(Calibration::new([(10, at(100)), (10, at(200))]).moment(12), at(102));
    }
}
