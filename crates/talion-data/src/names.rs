//! The data sets known by name, and how a user names one.

use std::{fmt, path::PathBuf, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::error::{DataError, Result};

/// A public data set that talion knows by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum DatasetName {
    /// 60,000 small colour photographs in 10 classes.
    #[serde(rename = "cifar10")]
    Cifar10,
    /// 60,000 small colour photographs in 100 classes (the "fine" labels).
    #[serde(rename = "cifar100")]
    Cifar100,
    /// House-number digits cropped from street photographs.
    #[serde(rename = "svhn")]
    Svhn,
    /// Handwritten digits.
    #[serde(rename = "mnist")]
    Mnist,
    /// Photographs of clothes, reduced to 28 x 28 grey pixels.
    #[serde(rename = "fashion-mnist")]
    FashionMnist,
}

impl DatasetName {
    /// Every name, in the order in which help texts list them.
    pub const ALL: [Self; 5] = [Self::Cifar10, Self::Cifar100, Self::Svhn, Self::Mnist, Self::FashionMnist];

    /// The name as a user types it, which is also the name of the data set's folder.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cifar10 => "cifar10",
            Self::Cifar100 => "cifar100",
            Self::Svhn => "svhn",
            Self::Mnist => "mnist",
            Self::FashionMnist => "fashion-mnist",
        }
    }

    /// The names of the classes, in the order of the labels.
    pub fn class_names(self) -> &'static [&'static str] {
        match self {
            Self::Cifar10 => &CIFAR10,
            Self::Cifar100 => &CIFAR100,
            Self::Svhn | Self::Mnist => &DIGITS,
            Self::FashionMnist => &FASHION,
        }
    }

    /// Colour channels of an image, 1 or 3.
    pub fn channels(self) -> usize {
        match self {
            Self::Cifar10 | Self::Cifar100 | Self::Svhn => 3,
            Self::Mnist | Self::FashionMnist => 1,
        }
    }

    /// Rows and columns of an image; all these data sets have square ones.
    pub fn side(self) -> usize {
        match self {
            Self::Cifar10 | Self::Cifar100 | Self::Svhn => 32,
            Self::Mnist | Self::FashionMnist => 28,
        }
    }

    /// Whether a mirrored image still shows its class: true of things, false of digits.
    pub fn flips(self) -> bool {
        match self {
            Self::Cifar10 | Self::Cifar100 | Self::FashionMnist => true,
            Self::Svhn | Self::Mnist => false,
        }
    }

    pub(crate) fn owned_class_names(self) -> Vec<String> {
        self.class_names().iter().map(|&name| name.to_owned()).collect()
    }
}

impl fmt::Display for DatasetName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for DatasetName {
    type Err = DataError;

    fn from_str(text: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|name| name.as_str() == text).ok_or_else(|| {
            let known: Vec<_> = Self::ALL.iter().map(|name| name.as_str()).collect();
            DataError::Request(format!("unknown data set `{text}`: expected one of {}", known.join(", ")))
        })
    }
}

/// What a user may give wherever a data set is wanted.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum DatasetSpec {
    /// `NAME` or `NAME:DIR`: a known data set, in the data folder or in a folder of the user's.
    Named {
        /// Which data set.
        name: DatasetName,
        /// The folder with its official files, if not the one below the data folder.
        dir: Option<PathBuf>,
    },
    /// `folder:DIR`: PNG or JPEG images, a sub-folder for each class.
    Folder(PathBuf),
    /// `fashion-mnist-sample`: the 1,000 images that come with talion.
    Sample,
}

impl DatasetSpec {
    /// The spec of the bundled sample.
    pub const SAMPLE: &'static str = "fashion-mnist-sample";

    /// Whether a mirrored image is known to still show its class. False for a folder, whose classes talion does not
    /// know.
    pub fn flips(&self) -> bool {
        match self {
            Self::Named { name, .. } => name.flips(),
            Self::Folder(_) => false,
            Self::Sample => DatasetName::FashionMnist.flips(),
        }
    }
}

impl From<DatasetName> for DatasetSpec {
    fn from(name: DatasetName) -> Self {
        Self::Named { name, dir: None }
    }
}

