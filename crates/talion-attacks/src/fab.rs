//! Fast Adaptive Boundary attack: the smallest change that fools.

use serde::{Deserialize, Serialize};
use talion_core::{Budget, Classifier, Error, Norm, Objective, Result, gaussian_noise, uniform_noise};
use tch::{Kind, Tensor};

use crate::{
    Attack, Attempt, Batch, Conditions, Passes,
    apgd::{at_least_one, benign_logits, fewer_targets, target_class, targets_used, times, unless_default},
    attempt::{Rows, choose},
    spec::suffix,
};

/// A search for the smallest change that fools, whatever the budget: each step takes the boundary between the label and
/// another class for a plane, goes to the nearest point of the plane that is in the box, a little beyond it and a little
/// towards the benign image; an image that fools is drawn back towards the benign one.
///
/// The answer is the smallest change that fools if it is inside the budget, or else the benign image. Samples that are
/// misclassified as they are have that answer at once. The norms `Linf`, `L2` and `L1` are defined. Objectives with a
/// target that the attacker chose are refused.
///
/// [`Fab::targeted`] looks at one other class in each restart, at the price of one gradient a step. Otherwise a step looks
/// at all classes and takes the one that seems nearest, at the price of a gradient a class, and with all of them in memory.
///
/// # Source
/// Croce and Hein, "Minimally distorted Adversarial Examples with a Fast Adaptive Boundary Attack", ICML 2020, algorithm 1,
/// without its final search on the segment to the benign image, as in AutoAttack. The targeted version, FAB-T: Croce and
/// Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks", ICML 2020; 100
/// steps and 9 targets as in AutoAttack.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Fab {
    /// Whether each restart looks at one other class: FAB-T. Default: yes.
    pub targeted: bool,
    /// Number of steps of one restart, at least 1. Default 100.
    pub steps: u32,
    /// Number of starts, for each target where there are targets, at least 1. The first is the benign image, the others are
    /// random points of half the budget. Default 1.
    pub restarts: u32,
    /// How many classes the targeted version looks at, in the order of their logits at the benign image, at least 1; no more
    /// than there are. The other version does not use it. Default 9.
    pub targets: u32,
    /// The largest share that the way from the benign image to the plane has in a step, 0 to 1. Default 0.1.
    pub alpha_max: f64,
    /// How far a step goes, where 1 is just to the plane; 1 to 10. Default 1.05.
    pub eta: f64,
    /// What is left of the change after an image fooled, above 0, at most 1. Default 0.9.
    pub beta: f64,
}

const TARGETS: u32 = 9;
const ALPHA_MAX: f64 = 0.1;
const ETA: f64 = 1.05;
const BETA: f64 = 0.9;

impl Default for Fab {
    fn default() -> Self {
        Self {
            targeted: true,
            steps: 100,
            restarts: 1,
            targets: TARGETS,
            alpha_max: ALPHA_MAX,
            eta: ETA,
            beta: BETA,
        }
    }
}

impl Fab {
    fn check(&self, batch: &Batch<'_>) -> Result<()> {
        at_least_one("the number of steps", self.steps)?;
        at_least_one("the number of restarts", self.restarts)?;
        at_least_one("the number of targets", self.targets)?;
        if !(0.0..=1.0).contains(&self.alpha_max) {
            return Err(Error::range("alpha_max", "0 to 1", self.alpha_max));
        }
        if !(1.0..=10.0).contains(&self.eta) {
            return Err(Error::range("eta", "1 to 10", self.eta));
        }
        if !(self.beta > 0.0 && self.beta <= 1.0) {
            return Err(Error::range("beta", "above 0, at most 1", self.beta));
        }
        if batch.budget.norm() == Norm::L0 {
            return Err(Error::Refused("FAB is defined for Linf, L2 and L1, not for L0".into()));
        }
        if batch.objective == Objective::TargetedCrossEntropy {
            return Err(Error::Refused("FAB cannot aim at a class that the attacker chose".into()));
        }
        Ok(())
    }

    /// Whether the start of this restart is random.
    fn random(&self, restart: u64) -> bool {
        if self.targeted { !restart.is_multiple_of(u64::from(self.restarts.max(1))) } else { restart > 0 }
    }

    /// What a step costs on a classifier of so many classes.
    fn step_cost(&self, classes: u64) -> Passes {
        // one forward pass for the gradients, one to see whether the new image fools
        Passes { forward: 2, backward: if self.targeted { 1 } else { classes } }
    }

