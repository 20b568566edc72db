//! Encoder for packets of polls and parks, byte by byte; `slices.rs` describes their content.

use std::io::{self, Write};

use super::proto::{
    Clock, ClockSnapshot, Interned, InternedData, Trace, TracePacket, TracePacketDefaults,
    TrackEventDefaults,
};
use super::{INCREMENTAL_STATE_CLEARED, MONOTONIC};
use crate::base::MAX_SITES;
use crate::codec::gzip::GzipMessageWriter;
use crate::model::{Activity, RawKind, StringTable, TaskKey};

/// Id of the sequence-scoped clock; ids 64 to 127 are reserved for such clocks.
const DELTAS: u32 = 64;

const BEGIN: u8 = 1;
const END: u8 = 2;
const INSTANT: u8 = 3;

/// Interned ids of the categories, the same on every sequence.
const RUNTIME: u8 = 1;
const TASK: u8 = 2;

/// Interned ids of the arguments, the same on every sequence.
const TASK_NUMBER: u8 = 1;
const IN_PROGRESS: u8 = 2;
const EARLIER: u8 = 3;

/// Interned id of the name of a park. The id of a spawn site's name is its index plus two.
const PARKED: u64 = 1;

/// End of a slice that is still open.
pub(super) const GOES_ON: u64 = u64::MAX;

/// A slice to write.
#[derive(Clone, Copy)]
pub(super) struct Slice {
    pub(super) start: u64,
    /// [`GOES_ON`] if the slice is still open.
    pub(super) end: u64,
    pub(super) kind: RawKind,
    pub(super) task: TaskKey,
    /// Nanoseconds from the start of the slice to the start of the trace; 0 if it started later.
    pub(super) earlier: u64,
}

/// Writer of the packets of one sequence.
pub(super) struct PollPacketWriter<'a, W: Write> {
    out: &'a mut GzipMessageWriter<W>,
    sequence: u32,
    /// Time of the last packet.
    last: u64,
    begin_runtime: PacketPrefix,
    begin_task: PacketPrefix,
    instant_task: PacketPrefix,
    end: PacketPrefix,
    /// Packets not written yet.
    bytes: PacketBytes,
}

impl<'a, W: Write> PollPacketWriter<'a, W> {
    pub(super) fn new(out: &'a mut GzipMessageWriter<W>, sequence: u32, first: u64) -> Self {
        let opening = |event| PacketPrefix::new(sequence, event);
        Self {
            out,
            sequence,
            last: first,
            begin_runtime: opening(BEGIN_RUNTIME),
            begin_task: opening(BEGIN_TASK),
            instant_task: opening(INSTANT_TASK),
            end: opening(TYPE_END),
            bytes: PacketBytes::default(),
        }
    }
}

impl<W: Write> PollPacketWriter<'_, W> {
    /// Writes the defaults of the sequence.
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

    /// Starts a packet and its track event. Returns both start offsets.
    #[inline]
    fn packet(&mut self, opening: PacketPrefix) -> io::Result<(usize, usize)> {
        if self.bytes.len > ROOM - LONGEST {
            self.out.write_bytes(self.bytes.get())?;
            self.bytes.len = 0;
        }
        let packet = self.bytes.len + 2;
        let event = self.bytes.len + opening.event;
        self.bytes.put(opening.piece);
        Ok((packet, event))
    }

    /// Completes the packet and its event, with the time. Both lengths are one byte, because they
    /// are below [`LONGEST`].
    #[inline]
    fn at(&mut self, at: u64, (packet, event): (usize, usize)) {
        self.bytes.length(event);
        self.bytes.number(TIME, at.saturating_sub(self.last));
        self.last = self.last.max(at);
        self.bytes.length(packet);
    }

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

/// Up to sixteen bytes written at once, the first one lowest.
#[derive(Clone, Copy)]
struct InlineBytes {
    bytes: u128,
    len: usize,
}

impl InlineBytes {
    const fn of(bytes: &[u8]) -> Self {
        let (mut word, mut len) = (0, 0);
        while len < bytes.len() {
            word |= (bytes[len] as u128) << (8 * len);
            len += 1;
        }
        Self { bytes: word, len }
    }

