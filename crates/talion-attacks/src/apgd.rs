//! Auto-PGD: projected ascent with momentum that chooses its own step sizes.

use serde::{Deserialize, Serialize};
use talion_core::{
    Budget, Classifier, Error, InputGradient, Norm, Objective, Result, gaussian_noise, uniform_noise,
};
use tch::{Kind, Tensor};

use crate::{
    Attack, Attempt, Batch, Conditions, Passes,
    attempt::{Rows, choose, per_row},
    spec::suffix,
};

/// What [`Apgd`] maximises.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ApgdLoss {
    /// Cross-entropy with the label: APGD-CE. With [`Objective::TargetedCrossEntropy`] the label is the target.
    #[default]
    CrossEntropy,
    /// The difference of logits ratio, [`Objective::Dlr`]: APGD-DLR.
    Dlr,
    /// The targeted difference of logits ratio towards one other class after the other: APGD-T. Whatever class comes
    /// out, the attack succeeds if it is not the label.
    Targeted,
}

/// Projected ascent with momentum from a random start. It looks back at checkpoints: where the loss stopped rising, the step
/// is halved and the ascent goes on from the best image so far. Nothing has to be tuned but the number of steps.
///
/// The first step has the length `2 * epsilon`. The answer is the last image that fooled, or else the one with the highest
/// loss. The norms `Linf`, `L2` and `L1` are defined; in `L1` a step changes only the values with the largest gradients, as
/// many as the best image so far suggests, starts with the length `epsilon`, and has no momentum.
///
/// In `L1` AutoAttack runs this on larger budgets first, which it calls `use_largereps`; here a start stays in the budget.
///
/// # Source
/// Croce and Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks", ICML
/// 2020: section 3 and algorithm 1, the losses in section 4 (equations 6 and 7); 100 steps and 9 targets as in AutoAttack.
/// For `L1`: Croce and Hein, "Mind the box: l1-APGD for sparse adversarial attacks on image classifiers", ICML 2021.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Apgd {
    /// What is maximised. Default: cross-entropy.
    pub loss: ApgdLoss,
    /// Number of steps of one restart, at least 1; each costs a gradient, and one more is taken at the start. Default 100.
    pub steps: u32,
    /// Number of random starts, for each target where there are targets, at least 1. Default 1.
    pub restarts: u32,
    /// The step is halved unless the loss rose in more than this share of the steps since the last checkpoint; 0 to 1.
    /// `L1` does not use it. Default 0.75.
    pub rho: f64,
    /// Whether to do what the reference code does where that is not what the paper says: a row goes on to its last step
    /// even if it fools and that would do, and the first step counts as a rise if its loss is above 0, whatever the loss
    /// at the start. Default: no.
    pub faithful: bool,
    /// How many classes [`ApgdLoss::Targeted`] aims at, in the order of their logits at the benign image, at least 1; no
    /// more than there are. The other losses do not use it. Default 9.
    pub targets: u32,
}

const RHO: f64 = 0.75;
const TARGETS: u32 = 9;

impl Default for Apgd {
    fn default() -> Self {
        let loss = ApgdLoss::default();
        Self { loss, steps: 100, restarts: 1, rho: RHO, faithful: false, targets: TARGETS }
    }
}

impl Apgd {
    fn check(&self, batch: &Batch<'_>) -> Result<()> {
        at_least_one("the number of steps", self.steps)?;
        at_least_one("the number of restarts", self.restarts)?;
        at_least_one("the number of targets", self.targets)?;
        if !(0.0..=1.0).contains(&self.rho) {
            return Err(Error::range("rho", "0 to 1", self.rho));
        }
        if batch.budget.norm() == Norm::L0 {
            return Err(Error::Refused("APGD is defined for Linf, L2 and L1, not for L0".into()));
        }
        if batch.objective == Objective::TargetedCrossEntropy && self.loss != ApgdLoss::CrossEntropy {
            return Err(Error::Refused(format!(
                "{} cannot aim at a class that the attacker chose; apgd-ce can",
                self.name()
            )));
        }
        Ok(())
    }

