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
//! - A sample stands for at most [`MOST`] times its weight. The time beyond that, and the time
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
    pub(super) squares: u64,
    /// CPU time charged by the kernel, in nanoseconds.
    pub(super) charged: u64,
    /// Largest single charge to one thread; the sum of these if strata are added.
    pub(super) most: u64,
}

impl NameGroup {
    pub(super) fn add(&mut self, other: &Self) {
        self.weight = self.weight.saturating_add(other.weight);
        self.squares = self.squares.saturating_add(other.squares);
        self.charged = self.charged.saturating_add(other.charged);
        self.most = self.most.saturating_add(other.most);
    }
}

/// Name of samples without a name, because the table of stacks was full.
pub(super) const UNPLACED: u32 = u32::MAX;

/// Maximum scale: at least a third of a name's time must be sampled. On a busy machine a timer
/// samples half the time of threads that use few ticks each.
const MOST: f64 = 3.0;

/// Below `max(10 periods, 100 ms)` of CPU time the number of a name's samples is mostly chance.
const SMALL_PERIODS: u64 = 10;
const SMALL_NANOS: u64 = 100_000_000;

/// A thread that used `max(2 periods, 20 ms)`, 20 ms being two ticks of the slowest kernel, has a
/// sample unless something prevented it.
const SURE_PERIODS: u64 = 2;
const SURE_NANOS: u64 = 20_000_000;

/// Scale factors by thread name.
#[derive(Debug, Default)]
pub(super) struct ScaleFactors {
    of: HashMap<u32, f64>,
    rest: f64,
    /// Largest scale and its name.
    pub(super) largest: Option<(f64, u32)>,
    /// Sum of the scaled samples, in periods.
    pub(super) weight: f64,
    /// Sum of the squared scaled weights.
    pub(super) squares: f64,
    /// CPU time that no sample stands for, by name, in nanoseconds, largest first.
    pub(super) unseen: Vec<(u32, u64)>,
}

impl ScaleFactors {
    /// Computes the scales of `strata`, for samples every `period` nanoseconds of which `lost` were
    /// dropped. Without charged time the scale is 1: a sample stands for one period.
    pub(super) fn of(strata: &BTreeMap<u32, NameGroup>, period: u64, lost: u64) -> Self {
        let sum = |of: fn(&NameGroup) -> u64| strata.values().map(of).fold(0, u64::saturating_add);
        let mut scales = Self { rest: 1.0, ..Self::default() };
        if sum(|stratum| stratum.charged) > 0 {
            let astray = lost + strata.get(&UNPLACED).map_or(0, |stratum| stratum.weight);
            let placed = sum(|stratum| stratum.weight) + lost - astray;
            let share = placed as f64 / (placed + astray).max(1) as f64;
            scales.fit(strata, period, if astray == 0 { 1.0 } else { share });
        }
        for (&name, stratum) in strata {
            let scale = scales.at(name);
            scales.weight += scale * stratum.weight as f64;
            scales.squares += scale * scale * stratum.squares as f64;
        }
        scales.unseen.sort_by_key(|&(name, nanos)| (std::cmp::Reverse(nanos), name));
        scales
    }

    /// Returns the scale of the samples with this name.
    pub(super) fn at(&self, name: u32) -> f64 {
        match self.of.get(&name) {
            Some(&scale) => scale,
            None if name == UNPLACED => 1.0,
            None => self.rest,
        }
    }

    fn fit(&mut self, strata: &BTreeMap<u32, NameGroup>, period: u64, share: f64) {
        let small = SMALL_NANOS.max(period.saturating_mul(SMALL_PERIODS));
        let sure = SURE_NANOS.max(period.saturating_mul(SURE_PERIODS));
        let mut few = NameGroup::default();
        let mut names = Vec::new();
        for (&name, stratum) in strata.iter().filter(|&(&name, _)| name != UNPLACED) {
            if stratum.charged < small && (stratum.weight > 0 || stratum.most < sure) {
                few.add(stratum);
                names.push((name, stratum.charged));
            } else if let Some(scale) =
                self.scale(stratum, period, share, &[(name, stratum.charged)])
            {
                self.note(scale, name);
                self.of.insert(name, scale);
            }
        }
        names.sort_by_key(|&(_, charged)| charged);
        if let Some(scale) = self.scale(&few, period, share, &names) {
            self.rest = scale;
            if let Some(&(name, _)) = names.last() {
                self.note(scale, name);
            }
        }
    }

