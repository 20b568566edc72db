//! Sample counts: a tree of stacks and a table of (thread name, stack), both bounded.

use std::collections::HashMap;
use std::time::Duration;

use super::allotment::Unsampled;
use crate::cpu::sampling::sample_key::SampleKey;
use crate::cpu::sampling::sample_times::SampleLog;
use crate::cpu::sampling::scaling::{NameGroup, TABLE_FULL_NAME};

/// Root of the tree: the outer end of every stack.
const ROOT: u32 = 0;

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
    node_index: HashMap<(u32, u64), u32>,
    counts: HashMap<SampleKey, SampleCount>,
    name_groups: HashMap<u32, NameGroup>,
    max_entries: usize,
    pub(super) total: SampleCount,
    /// Sum of the squared weights, for the error of shares.
    pub(super) squared_weights: u64,
    /// Weight of samples dropped before this table.
    pub(super) lost: u64,
    /// Weight counted without a stack because the table is full.
    pub(super) table_full: u64,
    /// Weight of stacks with omitted frames in the middle.
    pub(super) omitted: u64,
    /// Weight of stacks whose copy was too short and that end with the outer frames of an earlier
    /// sample.
    pub(super) joined: u64,
    /// Weight of stacks whose copy was too short and whose outer end is missing.
    pub(super) copy_too_short: u64,
    /// Weight of stacks with more frames than the walk's limit.
    pub(super) too_deep: u64,
    /// Weight of stacks that end where unwind information is missing.
    pub(super) no_unwind_info: u64,
    /// Weight of stacks that end in a signal handler on an alternate stack.
    pub(super) on_alternate_stack: u64,
    /// Weight of stacks that pass code without unwind tables.
    pub(super) used_heuristics: u64,
    /// Threads without samples: the largest number at one time.
    pub(super) unsampled: Option<Unsampled>,
    /// Times of the samples.
    pub(super) log: SampleLog,
}

impl SampleTable {
    /// Creates a table with at most `max_entries` nodes, as many keys of 100 bytes each and as many
    /// times. Memory grows with use.
    pub(super) fn new(max_entries: usize) -> Self {
        Self {
            nodes: vec![(ROOT, 0)],
            node_index: HashMap::new(),
            counts: HashMap::new(),
            name_groups: HashMap::new(),
            max_entries,
            total: SampleCount::default(),
            squared_weights: 0,
            lost: 0,
            table_full: 0,
            omitted: 0,
            joined: 0,
            copy_too_short: 0,
            too_deep: 0,
            no_unwind_info: 0,
            on_alternate_stack: 0,
            used_heuristics: 0,
            unsampled: None,
            log: SampleLog::new(max_entries),
        }
    }

    /// Counts a sample at `frames`, innermost first, and returns its key.
    pub(super) fn add(
        &mut self,
        name: u32,
        frames: &[u64],
        weight: u32,
        is_truncated: bool,
    ) -> SampleKey {
        let weight = u64::from(weight);
        let stack =
            frames.iter().rev().try_fold(ROOT, |parent, &frame| self.intern_node(parent, frame));
        let key = SampleKey { name, stack: stack.unwrap_or(ROOT), is_truncated };
        let key = if stack.is_some()
            && (self.counts.len() < self.max_entries || self.counts.contains_key(&key))
        {
            key
        } else {
            self.table_full += weight;
            SampleKey { name: TABLE_FULL_NAME, stack: ROOT, is_truncated: true }
        };
        let count = self.counts.entry(key).or_default();
        count.samples += 1;
        count.weight += weight;
        self.total.samples += 1;
        self.total.weight += weight;
        // In wall mode, a machine that was suspended for an hour produces the largest possible
        // weight.
        let squared_weight = weight.saturating_mul(weight);
        self.squared_weights = self.squared_weights.saturating_add(squared_weight);
        let sampled = NameGroup { weight, squared_weights: squared_weight, ..NameGroup::default() };
        self.name_groups.entry(key.name).or_default().add(&sampled);
        key
    }

