//! The attack of Carlini and Wagner.

use serde::{Deserialize, Serialize};
use talion_core::{Classifier, Norm, Result, elementwise};
use tch::{Kind, Tensor};

use crate::{
    Attack, Attempt, Batch, Conditions, Passes,
    attempt::{choose, per_row},
    closest::{Hunt, Pursuit, chase, check_count, check_norm, check_number, filled, look, scaled, setting},
};

/// The nearest image in `L2` that fools, by descent of `distance^2 + c * f`, where `f` is how far the attacker's class is
/// behind; the weight `c` is found for each sample by a binary search.
///
/// Images are the `tanh` of what is optimised, so no step leaves the box; they are stretched by a millionth, so that values
/// 0 and 1 have a place there too. `f` compares with the largest *other* logit, which is so whatever the logits' signs; with
/// targets it is the target that has to be larger than all others.
///
/// Each search starts anew at the image. It stops early when the loss has not fallen by a ten-thousandth over a tenth of
/// its steps, and counts as a success if any of its images fooled. The first weight is 1e-3; it grows tenfold until a
/// search succeeds, and then halves the interval between the last failure and success.
///
/// # Budget
/// `L2` only. The attack does not aim at the budget: the nearest image counts if it lies inside, and else the benign image
/// is the answer.
///
/// # Source
/// Carlini and Wagner, "Towards Evaluating the Robustness of Neural Networks", IEEE S&P 2017, sections V and VI-A (loss
/// `f6`); the number of searches, the first weight and the early stop are those of the authors' program, which makes up to
/// 10,000 steps a search.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Cw {
    /// Number of steps of one search, at least 1. Default 1000.
    pub steps: u32,
    /// Number of searches, each with another weight, at least 1. Default 9.
    pub search: u32,
    /// How far ahead the attacker's class has to be, in units of the logits, at least 0. Default 0.
    pub confidence: f64,
    /// Learning rate of Adam, above 0, in units of `tanh` space, where the middle half of the image scale is about one
    /// unit long. Default 0.01.
    pub rate: f64,
}

impl Default for Cw {
    fn default() -> Self {
        Self { steps: 1000, search: 9, confidence: 0.0, rate: 0.01 }
    }
}

impl Attack for Cw {
    fn name(&self) -> String {
        let usual = Self::default();
        let search = setting("search", self.search.into(), usual.search.into());
        let confidence = setting("confidence", self.confidence, usual.confidence);
        format!("cw-{}{search}{confidence}{}", self.steps, setting("rate", self.rate, usual.rate))
    }

    fn cost(&self) -> Passes {
        Passes::GRADIENT.times(u64::from(self.steps) * u64::from(self.search))
    }

    fn begin(&self, batch: &Batch<'_>, conditions: &Conditions<'_>) -> Result<Box<dyn Attempt>> {
        check_norm("cw", &batch.budget, &[Norm::L2])?;
        check_settings(self.steps, self.search, self.confidence, self.rate)?;
        let descent = Descent {
            confidence: self.confidence,
            rate: self.rate,
            weights: WeightSearch::new(batch, self.steps, self.search),
            place: to_place(&batch.images.detach()),
            mean: batch.images.detach().zeros_like(),
            square: batch.images.detach().zeros_like(),
        };
        Ok(chase(batch, conditions, descent))
    }
}

/// Checks the settings that this attack has in common with the elastic-net attack.
pub(crate) fn check_settings(steps: u32, search: u32, confidence: f64, rate: f64) -> Result<()> {
    check_count("the number of steps", steps)?;
    check_count("the number of searches", search)?;
    check_number("the confidence", confidence, confidence >= 0.0, "a finite number, at least 0")?;
    check_number("the learning rate", rate, rate > 0.0, "a finite number above 0")
}

/// Adam in `tanh` space.
struct Descent {
    confidence: f64,
    rate: f64,
    weights: WeightSearch,
    /// What is optimised, `[N, C, H, W]`.
    place: Tensor,
    /// Running mean of the gradients.
    mean: Tensor,
    /// Running mean of their squares.
    square: Tensor,
}

