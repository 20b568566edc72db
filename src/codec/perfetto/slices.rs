//! Polls and parks, written byte by byte.
//!
//! There are hundreds of thousands of them and they all have the same few fields, so here the bytes are put
//! down without message structs. Each thread is a sequence of its own, whose first packet says what holds
//! for all of it (the clock, the track) and the names it uses; after it a begin is some 23 bytes and an end
//! some 11. Sequences follow each other in the file and overlap in time; Perfetto sorts.
//!
//! ```text
//! Trace.packet 1 {
//!   trusted_packet_sequence_id 10,
//!   track_event 11 { category_iids 3, type 9, name_iid 10, debug_annotations 4 { name_iid 1, uint_value 3 } },
//!   timestamp 8
//! }
//! ```
//!
//! The fields stand in the order that compresses best: what differs from packet to packet, the task's number and
//! the time, stands together at the end, next to the following packet's length, so that all the rest is one
//! match for the compressor, whose work is most of the cost. No packet says that it needs its sequence's state: all
//! a reader does about that is to drop the packet where the state is missing, and here it stands before it in
//! the same file.
//!
//! A time is the distance to the one before: a clock of the sequence's own, which its first packet ties to
//! `CLOCK_MONOTONIC`. So most take one or two bytes where the time itself takes seven, which is half of what
//! there would be to compress, and a quarter of what is left of it. Packets have to be in the order of time.
//!
//! A ring has slices in the order of their ends. They are put in the order of their begins, and an end is
//! written when the next begin is not inside; so on each track begins and ends alternate as brackets do,
//! whatever the times say.

use std::cmp::Reverse;
use std::io::{self, Write};

use super::proto::{
    Clock, ClockSnapshot, Interned, InternedData, Trace, TracePacket, TracePacketDefaults,
    TrackEventDefaults,
};
use super::{INCREMENTAL_STATE_CLEARED, MONOTONIC, SEQUENCE};
use crate::codec::gzip::Parts;
use crate::model::{Activity, OpenSlice, RawKind, RawSlice, RawTask, StringTable, TaskKey};

/// The clock of a sequence's own; those of 64 to 127 are.
const DELTAS: u32 = 64;

const BEGIN: u8 = 1;
const END: u8 = 2;
const INSTANT: u8 = 3;

/// The categories, by their number on every sequence.
const RUNTIME: u8 = 1;
const TASK: u8 = 2;

/// The arguments, by their number on every sequence.
const TASK_NUMBER: u8 = 1;
const IN_PROGRESS: u8 = 2;
const EARLIER: u8 = 3;

/// The name of a park; a site's is its number and two more.
const PARKED: u64 = 1;

/// A slice on its way into the file.
#[derive(Clone, Copy)]
struct Slice {
    start: u64,
    /// None while it goes on.
    end: Option<u64>,
    kind: RawKind,
    task: TaskKey,
    /// It began so many nanoseconds before the trace does.
    earlier: u64,
}

/// Writes what `thread` did on the track `track`, as the sequence after those of `place` other threads.
pub(super) fn write<W: Write>(
    activity: &Activity,
    strings: &StringTable,
    (place, track): (usize, u64),
    out: &mut Parts<W>,
) -> io::Result<()> {
    let Some(thread) = activity.threads.get(place) else { return Ok(()) };
    let mut slices = thread.slices.clone();
    // Sorted already, but for slices within slices, and for what rounding did to a long one's start.
    slices.sort_by_key(|slice| (slice.start(), Reverse(slice.end())));
    let slices = merged(activity, &slices, &thread.open);
    let first = slices.clone().next().map_or(0, |slice| slice.start);
    let mut pen = Pen::new(out, sequence(place), first);
    let names = thread.slices.iter().map(|slice| (slice.kind(), slice.task()));
    let open = thread.open.iter().map(|open| (Some(open.kind), open.task));
    pen.head(activity, strings, track, &mut names.chain(open))?;

    let mut around: Vec<u64> = Vec::new();
    for slice in slices {
        while let Some(end) = around.pop_if(|end| *end <= slice.start) {
            pen.end(end)?;
        }
        pen.begin(&slice)?;
        let outer = around.last().copied().unwrap_or(u64::MAX);
        around.push(slice.end.unwrap_or(u64::MAX).min(outer));
    }
    while let Some(end) = around.pop() {
        if end != u64::MAX {
            pen.end(end)?;
        }
    }
    pen.finish()
}

