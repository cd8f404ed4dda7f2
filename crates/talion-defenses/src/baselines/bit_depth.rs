//! Fewer bits a value.

use talion_core::{Classifier, Error, Result};
use tch::Tensor;

use super::rounded;
use crate::defence::{Defence, Pass};

/// Values rounded to `2^bits` even steps: small changes vanish, unless they cross the middle between two.
///
/// # Source
/// Xu, Evans and Qi, "Feature Squeezing: Detecting Adversarial Examples in Deep Neural Networks", NDSS 2018, section III.A.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BitDepth {
    bits: u8,
}

impl BitDepth {
    /// `bits` a value, 1 to 8.
    ///
    /// # Errors
    /// If `bits` is not in that range.
    pub fn new(bits: u8) -> Result<Self> {
        if !(1..=8).contains(&bits) {
            return Err(Error::range("bits a value", "1 to 8", bits));
        }
        Ok(Self { bits })
    }
}

impl Defence for BitDepth {
    fn description(&self) -> String {
        match self.bits {
            1 => "1 bit a value".into(),
            bits => format!("{bits} bits a value"),
        }
    }

    fn restore(&self, _: &dyn Classifier, images: &Tensor, _: Pass) -> Tensor {
        let steps = f64::from((1_u32 << self.bits) - 1);
        rounded(&(images * steps)) / steps
    }
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::{
        super::testing::{
            assert_rows_stand_alone, assert_takes_any_size, largest_difference, picture, restored,
            with_gradient,
        },
        *,
    };
    use crate::defence::Draw;

    #[test]
    fn values_go_to_the_nearest_step() {
        let values = Tensor::from_slice(&[0_f32, 0.4, 0.6, 1.0]).reshape([1, 1, 2, 2]);
        let one = restored(&BitDepth::new(1).unwrap(), &values, Draw::OWN);
        assert_eq!(one.reshape([-1]), Tensor::from_slice(&[0_f32, 0.0, 1.0, 1.0]));
        let two = restored(&BitDepth::new(2).unwrap(), &values, Draw::OWN).reshape([-1]);
        assert!(largest_difference(&two, &Tensor::from_slice(&[0_f32, 1.0 / 3.0, 2.0 / 3.0, 1.0])) < 1e-6);
    }

    #[test]
    fn bytes_fit_into_eight_bits() {
        let bytes = (Tensor::arange(256_i64, (Kind::Float, Device::Cpu)) / 255.0).reshape([1, 1, 16, 16]);
        assert!(restored(&BitDepth::new(8).unwrap(), &bytes, Draw::OWN).equal(&bytes));
    }

    #[test]
    fn gradients_pass_as_through_the_identity() {
        let images = picture([2, 3, 5, 6], 0.0, 1.0);
        let (_, expected) = with_gradient(&Identity, &images, Draw::OWN);
        let (_, found) = with_gradient(&BitDepth::new(3).unwrap(), &images, Draw::OWN);
        assert!(largest_difference(&found, &expected) < 1e-6);
    }

    #[test]
    fn rows_stand_alone_and_any_size_is_taken() {
        assert_rows_stand_alone(&BitDepth::new(4).unwrap());
        assert_takes_any_size(&BitDepth::new(4).unwrap());
    }

    #[test]
    fn other_depths_are_refused() {
        assert!(BitDepth::new(0).is_err());
        assert!(BitDepth::new(9).is_err());
    }

    struct Identity;

    impl Defence for Identity {
        fn description(&self) -> String {
            "nothing".into()
        }

        fn restore(&self, _: &dyn Classifier, images: &Tensor, _: Pass) -> Tensor {
            images.shallow_clone()
        }
    }
}
