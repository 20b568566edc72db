//! Order of captures when disk space is short: smaller captures first, and those that cannot fit
//! are skipped.

use std::collections::BTreeMap;

use crate::base::{Bytes, IncidentId};
use crate::capture::worker::CaptureWorker;
use crate::capture::worker::write::PendingArtifact;
use crate::model::{CaptureKind, CaptureSet};
use crate::store::StoreLimit;

/// Sizes of earlier captures, by kind.
#[derive(Debug, Default)]
pub(super) struct ArtifactSizes(BTreeMap<CaptureKind, Seen>);

#[derive(Clone, Copy, Debug)]
struct Seen {
    smallest: Bytes,
    largest: Bytes,
}

impl ArtifactSizes {
    /// Records that a capture of `kind` wrote `bytes` bytes in total. A capture that wrote nothing
    /// is ignored.
    pub(super) fn learn(&mut self, kind: CaptureKind, bytes: Bytes) {
        if bytes == Bytes(0) {
            return;
        }
        let known = self.0.entry(kind).or_insert(Seen { smallest: bytes, largest: bytes });
        known.smallest = known.smallest.min(bytes);
        known.largest = known.largest.max(bytes);
    }

    /// Returns the minimum size of `kind`. A capture is skipped only if even this exceeds the space
    /// left. One that may fit is tried, and its write fails if it does not.
    fn least(&self, kind: CaptureKind) -> Bytes {
        self.0.get(&kind).map_or(Bytes(0), |seen| seen.smallest).max(LEAST)
    }

    /// Returns the expected maximum size of `kind`, which determines the order of captures.
    fn of(&self, kind: CaptureKind) -> Bytes {
        let seldom_less = match kind {
            CaptureKind::Threads
            | CaptureKind::Tasks
            | CaptureKind::Descriptors
            | CaptureKind::Panics => Bytes::kib(8),
            CaptureKind::Cpu | CaptureKind::Heap | CaptureKind::Custom => Bytes::kib(16),
            CaptureKind::Trace => Bytes::kib(128),
        };
        self.0.get(&kind).map_or(Bytes(0), |seen| seen.largest).max(seldom_less)
    }
}

/// Lower bound for the size of any artifact.
const LEAST: Bytes = Bytes(512);

/// Returns `kinds` in the order in which to capture them, each with `true` if it may fit. If all
/// fit into `room` by `size`, the order is that of `CaptureSet`, most transient first; otherwise
/// smallest first. A capture does not fit if `least` exceeds the remaining room.
fn plan(
    kinds: CaptureSet,
    room: Bytes,
    size: impl Fn(CaptureKind) -> Bytes,
    least: impl Fn(CaptureKind) -> Bytes,
) -> Vec<(CaptureKind, bool)> {
    let mut order: Vec<CaptureKind> = kinds.iter().collect();
    if total(&order, &size) > room {
        order.sort_by_key(|kind| size(*kind));
    }
    let mut left = room.get();
    let mut fits = |kind| match left.checked_sub(least(kind).get()) {
        Some(rest) => {
            left = rest;
            true
        }
        None => false,
    };
    order.into_iter().map(|kind| (kind, fits(kind))).collect()
}

fn total(kinds: &[CaptureKind], size: impl Fn(CaptureKind) -> Bytes) -> Bytes {
    Bytes(kinds.iter().fold(0, |sum, kind| sum.saturating_add(size(*kind).get())))
}

impl CaptureWorker {
    /// Returns `kinds` in the order in which to start them in incident `id`, each with the reason
    /// to skip it if there is no space.
    pub(super) fn order(
        &self,
        id: IncidentId,
        kinds: CaptureSet,
    ) -> Vec<(CaptureKind, Option<String>)> {
        let Some((bound, room)) = self.room(id) else {
            return kinds.iter().map(|kind| (kind, None)).collect();
        };
        let size = |kind| self.sizes.of(kind);
        let words = |kind: CaptureKind| {
            format!(
                "no room: {room} left ({}), and it takes at least {}; smaller captures were taken first",
                bound.name(),
                self.sizes.least(kind)
            )
        };
        let plan = plan(kinds, room, size, |kind| self.sizes.least(kind)).into_iter();
        plan.map(|(kind, fits)| (kind, (!fits).then(|| words(kind)))).collect()
    }

