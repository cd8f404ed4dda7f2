//! Classifiers as an attacker sees them: BPDA and EOT are not attacks but views of a classifier, for any attack.

use talion_core::{Classifier, InputGradient};
use tch::{Device, Tensor};

/// Backward Pass Differentiable Approximation: a step before the classifier that has no useful derivative runs forward as
/// it is, and is differentiated as if it were another.
///
/// # Source
/// Athalye et al., "Obfuscated Gradients Give a False Sense of Security", ICML 2018, section 4.1.
pub struct Bpda<'a> {
    /// The classifier behind the step.
    pub classifier: &'a dyn Classifier,
    /// The step itself, images in and images out.
    pub forward: &'a dyn Fn(&Tensor) -> Tensor,
    /// What it is differentiated as; `None`: the identity.
    pub substitute: Option<&'a dyn Fn(&Tensor) -> Tensor>,
}

impl Classifier for Bpda<'_> {
    fn classes(&self) -> i64 {
        self.classifier.classes()
    }

    fn device(&self) -> Device {
        self.classifier.device()
    }

    fn logits(&self, images: &Tensor) -> Tensor {
        let value = tch::no_grad(|| (self.forward)(&images.detach())).detach();
        let differentiated = match self.substitute {
            Some(substitute) => substitute(images),
            None => images.shallow_clone(),
        };
        // the difference is exactly zero, and carries the derivative
        self.classifier.logits(&(value + (&differentiated - differentiated.detach())))
    }
}

/// Expectation over Transformation: logits, losses and gradients of a randomised classifier, averaged over several of its
/// answers.
///
/// # Source
/// Athalye et al., "Synthesizing Robust Adversarial Examples", ICML 2018, section 2.
pub struct Eot<'a> {
    /// The classifier that answers at random.
    pub classifier: &'a dyn Classifier,
    /// Answers to average, at least 1.
    pub draws: u32,
}

impl Eot<'_> {
    fn mean(&self, draw: impl Fn() -> Tensor) -> Tensor {
        let draws: Vec<Tensor> = (0..self.draws.max(1)).map(|_| draw()).collect();
        Tensor::stack(&draws, 0).mean_dim([0_i64].as_slice(), false, None)
    }
}

impl Classifier for Eot<'_> {
    fn classes(&self) -> i64 {
        self.classifier.classes()
    }

    fn device(&self) -> Device {
        self.classifier.device()
    }

    fn logits(&self, images: &Tensor) -> Tensor {
        self.mean(|| self.classifier.logits(images))
    }

    /// The mean gradient of the loss, not the gradient at the mean logits: each answer has its own loss. One answer at a
    /// time, so that memory does not grow with their number.
    fn loss_gradient(&self, images: &Tensor, loss: &dyn Fn(&Tensor) -> Tensor) -> InputGradient {
        let draws = f64::from(self.draws.max(1));
        let mut total = self.classifier.loss_gradient(images, loss);
        for _ in 1..self.draws.max(1) {
            let found = self.classifier.loss_gradient(images, loss);
            total.loss += found.loss;
            total.gradient += found.gradient;
            total.logits += found.logits;
        }
        InputGradient {
            loss: total.loss / draws,
            gradient: total.gradient / draws,
            logits: total.logits / draws,
        }
    }
}