    /// Returns the scale of a stratum, or `None` without samples. Distributes the time beyond the
    /// maximum scale among `names`, in proportion to their charges.
    fn scale(
        &mut self,
        stratum: &NameGroup,
        period: u64,
        share: f64,
        names: &[(u32, u64)],
    ) -> Option<f64> {
        let charged = stratum.charged as f64 * share;
        let seen = stratum.weight as f64 * period as f64;
        let scale = (seen > 0.0).then(|| (charged / seen).min(MOST));
        let beyond = charged - seen * scale.unwrap_or(0.0);
        if stratum.charged > 0 && beyond >= 1.0 {
            let part = beyond / stratum.charged as f64;
            let unseen =
                names.iter().map(|&(name, charged)| (name, (charged as f64 * part) as u64));
            self.unseen.extend(unseen.filter(|&(_, nanos)| nanos > 0));
        }
        scale
    }

    fn note(&mut self, scale: f64, name: u32) {
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
    fn scales(strata: &[(u32, (u64, u64, u64))], lost: u64) -> ScaleFactors {
        let strata = strata.iter().map(|&(name, (weight, charged, most))| {
            let (charged, most) = (charged * MS, most * MS);
            (name, NameGroup { weight, squares: weight, charged, most })
        });
        ScaleFactors::of(&strata.collect(), PERIOD, lost)
    }

    #[test]
    fn a_name_has_what_was_charged_to_it() {
        for (weight, charged, scale, unseen) in [
            (100, 1000, 1.0, 0),
            // 256 threads, each with half a period after its last sample.
            (256, 3840, 1.5, 0),
            (102, 1000, 1000.0 / 1020.0, 0),
            // One tenth with a sample may not stand for nine tenths without.
            (10, 1000, 3.0, 700),
            (0, 1000, 1.0, 1000),
        ] {
            let found = scales(&[(1, (weight, charged, charged))], 0);
            assert!((found.at(1) - scale).abs() < 1e-9, "{weight} {charged}: {found:?}");
            let lost: Vec<_> =
                found.unseen.iter().map(|&(name, nanos)| (name, nanos / MS)).collect();
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
    fn one_in_ten_of_many_short_threads_stands_for_ten() {
        let alike: Vec<_> =
            (0..1000).map(|name| (name, (u64::from(name % 10 == 0), 1, 1))).collect();
        let found = scales(&alike, 0);
        assert!((found.at(0) - 1.0).abs() < 1e-9 && (found.weight - 100.0).abs() < 1e-6);
        assert!(found.unseen.is_empty(), "{found:?}");
        let one_name = scales(&[(1, (1000, 10_000, 1))], 0);
        assert!((one_name.at(1) - 1.0).abs() < 1e-9);
    }

    /// It may block the signal, for example: other threads that use little are no evidence for it.
    #[test]
    fn a_thread_that_should_have_a_sample_and_has_none_is_lost_by_name() {
        for (most, lost) in [(19, vec![]), (20, vec![(2, 20 * MS)]), (90, vec![(2, 90 * MS)])] {
            let found = scales(&[(1, (8, 80, 40)), (2, (0, most, most)), (3, (1, 10, 10))], 0);
            assert_eq!(found.unseen, lost, "{most}");
            let all = found.weight * 10.0 + lost.first().map_or(0, |lost| lost.1 / MS) as f64;
            assert!((all - 90.0 - most as f64).abs() < 1e-6, "{found:?}");
        }
    }

    #[test]
    fn what_found_no_room_is_not_made_up_for() {
        // 100 periods, of which 20 overflowed and 10 found the table full.
        let found = scales(&[(1, (70, 1000, 500)), (UNPLACED, (10, 0, 0))], 20);
        assert!((found.at(1) - 1.0).abs() < 1e-9, "{found:?}");
        assert!((found.weight - 80.0).abs() < 1e-6 && found.unseen.is_empty());
    }

    #[test]
    fn without_charges_a_sample_is_a_period() {
        let found = scales(&[(1, (7, 0, 0)), (2, (9, 0, 0))], 5);
        assert!(found.at(1).total_cmp(&1.0).is_eq() && found.weight.total_cmp(&16.0).is_eq());
        assert!(found.largest.is_none() && found.unseen.is_empty());
    }

    /// Kish's formula: two names with 100 samples each, one scaled to twice the other.
    #[test]
    fn squares_are_of_what_samples_stand_for() {
        let found = scales(&[(1, (100, 1000, 500)), (2, (100, 2000, 20))], 0);
        assert!((found.weight - 300.0).abs() < 1e-6 && (found.squares - 500.0).abs() < 1e-6);
        assert_eq!(found.largest, Some((2.0, 2)));
    }
}
