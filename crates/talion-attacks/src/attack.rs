//! What an attack is, and what all gradient attacks share.

use talion_core::{Budget, Classifier, Error, Objective, Result, check_images, check_labels};
use tch::Tensor;

/// What an attack is given.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a> {
    /// The benign images, `[N, C, H, W]` in `[0, 1]`, on the classifier's device.
    pub images: &'a Tensor,
    /// Their labels, `[N]`, `i64`: the true ones, or the targets of [`Objective::TargetedCrossEntropy`].
    pub labels: &'a Tensor,
    /// The id of each sample, N of them: the key of its random draws.
    pub ids: &'a [u64],
    /// How far an image may be changed.
    pub budget: Budget,
    /// What the attacker maximises.
    pub objective: Objective,
    /// The seed of the whole run.
    pub seed: u64,
    /// Which of the attack's random starts to use, from 0; attacks without a random start ignore it.
    pub restart: u64,
}

impl Batch<'_> {
    /// Checks images, labels and ids against each other and against the classifier.
    ///
    /// # Errors
    /// Says what is wrong: shapes, types, values outside `[0, 1]`, NaN, labels that are no class of the classifier.
    pub fn check(&self, classifier: &dyn Classifier) -> Result<()> {
        check_images(self.images)?;
        let rows = self.images.size()[0];
        check_labels(self.labels, rows, classifier.classes())?;
        if self.ids.len() as i64 != rows {
            return Err(Error::range(
                "the number of sample ids",
                format!("{rows}, one an image"),
                self.ids.len(),
            ));
        }
        Ok(())
    }

    /// The gradient of the objective at `images`, with NaN taken as 0 and infinities as the largest finite number.
    ///
    /// A classifier whose gradient is undefined at one pixel must not thereby escape: NaN would spread over the whole
    /// image, and an image of NaN is no attack.
    pub(crate) fn ascent(&self, classifier: &dyn Classifier, images: &Tensor) -> Tensor {
        let gradient = classifier.input_gradient(images, self.labels, self.objective).gradient;
        gradient.to_kind(images.kind()).nan_to_num(0.0, None, None)
    }
}

/// A way to change images, within a budget, so that a classifier errs.
pub trait Attack {
    /// A short name that [`crate::AttackSpec`] parses back to the same settings, such as `pgd-20`.
    fn name(&self) -> String;

    /// Gradient passes per sample and restart.
    fn cost(&self) -> u64;

    /// How many random starts the attack asks for. [`fn@crate::run`] makes them, and keeps the best for each sample.
    fn restarts(&self) -> u64 {
        1
    }

    /// Adversarial images from the start [`Batch::restart`], inside the budget of the batch.
    ///
    /// The result of a row depends on no other row, as far as the classifier's kernels round each row alike.
    ///
    /// # Shapes
    /// The result has the shape of [`Batch::images`], and carries no gradient history.
    ///
    /// # Errors
    /// If the batch does not pass [`Batch::check`], or a setting of the attack is out of range.
    fn perturb(&self, classifier: &dyn Classifier, batch: &Batch<'_>) -> Result<Tensor>;
}

/// The step size in units of the image scale: the one that was set, or else `share * epsilon / steps`.
///
/// # Errors
/// If there are no steps, or the step that was set is negative or not finite.
pub(crate) fn step_size(set: Option<f64>, share: f64, budget: &Budget, steps: u32) -> Result<f64> {
    if steps == 0 {
        return Err(Error::range("the number of steps", "at least 1", steps));
    }
    match set {
        Some(step) if !step.is_finite() || step < 0.0 => {
            Err(Error::range("the step size", "a finite number, at least 0", step))
        }
        Some(step) => Ok(step),
        None => Ok(share * budget.epsilon() / f64::from(steps)),
    }
}
