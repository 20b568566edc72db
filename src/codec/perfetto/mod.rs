//! Timelines as Perfetto traces, for <https://ui.perfetto.dev> and its trace_processor from v52 on.
//!
//! The file starts with one sequence of packets in this order. One sequence for each thread's polls
//! (`slices.rs`) and for each set of stacks (`samples.rs`) follows:
//!
//! ```text
//! clocks, defaults     SEQ_INCREMENTAL_STATE_CLEARED: the reader starts without state
//! process              ancestor of all tracks
//! tracks               threads, counters, others: children of the process
//! events               by time; a text is in the first packet that uses it
//! losses               one instant on the process track, if anything was lost
//! ```
//!
//! All times are `CLOCK_MONOTONIC`. A reader must be able to convert them to its other clocks; one
//! that cannot drops every packet silently. The trace therefore starts with a snapshot of all three
//! clocks, and declares the monotonic one as the trace clock. After a change here, check
//! trace_processor's `stats` table.
//!
//! Perfetto pairs the end of a slice with the last open start on its track. An end without a start
//! would close another slice or count as an error, so it is left out and counted as lost. A start
//! without an end is valid and shown as unfinished. Events with equal times keep the order of
//! recording. This makes an end and the next start in the same nanosecond nest correctly.
//!
//! Writing takes 6 bytes per event while the events are sorted and 4 afterwards, and some bytes per
//! text. Merging the tracks would need none, but all events are in one list.

mod by_start;
mod interner;
mod poll_packets;
mod proto;
mod samples;
mod slices;
mod stacks;

use std::io::{self, Write};

use interner::Interner;
use prost::Message;
use proto::{
    Clock, ClockSnapshot, CounterDescriptor, CounterUnit, DebugAnnotation, EventType,
    ProcessDescriptor, ThreadDescriptor, Trace, TracePacket, TracePacketDefaults, TrackDescriptor,
    TrackEvent,
};

pub use samples::Stacks;

use super::gzip::GzipMessageWriter;
use crate::base::{Moment, TimeAnchor};
use crate::model::{ArgValue, EventKind, Losses, Timeline, TimelineEvent, Track, TrackKind};

/// Sequence id of the timeline's events; any number but 0.
const EVENTS_SEQUENCE_ID: u32 = 1;

/// Tracks for spawned and ended tasks.
const TASK_TRACKS: [&str; 2] = ["tasks spawned", "tasks ended"];

const INCREMENTAL_STATE_CLEARED: u32 = 1;
const NEEDS_INCREMENTAL_STATE: u32 = 2;

const BUILTIN_CLOCK_REALTIME: u32 = 1;
const BUILTIN_CLOCK_MONOTONIC: u32 = 3;
const BUILTIN_CLOCK_BOOTTIME: u32 = 6;

/// Writes `timeline`, gzip-compressed.
///
/// Events that Perfetto cannot show are left out and counted in the trace, together with the
/// timeline's own losses. These are ends of slices without a start, slices on counter tracks,
/// values on other tracks, and values that are not finite.
///
/// # Errors
///
/// Errors of `out`.
pub fn write(timeline: &Timeline, out: impl Write) -> io::Result<()> {
    write_with_stacks(timeline, &[], out)
}

/// Writes `timeline`, gzip-compressed, with `stacks` on its threads.
///
/// In addition to the memory of [`write()`], this takes some bytes for each frame and stack of one
/// element of `stacks` at a time.
///
/// # Errors
///
/// Errors of `out`.
pub fn write_with_stacks(
    timeline: &Timeline,
    stacks: &[Stacks<'_>],
    out: impl Write,
) -> io::Result<()> {
    let mut writer = TraceWriter {
        timeline,
        out: GzipMessageWriter::fast(out),
        interner: Interner::new(&timeline.strings),
        open_slices: vec![0; timeline.tracks.len()],
        losses: timeline.losses.clone(),
    };
    writer.write_clocks()?;
    writer.write_tracks()?;
    writer.write_events()?;
    writer.write_losses()?;
    writer.write_activity()?;
    samples::write(timeline, stacks, &mut writer.out)?;
    writer.out.finish()
}

struct TraceWriter<'a, W: Write> {
    timeline: &'a Timeline,
    out: GzipMessageWriter<W>,
    interner: Interner<'a>,
    /// Number of open slices on each track.
    open_slices: Vec<u32>,
    losses: Losses,
}

