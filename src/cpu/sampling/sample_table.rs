//! Sample counts: a tree of stacks and a table of (thread name, stack), both bounded.

use std::collections::HashMap;
use std::time::Duration;

use super::allotment::Unsampled;
use crate::cpu::sampling::sample_times::SampleLog;
use crate::cpu::sampling::scaling::{NameGroup, UNPLACED};

/// Root of the tree: the outer end of every stack.
const ROOT: u32 = 0;

/// Key of samples with equal thread name and stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct SampleKey {
    /// Thread name, as numbered by the roster.
    pub(super) name: u32,
    pub(super) stack: u32,
    /// `true` if the outer end of the stack is missing.
    pub(super) is_cut: bool,
}

/// Number and weight of samples.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct SampleCount {
    pub(super) samples: u64,
    /// Sum of the weights, in periods.
    pub(super) weight: u64,
}

/// Samples of one time interval.
#[derive(Debug)]
pub(super) struct SampleTable {
    /// (parent, address) of each node.
    nodes: Vec<(u32, u64)>,
    by_node: HashMap<(u32, u64), u32>,
    places: HashMap<SampleKey, SampleCount>,
    strata: HashMap<u32, NameGroup>,
    limit: usize,
    pub(super) all: SampleCount,
    /// Sum of the squared weights, for the error of shares.
    pub(super) squares: u64,
    /// Weight of samples dropped before this table.
    pub(super) lost: u64,
    /// Weight counted without a stack because the table is full.
    pub(super) unplaced: u64,
    /// Weight of stacks with omitted frames in the middle.
    pub(super) omitted: u64,
    /// Weight of stacks whose copy was too short and that end with the outer frames of an earlier
    /// sample.
    pub(super) joined: u64,
    /// Weight of stacks whose copy was too short and whose outer end is missing.
    pub(super) short: u64,
    /// Weight of stacks with more frames than the walk's limit.
    pub(super) too_deep: u64,
    /// Weight of stacks that end where unwind information is missing.
    pub(super) broken: u64,
    /// Weight of stacks that end in a signal handler on an alternate stack.
    pub(super) elsewhere: u64,
    /// Weight of stacks that pass code without unwind tables.
    pub(super) inferred: u64,
    /// Threads without samples: the largest number at one time.
    pub(super) unsampled: Option<Unsampled>,
    /// Times of the samples.
    pub(super) log: SampleLog,
}

impl SampleTable {
    /// Creates a tally with at most `limit` nodes, `limit` keys of 100 bytes each and `limit`
    /// times. Memory grows with use.
    pub(super) fn new(limit: usize) -> Self {
        Self {
            nodes: vec![(ROOT, 0)],
            by_node: HashMap::new(),
            places: HashMap::new(),
            strata: HashMap::new(),
            limit,
            all: SampleCount::default(),
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
            log: SampleLog::new(limit),
        }
    }

    /// Counts a sample at `frames`, innermost first, and returns its key.
    pub(super) fn add(
        &mut self,
        name: u32,
        frames: &[u64],
        weight: u32,
        is_cut: bool,
    ) -> SampleKey {
        let weight = u64::from(weight);
        let stack = frames.iter().rev().try_fold(ROOT, |parent, &frame| self.node(parent, frame));
        let place = SampleKey { name, stack: stack.unwrap_or(ROOT), is_cut };
        let place = if stack.is_some()
            && (self.places.len() < self.limit || self.places.contains_key(&place))
        {
            place
        } else {
            self.unplaced += weight;
            SampleKey { name: UNPLACED, stack: ROOT, is_cut: true }
        };
        let count = self.places.entry(place).or_default();
        count.samples += 1;
        count.weight += weight;
        self.all.samples += 1;
        self.all.weight += weight;
        // In wall mode, a machine that was suspended for an hour produces the largest possible
        // weight.
        let squared = weight.saturating_mul(weight);
        self.squares = self.squares.saturating_add(squared);
        let sampled = NameGroup { weight, squares: squared, ..NameGroup::default() };
        self.strata.entry(place.name).or_default().add(&sampled);
        place
    }

    /// Adds CPU time that the kernel charged to a thread with this name.
    pub(super) fn charge(&mut self, name: u32, time: Duration) {
        let charged = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        if charged > 0 {
            let stratum = self.strata.entry(name).or_default();
            stratum.charged = stratum.charged.saturating_add(charged);
            stratum.most = stratum.most.max(charged);
        }
    }

    /// Returns samples and charged time by name. The roster bounds the number of names.
    pub(super) fn strata(&self) -> impl Iterator<Item = (u32, &NameGroup)> + '_ {
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

    /// Returns all keys and their counts, in arbitrary order.
    pub(super) fn places(&self) -> impl Iterator<Item = (SampleKey, SampleCount)> + '_ {
        self.places.iter().map(|(&place, &count)| (place, count))
    }

    /// Returns the frames of a key, innermost first.
    pub(super) fn frames(&self, place: SampleKey) -> impl Iterator<Item = u64> + '_ {
        let mut next = place.stack;
        std::iter::from_fn(move || {
            let (parent, frame) = *self.nodes.get(next as usize).filter(|_| next != ROOT)?;
            next = parent;
            Some(frame)
        })
    }

    /// Returns `true` if there are no samples and no losses.
    pub(super) fn is_empty(&self) -> bool {
        self.all.samples == 0 && self.lost == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(tally: &SampleTable) -> Vec<(u32, Vec<u64>, SampleCount)> {
        let mut places: Vec<_> = tally
            .places()
            .map(|(place, count)| (place.name, tally.frames(place).collect(), count))
            .collect();
        places.sort_by_key(|(name, frames, _): &(u32, Vec<u64>, SampleCount)| {
            (*name, frames.clone())
        });
        places
    }

    #[test]
    fn the_same_stack_of_the_same_thread_is_one_place() {
        let mut tally = SampleTable::new(100);
        tally.add(1, &[3, 2, 1], 1, false);
        tally.add(1, &[3, 2, 1], 4, false);
        tally.add(2, &[2, 1], 1, false);
        let count = |samples, weight| SampleCount { samples, weight };
        assert_eq!(places(&tally), [(1, vec![3, 2, 1], count(2, 5)), (2, vec![2, 1], count(1, 1))]);
        assert_eq!((tally.all, tally.squares), (count(3, 6), 18));
        assert_eq!(tally.nodes.len(), 4);
    }

    #[test]
    fn a_look_of_any_weight_is_counted() {
        let mut tally = SampleTable::new(10);
        for _ in 0..2 {
            tally.add(1, &[1], u32::MAX, false);
        }
        assert_eq!((tally.all.weight, tally.squares), (2 * u64::from(u32::MAX), u64::MAX));
    }

    #[test]
    fn a_full_table_counts_on_without_stacks() {
        for limit in [1, 2, 3] {
            let mut tally = SampleTable::new(limit);
            for stack in 1..=10 {
                tally.add(1, &[stack], 2, false);
            }
            assert_eq!(tally.all, SampleCount { samples: 10, weight: 20 });
            assert_eq!(tally.unplaced, 2 * (10 - (limit as u64 - 1)), "{limit}");
            let held: u64 = tally.places().map(|(_, count)| count.weight).sum();
            assert_eq!(held, 20);
        }
    }
}
