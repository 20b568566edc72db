//! Conversion of sample tables to a profile with comments on its accuracy.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;

use super::allotment::Unsampled;
use crate::base::Hertz;
use crate::cpu::accounting;
use crate::cpu::sampling::sample_table::{SampleCount, SampleTable};
use crate::cpu::sampling::sample_times::{SampleIndex, SampleOrigin};
use crate::cpu::sampling::scaling::{NameGroup, ScaleFactors};
use crate::cpu::sampling::thread_table::ThreadTable;
use crate::model::{Mapping, Profile, Sample, ValueType};

const SAMPLES_TYPE: ValueType = ValueType { name: "samples", unit: "count" };
const CPU_TYPE: ValueType = ValueType { name: "cpu", unit: "nanoseconds" };

/// Metadata of a profile.
pub(super) struct CpuProfileInfo<'a> {
    /// Engine and the reason for its selection.
    pub(super) engine: &'a str,
    pub(super) user_only: bool,
    pub(super) frequency: Hertz,
    pub(super) started: Timestamp,
    pub(super) duration: Duration,
    /// CPU time of the process in `duration`.
    pub(super) cpu_time: Duration,
    /// Phase of the incident, as a sentence.
    pub(super) phase: String,
    pub(super) images: Vec<Mapping>,
    /// Reason why sampling ended early.
    pub(super) failure: Option<&'a str>,
}

/// Key of a profile's row: (thread name, frames, outer end missing).
type ReportRow = (String, Vec<u64>, bool);

/// Maximum number of thread names with a separate loss for unsampled CPU time.
const MAX_UNSAMPLED_NAMES: usize = 8;

/// Builds the profile of `tables`, which cover consecutive intervals.
pub(super) fn build_profile(
    info: CpuProfileInfo<'_>,
    tables: &[&SampleTable],
    thread_table: &ThreadTable,
) -> Profile {
    let period = 1_000_000_000 / i64::from(info.frequency.get().max(1));
    let mut profile = Profile::new(&[SAMPLES_TYPE, CPU_TYPE], CPU_TYPE, period, info.started);
    profile.default_sample_type = CPU_TYPE.name;
    profile.duration = info.duration;

    let mut groups: BTreeMap<u32, NameGroup> = BTreeMap::new();
    for (name, group) in tables.iter().flat_map(|tally| tally.name_groups()) {
        groups.entry(name).or_default().add(group);
    }
    let lost = tables.iter().map(|tally| tally.lost).fold(0, u64::saturating_add);
    let factors = ScaleFactors::compute(&groups, period.unsigned_abs(), lost);

    let mut rows: BTreeMap<ReportRow, (u64, f64, Vec<SampleOrigin>)> = BTreeMap::new();
    for (table_index, table) in tables.iter().enumerate() {
        for (key, count) in table.counts() {
            let name = thread_table.name(key.name).to_owned();
            let row = (name, table.frames(key).collect(), key.is_truncated);
            let (samples, nanos, origins) = rows.entry(row).or_default();
            *samples += count.samples;
            *nanos += count.weight as f64 * factors.scale_of(key.name) * period as f64;
            origins.push((table_index, key));
        }
    }
    let mut timed = SampleIndex::default();
    let mut sampled_nanos = 0;
    for ((name, frames, is_truncated), (samples, nanos, origins)) in rows {
        let stack = profile.intern_stack(&frames);
        let mut labels = vec![profile.text_label("thread", &name)];
        if is_truncated {
            labels.push(profile.text_label("stack", "cut"));
        }
        timed.insert(profile.samples.len(), &origins);
        let nanos = nanos.round() as u64;
        sampled_nanos += nanos;
        profile.samples.push(Sample {
            stack,
            values: vec![saturating_i64(samples), saturating_i64(nanos)],
            labels,
        });
    }
    let sampled_periods = sampled_nanos / period.unsigned_abs().max(1);
    let logs: Vec<_> = tables.iter().map(|table| &table.log).collect();
    timed.append_times(&mut profile, &logs);
    add_comments_and_losses(&mut profile, &info, tables);
    add_accuracy_comments(&mut profile, &info, tables, &factors, sampled_periods, thread_table);
    profile.attach_mappings(info.images);
    profile
}

