//! What the attacks share that look for the nearest image that fools, however large the budget.
//!
//! They know a budget's norm from the beginning, but its radius only at the end: what they found counts if it lies inside.

use talion_core::{Budget, Classifier, Error, InputGradient, Norm, Objective, Result, elementwise};
use tch::{Kind, Tensor};

use crate::{
    Attempt, Batch, Conditions, Passes,
    attempt::{Rows, choose, per_row},
    spec::suffix,
};

/// The nearest image so far that fools, of each row.
pub(crate) struct Closest {
    /// `[N, C, H, W]`; the benign image until one is found.
    image: Tensor,
    /// How far it is from the benign image, `[N]`, `f64`; infinite until one is found.
    distance: Tensor,
}

impl Closest {
    /// Nothing found yet.
    pub fn new(batch: &Batch<'_>) -> Self {
        let distance = filled(batch, f64::INFINITY);
        Self { image: batch.images.detach().copy(), distance }
    }

    /// Keeps each row's candidate if it fooled and is nearer than what was found before.
    ///
    /// # Shapes
    /// `candidate` `[N, C, H, W]`; `distance` `[N]`, `f64`, as [`Budget::distance`] says it; `fooled` `[N]`, boolean.
    pub fn offer(&mut self, candidate: &Tensor, distance: &Tensor, fooled: &Tensor) {
        // the distance of an image with NaN is NaN, which is not less than anything
        let nearer = fooled.logical_and(&distance.lt_tensor(&self.distance));
        self.image = choose(&nearer, candidate, &self.image);
        self.distance = choose(&nearer, distance, &self.distance);
    }

    /// The distance of what was found, `[N]`, `f64`; infinite where nothing was.
    pub fn distance(&self) -> &Tensor {
        &self.distance
    }

    /// Whether something was found at all, `[N]`, boolean.
    pub fn found(&self) -> Tensor {
        self.distance.isfinite()
    }

    /// Whether something was found no farther away than `epsilon`, `[N]`, boolean.
    pub fn within(&self, epsilon: f64) -> Tensor {
        self.distance.le(epsilon)
    }

    /// What was found where it lies inside the budget, and elsewhere the benign image, `[N, C, H, W]`.
    pub fn answer(&self, rows: &Rows, budget: &Budget) -> Tensor {
        choose(&self.within(budget.epsilon()), &self.image, &rows.original)
    }

    /// For [`Attempt::state`].
    pub fn state(&mut self) -> Vec<&mut Tensor> {
        vec![&mut self.image, &mut self.distance]
    }
}

/// What a search for the nearest image knows of its rows, and what it has found for them.
pub(crate) struct Hunt {
    pub rows: Rows,
    pub closest: Closest,
    pub budget: Budget,
    pub objective: Objective,
    pub seed: u64,
    until_fooled: bool,
}

impl Hunt {
    /// Whether each row fools, `[N]`, boolean.
    pub fn fools(&self, logits: &Tensor) -> Tensor {
        self.objective.reached(&logits.argmax(1, false), &self.rows.labels)
    }

    /// How far the attacker is ahead, `[N]`, positive where it fools: the largest other logit less the label's, or a
    /// target's logit less the largest other.
    pub fn lead(&self, logits: &Tensor) -> Tensor {
        let margin = Objective::Margin.per_sample(logits, &self.rows.labels);
        if self.targeted() { -margin } else { margin }
    }

    /// By how much the lead falls short of `confidence`, `[N]`, at least 0: the papers' `f`.
    pub fn shortfall(&self, logits: &Tensor, confidence: f64) -> Tensor {
        (confidence - self.lead(logits)).relu()
    }

    /// Whether the labels are targets.
    pub fn targeted(&self) -> bool {
        self.objective == Objective::TargetedCrossEntropy
    }

    /// Keeps those of `images` that fooled and are nearer than what is known. Returns the distance of each, `[N]`, `f64`.
    pub fn offer(&mut self, images: &Tensor, fooled: &Tensor) -> Tensor {
        let distance = self.budget.distance(&self.rows.original, images);
        self.closest.offer(images, &distance, fooled);
        distance
    }

    /// How far each row's farthest image of the box is, `[N]`, `f64`.
    pub fn reach(&self) -> Tensor {
        let original = &self.rows.original;
        self.budget.distance(original, &original.lt(0.5).to_kind(original.kind()))
    }

    /// Whether this is the last of so many steps, `[N]`, boolean.
    pub fn is_last_of(&self, steps: u32) -> Tensor {
        self.rows.iteration.ge(i64::from(steps) - 1)
    }

