//! What a restoration network is made of.

use std::{fmt, ops::Range, str::FromStr};

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
    /// At which scales they are joined. Files from before there was a choice join them at all.
    #[serde(default, skip_serializing_if = "FusedScales::is_all")]
    pub fused: FusedScales,
    /// Whether a judge of the whole image decides how much of the residual is added, so that clean images are left
    /// alone. Files from before there was one have none.
    #[serde(default)]
    pub gate: bool,
    /// Height and width of patterns that the network may add, one for each class, mixed by what it takes the image for; made
    /// for training against attackers who know it. `None` for none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub patterns: Option<[i64; 2]>,
    /// The one-stream network of the first pass, for estimators that need one.
    pub first: Option<Box<TrnSpec>>,
}

/// At which scales the streams are joined. Written `all`, `coarsest` and `finest`.
///
/// At the other scales the image stream goes on alone. What the gradient stream computes there only leads to its own deeper
/// scales, of which it has none below the last one joined.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FusedScales {
    /// At every scale.
    #[default]
    All,
    /// At the coarsest alone.
    Coarsest,
    /// At full resolution alone.
    Finest,
}

impl FusedScales {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::All, Self::Coarsest, Self::Finest];

    fn is_all(&self) -> bool {
        *self == Self::All
    }

    /// The scales among so many, 0 being full resolution.
    pub(super) fn of(self, scales: usize) -> Range<usize> {
        match self {
            Self::All => 0..scales,
            Self::Coarsest => scales.saturating_sub(1)..scales,
            Self::Finest => 0..scales.min(1),
        }
    }
}

impl fmt::Display for FusedScales {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::All => "all",
            Self::Coarsest => "coarsest",
            Self::Finest => "finest",
        })
    }
}

impl FromStr for FusedScales {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|scales| scales.to_string() == text).ok_or_else(|| {
            let known = Self::ALL.map(|scales| scales.to_string()).join(", ");
            Error::Unknown { what: "choice of fused scales", found: text.into(), known }
        })
    }
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
            fused: FusedScales::default(),
            gate: true,
            patterns: None,
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
        let groups = self.fusion.groups();
        if self.width % groups != 0 {
            let expected = format!("a multiple of {groups} for the fusion {}", self.fusion);
            return Err(Error::range("TRN width", expected, self.width));
        }
        if self.patterns.is_some_and(|sides| sides.iter().any(|side| !(1..=4096).contains(side))) {
            return Err(Error::range("patterns", "sides of 1 to 4096", format!("{:?}", self.patterns)));
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
            // one bound is applied to the sum of both passes' residuals
            Some(first) if first.bound.to_bits() != self.bound.to_bits() => {
                Err(Error::range("bound", format!("{}, that of the first pass", first.bound), self.bound))
            }
            Some(first) => first.validate(),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_are_named_and_counted() {
        for fused in FusedScales::ALL {
            let name = fused.to_string();
            assert_eq!(name.parse::<FusedScales>().unwrap(), fused);
            assert_eq!(serde_json::to_value(fused).unwrap(), serde_json::Value::from(name));
        }
        assert_eq!(FusedScales::ALL.map(|fused| fused.of(3)), [0..3, 2..3, 0..1]);
        let error = "middle".parse::<FusedScales>().unwrap_err().to_string();
        assert!(error.contains("`middle`; known: all, coarsest, finest"), "{error}");
    }

    #[test]
    fn files_without_a_choice_of_scales_join_all() {
        let spec = TrnSpec::one_stream("tiny", 1).unwrap();
        let old = serde_json::to_value(&spec).unwrap();
        assert!(old.get("fused").is_none());
        assert_eq!(serde_json::from_value::<TrnSpec>(old).unwrap(), spec);
        let spec = TrnSpec { fused: FusedScales::Finest, ..spec };
        let new = serde_json::to_value(&spec).unwrap();
        assert_eq!(new["fused"], "finest");
        assert_eq!(serde_json::from_value::<TrnSpec>(new).unwrap(), spec);
    }

    #[test]
    fn dynamic_filters_need_groups_of_channels() {
        let spec = |width, fusion| TrnSpec { width, fusion, ..TrnSpec::one_stream("tiny", 1).unwrap() };
        for fusion in Fusion::ALL {
            assert!(spec(12, fusion).validate().is_ok(), "{fusion}");
            assert_eq!(spec(10, fusion).validate().is_ok(), fusion != Fusion::DynamicFilter, "{fusion}");
        }
        let error = spec(10, Fusion::DynamicFilter).validate().unwrap_err().to_string();
        assert!(error.contains("width is 10, expected a multiple of 4"), "{error}");
    }
}
