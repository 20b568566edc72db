//! Encoder for packets of polls and parks, byte by byte; `slices.rs` describes their content.

use std::io::{self, Write};

use super::proto::{
    Clock, ClockSnapshot, InternedData, InternedString, Trace, TracePacket, TracePacketDefaults,
    TrackEventDefaults,
};
use super::{BUILTIN_CLOCK_MONOTONIC, INCREMENTAL_STATE_CLEARED};
use crate::base::MAX_SITES;
use crate::codec::gzip::GzipMessageWriter;
use crate::model::{Activity, RawKind, StringTable, TaskKey};

/// Id of the sequence-scoped clock; ids 64 to 127 are reserved for such clocks.
const DELTA_CLOCK_ID: u32 = 64;

const TYPE_SLICE_BEGIN: u8 = 1;
const TYPE_SLICE_END: u8 = 2;
const TYPE_INSTANT: u8 = 3;

/// Interned ids of the categories, the same on every sequence.
const RUNTIME_CATEGORY_IID: u8 = 1;
const TASK_CATEGORY_IID: u8 = 2;

/// Interned ids of the arguments, the same on every sequence.
const TASK_NUMBER_IID: u8 = 1;
const IN_PROGRESS_IID: u8 = 2;
const STARTED_EARLIER_IID: u8 = 3;

/// Interned id of the name of a park. The id of a spawn site's name is its index plus two.
const PARKED_NAME_IID: u64 = 1;

/// End of a slice that is still open.
pub(super) const STILL_OPEN: u64 = u64::MAX;

/// A slice to write.
#[derive(Clone, Copy)]
pub(super) struct Slice {
    pub(super) start: u64,
    /// [`STILL_OPEN`] if the slice is still open.
    pub(super) end: u64,
    pub(super) kind: RawKind,
    pub(super) task: TaskKey,
    /// Nanoseconds from the start of the slice to the start of the trace; 0 if it started later.
    pub(super) nanos_before_trace: u64,
}

/// Writer of the packets of one sequence.
pub(super) struct PollPacketWriter<'a, W: Write> {
    out: &'a mut GzipMessageWriter<W>,
    sequence: u32,
    /// Time of the last packet.
    last_time: u64,
    begin_runtime: PacketPrefix,
    begin_task: PacketPrefix,
    instant_task: PacketPrefix,
    end: PacketPrefix,
    /// Packets not written yet.
    bytes: PacketBytes,
}

impl<'a, W: Write> PollPacketWriter<'a, W> {
    pub(super) fn new(out: &'a mut GzipMessageWriter<W>, sequence: u32, first: u64) -> Self {
        let prefix = |event| PacketPrefix::new(sequence, event);
        Self {
            out,
            sequence,
            last_time: first,
            begin_runtime: prefix(BEGIN_RUNTIME),
            begin_task: prefix(BEGIN_TASK),
            instant_task: prefix(INSTANT_TASK),
            end: prefix(END_SLICE),
            bytes: PacketBytes::default(),
        }
    }
}

