/*!
Known defences to compare with.

Filters need no training: [`FilterSpec`] names them in texts and builds them. [`Compression`] and [`Purification`] bring networks
that are trained on clean images alone ([`train_restorer`]). All have checked constructors and are differentiable with respect to
the images. Steps whose derivative is zero almost everywhere (rounding) pass gradients through as the identity would, so that an
attacker is not stopped by a derivative that says nothing.

A row's result has the same bits in every batch. Sums are therefore spelt out term by term where a matrix product or a
convolution of libtorch could choose another order of summation for another number of rows.
*/

mod bit_depth;
mod compress;
mod denoiser;
mod jpeg;
mod network_file;
mod purification;
mod purifying;
mod resize_pad;
mod smoothing;
mod spec;
#[cfg(test)]
mod testing;
mod total_variation;
mod training;

use tch::Tensor;

pub use bit_depth::BitDepth;
pub use compress::Compression;
pub use jpeg::Jpeg;
pub use network_file::{Restorer, RestorerCard, RestorerNetwork};
pub use purification::Purification;
pub use purifying::{Purifying, load};
pub use resize_pad::ResizePad;
pub use smoothing::{Gaussian, Median};
pub use spec::FilterSpec;
pub use total_variation::TotalVariation;
pub use training::{RestorerTraining, train_restorer};

/// Forwards `changed`, backwards the identity in `x` (straight-through).
///
/// The sum has the bits of `changed` where both are whole numbers, and where `changed` is `x` rounded or clamped: the
/// difference is then exact.
fn straight_through(x: &Tensor, changed: &Tensor) -> Tensor {
    x + (changed - x).detach()
}

/// The nearest whole numbers; backwards the identity.
fn rounded(x: &Tensor) -> Tensor {
    straight_through(x, &x.round())
}

/// Values outside `[low, high]` moved to its ends; backwards the identity. For the small excess that rounding errors leave:
/// a plain clamp would also take away the derivative there.
fn inside(x: &Tensor, low: f64, high: f64) -> Tensor {
    straight_through(x, &x.clamp(low, high))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_is_exact_forwards_and_the_identity_backwards() {
        let x =
            Tensor::from_slice(&[0.3_f32, 0.5, 0.6, 1.5, 100.3, 254.7, -0.2, -3.6]).set_requires_grad(true);
        let whole = rounded(&x);
        assert_eq!(whole, Tensor::from_slice(&[0_f32, 0.0, 1.0, 2.0, 100.0, 255.0, 0.0, -4.0]));
        let gradient = Tensor::run_backward(&[whole.sum(whole.kind())], &[&x], false, false).remove(0);
        assert_eq!(gradient, x.ones_like());
    }

    #[test]
    fn the_box_holds_every_value_and_stops_no_gradient() {
        let x = Tensor::from_slice(&[-1e-7_f32, 0.25, 1.000_000_1]).set_requires_grad(true);
        let held = inside(&x, 0.0, 1.0);
        assert_eq!(held, Tensor::from_slice(&[0_f32, 0.25, 1.0]));
        let gradient = Tensor::run_backward(&[held.sum(held.kind())], &[&x], false, false).remove(0);
        assert_eq!(gradient, x.ones_like());
    }
}