fn add_comments_and_losses(
    profile: &mut Profile,
    info: &CpuProfileInfo<'_>,
    tables: &[&SampleTable],
) {
    let sum = |of: fn(&SampleTable) -> u64| {
        tables.iter().map(|tally| of(tally)).fold(0, u64::saturating_add)
    };
    let total = SampleCount { samples: sum(|t| t.total.samples), weight: sum(|t| t.total.weight) };
    profile.comments.push(info.phase.clone());
    profile.comments.push(format!(
        "recorded by the engine `{}`; each thread is sampled at {} of its CPU time",
        info.engine, info.frequency
    ));
    if total.weight > total.samples {
        let rate = total.samples as f64 / info.cpu_time.as_secs_f64().max(f64::EPSILON);
        profile.comments.push(format!(
            "{} samples represent {} periods (the kernel merges timer expirations between two \
             ticks): {rate:.0} samples per second of CPU time",
            total.samples, total.weight
        ));
    }
    let losses = [
        ("CPU samples dropped: buffer full", sum(|t| t.lost)),
        ("CPU samples without a stack: stack table full", sum(|t| t.table_full)),
        (
            "CPU samples with frames omitted in the middle: deeper than 128 frames",
            sum(|t| t.omitted),
        ),
        (
            "CPU samples deeper than their stack copy, completed with the unchanged outermost \
             frames of an earlier sample",
            sum(|t| t.joined),
        ),
        (
            "CPU samples truncated at the outer end: stack deeper than its copy",
            sum(|t| t.copy_too_short),
        ),
        ("CPU samples truncated at the outer end: more than 4096 frames", sum(|t| t.too_deep)),
        ("CPU samples truncated where unwind information ends", sum(|t| t.no_unwind_info)),
        (
            "CPU samples on a signal's alternate stack, truncated where the handler began",
            sum(|t| t.on_alternate_stack),
        ),
        (
            "CPU samples unwound through code without unwind tables, by call sites and frame \
             pointers",
            sum(|t| t.used_heuristics),
        ),
    ];
    for (cause, count) in losses {
        profile.losses.add(cause, count);
    }
    let unsampled = tables.iter().filter_map(|tally| tally.unsampled.as_ref());
    if let Some(Unsampled { threads, reason }) = unsampled.max_by_key(|most| most.threads) {
        profile.losses.add(format!("threads without CPU samples: {reason}"), *threads);
    }
    if let Some(reason) = info.failure {
        profile.losses.add(format!("CPU profile ended early: {reason}"), 1);
    }
}

/// Adds comments on the scales, the error of shares and the CPU time covered, and losses for the
/// rest.
fn add_accuracy_comments(
    profile: &mut Profile,
    info: &CpuProfileInfo<'_>,
    tables: &[&SampleTable],
    factors: &ScaleFactors,
    sampled_periods: u64,
    thread_table: &ThreadTable,
) {
    let sum = |of: fn(&SampleTable) -> u64| tables.iter().map(|tally| of(tally)).sum::<u64>();
    if let Some((largest, name)) = factors.largest {
        profile.comments.push(format!(
            "cpu: samples are scaled to the kernel's CPU time of all threads with the same name: \
             by {:.3} on average, by {largest:.3} at most (`{}`); {} samples were recorded",
            factors.weight / (sum(|t| t.total.weight) as f64).max(1.0),
            thread_table.name(name),
            sum(|t| t.total.samples)
        ));
    }
    profile.comments.extend(standard_error(factors.weight, factors.squared_weights));
    let period = 1_000_000_000 / u64::from(info.frequency.get().max(1));
    let mut unsampled_periods = 0;
    for (index, &(name, nanos)) in factors.unsampled_cpu.iter().enumerate() {
        let periods = nanos / period;
        unsampled_periods += periods;
        let cause = match index {
            0..MAX_UNSAMPLED_NAMES => format!("{UNSAMPLED_CAUSE}: `{}`", thread_table.name(name)),
            _ => format!("{UNSAMPLED_CAUSE}: other names"),
        };
        profile.losses.add(cause, periods);
    }
    let remaining_cause = if info.user_only {
        "CPU time without a sample: in the kernel, which perf may not sample here, or in \
         short-lived threads"
    } else {
        "CPU time without a sample, in periods: threads that ended within one period or were never \
         listed"
    };
    let lost = sum(|t| t.lost) + unsampled_periods;
    accounting::report_losses(
        profile,
        info.cpu_time,
        info.frequency,
        sampled_periods,
        lost,
        remaining_cause,
    );
}

const UNSAMPLED_CAUSE: &str = "CPU time without a sample, in periods, by thread name";

/// Returns the standard error of a function's share. Samples of unequal weight carry less
/// information than equal ones: `effective = (sum w)^2 / sum w^2` (Kish).
fn standard_error(weight: f64, squares: f64) -> Option<String> {
    let effective = weight.powi(2) / squares;
    let points = |share: f64| 100.0 * (share * (1.0 - share) / effective).sqrt();
    (squares > 0.0).then(|| {
        format!(
            "standard error of a share: {:.1} points at 50 %, {:.1} at 10 %, {:.1} at 1 % \
             ({effective:.0} independent samples)",
            points(0.5),
            points(0.1),
            points(0.01)
        )
    })
}

fn saturating_i64(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn standard_error_uses_effective_sample_size() {
        assert_eq!(standard_error(0.0, 0.0), None);
        let alike = standard_error(400.0, 400.0).unwrap();
        assert!(alike.contains("2.5 points at 50 %, 1.5 at 10 %"), "{alike}");
        // 100 samples of weight 4 count as 100 independent samples.
        let heavy = standard_error(400.0, 1600.0).unwrap();
        assert!(heavy.contains("5.0 points at 50 %") && heavy.contains("(100 "), "{heavy}");
    }
}
