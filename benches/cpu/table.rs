//! Rows of a table: name, value, goal, verdict.

/// Goal of a value.
#[derive(Clone, Copy)]
pub(crate) enum Goal {
    AtLeast(f64),
    AtMost(f64),
    /// Near the first number, with the second as tolerance.
    Near(f64, f64),
    /// No goal; the row is informative.
    None,
}

pub(crate) fn row(name: &str, value: f64, unit: &str, goal: Goal) {
    let (met, goal) = match goal {
        Goal::AtLeast(least) => (Some(value >= least), format!(">= {least:.3}")),
        Goal::AtMost(most) => (Some(value <= most), format!("<= {most:.3}")),
        Goal::Near(goal, by) => (Some((value - goal).abs() <= by), format!("{goal} +- {by}")),
        Goal::None => (None, "-".to_owned()),
    };
    let verdict = met.map_or("-", |met| if met { "pass" } else { "short" });
    println!("{name:<60} {:>18} {goal:>14} {verdict}", format!("{value:.3} {unit}"));
}

/// Returns the median, or NaN if there are no values; NaN meets no goal.
pub(crate) fn median(values: impl Iterator<Item = f64>) -> f64 {
    quantile(values, 1, 2)
}

pub(crate) fn quantile(
    values: impl Iterator<Item = f64>,
    numerator: usize,
    denominator: usize,
) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() * numerator / denominator).copied().unwrap_or(f64::NAN)
}
