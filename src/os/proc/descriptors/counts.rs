//! Counts keyed by text, in bounded memory.

use std::collections::HashMap;

use crate::model::DescriptorCount;

/// Maximum number of distinct texts. When it is reached, the least frequent ones are dropped.
const MAX_KEYS: usize = 4096;

/// Counts by kind and target.
#[derive(Debug, Default)]
pub(crate) struct DescriptorCounts {
    counts: HashMap<(&'static str, String), u64>,
    has_dropped_keys: bool,
}

impl DescriptorCounts {
    /// Adds one to the count of `kind` and `target`.
    pub(crate) fn add(&mut self, kind: &'static str, target: &str) {
        if self.counts.len() >= MAX_KEYS {
            self.has_dropped_keys = true;
            // Frequent texts stay, and later ones get space again.
            let mut max_dropped = 1;
            while self.counts.len() >= MAX_KEYS {
                self.counts.retain(|_, count| *count > max_dropped);
                max_dropped += 1;
            }
        }
        *self.counts.entry((kind, target.to_owned())).or_default() += 1;
    }

    /// Returns `true` if no text was dropped.
    pub(crate) fn is_exact(&self) -> bool {
        !self.has_dropped_keys
    }

    /// Returns the `most` largest counts.
    pub(crate) fn into_rows(self, limit: usize) -> Vec<DescriptorCount> {
        let row = |((kind, target), count)| DescriptorCount { kind, target, count };
        let mut rows: Vec<DescriptorCount> = self.counts.into_iter().map(row).collect();
        rows.sort_by(|a, b| b.count.cmp(&a.count).then_with(|| a.target.cmp(&b.target)));
        rows.truncate(limit);
        rows
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frequent_targets_survive_eviction() {
        let mut counts = DescriptorCounts::default();
        for number in 0..20 * MAX_KEYS {
            counts.add("file", &format!("/tmp/{number}"));
            if number % 4 == 0 {
                counts.add("file", "/var/leak");
            }
        }
        assert!(counts.counts.len() <= MAX_KEYS && !counts.is_exact());
        let rows = counts.into_rows(2);
        assert_eq!((rows[0].target.as_str(), rows.len()), ("/var/leak", 2));
        assert_eq!(rows[0].count, 5 * MAX_KEYS as u64);
    }
}
