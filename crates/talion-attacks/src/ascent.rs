//! What the attacks share that climb the objective step by step inside the budget.

use talion_core::{Budget, Classifier, Error, Objective, Result, uniform_noise};
use tch::Tensor;

use crate::{
    Attempt, Batch, Conditions, Passes,
    attempt::{Rows, choose},
};

/// A way to climb: where to start, which gradient to take, which way to go.
pub(crate) trait Ascent {
    /// Steps of one restart.
    fn steps(&self) -> u32;

    /// The size of a step in units of the image scale.
    fn step_size(&self, budget: &Budget) -> Result<f64>;

    /// Checks settings that are not counts or step sizes.
    fn check(&self) -> Result<()> {
        Ok(())
    }

    /// Where to begin, `[N, C, H, W]`: by default at the image.
    fn start(&self, batch: &Batch<'_>) -> Tensor {
        batch.images.detach().copy()
    }

    /// What a step costs a row.
    fn passes(&self) -> Passes {
        Passes::GRADIENT
    }

    /// How many tensors like the images a row remembers from step to step. They start at zero.
    fn memories(&self) -> usize {
        0
    }

    /// Which way to go, of unit size in the budget's norm, and the logits at the iterates themselves where these were
    /// computed on the way: by default the steepest ascent.
    fn direction(
        &self,
        classifier: &dyn Classifier,
        view: &View<'_>,
        _memory: &mut [Tensor],
    ) -> Result<(Tensor, Option<Tensor>)> {
        let (gradient, logits) = view.gradient_at(classifier, view.iterate);
        Ok((view.budget.steepest(&gradient), Some(logits)))
    }
}

/// What a climbing attack sees when it is asked for a direction.
pub(crate) struct View<'a> {
    pub rows: &'a Rows,
    /// The current images.
    pub iterate: &'a Tensor,
    pub objective: Objective,
    pub budget: Budget,
    pub step: f64,
    pub seed: u64,
}

impl View<'_> {
    /// The gradient of the objective at `images`, and the logits there.
    ///
    /// NaN is taken as 0 and infinities as the largest finite number: a classifier whose gradient is undefined at one
    /// pixel must not thereby escape, for NaN would spread over the whole image, and an image of NaN is no attack.
    pub fn gradient_at(&self, classifier: &dyn Classifier, images: &Tensor) -> (Tensor, Tensor) {
        let found = classifier.input_gradient(images, &self.rows.labels, self.objective);
        (found.gradient.to_kind(images.kind()).nan_to_num(0.0, None, None), found.logits)
    }

    /// Uniform draws in `[-1, 1)` for every value of every image, from the rows' own streams: new ones for each step and
    /// each `repetition` in it.
    pub fn noise(&self, purpose: &str, repetition: u32) -> Result<Tensor> {
        let purpose = format!("{purpose}/{repetition}");
        let row = &self.iterate.size()[1..];
        let draws = self
            .rows
            .keys()?
            .into_iter()
            .map(|(id, key)| uniform_noise(row, &[id], self.seed, &purpose, key));
        let noise = Tensor::cat(&draws.collect::<Vec<_>>(), 0);
        Ok(noise.to_device(self.iterate.device()).to_kind(self.iterate.kind()))
    }
}

/// An ascent in progress.
struct Climb<A> {
    attack: A,
    rows: Rows,
    iterate: Tensor,
    memory: Vec<Tensor>,
    budget: Budget,
    objective: Objective,
    step: f64,
    seed: u64,
    until_fooled: bool,
}

/// Begins an ascent on the rows of `batch`.
pub(crate) fn climb<A: Ascent + Clone + 'static>(
    attack: &A,
    batch: &Batch<'_>,
    conditions: &Conditions<'_>,
) -> Result<Box<dyn Attempt>> {
    attack.check()?;
    if attack.steps() == 0 {
        return Err(Error::range("the number of steps", "at least 1", 0));
    }
    Ok(Box::new(Climb {
        step: attack.step_size(&batch.budget)?,
        iterate: attack.start(batch),
        memory: (0..attack.memories()).map(|_| batch.images.zeros_like()).collect(),
        rows: Rows::new(batch),
        attack: attack.clone(),
        budget: batch.budget,
        objective: batch.objective,
        seed: batch.seed,
        until_fooled: conditions.until_fooled,
    }))
}

impl<A: Ascent> Attempt for Climb<A> {
    fn step(&mut self, classifier: &dyn Classifier) -> Result<()> {
        let view = View {
            rows: &self.rows,
            iterate: &self.iterate,
            objective: self.objective,
            budget: self.budget,
            step: self.step,
            seed: self.seed,
        };
        let mut memory: Vec<Tensor> = self.memory.iter().map(Tensor::shallow_clone).collect();
        let (direction, logits) = self.attack.direction(classifier, &view, &mut memory)?;
        let fooled = logits
            .filter(|_| self.until_fooled)
            .map(|logits| self.objective.reached(&logits.argmax(1, false), &self.rows.labels));
        let moved = self.budget.project(&self.rows.original, &(&self.iterate + direction * self.step));
        // what already fools is not moved: the next image might not
        let moved = match &fooled {
            Some(fooled) => choose(fooled, &self.iterate, &moved),
            None => moved,
        };
        self.iterate = self.rows.unfinished(&moved, &self.iterate);
        for (old, new) in self.memory.iter_mut().zip(&memory) {
            *old = self.rows.unfinished(new, old);
        }
        self.rows.count(self.attack.steps().into(), fooled.as_ref());
        Ok(())
    }

    fn state(&mut self) -> Vec<&mut Tensor> {
        let mut state = self.rows.state();
        state.push(&mut self.iterate);
        state.extend(&mut self.memory);
        state
    }

    fn finished(&self) -> Tensor {
        self.rows.finished.shallow_clone()
    }

    fn adversarial(&self) -> Tensor {
        self.iterate.shallow_clone()
    }

    fn passes(&self) -> Passes {
        self.attack.passes()
    }
}

/// The step size that was set, or else `share * epsilon / steps`.
///
/// # Errors
/// If the step that was set is negative or not finite.
pub(crate) fn step_size(set: Option<f64>, share: f64, budget: &Budget, steps: u32) -> Result<f64> {
    match set {
        Some(step) if !step.is_finite() || step < 0.0 => {
            Err(Error::range("the step size", "a finite number, at least 0", step))
        }
        Some(step) => Ok(step),
        None => Ok(share * budget.epsilon() / f64::from(steps.max(1))),
    }
}
