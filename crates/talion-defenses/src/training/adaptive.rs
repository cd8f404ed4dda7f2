//! Training a restoration network against attackers who differentiate through it.

use std::{collections::BTreeMap, time::Instant};

use serde::{Deserialize, Serialize};
use serde_json::json;
use talion_attacks::{Attack, AttackSpec, Batch, Pgd};
use talion_core::{Budget, Classifier, Error, Objective, Result, SampleStream, shuffled};
use talion_data::{Augmentation, Dataset};
use talion_models::training::{Event, Observer, Snapshot, load_variables, one_cycle};
use tch::{Kind, Reduction, Tensor};

use super::{Mixture, TrnSources, course::Course, patterns::Patterns};
use crate::{
    defended::{Defended, GradientMode},
    gradient_map::{EstimatorSpec, MapGraph},
    trn::{Lesson, Trn, TrnSpec},
};

/// What a network is punished for that is attacked itself.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdaptiveLosses {
    /// Cross-entropy with the true label behind restored attacked images. Default 1.
    pub attacked: f64,
    /// Cross-entropy with the true label behind restored clean images. Default 0.5.
    pub clean: f64,
    /// Kullback-Leibler divergence of the answer behind the attacked image from that behind the clean one, as in TRADES
    /// (Zhang et al. 2019, equation 5). Default 0.
    pub divergence: f64,
    /// Mean absolute difference of both restored images to the clean one. Default 0.5: next to nothing, so that images stay
    /// images where nothing else is asked of them.
    pub pixel: f64,
    /// Cross-entropy with the true label of the class that a network with patterns holds restored images for: once for attacked
    /// ones, half of it for clean ones. Default 0.5.
    pub naming: f64,
}

impl Default for AdaptiveLosses {
    fn default() -> Self {
        Self { attacked: 1.0, clean: 0.5, divergence: 0.0, pixel: 0.5, naming: 0.5 }
    }
}

/// How to train a restoration network against attackers who know it: adversarial training (Madry et al. 2018) of the
/// network in front of a classifier that never changes.
///
/// Every step attacks its images through the network as it is at that step, so nothing can be prepared in advance.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdaptiveTraining {
    /// The network.
    pub spec: TrnSpec,
    /// The attacks. A step draws one of them, by their weights, for all its images.
    pub attacks: Mixture,
    /// The share of steps whose attacker differentiates through the gradient maps, too; the others take them for
    /// constants. 0 to 1. Without maps there is no difference.
    pub exact: f64,
    /// What it is punished for.
    pub losses: AdaptiveLosses,
    /// Steps that the patterns are trained for before everything else, with the true label known: what can be reached by adding
    /// them at all. Only for networks with patterns.
    pub prime: u64,
    /// Share of the steps during which the budget grows from nothing to its full size. 0 to 1.
    pub curriculum: f64,
    /// Size of an adversarial perturbation of the weights, relative to their own length, tensor by tensor (Wu et al. 2020,
    /// "Adversarial weight perturbation helps robust generalization", equation 10); `None` for none.
    pub weight_perturbation: Option<f64>,
    /// Steps.
    pub steps: u64,
    /// How often the network is measured on validation images, evenly spread.
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
    /// Training images set aside to measure on; the classifier's own.
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

impl AdaptiveTraining {
    /// The default training of `spec` against `attacks`, beside a classifier trained with `validation` images set aside by
    /// `split_seed`.
    pub fn new(spec: TrnSpec, attacks: Mixture, validation: usize, split_seed: u64) -> Self {
        Self {
            spec,
            attacks,
            exact: 0.5,
            losses: AdaptiveLosses::default(),
            prime: 200,
            curriculum: 0.3,
            weight_perturbation: None,
            steps: 4000,
            rounds: 8,
            batch_size: 64,
            peak_rate: 1e-3,
            warmup: 0.1,
            weight_decay: 1e-4,
            average: 0.995,
            validation,
            split_seed,
            validation_sample: 256.min(validation),
            augmentation: Augmentation::default(),
            seed: 1,
        }
    }