    fn search(&self, batch: &Batch<'_>, conditions: &Conditions<'_>) -> Result<Search> {
        self.check(batch)?;
        let logits = benign_logits(conditions)?.detach();
        let target = target_class(batch, &logits, self.targets, self.restarts)?;
        let mut rows = Rows::new(batch);
        // no change is smaller than none
        rows.finished = batch.objective.reached(&logits.argmax(1, false), batch.labels);
        let never =
            Tensor::full([batch.ids.len() as i64], f64::INFINITY, (Kind::Double, batch.images.device()));
        Ok(Search {
            attack: self.clone(),
            budget: batch.budget,
            goal: batch.objective,
            until_fooled: conditions.until_fooled,
            classes: logits.size().get(1).copied().unwrap_or_default().max(0).cast_unsigned(),
            target,
            iterate: if self.random(batch.restart) { random_start(batch) } else { rows.original.copy() },
            best: rows.original.copy(),
            distance: never.masked_fill(&rows.finished, 0.0),
            rows,
        })
    }
}

impl Attack for Fab {
    fn name(&self) -> String {
        let targets = (self.targeted && self.targets != TARGETS).then_some(f64::from(self.targets));
        let settings = [
            suffix("targets", targets),
            suffix("alpha", unless_default(self.alpha_max, ALPHA_MAX)),
            suffix("eta", unless_default(self.eta, ETA)),
            suffix("beta", unless_default(self.beta, BETA)),
        ];
        let kind = if self.targeted { "fab-t" } else { "fab" };
        format!("{kind}-{}{}{}", self.steps, times(self.restarts), settings.concat())
    }

    /// Without targets a step takes as many gradients as there are classes; here they are taken to be ten.
    fn cost(&self) -> Passes {
        self.step_cost(10).times(self.steps.into())
    }

    fn restarts(&self, classes: i64) -> u64 {
        let targets = if self.targeted { targets_used(self.targets, classes) } else { 1 };
        targets * u64::from(self.restarts)
    }

    fn adjustment(&self, classes: i64) -> Option<String> {
        if self.targeted { fewer_targets(self.targets, classes) } else { None }
    }

    fn wants_logits(&self) -> bool {
        true
    }

    fn begin(&self, batch: &Batch<'_>, conditions: &Conditions<'_>) -> Result<Box<dyn Attempt>> {
        Ok(Box::new(self.search(batch, conditions)?))
    }
}

/// A random point in half the budget, and in the box.
fn random_start(batch: &Batch<'_>) -> Tensor {
    let (original, budget) = (batch.images.detach(), batch.budget);
    let row = &original.size()[1..];
    let draw = if budget.norm() == Norm::Linf { uniform_noise } else { gaussian_noise };
    let draws = draw(row, batch.ids, batch.seed, "fab", batch.restart).flatten(1, -1);
    let change = &draws / (size(budget.norm(), &draws) + 1e-12).unsqueeze(1) * (0.5 * budget.epsilon());
    let change = change.to_device(original.device()).to_kind(original.kind()).view_as(&original);
    budget.project(&original, &(&original + change))
}

/// One start in progress.
struct Search {
    attack: Fab,
    rows: Rows,
    budget: Budget,
    /// Says what fools.
    goal: Objective,
    until_fooled: bool,
    classes: u64,
    /// The class to look at in the targeted version, `[N]`.
    target: Tensor,
    iterate: Tensor,
    /// The image with the smallest change that fooled, or else the benign one.
    best: Tensor,
    /// The size of that change, `[N]`, `f64`; infinite while there is none.
    distance: Tensor,
}

impl Attempt for Search {
    fn step(&mut self, classifier: &dyn Classifier) -> Result<()> {
        let plane = self.plane(classifier);
        let moved = self.moved(&plane);
        let logits = classifier.search_logits(&moved);
        let fooled = self.goal.reached(&logits.argmax(1, false), &self.rows.labels);
        let distance = self.budget.distance(&self.rows.original, &moved);
        let better = fooled.logical_and(&distance.lt_tensor(&self.distance));
        let better = better.logical_and(&self.rows.finished.logical_not());
        self.best = choose(&better, &moved, &self.best);
        self.distance = choose(&better, &distance, &self.distance);
        let nearer = &self.rows.original + (&moved - &self.rows.original) * self.attack.beta;
        let next = choose(&fooled, &nearer, &moved);
        self.iterate = self.rows.unfinished(&next, &self.iterate);
        let enough = self.inside();
        self.rows.count(self.attack.steps.into(), self.until_fooled.then_some(&enough));
        Ok(())
    }

