//! The Jacobian-based Saliency Map Attack.

use serde::{Deserialize, Serialize};
use talion_core::{Classifier, Error, Norm, Result};
use tch::{Kind, Tensor};

use crate::{
    Attack, Attempt, Batch, Conditions, Passes,
    attempt::choose,
    closest::{Hunt, Pursuit, chase, check_norm, check_number, look, marked, pick, setting},
};

/// Changes two values a step: the pair that raises the target's logit and lowers the sum of the others most, by the product
/// of both derivatives.
///
/// The map is made of the logits, not of probabilities, which saturate. Without targets it aims at the class with the
/// second largest logit, that is the largest beside the label, and stops at any class that fools. A row is finished when
/// it fools, when no pair has both effects, or when as many values as allowed have changed.
///
/// All pairs of a CIFAR image would be 4.7 million for each sample and step. The pair is sought among those 256 values
/// whose two derivatives, each divided by its largest, have the largest sum.
///
/// # Budget
/// `L0` only. The attack stops where the budget ends; an image that fooled before counts.
///
/// # Passes
/// A step takes two gradients: of the target's logit and of the sum of all.
///
/// # Source
/// Papernot et al., "The Limitations of Deep Learning in Adversarial Settings", Euro S&P 2016, algorithms 2 and 3
/// and equation 8 (for a negative `theta` equation 9); there up to 14.5 % of the values change.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Jsma {
    /// By how much a value is changed, not 0, in units of the `[0, 1]` image scale; the result is clamped to the box.
    /// Default 1.0: to the upper end of the box.
    pub theta: f64,
    /// The largest share of the values that is changed, above 0 and at most 1. Default 0.1.
    pub gamma: f64,
}

impl Default for Jsma {
    fn default() -> Self {
        Self { theta: 1.0, gamma: 0.1 }
    }
}

impl Jsma {
    /// The derivatives of the target and of all classes.
    const STEP: Passes = Passes { forward: 2, backward: 2 };

    /// How many pairs may be changed in an image of so many values, of which the budget allows to change a part.
    fn pairs(&self, values: f64, allowed: f64) -> i64 {
        ((values * self.gamma).min(allowed) / 2.0).floor() as i64
    }
}

impl Attack for Jsma {
    fn name(&self) -> String {
        let usual = Self::default();
        let theta = setting("theta", self.theta, usual.theta);
        format!("jsma{theta}{}", setting("gamma", self.gamma, usual.gamma))
    }

    /// On an image of 3 x 32 x 32 values, with a budget that allows to change them all.
    fn cost(&self) -> Passes {
        let values = 3.0 * 32.0 * 32.0;
        // one more to look at what the last pair has done
        Self::STEP.times(self.pairs(values, values).unsigned_abs() + 1)
    }

    fn wants_logits(&self) -> bool {
        true
    }

    fn begin(&self, batch: &Batch<'_>, conditions: &Conditions<'_>) -> Result<Box<dyn Attempt>> {
        check_norm("jsma", &batch.budget, &[Norm::L0])?;
        check_number("theta", self.theta, self.theta != 0.0, "a finite number other than 0")?;
        let share = self.gamma > 0.0 && self.gamma <= 1.0;
        check_number("gamma", self.gamma, share, "above 0 and at most 1")?;
        let logits = conditions
            .logits
            .ok_or_else(|| Error::Refused("jsma needs the logits of the benign images".into()))?;
        let label = marked(logits, &batch.labels.unsqueeze(1));
        let second = logits.masked_fill(&label, f64::NEG_INFINITY).argmax(1, false);
        let values = batch.images.size().iter().skip(1).product::<i64>() as f64;
        let painting = Painting {
            theta: self.theta,
            pairs: self.pairs(values, batch.budget.epsilon()),
            target: second,
            image: batch.images.detach().copy(),
        };
        Ok(chase(batch, conditions, painting))
    }
}

/// An image that is changed pair by pair.
struct Painting {
    theta: f64,
    pairs: i64,
    /// The class to aim at where the labels are not targets themselves, `[N]`.
    target: Tensor,
    /// `[N, C, H, W]`.
    image: Tensor,
}

