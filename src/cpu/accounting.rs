//! Expected and actual number of samples.
//!
//! A CPU-time timer should produce one sample per period of CPU time. The shortfall that was not
//! counted elsewhere is a loss without a report from the kernel: two expirations merged into one
//! pending signal, a thread that ended before its discovery, or code that the engine does not
//! sample. Reporting the difference makes samples + losses equal to the CPU time.

use std::time::Duration;

use crate::base::Hertz;
use crate::model::Profile;

/// Insignificant shortfall: the timer's phase at both ends, and the jitter of the kernel tick,
/// which drives the timer.
const NOISE_SAMPLES: u64 = 2;

/// Insignificant shortfall as a fraction of the expected samples: 1 in 200.
const NOISE_SHARE: u64 = 200;

/// Adds the expected and actual number of samples for `cpu_time` to `profile`. `lost` samples are
/// already reported as losses; the remaining shortfall is added as a loss with the cause `rest`.
pub(super) fn tell(
    profile: &mut Profile,
    cpu_time: Duration,
    frequency: Hertz,
    got: u64,
    lost: u64,
    rest: &'static str,
) {
    let expected = expected(cpu_time, frequency);
    let missing = missing(expected, got + lost);
    profile.comments.push(format!(
        "expected {expected} samples for {:.3} s of CPU time at {frequency}, got {got}, lost {}",
        cpu_time.as_secs_f64(),
        lost + missing
    ));
    profile.losses.add(rest, missing);
}

fn expected(cpu_time: Duration, frequency: Hertz) -> u64 {
    let samples = cpu_time.as_nanos() * u128::from(frequency.get()) / 1_000_000_000;
    u64::try_from(samples).unwrap_or(u64::MAX)
}

/// Returns `expected - got`, or 0 if the difference is within the noise.
fn missing(expected: u64, got: u64) -> u64 {
    let short = expected.saturating_sub(got);
    if short > NOISE_SAMPLES + expected / NOISE_SHARE { short } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_expected_by_cpu_time() {
        assert_eq!(expected(Duration::from_millis(1500), Hertz(100)), 150);
        assert_eq!(expected(Duration::ZERO, Hertz(99)), 0);
        assert_eq!(expected(Duration::MAX, Hertz(1000)), u64::MAX);
    }

    #[test]
    fn a_shortfall_counts_whole_once_it_is_beyond_noise() {
        for (expected, got, lost) in
            [(100, 100, 0), (100, 98, 0), (100, 97, 3), (0, 3, 0), (2, 0, 0), (3, 0, 3)]
        {
            assert_eq!(missing(expected, got), lost, "{got} of {expected}");
        }
        assert_eq!((missing(1000, 993), missing(1000, 992)), (0, 8));
    }
}
