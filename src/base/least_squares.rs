//! Least-squares fit of a line.

/// Returns the slope of the least-squares line through `points`, which are pairs `(x, y)`. Returns
/// `None` if fewer than two of them differ in `x`.
pub(crate) fn slope(points: impl Iterator<Item = (f64, f64)> + Clone) -> Option<f64> {
    let count = points.clone().count() as f64;
    let (x, y) = points.clone().fold((0.0, 0.0), |(x, y), point| (x + point.0, y + point.1));
    let mean_x = x / count;
    let mean_y = y / count;
    let (xy, xx) = points.fold((0.0, 0.0), |(xy, xx), (x, y)| {
        let dx = x - mean_x;
        (xy + dx * (y - mean_y), xx + dx * dx)
    });
    (xx > 0.0).then(|| xy / xx)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slope_is_that_of_fitted_line() {
        for (points, expected) in [
            (&[][..], None),
            (&[(1.0, 5.0)], None),
            (&[(1.0, 5.0), (1.0, 7.0)], None),
            (&[(0.0, 1.0), (2.0, 5.0)], Some(2.0)),
            (&[(3.0, -1.0), (1.0, 5.0), (2.0, 2.0)], Some(-3.0)),
            // Deviations of +1, -2, +1 from `y = x` do not turn the line.
            (&[(0.0, 1.0), (1.0, -1.0), (2.0, 3.0)], Some(1.0)),
        ] {
            assert_eq!(slope(points.iter().copied()), expected, "{points:?}");
        }
    }
}
