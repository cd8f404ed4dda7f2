//! Training a restorer, on clean images alone: it never sees a classifier, a label or an attack.

use std::{collections::BTreeMap, ops::ControlFlow, path::Path, time::Instant};

use serde::{Deserialize, Serialize};
use serde_json::json;
use talion_core::{Error, Result, Tensors, gaussian_noise, shuffled};
use talion_data::{Augmentation, Dataset};
use talion_models::training::{Event, Observer, Optimizer, Parameters, Snapshot, clip_to_norm, one_cycle};
use tch::{Device, Kind, Reduction, Tensor};

use super::{
    compress::BITS,
    denoiser::corrupted,
    network_file::{Layers, Restorer, RestorerCard, RestorerNetwork, WIDTHS},
};

/// How to train a restorer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RestorerTraining {
    /// The network.
    pub what: Restorer,
    /// Channels of its narrowest hidden layers, 4 to 256.
    pub width: i64,
    /// Passes over the training images.
    pub epochs: u64,
    /// Images a step.
    pub batch_size: usize,
    /// Highest learning rate of AdamW's one cycle.
    pub peak_rate: f64,
    /// Share of the steps during which the rate rises.
    pub warmup: f64,
    /// Decay a step of the exponential average of the weights that is measured and kept.
    pub average: f64,
    /// What is done to each training image.
    pub augmentation: Augmentation,
    /// Training images set aside to measure on; the classifier's own, so that neither has seen them.
    pub validation: usize,
    /// Seed of the validation split: the classifier's.
    pub split_seed: u64,
    /// Seed of initial weights, order, augmentation and noise.
    pub seed: u64,
}

impl RestorerTraining {
    /// The default training beside a classifier trained with `validation` images set aside by `split_seed`.
    pub fn new(what: Restorer, validation: usize, split_seed: u64) -> Self {
        Self {
            what,
            width: 16,
            epochs: 10,
            batch_size: 64,
            peak_rate: 2e-3,
            warmup: 0.1,
            average: 0.995,
            augmentation: Augmentation::default(),
            validation,
            split_seed,
            seed: 1,
        }
    }

