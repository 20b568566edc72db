//! Scaling of samples to the CPU time that the kernel charged.
//!
//! A sample stands for one period of CPU time. That is accurate for a thread that uses many
//! periods. It is too low if many threads use few: the time that each ran after its last sample has
//! none. The kernel counts the CPU time of each thread, so the sum is known. Threads with one name
//! form a stratum; its samples are scaled to add up to the time charged to its threads
//! (post-stratification; Cochran, Sampling Techniques, 5A.9). The sum is exact, the distribution
//! within it remains an estimate.
//!
//! - Single threads are never scaled: of 10,000 threads that use a tenth of a period each, one in
//!   ten has a sample, which stands for the other nine. Names with little CPU time form one stratum
//!   for the same reason.
//! - A sample stands for at most [`MAX_SCALE`] times its weight. The time beyond that, and the time
//!   charged to names without a sample, is reported as a loss under the name.
//! - Samples lost to a full ring or table are reported separately; other samples do not replace
//!   them.

use std::collections::{BTreeMap, HashMap};

/// Samples and charged CPU time of one thread name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct NameGroup {
    /// Weight of the samples, in periods.
    pub(super) weight: u64,
    /// Sum of the squared weights.
    pub(super) squared_weights: u64,
    /// CPU time charged by the kernel, in nanoseconds.
    pub(super) charged: u64,
    /// Largest single charge to one thread; the sum of these if strata are added.
    pub(super) max_thread_charge: u64,
}

impl NameGroup {
    pub(super) fn add(&mut self, other: &Self) {
        self.weight = self.weight.saturating_add(other.weight);
        self.squared_weights = self.squared_weights.saturating_add(other.squared_weights);
        self.charged = self.charged.saturating_add(other.charged);
        self.max_thread_charge = self.max_thread_charge.saturating_add(other.max_thread_charge);
    }
}

/// Name of samples without a name, because the table of stacks was full.
pub(super) const TABLE_FULL_NAME: u32 = u32::MAX;

/// Maximum scale: at least a third of a name's time must be sampled. On a busy machine a timer
/// samples half the time of threads that use few ticks each.
const MAX_SCALE: f64 = 3.0;

/// Below `max(10 periods, 100 ms)` of CPU time the number of a name's samples is mostly chance.
const MIN_GROUP_PERIODS: u64 = 10;
const MIN_GROUP_NANOS: u64 = 100_000_000;

/// A thread that used `max(2 periods, 20 ms)`, 20 ms being two ticks of the slowest kernel, has a
/// sample unless something prevented it.
const MUST_BE_SAMPLED_PERIODS: u64 = 2;
const MUST_BE_SAMPLED_NANOS: u64 = 20_000_000;

/// Scale factors by thread name.
#[derive(Debug, Default)]
pub(super) struct ScaleFactors {
    scale_by_name: HashMap<u32, f64>,
    small_group_scale: f64,
    /// Largest scale and its name.
    pub(super) largest: Option<(f64, u32)>,
    /// Sum of the scaled samples, in periods.
    pub(super) weight: f64,
    /// Sum of the squared scaled weights.
    pub(super) squared_weights: f64,
    /// CPU time that no sample stands for, by name, in nanoseconds, largest first.
    pub(super) unsampled_cpu: Vec<(u32, u64)>,
}

impl ScaleFactors {
    /// Computes the scales of `strata`, for samples every `period` nanoseconds of which `lost` were
    /// dropped. Without charged time the scale is 1: a sample stands for one period.
    pub(super) fn compute(groups: &BTreeMap<u32, NameGroup>, period: u64, lost: u64) -> Self {
        let sum =
            |value: fn(&NameGroup) -> u64| groups.values().map(value).fold(0, u64::saturating_add);
        let mut factors = Self { small_group_scale: 1.0, ..Self::default() };
        if sum(|stratum| stratum.charged) > 0 {
            let overflowed =
                lost + groups.get(&TABLE_FULL_NAME).map_or(0, |stratum| stratum.weight);
            let placed = sum(|stratum| stratum.weight) + lost - overflowed;
            let placed_fraction = placed as f64 / (placed + overflowed).max(1) as f64;
            factors.scale_groups(
                groups,
                period,
                if overflowed == 0 { 1.0 } else { placed_fraction },
            );
        }
        for (&name, group) in groups {
            let scale = factors.scale_of(name);
            factors.weight += scale * group.weight as f64;
            factors.squared_weights += scale * scale * group.squared_weights as f64;
        }
        factors.unsampled_cpu.sort_by_key(|&(name, nanos)| (std::cmp::Reverse(nanos), name));
        factors
    }

