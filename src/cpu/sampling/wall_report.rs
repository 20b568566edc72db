//! Conversion of wall-time samples to a profile.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;

use crate::base::Hertz;
use crate::cpu::sampling::sample_table::{SampleCount, SampleTable};
use crate::cpu::sampling::thread_state_key::{ThreadStateInterner, ThreadStateKey};
use crate::model::{Mapping, Profile, Sample, ValueType};

const SAMPLES_TYPE: ValueType = ValueType { name: "samples", unit: "count" };
const WALL_TYPE: ValueType = ValueType { name: "wall", unit: "nanoseconds" };

/// Counters of a wall-time recording.
#[derive(Debug, Default)]
pub(super) struct WallCounts {
    pub(super) ticks: u64,
    /// Ticks that ended before every thread was checked.
    pub(super) incomplete_ticks: u64,
    pub(super) checks: u64,
    pub(super) unchanged: u64,
    pub(super) read_from_proc: u64,
    pub(super) signalled: u64,
    pub(super) without_stack: u64,
    pub(super) ended: u64,
    /// CPU time of the threads, and time in which they waited for a core.
    pub(super) cpu_time: Duration,
    pub(super) run_delay: Duration,
    /// Reason why no thread could be signalled.
    pub(super) signal_error: Option<String>,
}

/// Metadata of a profile.
pub(super) struct WallProfileInfo {
    pub(super) started: Timestamp,
    pub(super) duration: Duration,
    pub(super) frequency: Hertz,
    pub(super) images: Vec<Mapping>,
    pub(super) allow_signals: bool,
}

/// Builds the profile of `table`, whose weights are microseconds.
pub(super) fn build_profile(
    info: WallProfileInfo,
    table: &SampleTable,
    states: &ThreadStateInterner,
    counts: &WallCounts,
) -> Profile {
    let period = 1_000_000_000 / i64::from(info.frequency.get().max(1));
    let mut profile = Profile::new(&[SAMPLES_TYPE, WALL_TYPE], WALL_TYPE, period, info.started);
    profile.default_sample_type = WALL_TYPE.name;
    profile.duration = info.duration;
    let mut rows: BTreeMap<(ThreadStateKey, Vec<u64>, bool), SampleCount> = BTreeMap::new();
    for (key, count) in table.counts() {
        let state_key = states.get(key.name).cloned();
        // Samples that found the table of stacks full.
        let overflow_key = || ThreadStateKey {
            thread: "(others)".into(),
            state: "unknown",
            ..ThreadStateKey::default()
        };
        let state_key = state_key.unwrap_or_else(overflow_key);
        let row =
            rows.entry((state_key, table.frames(key).collect(), key.is_truncated)).or_default();
        row.samples += count.samples;
        row.weight += count.weight;
    }
    let mut reason_addresses = BTreeMap::new();
    for ((state_key, frames, is_truncated), count) in rows {
        let stack = if state_key.missing_stack_reason.is_empty() {
            profile.intern_stack(&frames)
        } else {
            let next = reason_addresses.len() as u64 + 1;
            let address = *reason_addresses.entry(state_key.missing_stack_reason).or_insert(next);
            intern_reason_stack(&mut profile, address, state_key.missing_stack_reason)
        };
        let mut labels = vec![
            profile.text_label("thread", &state_key.thread),
            profile.text_label("state", state_key.state),
        ];
        if !state_key.wait_channel.is_empty() {
            labels.push(profile.text_label("wait", &state_key.wait_channel));
        }
        if is_truncated {
            labels.push(profile.text_label("stack", "cut"));
        }
        let values =
            vec![saturating_i64(count.samples), saturating_i64(count.weight.saturating_mul(1000))];
        profile.samples.push(Sample { stack, values, labels });
    }
    add_comments_and_losses(&mut profile, &info, table, counts);
    profile.attach_mappings(info.images);
    profile
}

/// Adds a stack of one pseudo-frame that states the reason: `[no stack: no response within 100
/// ms]`. The lowest addresses are never mapped, so `address` cannot be code.
fn intern_reason_stack(
    profile: &mut Profile,
    address: u64,
    reason: &str,
) -> Option<crate::model::StackHandle> {
    let frame = profile.frames.intern(address);
    profile.name_frame(frame, &format!("[{reason}]"));
    Some(profile.stacks.intern(None, frame))
}

fn add_comments_and_losses(
    profile: &mut Profile,
    info: &WallProfileInfo,
    table: &SampleTable,
    counts: &WallCounts,
) {
    let seconds = info.duration.as_secs_f64().max(f64::EPSILON);
    let observed_seconds = Duration::from_micros(table.total.weight).as_secs_f64();
    let checks_per_second = counts.checks as f64 / observed_seconds.max(f64::EPSILON);
    profile.comments.push("phase: during the capture".to_owned());
    profile.comments.push(format!(
        "wall-clock time of all threads except the sampler: {} requested, {checks_per_second:.1} \
         samples per second of thread time recorded; each sample is weighted by the time since the \
         previous one",
        info.frequency
    ));
    profile.comments.push(format!(
        "{} samples: {} of threads that had not run since the previous sample, {} read from /proc, \
         {} by signal ({:.1} signals per second), {} without a stack",
        counts.checks,
        counts.unchanged,
        counts.read_from_proc,
        counts.signalled,
        counts.signalled as f64 / seconds,
        counts.without_stack
    ));
    profile.comments.push(format!(
        "these threads used {:.3} s of CPU time and waited {:.3} s for a core, by the kernel's \
         counters; \"running\" includes both",
        counts.cpu_time.as_secs_f64(),
        counts.run_delay.as_secs_f64()
    ));
    let checks_per_thread = (checks_per_second * seconds).max(f64::EPSILON);
    profile.comments.push(format!(
        "standard error of a share of one thread's time: {:.1} points at 50 %, {:.1} at 10 %; the \
         total time of a thread is low by less than one sample interval ({:.0} ms)",
        100.0 * (0.25 / checks_per_thread).sqrt(),
        100.0 * (0.09 / checks_per_thread).sqrt(),
        1000.0 / checks_per_second.max(f64::EPSILON)
    ));
    if counts.incomplete_ticks > 0 {
        profile.comments.push(format!(
            "{} of {} ticks did not sample every thread: limit of 2000 reads or 500 signals per \
             second reached",
            counts.incomplete_ticks, counts.ticks
        ));
    }
    if !info.allow_signals {
        profile.comments.push("running threads have no stack: they are not signalled".to_owned());
    }
    profile.comments.extend(counts.signal_error.clone());
    let losses = [
        ("wall-clock samples without a stack", counts.without_stack),
        ("threads that ended, each short of up to one sample interval", counts.ended),
        ("us of wall-clock time without a stack: stack table full", table.table_full),
    ];
    for (cause, count) in losses {
        profile.losses.add(cause, count);
    }
}

fn saturating_i64(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
