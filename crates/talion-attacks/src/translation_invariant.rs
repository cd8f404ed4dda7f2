//! The Translation-Invariant method, TI-FGSM.

use serde::{Deserialize, Serialize};
use talion_core::{Budget, Classifier, Error, Result};
use tch::{Kind, Tensor};

use crate::{
    Attack, Attempt, Batch, Conditions, Passes,
    ascent::{Ascent, View, climb, step_size},
    mim::{accumulate, check_decay},
};

/// MIM along gradients blurred by a Gaussian kernel, which stands for attacking many shifted copies of the image at once
/// (transfer).
///
/// # Source
/// Dong et al., "Evading Defenses to Transferable Adversarial Examples by Translation-Invariant Attacks", CVPR 2019,
/// section 3.2 and equation 7; 10 steps of `epsilon / 10`, decay 1.0, a 15x15 Gaussian kernel of standard deviation 3 for
/// images of 299 pixels. Small images want a smaller one; the kernel is never wider than the image.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TiFgsm {
    /// Number of steps, at least 1. Default 10.
    pub steps: u32,
    /// Side of the kernel in pixels, odd, 1 to 63. Default 15.
    pub kernel: u32,
    /// How much of the momentum survives a step, at least 0. Default 1.0.
    pub decay: f64,
    /// Size of a step in units of the `[0, 1]` image scale. Default: `None`, which is `epsilon / steps`.
    pub step: Option<f64>,
}

impl Default for TiFgsm {
    fn default() -> Self {
        Self { steps: 10, kernel: 15, decay: 1.0, step: None }
    }
}

impl Attack for TiFgsm {
    fn name(&self) -> String {
        let decay = (self.decay != 1.0).then_some(self.decay);
        let kernel = crate::spec::suffix("kernel", (self.kernel != 15).then_some(f64::from(self.kernel)));
        let (decay, step) = (crate::spec::suffix("decay", decay), crate::spec::suffix("step", self.step));
        format!("ti-fgsm-{}{kernel}{decay}{step}", self.steps)
    }

    fn cost(&self) -> Passes {
        Passes::GRADIENT.times(self.steps.into())
    }

    fn begin(&self, batch: &Batch<'_>, conditions: &Conditions<'_>) -> Result<Box<dyn Attempt>> {
        climb(self, batch, conditions)
    }
}

impl Ascent for TiFgsm {
    fn steps(&self) -> u32 {
        self.steps
    }

    fn step_size(&self, budget: &Budget) -> Result<f64> {
        step_size(self.step, 1.0, budget, self.steps)
    }

    fn check(&self) -> Result<()> {
        if !(1..=63).contains(&self.kernel) || self.kernel.is_multiple_of(2) {
            return Err(Error::range("the side of the kernel", "an odd number from 1 to 63", self.kernel));
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
        let (gradient, logits) = view.gradient_at(classifier, view.iterate);
        let blurred = blurred(&gradient, i64::from(self.kernel));
        Ok((view.budget.steepest(&accumulate(memory, self.decay, &blurred)), Some(logits)))
    }
}

/// Each channel convolved with a Gaussian whose standard deviation is a fifth of `side`, cut at three of them below the
/// paper's size; zeros surround the image.
fn blurred(gradient: &Tensor, side: i64) -> Tensor {
    let size = gradient.size();
    let (Some(&channels), Some(&height), Some(&width)) = (size.get(1), size.get(2), size.get(3)) else {
        return gradient.shallow_clone();
    };
    let shortest = height.min(width);
    let side = side.min(shortest - (1 - shortest % 2)).max(1);
    let half = side / 2;
    let deviation = (side as f64 / 5.0).max(1e-3);
    let line = (Tensor::arange_start(-half, half + 1, (gradient.kind(), gradient.device())) / deviation)
        .square()
        * -0.5;
    let line = line.softmax(0, None::<Kind>);
    let blur = |x: &Tensor, shape: [i64; 4], padding: [i64; 2]| {
        let kernel = line.view(shape).expand([channels, 1, shape[2], shape[3]], false).contiguous();
        x.conv2d(&kernel, None::<&Tensor>, [1, 1], padding, [1, 1], channels)
    };
    // a Gaussian of the plane is the product of two lines
    blur(&blur(gradient, [1, 1, side, 1], [half, 0]), [1, 1, 1, side], [0, half])
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    #[test]
    fn blurring_keeps_the_sum_of_a_point_and_spreads_it_evenly() {
        let point = Tensor::zeros([1, 2, 9, 9], (Kind::Double, Device::Cpu));
        let _ = point.get(0).get(1).get(4).get(4).fill_(1.0);
        let spread = blurred(&point, 5);
        assert!((spread.sum(Kind::Double).double_value(&[]) - 1.0).abs() < 1e-12);
        assert_eq!(spread.get(0).get(0).abs().max().double_value(&[]), 0.0);
        let at = |row, column| spread.double_value(&[0, 1, row, column]);
        assert!((at(4, 3) - at(4, 5)).abs() < 1e-15 && (at(3, 4) - at(5, 4)).abs() < 1e-15);
        assert!(at(4, 4) > at(4, 3) && at(4, 3) > at(3, 3) && at(3, 3) > 0.0);
        assert_eq!(blurred(&point, 63).size(), point.size());
    }
}
