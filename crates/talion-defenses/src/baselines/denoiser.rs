//! A network that removes Gaussian noise of a known level from images.
//!
//! It predicts the noise, not the image (Ho, Jain and Abbeel, "Denoising Diffusion Probabilistic Models", 2020, section 3.2),
//! for levels that it is told, so that one network serves for one step (Salman et al., "Denoised Smoothing: A Provable Defense
//! for Pretrained Classifiers", 2020, section 3; Carlini et al., "(Certified!!) Adversarial Robustness for Free!", 2023) and for
//! many. It is a small U-net of the restoration network's layers, so that it is compared with that and not with a network of a
//! hundred times the size.

use talion_core::{SampleStream, gaussian_noise};
use tch::{Tensor, nn};

use crate::trn::layers::{Decoder, Encoder};

/// The least noise that it is trained on, as standard deviation of values in `[0, 1]`.
pub(super) const SMALLEST: f64 = 0.02;
/// The most.
pub(super) const LARGEST: f64 = 0.5;

/// Standard deviation of images, roughly: noisy images are divided by what they and their noise vary by together, so that
/// the first layer sees values of one scale at every level (Karras et al., "Elucidating the Design Space of Diffusion-Based
/// Generative Models", 2022, section 5).
const SPREAD: f64 = 0.25;
/// The middle of the levels, on their logarithmic scale.
const MIDDLE: f64 = 0.1;

/// A U-net of three scales from noisy image and noise level to the noise.
pub(super) struct Denoiser {
    encoder: Encoder,
    decoder: Decoder,
}

impl Denoiser {
    pub(super) fn new(path: &nn::Path<'_>, channels: i64, width: i64) -> Self {
        let widths = [width, 2 * width, 3 * width];
        Self {
            // the level is one more channel
            encoder: Encoder::new(&(path / "encoder"), channels + 1, &widths),
            decoder: Decoder::new(&(path / "decoder"), &widths, channels),
        }
    }

    /// Makes the predicted noise zero, so that a new network returns its input.
    pub(super) fn start_as_identity(&self) {
        self.decoder.start_as_identity();
    }

    /// The images without their noise; not clamped.
    ///
    /// # Shapes
    /// `noisy` `[N, C, H, W]` with any H and W, `sigma` the level of each row, `[N, 1, 1, 1]`, or of all, `[1, 1, 1, 1]`; the
    /// result is `[N, C, H, W]`.
    pub(super) fn denoise(&self, noisy: &Tensor, sigma: &Tensor) -> Tensor {
        let size = noisy.size();
        let scale = (sigma.square() + SPREAD * SPREAD).rsqrt();
        let level = (sigma / MIDDLE).log().expand([size[0], 1, size[2], size[3]], false);
        let input = Tensor::cat(&[(noisy - 0.5) * scale, level], 1);
        match self.decoder.forward(self.encoder.forward(&input)) {
            Some(noise) => noisy - noise * sigma,
            None => noisy.shallow_clone(),
        }
    }
}

/// Images with noise of levels that are uniform on a logarithmic scale from [`SMALLEST`] to [`LARGEST`], and these levels.
/// Both are drawn from the streams of the images' ids. Noise may leave the box.
///
/// # Shapes
/// `images` `[N, C, H, W]`, `ids` N; the result `[N, C, H, W]` and `[N, 1, 1, 1]`, where and of what type the images are.
pub(super) fn corrupted(images: &Tensor, ids: &[u64], seed: u64, repetition: u64) -> (Tensor, Tensor) {
    let size = images.size();
    let levels: Vec<f32> = ids
        .iter()
        .map(|&id| {
            let place = SampleStream::new(seed, "noise-level", repetition, id).uniform();
            (SMALLEST * (LARGEST / SMALLEST).powf(f64::from(place))) as f32
        })
        .collect();
    let like_images = |tensor: Tensor| tensor.to_kind(images.kind()).to_device(images.device());
    let sigma = like_images(Tensor::from_slice(&levels).view([-1, 1, 1, 1]));
    let noise = like_images(gaussian_noise(&size[1..], ids, seed, "denoiser", repetition));
    (images + noise * &sigma, sigma)
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;
    use crate::baselines::{
        network_file::{
            Layers, Restorer, RestorerNetwork,
            testing::{busy, fresh},
        },
        testing::picture,
    };

    fn denoiser(network: RestorerNetwork) -> Denoiser {
        match network.layers {
            Layers::Denoiser(layers) => layers,
            Layers::Compressor(_) => panic!("asked for a denoiser"),
        }
    }

    fn level(sigma: f64) -> Tensor {
        Tensor::full([1, 1, 1, 1], sigma, (Kind::Float, Device::Cpu))
    }

    #[test]
    fn a_new_network_is_the_identity_at_any_size() {
        for (channels, height, width) in [(1, 12, 12), (3, 5, 9), (1, 1, 1)] {
            let x = picture([2, channels, height, width], 0.0, 1.0);
            let network = denoiser(fresh(Restorer::Denoiser, channels));
            assert_eq!(network.denoise(&x, &level(0.25)), x);
            let moved = denoiser(busy(Restorer::Denoiser, channels)).denoise(&x, &level(0.25));
            assert_eq!(moved.size(), x.size());
            assert!((moved - &x).abs().max().double_value(&[]) > 1e-4);
        }
    }

    #[test]
    fn the_network_knows_the_level_of_each_row() {
        let network = denoiser(busy(Restorer::Denoiser, 1));
        let x = picture([1, 1, 8, 8], 0.0, 1.0);
        // the noise that it finds, without the factor by which it is scaled back
        let found = |sigma: f64| (&x - network.denoise(&x, &level(sigma))) / sigma;
        let difference = (found(0.05) - found(0.4)).abs().max().double_value(&[]);
        assert!(difference > 1e-3, "{difference}");
        let both = Tensor::cat(&[level(0.05), level(0.4)], 0);
        let rows = network.denoise(&Tensor::cat(&[&x, &x], 0), &both);
        for (row, sigma) in [(0, 0.05), (1, 0.4)] {
            let alone = network.denoise(&x, &level(sigma));
            assert!((rows.narrow(0, row, 1) - alone).abs().max().double_value(&[]) < 1e-5);
        }
    }

    #[test]
    fn noise_has_the_level_that_it_says_and_belongs_to_the_sample() {
        let ids: Vec<u64> = (0..200).collect();
        let x = picture([200, 1, 16, 16], 0.0, 1.0);
        let (noisy, sigma) = corrupted(&x, &ids, 1, 0);
        let found = ((&noisy - &x) / &sigma).square().mean_dim([1_i64, 2, 3].as_slice(), false, None).sqrt();
        assert!((found - 1.0).abs().max().double_value(&[]) < 0.25);
        let places = (&sigma / SMALLEST).log() / (LARGEST / SMALLEST).ln();
        assert!(places.min().double_value(&[]) >= -1e-5 && places.max().double_value(&[]) < 1.0 + 1e-5);
        assert!((places.mean(Kind::Double).double_value(&[]) - 0.5).abs() < 0.1);
        let (alone, level) = corrupted(&x.narrow(0, 3, 1), &[3], 1, 0);
        assert_eq!((alone, level), (noisy.narrow(0, 3, 1), sigma.narrow(0, 3, 1)));
        assert_ne!(corrupted(&x, &ids, 1, 1).0, noisy);
    }
}
