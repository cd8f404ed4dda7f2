//! 3x3 convolutions with stride 1 by Winograd's algorithm F(4x4, 3x3): Lavin and Gray 2016, "Fast Algorithms for
//! Convolutional Neural Networks", section 4.
//!
//! A tile of 6x6 inputs becomes 4x4 outputs. Both polynomials, image and kernel, are evaluated at 0, 3/4, -3/4, 3/2, -3/2 and
//! infinity in both directions; products are taken there, and the result is interpolated. With the customary points 0, 1, -1,
//! 2 and -2 the error in f32 is twice as large; these are as easy on a processor, since they and their powers are exact.

mod weights;

pub(crate) use weights::Tiles;

use crate::{
    LANES, Real,
    bits::{Finish, Target, lanes, lanes_mut, pairs_mut},
    gemm::{Factors, Packed},
    simd::{PAIRS, Vector, dispatch},
    team::{Band, Team, bands},
};

/// Outputs of a tile in each direction.
pub(crate) const TILE: usize = 4;
/// Inputs of a tile in each direction.
const PATCH: usize = 6;
/// Points at which image and kernel meet.
const POINTS: usize = PATCH * PATCH;

/// The inner and the outer point; their negatives, zero and infinity are the others.
const INNER: f64 = 0.75;
const OUTER: f64 = 1.5;

/// Bytes of transformed tiles that are worked on together; what a core has to itself holds about as much.
const BLOCK_BYTES: usize = 640 << 10;
/// Fewest and most tiles of a block: products of few rows are slow, of more no faster.
const BLOCK_TILES: [usize; 2] = [36, 96];
/// Bytes of transformed weights above which all threads share each of them instead of reading all of them each.
const SHARED_BYTES: usize = 4 << 20;
/// Tiles that share one reading of such weights at most.
const SHARED_TILES: usize = 384;

/// A kernel, transformed once.
#[derive(Debug)]
pub(crate) struct Winograd<T> {
    /// A matrix `[C, K]` a point.
    points: Vec<Packed<T>>,
    channels: usize,
    outputs: usize,
    /// Rows and columns of zeros before the first ones.
    padding: [usize; 2],
}

/// Where a tile begins: its image, its first output row and column.
#[derive(Clone, Copy)]
struct Tile {
    image: usize,
    row: usize,
    column: usize,
}

/// Shapes of an input or output.
#[derive(Clone, Copy)]
struct Map {
    rows: usize,
    columns: usize,
    channels: usize,
}

impl Map {
    fn elements(self) -> usize {
        self.rows * self.columns * self.channels
    }
}

impl<T: Real> Winograd<T> {
    /// `weight(output, input, row, column)`, for padded numbers of channels.
    pub(crate) fn new(
        factors: Factors,
        [channels, outputs]: [usize; 2],
        padding: [usize; 2],
        weight: impl Fn(usize, usize, usize, usize) -> f64,
    ) -> Self {
        let evaluation = kernel_evaluation();
        let mut transformed = vec![0.0_f64; POINTS * channels * outputs];
        for output in 0..outputs {
            for input in 0..channels {
                let half: [[f64; 3]; PATCH] = std::array::from_fn(|point| {
                    std::array::from_fn(|column| {
                        (0..3).map(|row| evaluation[point][row] * weight(output, input, row, column)).sum()
                    })
                });
                for (row, half) in half.iter().enumerate() {
                    for (column, factors) in evaluation.iter().enumerate() {
                        let value: f64 = half.iter().zip(factors).map(|(half, factor)| half * factor).sum();
                        transformed[((row * PATCH + column) * channels + input) * outputs + output] = value;
                    }
                }
            }
        }
        let points = transformed
            .chunks_exact(channels * outputs)
            .map(|matrix| {
                Packed::with(factors, channels, outputs, |row, column| matrix[row * outputs + column])
            })
            .collect();
        Self { points, channels, outputs, padding }
    }

    /// Bytes of the transformed kernel.
    pub(crate) fn bytes(&self) -> usize {
        POINTS * self.places() * self.columns() * size_of::<T>()
    }

    /// Places that a tile's channels take at a point.
    fn places(&self) -> usize {
        self.points[0].places()
    }

    fn columns(&self) -> usize {
        self.points[0].columns()
    }