    /// Checks every value.
    ///
    /// # Errors
    /// Names the first that cannot be used; refuses the oracle's maps, and a mixture that attacks nothing.
    pub fn validate(&self) -> Result<()> {
        self.spec.validate()?;
        if self.spec.estimator == EstimatorSpec::Oracle {
            return Err(Error::Refused(
                "the oracle's maps hold the true label, which no defender has".into(),
            ));
        }
        self.strongest()?;
        let all = self.losses;
        let losses = [all.attacked, all.clean, all.divergence, all.pixel, all.naming];
        let perturbation = self.weight_perturbation.unwrap_or(0.01);
        let checks = [
            ("exact", (0.0..=1.0).contains(&self.exact), "0 to 1"),
            ("curriculum", (0.0..=1.0).contains(&self.curriculum), "0 to 1"),
            ("weight_perturbation", perturbation > 0.0 && perturbation < 1.0, "above 0, below 1"),
            ("steps", self.steps >= self.rounds, "at least the number of rounds"),
            ("rounds", self.rounds >= 1, "at least 1"),
            ("batch_size", (1..=65_536).contains(&self.batch_size), "1 to 65536"),
            ("peak_rate", self.peak_rate > 0.0 && self.peak_rate.is_finite(), "above 0"),
            ("warmup", (0.0..1.0).contains(&self.warmup), "0 to below 1"),
            ("weight_decay", (0.0..1.0).contains(&self.weight_decay), "0 to below 1"),
            ("average", (0.0..1.0).contains(&self.average), "0 to below 1"),
            ("validation_sample", (1..=self.validation).contains(&self.validation_sample), "1 to validation"),
            ("losses", losses.iter().all(|&weight| weight >= 0.0 && weight.is_finite()), "at least 0"),
            ("losses", losses[..3].iter().sum::<f64>() > 0.0, "attacked, clean and divergence not all 0"),
        ];
        match checks.into_iter().find(|(_, holds, _)| !holds) {
            Some((name, _, expected)) => {
                let found = serde_json::to_value(self).map(|all| all[name].to_string()).unwrap_or_default();
                Err(Error::range(name, expected, found))
            }
            None => Ok(()),
        }
    }

    /// The largest budget of the attacks: what the network is measured under.
    fn strongest(&self) -> Result<Budget> {
        let budgets = self.attacks.ingredients().iter().filter_map(|part| part.attack.as_ref());
        budgets
            .map(|(_, budget)| *budget)
            .max_by(|first, second| first.epsilon().total_cmp(&second.epsilon()))
            .ok_or_else(|| {
                Error::Refused("the attacks to train against are none: name one, such as pgd-3@0.1".into())
            })
    }

    /// The budget at a step.
    fn grown(&self, budget: Budget, step: u64) -> Result<Budget> {
        let growing = self.curriculum * self.steps as f64;
        let share = if growing > 0.0 { ((step + 1) as f64 / growing).min(1.0) } else { 1.0 };
        Budget::new(budget.norm(), budget.epsilon() * share)
    }
}

/// Share of the priming during which the budget grows.
const PRIMING_GROWTH: f64 = 0.3;
/// Steps between two reports; the loss is only read from the device then.
const REPORT_EVERY: u64 = 10;
/// Seconds between two snapshots.
const SNAPSHOT_SECONDS: u64 = 60;
/// Steps of the attack that validation images go through.
const VALIDATION_STEPS: u32 = 10;
/// The figures that decide which weights are kept.
const MEASURED: [&str; 2] = ["clean", "attacked"];

/// Trains a restoration network against attackers who differentiate through it, and returns it with gradients off, its best
/// validation figures on its card. `warm` gives the weights to start with; without it the network starts as the identity, or
/// as its first pass alone.
///
/// With a snapshot path the run can be killed at any moment and goes on from its last snapshot with the same result.
///
/// # Errors
/// If the configuration does not fit, `warm` is another network, a snapshot cannot be used, or the observer asked to stop.
pub fn train_adaptive(
    config: &AdaptiveTraining,
    sources: &TrnSources<'_>,
    warm: Option<&Trn>,
    observe: &mut Observer<'_>,
) -> Result<Trn> {
    config.validate()?;
    if !sources.others.is_empty() {
        return Err(Error::Refused("adaptive training defends one classifier at a time".into()));
    }
    let (train, validation) =
        sources.data.split_validation(config.validation, config.split_seed).map_err(Error::other)?;
    if train.len() < config.batch_size {
        let expected = format!("at most {}, the training images", train.len());
        return Err(Error::range("batch_size", expected, config.batch_size));
    }
    Trainer::new(config, sources, warm, &train)?.run(&train, &validation, observe)
}

