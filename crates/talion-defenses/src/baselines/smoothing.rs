//! Local smoothing: the median and the Gaussian mean of each value's neighbourhood.

use talion_core::{Classifier, Error, Result};
use tch::Tensor;

use super::inside;
use crate::defence::{Defence, Pass};

/// Each value replaced by the median of the square window around it, a channel at a time; images are reflected at the
/// border. The gradient goes to the value that was chosen.
///
/// A window reaches no further than an image can be reflected, so that in tiny images it is smaller.
///
/// # Source
/// Xu, Evans and Qi, "Feature Squeezing: Detecting Adversarial Examples in Deep Neural Networks", NDSS 2018, section III.B.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Median {
    side: i64,
}

/// Values in the windows that are sorted at once: bounds the memory, which windows multiply.
const VALUES_AT_ONCE: i64 = 1 << 24;

impl Median {
    /// Windows of `side` by `side`: 3, 5 or 7.
    ///
    /// # Errors
    /// If `side` is none of these.
    pub fn new(side: i64) -> Result<Self> {
        if !matches!(side, 3 | 5 | 7) {
            return Err(Error::range("the side of the median's window", "3, 5 or 7", side));
        }
        Ok(Self { side })
    }

    fn filtered(self, images: &Tensor) -> Tensor {
        let [vertical, horizontal] = reaches(images, self.side / 2);
        let (height, width) = (2 * vertical + 1, 2 * horizontal + 1);
        let windows = reflected(images, [vertical, horizontal]).unfold(2, height, 1).unfold(3, width, 1);
        // an odd number of values: the median is one of them
        windows.flatten(4, -1).median_dim(-1, false).0
    }
}

impl Defence for Median {
    fn description(&self) -> String {
        format!("median of {0}x{0} windows", self.side)
    }

    fn restore(&self, _: &dyn Classifier, images: &Tensor, _: Pass) -> Tensor {
        let values = images.size()[1..].iter().product::<i64>() * self.side * self.side;
        let rows = (VALUES_AT_ONCE / values.max(1)).max(1);
        let parts: Vec<Tensor> = images.split(rows, 0).iter().map(|part| self.filtered(part)).collect();
        Tensor::cat(&parts, 0)
    }
}

/// Each value replaced by the Gaussian mean of its neighbourhood, a channel at a time; images are reflected at the border.
///
/// The kernel ends at three standard deviations, or where an image cannot be reflected any further.
///
/// # Source
/// Local smoothing as in Xu, Evans and Qi, "Feature Squeezing", NDSS 2018, section III.B, with the mean in the place of the
/// median.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Gaussian {
    sigma: f64,
}

impl Gaussian {
    /// A standard deviation of `sigma` pixels, 0.1 to 5.
    ///
    /// # Errors
    /// If `sigma` is not in that range.
    pub fn new(sigma: f64) -> Result<Self> {
        if !(0.1..=5.0).contains(&sigma) {
            return Err(Error::range("the Gaussian's standard deviation in pixels", "0.1 to 5", sigma));
        }
        Ok(Self { sigma })
    }

    /// The weights at distances from 0 to `reach`; with both sides counted they sum to 1.
    fn weights(self, reach: i64) -> Vec<f64> {
        let raw: Vec<f64> =
            (0..=reach).map(|distance| (-0.5 * (distance as f64 / self.sigma).powi(2)).exp()).collect();
        let total = 2.0 * raw.iter().sum::<f64>() - 1.0;
        raw.into_iter().map(|weight| weight / total).collect()
    }
}

impl Defence for Gaussian {
    fn description(&self) -> String {
        format!("Gaussian blur of {} pixels", self.sigma)
    }

    fn restore(&self, _: &dyn Classifier, images: &Tensor, _: Pass) -> Tensor {
        let [vertical, horizontal] = reaches(images, (3.0 * self.sigma).ceil() as i64);
        let wide = reflected(images, [vertical, horizontal]);
        let across = averaged(&wide, 3, &self.weights(horizontal));
        inside(&averaged(&across, 2, &self.weights(vertical)), 0.0, 1.0)
    }
}

/// How far windows reach up and down, and left and right: as far as wanted, or as far as an image can be reflected.
fn reaches(images: &Tensor, wanted: i64) -> [i64; 2] {
    let size = images.size();
    [size[2], size[3]].map(|side| wanted.min(side - 1).max(0))
}

/// The images with so many reflected lines above and below, and left and right.
fn reflected(images: &Tensor, [vertical, horizontal]: [i64; 2]) -> Tensor {
    images.reflection_pad2d([horizontal, horizontal, vertical, vertical])
}

