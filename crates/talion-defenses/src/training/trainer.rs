//! The training loop of a restoration network.

use std::{
    collections::BTreeMap,
    ops::ControlFlow,
    path::{Path, PathBuf},
    time::Instant,
};

use serde_json::json;
use talion_core::{Classifier, Error, Result, Tensors, shuffled};
use talion_data::Dataset;
use talion_models::training::{Event, Observer, Optimizer, Parameters, Snapshot, clip_to_norm, one_cycle};
use tch::{Kind, Reduction, Tensor};

use super::{
    Mixture, TrnTraining,
    pool::{Clean, Pool, attack, merely_noisy},
};
use crate::{
    gradient_map::MapGraph,
    trn::{Trn, TrnCard},
};

/// What a training run reads and where it keeps its state.
pub struct TrnSources<'a> {
    /// The classifier to defend, frozen.
    pub classifier: &'a dyn Classifier,
    /// What the classifier is, for the network's card.
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

/// Steps between two reports; the loss is only read from the device then.
const REPORT_EVERY: u64 = 10;
/// Seconds between two snapshots.
const SNAPSHOT_SECONDS: u64 = 60;
/// What validation images are measured under after each round: clean, noisy, an attack seen and one unseen in training.
const MEASURED: [(&str, &str); 4] =
    [("clean", "clean"), ("fgsm", "fgsm@8/255"), ("noise", "noise@8/255"), ("pgd", "pgd-20@8/255")];
/// Longest gradient of a step. A batch of images that the first steps destroy would throw the weights far off.
const LONGEST_GRADIENT: f64 = 5.0;

/// Trains a restoration network and returns it with gradients off, its best validation figures on its card.
///
/// With a snapshot path the run can be killed at any moment and goes on from its last snapshot with the same result.
///
/// # Errors
/// If the configuration does not fit, a snapshot cannot be used, or the observer asked to stop.
pub fn train_trn(config: &TrnTraining, sources: &TrnSources<'_>, observe: &mut Observer<'_>) -> Result<Trn> {
    config.validate()?;
    let (train, validation) =
        sources.data.split_validation(config.validation, config.split_seed).map_err(Error::other)?;
    if train.len() < config.pool {
        return Err(Error::range(
            "pool",
            format!("at most {}, the training images", train.len()),
            config.pool,
        ));
    }
    let trainer = Trainer::new(config, sources, &train)?;
    let examined = trainer.validation_pools(&validation, observe)?;
    trainer.run(&train, &examined, observe)
}

struct Trainer<'a> {
    config: &'a TrnTraining,
    classifier: &'a dyn Classifier,
    cache: Option<PathBuf>,
    /// Tells classifier and data apart in the names of cached files.
    identity: serde_json::Value,
    trn: Trn,
    parameters: Parameters,
    optimizer: Optimizer,
    average: Tensor,
    best: Best,
    snapshot: Snapshot,
    steps_per_replay: u64,
}

struct Best {
    weights: Tensor,
    score: f64,
    round: u64,
    metrics: BTreeMap<String, f64>,
}

impl<'a> Trainer<'a> {
    fn new(config: &'a TrnTraining, sources: &TrnSources<'a>, train: &Dataset) -> Result<Self> {
        let classifier = sources.classifier;
        let card = TrnCard {
            kind: TrnCard::KIND.into(),
            spec: config.spec.clone(),
            classes: classifier.classes(),
            classifier: sources.architecture.clone(),
            dataset: train.name().to_owned(),
            seed: config.seed,
            training: serde_json::to_value(config).unwrap_or_default(),
            metrics: BTreeMap::new(),
        };
        let mut trn = Trn::new(card, classifier.device())?;
        match (&config.spec.first, sources.first) {
            (Some(_), Some(first)) => trn.set_first(first)?,
            (Some(_), None) => {
                return Err(Error::Refused(format!(
                    "the estimator {} needs a trained one-stream network for its first pass",
                    config.spec.estimator
                )));
            }
            (None, _) => {}
        }
        let identity = json!({
            "data": sources.data.sha256(),
            "classifier": fingerprint(classifier, train)?,
        });
        let run = json!({ "config": config, "sources": identity });
        let parameters = Parameters::new(trn.store());
        let optimizer = Optimizer::adamw(&parameters, config.weight_decay);
        let copy = || parameters.flat().copy();
        let best = Best { weights: copy(), score: f64::NEG_INFINITY, round: 0, metrics: BTreeMap::new() };
        let average = copy();
        Ok(Self {
            config,
            classifier,
            cache: sources.cache.map(Into::into),
            identity,
            trn,
            parameters,
            optimizer,
            average,
            best,
            snapshot: Snapshot::new(sources.snapshot, run),
            steps_per_replay: (config.pool / config.batch_size) as u64,
        })
    }

