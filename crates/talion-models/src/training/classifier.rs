//! Training a classifier: SGD with Nesterov momentum, one cycle, light augmentation.

use std::{collections::BTreeMap, ops::ControlFlow, path::Path, time::Instant};

use serde::{Deserialize, Serialize};
use serde_json::json;
use talion_core::{Classifier, Error, Result, Tensors, shuffled};
use talion_data::{Augmentation, Dataset, DatasetInfo};
use tch::{Device, Tensor};

use super::{
    Adversary, Event, Observer, Optimizer, Parameters, Precision, RobustLoss, Snapshot, one_cycle,
    robust::{Pair, gradient_at_perturbed},
};
use crate::{Architecture, Mode, Model, ModelCard, ModelSpec, import::ChannelOrder};

/// How to train a classifier.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClassifierTraining {
    /// The network.
    pub architecture: Architecture,
    /// Passes over the training images.
    pub epochs: u64,
    /// Images a step.
    pub batch_size: usize,
    /// Highest learning rate of the cycle.
    pub peak_rate: f64,
    /// Share of the steps during which the rate rises.
    pub warmup: f64,
    /// Nesterov momentum.
    pub momentum: f64,
    /// Weight decay of convolutions and linear layers.
    pub weight_decay: f64,
    /// Label smoothing (Szegedy et al. 2016), 0 for none.
    pub label_smoothing: f64,
    /// Decay a step of an exponential average of the weights that replaces them at the end; `None` for none.
    pub average: Option<f64>,
    /// What is done to each training image.
    pub augmentation: Augmentation,
    /// Progressive resizing: the share of the side of an image that training starts with. It grows evenly to 1, which
    /// it keeps for the last quarter of the epochs; 1 trains at full size throughout.
    #[serde(default = "full_size")]
    pub smallest: f64,
    /// The attack, with its budget, that training images go through first, in words; `None` for training on images as they
    /// are. What carries it out is given to [`train_classifier_against`] or [`train_robust_classifier`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adversarial: Option<String>,
    /// What adversarial training minimises. Anything but [`RobustLoss::Madry`] needs [`Self::adversarial`].
    #[serde(default, skip_serializing_if = "RobustLoss::is_madry")]
    pub loss: RobustLoss,
    /// Adversarial weight perturbation (Wu et al. 2020): how far weights are moved before the gradient is taken, as a share of
    /// each weight tensor's length, above 0 and below 1, for instance 0.005; `None` for none. Needs [`Self::adversarial`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub awp: Option<f64>,
    /// Arithmetic of the convolutions.
    pub precision: Precision,
    /// Training images set aside to measure on.
    pub validation: usize,
    /// Seed of initial weights, order, augmentation and validation split.
    pub seed: u64,
}

impl Default for ClassifierTraining {
    fn default() -> Self {
        Self {
            architecture: Architecture { family: crate::Family::ResNet18, width: 16 },
            epochs: 10,
            batch_size: 128,
            peak_rate: 0.1,
            warmup: 0.25,
            momentum: 0.9,
            weight_decay: 5e-4,
            label_smoothing: 0.0,
            average: None,
            augmentation: Augmentation { pad: 2, flip: true, cutout: 0 },
            smallest: full_size(),
            adversarial: None,
            loss: RobustLoss::Madry,
            awp: None,
            precision: Precision::Auto,
            validation: 2000,
            seed: 1,
        }
    }
}

/// What checkpoints say that were written before there was progressive resizing.
fn full_size() -> f64 {
    1.0
}

