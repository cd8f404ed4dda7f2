//! Images made smooth in patches: total variation denoising.

use talion_core::{Classifier, Error, Result};
use tch::Tensor;

use super::inside;
use crate::defence::{Defence, Pass};

/// The image `u` near the given `x`, with little total variation: about the smallest `TV(u) + |u - x|^2 / (2 weight)`, each
/// channel for itself, TV isotropic. A fixed number of steps, through which gradients flow.
///
/// Guo et al. also drop most of the pixels at random and let the minimisation fill them in; this defence does not, and is
/// therefore not random.
///
/// # Source
/// Rudin, Osher and Fatemi, "Nonlinear total variation based noise removal algorithms", 1992; solved in its dual by the
/// projection of Chambolle, "An Algorithm for Total Variation Minimization and Applications", 2004, section 3. As a defence:
/// Guo et al., "Countering Adversarial Images using Input Transformations", ICLR 2018, section 3.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TotalVariation {
    weight: f64,
    steps: u32,
}

/// Size of a step. Chambolle proves convergence up to 1/8 and finds 1/4 to be the limit in practice, and the fastest.
const STEP: f64 = 0.25;

/// Below this, squared lengths are taken to be it: the square root has no derivative at 0.
const TINY: f64 = 1e-24;

impl TotalVariation {
    /// Steps unless others are asked for.
    pub const STEPS: u32 = 40;

    /// A weight of 0.001 (hardly any change) to 1, and 1 to 1000 steps. An edge of height 1 between two pixels loses twice
    /// the weight of its height.
    ///
    /// # Errors
    /// If `weight` or `steps` is not in its range.
    pub fn new(weight: f64, steps: u32) -> Result<Self> {
        if !(0.001..=1.0).contains(&weight) {
            return Err(Error::range("the weight of total variation", "0.001 to 1", weight));
        }
        if !(1..=1000).contains(&steps) {
            return Err(Error::range("the steps of total variation", "1 to 1000", steps));
        }
        Ok(Self { weight, steps })
    }
}

impl Defence for TotalVariation {
    fn description(&self) -> String {
        let steps = if self.steps == 1 { "step" } else { "steps" };
        format!("total variation of weight {} in {} {steps}", self.weight, self.steps)
    }

    fn restore(&self, _: &dyn Classifier, images: &Tensor, _: Pass) -> Tensor {
        let target = images / self.weight;
        let mut dual = Field { down: images.zeros_like(), right: images.zeros_like() };
        for _ in 0..self.steps {
            let Field { down, right } = Field::slopes(&(dual.divergence() - &target));
            let length = (down.square() + right.square()).clamp_min(TINY).sqrt();
            let shrink = length * STEP + 1.0;
            dual = Field {
                down: (dual.down + down * STEP) / &shrink,
                right: (dual.right + right * STEP) / &shrink,
            };
        }
        // the minimum lies in the box; where the steps end may be just outside
        inside(&(images - dual.divergence() * self.weight), 0.0, 1.0)
    }
}

/// A vector at each pixel; its components past the last row and column are 0.
struct Field {
    down: Tensor,
    right: Tensor,
}

impl Field {
    /// The differences to the pixels below and to the right.
    ///
    /// # Shapes
    /// `x` `[N, C, H, W]`; both components too.
    fn slopes(x: &Tensor) -> Self {
        let size = x.size();
        let (height, width) = (size[2] - 1, size[3] - 1);
        let down = x.narrow(2, 1, height) - x.narrow(2, 0, height);
        let right = x.narrow(3, 1, width) - x.narrow(3, 0, width);
        Self { down: down.constant_pad_nd([0, 0, 0, 1]), right: right.constant_pad_nd([0, 1]) }
    }

    /// What flows out of each pixel: the negative adjoint of [`Field::slopes`].
    fn divergence(&self) -> Tensor {
        let size = self.down.size();
        let above = self.down.narrow(2, 0, size[2] - 1).constant_pad_nd([0, 0, 1, 0]);
        let left = self.right.narrow(3, 0, size[3] - 1).constant_pad_nd([1, 0]);
        (&self.down - above) + (&self.right - left)
    }
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::{
        super::testing::{
            assert_gradient, assert_rows_stand_alone, assert_takes_any_size, largest_difference, picture,
            restored, with_gradient,
        },
        *,
    };
    use crate::defence::Draw;