    /// A number for each row that falls from `first` at its first step to `last` after `steps`, along half a cosine.
    /// `[N]`, `f64`.
    pub fn annealed(&self, first: f64, last: f64, steps: u32) -> Tensor {
        let angle = self.rows.iteration.to_kind(Kind::Double) * (std::f64::consts::PI / f64::from(steps));
        (elementwise(&angle, f64::cos, Tensor::cos) + 1.0) * ((first - last) / 2.0) + last
    }

    /// Counts a step, and finishes the rows that have nothing left to do, or need no more.
    fn count(&mut self, done: &Tensor) {
        let enough = self.until_fooled.then(|| self.closest.within(self.budget.epsilon()));
        let done = enough.map_or_else(|| done.shallow_clone(), |enough| done.logical_or(&enough));
        // how many steps there are is known to whoever says `done`
        self.rows.count(i64::MAX, Some(&done));
    }
}

/// A way to look for the nearest image: what it keeps for each row, and how it moves.
///
/// It need not care which rows are finished. Tensors of its state are replaced, never changed in place.
pub(crate) trait Pursuit {
    /// Looks at an image of each row, offers it to the hunt, and decides about the next. Returns which rows have nothing
    /// left to do, `[N]`, boolean.
    fn step(&mut self, hunt: &mut Hunt, classifier: &dyn Classifier) -> Result<Tensor>;

    /// For [`Attempt::state`].
    fn state(&mut self) -> Vec<&mut Tensor>;

    /// What a step costs a row.
    fn passes(&self) -> Passes {
        Passes::GRADIENT
    }
}

/// A pursuit in progress.
struct Chase<P> {
    hunt: Hunt,
    pursuit: P,
}

/// Begins `pursuit` on the rows of `batch`.
pub(crate) fn chase<P: Pursuit + 'static>(
    batch: &Batch<'_>,
    conditions: &Conditions<'_>,
    pursuit: P,
) -> Box<dyn Attempt> {
    let hunt = Hunt {
        rows: Rows::new(batch),
        closest: Closest::new(batch),
        budget: batch.budget,
        objective: batch.objective,
        seed: batch.seed,
        until_fooled: conditions.until_fooled,
    };
    Box::new(Chase { hunt, pursuit })
}

impl<P: Pursuit> Attempt for Chase<P> {
    fn step(&mut self, classifier: &dyn Classifier) -> Result<()> {
        let before: Vec<Tensor> = kept(&mut self.hunt.closest, &mut self.pursuit)
            .into_iter()
            .map(|tensor| tensor.shallow_clone())
            .collect();
        let done = self.pursuit.step(&mut self.hunt, classifier)?;
        for (now, before) in kept(&mut self.hunt.closest, &mut self.pursuit).into_iter().zip(&before) {
            *now = self.hunt.rows.unfinished(now, before);
        }
        self.hunt.count(&done);
        Ok(())
    }

    fn state(&mut self) -> Vec<&mut Tensor> {
        let mut state = self.hunt.rows.state();
        state.extend(kept(&mut self.hunt.closest, &mut self.pursuit));
        state
    }

    fn finished(&self) -> Tensor {
        self.hunt.rows.finished.shallow_clone()
    }

    fn adversarial(&self) -> Tensor {
        self.hunt.closest.answer(&self.hunt.rows, &self.hunt.budget)
    }

    fn passes(&self) -> Passes {
        self.pursuit.passes()
    }
}

/// All state but what [`Rows`] takes care of itself.
fn kept<'a>(closest: &'a mut Closest, pursuit: &'a mut impl Pursuit) -> Vec<&'a mut Tensor> {
    let mut state = closest.state();
    state.extend(pursuit.state());
    state
}

/// The loss of each row at `images`, its gradient in their type, and the logits.
///
/// NaN in the gradient is taken as 0 and infinities as the largest finite number, for the reason that the climbing attacks
/// have: one undefined pixel must not spoil the whole image.
pub(crate) fn look(
    classifier: &dyn Classifier,
    images: &Tensor,
    loss: &dyn Fn(&Tensor) -> Tensor,
) -> InputGradient {
    let found = classifier.loss_gradient(images, loss);
    let gradient = found.gradient.to_kind(images.kind()).nan_to_num(0.0, None, None);
    InputGradient { gradient, ..found }
}

/// The rows of `values`, each times its own factor.
///
/// # Shapes
/// `values` `[N, ..]`, `factors` `[N]` of any type; the result is like `values`.
pub(crate) fn scaled(values: &Tensor, factors: &Tensor) -> Tensor {
    values * per_row(&factors.to_kind(values.kind()), values)
}

/// The entry of each row that belongs to its class.
///
/// # Shapes
/// `of_class` `[N, K, ..]`, `class` `[N]`; the result is `[N, ..]`.
pub(crate) fn pick(of_class: &Tensor, class: &Tensor) -> Tensor {
    let index = per_row(class, of_class).expand_as(&of_class.narrow(1, 0, 1));
    of_class.gather(1, &index, false).squeeze_dim(1)
}