impl ClassifierTraining {
    /// Checks every value.
    ///
    /// # Errors
    /// Names the first that cannot be used.
    pub fn validate(&self) -> Result<()> {
        let checks = [
            ("epochs", self.epochs >= 1, "at least 1"),
            ("batch_size", (2..=65_536).contains(&self.batch_size), "2 to 65536"),
            ("peak_rate", self.peak_rate > 0.0 && self.peak_rate.is_finite(), "above 0"),
            ("warmup", (0.0..1.0).contains(&self.warmup), "0 to below 1"),
            ("momentum", (0.0..1.0).contains(&self.momentum), "0 to below 1"),
            ("weight_decay", (0.0..1.0).contains(&self.weight_decay), "0 to below 1"),
            ("label_smoothing", (0.0..1.0).contains(&self.label_smoothing), "0 to below 1"),
            ("smallest", (0.25..=1.0).contains(&self.smallest), "0.25 to 1"),
            ("average", self.average.is_none_or(|decay| (0.0..1.0).contains(&decay)), "0 to below 1"),
            ("loss", self.loss.is_usable(), "a loss whose weight is a finite number above 0"),
            ("awp", self.awp.is_none_or(|gamma| gamma > 0.0 && gamma < 1.0), "above 0 and below 1"),
        ];
        match checks.into_iter().find(|(_, holds, _)| !holds) {
            Some((name, _, expected)) => {
                let found = serde_json::to_value(self).map(|all| all[name].to_string()).unwrap_or_default();
                Err(Error::range(name, expected, found))
            }
            None if self.adversarial.is_none() && (!self.loss.is_madry() || self.awp.is_some()) => {
                Err(Error::Refused(
                    "TRADES, MART and adversarial weight perturbation are ways to train on attacked images: \
                     name the attack, too"
                        .into(),
                ))
            }
            None => Ok(()),
        }
    }
}

impl ClassifierTraining {
    /// The share of an image's side that is seen in `epoch`.
    fn share_of_side(&self, epoch: u64) -> f64 {
        let growing = self.epochs - self.epochs.div_ceil(4);
        if epoch >= growing {
            return 1.0;
        }
        self.smallest + (1.0 - self.smallest) * epoch as f64 / growing as f64
    }
}

/// Training images that are about to be shown, for an attacker to change.
pub struct Shown<'a> {
    /// `[N, C, H, W]` in `[0, 1]`, augmented, on the model's device.
    pub images: &'a Tensor,
    /// `[N]`, `i64`.
    pub labels: &'a Tensor,
    /// The samples' ids.
    pub ids: &'a [u64],
    /// The seed of the training run.
    pub seed: u64,
    /// How often these samples have been shown before.
    pub epoch: u64,
}

/// Attacks images on the model as it is now, with its running statistics.
pub type Perturb<'a> = dyn Fn(&Model, &Shown<'_>) -> Result<Tensor> + 'a;

/// The ids of these places of `data`.
fn ids(data: &Dataset, indices: &[usize]) -> Vec<u64> {
    indices.iter().map(|&index| data.ids()[index]).collect()
}

/// Images shrunk to a share of their sides, by averaging areas.
fn shrunk(images: Tensor, share: f64) -> Tensor {
    if share >= 1.0 {
        return images;
    }
    let size = images.size();
    let side = |full: i64| ((full as f64 * share).round() as i64).max(1);
    images.adaptive_avg_pool2d([side(size[2]), side(size[3])])
}

/// Trains a classifier on `data` and returns it frozen, with its validation accuracy on its card.
///
/// With a `snapshot` path the run can be killed at any moment and goes on from its last snapshot with the same result,
/// because order and augmentation depend on seed, epoch and sample alone.
///
/// # Errors
/// If the configuration does not fit, a snapshot cannot be used, or the observer asked to stop.
pub fn train_classifier(
    config: &ClassifierTraining,
    data: &Dataset,
    device: Device,
    snapshot: Option<&Path>,
    observe: &mut Observer<'_>,
) -> Result<Model> {
    train_classifier_against(None, config, data, device, snapshot, observe)
}

