//! Polls and parks by the hundred thousand: sixteen bytes each, as they were recorded.
//!
//! ```text
//! slice   word 0   end, in ticks 61 | kind 3
//!         word 1   duration 28 | site 12 | number 24
//! task    word 0   when, in ticks 61 | kind 3
//!         word 1   site 12 | number 52
//! ```
//!
//! A timeline event takes four times as much, and a slice is two of them; so slices stay packed until the
//! very byte of the file. The end is exact. The duration has 23 bits of mantissa and 5 of exponent: exact
//! up to some 3 ms, to one part in 4 million beyond, rounded down, so that a slice never reaches into the
//! one before it.
//!
//! The *site* is where a task was spawned or what it is called, by its place in a table, so that a poll has
//! a name although its task was spawned a week ago. The *number* tells tasks of one site apart; it is the
//! low end of the task's whole number.

use super::strings::StringHandle;
use crate::base::{Moment, SITE_BITS};

const NUMBER_BITS: u32 = 24;
const MANTISSA_BITS: u32 = 23;

/// What a slice is, or what became of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u64)]
pub enum RawKind {
    /// A worker with nothing to do.
    Park = 1,
    /// A poll that tokio's hooks saw; the number is tokio's own.
    HookedPoll = 2,
    /// A poll that a wrapper saw; the number is marple's.
    WrappedPoll = 3,
    /// A task was spawned.
    Spawned = 4,
    /// A task ended.
    Ended = 5,
}

impl RawKind {
    const fn of(word: u64) -> Option<Self> {
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

/// A task's site and number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct TaskKey {
    /// The place of its name in the table of sites.
    pub site: u16,
    /// Its number; of a slice the low 24 bits.
    pub number: u64,
}

impl TaskKey {
    /// As a slice remembers it.
    pub const fn short(self) -> Self {
        Self { number: self.number & ((1 << NUMBER_BITS) - 1), ..self }
    }
}

/// A slice, packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawSlice(pub [u64; 2]);

impl RawSlice {
    /// From `start` to `end`, in ticks.
    #[inline]
    pub const fn new(kind: RawKind, start: u64, end: u64, task: TaskKey) -> Self {
        let task = task.short();
        let duration = pack(end.saturating_sub(start));
        let who = ((task.site as u64) << NUMBER_BITS) | task.number;
        Self([(end << 3) | kind as u64, (duration << (SITE_BITS + NUMBER_BITS)) | who])
    }

    /// What it is; none for words that are no slice.
    pub const fn kind(self) -> Option<RawKind> {
        match RawKind::of(self.0[0]) {
            Some(RawKind::Spawned | RawKind::Ended) => None,
            kind => kind,
        }
    }

    /// When it ended, in ticks.
    pub const fn end(self) -> u64 {
        self.0[0] >> 3
    }

    /// When it began, in ticks; late by what the rounding takes.
    pub const fn start(self) -> u64 {
        self.end().saturating_sub(unpack(self.0[1] >> (SITE_BITS + NUMBER_BITS)))
    }

    /// The earliest tick at which it can have begun, for all that the rounding took.
    pub const fn earliest(self) -> u64 {
        let exponent = self.0[1] >> (SITE_BITS + NUMBER_BITS + MANTISSA_BITS);
        self.start().saturating_sub((1 << exponent) - 1)
    }

    /// The task that was polled.
    pub const fn task(self) -> TaskKey {
        let site = (self.0[1] >> NUMBER_BITS) as u16 & ((1 << SITE_BITS) - 1);
        TaskKey { site, number: self.0[1] & ((1 << NUMBER_BITS) - 1) }
    }
}

/// What became of a task, packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawTask(pub [u64; 2]);

impl RawTask {
    /// At `at`, in ticks.
    #[inline]
    pub const fn new(kind: RawKind, at: u64, task: TaskKey) -> Self {
        let number = task.number & (u64::MAX >> SITE_BITS);
        Self([(at << 3) | kind as u64, ((task.site as u64) << (64 - SITE_BITS)) | number])
    }

    /// What became of it; none for words that are no such record.
    pub const fn kind(self) -> Option<RawKind> {
        match RawKind::of(self.0[0]) {
            kind @ Some(RawKind::Spawned | RawKind::Ended) => kind,
            _ => None,
        }
    }