    fn state(&mut self) -> Vec<&mut Tensor> {
        let mut state = self.rows.state();
        state.extend([&mut self.target, &mut self.iterate, &mut self.best, &mut self.distance]);
        state
    }

    fn finished(&self) -> Tensor {
        self.rows.finished.shallow_clone()
    }

    fn adversarial(&self) -> Tensor {
        choose(&self.inside(), &self.best, &self.rows.original)
    }

    fn passes(&self) -> Passes {
        self.attack.step_cost(self.classes)
    }
}

impl Search {
    /// Which rows have an image that fools inside the budget.
    fn inside(&self) -> Tensor {
        self.distance.le(self.budget.epsilon())
    }

    /// The boundary as it looks from the iterates.
    fn plane(&self, classifier: &dyn Classifier) -> Plane {
        let (images, labels) = (&self.iterate, &self.rows.labels);
        if self.attack.targeted {
            let found = classifier.loss_gradient(images, &|logits| {
                let of = |class: &Tensor| logits.gather(1, &class.unsqueeze(1), false).squeeze_dim(1);
                of(&self.target) - of(labels)
            });
            Plane::new(&found.loss, &found.gradient.flatten(1, -1))
        } else {
            let (logits, gradients) = classifier.logit_gradients(images);
            Plane::nearest(self.budget.norm(), &logits, &gradients.flatten(2, -1), labels)
        }
    }

    /// The next iterates: beyond the plane, on a way between that of the iterate and that of the benign image.
    fn moved(&self, plane: &Plane) -> Tensor {
        let (norm, settings) = (self.budget.norm(), &self.attack);
        let point = self.iterate.flatten(1, -1).to_kind(Kind::Double);
        let origin = self.rows.original.flatten(1, -1).to_kind(Kind::Double);
        // the difference of logits at the benign image, were it linear
        let slope = (&plane.weight * (&origin - &point)).sum_dim_intlist(1_i64, false, None);
        let from_point = to_plane(norm, &point, &plane.weight, &-&plane.difference);
        let from_origin = to_plane(norm, &origin, &plane.weight, &-(&plane.difference + slope));
        let near = size(norm, &from_point).clamp_min(1e-8);
        let far = size(norm, &from_origin).clamp_min(1e-8);
        let alpha = (&near / (&near + far)).clamp(0.0, settings.alpha_max).unsqueeze(1);
        let ahead = point + from_point * settings.eta;
        let back = origin + from_origin * settings.eta;
        let moved = (ahead * (1.0_f64 - &alpha) + back * &alpha).clamp(0.0, 1.0);
        moved.to_kind(self.iterate.kind()).view_as(&self.iterate)
    }
}

/// The boundary between the label and another class, taken for a plane: where the other's logit less the label's, as it is
/// at a point and as it changes with the image, would be zero. Undefined numbers count as zero.
struct Plane {
    /// The difference of logits at the point, `[N]`, `f64`.
    difference: Tensor,
    /// Its gradient, `[N, D]`, `f64`.
    weight: Tensor,
}

impl Plane {
    fn new(difference: &Tensor, weight: &Tensor) -> Self {
        let defined = |values: &Tensor| values.detach().nan_to_num(0.0, None, None).to_kind(Kind::Double);
        Self { difference: defined(difference), weight: defined(weight) }
    }

    /// The nearest in `norm` among the planes of all classes but the label, without the box.
    ///
    /// # Shapes
    /// `logits` `[N, K]`, `gradients` `[N, K, D]`, `labels` `[N]`.
    fn nearest(norm: Norm, logits: &Tensor, gradients: &Tensor, labels: &Tensor) -> Self {
        let label = labels.unsqueeze(1);
        let values = gradients.size().last().copied().unwrap_or_default();
        let of =
            |class: &Tensor| gradients.gather(1, &class.unsqueeze(2).expand([-1, 1, values], false), false);
        let difference = logits - logits.gather(1, &label, false);
        let own = of(&label);
        let dual = match norm {
            Norm::Linf => Norm::L1,
            Norm::L1 => Norm::Linf,
            Norm::L2 | Norm::L0 => Norm::L2,
        };
        let steepness = size(dual, &(gradients - &own).nan_to_num(0.0, None, None));
        let is_label = logits.zeros_like().to_kind(Kind::Bool).scatter_value(1, &label, 1_i64);
        let distance = (difference.abs() / (steepness + 1e-12)).masked_fill(&is_label, f64::INFINITY);
        let class = distance.argmin(1, true);
        let weight = (of(&class) - own).squeeze_dim(1);
        Self::new(&difference.gather(1, &class, false).squeeze_dim(1), &weight)
    }
}

