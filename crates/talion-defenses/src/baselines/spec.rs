//! The filters' names.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use talion_core::{Error, Result};

use super::{BitDepth, Gaussian, Jpeg, Median, ResizePad, TotalVariation};
use crate::defence::Defence;

/// Which filter stands before the classifier, written `jpeg-75`; a bare name takes the default: `jpeg`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum FilterSpec {
    /// [`Jpeg`], written `jpeg-75`.
    Jpeg {
        /// 1 to 100. Default 75.
        quality: u8,
    },
    /// [`BitDepth`], written `bits-4`.
    Bits {
        /// 1 to 8. Default 4.
        bits: u8,
    },
    /// [`Median`], written `median-3`.
    Median {
        /// 3, 5 or 7. Default 3.
        side: i64,
    },
    /// [`Gaussian`], written `gaussian-0.7`.
    Gaussian {
        /// Standard deviation in pixels, 0.1 to 5. Default 0.7.
        sigma: f64,
    },
    /// [`TotalVariation`], written `tv-0.05`, or `tv-0.05x80` with another number of steps.
    TotalVariation {
        /// 0.001 to 1. Default 0.05.
        weight: f64,
        /// 1 to 1000. Default 40.
        steps: u32,
    },
    /// [`ResizePad`], written `resize-pad-0.85`.
    ResizePad {
        /// Smallest share of the side, 0.5 to below 1. Default 0.85.
        smallest: f64,
    },
}

const KNOWN: &str = "jpeg-1 to jpeg-100, bits-1 to bits-8, median-3, median-5, median-7, gaussian-0.1 to gaussian-5, \
                     tv-0.001 to tv-1 (tv-0.05x80 with 80 steps), resize-pad-0.5 to below 1, or a bare name";

impl FilterSpec {
    /// Each filter's name, and what it does in a line.
    pub const NAMES: [(&'static str, &'static str); 6] = [
        ("jpeg", "JPEG coding and decoding at a quality of 1 to 100: jpeg-75"),
        ("bits", "values rounded to 1 to 8 bits: bits-4"),
        ("median", "the median of windows of 3, 5 or 7 pixels: median-3"),
        ("gaussian", "a Gaussian blur of 0.1 to 5 pixels: gaussian-0.7"),
        ("tv", "total variation denoising of a weight of 0.001 to 1, steps after x: tv-0.05, tv-0.05x80"),
        ("resize-pad", "shrunk to a random share of at least 0.5 to 1, at a random place: resize-pad-0.85"),
    ];

    /// What each name means without a number.
    pub const DEFAULTS: [Self; 6] = [
        Self::Jpeg { quality: 75 },
        Self::Bits { bits: 4 },
        Self::Median { side: 3 },
        Self::Gaussian { sigma: 0.7 },
        Self::TotalVariation { weight: 0.05, steps: TotalVariation::STEPS },
        Self::ResizePad { smallest: 0.85 },
    ];

    /// The name without its number.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Jpeg { .. } => "jpeg",
            Self::Bits { .. } => "bits",
            Self::Median { .. } => "median",
            Self::Gaussian { .. } => "gaussian",
            Self::TotalVariation { .. } => "tv",
            Self::ResizePad { .. } => "resize-pad",
        }
    }

    /// The defence itself.
    ///
    /// # Errors
    /// If a number is outside its range.
    pub fn build(&self) -> Result<Box<dyn Defence>> {
        Ok(match *self {
            Self::Jpeg { quality } => Box::new(Jpeg::new(quality)?),
            Self::Bits { bits } => Box::new(BitDepth::new(bits)?),
            Self::Median { side } => Box::new(Median::new(side)?),
            Self::Gaussian { sigma } => Box::new(Gaussian::new(sigma)?),
            Self::TotalVariation { weight, steps } => Box::new(TotalVariation::new(weight, steps)?),
            Self::ResizePad { smallest } => Box::new(ResizePad::new(smallest)?),
        })
    }

    /// This filter with the number that `text` says; `None` if it says none.
    fn with_number(self, text: &str) -> Option<Self> {
        Some(match self {
            Self::Jpeg { .. } => Self::Jpeg { quality: text.parse().ok()? },
            Self::Bits { .. } => Self::Bits { bits: text.parse().ok()? },
            Self::Median { .. } => Self::Median { side: text.parse().ok()? },
            Self::Gaussian { .. } => Self::Gaussian { sigma: text.parse().ok()? },
            Self::TotalVariation { steps, .. } => {
                let (weight, steps) = match text.split_once('x') {
                    Some((weight, steps)) => (weight, steps.parse().ok()?),
                    None => (text, steps),
                };
                Self::TotalVariation { weight: weight.parse().ok()?, steps }
            }
            Self::ResizePad { .. } => Self::ResizePad { smallest: text.parse().ok()? },
        })
    }
}