    /// Numbers between one point's inputs and the next one's: not a power of two, or all points would compete for the same
    /// places in the cache.
    fn strides(&self, tiles: usize) -> [usize; 2] {
        [tiles * self.places() + 2 * LANES, tiles * self.columns() + 2 * LANES]
    }

    /// # Shapes
    /// `input` `[N, H, W, C]`, `output` `[N, h, w, K]`.
    #[allow(clippy::too_many_arguments)]
    pub(crate) fn run(
        &self,
        team: &Team<T>,
        input: &[T],
        [images, rows, columns]: [usize; 3],
        output: &mut [T],
        [out_rows, out_columns]: [usize; 2],
        finish: &Finish<'_, T>,
        bits: &mut [u8],
    ) {
        let source = Map { rows, columns, channels: self.channels };
        let target = Map { rows: out_rows, columns: out_columns, channels: self.outputs };
        let shape = [images, out_rows, out_columns * self.outputs];
        let across = out_columns.div_ceil(TILE);
        let down = out_rows.div_ceil(TILE);
        if images * down * across == 0 {
            return;
        }
        if self.bytes() > SHARED_BYTES && team.threads() > 1 {
            return self.run_shared(team, input, source, output, target, images, finish, bits);
        }
        let tile_bytes = POINTS * (self.places() + self.columns()) * size_of::<T>();
        let block = (BLOCK_BYTES / tile_bytes).clamp(BLOCK_TILES[0], BLOCK_TILES[1]);
        // whole blocks, and still several tasks a thread
        let units = images * down;
        let several = block.div_ceil(across).max(1).min(units.div_ceil(team.threads()));
        let several = several * (units / (several * team.threads() * 4)).max(1);
        team.each(bands(output, bits, shape, TILE, several), |band| {
            self.band(team, input, source, target, [down, across], band, block, finish);
        });
    }

    /// Brings tiles of the input to the points, in the form that the products want.
    fn evaluate(&self, input: &[T], source: Map, tiles: &[Tile], inputs: &mut [T], stride: usize) {
        match self.points[0].factors() {
            Factors::Full => evaluate(input, source, self.padding, tiles, inputs, stride),
            Factors::Bf16 => evaluate_pairs(input, source, self.padding, tiles, inputs, stride),
        }
    }

    /// All tiles of a band, a block at a time.
    #[allow(clippy::too_many_arguments)]
    fn band(
        &self,
        team: &Team<T>,
        input: &[T],
        source: Map,
        target: Map,
        grid: [usize; 2],
        band: Band<'_, T>,
        block: usize,
        finish: &Finish<'_, T>,
    ) {
        let tiles: Vec<Tile> = tiles(band.units.clone(), grid);
        let blocks = tiles.len().div_ceil(block).max(1);
        let block = tiles.len().div_ceil(blocks);
        let strides = self.strides(block);
        let mut memory = team.take(POINTS * (strides[0] + strides[1]));
        let (inputs, products) = memory.split_at_mut(POINTS * strides[0]);
        let mut out = Target { output: band.output, bits: band.bits, base: band.base };
        for tiles in tiles.chunks(block) {
            self.evaluate(input, source, tiles, inputs, strides[0]);
            for (point, matrix) in self.points.iter().enumerate() {
                let (left, product) = (&inputs[point * strides[0]..], &mut products[point * strides[1]..]);
                matrix.multiply(left, self.places(), tiles.len(), product);
            }
            let columns = self.columns();
            interpolate(products, strides[1], columns, target, tiles, finish, &mut out);
        }
        team.give(memory);
    }