    /// Checks every value.
    ///
    /// # Errors
    /// Names the first that cannot be used.
    pub fn validate(&self) -> Result<()> {
        let checks = [
            ("width", WIDTHS.contains(&self.width), "4 to 256"),
            ("epochs", (1..=100_000).contains(&self.epochs), "1 to 100000"),
            ("batch_size", (1..=65_536).contains(&self.batch_size), "1 to 65536"),
            ("peak_rate", self.peak_rate > 0.0 && self.peak_rate.is_finite(), "above 0"),
            ("warmup", (0.0..1.0).contains(&self.warmup), "0 to below 1"),
            ("average", (0.0..1.0).contains(&self.average), "0 to below 1"),
            ("validation", self.validation >= 1, "at least 1"),
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

/// Steps between two reports; the loss is only read from the device then.
const REPORT_EVERY: u64 = 10;
/// Seconds between two snapshots.
const SNAPSHOT_SECONDS: u64 = 60;
/// Weight decay: little, since these networks are small for what they learn.
const WEIGHT_DECAY: f64 = 1e-4;
/// Longest gradient of a step. Bits that all turn at once, or much noise in few images, would throw the weights far off.
const LONGEST_GRADIENT: f64 = 1.0;
/// The figure that is measured on validation images.
const FIGURE: &str = "mean_squared_error";

/// Trains a restorer and returns it with gradients off, with its validation error on its card: the mean squared difference
/// of values in `[0, 1]`, for a compressor between images and what is rebuilt of them from hard bits, for a denoiser between
/// images and what is left of them after noise of all the levels that it is trained on.
///
/// With a snapshot path the run can be killed at any moment and goes on from its last snapshot with the same result,
/// because order, augmentation and noise depend on seed, epoch and sample alone.
///
/// # Errors
/// If the configuration does not fit, a snapshot cannot be used, or the observer asked to stop.
pub fn train_restorer(
    config: &RestorerTraining,
    data: &Dataset,
    device: Device,
    snapshot: Option<&Path>,
    observe: &mut Observer<'_>,
) -> Result<RestorerNetwork> {
    config.validate()?;
    let needed = config.validation.saturating_add(config.batch_size);
    if data.len() < needed {
        let expected = format!("at least validation + batch size = {needed}");
        return Err(Error::range("the number of training images", expected, data.len()));
    }
    let (train, validation) =
        data.split_validation(config.validation, config.split_seed).map_err(Error::other)?;
    let run = json!({ "config": config, "data": data.sha256() });
    let trainer = Trainer::new(config, &train, device, Snapshot::new(snapshot, run))?;
    trainer.run(&train, &validation, observe)
}

struct Trainer<'a> {
    config: &'a RestorerTraining,
    network: RestorerNetwork,
    parameters: Parameters,
    optimizer: Optimizer,
    average: Tensor,
    snapshot: Snapshot,
    steps_per_epoch: u64,
    /// An epoch and its order of images, kept while that epoch lasts.
    order: (Option<u64>, Vec<usize>),
}

impl<'a> Trainer<'a> {
    fn new(
        config: &'a RestorerTraining,
        train: &Dataset,
        device: Device,
        snapshot: Snapshot,
    ) -> Result<Self> {
        let card = RestorerCard {
            kind: config.what,
            channels: train.channels() as i64,
            width: config.width,
            dataset: train.name().to_owned(),
            image_size: [train.height() as i64, train.width() as i64],
            seed: config.seed,
            training: serde_json::to_value(config).unwrap_or_default(),
            metrics: BTreeMap::new(),
        };
        let network = RestorerNetwork::new(card, device)?;
        let parameters = Parameters::new(network.store());
        let optimizer = Optimizer::adamw(&parameters, WEIGHT_DECAY);
        let average = parameters.flat().copy();
        let steps_per_epoch = (train.len() / config.batch_size) as u64;
        let order = (None, Vec::new());
        Ok(Self { config, network, parameters, optimizer, average, snapshot, steps_per_epoch, order })
    }

    fn run(
        mut self,
        train: &Dataset,
        validation: &Dataset,
        observe: &mut Observer<'_>,
    ) -> Result<RestorerNetwork> {
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
                let metrics = BTreeMap::from([(FIGURE.to_owned(), self.measure(validation)?)]);
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

    fn step(&mut self, train: &Dataset, step: u64, total: u64) -> Result<Tensor> {
        let config = self.config;
        let (epoch, place) = (step / self.steps_per_epoch, (step % self.steps_per_epoch) as usize);
        if self.order.0 != Some(epoch) {
            self.order = (Some(epoch), shuffled(train.len(), config.seed, "order", epoch));
        }
        let indices = &self.order.1[place * config.batch_size..(place + 1) * config.batch_size];
        let images = config.augmentation.apply(train, indices, config.seed, epoch).map_err(Error::other)?;
        let images = images.to_device(self.network.store().device());
        let loss = loss(&self.network.layers, &images, &ids(train, indices), config.seed, epoch);
        let gradient = clip_to_norm(&self.parameters.gradient(&loss), LONGEST_GRADIENT);
        let rate = one_cycle(step, total, config.peak_rate, config.warmup);
        self.optimizer.step(&mut self.parameters, &gradient, rate, step);
        let _ = tch::no_grad(|| self.average.lerp_(self.parameters.flat(), 1.0 - config.average));
        Ok(loss.detach())
    }

    /// The averaged weights' error; the weights in training are put back.
    fn measure(&mut self, validation: &Dataset) -> Result<f64> {
        let current = self.parameters.flat().copy();
        self.parameters.assign(&self.average);
        let measured = mean_squared_error(&self.network, validation, self.config);
        self.parameters.assign(&current);
        measured
    }

    fn resume(&mut self, observe: &mut Observer<'_>) -> Result<u64> {
        let Some((step, mut extra)) = self.snapshot.restore(&mut self.parameters, &mut self.optimizer)?
        else {
            return Ok(0);
        };
        let average = extra
            .remove("average")
            .filter(|average| average.size() == self.average.size())
            .ok_or_else(|| Error::Refused("the snapshot lacks average; delete it to start over".into()))?;
        self.average.copy_(&average);
        self.tell(observe, step, &Event::Resumed { step })?;
        Ok(step)
    }

    fn save(&self, step: u64) -> Result<()> {
        let extra = Tensors::from([("average".into(), self.average.shallow_clone())]);
        self.snapshot.save(step, &self.parameters, &self.optimizer, extra)
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

    fn finish(mut self, validation: &Dataset) -> Result<RestorerNetwork> {
        self.parameters.assign(&self.average);
        let error = mean_squared_error(&self.network, validation, self.config)?;
        self.network.card_mut().metrics.insert(format!("validation_{FIGURE}"), error);
        self.snapshot.discard()?;
        Ok(self.network.freeze())
    }
}

/// The ids of the images at `indices`.
fn ids(data: &Dataset, indices: &[usize]) -> Vec<u64> {
    indices.iter().map(|&index| data.ids()[index]).collect()
}

/// What is made small, a scalar; its noise is drawn from the streams of the images' ids.
fn loss(layers: &Layers, images: &Tensor, ids: &[u64], seed: u64, epoch: u64) -> Tensor {
    match layers {
        Layers::Compressor(network) => {
            let size = images.size();
            let noise = gaussian_noise(&[BITS, size[2], size[3]], ids, seed, "compressor", epoch);
            network.loss(images, &noise.to_device(images.device()))
        }
        Layers::Denoiser(network) => {
            let (noisy, sigma) = corrupted(images, ids, seed, epoch);
            network.denoise(&noisy, &sigma).mse_loss(images, Reduction::Mean)
        }
    }
}

/// The mean squared difference between all images of `data` and what a network in use makes of them.
fn mean_squared_error(network: &RestorerNetwork, data: &Dataset, config: &RestorerTraining) -> Result<f64> {
    let all: Vec<usize> = (0..data.len()).collect();
    let (mut sum, mut values) = (0.0, 0);
    for chunk in all.chunks(config.batch_size) {
        let (images, _) = data.tensor(chunk).map_err(Error::other)?;
        let images = images.to_device(network.store().device());
        let restored = tch::no_grad(|| match &network.layers {
            Layers::Compressor(network) => network.restore(&images),
            Layers::Denoiser(network) => {
                // the same noise after every epoch, so that only the network makes a difference
                let (noisy, sigma) = corrupted(&images, &ids(data, chunk), config.seed, 0);
                network.denoise(&noisy, &sigma).clamp(0.0, 1.0)
            }
        });
        sum += (restored - &images).square().sum(Kind::Double).double_value(&[]);
        values += images.numel();
    }
    Ok(sum / values.max(1) as f64)
}

#[cfg(test)]
mod tests {
    use talion_data::fashion_mnist_sample;

    use super::*;

    fn data() -> Dataset {
        fashion_mnist_sample().unwrap().subset(&(0..112).collect::<Vec<_>>()).unwrap()
    }

    /// 12 steps an epoch.
    fn config(what: Restorer, epochs: u64) -> RestorerTraining {
        RestorerTraining {
            width: 8,
            epochs,
            batch_size: 8,
            peak_rate: 6e-3,
            average: 0.9,
            augmentation: Augmentation { pad: 2, flip: true, cutout: 0 },
            ..RestorerTraining::new(what, 16, 1)
        }
    }

    fn train(
        config: &RestorerTraining,
        snapshot: Option<&Path>,
        stop_at: Option<u64>,
    ) -> Result<RestorerNetwork> {
        train_restorer(config, &data(), Device::Cpu, snapshot, &mut |event| match event {
            Event::Progress { step, .. } if Some(*step) == stop_at => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        })
    }

    #[test]
    fn restorers_learn_from_clean_images() {
        for (what, share) in [(Restorer::Compressor, 0.6), (Restorer::Denoiser, 0.7)] {
            let config = config(what, 6);
            let trained = train(&config, None, None).unwrap();
            let (_, validation) = data().split_validation(16, 1).unwrap();
            let untrained = RestorerNetwork::new(trained.card().clone(), Device::Cpu).unwrap();
            let before = mean_squared_error(&untrained, &validation, &config).unwrap();
            let after = mean_squared_error(&trained, &validation, &config).unwrap();
            assert!(after < share * before, "{what}: {before} before, {after} after");
            assert_eq!(trained.card().metrics["validation_mean_squared_error"], after);
            assert_eq!(trained.card().image_size, [28, 28]);
            assert!(trained.store().variables().values().all(|weight| !weight.requires_grad()));
        }
    }

    #[test]
    fn an_interrupted_run_ends_as_an_uninterrupted_one() {
        let folder = tempfile::tempdir().unwrap();
        for what in Restorer::ALL {
            let snapshot = folder.path().join(format!("{what}.snapshot"));
            let config = config(what, 2);
            let whole = train(&config, None, None).unwrap();
            // in the middle of the second epoch
            assert!(matches!(train(&config, Some(&snapshot), Some(20)), Err(Error::Interrupted)));
            assert!(snapshot.exists());
            let resumed = train(&config, Some(&snapshot), None).unwrap();
            assert!(!snapshot.exists());
            assert_eq!(whole.tensors(), resumed.tensors());
            assert_eq!(whole.card(), resumed.card());
        }
    }

    #[test]
    fn impossible_settings_are_refused_by_name() {
        let good = config(Restorer::Denoiser, 1);
        let refused = |config: RestorerTraining| train(&config, None, None).err().unwrap().to_string();
        assert!(refused(RestorerTraining { width: 2, ..good.clone() }).contains("width"));
        assert!(refused(RestorerTraining { epochs: 0, ..good.clone() }).contains("epochs"));
        assert!(refused(RestorerTraining { batch_size: 0, ..good.clone() }).contains("batch_size"));
        assert!(refused(RestorerTraining { peak_rate: f64::NAN, ..good.clone() }).contains("peak_rate"));
        assert!(refused(RestorerTraining { average: 1.0, ..good.clone() }).contains("average"));
        assert!(refused(RestorerTraining { validation: 0, ..good.clone() }).contains("validation"));
        let error = refused(RestorerTraining { validation: usize::MAX, ..good });
        assert!(error.contains("training images"), "{error}");
    }

    #[test]
    fn configurations_round_trip() {
        let config = config(Restorer::Compressor, 3);
        let text = serde_json::to_string(&config).unwrap();
        assert!(text.contains("\"what\":\"compressor\""), "{text}");
        assert_eq!(serde_json::from_str::<RestorerTraining>(&text).unwrap(), config);
    }
}
