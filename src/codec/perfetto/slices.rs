//! Polls and parks, written byte by byte.
//!
//! There are hundreds of thousands of slices with the same few fields, so the bytes are written
//! without message structs. Each thread is a separate sequence. Its first packet has the defaults
//! (clock, track) and the names in use. After it a start takes some 23 bytes and an end some 11.
//! Sequences follow each other in the file and overlap in time; Perfetto sorts them.
//!
//! ```text
//! Trace.packet 1 {
//!   trusted_packet_sequence_id 10,
//!   track_event 11 { category_iids 3, type 9, name_iid 10,
//!                    debug_annotations 4 { name_iid 1, uint_value 3 } },
//!   timestamp 8
//! }
//! ```
//!
//! The fields are in the order that compresses best. Those that vary between packets, task number
//! and time, are at the end, next to the following packet's length. The rest is a single match for
//! the compressor, which accounts for most of the cost. Packets do not set
//! `NEEDS_INCREMENTAL_STATE`. A reader uses that flag only to drop packets whose state is missing,
//! and here the state precedes them in the same file.
//!
//! A time is the difference from the previous one. The clock is scoped to the sequence, and the
//! first packet relates it to `CLOCK_MONOTONIC`. Most times take one or two bytes instead of seven,
//! which halves the input of the compressor and saves a quarter of its output. Packets must be in
//! order of time.
//!
//! A ring has slices in the order of their ends. They are read in the order of their starts
//! (`by_start.rs`), and an end is written when the next start is outside. Starts and ends on each
//! track are therefore always properly nested, whatever the times are.
//!
//! Slices are not copied, and only a few bytes are allocated for each slice that contains others.
//! In a heap with a million holes, any larger allocation takes milliseconds.

use std::io::{self, Write};

use super::EVENTS_SEQUENCE_ID;
use crate::codec::gzip::GzipMessageWriter;
use crate::codec::perfetto::by_start::SlicesByStart;
use crate::codec::perfetto::poll_packets::{PollPacketWriter, STILL_OPEN, Slice};
use crate::model::{Activity, RawKind, RawSlice, StringTable, ThreadSlices};

/// Writes the slices of the thread at `thread_index` to the track with the uuid `track`.
pub(super) fn write<W: Write>(
    activity: &Activity,
    strings: &StringTable,
    thread_index: usize,
    track: u64,
    out: &mut GzipMessageWriter<W>,
) -> io::Result<()> {
    let Some(thread) = activity.threads.get(thread_index) else { return Ok(()) };
    let mut writer =
        PollPacketWriter::new(out, sequence_id(thread_index), activity.start.as_nanos());
    let ended = thread.slices.iter().filter(|slice| slice.kind() != Some(RawKind::Park));
    let open = thread.open.iter().filter(|open| open.kind != RawKind::Park);
    let tasks = ended.map(|slice| slice.task()).chain(open.map(|open| open.task));
    writer.write_head(activity, strings, track, tasks)?;

    let mut open_ends: Vec<u64> = Vec::new();
    let mut slices = slices_by_start(activity, thread);
    // A single call site of each, so that the optimizer inlines them: a quarter of the cost.
    loop {
        let slice = slices.next();
        let (start, end) = slice.map_or((u64::MAX - 1, 0), |slice| (slice.start, slice.end));
        // A slice that ends before this one cannot contain it, even if the clocks of two cores
        // disagree.
        while let Some(outer_end) = open_ends.pop_if(|outer| *outer <= start || *outer < end) {
            writer.end(outer_end)?;
        }
        let Some(slice) = slice else { break };
        writer.begin(&slice)?;
        open_ends.push(end);
    }
    writer.finish()
}

/// Writes the starts and ends of tasks, as instants on the two tracks `spawned` and `ended`.
pub(super) fn write_tasks<W: Write>(
    activity: &Activity,
    strings: &StringTable,
    [spawned, ended]: [u64; 2],
    out: &mut GzipMessageWriter<W>,
) -> io::Result<()> {
    let kinds = [(RawKind::Spawned, spawned), (RawKind::Ended, ended)];
    for (offset, (kind, track)) in kinds.into_iter().enumerate() {
        let tasks = || activity.tasks.iter().filter(move |task| task.kind() == Some(kind));
        let mut dates = activity.calibration.converter();
        let sequence = sequence_id(activity.threads.len() + offset);
        let mut writer = PollPacketWriter::new(out, sequence, activity.start.as_nanos());
        writer.write_head(activity, strings, track, tasks().map(|task| task.task()))?;
        for task in tasks() {
            writer.instant(dates.moment(task.at()).as_nanos(), task.task())?;
        }
        writer.finish()?;
    }
    Ok(())
}

/// Returns the sequence id of a thread, after that of the timeline's events.
fn sequence_id(index: usize) -> u32 {
    EVENTS_SEQUENCE_ID + 1 + index as u32
}

/// Returns the slices of a thread that overlap the trace, in the order of their starts, with their
/// times.
fn slices_by_start<'a>(
    activity: &'a Activity,
    thread: &'a ThreadSlices,
) -> impl Iterator<Item = Slice> + 'a {
    let from = activity.start.as_nanos();
    let mut dates = activity.calibration.converter();
    let mut ended = SlicesByStart::new(&thread.slices);
    let mut open = thread.open.iter().peekable();
    let mut next = ended.next();
    std::iter::from_fn(move || {
        loop {
            // An open slice contains complete ones that started at the same time.
            let raw_start = next.map_or(u64::MAX, RawSlice::start);
            let (kind, start, end, task) = match open.next_if(|open| open.start <= raw_start) {
                Some(open) => (open.kind, open.start, STILL_OPEN, open.task.truncated()),
                None => {
                    let raw = next?;
                    next = ended.next();
                    let Some(kind) = raw.kind() else { continue };
                    (kind, raw_start, dates.moment(raw.end()).as_nanos(), raw.task())
                }
            };
            if end >= from {
                let start = dates.moment(start).as_nanos();
                let nanos_before_trace = from.saturating_sub(start);
                return Some(Slice { start: start.max(from), end, kind, task, nanos_before_trace });
            }
        }
    })
}
