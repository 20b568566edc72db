//! What happened when: tracks, and events on them.

use jiff::Timestamp;

use super::losses::Losses;
use super::slices::Activity;
use super::strings::{StringHandle, StringTable};
use crate::base::{Anchor, Moment};

/// A row of a timeline's tracks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TrackHandle(pub u32);

impl TrackHandle {
    /// Its place in the timeline's tracks.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// What a track shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrackKind {
    /// What concerns the process as a whole.
    Process,
    /// What one thread did, by its kernel thread id.
    Thread(u32),
    /// A value over time, in this unit.
    Counter(StringHandle),
}

/// A line of the picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Track {
    /// What it shows.
    pub kind: TrackKind,
    /// Its name.
    pub name: StringHandle,
}

/// What an argument of an event says.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ArgValue {
    /// A text.
    Text(StringHandle),
    /// A number.
    Number(u64),
}

/// What kind of event it is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum EventKind {
    /// A slice begins.
    Begin(StringHandle),
    /// The slice that began last on this track and has not ended ends.
    End,
    /// Something happened, without duration.
    Instant(StringHandle),
    /// The track's counter has this value from here on.
    Counter(f64),
}

/// An event on a track.
#[derive(Clone, Debug, PartialEq)]
pub struct TimelineEvent {
    /// When.
    pub at: Moment,
    /// On which track.
    pub track: TrackHandle,
    /// What.
    pub kind: EventKind,
    /// Its category (`span`, `event`, `runtime`, `vitals`, `marple`).
    pub category: StringHandle,
    /// More about it.
    pub args: Vec<(StringHandle, ArgValue)>,
}

/// A stretch of time and what happened in it. Events are in the order of time on each track, not overall.
#[derive(Clone, Debug)]
pub struct Timeline {
    /// How moments and wall times relate.
    pub anchor: Anchor,
    /// When the recording began.
    pub started: Timestamp,
    /// The process.
    pub pid: u32,
    /// Its name.
    pub process_name: String,
    /// The texts.
    pub strings: StringTable,
    /// The tracks.
    pub tracks: Vec<Track>,
    /// The events.
    pub events: Vec<TimelineEvent>,
    /// Polls and parks, of which there are many more than events.
    pub activity: Activity,
    /// What was not recorded.
    pub losses: Losses,
}

impl Timeline {
    /// An empty timeline of this process, from `anchor` on.
    pub fn new(anchor: Anchor, pid: u32, process_name: impl Into<String>) -> Self {
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
    pub fn track(&mut self, kind: TrackKind, name: &str) -> TrackHandle {
        let name = self.strings.intern(name);
        self.tracks.push(Track { kind, name });
        TrackHandle(self.tracks.len() as u32 - 1)
    }

    /// Adds a counter track whose values are in `unit`.
    pub fn counter(&mut self, name: &str, unit: &str) -> TrackHandle {
        let unit = self.strings.intern(unit);
        self.track(TrackKind::Counter(unit), name)
    }
}
