//! Order of captures while memory is short.
//!
//! Normally all captures start together, the most transient state first, and artifacts are written
//! afterwards. Near the limit any further megabyte may trigger the OOM killer, and the heap profile
//! is the evidence of interest. It is therefore taken first, into memory reserved at startup, and
//! is on disk before another capture allocates. This delays the other captures by some 20 ms.

use crate::base::Bytes;
use crate::model::{CaptureKind, CaptureSet};

/// Headroom below which memory is short: the other collectors may take some 24 MiB together, most
/// of it for the CPU profile. Above it, a heap profile written after the others would only describe
/// a later moment.
const LOW_MEMORY_HEADROOM: Bytes = Bytes::mib(32);

/// Returns the phases of a capture of `kinds`. Each phase is written before the next starts.
/// `headroom` is the memory left below the limit, if known.
pub(super) fn phases(
    kinds: CaptureSet,
    headroom: Option<Bytes>,
) -> impl Iterator<Item = CaptureSet> {
    let is_short = headroom.is_some_and(|left| left < LOW_MEMORY_HEADROOM);
    let (heap, others): (CaptureSet, CaptureSet) = match is_short {
        true => {
            let is_heap = |kind: &CaptureKind| *kind == CaptureKind::Heap;
            (
                kinds.iter().filter(is_heap).collect(),
                kinds.iter().filter(|kind| !is_heap(kind)).collect(),
            )
        }
        false => (CaptureSet::EMPTY, kinds),
    };
    [heap, others].into_iter().filter(|phase| !phase.is_empty())
}

#[cfg(test)]
mod tests {
    use super::CaptureKind::{Cpu, Heap, Threads, Trace};
    use super::*;

    #[test]
    fn heap_is_captured_first_when_memory_is_low() {
        let short = Some(Bytes(LOW_MEMORY_HEADROOM.get() - 1));
        type Kinds<'a> = &'a [CaptureKind];
        let table: [(Kinds<'_>, Option<Bytes>, &[Kinds<'_>]); 9] = [
            (&[Trace, Cpu, Heap], None, &[&[Trace, Cpu, Heap]]),
            (&[Trace, Cpu, Heap], Some(LOW_MEMORY_HEADROOM), &[&[Trace, Cpu, Heap]]),
            (&[Trace, Cpu, Heap], short, &[&[Heap], &[Trace, Cpu]]),
            (&[Threads, Heap], Some(Bytes(0)), &[&[Heap], &[Threads]]),
            (&[Heap], short, &[&[Heap]]),
            (&[Heap], None, &[&[Heap]]),
            (&[Trace, Cpu], short, &[&[Trace, Cpu]]),
            (&[], short, &[]),
            (&[], None, &[]),
        ];
        for (kinds, headroom, expected) in table {
            let got: Vec<CaptureSet> = phases(kinds.iter().copied().collect(), headroom).collect();
            let expected: Vec<CaptureSet> =
                expected.iter().map(|phase| phase.iter().copied().collect()).collect();
            assert_eq!(got, expected, "{kinds:?} with {headroom:?}");
        }
    }
}
