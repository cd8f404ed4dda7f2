//! Trained restorers: what a file of one says of itself, its weights, and how a batch goes through them.

use std::{collections::BTreeMap, fmt, ops::RangeInclusive, path::Path, str::FromStr};

use serde::{Deserialize, Serialize};
use talion_core::{Archive, Error, Result, Tensors};
use talion_models::training::{initialise, load_variables, variables};
use tch::{Device, Tensor, nn};

use super::{compress::Compressor, denoiser::Denoiser};

/// A network that restores images without knowing of any classifier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Restorer {
    /// Writes an image as bits and rebuilds it from them: for [`Compression`](super::Compression).
    Compressor,
    /// Removes Gaussian noise of a known level: for [`Purification`](super::Purification).
    Denoiser,
}

impl Restorer {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Compressor, Self::Denoiser];
}

impl fmt::Display for Restorer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Compressor => "compressor",
            Self::Denoiser => "denoiser",
        })
    }
}

impl FromStr for Restorer {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|kind| kind.to_string() == text).ok_or_else(|| Error::Unknown {
            what: "restorer",
            found: text.into(),
            known: "compressor, denoiser".into(),
        })
    }
}

/// What a restorer's file says of itself, kept in the file's header.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RestorerCard {
    /// Which network the weights belong to.
    pub kind: Restorer,
    /// Image channels, 1 or 3.
    pub channels: i64,
    /// Channels of the narrowest hidden layers. 4 to 256.
    pub width: i64,
    /// The data set trained on.
    pub dataset: String,
    /// Height and width of the images trained on; others can be restored, too.
    pub image_size: [i64; 2],
    /// Seed of the training run.
    pub seed: u64,
    /// The full training configuration.
    pub training: serde_json::Value,
    /// Measured figures by name.
    pub metrics: BTreeMap<String, f64>,
}

/// Widths that can be built.
pub(super) const WIDTHS: RangeInclusive<i64> = 4..=256;

impl RestorerCard {
    /// Checks what the network is built from.
    ///
    /// # Errors
    /// Names the first value that cannot be used.
    pub fn validate(&self) -> Result<()> {
        if !matches!(self.channels, 1 | 3) {
            return Err(Error::range("channels", "1 or 3", self.channels));
        }
        if !WIDTHS.contains(&self.width) {
            return Err(Error::range("the restorer's width", "4 to 256", self.width));
        }
        Ok(())
    }
}

/// A restorer with its weights. To defend with it, put it into a [`Compression`](super::Compression) or a
/// [`Purification`](super::Purification).
pub struct RestorerNetwork {
    pub(super) card: RestorerCard,
    pub(super) store: nn::VarStore,
    pub(super) layers: Layers,
}

/// The network that a card asks for.
pub(super) enum Layers {
    Compressor(Compressor),
    Denoiser(Denoiser),
}

impl RestorerNetwork {
    /// A freshly initialised network; the weights depend on `card.seed` alone.
    ///
    /// # Errors
    /// If the card asks for what cannot be built.
    pub fn new(card: RestorerCard, device: Device) -> Result<Self> {
        card.validate()?;
        let store = nn::VarStore::new(device);
        let root = store.root();
        let layers = match card.kind {
            Restorer::Compressor => Layers::Compressor(Compressor::new(&root, card.channels, card.width)),
            Restorer::Denoiser => Layers::Denoiser(Denoiser::new(&root, card.channels, card.width)),
        };
        initialise(&store, card.seed);
        tch::no_grad(|| match &layers {
            Layers::Compressor(layers) => layers.start_near_grey(),
            Layers::Denoiser(layers) => layers.start_as_identity(),
        });
        Ok(Self { card, store, layers })
    }

    /// Reads a restorer's file; its weights take no gradients.
    ///
    /// # Errors
    /// If the file is missing, damaged, of another kind, or its tensors do not fit its own card.
    pub fn load(path: &Path, device: Device) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(Error::io(path))?;
        Self::from_bytes(&bytes, path, device)
    }

    /// As [`RestorerNetwork::load`], from memory; `origin` is named in errors.
    ///
    /// # Errors
    /// As [`RestorerNetwork::load`].
    pub fn from_bytes(bytes: &[u8], origin: &Path, device: Device) -> Result<Self> {
        let archive = Archive::<RestorerCard>::from_bytes(bytes, origin)?;
        let unfit = |error: Error| Error::file(origin, format!("does not fit its own header: {error}"));
        let network = Self::new(archive.header, device).map_err(unfit)?;
        load_variables(&network.store, &archive.tensors).map_err(unfit)?;
        Ok(network.freeze())
    }

    /// Writes weights and card, whole or not at all.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn save(&self, path: &Path) -> Result<()> {
        Archive { header: self.card.clone(), tensors: self.tensors() }.save(path)
    }

    /// Turns off gradients for the weights.
    #[must_use]
    pub fn freeze(mut self) -> Self {
        self.store.freeze();
        self
    }

    /// The same network in double precision, for checking gradients.
    #[must_use]
    pub fn to_double(mut self) -> Self {
        self.store.double();
        self.freeze()
    }

    /// The weights by name.
    pub fn tensors(&self) -> Tensors {
        variables(&self.store)
    }

    /// The card.
    pub fn card(&self) -> &RestorerCard {
        &self.card
    }

    /// The card, to add figures to.
    pub fn card_mut(&mut self) -> &mut RestorerCard {
        &mut self.card
    }

    /// Its variables, for a training loop.
    pub fn store(&self) -> &nn::VarStore {
        &self.store
    }

    /// Number of weights.
    pub fn parameters(&self) -> usize {
        self.store.variables().values().map(Tensor::numel).sum()
    }
}