    fn walk(&self, batch: &Batch<'_>, conditions: &Conditions<'_>) -> Result<Walk> {
        self.check(batch)?;
        let loss = match (self.loss, batch.objective) {
            (ApgdLoss::CrossEntropy, Objective::TargetedCrossEntropy) => {
                Some(Objective::TargetedCrossEntropy)
            }
            (ApgdLoss::CrossEntropy, _) => Some(Objective::CrossEntropy),
            (ApgdLoss::Dlr, _) => Some(Objective::Dlr),
            (ApgdLoss::Targeted, _) => None,
        };
        let target = match self.loss {
            ApgdLoss::Targeted => {
                target_class(batch, benign_logits(conditions)?, self.targets, self.restarts)?
            }
            ApgdLoss::CrossEntropy | ApgdLoss::Dlr => batch.labels.copy(),
        };
        let windows = Windows::new(batch.budget.norm(), self.steps);
        Ok(Walk {
            rows: Rows::new(batch),
            path: Path::new(batch, target, &windows),
            budget: batch.budget,
            goal: batch.objective,
            loss,
            windows,
            steps: self.steps,
            rho: self.rho,
            faithful: self.faithful,
            until_fooled: conditions.until_fooled && !self.faithful,
        })
    }
}

impl Attack for Apgd {
    fn name(&self) -> String {
        let (kind, targets) = match self.loss {
            ApgdLoss::CrossEntropy => ("ce", None),
            ApgdLoss::Dlr => ("dlr", None),
            ApgdLoss::Targeted => ("t", (self.targets != TARGETS).then_some(f64::from(self.targets))),
        };
        let (targets, rho) = (suffix("targets", targets), suffix("rho", unless_default(self.rho, RHO)));
        let faithful = if self.faithful { ":faithful" } else { "" };
        format!("apgd-{kind}-{}{}{targets}{rho}{faithful}", self.steps, times(self.restarts))
    }

    fn cost(&self) -> Passes {
        Passes::GRADIENT.times(u64::from(self.steps) + 1)
    }

    fn restarts(&self, classes: i64) -> u64 {
        match self.loss {
            ApgdLoss::CrossEntropy | ApgdLoss::Dlr => self.restarts.into(),
            ApgdLoss::Targeted => targets_used(self.targets, classes) * u64::from(self.restarts),
        }
    }

    fn adjustment(&self, classes: i64) -> Option<String> {
        match self.loss {
            ApgdLoss::Dlr if classes < 3 => {
                Some("DLR needs a third class: the margin was maximised instead".into())
            }
            ApgdLoss::Targeted => {
                let fewer = fewer_targets(self.targets, classes);
                let margin = (classes < 4).then(|| {
                    "targeted DLR needs a fourth class: the target's margin over the label was maximised"
                        .to_owned()
                });
                let both: Vec<String> = fewer.into_iter().chain(margin).collect();
                (!both.is_empty()).then(|| both.join("; "))
            }
            ApgdLoss::CrossEntropy | ApgdLoss::Dlr => None,
        }
    }

    fn wants_logits(&self) -> bool {
        self.loss == ApgdLoss::Targeted
    }

    fn begin(&self, batch: &Batch<'_>, conditions: &Conditions<'_>) -> Result<Box<dyn Attempt>> {
        Ok(Box::new(self.walk(batch, conditions)?))
    }
}

/// The share of the way to the new point that a step goes; the rest goes where the step before went (the paper's alpha).
const FORWARD: f64 = 0.75;

/// In `L1`, the share of the values that the first steps change.
const FIRST_SHARE: f64 = 0.2;

/// In `L1`, the number of changed values in the best image over the number that the next steps change.
const THINNING: f64 = 1.5;

/// In `L1`, what the step is divided by at a checkpoint.
const REDUCTION: f64 = 1.5;

/// In `L1`, how many times smaller than at first the step gets at most.
const LARGEST_REDUCTION: f64 = 10.0;

/// One start in progress.
struct Walk {
    rows: Rows,
    path: Path,
    budget: Budget,
    /// Says what fools.
    goal: Objective,
    /// What is maximised; nothing stands for the targeted difference of logits ratio.
    loss: Option<Objective>,
    windows: Windows,
    steps: u32,
    rho: f64,
    faithful: bool,
    until_fooled: bool,
}

