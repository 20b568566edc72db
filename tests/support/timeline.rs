//! Helpers to read a timeline: strings instead of handles, and tracks by name.

use std::sync::{Mutex, MutexGuard, PoisonError};

use marple::internals::base::{Bytes, Clock, Moment, SystemClock, TimeAnchor};
use marple::internals::model::{ArgValue, EventKind, RawKind, Timeline, TrackHandle, TrackKind};
use marple::internals::trace::TraceSession;

/// Serializes the tests of a binary: there is one recorder.
pub(crate) fn serial_guard() -> MutexGuard<'static, ()> {
    static SERIAL: Mutex<()> = Mutex::new(());
    SERIAL.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn start() -> TraceSession {
    TraceSession::start(Bytes::mib(16), anchor()).unwrap()
}

pub(crate) fn stop(session: TraceSession) -> Timeline {
    session.stop(SystemClock.now())
}

pub(crate) fn anchor() -> TimeAnchor {
    SystemClock.anchor()
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Kind {
    Begin,
    End,
    Instant,
    Counter(f64),
}

#[derive(Clone, Debug)]
pub(crate) struct ReadEvent {
    pub(crate) track: usize,
    pub(crate) at: Moment,
    pub(crate) kind: Kind,
    pub(crate) name: String,
    pub(crate) category: String,
    pub(crate) args: Vec<(String, String)>,
}

impl ReadEvent {
    pub(crate) fn arg(&self, name: &str) -> Option<&str> {
        self.args.iter().find(|(known, _)| known == name).map(|(_, value)| &**value)
    }
}

/// Returns all events in their recorded order.
pub(crate) fn read_events(timeline: &Timeline) -> Vec<ReadEvent> {
    let text = |handle| timeline.strings.get(handle).to_owned();
    timeline
        .events
        .iter()
        .map(|event| {
            let (kind, name) = match event.kind {
                EventKind::Begin(name) => (Kind::Begin, text(name)),
                EventKind::End => (Kind::End, String::new()),
                EventKind::Instant(name) => (Kind::Instant, text(name)),
                EventKind::Counter(value) => (Kind::Counter(value), String::new()),
            };
            let args = event.args.iter().map(|&(name, value)| {
                let value = match value {
                    ArgValue::Text(handle) => text(handle),
                    ArgValue::Number(number) => number.to_string(),
                };
                (text(name), value)
            });
            ReadEvent {
                track: event.track.index(),
                at: event.at,
                kind,
                name,
                category: text(event.category),
                args: args.collect(),
            }
        })
        .collect()
}

/// Returns the events of the thread tracks, one list for each.
pub(crate) fn thread_events(timeline: &Timeline) -> Vec<Vec<ReadEvent>> {
    let events = read_events(timeline);
    let tracks = timeline.tracks.iter().enumerate();
    tracks
        .filter(|(_, track)| matches!(track.kind, TrackKind::Thread(_)))
        .map(|(place, _)| events.iter().filter(|event| event.track == place).cloned().collect())
        .collect()
}

/// Returns the events of the process track, without those from before the session.
pub(crate) fn process_events(timeline: &Timeline) -> Vec<ReadEvent> {
    let place = timeline.tracks.iter().position(|track| track.kind == TrackKind::Process);
    let events = read_events(timeline).into_iter();
    events.filter(|event| Some(event.track) == place).collect()
}

/// Returns the events of the calling thread.
pub(crate) fn current_thread_events(timeline: &Timeline) -> Vec<ReadEvent> {
    let here = TrackKind::Thread(tid());
    let place = timeline.tracks.iter().position(|track| track.kind == here);
    let events = read_events(timeline).into_iter();
    events.filter(|event| Some(event.track) == place).collect()
}

/// A poll or a park.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Slice {
    pub(crate) kind: RawKind,
    pub(crate) name: String,
    pub(crate) number: u64,
    pub(crate) start: Moment,
    /// `None` if the slice is in progress.
    pub(crate) end: Option<Moment>,
}

