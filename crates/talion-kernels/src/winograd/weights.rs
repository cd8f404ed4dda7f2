//! The gradient of a kernel in Winograd's domain.
//!
//! Forwards an output tile is `A' ((G w G') * (B' d B)) A` for the kernel `w` and the patch `d`. So the gradient of `w` is
//! `G' (sum over all tiles of (A g A') * (B' d B)) G` for the tiles' gradients `g`: these are brought to the points, multiplied
//! there with the patches, and only the sums are brought back.

use std::ops::Range;

use super::{BLOCK_BYTES, INNER, Map, OUTER, PATCH, POINTS, TILE, Tile, evaluate, kernel_evaluation, tiles};
use crate::{
    LANES, Real,
    bits::{lanes, lanes_mut},
    outer::{Operand, Places, add_products},
    padded,
    simd::{Vector, dispatch},
    team::Team,
};

/// Fewest and most tiles of a block: the sums are read and written once a block, and more tiles do not stay in the cache.
const BLOCK_TILES: [usize; 2] = [32, 96];

/// A 3x3 kernel's channels, and the maps between which it lies.
pub(crate) struct Tiles {
    /// Channels of input and output, as they are.
    channels: [usize; 2],
    source: Map,
    target: Map,
    padding: [usize; 2],
}

/// Numbers between one point and the next: not a power of two, see `Winograd::strides`.
fn apart(numbers: usize) -> usize {
    numbers + 2 * LANES
}

impl Tiles {
    /// For maps of these rows and columns.
    pub(crate) fn new(
        channels: [usize; 2],
        padding: [usize; 2],
        source: [usize; 2],
        target: [usize; 2],
    ) -> Self {
        let map = |[rows, columns]: [usize; 2], channels| Map { rows, columns, channels: padded(channels) };
        Self { channels, source: map(source, channels[0]), target: map(target, channels[1]), padding }
    }

    /// Multiplications a pixel of the output. Bringing a channel of input or gradient to the points takes about as many
    /// instructions, loads and stores among them, as 14 of them would.
    pub(crate) fn multiplications([inputs, outputs]: [usize; 2]) -> usize {
        let beside = 14 * (padded(inputs) + padded(outputs));
        POINTS * inputs * padded(outputs) / (TILE * TILE) + beside
    }

    /// Numbers of the sums, and how many of them lie between two outputs, two inputs and two weights of a kernel.
    pub(crate) fn layout(&self) -> (usize, [usize; 3]) {
        let matrix = self.channels[0] * self.target.channels;
        (9 * matrix, [1, self.target.channels, matrix])
    }

    /// Adds the gradient that these images have a part in to `sums`.
    pub(crate) fn add<T: Real>(
        &self,
        team: &Team<T>,
        input: &[T],
        gradient: &[T],
        images: Range<usize>,
        sums: &mut [T],
    ) {
        let grid = [self.target.rows.div_ceil(TILE), self.target.columns.div_ceil(TILE)];
        let tiles: Vec<Tile> = tiles(images.start * grid[0]..images.end * grid[0], grid);
        let [from, to] = [self.source.channels, self.target.channels];
        let most = BLOCK_BYTES / (POINTS * (from + to) * size_of::<T>());
        let blocks = tiles.len().div_ceil(most.clamp(BLOCK_TILES[0], BLOCK_TILES[1])).max(1);
        let block = tiles.len().div_ceil(blocks).max(1);
        let matrix = self.channels[0] * to;
        let strides = [block * from, block * to, matrix].map(apart);
        let mut memory = team.take(POINTS * strides.iter().sum::<usize>());
        let (inputs, rest) = memory.split_at_mut(POINTS * strides[0]);
        let (gradients, products) = rest.split_at_mut(POINTS * strides[1]);
        products.fill(T::default());
        let rows: Vec<usize> = (0..self.channels[0]).collect();
        let vectors: Vec<usize> = (0..to).step_by(LANES).collect();
        for tiles in tiles.chunks(block) {
            evaluate(input, self.source, self.padding, tiles, inputs, strides[0]);
            evaluate_gradient(gradient, self.target, tiles, gradients, strides[1]);
            let places = Places::new((0..tiles.len()).map(|tile| [tile * from, tile * to]).collect());
            for point in 0..POINTS {
                let left = Operand { values: &inputs[point * strides[0]..], offsets: &rows };
                let right = Operand { values: &gradients[point * strides[1]..], offsets: &vectors };
                add_products(left, right, &places, &mut products[point * strides[2]..][..matrix]);
            }
        }
        add_kernel(products, strides[2], matrix, sums);
        team.give(memory);
    }
}

