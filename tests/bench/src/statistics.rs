//! Medians, spread and ratios.

use serde::Serialize;

/// Summary of many samples.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Summary {
    /// Median: the middle sample, or the mean of the two middle ones. NaN without samples.
    pub median: f64,
    /// Smallest sample.
    pub least: f64,
    /// Largest sample.
    pub most: f64,
}

impl Summary {
    /// Summarizes `samples`, in any order.
    pub fn of(samples: &[f64]) -> Self {
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        let median = match sorted.len() {
            0 => f64::NAN,
            n if n % 2 == 1 => sorted[n / 2],
            n => f64::midpoint(sorted[n / 2 - 1], sorted[n / 2]),
        };
        let end = |value: Option<&f64>| value.copied().unwrap_or(f64::NAN);
        Self { median, least: end(sorted.first()), most: end(sorted.last()) }
    }

    /// Ratio of two quantities measured by turns: the ratio of the medians, and the smallest and largest
    /// ratio of one run's samples (of runs that have both).
    pub fn ratio(of: &[f64], to: &[f64]) -> Self {
        let paired: Vec<f64> = of.iter().zip(to).map(|(of, to)| of / to).collect();
        let Self { least, most, .. } = Self::of(&paired);
        Self { median: Self::of(of).median / Self::of(to).median, least, most }
    }
}

/// Slope of the least-squares line through points (x, y): the cost of one more unit of x.
pub fn slope(points: &[(f64, f64)]) -> f64 {
    let n = points.len() as f64;
    let mean = |pick: fn(&(f64, f64)) -> f64| points.iter().map(pick).sum::<f64>() / n;
    let (mean_x, mean_y) = (mean(|p| p.0), mean(|p| p.1));
    let above: f64 = points.iter().map(|(x, y)| (x - mean_x) * (y - mean_y)).sum();
    let below: f64 = points.iter().map(|(x, _)| (x - mean_x).powi(2)).sum();
    above / below
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_whatever_the_order() {
        assert_eq!(Summary::of(&[3.0, 1.0, 2.0]), Summary { median: 2.0, least: 1.0, most: 3.0 });
        assert_eq!(Summary::of(&[4.0, 1.0, 2.0, 3.0]).median, 2.5);
        assert!(Summary::of(&[]).median.is_nan());
    }

    #[test]
    fn a_ratio_is_of_medians_and_its_spread_is_of_pairs() {
        let ratio = Summary::ratio(&[2.0, 6.0, 4.0], &[1.0, 2.0, 4.0]);
        assert_eq!(ratio, Summary { median: 2.0, least: 1.0, most: 3.0 });
    }

    #[test]
    fn a_slope_is_what_one_more_costs() {
        assert!((slope(&[(1.0, 12.0), (2.0, 14.0), (4.0, 18.0)]) - 2.0).abs() < 1e-9);
        assert!(slope(&[(1.0, 1.0)]).is_nan());
    }
}
