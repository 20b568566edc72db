//! A profile written as it comes, without a model of it and without allocating.
//!
//! Repeated fields may stand in any order among each other, so a sample may come before its locations
//! and a location before its mapping; only texts and sample types are counted from their first. Nothing
//! is looked up here: who writes gives ids, and what is written twice is there twice.
//!
//! Why there are two writers of one format: [`super::write`] has a `Profile` before it and may make vectors
//! and texts as it goes, for labels, lines and inlined functions, which only it writes. This one serves the
//! moment when there is no more memory to be had. Neither can be had through the other: a `Profile` of a heap
//! takes some 400 bytes a sample, and a `Stream` fed from a `Profile` would need all of that and the rest
//! of the format too. They share the rule for ids, and the reader that tests hold both to.

use std::fmt::{self, Write as _};
use std::io::{self, Write};

use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint};

use super::STACK_UNKNOWN;
use crate::codec::press::Press;
use crate::model::{Mapping, ValueType};

/// The id of the location of samples that have none; no id from a table of four billion.
const UNKNOWN: u64 = u32::MAX as u64;

/// Texts are written here first, because their length stands before them. What is longer grows it.
const TEXT: usize = 8 << 10;

/// What writing takes: the compressor, its buffers and one text; some 400 KiB.
pub struct Room {
    press: Press,
    text: String,
}

impl Room {
    /// Reserves it.
    pub fn reserve() -> Self {
        Self { press: Press::reserve(), text: String::with_capacity(TEXT) }
    }
}

/// What stands at a profile's head.
#[derive(Clone, Copy, Debug)]
pub struct Head<'a> {
    /// What the values of each sample mean, in order.
    pub sample_types: &'a [ValueType],
    /// The name of the type to show first.
    pub default_sample_type: &'a str,
    /// What `period` is of.
    pub period_type: ValueType,
    /// How much of it lies between two samples.
    pub period: i64,
    /// When, in nanoseconds since 1970.
    pub time_nanos: i64,
    /// Functions that match are left out by a reader, with all they call; empty: none.
    pub drop_frames: &'a str,
}

/// A text that was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Text(i64);

/// A function that was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FunctionId(u64);

/// A profile on its way out. Without [`Self::finish`] it is cut short.
#[must_use = "without `finish` the file is cut short"]
pub struct Stream<'a, W: Write> {
    room: &'a mut Room,
    out: W,
    texts: i64,
    functions: u64,
    has_unknown: bool,
}

impl<'a, W: Write> Stream<'a, W> {
    /// Begins a profile.
    ///
    /// # Errors
    ///
    /// Here and everywhere below: those of `out`.
    pub fn begin(room: &'a mut Room, mut out: W, head: &Head<'_>) -> io::Result<Self> {
        room.press.begin(&mut out)?;
        let mut this = Self { room, out, texts: 0, functions: 0, has_unknown: false };
        this.text("")?;
        for kind in head.sample_types {
            let (name, unit) = (this.text(kind.name)?, this.text(kind.unit)?);
            this.message(1, &[(1, name.0 as u64), (2, unit.0 as u64)])?;
        }
        let (name, unit) = (this.text(head.period_type.name)?, this.text(head.period_type.unit)?);
        this.message(11, &[(1, name.0 as u64), (2, unit.0 as u64)])?;
        let shown = this.text(head.default_sample_type)?;
        let drop = this.text(head.drop_frames)?;
        let block = this.room.press.block();
        number(7, drop.0 as u64, block);
        number(9, head.time_nanos as u64, block);
        number(12, head.period as u64, block);
        number(14, shown.0 as u64, block);
        this.flow()?;
        Ok(this)
    }

    /// A text to refer to.
    pub fn text(&mut self, text: impl fmt::Display) -> io::Result<Text> {
        let scratch = &mut self.room.text;
        scratch.clear();
        write!(scratch, "{text}").map_err(io::Error::other)?;
        if scratch.is_empty() && self.texts > 0 {
            return Ok(Text(0));
        }
        let block = self.room.press.block();
        bytes(6, scratch.as_bytes(), block);
        self.texts += 1;
        self.flow()?;
        Ok(Text(self.texts - 1))
    }

    /// A sample: its locations, innermost first (none: its stack is unknown), one value for each sample
    /// type, and what is said of it: key, number, unit.
    pub fn sample(
        &mut self,
        locations: &[u32],
        values: &[i64],
        label: Option<(Text, i64, Text)>,
    ) -> io::Result<()> {
        self.has_unknown |= locations.is_empty();
        let unknown = [UNKNOWN];
        let unknown = if locations.is_empty() { unknown.as_slice() } else { &[] };
        let ids = || locations.iter().map(|&id| u64::from(id)).chain(unknown.iter().copied());
        let values = || values.iter().map(|&value| value as u64);
        let label = label
            .map(|(key, value, unit)| [(1, key.0 as u64), (3, value as u64), (4, unit.0 as u64)]);
        let length = packed_len(ids()) + packed_len(values()) + label.map_or(0, |l| nested_len(&l));
        let block = self.room.press.block();
        encode_key(2, WireType::LengthDelimited, block);
        encode_varint(length as u64, block);
        packed(1, ids(), block);
        packed(2, values(), block);
        if let Some(label) = label {
            nested(3, &label, block);
        }
        self.flow()
    }

