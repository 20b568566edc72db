//! Profiles as text, in the form Go prints for `debug=1`. Readable as text and by `go tool pprof`.
//!
//! ```text
//! heap profile: 3: 3072 [40: 40960] @ heapprofile
//! 3: 3072 [40: 40960] @ 0x55d0c8 0x55d001
//! #  0x55d0c8  orders::cache::fill
//! #  0x55d001  main
//!
//! # memory.rss = 10485760
//! ```
//!
//! Go ends its first line with `heap/<rate>`, and readers then scale each line up by the sampling
//! rate. The values here are already estimates, so the line ends with `heapprofile`, which readers
//! take unscaled. The vitals of the process replace Go's `runtime.MemStats`, one per line, in
//! bytes, seconds or per cent.

use std::collections::HashMap;
use std::io::{self, Write};

use crate::model::{LabelValue, Profile, Sample, VitalsRow};

/// Writes `profile`: a heap profile in Go's form for heaps, any other in Go's form for counted
/// stacks.
///
/// # Errors
///
/// Errors of `out`.
pub fn write(profile: &Profile, vitals: &VitalsRow, mut out: impl Write) -> io::Result<()> {
    match profile.sample_types.len() {
        4 => write_heap(profile, &mut out)?,
        _ => write_counts(profile, &mut out)?,
    }
    writeln!(out)?;
    for comment in &profile.comments {
        writeln!(out, "# {comment}")?;
    }
    for (name, value) in &vitals.values {
        writeln!(out, "# {name} = {value}")?;
    }
    Ok(())
}

/// Go's order is in use, then allocated; the profile's order is the reverse.
fn write_heap(profile: &Profile, out: &mut impl Write) -> io::Result<()> {
    let total = |name| profile.total(name).unwrap_or_default();
    writeln!(
        out,
        "heap profile: {}: {} [{}: {}] @ heapprofile",
        total("inuse_objects"),
        total("inuse_space"),
        total("alloc_objects"),
        total("alloc_space"),
    )?;
    let mut samples: Vec<&Sample> = profile.samples.iter().collect();
    let in_use = |sample: &Sample| sample.values.get(3).copied().unwrap_or_default();
    samples.sort_by_key(|sample| std::cmp::Reverse(in_use(sample)));
    for sample in samples {
        if let [allocs, allocated, objects, bytes] = sample.values[..] {
            write!(out, "{objects}: {bytes} [{allocs}: {allocated}]")?;
            write_stack(profile, sample, out)?;
        }
    }
    Ok(())
}

/// Writes equal samples as one line with their count.
fn write_counts(profile: &Profile, out: &mut impl Write) -> io::Result<()> {
    let name = profile.sample_types.first().map_or("", |kind| kind.name);
    writeln!(out, "{name} profile: total {}", profile.total(name).unwrap_or_default())?;
    let mut order: Vec<(&Sample, String, i64)> = Vec::new();
    let mut indices = HashMap::new();
    for sample in &profile.samples {
        let labels = format_labels(profile, sample);
        let count = sample.values.first().copied().unwrap_or_default();
        let at = *indices.entry((sample.stack, labels.clone())).or_insert(order.len());
        match order.get_mut(at) {
            Some(entry) => entry.2 += count,
            None => order.push((sample, labels, count)),
        }
    }
    order.sort_by_key(|(_, _, count)| std::cmp::Reverse(*count));
    for (sample, labels, count) in order {
        write!(out, "{count}")?;
        write_stack(profile, sample, out)?;
        if !labels.is_empty() {
            writeln!(out, "# labels: {{{labels}}}")?;
        }
    }
    Ok(())
}

/// Writes the rest of a sample's line, and a comment for each frame with a name.
fn write_stack(profile: &Profile, sample: &Sample, out: &mut impl Write) -> io::Result<()> {
    write!(out, " @")?;
    for frame in profile.stacks.frames(sample.stack) {
        write!(out, " {:#x}", profile.frames.get(frame).address)?;
    }
    writeln!(out)?;
    for frame in profile.stacks.frames(sample.stack) {
        let frame = profile.frames.get(frame);
        for line in &frame.lines {
            if let Some(function) = profile.functions.get(line.function.index()) {
                let name = profile.strings.get(function.name);
                writeln!(out, "#\t{:#x}\t{name}", frame.address)?;
            }
        }
    }
    Ok(())
}

/// Returns the text labels in Go's form.
fn format_labels(profile: &Profile, sample: &Sample) -> String {
    let label = |label: &crate::model::Label| match label.value {
        LabelValue::Text(text) => {
            Some(format!("{:?}:{:?}", profile.strings.get(label.key), profile.strings.get(text)))
        }
        LabelValue::Number(..) => None,
    };
    sample.labels.iter().filter_map(label).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use jiff::Timestamp;

    use super::*;
    use crate::model::ValueType;

    fn write_to_string(profile: &Profile) -> String {
        let values = BTreeMap::from([("memory.rss".to_owned(), 4096.0)]);
        let vitals = VitalsRow { at: Timestamp::UNIX_EPOCH, values };
        let mut out = Vec::new();
        write(profile, &vitals, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn heap_samples_are_sorted_by_size_with_totals() {
        let kind = |name| ValueType { name, unit: "count" };
        let kinds = ["alloc_objects", "alloc_space", "inuse_objects", "inuse_space"].map(kind);
        let mut profile = Profile::new(&kinds, kind("space"), 1, Timestamp::UNIX_EPOCH);
        for (address, values) in [(16, [4, 40, 1, 10]), (32, [2, 80, 2, 80])] {
            let stack = profile.intern_stack(&[address, 1]);
            profile.samples.push(Sample { stack, values: values.to_vec(), labels: vec![] });
        }
        assert_eq!(
            write_to_string(&profile),
            "heap profile: 3: 90 [6: 120] @ heapprofile\n\
             2: 80 [2: 80] @ 0x20 0x1\n1: 10 [4: 40] @ 0x10 0x1\n\n# memory.rss = 4096\n"
        );
    }

    #[test]
    fn equal_samples_are_merged_into_one_line() {
        let kind = ValueType { name: "goroutine", unit: "count" };
        let mut profile = Profile::new(&[kind], kind, 1, Timestamp::UNIX_EPOCH);
        for name in ["io", "worker", "worker"] {
            let labels = vec![profile.text_label("thread", name)];
            profile.samples.push(Sample { stack: None, values: vec![1], labels });
        }
        assert_eq!(
            write_to_string(&profile),
            "goroutine profile: total 3\n2 @\n# labels: {\"thread\":\"worker\"}\n1 @\n\
             # labels: {\"thread\":\"io\"}\n\n# memory.rss = 4096\n"
        );
    }
}
