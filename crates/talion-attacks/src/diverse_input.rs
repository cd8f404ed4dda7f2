//! The Diverse Inputs method, DI-FGSM.

use serde::{Deserialize, Serialize};
use talion_core::{Budget, Classifier, Error, InputGradient, Result, SampleStream};
use tch::Tensor;

use crate::{
    Attack, Attempt, Batch, Conditions, Passes,
    ascent::{Ascent, View, climb, step_size},
    mim::{accumulate, check_decay},
};

/// MIM through random resizing and padding of the image, so that it cannot fit the details of one classifier (transfer).
///
/// With the chance `probability` an image is shrunk to a random share of its side, at least `smallest`, and put at a
/// random place on black; the gradient is taken through that. The paper enlarges images of 299 pixels to 330; a classifier
/// of fixed input size needs them shrunk.
///
/// # Source
/// Xie et al., "Improving Transferability of Adversarial Examples with Input Diversity", CVPR 2019, sections 3.2 and 3.3;
/// 10 steps of `epsilon / 10`, probability 0.5.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct DiFgsm {
    /// Number of steps, at least 1. Default 10.
    pub steps: u32,
    /// Chance that an image is transformed in a step, 0 to 1. Default 0.5.
    pub probability: f64,
    /// Smallest share of the side that an image is shrunk to, above 0, at most 1. Default 0.9.
    pub smallest: f64,
    /// How much of the momentum survives a step, at least 0. Default 1.0.
    pub decay: f64,
    /// Size of a step in units of the `[0, 1]` image scale. Default: `None`, which is `epsilon / steps`.
    pub step: Option<f64>,
}

impl Default for DiFgsm {
    fn default() -> Self {
        Self { steps: 10, probability: 0.5, smallest: 0.9, decay: 1.0, step: None }
    }
}

impl Attack for DiFgsm {
    fn name(&self) -> String {
        let other = |key, value: f64, default: f64| {
            crate::spec::suffix(key, (value.to_bits() != default.to_bits()).then_some(value))
        };
        let (probability, smallest) =
            (other("probability", self.probability, 0.5), other("smallest", self.smallest, 0.9));
        let (decay, step) = (other("decay", self.decay, 1.0), crate::spec::suffix("step", self.step));
        format!("di-fgsm-{}{probability}{smallest}{decay}{step}", self.steps)
    }

    fn cost(&self) -> Passes {
        Passes::GRADIENT.times(self.steps.into())
    }

    fn begin(&self, batch: &Batch<'_>, conditions: &Conditions<'_>) -> Result<Box<dyn Attempt>> {
        climb(self, batch, conditions)
    }
}

impl Ascent for DiFgsm {
    fn steps(&self) -> u32 {
        self.steps
    }

    fn step_size(&self, budget: &Budget) -> Result<f64> {
        step_size(self.step, 1.0, budget, self.steps)
    }

    fn check(&self) -> Result<()> {
        if !(0.0..=1.0).contains(&self.probability) {
            return Err(Error::range("the probability", "0 to 1", self.probability));
        }
        if !(self.smallest > 0.0 && self.smallest <= 1.0) {
            return Err(Error::range("the smallest share of the side", "above 0, at most 1", self.smallest));
        }
        check_decay(self.decay)
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
        let size = view.iterate.size();
        let placements = view
            .rows
            .keys()?
            .into_iter()
            .map(|(id, key)| self.placement(&mut SampleStream::new(view.seed, "di-fgsm", key, id), &size))
            .collect::<Vec<_>>();
        let (labels, objective) = (&view.rows.labels, view.objective);
        let varied = Varied { classifier, placements: &placements };
        let InputGradient { gradient, .. } =
            varied.loss_gradient(view.iterate, &|logits| objective.per_sample(logits, labels));
        let gradient = gradient.nan_to_num(0.0, None, None);
        Ok((view.budget.steepest(&accumulate(memory, self.decay, &gradient)), None))
    }
}

/// Where an image is put: height and width it is shrunk to, and its upper left corner. `None` leaves it alone.
type Placement = Option<[i64; 4]>;

impl DiFgsm {
    fn placement(&self, stream: &mut SampleStream, size: &[i64]) -> Placement {
        let &[_, _, height, width] = size else { return None };
        if f64::from(stream.uniform()) >= self.probability {
            return None;
        }
        let share = self.smallest + (1.0 - self.smallest) * f64::from(stream.uniform());
        let side = |full: i64| ((full as f64 * share).round() as i64).clamp(1, full);
        let (rows, columns) = (side(height), side(width));
        let mut corner = |room: i64| i64::from(stream.below(u32::try_from(room + 1).unwrap_or(1)));
        Some([rows, columns, corner(height - rows), corner(width - columns)])
    }
}

/// A classifier of images that are shrunk and put somewhere first.
struct Varied<'a> {
    classifier: &'a dyn Classifier,
    placements: &'a [Placement],
}

impl Classifier for Varied<'_> {
    fn classes(&self) -> i64 {
        self.classifier.classes()
    }

    fn device(&self) -> tch::Device {
        self.classifier.device()
    }

    fn logits(&self, images: &Tensor) -> Tensor {
        self.classifier.logits(&self.varied(images))
    }

    /// Through the placement by autograd, through the classifier by its own way, which may be a faster one.
    fn loss_gradient(&self, images: &Tensor, loss: &dyn Fn(&Tensor) -> Tensor) -> InputGradient {
        tch::with_grad(|| {
            let images = images.detach().set_requires_grad(true);
            let varied = self.varied(&images);
            let found = self.classifier.loss_gradient(&varied.detach(), loss);
            let along = (&varied * &found.gradient).sum(varied.kind());
            let gradient = Tensor::run_backward(&[along], &[&images], false, false).remove(0);
            InputGradient { gradient: gradient.detach(), ..found }
        })
    }
}

impl Varied<'_> {
    fn varied(&self, images: &Tensor) -> Tensor {
        let size = images.size();
        let (height, width) = (size.get(2).copied().unwrap_or(1), size.get(3).copied().unwrap_or(1));
        let placed = |(row, placement): (i64, &Placement)| {
            let image = images.narrow(0, row, 1);
            let Some([rows, columns, top, left]) = *placement else { return image };
            image.upsample_nearest2d([rows, columns], None, None).constant_pad_nd([
                left,
                width - columns - left,
                top,
                height - rows - top,
            ])
        };
        let varied: Vec<Tensor> = (0..).zip(self.placements).map(placed).collect();
        Tensor::cat(&varied, 0)
    }
}
