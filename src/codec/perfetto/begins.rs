//! Slices in the order of their begins, read from a ring, which has them in the order of their ends.
//!
//! ```text
//! ring      a  b  c  d  e          a and b are in c, d and c are in e
//! begins    e  c  a  b  d
//! ```
//!
//! A slice with others in it stands behind the last of them, and they stand together. So all there is to know is
//! where the first of them stands, which takes eight bytes for each such slice and nothing for the others; a copy of
//! all to sort would take sixteen for each.
//!
//! The starts of long slices are late, by what the rounding took: one may begin after what is in it. What ended
//! first cannot be around what ended later, and slices of one thread do not cross; so what begins within what
//! the rounding can have taken, and reaches beyond the late start, is inside.

use crate::model::RawSlice;

/// A slice with others in it.
#[derive(Clone, Copy)]
struct Outer {
    /// The place of the first that is in it.
    first: u32,
    /// Its own.
    place: u32,
}

/// The slices of one thread by their begins, outer before inner.
pub(super) struct Begins<'a> {
    slices: &'a [RawSlice],
    at: u32,
    /// The outer ones to come: by their first, the outermost first.
    outers: std::vec::IntoIter<Outer>,
    next: Option<Outer>,
    /// The places of those that were read before their turn.
    read: Vec<u32>,
}

impl<'a> Begins<'a> {
    /// Of `slices` in the order of their ends. Takes some nanoseconds a slice and level of depth.
    pub(super) fn new(slices: &'a [RawSlice]) -> Self {
        let mut outers = outers(slices);
        outers.sort_unstable_by_key(|outer| (outer.first, u32::MAX - outer.place));
        let mut outers = outers.into_iter();
        let next = outers.next();
        Self { slices, at: 0, outers, next, read: Vec::new() }
    }
}

impl Iterator for Begins<'_> {
    type Item = RawSlice;

    #[inline]
    fn next(&mut self) -> Option<RawSlice> {
        while self.read.pop_if(|read| *read == self.at).is_some() {
            self.at += 1;
        }
        if let Some(outer) = self.next.filter(|outer| outer.first == self.at) {
            self.next = self.outers.next();
            self.read.push(outer.place);
            return self.slices.get(outer.place as usize).copied();
        }
        let slice = self.slices.get(self.at as usize).copied();
        self.at += 1;
        slice
    }
}

/// Those that have others in them, in the order of the ring.
fn outers(slices: &[RawSlice]) -> Vec<Outer> {
    let mut outers: Vec<Outer> = Vec::new();
    for (place, slice) in slices.iter().enumerate() {
        let mut known = outers.as_slice();
        let mut first = place;
        // From each that is inside to the one before it and before all that is in it.
        while let Some(before) = first.checked_sub(1)
            && slices.get(before).is_some_and(|inner| is_inside(*inner, *slice))
        {
            first = before;
            while let Some((last, earlier)) = known.split_last()
                && last.place as usize >= first
            {
                if last.place as usize == first {
                    first = last.first as usize;
                }
                known = earlier;
            }
        }
        if first < place {
            outers.push(Outer { first: first as u32, place: place as u32 });
        }
    }
    outers
}

/// Whether `inner`, which ended first, is in `outer`.
#[inline]
fn is_inside(inner: RawSlice, outer: RawSlice) -> bool {
    let start = inner.start();
    start >= outer.earliest() && (start >= outer.start() || inner.end() > outer.start())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{RawKind, TaskKey};

    fn slice(start: u64, end: u64) -> RawSlice {
        RawSlice::new(RawKind::WrappedPoll, start, end, TaskKey::default())
    }

    fn begins(ring: &[RawSlice]) -> Vec<(u64, u64)> {
        Begins::new(ring).map(|slice| (slice.start(), slice.end())).collect()
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
        assert_eq!(begins(&ring), begin_order);
        assert_eq!(begins(&[]), []);
        assert_eq!(outers(&ring).len(), 4, "those with others in them");
    }

    #[test]
    fn any_nesting_is_as_sorting_has_it() {
        // Trees by a counter that is taken apart: each bit opens a slice or closes the innermost.
        for shape in 0_u32..1 << 12 {
            let (mut ring, mut open, mut now) = (Vec::new(), Vec::new(), 0);
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
            assert_eq!(begins(&ring), sorted, "{shape:b}");
        }
    }

    #[test]
    fn a_long_slice_whose_start_is_late_is_around_what_began_in_it() {
        let (start, long) = (1001, (1_u64 << 40) + (1 << 18) - 1);
        let outer = slice(start, start + long);
        let late = outer.start();
        assert!(late > start + 100, "the rounding takes that much");
        let inner = slice(start + 50, late + 5);
        let innermost = slice(start + 60, start + 70);
        let other = slice(start - 500, start);
        let ring = [other, innermost, inner, outer];
        let found: Vec<_> = Begins::new(&ring).collect();
        assert_eq!(found, [other, outer, inner, innermost]);
    }
}
