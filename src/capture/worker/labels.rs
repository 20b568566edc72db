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

use crate::base::failure::fence;
use crate::base::{IncidentId, Moment};
use crate::capture::collectors::Evidence;
use crate::capture::messages::TaskStats;
use crate::capture::worker::CaptureWorker;
use crate::capture::worker::take::BEFORE;
use crate::capture::worker::write::PendingArtifact;
use crate::model::{
    CaptureKind, EventKind, Profile, RawKind, Sample, StringHandle, TimedSample, Timeline,
    TrackKind,
};

impl CaptureWorker {
    /// Labels the CPU profiles among `taken`.
    pub(super) fn label(
        &self,
        id: IncidentId,
        taken: &mut [PendingArtifact],
        tally: &mut TaskStats,
    ) {
        let (mut profiles, mut timeline) = (Vec::new(), None);
        for PendingArtifact { part, evidence, .. } in taken {
            match evidence {
                Evidence::Profile(profile) if !profile.timed.is_empty() => {
                    profiles.push((*part, profile));
                }
                Evidence::Timeline(traced) => timeline = Some(&**traced),
                _ => {}
            }
        }
        for (part, profile) in profiles {
            let labelled = fence(|| {
                let so_far = match part {
                    Some(BEFORE) => self.polls(id),
                    _ => None,
                };
                if let Some(timeline) = timeline.or(so_far.as_ref()) {
                    label(profile, timeline);
                }
                Ok(())
            });
            if let Err(error) = labelled {
                tally.fail("CPU profile left without labels", &*error);
            }
        }
    }

    /// Returns the polls recorded so far by the running trace of an incident.
    fn polls(&self, id: IncidentId) -> Option<Timeline> {
        let mut running = self.running.iter().filter(|running| running.incident == id);
        running.find(|running| running.kind == CaptureKind::Trace)?.collector.polls()
    }
}

/// The labels of a sample, as handles of the timeline's strings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct TimeMark {
    task: Option<StringHandle>,
    span: Option<StringHandle>,
}

/// Splits the samples of `profile` by task and span, as recorded in `timeline`.
fn label(profile: &mut Profile, timeline: &Timeline) {
    let line = Line::new(&profile.timed);
    let mut marks = vec![TimeMark::default(); profile.timed.len()];
    mark_tasks(&line, timeline, &mut marks);
    mark_spans(&line, timeline, &mut marks);
    if marks.iter().any(|mark| *mark != TimeMark::default()) {
        split(profile, timeline, &marks);
    }
}

/// Sample indices sorted by thread and time.
struct Line<'a> {
    timed: &'a [TimedSample],
    order: Vec<u32>,
}

impl<'a> Line<'a> {
    fn new(timed: &'a [TimedSample]) -> Self {
        let mut order: Vec<u32> = (0..).take(timed.len()).collect();
        order.sort_by_key(|&at| timed.get(at as usize).map(|timed| (timed.tid, timed.at)));
        Self { timed, order }
    }

    /// Returns the indices and times of the samples of a thread.
    fn of(&self, tid: u32) -> Vec<(usize, Moment)> {
        let get = |at: u32| self.timed.get(at as usize).map(|timed| (timed.tid, timed.at));
        let before =
            self.order.partition_point(|&at| get(at).is_some_and(|(known, _)| known < tid));
        let rest = self.order.iter().skip(before).map_while(|&at| Some((at as usize, get(at)?)));
        rest.take_while(|(_, (known, _))| *known == tid).map(|(at, (_, time))| (at, time)).collect()
    }
}

fn mark_tasks(line: &Line<'_>, timeline: &Timeline, marks: &mut [TimeMark]) {
    let activity = &timeline.activity;
    for thread in &activity.threads {
        let mine = line.of(thread.tid);
        if mine.is_empty() {
            continue;
        }
        let ticks: Vec<u64> = mine.iter().map(|(_, at)| activity.calibration.tick(*at)).collect();
        let mut hold = |start: u64, end: u64, site: u16| {
            let name = activity.sites.get(usize::from(site));
            let first = ticks.partition_point(|&tick| tick < start);
            let inside = mine.iter().zip(&ticks).skip(first).take_while(|(_, tick)| **tick < end);
            for ((at, _), _) in inside {
                if let Some(mark) = marks.get_mut(*at) {
                    mark.task = mark.task.or(name.copied());
                }
            }
        };
        for slice in &thread.slices {
            if matches!(slice.kind(), Some(RawKind::HookedPoll | RawKind::WrappedPoll)) {
                hold(slice.start(), slice.end(), slice.task().site);
            }
        }
        for open in thread.open.iter().rev().filter(|open| open.kind != RawKind::Park) {
            hold(open.start, u64::MAX, open.task.site);
        }
    }
}