/// Writes what became of tasks, as instants on the two tracks `spawned` and `ended`.
pub(super) fn write_tasks<W: Write>(
    activity: &Activity,
    strings: &StringTable,
    [spawned, ended]: [u64; 2],
    out: &mut Parts<W>,
) -> io::Result<()> {
    let kinds = [(RawKind::Spawned, spawned), (RawKind::Ended, ended)];
    for (after, (kind, track)) in kinds.into_iter().enumerate() {
        let of_kind = activity.tasks.iter().filter(|task| task.kind() == Some(kind));
        let mut tasks: Vec<RawTask> = of_kind.copied().collect();
        tasks.sort_by_key(|task| task.at());
        let moment = |at| activity.calibration.moment(at).as_nanos();
        let first = tasks.first().map_or(0, |task| moment(task.at()));
        let sequence = sequence(activity.threads.len() + after);
        let mut pen = Pen::new(out, sequence, first);
        let mut names = tasks.iter().map(|task| (Some(kind), task.task()));
        pen.head(activity, strings, track, &mut names)?;
        for task in tasks {
            pen.instant(moment(task.at()), task.task())?;
        }
        pen.finish()?;
    }
    Ok(())
}

/// The sequence of a thread, after that of the timeline's events.
fn sequence(place: usize) -> u64 {
    u64::from(SEQUENCE) + 1 + place as u64
}

/// The slices of a thread that reach into the trace, in the order of their begins, with their moments.
fn merged<'a>(
    activity: &'a Activity,
    ended: &'a [RawSlice],
    open: &'a [OpenSlice],
) -> impl Iterator<Item = Slice> + Clone + 'a {
    let Activity { calibration, from, .. } = activity;
    let from = from.as_nanos();
    let slice = move |kind, start: u64, end, task| {
        let start = calibration.moment(start).as_nanos();
        Slice { start: start.max(from), end, kind, task, earlier: from.saturating_sub(start) }
    };
    let (mut ended, mut open) = (ended.iter().peekable(), open.iter().peekable());
    std::iter::from_fn(move || {
        loop {
            // What goes on is around what has ended and began with it.
            let next = ended.peek().map_or(u64::MAX, |raw| raw.start());
            if let Some(open) = open.next_if(|open| open.start <= next) {
                return Some(slice(open.kind, open.start, None, open.task.short()));
            }
            let raw = ended.next()?;
            let end = calibration.moment(raw.end()).as_nanos();
            if let (Some(kind), true) = (raw.kind(), end >= from) {
                return Some(slice(kind, raw.start(), Some(end), raw.task()));
            }
        }
    })
}

/// Puts packets of one sequence down.
struct Pen<'a, W: Write> {
    out: &'a mut Parts<W>,
    sequence: u64,
    /// The time of the last packet.
    last: u64,
    /// What every packet has before what is in its event.
    opening: Piece,
    /// Packets that are not written yet.
    bytes: Bytes,
}

impl<'a, W: Write> Pen<'a, W> {
    fn new(out: &'a mut Parts<W>, sequence: u64, first: u64) -> Self {
        let mut opening = Bytes::default();
        opening.put(PACKET);
        opening.number(10, sequence);
        opening.put(EVENT);
        Self { out, sequence, last: first, opening: opening.piece(), bytes: Bytes::default() }
    }
}

