//! Tests of the sampler against its theory. Seeds are fixed, so results are deterministic. The
//! bounds are three standard errors (one random seed in 370 would fail) and those of the
//! requirements.

use proptest::prelude::*;

use super::*;

const RATE: u64 = 512 << 10;

fn seeded(seed: u64, rate: u64) -> AllocationSampler {
    let sampler = AllocationSampler::new();
    sampler.seed(mix(seed), rate);
    sampler
}

fn allocate(sampler: &AllocationSampler, size: usize, rate: u64) -> Option<f64> {
    if sampler.try_consume(size, 0) { None } else { sampler.sample(size, rate) }
}

/// Returns estimates of the bytes in these blocks and of their variance.
fn estimate(sampler: &AllocationSampler, blocks: &[usize], rate: u64) -> (f64, f64) {
    blocks.iter().fold((0.0, 0.0), |(sum, variance), &size| match allocate(sampler, size, rate) {
        Some(weight) => {
            let bytes = size as f64;
            (sum + bytes * weight, variance + bytes * bytes * weight * (weight - 1.0))
        }
        None => (sum, variance),
    })
}

struct Trials {
    bias_in_standard_errors: f64,
    scatter_over_theory: f64,
    reported_over_observed: f64,
}

fn trials(blocks: &[usize], rate: u64, count: u32) -> Trials {
    let truth: f64 = blocks.iter().map(|&size| size as f64).sum();
    let theory: f64 =
        blocks.iter().map(|&size| (size as f64).powi(2) * (weight(size, rate) - 1.0)).sum();
    let sampler = seeded(7, rate);
    let results: Vec<_> = (0..count).map(|_| estimate(&sampler, blocks, rate)).collect();
    let n = f64::from(count);
    let mean = results.iter().map(|(sum, _)| sum).sum::<f64>() / n;
    let observed = results.iter().map(|(sum, _)| (sum - mean).powi(2)).sum::<f64>() / (n - 1.0);
    let reported = results.iter().map(|(_, variance)| variance).sum::<f64>() / n;
    Trials {
        bias_in_standard_errors: (mean - truth) / (theory / n).sqrt(),
        scatter_over_theory: (observed / theory).sqrt(),
        reported_over_observed: (reported / observed).sqrt(),
    }
}

#[test]
fn sums_are_unbiased_and_reported_error_matches_observed() {
    let mixed: Vec<usize> = (0..400).map(|i| 16 << (i % 12)).collect();
    let lists: [(&str, Vec<usize>); 3] = [
        ("ten of 240 KiB", vec![240 << 10; 10]),
        ("1000 of 64 B", vec![64; 1000]),
        ("mixed", mixed),
    ];
    for (name, blocks) in lists {
        let got = trials(&blocks, RATE, 5000);
        println!(
            "{name}: bias {:.2} s.e., scatter/theory {:.3}, reported/observed {:.3}",
            got.bias_in_standard_errors, got.scatter_over_theory, got.reported_over_observed
        );
        assert!(got.bias_in_standard_errors.abs() <= 3.0, "{name}");
        assert!((0.95..=1.05).contains(&got.scatter_over_theory), "{name}");
        assert!((0.93..=1.07).contains(&got.reported_over_observed), "{name}");
    }
}

#[test]
fn blocks_far_above_rate_are_sampled_with_weight_one() {
    let sampler = seeded(1, RATE);
    for _ in 0..10_000 {
        assert_eq!(allocate(&sampler, 20 << 20, RATE), Some(1.0));
    }
}

#[test]
fn rate_one_records_everything_and_rate_zero_nothing() {
    let all = seeded(1, 1);
    let none = seeded(1, 0);
    for size in [
        1,
        2,
        16,
        REFILL_BYTES as usize - 1,
        REFILL_BYTES as usize,
        REFILL_BYTES as usize + 1,
        1 << 30,
    ] {
        assert_eq!(allocate(&all, size, 1), Some(1.0), "{size}");
        assert_eq!(allocate(&none, size, 0), None, "{size}");
    }
}

