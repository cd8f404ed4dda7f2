//! What a network is: an architecture that is built in, or a file of somebody else's.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use talion_core::{Error, Result};

use crate::{architecture::Architecture, import::Format};

/// Written as the architecture's name, or as format and name of an imported network, such as `onnx:resnet50`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Design {
    /// One of talion's own networks.
    BuiltIn(Architecture),
    /// An imported network.
    Imported {
        /// What kind of file it is.
        format: Format,
        /// The file's name without its ending.
        name: String,
    },
}

/// The formats whose networks come with their own programs.
const PROGRAMS: [(Format, &str); 2] = [(Format::Onnx, "onnx:"), (Format::TorchScript, "torchscript:")];

impl From<Architecture> for Design {
    fn from(architecture: Architecture) -> Self {
        Self::BuiltIn(architecture)
    }
}

impl fmt::Display for Design {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BuiltIn(architecture) => architecture.fmt(f),
            Self::Imported { format, name } => {
                let prefix =
                    PROGRAMS.iter().find(|entry| entry.0 == *format).map_or("file:", |entry| entry.1);
                write!(f, "{prefix}{name}")
            }
        }
    }
}

impl FromStr for Design {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let imported = PROGRAMS.iter().find_map(|&(format, prefix)| {
            text.strip_prefix(prefix).map(|name| Self::Imported { format, name: name.to_owned() })
        });
        imported.map_or_else(|| text.parse().map(Self::BuiltIn), Ok)
    }
}

impl TryFrom<String> for Design {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Design> for String {
    fn from(design: Design) -> Self {
        design.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn designs_round_trip() {
        for text in ["resnet18-w16", "onnx:resnet50", "torchscript:my model", "onnx:"] {
            assert_eq!(text.parse::<Design>().unwrap().to_string(), text);
        }
        assert!(matches!("wrn-28-10".parse().unwrap(), Design::BuiltIn(_)));
        assert!("something".parse::<Design>().is_err());
    }
}
