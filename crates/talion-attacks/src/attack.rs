//! What an attack is.

use talion_core::{Budget, Classifier, Error, Objective, Result, check_images, check_labels};
use tch::Tensor;

use crate::{Attempt, Conditions, Passes};

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
    /// Checks images, labels and ids against each other and against the number of classes.
    ///
    /// # Errors
    /// Says what is wrong: shapes, types, values outside `[0, 1]`, NaN, labels that are no class.
    pub fn check(&self, classes: i64) -> Result<()> {
        check_images(self.images)?;
        let rows = self.images.size()[0];
        check_labels(self.labels, rows, classes)?;
        if self.ids.len() as i64 != rows {
            return Err(Error::range(
                "the number of sample ids",
                format!("{rows}, one an image"),
                self.ids.len(),
            ));
        }
        Ok(())
    }
}

/// A way to change images, within a budget, so that a classifier errs.
pub trait Attack {
    /// A short name that [`crate::AttackSpec`] parses back to the same settings, such as `pgd-20`.
    fn name(&self) -> String;

    /// Passes a sample that resists to the end of one restart.
    fn cost(&self) -> Passes;

    /// How many starts, or targets, the attack tries on a classifier of so many classes. [`fn@crate::run`] makes them,
    /// each on the samples that resisted those before, and keeps the best for each sample.
    fn restarts(&self, _classes: i64) -> u64 {
        1
    }

    /// What has to be different from the attack's definition because there are so few classes, in words.
    fn adjustment(&self, _classes: i64) -> Option<String> {
        None
    }

    /// Whether [`Conditions::logits`] has to be given.
    fn wants_logits(&self) -> bool {
        false
    }

    /// Begins on the rows of `batch`, from the start [`Batch::restart`], without asking the classifier anything.
    ///
    /// The result of a row depends on no other row, as far as the classifier's kernels round each row alike.
    ///
    /// # Errors
    /// If a setting of the attack is out of range, or the attack has no meaning for the budget's norm.
    fn begin(&self, batch: &Batch<'_>, conditions: &Conditions<'_>) -> Result<Box<dyn Attempt>>;

    /// Adversarial images of one start, inside the budget, without the driver: no restarts, no padding.
    ///
    /// # Shapes
    /// The result has the shape of [`Batch::images`], and carries no gradient history.
    ///
    /// # Errors
    /// If the batch does not pass [`Batch::check`], a setting is out of range, or the classifier's answers cannot be used.
    fn perturb(&self, classifier: &dyn Classifier, batch: &Batch<'_>) -> Result<Tensor> {
        batch.check(classifier.classes())?;
        let logits = self.wants_logits().then(|| tch::no_grad(|| classifier.logits(batch.images)));
        let conditions = Conditions { logits: logits.as_ref(), until_fooled: false };
        let mut attempt = self.begin(batch, &conditions)?;
        while !bool::try_from(attempt.finished().all())? {
            attempt.step(classifier)?;
        }
        Ok(attempt.adversarial().detach())
    }
}