    fn denoised(images: &Tensor, weight: f64, steps: u32) -> Tensor {
        restored(&TotalVariation::new(weight, steps).unwrap(), images, Draw::OWN)
    }

    /// What is to be minimised.
    fn energy(u: &Tensor, x: &Tensor, weight: f64) -> f64 {
        let slopes = Field::slopes(u);
        let variation = (slopes.down.square() + slopes.right.square()).sqrt().sum(Kind::Double);
        let distance = (u - x).square().sum(Kind::Double) / (2.0 * weight);
        (variation + distance).double_value(&[])
    }

    #[test]
    fn an_edge_between_two_pixels_loses_the_weight_on_both_sides() {
        for size in [[1, 1, 1, 2], [1, 1, 2, 1]] {
            let images = Tensor::from_slice(&[0.1, 0.9]).reshape(size);
            let expected = Tensor::from_slice(&[0.15, 0.85]).reshape(size);
            assert!(largest_difference(&denoised(&images, 0.05, 40), &expected) < 1e-9);
            // the edge is gone when it is no higher than twice the weight
            let gone = Tensor::from_slice(&[0.5, 0.5]).reshape(size);
            assert!(largest_difference(&denoised(&images, 1.0, 200), &gone) < 1e-6);
        }
    }

    #[test]
    fn slopes_and_divergence_are_negative_adjoints() {
        let image = picture([2, 3, 5, 7], 0.0, 1.0).to_kind(Kind::Double);
        let source = picture([4, 3, 5, 7], 0.0, 1.0).to_kind(Kind::Double);
        let field = Field::slopes(&source.narrow(0, 2, 2));
        let slopes = Field::slopes(&image);
        let with_slopes = (&field.down * slopes.down + &field.right * slopes.right).sum(Kind::Double);
        let with_divergence = (field.divergence() * &image).sum(Kind::Double);
        assert!((with_slopes + with_divergence).double_value(&[]).abs() < 1e-12);
    }

    #[test]
    fn the_energy_falls_to_a_minimum() {
        let images = picture([1, 1, 10, 11], 0.1, 0.9).to_kind(Kind::Double);
        let (few, many) = (denoised(&images, 0.05, 40), denoised(&images, 0.05, 1000));
        let least = energy(&many, &images, 0.05);
        assert!(energy(&few, &images, 0.05) < 0.9 * energy(&images, &images, 0.05));
        // 40 steps are nearly there
        assert!(energy(&few, &images, 0.05) < 1.01 * least);
        for other in [&images * 0.1 + &many * 0.9, picture([1, 1, 10, 11], 0.0, 0.05) + &many, &many * 0.9] {
            assert!(energy(&other, &images, 0.05) > least);
        }
    }

    #[test]
    fn means_and_constants_stay() {
        let images = picture([2, 3, 9, 8], 0.2, 0.8).to_kind(Kind::Double);
        let means = |images: &Tensor| images.flatten(2, -1).mean_dim([2_i64].as_slice(), false, Kind::Double);
        assert!(largest_difference(&means(&denoised(&images, 0.1, 40)), &means(&images)) < 1e-12);
        for value in [0.0, 0.3, 1.0] {
            let images = Tensor::full([1, 3, 6, 7], value, (Kind::Float, Device::Cpu));
            let defence = TotalVariation::new(0.05, 40).unwrap();
            let (restored, gradient) = with_gradient(&defence, &images, Draw::OWN);
            assert!(restored.equal(&images));
            // flat places have no slope to differentiate, which must not show as NaN
            assert!(gradient.isfinite().all().int64_value(&[]) == 1);
        }
    }

    #[test]
    fn gradients_are_right() {
        assert_gradient(&TotalVariation::new(0.05, 40).unwrap(), [1, 2, 7, 6]);
    }

    #[test]
    fn rows_stand_alone_and_any_size_is_taken() {
        assert_rows_stand_alone(&TotalVariation::new(0.1, 10).unwrap());
        assert_takes_any_size(&TotalVariation::new(0.1, 10).unwrap());
    }

    #[test]
    fn other_settings_are_refused() {
        for weight in [0.0, -0.1, 1.5, f64::NAN] {
            assert!(TotalVariation::new(weight, 40).is_err(), "{weight}");
        }
        assert!(TotalVariation::new(0.05, 0).is_err());
        assert!(TotalVariation::new(0.05, 1001).is_err());
    }
}
