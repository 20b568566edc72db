//! In what order captures are taken and written where memory is short.
//!
//! Mostly all begin together, what vanishes first before what stays, and files follow. Near the limit the
//! next megabyte may be the one the kernel kills for, and what the incident is about is what holds memory:
//! the heap profile is written in room that was reserved at the start, so it comes first and is on disk
//! before any other capture asks for memory. It takes some 20 ms, by which the others begin later.

use crate::base::Bytes;
use crate::model::{CaptureKind, CaptureSet};

/// With less than this left, memory is short: the other collectors may take some 24 MiB together, most of
/// it for the CPU profile. With more, a profile that is written after the others tells of a later moment.
const SHORT: Bytes = Bytes::mib(32);

/// The sets that `kinds` are taken in, one after the other, each written before the next begins; with
/// `headroom` left below the memory limit, if that is known.
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
