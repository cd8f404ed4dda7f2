//! Convolutions of any kernel and stride: the inputs that meet the kernel are laid side by side, and multiplied.
//!
//! The derivative of a strided convolution has no scattered sums here. Pixels of the same place in the grid of strides are
//! met by the same weights, so each such class of pixels is a convolution of its own, and every pixel is written once.

use crate::{
    LANES, Real,
    bits::{Finish, Target, lanes, pairs_mut},
    gemm::{Factors, Packed},
    simd::{PAIRS, Vector, dispatch},
    team::{Band, Team, bands},
};

/// Pixels that are worked on together.
const BLOCK: usize = 72;

/// Pixels that are a number of steps apart, and what they are made of.
#[derive(Debug)]
struct Class<T> {
    /// The first row and column, below the steps.
    start: [usize; 2],
    /// The input's row and column that belongs to the first one, for each weight of the kernel that meets it.
    taps: Vec<[isize; 2]>,
    /// `[taps * C, K]`.
    weights: Packed<T>,
}

/// A kernel with its classes of pixels.
#[derive(Debug)]
pub(crate) struct Patches<T> {
    classes: Vec<Class<T>>,
    /// Steps between a class's output pixels, down and across.
    steps: [usize; 2],
    /// Steps between their inputs.
    strides: [usize; 2],
    channels: usize,
    outputs: usize,
}

/// Where a kernel's weights meet the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Meeting {
    pub size: [usize; 2],
    pub stride: [usize; 2],
    pub dilation: [usize; 2],
    pub padding: [usize; 2],
}

/// Pixels that are a number of steps apart, and the weights that meet them.
#[derive(Debug)]
pub(crate) struct Part {
    /// The first row and column, below the steps.
    pub start: [usize; 2],
    /// Row and column of each weight in the kernel, and of the input that belongs to it at the first pixel.
    pub met: Vec<([usize; 2], [isize; 2])>,
}

/// What all pixels of an output are made of.
#[derive(Debug)]
pub(crate) struct Pattern {
    pub parts: Vec<Part>,
    /// Steps between a part's output pixels, down and across.
    pub steps: [usize; 2],
    /// Steps between their inputs.
    pub strides: [usize; 2],
}

impl Meeting {
    /// The convolution itself: every pixel meets all weights.
    pub(crate) fn ahead(&self) -> Pattern {
        let met = kernel(self.size).into_iter().map(|tap| {
            let at = |axis: usize| (tap[axis] * self.dilation[axis]) as isize - self.padding[axis] as isize;
            (tap, [0, 1].map(at))
        });
        let part = Part { start: [0, 0], met: met.collect() };
        Pattern { parts: vec![part], steps: [1, 1], strides: self.stride }
    }

    /// Its derivative: from gradients of the outputs to gradients of the inputs.
    pub(crate) fn back(&self) -> Pattern {
        let parts = kernel(self.stride).into_iter().map(|start| Part { start, met: self.met_from(start) });
        Pattern { parts: parts.collect(), steps: self.stride, strides: [1, 1] }
    }

    /// The weights that meet the input's pixels from this one on, with the first gradient that they meet.
    fn met_from(&self, start: [usize; 2]) -> Vec<([usize; 2], [isize; 2])> {
        let met = kernel(self.size).into_iter().filter_map(|tap| {
            let first = [0, 1].map(|axis| {
                let at = start[axis] + self.padding[axis];
                at as isize - (tap[axis] * self.dilation[axis]) as isize
            });
            let steps = self.stride.map(|steps| steps as isize);
            let fits = [0, 1].into_iter().all(|axis| first[axis].rem_euclid(steps[axis]) == 0);
            fits.then(|| (tap, [0, 1].map(|axis| first[axis].div_euclid(steps[axis]))))
        });
        met.collect()
    }
}

impl<T: Real> Patches<T> {
    /// From `channels` to `outputs`; `weight(output, input, row, column)`, for padded numbers of channels.
    pub(crate) fn new(
        factors: Factors,
        pattern: &Pattern,
        [channels, outputs]: [usize; 2],
        weight: impl Fn(usize, usize, usize, usize) -> f64,
    ) -> Self {
        let classes = pattern.parts.iter().map(|part| {
            let weights = Packed::with(factors, part.met.len() * channels, outputs, |row, output| {
                let [down, across] = part.met[row / channels].0;
                weight(output, row % channels, down, across)
            });
            Class { start: part.start, taps: part.met.iter().map(|&(_, first)| first).collect(), weights }
        });
        Self { classes: classes.collect(), steps: pattern.steps, strides: pattern.strides, channels, outputs }
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
        let height = self.steps[0];
        let units = images * out_rows.div_ceil(height);
        let several = units_of_task(units, height * out_columns, self.classes.len(), team.threads());
        let shape = [images, out_rows, out_columns * self.outputs];
        team.each(bands(output, bits, shape, height, several), |band| {
            self.band(team, input, [rows, columns], [out_rows, out_columns], band, finish);
        });
    }