    /// Returns the scale of the samples with this name.
    pub(super) fn scale_of(&self, name: u32) -> f64 {
        match self.scale_by_name.get(&name) {
            Some(&scale) => scale,
            None if name == TABLE_FULL_NAME => 1.0,
            None => self.small_group_scale,
        }
    }

    fn scale_groups(
        &mut self,
        groups: &BTreeMap<u32, NameGroup>,
        period: u64,
        placed_fraction: f64,
    ) {
        let min_group_nanos = MIN_GROUP_NANOS.max(period.saturating_mul(MIN_GROUP_PERIODS));
        let must_be_sampled_nanos =
            MUST_BE_SAMPLED_NANOS.max(period.saturating_mul(MUST_BE_SAMPLED_PERIODS));
        let mut small_group = NameGroup::default();
        let mut names = Vec::new();
        for (&name, group) in groups.iter().filter(|&(&name, _)| name != TABLE_FULL_NAME) {
            if group.charged < min_group_nanos
                && (group.weight > 0 || group.max_thread_charge < must_be_sampled_nanos)
            {
                small_group.add(group);
                names.push((name, group.charged));
            } else if let Some(scale) =
                self.group_scale(group, period, placed_fraction, &[(name, group.charged)])
            {
                self.update_largest(scale, name);
                self.scale_by_name.insert(name, scale);
            }
        }
        names.sort_by_key(|&(_, charged)| charged);
        if let Some(scale) = self.group_scale(&small_group, period, placed_fraction, &names) {
            self.small_group_scale = scale;
            if let Some(&(name, _)) = names.last() {
                self.update_largest(scale, name);
            }
        }
    }

    /// Returns the scale of a stratum, or `None` without samples. Distributes the time beyond the
    /// maximum scale among `names`, in proportion to their charges.
    fn group_scale(
        &mut self,
        group: &NameGroup,
        period: u64,
        placed_fraction: f64,
        names: &[(u32, u64)],
    ) -> Option<f64> {
        let charged = group.charged as f64 * placed_fraction;
        let sampled_nanos = group.weight as f64 * period as f64;
        let scale = (sampled_nanos > 0.0).then(|| (charged / sampled_nanos).min(MAX_SCALE));
        let excess = charged - sampled_nanos * scale.unwrap_or(0.0);
        if group.charged > 0 && excess >= 1.0 {
            let fraction = excess / group.charged as f64;
            let unsampled_cpu =
                names.iter().map(|&(name, charged)| (name, (charged as f64 * fraction) as u64));
            self.unsampled_cpu.extend(unsampled_cpu.filter(|&(_, nanos)| nanos > 0));
        }
        scale
    }

