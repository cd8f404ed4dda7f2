/*!
Kernels of the fast engine: what a frozen network needs on a CPU, forwards and back to its images, and nothing else.

A network whose weights never change again can have them prepared once, and needs no gradients for them. So a 3x3
convolution becomes a quarter of its multiplications (Lavin and Gray 2016, "Fast Algorithms for Convolutional Neural
Networks", F(4x4, 3x3)), its derivative is another convolution of the same kind, and of the activations only one bit each is
kept: whether a ReLU let it pass.

# Layout
Feature maps are `[N, H, W, C]` with C innermost and a multiple of [`LANES`], filled with zeros ([`padded`]); [`Convolution`] has
its channels padded likewise. Masks have a bit an element in the same order.

# Bits
A row of a batch has the same bits whatever stands beside it, whatever the batch's size and the number of threads: every
output is one sum, taken in one order. Gradients of weights ([`Convolution::weights_gradient`]), for those who train a
network, are sums over a batch: these have the same bits for any number of threads.

Everything is generic in the precision: f32 is for use, f64 for showing that the algebra is right.
*/

mod bits;
mod convolution;
mod few;
mod gemm;
mod outer;
mod patches;
mod pointwise;
mod pooling;
mod real;
mod simd;
mod streams;
mod team;
mod threads;
mod weights;
mod winograd;

pub use bits::{After, Rectify, Sum, mask_bytes};
pub use convolution::{Convolution, Geometry};
pub use gemm::{Factors, Packed};
pub use pointwise::{affine, affine_back, from_planes, join, to_planes};
pub use pooling::{Pooling, Window};
pub use real::Real;
pub use simd::{Level, level};
pub use streams::{enlarged, enlarged_back, gated, gated_back, means, means_back, part, side_by_side};
pub use team::{Buffer, Team};

/// Channels are padded to a multiple of this: what one vector register of f32 holds.
pub const LANES: usize = 8;

/// The next multiple of [`LANES`].
pub fn padded(channels: usize) -> usize {
    channels.next_multiple_of(LANES)
}