impl Pursuit for Descent {
    fn step(&mut self, hunt: &mut Hunt, classifier: &dyn Classifier) -> Result<Tensor> {
        let original = hunt.rows.original.shallow_clone();
        // a search starts at the image itself, not at what is left of it after a journey through tanh space
        let bent = bend(&self.place);
        let images = choose(&self.weights.starts(), &original, &to_images(&bent));
        let found = look(classifier, &images, &|logits| hunt.shortfall(logits, self.confidence));
        let fooled = hunt.fools(&found.logits).logical_and(&found.loss.le(0.0));
        let distance = hunt.offer(&images, &fooled);
        let loss = distance.square() + self.weights.weighted(&found.loss);
        let by_image = (&images - &original) * 2.0 + self.weights.weighted(&found.gradient);
        self.descend(&(by_image * slope(&bent)));
        let ended = self.weights.advance(&fooled, &loss);
        self.restart(&ended, &original);
        Ok(self.weights.done())
    }

    fn state(&mut self) -> Vec<&mut Tensor> {
        let mut state = self.weights.state();
        state.extend([&mut self.place, &mut self.mean, &mut self.square]);
        state
    }
}

impl Descent {
    /// A step of Adam (Kingma and Ba 2015, algorithm 1).
    fn descend(&mut self, gradient: &Tensor) {
        // the squares of anything larger would overflow
        let gradient = gradient.nan_to_num(0.0, None, None).clamp(-1e18, 1e18);
        self.mean = &self.mean * MEAN_DECAY + &gradient * (1.0 - MEAN_DECAY);
        self.square = &self.square * SQUARE_DECAY + gradient.square() * (1.0 - SQUARE_DECAY);
        let steps = self.weights.elapsed() + 1.0;
        // both means start at 0, and are that much too small
        let unbiased = |mean: &Tensor, decay: f64| {
            let share = 1.0_f64 - elementwise(&(&steps * decay.ln()), f64::exp, Tensor::exp);
            scaled(mean, &share.reciprocal())
        };
        let size = unbiased(&self.square, SQUARE_DECAY).sqrt() + 1e-8;
        self.place = &self.place - unbiased(&self.mean, MEAN_DECAY) / size * self.rate;
    }

    /// Puts the rows `ended` back to the image, at rest.
    fn restart(&mut self, ended: &Tensor, original: &Tensor) {
        self.place = choose(ended, &to_place(original), &self.place);
        let ended = per_row(ended, original);
        self.mean = self.mean.masked_fill(&ended, 0.0);
        self.square = self.square.masked_fill(&ended, 0.0);
    }
}

/// Adam's `beta_1`, of the running mean.
const MEAN_DECAY: f64 = 0.9;
/// Adam's `beta_2`, of the running mean of squares.
const SQUARE_DECAY: f64 = 0.999;

/// How much of `tanh` space's range the box fills: its ends would otherwise lie at infinity.
const SHARE: f64 = 0.999_999;

/// The hyperbolic tangent of a place in `tanh` space.
fn bend(place: &Tensor) -> Tensor {
    elementwise(place, f64::tanh, Tensor::tanh)
}

/// Into the box, from a [bent](bend) place in `tanh` space.
fn to_images(bent: &Tensor) -> Tensor {
    // the last millionth sticks out of the box
    (bent * (0.5 / SHARE) + 0.5).clamp(0.0, 1.0)
}

/// From the box to `tanh` space.
fn to_place(images: &Tensor) -> Tensor {
    elementwise(&((images * 2.0 - 1.0) * SHARE), f64::atanh, Tensor::atanh)
}

/// The derivative of [`to_images`] by the place itself.
fn slope(bent: &Tensor) -> Tensor {
    (1.0 - bent.square()) * (0.5 / SHARE)
}