/// Read position within a track.
struct LabelReading {
    samples: Vec<(usize, Moment)>,
    next: usize,
    open: Vec<StringHandle>,
}

impl LabelReading {
    /// Labels the samples before `until` with the innermost open span.
    fn pass(&mut self, until: Option<Moment>, marks: &mut [TimeMark]) {
        while let Some(&(at, time)) = self.samples.get(self.next)
            && until.is_none_or(|until| time < until)
        {
            if let (Some(mark), Some(&innermost)) = (marks.get_mut(at), self.open.last()) {
                mark.span = Some(innermost);
            }
            self.next += 1;
        }
    }
}

fn mark_spans(line: &Line<'_>, timeline: &Timeline, marks: &mut [TimeMark]) {
    let mut readings: HashMap<usize, LabelReading> = HashMap::new();
    for event in &timeline.events {
        let track = event.track.index();
        let Some(TrackKind::Thread(tid)) = timeline.tracks.get(track).map(|track| track.kind)
        else {
            continue;
        };
        let reading = readings.entry(track).or_insert_with(|| LabelReading {
            samples: line.of(tid),
            next: 0,
            open: Vec::new(),
        });
        reading.pass(Some(event.at), marks);
        match event.kind {
            EventKind::Begin(name) => reading.open.push(name),
            EventKind::End => drop(reading.open.pop()),
            EventKind::Instant(_) | EventKind::Counter(_) => {}
        }
    }
    for mut reading in readings.into_values() {
        reading.pass(None, marks);
    }
}

/// Number and total weight of samples.
#[derive(Clone, Copy, Default)]
struct LabelShare {
    count: u64,
    weight: u64,
}

/// Splits each sample into one per label set plus one for the unlabeled rest. Sums are unchanged.
fn split(profile: &mut Profile, timeline: &Timeline, marks: &[TimeMark]) {
    let mut shares: BTreeMap<(u32, TimeMark), LabelShare> = BTreeMap::new();
    let mut known: HashMap<u32, LabelShare> = HashMap::new();
    for (timed, mark) in profile.timed.iter().zip(marks) {
        let part = shares.entry((timed.sample, *mark)).or_default();
        for share in [part, known.entry(timed.sample).or_default()] {
            share.count += 1;
            share.weight += u64::from(timed.weight);
        }
    }
    let is_count: Vec<bool> =
        profile.sample_types.iter().map(|kind| kind.unit == "count").collect();
    let mut places: HashMap<(u32, TimeMark), u32> = HashMap::new();
    let mut samples: Vec<Sample> = Vec::with_capacity(profile.samples.len());
    for (index, mut sample) in (0..).zip(std::mem::take(&mut profile.samples)) {
        let all = known.get(&index).copied().unwrap_or_default();
        let whole = sample.values.clone();
        let labels = sample.labels.clone();
        let first = samples.len();
        let of_it = (index, TimeMark::default())..(index + 1, TimeMark::default());
        for (&(_, mark), part) in shares.range(of_it) {
            if mark == TimeMark::default() {
                continue;
            }
            let mut labels = labels.clone();
            for (key, text) in [("task", mark.task), ("span", mark.span)] {
                let text = text.map(|text| timeline.strings.get(text));
                labels.extend(text.map(|text| profile.text_label(key, text)));
            }
            let values: Vec<i64> = values(&whole, &is_count, (*part, all)).collect();
            sample.values.iter_mut().zip(&values).for_each(|(left, part)| *left -= part);
            places.insert((index, mark), samples.len() as u32);
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
        places.insert((index, TimeMark::default()), samples.len() as u32 - 1);
    }
    profile.samples = samples;
    for (timed, mark) in profile.timed.iter_mut().zip(marks) {
        timed.sample = places.get(&(timed.sample, *mark)).copied().unwrap_or(u32::MAX);
    }
}

/// Returns the part of the values of a sample that belongs to `part`, where `all` is the share of
/// samples with known times.
fn values<'v>(
    whole: &'v [i64],
    is_count: &'v [bool],
    (part, all): (LabelShare, LabelShare),
) -> impl Iterator<Item = i64> + 'v {
    let counts = whole.iter().zip(is_count).filter(|(_, is_count)| **is_count);
    let count = counts.map(|(value, _)| u64::try_from(*value).unwrap_or(0)).max();
    // Samples without times have no known weight; they are assumed to weigh the same as the others.
    let count = u128::from(count.unwrap_or(0).max(all.count).max(1));
    let weight = u128::from(all.weight.max(1));
    whole.iter().zip(is_count).map(move |(&value, &is_count)| {
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