impl Pursuit for Painting {
    fn step(&mut self, hunt: &mut Hunt, classifier: &dyn Classifier) -> Result<Tensor> {
        let target = if hunt.targeted() { &hunt.rows.labels } else { &self.target };
        let found = look(classifier, &self.image, &|logits| pick(logits, target));
        let all = look(classifier, &self.image, &|logits| {
            logits.sum_dim_intlist([1].as_slice(), false, logits.kind())
        });
        let fooled = hunt.fools(&found.logits);
        let _ = hunt.offer(&self.image, &fooled);
        // what a change by theta does, whatever its sign: how the target rises, and how the others fall
        let towards = self.theta.signum();
        let rise = hunt.budget.steepest(&found.gradient) * towards;
        let fall = hunt.budget.steepest(&(&found.gradient - &all.gradient)) * towards;
        let free = if self.theta > 0.0 { self.image.lt(1.0) } else { self.image.gt(0.0) };
        let flat = |values: &Tensor| values.flatten(1, -1);
        let (pair, helps) = best_pair(&flat(&rise), &flat(&fall), &flat(&free));
        let image = flat(&self.image);
        let change = image.zeros_like().scatter_value(1, &pair, self.theta);
        let changed = (&image + change).clamp(0.0, 1.0).view_as(&self.image);
        self.image = choose(&helps, &changed, &self.image);
        let spent = hunt.rows.iteration.ge(self.pairs);
        Ok(fooled.logical_or(&spent).logical_or(&helps.logical_not()))
    }

    fn state(&mut self) -> Vec<&mut Tensor> {
        vec![&mut self.target, &mut self.image]
    }

    fn passes(&self) -> Passes {
        Jsma::STEP
    }
}

/// Of how many values the best pair is sought.
const SHORTLIST: i64 = 256;

/// The places of the two values whose summed `rise` and summed `fall` are both positive and have the largest product,
/// `[N, 2]`, and whether there are any, `[N]`.
///
/// # Shapes
/// All `[N, D]`; only values that are `free` are considered.
fn best_pair(rise: &Tensor, fall: &Tensor, free: &Tensor) -> (Tensor, Tensor) {
    let count = rise.size().last().copied().unwrap_or_default().min(SHORTLIST);
    let merit = (rise + fall).masked_fill(&free.logical_not(), f64::NEG_INFINITY);
    let (merit, places) = merit.topk(count, 1, true, true);
    let free = merit.isfinite();
    let sums = |values: &Tensor| {
        let listed = values.gather(1, &places, false);
        listed.unsqueeze(2) + listed.unsqueeze(1)
    };
    let (rise, fall) = (sums(rise), sums(fall));
    let order = Tensor::arange(count, (Kind::Int64, rise.device()));
    let usable = (free.unsqueeze(2).logical_and(&free.unsqueeze(1)))
        .logical_and(&order.unsqueeze(1).lt_tensor(&order))
        .logical_and(&rise.gt(0.0))
        .logical_and(&fall.gt(0.0));
    let saliency = (rise * fall).masked_fill(&usable.logical_not(), 0.0).flatten(1, -1);
    let best = saliency.argmax(1, true);
    let pair = Tensor::cat(&[best.floor_divide_scalar(count), best.remainder(count)], 1);
    (places.gather(1, &pair, false), saliency.amax([1].as_slice(), false).gt(0.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::closest::testing::{check_edges, ratios};

    #[test]
    fn a_few_values_cross_a_plane_in_both_directions() {
        for theta in [1.0, -1.0] {
            for count in ratios(&Jsma { theta, gamma: 1.0 }, Norm::L0) {
                assert!((1.0..=4.0).contains(&count), "{theta}: {count}");
            }
        }
    }

    #[test]
    fn what_fools_already_is_left_alone_and_other_norms_are_refused() {
        check_edges(&Jsma::default(), &[Norm::L0]);
    }

    #[test]
    fn the_best_pair_is_found_among_free_values() {
        let row = |values: [f32; 4]| Tensor::from_slice(&values).unsqueeze(0);
        let (rise, fall) = (row([0.5, 1.0, 0.4, -0.1]), row([0.4, 0.1, 0.5, 0.9]));
        let find = |free: [bool; 4]| {
            let (pair, any) = best_pair(&rise, &fall, &Tensor::from_slice(&free).unsqueeze(0));
            let mut pair = Vec::<i64>::try_from(pair.flatten(0, -1)).unwrap();
            pair.sort_unstable();
            (pair, bool::try_from(any).unwrap())
        };
        // 0 and 1: 1.5 * 0.5; 0 and 2: 0.9 * 0.9; 1 and 2: 1.4 * 0.6; 1 and 3: 0.9 * 1.0
        assert_eq!(find([true; 4]), (vec![1, 3], true));
        assert_eq!(find([true, true, true, false]), (vec![1, 2], true));
        assert!(!find([true, false, false, false]).1);
    }
}
