//! Classifier and restoration network, and what they say of images.

use std::sync::Arc;

use serde::Serialize;
use talion_core::{Classifier, Error, Result};
use talion_defenses::{EstimatorSpec, Trn, gradient_map::MapGraph};
use talion_eval::{Calibration, fingerprint, suspicion};
use talion_models::Model;
use tch::{Device, Kind, Tensor};
use utoipa::ToSchema;

/// The networks of a guard. Each thread that uses some loads its own.
pub struct Networks {
    /// The classifier, frozen.
    pub classifier: Model,
    /// The restoration network in front of it.
    pub trn: Trn,
}

/// What a client wants beside the answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wants {
    /// The restored image.
    pub restored: bool,
    /// The gradient map.
    pub map: bool,
}

/// What the guard says of one image.
#[derive(Clone, Debug)]
pub struct Verdict {
    /// Probabilities without the defence, `[K]`.
    pub bare: Vec<f32>,
    /// Probabilities with the defence, `[K]`.
    pub defended: Vec<f32>,
    /// How far restoration moved the prediction.
    pub score: f64,
    /// The largest change of a value.
    pub largest_change: f32,
    /// The restored image, `[C, H, W]` in `[0, 1]`, if wanted.
    pub restored: Option<Vec<f32>>,
    /// The first gradient map, `[C, H, W]` in `[-1, 1]`, if wanted and there is one.
    pub map: Option<Vec<f32>>,
}

/// Height, width and channels that the networks take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct InputShape {
    /// 1 or 3 for images; more for tensors only.
    pub channels: usize,
    /// In pixels.
    pub height: usize,
    /// In pixels.
    pub width: usize,
}

impl InputShape {
    /// Values of one image.
    pub fn len(self) -> usize {
        self.channels * self.height * self.width
    }
}

/// A classifier behind a restoration network.
pub struct Guard {
    networks: Networks,
    shape: InputShape,
}

impl Guard {
    /// Checks that the networks belong together, and lets them answer once, so that the first request need not wait for what
    /// libtorch prepares.
    ///
    /// # Errors
    /// If they have different numbers of classes or channels, or the network was told the true labels.
    pub fn new(networks: Networks) -> Result<Self> {
        let (model, trn) = (networks.classifier.card(), networks.trn.card());
        if model.spec.classes != trn.classes || model.spec.channels != trn.spec.channels {
            return Err(Error::Refused(format!(
                "the TRN was trained for {} classes and {} channels, and the classifier has {} and {}",
                trn.classes, trn.spec.channels, model.spec.classes, model.spec.channels
            )));
        }
        if trn.spec.estimator == EstimatorSpec::Oracle {
            return Err(Error::Refused("a network that is told the true labels guards nothing".into()));
        }
        let size = |value: i64| {
            usize::try_from(value)
                .ok()
                .filter(|value| (1..=16_384).contains(value))
                .ok_or_else(|| Error::range("the classifier's image size", "1 to 16384", value))
        };
        let shape = InputShape {
            channels: size(model.spec.channels)?,
            height: size(model.image_size[0])?,
            width: size(model.image_size[1])?,
        };
        let guard = Self { networks, shape };
        guard.judge(&vec![0.0; shape.len()], 1, Wants::default())?;
        Ok(guard)
    }

    /// What images have to be.
    pub fn shape(&self) -> InputShape {
        self.shape
    }

    /// The networks.
    pub fn networks(&self) -> &Networks {
        &self.networks
    }

    /// Images as a tensor where the networks are.
    ///
    /// # Shapes
    /// `values` holds `count` images `[C, H, W]`; the result is `[count, C, H, W]`.
    pub fn tensor(&self, values: &[f32], count: usize) -> Tensor {
        let shape = self.shape;
        let sizes = [count, shape.channels, shape.height, shape.width].map(|size| size as i64);
        Tensor::from_slice(values).view(sizes).to_device(self.networks.classifier.device())
    }

    /// Answers with and without the defence.
    ///
    /// # Shapes
    /// `values` holds `count` images `[C, H, W]` in `[0, 1]`.
    ///
    /// # Errors
    /// If libtorch fails.
    pub fn judge(&self, values: &[f32], count: usize, wants: Wants) -> Result<Vec<Verdict>> {
        tch::no_grad(|| self.judge_tensor(&self.tensor(values, count), wants))
    }