/// As [`train_classifier`], on images that `perturb` has attacked: adversarial training (Madry et al., "Towards Deep Learning
/// Models Resistant to Adversarial Attacks", ICLR 2018, section 2.1). The attack sees the model with its running
/// statistics, as it will be used. After each epoch the first validation images are attacked, too.
///
/// # Errors
/// As [`train_classifier`]; also if exactly one of `perturb` and `config.adversarial` is given, the attack fails, or
/// `config.loss` is TRADES, which needs [`train_robust_classifier`].
pub fn train_classifier_against(
    perturb: Option<&Perturb<'_>>,
    config: &ClassifierTraining,
    data: &Dataset,
    device: Device,
    snapshot: Option<&Path>,
    observe: &mut Observer<'_>,
) -> Result<Model> {
    let adversary = perturb.map(|perturb| Adversary { perturb, ascent: None });
    train_robust_classifier(adversary.as_ref(), config, data, device, snapshot, observe)
}

/// As [`train_classifier_against`], for every [`RobustLoss`].
///
/// # Errors
/// As [`train_classifier`]; also if exactly one of `adversary` and `config.adversarial` is given, the attack fails, or the
/// adversary's ascent is missing for TRADES or given for another loss.
pub fn train_robust_classifier(
    adversary: Option<&Adversary<'_>>,
    config: &ClassifierTraining,
    data: &Dataset,
    device: Device,
    snapshot: Option<&Path>,
    observe: &mut Observer<'_>,
) -> Result<Model> {
    config.validate()?;
    if adversary.is_some() != config.adversarial.is_some() {
        return Err(Error::Refused(
            "an attack to train against and its name in the configuration come together".into(),
        ));
    }
    if let Some(adversary) = adversary {
        adversary.check(config.loss)?;
    }
    if data.len() < config.validation + config.batch_size {
        let expected =
            format!("more than validation + batch size = {}", config.validation + config.batch_size);
        return Err(Error::range("the number of training images", expected, data.len()));
    }
    let (train, validation) = data.split_validation(config.validation, config.seed).map_err(Error::other)?;
    let run = json!({ "config": config, "data": data.sha256() });
    let trainer = Trainer::new(config, adversary.copied(), &train, device, Snapshot::new(snapshot, run))?;
    trainer.run(&train, &validation, observe)
}

struct Trainer<'a> {
    config: &'a ClassifierTraining,
    adversary: Option<Adversary<'a>>,
    model: Model,
    parameters: Parameters,
    optimizer: Optimizer,
    average: Option<Tensor>,
    snapshot: Snapshot,
    steps_per_epoch: u64,
    /// An epoch and its order of images, kept while that epoch lasts.
    order: (Option<u64>, Vec<usize>),
}

/// Steps between two reports; the loss is only read from the device then.
const REPORT_EVERY: u64 = 10;
/// Seconds between two snapshots.
const SNAPSHOT_SECONDS: u64 = 60;
/// Validation images that are attacked after each epoch of adversarial training.
const ATTACKED_SAMPLE: usize = 512;

impl<'a> Trainer<'a> {
    fn new(
        config: &'a ClassifierTraining,
        adversary: Option<Adversary<'a>>,
        train: &Dataset,
        device: Device,
        snapshot: Snapshot,
    ) -> Result<Self> {
        let statistics = DatasetInfo::of(train);
        let (mean, std) = (statistics.means, statistics.stds);
        let card = ModelCard {
            kind: ModelCard::KIND.into(),
            spec: ModelSpec {
                architecture: config.architecture.into(),
                channels: train.channels() as i64,
                classes: train.classes() as i64,
                mean,
                std,
                order: ChannelOrder::Rgb,
            },
            dataset: train.name().to_owned(),
            image_size: [train.height() as i64, train.width() as i64],
            class_names: train.class_names().to_vec(),
            seed: config.seed,
            training: serde_json::to_value(config).unwrap_or_default(),
            metrics: BTreeMap::new(),
        };
        let model = Model::new(card, device)?;
        let parameters = Parameters::new(model.store());
        let optimizer = Optimizer::sgd(&parameters, config.momentum, config.weight_decay);
        let average = config.average.map(|_| parameters.flat().copy());
        // A last partial batch is left out: its batch statistics would be noisy.
        let steps_per_epoch = (train.len() / config.batch_size) as u64;
        Ok(Self {
            config,
            adversary,
            model,
            parameters,
            optimizer,
            average,
            snapshot,
            steps_per_epoch,
            order: (None, Vec::new()),
        })
    }

