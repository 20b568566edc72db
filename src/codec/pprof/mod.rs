//! Profiles as `profile.proto`, the format of `go tool pprof` and of most profile viewers.
//!
//! An id is an index plus one, because 0 means none. Texts keep their indices in the model's table,
//! whose first text is empty, as in the format. Texts outside the table (paths, types, comments)
//! follow it.
//!
//! Losses are comments of the form `lost: N cause`, which `go tool pprof -comments` prints. A
//! sample without a stack has a location named `[stack unknown]`, so that it is visible and
//! included in the totals. Go does the same with its lost samples.
//!
//! `has_functions` has a cost: a viewer that finds it set does not symbolize. It is set only if the
//! model states that symbolization is complete. The flags for files, lines and inlined functions
//! are set only if the result contains such information.

mod model;
pub mod proto;
mod read;
mod size;
mod stream;

use std::io::{self, Write};

pub(crate) use model::read_model;
pub use read::{read, write_proto};
pub use stream::{FunctionId, NumberLabel, ProfileHeader, ProfileStream, Text, WriterBuffers};

use super::gzip::GzipMessageWriter;
use crate::model::{Frame, LabelValue, Mapping, Profile, Sample, StringTable, ValueType};

/// Function shown for samples whose stack could not be read.
pub const STACK_UNKNOWN: &str = "[stack unknown]";

/// Writes `profile`, gzip-compressed.
///
/// In addition to `profile`, it takes the memory of the largest single message, and does not copy
/// texts. A sample must have one value per type; any other would make the whole file unreadable, so
/// it is left out and counted as lost.
///
/// # Errors
///
/// Errors of `out`.
pub fn write(profile: &Profile, out: impl Write) -> io::Result<()> {
    let mut out = GzipMessageWriter::new(out);
    let mut texts = Texts::new(&profile.strings);
    write_head(profile, &mut texts, &mut out)?;
    let skipped = write_samples(profile, &mut out)?;
    write_mappings(profile, &mut texts, &mut out)?;
    write_locations(profile, &mut out)?;
    write_functions(profile, &mut texts, &mut out)?;
    write_comments(profile, skipped, &mut texts, &mut out)?;
    write_texts(&profile.strings, &texts, &mut out)?;
    out.finish()
}

/// Texts outside the profile's table, with the indices after it.
struct Texts {
    start: usize,
    texts: Vec<String>,
}

impl Texts {
    fn new(table: &StringTable) -> Self {
        Self { start: table.iter().len(), texts: Vec::new() }
    }

    fn add(&mut self, text: &str) -> i64 {
        if text.is_empty() {
            return 0;
        }
        let at = self.texts.iter().position(|known| known == text).unwrap_or_else(|| {
            self.texts.push(text.to_owned());
            self.texts.len() - 1
        });
        (self.start + at) as i64
    }
}

/// Returns the id of the row at `index` of any table.
const fn id(index: usize) -> u64 {
    index as u64 + 1
}

fn write_head<W: Write>(
    profile: &Profile,
    texts: &mut Texts,
    out: &mut GzipMessageWriter<W>,
) -> io::Result<()> {
    let mut kind = |kind: &ValueType| proto::ValueType {
        r#type: texts.add(kind.name),
        unit: texts.add(kind.unit),
    };
    let sample_type = profile.sample_types.iter().map(&mut kind).collect();
    let period_type = Some(kind(&profile.period_type));
    out.write(&proto::Profile {
        sample_type,
        period_type,
        period: profile.period,
        time_nanos: i64::try_from(profile.started.as_nanosecond()).unwrap_or(i64::MAX),
        duration_nanos: i64::try_from(profile.duration.as_nanos()).unwrap_or(i64::MAX),
        default_sample_type: texts.add(profile.default_sample_type),
        drop_frames: texts.add(&profile.drop_frames),
        ..proto::Profile::default()
    })
}

/// Writes the samples. Returns the number left out.
fn write_samples<W: Write>(profile: &Profile, out: &mut GzipMessageWriter<W>) -> io::Result<u64> {
    let mut skipped = 0;
    let mut part = proto::Profile { sample: vec![proto::Sample::default()], ..Default::default() };
    for sample in &profile.samples {
        if sample.values.len() != profile.sample_types.len() {
            skipped += 1;
            continue;
        }
        // The sample is reused for its vectors' capacity, which avoids an allocation per sample.
        for message in &mut part.sample {
            fill_sample(profile, sample, message);
        }
        out.write(&part)?;
    }
    Ok(skipped)
}

fn fill_sample(profile: &Profile, sample: &Sample, message: &mut proto::Sample) {
    let frames = profile.stacks.frames(sample.stack).map(|frame| id(frame.index()));
    message.location_id.clear();
    message.location_id.extend(frames);
    if message.location_id.is_empty() {
        message.location_id.push(unknown_location(profile));
    }
    message.value.clone_from(&sample.values);
    message.label.clear();
    message.label.extend(sample.labels.iter().map(|label| {
        let key = label.key.index() as i64;
        match label.value {
            LabelValue::Text(text) => {
                proto::Label { key, str: text.index() as i64, ..Default::default() }
            }
            LabelValue::Number(num, unit) => {
                proto::Label { key, num, num_unit: unit.index() as i64, ..Default::default() }
            }
        }
    }));
}

fn unknown_location(profile: &Profile) -> u64 {
    id(profile.frames.iter().len())
}