    /// When, in ticks.
    pub const fn at(self) -> u64 {
        self.0[0] >> 3
    }

    /// Which.
    pub const fn task(self) -> TaskKey {
        let site = (self.0[1] >> (64 - SITE_BITS)) as u16;
        TaskKey { site, number: self.0[1] & (u64::MAX >> SITE_BITS) }
    }
}

#[inline]
const fn pack(ticks: u64) -> u64 {
    // Nearly all there are: their exponent is 0.
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

const fn unpack(packed: u64) -> u64 {
    (packed & ((1 << MANTISSA_BITS) - 1)) << (packed >> MANTISSA_BITS)
}

/// What moments ticks are: the line through pairs that were read together.
///
/// Between two pairs it is off by no more than they are themselves, some tens of nanoseconds, whatever
/// `CLOCK_MONOTONIC` was slewed by in between or before. Dating a tick takes a multiplication.
#[derive(Clone, Debug, Default)]
pub struct Calibration {
    /// In the order of time.
    lines: Vec<Line>,
}

/// From one pair to the next; the last goes on as the one before it.
#[derive(Clone, Copy, Debug)]
struct Line {
    tick: u64,
    at: Moment,
    /// Nanoseconds a tick, times two to the power of [`RATE_BITS`].
    rate: u64,
}

/// Makes a rate of a thousandth exact to a part in 10 million million.
const RATE_BITS: u32 = 44;

impl Line {
    #[inline]
    fn moment(&self, tick: u64) -> Moment {
        if let Some(ticks) = tick.checked_sub(self.tick) {
            // All but a few, by one multiplication.
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
    /// Through these pairs, in the order of time; those whose ticks do not grow are left out.
    pub fn new(pairs: impl IntoIterator<Item = (u64, Moment)>) -> Self {
        // One pair tells no rate: ticks are taken for nanoseconds.
        let one = 1 << RATE_BITS;
        let mut lines: Vec<Line> = Vec::new();
        for (tick, at) in pairs {
            let Some(last) = lines.last_mut() else {
                lines.push(Line { tick, at, rate: one });
                continue;
            };
            if last.tick < tick && last.at < at {
                let nanos = u128::from(at.as_nanos() - last.at.as_nanos());
                let rate = (nanos << RATE_BITS) / u128::from(tick - last.tick);
                let rate = u64::try_from(rate).unwrap_or(u64::MAX);
                last.rate = rate;
                lines.push(Line { tick, at, rate });
            }
        }
        Self { lines }
    }

    /// The moment of a tick.
    #[inline]
    pub fn moment(&self, tick: u64) -> Moment {
        let after = self.lines.iter().rposition(|line| line.tick <= tick).unwrap_or(0);
        self.lines.get(after).map_or(Moment::from_nanos(tick), |line| line.moment(tick))
    }

    /// For the moments of many ticks in about the order of time: each is looked for on the line of the one before.
    pub fn dates(&self) -> Dates<'_> {
        // Without any, as above.
        let line = Line { tick: 0, at: Moment::default(), rate: 1 << RATE_BITS };
        Dates { lines: &self.lines, line, ticks: 0 }
    }

    /// The tick of a moment.
    pub fn tick(&self, moment: Moment) -> u64 {
        let pairs = self.lines.iter();
        let mirrored =
            Self::new(pairs.map(|line| (line.at.as_nanos(), Moment::from_nanos(line.tick))));
        mirrored.moment(moment.as_nanos()).as_nanos()
    }
}

/// Moments of one tick after the other.
#[derive(Clone, Debug)]
pub struct Dates<'a> {
    lines: &'a [Line],
    /// The last one's, and for how many ticks it is right.
    line: Line,
    ticks: u64,
}

impl Dates<'_> {
    /// As [`Calibration::moment`].
    #[inline]
    pub fn moment(&mut self, tick: u64) -> Moment {
        if tick.wrapping_sub(self.line.tick) >= self.ticks {
            self.turn(tick);
        }
        self.line.moment(tick)
    }

    #[cold]
    fn turn(&mut self, tick: u64) {
        let at = self.lines.iter().rposition(|line| line.tick <= tick).unwrap_or(0);
        if let Some(line) = self.lines.get(at) {
            self.line = *line;
            self.ticks = self.lines.get(at + 1).map_or(u64::MAX, |next| next.tick) - line.tick;
        }
    }
}

/// A slice that had not ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenSlice {
    /// What it is.
    pub kind: RawKind,
    /// When it began, in ticks.
    pub start: u64,
    /// The task that is polled.
    pub task: TaskKey,
}

