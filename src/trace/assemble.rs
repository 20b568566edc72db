//! Conversion of the threads' logs, the rings and the process events to a [`Timeline`].
//!
//! Logs are consumed chunk by chunk into a vector reserved in advance; each chunk is freed once
//! converted. Record and event both exist for at most one chunk, which is why the budget charges
//! only the larger of the two.
//!
//! A timeline's `End` closes the slice that began last on its track, but spans can be exited in any
//! order. So the open slices of each thread are kept on a stack. An end below the top closes the
//! slices above it and reopens them. The stack starts with the slices older than the session, which
//! are known from their ends: the one that ended last is the outermost.

use std::collections::HashMap;
use std::mem;
use std::sync::Arc;

use tracing::Metadata;

use super::fields::{FieldList, MESSAGE};
use super::flight::{self, Window};
use super::loss::LossCounts;
use super::recorder::RecorderState;
use super::sources;
use crate::base::{Moment, TimeAnchor};
use crate::model::{
    ArgValue, EventKind, StringHandle, Timeline, TimelineEvent, TrackHandle, TrackKind,
};
use crate::os::clock::cycle_clock;
use crate::trace::span_log::{RecordKind, Source, SpanLog, SpanRecord};

/// Builds the timeline of a session that has ended.
pub(super) fn assemble(
    shared: &RecorderState,
    unattached_losses: LossCounts,
    anchor: TimeAnchor,
    started: Moment,
    now: Moment,
    window: Option<Window>,
) -> Timeline {
    let mut timeline = Timeline::new(anchor, std::process::id(), process_name());
    timeline.started = anchor.wall_at(started);
    // The rings are read first, because their threads continue to overwrite them.
    let mut complete_from = None;
    if let Some(window) = window {
        let snapshot = flight::end(window, &mut timeline.strings);
        timeline.activity = snapshot.activity;
        timeline.losses.merge(&snapshot.losses);
        complete_from = Some(snapshot.complete_from);
    }
    let logs: Vec<_> = shared
        .take_logs()
        .into_iter()
        .map(|log| {
            let (chunks, counts) = log.close();
            counts.add_to(&mut timeline.losses);
            (log, chunks)
        })
        .collect();
    unattached_losses.add_to(&mut timeline.losses);

    let mut process_events = shared.process_events();
    let ends = logs.iter().flat_map(|(_, chunks)| chunks.iter().flatten());
    let records = ends.map(|record| 1 + usize::from(is_end_of_preexisting(record))).sum::<usize>();
    let events = records + process_events.values.len() + process_events.instants.len() + 4;
    if timeline.events.try_reserve_exact(events).is_err() {
        timeline.losses.add("trace events dropped: no memory for the timeline", events as u64);
        return timeline;
    }
    let mut sites = HashMap::new();
    write_process_track(
        &mut timeline,
        mem::take(&mut process_events.instants),
        SessionSpan { complete_from, started, stopped: now },
    );
    for (log, chunks) in logs.into_iter().filter(|(_, chunks)| !chunks.is_empty()) {
        write_thread_track(&mut timeline, &mut sites, &log, chunks, started);
    }
    write_counter_tracks(&mut timeline, mem::take(&mut process_events.values));
    process_events.counts.add_to(&mut timeline.losses);
    timeline
}

/// The time of a session, and the time from which the data before it is complete; `None` if it has
/// no data before it.
struct SessionSpan {
    complete_from: Option<Moment>,
    started: Moment,
    stopped: Moment,
}

/// Writes the process track: a slice for the time before the capture, one for the capture, and the
/// instants.
fn write_process_track(
    timeline: &mut Timeline,
    mut instants: Vec<crate::trace::process_events::ProcessEvent>,
    span: SessionSpan,
) {
    let SessionSpan { complete_from, started, stopped } = span;
    let name = timeline.process_name.clone();
    let track = timeline.add_track(TrackKind::Process, &name);
    let category = timeline.strings.intern("marple");
    let recording = timeline.strings.intern("recording");
    let key = timeline.strings.intern("text");
    let event = |at, kind, args| TimelineEvent { at, track, kind, category, args };
    let from = timeline.activity.start;
    if let Some(complete_from) = complete_from.filter(|_| from < started) {
        let before = started.since(complete_from.min(started));
        let mut text = |text: &str| timeline.strings.intern(text);
        let name = text("before the capture");
        let args = vec![(text("complete for"), ArgValue::Text(text(&format!("{before:.3?}"))))];
        timeline.events.push(event(from, EventKind::Begin(name), args));
        timeline.events.push(event(started, EventKind::End, Vec::new()));
    }
    instants.sort_by_key(|instant| instant.at);
    let end = instants.last().map_or(stopped, |last| stopped.max(last.at));
    let mut args = vec![("recorded", sources::recorded_sources())];
    if complete_from.is_some() {
        args.push(("clock", cycle_clock::source().name()));
    }
    let args = args.into_iter().map(|(name, text)| {
        (timeline.strings.intern(name), ArgValue::Text(timeline.strings.intern(text)))
    });
    let args = args.collect();
    timeline.events.push(event(started, EventKind::Begin(recording), args));
    for instant in instants {
        let name = timeline.strings.intern(&instant.name);
        let text = ArgValue::Text(timeline.strings.intern(&instant.text));
        timeline.events.push(event(instant.at, EventKind::Instant(name), vec![(key, text)]));
    }
    timeline.events.push(event(end, EventKind::End, Vec::new()));
}

