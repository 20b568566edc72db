//! Lines of block characters that show the course of a value.

const LEVELS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// Smallest range of a line, as a part of the highest value. Noise below it looks flat.
const MIN_RANGE: f64 = 0.1;

/// Returns one character per value: from the lowest block for the lowest value to the full block
/// for the highest one, and a space for `None` and values that are not finite.
pub(super) fn sparkline(values: &[Option<f64>]) -> String {
    let finite = || values.iter().flatten().copied().filter(|value| value.is_finite());
    let highest = finite().fold(f64::NEG_INFINITY, f64::max);
    let lowest = finite().fold(f64::INFINITY, f64::min);
    let range = (highest - lowest).max(highest.abs() * MIN_RANGE);
    let level = |value: f64| {
        let steps = (LEVELS.len() - 1) as f64;
        // 0 for a range of 0 or of infinity, by the rules of the cast.
        let level = ((value - lowest) / range * steps).round() as usize;
        LEVELS.get(level).copied().unwrap_or('█')
    };
    let character = |value: &Option<f64>| match value.filter(|value| value.is_finite()) {
        Some(value) => level(value),
        None => ' ',
    };
    values.iter().map(character).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sparkline_spans_lowest_to_highest_value() {
        let values = |values: &[f64]| values.iter().map(|&value| Some(value)).collect::<Vec<_>>();
        for (values, line) in [
            (values(&[0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]), "▁▂▃▄▅▆▇█"),
            (values(&[-7.0, 0.0]), "▁█"),
            (values(&[5.0, 5.0]), "▁▁"),
            (values(&[0.0, 0.0]), "▁▁"),
            (values(&[1000.0, 1001.0]), "▁▁"),
            (values(&[1000.0, 1050.0]), "▁▄"),
            (values(&[f64::MIN, f64::MAX]), "▁▁"),
            (vec![Some(1.0), None, Some(f64::INFINITY), Some(f64::NAN), Some(2.0)], "▁   █"),
            (vec![None, None], "  "),
            (vec![], ""),
        ] {
            assert_eq!(sparkline(&values), line, "{values:?}");
        }
    }
}
