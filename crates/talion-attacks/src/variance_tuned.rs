//! The Variance-tuned Momentum method, VMI-FGSM.

use serde::{Deserialize, Serialize};
use talion_core::{Budget, Classifier, Error, Result};
use tch::Tensor;

use crate::{
    Attack, Attempt, Batch, Conditions, Passes,
    ascent::{Ascent, View, climb, step_size},
    mim::{accumulate, check_decay},
};

/// MIM whose gradients are corrected by how much they varied around the image of the step before, which keeps it out of
/// narrow maxima that only the attacked classifier has (transfer).
///
/// # Source
/// Wang and He, "Enhancing the Transferability of Adversarial Attacks through Variance Tuning", CVPR 2021, section 3.2 and
/// algorithm 1; 10 steps of `epsilon / 10`, decay 1.0, 20 neighbours within 1.5 epsilon.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct VmiFgsm {
    /// Number of steps, at least 1. Default 10.
    pub steps: u32,
    /// Neighbours looked at in each step, 1 to 100. Default 20.
    pub neighbours: u32,
    /// Largest distance of a neighbour in any value, in units of epsilon, at least 0. Default 1.5.
    pub radius: f64,
    /// How much of the momentum survives a step, at least 0. Default 1.0.
    pub decay: f64,
    /// Size of a step in units of the `[0, 1]` image scale. Default: `None`, which is `epsilon / steps`.
    pub step: Option<f64>,
}

impl Default for VmiFgsm {
    fn default() -> Self {
        Self { steps: 10, neighbours: 20, radius: 1.5, decay: 1.0, step: None }
    }
}

impl Attack for VmiFgsm {
    fn name(&self) -> String {
        let other = |key, value: f64, default: f64| {
            crate::spec::suffix(key, (value.to_bits() != default.to_bits()).then_some(value))
        };
        let neighbours = other("neighbours", self.neighbours.into(), 20.0);
        let (radius, decay) = (other("radius", self.radius, 1.5), other("decay", self.decay, 1.0));
        let step = crate::spec::suffix("step", self.step);
        format!("vmi-fgsm-{}{neighbours}{radius}{decay}{step}", self.steps)
    }

    fn cost(&self) -> Passes {
        self.passes().times(self.steps.into())
    }

    fn begin(&self, batch: &Batch<'_>, conditions: &Conditions<'_>) -> Result<Box<dyn Attempt>> {
        climb(self, batch, conditions)
    }
}

impl Ascent for VmiFgsm {
    fn steps(&self) -> u32 {
        self.steps
    }

    fn step_size(&self, budget: &Budget) -> Result<f64> {
        step_size(self.step, 1.0, budget, self.steps)
    }

    fn check(&self) -> Result<()> {
        if !(1..=100).contains(&self.neighbours) {
            return Err(Error::range("the number of neighbours", "1 to 100", self.neighbours));
        }
        if !self.radius.is_finite() || self.radius < 0.0 {
            return Err(Error::range("the neighbours' radius", "a finite number, at least 0", self.radius));
        }
        check_decay(self.decay)
    }

    fn passes(&self) -> Passes {
        Passes::GRADIENT.times(u64::from(self.neighbours) + 1)
    }

    fn memories(&self) -> usize {
        2
    }

    fn direction(
        &self,
        classifier: &dyn Classifier,
        view: &View<'_>,
        memory: &mut [Tensor],
    ) -> Result<(Tensor, Option<Tensor>)> {
        let (gradient, logits) = view.gradient_at(classifier, view.iterate);
        let reach = self.radius * view.budget.epsilon();
        let mut around = gradient.zeros_like();
        for neighbour in 0..self.neighbours {
            let away = view.noise("vmi-fgsm", neighbour)? * reach;
            around += view.gradient_at(classifier, &(view.iterate + away).clamp(0.0, 1.0)).0;
        }
        let variance = around / f64::from(self.neighbours) - &gradient;
        let corrected = match memory.get_mut(1) {
            Some(before) => &gradient + std::mem::replace(before, variance),
            None => gradient,
        };
        Ok((view.budget.steepest(&accumulate(memory, self.decay, &corrected)), Some(logits)))
    }
}