impl<W: Write> PollPacketWriter<'_, W> {
    /// Writes the defaults of the sequence.
    pub(super) fn write_head(
        &mut self,
        activity: &Activity,
        strings: &StringTable,
        track: u64,
        tasks: impl Iterator<Item = TaskKey>,
    ) -> io::Result<()> {
        let mut sent_sites = [0_u64; MAX_SITES / 64];
        let mut event_names = vec![interned(PARKED_NAME_IID, "parked")];
        for task in tasks {
            let site = usize::from(task.site);
            let bit = 1 << (site % 64);
            if let Some(word) = sent_sites.get_mut(site / 64)
                && *word & bit == 0
            {
                *word |= bit;
                let name = activity.sites.get(site).map_or("task", |&name| strings.get(name));
                event_names.push(interned(name_iid(RawKind::HookedPoll, task), name));
            }
        }
        let interned_data = InternedData {
            event_categories: vec![
                interned(RUNTIME_CATEGORY_IID.into(), "runtime"),
                interned(TASK_CATEGORY_IID.into(), "task"),
            ],
            event_names,
            debug_annotation_names: vec![
                interned(TASK_NUMBER_IID.into(), "task"),
                interned(IN_PROGRESS_IID.into(), "in progress at the end of the trace"),
                interned(STARTED_EARLIER_IID.into(), "ns before the trace"),
            ],
        };
        let clock = |clock_id, is_incremental| Clock {
            clock_id,
            timestamp: Some(self.last_time),
            is_incremental,
        };
        self.out.write(&Trace {
            packet: TracePacket {
                clock_snapshot: Some(ClockSnapshot {
                    clocks: vec![
                        clock(BUILTIN_CLOCK_MONOTONIC, None),
                        clock(DELTA_CLOCK_ID, Some(true)),
                    ],
                    primary_trace_clock: None,
                }),
                trusted_packet_sequence_id: self.sequence,
                interned_data: Some(interned_data),
                trace_packet_defaults: Some(TracePacketDefaults {
                    timestamp_clock_id: DELTA_CLOCK_ID,
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
        let packet =
            self.start_packet(if is_park { self.begin_runtime } else { self.begin_task })?;
        self.bytes.put_number(NAME_IID_KEY, name_iid(slice.kind, slice.task));
        if slice.end == STILL_OPEN {
            self.bytes.put_argument(IN_PROGRESS_IID, 1);
        }
        if slice.nanos_before_trace > 0 {
            self.bytes.put_argument(STARTED_EARLIER_IID, slice.nanos_before_trace);
        }
        if !is_park {
            self.bytes.put_argument(TASK_NUMBER_IID, slice.task.number);
        }
        self.finish_packet(slice.start, packet);
        Ok(())
    }

    #[inline]
    pub(super) fn end(&mut self, at: u64) -> io::Result<()> {
        let packet = self.start_packet(self.end)?;
        self.finish_packet(at, packet);
        Ok(())
    }

    #[inline]
    pub(super) fn instant(&mut self, at: u64, task: TaskKey) -> io::Result<()> {
        let packet = self.start_packet(self.instant_task)?;
        self.bytes.put_number(NAME_IID_KEY, name_iid(RawKind::HookedPoll, task));
        self.bytes.put_argument(TASK_NUMBER_IID, task.number);
        self.finish_packet(at, packet);
        Ok(())
    }

    /// Starts a packet and its track event.
    #[inline]
    fn start_packet(&mut self, prefix: PacketPrefix) -> io::Result<PacketOffsets> {
        if self.bytes.len > BUFFER_BYTES - MAX_PACKET_BYTES {
            self.out.write_bytes(self.bytes.as_slice())?;
            self.bytes.len = 0;
        }
        let packet = self.bytes.len + 2;
        let event = self.bytes.len + prefix.event_offset;
        self.bytes.put(prefix.bytes);
        Ok(PacketOffsets { packet, event })
    }

    /// Completes the packet and its event, with the time. Both lengths are one byte, because they
    /// are below [`MAX_PACKET_BYTES`].
    #[inline]
    fn finish_packet(&mut self, at: u64, offsets: PacketOffsets) {
        self.bytes.set_length(offsets.event);
        self.bytes.put_number(TIMESTAMP_KEY, at.saturating_sub(self.last_time));
        self.last_time = self.last_time.max(at);
        self.bytes.set_length(offsets.packet);
    }

    pub(super) fn finish(self) -> io::Result<()> {
        self.out.write_bytes(self.bytes.as_slice())
    }
}

fn interned(iid: u64, name: &str) -> InternedString {
    InternedString { iid, name: name.to_owned() }
}

const fn name_iid(kind: RawKind, task: TaskKey) -> u64 {
    match kind {
        RawKind::Park => PARKED_NAME_IID,
        _ => PARKED_NAME_IID + 1 + task.site as u64,
    }
}

/// Up to sixteen bytes written at once, the first one lowest.
#[derive(Clone, Copy)]
struct InlineBytes {
    bytes: u128,
    len: usize,
}

impl InlineBytes {
    const fn new(bytes: &[u8]) -> Self {
        let mut word = 0;
        let mut len = 0;
        while len < bytes.len() {
            word |= (bytes[len] as u128) << (8 * len);
            len += 1;
        }
        Self { bytes: word, len }
    }

    /// Appends `next`; together they are at most sixteen bytes.
    const fn concat(self, next: Self) -> Self {
        Self { bytes: self.bytes | (next.bytes << (8 * self.len)), len: self.len + next.len }
    }

    /// At most ten bytes.
    const fn varint(mut number: u64) -> Self {
        let mut bytes = 0;
        let mut len = 0;
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
    bytes: InlineBytes,
    /// Offset of the event.
    event_offset: usize,
}

impl PacketPrefix {
    const fn new(sequence: u32, event: InlineBytes) -> Self {
        // At most ten bytes, and four for the event.
        let header = InlineBytes::new(&[(1 << 3) | 2, 0, 10 << 3])
            .concat(InlineBytes::varint(sequence as u64))
            .concat(InlineBytes::new(&[(11 << 3) | 2, 0]));
        Self { bytes: header.concat(event), event_offset: header.len }
    }
}

/// Start offsets of a packet and of its event in [`PacketBytes`].
#[derive(Clone, Copy)]
struct PacketOffsets {
    packet: usize,
    event: usize,
}

/// Category and type.
const BEGIN_RUNTIME: InlineBytes =
    InlineBytes::new(&[3 << 3, RUNTIME_CATEGORY_IID, 9 << 3, TYPE_SLICE_BEGIN]);
const BEGIN_TASK: InlineBytes =
    InlineBytes::new(&[3 << 3, TASK_CATEGORY_IID, 9 << 3, TYPE_SLICE_BEGIN]);
const INSTANT_TASK: InlineBytes =
    InlineBytes::new(&[3 << 3, TASK_CATEGORY_IID, 9 << 3, TYPE_INSTANT]);
const END_SLICE: InlineBytes = InlineBytes::new(&[9 << 3, TYPE_SLICE_END]);
/// Field keys of the name id and the time.
const NAME_IID_KEY: u8 = 10 << 3;
const TIMESTAMP_KEY: u8 = 8 << 3;

/// Size of the buffer.
const BUFFER_BYTES: usize = 4096;

/// Upper bound of a packet: a start with three arguments, and the padding that [`PacketBytes::put`]
/// writes.
const MAX_PACKET_BYTES: usize = 128;

/// A buffer for packets of the fields above.
struct PacketBytes {
    bytes: [u8; BUFFER_BYTES],
    len: usize,
}

impl Default for PacketBytes {
    fn default() -> Self {
        Self { bytes: [0; BUFFER_BYTES], len: 0 }
    }
}

impl PacketBytes {
    fn as_slice(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }

    #[inline]
    fn put(&mut self, inline: InlineBytes) {
        if let Some(target) = self.bytes.get_mut(self.len..self.len + 16) {
            target.copy_from_slice(&inline.bytes.to_le_bytes());
            self.len += inline.len;
        }
    }

    /// Writes like [`Self::put`], at most eight bytes.
    #[inline]
    fn put_word(&mut self, bytes: u64, len: usize) {
        if let Some(target) = self.bytes.get_mut(self.len..self.len + 8) {
            target.copy_from_slice(&bytes.to_le_bytes());
            self.len += len;
        }
    }

    /// Writes a one-byte key and its number, without a loop over the bytes. The length of a time
    /// varies between packets, and each change would be a branch misprediction.
    #[inline]
    fn put_number(&mut self, tag: u8, number: u64) {
        if number >> 28 != 0 {
            return self.put_large_number(tag, number);
        }
        let (bytes, len) = encode_small_varint(number);
        self.put_word(bytes << 8 | u64::from(tag), 1 + len);
    }

    #[cold]
    fn put_large_number(&mut self, tag: u8, number: u64) {
        self.put(InlineBytes::new(&[tag]).concat(InlineBytes::varint(number)));
    }

    /// Writes an argument by the id of its name.
    #[inline]
    fn put_argument(&mut self, name: u8, value: u64) {
        let start = self.len + 2;
        self.put_word(u64::from_le_bytes([(4 << 3) | 2, 0, 1 << 3, name, 0, 0, 0, 0]), 4);
        self.put_number(3 << 3, value);
        self.set_length(start);
    }

    /// Writes the length of the message that starts at `start` into the byte before it.
    #[inline]
    fn set_length(&mut self, start: usize) {
        if let Some(length) = self.bytes.get_mut(start - 1) {
            *length = (self.len - start) as u8;
        }
    }
}

/// Returns the varint of a number below 2^28, with seven bits per byte, and its length.
#[inline]
fn encode_small_varint(number: u64) -> (u64, usize) {
    let number = number as u32;
    let spread = (number & 0x7f)
        | ((number << 1) & 0x7f00)
        | ((number << 2) & 0x7f_0000)
        | ((number << 3) & 0x7f00_0000);
    // One byte, and one more for each seven bits after the first.
    let more = (u32::BITS - 1 - (number | 1).leading_zeros()) / 7;
    let continuation_bits = 0x80_8080 & ((1 << (8 * more)) - 1);
    ((spread | continuation_bits).into(), more as usize + 1)
}