impl fmt::Display for FilterSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.name();
        match self {
            Self::Jpeg { quality } => write!(f, "{name}-{quality}"),
            Self::Bits { bits } => write!(f, "{name}-{bits}"),
            Self::Median { side } => write!(f, "{name}-{side}"),
            Self::Gaussian { sigma } => write!(f, "{name}-{sigma}"),
            Self::TotalVariation { weight, steps: TotalVariation::STEPS } => write!(f, "{name}-{weight}"),
            Self::TotalVariation { weight, steps } => write!(f, "{name}-{weight}x{steps}"),
            Self::ResizePad { smallest } => write!(f, "{name}-{smallest}"),
        }
    }
}

impl FromStr for FilterSpec {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let named = |default: Self| {
            let rest = text.strip_prefix(default.name())?;
            if rest.is_empty() { Some(default) } else { default.with_number(rest.strip_prefix('-')?) }
        };
        let spec = Self::DEFAULTS.into_iter().find_map(named).ok_or_else(|| Error::Unknown {
            what: "filter",
            found: text.into(),
            known: KNOWN.into(),
        })?;
        // the constructors know the ranges
        spec.build()?;
        Ok(spec)
    }
}

impl TryFrom<String> for FilterSpec {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<FilterSpec> for String {
    fn from(spec: FilterSpec) -> Self {
        spec.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_round_trip() {
        let texts = "jpeg-75 jpeg-1 jpeg-100 bits-1 bits-8 median-3 median-7 gaussian-0.7 gaussian-5 tv-0.05 tv-0.05x80 \
                     tv-1x1000 resize-pad-0.85 resize-pad-0.5";
        for text in texts.split_whitespace() {
            let spec: FilterSpec = text.parse().unwrap();
            assert_eq!(spec.to_string(), text);
            let json = serde_json::to_string(&spec).unwrap();
            assert_eq!(json, format!("\"{text}\""));
            assert_eq!(serde_json::from_str::<FilterSpec>(&json).unwrap(), spec);
        }
    }

    #[test]
    fn names_stand_for_their_defaults() {
        for ((name, line), default) in FilterSpec::NAMES.into_iter().zip(FilterSpec::DEFAULTS) {
            assert_eq!(name.parse::<FilterSpec>().unwrap(), default);
            assert_eq!(default.name(), name);
            // the examples in the lines are the defaults
            assert!(line.contains(&default.to_string()), "{line}");
        }
        assert_eq!("tv-0.05x40".parse::<FilterSpec>().unwrap().to_string(), "tv-0.05");
    }

    #[test]
    fn what_is_built_says_what_it_is() {
        let described = |text: &str| text.parse::<FilterSpec>().unwrap().build().unwrap().description();
        assert_eq!(described("jpeg-60"), "JPEG at quality 60");
        assert_eq!(described("bits-1"), "1 bit a value");
        assert_eq!(described("median-5"), "median of 5x5 windows");
        assert_eq!(described("gaussian-1.5"), "Gaussian blur of 1.5 pixels");
        assert_eq!(described("tv-0.1"), "total variation of weight 0.1 in 40 steps");
        assert_eq!(described("resize-pad"), "random shrinking to a share of 0.85 or more, at a random place");
    }

    #[test]
    fn everything_else_is_refused() {
        let unknown = "|jpg|jpeg75|jpeg-|jpeg-x|jpeg-7.5|jpeg-256|median-3-|tv-0.05x|tv-x40|tv-0.05x-1|resize|resize-pad-";
        for text in unknown.split('|') {
            assert!(matches!(text.parse::<FilterSpec>(), Err(Error::Unknown { .. })), "{text}");
        }
        let outside = "jpeg-0 jpeg-101 bits-0 bits-9 median-4 median--3 gaussian-0 gaussian-nan gaussian-inf tv-2 tv--0.05 \
                       tv-0.05x0 resize-pad-1 resize-pad-0.4";
        for text in outside.split_whitespace() {
            assert!(matches!(text.parse::<FilterSpec>(), Err(Error::Range { .. })), "{text}");
        }
    }
}
