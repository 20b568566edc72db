//! Numbers with their units.

use std::time::Duration;

use jiff::Timestamp;

use crate::base::Bytes;
use crate::model::{Amount, Metric, Unit};

/// Numbers above it are printed with an exponent, so that a number has at most 16 characters.
const MAX_PLAIN: f64 = 1e12;

/// Returns a wall-clock time in UTC, to the second.
pub(super) fn time(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// Returns a value in the unit of its metric: `81.5 %`, `512.0 MiB`, `1500`, `250ms`.
pub(super) fn amount(value: f64, unit: Unit) -> String {
    match unit {
        Unit::Bytes => bytes(value),
        Unit::Seconds => seconds(value),
        Unit::Percent | Unit::Count if value.abs() > MAX_PLAIN => format!("{value:.2e}"),
        Unit::Percent | Unit::Count => Amount { value, unit }.to_string(),
    }
}

/// Returns a number of bytes, which can be negative: `-1.5 MiB`.
pub(super) fn bytes(value: f64) -> String {
    let sign = if value < 0.0 { "-" } else { "" };
    format!("{sign}{}", Bytes(value.abs() as u64))
}

/// Returns a time, rounded to milliseconds from one millisecond on: `250ms`, `1.5s`.
pub(super) fn seconds(value: f64) -> String {
    if !value.is_finite() || value.abs() > MAX_PLAIN {
        return Amount { value, unit: Unit::Seconds }.to_string();
    }
    let sign = if value < 0.0 { "-" } else { "" };
    let microseconds = (value.abs() * 1e6).round() as u64;
    let rounded = match microseconds {
        0..1000 => microseconds,
        _ => microseconds.saturating_add(500) / 1000 * 1000,
    };
    format!("{sign}{:?}", Duration::from_micros(rounded))
}

/// Returns a part of a whole: `98.2 %` for 0.982.
pub(super) fn share(value: f64) -> String {
    amount(value * 100.0, Unit::Percent)
}

/// Returns a long time in its two largest units: `2 min 5 s`, `3 h 20 min`.
pub(super) fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        _ => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
    }
}

/// Returns `1 file` or `2 files`.
pub(super) fn plural(count: u64, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

/// Returns the number called `name` of a finding, in the unit of its name. A standard error has the
/// unit of the number it belongs to, `error_unit`.
pub(super) fn named(name: &str, value: f64, error_unit: Unit) -> String {
    match name {
        "standard_error" => amount(value, error_unit),
        "share" | "utilization" => share(value),
        _ if name.ends_with("bytes_per_second") => format!("{}/s", bytes(value)),
        _ if name.ends_with("_share") => share(value),
        _ => amount(value, unit_of(name)),
    }
}

/// Returns the unit of a finding's number: that of the metric of this name, or the end of the name.
pub(super) fn unit_of(name: &str) -> Unit {
    if let Ok(metric) = name.parse::<Metric>() {
        return metric.unit();
    }
    match name.rsplit('_').next().unwrap_or_default() {
        _ if name == "longest_since_poll" => Unit::Seconds,
        _ if name.contains("_per_") => Unit::Count,
        "bytes" => Unit::Bytes,
        "seconds" => Unit::Seconds,
        "percent" => Unit::Percent,
        _ => Unit::Count,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_short() {
        for (value, unit, text) in [
            (81.52, Unit::Percent, "81.5 %"),
            (1.5 * 1024.0 * 1024.0, Unit::Bytes, "1.5 MiB"),
            (-1.5 * 1024.0 * 1024.0, Unit::Bytes, "-1.5 MiB"),
            (1e300, Unit::Count, "1.00e300"),
            (1500.0, Unit::Count, "1500"),
            (0.2504, Unit::Seconds, "250ms"),
            (1.2345678, Unit::Seconds, "1.235s"),
            (0.000_085, Unit::Seconds, "85µs"),
            (-0.25, Unit::Seconds, "-250ms"),
            (f64::INFINITY, Unit::Seconds, "infinite"),
        ] {
            assert_eq!(amount(value, unit), text);
        }
    }

    #[test]
    fn numbers_of_findings_have_the_unit_of_their_name() {
        for (name, value, text) in [
            ("share", 0.982, "98.2 %"),
            ("growth_share", 0.5, "50.0 %"),
            ("bytes", 1024.0, "1.0 KiB"),
            ("bytes_per_second", 2048.0, "2.0 KiB/s"),
            ("standard_error", 1024.0, "1.0 KiB"),
            ("stall_seconds", 1.5, "1.5s"),
            ("cpu_percent", 12.34, "12.3 %"),
            ("high_events_per_second", 2.0, "2"),
            ("longest_since_poll", 61.0, "61s"),
            ("utilization", 0.875, "87.5 %"),
            ("runtime.blocked", 35.0, "35.0 %"),
            ("tasks", 7.0, "7"),
        ] {
            assert_eq!(named(name, value, Unit::Bytes), text);
        }
    }

    #[test]
    fn durations_have_two_units() {
        for (seconds, text) in [(59, "59 s"), (125, "2 min 5 s"), (12_000, "3 h 20 min")] {
            assert_eq!(duration(Duration::from_secs(seconds)), text);
        }
    }
}