/// Returns the polls and parks of each thread by its ID: ordered by their ends, then those in
/// progress.
pub(crate) fn slices(timeline: &Timeline) -> Vec<(u32, Vec<Slice>)> {
    let activity = &timeline.activity;
    let slice = |kind, task: marple::internals::model::TaskKey, start, end: Option<u64>| Slice {
        kind,
        name: match kind {
            RawKind::Park => "parked".to_owned(),
            _ => timeline.strings.get(activity.sites[usize::from(task.site)]).to_owned(),
        },
        number: task.number,
        start: activity.calibration.moment(start),
        end: end.map(|end| activity.calibration.moment(end)),
    };
    let threads = activity.threads.iter().map(|thread| {
        let ended = thread.slices.iter().map(|raw| {
            slice(raw.kind().expect("a slice"), raw.task(), raw.start(), Some(raw.end()))
        });
        let open = thread.open.iter().map(|open| slice(open.kind, open.task, open.start, None));
        (thread.tid, ended.chain(open).collect())
    });
    threads.collect()
}

/// Returns the slices of all threads in one list.
pub(crate) fn all_slices(timeline: &Timeline) -> Vec<Slice> {
    slices(timeline).into_iter().flat_map(|(_, slices)| slices).collect()
}

/// Checks that the slices of each thread are either nested or disjoint.
pub(crate) fn assert_nested(timeline: &Timeline) {
    for (tid, mut slices) in slices(timeline) {
        let end = |slice: &Slice| slice.end.unwrap_or(Moment::from_nanos(u64::MAX));
        slices.sort_by_key(|slice| (slice.start, std::cmp::Reverse(end(slice))));
        let mut around: Vec<Moment> = Vec::new();
        for slice in &slices {
            while around.last().is_some_and(|&outer| outer <= slice.start) {
                around.pop();
            }
            let inside = around.last().is_none_or(|&outer| end(slice) <= outer);
            assert!(inside, "thread {tid}: {slice:?} reaches out of the one around it");
            around.push(end(slice));
        }
    }
}

/// Returns the slices and instants of one thread as an outline: `a(b()!event)`, open ones without
/// `)`.
pub(crate) fn outline(events: &[ReadEvent]) -> String {
    let parts = events.iter().map(|event| match event.kind {
        Kind::Begin => format!("{}(", event.name),
        Kind::End => ")".to_owned(),
        Kind::Instant => format!("!{}", event.name),
        Kind::Counter(_) => "?".to_owned(),
    });
    parts.collect()
}

/// Checks that each track is ordered by time and that no end lacks its begin.
pub(crate) fn assert_well_formed(timeline: &Timeline) {
    let events = read_events(timeline);
    for place in 0..timeline.tracks.len() {
        let mut depth = 0_i64;
        let mut last = Moment::default();
        for event in events.iter().filter(|event| event.track == place) {
            assert!(event.at >= last, "track {place} goes back in time at {event:?}");
            last = event.at;
            depth += match event.kind {
                Kind::Begin => 1,
                Kind::End => -1,
                _ => 0,
            };
            assert!(depth >= 0, "track {place} ends what did not begin: {event:?}");
        }
    }
}

/// Returns once the thread `tid` of this process sleeps in the kernel.
pub(crate) fn wait_until_asleep(tid: u32) {
    let is_asleep = || {
        let stat = std::fs::read_to_string(format!("/proc/self/task/{tid}/stat")).unwrap();
        stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('S'))
    };
    while !is_asleep() {
        std::thread::yield_now();
    }
}

/// Returns the kernel thread ID of the calling thread.
pub(crate) fn tid() -> u32 {
    rustix::thread::gettid().as_raw_nonzero().get() as u32
}

/// Returns the number of losses whose cause starts with `cause`.
pub(crate) fn loss_count(timeline: &Timeline, cause: &str) -> u64 {
    let losses = timeline.losses.iter();
    losses.filter(|loss| loss.cause.starts_with(cause)).map(|loss| loss.count).sum()
}

/// Returns the name of a track.
pub(crate) fn track_name(timeline: &Timeline, track: TrackHandle) -> &str {
    timeline.strings.get(timeline.tracks[track.index()].name)
}
