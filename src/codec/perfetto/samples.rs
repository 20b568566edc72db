//! Stacks on the threads of a trace: CPU samples and thread dumps.
//!
//! A CPU sample is written as Perfetto's `PerfSample`, and the UI builds flame graphs from the
//! samples of a time range. A thread's stack is an instant on the thread's track, with its frames
//! as an argument. As a `PerfSample` it would count as CPU time. Instants with a callstack (field
//! 56) are not supported by v52, which counts them as errors. Each set is a separate sequence,
//! after those of `slices.rs`. The ids of a set of samples are indices in its profile's tables
//! (`stacks.rs`).
//!
//! ```text
//! Trace.packet 1 {
//!   timestamp 8, trusted_packet_sequence_id 10, interned_data 12, sequence_flags 13,
//!   perf_sample 66 { pid 2, tid 3, callstack_iid 4 }
//!   track_event 11 { category_iids 3, debug_annotations 4 { name_iid 1, string 6, array 12 },
//!                    type 9, name_iid 10, track_uuid 11 }
//! }
//! ```
//!
//! A `PerfSample` is one sample regardless of its weight, because v52 does not show weights.
//! Weights differ from 1 if the timer engine's frequency exceeds that of the kernel's ticks. The
//! CPU profile of the same incident has the weights.

use std::collections::BTreeMap;
use std::io::{self, Write};

use prost::Message;

use super::proto::{
    EventType, InternedData, InternedString, Trace, TracePacket, TracePacketDefaults,
};
use super::stacks::{StackInterner, StackNames};
use super::{
    BUILTIN_CLOCK_MONOTONIC, EVENTS_SEQUENCE_ID, INCREMENTAL_STATE_CLEARED,
    NEEDS_INCREMENTAL_STATE, TASK_TRACKS, activity_uuid, describe_thread, track_uuid,
};
use crate::base::Moment;
use crate::codec::gzip::GzipMessageWriter;
use crate::codec::text;
use crate::model::{LabelValue, Profile, Sample, ThreadDump, ThreadRow, Timeline, TrackKind};