    fn update_largest(&mut self, scale: f64, name: u32) {
        if self.largest.is_none_or(|(largest, _)| scale > largest) {
            self.largest = Some((scale, name));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;
    const PERIOD: u64 = 10 * MS;

    /// Arguments: (samples of weight 1, milliseconds charged, milliseconds of one thread).
    fn factors(strata: &[(u32, (u64, u64, u64))], lost: u64) -> ScaleFactors {
        let strata = strata.iter().map(|&(name, (weight, charged, most))| {
            let charged = charged * MS;
            let most = most * MS;
            (name, NameGroup { weight, squared_weights: weight, charged, max_thread_charge: most })
        });
        ScaleFactors::compute(&strata.collect(), PERIOD, lost)
    }

    #[test]
    fn scaled_samples_and_losses_add_up_to_charged_time() {
        for (weight, charged, scale, unseen) in [
            (100, 1000, 1.0, 0),
            // 256 threads, each with half a period after its last sample.
            (256, 3840, 1.5, 0),
            (102, 1000, 1000.0 / 1020.0, 0),
            // One tenth with a sample may not stand for nine tenths without.
            (10, 1000, 3.0, 700),
            (0, 1000, 1.0, 1000),
        ] {
            let found = factors(&[(1, (weight, charged, charged))], 0);
            assert!((found.scale_of(1) - scale).abs() < 1e-9, "{weight} {charged}: {found:?}");
            let lost: Vec<_> =
                found.unsampled_cpu.iter().map(|&(name, nanos)| (name, nanos / MS)).collect();
            let expected = if unseen == 0 { vec![] } else { vec![(1, unseen)] };
            assert_eq!(lost, expected, "{weight} {charged}");
            let seen = found.weight * PERIOD as f64 / MS as f64;
            assert!(
                (seen + unseen as f64 - charged as f64).abs() < 1e-6,
                "got and lost: {found:?}"
            );
        }
    }

    /// Scaled separately, each thread with a sample would shrink to a tenth.
    #[test]
    fn small_groups_are_scaled_together() {
        let alike: Vec<_> =
            (0..1000).map(|name| (name, (u64::from(name % 10 == 0), 1, 1))).collect();
        let found = factors(&alike, 0);
        assert!((found.scale_of(0) - 1.0).abs() < 1e-9 && (found.weight - 100.0).abs() < 1e-6);
        assert!(found.unsampled_cpu.is_empty(), "{found:?}");
        let one_name = factors(&[(1, (1000, 10_000, 1))], 0);
        assert!((one_name.scale_of(1) - 1.0).abs() < 1e-9);
    }

    /// It may block the signal, for example: other threads that use little are no evidence for it.
    #[test]
    fn busy_thread_without_samples_is_lost_under_its_name() {
        for (most, lost) in [(19, vec![]), (20, vec![(2, 20 * MS)]), (90, vec![(2, 90 * MS)])] {
            let found = factors(&[(1, (8, 80, 40)), (2, (0, most, most)), (3, (1, 10, 10))], 0);
            assert_eq!(found.unsampled_cpu, lost, "{most}");
            let all = found.weight * 10.0 + lost.first().map_or(0, |lost| lost.1 / MS) as f64;
            assert!((all - 90.0 - most as f64).abs() < 1e-6, "{found:?}");
        }
    }

    #[test]
    fn overflowed_samples_are_not_compensated_by_scaling() {
        // 100 periods, of which 20 overflowed and 10 found the table full.
        let found = factors(&[(1, (70, 1000, 500)), (TABLE_FULL_NAME, (10, 0, 0))], 20);
        assert!((found.scale_of(1) - 1.0).abs() < 1e-9, "{found:?}");
        assert!((found.weight - 80.0).abs() < 1e-6 && found.unsampled_cpu.is_empty());
    }

    #[test]
    fn scale_is_one_without_charged_time() {
        let found = factors(&[(1, (7, 0, 0)), (2, (9, 0, 0))], 5);
        assert!(found.scale_of(1).total_cmp(&1.0).is_eq() && found.weight.total_cmp(&16.0).is_eq());
        assert!(found.largest.is_none() && found.unsampled_cpu.is_empty());
    }

    /// Kish's formula: two names with 100 samples each, one scaled to twice the other.
    #[test]
    fn squared_weights_are_scaled() {
        let found = factors(&[(1, (100, 1000, 500)), (2, (100, 2000, 20))], 0);
        assert!(
            (found.weight - 300.0).abs() < 1e-6 && (found.squared_weights - 500.0).abs() < 1e-6
        );
        assert_eq!(found.largest, Some((2.0, 2)));
    }
}