/// Where each row is, where it was best, and what its next checkpoint has to know. Rows of one batch are at different
/// steps, so each has its own checkpoints. The tensors are replaced, never changed in place: some share memory.
struct Path {
    /// The class to reach, `[N]`, where there is one.
    target: Tensor,
    iterate: Tensor,
    /// The iterate before.
    previous: Tensor,
    gradient: Tensor,
    best_image: Tensor,
    best_gradient: Tensor,
    /// `[N]`, `f64`, as the losses below.
    best_loss: Tensor,
    last_loss: Tensor,
    /// The best loss at the last checkpoint.
    checked_loss: Tensor,
    /// The last image that fooled, where one did.
    answer: Tensor,
    /// `[N]`, boolean.
    fooled: Tensor,
    /// Whether the last checkpoint halved the step, `[N]`, boolean.
    reduced: Tensor,
    /// `[N]`, of the images' type.
    step_size: Tensor,
    /// Steps since the last checkpoint, `[N]`, `f64`, as all that follow.
    since: Tensor,
    /// Steps from the last checkpoint to the next.
    window: Tensor,
    /// Steps since the last checkpoint in which the loss rose.
    rises: Tensor,
    /// The share of values that a step in `L1` changes.
    share: Tensor,
    /// How many values of the best image were changed at the last checkpoint.
    changed: Tensor,
}

impl Path {
    fn new(batch: &Batch<'_>, target: Tensor, windows: &Windows) -> Self {
        let (device, rows) = (batch.images.device(), batch.ids.len() as i64);
        let number = |value: f64| Tensor::full([rows], value, (Kind::Double, device));
        let iterate = start(batch);
        Self {
            target,
            previous: iterate.shallow_clone(),
            gradient: iterate.zeros_like(),
            best_image: iterate.shallow_clone(),
            best_gradient: iterate.zeros_like(),
            best_loss: number(f64::NEG_INFINITY),
            // nothing rises above it: the start is no rise
            last_loss: number(f64::INFINITY),
            checked_loss: number(f64::NEG_INFINITY),
            answer: iterate.shallow_clone(),
            fooled: Tensor::zeros([rows], (Kind::Bool, device)),
            // the first checkpoint asks for rises only
            reduced: Tensor::ones([rows], (Kind::Bool, device)),
            step_size: Tensor::full([rows], first_step(&batch.budget), (iterate.kind(), device)),
            // the start is no step
            since: number(-1.0),
            window: number(windows.first),
            rises: number(0.0),
            share: number(FIRST_SHARE),
            changed: number(values_per_image(batch.images)),
            iterate,
        }
    }

    fn tensors(&mut self) -> Vec<&mut Tensor> {
        vec![
            &mut self.target,
            &mut self.iterate,
            &mut self.previous,
            &mut self.gradient,
            &mut self.best_image,
            &mut self.best_gradient,
            &mut self.best_loss,
            &mut self.last_loss,
            &mut self.checked_loss,
            &mut self.answer,
            &mut self.fooled,
            &mut self.reduced,
            &mut self.step_size,
            &mut self.since,
            &mut self.window,
            &mut self.rises,
            &mut self.share,
            &mut self.changed,
        ]
    }

    /// Takes note of what was found at the iterate.
    fn note(&mut self, found: &InputGradient, loss: &Tensor, fooled: &Tensor) {
        // as in `View::gradient_at`: an undefined gradient at one pixel must not spread
        self.gradient = found.gradient.to_kind(self.iterate.kind()).nan_to_num(0.0, None, None);
        let better = loss.gt_tensor(&self.best_loss);
        self.best_image = choose(&better, &self.iterate, &self.best_image);
        self.best_gradient = choose(&better, &self.gradient, &self.best_gradient);
        self.best_loss = choose(&better, loss, &self.best_loss);
        self.answer = choose(fooled, &self.iterate, &self.answer);
        self.fooled = self.fooled.logical_or(fooled);
        self.since = &self.since + 1.0;
        self.rises = &self.rises + loss.gt_tensor(&self.last_loss).to_kind(Kind::Double);
    }

