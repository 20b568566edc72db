//! Custom metrics of the service: names and readings.

/// Maximum length of a name in bytes. Names appear in rules, CSV headers and track names.
pub const MAX_CUSTOM_NAME_LEN: usize = 64;

/// Returns `true` if `name` is valid for a custom metric: usable in a rule, a file and a URL alike.
pub fn is_valid_custom_name(name: &str) -> bool {
    let is_allowed = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'.');
    (1..=MAX_CUSTOM_NAME_LEN).contains(&name.len()) && name.bytes().all(is_allowed)
}

/// A value derived from a counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(not(feature = "internals"), non_exhaustive)]
pub enum CounterPart {
    /// Increase per second.
    Rate,
    /// Sum since the counter was created.
    Total,
}

impl CounterPart {
    /// All parts.
    pub const ALL: [Self; 2] = [Self::Rate, Self::Total];

    /// Returns the name, which is the last component of the metric name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Rate => "rate",
            Self::Total => "total",
        }
    }
}

/// A value derived from the last second of a histogram.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(not(feature = "internals"), non_exhaustive)]
pub enum HistogramPart {
    /// Median.
    P50,
    /// 99th percentile.
    P99,
    /// Largest value.
    Max,
    /// Number of values.
    Count,
}

impl HistogramPart {
    /// All parts.
    pub const ALL: [Self; 4] = [Self::P50, Self::P99, Self::Max, Self::Count];

    /// Returns the name, which is the last component of the metric name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::P50 => "p50",
            Self::P99 => "p99",
            Self::Max => "max",
            Self::Count => "count",
        }
    }
}

/// A counter at a tick.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct CounterReading {
    /// Sum since the counter was created.
    pub total: u64,
    /// Increase per second, or `None` during the first second.
    pub rate: Option<f64>,
}

impl CounterReading {
    /// Returns one part of the reading.
    pub fn part(&self, part: CounterPart) -> Option<f64> {
        match part {
            CounterPart::Rate => self.rate,
            CounterPart::Total => Some(self.total as f64),
        }
    }
}

/// A histogram at a tick: the values recorded in the last second, or since the last tick if ticks
/// are further apart.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct HistogramReading {
    /// Number of values.
    pub count: u64,
    /// Median.
    pub p50: f64,
    /// 99th percentile.
    pub p99: f64,
    /// Largest value.
    pub max: f64,
}

impl HistogramReading {
    /// Returns one part of the reading. Except for the count, `None` if no value was recorded.
    pub fn part(&self, part: HistogramPart) -> Option<f64> {
        let of_values = |value: f64| (self.count > 0).then_some(value);
        match part {
            HistogramPart::P50 => of_values(self.p50),
            HistogramPart::P99 => of_values(self.p99),
            HistogramPart::Max => of_values(self.max),
            HistogramPart::Count => Some(self.count as f64),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn custom_names_are_validated() {
        let longest = "a".repeat(MAX_CUSTOM_NAME_LEN);
        for name in ["a", "queue.length_2", longest.as_str()] {
            assert!(is_valid_custom_name(name), "{name}");
        }
        let too_long = "a".repeat(MAX_CUSTOM_NAME_LEN + 1);
        for name in ["", "Queue", "a b", "a-b", "ä", "a\n", too_long.as_str()] {
            assert!(!is_valid_custom_name(name), "{name}");
        }
    }
}