/// Images with labels and ids, on the classifier's device.
struct Images {
    images: Tensor,
    labels: Tensor,
    ids: Vec<u64>,
}

struct Trainer<'a> {
    config: &'a AdaptiveTraining,
    classifier: &'a dyn Classifier,
    trn: Trn,
    course: Course,
    /// Whether the weights are those of a trained network.
    warm: bool,
    /// An epoch and its order of images, kept while that epoch lasts.
    order: (Option<u64>, Vec<usize>),
}

impl<'a> Trainer<'a> {
    fn new(
        config: &'a AdaptiveTraining,
        sources: &TrnSources<'a>,
        warm: Option<&Trn>,
        train: &Dataset,
    ) -> Result<Self> {
        let training = serde_json::to_value(config).unwrap_or_default();
        let trn = sources.network(&config.spec, config.seed, training)?;
        if let Some(warm) = warm {
            if warm.card().spec != config.spec {
                return Err(Error::Refused(format!(
                    "the network to start from is {:?}, and the one to train {:?}",
                    warm.card().spec,
                    config.spec
                )));
            }
            load_variables(trn.store(), &warm.tensors())?;
        }
        let started = warm.map(|warm| warm.card().training.clone());
        let run = json!({ "config": config, "sources": sources.identities(train)?, "warm": started });
        let snapshot = Snapshot::new(sources.snapshot, run);
        let measured = MEASURED.map(str::to_owned).to_vec();
        let course = Course::new(trn.store(), (config.weight_decay, config.average), snapshot, measured);
        Ok(Self {
            config,
            classifier: sources.classifier,
            trn,
            course,
            warm: warm.is_some(),
            order: (None, Vec::new()),
        })
    }

    fn run(mut self, train: &Dataset, validation: &Dataset, observe: &mut Observer<'_>) -> Result<Trn> {
        let (total, rounds) = (self.config.steps, self.config.rounds);
        let mut step = self.course.resume(observe)?;
        if step == 0 && self.config.spec.patterns.is_some() && !self.warm {
            self.prime(train, observe)?;
        }
        let mut saved = Instant::now();
        let mut reported = (Instant::now(), step);
        while step < total {
            let loss = self.step(train, step)?;
            step += 1;
            let round = step * rounds / total;
            let round_ends = round > (step - 1) * rounds / total;
            if step.is_multiple_of(REPORT_EVERY) || round_ends {
                let images = (step - reported.1) * self.config.batch_size as u64;
                let images_per_second = images as f64 / reported.0.elapsed().as_secs_f64();
                let event = Event::Progress { step, total, loss: loss.double_value(&[]), images_per_second };
                self.course.tell(observe, step, &event)?;
                reported = (Instant::now(), step);
            }
            if round_ends {
                let metrics = self.measure(validation, round)?;
                self.course.tell(observe, step, &Event::Validated { epoch: round, step, metrics })?;
                reported.0 = Instant::now();
            }
            if saved.elapsed().as_secs() >= SNAPSHOT_SECONDS {
                self.course.save(step)?;
                saved = Instant::now();
            }
        }
        for (name, value) in self.course.finish()? {
            self.trn.card_mut().metrics.insert(format!("validation_{name}"), value);
        }
        Ok(self.trn.freeze())
    }

    fn step(&mut self, train: &Dataset, step: u64) -> Result<Tensor> {
        let config = self.config;
        let batch = self.batch(train, step)?;
        let attacked = self.attacked(&batch, step)?;
        let lesson = Lesson::new();
        let loss = self.loss(&batch, &attacked, &lesson);
        let mut gradient = lesson.gradient(&self.course.parameters, &loss);
        if let Some(size) = config.weight_perturbation {
            gradient = self.gradient_at_worse_weights(&gradient, size, &batch, &attacked);
        }
        let rate = one_cycle(step, config.steps, config.peak_rate, config.warmup);
        self.course.step(&gradient, rate, step);
        Ok(loss.detach())
    }

