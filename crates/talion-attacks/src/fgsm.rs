//! The Fast Gradient Sign Method.

use serde::{Deserialize, Serialize};
use talion_core::{Classifier, Result};
use tch::Tensor;

use crate::{Attack, Batch};

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

    fn cost(&self) -> u64 {
        1
    }

    fn perturb(&self, classifier: &dyn Classifier, batch: &Batch<'_>) -> Result<Tensor> {
        batch.check(classifier)?;
        let (budget, original) = (batch.budget, batch.images.detach());
        let direction = budget.steepest(&batch.ascent(classifier, &original));
        Ok(budget.project(&original, &(&original + direction * budget.epsilon())))
    }
}
