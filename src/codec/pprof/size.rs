//! Upper bound of the memory of a decoded profile, computed from its bytes alone.
//!
//! An empty message takes two bytes on the wire and up to 200 bytes in memory, and a gzip stream
//! packs a thousand of them into three bytes. The bytes are therefore walked once before anything
//! is allocated.
//!
//! The walk follows every field that [`proto`](super::proto) decodes into a `Vec` or a `String`.
//! Input that it cannot follow is refused, so that its count is never below the decoder's.

use std::mem::size_of;

use super::proto::{Function, Label, Line, Location, Mapping, Profile, Sample, ValueType};

/// Overhead of the allocator per block.
const ALLOCATION_OVERHEAD_BYTES: u64 = 16;

/// Messages that are walked recursively, and those with numeric fields only.
#[derive(Clone, Copy, PartialEq, Eq)]
enum MessageKind {
    Profile,
    Sample,
    Location,
    NumericOnly,
}

/// Kind of a field's elements.
#[derive(Clone, Copy)]
enum Field {
    /// A message of `size` bytes.
    Message(MessageKind, usize),
    Text,
    /// Integers, packed or one by one.
    Integers,
    Scalar,
}

impl MessageKind {
    fn field(self, number: u64) -> Field {
        match (self, number) {
            (Self::Profile, 1) => Field::Message(Self::NumericOnly, size_of::<ValueType>()),
            (Self::Profile, 2) => Field::Message(Self::Sample, size_of::<Sample>()),
            (Self::Profile, 3) => Field::Message(Self::NumericOnly, size_of::<Mapping>()),
            (Self::Profile, 4) => Field::Message(Self::Location, size_of::<Location>()),
            (Self::Profile, 5) => Field::Message(Self::NumericOnly, size_of::<Function>()),
            (Self::Profile, 6) => Field::Text,
            (Self::Profile, 13) | (Self::Sample, 1 | 2) => Field::Integers,
            (Self::Sample, 3) => Field::Message(Self::NumericOnly, size_of::<Label>()),
            (Self::Location, 4) => Field::Message(Self::NumericOnly, size_of::<Line>()),
            _ => Field::Scalar,
        }
    }
}

/// Repeated fields of a message have numbers below this.
const MAX_FIELD: usize = 16;

/// Element counts of the top level's lists by field number, and the total memory.
#[derive(Debug, Default)]
pub(super) struct MessageSize {
    counts: [u64; MAX_FIELD],
    pub(super) bytes: u64,
}

impl MessageSize {
    /// Walks `wire`. Returns `None` if it is not a sequence of fields. The walk ends early once
    /// more than `limit` bytes of memory are required.
    pub(super) fn measure(wire: &[u8], limit: u64) -> Option<Self> {
        let mut size = Self::default();
        size.counts = size.walk(MessageKind::Profile, wire, limit)?;
        Some(size)
    }

    /// Returns an empty profile whose lists have exactly the counted capacities.
    pub(super) fn preallocate(&self) -> Profile {
        let count = |number: usize| self.counts.get(number).map_or(0, |count| *count as usize);
        Profile {
            sample_type: Vec::with_capacity(count(1)),
            sample: Vec::with_capacity(count(2)),
            mapping: Vec::with_capacity(count(3)),
            location: Vec::with_capacity(count(4)),
            function: Vec::with_capacity(count(5)),
            string_table: Vec::with_capacity(count(6)),
            comment: Vec::with_capacity(count(13)),
            ..Profile::default()
        }
    }

    /// Adds the memory of one message's fields, and returns the lengths of its lists. For a nested
    /// message the caller adds the lists, because they grow by doubling and those of the profile do
    /// not.
    fn walk(&mut self, message: MessageKind, wire: &[u8], limit: u64) -> Option<[u64; MAX_FIELD]> {
        let mut counts = [0; MAX_FIELD];
        let mut rest = wire;
        while !rest.is_empty() && self.bytes <= limit {
            let key = read_varint(&mut rest)?;
            let number = key >> 3;
            let kind = key & 7;
            let mut value = None;
            match kind {
                0 => drop(read_varint(&mut rest)?),
                1 => drop(split_prefix(&mut rest, 8)?),
                2 => {
                    let length = read_varint(&mut rest)?;
                    value = Some(split_prefix(&mut rest, length)?);
                }
                5 => drop(split_prefix(&mut rest, 4)?),
                // Groups and reserved kinds are not part of this format.
                _ => return None,
            }
            let added = match (message.field(number), value) {
                (Field::Scalar, _) => continue,
                (Field::Integers, Some(packed)) => {
                    // Each integer ends with a byte below 128.
                    packed.iter().filter(|byte| **byte < 0x80).count() as u64
                }
                (Field::Text, Some(text)) => {
                    self.bytes += text.len() as u64 + ALLOCATION_OVERHEAD_BYTES;
                    1
                }
                (Field::Message(MessageKind::NumericOnly, _), _) => 1,
                (Field::Message(inner, _), Some(wire)) => {
                    let lists = self.walk(inner, wire, limit)?;
                    for (number, count) in lists.into_iter().enumerate().filter(|(_, n)| *n > 0) {
                        // A growing vector starts with four elements and doubles.
                        let capacity = count.next_power_of_two().max(4);
                        self.bytes +=
                            capacity * element_bytes(inner, number) + ALLOCATION_OVERHEAD_BYTES;
                    }
                    1
                }
                // The decoder refuses other kinds of value; an integer may be unpacked.
                (_, None) => 1,
            };
            *counts.get_mut(number as usize)? += added;
            if message == MessageKind::Profile {
                self.bytes += added * element_bytes(message, number as usize);
            }
        }
        Some(counts)
    }
}

