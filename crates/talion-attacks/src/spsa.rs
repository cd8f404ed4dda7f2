//! Simultaneous Perturbation Stochastic Approximation: gradients from answers alone.

use serde::{Deserialize, Serialize};
use talion_core::{Budget, Classifier, Error, Result};
use tch::{Kind, Tensor};

use crate::{
    Attack, Attempt, Batch, Conditions, Passes,
    ascent::{Ascent, View, climb, step_size},
    attempt::per_row,
};

/// Ascent along gradients estimated from differences of the loss in random directions, by Adam. It sees logits, never a
/// gradient: where it does better than an attack that does, gradients are masked.
///
/// # Source
/// Uesato et al., "Adversarial Risk and the Dangers of Evaluating Against Weak Attacks", ICML 2018, section 3.2 and
/// algorithm 1; Adam with a rate of 0.01 and differences at 0.01; its samples a step range up to 8192, here 128.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Spsa {
    /// Number of steps, at least 1. Default 100.
    pub steps: u32,
    /// Pairs of points a step, 1 to 10000. Default 64, which are 128 answers.
    pub pairs: u32,
    /// Distance of the points in every value, above 0. Default 0.01.
    pub delta: f64,
    /// Adam's learning rate in units of the `[0, 1]` image scale. Default: `None`, which is 0.01.
    pub step: Option<f64>,
}

impl Default for Spsa {
    fn default() -> Self {
        Self { steps: 100, pairs: 64, delta: 0.01, step: None }
    }
}

impl Attack for Spsa {
    fn name(&self) -> String {
        let pairs = crate::spec::suffix("pairs", (self.pairs != 64).then_some(f64::from(self.pairs)));
        let delta = (self.delta.to_bits() != 0.01_f64.to_bits()).then_some(self.delta);
        let (delta, step) = (crate::spec::suffix("delta", delta), crate::spec::suffix("step", self.step));
        format!("spsa-{}{pairs}{delta}{step}", self.steps)
    }

    fn cost(&self) -> Passes {
        self.passes().times(self.steps.into())
    }

    fn begin(&self, batch: &Batch<'_>, conditions: &Conditions<'_>) -> Result<Box<dyn Attempt>> {
        climb(self, batch, conditions)
    }
}

/// Adam's decays and the number that keeps it from dividing by zero (Kingma and Ba 2015).
const BETAS: (f64, f64) = (0.9, 0.999);
const TINY: f64 = 1e-8;

impl Ascent for Spsa {
    fn steps(&self) -> u32 {
        self.steps
    }

    fn step_size(&self, budget: &Budget) -> Result<f64> {
        step_size(Some(self.step.unwrap_or(0.01)), 1.0, budget, self.steps)
    }

    fn check(&self) -> Result<()> {
        if !(1..=10_000).contains(&self.pairs) {
            return Err(Error::range("the number of pairs", "1 to 10000", self.pairs));
        }
        if !(self.delta > 0.0 && self.delta.is_finite()) {
            return Err(Error::range("delta", "a finite number above 0", self.delta));
        }
        Ok(())
    }

    fn passes(&self) -> Passes {
        Passes::LOGITS.times(2 * u64::from(self.pairs))
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
        let gradient = self.estimate(classifier, view)?;
        let [mean, square] = memory else { return Ok((gradient, None)) };
        *mean = &*mean * BETAS.0 + &gradient * (1.0 - BETAS.0);
        *square = &*square * BETAS.1 + gradient.square() * (1.0 - BETAS.1);
        let count = per_row(&(&view.rows.iteration + 1).to_kind(gradient.kind()), &gradient);
        let corrected = |moment: &Tensor, beta: f64| moment / -(&count * beta.ln()).expm1();
        Ok((corrected(mean, BETAS.0) / (corrected(square, BETAS.1).sqrt() + TINY), None))
    }
}

impl Spsa {
    fn estimate(&self, classifier: &dyn Classifier, view: &View<'_>) -> Result<Tensor> {
        let mut sum = view.iterate.zeros_like();
        for pair in 0..self.pairs {
            // uniform draws are at least 0 as often as below
            let draws = view.noise("spsa", pair)?;
            let signs = draws.ge(0.0).to_kind(view.iterate.kind()) * 2.0 - 1.0;
            let loss = |sign: f64| {
                let point = view.iterate + &signs * (sign * self.delta);
                let logits = classifier.search_logits(&point.clamp(0.0, 1.0));
                view.objective.per_sample(&logits, &view.rows.labels).to_kind(Kind::Double)
            };
            let slope = (loss(1.0) - loss(-1.0)) / (2.0 * self.delta);
            let slope = slope.nan_to_num(0.0, None, None).to_kind(view.iterate.kind());
            sum += &signs * per_row(&slope, &signs);
        }
        Ok(sum / f64::from(self.pairs))
    }
}