    /// Halves the step where few steps raised the loss, or where neither the step nor the best loss has changed since the
    /// last checkpoint (the paper's conditions 1 and 2). Says where.
    fn check_progress(&mut self, due: &Tensor, rho: f64) -> Tensor {
        let few = self.rises.le_tensor(&(&self.window * rho));
        let stuck = self.checked_loss.ge_tensor(&self.best_loss).logical_and(&self.reduced.logical_not());
        let halve = due.logical_and(&few.logical_or(&stuck));
        self.step_size = choose(&halve, &(&self.step_size * 0.5), &self.step_size);
        self.reduced = choose(due, &halve, &self.reduced);
        self.checked_loss = choose(due, &self.best_loss, &self.checked_loss);
        halve
    }

    /// Lets the next steps change fewer values than the best image does; where that number has just fallen, the step gets
    /// its first length again, elsewhere it shrinks. Says where it has fallen.
    fn check_sparsity(&mut self, due: &Tensor, original: &Tensor, epsilon: f64) -> Tensor {
        let changed = self.best_image.ne_tensor(original).flatten(1, -1);
        let changed = changed.sum_dim_intlist(1_i64, false, Kind::Double);
        let sparser = due.logical_and(&(&changed / &self.changed).lt(0.95));
        let smaller = &self.step_size / REDUCTION;
        let step = choose(&sparser, &smaller.full_like(epsilon), &smaller);
        self.step_size = choose(due, &step.clamp(epsilon / LARGEST_REDUCTION, epsilon), &self.step_size);
        let share = &changed / (values_per_image(original).max(1.0) * THINNING);
        self.share = choose(due, &share, &self.share);
        self.changed = choose(due, &changed, &self.changed);
        sparser
    }

    /// Sends rows back to their best image. The previous iterate stays: momentum then leads from it to the best image.
    fn go_back(&mut self, which: &Tensor) {
        self.iterate = choose(which, &self.best_image, &self.iterate);
        self.gradient = choose(which, &self.best_gradient, &self.gradient);
    }

    /// Begins a new window, a little shorter than the last.
    fn next_window(&mut self, due: &Tensor, windows: &Windows) {
        let shorter = (&self.window - windows.shrink).clamp_min(windows.least);
        self.window = choose(due, &shorter, &self.window);
        self.since = self.since.masked_fill(due, 0.0);
        self.rises = self.rises.masked_fill(due, 0.0);
    }
}

impl Walk {
    fn evaluate(&self, classifier: &dyn Classifier) -> InputGradient {
        let (images, labels, target) = (&self.path.iterate, &self.rows.labels, &self.path.target);
        match self.loss {
            Some(objective) => classifier.input_gradient(images, labels, objective),
            None => classifier.loss_gradient(images, &|logits| targeted_dlr(logits, labels, target)),
        }
    }

    fn check(&mut self) {
        let due = self.path.since.ge_tensor(&self.path.window);
        let back = match self.budget.norm() {
            Norm::L1 => self.path.check_sparsity(&due, &self.rows.original, self.budget.epsilon()),
            Norm::Linf | Norm::L2 | Norm::L0 => self.path.check_progress(&due, self.rho),
        };
        self.path.go_back(&back);
        self.path.next_window(&due, &self.windows);
    }

    /// Moves all rows; those in `first` have no momentum yet.
    fn advance(&mut self, first: &Tensor) {
        let (original, norm, path) = (&self.rows.original, self.budget.norm(), &mut self.path);
        let direction = match norm {
            Norm::L1 => sparse_signs(&path.gradient, &path.share),
            Norm::Linf | Norm::L2 | Norm::L0 => self.budget.steepest(&path.gradient),
        };
        let step = per_row(&path.step_size, &direction);
        let plain = self.budget.project(original, &(&path.iterate + direction * step));
        let next = if norm == Norm::L1 {
            plain
        } else {
            let forward = (&plain - &path.iterate) * FORWARD;
            let momentum = (&path.iterate - &path.previous) * (1.0 - FORWARD);
            let mixed = self.budget.project(original, &(&path.iterate + forward + momentum));
            choose(first, &plain, &mixed)
        };
        path.previous = std::mem::replace(&mut path.iterate, next);
    }
}