/// Writes one track per counter.
fn write_counter_tracks(
    timeline: &mut Timeline,
    mut values: Vec<crate::trace::process_events::Value>,
) {
    values.sort_by(|a, b| (&a.track, a.at).cmp(&(&b.track, b.at)));
    let category = timeline.strings.intern("vitals");
    for series in values.chunk_by(|a, b| a.track == b.track) {
        let Some(first) = series.first() else { continue };
        let track = timeline.add_counter(&first.track.name(), first.track.unit());
        timeline.events.extend(series.iter().map(|value| TimelineEvent {
            at: value.at,
            track,
            kind: EventKind::Counter(value.value),
            category,
            args: Vec::new(),
        }));
    }
}

/// Writes the track of one thread.
fn write_thread_track(
    timeline: &mut Timeline,
    sites: &mut Sites,
    log: &Arc<SpanLog>,
    chunks: Vec<Vec<SpanRecord>>,
    started: Moment,
) {
    let track = timeline.add_track(TrackKind::Thread(log.tid), &log.thread);
    let older = chunks.iter().flatten().rev().filter_map(|record| match &record.kind {
        RecordKind::EndPreexisting(id, source) => Some((*id, source.clone())),
        _ => None,
    });
    let mut open: Vec<_> = older.collect();
    let mut writer = TrackWriter::new(timeline, sites, track);
    for (_, source) in &open {
        writer.begin(started, source);
    }
    for SpanRecord { at, kind: what } in chunks.into_iter().flatten() {
        match what {
            RecordKind::Begin(id, source) => {
                writer.begin(at, &source);
                open.push((id, source));
            }
            RecordKind::End(id) | RecordKind::EndPreexisting(id, _) => {
                let Some(index) = open.iter().rposition(|(open, _)| *open == id) else { continue };
                for _ in index..open.len() {
                    writer.end(at);
                }
                open.remove(index);
                for (_, source) in open.iter().skip(index) {
                    writer.begin(at, source);
                }
            }
            RecordKind::Instant(site, fields) => writer.instant(at, site, fields.as_deref()),
        }
    }
}

fn is_end_of_preexisting(record: &SpanRecord) -> bool {
    matches!(record.kind, RecordKind::EndPreexisting(..))
}

/// Interned static data of call sites, by the address of their metadata.
type Sites = HashMap<*const Metadata<'static>, Site>;

#[derive(Clone, Copy)]
struct Site {
    name: StringHandle,
    target: StringHandle,
    level: StringHandle,
}

/// Writes the events of one track.
struct TrackWriter<'a> {
    timeline: &'a mut Timeline,
    sites: &'a mut Sites,
    track: TrackHandle,
    span: StringHandle,
    event: StringHandle,
    target: StringHandle,
    level: StringHandle,
}

impl<'a> TrackWriter<'a> {
    fn new(timeline: &'a mut Timeline, sites: &'a mut Sites, track: TrackHandle) -> Self {
        let [span, event, target, level] =
            ["span", "event", "target", "level"].map(|text| timeline.strings.intern(text));
        Self { timeline, sites, track, span, event, target, level }
    }

    fn begin(&mut self, at: Moment, source: &Source) {
        let site = self.site(source.site);
        let args = self.args(site, source.fields.as_deref().into_iter().flat_map(FieldList::iter));
        self.push(at, EventKind::Begin(site.name), self.span, args);
    }

    fn end(&mut self, at: Moment) {
        self.push(at, EventKind::End, self.span, Vec::new());
    }

    /// Writes an event. Its name is its message, or the name of its call site if it has none.
    fn instant(
        &mut self,
        at: Moment,
        site: &'static Metadata<'static>,
        fields: Option<&FieldList>,
    ) {
        let site = self.site(site);
        let fields = || fields.into_iter().flat_map(FieldList::iter);
        let name = match fields().find(|&(name, _)| name == MESSAGE) {
            Some((_, message)) => self.timeline.strings.intern(message),
            None => site.name,
        };
        let args = self.args(site, fields().filter(|&(name, _)| name != MESSAGE));
        self.push(at, EventKind::Instant(name), self.event, args);
    }

    fn args<'f>(
        &mut self,
        site: Site,
        fields: impl Iterator<Item = (&'static str, &'f str)>,
    ) -> Vec<(StringHandle, ArgValue)> {
        let mut args = vec![
            (self.target, ArgValue::Text(site.target)),
            (self.level, ArgValue::Text(site.level)),
        ];
        let strings = &mut self.timeline.strings;
        args.extend(
            fields.map(|(name, text)| (strings.intern(name), ArgValue::Text(strings.intern(text)))),
        );
        args.shrink_to_fit();
        args
    }

    fn site(&mut self, site: &'static Metadata<'static>) -> Site {
        let strings = &mut self.timeline.strings;
        *self.sites.entry(site).or_insert_with(|| Site {
            name: strings.intern(site.name()),
            target: strings.intern(site.target()),
            level: strings.intern(site.level().as_str()),
        })
    }

    fn push(
        &mut self,
        at: Moment,
        kind: EventKind,
        category: StringHandle,
        args: Vec<(StringHandle, ArgValue)>,
    ) {
        let track = self.track;
        self.timeline.events.push(TimelineEvent { at, track, kind, category, args });
    }
}

/// Returns the file name of the executable.
fn process_name() -> String {
    std::env::current_exe()
        .ok()
        .and_then(|exe| Some(exe.file_name()?.to_string_lossy().into_owned()))
        .unwrap_or_else(|| "process".to_owned())
}