#[test]
fn every_allocated_byte_is_reported_once() {
    for rate in [0, 1, 300, 64 << 10, 512 << 10] {
        let sampler = AllocationSampler::new();
        // The first block of a thread is refused before the sampler is seeded.
        assert!(!sampler.try_consume(100, 0));
        sampler.seed(mix(8), rate);
        let mut allocated = 100;
        if !sampler.try_consume(100, 0) {
            let _ = sampler.sample(100, rate);
        }
        let mut sum = AllocatedDelta::default();
        for n in 0..20_000usize {
            let size = 1 + n * 7919 % 3000;
            let _ = allocate(&sampler, size, rate);
            allocated += size as u64;
            match n % 1000 {
                // The thread changes the rate itself, is excluded, or fails to allocate a block.
                500 => sampler.redraw_interval(rate),
                600 => {
                    let budget = sampler.pause();
                    if !sampler.try_consume(5000, 0) {
                        sampler.allow_unsampled();
                    }
                    sampler.resume(budget);
                }
                700 => {
                    let _ = sampler.try_consume(4000, 0);
                    sampler.undo_consume(4000);
                }
                _ => {}
            }
            let delta = sampler.take_delta();
            sum.bytes += delta.bytes;
            sum.max_unreported += delta.max_unreported;
            let max_allocated = sum.bytes + sum.max_unreported as u64;
            assert!(
                (sum.bytes..=max_allocated).contains(&allocated),
                "{rate}: {sum:?}, {allocated}"
            );
            assert!(
                sum.max_unreported as u64 <= (sum.bytes / 4).clamp(MIN_REFILL_BYTES, REFILL_BYTES),
                "{rate}: {sum:?}"
            );
        }
    }
}

#[test]
fn rate_change_causes_no_bias() {
    let count = 400_000;
    let size = 1000usize;
    let rates = [8 << 10, 64 << 10, 300, 512 << 10];
    let sampler = seeded(4, rates[0]);
    let switched: f64 =
        (0..count).filter_map(|i| allocate(&sampler, size, rates[i / 100 % rates.len()])).sum();
    // Standard error of `switched`: at most sqrt(n (w - 1)) with the weight of the coarsest rate.
    let error = (count as f64 * (weight(size, 512 << 10) - 1.0)).sqrt();
    assert!((switched - count as f64).abs() < 3.0 * error, "{switched} of {count}, +- {error}");
}

#[test]
fn new_rate_applies_within_one_refill() {
    for (old, new) in [(0, 1), (1 << 40, 1), (0, 1 << 10)] {
        let sampler = seeded(5, old);
        let blocks = (0..).take_while(|_| allocate(&sampler, 16, new).is_none()).take(1 << 20);
        assert!(blocks.count() as u64 * 16 <= REFILL_BYTES + 64 * new, "{old} to {new}");
    }
}

#[test]
fn paused_allocations_do_not_consume_interval() {
    let run = |pause: bool| {
        let sampler = seeded(6, 4096);
        (0..5000).fold((Vec::new(), 0), |(mut at, mut passed), block| {
            if pause && block % 7 == 0 {
                let budget = sampler.pause();
                for _ in 0..100 {
                    if !sampler.try_consume(2000, 0) {
                        sampler.allow_unsampled();
                        passed += 1;
                    }
                }
                sampler.resume(budget);
            }
            at.extend(allocate(&sampler, 100, 4096).map(|_| block));
            (at, passed)
        })
    };
    let (paused, passed) = run(true);
    let (straight, _) = run(false);
    assert!(passed > 0 && !straight.is_empty());
    assert_eq!(paused, straight);
}

proptest! {
    #[test]
    fn weights_are_inverse_probabilities(size in 1usize..1 << 40, rate in 2u64..1 << 40) {
        let weight = weight(size, rate);
        let ratio = size as f64 / rate as f64;
        prop_assert!(weight >= 1.0 && weight.is_finite());
        // 1/(1-exp(-x)) lies between 1/x and 1/x + 1.
        prop_assert!(weight >= 1.0 / ratio * (1.0 - 1e-12) && weight <= 1.0 / ratio + 1.0 + 1e-9 / ratio);
    }

    #[test]
    fn interval_ends_at_same_byte_for_any_block_sizes(sizes in prop::collection::vec(1usize..200_000, 1..200)) {
        // The interval's end is drawn before the blocks are allocated, so its byte position does
        // not depend on their sizes.
        let cut = seeded(9, 1 << 20);
        let reference = seeded(9, 1 << 20);
        let end = reference.bytes_until_sample.get() + reference.budget.get() as u64;
        let mut position = 0u64;
        for size in sizes {
            let recorded = allocate(&cut, size, 1 << 20).is_some();
            prop_assert_eq!(recorded, (position..position + size as u64).contains(&end));
            position += size as u64;
            if recorded {
                break;
            }
        }
    }
}