    /// Sorts `taken` by size, smallest first, if there is not enough space for all.
    pub(super) fn cheap_first(&self, id: IncidentId, taken: &mut [PendingArtifact]) {
        let kinds: Vec<CaptureKind> = taken.iter().map(|taken| taken.kind).collect();
        let size = |kind| self.sizes.of(kind);
        if self.room(id).is_some_and(|(_, room)| total(&kinds, size) > room) {
            taken.sort_by_key(|taken| size(taken.kind));
        }
    }

    fn room(&self, id: IncidentId) -> Option<(StoreLimit, Bytes)> {
        let (_, dir) = self.dirs.iter().find(|(open, _)| *open == id)?;
        // If the free space is unknown, a full disk shows when writing.
        dir.room().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_takes_least_comes_first_where_not_all_fits() {
        use CaptureKind::{Cpu, Heap, Threads, Trace};
        let size = |kind| match kind {
            Trace => Bytes(100),
            Cpu => Bytes(20),
            Heap => Bytes(10),
            _ => Bytes(5),
        };
        let all = CaptureSet::from([Trace, Threads, Cpu, Heap]);
        for (room, expected) in [
            (135, [(Trace, true), (Threads, true), (Cpu, true), (Heap, true)]),
            (134, [(Threads, true), (Heap, true), (Cpu, true), (Trace, false)]),
            (35, [(Threads, true), (Heap, true), (Cpu, true), (Trace, false)]),
            (34, [(Threads, true), (Heap, true), (Cpu, false), (Trace, false)]),
            (5, [(Threads, true), (Heap, false), (Cpu, false), (Trace, false)]),
            (0, [(Threads, false), (Heap, false), (Cpu, false), (Trace, false)]),
        ] {
            assert_eq!(plan(all, Bytes(room), size, size), expected, "{room}");
        }
        assert_eq!(plan(CaptureSet::EMPTY, Bytes(0), size, size), []);
    }

    #[test]
    fn sizes_are_those_of_the_largest_so_far() {
        let mut sizes = ArtifactSizes::default();
        assert!(sizes.of(CaptureKind::Trace) > sizes.of(CaptureKind::Heap));
        sizes.learn(CaptureKind::Heap, Bytes::mib(3));
        sizes.learn(CaptureKind::Heap, Bytes::kib(1));
        assert_eq!(sizes.of(CaptureKind::Heap), Bytes::mib(3));
    }

    #[test]
    fn a_capture_that_was_large_once_is_not_skipped_where_a_small_one_fits() {
        let mut sizes = ArtifactSizes::default();
        for bytes in [Bytes::kib(40), Bytes::mib(16), Bytes(0)] {
            sizes.learn(CaptureKind::Trace, bytes);
        }
        let trace = CaptureSet::from([CaptureKind::Trace]);
        let plan = |room| plan(trace, room, |kind| sizes.of(kind), |kind| sizes.least(kind));
        assert_eq!(plan(Bytes::kib(40)), [(CaptureKind::Trace, true)]);
        assert_eq!(plan(Bytes::kib(39)), [(CaptureKind::Trace, false)]);
        // A kind that was never captured is tried even with almost no space.
        let heap = CaptureSet::from([CaptureKind::Heap]);
        let fits =
            super::plan(heap, Bytes::kib(1), |kind| sizes.of(kind), |kind| sizes.least(kind));
        assert_eq!(fits, [(CaptureKind::Heap, true)]);
    }
}
