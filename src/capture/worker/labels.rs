//! The `task` and `span` labels of CPU samples.
//!
//! Labels add no cost to sampling. A sample has a thread and a time; the incident's trace has each
//! thread's polls and spans. The label is the innermost of them at that time. There is no label
//! without a trace, if its rings were overwritten, or if nothing was recorded for the thread.
//!
//! ```text
//! polls    ──[ reader ]────[ src/main.rs:7 [ query ] ]──     sorted by end: the first poll that
//! samples    ·      ·   ·    ·      ·          ·             contains a sample is its innermost
//! ```
//!
//! The samples of a thread are sorted by time, and a binary search finds those inside each poll.
//! This avoids a second copy of the polls, of which there may be a quarter of a million.
//!
//! The look-back profile is labeled with the polls in the recorder when the captures start. It has
//! no span labels: spans are recorded only during a capture. A CPU capture that ends before the
//! trace of its incident has no labels.

use std::collections::{BTreeMap, HashMap};

use crate::base::failure::catch_panic;
use crate::base::{IncidentId, Moment};
use crate::capture::collectors::Evidence;
use crate::capture::messages::TaskStats;
use crate::capture::worker::CaptureWorker;
use crate::capture::worker::captures::LOOKBACK_PHASE;
use crate::capture::worker::pending_artifact::PendingArtifact;
use crate::model::{
    CaptureKind, EventKind, Profile, RawKind, Sample, StringHandle, TimedSample, Timeline,
    TrackKind,
};

impl CaptureWorker {
    /// Labels the CPU profiles among `artifacts`.
    pub(super) fn label_profiles(
        &self,
        id: IncidentId,
        artifacts: &mut [PendingArtifact],
        stats: &mut TaskStats,
    ) {
        let mut profiles = Vec::new();
        let mut timeline = None;
        for PendingArtifact { phase, evidence, .. } in artifacts {
            match evidence {
                Evidence::Profile(profile) if !profile.timed_samples.is_empty() => {
                    profiles.push((*phase, profile));
                }
                Evidence::Timeline(traced) => timeline = Some(&**traced),
                _ => {}
            }
        }
        for (phase, profile) in profiles {
            let labelled = catch_panic(|| {
                let polls_so_far = match phase {
                    Some(LOOKBACK_PHASE) => self.recorded_polls(id),
                    _ => None,
                };
                if let Some(timeline) = timeline.or(polls_so_far.as_ref()) {
                    label_samples(profile, timeline);
                }
                Ok(())
            });
            if let Err(error) = labelled {
                stats.record_failure("CPU profile not labelled", &*error);
            }
        }
    }

    /// Returns the polls recorded so far by the running trace of an incident.
    fn recorded_polls(&self, id: IncidentId) -> Option<Timeline> {
        let mut running = self.running.iter().filter(|running| running.incident == id);
        running.find(|running| running.kind == CaptureKind::Trace)?.collector.recorded_polls()
    }
}

/// The labels of a sample, as handles of the timeline's strings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct SampleLabels {
    task: Option<StringHandle>,
    span: Option<StringHandle>,
}

/// Splits the samples of `profile` by task and span, as recorded in `timeline`.
fn label_samples(profile: &mut Profile, timeline: &Timeline) {
    let by_time = SamplesByTime::new(&profile.timed_samples);
    let mut labels = vec![SampleLabels::default(); profile.timed_samples.len()];
    label_tasks(&by_time, timeline, &mut labels);
    label_spans(&by_time, timeline, &mut labels);
    if labels.iter().any(|mark| *mark != SampleLabels::default()) {
        split_samples(profile, timeline, &labels);
    }
}

/// Sample indices sorted by thread and time.
struct SamplesByTime<'a> {
    timed: &'a [TimedSample],
    order: Vec<u32>,
}

