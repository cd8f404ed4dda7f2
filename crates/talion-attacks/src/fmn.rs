//! The Fast Minimum-Norm attack.

use serde::{Deserialize, Serialize};
use talion_core::{Budget, Classifier, Norm, Result};
use tch::{Kind, Tensor};

use crate::{
    Attack, Attempt, Batch, Conditions, Passes,
    attempt::{choose, per_row},
    closest::{
        Hunt, Pursuit, chase, check_count, check_number, dual, filled, lengths, look, scaled, setting,
    },
};

/// The nearest image in any norm that fools, in a ball that follows the boundary: it shrinks while its image fools, grows
/// while it does not, and before the first success reaches as far as the boundary would be if the classifier were linear.
///
/// Each step follows the `L2`-normalised gradient of the attacker's lead, the difference of two logits, and is then
/// projected on the ball and clamped to the box. For `L0` the ball holds a whole number of values: it begins with one, and
/// changes by at least one.
///
/// # Budget
/// Every norm. The attack does not aim at the budget: the nearest image counts if it lies inside, and else the benign
/// image is the answer.
///
/// # Source
/// Pintor et al., "Fast Minimum-norm Adversarial Attacks through Adaptive Norm Constraints", NeurIPS 2021, algorithm 1.
/// Where step and share end (a hundredth of the first step, and 0.001) is from the authors' program. Before the first success
/// the ball grows by at least that share, which the paper does not say.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Fmn {
    /// Number of steps, at least 1. Default 100.
    pub steps: u32,
    /// The first step's length in `L2`, whatever the norm, in units of the `[0, 1]` image scale, above 0; the paper's
    /// `alpha_0`. It falls to its hundredth part along a cosine. Default 1.0.
    pub step: f64,
    /// The share by which the ball shrinks or grows in the first step, between 0.001, to which it falls along a cosine,
    /// and 1; the paper's `gamma_0`. Default 0.05.
    pub gamma: f64,
}

impl Default for Fmn {
    fn default() -> Self {
        Self { steps: 100, step: 1.0, gamma: 0.05 }
    }
}

impl Attack for Fmn {
    fn name(&self) -> String {
        let usual = Self::default();
        let step = setting("step", self.step, usual.step);
        format!("fmn-{}{step}{}", self.steps, setting("gamma", self.gamma, usual.gamma))
    }

    fn cost(&self) -> Passes {
        Passes::GRADIENT.times(self.steps.into())
    }

    fn begin(&self, batch: &Batch<'_>, conditions: &Conditions<'_>) -> Result<Box<dyn Attempt>> {
        check_count("the number of steps", self.steps)?;
        check_number("the step size", self.step, self.step > 0.0, "a finite number above 0")?;
        let share = (LAST_GAMMA..1.0).contains(&self.gamma);
        check_number("gamma", self.gamma, share, "at least 0.001 and less than 1")?;
        let first_radius = if batch.budget.norm() == Norm::L0 { 1.0 } else { f64::INFINITY };
        let ball = Ball {
            attack: self.clone(),
            image: batch.images.detach().copy(),
            radius: filled(batch, first_radius),
        };
        Ok(chase(batch, conditions, ball))
    }
}

/// The last step as a share of the first.
const LAST_STEP: f64 = 0.01;
/// Where `gamma` ends.
const LAST_GAMMA: f64 = 0.001;

/// An image in a ball around the benign one.
struct Ball {
    attack: Fmn,
    /// `[N, C, H, W]`.
    image: Tensor,
    /// `[N]`, `f64`; infinite until the first step has said something better.
    radius: Tensor,
}

impl Pursuit for Ball {
    fn step(&mut self, hunt: &mut Hunt, classifier: &dyn Classifier) -> Result<Tensor> {
        let found = look(classifier, &self.image, &|logits| hunt.lead(logits));
        let fooled = hunt.fools(&found.logits);
        let distance = hunt.offer(&self.image, &fooled);
        let norm = hunt.budget.norm();
        let radius = if norm == Norm::L0 {
            self.next_count(hunt, &fooled)
        } else {
            // the slope of the lead, at most, for a change of unit size
            let steepness = lengths(&found.gradient, dual(norm))?.clamp_min(1e-12);
            let boundary = &distance + found.loss.abs().to_kind(Kind::Double) / steepness;
            // an image on the boundary itself would stay there, if the radius did not grow at all
            let farther = &distance * (1.0 + LAST_GAMMA);
            self.next_radius(hunt, &fooled, &boundary.maximum(&farther))
        };
        // beyond the farthest corner of the box there is nothing
        self.radius = radius.minimum(&hunt.reach());
        let length = hunt.annealed(self.attack.step, self.attack.step * LAST_STEP, self.attack.steps);
        let direction = Budget::new(Norm::L2, 0.0)?.steepest(&found.gradient);
        let change = &self.image - &hunt.rows.original + scaled(&direction, &length);
        let inside = project(&change, norm, &self.radius);
        self.image = (&hunt.rows.original + inside).clamp(0.0, 1.0);
        Ok(hunt.is_last_of(self.attack.steps))
    }

    fn state(&mut self) -> Vec<&mut Tensor> {
        vec![&mut self.image, &mut self.radius]
    }
}

impl Ball {
    /// The share of this step, `[N]`, `f64`.
    fn gamma(&self, hunt: &Hunt) -> Tensor {
        hunt.annealed(self.attack.gamma, LAST_GAMMA, self.attack.steps)
    }

