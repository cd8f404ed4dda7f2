//! The training loop of a restoration network.

use std::{collections::BTreeMap, path::PathBuf, time::Instant};

use serde_json::json;
use talion_core::{Classifier, Error, Result, shuffled};
use talion_data::Dataset;
use talion_models::training::{Event, Observer, Snapshot, one_cycle};
use tch::{Kind, Reduction, Tensor};

use super::{
    Mixture, TrnTraining,
    course::Course,
    panel::Panel,
    pool::{Clean, Pool, attack, merely_noisy},
    sources::TrnSources,
};
use crate::{
    gradient_map::MapGraph,
    trn::{Lesson, Trn},
};

/// Steps between two reports; the loss is only read from the device then.
const REPORT_EVERY: u64 = 10;
/// Seconds between two snapshots.
const SNAPSHOT_SECONDS: u64 = 60;
/// What validation images are measured under after each round: clean, noisy, an attack seen and one unseen in training.
const MEASURED: [(&str, &str); 4] =
    [("clean", "clean"), ("fgsm", "fgsm@8/255"), ("noise", "noise@8/255"), ("pgd", "pgd-20@8/255")];

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
    /// The first classifier of the panel.
    classifier: &'a dyn Classifier,
    panel: Panel<'a>,
    cache: Option<PathBuf>,
    /// Tell each classifier and the data apart in the keys of cached files.
    identities: Vec<serde_json::Value>,
    trn: Trn,
    course: Course,
    steps_per_replay: u64,
}

