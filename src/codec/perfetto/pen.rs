//! Packets of polls and parks, put down byte by byte; `slices.rs` says what is in them.

use std::io::{self, Write};

use super::proto::{
    Clock, ClockSnapshot, Interned, InternedData, Trace, TracePacket, TracePacketDefaults,
    TrackEventDefaults,
};
use super::{INCREMENTAL_STATE_CLEARED, MONOTONIC};
use crate::base::MAX_SITES;
use crate::codec::gzip::Parts;
use crate::model::{Activity, RawKind, StringTable, TaskKey};

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

/// The end of a slice that has none.
pub(super) const GOES_ON: u64 = u64::MAX;

/// A slice on its way into the file.
#[derive(Clone, Copy)]
pub(super) struct Slice {
    pub(super) start: u64,
    /// [`GOES_ON`] if it does.
    pub(super) end: u64,
    pub(super) kind: RawKind,
    pub(super) task: TaskKey,
    /// It began so many nanoseconds before the trace does.
    pub(super) earlier: u64,
}

/// Puts packets of one sequence down.
pub(super) struct Pen<'a, W: Write> {
    out: &'a mut Parts<W>,
    sequence: u32,
    /// The time of the last packet.
    last: u64,
    begin_runtime: Opening,
    begin_task: Opening,
    instant_task: Opening,
    end: Opening,
    /// Packets that are not written yet.
    bytes: Bytes,
}

impl<'a, W: Write> Pen<'a, W> {
    pub(super) fn new(out: &'a mut Parts<W>, sequence: u32, first: u64) -> Self {
        let opening = |event| Opening::new(sequence, event);
        Self {
            out,
            sequence,
            last: first,
            begin_runtime: opening(BEGIN_RUNTIME),
            begin_task: opening(BEGIN_TASK),
            instant_task: opening(INSTANT_TASK),
            end: opening(TYPE_END),
            bytes: Bytes::default(),
        }
    }
}