    /// A function: its name for people and for the linker.
    pub fn function(&mut self, name: Text, system_name: Text) -> io::Result<FunctionId> {
        self.functions += 1;
        let id = self.functions;
        self.message(5, &[(1, id), (2, name.0 as u64), (3, system_name.0 as u64)])?;
        Ok(FunctionId(id))
    }

    /// A location: its id, where it is, the place of its mapping among those written, and its function.
    pub fn location(
        &mut self,
        id: u32,
        address: u64,
        mapping: Option<usize>,
        function: Option<FunctionId>,
    ) -> io::Result<()> {
        self.raw_location(id.into(), address, mapping.map_or(0, super::id), function)
    }

    /// A mapping. Readers take the first for the main executable.
    pub fn mapping(&mut self, place: usize, mapping: &Mapping, named: bool) -> io::Result<()> {
        let Mapping { start, end, file_offset, path, build_id, has_functions: _, .. } = mapping;
        let (path, build_id) = (self.text(path.display())?, self.text(build_id)?);
        self.message(
            3,
            &[
                (1, super::id(place)),
                (2, *start),
                (3, *end),
                (4, *file_offset),
                (5, path.0 as u64),
                (6, build_id.0 as u64),
                (7, named.into()),
            ],
        )
    }

    /// A remark.
    pub fn comment(&mut self, text: impl fmt::Display) -> io::Result<()> {
        let text = self.text(text)?;
        number(13, text.0 as u64, self.room.press.block());
        self.flow()
    }

    /// Ends the profile.
    pub fn finish(mut self) -> io::Result<()> {
        if self.has_unknown {
            let name = self.text(STACK_UNKNOWN)?;
            let function = self.function(name, name)?;
            self.raw_location(UNKNOWN, 0, 0, Some(function))?;
        }
        self.room.press.finish(&mut self.out)
    }

    fn raw_location(
        &mut self,
        id: u64,
        address: u64,
        mapping: u64,
        function: Option<FunctionId>,
    ) -> io::Result<()> {
        let place = [(1, id), (2, mapping), (3, address)];
        let line = function.map(|function| [(1, function.0)]);
        let length = fields_len(&place) + line.map_or(0, |line| nested_len(&line));
        let block = self.room.press.block();
        encode_key(4, WireType::LengthDelimited, block);
        encode_varint(length as u64, block);
        fields(&place, block);
        if let Some(line) = line {
            nested(4, &line, block);
        }
        self.flow()
    }

    fn message(&mut self, tag: u32, fields: &[(u32, u64)]) -> io::Result<()> {
        nested(tag, fields, self.room.press.block());
        self.flow()
    }

    fn flow(&mut self) -> io::Result<()> {
        self.room.press.flow(&mut self.out)
    }
}

// All tags are below 16: a key is one byte.

fn number(tag: u32, value: u64, block: &mut Vec<u8>) {
    encode_key(tag, WireType::Varint, block);
    encode_varint(value, block);
}

fn bytes(tag: u32, content: &[u8], block: &mut Vec<u8>) {
    encode_key(tag, WireType::LengthDelimited, block);
    encode_varint(content.len() as u64, block);
    block.extend_from_slice(content);
}

fn fields(fields: &[(u32, u64)], block: &mut Vec<u8>) {
    fields.iter().for_each(|&(tag, value)| number(tag, value, block));
}

fn fields_len(fields: &[(u32, u64)]) -> usize {
    fields.iter().map(|&(_, value)| 1 + encoded_len_varint(value)).sum()
}

fn nested(tag: u32, message: &[(u32, u64)], block: &mut Vec<u8>) {
    encode_key(tag, WireType::LengthDelimited, block);
    encode_varint(fields_len(message) as u64, block);
    fields(message, block);
}

fn nested_len(message: &[(u32, u64)]) -> usize {
    let length = fields_len(message);
    1 + encoded_len_varint(length as u64) + length
}

fn packed(tag: u32, values: impl Iterator<Item = u64> + Clone, block: &mut Vec<u8>) {
    encode_key(tag, WireType::LengthDelimited, block);
    encode_varint(values.clone().map(encoded_len_varint).sum::<usize>() as u64, block);
    values.for_each(|value| encode_varint(value, block));
}

fn packed_len(values: impl Iterator<Item = u64>) -> usize {
    let length = values.map(encoded_len_varint).sum::<usize>();
    1 + encoded_len_varint(length as u64) + length
}