fn unknown_function(profile: &Profile) -> u64 {
    id(profile.functions.len())
}

fn has_unknown(profile: &Profile) -> bool {
    profile.samples.iter().any(|sample| sample.stack.is_none())
}

fn write_mappings<W: Write>(
    profile: &Profile,
    texts: &mut Texts,
    out: &mut GzipMessageWriter<W>,
) -> io::Result<()> {
    let found = SymbolizedFields::by_mapping(profile);
    for (index, (mapping, found)) in profile.mappings.iter().zip(found).enumerate() {
        let Mapping { start, end, file_offset, path, build_id, has_functions, .. } = mapping;
        let mapping = proto::Mapping {
            id: id(index),
            memory_start: *start,
            memory_limit: *end,
            file_offset: *file_offset,
            filename: texts.add(&path.to_string_lossy()),
            build_id: texts.add(build_id),
            has_functions: *has_functions,
            has_filenames: *has_functions && found.files,
            has_line_numbers: *has_functions && found.lines,
            has_inline_frames: *has_functions && found.inlined,
        };
        out.write(&proto::Profile { mapping: vec![mapping], ..Default::default() })?;
    }
    Ok(())
}

/// Kinds of information found by symbolization in the frames of one mapping.
#[derive(Clone, Copy, Default)]
struct SymbolizedFields {
    files: bool,
    lines: bool,
    inlined: bool,
}

impl SymbolizedFields {
    fn by_mapping(profile: &Profile) -> Vec<Self> {
        let mut found = vec![Self::default(); profile.mappings.len()];
        for frame in profile.frames.iter() {
            let entry = frame.mapping.and_then(|mapping| found.get_mut(mapping.index()));
            let Some(found) = entry else { continue };
            found.inlined |= frame.lines.len() > 1;
            for line in &frame.lines {
                let function = profile.functions.get(line.function.index());
                found.files |= function.is_some_and(|function| function.file.index() != 0);
                found.lines |= line.line != 0;
            }
        }
        found
    }
}

fn write_locations<W: Write>(profile: &Profile, out: &mut GzipMessageWriter<W>) -> io::Result<()> {
    let mut part =
        proto::Profile { location: vec![proto::Location::default()], ..Default::default() };
    for (index, frame) in profile.frames.iter().enumerate() {
        for message in &mut part.location {
            fill_location(profile, index, frame, message);
        }
        out.write(&part)?;
    }
    if has_unknown(profile) {
        let line = vec![proto::Line { function_id: unknown_function(profile), line: 0, column: 0 }];
        let location =
            proto::Location { id: unknown_location(profile), line, ..Default::default() };
        out.write(&proto::Profile { location: vec![location], ..Default::default() })?;
    }
    Ok(())
}

/// Leaves out invalid handles, which would make the whole file unreadable.
fn fill_location(profile: &Profile, index: usize, frame: &Frame, message: &mut proto::Location) {
    let mapping = frame.mapping.filter(|mapping| mapping.index() < profile.mappings.len());
    message.id = id(index);
    message.mapping_id = mapping.map_or(0, |mapping| id(mapping.index()));
    message.address = frame.address;
    message.line.clear();
    let lines = frame.lines.iter().filter(|line| line.function.index() < profile.functions.len());
    message.line.extend(lines.map(|line| proto::Line {
        function_id: id(line.function.index()),
        line: i64::from(line.line),
        column: 0,
    }));
}

fn write_functions<W: Write>(
    profile: &Profile,
    texts: &mut Texts,
    out: &mut GzipMessageWriter<W>,
) -> io::Result<()> {
    for (index, function) in profile.functions.iter().enumerate() {
        let function = proto::Function {
            id: id(index),
            name: function.name.index() as i64,
            system_name: function.system_name.index() as i64,
            filename: function.file.index() as i64,
            start_line: 0,
        };
        out.write(&proto::Profile { function: vec![function], ..Default::default() })?;
    }
    if has_unknown(profile) {
        let name = texts.add(STACK_UNKNOWN);
        let id = unknown_function(profile);
        let function = proto::Function { id, name, system_name: name, ..Default::default() };
        out.write(&proto::Profile { function: vec![function], ..Default::default() })?;
    }
    Ok(())
}

fn write_comments<W: Write>(
    profile: &Profile,
    skipped: u64,
    texts: &mut Texts,
    out: &mut GzipMessageWriter<W>,
) -> io::Result<()> {
    let mut losses = profile.losses.clone();
    losses.add("samples omitted: number of values differs from number of types", skipped);
    let mut comment: Vec<i64> = profile.comments.iter().map(|text| texts.add(text)).collect();
    comment.extend(
        losses.iter().map(|loss| texts.add(&format!("lost: {} {}", loss.count, loss.cause))),
    );
    out.write(&proto::Profile { comment, ..Default::default() })
}

fn write_texts<W: Write>(
    table: &StringTable,
    texts: &Texts,
    out: &mut GzipMessageWriter<W>,
) -> io::Result<()> {
    let mut part = proto::Profile { string_table: vec![String::new()], ..Default::default() };
    for text in table.iter().chain(texts.texts.iter().map(String::as_str)) {
        for text_entry in &mut part.string_table {
            text_entry.clear();
            text_entry.push_str(text);
        }
        out.write(&part)?;
    }
    Ok(())
}