impl<W: Write> TraceWriter<'_, W> {
    fn write_clocks(&mut self) -> io::Result<()> {
        self.write_packet(TracePacket {
            clock_snapshot: Some(clock_snapshot(&self.timeline.anchor)),
            trace_packet_defaults: Some(TracePacketDefaults {
                timestamp_clock_id: BUILTIN_CLOCK_MONOTONIC,
                track_event_defaults: None,
            }),
            sequence_flags: INCREMENTAL_STATE_CLEARED,
            first_packet_on_sequence: true,
            ..TracePacket::default()
        })?;
        Ok(())
    }

    fn write_tracks(&mut self) -> io::Result<()> {
        let timeline = self.timeline;
        self.write_descriptor(TrackDescriptor {
            uuid: process_uuid(timeline),
            process: Some(ProcessDescriptor {
                pid: timeline.pid as i32,
                process_name: timeline.process_name.clone(),
            }),
            ..TrackDescriptor::default()
        })?;
        // Threads come first, because other tracks of a thread are its children.
        for (thread_index, thread) in timeline.activity.threads.iter().enumerate() {
            let name = timeline.strings.get(thread.name);
            let uuid = activity_uuid(timeline, thread_index);
            self.write_descriptor(describe_thread(timeline, thread.tid, name, uuid))?;
        }
        for (index, track) in timeline.tracks.iter().enumerate() {
            self.write_descriptor(describe_track(timeline, index, track))?;
        }
        if !timeline.activity.tasks.is_empty() {
            for (offset, name) in TASK_TRACKS.into_iter().enumerate() {
                self.write_descriptor(TrackDescriptor {
                    uuid: activity_uuid(timeline, timeline.activity.threads.len() + offset),
                    name: Some(name.to_owned()),
                    parent_uuid: Some(process_uuid(timeline)),
                    ..TrackDescriptor::default()
                })?;
            }
        }
        Ok(())
    }

    /// Writes polls and parks, and the starts and ends of tasks.
    fn write_activity(&mut self) -> io::Result<()> {
        let Timeline { activity, strings, .. } = self.timeline;
        let uuid = |index| activity_uuid(self.timeline, index);
        for thread_index in 0..activity.threads.len() {
            slices::write(activity, strings, thread_index, uuid(thread_index), &mut self.out)?;
        }
        if !activity.tasks.is_empty() {
            let tracks = [0, 1].map(|offset| uuid(activity.threads.len() + offset));
            slices::write_tasks(activity, strings, tracks, &mut self.out)?;
        }
        Ok(())
    }

    fn write_events(&mut self) -> io::Result<()> {
        let events = &self.timeline.events;
        // More than `u32::MAX` events would take more than 200 GiB.
        let mut order: Vec<u32> = (0..events.len() as u32).collect();
        // A stable sort keeps the order of recording. It merges sorted runs, and each track is one.
        order.sort_by_key(|&at| events.get(at as usize).map(|event| event.at));
        let mut track_event = TrackEvent::default();
        for event in order.iter().filter_map(|&at| events.get(at as usize)) {
            match self.convert_event(event, &mut track_event) {
                Ok(()) => self.write_event(event.at, &mut track_event)?,
                Err(cause) => self.losses.add(cause, 1),
            }
        }
        Ok(())
    }

    /// Converts the event to `shown`, or returns the loss counter if Perfetto cannot show it.
    fn convert_event(
        &mut self,
        event: &TimelineEvent,
        track_event: &mut TrackEvent,
    ) -> Result<(), &'static str> {
        let index = event.track.index();
        let track = self.timeline.tracks.get(index).ok_or("events on an unknown track")?;
        let is_counter = matches!(track.kind, TrackKind::Counter(_));
        let open = self.open_slices.get_mut(index).ok_or("events on an unknown track")?;
        track_event.clear();
        track_event.track_uuid = track_uuid(self.timeline, index);
        match event.kind {
            EventKind::Counter(value) => {
                if !is_counter {
                    return Err("counter values on a slice track");
                }
                if !value.is_finite() {
                    return Err("counter values that are not finite");
                }
                track_event.set_type(EventType::Counter);
                track_event.double_counter_value = Some(value);
                return Ok(());
            }
            _ if is_counter => return Err("slices on a counter track"),
            EventKind::Begin(name) => {
                *open += 1;
                track_event.set_type(EventType::SliceBegin);
                track_event.name_iid = self.interner.name(name);
            }
            EventKind::End => {
                *open = open
                    .checked_sub(1)
                    .ok_or("ends of slices that started before the recording")?;
                track_event.set_type(EventType::SliceEnd);
            }
            EventKind::Instant(name) => {
                track_event.set_type(EventType::Instant);
                track_event.name_iid = self.interner.name(name);
            }
        }
        if track_event.name_iid != 0 && event.category.index() != 0 {
            track_event.category_iids.push(self.interner.category(event.category));
        }
        for &(name, value) in &event.args {
            let name_iid = self.interner.argument(name);
            let (uint_value, string_value) = match value {
                // Perfetto's tables are signed: it would show a larger number as negative.
                ArgValue::Number(number) if i64::try_from(number).is_err() => {
                    (None, Some(number.to_string()))
                }
                ArgValue::Number(number) => (Some(number), None),
                ArgValue::Text(text) => (None, Some(self.timeline.strings.get(text).to_owned())),
            };
            track_event.debug_annotations.push(DebugAnnotation {
                name_iid,
                uint_value,
                string_value,
            });
        }
        Ok(())
    }

    fn write_losses(&mut self) -> io::Result<()> {
        if self.losses.is_empty() {
            return Ok(());
        }
        let (category, name_iid) = self.interner.define_event("marple", "lost");
        let mut track_event = TrackEvent {
            category_iids: vec![category],
            name_iid,
            track_uuid: process_uuid(self.timeline),
            ..Default::default()
        };
        track_event.set_type(EventType::Instant);
        for loss in self.losses.iter() {
            track_event.debug_annotations.push(DebugAnnotation {
                name_iid: self.interner.define_argument(&loss.cause),
                uint_value: Some(loss.count),
                string_value: None,
            });
        }
        let last = self.timeline.events.iter().map(|event| event.at).max();
        self.write_event(last.unwrap_or(self.timeline.anchor.moment), &mut track_event)
    }

    fn write_descriptor(&mut self, descriptor: TrackDescriptor) -> io::Result<()> {
        self.write_packet(TracePacket {
            track_descriptor: Some(descriptor),
            sequence_flags: NEEDS_INCREMENTAL_STATE,
            ..TracePacket::default()
        })?;
        Ok(())
    }

    /// Writes `event` and restores it, to reuse its vectors.
    fn write_event(&mut self, at: Moment, event: &mut TrackEvent) -> io::Result<()> {
        let mut packet = TracePacket {
            timestamp: Some(at.as_nanos()),
            track_event: Some(std::mem::take(event)),
            interned_data: self.interner.take_pending(),
            sequence_flags: NEEDS_INCREMENTAL_STATE,
            ..TracePacket::default()
        };
        packet = self.write_packet(packet)?;
        *event = packet.track_event.take().unwrap_or_default();
        Ok(())
    }

    fn write_packet(&mut self, packet: TracePacket) -> io::Result<TracePacket> {
        let trace = Trace {
            packet: TracePacket { trusted_packet_sequence_id: EVENTS_SEQUENCE_ID, ..packet },
        };
        self.out.write(&trace)?;
        Ok(trace.packet)
    }
}

