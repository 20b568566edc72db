//! Heap profiles: a snapshot at the start and one at the stop, so that their difference shows what the
//! incident itself allocated.

use std::mem;

use super::{Collector, Evidence, Failure, Started};
use crate::base::{Anchor, Bytes, Moment};
use crate::config::Settings;
use crate::heap;
use crate::model::CaptureKind;
use crate::os::unwind;

pub(super) fn start(_: CaptureKind, _: &Settings, anchor: Anchor) -> Result<Started, Failure> {
    let first = heap::snapshot(anchor.wall)?;
    Ok(Started {
        collector: Box::new(Snapshots(anchor)),
        at_start: Some(Evidence::Profile(Box::new(first))),
    })
}

struct Snapshots(Anchor);

impl Collector for Snapshots {
    fn engine(&self) -> &'static str {
        "sampling allocator"
    }

    fn stop(self: Box<Self>, now: Moment) -> Result<Evidence, Failure> {
        Ok(Evidence::Profile(Box::new(heap::snapshot(self.0.wall_at(now))?)))
    }
}

/// Keeps what this thread allocates out of heap profiles, until the guard is dropped.
pub(in crate::agent) fn exclude_current_thread() -> heap::Exclusion {
    heap::exclude_current_thread()
}

/// The same until the thread ends.
pub(in crate::agent) fn exclude_for_good() {
    mem::forget(heap::exclude_current_thread());
}

/// Lets stacks be walked through libraries that were loaded since the last tick. A microsecond when none
/// was. An image that cannot be read is walked by frame pointers, and the next tick tries again.
pub(in crate::agent) fn tick() {
    if heap::installed() {
        let _ = unwind::refresh();
    }
}

/// Samples every `rate` bytes on average from here on.
pub(in crate::agent) fn set_rate(rate: Bytes) {
    heap::set_rate(rate);
}