    /// Where the weights do not fit into what a core has to itself: every thread multiplies some of the points of all tiles.
    #[allow(clippy::too_many_arguments)]
    fn run_shared(
        &self,
        team: &Team<T>,
        input: &[T],
        source: Map,
        output: &mut [T],
        target: Map,
        images: usize,
        finish: &Finish<'_, T>,
        bits: &mut [u8],
    ) {
        let grid = [target.rows.div_ceil(TILE), target.columns.div_ceil(TILE)];
        let row = target.columns * target.channels;
        // whole images, so that the parts of the output are whole too
        let per_part = (SHARED_TILES / (grid[0] * grid[1])).max(1);
        for first in (0..images).step_by(per_part) {
            let count = per_part.min(images - first);
            let (from, to) = (first * target.elements(), (first + count) * target.elements());
            let part_bits = if bits.is_empty() { 0..0 } else { from / LANES..to / LANES };
            let units = count * grid[0];
            let all: Vec<Tile> = tiles(first * grid[0]..(first + count) * grid[0], grid);
            let several = units.div_ceil(team.threads());
            let share = several * grid[1];
            let strides = [self.strides(share)[0], self.strides(all.len())[1]];
            let groups = all.len().div_ceil(share);
            let mut memory = team.take(groups * POINTS * strides[0] + POINTS * strides[1]);
            let (inputs, products) = memory.split_at_mut(groups * POINTS * strides[0]);

            let groups: Vec<_> =
                all.chunks(share).zip(inputs.chunks_exact_mut(POINTS * strides[0])).collect();
            team.each(groups, |(tiles, inputs)| self.evaluate(input, source, tiles, inputs, strides[0]));

            let inputs = &*inputs;
            let points: Vec<_> =
                self.points.iter().zip(products.chunks_exact_mut(strides[1])).enumerate().collect();
            team.each(points, |(point, (matrix, product))| {
                for (group, tiles) in all.chunks(share).enumerate() {
                    let left = &inputs[(group * POINTS + point) * strides[0]..];
                    let product = &mut product[group * share * matrix.columns()..];
                    matrix.multiply(left, self.places(), tiles.len(), product);
                }
            });

            let products = &*products;
            let shape = [count, target.rows, row];
            let parts = bands(&mut output[from..to], &mut bits[part_bits], shape, TILE, several);
            team.each(parts, |band| {
                let tiles = &all[band.units.start * grid[1]..band.units.end * grid[1]];
                let products = &products[band.units.start * grid[1] * self.columns()..];
                let mut out = Target { output: band.output, bits: band.bits, base: from + band.base };
                interpolate(products, strides[1], self.columns(), target, tiles, finish, &mut out);
            });
            team.give(memory);
        }
    }
}

/// The tiles of these units of rows.
fn tiles(units: std::ops::Range<usize>, [down, across]: [usize; 2]) -> Vec<Tile> {
    units
        .flat_map(|unit| {
            let (image, row) = (unit / down, unit % down * TILE);
            (0..across).map(move |column| Tile { image, row, column: column * TILE })
        })
        .collect()
}

/// What a kernel's three numbers become at each point.
fn kernel_evaluation() -> [[f64; 3]; PATCH] {
    let (inner, outer) = (INNER * INNER, OUTER * OUTER);
    let at = |point: f64, scale: f64| [1.0 / scale, point / scale, point * point / scale];
    let (near, far) = (2.0 * inner * (inner - outer), 2.0 * outer * (outer - inner));
    [
        at(0.0, inner * outer),
        at(INNER, near),
        at(-INNER, near),
        at(OUTER, far),
        at(-OUTER, far),
        [0.0, 0.0, 1.0],
    ]
}

dispatch!(evaluate, evaluate_in[false], (
    input: &[T], source: Map, padding: [usize; 2], tiles: &[Tile], inputs: &mut [T], stride: usize,
));
dispatch!(evaluate_pairs, evaluate_in[true], (
    input: &[T], source: Map, padding: [usize; 2], tiles: &[Tile], inputs: &mut [T], stride: usize,
));

/// Brings tiles of the input to the points, as they are or as pairs of bf16.
#[inline(always)]
fn evaluate_in<V: Vector, const IN_PAIRS: bool>(
    input: &[V::T],
    source: Map,
    padding: [usize; 2],
    tiles: &[Tile],
    inputs: &mut [V::T],
    stride: usize,
) {
    for (place, tile) in tiles.iter().enumerate() {
        let image = &input[tile.image * source.elements()..(tile.image + 1) * source.elements()];
        // where each of the 36 inputs is; none for zeros around the image
        let mut offsets = [None; POINTS];
        for row in 0..PATCH {
            for column in 0..PATCH {
                let (y, x) = (
                    (tile.row + row).wrapping_sub(padding[0]),
                    (tile.column + column).wrapping_sub(padding[1]),
                );
                if y < source.rows && x < source.columns {
                    offsets[row * PATCH + column] = Some((y * source.columns + x) * source.channels);
                }
            }
        }
        for channel in (0..source.channels).step_by(LANES) {
            let mut values = [V::zero(); POINTS];
            for (value, offset) in values.iter_mut().zip(&offsets) {
                if let Some(offset) = offset {
                    *value = V::load(lanes(image, offset + channel));
                }
            }
            for column in 0..PATCH {
                let line = at_points(std::array::from_fn(|row| values[row * PATCH + column]));
                for (row, value) in line.into_iter().enumerate() {
                    values[row * PATCH + column] = value;
                }
            }
            for row in 0..PATCH {
                let line = at_points(std::array::from_fn(|column| values[row * PATCH + column]));
                for (column, value) in line.into_iter().enumerate() {
                    let point = (row * PATCH + column) * stride;
                    let at = place * source.channels + channel;
                    if IN_PAIRS {
                        value.store_pairs(pairs_mut(inputs, point + at / LANES * PAIRS));
                    } else {
                        value.store(lanes_mut(inputs, point + at));
                    }
                }
            }
        }
    }
}

