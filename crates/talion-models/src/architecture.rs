//! The names of the built-in architectures.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use talion_core::{Error, Result};

/// The kind of network; widths are in [`Architecture`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    /// ResNet-18 with a 3x3 stem for small images (He et al. 2016).
    ResNet18,
    /// ResNet-18 with normalisation before each convolution (He et al. 2016, "Identity mappings").
    PreActResNet18,
    /// VGG-16 with batch norm and one linear layer (Simonyan and Zisserman 2015).
    Vgg16Bn,
    /// WideResNet-28-10 (Zagoruyko and Komodakis 2016); its width is the multiplier, 10 in the paper.
    WideResNet28,
    /// Two convolutions and two linear layers, after LeNet-5 (LeCun et al. 1998).
    CnnSmall,
}

const FAMILIES: [(Family, &str, i64); 5] = [
    (Family::ResNet18, "resnet18-w", 64),
    (Family::PreActResNet18, "preactresnet18-w", 64),
    (Family::Vgg16Bn, "vgg16bn-w", 64),
    (Family::WideResNet28, "wrn-28-", 10),
    (Family::CnnSmall, "cnn-small-w", 32),
];

/// A network family and its width, written `resnet18-w16`, `wrn-28-10`, `cnn-small-w32`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Architecture {
    /// The kind of network.
    pub family: Family,
    /// Channels of the first stage (of WideResNet: the multiplier), 1 to 1024.
    pub width: i64,
}

impl Architecture {
    /// All families with their usual width, for help texts.
    pub fn examples() -> Vec<Self> {
        FAMILIES.iter().map(|&(family, _, width)| Self { family, width }).collect()
    }
}

impl fmt::Display for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let prefix = FAMILIES.iter().find(|entry| entry.0 == self.family).map_or("", |entry| entry.1);
        write!(f, "{prefix}{}", self.width)
    }
}

impl FromStr for Architecture {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let parsed = FAMILIES.iter().find_map(|&(family, prefix, usual)| {
            let stem = prefix.trim_end_matches("-w").trim_end_matches('-');
            let width = if text == stem { usual } else { text.strip_prefix(prefix)?.parse().ok()? };
            Some(Self { family, width })
        });
        let known = || {
            let names: Vec<_> = Self::examples().iter().map(ToString::to_string).collect();
            format!("{}, with any width", names.join(", "))
        };
        match parsed {
            Some(architecture) if (1..=1024).contains(&architecture.width) => Ok(architecture),
            _ => Err(Error::Unknown { what: "architecture", found: text.into(), known: known() }),
        }
    }
}

impl TryFrom<String> for Architecture {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Architecture> for String {
    fn from(architecture: Architecture) -> Self {
        architecture.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        for architecture in Architecture::examples() {
            assert_eq!(architecture.to_string().parse::<Architecture>().unwrap(), architecture);
        }
        assert_eq!("resnet18".parse::<Architecture>().unwrap().width, 64);
        for wrong in ["resnet18-w0", "resnet18-w", "resnet19", "wrn-28-x", "resnet18-w99999", ""] {
            assert!(wrong.parse::<Architecture>().is_err(), "{wrong}");
        }
    }
}
