//! The Nesterov Iterative method, NI-FGSM.

use serde::{Deserialize, Serialize};
use talion_core::{Budget, Classifier, Result};
use tch::Tensor;

use crate::{
    Attack, Attempt, Batch, Conditions, Passes,
    ascent::{Ascent, View, climb, step_size},
    mim::{accumulate, check_decay},
};

/// MIM that looks ahead: the gradient is taken where the momentum would carry the image.
///
/// Made to fool other classifiers than the one it sees (transfer).
///
/// # Source
/// Lin et al., "Nesterov Accelerated Gradient and Scale Invariance for Adversarial Attacks", ICLR 2020, section 3.1 and
/// equation 6; 10 steps of `epsilon / 10`, decay 1.0.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct NiFgsm {
    /// Number of steps, at least 1. Default 10.
    pub steps: u32,
    /// How much of the momentum survives a step, at least 0. Default 1.0.
    pub decay: f64,
    /// Size of a step in units of the `[0, 1]` image scale. Default: `None`, which is `epsilon / steps`.
    pub step: Option<f64>,
}

impl Default for NiFgsm {
    fn default() -> Self {
        Self { steps: 10, decay: 1.0, step: None }
    }
}

impl Attack for NiFgsm {
    fn name(&self) -> String {
        let decay = (self.decay != 1.0).then_some(self.decay);
        let (decay, step) = (crate::spec::suffix("decay", decay), crate::spec::suffix("step", self.step));
        format!("ni-fgsm-{}{decay}{step}", self.steps)
    }

    fn cost(&self) -> Passes {
        Passes::GRADIENT.times(self.steps.into())
    }

    fn begin(&self, batch: &Batch<'_>, conditions: &Conditions<'_>) -> Result<Box<dyn Attempt>> {
        climb(self, batch, conditions)
    }
}

impl Ascent for NiFgsm {
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
        let ahead = look_ahead(view, memory, self.decay);
        let (gradient, _) = view.gradient_at(classifier, &ahead);
        Ok((view.budget.steepest(&accumulate(memory, self.decay, &gradient)), None))
    }
}

/// Where the momentum, the first memory, would carry the image; clamped to the box, outside of which no classifier is
/// defined.
pub(crate) fn look_ahead(view: &View<'_>, memory: &[Tensor], decay: f64) -> Tensor {
    match memory.first() {
        Some(momentum) => (view.iterate + momentum * (decay * view.step)).clamp(0.0, 1.0),
        None => view.iterate.shallow_clone(),
    }
}