    fn run(mut self, train: &Dataset, validation: &Dataset, observe: &mut Observer<'_>) -> Result<Model> {
        let total = self.steps_per_epoch * self.config.epochs;
        let mut step = self.resume(observe)?;
        let (mut reported, mut saved) = ((Instant::now(), step), Instant::now());
        while step < total {
            let loss = self.step(train, step, total)?;
            step += 1;
            let epoch_ends = step.is_multiple_of(self.steps_per_epoch);
            if step.is_multiple_of(REPORT_EVERY) || epoch_ends {
                let images = (step - reported.1) * self.config.batch_size as u64;
                let images_per_second = images as f64 / reported.0.elapsed().as_secs_f64();
                reported = (Instant::now(), step);
                let event = Event::Progress { step, total, loss: loss.double_value(&[]), images_per_second };
                self.tell(observe, step, &event)?;
            }
            if epoch_ends {
                let metrics = self.measure(validation)?;
                let event = Event::Validated { epoch: step / self.steps_per_epoch, step, metrics };
                self.tell(observe, step, &event)?;
                reported.0 = Instant::now();
            }
            if saved.elapsed().as_secs() >= SNAPSHOT_SECONDS {
                self.save(step)?;
                saved = Instant::now();
            }
        }
        self.finish(validation)
    }

    fn resume(&mut self, observe: &mut Observer<'_>) -> Result<u64> {
        let Some((step, mut extra)) = self.snapshot.restore(&mut self.parameters, &mut self.optimizer)?
        else {
            return Ok(0);
        };
        if let (Some(average), Some(found)) = (&mut self.average, extra.remove("average")) {
            average.copy_(&found);
        }
        self.tell(observe, step, &Event::Resumed { step })?;
        Ok(step)
    }

    fn step(&mut self, train: &Dataset, step: u64, total: u64) -> Result<Tensor> {
        let config = self.config;
        let (epoch, place) = (step / self.steps_per_epoch, (step % self.steps_per_epoch) as usize);
        if self.order.0 != Some(epoch) {
            self.order = (Some(epoch), shuffled(train.len(), config.seed, "order", epoch));
        }
        let indices = &self.order.1[place * config.batch_size..(place + 1) * config.batch_size];
        let device = self.model.device();
        let images = config.augmentation.apply(train, indices, config.seed, epoch).map_err(Error::other)?;
        let images = shrunk(images.to_device(device), config.share_of_side(epoch));
        let labels = train.label_tensor(indices).map_err(Error::other)?.to_device(device);
        let attacked = match &self.adversary {
            Some(adversary) => {
                let ids = ids(train, indices);
                let seed = config.seed;
                let shown = Shown { images: &images, labels: &labels, ids: &ids, seed, epoch };
                adversary.training_images(&self.model, &shown)?
            }
            None => images.shallow_clone(),
        };
        let pair = Pair { clean: &images, attacked: &attacked, labels: &labels };
        let (loss, gradient) = self.loss_and_gradient(&pair);
        let rate = one_cycle(step, total, config.peak_rate, config.warmup);
        self.optimizer.step(&mut self.parameters, &gradient, rate, step);
        if let (Some(average), Some(decay)) = (&mut self.average, config.average) {
            let _ = tch::no_grad(|| average.lerp_(self.parameters.flat(), 1.0 - decay));
        }
        Ok(loss.detach())
    }

    /// The loss at the weights as they are, and the gradient to step along, which is taken elsewhere where weights are
    /// perturbed.
    fn loss_and_gradient(&mut self, pair: &Pair<'_>) -> (Tensor, Tensor) {
        let config = self.config;
        let kind = config.precision.kind(self.model.device());
        let forward = |images: &Tensor| self.model.forward(images, Mode::Train, kind);
        let loss = || config.loss.of(&forward, pair, config.label_smoothing);
        let here = loss();
        let gradient = self.parameters.gradient(&here);
        let gradient = match config.awp {
            Some(gamma) => gradient_at_perturbed(&mut self.parameters, &gradient, gamma, loss),
            None => gradient,
        };
        (here, gradient)
    }

