//! A timeline: tracks, and events on them.

use jiff::Timestamp;

use super::losses::Losses;
use super::slices::Activity;
use super::strings::{StringHandle, StringTable};
use crate::base::{Moment, TimeAnchor};

/// A row of [`Timeline::tracks`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TrackHandle(pub u32);

impl TrackHandle {
    /// Returns the index in [`Timeline::tracks`].
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// The kind of a track.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrackKind {
    /// Events of the whole process.
    Process,
    /// Events of one thread, by kernel thread id.
    Thread(u32),
    /// A counter, in this unit.
    Counter(StringHandle),
}

/// A track of a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Track {
    /// Kind of the track.
    pub kind: TrackKind,
    /// Name of the track.
    pub name: StringHandle,
}

/// The value of an event argument.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ArgValue {
    /// A text.
    Text(StringHandle),
    /// A number.
    Number(u64),
}

/// The kind of an event.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum EventKind {
    /// Start of a slice with this name.
    Begin(StringHandle),
    /// End of the slice that started last on the track and has not ended.
    End,
    /// An event without duration.
    Instant(StringHandle),
    /// The new value of the track's counter.
    Counter(f64),
}

/// An event on a track.
#[derive(Clone, Debug, PartialEq)]
pub struct TimelineEvent {
    /// Time of the event.
    pub at: Moment,
    /// Track of the event.
    pub track: TrackHandle,
    /// Kind of the event.
    pub kind: EventKind,
    /// Category: `span`, `event`, `runtime`, `vitals` or `marple`.
    pub category: StringHandle,
    /// Arguments: keys and values.
    pub args: Vec<(StringHandle, ArgValue)>,
}

/// A recording of the process over time. Events are in time order within each track, not across
/// tracks.
#[derive(Clone, Debug)]
pub struct Timeline {
    /// Relation of moments to wall-clock time.
    pub anchor: TimeAnchor,
    /// Wall-clock time at which the recording started.
    pub started: Timestamp,
    /// Process id.
    pub pid: u32,
    /// Process name.
    pub process_name: String,
    /// Interned strings.
    pub strings: StringTable,
    /// Tracks.
    pub tracks: Vec<Track>,
    /// Events.
    pub events: Vec<TimelineEvent>,
    /// Polls and parks, which far outnumber events.
    pub activity: Activity,
    /// Data that was not recorded, by cause.
    pub losses: Losses,
}

impl Timeline {
    /// Creates an empty timeline of the process `pid` that starts at `anchor`.
    pub fn new(anchor: TimeAnchor, pid: u32, process_name: impl Into<String>) -> Self {
        Self {
            anchor,
            started: anchor.wall,
            pid,
            process_name: process_name.into(),
            strings: StringTable::default(),
            tracks: Vec::new(),
            events: Vec::new(),
            activity: Activity::default(),
            losses: Losses::default(),
        }
    }

    /// Adds a track.
    pub fn add_track(&mut self, kind: TrackKind, name: &str) -> TrackHandle {
        let name = self.strings.intern(name);
        self.tracks.push(Track { kind, name });
        TrackHandle(self.tracks.len() as u32 - 1)
    }

    /// Adds a counter track with values in `unit`.
    pub fn add_counter(&mut self, name: &str, unit: &str) -> TrackHandle {
        let unit = self.strings.intern(unit);
        self.add_track(TrackKind::Counter(unit), name)
    }
}
