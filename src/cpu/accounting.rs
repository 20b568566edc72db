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
const NOISE_DIVISOR: u64 = 200;

/// Adds the expected and actual number of samples for `cpu_time` to `profile`. `lost` samples are
/// already reported as losses; the remaining shortfall is added as a loss with `cause`.
pub(super) fn report_losses(
    profile: &mut Profile,
    cpu_time: Duration,
    frequency: Hertz,
    recorded: u64,
    lost: u64,
    cause: &'static str,
) {
    let expected = expected_samples(cpu_time, frequency);
    let missing = missing_samples(expected, recorded + lost);
    profile.comments.push(format!(
        "expected {expected} samples for {:.3} s of CPU time at {frequency}, got {recorded}, lost {}",
        cpu_time.as_secs_f64(),
        lost + missing
    ));
    let excess = excess_samples(expected, recorded + lost);
    if excess > 0 {
        profile.comments.push(format!(
            "samples and losses exceed the CPU time by {excess} ({:.1} %): the sampling clock may also \
             run while a hypervisor runs other guests, and threads that ended before the end of the \
             capture are not corrected for it",
            100.0 * excess as f64 / expected.max(1) as f64
        ));
    }
    profile.losses.add(cause, missing);
}

fn expected_samples(cpu_time: Duration, frequency: Hertz) -> u64 {
    let samples = cpu_time.as_nanos() * u128::from(frequency.get()) / 1_000_000_000;
    u64::try_from(samples).unwrap_or(u64::MAX)
}

/// Returns `expected - recorded`, or 0 if the difference is within the noise.
fn missing_samples(expected: u64, recorded: u64) -> u64 {
    significant(expected.saturating_sub(recorded), expected)
}

/// Returns `recorded - expected`, or 0 if the difference is within the noise.
fn excess_samples(expected: u64, recorded: u64) -> u64 {
    significant(recorded.saturating_sub(expected), expected)
}

fn significant(difference: u64, expected: u64) -> u64 {
    if difference > NOISE_SAMPLES + expected / NOISE_DIVISOR { difference } else { 0 }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::model::ValueType;

    #[test]
    fn expected_samples_follow_cpu_time() {
        assert_eq!(expected_samples(Duration::from_millis(1500), Hertz(100)), 150);
        assert_eq!(expected_samples(Duration::ZERO, Hertz(99)), 0);
        assert_eq!(expected_samples(Duration::MAX, Hertz(1000)), u64::MAX);
    }

    #[test]
    fn shortfall_beyond_noise_is_counted_in_full() {
        for (expected, got, lost) in
            [(100, 100, 0), (100, 98, 0), (100, 97, 3), (0, 3, 0), (2, 0, 0), (3, 0, 3)]
        {
            assert_eq!(missing_samples(expected, got), lost, "{got} of {expected}");
        }
        assert_eq!((missing_samples(1000, 993), missing_samples(1000, 992)), (0, 8));
    }

    #[test]
    fn excess_beyond_noise_is_stated_in_a_comment() {
        let comments = |recorded| {
            let time = ValueType { name: "cpu", unit: "nanoseconds" };
            let mut profile = Profile::new(&[time], time, 1, Timestamp::UNIX_EPOCH);
            let second = Duration::from_secs(1);
            report_losses(&mut profile, second, Hertz(1000), recorded, 0, "missing");
            assert!(profile.losses.is_empty(), "{:?}", profile.losses);
            profile.comments
        };
        assert_eq!(comments(1007).len(), 1, "within the noise");
        let stated = comments(1048);
        assert!(
            stated[1].starts_with("samples and losses exceed the CPU time by 48 (4.8 %)"),
            "{stated:?}"
        );
    }
}
