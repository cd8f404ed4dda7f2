//! What a network of two streams does besides convolutions: laying side by side, gating, enlarging.

use crate::{
    Real, Team,
    simd::{Vector, dispatch},
    team::bands,
};

/// Numbers of a task.
const TASK: usize = 1 << 14;

/// The channels of two maps one after the other.
///
/// # Shapes
/// `parts` `[.., C]` and `[.., D]`, `output` `[.., C + D]`.
///
/// # Panics
/// If a slice is too short.
pub fn side_by_side<T: Real>(
    team: &Team<T>,
    parts: [&[T]; 2],
    [first, second]: [usize; 2],
    output: &mut [T],
) {
    let width = first + second;
    let pixels = output.len() / width;
    team.each(bands(output, &mut [], [pixels, 1, width], 1, (TASK / width).max(1)), |band| {
        for (pixel, output) in band.units.zip(band.output.chunks_exact_mut(width)) {
            output[..first].copy_from_slice(&parts[0][pixel * first..(pixel + 1) * first]);
            output[first..].copy_from_slice(&parts[1][pixel * second..(pixel + 1) * second]);
        }
    });
}

/// The mean over all pixels of each image, channel by channel.
///
/// # Shapes
/// `input` `[N, P, C]` for `shape` `[N, P, C]`, `output` `[N, C]`.
///
/// # Panics
/// If a slice is too short.
pub fn means<T: Real>(team: &Team<T>, input: &[T], [images, pixels, channels]: [usize; 3], output: &mut [T]) {
    let output = &mut output[..images * channels];
    team.each(bands(output, &mut [], [images, 1, channels], 1, 1), |band| {
        for (image, output) in band.units.zip(band.output.chunks_exact_mut(channels)) {
            mean(&input[image * pixels * channels..(image + 1) * pixels * channels], output);
        }
    });
}

dispatch!(mean, mean_in, (input: &[T], output: &mut [T]));

#[inline(always)]
fn mean_in<V: Vector>(input: &[V::T], output: &mut [V::T]) {
    output.fill(V::T::default());
    let mut pixels = 0_u32;
    for pixel in input.chunks_exact(output.len()) {
        output.iter_mut().zip(pixel).for_each(|(sum, &value)| *sum += value);
        pixels += 1;
    }
    let share = V::T::from_f64(1.0 / f64::from(pixels.max(1)));
    output.iter_mut().for_each(|sum| *sum = *sum * share);
}

/// Two streams side by side, each number times the sigmoid of its own gate, and the second stream times the sigmoid of a gate
/// for the whole image.
///
/// # Shapes
/// `both`, `local` and `output` `[N, P, 2 W]` for `shape` `[N, P, 2 W]`; `open` `[N, W]`.
///
/// # Panics
/// If a slice is too short.
pub fn gated<T: Real>(
    team: &Team<T>,
    both: &[T],
    local: &[T],
    open: &[T],
    [images, pixels, channels]: [usize; 3],
    output: &mut [T],
) {
    let half = channels / 2;
    let output = &mut output[..images * pixels * channels];
    let several = (TASK / channels).max(1);
    let mut wide = team.take(images * half);
    wide.iter_mut().zip(open).for_each(|(gate, &value)| *gate = value.sigmoid());
    let gates = &*wide;
    team.each(bands(output, &mut [], [images * pixels, 1, channels], 1, several), |band| {
        for (pixel, output) in band.units.zip(band.output.chunks_exact_mut(channels)) {
            let (from, to) = (pixel * channels, (pixel + 1) * channels);
            let image = pixel / pixels;
            gate(&both[from..to], &local[from..to], &gates[image * half..(image + 1) * half], output);
        }
    });
    team.give(wide);
}

dispatch!(gate, gate_in, (both: &[T], local: &[T], open: &[T], output: &mut [T]));

#[inline(always)]
fn gate_in<V: Vector>(both: &[V::T], local: &[V::T], open: &[V::T], output: &mut [V::T]) {
    for ((output, &value), &gate) in output.iter_mut().zip(both).zip(local) {
        *output = value * gate.sigmoid();
    }
    let half = output.len() - open.len();
    output[half..].iter_mut().zip(open).for_each(|(output, &gate)| *output = *output * gate);
}

/// A map with every pixel repeated twice in both directions, plus another map.
///
/// # Shapes
/// `small` `[N, h, w, C]` for `shape` `[N, h, w, C]`; `other` and `output` `[N, 2 h, 2 w, C]`.
///
/// # Panics
/// If a slice is too short.
pub fn enlarged<T: Real>(
    team: &Team<T>,
    small: &[T],
    other: &[T],
    [images, rows, columns, channels]: [usize; 4],
    output: &mut [T],
) {
    let width = 2 * columns * channels;
    let output = &mut output[..images * 2 * rows * width];
    let several = (TASK / width).max(1);
    team.each(bands(output, &mut [], [images * 2 * rows, 1, width], 1, several), |band| {
        for (row, output) in band.units.zip(band.output.chunks_exact_mut(width)) {
            let small = &small[row / 2 * columns * channels..(row / 2 + 1) * columns * channels];
            let pixels = output
                .chunks_exact_mut(channels)
                .zip(other[row * width..(row + 1) * width].chunks_exact(channels));
            for (pixel, (output, other)) in pixels.enumerate() {
                let small = &small[pixel / 2 * channels..(pixel / 2 + 1) * channels];
                for ((output, &small), &other) in output.iter_mut().zip(small).zip(other) {
                    *output = small + other;
                }
            }
        }
    });
}
