//! Captures where the disk has too little room: the cheap ones first, and what does not fit is not begun.

use std::collections::BTreeMap;

use super::Worker;
use super::write::Taken;
use crate::base::{Bytes, IncidentId};
use crate::model::{CaptureKind, CaptureSet};
use crate::store::Bound;

/// What the files of a capture take, by the largest so far.
#[derive(Debug, Default)]
pub(super) struct Sizes(BTreeMap<CaptureKind, Bytes>);

impl Sizes {
    /// The files that a capture of `kind` left at once have `bytes` bytes.
    pub(super) fn learn(&mut self, kind: CaptureKind, bytes: Bytes) {
        let known = self.0.entry(kind).or_default();
        *known = (*known).max(bytes);
    }

    /// How much `kind` is expected to take. What was never seen is taken for small, so that nothing is left
    /// out that might well fit; a trace is the one that is large everywhere.
    fn of(&self, kind: CaptureKind) -> Bytes {
        let seldom_less = match kind {
            CaptureKind::Threads | CaptureKind::Tasks | CaptureKind::Descriptors => Bytes::kib(8),
            CaptureKind::Cpu | CaptureKind::Heap | CaptureKind::Custom => Bytes::kib(16),
            CaptureKind::Trace => Bytes::kib(128),
        };
        self.0.get(&kind).copied().unwrap_or_default().max(seldom_less)
    }
}

/// The order in which `kinds` are taken with so much `room`, and whether each fits: that of the kinds, what
/// vanishes first, where there is room for all; else what takes least first.
fn plan(
    kinds: CaptureSet,
    room: Bytes,
    size: impl Fn(CaptureKind) -> Bytes,
) -> Vec<(CaptureKind, bool)> {
    let mut order: Vec<CaptureKind> = kinds.iter().collect();
    if total(&order, &size) > room {
        order.sort_by_key(|kind| size(*kind));
    }
    let mut left = room.get();
    let mut fits = |kind| match left.checked_sub(size(kind).get()) {
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

impl Worker {
    /// The order in which `kinds` are started in the incident `id`; with what there is no room for, why.
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
                "no room for it: {room} are left ({}) and it takes about {}; what takes less went first",
                bound.name(),
                size(kind)
            )
        };
        let plan = plan(kinds, room, size).into_iter();
        plan.map(|(kind, fits)| (kind, (!fits).then(|| words(kind)))).collect()
    }

    /// Puts what takes least first where there is too little room for all of `taken`.
    pub(super) fn cheap_first(&self, id: IncidentId, taken: &mut [Taken]) {
        let kinds: Vec<CaptureKind> = taken.iter().map(|taken| taken.kind).collect();
        let size = |kind| self.sizes.of(kind);
        if self.room(id).is_some_and(|(_, room)| total(&kinds, size) > room) {
            taken.sort_by_key(|taken| size(taken.kind));
        }
    }

    fn room(&self, id: IncidentId) -> Option<(Bound, Bytes)> {
        let (_, dir) = self.dirs.iter().find(|(open, _)| *open == id)?;
        // Where it cannot be told the writes will tell.
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
            assert_eq!(plan(all, Bytes(room), size), expected, "{room}");
        }
        assert_eq!(plan(CaptureSet::EMPTY, Bytes(0), size), []);
    }

    #[test]
    fn sizes_are_those_of_the_largest_so_far() {
        let mut sizes = Sizes::default();
        assert!(sizes.of(CaptureKind::Trace) > sizes.of(CaptureKind::Heap));
        sizes.learn(CaptureKind::Heap, Bytes::mib(3));
        sizes.learn(CaptureKind::Heap, Bytes::kib(1));
        assert_eq!(sizes.of(CaptureKind::Heap), Bytes::mib(3));
    }
}
