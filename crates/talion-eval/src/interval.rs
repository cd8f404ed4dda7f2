//! How sure a mean is.

use std::{f64::consts::FRAC_2_PI, fmt};

use serde::Serialize;

/// A mean and how far its 95 % interval reaches.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Mean {
    /// The arithmetic mean; NaN (null as JSON) of nothing.
    pub mean: f64,
    /// See [`half_width`].
    pub half_width: Option<f64>,
    /// Of how many values.
    pub count: usize,
}

impl Mean {
    /// Of these values.
    pub fn of(values: &[f64]) -> Self {
        Self { mean: mean(values), half_width: half_width(values), count: values.len() }
    }
}

impl fmt::Display for Mean {
    /// For instance `0.42 ± 0.03`, or a dash for the mean of nothing.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.half_width {
            Some(half) => write!(f, "{:.2} ± {half:.2}", self.mean),
            None if self.count == 0 => f.write_str("-"),
            None => write!(f, "{:.2}", self.mean),
        }
    }
}

/// The arithmetic mean; NaN of nothing.
pub fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// How far the 95 % interval of Student (1908) reaches from the mean to either side: `t s / sqrt(n)`, with `s` the standard
/// deviation (divisor n - 1) and `t` the 97.5 % quantile with n - 1 degrees of freedom. `None` for fewer than two values,
/// which say nothing of their spread.
pub fn half_width(values: &[f64]) -> Option<f64> {
    if values.len() < 2 {
        return None;
    }
    let (n, centre) = (values.len() as f64, mean(values));
    let variance = values.iter().map(|value| (value - centre).powi(2)).sum::<f64>() / (n - 1.0);
    Some(quantile(values.len() as u32 - 1) * (variance / n).sqrt())
}

/// The 97.5 % quantile of Student's distribution with so many degrees of freedom, at least 1.
fn quantile(degrees: u32) -> f64 {
    // between the normal quantile and that of one degree of freedom, both from outside
    let (mut low, mut high) = (1.9, 12.8);
    for _ in 0..60 {
        let middle = f64::midpoint(low, high);
        if within(middle, degrees) < 0.95 {
            low = middle;
        } else {
            high = middle;
        }
    }
    f64::midpoint(low, high)
}

/// The chance that Student's t lies between `-t` and `t`: the finite sums of Abramowitz and Stegun 1964, 26.7.3 and 26.7.4.
fn within(t: f64, degrees: u32) -> f64 {
    let angle = (t / f64::from(degrees).sqrt()).atan();
    let (sine, cosine) = angle.sin_cos();
    let odd = degrees % 2 == 1;
    // numerator of the first factor: 2/3, 4/5, .. for odd degrees, 1/2, 3/4, .. for even ones
    let (mut term, first) = if odd { (cosine, 2.0) } else { (1.0, 1.0) };
    let mut sum = 0.0;
    for k in 0..degrees / 2 {
        sum += term;
        let top = first + 2.0 * f64::from(k);
        term *= cosine * cosine * top / (top + 1.0);
    }
    if odd { FRAC_2_PI * (angle + sine * sum) } else { sine * sum }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_match_published_tables() {
        let known = [
            (1, 12.7062),
            (2, 4.3027),
            (3, 3.1824),
            (4, 2.7764),
            (5, 2.5706),
            (9, 2.2622),
            (30, 2.0423),
            (99, 1.9842),
        ];
        for (degrees, expected) in known {
            let found = quantile(degrees);
            assert!((found - expected).abs() < 6e-5, "{degrees}: {found}");
        }
    }

    #[test]
    fn the_interval_of_three_values_is_that_of_a_hand_calculation() {
        // mean 2, standard deviation 1, t of two degrees 4.3027, over the root of 3
        let values = [1.0, 2.0, 3.0];
        assert_eq!(mean(&values), 2.0);
        let half = half_width(&values).unwrap();
        assert!((half - 4.302_653 / 3.0_f64.sqrt()).abs() < 1e-5, "{half}");
        assert_eq!(half_width(&[0.5]), None);
        assert_eq!(half_width(&[0.5, 0.5]), Some(0.0));
        assert_eq!(Mean::of(&values).to_string(), "2.00 ± 2.48");
        assert_eq!([Mean::of(&[0.5]), Mean::of(&[])].map(|mean| mean.to_string()), ["0.50", "-"]);
    }
}
