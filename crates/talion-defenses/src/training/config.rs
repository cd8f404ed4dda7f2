//! How to train a restoration network.

use serde::{Deserialize, Serialize};
use talion_core::{Error, Result};
use talion_data::Augmentation;

use super::Mixture;
use crate::{gradient_map::EstimatorSpec, trn::TrnSpec};

/// What a restored image is punished for.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LossWeights {
    /// Mean absolute difference to the clean image. Default 10.
    pub pixel: f64,
    /// Kullback-Leibler divergence of the classifier's answer on the restored image from that on the clean one, which
    /// asks for the classifier's own view of the image rather than for its pixels. Default 1.
    pub logit: f64,
    /// Cross-entropy of the classifier's answer on the restored image with the true label. Default 0.5.
    pub classification: f64,
    /// Cross-entropy of the gate with whether the image has been attacked. Default 0.5.
    #[serde(default)]
    pub detection: f64,
}

impl Default for LossWeights {
    fn default() -> Self {
        Self { pixel: 10.0, logit: 1.0, classification: 0.5, detection: 0.5 }
    }
}

/// How to train a restoration network.
///
/// Images are attacked in rounds: a pool of training images is attacked once, then shown `replays` times. Attacking
/// costs several times what a training step costs, and the attacked classifier never changes, so a pool does not age.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrnTraining {
    /// The network.
    pub spec: TrnSpec,
    /// What it is shown.
    pub mixture: Mixture,
    /// What it is punished for.
    pub losses: LossWeights,
    /// Images attacked in a round.
    pub pool: usize,
    /// How often a round's images are shown.
    pub replays: u64,
    /// Rounds.
    pub rounds: u64,
    /// Images a step.
    pub batch_size: usize,
    /// Highest learning rate of AdamW's one cycle.
    pub peak_rate: f64,
    /// Share of the steps during which the rate rises.
    pub warmup: f64,
    /// Weight decay.
    pub weight_decay: f64,
    /// Decay a step of the exponential average of the weights that is measured and kept.
    pub average: f64,
    /// Stops after so many rounds without a better validation score; `None` never.
    pub patience: Option<u64>,
    /// Training images set aside to measure on; the classifier's own, so that neither has seen them.
    pub validation: usize,
    /// Seed of the validation split: the classifier's.
    pub split_seed: u64,
    /// How many of the images set aside are attacked and measured after each round.
    pub validation_sample: usize,
    /// What is done to each training image before it is attacked.
    pub augmentation: Augmentation,
    /// Seed of initial weights, order, augmentation and attacks.
    pub seed: u64,
}

impl TrnTraining {
    /// The default training of `spec` beside a classifier trained with `validation` images set aside by `split_seed`.
    pub fn new(spec: TrnSpec, validation: usize, split_seed: u64) -> Self {
        Self {
            spec,
            mixture: Mixture::default(),
            losses: LossWeights::default(),
            pool: 8192,
            replays: 4,
            rounds: 3,
            batch_size: 64,
            peak_rate: 2e-3,
            warmup: 0.1,
            weight_decay: 1e-4,
            average: 0.995,
            patience: None,
            validation,
            split_seed,
            validation_sample: 500,
            augmentation: Augmentation::default(),
            seed: 1,
        }
    }

    /// Checks every value.
    ///
    /// # Errors
    /// Names the first that cannot be used; refuses to train on the oracle's maps, which leak the label.
    pub fn validate(&self) -> Result<()> {
        self.spec.validate()?;
        if self.spec.estimator == EstimatorSpec::Oracle {
            return Err(Error::Refused(
                "the oracle's maps hold the true label: a network trained on them learns to read it and fails \
                 without it. The oracle is for diagnosis with `talion evaluate` only"
                    .into(),
            ));
        }
        let losses =
            [self.losses.pixel, self.losses.logit, self.losses.classification, self.losses.detection];
        let checks = [
            ("pool", self.pool >= self.batch_size, "at least the batch size"),
            ("replays", self.replays >= 1, "at least 1"),
            ("rounds", self.rounds >= 1, "at least 1"),
            ("batch_size", (1..=65_536).contains(&self.batch_size), "1 to 65536"),
            ("peak_rate", self.peak_rate > 0.0 && self.peak_rate.is_finite(), "above 0"),
            ("warmup", (0.0..1.0).contains(&self.warmup), "0 to below 1"),
            ("weight_decay", (0.0..1.0).contains(&self.weight_decay), "0 to below 1"),
            ("average", (0.0..1.0).contains(&self.average), "0 to below 1"),
            ("validation_sample", (1..=self.validation).contains(&self.validation_sample), "1 to validation"),
            ("losses", losses.iter().all(|&weight| weight >= 0.0 && weight.is_finite()), "at least 0"),
            ("losses", losses.iter().sum::<f64>() > 0.0, "not all 0"),
        ];
        match checks.into_iter().find(|(_, holds, _)| !holds) {
            Some((name, _, expected)) => {
                let found = serde_json::to_value(self).map(|all| all[name].to_string()).unwrap_or_default();
                Err(Error::range(name, expected, found))
            }
            None => Ok(()),
        }
    }
}
