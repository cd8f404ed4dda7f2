//! The pretrained networks that come with the program, so that it can show what it does without data or network.

use std::path::{Path, PathBuf};

use talion_core::Result;
use talion_defenses::Trn;
use talion_eval::Calibration;
use talion_models::Model;
use tch::Device;

/// A classifier with the networks trained for it.
pub struct Networks {
    /// The classifier.
    pub classifier: Model,
    /// The one-stream twin, if there is one.
    pub one_stream: Option<Trn>,
    /// The Two-stream Restoration Network.
    pub trn: Trn,
}

const CLASSIFIER: &[u8] = include_bytes!("../../../models/fashion-mnist/classifier.safetensors");
const ONE_STREAM: &[u8] = include_bytes!("../../../models/fashion-mnist/one-stream.safetensors");
const CALIBRATION: &[u8] = include_bytes!("../../../models/fashion-mnist/calibration.json");
const SURROGATE: &[u8] = include_bytes!("../../../models/fashion-mnist/surrogate.safetensors");
const TRN: &[u8] = include_bytes!("../../../models/fashion-mnist/trn.safetensors");

impl Networks {
    /// The bundled networks for Fashion-MNIST; see `models/fashion-mnist/README.md`.
    ///
    /// # Errors
    /// If the program was built from damaged files.
    pub fn bundled(device: Device) -> Result<Self> {
        let name = |file: &str| format!("(bundled) models/fashion-mnist/{file}.safetensors");
        Ok(Self {
            classifier: Model::from_bytes(CLASSIFIER, Path::new(&name("classifier")), device)?,
            one_stream: Some(Trn::from_bytes(ONE_STREAM, Path::new(&name("one-stream")), device)?),
            trn: Trn::from_bytes(TRN, Path::new(&name("trn")), device)?,
        })
    }

    /// What the suspicion of images is judged by behind the bundled pair, and the name to give it in errors.
    ///
    /// # Errors
    /// If the program was built from a damaged file.
    pub fn bundled_calibration() -> Result<(Calibration, PathBuf)> {
        let origin = PathBuf::from("(bundled) models/fashion-mnist/calibration.json");
        Ok((Calibration::from_bytes(CALIBRATION, &origin)?, origin))
    }

    /// A classifier of another architecture for the same data, to make images on that the bundled pair has not seen coming.
    ///
    /// # Errors
    /// If the program was built from a damaged file.
    pub fn bundled_surrogate(device: Device) -> Result<Model> {
        Model::from_bytes(
            SURROGATE,
            Path::new("(bundled) models/fashion-mnist/surrogate.safetensors"),
            device,
        )
    }

    /// The networks in files; the bundled ones where no file is named.
    ///
    /// # Errors
    /// If a file cannot be used, or only one of model and network is named.
    pub fn load(
        model: Option<&Path>,
        one_stream: Option<&Path>,
        trn: Option<&Path>,
        device: Device,
    ) -> Result<Self> {
        match (model, trn) {
            (None, None) => Self::bundled(device),
            (Some(model), Some(trn)) => Ok(Self {
                classifier: Model::load(model, device)?,
                one_stream: one_stream.map(|path| Trn::load(path, device)).transpose()?,
                trn: Trn::load(trn, device)?,
            }),
            _ => Err(talion_core::Error::Refused(
                "name both --model and --trn (they belong together), or neither for the bundled pair".into(),
            )),
        }
    }
}