impl fmt::Display for DatasetSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Named { name, dir: None } => write!(f, "{name}"),
            Self::Named { name, dir: Some(dir) } => write!(f, "{name}:{}", dir.display()),
            Self::Folder(dir) => write!(f, "folder:{}", dir.display()),
            Self::Sample => f.write_str(Self::SAMPLE),
        }
    }
}

impl FromStr for DatasetSpec {
    type Err = DataError;

    fn from_str(text: &str) -> Result<Self> {
        let unknown = || {
            let known: Vec<_> = DatasetName::ALL.iter().map(|name| name.as_str()).collect();
            DataError::Request(format!(
                "unknown data set `{text}`: expected {} or {}, or NAME:DIR for one of them in a folder of yours, or \
                 folder:DIR for images in one sub-folder a class",
                known.join(", "),
                Self::SAMPLE
            ))
        };
        let (name, dir) = match text.split_once(':') {
            Some((_, "")) => {
                return Err(DataError::Request(format!("`{text}` names no folder after the colon")));
            }
            Some((name, dir)) => (name, Some(PathBuf::from(dir))),
            None => (text, None),
        };
        match (name, dir) {
            ("folder", Some(dir)) => Ok(Self::Folder(dir)),
            (Self::SAMPLE, None) => Ok(Self::Sample),
            (name, dir) => Ok(Self::Named { name: name.parse().map_err(|_| unknown())?, dir }),
        }
    }
}

const DIGITS: [&str; 10] = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"];

const CIFAR10: [&str; 10] =
    ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"];

const FASHION: [&str; 10] = [
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
];

#[rustfmt::skip]
const CIFAR100: [&str; 100] = [
    "apple", "aquarium_fish", "baby", "bear", "beaver", "bed", "bee", "beetle", "bicycle", "bottle",
    "bowl", "boy", "bridge", "bus", "butterfly", "camel", "can", "castle", "caterpillar", "cattle",
    "chair", "chimpanzee", "clock", "cloud", "cockroach", "couch", "crab", "crocodile", "cup", "dinosaur",
    "dolphin", "elephant", "flatfish", "forest", "fox", "girl", "hamster", "house", "kangaroo", "keyboard",
    "lamp", "lawn_mower", "leopard", "lion", "lizard", "lobster", "man", "maple_tree", "motorcycle", "mountain",
    "mouse", "mushroom", "oak_tree", "orange", "orchid", "otter", "palm_tree", "pear", "pickup_truck", "pine_tree",
    "plain", "plate", "poppy", "porcupine", "possum", "rabbit", "raccoon", "ray", "road", "rocket",
    "rose", "sea", "seal", "shark", "shrew", "skunk", "skyscraper", "snail", "snake", "spider",
    "squirrel", "streetcar", "sunflower", "sweet_pepper", "table", "tank", "telephone", "television", "tiger",
    "tractor", "train", "trout", "tulip", "turtle", "wardrobe", "whale", "willow_tree", "wolf", "woman", "worm",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_specs_read_back_as_written() {
        for name in DatasetName::ALL {
            assert_eq!(name.to_string().parse::<DatasetName>().unwrap(), name);
            assert_eq!(serde_json::to_string(&name).unwrap(), format!("\"{name}\""));
        }
        for spec in ["cifar10", "svhn:/data/a:b", "folder:pets", DatasetSpec::SAMPLE] {
            assert_eq!(spec.parse::<DatasetSpec>().unwrap().to_string(), spec);
        }
    }

    #[test]
    fn unknown_names_list_the_known_ones() {
        for text in ["imagenet", "folder", "", "fashion-mnist-sample:dir", "CIFAR10"] {
            let message = text.parse::<DatasetSpec>().unwrap_err().to_string();
            assert!(message.contains("fashion-mnist") && message.contains("folder:DIR"), "{message}");
        }
        assert!("svhn:".parse::<DatasetSpec>().is_err());
    }

    #[test]
    fn class_names_are_distinct() {
        for name in DatasetName::ALL {
            let mut classes = name.class_names().to_vec();
            classes.sort_unstable();
            classes.dedup();
            assert_eq!(classes.len(), if name == DatasetName::Cifar100 { 100 } else { 10 });
        }
    }
}