impl<W: Write> Pen<'_, W> {
    /// What holds for the whole sequence.
    fn head(
        &mut self,
        activity: &Activity,
        strings: &StringTable,
        track: u64,
        used: &mut dyn Iterator<Item = (Option<RawKind>, TaskKey)>,
    ) -> io::Result<()> {
        let mut known = vec![false; activity.sites.len().max(1)];
        let mut event_names = vec![interned(PARKED, "parked")];
        for (kind, task) in used {
            let site = usize::from(task.site);
            if let Some(known) = known.get_mut(site)
                && kind != Some(RawKind::Park)
                && !std::mem::replace(known, true)
            {
                let name = activity.sites.get(site).map_or("task", |&name| strings.get(name));
                event_names.push(interned(name_of(RawKind::HookedPoll, task), name));
            }
        }
        let interned_data = InternedData {
            event_categories: vec![
                interned(RUNTIME.into(), "runtime"),
                interned(TASK.into(), "task"),
            ],
            event_names,
            debug_annotation_names: vec![
                interned(TASK_NUMBER.into(), "task"),
                interned(IN_PROGRESS.into(), "in progress at the end of the trace"),
                interned(EARLIER.into(), "ns before the trace"),
            ],
        };
        let clock = |clock_id, is_incremental| Clock {
            clock_id,
            timestamp: Some(self.last),
            is_incremental,
        };
        self.out.write(&Trace {
            packet: TracePacket {
                clock_snapshot: Some(ClockSnapshot {
                    clocks: vec![clock(MONOTONIC, None), clock(DELTAS, Some(true))],
                    primary_trace_clock: None,
                }),
                trusted_packet_sequence_id: self.sequence as u32,
                interned_data: Some(interned_data),
                trace_packet_defaults: Some(TracePacketDefaults {
                    timestamp_clock_id: DELTAS,
                    track_event_defaults: Some(TrackEventDefaults { track_uuid: track }),
                }),
                sequence_flags: INCREMENTAL_STATE_CLEARED,
                first_packet_on_sequence: true,
                ..TracePacket::default()
            },
        })
    }

    fn begin(&mut self, slice: &Slice) -> io::Result<()> {
        let is_park = slice.kind == RawKind::Park;
        let packet = self.packet()?;
        self.bytes.put(if is_park { BEGIN_RUNTIME } else { BEGIN_TASK });
        self.bytes.varint(name_of(slice.kind, slice.task));
        if slice.end.is_none() {
            self.bytes.argument(IN_PROGRESS, 1);
        }
        if slice.earlier > 0 {
            self.bytes.argument(EARLIER, slice.earlier);
        }
        if !is_park {
            self.bytes.argument(TASK_NUMBER, slice.task.number);
        }
        self.at(slice.start, packet);
        Ok(())
    }

    fn end(&mut self, at: u64) -> io::Result<()> {
        let packet = self.packet()?;
        self.bytes.put(TYPE_END);
        self.at(at, packet);
        Ok(())
    }

    fn instant(&mut self, at: u64, task: TaskKey) -> io::Result<()> {
        let packet = self.packet()?;
        self.bytes.put(INSTANT_TASK);
        self.bytes.varint(name_of(RawKind::HookedPoll, task));
        self.bytes.argument(TASK_NUMBER, task.number);
        self.at(at, packet);
        Ok(())
    }

    /// Begins a packet with an event in it; where it begins.
    #[inline]
    fn packet(&mut self) -> io::Result<usize> {
        if self.bytes.len > ROOM - LONGEST {
            self.out.write_bytes(self.bytes.get())?;
            self.bytes.len = 0;
        }
        let packet = self.bytes.len;
        self.bytes.put(self.opening);
        Ok(packet)
    }

    /// Ends the packet that began at `packet`, and the event in it, with its time. Their lengths are one byte
    /// each: both are below [`LONGEST`].
    #[inline]
    fn at(&mut self, at: u64, packet: usize) {
        self.bytes.length(packet + self.opening.len - 1);
        self.bytes.byte(TIME);
        self.bytes.varint(at.saturating_sub(self.last));
        self.last = self.last.max(at);
        self.bytes.length(packet + 1);
    }

    /// Writes what is left.
    fn finish(self) -> io::Result<()> {
        self.out.write_bytes(self.bytes.get())
    }
}

