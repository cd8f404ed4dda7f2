//! What happens to every element by itself.

use crate::{
    LANES, Real, Team,
    bits::{After, Finish, Target, lanes},
    padded,
    simd::{Vector, dispatch},
    team::bands,
};

/// Elements of a task: small enough for all threads to have some, large enough to be worth a task.
const TASK: usize = 1 << 14;

/// `[N, C, H, W]` to `[N, H, W, padded(C)]`, with a shift and then a factor a channel.
///
/// # Panics
/// If a slice is too short.
pub fn from_planes<T: Real>(
    planes: &[T],
    [images, channels, pixels]: [usize; 3],
    shift: &[T],
    scale: &[T],
    output: &mut [T],
) {
    let width = padded(channels);
    for image in 0..images {
        let planes = &planes[image * channels * pixels..(image + 1) * channels * pixels];
        let output = &mut output[image * pixels * width..(image + 1) * pixels * width];
        for (pixel, output) in output.chunks_exact_mut(width).enumerate() {
            for (channel, value) in output.iter_mut().enumerate() {
                *value = if channel < channels {
                    (planes[channel * pixels + pixel] + shift[channel]) * scale[channel]
                } else {
                    T::default()
                };
            }
        }
    }
}

/// `[N, H, W, padded(C)]` to `[N, C, H, W]`, with a factor a channel.
///
/// # Panics
/// If a slice is too short.
pub fn to_planes<T: Real>(
    input: &[T],
    [images, channels, pixels]: [usize; 3],
    scale: &[T],
    planes: &mut [T],
) {
    let width = padded(channels);
    for image in 0..images {
        let planes = &mut planes[image * channels * pixels..(image + 1) * channels * pixels];
        let input = &input[image * pixels * width..(image + 1) * pixels * width];
        for (channel, plane) in planes.chunks_exact_mut(pixels.max(1)).enumerate() {
            for (value, input) in plane.iter_mut().zip(input.chunks_exact(width)) {
                *value = input[channel] * scale[channel];
            }
        }
    }
}

/// `input * scale + shift`, a number of each a channel, and what comes after.
///
/// # Shapes
/// `input` and `output` `[.., C]`; `scale` and `shift` `[C]`, C a multiple of [`LANES`].
///
/// # Panics
/// If a slice is too short.
pub fn affine<T: Real>(
    team: &Team<T>,
    input: &[T],
    scale: &[T],
    shift: &[T],
    output: &mut [T],
    after: After<'_, T>,
) {
    each(team, output, scale.len(), after.split(shift), |finish, out| scaled(input, scale, finish, out));
}

/// The derivative of [`affine`]: `gradient * scale`, and what comes after.
///
/// # Panics
/// If a slice is too short.
pub fn affine_back<T: Real>(
    team: &Team<T>,
    gradient: &[T],
    scale: &[T],
    output: &mut [T],
    after: After<'_, T>,
) {
    each(team, output, scale.len(), after.split(&[]), |finish, out| scaled(gradient, scale, finish, out));
}

/// `input`, and what comes after: a sum, a ReLU, a mask.
///
/// # Panics
/// If a slice is too short.
pub fn join<T: Real>(team: &Team<T>, input: &[T], output: &mut [T], after: After<'_, T>) {
    each(team, output, LANES, after.split(&[]), |finish, out| unchanged(input, finish, out));
}

fn each<T: Real>(
    team: &Team<T>,
    output: &mut [T],
    channels: usize,
    (finish, bits): (Finish<'_, T>, &mut [u8]),
    work: impl Fn(&Finish<'_, T>, &mut Target<'_, T>) + Send + Sync,
) {
    if output.is_empty() {
        return;
    }
    let pixels = output.len() / channels;
    let several = (TASK / channels).max(1);
    team.each(bands(output, bits, [pixels, 1, channels], 1, several), |band| {
        let mut out = Target { output: band.output, bits: band.bits, base: band.base };
        work(&finish, &mut out);
    });
}

dispatch!(scaled, scaled_in, (input: &[T], scale: &[T], finish: &Finish<'_, T>, out: &mut Target<'_, T>));

#[inline(always)]
fn scaled_in<V: Vector>(
    input: &[V::T],
    scale: &[V::T],
    finish: &Finish<'_, V::T>,
    out: &mut Target<'_, V::T>,
) {
    for first in (out.base..out.base + out.output.len()).step_by(scale.len()) {
        for channel in (0..scale.len()).step_by(LANES) {
            let value = V::load(lanes(input, first + channel)).times(V::load(lanes(scale, channel)));
            finish.put(out, first + channel, channel, value);
        }
    }
}

dispatch!(unchanged, unchanged_in, (input: &[T], finish: &Finish<'_, T>, out: &mut Target<'_, T>));

#[inline(always)]
fn unchanged_in<V: Vector>(input: &[V::T], finish: &Finish<'_, V::T>, out: &mut Target<'_, V::T>) {
    for at in (out.base..out.base + out.output.len()).step_by(LANES) {
        finish.put(out, at, 0, V::load(lanes(input, at)));
    }
}
