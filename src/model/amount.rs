//! Formatting of metric values for people.

use std::fmt;
use std::time::Duration;

use super::metric::Unit;
use crate::base::{Bytes, Percent};

/// A value in its metric's unit. Prints as `81.2 %`, `512.0 MiB`, `1500`, `250ms`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Amount {
    /// The value, in `unit`.
    pub value: f64,
    /// The unit of the value.
    pub unit: Unit,
}

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { value, unit } = *self;
        match unit {
            Unit::Percent => Percent(value).fmt(f),
            Unit::Bytes if value >= 0.0 => Bytes(value as u64).fmt(f),
            Unit::Seconds => match Duration::try_from_secs_f64(value) {
                Ok(duration) => {
                    write!(f, "{:?}", Duration::from_micros(duration.as_micros() as u64))
                }
                Err(_) if value == f64::INFINITY => f.write_str("infinite"),
                Err(_) => write!(f, "{value} s"),
            },
            Unit::Bytes | Unit::Count if value.fract() == 0.0 => write!(f, "{value}"),
            Unit::Bytes | Unit::Count => write!(f, "{value:.2}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amount_displays_in_its_unit() {
        for (unit, value, text) in [
            (Unit::Percent, 81.23, "81.2 %"),
            (Unit::Bytes, 1_610_612_736.0, "1.5 GiB"),
            (Unit::Count, 200_000.0, "200000"),
            (Unit::Count, 2.625, "2.62"),
            (Unit::Seconds, 0.25, "250ms"),
            (Unit::Seconds, 1.5, "1.5s"),
            (Unit::Seconds, f64::INFINITY, "infinite"),
        ] {
            assert_eq!(Amount { value, unit }.to_string(), text);
        }
    }
}