/// Where each row's classes lie among all of them, boolean.
///
/// # Shapes
/// `logits` `[N, K]`, `classes` `[N, any number]`; the result is `[N, K]`.
pub(crate) fn marked(logits: &Tensor, classes: &Tensor) -> Tensor {
    logits.zeros_like().to_kind(Kind::Bool).scatter_value(1, classes, 1)
}

/// The same number for every row of `batch`, `[N]`, `f64`.
pub(crate) fn filled(batch: &Batch<'_>, value: f64) -> Tensor {
    Tensor::full([batch.ids.len() as i64], value, (Kind::Double, batch.images.device()))
}

/// The length of each row in a norm, `[N]`, `f64`.
pub(crate) fn lengths(values: &Tensor, norm: Norm) -> Result<Tensor> {
    Ok(Budget::new(norm, 0.0)?.distance(&values.zeros_like(), values))
}

/// The norm in which a gradient is as long as the loss is steep, if changes are measured in `norm`.
pub(crate) fn dual(norm: Norm) -> Norm {
    match norm {
        Norm::Linf => Norm::L1,
        Norm::L2 => Norm::L2,
        Norm::L1 | Norm::L0 => Norm::Linf,
    }
}

/// # Errors
/// If the attack has no meaning for the budget's norm.
pub(crate) fn check_norm(attack: &str, budget: &Budget, has: &[Norm]) -> Result<()> {
    if has.contains(&budget.norm()) {
        return Ok(());
    }
    let has: Vec<String> = has.iter().map(ToString::to_string).collect();
    Err(Error::Refused(format!(
        "{attack} has no meaning for the norm {}; it works with {}",
        budget.norm(),
        has.join(", ")
    )))
}

/// # Errors
/// If there is nothing to count.
pub(crate) fn check_count(what: &str, count: u32) -> Result<()> {
    check_number(what, f64::from(count), count > 0, "at least 1")
}

/// # Errors
/// If a setting is not finite, or `holds` not, which `expected` says in words.
pub(crate) fn check_number(what: &str, value: f64, holds: bool, expected: &str) -> Result<()> {
    if value.is_finite() && holds { Ok(()) } else { Err(Error::range(what, expected, value)) }
}

/// The part of a name that holds a setting, empty where it has its default.
pub(crate) fn setting(key: &str, value: f64, default: f64) -> String {
    suffix(key, (value != default).then_some(value))
}

#[cfg(test)]
pub(crate) mod testing {
    //! A problem whose nearest image is known in closed form.

    use talion_core::{gaussian_noise, uniform_noise};

    use super::*;
    use crate::Attack;

    const IDS: [u64; 6] = [3, 5, 7, 11, 13, 17];
    /// From each image to the plane, in `L2`: so near that no nearest point of any norm meets the box.
    const DISTANCE: f64 = 0.05;

    /// Two classes on either side of a plane.
    struct Plane {
        weight: Tensor,
    }

    impl Classifier for Plane {
        fn classes(&self) -> i64 {
            2
        }

        fn logits(&self, images: &Tensor) -> Tensor {
            (images - 0.5).flatten(1, -1).matmul(&self.weight.tr())
        }
    }

    /// The plane's normal, `[1, 24]`, images near the plane, and their true labels.
    fn problem() -> (Plane, Tensor, Tensor, Tensor) {
        let plane = Plane { weight: gaussian_noise(&[24], &[0, 1], 3, "plane", 0) * 0.3 };
        let normal = plane.weight.narrow(0, 1, 1) - plane.weight.narrow(0, 0, 1);
        let unit = &normal / normal.norm();
        let anywhere = uniform_noise(&[24], &IDS, 3, "images", 0) * 0.05;
        let on_plane = &anywhere - anywhere.matmul(&unit.tr()) * &unit;
        let labels = Tensor::arange(6_i64, (Kind::Int64, tch::Device::Cpu)).remainder(2_i64);
        let side = (labels.to_kind(Kind::Float) * 2.0 - 1.0).unsqueeze(1);
        let images = (on_plane + side * unit * DISTANCE + 0.5).reshape([6, 2, 3, 4]);
        (plane, normal, images, labels)
    }

    fn attacked(
        attack: &dyn Attack,
        plane: &Plane,
        (images, labels): (&Tensor, &Tensor),
        (norm, objective): (Norm, Objective),
    ) -> (Tensor, Vec<f64>) {
        let budget = Budget::new(norm, 100.0).unwrap();
        let batch = Batch { images, labels, ids: &IDS, budget, objective, seed: 7, restart: 0 };
        let found = attack.perturb(plane, &batch).unwrap();
        let distances = Vec::<f64>::try_from(budget.distance(images, &found)).unwrap();
        (found, distances)
    }

