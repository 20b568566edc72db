//! Reading a timeline as a person would: texts instead of handles, tracks by name.
#![allow(dead_code, unreachable_pub, reason = "every test binary uses its own part of it")]

use std::sync::{Mutex, MutexGuard, PoisonError};

use marple::base::{Anchor, Bytes, Clock, Moment, SystemClock};
use marple::model::{ArgValue, EventKind, RawKind, Timeline, TrackHandle, TrackKind};
use marple::trace::Session;

/// The tests of one binary take turns: there is one recorder.
pub fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

pub fn start() -> Session {
    Session::start(Bytes::mib(16), anchor()).unwrap()
}

pub fn stop(session: Session) -> Timeline {
    session.stop(SystemClock.now())
}

pub fn anchor() -> Anchor {
    SystemClock.anchor()
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    Begin,
    End,
    Instant,
    Counter(f64),
}

#[derive(Clone, Debug)]
pub struct Seen {
    pub track: usize,
    pub at: Moment,
    pub kind: Kind,
    pub name: String,
    pub category: String,
    pub args: Vec<(String, String)>,
}

impl Seen {
    pub fn arg(&self, name: &str) -> Option<&str> {
        self.args.iter().find(|(known, _)| known == name).map(|(_, value)| &**value)
    }
}

/// All events, in the order they stand in.
pub fn seen(timeline: &Timeline) -> Vec<Seen> {
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
            Seen {
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

/// The events of the thread tracks, one list for each.
pub fn threads(timeline: &Timeline) -> Vec<Vec<Seen>> {
    let events = seen(timeline);
    let tracks = timeline.tracks.iter().enumerate();
    tracks
        .filter(|(_, track)| matches!(track.kind, TrackKind::Thread(_)))
        .map(|(place, _)| events.iter().filter(|event| event.track == place).cloned().collect())
        .collect()
}

/// The events of the process as a whole, but for what is from before the session.
pub fn process(timeline: &Timeline) -> Vec<Seen> {
    let place = timeline.tracks.iter().position(|track| track.kind == TrackKind::Process);
    let events = seen(timeline).into_iter();
    events.filter(|event| Some(event.track) == place).collect()
}

/// The events of the calling thread.
pub fn here(timeline: &Timeline) -> Vec<Seen> {
    let here = TrackKind::Thread(tid());
    let place = timeline.tracks.iter().position(|track| track.kind == here);
    let events = seen(timeline).into_iter();
    events.filter(|event| Some(event.track) == place).collect()
}

/// A poll or a park.
#[derive(Clone, Debug, PartialEq)]
pub struct Slice {
    pub kind: RawKind,
    pub name: String,
    pub number: u64,
    pub start: Moment,
    /// None while it goes on.
    pub end: Option<Moment>,
}

/// The polls and parks of each thread, by its id: in the order of their ends, then those in
/// progress.
pub fn slices(timeline: &Timeline) -> Vec<(u32, Vec<Slice>)> {
    let activity = &timeline.activity;
    let slice = |kind, task: marple::model::TaskKey, start, end: Option<u64>| Slice {
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

/// All of them in one list.
pub fn all_slices(timeline: &Timeline) -> Vec<Slice> {
    slices(timeline).into_iter().flat_map(|(_, slices)| slices).collect()
}

/// Fails unless the slices of each thread lie beside or inside each other.
pub fn assert_nested(timeline: &Timeline) {
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

/// The slices and instants of one thread as an outline: `a(b()!event)`, open ones without `)`.
pub fn outline(events: &[Seen]) -> String {
    let parts = events.iter().map(|event| match event.kind {
        Kind::Begin => format!("{}(", event.name),
        Kind::End => ")".to_owned(),
        Kind::Instant => format!("!{}", event.name),
        Kind::Counter(_) => "?".to_owned(),
    });
    parts.collect()
}

/// Fails unless each track is in the order of time and ends no slice that did not begin.
pub fn assert_well_formed(timeline: &Timeline) {
    let events = seen(timeline);
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
pub fn wait_until_asleep(tid: u32) {
    let asleep = || {
        let stat = std::fs::read_to_string(format!("/proc/self/task/{tid}/stat")).unwrap();
        stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('S'))
    };
    while !asleep() {
        std::thread::yield_now();
    }
}

/// The calling thread's id in the kernel.
pub fn tid() -> u32 {
    rustix::thread::gettid().as_raw_nonzero().get() as u32
}

/// How many were lost for causes that begin with `cause`.
pub fn lost(timeline: &Timeline, cause: &str) -> u64 {
    let losses = timeline.losses.iter();
    losses.filter(|loss| loss.cause.starts_with(cause)).map(|loss| loss.count).sum()
}

/// The name of a track.
pub fn track_name(timeline: &Timeline, track: TrackHandle) -> &str {
    timeline.strings.get(timeline.tracks[track.index()].name)
}