    /// Passes an event on; if the observer wants to stop, saves first.
    fn tell(&self, observe: &mut Observer<'_>, step: u64, event: &Event) -> Result<()> {
        match observe(event) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => {
                self.save(step)?;
                Err(Error::Interrupted)
            }
        }
    }

    fn save(&self, step: u64) -> Result<()> {
        let extra: Tensors =
            self.average.iter().map(|average| ("average".to_owned(), average.shallow_clone())).collect();
        self.snapshot.save(step, &self.parameters, &self.optimizer, extra)
    }

    fn measure(&self, validation: &Dataset) -> Result<BTreeMap<String, f64>> {
        let all: Vec<usize> = (0..validation.len()).collect();
        let mut metrics = BTreeMap::from([("accuracy".to_owned(), self.accuracy(validation, &all, false)?)]);
        if self.adversary.is_some() {
            let few = &all[..ATTACKED_SAMPLE.min(all.len())];
            metrics.insert("attacked_accuracy".to_owned(), self.accuracy(validation, few, true)?);
        }
        Ok(metrics)
    }

    fn accuracy(&self, data: &Dataset, indices: &[usize], attacked: bool) -> Result<f64> {
        let device = self.model.device();
        let mut right = 0;
        for chunk in indices.chunks(self.config.batch_size) {
            let (images, labels) = data.tensor(chunk).map_err(Error::other)?;
            let (mut images, labels) = (images.to_device(device), labels.to_device(device));
            if let (true, Some(adversary)) = (attacked, &self.adversary) {
                let (ids, seed) = (ids(data, chunk), self.config.seed);
                let shown = Shown { images: &images, labels: &labels, ids: &ids, seed, epoch: 0 };
                images = (adversary.perturb)(&self.model, &shown)?;
            }
            let predicted = self.model.predict(&images);
            let matches = predicted.eq_tensor(&labels.to_device(predicted.device()));
            right += matches.sum(tch::Kind::Int64).int64_value(&[]);
        }
        Ok(right as f64 / indices.len().max(1) as f64)
    }

    fn finish(mut self, validation: &Dataset) -> Result<Model> {
        if let Some(average) = &self.average {
            self.parameters.assign(average);
        }
        let metrics = self.measure(validation)?;
        let card = &mut self.model.card_mut().metrics;
        card.extend(metrics.into_iter().map(|(name, value)| (format!("validation_{name}"), value)));
        self.snapshot.discard()?;
        Ok(self.model.freeze())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Kind;

    #[test]
    fn images_grow_evenly_and_end_at_full_size() {
        let config = ClassifierTraining { epochs: 8, smallest: 0.5, ..ClassifierTraining::default() };
        let shares: Vec<f64> = (0..8).map(|epoch| config.share_of_side(epoch)).collect();
        assert_eq!((shares[0], shares[3], shares[6], shares[7]), (0.5, 0.75, 1.0, 1.0));
        assert!(shares.is_sorted());
        let never = ClassifierTraining { epochs: 1, smallest: 0.5, ..ClassifierTraining::default() };
        assert!((never.share_of_side(0) - 1.0).abs() < f64::EPSILON, "one epoch is trained at full size");
    }

    #[test]
    fn shrinking_averages_areas() {
        let image = Tensor::arange(16, (Kind::Float, Device::Cpu)).view([1, 1, 4, 4]);
        let half = Vec::<f32>::try_from(shrunk(image.shallow_clone(), 0.5).flatten(0, -1)).unwrap();
        assert_eq!(half, [2.5, 4.5, 10.5, 12.5]);
        assert_eq!(shrunk(image.shallow_clone(), 1.0), image);
    }
}
