//! The gradient of a convolution's weights, for those who train it.
//!
//! It is a sum over all images, and has the same bits for any number of threads: the images are cut into groups by their number
//! and size alone, each group is summed up by itself, and the groups are added in their order.

mod direct;

use std::ops::Range;

use crate::{
    Convolution, Geometry, LANES, Real, Team,
    bits::{lanes, lanes_mut},
    padded,
    simd::{Vector, dispatch},
    winograd::Tiles,
};
use direct::Direct;

/// Most groups: enough for some tasks a thread, and few enough to add.
const GROUPS: usize = 16;
/// Fewest pixels of a group: its sums are as many as there are weights, whatever it sums up.
const PIXELS: usize = 512;

/// What takes fewer multiplications.
enum Route {
    Tiles(Tiles),
    Direct(Direct),
}

impl Route {
    fn new(geometry: &Geometry, channels: [usize; 2], source: [usize; 2], target: [usize; 2]) -> Self {
        let tiles = Tiles::multiplications(channels);
        if geometry.tiled() && tiles < Direct::multiplications(geometry, channels) {
            Self::Tiles(Tiles::new(channels, geometry.before, source, target))
        } else {
            Self::Direct(Direct::new(*geometry, channels, source, target))
        }
    }

    /// Numbers of the sums, and how many of them lie between two outputs, two inputs and two weights of a kernel.
    fn layout(&self) -> (usize, [usize; 3]) {
        match self {
            Self::Tiles(tiles) => tiles.layout(),
            Self::Direct(direct) => direct.layout(),
        }
    }

    fn add<T: Real>(
        &self,
        team: &Team<T>,
        input: &[T],
        gradient: &[T],
        images: Range<usize>,
        sums: &mut [T],
    ) {
        match self {
            Self::Tiles(tiles) => tiles.add(team, input, gradient, images, sums),
            Self::Direct(direct) => direct.add(team, input, gradient, images, sums),
        }
    }
}

impl<T: Real> Convolution<T> {
    /// Writes the gradients with respect to weights and bias. A ReLU behind the convolution has to be in `gradient` already.
    ///
    /// # Shapes
    /// `shape` `[N, H, W]` is the input's; `input` `[N, H, W, padded(inputs)]`, `gradient` `[N, h, w, padded(outputs)]`,
    /// `weights` `[outputs, inputs, rows, columns]`, `bias` `[outputs]`, or empty where it is not wanted.
    ///
    /// # Panics
    /// If a map is too short, or the numbers of weights do not fit.
    pub fn weights_gradient(
        &self,
        team: &Team<T>,
        input: &[T],
        gradient: &[T],
        shape: [usize; 3],
        weights: &mut [T],
        bias: &mut [T],
    ) {
        let ([inputs, outputs], size) = (self.channels(), self.geometry().size);
        assert_eq!(weights.len(), outputs * inputs * size[0] * size[1], "weights");
        assert!(bias.is_empty() || bias.len() == outputs, "bias");
        let ([images, rows, columns], sides) = (shape, self.sides(shape));
        let pixels = sides[0] * sides[1];
        let input = &input[..images * rows * columns * padded(inputs)];
        let gradient = &gradient[..images * pixels * padded(outputs)];
        let route = Route::new(self.geometry(), self.channels(), [rows, columns], sides);

        let (numbers, steps) = route.layout();
        // behind them the bias
        let length = numbers + padded(outputs);
        let group = images.div_ceil(GROUPS).max(PIXELS.div_ceil(pixels));
        let mut memory = team.take(images.div_ceil(group).max(1) * length);
        memory.fill(T::default());
        let groups: Vec<_> = memory.chunks_mut(length.max(1)).enumerate().collect();
        team.each(groups, |(place, sums)| {
            let images = place * group..((place + 1) * group).min(images);
            let (products, sums) = sums.split_at_mut(numbers);
            if !bias.is_empty() {
                let each = pixels * padded(outputs);
                let gradients = gradient[images.start * each..images.end * each].chunks_exact(each);
                gradients.for_each(|gradient| add_pixels(gradient, sums));
            }
            if numbers > 0 {
                route.add(team, input, gradient, images, products);
            }
        });
        let (sums, others) = memory.split_at_mut(length);
        for other in others.chunks_exact(length.max(1)) {
            sums.iter_mut().zip(other).for_each(|(sum, &other)| *sum += other);
        }
        let taps = size[0] * size[1];
        for (place, weight) in weights.iter_mut().enumerate() {
            let (output, input, tap) = (place / taps / inputs, place / taps % inputs, place % taps);
            *weight = sums[output * steps[0] + input * steps[1] + tap * steps[2]];
        }
        bias.copy_from_slice(&sums[numbers..numbers + bias.len()]);
        team.give(memory);
    }
}

dispatch!(add_pixels, add_pixels_in, (gradient: &[T], sums: &mut [T]));

/// Adds the sum over all pixels.
#[inline(always)]
fn add_pixels_in<V: Vector>(gradient: &[V::T], sums: &mut [V::T]) {
    let channels = sums.len();
    for channel in (0..channels).step_by(LANES) {
        let mut sum = V::zero();
        for pixel in gradient.chunks_exact(channels) {
            sum = sum.plus(V::load(lanes(pixel, channel)));
        }
        let place = lanes_mut(sums, channel);
        V::load(place).plus(sum).store(place);
    }
}

#[cfg(test)]
mod tests;