    /// How far away what the attack finds is, in units of the distance of the plane (in `L0`, in values changed):
    /// without and with targets, on images that are classified right.
    pub fn ratios(attack: &dyn Attack, norm: Norm) -> Vec<f64> {
        let (plane, normal, images, labels) = problem();
        let length = |norm| f64::try_from(lengths(&normal, norm).unwrap()).unwrap();
        let optimum = if norm == Norm::L0 { 1.0 } else { DISTANCE * length(Norm::L2) / length(dual(norm)) };
        let tasks = [
            (Objective::CrossEntropy, labels.shallow_clone()),
            (Objective::TargetedCrossEntropy, 1_i64 - &labels),
        ];
        let mut ratios = Vec::new();
        for (objective, labels) in tasks {
            let (found, distances) = attacked(attack, &plane, (&images, &labels), (norm, objective));
            let fooled = objective.reached(&plane.predict(&found), &labels);
            assert!(bool::try_from(fooled.all()).unwrap(), "{}: not all fool", attack.name());
            ratios.extend(distances.into_iter().map(|distance| distance / optimum));
        }
        ratios
    }

    /// An image that fools as it is has to be found, at distance 0; and other norms have to be refused.
    pub fn check_edges(attack: &dyn Attack, norms: &[Norm]) {
        let (plane, _, images, labels) = problem();
        let labels = 1_i64 - &labels;
        for norm in Norm::ALL {
            if norms.contains(&norm) {
                let task = (norm, Objective::CrossEntropy);
                let (found, _) = attacked(attack, &plane, (&images, &labels), task);
                assert_eq!(found, images, "{} {norm}", attack.name());
            } else {
                let budget = Budget::new(norm, 1.0).unwrap();
                let objective = Objective::CrossEntropy;
                let batch = Batch {
                    images: &images,
                    labels: &labels,
                    ids: &IDS,
                    budget,
                    objective,
                    seed: 7,
                    restart: 0,
                };
                let refused = attack.perturb(&plane, &batch);
                assert!(matches!(refused, Err(Error::Refused(_))), "{} {norm}", attack.name());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_image_that_fools_is_the_answer_if_it_is_inside() {
        let images = Tensor::zeros([3, 1, 1, 2], (Kind::Float, tch::Device::Cpu));
        let batch = Batch {
            images: &images,
            labels: &Tensor::from_slice(&[0_i64, 0, 0]),
            ids: &[0, 1, 2],
            budget: Budget::new(Norm::Linf, 0.5).unwrap(),
            objective: Objective::CrossEntropy,
            seed: 0,
            restart: 0,
        };
        let (rows, mut closest) = (Rows::new(&batch), Closest::new(&batch));
        // (value of the candidates, which of them fool): the second row finds only what is outside, the third nothing
        let offers = [(0.9, [true, true, false]), (0.2, [true, false, false]), (0.4, [true, false, false])];
        for (value, fooled) in offers {
            let candidate = images.full_like(value);
            let distance = batch.budget.distance(&images, &candidate);
            closest.offer(&candidate, &distance, &Tensor::from_slice(&fooled));
        }
        closest.offer(
            &images.full_like(f64::NAN),
            &Tensor::from_slice(&[f64::NAN; 3]),
            &Tensor::from_slice(&[true; 3]),
        );
        assert_eq!(Vec::<bool>::try_from(closest.found()).unwrap(), [true, true, false]);
        assert_eq!(Vec::<bool>::try_from(closest.within(0.5)).unwrap(), [true, false, false]);
        let answer = closest.answer(&rows, &batch.budget).flatten(0, -1);
        assert_eq!(Vec::<f32>::try_from(answer).unwrap(), [0.2, 0.2, 0.0, 0.0, 0.0, 0.0]);
    }

    #[test]
    fn each_row_gets_the_entry_of_its_class() {
        let values = Tensor::arange(12_i64, (Kind::Int64, tch::Device::Cpu)).reshape([2, 3, 2]);
        let class = Tensor::from_slice(&[2_i64, 0]);
        let picked = Vec::<i64>::try_from(pick(&values, &class).flatten(0, -1)).unwrap();
        assert_eq!(picked, [4, 5, 6, 7]);
        let marks = marked(&Tensor::zeros([2, 3], (Kind::Float, tch::Device::Cpu)), &class.unsqueeze(1));
        assert_eq!(
            Vec::<bool>::try_from(marks.flatten(0, -1)).unwrap(),
            [false, false, true, true, false, false]
        );
    }
}
