//! A classifier whose gradients nobody sees.

use talion_core::{Classifier, InputGradient};
use tch::{Device, Tensor};

/// The classifier for attacks that ask for answers alone. The driver compares gradients of small and large batches
/// whatever the attack; a classifier that is not made of differentiable operations has none, and does not need them here.
pub(crate) struct Blind<'a>(pub &'a dyn Classifier);

impl Classifier for Blind<'_> {
    fn classes(&self) -> i64 {
        self.0.classes()
    }

    fn device(&self) -> Device {
        self.0.device()
    }

    fn logits(&self, images: &Tensor) -> Tensor {
        tch::no_grad(|| self.0.logits(&images.detach()))
    }

    fn loss_gradient(&self, images: &Tensor, loss: &dyn Fn(&Tensor) -> Tensor) -> InputGradient {
        let logits = self.logits(images);
        let loss = tch::no_grad(|| loss(&logits));
        InputGradient { loss, gradient: images.detach().zeros_like(), logits }
    }
}
