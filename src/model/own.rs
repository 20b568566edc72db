//! The service's own numbers: how they may be called, and what a reading of one tells.

/// How long a name may be, in bytes: it stands in rules, CSV headers and track names.
pub const MAX_OWN_NAME: usize = 64;

/// Whether a number of the service's may be called `name`: it must stand in a rule, a file and a URL
/// alike.
pub fn is_own_name(name: &str) -> bool {
    let letter = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'.');
    (1..=MAX_OWN_NAME).contains(&name.len()) && name.bytes().all(letter)
}

/// What a counter says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CounterPart {
    /// What was added in a second.
    Rate,
    /// What was added since the counter was made.
    Total,
}

impl CounterPart {
    /// Every part.
    pub const ALL: [Self; 2] = [Self::Rate, Self::Total];

    /// Its name, the last word of the metric's.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Rate => "rate",
            Self::Total => "total",
        }
    }
}

/// What a histogram says about the last second.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HistogramPart {
    /// What half of the values were at or below.
    P50,
    /// What 99 of 100 values were at or below.
    P99,
    /// The largest value.
    Max,
    /// How many values there were.
    Count,
}

impl HistogramPart {
    /// Every part.
    pub const ALL: [Self; 4] = [Self::P50, Self::P99, Self::Max, Self::Count];

    /// Its name, the last word of the metric's.
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
    /// What was added since it was made.
    pub total: u64,
    /// What was added in a second; none before a second has passed.
    pub rate: Option<f64>,
}

impl CounterReading {
    /// One part of it.
    pub fn part(&self, part: CounterPart) -> Option<f64> {
        match part {
            CounterPart::Rate => self.rate,
            CounterPart::Total => Some(self.total as f64),
        }
    }
}

/// A histogram at a tick: what was recorded in the last second, or since the last tick where ticks are
/// further apart.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct HistogramReading {
    /// How many values.
    pub count: u64,
    /// What half of them were at or below.
    pub p50: f64,
    /// What 99 of 100 were at or below.
    pub p99: f64,
    /// The largest.
    pub max: f64,
}

impl HistogramReading {
    /// One part of it; but for the count, none when nothing was recorded.
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
    fn names_are_those_a_rule_can_hold() {
        let longest = "a".repeat(MAX_OWN_NAME);
        for name in ["a", "queue.length_2", longest.as_str()] {
            assert!(is_own_name(name), "{name}");
        }
        let too_long = "a".repeat(MAX_OWN_NAME + 1);
        for name in ["", "Queue", "a b", "a-b", "ä", "a\n", too_long.as_str()] {
            assert!(!is_own_name(name), "{name}");
        }
    }
}