    fn band(
        &self,
        team: &Team<T>,
        input: &[T],
        source: [usize; 2],
        target: [usize; 2],
        band: Band<'_, T>,
        finish: &Finish<'_, T>,
    ) {
        let units = target[0].div_ceil(self.steps[0]);
        let mut out = Target { output: band.output, bits: band.bits, base: band.base };
        let mut pixels: Vec<Pixel> = Vec::new();
        for class in &self.classes {
            let places = class.weights.places();
            let mut memory = team.take(BLOCK * (places + class.weights.columns()) + LANES);
            let (patches, products) = memory.split_at_mut(BLOCK * places);
            pixels.clear();
            for unit in band.units.clone() {
                let (image, row) = (unit / units, unit % units);
                let y = row * self.steps[0] + class.start[0];
                if y >= target[0] {
                    continue;
                }
                let across = (class.start[1]..target[1]).step_by(self.steps[1]).enumerate();
                pixels.extend(across.map(|(column, x)| Pixel {
                    image,
                    at: [(row * self.strides[0]) as isize, (column * self.strides[1]) as isize],
                    element: ((image * target[0] + y) * target[1] + x) * self.outputs,
                }));
            }
            for pixels in pixels.chunks(BLOCK) {
                match class.weights.factors() {
                    Factors::Full => gather(input, source, self.channels, &class.taps, pixels, patches),
                    Factors::Bf16 => gather_pairs(input, source, self.channels, &class.taps, pixels, patches),
                }
                class.weights.multiply(patches, places, pixels.len(), products);
                write_out(products, class.weights.columns(), self.outputs, pixels, finish, &mut out);
            }
            team.give(memory);
        }
    }
}

/// Units of rows of a task, each with so many pixels: some for every class, and still several tasks a thread.
pub(crate) fn units_of_task(units: usize, pixels: usize, classes: usize, threads: usize) -> usize {
    let enough = (BLOCK * classes).div_ceil(pixels.max(1));
    enough.max(units / (threads * 4)).min(units.div_ceil(threads)).max(1)
}

/// An output pixel: its image, its first input, and its first element.
#[derive(Clone, Copy)]
struct Pixel {
    image: usize,
    at: [isize; 2],
    element: usize,
}

impl Pixel {
    /// The input that meets a weight, by its number among all; none where it lies outside.
    #[inline(always)]
    fn meets(&self, tap: [isize; 2], [rows, columns]: [usize; 2]) -> Option<usize> {
        let (y, x) = (self.at[0] + tap[0], self.at[1] + tap[1]);
        let inside = (0..rows as isize).contains(&y) && (0..columns as isize).contains(&x);
        inside.then(|| (self.image * rows + y as usize) * columns + x as usize)
    }
}

/// All places of a grid.
fn kernel([rows, columns]: [usize; 2]) -> Vec<[usize; 2]> {
    (0..rows).flat_map(|row| (0..columns).map(move |column| [row, column])).collect()
}

/// Lays the inputs of each pixel side by side.
fn gather<T: Real>(
    input: &[T],
    [rows, columns]: [usize; 2],
    channels: usize,
    taps: &[[isize; 2]],
    pixels: &[Pixel],
    patches: &mut [T],
) {
    let depth = taps.len() * channels;
    if depth == 0 {
        return;
    }
    for (pixel, patch) in pixels.iter().zip(patches.chunks_exact_mut(depth)) {
        for (tap, place) in taps.iter().zip(patch.chunks_exact_mut(channels)) {
            match pixel.meets(*tap, [rows, columns]) {
                Some(at) => place.copy_from_slice(&input[at * channels..(at + 1) * channels]),
                None => place.fill(T::default()),
            }
        }
    }
}

dispatch!(gather_pairs, gather_pairs_in, (
    input: &[T], sides: [usize; 2], channels: usize, taps: &[[isize; 2]], pixels: &[Pixel], patches: &mut [T],
));

/// The same as pairs of bf16.
#[inline(always)]
fn gather_pairs_in<V: Vector>(
    input: &[V::T],
    sides: [usize; 2],
    channels: usize,
    taps: &[[isize; 2]],
    pixels: &[Pixel],
    patches: &mut [V::T],
) {
    let width = channels / LANES * PAIRS;
    if taps.is_empty() || width == 0 {
        return;
    }
    for (pixel, patch) in pixels.iter().zip(patches.chunks_exact_mut(taps.len() * width)) {
        for (tap, places) in taps.iter().zip(patch.chunks_exact_mut(width)) {
            match pixel.meets(*tap, sides) {
                Some(at) => {
                    for (eight, place) in (0..width).step_by(PAIRS).enumerate() {
                        let values = V::load(lanes(input, at * channels + eight * LANES));
                        values.store_pairs(pairs_mut(places, place));
                    }
                }
                None => places.fill(V::T::default()),
            }
        }
    }
}

dispatch!(write_out, write_out_in, (
    products: &[T], width: usize, channels: usize, pixels: &[Pixel], finish: &Finish<'_, T>, out: &mut Target<'_, T>,
));

#[inline(always)]
fn write_out_in<V: Vector>(
    products: &[V::T],
    width: usize,
    channels: usize,
    pixels: &[Pixel],
    finish: &Finish<'_, V::T>,
    out: &mut Target<'_, V::T>,
) {
    for (pixel, product) in pixels.iter().zip(products.chunks_exact(width)) {
        for channel in (0..channels).step_by(LANES) {
            finish.put(out, pixel.element + channel, channel, V::load(lanes(product, channel)));
        }
    }
}

/// Numbers as pairs, by the way that the kernels take.
#[cfg(test)]
pub(crate) fn pairs_of(values: &[f32], taps: &[[isize; 2]]) -> Vec<f32> {
    let pixels: Vec<Pixel> =
        (0..values.len() / LANES).map(|image| Pixel { image, at: [0, 0], element: 0 }).collect();
    let mut pairs = vec![0.0; values.len() / 2];
    gather_pairs(values, [1, 1], LANES, taps, &pixels, &mut pairs);
    pairs
}