dispatch!(evaluate_gradient, evaluate_gradient_in, (
    gradient: &[T], target: Map, tiles: &[Tile], gradients: &mut [T], stride: usize,
));

/// Brings tiles of the gradient to the points.
#[inline(always)]
fn evaluate_gradient_in<V: Vector>(
    gradient: &[V::T],
    target: Map,
    tiles: &[Tile],
    gradients: &mut [V::T],
    stride: usize,
) {
    for (place, tile) in tiles.iter().enumerate() {
        let first = ((tile.image * target.rows + tile.row) * target.columns + tile.column) * target.channels;
        let (rows, columns) = ((target.rows - tile.row).min(TILE), (target.columns - tile.column).min(TILE));
        for channel in (0..target.channels).step_by(LANES) {
            let mut half = [[V::zero(); TILE]; PATCH];
            for column in 0..columns {
                let mut line = [V::zero(); TILE];
                for (row, value) in line.iter_mut().enumerate().take(rows) {
                    let at = first + (row * target.columns + column) * target.channels + channel;
                    *value = V::load(lanes(gradient, at));
                }
                for (half, value) in half.iter_mut().zip(to_points(line)) {
                    half[column] = value;
                }
            }
            for (row, half) in half.into_iter().enumerate() {
                for (column, value) in to_points(half).into_iter().enumerate() {
                    let at = (row * PATCH + column) * stride + place * target.channels + channel;
                    value.store(lanes_mut(gradients, at));
                }
            }
        }
    }
}

/// What four outputs' gradients are at the points: the transpose of `from_points`.
#[inline(always)]
fn to_points<V: Vector>(line: [V; TILE]) -> [V; PATCH] {
    let number = |value: f64| V::splat(V::T::from_f64(value));
    let [g0, g1, g2, g3] = line;
    let at = |point: f64| {
        let square = number(point * point);
        let (even, odd) = (square.times_plus(g2, g0), square.times_plus(g3, g1));
        [number(point).times_plus(odd, even), number(-point).times_plus(odd, even)]
    };
    let ([plus_a, minus_a], [plus_b, minus_b]) = (at(INNER), at(OUTER));
    [g0, plus_a, minus_a, plus_b, minus_b, g3]
}

dispatch!(add_kernel, add_kernel_in, (products: &[T], stride: usize, matrix: usize, sums: &mut [T]));

/// Brings sums of products back from the points, and adds what they are for each of the nine weights.
#[inline(always)]
fn add_kernel_in<V: Vector>(products: &[V::T], stride: usize, matrix: usize, sums: &mut [V::T]) {
    for place in (0..matrix).step_by(LANES) {
        let mut half = [[V::zero(); PATCH]; 3];
        #[allow(clippy::needless_range_loop)] // it is an index of the products too
        for column in 0..PATCH {
            let line =
                std::array::from_fn(|row| V::load(lanes(products, (row * PATCH + column) * stride + place)));
            for (row, value) in to_kernel(line).into_iter().enumerate() {
                half[row][column] = value;
            }
        }
        for (row, half) in half.into_iter().enumerate() {
            for (column, value) in to_kernel(half).into_iter().enumerate() {
                let sum = lanes_mut(sums, (row * 3 + column) * matrix + place);
                V::load(sum).plus(value).store(sum);
            }
        }
    }
}

/// A kernel's three numbers from those at the points: the transpose of [`kernel_evaluation`].
#[inline(always)]
fn to_kernel<V: Vector>(line: [V; PATCH]) -> [V; 3] {
    let number = |value: f64| V::splat(V::T::from_f64(value));
    let [zero, plus_a, minus_a, plus_b, minus_b, infinity] = line;
    let (sum_a, difference_a) = (plus_a.plus(minus_a), plus_a.minus(minus_a));
    let (sum_b, difference_b) = (plus_b.plus(minus_b), plus_b.minus(minus_b));
    let [at_zero, at_a, _, at_b, ..] = kernel_evaluation();
    let both = |power: usize, a: V, b: V, rest: V| {
        number(at_a[power]).times_plus(a, number(at_b[power]).times_plus(b, rest))
    };
    [
        both(0, sum_a, sum_b, number(at_zero[0]).times(zero)),
        both(1, difference_a, difference_b, V::zero()),
        both(2, sum_a, sum_b, infinity),
    ]
}
