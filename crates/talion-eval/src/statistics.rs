//! How sure a figure is.

use std::fmt;

use serde::{Deserialize, Serialize, Serializer, ser::SerializeStruct};
use talion_core::Error;

/// So many of so many. As JSON it also says the share and its interval, which are not read back but computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Counted")]
pub struct Proportion {
    /// How many hold.
    pub count: u64,
    /// Of how many.
    pub total: u64,
}

/// The normal quantile of a 95 % interval.
const Z: f64 = 1.959_963_984_540_054;

impl Proportion {
    /// The share, or NaN of nothing.
    pub fn share(self) -> f64 {
        self.count as f64 / self.total as f64
    }

    /// The 95 % interval of Wilson 1927, which stays inside `[0, 1]` and is honest for small samples and for shares
    /// near 0 and 1.
    pub fn interval(self) -> (f64, f64) {
        if self.total == 0 {
            return (0.0, 1.0);
        }
        let (n, p) = (self.total as f64, self.share());
        let centre = (p + Z * Z / (2.0 * n)) / (1.0 + Z * Z / n);
        let half = Z / (1.0 + Z * Z / n) * (p * (1.0 - p) / n + Z * Z / (4.0 * n * n)).sqrt();
        ((centre - half).max(0.0), (centre + half).min(1.0))
    }
}

impl fmt::Display for Proportion {
    /// For instance `93.8 (91.2-95.6)`, in percent.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (low, high) = self.interval();
        write!(f, "{:.1} ({:.1}-{:.1})", 100.0 * self.share(), 100.0 * low, 100.0 * high)
    }
}

impl Serialize for Proportion {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (low, high) = self.interval();
        let mut fields = serializer.serialize_struct("Proportion", 5)?;
        fields.serialize_field("count", &self.count)?;
        fields.serialize_field("total", &self.total)?;
        fields.serialize_field("share", &self.share())?;
        fields.serialize_field("low", &low)?;
        fields.serialize_field("high", &high)?;
        fields.end()
    }
}

/// What is read of a [`Proportion`].
#[derive(Deserialize)]
struct Counted {
    count: u64,
    total: u64,
}

impl TryFrom<Counted> for Proportion {
    type Error = Error;

    fn try_from(Counted { count, total }: Counted) -> Result<Self, Error> {
        if count > total {
            return Err(Error::range(
                "the count of a proportion",
                format!("at most its total, {total}"),
                count,
            ));
        }
        Ok(Self { count, total })
    }
}

/// The two-sided p-value of McNemar's exact test (1947): whether two classifiers measured on the same samples differ.
/// `only_first` and `only_second` count the samples that exactly one of them gets right.
pub fn mcnemar(only_first: u64, only_second: u64) -> f64 {
    let (n, fewer) = (only_first + only_second, only_first.min(only_second));
    if n == 0 {
        return 1.0;
    }
    // Sum of binomial(n, k) / 2^n for k up to `fewer`, in logarithms so that large n does not underflow early.
    let mut log_term = -(n as f64) * std::f64::consts::LN_2;
    let mut sum = log_term.exp();
    for k in 0..fewer {
        log_term += ((n - k) as f64 / (k + 1) as f64).ln();
        sum += log_term.exp();
    }
    (2.0 * sum).min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wilson_matches_published_values() {
        // Newcombe 1998, table I: 81 of 263 and 0 of 20
        let (low, high) = Proportion { count: 81, total: 263 }.interval();
        assert!((low - 0.2553).abs() < 5e-5 && (high - 0.3662).abs() < 5e-5, "{low} {high}");
        let (low, high) = Proportion { count: 0, total: 20 }.interval();
        assert!(low == 0.0 && (high - 0.1611).abs() < 5e-5, "{low} {high}");
        assert_eq!(Proportion { count: 0, total: 0 }.interval(), (0.0, 1.0));
    }

    #[test]
    fn proportions_round_trip() {
        for (count, total) in [(0, 0), (3, 7), (1 << 60, 1 << 61)] {
            let proportion = Proportion { count, total };
            let text = serde_json::to_string(&proportion).unwrap();
            assert_eq!(serde_json::from_str::<Proportion>(&text).unwrap(), proportion);
        }
        let wrong = serde_json::from_str::<Proportion>(r#"{"count":8,"total":7}"#);
        assert!(wrong.unwrap_err().to_string().contains("at most its total, 7"));
    }

    #[test]
    fn mcnemar_matches_the_binomial_distribution() {
        assert_eq!(mcnemar(0, 0), 1.0);
        assert!((mcnemar(0, 5) - 0.0625).abs() < 1e-12);
        assert!((mcnemar(5, 0) - 0.0625).abs() < 1e-12);
        assert!((mcnemar(2, 8) - 2.0 * 56.0 / 1024.0).abs() < 1e-12);
        assert_eq!(mcnemar(7, 7), 1.0);
        assert!(mcnemar(100, 1900) < 1e-100);
    }
}