/// Six inputs at the points 0, a, -a, b, -b and infinity.
#[inline(always)]
fn at_points<V: Vector>(line: [V; PATCH]) -> [V; PATCH] {
    let number = |value: f64| V::splat(V::T::from_f64(value));
    let (inner, outer) = (INNER * INNER, OUTER * OUTER);
    let [d0, d1, d2, d3, d4, d5] = line;
    let (product, minus_sum) = (number(inner * outer), number(-inner - outer));
    let first = product.times_plus(d0, minus_sum.times_plus(d2, d4));
    let last = product.times_plus(d1, minus_sum.times_plus(d3, d5));
    let (even_a, odd_a) = (number(-outer).times_plus(d2, d4), number(-outer).times_plus(d1, d3));
    let (even_b, odd_b) = (number(-inner).times_plus(d2, d4), number(-inner).times_plus(d1, d3));
    [
        first,
        number(INNER).times_plus(odd_a, even_a),
        number(-INNER).times_plus(odd_a, even_a),
        number(OUTER).times_plus(odd_b, even_b),
        number(-OUTER).times_plus(odd_b, even_b),
        last,
    ]
}

dispatch!(interpolate, interpolate_in, (
    products: &[T], stride: usize, width: usize, target: Map, tiles: &[Tile], finish: &Finish<'_, T>, out: &mut Target<'_, T>,
));

/// Brings products back from the points, and writes the outputs of each tile that lie inside.
#[inline(always)]
fn interpolate_in<V: Vector>(
    products: &[V::T],
    stride: usize,
    width: usize,
    target: Map,
    tiles: &[Tile],
    finish: &Finish<'_, V::T>,
    out: &mut Target<'_, V::T>,
) {
    for (place, tile) in tiles.iter().enumerate() {
        let first = ((tile.image * target.rows + tile.row) * target.columns + tile.column) * target.channels;
        let (rows, columns) = ((target.rows - tile.row).min(TILE), (target.columns - tile.column).min(TILE));
        for channel in (0..target.channels).step_by(LANES) {
            let mut half = [[V::zero(); PATCH]; TILE];
            #[allow(clippy::needless_range_loop)] // it is an index of the products too
            for column in 0..PATCH {
                let line = std::array::from_fn(|row| {
                    V::load(lanes(products, (row * PATCH + column) * stride + place * width + channel))
                });
                for (row, value) in from_points(line).into_iter().enumerate() {
                    half[row][column] = value;
                }
            }
            for (row, half) in half.iter().enumerate().take(rows) {
                let line = from_points(*half);
                for (column, value) in line.into_iter().enumerate().take(columns) {
                    let at = first + (row * target.columns + column) * target.channels + channel;
                    finish.put(out, at, channel, value);
                }
            }
        }
    }
}

/// Four outputs from the products at the points.
#[inline(always)]
fn from_points<V: Vector>(line: [V; PATCH]) -> [V; TILE] {
    let number = |value: f64| V::splat(V::T::from_f64(value));
    let [zero, plus_a, minus_a, plus_b, minus_b, infinity] = line;
    let (sum_a, difference_a) = (plus_a.plus(minus_a), plus_a.minus(minus_a));
    let (sum_b, difference_b) = (plus_b.plus(minus_b), plus_b.minus(minus_b));
    let (inner, outer) = (INNER * INNER, OUTER * OUTER);
    [
        zero.plus(sum_a).plus(sum_b),
        number(INNER).times_plus(difference_a, number(OUTER).times(difference_b)),
        number(inner).times_plus(sum_a, number(outer).times(sum_b)),
        number(INNER * inner)
            .times_plus(difference_a, number(OUTER * outer).times_plus(difference_b, infinity)),
    ]
}
