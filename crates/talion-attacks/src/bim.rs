//! The Basic Iterative Method.

use serde::{Deserialize, Serialize};
use talion_core::{Budget, Result};

use crate::{
    Attack, Attempt, Batch, Conditions, Passes,
    ascent::{Ascent, climb, step_size},
};

/// FGSM in small steps, each projected back into the budget, from the image itself.
///
/// # Source
/// Kurakin, Goodfellow and Bengio, "Adversarial Examples in the Physical World", ICLR workshop 2017, section 2.2; there
/// the step is 1/255 and the number of steps `min(levels + 4, 1.25 levels)` for a budget of so many levels, 10 for 8/255.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Bim {
    /// Number of steps, at least 1. Default 10.
    pub steps: u32,
    /// Size of a step in units of the `[0, 1]` image scale (attack libraries often fix 2/255). Default: `None`, which is
    /// `2.5 * epsilon / steps`, the rule of [`crate::Pgd`]: it follows the budget, and reaches its border whatever the
    /// number of steps.
    pub step: Option<f64>,
}

impl Default for Bim {
    fn default() -> Self {
        Self { steps: 10, step: None }
    }
}

impl Attack for Bim {
    fn name(&self) -> String {
        format!("bim-{}{}", self.steps, crate::spec::suffix("step", self.step))
    }

    fn cost(&self) -> Passes {
        Passes::GRADIENT.times(self.steps.into())
    }

    fn begin(&self, batch: &Batch<'_>, conditions: &Conditions<'_>) -> Result<Box<dyn Attempt>> {
        climb(self, batch, conditions)
    }
}

impl Ascent for Bim {
    fn steps(&self) -> u32 {
        self.steps
    }

    fn step_size(&self, budget: &Budget) -> Result<f64> {
        step_size(self.step, 2.5, budget, self.steps)
    }
}
