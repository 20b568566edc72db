//! Conversion of tallies to a profile with comments on its accuracy.

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

const SAMPLES: ValueType = ValueType { name: "samples", unit: "count" };
const CPU: ValueType = ValueType { name: "cpu", unit: "nanoseconds" };

/// Metadata of a profile.
pub(super) struct Subject<'a> {
    /// Engine and the reason for its selection.
    pub(super) engine: &'a str,
    pub(super) user_only: bool,
    pub(super) frequency: Hertz,
    pub(super) started: Timestamp,
    pub(super) duration: Duration,
    /// CPU time of the process in `duration`.
    pub(super) cpu: Duration,
    /// Phase of the incident, as a sentence.
    pub(super) part: String,
    pub(super) images: Vec<Mapping>,
    /// Reason why sampling ended early.
    pub(super) broken: Option<&'a str>,
}

/// Key of a profile's row: (thread name, frames, outer end missing).
type ReportRow = (String, Vec<u64>, bool);

/// Maximum number of thread names with a separate loss for unsampled CPU time.
const MAX_UNSEEN: usize = 8;

/// Builds the profile of `tallies`, which cover consecutive intervals.
pub(super) fn profile(
    subject: Subject<'_>,
    tallies: &[&SampleTable],
    roster: &ThreadTable,
) -> Profile {
    let period = 1_000_000_000 / i64::from(subject.frequency.get().max(1));
    let mut profile = Profile::new(&[SAMPLES, CPU], CPU, period, subject.started);
    profile.default_sample_type = CPU.name;
    profile.duration = subject.duration;

    let mut strata: BTreeMap<u32, NameGroup> = BTreeMap::new();
    for (name, stratum) in tallies.iter().flat_map(|tally| tally.strata()) {
        strata.entry(name).or_default().add(stratum);
    }
    let lost = tallies.iter().map(|tally| tally.lost).fold(0, u64::saturating_add);
    let scales = ScaleFactors::of(&strata, period.unsigned_abs(), lost);

    let mut rows: BTreeMap<ReportRow, (u64, f64, Vec<SampleOrigin>)> = BTreeMap::new();
    for (part, tally) in tallies.iter().enumerate() {
        for (place, count) in tally.places() {
            let name = roster.name(place.name).to_owned();
            let row = (name, tally.frames(place).collect(), place.is_cut);
            let (samples, nanos, homes) = rows.entry(row).or_default();
            *samples += count.samples;
            *nanos += count.weight as f64 * scales.at(place.name) * period as f64;
            homes.push((part, place));
        }
    }
    let mut timed = SampleIndex::default();
    let mut got = 0;
    for ((name, frames, is_cut), (samples, nanos, homes)) in rows {
        let stack = profile.intern_stack(&frames);
        let mut labels = vec![profile.text_label("thread", &name)];
        if is_cut {
            labels.push(profile.text_label("stack", "cut"));
        }
        timed.sample(profile.samples.len(), &homes);
        let nanos = nanos.round() as u64;
        got += nanos;
        profile.samples.push(Sample {
            stack,
            values: vec![signed(samples), signed(nanos)],
            labels,
        });
    }
    let got = got / period.unsigned_abs().max(1);
    timed.tell(&mut profile, tallies);
    remark(&mut profile, &subject, tallies);
    fit(&mut profile, &subject, tallies, &scales, got, roster);
    profile.attach_mappings(subject.images);
    profile
}

