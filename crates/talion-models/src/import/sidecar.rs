//! What a model file does not say of itself, in a TOML file beside it.

use std::{
    fmt,
    fs::File,
    io::{ErrorKind, Read},
    path::{Path, PathBuf},
    str::FromStr,
};

use serde::{Deserialize, Serialize};
use talion_core::{Error, Result, write_atomically};

use crate::Architecture;

/// A few names and numbers fit many times.
const MAX_BYTES: u64 = 1 << 20;

/// Facts about a model that was trained elsewhere. All are optional; what is missing has to be known some other way.
///
/// ```toml
/// dataset = "cifar10"
/// classes = ["aeroplane", "automobile", "bird"]
/// accuracy = 0.947
///
/// [input]
/// size = [32, 32]
/// mean = [0.4914, 0.4822, 0.4465]
/// std = [0.2470, 0.2435, 0.2616]
/// ```
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Sidecar {
    /// The network of a file that holds weights only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub architecture: Option<Architecture>,
    /// The data set trained on, for instance `cifar10`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dataset: Option<String>,
    /// Names of the classes in the order of the logits, at least 2.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub classes: Option<Vec<String>>,
    /// The accuracy that the model is known to have on clean test images, as a share above 0 and up to 1: what an
    /// import can be checked against.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accuracy: Option<f64>,
    /// What the network expects of its input.
    pub input: InputFacts,
}

/// What a network expects of its input.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct InputFacts {
    /// Height and width in pixels, 1 to 8192 each.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<[i64; 2]>,
    /// Number of channels, 1 to 16.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub channels: Option<i64>,
    /// The order of three colour channels.
    pub order: ChannelOrder,
    /// What the brightest pixel is before `mean` and `std` are applied: 1 (the default) or 255.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scale: Option<f64>,
    /// Subtracted from each channel, in units of `scale` and in the order that the network takes the channels in;
    /// 0 by default. Not for a network that standardises inside itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mean: Option<Vec<f64>>,
    /// What each channel is then divided by, above 0; 1 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub std: Option<Vec<f64>>,
}

/// The order of three colour channels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ChannelOrder {
    /// Red, green, blue.
    #[default]
    Rgb,
    /// Blue, green, red, as OpenCV reads images.
    Bgr,
}

impl ChannelOrder {
    /// Whether it is red, green, blue.
    pub fn is_rgb(&self) -> bool {
        *self == Self::Rgb
    }
}

impl fmt::Display for ChannelOrder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Rgb => "rgb",
            Self::Bgr => "bgr",
        })
    }
}

impl FromStr for ChannelOrder {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "rgb" => Ok(Self::Rgb),
            "bgr" => Ok(Self::Bgr),
            _ => Err(Error::Unknown { what: "channel order", found: text.into(), known: "rgb, bgr".into() }),
        }
    }
}

impl Sidecar {
    /// Where the facts about the file `model` stand: `x.onnx.toml` for `x.onnx`.
    pub fn path(model: &Path) -> PathBuf {
        let mut name = model.as_os_str().to_owned();
        name.push(".toml");
        name.into()
    }