    /// Patterns that work where the class is known, before the network has to find it out: nothing could be learned from
    /// patterns that do nothing. The weights start over from there.
    fn prime(&mut self, train: &Dataset, observe: &mut Observer<'_>) -> Result<()> {
        let (steps, bound) = (self.config.prime, self.config.spec.bound);
        let Some([height, width]) = self.config.spec.patterns else { return Ok(()) };
        let budget = self.config.strongest()?;
        let shape = [self.classifier.classes(), self.config.spec.channels, height, width];
        let mut patterns = Patterns::new(self.classifier, shape, bound);
        for step in 0..steps {
            let batch = self.batch(train, step)?;
            let share = ((step + 1) as f64 / (PRIMING_GROWTH * steps as f64)).min(1.0);
            let budget = Budget::new(budget.norm(), budget.epsilon() * share)?;
            patterns.step(&batch.images, &batch.labels, (&batch.ids, self.config.seed), budget, step);
            let event = Event::Preparing { what: "patterns".into(), done: step + 1, total: steps };
            // nothing of this is kept: it takes as long as a few hundred steps of training
            if observe(&event).is_break() {
                return Err(Error::Interrupted);
            }
        }
        self.trn.set_patterns(patterns.values());
        self.course.start_over();
        Ok(())
    }

    /// The next images of the shuffled training split.
    fn batch(&mut self, train: &Dataset, step: u64) -> Result<Images> {
        let config = self.config;
        // a last partial batch is left out
        let per_epoch = (train.len() / config.batch_size) as u64;
        let (epoch, place) = (step / per_epoch, (step % per_epoch) as usize);
        if self.order.0 != Some(epoch) {
            self.order = (Some(epoch), shuffled(train.len(), config.seed, "adaptive", epoch));
        }
        let indices = &self.order.1[place * config.batch_size..(place + 1) * config.batch_size];
        let images = config.augmentation.apply(train, indices, config.seed, epoch).map_err(Error::other)?;
        self.images(train, indices, &images)
    }

    fn images(&self, data: &Dataset, indices: &[usize], images: &Tensor) -> Result<Images> {
        let device = self.classifier.device();
        Ok(Images {
            images: images.to_device(device),
            labels: data.label_tensor(indices).map_err(Error::other)?.to_device(device),
            ids: indices.iter().map(|&index| data.ids()[index]).collect(),
        })
    }

    /// What this step's attacker makes of the images.
    fn attacked(&self, batch: &Images, step: u64) -> Result<Tensor> {
        let config = self.config;
        let part = config.attacks.draw(config.seed, step, u64::MAX);
        let Some((attack, budget)) = &config.attacks.ingredients()[part].attack else {
            return Ok(batch.images.shallow_clone());
        };
        let through = f64::from(SampleStream::new(config.seed, "view", step, 0).uniform()) < config.exact;
        let view = if through { GradientMode::Exact } else { GradientMode::Detached };
        self.attack(attack, config.grown(*budget, step)?, view, batch, step)
    }

    fn attack(
        &self,
        attack: &AttackSpec,
        budget: Budget,
        view: GradientMode,
        batch: &Images,
        repetition: u64,
    ) -> Result<Tensor> {
        // as it is now: final weights have faster derivatives
        let trn = self.trn.still()?;
        let victim = Defended::new(self.classifier, &trn, view)?;
        let batch = Batch {
            images: &batch.images,
            labels: &batch.labels,
            ids: &batch.ids,
            budget,
            objective: Objective::CrossEntropy,
            seed: self.config.seed,
            restart: repetition,
        };
        attack.perturb(&victim, &batch)
    }