/// That a restorer is of the wrong kind.
pub(super) fn wrong_kind(wanted: Restorer, found: Restorer) -> Error {
    Error::range("the restorer", format!("a {wanted}"), format!("a {found}"))
}

/// Restores each row alone on the CPU, where libtorch chooses a convolution, and with it the rounding, by the size of the
/// batch: a row that sits near a threshold would else depend on its batch. Accelerators get the batch whole, since small
/// launches are all they would do; their results depend on the batch by rounding.
///
/// # Shapes
/// `images` `[N, C, H, W]`; `restore` keeps the shape.
pub(super) fn row_by_row(images: &Tensor, restore: impl Fn(&Tensor) -> Tensor) -> Tensor {
    if images.numel() == 0 {
        return images.shallow_clone();
    }
    if images.device() != Device::Cpu {
        return restore(images);
    }
    let restored: Vec<Tensor> = images.split(1, 0).iter().map(restore).collect();
    Tensor::cat(&restored, 0)
}

/// Networks for the tests of those that use them.
#[cfg(test)]
pub(super) mod testing {
    use talion_core::gaussian_noise;

    use super::*;

    pub(crate) fn card(kind: Restorer, channels: i64) -> RestorerCard {
        RestorerCard {
            kind,
            channels,
            width: 8,
            dataset: "none".into(),
            image_size: [12, 12],
            seed: 2,
            training: serde_json::Value::Null,
            metrics: BTreeMap::new(),
        }
    }

    pub(crate) fn fresh(kind: Restorer, channels: i64) -> RestorerNetwork {
        RestorerNetwork::new(card(kind, channels), Device::Cpu).unwrap().freeze()
    }

    /// A network with weights that do something everywhere.
    pub(crate) fn busy(kind: Restorer, channels: i64) -> RestorerNetwork {
        let network = fresh(kind, channels);
        tch::no_grad(|| {
            for (name, mut tensor) in network.store.variables() {
                let noise = gaussian_noise(&tensor.size(), &[3], 1, &name, 0).squeeze_dim(0);
                let moved = &tensor + noise * 0.1;
                tensor.copy_(&moved);
            }
        });
        network
    }
}

#[cfg(test)]
mod tests {
    use super::{
        testing::{busy, card},
        *,
    };
    use crate::baselines::testing::picture;

    #[test]
    fn files_round_trip() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("restorer.safetensors");
        for kind in Restorer::ALL {
            let network = busy(kind, 3);
            network.save(&path).unwrap();
            let back = RestorerNetwork::load(&path, Device::Cpu).unwrap();
            assert_eq!(back.card(), network.card());
            assert_eq!(back.tensors(), network.tensors());
            assert!(back.store().variables().values().all(|weight| !weight.requires_grad()));
        }
    }

    #[test]
    fn files_that_do_not_fit_are_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("restorer.safetensors");
        let refused = || RestorerNetwork::load(&path, Device::Cpu).err().unwrap().to_string();
        std::fs::write(&path, b"not a network").unwrap();
        assert!(refused().contains("restorer.safetensors"));
        let tensors = busy(Restorer::Denoiser, 1).tensors();
        for header in [
            card(Restorer::Compressor, 1),
            card(Restorer::Denoiser, 3),
            card(Restorer::Denoiser, 2),
            RestorerCard { width: 1 << 40, ..card(Restorer::Denoiser, 1) },
        ] {
            let tensors = tensors.iter().map(|(name, tensor)| (name.clone(), tensor.shallow_clone()));
            Archive { header, tensors: tensors.collect() }.save(&path).unwrap();
            let error = refused();
            assert!(error.contains("restorer.safetensors") && error.contains("own header"), "{error}");
        }
    }

    #[test]
    fn names_round_trip() {
        for kind in Restorer::ALL {
            assert_eq!(kind.to_string().parse::<Restorer>().unwrap(), kind);
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.to_string());
        }
        assert!("autoencoder".parse::<Restorer>().is_err());
    }

    #[test]
    fn rows_are_restored_one_by_one() {
        let x = picture([3, 1, 4, 5], 0.0, 1.0);
        let centred = |rows: &Tensor| {
            assert_eq!(rows.size(), [1, 1, 4, 5]);
            rows - rows.mean(None)
        };
        let together = row_by_row(&x, centred);
        assert_eq!(together.narrow(0, 2, 1), centred(&x.narrow(0, 2, 1)));
        let none = x.narrow(0, 0, 0);
        assert_eq!(row_by_row(&none, centred).size(), [0, 1, 4, 5]);
    }
}