/// The smallest change of each point, in `norm`, that raises `<weight, point>` by `wanted` and keeps the point in the box
/// `[0, 1]`; where the box ends before that, the change that comes nearest.
///
/// Every value moves in the direction of its weight, and no further than it has room. Which values move, and how far, is
/// the solution of the dual problem, which has one unknown, found exactly by sorting.
///
/// # Shapes
/// `point` and `weight` `[N, D]`, `wanted` `[N]`, all `f64`; the result is `[N, D]`.
fn to_plane(norm: Norm, point: &Tensor, weight: &Tensor, wanted: &Tensor) -> Tensor {
    let slope = weight * wanted.sign().unsqueeze(1);
    let room = (1.0_f64 - point).where_self(&slope.gt(0.0), point).clamp_min(0.0);
    let (gain, wanted) = (slope.abs(), wanted.abs().unsqueeze(1));
    let distance = match norm {
        Norm::L1 => steepest_first(&gain, &room, &wanted),
        Norm::Linf => all_at_once(&gain, &gain.ones_like(), &room, &wanted),
        Norm::L2 | Norm::L0 => all_at_once(&gain, &gain, &room, &wanted),
    };
    distance * slope.sign()
}

/// How far each value moves in `L1`: the steepest as far as it can, then the next, until the gain is what is wanted.
///
/// # Shapes
/// `gain`, the gain from moving a value by one, and `room`, how far it can move: `[N, D]`, at least 0; `wanted` `[N, 1]`.
fn steepest_first(gain: &Tensor, room: &Tensor, wanted: &Tensor) -> Tensor {
    let (gain, order) = gain.sort(1, true);
    let room = room.gather(1, &order, false);
    let whole = &gain * &room;
    let before = whole.cumsum(1, Kind::Double) - &whole;
    let distance = ((wanted - before) / gain.clamp_min(TINY)).clamp_min(0.0).minimum(&room);
    distance.zeros_like().scatter(1, &order, &distance)
}

/// How far each value moves in `Linf` and `L2`: all set out together, each at its own speed, and stop at the end of their
/// room, until the gain is what is wanted. Equal speeds make the largest change smallest, speeds in proportion to the gains
/// the Euclidean length.
///
/// # Shapes
/// As [`steepest_first`]; `speed` as `gain`.
fn all_at_once(gain: &Tensor, speed: &Tensor, room: &Tensor, wanted: &Tensor) -> Tensor {
    let (end, order) = (room / speed.clamp_min(TINY)).sort(1, false);
    let sorted = |values: &Tensor| values.gather(1, &order, false);
    let (rate, whole) = (sorted(&(gain * speed)), sorted(&(gain * room)));
    // the gain from those that stop no later than each, and how fast the others still gain then
    let stopped = whole.cumsum(1, Kind::Double);
    let moving = (rate.sum_dim_intlist(1_i64, true, None) - rate.cumsum(1, Kind::Double)).clamp_min(0.0);
    let early = (&stopped + end * &moving).lt_tensor(wanted).sum_dim_intlist(1_i64, true, Kind::Int64);
    // the first that does not stop too early, or the last
    let values = room.size().last().copied().unwrap_or_default();
    let place = early.clamp_max((values - 1).max(0));
    let at = |values: &Tensor| values.gather(1, &place, false);
    let time = (wanted - at(&(stopped - whole))) / at(&(moving + rate)).clamp_min(TINY);
    // finite, for infinity times a speed of zero is NaN
    (speed * time.clamp(0.0, f64::MAX)).minimum(room)
}

/// Keeps quotients from being NaN.
const TINY: f64 = f64::MIN_POSITIVE;