    /// Adds CPU time that the kernel charged to a thread with this name.
    pub(super) fn charge(&mut self, name: u32, time: Duration) {
        let charged = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        if charged > 0 {
            let group = self.name_groups.entry(name).or_default();
            group.charged = group.charged.saturating_add(charged);
            group.max_thread_charge = group.max_thread_charge.max(charged);
        }
    }

    /// Returns samples and charged time by name. The thread table bounds the number of names.
    pub(super) fn name_groups(&self) -> impl Iterator<Item = (u32, &NameGroup)> + '_ {
        self.name_groups.iter().map(|(&name, group)| (name, group))
    }

    fn intern_node(&mut self, parent: u32, frame: u64) -> Option<u32> {
        if let Some(&node) = self.node_index.get(&(parent, frame)) {
            return Some(node);
        }
        if self.nodes.len() >= self.max_entries {
            return None;
        }
        let node = u32::try_from(self.nodes.len()).ok()?;
        self.nodes.push((parent, frame));
        self.node_index.insert((parent, frame), node);
        Some(node)
    }

    /// Returns all keys and their counts, in arbitrary order.
    pub(super) fn counts(&self) -> impl Iterator<Item = (SampleKey, SampleCount)> + '_ {
        self.counts.iter().map(|(&key, &count)| (key, count))
    }

    /// Returns the frames of a key, innermost first.
    pub(super) fn frames(&self, key: SampleKey) -> impl Iterator<Item = u64> + '_ {
        let mut next = key.stack;
        std::iter::from_fn(move || {
            let (parent, frame) = *self.nodes.get(next as usize).filter(|_| next != ROOT)?;
            next = parent;
            Some(frame)
        })
    }

    /// Returns `true` if there are no samples and no losses.
    pub(super) fn is_empty(&self) -> bool {
        self.total.samples == 0 && self.lost == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sorted_counts(table: &SampleTable) -> Vec<(u32, Vec<u64>, SampleCount)> {
        let mut rows: Vec<_> = table
            .counts()
            .map(|(key, count)| (key.name, table.frames(key).collect(), count))
            .collect();
        rows.sort_by_key(|(name, frames, _): &(u32, Vec<u64>, SampleCount)| {
            (*name, frames.clone())
        });
        rows
    }

    #[test]
    fn same_stack_and_thread_name_share_one_count() {
        let mut table = SampleTable::new(100);
        table.add(1, &[3, 2, 1], 1, false);
        table.add(1, &[3, 2, 1], 4, false);
        table.add(2, &[2, 1], 1, false);
        let count = |samples, weight| SampleCount { samples, weight };
        assert_eq!(
            sorted_counts(&table),
            [(1, vec![3, 2, 1], count(2, 5)), (2, vec![2, 1], count(1, 1))]
        );
        assert_eq!((table.total, table.squared_weights), (count(3, 6), 18));
        assert_eq!(table.nodes.len(), 4);
    }

    #[test]
    fn maximum_weights_do_not_overflow() {
        let mut table = SampleTable::new(10);
        for _ in 0..2 {
            table.add(1, &[1], u32::MAX, false);
        }
        assert_eq!(
            (table.total.weight, table.squared_weights),
            (2 * u64::from(u32::MAX), u64::MAX)
        );
    }

    #[test]
    fn full_table_counts_samples_without_stacks() {
        for limit in [1, 2, 3] {
            let mut table = SampleTable::new(limit);
            for stack in 1..=10 {
                table.add(1, &[stack], 2, false);
            }
            assert_eq!(table.total, SampleCount { samples: 10, weight: 20 });
            assert_eq!(table.table_full, 2 * (10 - (limit as u64 - 1)), "{limit}");
            let total_weight: u64 = table.counts().map(|(_, count)| count.weight).sum();
            assert_eq!(total_weight, 20);
        }
    }
}