    /// Reads the facts about the file `model`; `None` if there is no file of them.
    ///
    /// # Errors
    /// If the file cannot be read, is longer than 1 MiB, is not TOML, has a field that is not known, or is not
    /// [valid](Sidecar::validate).
    pub fn read(model: &Path) -> Result<Option<Self>> {
        let path = Self::path(model);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io(path)(error)),
        };
        let mut bytes = Vec::new();
        file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(Error::io(&path))?;
        if bytes.len() as u64 > MAX_BYTES {
            return Err(Error::file(path, format!("is longer than {MAX_BYTES} bytes")));
        }
        let text = std::str::from_utf8(&bytes).map_err(|error| Error::file(&path, error.to_string()))?;
        let sidecar: Self =
            toml::from_str(text).map_err(|error| Error::file(&path, error.to_string().trim_end()))?;
        sidecar.validate().map_err(|error| Error::file(&path, error.to_string()))?;
        Ok(Some(sidecar))
    }

    /// Writes the facts beside the file `model`, whole or not at all.
    ///
    /// # Errors
    /// If they are not [valid](Sidecar::validate), or the file cannot be written.
    pub fn write(&self, model: &Path) -> Result<()> {
        self.validate()?;
        let path = Self::path(model);
        let text = toml::to_string(self)
            .map_err(|error| Error::file(&path, format!("cannot be written as TOML: {error}")))?;
        write_atomically(&path, text.as_bytes())
    }

    /// Checks that every fact is possible, and that they fit each other.
    ///
    /// # Errors
    /// Names the first fact that is not.
    pub fn validate(&self) -> Result<()> {
        if self.dataset.as_ref().is_some_and(|name| name.trim().is_empty()) {
            return Err(Error::range("dataset", "a name", "nothing"));
        }
        if let Some(classes) = &self.classes {
            if !(2..=100_000).contains(&classes.len()) {
                return Err(Error::range("classes", "2 to 100000 names", classes.len()));
            }
            if classes.iter().any(|name| name.trim().is_empty()) {
                return Err(Error::range("classes", "names", "one that is empty"));
            }
        }
        match self.accuracy {
            Some(share) if share > 1.0 && share <= 100.0 => {
                let expected = format!("a share up to 1: write {}", (share * 1e4).round() / 1e6);
                return Err(Error::range("accuracy", expected, share));
            }
            Some(share) if !(share > 0.0 && share <= 1.0) => {
                return Err(Error::range("accuracy", "a share above 0 and up to 1", share));
            }
            _ => {}
        }
        self.input.validate()
    }

    /// Mean and standard deviation of each channel on the `[0, 1]` scale, so that standardising an image in `[0, 1]`
    /// with them gives what the network expects. They are in the order that the network takes the channels in.
    ///
    /// # Errors
    /// If the facts are given for another number of channels.
    pub fn standardisation(&self, channels: i64) -> Result<(Vec<f64>, Vec<f64>)> {
        let input = &self.input;
        if let Some(found) = input.channels.filter(|&found| found != channels) {
            return Err(Error::range("input.channels", format!("{channels}, as the network has"), found));
        }
        let scale = input.scale.unwrap_or(1.0);
        // ((s x) - m) / d = (x - m/s) / (d/s)
        let scaled = |name: &str, values: &Option<Vec<f64>>, usual: f64| match values {
            None => Ok((0..channels).map(|_| usual / scale).collect()),
            Some(values) if i64::try_from(values.len()) == Ok(channels) => {
                Ok(values.iter().map(|value| value / scale).collect())
            }
            Some(values) => {
                let expected = format!("{channels} numbers, one a channel of the network");
                Err(Error::range(name, expected, format!("{values:?}")))
            }
        };
        Ok((scaled("input.mean", &input.mean, 0.0)?, scaled("input.std", &input.std, 1.0)?))
    }
}

