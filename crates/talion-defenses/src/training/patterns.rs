//! Patterns that hold images of a known class in their class, whatever an attacker adds.

use talion_core::{Budget, Classifier, Objective};
use tch::{Kind, Tensor};

/// A pattern for each class in training: after bounding it is added to the images of its class, which an attacker attacks that
/// knows it (a universal perturbation, Moosavi-Dezfooli et al. 2017, that is robust and meant well).
pub(super) struct Patterns<'a> {
    classifier: &'a dyn Classifier,
    /// `[K, C, H, W]`, before the bound.
    values: Tensor,
    bound: f64,
    mean: Tensor,
    square: Tensor,
}

/// Steps of the attacker.
const ATTACK_STEPS: u32 = 3;
/// Learning rate: a pattern reaches the bound in some tens of steps.
const RATE: f64 = 0.05;
const BETAS: (f64, f64) = (0.9, 0.999);

impl<'a> Patterns<'a> {
    /// Patterns of nothing, `shape` `[K, C, H, W]`.
    pub(super) fn new(classifier: &'a dyn Classifier, shape: [i64; 4], bound: f64) -> Self {
        let zeros = || Tensor::zeros(shape, (Kind::Float, classifier.device()));
        Self { classifier, values: zeros(), bound, mean: zeros(), square: zeros() }
    }

    /// The patterns, `[K, C, H, W]`.
    pub(super) fn values(&self) -> &Tensor {
        &self.values
    }

    /// A step of training on these images against an attacker with this budget.
    pub(super) fn step(
        &mut self,
        images: &Tensor,
        labels: &Tensor,
        (ids, seed): (&[u64], u64),
        budget: Budget,
        step: u64,
    ) {
        let attacked = self.attacked(images, labels, (ids, seed), budget, step);
        let gradient = tch::with_grad(|| {
            let values = self.values.detach().copy().set_requires_grad(true);
            let painted = painted(&attacked, &values.index_select(0, labels), self.bound);
            let slope = self.slope(&painted, labels);
            let along = (&painted * slope).sum(Kind::Float) / labels.size()[0] as f64;
            Tensor::run_backward(&[along], &[&values], false, false).remove(0)
        });
        self.descend(&gradient, step);
    }

    fn attacked(
        &self,
        images: &Tensor,
        labels: &Tensor,
        (ids, seed): (&[u64], u64),
        budget: Budget,
        step: u64,
    ) -> Tensor {
        let size = 2.5 * budget.epsilon() / f64::from(ATTACK_STEPS);
        let pattern = self.values.index_select(0, labels);
        let mut attacked = budget.random_start(images, ids, seed, "patterns", step);
        for _ in 0..ATTACK_STEPS {
            let gradient = tch::with_grad(|| {
                let variable = attacked.detach().set_requires_grad(true);
                let painted = painted(&variable, &pattern, self.bound);
                let along = (&painted * self.slope(&painted, labels)).sum(Kind::Float);
                Tensor::run_backward(&[along], &[&variable], false, false).remove(0)
            });
            attacked = budget.project(images, &(attacked + budget.steepest(&gradient) * size));
        }
        attacked
    }

    /// The gradient of the cross-entropy at painted images.
    fn slope(&self, painted: &Tensor, labels: &Tensor) -> Tensor {
        self.classifier.input_gradient(&painted.detach(), labels, Objective::CrossEntropy).gradient
    }

    /// Adam (Kingma and Ba 2015).
    fn descend(&mut self, gradient: &Tensor, step: u64) {
        let (first, second) = BETAS;
        let count = (step + 1) as f64;
        self.mean = &self.mean * first + gradient * (1.0 - first);
        self.square = &self.square * second + gradient.square() * (1.0 - second);
        let mean = &self.mean / (1.0 - first.powf(count));
        let scale = (&self.square / (1.0 - second.powf(count))).sqrt() + 1e-8;
        self.values = &self.values - mean / scale * RATE;
    }
}

/// What the network makes of images to which it adds these values, before the bound.
fn painted(images: &Tensor, values: &Tensor, bound: f64) -> Tensor {
    (images + values.tanh() * bound).clamp(0.0, 1.0)
}
