//! Samples, counted where they were: a tree of stacks and a table of (thread, stack), both bounded.

use std::collections::HashMap;
use std::time::Duration;

use super::allotment::Unsampled;
use super::strata::{Stratum, UNPLACED};
use super::timed::Log;

/// The outermost end of every stack.
const ROOT: u32 = 0;

/// Where samples were.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Place {
    /// The thread's name, by the roster's number.
    pub(super) name: u32,
    pub(super) stack: u32,
    /// Whether the stack's outer end is missing.
    pub(super) is_cut: bool,
}

/// How many.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Count {
    pub(super) samples: u64,
    /// In periods.
    pub(super) weight: u64,
}

/// What was sampled over some time.
#[derive(Debug)]
pub(super) struct Tally {
    /// Parent and address.
    nodes: Vec<(u32, u64)>,
    by_node: HashMap<(u32, u64), u32>,
    places: HashMap<Place, Count>,
    strata: HashMap<u32, Stratum>,
    limit: usize,
    pub(super) all: Count,
    /// The sum of the squares of the weights, for the error of shares.
    pub(super) squares: u64,
    /// Weight that found no room on its way.
    pub(super) lost: u64,
    /// Weight that is counted without a stack, as the table is full.
    pub(super) unplaced: u64,
    /// Weight of stacks whose middle was left out.
    pub(super) omitted: u64,
    /// Weight of stacks whose copy was too short, and that have the outer end of an earlier one.
    pub(super) joined: u64,
    /// Weight of stacks whose copy was too short, and whose outer end is missing.
    pub(super) short: u64,
    /// Weight of stacks that have more frames than are walked.
    pub(super) too_deep: u64,
    /// Weight of stacks at whose end no unwind information led on.
    pub(super) broken: u64,
    /// Weight of stacks that end in a signal handler, whose stack is not that of the code below.
    pub(super) elsewhere: u64,
    /// Weight of stacks that pass code without unwind tables.
    pub(super) inferred: u64,
    /// Threads that were not sampled: the most at one time.
    pub(super) unsampled: Option<Unsampled>,
    /// When each was.
    pub(super) log: Log,
}

impl Tally {
    /// Holds at most `limit` nodes, as many places, 100 bytes each, and as many times, as they come.
    pub(super) fn new(limit: usize) -> Self {
        Self {
            nodes: vec![(ROOT, 0)],
            by_node: HashMap::new(),
            places: HashMap::new(),
            strata: HashMap::new(),
            limit,
            all: Count::default(),
            squares: 0,
            lost: 0,
            unplaced: 0,
            omitted: 0,
            joined: 0,
            short: 0,
            too_deep: 0,
            broken: 0,
            elsewhere: 0,
            inferred: 0,
            unsampled: None,
            log: Log::new(limit),
        }
    }

    /// Counts a sample at `frames`, innermost first, and says where.
    pub(super) fn add(&mut self, name: u32, frames: &[u64], weight: u32, is_cut: bool) -> Place {
        let weight = u64::from(weight);
        let stack = frames.iter().rev().try_fold(ROOT, |parent, &frame| self.node(parent, frame));
        let place = Place { name, stack: stack.unwrap_or(ROOT), is_cut };
        let place = if stack.is_some()
            && (self.places.len() < self.limit || self.places.contains_key(&place))
        {
            place
        } else {
            self.unplaced += weight;
            Place { name: UNPLACED, stack: ROOT, is_cut: true }
        };
        let count = self.places.entry(place).or_default();
        count.samples += 1;
        count.weight += weight;
        self.all.samples += 1;
        self.all.weight += weight;
        // In wall mode a machine that slept for an hour makes looks of the greatest weight there is.
        let squared = weight.saturating_mul(weight);
        self.squares = self.squares.saturating_add(squared);
        let sampled = Stratum { weight, squares: squared, ..Stratum::default() };
        self.strata.entry(place.name).or_default().add(&sampled);
        place
    }

    /// Counts CPU time that the kernel charged to a thread of this name.
    pub(super) fn charge(&mut self, name: u32, time: Duration) {
        let charged = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        if charged > 0 {
            let stratum = self.strata.entry(name).or_default();
            stratum.charged = stratum.charged.saturating_add(charged);
            stratum.most = stratum.most.max(charged);
        }
    }

    /// What was sampled and charged, by name. There are as many as the roster tells apart.
    pub(super) fn strata(&self) -> impl Iterator<Item = (u32, &Stratum)> + '_ {
        self.strata.iter().map(|(&name, stratum)| (name, stratum))
    }

    fn node(&mut self, parent: u32, frame: u64) -> Option<u32> {
        if let Some(&node) = self.by_node.get(&(parent, frame)) {
            return Some(node);
        }
        if self.nodes.len() >= self.limit {
            return None;
        }
        let node = u32::try_from(self.nodes.len()).ok()?;
        self.nodes.push((parent, frame));
        self.by_node.insert((parent, frame), node);
        Some(node)
    }

    /// Every place and its count, in no order.
    pub(super) fn places(&self) -> impl Iterator<Item = (Place, Count)> + '_ {
        self.places.iter().map(|(&place, &count)| (place, count))
    }

    /// The frames of a place, innermost first.
    pub(super) fn frames(&self, place: Place) -> impl Iterator<Item = u64> + '_ {
        let mut next = place.stack;
        std::iter::from_fn(move || {
            let (parent, frame) = *self.nodes.get(next as usize).filter(|_| next != ROOT)?;
            next = parent;
            Some(frame)
        })
    }

    /// Whether nothing came and nothing was lost.
    pub(super) fn is_empty(&self) -> bool {
        self.all.samples == 0 && self.lost == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(tally: &Tally) -> Vec<(u32, Vec<u64>, Count)> {
        let mut places: Vec<_> = tally
            .places()
            .map(|(place, count)| (place.name, tally.frames(place).collect(), count))
            .collect();
        places.sort_by_key(|(name, frames, _): &(u32, Vec<u64>, Count)| (*name, frames.clone()));
        places
    }

    #[test]
    fn the_same_stack_of_the_same_thread_is_one_place() {
        let mut tally = Tally::new(100);
        tally.add(1, &[3, 2, 1], 1, false);
        tally.add(1, &[3, 2, 1], 4, false);
        tally.add(2, &[2, 1], 1, false);
        let count = |samples, weight| Count { samples, weight };
        assert_eq!(places(&tally), [(1, vec![3, 2, 1], count(2, 5)), (2, vec![2, 1], count(1, 1))]);
        assert_eq!((tally.all, tally.squares), (count(3, 6), 18));
        assert_eq!(tally.nodes.len(), 4);
    }

    #[test]
    fn a_look_of_any_weight_is_counted() {
        let mut tally = Tally::new(10);
        for _ in 0..2 {
            tally.add(1, &[1], u32::MAX, false);
        }
        assert_eq!((tally.all.weight, tally.squares), (2 * u64::from(u32::MAX), u64::MAX));
    }

    #[test]
    fn a_full_table_counts_on_without_stacks() {
        for limit in [1, 2, 3] {
            let mut tally = Tally::new(limit);
            for stack in 1..=10 {
                tally.add(1, &[stack], 2, false);
            }
            assert_eq!(tally.all, Count { samples: 10, weight: 20 });
            assert_eq!(tally.unplaced, 2 * (10 - (limit as u64 - 1)), "{limit}");
            let held: u64 = tally.places().map(|(_, count)| count.weight).sum();
            assert_eq!(held, 20);
        }
    }
}