impl InputFacts {
    fn validate(&self) -> Result<()> {
        if let Some(size) = self.size.filter(|size| size.iter().any(|side| !(1..=8192).contains(side))) {
            let expected = "height and width, 1 to 8192 each";
            return Err(Error::range("input.size", expected, format!("{size:?}")));
        }
        if let Some(channels) = self.channels.filter(|channels| !(1..=16).contains(channels)) {
            return Err(Error::range("input.channels", "1 to 16", channels));
        }
        let scale = self.scale.unwrap_or(1.0);
        if scale != 1.0 && scale != 255.0 {
            return Err(Error::range("input.scale", "1 or 255", scale));
        }
        let mut channels = self.channels;
        for (name, values) in [("input.mean", &self.mean), ("input.std", &self.std)] {
            let Some(values) = values else { continue };
            let count = i64::try_from(values.len()).unwrap_or(i64::MAX);
            let fits = *channels.get_or_insert(count) == count && (1..=16).contains(&count);
            if !fits || values.iter().any(|value| !value.is_finite()) {
                return Err(Error::range(name, "finite numbers, one a channel", format!("{values:?}")));
            }
        }
        if let Some(std) = self.std.as_ref().filter(|std| std.iter().any(|&value| value <= 0.0)) {
            return Err(Error::range("input.std", "above 0", format!("{std:?}")));
        }
        // the usual slip: means of 0 to 255 without the scale
        if let Some(mean) = self.mean.as_ref().filter(|mean| mean.iter().any(|value| value.abs() > scale)) {
            let expected = format!("at most {scale}, the brightest pixel (see input.scale)");
            return Err(Error::range("input.mean", expected, format!("{mean:?}")));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Sidecar> {
        let folder = tempfile::tempdir().unwrap();
        let model = folder.path().join("net.onnx");
        std::fs::write(folder.path().join("net.onnx.toml"), text).unwrap();
        Sidecar::read(&model).map(Option::unwrap)
    }

    #[track_caller]
    fn refused(text: &str, words: &str) {
        let error = read(text).unwrap_err().to_string();
        assert!(error.contains("net.onnx.toml") && error.contains(words), "{error}");
    }

    #[test]
    fn every_fact_is_read_and_written_back() {
        let whole = Sidecar {
            architecture: Some("resnet18-w16".parse().unwrap()),
            dataset: Some("cifar10".into()),
            classes: Some(vec!["cat".into(), "dög \"x\"".into()]),
            accuracy: Some(0.947),
            input: InputFacts {
                size: Some([32, 48]),
                channels: Some(3),
                order: ChannelOrder::Bgr,
                scale: Some(255.0),
                mean: Some(vec![103.5, 116.25, 0.1]),
                std: Some(vec![1.0, 57.375, 1e-3]),
            },
        };
        let folder = tempfile::tempdir().unwrap();
        let model = folder.path().join("net.onnx");
        assert_eq!(Sidecar::read(&model).unwrap(), None);
        for sidecar in [whole, Sidecar::default()] {
            sidecar.write(&model).unwrap();
            assert_eq!(Sidecar::read(&model).unwrap(), Some(sidecar));
        }
        assert_eq!(Sidecar::path(&model), folder.path().join("net.onnx.toml"));
        let some = read("classes = [\"a\", \"b\"]\ninput.scale = 255\ninput.order = \"bgr\"").unwrap();
        assert_eq!((some.input.scale, some.input.order), (Some(255.0), ChannelOrder::Bgr));
        assert_eq!(read("").unwrap(), Sidecar::default());
    }

    #[test]
    fn impossible_facts_are_refused_with_the_file() {
        refused("colour = 1", "colour");
        refused("[input]\nmeans = [0.5]", "means");
        refused("accuracy = ", "");
        refused("accuracy = 94.7", "write 0.947");
        for share in ["0.0", "-1.0", "nan", "inf", "100.5"] {
            refused(&format!("accuracy = {share}"), "accuracy");
        }
        refused("architecture = \"resnet19\"", "resnet19");
        refused("dataset = \" \"", "dataset");
        refused("classes = [\"one\"]", "classes");
        refused("classes = [\"one\", \"\"]", "classes");
        refused("input.size = [0, 32]", "input.size");
        refused("input.channels = 17", "input.channels");
        refused("input.order = \"rbg\"", "rbg");
        refused("input.scale = 2", "input.scale");
        refused("input.mean = []", "input.mean");
        refused("input.mean = [nan]", "input.mean");
        refused("input.mean = [0.5]\ninput.channels = 3", "input.mean");
        refused("input.mean = [0.5]\ninput.std = [0.5, 0.5]", "input.std");
        refused("input.std = [0.0]", "input.std");
        refused("input.mean = [123.7]", "input.scale");
        refused(&format!("dataset = \"{}\"", "x".repeat(1 << 20)), "longer than");
        assert!(read("input.mean = [123.7]\ninput.scale = 255").is_ok());
    }

    #[test]
    fn facts_that_are_not_possible_are_not_written() {
        let folder = tempfile::tempdir().unwrap();
        let model = folder.path().join("net.onnx");
        let sidecar = Sidecar { accuracy: Some(2.0), ..Sidecar::default() };
        assert!(sidecar.write(&model).is_err());
        assert!(!Sidecar::path(&model).exists());
    }

    #[test]
    fn standardising_in_the_unit_scale_is_the_same_as_in_the_networks_own() {
        let sidecar = read("[input]\nscale = 255\nmean = [51.0, 102.0]\nstd = [25.5, 127.5]").unwrap();
        let (mean, std) = sidecar.standardisation(2).unwrap();
        for (channel, pixel) in [(0, 0.0), (0, 0.7), (1, 0.3), (1, 1.0)] {
            let own = (255.0 * pixel - [51.0, 102.0][channel]) / [25.5, 127.5][channel];
            assert!(((pixel - mean[channel]) / std[channel] - own).abs() < 1e-12);
        }
        assert!(sidecar.standardisation(3).unwrap_err().to_string().contains("input.mean"));
        // nothing given: the pixels as they are, or 255 times that
        assert_eq!(Sidecar::default().standardisation(1).unwrap(), (vec![0.0], vec![1.0]));
        let bright = read("input.scale = 255\ninput.channels = 1").unwrap();
        assert_eq!(bright.standardisation(1).unwrap(), (vec![0.0], vec![1.0 / 255.0]));
        assert!(bright.standardisation(3).unwrap_err().to_string().contains("input.channels"));
    }

    #[test]
    fn orders_have_names() {
        for order in [ChannelOrder::Rgb, ChannelOrder::Bgr] {
            assert_eq!(order.to_string().parse::<ChannelOrder>().unwrap(), order);
        }
        assert!("RGB".parse::<ChannelOrder>().unwrap_err().to_string().contains("rgb, bgr"));
    }
}
