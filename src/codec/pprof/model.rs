//! Reads a profile into the model, within a bound on its memory.

use std::collections::HashMap;
use std::time::Duration;

use jiff::Timestamp;

use super::super::error::Error;
use super::super::gzip::inflate;
use super::proto;
use super::read::{check, decode};
use crate::base::Bytes;
use crate::model::{Function, FunctionHandle, Label, LabelValue, Line, Profile, Sample, ValueType};

/// Names of the sample types, period types and units of marple's own profiles. Others read as an
/// empty name.
const KNOWN_NAMES: &[&str] = &[
    "samples",
    "cpu",
    "wall",
    "space",
    "inuse_objects",
    "inuse_space",
    "alloc_objects",
    "alloc_space",
    "threads",
    "tasks",
    "count",
    "nanoseconds",
    "bytes",
];

/// Share of the memory bound that the decompressed content may take. The rest is for the decoded
/// messages and the model, which exist at the same time.
const CONTENT_DIVISOR: u64 = 8;
const DECODED_DIVISOR: u64 = 3;

/// Reads a profile that marple wrote. Takes at most about `max_memory`.
///
/// Mappings, comments and single observations are not read.
///
/// # Errors
///
/// If `bytes` are not a valid profile, or reading them would take more memory.
pub(crate) fn read_model(bytes: &[u8], max_memory: Bytes) -> Result<Profile, Error> {
    let content = inflate(bytes, Bytes(max_memory.get() / CONTENT_DIVISOR))?;
    let profile = decode(&content, Bytes(max_memory.get() / DECODED_DIVISOR))?;
    drop(content);
    check(&profile).map_err(Error::Inconsistent)?;
    Ok(to_model(&profile))
}

fn to_model(read: &proto::Profile) -> Profile {
    let value_type = |kind: &proto::ValueType| ValueType {
        name: known_name(read.text(kind.r#type)),
        unit: known_name(read.text(kind.unit)),
    };
    let sample_types: Vec<ValueType> = read.sample_type.iter().map(value_type).collect();
    let period_type = read.period_type.as_ref().map(value_type);
    let started = Timestamp::from_nanosecond(i128::from(read.time_nanos));
    let mut profile = Profile::new(
        &sample_types,
        period_type.unwrap_or(ValueType { name: "", unit: "" }),
        read.period,
        started.unwrap_or(Timestamp::UNIX_EPOCH),
    );
    profile.duration = Duration::from_nanos(u64::try_from(read.duration_nanos).unwrap_or(0));

    let mut functions = HashMap::with_capacity(read.function.len());
    for (function, index) in read.function.iter().zip(0..) {
        let mut text = |index| profile.strings.intern(read.text(index));
        let name = text(function.name);
        let system_name = text(function.system_name);
        let file = text(function.filename);
        profile.functions.push(Function { name, system_name, file });
        functions.insert(function.id, FunctionHandle(index));
    }
    let mut frames = HashMap::with_capacity(read.location.len());
    // Frames of the model have different addresses. Locations that share one get another here.
    let mut free_addresses = (0..=u64::MAX).rev();
    for location in &read.location {
        let count = profile.frames.iter().len();
        let mut frame = profile.frames.intern(location.address);
        while profile.frames.iter().len() == count {
            let Some(address) = free_addresses.next() else { break };
            frame = profile.frames.intern(address);
        }
        profile.frames.get_mut(frame).lines = location
            .line
            .iter()
            .filter_map(|line| {
                let function = *functions.get(&line.function_id)?;
                Some(Line { function, line: u32::try_from(line.line).unwrap_or(0) })
            })
            .collect();
        frames.insert(location.id, frame);
    }
    for sample in &read.sample {
        let outermost_first = sample.location_id.iter().rev();
        let stack = outermost_first
            .filter_map(|location| frames.get(location))
            .fold(None, |parent, &frame| Some(profile.stacks.intern(parent, frame)));
        let labels = sample.label.iter().map(|label| {
            let mut text = |index| profile.strings.intern(read.text(index));
            let key = text(label.key);
            let value = match label.str {
                0 => LabelValue::Number(label.num, text(label.num_unit)),
                index => LabelValue::Text(text(index)),
            };
            Label { key, value }
        });
        let labels: Vec<Label> = labels.collect();
        profile.samples.push(Sample { stack, values: sample.value.clone(), labels });
    }
    profile
}

fn known_name(name: &str) -> &'static str {
    KNOWN_NAMES.iter().find(|known| **known == name).copied().unwrap_or("")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::pprof;
    use crate::model::StringHandle;

    fn profile() -> Profile {
        let space = ValueType { name: "inuse_space", unit: "bytes" };
        let period_type = ValueType { name: "space", unit: "bytes" };
        let mut profile = Profile::new(&[space], period_type, 512, Timestamp::UNIX_EPOCH);
        profile.duration = Duration::from_millis(1500);
        for (addresses, value) in [([30, 20, 10], 7), ([31, 20, 10], 9)] {
            let stack = profile.intern_stack(&addresses);
            for address in addresses {
                let frame = profile.frames.intern(address);
                profile.name_frame(frame, &format!("orders::f{address}"));
            }
            let labels =
                vec![profile.number_label("bytes", 64, "bytes"), profile.text_label("span", "s")];
            profile.samples.push(Sample { stack, values: vec![value], labels });
        }
        profile
    }

    /// Names of the functions, values and labels of each sample.
    fn contents(profile: &Profile) -> Vec<String> {
        let name = |handle: StringHandle| profile.strings.get(handle).to_owned();
        let sample = |sample: &Sample| {
            let frames = profile.stacks.frames(sample.stack).map(|frame| profile.frames.get(frame));
            let functions = frames.flat_map(|frame| frame.lines.iter()).map(|line| line.function);
            let names: Vec<String> =
                functions.map(|function| name(profile.functions[function.index()].name)).collect();
            let labels: Vec<String> = sample
                .labels
                .iter()
                .map(|label| match label.value {
                    LabelValue::Text(text) => format!("{}={}", name(label.key), name(text)),
                    LabelValue::Number(n, unit) => format!("{}={n}{}", name(label.key), name(unit)),
                })
                .collect();
            format!("{names:?} {:?} {labels:?}", sample.values)
        };
        profile.samples.iter().map(sample).collect()
    }

    #[test]
    fn written_profile_is_read_with_equal_contents() {
        let original = profile();
        let mut bytes = Vec::new();
        pprof::write(&original, &mut bytes).unwrap();
        let read = read_model(&bytes, Bytes::mib(1)).unwrap();
        assert_eq!(contents(&read), contents(&original));
        assert_eq!((read.period, read.duration), (original.period, original.duration));
        assert_eq!(
            (read.sample_types, read.period_type),
            (original.sample_types, original.period_type)
        );
    }

    #[test]
    fn locations_without_address_stay_apart() {
        let mut bytes = Vec::new();
        pprof::write(&profile(), &mut bytes).unwrap();
        let mut proto = pprof::read(&bytes).unwrap();
        proto.location.iter_mut().for_each(|location| location.address = 0);
        assert_eq!(contents(&to_model(&proto)), contents(&profile()));
    }

    #[test]
    fn profile_that_takes_more_memory_is_refused() {
        let mut bytes = Vec::new();
        pprof::write(&profile(), &mut bytes).unwrap();
        assert!(read_model(&bytes, Bytes(1000)).is_err());
    }
}