/// Stacks to show in a trace.
#[derive(Clone, Copy, Debug)]
pub enum Stacks<'a> {
    /// The [timed_samples](Profile::timed_samples) samples of a profile, each as a sample of its
    /// thread.
    Samples(&'a Profile),
    /// The stacks of a thread dump, each as an instant at the time of the dump.
    Threads(&'a ThreadDump),
}

impl<'a> Stacks<'a> {
    /// Returns the threads that have stacks, with their names.
    fn threads(self) -> Box<dyn Iterator<Item = (u32, &'a str)> + 'a> {
        match self {
            Self::Samples(profile) => Box::new(profile.timed_samples.iter().filter_map(|timed| {
                Some((timed.tid, thread_name(profile, profile.samples.get(timed.sample as usize)?)))
            })),
            Self::Threads(dump) => {
                let with_stack = dump.threads.iter().filter(|row| row.stack.is_some());
                Box::new(with_stack.map(|row| (row.tid, &*row.name)))
            }
        }
    }
}

#[derive(Clone, PartialEq, Message)]
struct Packet {
    #[prost(uint64, tag = "8")]
    timestamp: u64,
    #[prost(uint32, tag = "10")]
    trusted_packet_sequence_id: u32,
    #[prost(message, optional, tag = "11")]
    track_event: Option<ThreadStackEvent>,
    #[prost(message, optional, tag = "12")]
    interned_data: Option<StackNames>,
    #[prost(uint32, tag = "13")]
    sequence_flags: u32,
    #[prost(message, optional, tag = "66")]
    perf_sample: Option<PerfSample>,
}

#[derive(Clone, PartialEq, Message)]
struct SinglePacketTrace {
    #[prost(message, required, tag = "1")]
    packet: Packet,
}

#[derive(Clone, Copy, PartialEq, Message)]
struct PerfSample {
    #[prost(uint32, tag = "2")]
    pid: u32,
    #[prost(uint32, tag = "3")]
    tid: u32,
    #[prost(uint64, tag = "4")]
    callstack_iid: u64,
}

/// A `TrackEvent` whose arguments may be lists.
#[derive(Clone, PartialEq, Message)]
struct ThreadStackEvent {
    #[prost(uint64, repeated, packed = "false", tag = "3")]
    category_iids: Vec<u64>,
    #[prost(message, repeated, tag = "4")]
    debug_annotations: Vec<Argument>,
    #[prost(enumeration = "EventType", tag = "9")]
    r#type: i32,
    #[prost(uint64, tag = "10")]
    name_iid: u64,
    #[prost(uint64, tag = "11")]
    track_uuid: u64,
}

#[derive(Clone, PartialEq, Message)]
struct Argument {
    #[prost(uint64, tag = "1")]
    name_iid: u64,
    #[prost(string, optional, tag = "6")]
    string_value: Option<String>,
    #[prost(message, repeated, tag = "12")]
    array_values: Vec<Argument>,
}

/// Interned ids of names on a sequence of instants.
const THREAD_STACK_IID: u64 = 1;
const CATEGORY_IID: u64 = 1;
const STATE_IID: u64 = 1;
const WAIT_IID: u64 = 2;
const STACK_IID: u64 = 3;

/// Writes `stacks`, and the tracks of threads that `timeline` lacks.
pub(super) fn write<W: Write>(
    timeline: &Timeline,
    stacks: &[Stacks<'_>],
    out: &mut GzipMessageWriter<W>,
) -> io::Result<()> {
    let tracks = ensure_thread_tracks(timeline, stacks, out)?;
    for (index, &stacks) in stacks.iter().enumerate() {
        let offset = timeline.activity.threads.len() + TASK_TRACKS.len() + index;
        let sequence = EVENTS_SEQUENCE_ID
            + 1
            + u32::try_from(offset).unwrap_or(u32::MAX - 1 - EVENTS_SEQUENCE_ID);
        write_sequence_head(sequence, matches!(stacks, Stacks::Threads(_)), out)?;
        let mut writer = StackPacketWriter { pid: timeline.pid, sequence, out: &mut *out };
        match stacks {
            Stacks::Samples(profile) => writer.write_samples(profile)?,
            Stacks::Threads(dump) => {
                writer.write_threads(dump, dump_moment(timeline, dump), &tracks)?
            }
        }
    }
    Ok(())
}

/// Returns the tracks of all threads that have a stack, by tid. Missing ones are written.
fn ensure_thread_tracks<W: Write>(
    timeline: &Timeline,
    stacks: &[Stacks<'_>],
    out: &mut GzipMessageWriter<W>,
) -> io::Result<BTreeMap<u32, u64>> {
    let mut tracks = BTreeMap::new();
    for (index, track) in timeline.tracks.iter().enumerate() {
        if let TrackKind::Thread(tid) = track.kind {
            tracks.entry(tid).or_insert(track_uuid(timeline, index));
        }
    }
    for (thread_index, thread) in timeline.activity.threads.iter().enumerate() {
        tracks.insert(thread.tid, activity_uuid(timeline, thread_index));
    }
    let mut next_index = timeline.activity.threads.len() + TASK_TRACKS.len();
    for (tid, name) in stacks.iter().flat_map(|stacks| stacks.threads()) {
        if let std::collections::btree_map::Entry::Vacant(entry) = tracks.entry(tid) {
            let uuid = *entry.insert(activity_uuid(timeline, next_index));
            next_index += 1;
            let packet = TracePacket {
                trusted_packet_sequence_id: EVENTS_SEQUENCE_ID,
                track_descriptor: Some(describe_thread(timeline, tid, name, uuid)),
                sequence_flags: NEEDS_INCREMENTAL_STATE,
                ..TracePacket::default()
            };
            out.write(&Trace { packet })?;
        }
    }
    Ok(tracks)
}

/// Writes the defaults of a sequence, with the names for instants if it has any.
fn write_sequence_head<W: Write>(
    sequence: u32,
    has_instants: bool,
    out: &mut GzipMessageWriter<W>,
) -> io::Result<()> {
    let interned = |iid, name: &str| InternedString { iid, name: name.to_owned() };
    let names = || InternedData {
        event_categories: vec![interned(CATEGORY_IID, "marple")],
        event_names: vec![interned(THREAD_STACK_IID, "thread stack")],
        debug_annotation_names: vec![
            interned(STATE_IID, "state"),
            interned(WAIT_IID, "waits in"),
            interned(STACK_IID, "stack"),
        ],
    };
    out.write(&Trace {
        packet: TracePacket {
            trusted_packet_sequence_id: sequence,
            interned_data: has_instants.then(names),
            trace_packet_defaults: Some(TracePacketDefaults {
                timestamp_clock_id: BUILTIN_CLOCK_MONOTONIC,
                track_event_defaults: None,
            }),
            sequence_flags: INCREMENTAL_STATE_CLEARED,
            first_packet_on_sequence: true,
            ..TracePacket::default()
        },
    })
}

struct StackPacketWriter<'a, W: Write> {
    pid: u32,
    sequence: u32,
    out: &'a mut GzipMessageWriter<W>,
}

impl<W: Write> StackPacketWriter<'_, W> {
    fn write_samples(&mut self, profile: &Profile) -> io::Result<()> {
        let mut interner = StackInterner::new(profile);
        for timed in &profile.timed_samples {
            let Some(sample) = profile.samples.get(timed.sample as usize) else { continue };
            let callstack_iid = interner.stack(sample.stack);
            self.write_packet(
                timed.at,
                Packet {
                    perf_sample: Some(PerfSample { pid: self.pid, tid: timed.tid, callstack_iid }),
                    interned_data: interner.take_pending(),
                    ..Packet::default()
                },
            )?;
        }
        Ok(())
    }

    fn write_threads(
        &mut self,
        dump: &ThreadDump,
        at: Moment,
        tracks: &BTreeMap<u32, u64>,
    ) -> io::Result<()> {
        for row in dump.threads.iter().filter(|row| row.stack.is_some()) {
            let Some(&track_uuid) = tracks.get(&row.tid) else { continue };
            let track_event = Some(thread_stack_event(&dump.profile, row, track_uuid));
            self.write_packet(at, Packet { track_event, ..Packet::default() })?;
        }
        Ok(())
    }

    fn write_packet(&mut self, at: Moment, packet: Packet) -> io::Result<()> {
        self.out.write(&SinglePacketTrace {
            packet: Packet {
                timestamp: at.as_nanos(),
                trusted_packet_sequence_id: self.sequence,
                sequence_flags: NEEDS_INCREMENTAL_STATE,
                ..packet
            },
        })
    }
}

/// Returns the instant for a thread's stack, innermost frame first.
fn thread_stack_event(profile: &Profile, row: &ThreadRow, track_uuid: u64) -> ThreadStackEvent {
    let text = |name_iid, text: String| Argument {
        name_iid,
        string_value: Some(text),
        array_values: Vec::new(),
    };
    let frames = text::frame_names(profile, row.stack).map(|frame| text(0, frame));
    let array_values = frames.collect();
    let mut debug_annotations = vec![text(STATE_IID, row.state.to_string())];
    if !row.wait_channel.is_empty() {
        debug_annotations.push(text(WAIT_IID, row.wait_channel.clone()));
    }
    debug_annotations.push(Argument { name_iid: STACK_IID, string_value: None, array_values });
    ThreadStackEvent {
        category_iids: vec![CATEGORY_IID],
        debug_annotations,
        r#type: EventType::Instant.into(),
        name_iid: THREAD_STACK_IID,
        track_uuid,
    }
}

/// Returns the time of a dump on the timeline's clock.
fn dump_moment(timeline: &Timeline, dump: &ThreadDump) -> Moment {
    let anchor = timeline.anchor;
    let elapsed = dump.profile.started.duration_since(anchor.wall).as_nanos();
    let nanos = i64::try_from(elapsed).unwrap_or(0);
    Moment::from_nanos(anchor.moment.as_nanos().saturating_add_signed(nanos))
}

/// Returns the name of a sample's thread.
fn thread_name<'p>(profile: &'p Profile, sample: &Sample) -> &'p str {
    let texts = sample.labels.iter().filter_map(|label| match label.value {
        LabelValue::Text(text) if profile.strings.get(label.key) == "thread" => Some(text),
        _ => None,
    });
    texts.map(|text| profile.strings.get(text)).next().unwrap_or_default()
}
