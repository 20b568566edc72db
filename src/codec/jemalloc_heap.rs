//! Reader of `heap_v2`, the text format of jemalloc's profiler.
//!
//! ```text
//! heap_v2/524288                     sampling interval in bytes
//!   t*: 28106: 56637512 [0: 0]       all threads: objects in use, bytes [ever allocated, bytes]
//!   t1: …                            each thread
//! @ 0x5f86da8 0x5f5a1dc …            a stack: return addresses, innermost first
//!   t*: 13: 6688 [0: 0]              the sampled blocks of this stack
//!   t3: …
//!
//! MAPPED_LIBRARIES:                  /proc/self/maps, for which the caller has a better source
//! ```
//!
//! The numbers count samples. They are scaled up here as in jeprof, by 1/(1-exp(-mean/rate)), where
//! mean is the mean size of the stack's blocks. From 5.3 on jemalloc writes numbers for which this
//! is unbiased. With earlier versions, a stack with blocks of several sizes is underestimated.

use std::io::BufRead;

use jiff::Timestamp;

use super::error::Error;
use crate::model::{Profile, Sample, ValueType};

const SAMPLE_TYPES: [ValueType; 4] = [
    ValueType { name: "alloc_objects", unit: "count" },
    ValueType { name: "alloc_space", unit: "bytes" },
    ValueType { name: "inuse_objects", unit: "count" },
    ValueType { name: "inuse_space", unit: "bytes" },
];

/// Reads a profile that jemalloc wrote at `now`. `accumulated` is `true` if it includes cumulative
/// allocations (`opt.prof_accum`); otherwise the profile lacks these sample types.
///
/// # Errors
///
/// If the text has another form or is truncated.
pub fn read(text: impl BufRead, accumulated: bool, now: Timestamp) -> Result<Profile, Error> {
    let mut lines = text.split(b'\n');
    let mut next = || -> Result<Option<String>, Error> {
        let line =
            lines.next().transpose().map_err(|error| Error::JemallocHeap(error.to_string()))?;
        Ok(line.map(|line| String::from_utf8_lossy(&line).into_owned()))
    };
    let head = next()?.unwrap_or_default();
    let rate: i64 = head
        .strip_prefix("heap_v2/")
        .and_then(|rate| rate.parse().ok())
        .filter(|&rate| rate > 0)
        .ok_or_else(|| Error::JemallocHeap("the first line is not `heap_v2/` and a rate".into()))?;
    let types = if accumulated { &SAMPLE_TYPES[..] } else { &SAMPLE_TYPES[2..] };
    let mut profile = Profile::new(types, ValueType { name: "space", unit: "bytes" }, rate, now);
    profile.default_sample_type = "inuse_space";
    let mut stack = None;
    let mut sums = Sums::default();
    loop {
        let Some(line) = next()? else {
            return Err(Error::JemallocHeap("it is truncated: no MAPPED_LIBRARIES".into()));
        };
        if line == "MAPPED_LIBRARIES:" {
            break;
        }
        if let Some(addresses) = line.strip_prefix("@ ") {
            stack = Some(parse_stack(addresses)?);
        } else if let Some(counts) = line.trim_start().strip_prefix("t*:") {
            // The first such line is the total of the program.
            let Some(frames) = stack.take() else { continue };
            let [in_use, allocated] = parse_counts(counts)?;
            let scale = |counts: HeapCounts| counts.scaled(rate);
            let values = [scale(allocated), scale(in_use)].concat();
            sums.add(in_use, rate);
            let values = values.get(4 - types.len()..).unwrap_or_default().to_vec();
            let stack = profile.intern_stack(&frames);
            profile.samples.push(Sample { stack, values, labels: Vec::new() });
        }
    }
    add_comments(&mut profile, sums, accumulated);
    Ok(profile)
}

fn add_comments(profile: &mut Profile, sums: Sums, accumulated: bool) {
    let rate = profile.period;
    let bytes = sums.bytes;
    let error = sums.variance.sqrt();
    let percent = if bytes > 0.0 { error / bytes * 100.0 } else { 0.0 };
    let mut add_comment = |text: String| profile.comments.push(text);
    add_comment(format!(
        "heap: sampled by jemalloc's profiler, one sample in {rate} bytes allocated, on average \
         (lg_prof_sample, fixed at program start)"
    ));
    add_comment(format!(
        "heap: {bytes:.0} bytes in use, standard error about {error:.0} ({percent:.1} %), computed \
         from the mean block size of each stack"
    ));
    add_comment(
        "heap: sizes are rounded up to jemalloc's size classes; jemalloc reports neither the size \
         of each block nor the samples it lost; marple's blocks are included"
            .to_owned(),
    );
    if !accumulated {
        add_comment(
            "heap: cumulative allocations are not included: jemalloc counts them with \
             prof_accum:true"
                .to_owned(),
        );
    }
}