fn remark(profile: &mut Profile, subject: &Subject<'_>, tallies: &[&SampleTable]) {
    let sum = |of: fn(&SampleTable) -> u64| {
        tallies.iter().map(|tally| of(tally)).fold(0, u64::saturating_add)
    };
    let all = SampleCount { samples: sum(|t| t.all.samples), weight: sum(|t| t.all.weight) };
    profile.comments.push(subject.part.clone());
    profile.comments.push(format!(
        "recorded by the engine `{}`, each thread at {} of its CPU time",
        subject.engine, subject.frequency
    ));
    if all.weight > all.samples {
        let rate = all.samples as f64 / subject.cpu.as_secs_f64().max(f64::EPSILON);
        profile.comments.push(format!(
            "{} samples stand for {} periods (expirations between two ticks of the kernel come as one): \
             {rate:.0} samples a second of CPU time",
            all.samples, all.weight
        ));
    }
    let losses = [
        ("CPU samples that found no room in their ring", sum(|t| t.lost)),
        ("CPU samples counted without a stack: the table of stacks is full", sum(|t| t.unplaced)),
        (
            "CPU samples with frames left out in the middle: deeper than 128 frames",
            sum(|t| t.omitted),
        ),
        (
            "CPU samples deeper than their copy, whose outermost frames are those of an earlier sample, \
             still in place",
            sum(|t| t.joined),
        ),
        ("CPU samples cut at the outer end: the stack is deeper than its copy", sum(|t| t.short)),
        ("CPU samples cut at the outer end: more than 4096 frames", sum(|t| t.too_deep)),
        ("CPU samples cut where unwind information ends", sum(|t| t.broken)),
        (
            "CPU samples on a signal's alternate stack, cut where the handler began",
            sum(|t| t.elsewhere),
        ),
        (
            "CPU samples walked through code without unwind tables, by its calls and frame pointers",
            sum(|t| t.inferred),
        ),
    ];
    for (cause, count) in losses {
        profile.losses.add(cause, count);
    }
    let unsampled = tallies.iter().filter_map(|tally| tally.unsampled.as_ref());
    if let Some(Unsampled { threads, why }) = unsampled.max_by_key(|most| most.threads) {
        profile.losses.add(format!("threads without CPU samples: {why}"), *threads);
    }
    if let Some(why) = subject.broken {
        profile.losses.add(format!("CPU profile ended early: {why}"), 1);
    }
}

/// Adds comments on the scales, the error of shares and the CPU time covered, and losses for the
/// rest.
fn fit(
    profile: &mut Profile,
    subject: &Subject<'_>,
    tallies: &[&SampleTable],
    scales: &ScaleFactors,
    got: u64,
    roster: &ThreadTable,
) {
    let sum = |of: fn(&SampleTable) -> u64| tallies.iter().map(|tally| of(tally)).sum::<u64>();
    if let Some((largest, name)) = scales.largest {
        profile.comments.push(format!(
            "cpu: samples of threads of one name are scaled to the CPU time the kernel charged to those \
             threads: by {:.3} on average, by {largest:.3} at most (`{}`); {} samples were taken",
            scales.weight / (sum(|t| t.all.weight) as f64).max(1.0),
            roster.name(name),
            sum(|t| t.all.samples)
        ));
    }
    profile.comments.extend(standard_error(scales.weight, scales.squares));
    let period = 1_000_000_000 / u64::from(subject.frequency.get().max(1));
    let mut unseen = 0;
    for (place, &(name, nanos)) in scales.unseen.iter().enumerate() {
        let periods = nanos / period;
        unseen += periods;
        let cause = match place {
            0..MAX_UNSEEN => format!("{UNSEEN}: `{}`", roster.name(name)),
            _ => format!("{UNSEEN}: of other names"),
        };
        profile.losses.add(cause, periods);
    }
    let rest = if subject.user_only {
        "CPU time without a sample: in the kernel, which is hidden here, or in short-lived threads"
    } else {
        "CPU time without a sample, in periods: threads that ended within one, or unseen"
    };
    let lost = sum(|t| t.lost) + unseen;
    accounting::tell(profile, subject.cpu, subject.frequency, got, lost, rest);
}

const UNSEEN: &str = "CPU time without a sample, in periods: threads called";

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

fn signed(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_is_the_binomials_over_what_the_weights_are_worth() {
        assert_eq!(standard_error(0.0, 0.0), None);
        let alike = standard_error(400.0, 400.0).unwrap();
        assert!(alike.contains("2.5 points at 50 %, 1.5 at 10 %"), "{alike}");
        // 100 samples of weight 4 count as 100 independent samples.
        let heavy = standard_error(400.0, 1600.0).unwrap();
        assert!(heavy.contains("5.0 points at 50 %") && heavy.contains("(100 "), "{heavy}");
    }
}
