//! PGD on expectations over a randomised classifier's answers.

use serde::{Deserialize, Serialize};
use talion_core::{Budget, Classifier, Error, Result};
use tch::Tensor;

use crate::{
    Attack, Attempt, Batch, Conditions, Passes,
    ascent::{Ascent, View, climb, step_size},
};

/// PGD that follows the mean of several gradients at the same point: against a classifier that answers at random, one
/// gradient points anywhere. Against one that does not, it is PGD at a multiple of the price.
///
/// Whether such a classifier is fooled is a matter of chance, too: no row leaves before its last step.
///
/// # Source
/// Athalye et al., "Obfuscated Gradients Give a False Sense of Security", ICML 2018, section 4.2; 200 steps of 20 gradients
/// as in Lee and Kim, "Robust Evaluation of Diffusion-Based Adversarial Purification", ICCV 2023, section 5.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct EotPgd {
    /// Number of steps of one restart, at least 1. Default 200.
    pub steps: u32,
    /// Number of random starts, at least 1. Default 1.
    pub restarts: u32,
    /// Gradients a step, 1 to 1000. Default 20.
    pub draws: u32,
    /// Size of a step in units of the `[0, 1]` image scale. Default: `None`, which is `2.5 * epsilon / steps`.
    pub step: Option<f64>,
}

impl Default for EotPgd {
    fn default() -> Self {
        Self { steps: 200, restarts: 1, draws: 20, step: None }
    }
}

impl Attack for EotPgd {
    fn name(&self) -> String {
        let restarts = if self.restarts == 1 { String::new() } else { format!("x{}", self.restarts) };
        let draws = crate::spec::suffix("draws", (self.draws != 20).then_some(f64::from(self.draws)));
        format!("eot-pgd-{}{restarts}{draws}{}", self.steps, crate::spec::suffix("step", self.step))
    }

    fn cost(&self) -> Passes {
        self.passes().times(self.steps.into())
    }

    fn restarts(&self, _classes: i64) -> u64 {
        self.restarts.into()
    }

    fn begin(&self, batch: &Batch<'_>, conditions: &Conditions<'_>) -> Result<Box<dyn Attempt>> {
        climb(self, batch, conditions)
    }
}

impl Ascent for EotPgd {
    fn steps(&self) -> u32 {
        self.steps
    }

    fn step_size(&self, budget: &Budget) -> Result<f64> {
        step_size(self.step, 2.5, budget, self.steps)
    }

    fn check(&self) -> Result<()> {
        if !(1..=1000).contains(&self.draws) {
            return Err(Error::range("the number of draws", "1 to 1000", self.draws));
        }
        Ok(())
    }

    fn start(&self, batch: &Batch<'_>) -> Tensor {
        batch.budget.random_start(&batch.images.detach(), batch.ids, batch.seed, "eot-pgd", batch.restart)
    }

    fn passes(&self) -> Passes {
        Passes::GRADIENT.times(self.draws.into())
    }

    fn direction(
        &self,
        classifier: &dyn Classifier,
        view: &View<'_>,
        _memory: &mut [Tensor],
    ) -> Result<(Tensor, Option<Tensor>)> {
        let mut sum = view.iterate.zeros_like();
        for _ in 0..self.draws {
            sum += view.gradient_at(classifier, view.iterate).0;
        }
        Ok((view.budget.steepest(&sum), None))
    }
}
