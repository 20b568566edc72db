//! Order of captures when disk space is short: smaller captures first, and those that cannot fit
//! are skipped.

use std::collections::BTreeMap;

use crate::base::{Bytes, IncidentId};
use crate::capture::worker::CaptureWorker;
use crate::capture::worker::pending_artifact::PendingArtifact;
use crate::model::{CaptureKind, CaptureSet};
use crate::store::StoreLimit;

/// Sizes of earlier captures, by kind.
#[derive(Debug, Default)]
pub(super) struct ArtifactSizes(BTreeMap<CaptureKind, ArtifactSizeRange>);

#[derive(Clone, Copy, Debug)]
struct ArtifactSizeRange {
    smallest: Bytes,
    largest: Bytes,
}

impl ArtifactSizes {
    /// Records that a capture of `kind` wrote `bytes` bytes in total. A capture that wrote nothing
    /// is ignored.
    pub(super) fn record_size(&mut self, kind: CaptureKind, bytes: Bytes) {
        if bytes == Bytes(0) {
            return;
        }
        let range =
            self.0.entry(kind).or_insert(ArtifactSizeRange { smallest: bytes, largest: bytes });
        range.smallest = range.smallest.min(bytes);
        range.largest = range.largest.max(bytes);
    }

    /// Returns the minimum size of `kind`. A capture is skipped only if even this exceeds the space
    /// left. One that may fit is tried, and its write fails if it does not.
    fn min_size(&self, kind: CaptureKind) -> Bytes {
        self.0.get(&kind).map_or(Bytes(0), |range| range.smallest).max(MIN_ARTIFACT_BYTES)
    }

    /// Returns the expected maximum size of `kind`, which determines the order of captures.
    fn expected_size(&self, kind: CaptureKind) -> Bytes {
        let floor = match kind {
            CaptureKind::Threads
            | CaptureKind::Tasks
            | CaptureKind::Descriptors
            | CaptureKind::Panics => Bytes::kib(8),
            CaptureKind::Cpu | CaptureKind::Heap | CaptureKind::Custom => Bytes::kib(16),
            CaptureKind::Trace => Bytes::kib(128),
        };
        self.0.get(&kind).map_or(Bytes(0), |range| range.largest).max(floor)
    }
}

/// Lower bound for the size of any artifact.
const MIN_ARTIFACT_BYTES: Bytes = Bytes(512);

/// Returns `kinds` in the order in which to capture them, each with `true` if it may fit. If all
/// fit into `available` by `size`, the order is that of `CaptureSet`, most transient first;
/// otherwise smallest first. A capture does not fit if `min_size` exceeds the remaining space.
fn plan_order(
    kinds: CaptureSet,
    available: Bytes,
    size: impl Fn(CaptureKind) -> Bytes,
    min_size: impl Fn(CaptureKind) -> Bytes,
) -> Vec<(CaptureKind, bool)> {
    let mut order: Vec<CaptureKind> = kinds.iter().collect();
    if total_size(&order, &size) > available {
        order.sort_by_key(|kind| size(*kind));
    }
    let mut remaining = available.get();
    let mut fits = |kind| match remaining.checked_sub(min_size(kind).get()) {
        Some(rest) => {
            remaining = rest;
            true
        }
        None => false,
    };
    order.into_iter().map(|kind| (kind, fits(kind))).collect()
}

fn total_size(kinds: &[CaptureKind], size: impl Fn(CaptureKind) -> Bytes) -> Bytes {
    Bytes(kinds.iter().fold(0, |sum, kind| sum.saturating_add(size(*kind).get())))
}

impl CaptureWorker {
    /// Returns `kinds` in the order in which to start them in incident `id`, each with the reason
    /// to skip it if there is no space.
    pub(super) fn plan_captures(
        &self,
        id: IncidentId,
        kinds: CaptureSet,
    ) -> Vec<(CaptureKind, Option<String>)> {
        let Some((limit, available)) = self.available_space(id) else {
            return kinds.iter().map(|kind| (kind, None)).collect();
        };
        let size = |kind| self.artifact_sizes.expected_size(kind);
        let skip_reason = |kind: CaptureKind| {
            format!(
                "no space: {available} left ({}), at least {} needed; smaller captures were taken \
                 first",
                limit.name(),
                self.artifact_sizes.min_size(kind)
            )
        };
        let plan = plan_order(kinds, available, size, |kind| self.artifact_sizes.min_size(kind))
            .into_iter();
        plan.map(|(kind, fits)| (kind, (!fits).then(|| skip_reason(kind)))).collect()
    }

    /// Sorts `artifacts` by size, smallest first, if there is not enough space for all.
    pub(super) fn sort_smallest_first(&self, id: IncidentId, artifacts: &mut [PendingArtifact]) {
        let kinds: Vec<CaptureKind> = artifacts.iter().map(|artifact| artifact.kind).collect();
        let size = |kind| self.artifact_sizes.expected_size(kind);
        if self
            .available_space(id)
            .is_some_and(|(_, available)| total_size(&kinds, size) > available)
        {
            artifacts.sort_by_key(|artifact| size(artifact.kind));
        }
    }

    fn available_space(&self, id: IncidentId) -> Option<(StoreLimit, Bytes)> {
        let (_, dir) = self.incident_dirs.iter().find(|(open, _)| *open == id)?;
        // If the free space is unknown, a full disk shows when writing.
        dir.available_space().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn smaller_captures_come_first_when_space_is_short() {
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
            assert_eq!(plan_order(all, Bytes(room), size, size), expected, "{room}");
        }
        assert_eq!(plan_order(CaptureSet::EMPTY, Bytes(0), size, size), []);
    }

    #[test]
    fn expected_size_is_largest_recorded_size() {
        let mut sizes = ArtifactSizes::default();
        assert!(sizes.expected_size(CaptureKind::Trace) > sizes.expected_size(CaptureKind::Heap));
        sizes.record_size(CaptureKind::Heap, Bytes::mib(3));
        sizes.record_size(CaptureKind::Heap, Bytes::kib(1));
        assert_eq!(sizes.expected_size(CaptureKind::Heap), Bytes::mib(3));
    }

    #[test]
    fn capture_is_tried_if_smallest_recorded_size_fits() {
        let mut sizes = ArtifactSizes::default();
        for bytes in [Bytes::kib(40), Bytes::mib(16), Bytes(0)] {
            sizes.record_size(CaptureKind::Trace, bytes);
        }
        let trace = CaptureSet::from([CaptureKind::Trace]);
        let plan = |room| {
            plan_order(trace, room, |kind| sizes.expected_size(kind), |kind| sizes.min_size(kind))
        };
        assert_eq!(plan(Bytes::kib(40)), [(CaptureKind::Trace, true)]);
        assert_eq!(plan(Bytes::kib(39)), [(CaptureKind::Trace, false)]);
        // A kind that was never captured is tried even with almost no space.
        let heap = CaptureSet::from([CaptureKind::Heap]);
        let fits = super::plan_order(
            heap,
            Bytes::kib(1),
            |kind| sizes.expected_size(kind),
            |kind| sizes.min_size(kind),
        );
        assert_eq!(fits, [(CaptureKind::Heap, true)]);
    }
}
