//! Conversion of wall-time samples to a profile.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;

use crate::base::Hertz;
use crate::cpu::sampling::sample_table::{SampleCount, SampleTable};
use crate::cpu::sampling::thread_state_key::{ThreadStateInterner, ThreadStateKey};
use crate::model::{Mapping, Profile, Sample, ValueType};

const SAMPLES: ValueType = ValueType { name: "samples", unit: "count" };
const WALL: ValueType = ValueType { name: "wall", unit: "nanoseconds" };

/// Counters of a wall-time recording.
#[derive(Debug, Default)]
pub(super) struct WallCounts {
    pub(super) ticks: u64,
    /// Ticks that ended before every thread was checked.
    pub(super) short_ticks: u64,
    pub(super) looked: u64,
    pub(super) unmoved: u64,
    pub(super) from_outside: u64,
    pub(super) signalled: u64,
    pub(super) silent: u64,
    pub(super) ended: u64,
    /// CPU time of the threads, and time in which they waited for a core.
    pub(super) cpu: Duration,
    pub(super) waited: Duration,
    /// Reason why no thread could be signalled.
    pub(super) no_signals: Option<String>,
}

/// Metadata of a profile.
pub(super) struct Subject {
    pub(super) started: Timestamp,
    pub(super) duration: Duration,
    pub(super) frequency: Hertz,
    pub(super) images: Vec<Mapping>,
    pub(super) signals: bool,
}

/// Builds the profile of `tally`, whose weights are microseconds.
pub(super) fn profile(
    subject: Subject,
    tally: &SampleTable,
    standings: &ThreadStateInterner,
    counts: &WallCounts,
) -> Profile {
    let period = 1_000_000_000 / i64::from(subject.frequency.get().max(1));
    let mut profile = Profile::new(&[SAMPLES, WALL], WALL, period, subject.started);
    profile.default_sample_type = WALL.name;
    profile.duration = subject.duration;
    let mut rows: BTreeMap<(ThreadStateKey, Vec<u64>, bool), SampleCount> = BTreeMap::new();
    for (place, count) in tally.places() {
        let standing = standings.get(place.name).cloned();
        // Samples that found the table of stacks full.
        let others = || ThreadStateKey {
            thread: "(others)".into(),
            state: "unknown",
            ..ThreadStateKey::default()
        };
        let standing = standing.unwrap_or_else(others);
        let row = rows.entry((standing, tally.frames(place).collect(), place.is_cut)).or_default();
        row.samples += count.samples;
        row.weight += count.weight;
    }
    let mut nowhere = BTreeMap::new();
    for ((standing, frames, is_cut), count) in rows {
        let stack = if standing.why.is_empty() {
            profile.intern_stack(&frames)
        } else {
            let next = nowhere.len() as u64 + 1;
            let address = *nowhere.entry(standing.why).or_insert(next);
            named(&mut profile, address, standing.why)
        };
        let mut labels = vec![
            profile.text_label("thread", &standing.thread),
            profile.text_label("state", standing.state),
        ];
        if !standing.wait.is_empty() {
            labels.push(profile.text_label("wait", &standing.wait));
        }
        if is_cut {
            labels.push(profile.text_label("stack", "cut"));
        }
        let values = vec![signed(count.samples), signed(count.weight.saturating_mul(1000))];
        profile.samples.push(Sample { stack, values, labels });
    }
    remark(&mut profile, &subject, tally, counts);
    profile.attach_mappings(subject.images);
    profile
}

/// Adds a stack of one pseudo-frame that states the reason: `[no answer within 100 ms]`. The lowest
/// addresses are never mapped, so `address` cannot be code.
fn named(profile: &mut Profile, address: u64, why: &str) -> Option<crate::model::StackHandle> {
    let frame = profile.frames.intern(address);
    profile.name_frame(frame, &format!("[{why}]"));
    Some(profile.stacks.intern(None, frame))
}

fn remark(profile: &mut Profile, subject: &Subject, tally: &SampleTable, counts: &WallCounts) {
    let seconds = subject.duration.as_secs_f64().max(f64::EPSILON);
    let watched = Duration::from_micros(tally.all.weight).as_secs_f64();
    let rate = counts.looked as f64 / watched.max(f64::EPSILON);
    profile.comments.push("part: the capture itself".to_owned());
    profile.comments.push(format!(
        "wall time of all threads but the one that looks: at {} each, got {rate:.1} looks a second of a \
         thread's time; a look stands for the time since the one before",
        subject.frequency
    ));
    profile.comments.push(format!(
        "{} looks: {} at threads that had not run since, {} read from outside, {} by signal \
         ({:.1} signals a second), {} without a stack",
        counts.looked,
        counts.unmoved,
        counts.from_outside,
        counts.signalled,
        counts.signalled as f64 / seconds,
        counts.silent
    ));
    profile.comments.push(format!(
        "the kernel counted {:.3} s of CPU time for these threads and {:.3} s of waiting for a core; \
         \"running\" holds both",
        counts.cpu.as_secs_f64(),
        counts.waited.as_secs_f64()
    ));
    let each = (rate * seconds).max(f64::EPSILON);
    profile.comments.push(format!(
        "standard error of a share of one thread's time: {:.1} points at 50 %, {:.1} at 10 %; its time \
         as a whole is short by less than one look's ({:.0} ms)",
        100.0 * (0.25 / each).sqrt(),
        100.0 * (0.09 / each).sqrt(),
        1000.0 / rate.max(f64::EPSILON)
    ));
    if counts.short_ticks > 0 {
        profile.comments.push(format!(
            "{} of {} ticks were out of looks (2000 a second) or signals (500 a second) before every \
             thread had its turn",
            counts.short_ticks, counts.ticks
        ));
    }
    if !subject.signals {
        profile.comments.push("threads that run have no stack: they are not signalled".to_owned());
    }
    profile.comments.extend(counts.no_signals.clone());
    let losses = [
        ("looks at threads that showed no stack", counts.silent),
        ("threads that ended, short of up to one look's time each", counts.ended),
        ("us of wall time without a stack: the table of stacks is full", tally.unplaced),
    ];
    for (cause, count) in losses {
        profile.losses.add(cause, count);
    }
}

fn signed(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