    /// The next radius, `[N]`; `boundary` is for rows that have not fooled yet.
    fn next_radius(&self, hunt: &Hunt, fooled: &Tensor, boundary: &Tensor) -> Tensor {
        let gamma = self.gamma(hunt);
        let smaller = (&self.radius * (1.0_f64 - &gamma)).minimum(hunt.closest.distance());
        let larger = &self.radius * (1.0_f64 + &gamma);
        choose(fooled, &smaller, &choose(&hunt.closest.found(), &larger, boundary))
    }

    /// The next number of values that may change, `[N]`.
    fn next_count(&self, hunt: &Hunt, fooled: &Tensor) -> Tensor {
        let gamma = self.gamma(hunt);
        let smaller = (&self.radius * (1.0_f64 - &gamma)).floor().minimum(&(&self.radius - 1.0));
        let larger = (&self.radius * (1.0_f64 + &gamma)).floor().maximum(&(&self.radius + 1.0));
        choose(fooled, &smaller.minimum(hunt.closest.distance()).clamp_min(0.0), &larger)
    }
}

/// The change nearest to each row's `change` in `L2` that lies in the ball of the row's own radius.
///
/// # Shapes
/// `change` `[N, ..]`; `radius` `[N]`, `f64`, finite, at least 0; the result is like `change`.
fn project(change: &Tensor, norm: Norm, radius: &Tensor) -> Tensor {
    match norm {
        Norm::Linf => {
            let limit = per_row(&radius.to_kind(change.kind()), change);
            change.minimum(&limit).maximum(&-&limit)
        }
        Norm::L2 => {
            let length = change.flatten(1, -1).to_kind(Kind::Double).square();
            let length = length.sum_dim_intlist([1].as_slice(), false, None).sqrt();
            scaled(change, &(radius / length.clamp_min(1e-30)).clamp_max(1.0))
        }
        Norm::L1 => project_l1(change, radius),
        Norm::L0 => largest_values(change, radius),
    }
}

/// All values shrunk by one amount, the least that brings the row into the ball (Duchi et al., "Efficient Projections onto
/// the l1-Ball for Learning in High Dimensions", ICML 2008, figure 1).
fn project_l1(change: &Tensor, radius: &Tensor) -> Tensor {
    let flat = change.flatten(1, -1).to_kind(Kind::Double);
    let (sizes, _) = flat.abs().sort(1, true);
    // if only the largest values up to each were left, all shrunk alike: what has to go, and among how many
    let excess = sizes.cumsum(1, None) - radius.unsqueeze(1);
    let counts = ranks(&flat) + 1.0;
    let stays = (&sizes * &counts).gt_tensor(&excess);
    let last = stays.sum_dim_intlist([1].as_slice(), true, Kind::Int64).clamp_min(1_i64) - 1_i64;
    let amount = excess.gather(1, &last, false) / (last.to_kind(Kind::Double) + 1.0);
    let kept = (flat.abs() - amount.clamp_min(0.0)).clamp_min(0.0) * flat.sign();
    kept.to_kind(change.kind()).view_as(change)
}

/// `change` with all but the largest values of each row zero; of equal values the first stay.
fn largest_values(change: &Tensor, counts: &Tensor) -> Tensor {
    let flat = change.flatten(1, -1);
    let (_, order) = flat.abs().sort_stable(true, 1, true);
    let stays = ranks(&flat).lt_tensor(&counts.unsqueeze(1)).to_kind(flat.kind());
    (flat.zeros_like().scatter(1, &order, &stays) * &flat).view_as(change)
}

/// `[0, 1, 2, ..]`, as many as `flat` `[N, D]` has values in a row, `f64`.
fn ranks(flat: &Tensor) -> Tensor {
    let values = flat.size().last().copied().unwrap_or_default();
    Tensor::arange(values, (Kind::Double, flat.device()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::closest::testing::{check_edges, ratios};

    #[test]
    fn the_nearest_point_of_a_plane_is_found() {
        for norm in [Norm::Linf, Norm::L2, Norm::L1] {
            for ratio in ratios(&Fmn::default(), norm) {
                assert!((0.999..1.1).contains(&ratio), "{norm}: {ratio}");
            }
        }
        // one value is enough to cross the plane
        for count in ratios(&Fmn::default(), Norm::L0) {
            assert!((1.0..=2.0).contains(&count), "{count}");
        }
    }

    #[test]
    fn what_fools_already_is_left_alone() {
        check_edges(&Fmn::default(), &Norm::ALL);
    }

    #[test]
    fn projections_are_those_of_a_budget_with_the_same_radius() {
        let original = Tensor::full([2, 1, 2, 3], 0.5, (Kind::Double, tch::Device::Cpu));
        let change = [0.3_f64, -0.2, 0.1, 0.05, -0.25, 0.0].repeat(2);
        let change = Tensor::from_slice(&change).view_as(&original);
        for norm in Norm::ALL {
            for radius in [0.0_f64, 0.02, 0.15, 0.5, 1.0, 2.0, 5.0] {
                // the other row's radius must not matter
                let radii = Tensor::from_slice(&[radius, 0.1]);
                let found = project(&change, norm, &radii).get(0);
                let budget = Budget::new(norm, radius).unwrap();
                // L0 counts whole values, and this function is given nothing else
                if norm == Norm::L0 && radius.fract() != 0.0 {
                    continue;
                }
                let expected = (budget.project(&original, &(&original + &change)) - &original).get(0);
                let off = (found - expected).abs().max().double_value(&[]);
                assert!(off < 1e-6, "{norm} {radius}: {off}");
            }
        }
    }
}
