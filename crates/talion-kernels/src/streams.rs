//! What a network of two streams does besides convolutions, and the ways back: laying side by side, gating, enlarging.

use std::ops::Range;

use crate::{
    After, LANES, Real, Team,
    bits::{Finish, Target, lanes},
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

/// Some channels of a map, and what comes after: the derivative of [`side_by_side`], for one of its parts.
///
/// # Shapes
/// `both` `[.., width]`, `output` `[.., channels]`, all multiples of [`LANES`].
///
/// # Panics
/// If a slice is too short, or there are no channels.
pub fn part<T: Real>(
    team: &Team<T>,
    both: &[T],
    width: usize,
    channels: Range<usize>,
    output: &mut [T],
    after: After<'_, T>,
) {
    let narrow = channels.len();
    let pixels = output.len() / narrow;
    let (finish, bits) = after.split(&[]);
    team.each(bands(output, bits, [pixels, 1, narrow], 1, (TASK / narrow).max(1)), |band| {
        let mut out = Target { output: band.output, bits: band.bits, base: band.base };
        copy_part(both, width, &channels, &finish, &mut out);
    });
}

dispatch!(copy_part, copy_part_in, (
    both: &[T], width: usize, channels: &Range<usize>, finish: &Finish<'_, T>, out: &mut Target<'_, T>,
));

#[inline(always)]
fn copy_part_in<V: Vector>(
    both: &[V::T],
    width: usize,
    channels: &Range<usize>,
    finish: &Finish<'_, V::T>,
    out: &mut Target<'_, V::T>,
) {
    let narrow = channels.len();
    for first in (out.base..out.base + out.output.len()).step_by(narrow) {
        let from = first / narrow * width + channels.start;
        for channel in (0..narrow).step_by(LANES) {
            finish.put(out, first + channel, channel, V::load(lanes(both, from + channel)));
        }
    }
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

/// The derivative of [`means`]: adds to each pixel its share of its image's gradient.
///
/// # Shapes
/// `gradient` `[N, C]`, `output` `[N, P, C]` for `shape` `[N, P, C]`.
///
/// # Panics
/// If a slice is too short.
pub fn means_back<T: Real>(
    team: &Team<T>,
    gradient: &[T],
    [images, pixels, channels]: [usize; 3],
    output: &mut [T],
) {
    let output = &mut output[..images * pixels * channels];
    let share = T::from_f64(1.0 / pixels.max(1) as f64);
    let several = (TASK / channels).max(1);
    team.each(bands(output, &mut [], [images * pixels, 1, channels], 1, several), |band| {
        for (pixel, output) in band.units.zip(band.output.chunks_exact_mut(channels)) {
            let image = pixel / pixels;
            let gradient = &gradient[image * channels..(image + 1) * channels];
            output.iter_mut().zip(gradient).for_each(|(output, &value)| *output += value * share);
        }
    });
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

/// The derivative of [`gated`], given the gradient of its result: writes those of `both`, of `local` and of `open`, the gates
/// before their sigmoids.
///
/// # Shapes
/// `both`, `local`, `gradient` and what is written of the first two `[N, P, 2 W]` for `shape` `[N, P, 2 W]`; `open` and its
/// gradient `[N, W]`.
///
/// # Panics
/// If a slice is too short, or there are no channels.
pub fn gated_back<T: Real>(
    team: &Team<T>,
    [both, local, open]: [&[T]; 3],
    gradient: &[T],
    [images, pixels, channels]: [usize; 3],
    [to_both, to_local, to_open]: [&mut [T]; 3],
) {
    let (half, length) = (channels / 2, pixels * channels);
    let mut wide = team.take(images * half);
    wide.iter_mut().zip(open).for_each(|(gate, &value)| *gate = value.sigmoid());
    let gates = &*wide;
    // whole images only: the gradient of `open` is a sum over all pixels, in their order
    let several = (TASK / length.max(1)).max(1);
    let [to_both, to_local, to_open] = [(to_both, length), (to_local, length), (to_open, half)]
        .map(|(output, width)| bands(&mut output[..images * width], &mut [], [images, 1, width], 1, several));
    let tasks: Vec<_> = to_both.into_iter().zip(to_local).zip(to_open).collect();
    let span = |place: usize, width: usize| place * width..(place + 1) * width;
    team.each(tasks, |((to_both, to_local), to_open)| {
        for (place, image) in to_both.units.enumerate() {
            let (from, to) = (span(image, length), span(place, length));
            gate_back(
                [&both[from.clone()], &local[from.clone()], &gradient[from], &gates[span(image, half)]],
                [
                    &mut to_both.output[to.clone()],
                    &mut to_local.output[to],
                    &mut to_open.output[span(place, half)],
                ],
            );
        }
    });
    team.give(wide);
}

dispatch!(
    /// One image's part of [`gated_back`]; of `open` it is given the sigmoids.
    gate_back, gate_back_in, (from: [&[T]; 4], to: [&mut [T]; 3])
);

#[inline(always)]
fn gate_back_in<V: Vector>(from: [&[V::T]; 4], to: [&mut [V::T]; 3]) {
    let ([both, local, gradient, open], [to_both, to_local, to_open]) = (from, to);
    let (half, one) = (open.len(), V::T::from_f64(1.0));
    let channels = 2 * half;
    to_open.fill(V::T::default());
    let read =
        both.chunks_exact(channels).zip(local.chunks_exact(channels)).zip(gradient.chunks_exact(channels));
    let written = to_both.chunks_exact_mut(channels).zip(to_local.chunks_exact_mut(channels));
    for (((both, local), gradient), (to_both, to_local)) in read.zip(written) {
        let numbers = both.iter().zip(local).zip(gradient);
        let results = to_both.iter_mut().zip(to_local.iter_mut());
        for (((&both, &gate), &gradient), (to_both, to_local)) in numbers.zip(results) {
            let gate = gate.sigmoid();
            *to_both = gradient * gate;
            *to_local = *to_both * both * (one - gate);
        }
        // what the wide gate does to both comes on top in the second stream
        let results = to_both[half..].iter_mut().zip(&mut to_local[half..]).zip(&mut *to_open);
        for (((to_both, to_local), to_open), (&both, &gate)) in results.zip(both[half..].iter().zip(open)) {
            *to_open += *to_both * both;
            *to_both = *to_both * gate;
            *to_local = *to_local * gate;
        }
    }
    to_open.iter_mut().zip(open).for_each(|(sum, &gate)| *sum = *sum * gate * (one - gate));
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

/// The derivative of [`enlarged`] in its small map: the sum of each square of two by two pixels.
///
/// # Shapes
/// `gradient` `[N, 2 h, 2 w, C]`, `output` `[N, h, w, C]` for `shape` `[N, h, w, C]`.
///
/// # Panics
/// If a slice is too short.
pub fn enlarged_back<T: Real>(
    team: &Team<T>,
    gradient: &[T],
    [images, rows, columns, channels]: [usize; 4],
    output: &mut [T],
) {
    let width = columns * channels;
    let output = &mut output[..images * rows * width];
    let several = (TASK / width).max(1);
    team.each(bands(output, &mut [], [images * rows, 1, width], 1, several), |band| {
        for (row, output) in band.units.zip(band.output.chunks_exact_mut(width)) {
            let (upper, lower) = gradient[row * 4 * width..(row + 1) * 4 * width].split_at(2 * width);
            let squares = upper.chunks_exact(2 * channels).zip(lower.chunks_exact(2 * channels));
            for (output, (upper, lower)) in output.chunks_exact_mut(channels).zip(squares) {
                let upper = upper[..channels].iter().zip(&upper[channels..]);
                let lower = lower[..channels].iter().zip(&lower[channels..]);
                for (output, ((&a, &b), (&c, &d))) in output.iter_mut().zip(upper.zip(lower)) {
                    *output = (a + b) + (c + d);
                }
            }
        }
    });
}
