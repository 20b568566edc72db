//! Polls and parks, written byte by byte.
//!
//! There are hundreds of thousands of them and they all have the same few fields, so here the bytes are put
//! down without message structs. Each thread is a sequence of its own, whose first packet says what holds
//! for all of it (the clock, the track) and the names it uses; after it a begin is some 25 bytes and an end
//! some 12. Sequences follow each other in the file and overlap in time; Perfetto sorts.
//!
//! ```text
//! Trace.packet 1 {
//!   timestamp 8, trusted_packet_sequence_id 10, sequence_flags 13,
//!   track_event 11 { category_iids 3, debug_annotations 4 { name_iid 1, uint_value 3 }, type 9, name_iid 10 }
//! }
//! ```
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
use super::{INCREMENTAL_STATE_CLEARED, MONOTONIC, NEEDS_INCREMENTAL_STATE, SEQUENCE};
use crate::base::Moment;
use crate::codec::gzip::Parts;
use crate::model::{Activity, RawKind, StringTable, TaskKey, ThreadSlices};

/// The clock of a sequence's own; those of 64 to 127 are.
const DELTAS: u32 = 64;

const BEGIN: u64 = 1;
const END: u64 = 2;
const INSTANT: u64 = 3;

/// The categories, by their number on every sequence.
const RUNTIME: u64 = 1;
const TASK: u64 = 2;

/// The arguments, by their number on every sequence.
const TASK_NUMBER: u64 = 1;
const IN_PROGRESS: u64 = 2;
const EARLIER: u64 = 3;

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
    let mut slices = slices(activity, thread);
    // Sorted already, but for slices within slices.
    slices.sort_by_key(|slice| (slice.start, Reverse(slice.end.unwrap_or(u64::MAX))));
    let first = slices.first().map_or(0, |slice| slice.start);
    let mut pen = Pen { out, sequence: sequence(place), last: first, bytes: Bytes::default() };
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
    Ok(())
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
        let mut tasks: Vec<_> = of_kind.collect();
        tasks.sort_by_key(|task| task.at());
        let moment = |at| activity.calibration.moment(at).as_nanos();
        let first = tasks.first().map_or(0, |task| moment(task.at()));
        let sequence = sequence(activity.threads.len() + after);
        let mut pen = Pen { out: &mut *out, sequence, last: first, bytes: Bytes::default() };
        let mut names = tasks.iter().map(|task| (Some(kind), task.task()));
        pen.head(activity, strings, track, &mut names)?;
        for task in tasks {
            pen.instant(moment(task.at()), task.task())?;
        }
    }
    Ok(())
}

/// The sequence of a thread, after that of the timeline's events.
fn sequence(place: usize) -> u64 {
    u64::from(SEQUENCE) + 1 + place as u64
}

/// The slices of a thread that reach into the trace, with their moments.
fn slices(activity: &Activity, thread: &ThreadSlices) -> Vec<Slice> {
    let Activity { calibration, from, .. } = activity;
    let from = from.as_nanos();
    let slice = |kind, start: Moment, end: Option<Moment>, task| {
        let (start, end) = (start.as_nanos(), end.map(Moment::as_nanos));
        Slice { start: start.max(from), end, kind, task, earlier: from.saturating_sub(start) }
    };
    let ended = thread.slices.iter().filter_map(|raw| {
        let (start, end) = (calibration.moment(raw.start()), calibration.moment(raw.end()));
        (end.as_nanos() >= from).then_some(())?;
        Some(slice(raw.kind()?, start, Some(end), raw.task()))
    });
    let open = thread
        .open
        .iter()
        .map(|open| slice(open.kind, calibration.moment(open.start), None, open.task.short()));
    ended.chain(open).collect()
}

/// Puts packets of one sequence down.
struct Pen<'a, W: Write> {
    out: &'a mut Parts<W>,
    sequence: u64,
    /// The time of the last packet.
    last: u64,
    /// The packet at hand.
    bytes: Bytes,
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
            event_categories: vec![interned(RUNTIME, "runtime"), interned(TASK, "task")],
            event_names,
            debug_annotation_names: vec![
                interned(TASK_NUMBER, "task"),
                interned(IN_PROGRESS, "in progress at the end of the trace"),
                interned(EARLIER, "ns before the trace"),
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
        let event = self.packet(slice.start);
        self.bytes.number(3, if is_park { RUNTIME } else { TASK });
        if !is_park {
            self.bytes.argument(TASK_NUMBER, slice.task.number);
        }
        if slice.end.is_none() {
            self.bytes.argument(IN_PROGRESS, 1);
        }
        if slice.earlier > 0 {
            self.bytes.argument(EARLIER, slice.earlier);
        }
        self.bytes.number(9, BEGIN);
        self.bytes.number(10, name_of(slice.kind, slice.task));
        self.write(event)
    }

    fn end(&mut self, at: u64) -> io::Result<()> {
        let event = self.packet(at);
        self.bytes.number(9, END);
        self.write(event)
    }

    fn instant(&mut self, at: u64, task: TaskKey) -> io::Result<()> {
        let event = self.packet(at);
        self.bytes.number(3, TASK);
        self.bytes.argument(TASK_NUMBER, task.number);
        self.bytes.number(9, INSTANT);
        self.bytes.number(10, name_of(RawKind::HookedPoll, task));
        self.write(event)
    }

    /// Begins a packet with an event in it.
    #[inline]
    fn packet(&mut self, at: u64) -> [usize; 2] {
        self.bytes.len = 0;
        let packet = self.bytes.open(1);
        self.bytes.number(8, at.saturating_sub(self.last));
        self.last = self.last.max(at);
        self.bytes.number(10, self.sequence);
        self.bytes.number(13, u64::from(NEEDS_INCREMENTAL_STATE));
        [packet, self.bytes.open(11)]
    }

    /// Ends the event and its packet, and writes it.
    #[inline]
    fn write(&mut self, [packet, event]: [usize; 2]) -> io::Result<()> {
        self.bytes.close(event);
        self.bytes.close(packet);
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

/// The longest packet: a begin with three arguments.
const ROOM: usize = 128;

/// A packet of the few fields above.
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

    /// Begins a message, whose length is told by [`Self::close`].
    #[inline]
    fn open(&mut self, field: u8) -> usize {
        self.byte((field << 3) | 2);
        self.byte(0);
        self.len
    }

    /// Ends the message that began at `from`. Its length is one byte: it is below 128, as [`ROOM`] is.
    #[inline]
    fn close(&mut self, from: usize) {
        if let Some(length) = self.bytes.get_mut(from - 1) {
            *length = (self.len - from) as u8;
        }
    }

    #[inline]
    fn argument(&mut self, name: u64, value: u64) {
        let annotation = self.open(4);
        self.number(1, name);
        self.number(3, value);
        self.close(annotation);
    }
}