    fn loss<'b>(&'b self, batch: &Images, attacked: &Tensor, lesson: &Lesson<'b>) -> Tensor {
        let weights = self.config.losses;
        // clean images cost as much as attacked ones: they are restored only where a loss asks for them
        let halves = match weights.clean > 0.0 || weights.divergence > 0.0 {
            true => vec![attacked, &batch.images],
            false => vec![attacked],
        };
        let shown = Tensor::cat(&halves, 0);
        let prepared = self.trn.prepare(self.classifier, &shown, MapGraph::Constant, None);
        let change = lesson.change(&self.trn, &shown, &prepared);
        let restored = self.trn.apply(&shown, &change);
        let clean = Tensor::cat(&vec![&batch.images; halves.len()], 0);
        let pixel = restored.l1_loss(&clean, Reduction::Mean);
        let loss = pixel * weights.pixel + self.judgement(&restored, &batch.labels);
        match &change.classes {
            Some(classes) => loss + naming(classes, &batch.labels) * weights.naming,
            None => loss,
        }
    }

    /// The classifier's part of the loss for restored attacked images, and below them the restored clean ones, if these are
    /// there. The classifier is not trained: its own fast gradient enters the graph as a constant.
    fn judgement(&self, restored: &Tensor, labels: &Tensor) -> Tensor {
        let (weights, rows) = (self.config.losses, labels.size()[0]);
        let found = self.classifier.loss_gradient(&restored.detach(), &|logits| {
            let answers = logits.log_softmax(1, Kind::Float);
            let surprise =
                |answers: &Tensor| answers.g_nll_loss::<Tensor>(labels, None, Reduction::None, -100);
            let attacked = answers.narrow(0, 0, rows);
            let loss = surprise(&attacked) * weights.attacked;
            if answers.size()[0] == rows {
                return loss / rows as f64;
            }
            let clean = answers.narrow(0, rows, rows);
            let divergence = (clean.exp() * (&clean - &attacked)).sum_dim_intlist(1_i64, false, Kind::Float);
            (loss + surprise(&clean) * weights.clean + divergence * weights.divergence) / rows as f64
        });
        let along = (restored * &found.gradient).sum(Kind::Float);
        // worth what the loss is, with the derivative that it has
        &along - along.detach() + found.loss.sum(Kind::Float)
    }

    /// The gradient where the weights have been moved, each tensor by a share of its own length, up the loss.
    fn gradient_at_worse_weights(
        &mut self,
        gradient: &Tensor,
        size: f64,
        batch: &Images,
        attacked: &Tensor,
    ) -> Tensor {
        let current = self.course.parameters.flat().copy();
        let moved = &current + self.course.parameters.relative(gradient) * size;
        self.course.parameters.assign(&moved);
        let lesson = Lesson::new();
        let loss = self.loss(batch, attacked, &lesson);
        let gradient = lesson.gradient(&self.course.parameters, &loss);
        self.course.parameters.assign(&current);
        gradient
    }

    /// Measures the averaged weights and keeps them if they are the best so far.
    fn measure(&mut self, validation: &Dataset, round: u64) -> Result<BTreeMap<String, f64>> {
        let current = self.course.show_average();
        let metrics = self.accuracies(validation);
        self.course.go_back(&current);
        let metrics = metrics?;
        self.course.judge(round, &metrics);
        Ok(metrics)
    }

    fn accuracies(&self, validation: &Dataset) -> Result<BTreeMap<String, f64>> {
        let budget = self.config.strongest()?;
        let attack = AttackSpec::new(Pgd { steps: VALIDATION_STEPS, ..Pgd::default() });
        let all: Vec<usize> = (0..self.config.validation_sample).collect();
        let mut right = [0_i64; MEASURED.len()];
        for chunk in all.chunks(self.config.batch_size) {
            let (images, _) = validation.tensor(chunk).map_err(Error::other)?;
            let batch = self.images(validation, chunk, &images)?;
            let attacked = self.attack(&attack, budget, GradientMode::Exact, &batch, 0)?;
            for (count, images) in right.iter_mut().zip([&batch.images, &attacked]) {
                let restored = tch::no_grad(|| self.trn.restore(self.classifier, images, MapGraph::Constant));
                let matches = self.classifier.predict(&restored).eq_tensor(&batch.labels);
                *count += matches.sum(Kind::Int64).int64_value(&[]);
            }
        }
        let share = |count: i64| count as f64 / all.len() as f64;
        Ok(MEASURED.iter().map(|name| (*name).to_owned()).zip(right.map(share)).collect())
    }
}

/// Cross-entropy with the label of what attacked images are held for, and below them clean ones, if these are there.
fn naming(classes: &Tensor, labels: &Tensor) -> Tensor {
    let rows = labels.size()[0];
    let surprise = |from: i64| classes.narrow(0, from, rows).cross_entropy_for_logits(labels);
    if classes.size()[0] == rows { surprise(0) } else { surprise(0) + surprise(rows) * 0.5 }
}
