//! Projected Gradient Descent from random starts.

use serde::{Deserialize, Serialize};
use talion_core::{Budget, Result};
use tch::Tensor;

use crate::{
    Attack, Attempt, Batch, Conditions, Passes,
    ascent::{Ascent, climb, step_size},
};

/// Projected ascent of the objective from a random point of the budget, several times over.
///
/// One call of [`Attack::perturb`] makes one restart and returns its last iterate, as the reference does;
/// [`fn@crate::run`] makes all restarts, and keeps for each sample the first image that fools, or else the one with the
/// highest loss.
///
/// # Step size
/// Measured once, `Linf` 1/255, 20 steps, one restart, a small convolutional network trained on 8,000 SVHN images, accuracy on
/// 512 others (79.1 % clean; FGSM 57.8 %): steps of `epsilon / 20` left 62.1 %, weaker than FGSM, since from a random
/// start the better side of the ball is then out of reach; the default, `2.5 * epsilon / 20`, left 55.9 %, and twice the
/// default 55.7 %. [`crate::Bim`], which starts in the middle, cares less: 56.8, 55.9 and 55.7 %.
///
/// # Source
/// Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks", ICLR 2018, section 2.1 and equation 2;
/// evaluated there with 20 steps of 2/255 on CIFAR-10, and with 100 steps of `2.5 * epsilon / 100` in appendix B.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Pgd {
    /// Number of steps of one restart, at least 1. Default 20.
    pub steps: u32,
    /// Number of random starts, at least 1. Default 1.
    pub restarts: u32,
    /// Size of a step in units of the `[0, 1]` image scale (attack libraries often fix 2/255). Default: `None`, which is
    /// `2.5 * epsilon / steps`: from any start the other side of the ball is in reach, with steps to spare.
    pub step: Option<f64>,
}

impl Default for Pgd {
    fn default() -> Self {
        Self { steps: 20, restarts: 1, step: None }
    }
}

impl Attack for Pgd {
    fn name(&self) -> String {
        let restarts = if self.restarts == 1 { String::new() } else { format!("x{}", self.restarts) };
        format!("pgd-{}{restarts}{}", self.steps, crate::spec::suffix("step", self.step))
    }

    fn cost(&self) -> Passes {
        Passes::GRADIENT.times(self.steps.into())
    }

    fn restarts(&self, _classes: i64) -> u64 {
        self.restarts.into()
    }

    fn begin(&self, batch: &Batch<'_>, conditions: &Conditions<'_>) -> Result<Box<dyn Attempt>> {
        climb(self, batch, conditions)
    }
}

impl Ascent for Pgd {
    fn steps(&self) -> u32 {
        self.steps
    }

    fn step_size(&self, budget: &Budget) -> Result<f64> {
        step_size(self.step, 2.5, budget, self.steps)
    }

    fn start(&self, batch: &Batch<'_>) -> Tensor {
        batch.budget.random_start(&batch.images.detach(), batch.ids, batch.seed, "pgd", batch.restart)
    }
}