impl<'a> Trainer<'a> {
    fn new(config: &'a TrnTraining, sources: &TrnSources<'a>, train: &Dataset) -> Result<Self> {
        let panel = Panel::new(sources, config.seed)?;
        if panel.is_several() && config.spec.estimator.trainable() {
            return Err(Error::Refused(format!(
                "the estimator {} learns from one classifier; it cannot be trained for several",
                config.spec.estimator
            )));
        }
        let trn =
            sources.network(&config.spec, config.seed, serde_json::to_value(config).unwrap_or_default())?;
        let identities = sources.identities(train)?;
        let run = json!({ "config": config, "sources": identities });
        let measured = MEASURED.iter().map(|(name, _)| (*name).to_owned()).collect();
        let snapshot = Snapshot::new(sources.snapshot, run);
        let course = Course::new(trn.store(), (config.weight_decay, config.average), snapshot, measured);
        Ok(Self {
            config,
            classifier: sources.classifier,
            panel,
            cache: sources.cache.map(Into::into),
            identities,
            trn,
            course,
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
        let mut step = self.course.resume(observe)?;
        let undefended = self.undefended(examined);
        let mut pool = None;
        let mut saved = Instant::now();
        let mut reported = (Instant::now(), step);
        while step < total && !self.course.out_of_patience(step / steps_per_round, self.config.patience) {
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
                self.course.tell(observe, step, &event)?;
            }
            if round_ends {
                let epoch = step / steps_per_round;
                let mut metrics = self.measure(epoch, examined)?;
                metrics.extend(undefended.iter().map(|(name, value)| (name.clone(), *value)));
                self.course.tell(observe, step, &Event::Validated { epoch, step, metrics })?;
            } else {
                pool = Some(current);
            }
            if saved.elapsed().as_secs() >= SNAPSHOT_SECONDS {
                self.course.save(step)?;
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

    fn step(&mut self, pool: &Pool, step: u64, total: u64) -> Tensor {
        let config = self.config;
        let (replay, place) = (step / self.steps_per_replay, (step % self.steps_per_replay) as usize);
        let order = shuffled(pool.len(), config.seed, "replay", replay);
        let rows = &order[place * config.batch_size..(place + 1) * config.batch_size];
        let rows: Vec<i64> = rows.iter().map(|&row| row as i64).collect();
        let batch = pool.select(&Tensor::from_slice(&rows).to_device(self.classifier.device()));
        let lesson = Lesson::new();
        let loss = self.loss(&batch, &lesson);
        let gradient = lesson.gradient(&self.course.parameters, &loss);
        self.course.step(&gradient, one_cycle(step, total, config.peak_rate, config.warmup), step);
        loss.detach()
    }

    fn loss<'b>(&'b self, batch: &Pool, lesson: &Lesson<'b>) -> Tensor {
        let images = &batch.attacked;
        let change = if self.config.spec.estimator.trainable() {
            let graph = MapGraph::Differentiable;
            let prepared = self.trn.prepare(self.classifier, images, graph, None);
            lesson.change(&self.trn, images, &prepared)
        } else {
            lesson.change(&self.trn, images, &batch.prepared)
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

    /// The classifiers' part of the loss. They are not trained, so their own fast gradients at the restored images are all that
    /// has to be known of them: these enter the graph as constants.
    fn judgement(&self, restored: &Tensor, batch: &Pool) -> Tensor {
        let weights = self.config.losses;
        let rows = batch.labels.size()[0] as f64;
        let judged = self.panel.groups(&batch.owners).into_iter().map(|(_, group)| {
            let (restored, wanted, labels) =
                (group.of(restored), group.of(&batch.answers), group.of(&batch.labels));
            let found = group.classifier.loss_gradient(&restored.detach(), &|logits| {
                let answers = logits.log_softmax(1, Kind::Float);
                // summed over classes: the mathematical divergence
                let divergence = answers.kl_div(&wanted, Reduction::None, false).sum_dim_intlist(
                    1_i64,
                    false,
                    Kind::Float,
                );
                let cross_entropy = answers.g_nll_loss::<Tensor>(&labels, None, Reduction::None, -100);
                (divergence * weights.logit + cross_entropy * weights.classification) / rows
            });
            let along = (&restored * &found.gradient).sum(Kind::Float);
            // worth what the loss is, with the derivative that it has
            &along - along.detach() + found.loss.sum(Kind::Float)
        });
        judged.sum()
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
        let pool = self.pool(&format!("round-{round}"), &clean, &config.mixture, round, observe);
        if matches!(pool, Err(Error::Interrupted)) {
            self.course.save(step)?;
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

    /// Images attacked and prepared, each with its own classifier.
    fn pool(
        &self,
        name: &str,
        clean: &Clean,
        mixture: &Mixture,
        round: u64,
        observe: &mut Observer<'_>,
    ) -> Result<Pool> {
        let owners = self.panel.owners(&clean.ids, round);
        let mut parts = Vec::new();
        for (place, group) in self.panel.groups(&owners) {
            let name = match self.panel.is_several() {
                true => format!("{name}-classifier-{}", place + 1),
                false => name.to_owned(),
            };
            let clean = clean.of(&group, place, &owners)?;
            parts.push(self.part(&name, clean, (place, group.classifier), (mixture, round), observe)?);
        }
        Ok(Pool::gathered(parts, &owners))
    }

    /// The images of one classifier.
    fn part(
        &self,
        name: &str,
        clean: Clean,
        (place, classifier): (usize, &dyn Classifier),
        (mixture, round): (&Mixture, u64),
        observe: &mut Observer<'_>,
    ) -> Result<Pool> {
        let config = self.config;
        let key = json!({
            "sources": self.identities[place], "mixture": mixture, "seed": config.seed, "round": round,
            "augmentation": config.augmentation, "rows": clean.ids.len(), "split": [config.validation as u64, config.split_seed],
            "classifiers": self.identities.len(),
        });
        let path = self.cache.as_ref().map(|folder| folder.join(format!("{name}.safetensors")));
        let mut report = |what: &str, done, total| {
            observe(&Event::Preparing { what: format!("{what} {name}"), done, total })
        };
        let cache = path.as_deref().zip(Some(key));
        let mut attacking = |done, total| report("attacking", done, total);
        let attacked = attack(classifier, &clean, mixture, config.seed, round, cache, &mut attacking)?;
        let mut preparing = |done, total| report("preparing", done, total);
        let noisy = merely_noisy(mixture, config.seed, round, &clean.ids);
        Pool::new((place, classifier), &self.trn, clean, attacked, &noisy, &mut preparing)
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
                Ok((name, self.pool(&file, &clean, &mixture.parse()?, 0, observe)?))
            })
            .collect()
    }

    /// Measures the averaged weights, keeps them if they are the best so far, and returns this round's figures.
    fn measure(&mut self, round: u64, examined: &[(&'static str, Pool)]) -> Result<BTreeMap<String, f64>> {
        let current = self.course.show_average();
        // final weights are faster
        let average = self.trn.still();
        self.course.go_back(&current);
        let average = average?;
        let metrics: BTreeMap<String, f64> =
            examined.iter().map(|(name, pool)| ((*name).to_owned(), self.accuracy(&average, pool))).collect();
        self.course.judge(round, &metrics);
        Ok(metrics)
    }

    fn accuracy(&self, trn: &Trn, pool: &Pool) -> f64 {
        let rows = pool.len() as i64;
        let mut right = 0;
        for start in (0..rows).step_by(self.config.batch_size) {
            let length = (self.config.batch_size as i64).min(rows - start);
            let index = Tensor::arange_start(start, start + length, (Kind::Int64, self.classifier.device()));
            let batch = pool.select(&index);
            let restored = tch::no_grad(|| {
                if self.config.spec.estimator.trainable() {
                    trn.restore(self.classifier, &batch.attacked, MapGraph::Constant)
                } else {
                    trn.restore_prepared(&batch.attacked, &batch.prepared)
                }
            });
            let predicted = self.panel.predict(&batch.owners, &restored);
            right += predicted.eq_tensor(&batch.labels).sum(Kind::Int64).int64_value(&[]);
        }
        right as f64 / rows as f64
    }

    fn finish(mut self, undefended: Option<(String, f64)>) -> Result<Trn> {
        let mut metrics = self.course.finish()?;
        metrics.extend(undefended);
        for (name, value) in metrics {
            self.trn.card_mut().metrics.insert(format!("validation_{name}"), value);
        }
        Ok(self.trn.freeze())
    }
}

/// Cross-entropy of the gate with whether each image differs from its clean original.
fn detection(gate: &Tensor, batch: &Pool) -> Tensor {
    let moved = (&batch.attacked - &batch.clean).abs().amax([1_i64, 2, 3].as_slice(), true);
    let attacked = moved.gt(0.0).to_kind(gate.kind());
    gate.binary_cross_entropy_with_logits::<Tensor>(&attacked, None, None, Reduction::Mean)
}