/// Returns the addresses of a stack line, each minus one so that it is inside the call.
fn parse_stack(addresses: &str) -> Result<Vec<u64>, Error> {
    let address = |word: &str| {
        let digits = word.strip_prefix("0x")?;
        Some(u64::from_str_radix(digits, 16).ok()?.saturating_sub(1))
    };
    addresses
        .split_whitespace()
        .map(|word| {
            address(word)
                .ok_or_else(|| Error::JemallocHeap(format!("invalid address `{word}` in a stack")))
        })
        .collect()
}

#[derive(Clone, Copy, Default)]
struct HeapCounts {
    objects: u64,
    bytes: u64,
}

impl HeapCounts {
    fn weight(self, rate: i64) -> f64 {
        if self.objects == 0 || self.bytes == 0 || rate <= 1 {
            return 1.0;
        }
        let mean = self.bytes as f64 / self.objects as f64;
        -1.0 / (-mean / rate as f64).exp_m1()
    }

    fn scaled(self, rate: i64) -> [i64; 2] {
        let weight = self.weight(rate);
        [self.objects, self.bytes].map(|value| (value as f64 * weight).round() as i64)
    }
}

#[derive(Default)]
struct Sums {
    bytes: f64,
    variance: f64,
}

impl Sums {
    fn add(&mut self, counts: HeapCounts, rate: i64) {
        let weight = counts.weight(rate);
        let bytes = counts.bytes as f64;
        self.bytes += bytes * weight;
        if counts.objects > 0 {
            self.variance += bytes * bytes / counts.objects as f64 * weight * (weight - 1.0);
        }
    }
}

/// Parses ` 13: 6688 [20: 9000]`.
fn parse_counts(text: &str) -> Result<[HeapCounts; 2], Error> {
    let mut numbers = text
        .split(|c: char| !c.is_ascii_digit())
        .filter(|digits| !digits.is_empty())
        .map(|digits| digits.parse::<u64>().ok());
    let mut counts = || {
        let objects = numbers.next()??;
        let bytes = numbers.next()??;
        Some(HeapCounts { objects, bytes })
    };
    match (counts(), counts()) {
        (Some(in_use), Some(allocated)) => Ok([in_use, allocated]),
        _ => Err(Error::JemallocHeap(format!("`{text}` is not four numbers"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "heap_v2/524288\n  t*: 3: 21495808 [5: 22000000]\n  t0: 3: 21495808 [0: 0] main\n\
        @ 0x2000 0x1001\n  t*: 1: 20971520 [2: 41943040]\n  t0: 1: 20971520 [0: 0]\n\
        @ 0x3000 0x1001\n  t*: 2: 524288 [0: 0]\n  t0: 2: 524288 [0: 0]\n\nMAPPED_LIBRARIES:\n55-56 r-xp\n";

    fn profile(text: &str, accumulated: bool) -> Result<Profile, Error> {
        read(text.as_bytes(), accumulated, Timestamp::UNIX_EPOCH)
    }

    #[test]
    fn sample_counts_are_scaled_by_sampling_weight() {
        let profile = profile(TEXT, true).unwrap();
        // 1/(1-exp(-1/2)) = 2.5415, for two blocks of 256 KiB.
        let values: Vec<_> = profile.samples.iter().map(|sample| sample.values.clone()).collect();
        assert_eq!(values, [vec![2, 41943040, 1, 20971520], vec![0, 0, 5, 1332475]]);
        let frames = |at: usize| -> Vec<u64> {
            let stack = profile.samples[at].stack;
            profile.stacks.frames(stack).map(|frame| profile.frames.get(frame).address).collect()
        };
        assert_eq!((frames(0), frames(1)), (vec![0x1fff, 0x1000], vec![0x2fff, 0x1000]));
        assert_eq!((profile.period, profile.default_sample_type), (524288, "inuse_space"));
    }

    #[test]
    fn without_prof_accum_allocation_totals_are_omitted() {
        let profile = profile(TEXT, false).unwrap();
        assert_eq!(profile.sample_types, SAMPLE_TYPES[2..]);
        assert_eq!(profile.samples[1].values, [5, 1332475]);
        assert!(profile.comments.iter().any(|comment| comment.contains("prof_accum:true")));
    }

    #[test]
    fn truncated_or_malformed_heap_text_is_rejected() {
        let end = TEXT.find("MAPPED").unwrap();
        for length in 0..end {
            assert!(profile(&TEXT[..length], false).is_err(), "{length}");
        }
        let broken =
            [TEXT.replace("0x2000", "zero"), TEXT.replace("2: 524288 [0: 0]\n  t0", "2\n")];
        for text in broken.into_iter().chain([TEXT.replace("/524288", "/0")]) {
            assert!(profile(&text, false).is_err(), "{text}");
        }
    }
}
