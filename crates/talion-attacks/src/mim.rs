//! The Momentum Iterative Method.

use serde::{Deserialize, Serialize};
use talion_core::{Budget, Classifier, Error, Result};
use tch::Tensor;

use crate::{
    Attack, Attempt, Batch, Conditions, Passes,
    ascent::{Ascent, View, climb, step_size},
};

/// BIM along a running sum of normalised gradients, which carries the attack over poor local maxima and lets its images
/// fool other classifiers too.
///
/// Each gradient is divided by its mean absolute value. The paper divides by the L1 norm; the two differ by the number of
/// values in an image, a constant that neither the sign nor the normalised direction of the sum can see.
///
/// # Source
/// Dong et al., "Boosting Adversarial Attacks with Momentum", CVPR 2018, algorithm 1; 10 steps of `epsilon / 10` and a
/// decay factor of 1.0 in section 4.1; the `L2` variant is its equation 9.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Mim {
    /// Number of steps, at least 1. Default 10.
    pub steps: u32,
    /// How much of the sum survives a step, the paper's mu, at least 0. Default 1.0.
    pub decay: f64,
    /// Size of a step in units of the `[0, 1]` image scale. Default: `None`, which is the paper's `epsilon / steps`.
    pub step: Option<f64>,
}

impl Default for Mim {
    fn default() -> Self {
        Self { steps: 10, decay: 1.0, step: None }
    }
}

impl Attack for Mim {
    fn name(&self) -> String {
        let decay = (self.decay != 1.0).then_some(self.decay);
        let (decay, step) = (crate::spec::suffix("decay", decay), crate::spec::suffix("step", self.step));
        format!("mim-{}{decay}{step}", self.steps)
    }

    fn cost(&self) -> Passes {
        Passes::GRADIENT.times(self.steps.into())
    }

    fn begin(&self, batch: &Batch<'_>, conditions: &Conditions<'_>) -> Result<Box<dyn Attempt>> {
        climb(self, batch, conditions)
    }
}

impl Ascent for Mim {
    fn steps(&self) -> u32 {
        self.steps
    }

    fn step_size(&self, budget: &Budget) -> Result<f64> {
        step_size(self.step, 1.0, budget, self.steps)
    }

    fn check(&self) -> Result<()> {
        check_decay(self.decay)
    }

    fn memories(&self) -> usize {
        1
    }

    fn direction(
        &self,
        classifier: &dyn Classifier,
        view: &View<'_>,
        memory: &mut [Tensor],
    ) -> Result<(Tensor, Option<Tensor>)> {
        let (gradient, logits) = view.gradient_at(classifier, view.iterate);
        Ok((view.budget.steepest(&accumulate(memory, self.decay, &gradient)), Some(logits)))
    }
}

/// Adds a gradient, divided by its mean, to the momentum, which is the first memory, and returns the sum.
pub(crate) fn accumulate(memory: &mut [Tensor], decay: f64, gradient: &Tensor) -> Tensor {
    let unit = unit_mean(gradient);
    match memory.first_mut() {
        Some(momentum) => {
            *momentum = &*momentum * decay + unit;
            momentum.shallow_clone()
        }
        None => unit,
    }
}

/// # Errors
/// If momentum would grow backwards, or without bound.
pub(crate) fn check_decay(decay: f64) -> Result<()> {
    if !decay.is_finite() || decay < 0.0 {
        return Err(Error::range("the decay", "a finite number, at least 0", decay));
    }
    Ok(())
}

/// Each row divided by its mean absolute value; a zero row stays zero.
fn unit_mean(gradient: &Tensor) -> Tensor {
    // The largest value is divided out first, so that the mean of huge values cannot overflow, nor that of tiny ones vanish.
    let rows = [1, 2, 3].as_slice();
    let scaled = gradient / nonzero(gradient.abs().amax(rows, true));
    &scaled / nonzero(scaled.abs().mean_dim(rows, true, None))
}

/// `scale` with its zeros replaced by ones.
fn nonzero(scale: Tensor) -> Tensor {
    scale.where_self(&scale.ne(0.0), &scale.ones_like())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gradients_are_normalised_by_their_mean_whatever_their_size() {
        for scale in [1.0, 1e-40, 3e37] {
            let row = Tensor::from_slice(&[1.0_f32, -3.0, 0.0, 4.0]).reshape([1, 1, 2, 2]) * scale;
            let unit = Vec::<f32>::try_from(unit_mean(&row).flatten(0, -1)).unwrap();
            for (value, expected) in unit.iter().zip([0.5, -1.5, 0.0, 2.0]) {
                assert!((value - expected).abs() < 1e-3, "{scale}: {unit:?}");
            }
        }
        let zero = Tensor::zeros([1, 1, 2, 2], (tch::Kind::Float, tch::Device::Cpu));
        assert_eq!(unit_mean(&zero), zero);
    }
}