    fn run(
        mut self,
        train: &Dataset,
        examined: &[(&'static str, Pool)],
        observe: &mut Observer<'_>,
    ) -> Result<Trn> {
        let steps_per_round = self.steps_per_replay * self.config.replays;
        let total = steps_per_round * self.config.rounds;
        let mut step = self.resume(observe)?;
        let undefended = self.undefended(examined);
        let mut pool = None;
        let mut saved = Instant::now();
        let mut reported = (Instant::now(), step);
        while step < total && !self.out_of_patience(step / steps_per_round) {
            let round = step / steps_per_round;
            let current = match pool.take() {
                Some(current) => current,
                None => {
                    let made = self.round_pool(train, round, step, observe)?;
                    reported = (Instant::now(), step);
                    made
                }
            };
            let loss = self.step(&current, step, total);
            step += 1;
            let round_ends = step.is_multiple_of(steps_per_round);
            if step.is_multiple_of(REPORT_EVERY) || round_ends {
                let images = (step - reported.1) * self.config.batch_size as u64;
                let images_per_second = images as f64 / reported.0.elapsed().as_secs_f64();
                reported = (Instant::now(), step);
                let event = Event::Progress { step, total, loss: loss.double_value(&[]), images_per_second };
                self.tell(observe, step, &event)?;
            }
            if round_ends {
                let epoch = step / steps_per_round;
                let mut metrics = self.measure(epoch, examined);
                metrics.extend(undefended.iter().map(|(name, value)| (name.clone(), *value)));
                self.tell(observe, step, &Event::Validated { epoch, step, metrics })?;
            } else {
                pool = Some(current);
            }
            if saved.elapsed().as_secs() >= SNAPSHOT_SECONDS {
                self.save(step)?;
                saved = Instant::now();
            }
        }
        self.finish(undefended)
    }

    /// What the bare classifier makes of the same clean images: the price of restoring is measured against it.
    fn undefended(&self, examined: &[(&'static str, Pool)]) -> Option<(String, f64)> {
        let (_, pool) = examined.iter().find(|(name, _)| *name == "clean")?;
        let right = pool.answers.argmax(1, false).eq_tensor(&pool.labels).sum(Kind::Int64).int64_value(&[]);
        Some(("undefended_clean".to_owned(), right as f64 / pool.len() as f64))
    }

    fn out_of_patience(&self, round: u64) -> bool {
        self.config.patience.is_some_and(|patience| round > self.best.round + patience)
    }

    fn step(&mut self, pool: &Pool, step: u64, total: u64) -> Tensor {
        let config = self.config;
        let (replay, place) = (step / self.steps_per_replay, (step % self.steps_per_replay) as usize);
        let order = shuffled(pool.len(), config.seed, "replay", replay);
        let rows = &order[place * config.batch_size..(place + 1) * config.batch_size];
        let rows: Vec<i64> = rows.iter().map(|&row| row as i64).collect();
        let batch = pool.select(&Tensor::from_slice(&rows).to_device(self.classifier.device()));
        let loss = self.loss(&batch);
        let gradient = clip_to_norm(&self.parameters.gradient(&loss), LONGEST_GRADIENT);
        let rate = one_cycle(step, total, config.peak_rate, config.warmup);
        self.optimizer.step(&mut self.parameters, &gradient, rate, step);
        let _ = tch::no_grad(|| self.average.lerp_(self.parameters.flat(), 1.0 - config.average));
        loss.detach()
    }

    fn loss(&self, batch: &Pool) -> Tensor {
        let images = &batch.attacked;
        let change = if self.config.spec.estimator.trainable() {
            let graph = MapGraph::Differentiable;
            self.trn.change(images, &self.trn.prepare(self.classifier, images, graph, None))
        } else {
            self.trn.change(images, &batch.prepared)
        };
        let restored = self.trn.apply(images, &change);
        let weights = self.config.losses;
        let pixel = restored.l1_loss(&batch.clean, Reduction::Mean);
        let loss = pixel * weights.pixel + self.judgement(&restored, batch);
        match &change.gate {
            Some(gate) => loss + detection(gate, batch) * weights.detection,
            None => loss,
        }
    }

    /// The classifier's part of the loss. The classifier is not trained, so its own fast gradient at the restored images is
    /// all that has to be known of it: it enters the graph as a constant.
    fn judgement(&self, restored: &Tensor, batch: &Pool) -> Tensor {
        let weights = self.config.losses;
        let rows = batch.labels.size()[0] as f64;
        let found = self.classifier.loss_gradient(&restored.detach(), &|logits| {
            let answers = logits.log_softmax(1, Kind::Float);
            // summed over classes: the mathematical divergence
            let divergence = answers.kl_div(&batch.answers, Reduction::None, false).sum_dim_intlist(
                1_i64,
                false,
                Kind::Float,
            );
            let cross_entropy = answers.g_nll_loss::<Tensor>(&batch.labels, None, Reduction::None, -100);
            (divergence * weights.logit + cross_entropy * weights.classification) / rows
        });
        let along = (restored * &found.gradient).sum(Kind::Float);
        // worth what the loss is, with the derivative that it has
        &along - along.detach() + found.loss.sum(Kind::Float)
    }

    /// The images of a round: the next `pool` of the shuffled training images, attacked and prepared.
    fn round_pool(&self, train: &Dataset, round: u64, step: u64, observe: &mut Observer<'_>) -> Result<Pool> {
        let config = self.config;
        let first = round * config.pool as u64;
        let count = train.len() as u64;
        let indices: Vec<usize> = (first..first + config.pool as u64)
            .scan((u64::MAX, Vec::new()), |(epoch, order), place| {
                if *epoch != place / count {
                    *epoch = place / count;
                    *order = shuffled(train.len(), config.seed, "pool", *epoch);
                }
                Some(order[(place % count) as usize])
            })
            .collect();
        let images = config.augmentation.apply(train, &indices, config.seed, round).map_err(Error::other)?;
        let clean = self.clean(train, &indices, images)?;
        let pool = self.pool(&format!("round-{round}"), clean, &config.mixture, round, observe);
        if matches!(pool, Err(Error::Interrupted)) {
            self.save(step)?;
        }
        pool
    }

    fn clean(&self, data: &Dataset, indices: &[usize], images: Tensor) -> Result<Clean> {
        let device = self.classifier.device();
        Ok(Clean {
            images: images.to_device(device),
            labels: data.label_tensor(indices).map_err(Error::other)?.to_device(device),
            ids: indices.iter().map(|&index| data.ids()[index]).collect(),
        })
    }

    fn pool(
        &self,
        name: &str,
        clean: Clean,
        mixture: &Mixture,
        round: u64,
        observe: &mut Observer<'_>,
    ) -> Result<Pool> {
        let config = self.config;
        let key = json!({
            "sources": self.identity, "mixture": mixture, "seed": config.seed, "round": round,
            "augmentation": config.augmentation, "rows": clean.ids.len(), "split": [config.validation as u64, config.split_seed],
        });
        let path = self.cache.as_ref().map(|folder| folder.join(format!("{name}.safetensors")));
        let mut report = |what: &str, done, total| {
            observe(&Event::Preparing { what: format!("{what} {name}"), done, total })
        };
        let cache = path.as_deref().zip(Some(key));
        let mut attacking = |done, total| report("attacking", done, total);
        let attacked = attack(self.classifier, &clean, mixture, config.seed, round, cache, &mut attacking)?;
        let mut preparing = |done, total| report("preparing", done, total);
        let noisy = merely_noisy(mixture, config.seed, round, &clean.ids);
        Pool::new(self.classifier, &self.trn, clean, attacked, &noisy, &mut preparing)
    }

    /// Validation images, clean, noisy, and under an attack seen and one unseen in training.
    fn validation_pools(
        &self,
        validation: &Dataset,
        observe: &mut Observer<'_>,
    ) -> Result<Vec<(&'static str, Pool)>> {
        let indices: Vec<usize> = (0..self.config.validation_sample).collect();
        MEASURED
            .into_iter()
            .map(|(name, mixture)| {
                let (images, _) = validation.tensor(&indices).map_err(Error::other)?;
                let clean = self.clean(validation, &indices, images)?;
                let file = format!("validation-{name}");
                Ok((name, self.pool(&file, clean, &mixture.parse()?, 0, observe)?))
            })
            .collect()
    }

    /// Measures the averaged weights, keeps them if they are the best so far, and returns this round's figures.
    fn measure(&mut self, round: u64, examined: &[(&'static str, Pool)]) -> BTreeMap<String, f64> {
        let current = self.parameters.flat().copy();
        self.parameters.assign(&self.average);
        let metrics: BTreeMap<String, f64> =
            examined.iter().map(|(name, pool)| ((*name).to_owned(), self.accuracy(pool))).collect();
        let score = metrics.values().sum::<f64>();
        if score >= self.best.score {
            self.best = Best { weights: self.average.copy(), score, round, metrics: metrics.clone() };
        }
        self.parameters.assign(&current);
        metrics
    }

    fn accuracy(&self, pool: &Pool) -> f64 {
        let rows = pool.len() as i64;
        let mut right = 0;
        for start in (0..rows).step_by(self.config.batch_size) {
            let length = (self.config.batch_size as i64).min(rows - start);
            let index = Tensor::arange_start(start, start + length, (Kind::Int64, self.classifier.device()));
            let batch = pool.select(&index);
            let restored = tch::no_grad(|| {
                if self.config.spec.estimator.trainable() {
                    self.trn.restore(self.classifier, &batch.attacked, MapGraph::Constant)
                } else {
                    self.trn.restore_prepared(&batch.attacked, &batch.prepared)
                }
            });
            let predicted = self.classifier.predict(&restored);
            right += predicted.eq_tensor(&batch.labels).sum(Kind::Int64).int64_value(&[]);
        }
        right as f64 / rows as f64
    }

    fn resume(&mut self, observe: &mut Observer<'_>) -> Result<u64> {
        let Some((step, mut extra)) = self.snapshot.restore(&mut self.parameters, &mut self.optimizer)?
        else {
            return Ok(0);
        };
        let mut take = |name: &str| {
            extra
                .remove(name)
                .ok_or_else(|| Error::Refused(format!("the snapshot lacks {name}; delete it to start over")))
        };
        self.average.copy_(&take("average")?);
        self.best.weights.copy_(&take("best")?);
        let figures = Vec::<f64>::try_from(take("best_figures")?)?;
        if let [score, round, values @ ..] = &figures[..] {
            self.best.score = *score;
            self.best.round = *round as u64;
            if score.is_finite() {
                let names = MEASURED.iter().map(|(name, _)| (*name).to_owned());
                self.best.metrics = names.zip(values.iter().copied()).collect();
            }
        }
        self.tell(observe, step, &Event::Resumed { step })?;
        Ok(step)
    }

    fn save(&self, step: u64) -> Result<()> {
        let figure = |name| self.best.metrics.get(name).copied().unwrap_or(0.0);
        let mut figures = vec![self.best.score, self.best.round as f64];
        figures.extend(MEASURED.iter().map(|&(name, _)| figure(name)));
        let extra = Tensors::from([
            ("average".into(), self.average.shallow_clone()),
            ("best".into(), self.best.weights.shallow_clone()),
            ("best_figures".into(), Tensor::from_slice(&figures)),
        ]);
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

    fn finish(mut self, undefended: Option<(String, f64)>) -> Result<Trn> {
        self.parameters.assign(&self.best.weights);
        self.best.metrics.extend(undefended);
        for (name, value) in &self.best.metrics {
            self.trn.card_mut().metrics.insert(format!("validation_{name}"), *value);
        }
        self.snapshot.discard()?;
        Ok(self.trn.freeze())
    }
}

/// Cross-entropy of the gate with whether each image differs from its clean original.
fn detection(gate: &Tensor, batch: &Pool) -> Tensor {
    let moved = (&batch.attacked - &batch.clean).abs().amax([1_i64, 2, 3].as_slice(), true);
    let attacked = moved.gt(0.0).to_kind(gate.kind());
    gate.binary_cross_entropy_with_logits::<Tensor>(&attacked, None, None, Reduction::Mean)
}

/// The classifier's answers to a few images, bit for bit: another classifier gives others.
fn fingerprint(classifier: &dyn Classifier, data: &Dataset) -> Result<Vec<u32>> {
    let (images, _) = data.tensor(&[0, 1]).map_err(Error::other)?;
    let logits = tch::no_grad(|| classifier.logits(&images.to_device(classifier.device())));
    let values = Vec::<f32>::try_from(logits.to_kind(Kind::Float).flatten(0, -1))?;
    Ok(values.into_iter().map(f32::to_bits).collect())
}