impl Attempt for Walk {
    fn step(&mut self, classifier: &dyn Classifier) -> Result<()> {
        let finished = self.rows.finished.shallow_clone();
        let before: Vec<Tensor> = self.path.tensors().iter().map(|tensor| tensor.shallow_clone()).collect();
        let first = self.rows.iteration.eq(0_i64);
        let found = self.evaluate(classifier);
        let loss = found.loss.to_kind(Kind::Double);
        let fooled = self.goal.reached(&found.logits.argmax(1, false), &self.rows.labels);
        self.path.note(&found, &loss, &fooled);
        // the reference has no place for the loss at the start, and compares the first step's with a zero
        self.path.last_loss = if self.faithful { loss.masked_fill(&first, 0.0) } else { loss };
        self.check();
        self.advance(&first);
        for (slot, old) in self.path.tensors().into_iter().zip(&before) {
            *slot = choose(&finished, old, slot);
        }
        self.rows.count(i64::from(self.steps) + 1, self.until_fooled.then_some(&fooled));
        Ok(())
    }

    fn state(&mut self) -> Vec<&mut Tensor> {
        let mut state = self.rows.state();
        state.extend(self.path.tensors());
        state
    }

    fn finished(&self) -> Tensor {
        self.rows.finished.shallow_clone()
    }

    fn adversarial(&self) -> Tensor {
        choose(&self.path.fooled, &self.path.answer, &self.path.best_image)
    }

    fn passes(&self) -> Passes {
        Passes::GRADIENT
    }
}

/// How many steps lie between checkpoints: the first time, how many fewer each time, and never fewer than.
#[derive(Clone, Copy, Debug)]
struct Windows {
    first: f64,
    shrink: f64,
    least: f64,
}

impl Windows {
    fn new(norm: Norm, steps: u32) -> Self {
        let part = |share: f64| (share * f64::from(steps)).floor().max(1.0);
        match norm {
            Norm::L1 => Self { first: part(0.04), shrink: 0.0, least: part(0.04) },
            Norm::Linf | Norm::L2 | Norm::L0 => {
                Self { first: part(0.22), shrink: part(0.03), least: part(0.06) }
            }
        }
    }
}

fn first_step(budget: &Budget) -> f64 {
    match budget.norm() {
        Norm::L1 => budget.epsilon(),
        Norm::Linf | Norm::L2 | Norm::L0 => 2.0 * budget.epsilon(),
    }
}

/// A random point: on the surface of the ball for `Linf` and `L2`, the projection of normal noise for `L1`.
fn start(batch: &Batch<'_>) -> Tensor {
    let (original, budget) = (batch.images.detach(), batch.budget);
    let row = &original.size()[1..];
    let change = match budget.norm() {
        Norm::Linf => {
            let draws = uniform_noise(row, batch.ids, batch.seed, "apgd", batch.restart);
            let largest = draws.abs().flatten(1, -1).amax([1].as_slice(), false) + 1e-12;
            &draws / per_row(&largest, &draws) * budget.epsilon()
        }
        Norm::L2 => {
            let draws = gaussian_noise(row, batch.ids, batch.seed, "apgd", batch.restart);
            budget.steepest(&draws) * budget.epsilon()
        }
        Norm::L1 | Norm::L0 => gaussian_noise(row, batch.ids, batch.seed, "apgd", batch.restart),
    };
    let change = change.to_device(original.device()).to_kind(original.kind());
    budget.project(&original, &(&original + change))
}

/// The signs of the `share` of each row's values with the largest gradients, all of one size, with sum 1.
///
/// # Shapes
/// `gradient` `[N, ..]`, `share` `[N]`, `f64`; the result has the shape of `gradient`.
fn sparse_signs(gradient: &Tensor, share: &Tensor) -> Tensor {
    let flat = gradient.flatten(1, -1);
    let values = values_per_image(gradient);
    let (ascending, _) = flat.abs().sort(1, false);
    let place = ((1.0_f64 - share) * values).floor().clamp(0.0, (values - 1.0).max(0.0));
    let least = ascending.gather(1, &place.to_kind(Kind::Int64).unsqueeze(1), false);
    let signs = flat.sign() * flat.abs().ge_tensor(&least).to_kind(flat.kind());
    let count = signs.abs().sum_dim_intlist(1_i64, true, None).clamp_min(1.0);
    (signs / count).view_as(gradient)
}

