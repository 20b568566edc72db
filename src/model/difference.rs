//! The difference of two profiles of one process.

use std::collections::HashMap;

use super::marker::Marker;
use super::profile::{LabelValue, Profile, Sample};

/// The identity of a sample across profiles: addresses and label contents. Handles cannot be
/// compared, because each belongs to the tables of one profile.
type RowKey = (Vec<u64>, Vec<(String, Content)>);

#[derive(PartialEq, Eq, Hash)]
enum Content {
    Text(String),
    Number(i64),
}

impl Profile {
    /// Subtracts the values of `earlier`, a profile of the same process with the same sample types.
    ///
    /// Samples that are zero in every type are removed, and samples only `earlier` contains become
    /// negative. The duration becomes the time between the two profiles. Losses and comments of
    /// this profile are kept.
    ///
    /// A heap profile that evicted stacks in between counts their cumulative values under
    /// [`Marker::Evicted`]. Cumulative values that would be negative at a stack are subtracted
    /// from that row instead.
    ///
    /// Temporarily allocates the memory of one of the two profiles again.
    pub fn subtract(&mut self, earlier: &Self) {
        let mut earlier_values: HashMap<RowKey, Vec<i64>> =
            HashMap::with_capacity(earlier.samples.len());
        for sample in &earlier.samples {
            let sum = earlier_values.entry(earlier.sample_key(sample)).or_default();
            sum.resize(sum.len().max(sample.values.len()), 0);
            sum.iter_mut().zip(&sample.values).for_each(|(sum, value)| *sum += value);
        }
        let mut samples = std::mem::take(&mut self.samples);
        for sample in &mut samples {
            if let Some(before) = earlier_values.remove(&self.sample_key(sample)) {
                sample.values.iter_mut().zip(before).for_each(|(now, before)| *now -= before);
            }
        }
        for ((addresses, labels), values) in earlier_values {
            let stack = self.intern_stack(&addresses);
            let label = |(key, content): (String, Content)| match content {
                Content::Text(text) => self.text_label(&key, &text),
                Content::Number(number) => self.number_label(&key, number, "bytes"),
            };
            let labels = labels.into_iter().map(label).collect();
            samples.push(Sample {
                stack,
                values: values.iter().map(|value| -value).collect(),
                labels,
            });
        }
        self.fold_evicted(&mut samples);
        samples.retain(|sample| sample.values.iter().any(|value| *value != 0));
        self.samples = samples;
        self.timed_samples.clear();
        self.duration = self.started.duration_since(earlier.started).unsigned_abs();
    }

    /// Moves negative cumulative counts to the row of evicted stacks, if there is one.
    fn fold_evicted(&self, samples: &mut [Sample]) {
        let is_evicted = |sample: &Sample| {
            let mut frames = self.stacks.frames(sample.stack);
            let address = frames.next().map(|frame| self.frames.get(frame).address);
            address == Some(Marker::Evicted.address())
        };
        let Some(evicted) = samples.iter().position(is_evicted) else { return };
        for (column, kind) in self.sample_types.iter().enumerate() {
            if !kind.name.starts_with("alloc_") {
                continue;
            }
            let mut negative_sum = 0;
            for sample in samples.iter_mut() {
                if let Some(value) = sample.values.get_mut(column).filter(|value| **value < 0) {
                    negative_sum += std::mem::take(value);
                }
            }
            if let Some(value) =
                samples.get_mut(evicted).and_then(|sample| sample.values.get_mut(column))
            {
                *value += negative_sum;
            }
        }
    }

    fn sample_key(&self, sample: &Sample) -> RowKey {
        let addresses = self.stacks.frames(sample.stack);
        let text = |handle| self.strings.get(handle).to_owned();
        let labels = sample.labels.iter().map(|label| {
            let content = match label.value {
                LabelValue::Text(value) => Content::Text(text(value)),
                LabelValue::Number(number, _) => Content::Number(number),
            };
            (text(label.key), content)
        });
        (addresses.map(|frame| self.frames.get(frame).address).collect(), labels.collect())
    }
}

#[cfg(test)]
mod tests {
    use jiff::{SignedDuration, Timestamp};

    use super::*;
    use crate::model::ValueType;

    fn profile(samples: &[(&[u64], i64, [i64; 2])]) -> Profile {
        let kind = |name| ValueType { name, unit: "bytes" };
        let types = [kind("alloc"), kind("inuse")];
        let mut profile = Profile::new(&types, kind("space"), 1, Timestamp::UNIX_EPOCH);
        for (addresses, size, values) in samples {
            let stack = profile.intern_stack(addresses);
            let labels = vec![profile.number_label("bytes", *size, "bytes")];
            profile.samples.push(Sample { stack, values: values.to_vec(), labels });
        }
        profile
    }

    fn values(profile: &Profile) -> Vec<(Vec<u64>, Vec<i64>)> {
        let mut values: Vec<_> = profile
            .samples
            .iter()
            .map(|sample| (profile.sample_key(sample).0, sample.values.clone()))
            .collect();
        values.sort();
        values
    }

    #[test]
    fn subtract_removes_unchanged_samples() {
        let earlier = profile(&[(&[9, 1], 8, [5, 5]), (&[7], 8, [3, 3]), (&[4], 8, [2, 1])]);
        let mut later = profile(&[
            (&[7], 8, [3, 3]),
            (&[9, 1], 8, [9, 2]),
            (&[9, 1], 16, [1, 1]),
            (&[2], 8, [6, 6]),
        ]);
        later.started = earlier.started + SignedDuration::from_millis(1500);
        later.subtract(&earlier);
        assert_eq!(
            values(&later),
            [
                (vec![2], vec![6, 6]),
                (vec![4], vec![-2, -1]),
                (vec![9, 1], vec![1, 1]),
                (vec![9, 1], vec![4, -3]),
            ]
        );
        assert_eq!(later.duration.as_millis(), 1500);
    }

    #[test]
    fn negative_counts_move_to_evicted_row_and_sums_stay() {
        let evicted = [Marker::Evicted.address()];
        let heap = |samples: &[(&[u64], i64, [i64; 2])]| {
            let mut profile = profile(samples);
            (profile.sample_types[0].name, profile.sample_types[1].name) =
                ("alloc_space", "inuse_space");
            profile
        };
        // Stack 7 was evicted; 9 was evicted and sampled again; 4 kept its total and lost live
        // bytes.
        let earlier = [(&[7][..], 8, [30, 2]), (&[9], 8, [50, 5]), (&[4], 8, [6, 6])];
        let later = [(&[9][..], 8, [10, 5]), (&[4], 8, [6, 1]), (&evicted, 8, [85, 0])];
        let mut difference = heap(&later);
        difference.subtract(&heap(&earlier));
        let expected =
            [(vec![4], vec![0, -5]), (vec![7], vec![0, -2]), (evicted.to_vec(), vec![15, 0])];
        assert_eq!(values(&difference), expected);
        let mut other = profile(&later);
        other.subtract(&profile(&earlier));
        assert!(values(&other).contains(&(vec![7], vec![-30, -2])), "other counts may shrink");
    }

    #[test]
    fn profile_minus_itself_is_empty() {
        let mut later = profile(&[(&[7], 8, [3, 3]), (&[], 8, [1, 1])]);
        later.subtract(&later.clone());
        assert!(later.samples.is_empty());
    }
}
