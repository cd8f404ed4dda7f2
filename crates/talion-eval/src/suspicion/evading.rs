//! An attacker who knows the score.

use talion_core::{Classifier, InputGradient, Result};
use talion_defenses::{Defended, GradientMode};
use tch::{Device, Tensor};

use super::{Pair, suspicion};

/// The defended classifier as an attacker sees it who knows the whole defence and would rather not be flagged: from every loss,
/// which an attack raises, `weight` times the suspicion of the image is taken. Gradients are exact, second order included.
///
/// Predictions are those of the defended classifier.
pub(super) struct Evading<'a> {
    classifier: &'a dyn Classifier,
    defended: Defended<'a>,
    weight: f64,
}

impl<'a> Evading<'a> {
    /// `weight` in units of the loss for a nat of suspicion, at least 0.
    pub(super) fn new(pair: &Pair<'a>, weight: f64) -> Result<Self> {
        let defended = Defended::new(pair.classifier, pair.trn, GradientMode::Exact)?;
        Ok(Self { classifier: pair.classifier, defended, weight })
    }
}

impl Classifier for Evading<'_> {
    fn classes(&self) -> i64 {
        self.defended.classes()
    }

    fn device(&self) -> Device {
        self.defended.device()
    }

    fn logits(&self, images: &Tensor) -> Tensor {
        self.defended.logits(images)
    }

    fn loss_gradient(&self, images: &Tensor, loss: &dyn Fn(&Tensor) -> Tensor) -> InputGradient {
        tch::with_grad(|| {
            let images = images.detach().set_requires_grad(true);
            let after = self.defended.logits(&images);
            let before = self.classifier.logits(&images);
            let loss = loss(&after) - (suspicion(&before, &after) * self.weight).to_kind(after.kind());
            let gradient = Tensor::run_backward(&[loss.sum(loss.kind())], &[&images], false, false).remove(0);
            InputGradient { loss: loss.detach(), gradient: gradient.detach(), logits: after.detach() }
        })
    }
}
