//! A streaming profile writer that needs no `Profile` and does not allocate.
//!
//! Repeated fields may be interleaved in any order, so a sample may precede its locations and a
//! location its mapping. Only texts and sample types are numbered in order. The writer performs no
//! look-up: the caller supplies ids, and duplicates are written twice.
//!
//! There are two writers of one format for this reason: [`super::write`] has a `Profile` in memory
//! and may allocate vectors and texts for labels, lines and inlined functions, which only it
//! writes. This one serves the case that no more memory is available. Neither can be built on the
//! other. A `Profile` of a heap takes some 400 bytes per sample, and a `ProfileStream` fed from a
//! `Profile` would need all of that and the rest of the format. They share the rule for ids, and
//! tests check both with the same reader.

use std::fmt::{self, Write as _};
use std::io::{self, Write};

use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint};

use super::STACK_UNKNOWN;
use crate::codec::reusable_gzip::ReusableGzip;
use crate::model::{Mapping, ValueType};

/// Id of the location for samples without one. It cannot collide with ids from a table of 2^32
/// entries.
const UNKNOWN_LOCATION_ID: u64 = u32::MAX as u64;

/// Initial capacity for one text, which is formatted first because its length precedes it.
const TEXT_CAPACITY: usize = 8 << 10;

/// Buffers of a [`ProfileStream`]: the compressor and one text, some 400 KiB.
pub struct WriterBuffers {
    gzip: ReusableGzip,
    text: String,
}

impl WriterBuffers {
    /// Allocates the buffers.
    pub fn preallocate() -> Self {
        Self { gzip: ReusableGzip::preallocate(), text: String::with_capacity(TEXT_CAPACITY) }
    }
}

/// Header of a profile.
#[derive(Clone, Copy, Debug)]
pub struct ProfileHeader<'a> {
    /// Meaning of the values of each sample, in order.
    pub sample_types: &'a [ValueType],
    /// Name of the sample type to show first.
    pub default_sample_type: &'a str,
    /// Type and unit of `period`.
    pub period_type: ValueType,
    /// Sampling period.
    pub period: i64,
    /// Start time, in nanoseconds since 1970.
    pub time_nanos: i64,
    /// Pattern of functions that a reader drops, together with their callees; empty for none.
    pub drop_frames: &'a str,
}

/// Reference to a text that has been written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Text(i64);

/// A label of a sample: a number with its key and unit.
#[derive(Clone, Copy, Debug)]
pub struct NumberLabel {
    /// Name of the label.
    pub key: Text,
    /// The number.
    pub value: i64,
    /// Unit of the number.
    pub unit: Text,
}

/// Reference to a function that has been written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FunctionId(u64);

/// A profile being written. Without [`Self::finish`] the file is truncated.
#[must_use = "without `finish` the file is truncated"]
pub struct ProfileStream<'a, W: Write> {
    buffers: &'a mut WriterBuffers,
    out: W,
    text_count: i64,
    function_count: u64,
    has_unknown: bool,
}

impl<'a, W: Write> ProfileStream<'a, W> {
    /// Starts a profile.
    ///
    /// # Errors
    ///
    /// Errors of `out`, as for all other functions.
    pub fn begin(
        buffers: &'a mut WriterBuffers,
        mut out: W,
        head: &ProfileHeader<'_>,
    ) -> io::Result<Self> {
        buffers.gzip.begin(&mut out)?;
        let mut stream =
            Self { buffers, out, text_count: 0, function_count: 0, has_unknown: false };
        stream.text("")?;
        for kind in head.sample_types {
            let name = stream.text(kind.name)?;
            let unit = stream.text(kind.unit)?;
            stream.message(1, &[(1, name.0 as u64), (2, unit.0 as u64)])?;
        }
        let name = stream.text(head.period_type.name)?;
        let unit = stream.text(head.period_type.unit)?;
        stream.message(11, &[(1, name.0 as u64), (2, unit.0 as u64)])?;
        let default_type = stream.text(head.default_sample_type)?;
        let drop_frames = stream.text(head.drop_frames)?;
        let block = stream.buffers.gzip.block();
        encode_number(7, drop_frames.0 as u64, block);
        encode_number(9, head.time_nanos as u64, block);
        encode_number(12, head.period as u64, block);
        encode_number(14, default_type.0 as u64, block);
        stream.flush_if_full()?;
        Ok(stream)
    }

    /// Writes a text and returns a reference to it.
    pub fn text(&mut self, text: impl fmt::Display) -> io::Result<Text> {
        let scratch = &mut self.buffers.text;
        scratch.clear();
        write!(scratch, "{text}").map_err(io::Error::other)?;
        if scratch.is_empty() && self.text_count > 0 {
            return Ok(Text(0));
        }
        let block = self.buffers.gzip.block();
        encode_bytes(6, scratch.as_bytes(), block);
        self.text_count += 1;
        self.flush_if_full()?;
        Ok(Text(self.text_count - 1))
    }

