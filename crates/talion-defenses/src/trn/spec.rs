//! What a restoration network is made of.

use serde::{Deserialize, Serialize};
use talion_core::{Error, Result};

use super::Fusion;
use crate::gradient_map::{EstimatorSpec, Normalization};

/// How to build a restoration network.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrnSpec {
    /// Image channels, 1 or 3.
    pub channels: i64,
    /// Channels at full resolution; scale `s` has `(s + 1) * width`. 8 to 256.
    pub width: i64,
    /// Scales, each at half the resolution of the one before. 2 to 5.
    pub scales: usize,
    /// Largest change of any value of the image; the output is `image + bound * tanh(residual)`. Above 0, at most 1.
    pub bound: f64,
    /// Where the second stream's maps come from.
    pub estimator: EstimatorSpec,
    /// How the maps are brought to a common scale.
    pub normalization: Normalization,
    /// How the two streams are joined.
    pub fusion: Fusion,
    /// Whether a judge of the whole image decides how much of the residual is added, so that clean images are left
    /// alone. Files from before there was one have none.
    #[serde(default)]
    pub gate: bool,
    /// The one-stream network of the first pass, for estimators that need one.
    pub first: Option<Box<TrnSpec>>,
}

impl TrnSpec {
    /// The one-stream network of a size: `tiny` (width 16), `small` (24), `base` (32), `large` (64).
    ///
    /// # Errors
    /// If there is no such size.
    pub fn one_stream(size: &str, channels: i64) -> Result<Self> {
        let width = match size {
            "tiny" => 16,
            "small" => 24,
            "base" => 32,
            "large" => 64,
            _ => {
                let known = "tiny, small, base, large".into();
                return Err(Error::Unknown { what: "TRN size", found: size.into(), known });
            }
        };
        Ok(Self {
            channels,
            width,
            scales: 3,
            bound: 0.2,
            estimator: EstimatorSpec::None,
            normalization: Normalization::default(),
            fusion: Fusion::default(),
            gate: true,
            first: None,
        })
    }

    /// This one-stream network with a second stream from `estimator`, and with itself as first pass where needed.
    #[must_use]
    pub fn with_estimator(&self, estimator: EstimatorSpec) -> Self {
        let first = estimator.needs_coarse().then(|| Box::new(self.clone()));
        Self { estimator, first, ..self.clone() }
    }

    /// Checks every value and that the parts fit together.
    ///
    /// # Errors
    /// Names the first value that cannot be used.
    pub fn validate(&self) -> Result<()> {
        if !matches!(self.channels, 1 | 3) {
            return Err(Error::range("channels", "1 or 3", self.channels));
        }
        if !(8..=256).contains(&self.width) {
            return Err(Error::range("TRN width", "8 to 256", self.width));
        }
        if !(2..=5).contains(&self.scales) {
            return Err(Error::range("scales", "2 to 5", self.scales));
        }
        if !(self.bound > 0.0 && self.bound <= 1.0) {
            return Err(Error::range("bound", "above 0, at most 1", self.bound));
        }
        match &self.first {
            None if self.estimator.needs_coarse() => {
                Err(Error::Refused(format!("the estimator {} needs a first pass", self.estimator)))
            }
            Some(first) if first.estimator != EstimatorSpec::None || first.channels != self.channels => Err(
                Error::Refused("the first pass has to be a one-stream network of the same channels".into()),
            ),
            Some(first) => first.validate(),
            None => Ok(()),
        }
    }
}
