//! The Fast Gradient Sign Method.

use serde::{Deserialize, Serialize};
use talion_core::{Budget, Result};

use crate::{
    Attack, Attempt, Batch, Conditions, Passes,
    ascent::{Ascent, climb},
};

/// One step of the whole budget along the steepest ascent: the sign of the gradient for `Linf`; for `L2` the
/// normalised gradient (the Fast Gradient Method).
///
/// It has no parameters. Against a classifier that is not locally linear it is a weak attack: a defence that only
/// withstands FGSM withstands nothing.
///
/// # Source
/// Goodfellow, Shlens and Szegedy, "Explaining and Harnessing Adversarial Examples", ICLR 2015, section 4.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Fgsm {}

impl Attack for Fgsm {
    fn name(&self) -> String {
        "fgsm".into()
    }

    fn cost(&self) -> Passes {
        Passes::GRADIENT
    }

    fn begin(&self, batch: &Batch<'_>, conditions: &Conditions<'_>) -> Result<Box<dyn Attempt>> {
        climb(self, batch, conditions)
    }
}

impl Ascent for Fgsm {
    fn steps(&self) -> u32 {
        1
    }

    fn step_size(&self, budget: &Budget) -> Result<f64> {
        Ok(budget.epsilon())
    }
}