fn element_bytes(message: MessageKind, number: usize) -> u64 {
    let size = match message.field(number as u64) {
        Field::Message(_, size) => size,
        Field::Text => size_of::<String>(),
        Field::Integers => size_of::<u64>(),
        Field::Scalar => 0,
    };
    size as u64
}

/// Reads a number of up to ten bytes.
fn read_varint(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for (at, &byte) in rest.iter().take(10).enumerate() {
        value |= u64::from(byte & 0x7f).checked_shl(7 * at as u32)?;
        if byte < 0x80 {
            *rest = rest.get(at + 1..)?;
            return Some(value);
        }
    }
    None
}

fn split_prefix<'a>(rest: &mut &'a [u8], length: u64) -> Option<&'a [u8]> {
    let (first, second) = rest.split_at_checked(usize::try_from(length).ok()?)?;
    *rest = second;
    Some(first)
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;

    /// Returns the memory of a decoded profile, by the capacities of its lists.
    fn allocated_bytes(profile: &Profile) -> u64 {
        let list = |capacity: usize, size: usize| (capacity * size) as u64;
        let samples = profile.sample.iter().map(|sample| {
            list(sample.location_id.capacity() + sample.value.capacity(), 8)
                + list(sample.label.capacity(), size_of::<Label>())
        });
        let locations = profile
            .location
            .iter()
            .map(|location| list(location.line.capacity(), size_of::<Line>()));
        let texts = profile.string_table.iter().map(|text| text.capacity() as u64);
        samples.chain(locations).chain(texts).sum::<u64>()
            + list(profile.sample_type.capacity(), size_of::<ValueType>())
            + list(profile.sample.capacity(), size_of::<Sample>())
            + list(profile.mapping.capacity(), size_of::<Mapping>())
            + list(profile.location.capacity(), size_of::<Location>())
            + list(profile.function.capacity(), size_of::<Function>())
            + list(profile.string_table.capacity(), size_of::<String>())
            + list(profile.comment.capacity(), size_of::<i64>())
    }

    #[test]
    fn decoded_memory_never_exceeds_measured_size() {
        let packed = |field: u8| {
            let mut bytes = vec![0x12, 0xe8, 0x07, field, 0xe5, 0x07];
            bytes.extend([1; 997]);
            bytes
        };
        for (description, unit) in [
            ("types", &b"\x0a\0"[..]),
            ("samples", b"\x12\0"),
            ("samples with a label", b"\x12\x02\x1a\0"),
            ("samples with five labels", b"\x12\x0a\x1a\0\x1a\0\x1a\0\x1a\0\x1a\0"),
            ("samples with a value", b"\x12\x02\x10\0"),
            ("samples with packed values", b"\x12\x07\x12\x05\x01\x01\x01\x81\x01"),
            ("samples with a location", b"\x12\x02\x08\x01"),
            ("samples with many locations", &packed(0x0a)),
            ("samples with many values", &packed(0x12)),
            ("mappings", b"\x1a\0"),
            ("locations", b"\x22\0"),
            ("locations with a line", b"\x22\x02\x22\0"),
            ("functions", b"\x2a\x02\x10\x01"),
            ("empty texts", b"\x32\0"),
            ("texts", b"\x32\x03abc"),
            ("comments", b"\x68\0"),
            ("packed comments", b"\x6a\x03\0\0\0"),
            ("unknown fields", b"\xfa\x01\0\xf9\x01\0\0\0\0\0\0\0\0\xfd\x01\0\0\0\0"),
            ("numbers", b"\x48\x01"),
        ] {
            let wire = unit.repeat(1000);
            let size = MessageSize::measure(&wire, u64::MAX).unwrap();
            let mut profile = size.preallocate();
            profile.merge(&*wire).unwrap_or_else(|error| panic!("{description}: {error}"));
            assert!(
                allocated_bytes(&profile) <= size.bytes,
                "{description}: {} of {}",
                allocated_bytes(&profile),
                size.bytes
            );
            let half = MessageSize::measure(&wire, size.bytes / 2).unwrap();
            assert!(
                size.bytes == 0 || half.bytes > size.bytes / 2,
                "{description}: the walk ends late"
            );
        }
    }

    #[test]
    fn malformed_fields_are_rejected() {
        for wire in [
            &b"\x12"[..],
            b"\x12\x05\0",
            b"\x7b\x7c",
            b"\x12\x02\x0b\x0c",
            b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\0",
            b"\x49\0",
            b"\x4f",
        ] {
            assert!(MessageSize::measure(wire, u64::MAX).is_none(), "{wire:?}");
        }
    }
}