    /// Writes a sample: its locations, innermost first (empty if the stack is unknown), one value
    /// per sample type, and an optional label.
    pub fn sample(
        &mut self,
        locations: &[u32],
        values: &[i64],
        label: Option<NumberLabel>,
    ) -> io::Result<()> {
        self.has_unknown |= locations.is_empty();
        let unknown = [UNKNOWN_LOCATION_ID];
        let unknown = if locations.is_empty() { unknown.as_slice() } else { &[] };
        let ids = || locations.iter().map(|&id| u64::from(id)).chain(unknown.iter().copied());
        let values = || values.iter().map(|&value| value as u64);
        let label = label.map(|label| {
            [(1, label.key.0 as u64), (3, label.value as u64), (4, label.unit.0 as u64)]
        });
        let length =
            packed_len(ids()) + packed_len(values()) + label.map_or(0, |label| nested_len(&label));
        let block = self.buffers.gzip.block();
        encode_key(2, WireType::LengthDelimited, block);
        encode_varint(length as u64, block);
        encode_packed(1, ids(), block);
        encode_packed(2, values(), block);
        if let Some(label) = label {
            encode_nested(3, &label, block);
        }
        self.flush_if_full()
    }

    /// Writes a function with its demangled and its linker name.
    pub fn function(&mut self, name: Text, system_name: Text) -> io::Result<FunctionId> {
        self.function_count += 1;
        let id = self.function_count;
        self.message(5, &[(1, id), (2, name.0 as u64), (3, system_name.0 as u64)])?;
        Ok(FunctionId(id))
    }

    /// Writes a location: id, address, index of its mapping among those written, and function.
    pub fn location(
        &mut self,
        id: u32,
        address: u64,
        mapping: Option<usize>,
        function: Option<FunctionId>,
    ) -> io::Result<()> {
        self.raw_location(id.into(), address, mapping.map_or(0, super::id), function)
    }

    /// Writes a mapping. Readers take the first for the main executable.
    pub fn mapping(
        &mut self,
        index: usize,
        mapping: &Mapping,
        has_functions: bool,
    ) -> io::Result<()> {
        let Mapping { start, end, file_offset, path, build_id, has_functions: _, .. } = mapping;
        let path = self.text(path.display())?;
        let build_id = self.text(build_id)?;
        self.message(
            3,
            &[
                (1, super::id(index)),
                (2, *start),
                (3, *end),
                (4, *file_offset),
                (5, path.0 as u64),
                (6, build_id.0 as u64),
                (7, has_functions.into()),
            ],
        )
    }

    /// Writes a comment.
    pub fn comment(&mut self, text: impl fmt::Display) -> io::Result<()> {
        let text = self.text(text)?;
        encode_number(13, text.0 as u64, self.buffers.gzip.block());
        self.flush_if_full()
    }

    /// Completes the profile.
    pub fn finish(mut self) -> io::Result<()> {
        if self.has_unknown {
            let name = self.text(STACK_UNKNOWN)?;
            let function = self.function(name, name)?;
            self.raw_location(UNKNOWN_LOCATION_ID, 0, 0, Some(function))?;
        }
        self.buffers.gzip.finish(&mut self.out)
    }

    fn raw_location(
        &mut self,
        id: u64,
        address: u64,
        mapping: u64,
        function: Option<FunctionId>,
    ) -> io::Result<()> {
        let location_fields = [(1, id), (2, mapping), (3, address)];
        let line = function.map(|function| [(1, function.0)]);
        let length = fields_len(&location_fields) + line.map_or(0, |line| nested_len(&line));
        let block = self.buffers.gzip.block();
        encode_key(4, WireType::LengthDelimited, block);
        encode_varint(length as u64, block);
        encode_fields(&location_fields, block);
        if let Some(line) = line {
            encode_nested(4, &line, block);
        }
        self.flush_if_full()
    }

    fn message(&mut self, tag: u32, fields: &[(u32, u64)]) -> io::Result<()> {
        encode_nested(tag, fields, self.buffers.gzip.block());
        self.flush_if_full()
    }

    fn flush_if_full(&mut self) -> io::Result<()> {
        self.buffers.gzip.flush_if_full(&mut self.out)
    }
}

// All tags are below 16: a key is one byte.

fn encode_number(tag: u32, value: u64, block: &mut Vec<u8>) {
    encode_key(tag, WireType::Varint, block);
    encode_varint(value, block);
}

fn encode_bytes(tag: u32, content: &[u8], block: &mut Vec<u8>) {
    encode_key(tag, WireType::LengthDelimited, block);
    encode_varint(content.len() as u64, block);
    block.extend_from_slice(content);
}

fn encode_fields(fields: &[(u32, u64)], block: &mut Vec<u8>) {
    fields.iter().for_each(|&(tag, value)| encode_number(tag, value, block));
}

fn fields_len(fields: &[(u32, u64)]) -> usize {
    fields.iter().map(|&(_, value)| 1 + encoded_len_varint(value)).sum()
}

fn encode_nested(tag: u32, message: &[(u32, u64)], block: &mut Vec<u8>) {
    encode_key(tag, WireType::LengthDelimited, block);
    encode_varint(fields_len(message) as u64, block);
    encode_fields(message, block);
}

fn nested_len(message: &[(u32, u64)]) -> usize {
    let length = fields_len(message);
    1 + encoded_len_varint(length as u64) + length
}

fn encode_packed(tag: u32, values: impl Iterator<Item = u64> + Clone, block: &mut Vec<u8>) {
    encode_key(tag, WireType::LengthDelimited, block);
    encode_varint(values.clone().map(encoded_len_varint).sum::<usize>() as u64, block);
    values.for_each(|value| encode_varint(value, block));
}

fn packed_len(values: impl Iterator<Item = u64>) -> usize {
    let length = values.map(encoded_len_varint).sum::<usize>();
    1 + encoded_len_varint(length as u64) + length
}