    /// Appends `next`; together they are at most sixteen bytes.
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

/// Start of a packet: sequence id, event header and the first fields of the event. Both lengths are
/// filled in later.
#[derive(Clone, Copy)]
struct PacketPrefix {
    piece: InlineBytes,
    /// Offset of the event.
    event: usize,
}

impl PacketPrefix {
    const fn new(sequence: u32, event: InlineBytes) -> Self {
        // At most ten bytes, and four for the event.
        let before = InlineBytes::of(&[(1 << 3) | 2, 0, 10 << 3])
            .and(InlineBytes::varint(sequence as u64))
            .and(InlineBytes::of(&[(11 << 3) | 2, 0]));
        Self { piece: before.and(event), event: before.len }
    }
}

/// Category and type.
const BEGIN_RUNTIME: InlineBytes = InlineBytes::of(&[3 << 3, RUNTIME, 9 << 3, BEGIN]);
const BEGIN_TASK: InlineBytes = InlineBytes::of(&[3 << 3, TASK, 9 << 3, BEGIN]);
const INSTANT_TASK: InlineBytes = InlineBytes::of(&[3 << 3, TASK, 9 << 3, INSTANT]);
const TYPE_END: InlineBytes = InlineBytes::of(&[9 << 3, END]);
/// Field keys of the name id and the time.
const NAME: u8 = 10 << 3;
const TIME: u8 = 8 << 3;

/// Size of the buffer.
const ROOM: usize = 4096;

/// Upper bound of a packet: a start with three arguments, and the padding that [`PacketBytes::put`]
/// writes.
const LONGEST: usize = 128;

/// A buffer for packets of the fields above.
struct PacketBytes {
    bytes: [u8; ROOM],
    len: usize,
}

impl Default for PacketBytes {
    fn default() -> Self {
        Self { bytes: [0; ROOM], len: 0 }
    }
}

impl PacketBytes {
    fn get(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }

    #[inline]
    fn put(&mut self, piece: InlineBytes) {
        if let Some(place) = self.bytes.get_mut(self.len..self.len + 16) {
            place.copy_from_slice(&piece.bytes.to_le_bytes());
            self.len += piece.len;
        }
    }

    /// Writes like [`Self::put`], at most eight bytes.
    #[inline]
    fn put_word(&mut self, bytes: u64, len: usize) {
        if let Some(place) = self.bytes.get_mut(self.len..self.len + 8) {
            place.copy_from_slice(&bytes.to_le_bytes());
            self.len += len;
        }
    }

    /// Writes a one-byte key and its number, without a loop over the bytes. The length of a time
    /// varies between packets, and each change would be a branch misprediction.
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
        self.put(InlineBytes::of(&[tag]).and(InlineBytes::varint(number)));
    }

    /// Writes an argument by the id of its name.
    #[inline]
    fn argument(&mut self, name: u8, value: u64) {
        let place = self.len + 2;
        self.put_word(u64::from_le_bytes([(4 << 3) | 2, 0, 1 << 3, name, 0, 0, 0, 0]), 4);
        self.number(3 << 3, value);
        self.length(place);
    }

    /// Writes the length of the message that starts at `place` into the byte before it.
    #[inline]
    fn length(&mut self, place: usize) {
        if let Some(length) = self.bytes.get_mut(place - 1) {
            *length = (self.len - place) as u8;
        }
    }
}

/// Returns the varint of a number below 2^28, with seven bits per byte, and its length.
#[inline]
fn varint(number: u64) -> (u64, usize) {
    let number = number as u32;
    let spread = (number & 0x7f)
        | ((number << 1) & 0x7f00)
        | ((number << 2) & 0x7f_0000)
        | ((number << 3) & 0x7f00_0000);
    // One byte, and one more for each seven bits after the first.
    let more = (u32::BITS - 1 - (number | 1).leading_zeros()) / 7;
    let go_on = 0x80_8080 & ((1 << (8 * more)) - 1);
    ((spread | go_on).into(), more as usize + 1)
}
