//! Decoupling Direction and Norm.

use serde::{Deserialize, Serialize};
use talion_core::{Classifier, Norm, Result, gaussian_noise};
use tch::Tensor;

use crate::{
    Attack, Attempt, Batch, Conditions, Passes,
    attempt::choose,
    closest::{Hunt, Pursuit, chase, check_count, check_norm, check_number, filled, look, scaled, setting},
};

/// The nearest image in `L2` that fools, on a sphere that shrinks a little whenever its image fools, and grows a little
/// whenever it does not.
///
/// Each step follows the normalised gradient of the objective, which need not be the paper's cross-entropy, and is then
/// put back on the sphere. Where the gradient is zero, noise takes its place. Unlike in the paper, images are not rounded
/// to 256 levels.
///
/// # Budget
/// `L2` only. The attack does not aim at the budget: the nearest image counts if it lies inside, and else the benign image
/// is the answer.
///
/// # Source
/// Rony et al., "Decoupling Direction and Norm for Efficient Gradient-Based L2 Adversarial Attacks and Defenses", CVPR
/// 2019, algorithm 1; the step falls from 1 to 0.01 along a cosine, as in its experiments.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Ddn {
    /// Number of steps, at least 1. Default 100.
    pub steps: u32,
    /// The first sphere's radius in units of the `[0, 1]` image scale, above 0. Default 1.0.
    pub radius: f64,
    /// The share by which the sphere shrinks or grows in a step, between 0 and 1. Default 0.05.
    pub gamma: f64,
}

impl Default for Ddn {
    fn default() -> Self {
        Self { steps: 100, radius: 1.0, gamma: 0.05 }
    }
}

impl Attack for Ddn {
    fn name(&self) -> String {
        let usual = Self::default();
        let radius = setting("radius", self.radius, usual.radius);
        format!("ddn-{}{radius}{}", self.steps, setting("gamma", self.gamma, usual.gamma))
    }

    fn cost(&self) -> Passes {
        Passes::GRADIENT.times(self.steps.into())
    }

    fn begin(&self, batch: &Batch<'_>, conditions: &Conditions<'_>) -> Result<Box<dyn Attempt>> {
        check_norm("ddn", &batch.budget, &[Norm::L2])?;
        check_count("the number of steps", self.steps)?;
        check_number("the radius", self.radius, self.radius > 0.0, "a finite number above 0")?;
        check_number("gamma", self.gamma, self.gamma > 0.0 && self.gamma < 1.0, "between 0 and 1")?;
        let sphere = Sphere {
            attack: self.clone(),
            image: batch.images.detach().copy(),
            radius: filled(batch, self.radius),
        };
        Ok(chase(batch, conditions, sphere))
    }
}

/// An image on a sphere around the benign one.
struct Sphere {
    attack: Ddn,
    /// `[N, C, H, W]`.
    image: Tensor,
    /// `[N]`, `f64`.
    radius: Tensor,
}

/// The step of the first iteration, as a length.
const FIRST_STEP: f64 = 1.0;
/// The step where the cosine ends.
const LAST_STEP: f64 = 0.01;

impl Pursuit for Sphere {
    fn step(&mut self, hunt: &mut Hunt, classifier: &dyn Classifier) -> Result<Tensor> {
        let loss = |logits: &Tensor| hunt.objective.per_sample(logits, &hunt.rows.labels);
        let found = look(classifier, &self.image, &loss);
        let fooled = hunt.fools(&found.logits);
        let _ = hunt.offer(&self.image, &fooled);
        let (smaller, larger) = (1.0 - self.attack.gamma, 1.0 + self.attack.gamma);
        let radius = choose(&fooled, &(&self.radius * smaller), &(&self.radius * larger));
        // beyond the farthest corner of the box there is nothing
        self.radius = radius.minimum(&hunt.reach());
        let direction = hunt.budget.steepest(&without_standstill(&found.gradient, hunt)?);
        let length = hunt.annealed(FIRST_STEP, LAST_STEP, self.attack.steps);
        let change = &self.image - &hunt.rows.original + scaled(&direction, &length);
        let on_sphere = scaled(&hunt.budget.steepest(&change), &self.radius);
        self.image = (&hunt.rows.original + on_sphere).clamp(0.0, 1.0);
        Ok(hunt.is_last_of(self.attack.steps))
    }

    fn state(&mut self) -> Vec<&mut Tensor> {
        vec![&mut self.image, &mut self.radius]
    }
}

/// `gradient` with noise in the rows where it is zero: the next image may have one that is not.
fn without_standstill(gradient: &Tensor, hunt: &Hunt) -> Result<Tensor> {
    let zero = Vec::<bool>::try_from(gradient.flatten(1, -1).abs().amax([1].as_slice(), false).eq(0.0))?;
    let places: Vec<i64> = (0..).zip(&zero).filter_map(|(place, &zero)| zero.then_some(place)).collect();
    if places.is_empty() {
        return Ok(gradient.shallow_clone());
    }
    let shape = gradient.size();
    let row = shape.get(1..).unwrap_or_default();
    // drawn for these rows alone, since draws take time
    let noise: Vec<Tensor> = (hunt.rows.keys()?.into_iter().zip(zero))
        .filter(|(_, zero)| *zero)
        .map(|((id, number), _)| gaussian_noise(row, &[id], hunt.seed, "ddn", number))
        .collect();
    let noise = Tensor::cat(&noise, 0).to_device(gradient.device()).to_kind(gradient.kind());
    Ok(gradient.index_copy(0, &Tensor::from_slice(&places).to_device(gradient.device()), &noise))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::closest::testing::{check_edges, ratios};

    #[test]
    fn the_nearest_point_of_a_plane_is_found() {
        for ratio in ratios(&Ddn::default(), Norm::L2) {
            assert!((0.999..1.06).contains(&ratio), "{ratio}");
        }
    }

    #[test]
    fn what_fools_already_is_left_alone_and_other_norms_are_refused() {
        check_edges(&Ddn::default(), &[Norm::L2]);
    }
}