/// The norm of the last dimension.
fn size(norm: Norm, values: &Tensor) -> Tensor {
    match norm {
        Norm::Linf => values.abs().amax([-1_i64].as_slice(), false),
        Norm::L2 | Norm::L0 => values.square().sum_dim_intlist(-1_i64, false, None).sqrt(),
        Norm::L1 => values.abs().sum_dim_intlist(-1_i64, false, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    /// Logits linear in the image less 0.5, with an offset.
    struct Linear {
        weight: Tensor,
        offset: Tensor,
    }

    impl Classifier for Linear {
        fn classes(&self) -> i64 {
            self.weight.size()[0]
        }

        fn logits(&self, images: &Tensor) -> Tensor {
            (images - 0.5).flatten(1, -1).matmul(&self.weight.tr()) + &self.offset
        }
    }

    const NORMS: [Norm; 3] = [Norm::Linf, Norm::L2, Norm::L1];

    /// Class 0 at grey; the planes of the others are 0.2 / 2, 0.3 / 5 and 0.5 / 4 away in `Linf`.
    fn classifier() -> Linear {
        let weight = [0.0_f64, 0.0, 0.0, 1.0, 0.0, -1.0, 4.0, 1.0, 0.0, 0.0, 4.0, 0.0];
        Linear {
            weight: Tensor::from_slice(&weight).reshape([4, 3]),
            offset: Tensor::from_slice(&[0.0_f64, -0.2, -0.3, -0.5]).unsqueeze(0),
        }
    }

    fn grey() -> Tensor {
        Tensor::full([1, 3, 1, 1], 0.5, (Kind::Double, Device::Cpu))
    }

    fn batch<'a>(images: &'a Tensor, labels: &'a Tensor, norm: Norm, epsilon: f64) -> Batch<'a> {
        let budget = Budget::new(norm, epsilon).unwrap();
        Batch { images, labels, ids: &[3], budget, objective: Objective::CrossEntropy, seed: 1, restart: 0 }
    }

    fn change(norm: Norm, point: &[f64], weight: &[f64], wanted: f64) -> Vec<f64> {
        let row = |values: &[f64]| Tensor::from_slice(values).unsqueeze(0);
        let found = to_plane(norm, &row(point), &row(weight), &Tensor::from_slice(&[wanted]));
        Vec::try_from(found.squeeze_dim(0)).unwrap()
    }

    fn assert_near(found: &[f64], expected: &[f64]) {
        let near = found.iter().zip(expected).all(|(found, expected)| (found - expected).abs() < 1e-9);
        assert!(near && found.len() == expected.len(), "{found:?} instead of {expected:?}");
    }

    #[test]
    fn ways_to_a_plane_are_the_shortest_in_the_box() {
        // found by hand
        assert_near(&change(Norm::Linf, &[0.5, 0.9], &[1.0, 1.0], 0.4), &[0.3, 0.1]);
        assert_near(&change(Norm::Linf, &[0.5, 0.1], &[1.0, 1.0], -0.4), &[-0.3, -0.1]);
        assert_near(&change(Norm::Linf, &[0.5, 0.5, 0.5], &[2.0, -3.0, 0.0], 0.5), &[0.1, -0.1, 0.0]);
        assert_near(&change(Norm::L2, &[0.5, 0.5], &[3.0, 4.0], 1.0), &[0.12, 0.16]);
        assert_near(&change(Norm::L2, &[0.5, 0.9, 0.5], &[1.0, 2.0, 0.0], 0.5), &[0.3, 0.1, 0.0]);
        assert_near(&change(Norm::L1, &[0.5, 0.1, 0.3], &[1.0, -2.0, 0.0], 0.5), &[0.3, -0.1, 0.0]);
    }

    #[test]
    fn planes_outside_the_box_or_without_direction_are_approached() {
        for norm in NORMS {
            assert_near(&change(norm, &[0.5, 0.9, 0.2], &[1.0, 1.0, 0.0], 5.0), &[0.5, 0.1, 0.0]);
            assert_near(&change(norm, &[0.5, 0.9], &[0.0, 0.0], 5.0), &[0.0, 0.0]);
            assert_near(&change(norm, &[0.5, 0.9], &[1.0, 1.0], 0.0), &[0.0, 0.0]);
            assert_near(&change(norm, &[1.0, 0.0], &[1.0, -1.0], 1.0), &[0.0, 0.0]);
        }
    }

    #[test]
    fn the_nearest_plane_is_the_nearest_in_the_norm() {
        let (logits, gradients) = classifier().logit_gradients(&grey());
        for (norm, difference) in [(Norm::Linf, -0.3), (Norm::L2, -0.3), (Norm::L1, -0.3)] {
            let label = Tensor::from_slice(&[0_i64]);
            let plane = Plane::nearest(norm, &logits, &gradients.flatten(2, -1), &label);
            assert!((plane.difference.double_value(&[0]) - difference).abs() < 1e-12, "{norm}");
            let weight = Vec::<f64>::try_from(plane.weight.squeeze_dim(0)).unwrap();
            assert_near(&weight, &[4.0, 1.0, 0.0]);
        }
    }

    #[test]
    fn the_smallest_change_is_found_and_judged_by_the_budget() {
        let (images, labels) = (grey(), Tensor::from_slice(&[0_i64]));
        // the third class has the second largest logit, the class that is nearest the third largest
        for (norm, smallest) in [(Norm::Linf, 0.06), (Norm::L2, 0.3 / 17_f64.sqrt()), (Norm::L1, 0.075)] {
            for targeted in [false, true] {
                let attack = Fab { targeted, steps: 30, ..Fab::default() };
                let restart = u64::from(targeted);
                let found = |share: f64| {
                    let batch = Batch { restart, ..batch(&images, &labels, norm, smallest * share) };
                    let found = attack.perturb(&classifier(), &batch).unwrap();
                    batch.budget.distance(&images, &found).double_value(&[0]) / smallest
                };
                assert!((1.0..1.01).contains(&found(1.01)), "{norm} {targeted}");
                assert_eq!(found(0.99), 0.0, "{norm} {targeted}");
            }
        }
    }

    #[test]
    fn what_is_misclassified_already_is_left_alone() {
        let (images, labels) = (grey(), Tensor::from_slice(&[2_i64]));
        let batch = batch(&images, &labels, Norm::L2, 0.5);
        let logits = classifier().logits(&images);
        let conditions = Conditions { logits: Some(&logits), until_fooled: false };
        let search = Fab::default().begin(&batch, &conditions).unwrap();
        assert!(bool::try_from(search.finished().all()).unwrap());
        assert_eq!(search.adversarial(), images);
    }

    #[test]
    fn random_starts_lie_in_half_the_budget() {
        let (images, labels) = (grey(), Tensor::from_slice(&[0_i64]));
        for norm in NORMS {
            let batch = batch(&images, &labels, norm, 0.2);
            let far = batch.budget.distance(&images, &random_start(&batch)).double_value(&[0]);
            assert!((far - 0.1).abs() < 1e-6, "{norm}: {far}");
        }
        let attack = Fab { restarts: 2, ..Fab::default() };
        assert_eq!([0, 1, 2, 3].map(|restart| attack.random(restart)), [false, true, false, true]);
        let attack = Fab { targeted: false, ..attack };
        assert_eq!([0, 1, 2, 3].map(|restart| attack.random(restart)), [false, true, true, true]);
    }

    #[test]
    fn names_hold_every_setting_and_bad_ones_are_errors() {
        assert_eq!(Fab::default().name(), "fab-t-100");
        let plain = Fab { targeted: false, restarts: 5, eta: 1.1, ..Fab::default() };
        assert_eq!(plain.name(), "fab-100x5:eta=1.1");
        assert_eq!((plain.restarts(4), Fab { restarts: 2, ..Fab::default() }.restarts(4)), (5, 6));
        assert!(Fab::default().adjustment(4).is_some() && plain.adjustment(4).is_none());
        let (images, labels) = (grey(), Tensor::from_slice(&[0_i64]));
        let good = batch(&images, &labels, Norm::L2, 0.1);
        let logits = classifier().logits(&images);
        let conditions = Conditions { logits: Some(&logits), until_fooled: false };
        assert!(plain.begin(&good, &conditions).is_ok());
        assert!(plain.begin(&good, &Conditions::default()).is_err());
        let targeted = Batch { objective: Objective::TargetedCrossEntropy, ..good };
        assert!(plain.begin(&targeted, &conditions).is_err());
        assert!(plain.begin(&batch(&images, &labels, Norm::L0, 0.1), &conditions).is_err());
        assert!(Fab { beta: 0.0, ..Fab::default() }.begin(&good, &conditions).is_err());
        assert!(Fab { alpha_max: f64::NAN, ..Fab::default() }.begin(&good, &conditions).is_err());
    }
}