fn values_per_image(images: &Tensor) -> f64 {
    images.size().iter().skip(1).product::<i64>() as f64
}

/// The target's logit less the label's, divided by how far the largest logit is above the mean of the third and the fourth;
/// not divided where there are fewer than four.
///
/// # Shapes
/// `logits` `[N, K]`, `labels` and `target` `[N]`; the result is `[N]`.
fn targeted_dlr(logits: &Tensor, labels: &Tensor, target: &Tensor) -> Tensor {
    let of = |class: &Tensor| logits.gather(1, &class.unsqueeze(1), false).squeeze_dim(1);
    let margin = of(target) - of(labels);
    if logits.size().get(1).is_none_or(|&classes| classes < 4) {
        return margin;
    }
    let (largest, _) = logits.topk(4, 1, true, true);
    let low = (largest.select(1, 2) + largest.select(1, 3)) * 0.5;
    margin / (largest.select(1, 0) - low + 1e-12)
}

/// The logits at the benign images, for attacks that choose targets by them.
///
/// # Errors
/// If they were not given.
pub(crate) fn benign_logits<'a>(conditions: &Conditions<'a>) -> Result<&'a Tensor> {
    conditions.logits.ok_or_else(|| {
        Error::Refused(
            "the attack needs the logits at the benign images, Conditions::logits, and got none".into(),
        )
    })
}

/// The class that each row aims at in this restart: all restarts at the class of the largest logit but the label's, then
/// all at the next.
///
/// # Shapes
/// `logits` `[N, K]`; the result is `[N]`, `i64`.
///
/// # Errors
/// If there is no class but the label.
pub(crate) fn target_class(
    batch: &Batch<'_>,
    logits: &Tensor,
    targets: u32,
    restarts: u32,
) -> Result<Tensor> {
    let classes = logits.size().get(1).copied().unwrap_or_default();
    let used = targets_used(targets, classes);
    if used == 0 {
        return Err(Error::range("the number of classes", "at least 2", classes));
    }
    let rank = batch.restart / u64::from(restarts.max(1)) % used;
    let label = batch.labels.unsqueeze(1);
    let is_label = logits.zeros_like().to_kind(Kind::Bool).scatter_value(1, &label, 1_i64);
    let (_, order) = logits.detach().masked_fill(&is_label, f64::NEG_INFINITY).sort(1, true);
    Ok(order.select(1, rank.cast_signed()).copy())
}

/// How many of `targets` there are with so many classes.
pub(crate) fn targets_used(targets: u32, classes: i64) -> u64 {
    u64::from(targets).min((classes - 1).max(0).cast_unsigned())
}

/// Says that there are fewer than `targets`, where that is so.
pub(crate) fn fewer_targets(targets: u32, classes: i64) -> Option<String> {
    let used = targets_used(targets, classes);
    (used < u64::from(targets))
        .then(|| format!("{used} targets instead of {targets}: there are no more classes"))
}

/// # Errors
/// If `count` is zero.
pub(crate) fn at_least_one(what: &str, count: u32) -> Result<()> {
    if count == 0 {
        return Err(Error::range(what, "at least 1", count));
    }
    Ok(())
}

/// The part of a name that holds the number of restarts, empty for one.
pub(crate) fn times(restarts: u32) -> String {
    if restarts == 1 { String::new() } else { format!("x{restarts}") }
}

