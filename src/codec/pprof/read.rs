//! Reader of profiles: checks that every reference resolves, within bounded memory.

use std::collections::HashSet;
use std::io::{self, Write};

use prost::Message;

use super::super::error::Error;
use super::super::gzip::{GzipMessageWriter, inflate};
use super::proto::Profile;
use super::size::MessageSize;
use crate::base::Bytes;

/// Maximum decompressed size. A heap profile of 100,000 stacks of depth 40 with names takes about
/// 20 MiB.
const MAX_CONTENT_BYTES: Bytes = Bytes::mib(64);

/// Maximum memory of a decoded profile. The heap profile above takes 90 MiB.
const MAX_DECODED_BYTES: Bytes = Bytes::mib(256);

/// Reads a profile, compressed or plain. In the result every referenced id and text exists, and
/// every sample has one value per type, as Go's reader requires.
///
/// Takes at most about 400 MiB of memory for any input: 64 MiB of content and 256 MiB for the
/// profile, which is measured before it is decoded.
///
/// # Errors
///
/// If `bytes` are damaged, are more than 64 MiB decompressed, would take more than 256 MiB decoded,
/// are not `profile.proto`, or contain dangling references.
pub fn read(bytes: &[u8]) -> Result<Profile, Error> {
    let profile = decode(&inflate(bytes, MAX_CONTENT_BYTES)?, MAX_DECODED_BYTES)?;
    check(&profile).map_err(Error::Inconsistent)?;
    Ok(profile)
}

/// Decodes a message that takes at most `limit` in memory.
pub(super) fn decode(content: &[u8], limit: Bytes) -> Result<Profile, Error> {
    let size = MessageSize::measure(content, limit.get()).ok_or(Error::MalformedFields)?;
    if size.bytes > limit.get() {
        return Err(Error::TooMuchMemory { limit });
    }
    let mut profile = size.preallocate();
    profile.merge(content)?;
    Ok(profile)
}

/// Writes a profile returned by [`read`], changed or not, gzip-compressed.
///
/// # Errors
///
/// Errors of `out`.
pub fn write_proto(profile: &Profile, out: impl Write) -> io::Result<()> {
    let mut out = GzipMessageWriter::new(out);
    out.write(profile)?;
    out.finish()
}

/// Returns an error if a reference does not resolve.
pub(super) fn check(profile: &Profile) -> Result<(), String> {
    if profile.string_table.first().is_some_and(|first| !first.is_empty()) {
        return Err("the first string is not empty".to_owned());
    }
    let check_text = |index: i64, referrer: &str| {
        // The default of an absent field is 0, and the text there is empty even in an empty table.
        let exists = index == 0
            || usize::try_from(index).is_ok_and(|index| index < profile.string_table.len());
        exists
            .then_some(())
            .ok_or_else(|| format!("{referrer} refers to string {index}, which does not exist"))
    };
    let mappings = collect_ids("mapping", profile.mapping.iter().map(|mapping| mapping.id))?;
    let functions = collect_ids("function", profile.function.iter().map(|function| function.id))?;
    let locations = collect_ids("location", profile.location.iter().map(|location| location.id))?;

    let types = profile.sample_type.iter().chain(&profile.period_type);
    for (kind, referrer) in
        types.flat_map(|kind| [(kind.r#type, "a value type"), (kind.unit, "a value type")])
    {
        check_text(kind, referrer)?;
    }
    for index in [profile.drop_frames, profile.keep_frames, profile.default_sample_type] {
        check_text(index, "the profile")?;
    }
    check_text(profile.doc_url, "the profile")?;
    profile.comment.iter().try_for_each(|&index| check_text(index, "a comment"))?;
    for mapping in &profile.mapping {
        check_text(mapping.filename, "a mapping")?;
        check_text(mapping.build_id, "a mapping")?;
    }
    for function in &profile.function {
        for index in [function.name, function.system_name, function.filename] {
            check_text(index, "a function")?;
        }
    }
    for location in &profile.location {
        if location.mapping_id != 0 {
            check_reference(&mappings, location.mapping_id, "location", "mapping")?;
        }
        for line in &location.line {
            check_reference(&functions, line.function_id, "location", "function")?;
        }
    }
    for sample in &profile.sample {
        if sample.value.len() != profile.sample_type.len() {
            let values = sample.value.len();
            let types = profile.sample_type.len();
            return Err(format!("a sample has {values} values for {types} types"));
        }
        for &location in &sample.location_id {
            check_reference(&locations, location, "sample", "location")?;
        }
        for label in &sample.label {
            for index in [label.key, label.str, label.num_unit] {
                check_text(index, "a label")?;
            }
        }
    }
    Ok(())
}

fn collect_ids(
    kind: &str,
    ids: impl ExactSizeIterator<Item = u64>,
) -> Result<HashSet<u64>, String> {
    let mut seen = HashSet::with_capacity(ids.len());
    for id in ids {
        if id == 0 || !seen.insert(id) {
            return Err(format!("{kind} id {id} is a duplicate, or is 0, which is reserved"));
        }
    }
    Ok(seen)
}

fn check_reference(ids: &HashSet<u64>, id: u64, from: &str, to: &str) -> Result<(), String> {
    let exists = ids.contains(&id);
    exists
        .then_some(())
        .ok_or_else(|| format!("a {from} refers to {to} {id}, which does not exist"))
}
