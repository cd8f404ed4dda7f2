//! Noise, the control of every attack.

use serde::{Deserialize, Serialize};
use talion_core::{Classifier, Result, gaussian_noise};
use tch::Tensor;

use crate::{Attack, Attempt, Batch, Conditions, Passes, attempt::Rows};

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

    fn cost(&self) -> Passes {
        Passes::default()
    }

    fn begin(&self, batch: &Batch<'_>, _conditions: &Conditions<'_>) -> Result<Box<dyn Attempt>> {
        let (budget, original) = (batch.budget, batch.images.detach());
        // every corner has the same chance, because the normal distribution is symmetric in each value
        let draws = gaussian_noise(&original.size()[1..], batch.ids, batch.seed, "noise", batch.restart);
        let direction = budget.steepest(&draws.to_device(original.device()));
        let answer = budget.project(&original, &(&original + direction * budget.epsilon()));
        Ok(Box::new(Drawn { rows: Rows::new(batch), answer }))
    }
}

/// An attempt that was finished when it was drawn.
struct Drawn {
    rows: Rows,
    answer: Tensor,
}

impl Attempt for Drawn {
    fn step(&mut self, _classifier: &dyn Classifier) -> Result<()> {
        self.rows.count(1, None);
        Ok(())
    }

    fn state(&mut self) -> Vec<&mut Tensor> {
        let mut state = self.rows.state();
        state.push(&mut self.answer);
        state
    }

    fn finished(&self) -> Tensor {
        self.rows.finished.shallow_clone()
    }

    fn adversarial(&self) -> Tensor {
        self.answer.shallow_clone()
    }

    fn passes(&self) -> Passes {
        Passes::default()
    }
}
