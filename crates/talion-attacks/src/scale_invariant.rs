//! The Scale-Invariant Nesterov method, SI-NI-FGSM.

use serde::{Deserialize, Serialize};
use talion_core::{Budget, Classifier, Error, Result};
use tch::Tensor;

use crate::{
    Attack, Attempt, Batch, Conditions, Passes,
    ascent::{Ascent, View, climb, step_size},
    mim::{accumulate, check_decay},
    nesterov::look_ahead,
};

/// NI-FGSM on the mean gradient of ever darker copies of the image, each half as bright as the one before: classifiers
/// agree on dark copies, so what fools all of them fools other classifiers too (transfer).
///
/// # Source
/// Lin et al., "Nesterov Accelerated Gradient and Scale Invariance for Adversarial Attacks", ICLR 2020, section 3.2 and
/// algorithm 1; 10 steps of `epsilon / 10`, decay 1.0, 5 copies.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SiNiFgsm {
    /// Number of steps, at least 1. Default 10.
    pub steps: u32,
    /// Copies of the image, the image included, 1 to 16. Default 5.
    pub copies: u32,
    /// How much of the momentum survives a step, at least 0. Default 1.0.
    pub decay: f64,
    /// Size of a step in units of the `[0, 1]` image scale. Default: `None`, which is `epsilon / steps`.
    pub step: Option<f64>,
}

impl Default for SiNiFgsm {
    fn default() -> Self {
        Self { steps: 10, copies: 5, decay: 1.0, step: None }
    }
}

impl Attack for SiNiFgsm {
    fn name(&self) -> String {
        let decay = (self.decay != 1.0).then_some(self.decay);
        let copies = (self.copies != 5).then_some(f64::from(self.copies));
        let copies = crate::spec::suffix("copies", copies);
        let (decay, step) = (crate::spec::suffix("decay", decay), crate::spec::suffix("step", self.step));
        format!("si-ni-fgsm-{}{copies}{decay}{step}", self.steps)
    }

    fn cost(&self) -> Passes {
        self.passes().times(self.steps.into())
    }

    fn begin(&self, batch: &Batch<'_>, conditions: &Conditions<'_>) -> Result<Box<dyn Attempt>> {
        climb(self, batch, conditions)
    }
}

impl Ascent for SiNiFgsm {
    fn steps(&self) -> u32 {
        self.steps
    }

    fn step_size(&self, budget: &Budget) -> Result<f64> {
        step_size(self.step, 1.0, budget, self.steps)
    }

    fn check(&self) -> Result<()> {
        if !(1..=16).contains(&self.copies) {
            return Err(Error::range("the number of copies", "1 to 16", self.copies));
        }
        check_decay(self.decay)
    }

    fn passes(&self) -> Passes {
        Passes::GRADIENT.times(self.copies.into())
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
        let mut sum = ahead.zeros_like();
        for copy in 0..self.copies {
            // the derivative of the darker copy with respect to the image carries its brightness
            let brightness = 0.5_f64.powi(copy.cast_signed());
            sum += view.gradient_at(classifier, &(&ahead * brightness)).0 * brightness;
        }
        Ok((view.budget.steepest(&accumulate(memory, self.decay, &sum)), None))
    }
}
