//! Slices of a ring in the order of their starts. The ring has them in the order of their ends.
//!
//! ```text
//! ring      a  b  c  d  e          c contains a and b; e contains d and c
//! starts    e  c  a  b  d
//! ```
//!
//! A slice is stored after all the slices it contains, and these are adjacent. Only the index of
//! the first one has to be found. This takes eight bytes for each slice that contains others and
//! nothing for the rest; a copy of all for sorting would take sixteen for each.
//!
//! Starts of long slices are rounded and may be late, even after the start of a contained slice. A
//! slice that ends first cannot contain one that ends later, and slices of one thread do not cross.
//! A slice is therefore contained if it starts within the rounding error and ends after the late
//! start.

use crate::model::RawSlice;

/// A slice that contains others.
#[derive(Clone, Copy)]
struct EnclosingSlice {
    /// Index of the first slice it contains.
    first: u32,
    /// Index of the slice itself.
    index: u32,
}

/// Iterator over the slices of one thread in the order of their starts, outer before inner.
pub(super) struct SlicesByStart<'a> {
    slices: &'a [RawSlice],
    position: u32,
    /// Remaining outer slices, by their first inner slice, the outermost first.
    remaining_outers: std::vec::IntoIter<EnclosingSlice>,
    next_outer: Option<EnclosingSlice>,
    /// Indices of slices that were returned ahead of their position.
    returned_early: Vec<u32>,
}

impl<'a> SlicesByStart<'a> {
    /// Creates the iterator for `slices` in the order of their ends. Takes some nanoseconds per
    /// slice and level of nesting.
    pub(super) fn new(slices: &'a [RawSlice]) -> Self {
        let mut outers = find_enclosing(slices);
        outers.sort_unstable_by_key(|outer| (outer.first, u32::MAX - outer.index));
        let mut outers = outers.into_iter();
        let next = outers.next();
        Self {
            slices,
            position: 0,
            remaining_outers: outers,
            next_outer: next,
            returned_early: Vec::new(),
        }
    }
}

impl Iterator for SlicesByStart<'_> {
    type Item = RawSlice;

    #[inline]
    fn next(&mut self) -> Option<RawSlice> {
        while self.returned_early.pop_if(|read| *read == self.position).is_some() {
            self.position += 1;
        }
        if let Some(outer) = self.next_outer.filter(|outer| outer.first == self.position) {
            self.next_outer = self.remaining_outers.next();
            self.returned_early.push(outer.index);
            return self.slices.get(outer.index as usize).copied();
        }
        let slice = self.slices.get(self.position as usize).copied();
        self.position += 1;
        slice
    }
}

/// Returns the slices that contain others, in the order of the ring.
fn find_enclosing(slices: &[RawSlice]) -> Vec<EnclosingSlice> {
    let mut outers: Vec<EnclosingSlice> = Vec::new();
    for (index, slice) in slices.iter().enumerate() {
        let mut candidates = outers.as_slice();
        let mut first = index;
        // Moves from each contained slice to the one before it and before all that it contains.
        while let Some(previous) = first.checked_sub(1)
            && slices.get(previous).is_some_and(|inner| is_inside(*inner, *slice))
        {
            first = previous;
            while let Some((last, earlier)) = candidates.split_last()
                && last.index as usize >= first
            {
                if last.index as usize == first {
                    first = last.first as usize;
                }
                candidates = earlier;
            }
        }
        if first < index {
            outers.push(EnclosingSlice { first: first as u32, index: index as u32 });
        }
    }
    outers
}

/// Returns `true` if `outer` contains `inner`, which ended first.
#[inline]
fn is_inside(inner: RawSlice, outer: RawSlice) -> bool {
    let start = inner.start();
    start >= outer.earliest_start() && (start >= outer.start() || inner.end() > outer.start())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{RawKind, TaskKey};

    fn slice(start: u64, end: u64) -> RawSlice {
        RawSlice::new(RawKind::WrappedPoll, start, end, TaskKey::default())
    }

    fn in_start_order(ring: &[RawSlice]) -> Vec<(u64, u64)> {
        SlicesByStart::new(ring).map(|slice| (slice.start(), slice.end())).collect()
    }

    #[test]
    fn outer_slices_come_before_inner_ones() {
        let begin_order = [
            (10, 90),
            (20, 60),
            (20, 30),
            (40, 50),
            (45, 46),
            (70, 80),
            (90, 95),
            (100, 200),
            (100, 150),
            (300, 400),
        ];
        let mut ring = begin_order.map(|(start, end)| slice(start, end));
        ring.sort_by_key(|slice| (slice.end(), u64::MAX - slice.start()));
        assert_eq!(in_start_order(&ring), begin_order);
        assert_eq!(in_start_order(&[]), []);
        assert_eq!(find_enclosing(&ring).len(), 4, "those with others in them");
    }

    #[test]
    fn any_nesting_matches_sorting_by_start() {
        // Trees from the bits of a counter: each bit opens a slice or closes the innermost.
        for shape in 0_u32..1 << 12 {
            let mut ring = Vec::new();
            let mut open = Vec::new();
            let mut now = 0;
            for bit in 0..12 {
                now += 1;
                if shape & (1 << bit) != 0 {
                    open.push(now);
                } else if let Some(start) = open.pop() {
                    ring.push(slice(start, now));
                }
            }
            let mut sorted = ring.clone();
            sorted.sort_by_key(|slice| slice.start());
            let sorted: Vec<_> = sorted.iter().map(|slice| (slice.start(), slice.end())).collect();
            assert_eq!(in_start_order(&ring), sorted, "{shape:b}");
        }
    }

    #[test]
    fn long_slice_with_rounded_start_encloses_inner_slices() {
        let start = 1001;
        let long = (1_u64 << 40) + (1 << 18) - 1;
        let outer = slice(start, start + long);
        let rounded_start = outer.start();
        assert!(rounded_start > start + 100, "the rounding takes that much");
        let inner = slice(start + 50, rounded_start + 5);
        let innermost = slice(start + 60, start + 70);
        let other = slice(start - 500, start);
        let ring = [other, innermost, inner, outer];
        let found: Vec<_> = SlicesByStart::new(&ring).collect();
        assert_eq!(found, [other, outer, inner, innermost]);
    }
}
