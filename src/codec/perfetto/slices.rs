//! Polls and parks, written byte by byte.
//!
//! There are hundreds of thousands of them and they all have the same few fields, so here the bytes are put
//! down without message structs. Each thread is a sequence of its own, whose first packet says what holds
//! for all of it (the clock, the track) and the names it uses; after it a begin is some 23 bytes and an end
//! some 11. Sequences follow each other in the file and overlap in time; Perfetto sorts.
//!
//! ```text
//! Trace.packet 1 {
//!   trusted_packet_sequence_id 10,
//!   track_event 11 { category_iids 3, type 9, name_iid 10, debug_annotations 4 { name_iid 1, uint_value 3 } },
//!   timestamp 8
//! }
//! ```
//!
//! The fields stand in the order that compresses best: what differs from packet to packet, the task's number and
//! the time, stands together at the end, next to the following packet's length, so that all the rest is one
//! match for the compressor, whose work is most of the cost. No packet says that it needs its sequence's state: all
//! a reader does about that is to drop the packet where the state is missing, and here it stands before it in
//! the same file.
//!
//! A time is the distance to the one before: a clock of the sequence's own, which its first packet ties to
//! `CLOCK_MONOTONIC`. So most take one or two bytes where the time itself takes seven, which is half of what
//! there would be to compress, and a quarter of what is left of it. Packets have to be in the order of time.
//!
//! A ring has slices in the order of their ends. They are read in the order of their begins (`begins.rs`), and an
//! end is written when the next begin is not inside; so on each track begins and ends alternate as brackets do,
//! whatever the times say.
//!
//! Nothing is copied and all that is allocated is a few bytes for each slice that has others in it: in a heap of
//! a million holes the allocator takes milliseconds for each larger block, whatever is done with it.

use std::io::{self, Write};

use super::SEQUENCE;
use super::begins::Begins;
use super::pen::{GOES_ON, Pen, Slice};
use crate::codec::gzip::Parts;
use crate::model::{Activity, RawKind, RawSlice, StringTable, ThreadSlices};

/// Writes what `thread` did on the track `track`, as the sequence after those of `place` other threads.
pub(super) fn write<W: Write>(
    activity: &Activity,
    strings: &StringTable,
    (place, track): (usize, u64),
    out: &mut Parts<W>,
) -> io::Result<()> {
    let Some(thread) = activity.threads.get(place) else { return Ok(()) };
    let mut pen = Pen::new(out, sequence(place), activity.from.as_nanos());
    let ended = thread.slices.iter().filter(|slice| slice.kind() != Some(RawKind::Park));
    let open = thread.open.iter().filter(|open| open.kind != RawKind::Park);
    let tasks = ended.map(|slice| slice.task()).chain(open.map(|open| open.task));
    pen.head(activity, strings, track, tasks)?;

    let mut around: Vec<u64> = Vec::new();
    let mut slices = merged(activity, thread);
    // One call of each, which the optimizer inlines: several it calls, which is a quarter of the cost.
    loop {
        let slice = slices.next();
        let (start, end) = slice.map_or((u64::MAX - 1, 0), |slice| (slice.start, slice.end));
        // What ends before this one does cannot be around it, whatever the clocks of two cores say.
        while let Some(over) = around.pop_if(|outer| *outer <= start || *outer < end) {
            pen.end(over)?;
        }
        let Some(slice) = slice else { break };
        pen.begin(&slice)?;
        around.push(end);
    }
    pen.finish()
}

/// Writes what became of tasks, as instants on the two tracks `spawned` and `ended`.
pub(super) fn write_tasks<W: Write>(
    activity: &Activity,
    strings: &StringTable,
    [spawned, ended]: [u64; 2],
    out: &mut Parts<W>,
) -> io::Result<()> {
    let kinds = [(RawKind::Spawned, spawned), (RawKind::Ended, ended)];
    for (after, (kind, track)) in kinds.into_iter().enumerate() {
        let tasks = || activity.tasks.iter().filter(move |task| task.kind() == Some(kind));
        let mut dates = activity.calibration.dates();
        let sequence = sequence(activity.threads.len() + after);
        let mut pen = Pen::new(out, sequence, activity.from.as_nanos());
        pen.head(activity, strings, track, tasks().map(|task| task.task()))?;
        for task in tasks() {
            pen.instant(dates.moment(task.at()).as_nanos(), task.task())?;
        }
        pen.finish()?;
    }
    Ok(())
}

/// The sequence of a thread, after that of the timeline's events.
fn sequence(place: usize) -> u32 {
    SEQUENCE + 1 + place as u32
}

/// The slices of a thread that reach into the trace, in the order of their begins, with their moments.
fn merged<'a>(
    activity: &'a Activity,
    thread: &'a ThreadSlices,
) -> impl Iterator<Item = Slice> + 'a {
    let from = activity.from.as_nanos();
    let mut dates = activity.calibration.dates();
    let (mut ended, mut open) = (Begins::new(&thread.slices), thread.open.iter().peekable());
    let mut next = ended.next();
    std::iter::from_fn(move || {
        loop {
            // What goes on is around what has ended and began with it.
            let before = next.map_or(u64::MAX, RawSlice::start);
            let (kind, start, end, task) = match open.next_if(|open| open.start <= before) {
                Some(open) => (open.kind, open.start, GOES_ON, open.task.short()),
                None => {
                    let raw = next?;
                    next = ended.next();
                    let Some(kind) = raw.kind() else { continue };
                    (kind, before, dates.moment(raw.end()).as_nanos(), raw.task())
                }
            };
            if end >= from {
                let start = dates.moment(start).as_nanos();
                let earlier = from.saturating_sub(start);
                return Some(Slice { start: start.max(from), end, kind, task, earlier });
            }
        }
    })
}
