//! Noise, the control of every attack.

use serde::{Deserialize, Serialize};
use talion_core::{Classifier, Result, gaussian_noise};
use tch::Tensor;

use crate::{Attack, Batch};

/// A random change of the full budget, without any gradient: a random corner of the `Linf` ball, a random point of the
/// `L2` sphere.
///
/// An attack that does no better than this one has found no gradient to follow; a defence that does well only against this
/// one removes noise.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Noise {}

impl Attack for Noise {
    fn name(&self) -> String {
        "noise".into()
    }

    fn cost(&self) -> u64 {
        0
    }

    fn perturb(&self, classifier: &dyn Classifier, batch: &Batch<'_>) -> Result<Tensor> {
        batch.check(classifier)?;
        let (budget, original) = (batch.budget, batch.images.detach());
        // every corner has the same chance, because the normal distribution is symmetric in each value
        let draws = gaussian_noise(&original.size()[1..], batch.ids, batch.seed, "noise", batch.restart);
        let direction = budget.steepest(&draws).to_device(original.device());
        Ok(budget.project(&original, &(&original + direction * budget.epsilon())))
    }
}