impl<'a> SamplesByTime<'a> {
    fn new(timed: &'a [TimedSample]) -> Self {
        let mut order: Vec<u32> = (0..).take(timed.len()).collect();
        order.sort_by_key(|&at| timed.get(at as usize).map(|timed| (timed.tid, timed.at)));
        Self { timed, order }
    }

    /// Returns the indices and times of the samples of a thread.
    fn thread_samples(&self, tid: u32) -> Vec<(usize, Moment)> {
        let get = |at: u32| self.timed.get(at as usize).map(|timed| (timed.tid, timed.at));
        let before =
            self.order.partition_point(|&at| get(at).is_some_and(|(known, _)| known < tid));
        let rest = self.order.iter().skip(before).map_while(|&at| Some((at as usize, get(at)?)));
        rest.take_while(|(_, (known, _))| *known == tid).map(|(at, (_, time))| (at, time)).collect()
    }
}

fn label_tasks(by_time: &SamplesByTime<'_>, timeline: &Timeline, labels: &mut [SampleLabels]) {
    let activity = &timeline.activity;
    for thread in &activity.threads {
        let samples = by_time.thread_samples(thread.tid);
        if samples.is_empty() {
            continue;
        }
        let ticks: Vec<u64> =
            samples.iter().map(|(_, at)| activity.calibration.tick(*at)).collect();
        let mut label_range = |start: u64, end: u64, site: u16| {
            let name = activity.sites.get(usize::from(site));
            let first = ticks.partition_point(|&tick| tick < start);
            let inside =
                samples.iter().zip(&ticks).skip(first).take_while(|(_, tick)| **tick < end);
            for ((at, _), _) in inside {
                if let Some(mark) = labels.get_mut(*at) {
                    mark.task = mark.task.or(name.copied());
                }
            }
        };
        for slice in &thread.slices {
            if matches!(slice.kind(), Some(RawKind::HookedPoll | RawKind::WrappedPoll)) {
                label_range(slice.start(), slice.end(), slice.task().site);
            }
        }
        for open in thread.open.iter().rev().filter(|open| open.kind != RawKind::Park) {
            label_range(open.start, u64::MAX, open.task.site);
        }
    }
}

/// Read position within a track.
struct TrackCursor {
    samples: Vec<(usize, Moment)>,
    next: usize,
    open: Vec<StringHandle>,
}

impl TrackCursor {
    /// Labels the samples before `until` with the innermost open span.
    fn advance(&mut self, until: Option<Moment>, labels: &mut [SampleLabels]) {
        while let Some(&(at, time)) = self.samples.get(self.next)
            && until.is_none_or(|until| time < until)
        {
            if let (Some(mark), Some(&innermost)) = (labels.get_mut(at), self.open.last()) {
                mark.span = Some(innermost);
            }
            self.next += 1;
        }
    }
}

fn label_spans(by_time: &SamplesByTime<'_>, timeline: &Timeline, labels: &mut [SampleLabels]) {
    let mut cursors: HashMap<usize, TrackCursor> = HashMap::new();
    for event in &timeline.events {
        let track = event.track.index();
        let Some(TrackKind::Thread(tid)) = timeline.tracks.get(track).map(|track| track.kind)
        else {
            continue;
        };
        let cursor = cursors.entry(track).or_insert_with(|| TrackCursor {
            samples: by_time.thread_samples(tid),
            next: 0,
            open: Vec::new(),
        });
        cursor.advance(Some(event.at), labels);
        match event.kind {
            EventKind::Begin(name) => cursor.open.push(name),
            EventKind::End => drop(cursor.open.pop()),
            EventKind::Instant(_) | EventKind::Counter(_) => {}
        }
    }
    for mut cursor in cursors.into_values() {
        cursor.advance(None, labels);
    }
}

/// Number and total weight of samples.
#[derive(Clone, Copy, Default)]
struct LabelShare {
    count: u64,
    weight: u64,
}