impl<W: Write> Pen<'_, W> {
    /// What holds for the whole sequence.
    pub(super) fn head(
        &mut self,
        activity: &Activity,
        strings: &StringTable,
        track: u64,
        tasks: impl Iterator<Item = TaskKey>,
    ) -> io::Result<()> {
        let mut known = [0_u64; MAX_SITES / 64];
        let mut event_names = vec![interned(PARKED, "parked")];
        for task in tasks {
            let site = usize::from(task.site);
            let bit = 1 << (site % 64);
            if let Some(known) = known.get_mut(site / 64)
                && *known & bit == 0
            {
                *known |= bit;
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
                trusted_packet_sequence_id: self.sequence,
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

    #[inline]
    pub(super) fn begin(&mut self, slice: &Slice) -> io::Result<()> {
        let is_park = slice.kind == RawKind::Park;
        let packet = self.packet(if is_park { self.begin_runtime } else { self.begin_task })?;
        self.bytes.number(NAME, name_of(slice.kind, slice.task));
        if slice.end == GOES_ON {
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

    #[inline]
    pub(super) fn end(&mut self, at: u64) -> io::Result<()> {
        let packet = self.packet(self.end)?;
        self.at(at, packet);
        Ok(())
    }

    #[inline]
    pub(super) fn instant(&mut self, at: u64, task: TaskKey) -> io::Result<()> {
        let packet = self.packet(self.instant_task)?;
        self.bytes.number(NAME, name_of(RawKind::HookedPoll, task));
        self.bytes.argument(TASK_NUMBER, task.number);
        self.at(at, packet);
        Ok(())
    }

    /// Begins a packet with an event in it; where the one and the other begin.
    #[inline]
    fn packet(&mut self, opening: Opening) -> io::Result<(usize, usize)> {
        if self.bytes.len > ROOM - LONGEST {
            self.out.write_bytes(self.bytes.get())?;
            self.bytes.len = 0;
        }
        let packet = self.bytes.len + 2;
        let event = self.bytes.len + opening.event;
        self.bytes.put(opening.piece);
        Ok((packet, event))
    }

    /// Ends the packet and the event in it, with its time. Their lengths are one byte each: both are below
    /// [`LONGEST`].
    #[inline]
    fn at(&mut self, at: u64, (packet, event): (usize, usize)) {
        self.bytes.length(event);
        self.bytes.number(TIME, at.saturating_sub(self.last));
        self.last = self.last.max(at);
        self.bytes.length(packet);
    }

    /// Writes what is left.
    pub(super) fn finish(self) -> io::Result<()> {
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

/// Up to sixteen bytes that go down at once, the first one lowest.
#[derive(Clone, Copy)]
struct Piece {
    bytes: u128,
    len: usize,
}

impl Piece {
    const fn of(bytes: &[u8]) -> Self {
        let (mut word, mut len) = (0, 0);
        while len < bytes.len() {
            word |= (bytes[len] as u128) << (8 * len);
            len += 1;
        }
        Self { bytes: word, len }
    }

    /// And `next` behind it; together they are at most sixteen bytes.
    const fn and(self, next: Self) -> Self {
        Self { bytes: self.bytes | (next.bytes << (8 * self.len)), len: self.len + next.len }
    }

    /// At most ten bytes.
    const fn varint(mut number: u64) -> Self {
        let (mut bytes, mut len) = (0, 0);
        while number >= 0x80 {
            bytes |= ((number as u8 | 0x80) as u128) << (8 * len);
            number >>= 7;
            len += 1;
        }
        Self { bytes: bytes | (number as u128) << (8 * len), len: len + 1 }
    }
}

/// What a packet begins with: its sequence, an event, and the first of what is in that. The lengths of both are
/// to come.
#[derive(Clone, Copy)]
struct Opening {
    piece: Piece,
    /// Where the event begins.
    event: usize,
}

impl Opening {
    const fn new(sequence: u32, event: Piece) -> Self {
        // At most ten bytes, and four for the event.
        let before = Piece::of(&[(1 << 3) | 2, 0, 10 << 3])
            .and(Piece::varint(sequence as u64))
            .and(Piece::of(&[(11 << 3) | 2, 0]));
        Self { piece: before.and(event), event: before.len }
    }
}

/// A category and a type.
const BEGIN_RUNTIME: Piece = Piece::of(&[3 << 3, RUNTIME, 9 << 3, BEGIN]);
const BEGIN_TASK: Piece = Piece::of(&[3 << 3, TASK, 9 << 3, BEGIN]);
const INSTANT_TASK: Piece = Piece::of(&[3 << 3, TASK, 9 << 3, INSTANT]);
const TYPE_END: Piece = Piece::of(&[9 << 3, END]);
/// The name's number and the time.
const NAME: u8 = 10 << 3;
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

    #[inline]
    fn put(&mut self, piece: Piece) {
        if let Some(place) = self.bytes.get_mut(self.len..self.len + 16) {
            place.copy_from_slice(&piece.bytes.to_le_bytes());
            self.len += piece.len;
        }
    }

    /// As [`Self::put`], of eight bytes at most.
    #[inline]
    fn put_word(&mut self, bytes: u64, len: usize) {
        if let Some(place) = self.bytes.get_mut(self.len..self.len + 8) {
            place.copy_from_slice(&bytes.to_le_bytes());
            self.len += len;
        }
    }

    /// A tag of one byte and its number, without a loop over the number's bytes: how many a time takes changes from
    /// packet to packet, and each such change is a branch foretold wrong.
    #[inline]
    fn number(&mut self, tag: u8, number: u64) {
        if number >> 28 != 0 {
            return self.large_number(tag, number);
        }
        let (bytes, len) = varint(number);
        self.put_word(bytes << 8 | u64::from(tag), 1 + len);
    }

    #[cold]
    fn large_number(&mut self, tag: u8, number: u64) {
        self.put(Piece::of(&[tag]).and(Piece::varint(number)));
    }

    /// An argument, by its name.
    #[inline]
    fn argument(&mut self, name: u8, value: u64) {
        let place = self.len + 2;
        self.put_word(u64::from_le_bytes([(4 << 3) | 2, 0, 1 << 3, name, 0, 0, 0, 0]), 4);
        self.number(3 << 3, value);
        self.length(place);
    }

    /// Tells the length of the message that begins at `place`, in the byte before it.
    #[inline]
    fn length(&mut self, place: usize) {
        if let Some(length) = self.bytes.get_mut(place - 1) {
            *length = (self.len - place) as u8;
        }
    }
}

/// The bytes of a number below 2^28, seven bits each, and how many they are.
#[inline]
fn varint(number: u64) -> (u64, usize) {
    let number = number as u32;
    let spread = (number & 0x7f)
        | ((number << 1) & 0x7f00)
        | ((number << 2) & 0x7f_0000)
        | ((number << 3) & 0x7f00_0000);
    // One, and one more for each seven bits after the first.
    let more = (u32::BITS - 1 - (number | 1).leading_zeros()) / 7;
    let go_on = 0x80_8080 & ((1 << (8 * more)) - 1);
    ((spread | go_on).into(), more as usize + 1)
}
