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
const SHORT: Bytes = Bytes::mib(32);

/// Returns the phases of a capture of `kinds`. Each phase is written before the next starts.
/// `headroom` is the memory left below the limit, if known.
pub(super) fn turns(
    kinds: CaptureSet,
    headroom: Option<Bytes>,
) -> impl Iterator<Item = CaptureSet> {
    let is_short = headroom.is_some_and(|left| left < SHORT);
    let (heap, others): (CaptureSet, CaptureSet) = match is_short {
        true => {
            let is_heap = |kind: &CaptureKind| *kind == CaptureKind::Heap;
            (
                kinds.iter().filter(is_heap).collect(),
                kinds.iter().filter(|it| !is_heap(it)).collect(),
            )
        }
        false => (CaptureSet::EMPTY, kinds),
    };
    [heap, others].into_iter().filter(|turn| !turn.is_empty())
}

#[cfg(test)]
mod tests {
    use super::CaptureKind::{Cpu, Heap, Threads, Trace};
    use super::*;

    #[test]
    fn the_heap_goes_first_where_memory_is_short() {
        let short = Some(Bytes(SHORT.get() - 1));
        type Kinds<'a> = &'a [CaptureKind];
        let table: [(Kinds<'_>, Option<Bytes>, &[Kinds<'_>]); 9] = [
            (&[Trace, Cpu, Heap], None, &[&[Trace, Cpu, Heap]]),
            (&[Trace, Cpu, Heap], Some(SHORT), &[&[Trace, Cpu, Heap]]),
            (&[Trace, Cpu, Heap], short, &[&[Heap], &[Trace, Cpu]]),
            (&[Threads, Heap], Some(Bytes(0)), &[&[Heap], &[Threads]]),
            (&[Heap], short, &[&[Heap]]),
            (&[Heap], None, &[&[Heap]]),
            (&[Trace, Cpu], short, &[&[Trace, Cpu]]),
            (&[], short, &[]),
            (&[], None, &[]),
        ];
        for (kinds, headroom, expected) in table {
            let got: Vec<CaptureSet> = turns(kinds.iter().copied().collect(), headroom).collect();
            let expected: Vec<CaptureSet> =
                expected.iter().map(|turn| turn.iter().copied().collect()).collect();
            assert_eq!(got, expected, "{kinds:?} with {headroom:?}");
        }
    }
}
