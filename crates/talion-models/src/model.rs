//! A network with its weights, its card, and both of its lives.

use std::{collections::BTreeMap, path::Path};

use serde::{Deserialize, Serialize};
use talion_core::{Archive, Classifier, Error, Result, Tensors};
use tch::{Device, Kind, Tensor, nn};

use crate::{
    architecture::Architecture,
    layers::{Mode, channels_last},
    networks::{self, Network},
    training::{initialise, load_variables, variables},
};

/// Everything needed to build a network before its weights are read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelSpec {
    /// Family and width.
    pub architecture: Architecture,
    /// Image channels, 1 or 3.
    pub channels: i64,
    /// Number of classes, at least 2.
    pub classes: i64,
    /// Mean of each channel over the training images, on the `[0, 1]` scale.
    pub mean: Vec<f64>,
    /// Standard deviation of each channel, above 0.
    pub std: Vec<f64>,
}

impl ModelSpec {
    /// Checks that the parts fit together.
    ///
    /// # Errors
    /// Names the first part that does not.
    pub fn validate(&self) -> Result<()> {
        if !(1..=16).contains(&self.channels) {
            return Err(Error::range("channels", "1 to 16", self.channels));
        }
        if !(2..=100_000).contains(&self.classes) {
            return Err(Error::range("classes", "2 to 100000", self.classes));
        }
        for (name, values) in [("mean", &self.mean), ("std", &self.std)] {
            if values.len() as i64 != self.channels || values.iter().any(|value| !value.is_finite()) {
                let expected = format!("{} finite numbers, one a channel", self.channels);
                return Err(Error::range(name, expected, format!("{values:?}")));
            }
        }
        if self.std.iter().any(|&value| value <= 0.0) {
            return Err(Error::range("std", "above 0", format!("{:?}", self.std)));
        }
        Ok(())
    }
}

/// What a checkpoint says of itself, kept in the file's header.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelCard {
    /// What kind of file this is: always `classifier`.
    pub kind: String,
    /// How to build the network.
    pub spec: ModelSpec,
    /// The data set trained on, for instance `fashion-mnist`.
    pub dataset: String,
    /// Height and width of the training images.
    pub image_size: [i64; 2],
    /// Names of the classes in label order.
    pub class_names: Vec<String>,
    /// Seed of the training run.
    pub seed: u64,
    /// The full training configuration.
    pub training: serde_json::Value,
    /// Measured figures by name, for instance `validation_accuracy`.
    pub metrics: BTreeMap<String, f64>,
}

impl ModelCard {
    /// The `kind` of a classifier's card.
    pub const KIND: &'static str = "classifier";
}

/// A built-in classifier.
///
/// While it trains, [`Model::forward`] uses batch statistics. [`Model::freeze`] folds batch norm and turns off weight
/// gradients; attacks, defences and evaluation always see a frozen model.
pub struct Model {
    card: ModelCard,
    store: nn::VarStore,
    network: Box<dyn Network>,
    mean: Tensor,
    inverse_std: Tensor,
}

impl Model {
    /// A freshly initialised model; the weights depend on `card.seed` alone.
    ///
    /// # Errors
    /// If the specification is invalid.
    pub fn new(card: ModelCard, device: Device) -> Result<Self> {
        card.spec.validate()?;
        let store = nn::VarStore::new(device);
        let spec = &card.spec;
        let network = networks::build(&store.root(), spec.architecture, spec.channels, spec.classes);
        initialise(&store, card.seed);
        let row = |values: &[f64]| {
            Tensor::from_slice(values).to_kind(Kind::Float).view([1, -1, 1, 1]).to_device(device)
        };
        let (mean, inverse_std) = (row(&spec.mean), row(&spec.std).reciprocal());
        Ok(Self { card, store, network, mean, inverse_std })
    }

    /// Reads a checkpoint and freezes it.
    ///
    /// # Errors
    /// If the file is missing, damaged, of another kind, or its tensors do not fit its own specification.
    pub fn load(path: &Path, device: Device) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(Error::io(path))?;
        Self::from_bytes(&bytes, path, device)
    }

    /// As [`Model::load`], from memory; `origin` is named in errors.
    ///
    /// # Errors
    /// As [`Model::load`].
    pub fn from_bytes(bytes: &[u8], origin: &Path, device: Device) -> Result<Self> {
        let archive = Archive::<ModelCard>::from_bytes(bytes, origin)?;
        if archive.header.kind != ModelCard::KIND {
            return Err(Error::file(origin, format!("holds a {}, not a classifier", archive.header.kind)));
        }
        let model = Self::new(archive.header, device)?;
        load_variables(&model.store, &archive.tensors)
            .map_err(|error| Error::file(origin, format!("does not fit its own header: {error}")))?;
        Ok(model.freeze())
    }

    /// Writes weights and card, whole or not at all.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn save(&self, path: &Path) -> Result<()> {
        Archive { header: self.card.clone(), tensors: self.tensors() }.save(path)
    }

    /// The weights and running statistics by name.
    pub fn tensors(&self) -> Tensors {
        variables(&self.store)
    }

    /// The card.
    pub fn card(&self) -> &ModelCard {
        &self.card
    }

    /// The card, to add figures to.
    pub fn card_mut(&mut self) -> &mut ModelCard {
        &mut self.card
    }

    /// Its variables, for a training loop.
    pub fn store(&self) -> &nn::VarStore {
        &self.store
    }

    /// Number of trained weights.
    pub fn parameters(&self) -> usize {
        self.store.trainable_variables().iter().map(Tensor::numel).sum()
    }

    /// Folds batch norm into the convolutions and turns off gradients for the weights.
    #[must_use]
    pub fn freeze(mut self) -> Self {
        self.store.freeze();
        tch::no_grad(|| self.network.fold());
        self
    }

    /// Logits in the given mode, the convolutions computed in `kind`.
    ///
    /// # Shapes
    /// `images` `[N, C, H, W]` in `[0, 1]`; the result is `[N, K]`, `f32`.
    pub fn forward(&self, images: &Tensor, mode: Mode, kind: Kind) -> Tensor {
        let standardised = (images - &self.mean) * &self.inverse_std;
        let logits = self.network.forward(&channels_last(&standardised).to_kind(kind), mode);
        logits.to_kind(images.kind())
    }

    /// The same model in double precision, for checking gradients.
    #[must_use]
    pub fn to_double(mut self) -> Self {
        self.store.double();
        self.mean = self.mean.to_kind(Kind::Double);
        self.inverse_std = self.inverse_std.to_kind(Kind::Double);
        self.freeze()
    }
}

impl Classifier for Model {
    fn classes(&self) -> i64 {
        self.card.spec.classes
    }

    fn device(&self) -> Device {
        self.store.device()
    }

    fn logits(&self, images: &Tensor) -> Tensor {
        self.forward(images, Mode::Eval, images.kind())
    }
}