/// `value` where it differs from `default`: what a name has to tell.
pub(crate) fn unless_default(value: f64, default: f64) -> Option<f64> {
    (value.to_bits() != default.to_bits()).then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attempt::admit;
    use tch::Device;

    /// Logits linear in the image, without offset.
    struct Linear(Tensor);

    impl Classifier for Linear {
        fn classes(&self) -> i64 {
            self.0.size()[0]
        }

        fn logits(&self, images: &Tensor) -> Tensor {
            images.flatten(1, -1).matmul(&self.0.tr())
        }
    }

    fn linear(classes: i64, values: i64) -> Linear {
        let ids: Vec<u64> = (0..classes.cast_unsigned()).collect();
        Linear(gaussian_noise(&[values], &ids, 5, "linear", 0).to_kind(Kind::Double))
    }

    fn grey(rows: i64, values: i64) -> Tensor {
        Tensor::full([rows, 1, 1, values], 0.5, (Kind::Double, Device::Cpu))
    }

    fn batch<'a>(images: &'a Tensor, labels: &'a Tensor, ids: &'a [u64], norm: Norm) -> Batch<'a> {
        let budget = Budget::new(norm, 0.1).unwrap();
        Batch { images, labels, ids, budget, objective: Objective::CrossEntropy, seed: 1, restart: 0 }
    }

    /// After which steps a walk of so many has its checkpoints.
    fn checkpoints(norm: Norm, steps: u32) -> Vec<i64> {
        let (images, labels) = (grey(1, 6), Tensor::from_slice(&[0_i64]));
        let attack = Apgd { steps, ..Apgd::default() };
        let mut walk = attack.walk(&batch(&images, &labels, &[3], norm), &Conditions::default()).unwrap();
        let mut found = Vec::new();
        for done in 0..=i64::from(steps) {
            walk.step(&linear(2, 6)).unwrap();
            if done > 0 && walk.path.since.double_value(&[0]) == 0.0 {
                found.push(done);
            }
        }
        assert!(bool::try_from(walk.finished().all()).unwrap());
        found
    }

    #[test]
    fn checkpoints_lie_where_the_paper_has_them() {
        assert_eq!(checkpoints(Norm::Linf, 100), [22, 41, 57, 70, 80, 87, 93, 99]);
        assert_eq!(checkpoints(Norm::L2, 50), [11, 21, 30, 38, 45]);
        assert_eq!(checkpoints(Norm::Linf, 12), [2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]);
        assert_eq!(checkpoints(Norm::L1, 100), (1..=25_i64).map(|window| 4 * window).collect::<Vec<_>>());
    }

    #[test]
    fn a_linear_classifier_is_climbed_to_the_corner() {
        let classifier = linear(2, 6);
        let (images, labels) = (grey(2, 6), Tensor::from_slice(&[0_i64, 1]));
        let best = (classifier.0.get(1) - classifier.0.get(0)).sign() * 0.1;
        let best = Tensor::stack(&[best.copy(), -best], 0).view_as(&images) + 0.5;
        for loss in [ApgdLoss::CrossEntropy, ApgdLoss::Dlr, ApgdLoss::Targeted] {
            let attack = Apgd { steps: 10, loss, ..Apgd::default() };
            let found = attack.perturb(&classifier, &batch(&images, &labels, &[3, 4], Norm::Linf)).unwrap();
            assert!((found - &best).abs().max().double_value(&[]) < 1e-6, "{loss:?}");
        }
    }

    #[test]
    fn a_row_that_comes_later_goes_its_own_way() {
        let classifier = linear(3, 8);
        for norm in [Norm::Linf, Norm::L2, Norm::L1] {
            let attack = Apgd { steps: 9, ..Apgd::default() };
            let (images, labels) = (grey(2, 8), Tensor::from_slice(&[0_i64, 1]));
            let both = batch(&images, &labels, &[3, 4], norm);
            let (image, label) = (grey(1, 8), Tensor::from_slice(&[2_i64]));
            let late = batch(&image, &label, &[5], norm);
            let mut walk = attack.begin(&both, &Conditions::default()).unwrap();
            for _ in 0..4 {
                walk.step(&classifier).unwrap();
            }
            let mut newcomer = attack.begin(&late, &Conditions::default()).unwrap();
            admit(walk.as_mut(), &[1], newcomer.as_mut(), &[0]);
            while !bool::try_from(walk.finished().all()).unwrap() {
                walk.step(&classifier).unwrap();
            }
            let alone = Tensor::cat(
                &[
                    attack.perturb(&classifier, &both).unwrap().narrow(0, 0, 1),
                    attack.perturb(&classifier, &late).unwrap(),
                ],
                0,
            );
            assert!((walk.adversarial() - alone).abs().max().double_value(&[]) < 1e-5, "{norm}");
        }
    }

    #[test]
    fn the_targeted_ratio_is_as_in_the_paper() {
        let (label, target) = (Tensor::from_slice(&[0_i64]), Tensor::from_slice(&[1_i64]));
        let logits = Tensor::from_slice(&[4.0_f64, 3.0, 2.0, 1.0, 0.0]).unsqueeze(0);
        let ratio = |logits: &Tensor| targeted_dlr(logits, &label, &target).double_value(&[0]);
        assert!((ratio(&logits) + 0.4).abs() < 1e-9);
        assert!((ratio(&logits.narrow(1, 0, 3)) + 1.0).abs() < 1e-9);
    }

    #[test]
    fn targets_come_in_the_order_of_their_logits() {
        let (images, labels) = (grey(1, 1), Tensor::from_slice(&[1_i64]));
        let logits = Tensor::from_slice(&[1.0_f32, 5.0, 3.0, 4.0]).unsqueeze(0);
        let aim = |restart| {
            let batch = Batch { restart, ..batch(&images, &labels, &[0], Norm::Linf) };
            target_class(&batch, &logits, 9, 2).unwrap().int64_value(&[0])
        };
        assert_eq!([0, 1, 2, 3, 4, 5].map(aim), [3, 3, 2, 2, 0, 0]);
        let attack = Apgd { loss: ApgdLoss::Targeted, restarts: 2, ..Apgd::default() };
        assert_eq!((attack.restarts(4), attack.restarts(10), attack.restarts(100)), (6, 18, 18));
        assert!(attack.adjustment(4).is_some_and(|text| text.contains("3 targets")));
        assert!(attack.adjustment(3).is_some_and(|text| text.contains("fourth")));
        assert!(attack.adjustment(10).is_none());
        let batch = batch(&images, &labels, &[0], Norm::Linf);
        assert!(attack.begin(&batch, &Conditions::default()).is_err());
    }

    #[test]
    fn sparse_steps_take_the_largest_gradients() {
        let gradient = Tensor::from_slice(&[1.0_f32, -3.0, 0.5, 2.0]).unsqueeze(0);
        let signs = sparse_signs(&gradient, &Tensor::from_slice(&[0.5_f64]));
        assert_eq!(signs, Tensor::from_slice(&[0.0_f32, -0.5, 0.0, 0.5]).unsqueeze(0));
        let zero = gradient.zeros_like();
        assert_eq!(sparse_signs(&zero, &Tensor::from_slice(&[0.5_f64])), zero);
    }

    #[test]
    fn names_hold_every_setting_and_bad_ones_are_errors() {
        assert_eq!(Apgd::default().name(), "apgd-ce-100");
        let dlr = Apgd { loss: ApgdLoss::Dlr, restarts: 5, faithful: true, ..Apgd::default() };
        assert_eq!(dlr.name(), "apgd-dlr-100x5:faithful");
        let targeted = Apgd { loss: ApgdLoss::Targeted, targets: 5, rho: 0.5, ..Apgd::default() };
        assert_eq!(targeted.name(), "apgd-t-100:targets=5:rho=0.5");
        let (images, labels) = (grey(1, 4), Tensor::from_slice(&[0_i64]));
        let good = batch(&images, &labels, &[0], Norm::Linf);
        let refused = |attack: Apgd, batch: &Batch<'_>| attack.begin(batch, &Conditions::default()).is_err();
        assert!(refused(Apgd { steps: 0, ..Apgd::default() }, &good));
        assert!(refused(Apgd { rho: f64::NAN, ..Apgd::default() }, &good));
        assert!(refused(Apgd::default(), &batch(&images, &labels, &[0], Norm::L0)));
        assert!(refused(dlr, &Batch { objective: Objective::TargetedCrossEntropy, ..good }));
    }
}