/// What one thread did.
#[derive(Clone, Debug)]
pub struct ThreadSlices {
    /// Its id in the kernel.
    pub tid: u32,
    /// Its name.
    pub name: StringHandle,
    /// What had ended, in the order of the ends.
    pub slices: Vec<RawSlice>,
    /// What had not, the outermost first.
    pub open: Vec<OpenSlice>,
}

/// What the rings of all threads held.
#[derive(Clone, Debug, Default)]
pub struct Activity {
    /// What moments its ticks are.
    pub calibration: Calibration,
    /// What is earlier is cut off.
    pub from: Moment,
    /// The threads.
    pub threads: Vec<ThreadSlices>,
    /// What became of tasks, in the order of time.
    pub tasks: Vec<RawTask>,
    /// The names of the sites, by their number.
    pub sites: Vec<StringHandle>,
}

#[cfg(test)]
mod tests {
    use super::*;

    const TASK: TaskKey = TaskKey { site: 4095, number: 0xff_ffff };

    #[test]
    fn a_slice_survives_packing() {
        let end = (1 << 61) - 1;
        let exact = 1 << MANTISSA_BITS;
        for duration in [0, 1, exact - 1, exact, exact + 1, 1 << 40, (1 << 53) + 12345] {
            for kind in [RawKind::Park, RawKind::HookedPoll, RawKind::WrappedPoll] {
                let slice = RawSlice::new(kind, end - duration, end, TASK);
                assert_eq!((slice.kind(), slice.end(), slice.task()), (Some(kind), end, TASK));
                let late = slice.start() - (end - duration);
                assert!(late <= duration >> 22 && (duration > exact || late == 0), "{duration}");
                assert!(slice.earliest() <= end - duration, "{duration}");
                assert_eq!(slice.earliest() == slice.start(), duration < exact, "{duration}");
            }
        }
    }

    #[test]
    fn a_slice_too_long_to_say_is_as_long_as_can_be_said() {
        let slice = RawSlice::new(RawKind::Park, 0, 1 << 60, TaskKey::default());
        assert!(slice.end() - slice.start() >= 1 << 53);
    }

    #[test]
    fn a_task_survives_packing() {
        let task = TaskKey { site: 4095, number: (1 << 52) - 1 };
        for kind in [RawKind::Spawned, RawKind::Ended] {
            let raw = RawTask::new(kind, 77, task);
            assert_eq!((raw.kind(), raw.at(), raw.task()), (Some(kind), 77, task));
            assert_eq!(RawSlice(raw.0).kind(), None);
        }
        assert_eq!(task.short(), TaskKey { site: 4095, number: (1 << 24) - 1 });
        assert_eq!(RawTask([0, 0]).kind(), None);
    }

    #[test]
    fn ticks_are_dated_between_and_beyond_the_pairs() {
        let at = Moment::from_nanos;
        let calibration = Calibration::new([(1000, at(100)), (3000, at(1100)), (4000, at(2100))]);
        for (tick, nanos) in [(1000, 100), (2000, 600), (3000, 1100), (3500, 1600), (5000, 3100)] {
            assert_eq!(calibration.moment(tick), at(nanos), "{tick}");
            assert_eq!(calibration.tick(at(nanos)), tick, "{nanos}");
        }
        let ticks = [1000, 2000, 2999, 3000, 3500, 4000, 5000, 900, 4001, 1];
        let mut dates = calibration.dates();
        assert_eq!(
            ticks.map(|tick| dates.moment(tick)),
            ticks.map(|tick| calibration.moment(tick))
        );
        assert_eq!(calibration.moment(900), at(50));
        assert_eq!(Calibration::default().moment(5), at(5));
        assert_eq!(Calibration::default().dates().moment(5), at(5));
        assert_eq!(Calibration::new([(10, at(100)), (10, at(200))]).moment(12), at(102));
    }
}