/// Weighted means along `dimension`, which becomes shorter by the reach of the weights on both sides.
///
/// Summed term by term: a convolution's order of summation, and so a row's bits, may depend on the number of rows.
fn averaged(x: &Tensor, dimension: i64, weights: &[f64]) -> Tensor {
    let reach = weights.len() as i64 - 1;
    let length = x.size()[dimension as usize] - 2 * reach;
    let at = |offset| x.narrow(dimension, reach + offset, length);
    (0..)
        .zip(weights)
        .skip(1)
        .fold(at(0) * weights[0], |sum, (distance, &weight)| sum + (at(-distance) + at(distance)) * weight)
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::{
        super::testing::{
            assert_gradient, assert_rows_stand_alone, assert_takes_any_size, largest_difference, picture,
            restored,
        },
        *,
    };
    use crate::defence::Draw;

    const FLOAT: (Kind, Device) = (Kind::Float, Device::Cpu);

    fn median(images: &Tensor, side: i64) -> Tensor {
        restored(&Median::new(side).unwrap(), images, Draw::OWN)
    }

    fn blurred(images: &Tensor, sigma: f64) -> Tensor {
        restored(&Gaussian::new(sigma).unwrap(), images, Draw::OWN)
    }

    #[test]
    fn the_median_removes_specks_and_keeps_edges() {
        let edge = Tensor::cat(&[Tensor::zeros([1, 1, 8, 4], FLOAT), Tensor::ones([1, 1, 8, 4], FLOAT)], 3);
        assert!(median(&edge, 3).equal(&edge));
        let speckled = &edge * 1.0;
        for (y, x) in [(2, 1), (5, 6), (0, 0)] {
            let speck = speckled.narrow(2, y, 1).narrow(3, x, 1);
            speck.shallow_clone().copy_(&(1.0 - &speck));
        }
        assert!(!speckled.equal(&edge));
        assert!(median(&speckled, 3).equal(&edge));
    }

    #[test]
    fn the_median_is_that_of_the_reflected_window() {
        let square = |values: [f32; 9]| (Tensor::from_slice(&values) / 10.0).reshape([1, 1, 3, 3]);
        let image = square([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0]);
        // the window about the upper left corner, for instance, holds 1 once, 2 and 4 twice each, 5 four times
        let expected = square([4.0, 4.0, 5.0, 5.0, 5.0, 5.0, 5.0, 6.0, 6.0]);
        assert!(median(&image, 3).equal(&expected));
        // larger windows reach to the border of so small an image and no further
        assert_eq!(median(&image, 7).size(), image.size());
    }

    #[test]
    fn a_speck_is_blurred_as_the_gaussian_says() {
        let sigma = 0.7;
        let image = Tensor::zeros([1, 1, 11, 12], (Kind::Double, Device::Cpu));
        let _ = image.narrow(2, 5, 1).narrow(3, 6, 1).fill_(1.0);
        let found = blurred(&image, sigma);
        let at = |y, x| found.double_value(&[0, 0, y, x]);
        let ratio = |squared: f64| (-0.5 * squared / (sigma * sigma)).exp();
        for ((y, x), squared) in [((5, 7), 1.0), ((4, 6), 1.0), ((6, 7), 2.0), ((7, 5), 5.0), ((5, 3), 9.0)] {
            assert!((at(y, x) / at(5, 6) - ratio(squared)).abs() < 1e-12, "{y}, {x}");
        }
        assert_eq!(at(5, 2), 0.0);
        assert!((found.sum(Kind::Double).double_value(&[]) - 1.0).abs() < 1e-12);
    }

    #[test]
    fn constants_stay_constants() {
        for value in [0.0, 0.3, 1.0] {
            let images = Tensor::full([2, 3, 9, 10], value, FLOAT);
            assert!(median(&images, 5).equal(&images));
            assert!(largest_difference(&blurred(&images, 5.0), &images) < 1e-6);
        }
    }

    #[test]
    fn the_narrowest_gaussian_changes_nothing_to_speak_of() {
        let images = picture([1, 3, 9, 9], 0.0, 1.0);
        assert!(largest_difference(&blurred(&images, 0.1), &images) < 1e-6);
    }

    #[test]
    fn gradients_are_right() {
        assert_gradient(&Median::new(3).unwrap(), [1, 2, 7, 6]);
        assert_gradient(&Median::new(7).unwrap(), [1, 1, 9, 5]);
        assert_gradient(&Gaussian::new(0.7).unwrap(), [1, 2, 7, 6]);
        assert_gradient(&Gaussian::new(4.0).unwrap(), [1, 1, 9, 5]);
    }

    #[test]
    fn rows_stand_alone_and_any_size_is_taken() {
        assert_rows_stand_alone(&Median::new(5).unwrap());
        assert_takes_any_size(&Median::new(7).unwrap());
        assert_rows_stand_alone(&Gaussian::new(1.3).unwrap());
        assert_takes_any_size(&Gaussian::new(5.0).unwrap());
    }

    #[test]
    fn other_windows_are_refused() {
        for side in [-3, 0, 1, 4, 9] {
            assert!(Median::new(side).is_err(), "{side}");
        }
        for sigma in [0.0, 0.05, 5.1, -1.0, f64::NAN, f64::INFINITY] {
            assert!(Gaussian::new(sigma).is_err(), "{sigma}");
        }
    }
}
