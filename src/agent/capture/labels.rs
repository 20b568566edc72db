//! Whose CPU time it was: the labels `task` and `span` of CPU samples.
//!
//! Nothing is asked of the thread that is sampled. A sample has its thread and its moment, and the
//! incident's trace has which task each thread polled when and which spans it was in: the label is what
//! was innermost at that moment. Where there is no trace, its rings have been written over or nothing was
//! recorded of that thread, there is no label.
//!
//! ```text
//! polls    ──[ reader ]────[ src/main.rs:7 [ query ] ]──     in the order of their ends: the first that
//! samples    ·      ·   ·    ·      ·          ·             holds a sample is its innermost
//! ```
//!
//! The samples of a thread are sorted by time and each poll looks up those it holds, so that there is no
//! second copy of the polls, of which there may be a quarter of a million: a binary search for each.
//!
//! The profile from before the capture is labelled by the polls that the recorder holds when the captures
//! start, and by no spans: these are recorded during a capture only. A CPU capture that ends before the
//! trace of its incident has no labels.

use std::collections::{BTreeMap, HashMap};

use super::take::BEFORE;
use super::write::Taken;
use super::{Tally, Worker};
use crate::agent::collect::Evidence;
use crate::agent::fence::fence;
use crate::base::{IncidentId, Moment};
use crate::model::{
    CaptureKind, EventKind, Profile, RawKind, Sample, StringHandle, TimedSample, Timeline,
    TrackKind,
};

impl Worker {
    /// Labels the CPU profiles among `taken`.
    pub(super) fn label(&self, id: IncidentId, taken: &mut [Taken], tally: &mut Tally) {
        let (mut profiles, mut timeline) = (Vec::new(), None);
        for Taken { part, evidence, .. } in taken {
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

    /// What the trace of an incident holds so far, while it runs.
    fn polls(&self, id: IncidentId) -> Option<Timeline> {
        let mut running = self.running.iter().filter(|running| running.incident == id);
        running.find(|running| running.kind == CaptureKind::Trace)?.collector.polls()
    }
}

/// What is known of a sample, in the timeline's texts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Mark {
    task: Option<StringHandle>,
    span: Option<StringHandle>,
}

/// Tells the samples of `profile` apart by the task and the span that `timeline` has their thread in.
fn label(profile: &mut Profile, timeline: &Timeline) {
    let line = Line::new(&profile.timed);
    let mut marks = vec![Mark::default(); profile.timed.len()];
    mark_tasks(&line, timeline, &mut marks);
    mark_spans(&line, timeline, &mut marks);
    if marks.iter().any(|mark| *mark != Mark::default()) {
        split(profile, timeline, &marks);
    }
}

/// Samples by thread, and in the order of time.
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

    /// The samples of a thread: their places and times.
    fn of(&self, tid: u32) -> Vec<(usize, Moment)> {
        let get = |at: u32| self.timed.get(at as usize).map(|timed| (timed.tid, timed.at));
        let before =
            self.order.partition_point(|&at| get(at).is_some_and(|(known, _)| known < tid));
        let rest = self.order.iter().skip(before).map_while(|&at| Some((at as usize, get(at)?)));
        rest.take_while(|(_, (known, _))| *known == tid).map(|(at, (_, time))| (at, time)).collect()
    }
}

fn mark_tasks(line: &Line<'_>, timeline: &Timeline, marks: &mut [Mark]) {
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

/// How far a track has been read.
struct Reading {
    samples: Vec<(usize, Moment)>,
    next: usize,
    open: Vec<StringHandle>,
}

impl Reading {
    /// The samples before `until` are in what is open.
    fn pass(&mut self, until: Option<Moment>, marks: &mut [Mark]) {
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

fn mark_spans(line: &Line<'_>, timeline: &Timeline, marks: &mut [Mark]) {
    let mut readings: HashMap<usize, Reading> = HashMap::new();
    for event in &timeline.events {
        let track = event.track.index();
        let Some(TrackKind::Thread(tid)) = timeline.tracks.get(track).map(|track| track.kind)
        else {
            continue;
        };
        let reading = readings.entry(track).or_insert_with(|| Reading {
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

/// Samples and their weight.
#[derive(Clone, Copy, Default)]
struct Share {
    count: u64,
    weight: u64,
}

/// Makes of each sample one for each mark and one for what has none; the sums stay.
fn split(profile: &mut Profile, timeline: &Timeline, marks: &[Mark]) {
    let mut shares: BTreeMap<(u32, Mark), Share> = BTreeMap::new();
    let mut known: HashMap<u32, Share> = HashMap::new();
    for (timed, mark) in profile.timed.iter().zip(marks) {
        let part = shares.entry((timed.sample, *mark)).or_default();
        for share in [part, known.entry(timed.sample).or_default()] {
            share.count += 1;
            share.weight += u64::from(timed.weight);
        }
    }
    let is_count: Vec<bool> =
        profile.sample_types.iter().map(|kind| kind.unit == "count").collect();
    let mut places: HashMap<(u32, Mark), u32> = HashMap::new();
    let mut samples: Vec<Sample> = Vec::with_capacity(profile.samples.len());
    for (index, mut sample) in (0..).zip(std::mem::take(&mut profile.samples)) {
        let all = known.get(&index).copied().unwrap_or_default();
        let whole = sample.values.clone();
        let labels = sample.labels.clone();
        let first = samples.len();
        let of_it = (index, Mark::default())..(index + 1, Mark::default());
        for (&(_, mark), part) in shares.range(of_it) {
            if mark == Mark::default() {
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
            // What rounding left.
            Some(last) => {
                last.values.iter_mut().zip(&sample.values).for_each(|(value, left)| *value += left);
            }
            None => samples.push(sample),
        }
        places.insert((index, Mark::default()), samples.len() as u32 - 1);
    }
    profile.samples = samples;
    for (timed, mark) in profile.timed.iter_mut().zip(marks) {
        timed.sample = places.get(&(timed.sample, *mark)).copied().unwrap_or(u32::MAX);
    }
}

/// A part's share in the values of a sample of which `all` is known by time.
fn values<'v>(
    whole: &'v [i64],
    is_count: &'v [bool],
    (part, all): (Share, Share),
) -> impl Iterator<Item = i64> + 'v {
    let counts = whole.iter().zip(is_count).filter(|(_, is_count)| **is_count);
    let count = counts.map(|(value, _)| u64::try_from(*value).unwrap_or(0)).max();
    // Of samples whose time is not known the weight is not, either: they are as the others.
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
