//! Statistics of an image's finest texture, by which attacked images differ from clean ones long before an eye sees it.
//!
//! Steganalysis finds hidden messages by the statistics of high-pass residuals (Fridrich and Kodovsky, "Rich Models for
//! Steganalysis of Digital Images", 2012); an adversarial perturbation is hidden in the same place. Learned features
//! averaged over the image find it, too, but not in the few hundred steps that a restoration network trains for.

use talion_onnx::{Builder, Var};
use tch::Tensor;

/// Sizes of residuals that are told apart, in 1/255 of the value range.
const SIZES: [f64; 6] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0];

/// Numbers of [`texture`] an image.
pub(super) const TEXTURES: i64 = 2 * SIZES.len() as i64;

/// For the second differences across and down, how many of them are no larger than each of six sizes, softly counted and
/// brought to order 1. Differentiable.
///
/// # Shapes
/// `images` `[N, C, H, W]` in `[0, 1]`; the result is `[N, 12]`.
pub(super) fn texture(images: &Tensor) -> Tensor {
    let padded = images.replication_pad2d([1, 1, 1, 1]);
    let mut statistics = Vec::with_capacity(2 * SIZES.len());
    for dimension in [2, 3] {
        let across = if dimension == 2 { 3 } else { 2 };
        let lines = padded.narrow(across, 1, images.size().get(across as usize).copied().unwrap_or(1));
        let length = images.size().get(dimension as usize).copied().unwrap_or(1);
        let shifted = |by| lines.narrow(dimension, by, length);
        let residual = (shifted(1) * 2.0 - shifted(0) - shifted(2)) * 0.5;
        for size in SIZES {
            let small = ((&residual * (255.0 / size)).square() * -0.5).exp();
            statistics.push(small.mean_dim([1_i64, 2, 3].as_slice(), true, None));
        }
    }
    (Tensor::cat(&statistics, 1).flatten(1, -1) - 0.5) * 4.0
}

/// As [`texture`], for images of this height and width: all sizes at once, side by side on an axis of their own.
pub(super) fn emit_texture(b: &mut Builder, images: &Var, size: [i64; 2]) -> Var {
    let padded = b.pad_edge(images, 1, 1, 1, 1);
    let scales = SIZES.map(|size| (255.0 / size) as f32);
    let scales = b.constant(&Tensor::from_slice(&scales).view([1, -1, 1, 1, 1]));
    let (two, half, minus_half) = (b.scalar(2.0), b.scalar(0.5), b.scalar(-0.5));
    let doubled = b.mul(images, &two);
    let [height, width] = size;
    let counts = [(2, height, 3, width), (3, width, 2, height)].map(|(along, length, across, breadth)| {
        let lines = b.slice(&padded, across, 1, breadth);
        let (before, after) = (b.slice(&lines, along, 0, length), b.slice(&lines, along, 2, length));
        let residual = b.sub(&doubled, &before);
        let residual = b.sub(&residual, &after);
        let residual = b.mul(&residual, &half);
        let residual = b.unsqueeze(&residual, &[1]);
        let scaled = b.mul(&residual, &scales);
        let squared = b.mul(&scaled, &scaled);
        let exponent = b.mul(&squared, &minus_half);
        let small = b.exp(&exponent);
        b.reduce_mean(&small, &[2, 3, 4], false)
    });
    let counts = b.concat(&counts.each_ref(), 1);
    let centred = b.sub(&counts, &half);
    let four = b.scalar(4.0);
    b.mul(&centred, &four)
}

#[cfg(test)]
mod tests {
    use super::*;
    use talion_onnx::{Program, Side};
    use tch::{Device, Kind};

    #[test]
    fn flat_images_have_no_texture_and_noise_shows_at_its_own_size() {
        let flat = Tensor::full([2, 3, 6, 7], 0.5, (Kind::Double, Device::Cpu));
        let statistics = texture(&flat);
        assert_eq!(statistics.size(), [2, TEXTURES]);
        assert!((statistics - 2.0).abs().max().double_value(&[]) < 1e-12);
        let noise = talion_core::uniform_noise(&[3, 6, 7], &[0, 1], 1, "texture", 0).sign() * (8.0 / 255.0);
        let noisy = texture(&(&flat + noise));
        assert!(noisy.double_value(&[0, 0]) < -0.5 && noisy.double_value(&[0, 5]) > 1.5);
        let one_pixel = texture(&flat.narrow(2, 0, 1).narrow(3, 0, 1));
        assert!((one_pixel - 2.0).abs().max().double_value(&[]) < 1e-12);
    }

    #[test]
    fn the_graph_counts_the_same() {
        for size in [[6, 7], [5, 1], [1, 1]] {
            let [height, width] = size;
            let images =
                talion_core::uniform_noise(&[3, height, width], &[0, 1], 1, "images", 0) * 0.05 + 0.5;
            let mut b = Builder::new("texture");
            let sides = [3, height, width].map(Side::Fixed);
            let shape = std::iter::once(Side::Named("N".into())).chain(sides).collect();
            let x = b.input("images", Kind::Float, shape);
            let y = emit_texture(&mut b, &x, size);
            let shape = vec![Side::Named("N".into()), Side::Fixed(TEXTURES)];
            let program = Program::new(b.finish(&[("texture", &y, shape)]).unwrap(), Device::Cpu).unwrap();
            let expected = texture(&images);
            let found = program.run(&[images]).unwrap().swap_remove(0);
            assert_eq!(found.size(), expected.size());
            assert!((found - expected).abs().max().double_value(&[]) < 1e-5, "{size:?}");
        }
    }
}