fn clock_snapshot(anchor: &TimeAnchor) -> ClockSnapshot {
    let moment = anchor.moment.as_nanos();
    let wall = u64::try_from(anchor.wall.as_nanosecond()).unwrap_or(0);
    let clocks = [
        (BUILTIN_CLOCK_REALTIME, wall),
        (BUILTIN_CLOCK_MONOTONIC, moment),
        (BUILTIN_CLOCK_BOOTTIME, (anchor.moment + anchor.suspended).as_nanos()),
    ];
    ClockSnapshot {
        clocks: clocks
            .map(|(clock_id, nanos)| Clock {
                clock_id,
                timestamp: Some(nanos),
                is_incremental: None,
            })
            .to_vec(),
        primary_trace_clock: Some(BUILTIN_CLOCK_MONOTONIC),
    }
}

/// Never 0, which is Perfetto's global track. The value differs between processes, so that traces
/// can be opened together.
fn process_uuid(timeline: &Timeline) -> u64 {
    (u64::from(timeline.pid) << 32) + 1
}

fn track_uuid(timeline: &Timeline, index: usize) -> u64 {
    process_uuid(timeline) + 1 + index as u64
}

/// Follows the ids of the timeline's own tracks.
fn activity_uuid(timeline: &Timeline, index: usize) -> u64 {
    track_uuid(timeline, timeline.tracks.len() + index)
}

fn describe_thread(timeline: &Timeline, tid: u32, name: &str, uuid: u64) -> TrackDescriptor {
    TrackDescriptor {
        uuid,
        parent_uuid: Some(process_uuid(timeline)),
        thread: Some(ThreadDescriptor {
            pid: timeline.pid as i32,
            tid: i64::from(tid),
            thread_name: name.to_owned(),
        }),
        ..TrackDescriptor::default()
    }
}

fn describe_track(timeline: &Timeline, index: usize, track: &Track) -> TrackDescriptor {
    let name = timeline.strings.get(track.name).to_owned();
    let mut descriptor = TrackDescriptor {
        uuid: track_uuid(timeline, index),
        parent_uuid: Some(process_uuid(timeline)),
        ..TrackDescriptor::default()
    };
    match track.kind {
        TrackKind::Process => descriptor.name = Some(name),
        TrackKind::Thread(tid) => {
            let position = timeline.activity.threads.iter().position(|thread| thread.tid == tid);
            let Some(thread_index) = position else {
                return describe_thread(timeline, tid, &name, track_uuid(timeline, index));
            };
            // The thread's own track has its polls. Spans use another clock and would not nest with
            // them.
            descriptor.name = Some("spans".to_owned());
            descriptor.parent_uuid = Some(activity_uuid(timeline, thread_index));
        }
        TrackKind::Counter(unit) => {
            descriptor.name = Some(name);
            descriptor.counter = Some(describe_unit(timeline.strings.get(unit)));
        }
    }
    descriptor
}

/// Perfetto scales and labels the units it supports; any other is shown as is.
fn describe_unit(unit: &str) -> CounterDescriptor {
    let mut descriptor = CounterDescriptor::default();
    match unit {
        "bytes" => descriptor.set_unit(CounterUnit::SizeBytes),
        "nanoseconds" => descriptor.set_unit(CounterUnit::TimeNs),
        "count" => descriptor.set_unit(CounterUnit::Count),
        "" => {}
        other => descriptor.unit_name = Some(other.to_owned()),
    }
    descriptor
}
