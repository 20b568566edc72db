//! Policies of other systems, written from their documented rules, not from their code: the times
//! at which each would take a heap profile of a given history of memory. Counts are approximate.

use super::trace::Trace;

/// Seconds from a decision to a finished file, as measured of holmes. A profile that is not
/// finished when the process ends leaves no file.
const LATENCY: f64 = 0.7;
const MINUTE: f64 = 60.0;

/// A policy over one number.
pub(crate) trait Policy {
    /// Returns the interval between two checks, in seconds.
    fn interval(&self) -> f64;
    /// Returns `true` if the policy captures at this check.
    fn should_capture(&mut self, seconds: f64, percent: f64) -> bool;
}

/// Returns the number of captures of `policy`, and the value at the last finished one.
pub(crate) fn run(policy: &mut dyn Policy, trace: &Trace) -> (usize, Option<f64>) {
    let (mut captures, mut last) = (0, None);
    for look in 0..=(trace.end_seconds() / policy.interval()) as usize {
        let seconds = look as f64 * policy.interval();
        let value = trace.value_at(seconds);
        if policy.should_capture(seconds, value) && seconds + LATENCY <= trace.end_seconds() {
            captures += 1;
            last = Some(value);
        }
    }
    (captures, last)
}

/// mosn/holmes with its defaults for memory: every 5 s, above 80 % or 25 % above the average of ten
/// values, at most once a minute; integers.
#[derive(Default)]
pub(crate) struct Holmes {
    ring: Vec<u64>,
    until: f64,
}

impl Policy for Holmes {
    fn interval(&self) -> f64 {
        5.0
    }

    fn should_capture(&mut self, seconds: f64, percent: f64) -> bool {
        let current = percent as u64;
        self.ring.push(current);
        if self.ring.len() > 10 {
            self.ring.remove(0);
        }
        if self.ring.len() < 10 || seconds < self.until {
            return false;
        }
        let average = self.ring.iter().sum::<u64>() / 10;
        let fires = current >= 10 && (current > 80 || current >= average * 125 / 100);
        if fires {
            self.until = seconds + LATENCY + MINUTE;
        }
        fires
    }
}

/// RisingWave's automatic heap dump: captures each time memory rises above 90 %.
#[derive(Default)]
pub(crate) struct RisingWave {
    above: bool,
}

impl Policy for RisingWave {
    fn interval(&self) -> f64 {
        1.0
    }

    fn should_capture(&mut self, _: f64, percent: f64) -> bool {
        let was = std::mem::replace(&mut self.above, percent > 90.0);
        self.above && !was
    }
}

/// TiDB's memory usage alarm: above 70 %, once a minute, or sooner if usage grows by 10 %.
#[derive(Default)]
pub(crate) struct TiDb {
    last: Option<(f64, f64)>,
}

impl Policy for TiDb {
    fn interval(&self) -> f64 {
        1.0
    }

    fn should_capture(&mut self, seconds: f64, percent: f64) -> bool {
        let fires = percent > 70.0
            && self.last.is_none_or(|(at, then)| seconds - at >= MINUTE || percent > then * 1.1);
        if fires {
            self.last = Some((seconds, percent));
        }
        fires
    }
}

/// autopprof: every 5 s, above 75 %, at the first check and then at every twelfth.
#[derive(Default)]
pub(crate) struct Autopprof {
    checks_above: u32,
}

impl Policy for Autopprof {
    fn interval(&self) -> f64 {
        5.0
    }

    fn should_capture(&mut self, _: f64, percent: f64) -> bool {
        if percent <= 75.0 {
            self.checks_above = 0;
            return false;
        }
        self.checks_above += 1;
        self.checks_above % 12 == 1
    }
}