/// The first weight.
const FIRST_WEIGHT: f64 = 1e-3;
/// No weight is larger: the distance is then nothing beside what the classifier says.
const LAST_WEIGHT: f64 = 1e10;

/// The search for each row's weight of what the classifier says against the distance, and where in it the row is.
pub(crate) struct WeightSearch {
    steps: u32,
    searches: u32,
    /// `[N]`, as everything here; `f64`, as the next three.
    weight: Tensor,
    /// The largest weight that failed; 0 at first.
    failed: Tensor,
    /// The smallest weight that succeeded; infinite at first.
    succeeded: Tensor,
    /// The loss at the last check for an early stop; infinite before the first.
    checked: Tensor,
    /// Whether this search has fooled, boolean.
    fooled: Tensor,
    /// Steps done of this search, `i64`.
    step: Tensor,
    /// Searches done, `i64`.
    search: Tensor,
    /// Whether a search goes on though its loss has stopped falling.
    patient: bool,
}

impl WeightSearch {
    pub fn new(batch: &Batch<'_>, steps: u32, searches: u32) -> Self {
        Self {
            steps,
            searches,
            weight: filled(batch, FIRST_WEIGHT),
            failed: filled(batch, 0.0),
            succeeded: filled(batch, f64::INFINITY),
            checked: filled(batch, f64::INFINITY),
            fooled: filled(batch, 0.0).to_kind(Kind::Bool),
            step: filled(batch, 0.0).to_kind(Kind::Int64),
            search: filled(batch, 0.0).to_kind(Kind::Int64),
            patient: false,
        }
    }

    /// The same, every search of which makes all its steps.
    pub fn patient(self) -> Self {
        Self { patient: true, ..self }
    }

    /// For [`Attempt::state`].
    pub fn state(&mut self) -> Vec<&mut Tensor> {
        vec![
            &mut self.weight,
            &mut self.failed,
            &mut self.succeeded,
            &mut self.checked,
            &mut self.fooled,
            &mut self.step,
            &mut self.search,
        ]
    }

    /// The rows of `values`, each times its weight.
    pub fn weighted(&self, values: &Tensor) -> Tensor {
        scaled(values, &self.weight)
    }

    /// Whether each row is at the first step of a search, `[N]`, boolean.
    pub fn starts(&self) -> Tensor {
        self.step.eq(0_i64)
    }

    /// How many steps each row's search has done, `[N]`, `f64`.
    pub fn elapsed(&self) -> Tensor {
        self.step.to_kind(Kind::Double)
    }

    /// Whether all searches of a row are done, `[N]`, boolean.
    pub fn done(&self) -> Tensor {
        self.search.ge(i64::from(self.searches))
    }

    /// Counts a step that fooled or did not, and had that loss. Returns which rows begin a new search, `[N]`, boolean.
    pub fn advance(&mut self, fooled: &Tensor, loss: &Tensor) -> Tensor {
        self.fooled = self.fooled.logical_or(fooled);
        let last = self.step.ge(i64::from(self.steps) - 1);
        let ended = if self.patient { last } else { self.stalled(loss).logical_or(&last) };
        self.reweigh(&ended);
        self.checked = self.checked.masked_fill(&ended, f64::INFINITY);
        self.fooled = self.fooled.logical_and(&ended.logical_not());
        self.step = (&self.step + 1_i64).masked_fill(&ended, 0_i64);
        self.search = &self.search + ended.to_kind(Kind::Int64);
        ended
    }

    /// Where the loss has not fallen since it was looked at a tenth of the steps ago.
    fn stalled(&mut self, loss: &Tensor) -> Tensor {
        let due = self.step.remainder(i64::from(self.steps.div_ceil(10).max(1))).eq(0_i64);
        let stalled = due.logical_and(&loss.gt_tensor(&(&self.checked * 0.9999)));
        self.checked = choose(&due, loss, &self.checked);
        stalled
    }