fn interned(iid: u64, name: &str) -> Interned {
    Interned { iid, name: name.to_owned() }
}

const fn name_of(kind: RawKind, task: TaskKey) -> u64 {
    match kind {
        RawKind::Park => PARKED,
        _ => PARKED + 1 + task.site as u64,
    }
}

/// Up to eight bytes that go down at once, the first one lowest.
#[derive(Clone, Copy)]
struct Piece {
    bytes: u64,
    len: usize,
}

impl Piece {
    const fn of(bytes: &[u8]) -> Self {
        let (mut word, mut len) = (0, 0);
        while len < bytes.len() {
            word |= (bytes[len] as u64) << (8 * len);
            len += 1;
        }
        Self { bytes: word, len }
    }
}

/// A packet, whose length is to come.
const PACKET: Piece = Piece::of(&[(1 << 3) | 2, 0]);
/// An event, whose length is to come.
const EVENT: Piece = Piece::of(&[(11 << 3) | 2, 0]);
/// A category, a type, and a name, whose number is to come.
const BEGIN_RUNTIME: Piece = Piece::of(&[3 << 3, RUNTIME, 9 << 3, BEGIN, 10 << 3]);
const BEGIN_TASK: Piece = Piece::of(&[3 << 3, TASK, 9 << 3, BEGIN, 10 << 3]);
const INSTANT_TASK: Piece = Piece::of(&[3 << 3, TASK, 9 << 3, INSTANT, 10 << 3]);
const TYPE_END: Piece = Piece::of(&[9 << 3, END]);
/// The time, which is to come.
const TIME: u8 = 8 << 3;

/// How much is gathered before it is handed on.
const ROOM: usize = 4096;

/// The longest packet, a begin with three arguments, and what [`Bytes::put`] writes beyond it.
const LONGEST: usize = 128;

/// Packets of the few fields above.
struct Bytes {
    bytes: [u8; ROOM],
    len: usize,
}

impl Default for Bytes {
    fn default() -> Self {
        Self { bytes: [0; ROOM], len: 0 }
    }
}

impl Bytes {
    fn get(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }

    fn piece(&self) -> Piece {
        Piece::of(self.get())
    }

    #[inline]
    fn put(&mut self, piece: Piece) {
        if let Some(place) = self.bytes.get_mut(self.len..self.len + 8) {
            place.copy_from_slice(&piece.bytes.to_le_bytes());
            self.len += piece.len;
        }
    }

    #[inline]
    fn byte(&mut self, byte: u8) {
        if let Some(place) = self.bytes.get_mut(self.len) {
            *place = byte;
            self.len += 1;
        }
    }

    #[inline]
    fn varint(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.byte(number as u8 | 0x80);
            number >>= 7;
        }
        self.byte(number as u8);
    }

    /// A field whose number is below 16.
    #[inline]
    fn number(&mut self, field: u8, number: u64) {
        self.byte(field << 3);
        self.varint(number);
    }

    /// Tells the length of the message that begins behind `place`.
    #[inline]
    fn length(&mut self, place: usize) {
        if let Some(length) = self.bytes.get_mut(place) {
            *length = (self.len - place - 1) as u8;
        }
    }

    /// An argument, by its name.
    #[inline]
    fn argument(&mut self, name: u8, value: u64) {
        self.put(Piece::of(&[(4 << 3) | 2, 0, 1 << 3, name, 3 << 3]));
        let place = self.len - 4;
        self.varint(value);
        self.length(place);
    }
}
