//! What a training run reads, and the untrained network that follows from it.

use std::{collections::BTreeMap, path::Path};

use serde_json::json;
use talion_core::{Classifier, Error, Result};
use talion_data::Dataset;
use tch::Kind;

use crate::trn::{Trn, TrnCard, TrnSpec};

/// What a training run reads and where it keeps its state.
pub struct TrnSources<'a> {
    /// The classifier to defend, frozen.
    pub classifier: &'a dyn Classifier,
    /// Further classifiers to defend at the same time, frozen; only [`super::train_trn`] takes them.
    pub others: &'a [&'a dyn Classifier],
    /// What the classifiers are, for the network's card.
    pub architecture: String,
    /// The whole training split; validation images are set aside from it.
    pub data: &'a Dataset,
    /// A trained one-stream network, for specifications with a first pass.
    pub first: Option<&'a Trn>,
    /// Where the state of the unfinished run is kept.
    pub snapshot: Option<&'a Path>,
    /// A folder for attacked images, which trainings of other networks on the same attacks share.
    pub cache: Option<&'a Path>,
}

impl TrnSources<'_> {
    /// A new network of this specification, its first pass in place.
    pub(super) fn network(&self, spec: &TrnSpec, seed: u64, training: serde_json::Value) -> Result<Trn> {
        let card = TrnCard {
            kind: TrnCard::KIND.into(),
            spec: spec.clone(),
            classes: self.classifier.classes(),
            classifier: self.architecture.clone(),
            dataset: self.data.name().to_owned(),
            seed,
            training,
            metrics: BTreeMap::new(),
        };
        let mut trn = Trn::new(card, self.classifier.device())?;
        match (&spec.first, self.first) {
            (Some(_), Some(first)) => trn.set_first(first)?,
            (Some(_), None) => {
                return Err(Error::Refused(format!(
                    "the estimator {} needs a trained one-stream network for its first pass",
                    spec.estimator
                )));
            }
            (None, _) => {}
        }
        Ok(trn)
    }

    /// What tells these data and each classifier from others, `train` being the images that are trained on: one value a
    /// classifier, the first one's first.
    pub(super) fn identities(&self, train: &Dataset) -> Result<Vec<serde_json::Value>> {
        let identity = |classifier: &dyn Classifier| {
            Ok(json!({ "data": self.data.sha256(), "classifier": fingerprint(classifier, train)? }))
        };
        std::iter::once(&self.classifier).chain(self.others).map(|classifier| identity(*classifier)).collect()
    }
}

/// The classifier's answers to a few images, bit for bit: another classifier gives others.
fn fingerprint(classifier: &dyn Classifier, data: &Dataset) -> Result<Vec<u32>> {
    let (images, _) = data.tensor(&[0, 1]).map_err(Error::other)?;
    let logits = tch::no_grad(|| classifier.logits(&images.to_device(classifier.device())));
    let values = Vec::<f32>::try_from(logits.to_kind(Kind::Float).flatten(0, -1))?;
    Ok(values.into_iter().map(f32::to_bits).collect())
}