    /// The next weight of the rows whose search has ended.
    fn reweigh(&mut self, ended: &Tensor) {
        let success = ended.logical_and(&self.fooled);
        let failure = ended.logical_and(&self.fooled.logical_not());
        self.succeeded = choose(&success, &self.succeeded.minimum(&self.weight), &self.succeeded);
        self.failed = choose(&failure, &self.failed.maximum(&self.weight), &self.failed);
        let middle = (&self.failed + &self.succeeded) * 0.5;
        let larger = (&self.weight * 10.0).clamp_max(LAST_WEIGHT);
        let next = choose(&self.succeeded.isfinite(), &middle, &larger);
        self.weight = choose(ended, &next, &self.weight);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::closest::testing::{check_edges, ratios};
    use talion_core::{Budget, Objective};

    #[test]
    fn the_nearest_point_of_a_plane_is_found() {
        let attack = Cw { steps: 300, rate: 0.002, ..Cw::default() };
        for ratio in ratios(&attack, Norm::L2) {
            assert!((0.999..1.15).contains(&ratio), "{ratio}");
        }
    }

    #[test]
    fn what_fools_already_is_left_alone_and_other_norms_are_refused() {
        check_edges(&Cw { steps: 20, search: 2, ..Cw::default() }, &[Norm::L2]);
    }

    #[test]
    fn the_ends_of_the_box_have_a_place() {
        let images = Tensor::from_slice(&[0.0_f32, 1e-7, 0.3, 0.5, 1.0]);
        let place = to_place(&images);
        assert!(bool::try_from(place.isfinite().all()).unwrap());
        assert!((to_images(&bend(&place)) - images).abs().max().double_value(&[]) < 1e-6);
    }

    #[test]
    fn weights_grow_until_one_succeeds_and_then_close_in() {
        let batch = Batch {
            images: &Tensor::zeros([2, 1, 1, 1], (Kind::Float, tch::Device::Cpu)),
            labels: &Tensor::from_slice(&[0_i64, 0]),
            ids: &[0, 1],
            budget: Budget::new(Norm::L2, 1.0).unwrap(),
            objective: Objective::CrossEntropy,
            seed: 0,
            restart: 0,
        };
        let mut search = WeightSearch::new(&batch, 1, 9);
        let needed = Tensor::from_slice(&[0.05, 1e30]);
        for _ in 0..9 {
            assert!(!bool::try_from(search.done().any()).unwrap());
            let fooled = search.weight.ge_tensor(&needed);
            let ended = search.advance(&fooled, &needed);
            assert!(bool::try_from(ended.all()).unwrap());
        }
        assert!(bool::try_from(search.done().all()).unwrap());
        let (failed, succeeded) = (search.failed.double_value(&[0]), search.succeeded.double_value(&[0]));
        assert!(
            (0.049..0.05).contains(&failed) && (0.05..0.051).contains(&succeeded),
            "{failed} {succeeded}"
        );
        assert!((search.weight.double_value(&[1]) / 1e6 - 1.0).abs() < 1e-9);
    }

    #[test]
    fn a_search_whose_loss_stays_stops_after_a_tenth_of_its_steps() {
        let batch = Batch {
            images: &Tensor::zeros([2, 1, 1, 1], (Kind::Float, tch::Device::Cpu)),
            labels: &Tensor::from_slice(&[0_i64, 0]),
            ids: &[0, 1],
            budget: Budget::new(Norm::L2, 1.0).unwrap(),
            objective: Objective::CrossEntropy,
            seed: 0,
            restart: 0,
        };
        let mut search = WeightSearch::new(&batch, 100, 9);
        let nothing = Tensor::from_slice(&[false, false]);
        for step in 0..=10 {
            let ended = search.advance(&nothing, &Tensor::from_slice(&[1.0, 0.5_f64.powi(step)]));
            assert_eq!(Vec::<bool>::try_from(ended).unwrap(), [step == 10, false]);
        }
        assert_eq!(Vec::<i64>::try_from(&search.step).unwrap(), [0, 11]);
        assert_eq!(Vec::<i64>::try_from(&search.search).unwrap(), [1, 0]);
    }
}