    /// As [`Guard::judge`], of images `[N, C, H, W]`.
    ///
    /// # Errors
    /// If libtorch fails.
    pub fn judge_tensor(&self, images: &Tensor, wants: Wants) -> Result<Vec<Verdict>> {
        let Networks { classifier, trn } = &self.networks;
        let prepared = trn.prepare(classifier, images, MapGraph::Constant, None);
        let restored = trn.restore_prepared(images, &prepared);
        let [bare, defended] = [images, &restored].map(|images| classifier.logits(images));
        let channels = self.shape.channels as i64;
        let map = prepared.maps.as_ref().filter(|maps| wants.map && maps.size()[1] >= channels);
        let columns = Columns {
            bare: rows(&bare.softmax(1, Kind::Float))?,
            defended: rows(&defended.softmax(1, Kind::Float))?,
            scores: Vec::try_from(suspicion(&bare, &defended).to_device(Device::Cpu))?,
            changes: rows(&(&restored - images).abs().amax([1_i64, 2, 3].as_slice(), false))?,
            restored: wants.restored.then(|| rows(&restored)).transpose()?,
            maps: map.map(|maps| rows(&maps.narrow(1, 0, channels))).transpose()?,
        };
        Ok(columns.verdicts(self.shape.len(), classifier.classes() as usize))
    }
}

/// The answers to a batch, all rows of each kind in one piece.
struct Columns {
    bare: Vec<f32>,
    defended: Vec<f32>,
    scores: Vec<f64>,
    changes: Vec<f32>,
    restored: Option<Vec<f32>>,
    maps: Option<Vec<f32>>,
}

impl Columns {
    fn verdicts(&self, values: usize, classes: usize) -> Vec<Verdict> {
        let part = |all: &[f32], row: usize, length: usize| all[row * length..(row + 1) * length].to_vec();
        let verdict = |row: usize| Verdict {
            bare: part(&self.bare, row, classes),
            defended: part(&self.defended, row, classes),
            score: self.scores[row],
            largest_change: self.changes[row],
            restored: self.restored.as_ref().map(|all| part(all, row, values)),
            map: self.maps.as_ref().map(|all| part(all, row, values)),
        };
        (0..self.scores.len()).map(verdict).collect()
    }
}

fn rows(tensor: &Tensor) -> Result<Vec<f32>> {
    let flat = tensor.to_device(Device::Cpu).to_kind(Kind::Float).contiguous().flatten(0, -1);
    Ok(Vec::try_from(flat)?)
}

/// What the networks are, for whoever asks.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ModelFacts {
    /// Data set and architecture.
    pub name: String,
    /// Number of classes.
    pub classes: usize,
    /// Their names in label order; empty if the classifier's file has none.
    pub class_names: Vec<String>,
    /// What images become before the networks see them.
    pub input: InputShape,
    /// The classifier.
    pub classifier: ClassifierFacts,
    /// The restoration network.
    pub trn: TrnFacts,
}

/// What the classifier is.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ClassifierFacts {
    /// Family and width.
    pub architecture: String,
    /// What it was trained on.
    pub dataset: String,
    /// Number of weights and running statistics.
    pub weights: usize,
    /// Of its weights.
    pub sha256: String,
}

/// What the restoration network is.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct TrnFacts {
    /// Where its gradient maps come from.
    pub estimator: String,
    /// Number of weights, the first pass included.
    pub weights: usize,
    /// Of its weights.
    pub sha256: String,
}

impl ModelFacts {
    /// Describes the networks.
    ///
    /// # Errors
    /// If weights cannot be read.
    pub fn new(guard: &Guard) -> Result<Self> {
        let Networks { classifier, trn } = guard.networks();
        let card = classifier.card();
        let tensors = classifier.tensors();
        Ok(Self {
            name: format!("{} {}", card.dataset, card.spec.architecture),
            classes: card.spec.classes as usize,
            class_names: card.class_names.clone(),
            input: guard.shape(),
            classifier: ClassifierFacts {
                architecture: card.spec.architecture.to_string(),
                dataset: card.dataset.clone(),
                weights: tensors.values().map(Tensor::numel).sum(),
                sha256: fingerprint(&[&classifier.identity()])?,
            },
            trn: TrnFacts {
                estimator: trn.card().spec.estimator.to_string(),
                weights: trn.parameters(),
                sha256: fingerprint(&[&trn.tensors()])?,
            },
        })
    }

    /// The name of a class, or its number.
    pub fn class_name(&self, label: usize) -> String {
        self.class_names.get(label).cloned().unwrap_or_else(|| label.to_string())
    }
}

/// The calibration that answers are judged by, with the rate in force.
#[derive(Clone)]
pub struct Yardstick {
    /// Scores of clean images.
    pub calibration: Arc<Calibration>,
    /// How many clean images may be called suspicious.
    pub rate: f64,
}
