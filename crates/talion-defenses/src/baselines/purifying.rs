//! The file of a trained baseline as a defence.

use std::{path::Path, str::FromStr};

use talion_core::{Error, Result};
use tch::Device;

use super::{Compression, Purification, Restorer, RestorerNetwork};
use crate::defence::Defence;

/// How to purify with a denoiser, written `sigma=0.25,steps=4,votes=8`; what is left out has its default.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Purifying {
    /// Standard deviation of the noise that is added, on the image scale. Default 0.25.
    pub sigma: f64,
    /// Steps of denoising. Default 1.
    pub steps: u32,
    /// Draws that a prediction is averaged over. Default 1.
    pub votes: u64,
}

impl Default for Purifying {
    fn default() -> Self {
        Self { sigma: 0.25, steps: 1, votes: 1 }
    }
}

impl FromStr for Purifying {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut settings = Self::default();
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            let wrong = || Error::range(format!("the denoiser's {name}"), "a number", value);
            match name {
                "sigma" => settings.sigma = talion_core::parse_fraction(value)?,
                "steps" => settings.steps = value.parse().map_err(|_| wrong())?,
                "votes" => settings.votes = value.parse().map_err(|_| wrong())?,
                _ => {
                    let known = "sigma, steps, votes".into();
                    return Err(Error::Unknown { what: "setting of a denoiser", found: name.into(), known });
                }
            }
        }
        Ok(settings)
    }
}

/// The defence that the file of a compressor or a denoiser makes, and the data set that it was trained on. `settings` are
/// for denoisers.
///
/// # Errors
/// If the file cannot be used, or the settings are out of range.
pub fn load(path: &Path, settings: Purifying, device: Device) -> Result<(Box<dyn Defence>, String)> {
    let network = RestorerNetwork::load(path, device)?;
    let dataset = network.card().dataset.clone();
    let Purifying { sigma, steps, votes } = settings;
    let defence: Box<dyn Defence> = match network.card().kind {
        Restorer::Compressor => Box::new(Compression::new(network)?),
        Restorer::Denoiser => Box::new(Purification::new(network, sigma, steps, votes)?),
    };
    Ok((defence, dataset))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_read_and_mistakes_named() {
        let all: Purifying = "sigma=1/8, steps=4,votes=8".parse().unwrap();
        assert_eq!(all, Purifying { sigma: 0.125, steps: 4, votes: 8 });
        assert_eq!("".parse::<Purifying>().unwrap(), Purifying::default());
        for (text, named) in [("levels=3", "levels"), ("steps=many", "steps"), ("sigma", "")] {
            let error = text.parse::<Purifying>().unwrap_err().to_string();
            assert!(error.contains(named), "{error}");
        }
    }
}
