//! The estimators' names.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use talion_core::{Error, Result};

/// Which gradient maps the second stream gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum EstimatorSpec {
    /// No second stream: the one-stream twin.
    None,
    /// A second stream with the first restoration but no gradient: the control that tells the second pass from the map.
    Restoration,
    /// One map at the label the classifier predicts for the input.
    Predicted,
    /// A map for each of the `k` most likely labels, in order.
    TopK {
        /// Number of labels, 1 to 16.
        k: i64,
    },
    /// A map at the input for the label predicted for a restoration of it.
    Coarse {
        /// How often the image is restored before its label is read, 1 to 4.
        refinements: u32,
    },
    /// Maps of the input's predicted and least likely labels at points between the input and a first restoration.
    WalkBack,
    /// One map, weighted over all labels by a small head that is trained together with TRN.
    Learned,
    /// One map at the true label, which no defender has: for diagnosis only.
    Oracle,
}

impl EstimatorSpec {
    /// Whether a first restoration, by a one-stream TRN, is needed.
    pub fn needs_coarse(self) -> bool {
        matches!(self, Self::Restoration | Self::Coarse { .. } | Self::WalkBack)
    }

    /// Whether the estimator has weights that are trained together with TRN.
    pub fn trainable(self) -> bool {
        self == Self::Learned
    }

    /// Maps per image, before the number of classes limits them.
    pub fn maps(self) -> i64 {
        match self {
            Self::None | Self::Restoration => 0,
            Self::Predicted | Self::Coarse { .. } | Self::Learned | Self::Oracle => 1,
            Self::TopK { k } => k,
            Self::WalkBack => 3,
        }
    }
}

const KNOWN: &str =
    "none, restoration, predicted, top1 to top16, coarse1 to coarse4, walk-back, learned, oracle";

impl fmt::Display for EstimatorSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Restoration => f.write_str("restoration"),
            Self::Predicted => f.write_str("predicted"),
            Self::TopK { k } => write!(f, "top{k}"),
            Self::Coarse { refinements } => write!(f, "coarse{refinements}"),
            Self::WalkBack => f.write_str("walk-back"),
            Self::Learned => f.write_str("learned"),
            Self::Oracle => f.write_str("oracle"),
        }
    }
}

impl FromStr for EstimatorSpec {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let number = |prefix: &str, most: i64| {
            let digits = text.strip_prefix(prefix)?;
            digits.parse::<i64>().ok().filter(|value| (1..=most).contains(value))
        };
        let numbered = number("top", 16)
            .map(|k| Self::TopK { k })
            .or_else(|| number("coarse", 4).map(|count| Self::Coarse { refinements: count as u32 }));
        match (text, numbered) {
            ("none", _) => Ok(Self::None),
            ("restoration", _) => Ok(Self::Restoration),
            ("predicted", _) => Ok(Self::Predicted),
            ("walk-back", _) => Ok(Self::WalkBack),
            ("learned", _) => Ok(Self::Learned),
            ("oracle", _) => Ok(Self::Oracle),
            (_, Some(spec)) => Ok(spec),
            _ => Err(Error::Unknown {
                what: "gradient map estimator",
                found: text.into(),
                known: KNOWN.into(),
            }),
        }
    }
}

impl TryFrom<String> for EstimatorSpec {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<EstimatorSpec> for String {
    fn from(spec: EstimatorSpec) -> Self {
        spec.to_string()
    }
}