/// Splits each sample into one per label set plus one for the unlabeled rest. Sums are unchanged.
fn split_samples(profile: &mut Profile, timeline: &Timeline, sample_labels: &[SampleLabels]) {
    let mut shares: BTreeMap<(u32, SampleLabels), LabelShare> = BTreeMap::new();
    let mut timed_totals: HashMap<u32, LabelShare> = HashMap::new();
    for (timed, mark) in profile.timed_samples.iter().zip(sample_labels) {
        let part = shares.entry((timed.sample, *mark)).or_default();
        for share in [part, timed_totals.entry(timed.sample).or_default()] {
            share.count += 1;
            share.weight += u64::from(timed.weight);
        }
    }
    let is_count: Vec<bool> =
        profile.sample_types.iter().map(|kind| kind.unit == "count").collect();
    let mut new_indices: HashMap<(u32, SampleLabels), u32> = HashMap::new();
    let mut samples: Vec<Sample> = Vec::with_capacity(profile.samples.len());
    for (index, mut sample) in (0..).zip(std::mem::take(&mut profile.samples)) {
        let timed_total = timed_totals.get(&index).copied().unwrap_or_default();
        let totals = sample.values.clone();
        let labels = sample.labels.clone();
        let first = samples.len();
        let sample_range = (index, SampleLabels::default())..(index + 1, SampleLabels::default());
        for (&(_, mark), part) in shares.range(sample_range) {
            if mark == SampleLabels::default() {
                continue;
            }
            let mut labels = labels.clone();
            for (key, text) in [("task", mark.task), ("span", mark.span)] {
                let text = text.map(|text| timeline.strings.get(text));
                labels.extend(text.map(|text| profile.text_label(key, text)));
            }
            let values: Vec<i64> =
                share_of_values(&totals, &is_count, *part, timed_total).collect();
            sample.values.iter_mut().zip(&values).for_each(|(left, part)| *left -= part);
            new_indices.insert((index, mark), samples.len() as u32);
            samples.push(Sample { stack: sample.stack, values, labels });
        }
        let counts = sample.values.iter().zip(&is_count).filter(|(_, is_count)| **is_count);
        let is_spent = samples.len() > first && counts.clone().all(|(left, _)| *left <= 0);
        match samples.last_mut().filter(|_| is_spent) {
            // Rounding error.
            Some(last) => {
                last.values.iter_mut().zip(&sample.values).for_each(|(value, left)| *value += left);
            }
            None => samples.push(sample),
        }
        new_indices.insert((index, SampleLabels::default()), samples.len() as u32 - 1);
    }
    profile.samples = samples;
    for (timed, mark) in profile.timed_samples.iter_mut().zip(sample_labels) {
        timed.sample = new_indices.get(&(timed.sample, *mark)).copied().unwrap_or(u32::MAX);
    }
}

/// Returns the part of the values of a sample that belongs to `part`, where `all` is the share of
/// samples with known times.
fn share_of_values<'v>(
    totals: &'v [i64],
    is_count: &'v [bool],
    part: LabelShare,
    all: LabelShare,
) -> impl Iterator<Item = i64> + 'v {
    let counts = totals.iter().zip(is_count).filter(|(_, is_count)| **is_count);
    let count = counts.map(|(value, _)| u64::try_from(*value).unwrap_or(0)).max();
    // Samples without times have no known weight; they are assumed to weigh the same as the others.
    let count = u128::from(count.unwrap_or(0).max(all.count).max(1));
    let weight = u128::from(all.weight.max(1));
    totals.iter().zip(is_count).map(move |(&value, &is_count)| {
        if is_count {
            return value.min(part.count as i64);
        }
        let share = u128::from(part.weight) * u128::from(all.count);
        let value = u128::try_from(value).unwrap_or(0) * share / (weight * count);
        i64::try_from(value).unwrap_or(i64::MAX)
    })
}

#[cfg(test)]
#[path = "labels_tests.rs"]
mod tests;
