//! Compression to a few bits a pixel by a learned code that has no room for a perturbation.
//!
//! After ComDefend (Jia, Wei, Cao and Foroosh, "ComDefend: An Efficient Image Compression Model to Defend Adversarial
//! Examples", CVPR 2019, section 3), at a smaller scale: two networks of four convolutions each.

use talion_core::{Classifier, Result, Tensors};
use talion_models::{channels_last, training::variables};
use tch::{Reduction, Tensor, nn};

use super::network_file::{Layers, Restorer, RestorerCard, RestorerNetwork, row_by_row, wrong_kind};
use crate::{
    defence::{Defence, Pass},
    trn::layers::Conv,
};

/// Bits a pixel of the code, as in the paper.
pub(super) const BITS: i64 = 12;

/// How much steeper a bit's sigmoid is than the noise is wide. The paper has a sigmoid of slope 1 and noise of standard
/// deviation 20; ours has the noise at 1 and the slope at 20. That is the same function of answers 20 times as small,
/// which weights of ordinary size can give from the first step on, so that nothing has to be annealed.
const STEEPNESS: f64 = 20.0;

/// Weight of the code's mean square in the loss: bits that are not needed are to be 0.
const SPARSENESS: f64 = 1e-4;

/// A logistic function of this slope differs from the normal distribution function by less than 0.01 (Bowling et al. 2009,
/// "A logistic approximation to the cumulative normal distribution").
const PROBIT: f64 = 1.702;

/// ComCNN, which answers for each pixel how surely each of its bits is set, and RecCNN, which rebuilds the image.
pub(super) struct Compressor {
    encoder: Vec<Conv>,
    decoder: Vec<Conv>,
}

impl Compressor {
    pub(super) fn new(path: &nn::Path<'_>, channels: i64, width: i64) -> Self {
        Self {
            encoder: chain(&(path / "encoder"), &[channels, width, 2 * width, width, BITS]),
            decoder: chain(&(path / "decoder"), &[BITS, width, 2 * width, width, channels]),
        }
    }

    /// Makes what is rebuilt nearly the middle of the range. The usual initial weights give a layer with few outputs
    /// answers far outside it.
    pub(super) fn start_near_grey(&self) {
        if let Some(output) = self.decoder.last() {
            output.scale_weights(0.1);
        }
    }

    /// For images `[N, C, H, W]`, how surely each bit is set, `[N, 12, H, W]`, in units of the noise of training.
    fn answers(&self, images: &Tensor) -> Tensor {
        run(&self.encoder, &((images - 0.5) * 4.0))
    }

    /// The images of a code `[N, 12, H, W]` in `[0, 1]`; not yet inside the box.
    fn rebuilt(&self, code: &Tensor) -> Tensor {
        run(&self.decoder, &((code - 0.5) * 2.0)) + 0.5
    }

    /// What training makes small: the mean squared difference between images and what is rebuilt of them from bits that
    /// noise has made unsure, and the code's mean square. Noise leaves only answers far from 0 a meaning, and those are what
    /// a threshold keeps.
    ///
    /// # Shapes
    /// `images` `[N, C, H, W]` in `[0, 1]`, `noise` `[N, 12, H, W]`, standard normal; a scalar comes out.
    pub(super) fn loss(&self, images: &Tensor, noise: &Tensor) -> Tensor {
        let code = ((self.answers(images) - noise) * STEEPNESS).sigmoid();
        let difference = self.rebuilt(&code).mse_loss(images, Reduction::Mean);
        difference + code.square().mean(code.kind()) * SPARSENESS
    }

    /// What is rebuilt of images from hard bits, inside the box.
    ///
    /// # Shapes
    /// `images` `[N, C, H, W]` in `[0, 1]`; the result too.
    pub(super) fn restore(&self, images: &Tensor) -> Tensor {
        self.rebuilt(&bits(&self.answers(images))).clamp(0.0, 1.0).contiguous()
    }
}

/// Convolutions from each number of channels to the next.
fn chain(path: &nn::Path<'_>, channels: &[i64]) -> Vec<Conv> {
    let pairs = channels.windows(2).enumerate();
    pairs.map(|(layer, pair)| Conv::new(&(path / format!("layer{layer}")), pair[0], pair[1], 3, 1)).collect()
}

/// The layers one after the other, with ELU in between, as in the paper.
fn run(layers: &[Conv], x: &Tensor) -> Tensor {
    let Some((output, hidden)) = layers.split_last() else { return x.shallow_clone() };
    let x = hidden.iter().fold(channels_last(x), |x, layer| layer.forward(&x).elu());
    output.forward(&x)
}

/// Answers as bits 0 and 1.
///
/// A threshold has no derivative; this has that of the chance with which the bit is set under the noise of training. It tells
/// an attacker which bits are easily turned, where the identity would tell the same of all, and it vanishes for none: that of
/// the sigmoid used in training would for nearly all, and hide the defence behind rounding (Athalye et al. 2018, section 4.1).
fn bits(answers: &Tensor) -> Tensor {
    let fixed = answers.detach();
    let scaled = &fixed * PROBIT;
    // both factors are small numbers where they are small; one minus a chance near 1 would be rounded to zero
    let slope = scaled.sigmoid() * (-&scaled).sigmoid() * PROBIT;
    let hard = fixed.gt(0.0).to_kind(answers.kind());
    // the second term is exactly zero
    hard + (answers - &fixed) * slope
}

/// Images written as 12 bits a pixel and rebuilt: a defence without randomness.
pub struct Compression {
    card: RestorerCard,
    store: nn::VarStore,
    layers: Compressor,
}

impl Compression {
    /// The defence around a trained compressor.
    ///
    /// # Errors
    /// If the network is another kind of restorer.
    pub fn new(network: RestorerNetwork) -> Result<Self> {
        let RestorerNetwork { card, store, layers } = network.freeze();
        match layers {
            Layers::Compressor(layers) => Ok(Self { card, store, layers }),
            Layers::Denoiser(_) => Err(wrong_kind(Restorer::Compressor, card.kind)),
        }
    }

    /// The network's card.
    pub fn card(&self) -> &RestorerCard {
        &self.card
    }
}

impl Defence for Compression {
    fn description(&self) -> String {
        format!("learned compression to {BITS} bits a pixel")
    }

    fn tensors(&self) -> Tensors {
        variables(&self.store)
    }

    fn restore(&self, _classifier: &dyn Classifier, images: &Tensor, _pass: Pass) -> Tensor {
        row_by_row(images, |row| self.layers.restore(row))
    }
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;
    use crate::{
        baselines::{
            network_file::testing::{busy, fresh},
            testing::{picture, restored, with_gradient},
        },
        defence::Draw,
    };

    fn compressor(channels: i64) -> Compressor {
        match busy(Restorer::Compressor, channels).layers {
            Layers::Compressor(layers) => layers,
            Layers::Denoiser(_) => panic!("asked for a compressor"),
        }
    }

    #[test]
    fn bits_are_hard_and_have_the_slope_of_their_chance() {
        let answers = Tensor::from_slice(&[-3.0_f64, -0.5, 0.0, 0.25, 8.0]).set_requires_grad(true);
        let bits = super::bits(&answers);
        assert_eq!(Vec::<f64>::try_from(bits.detach()).unwrap(), [0.0, 0.0, 0.0, 1.0, 1.0]);
        let slopes = Tensor::run_backward(&[bits.sum(Kind::Double)], &[&answers], false, false).remove(0);
        let slopes = Vec::<f64>::try_from(slopes).unwrap();
        assert!((slopes[2] - PROBIT / 4.0).abs() < 1e-12);
        let chance = 1.0 / (1.0 + (0.5 * PROBIT).exp());
        assert!((slopes[1] - PROBIT * chance * (1.0 - chance)).abs() < 1e-12);
        let sure = Tensor::from_slice(&[-20.0_f32, 20.0]).set_requires_grad(true);
        let bits = super::bits(&sure);
        let slopes = Tensor::run_backward(&[bits.sum(Kind::Float)], &[&sure], false, false).remove(0);
        assert!(slopes.min().double_value(&[]) > 0.0, "the surest bits have no slope left: {slopes:?}");
    }

    #[test]
    fn overwhelming_noise_leaves_a_code_that_knows_nothing_of_the_image() {
        let network = compressor(3);
        let x = picture([2, 3, 6, 7], 0.0, 1.0);
        for (noise, code) in [(-1e4, 1.0), (1e4, 0.0)] {
            let noise = Tensor::full([2, BITS, 6, 7], noise, (Kind::Float, Device::Cpu));
            let code_tensor = noise.full_like(code);
            let blind = network.rebuilt(&code_tensor).mse_loss(&x, Reduction::Mean).double_value(&[]);
            let loss = network.loss(&x, &noise).double_value(&[]);
            assert!((loss - blind - SPARSENESS * code).abs() < 1e-6 * blind.max(1.0), "{loss} {blind}");
        }
    }

    #[test]
    fn any_image_is_rebuilt_inside_the_box_whatever_its_batch() {
        for (channels, height, width) in [(1, 12, 12), (3, 5, 9), (1, 1, 1)] {
            let defence = Compression::new(busy(Restorer::Compressor, channels)).unwrap();
            let x = picture([3, channels, height, width], 0.0, 1.0);
            let all = restored(&defence, &x, Draw::OWN);
            assert_eq!(all.size(), x.size());
            assert!(all.min().double_value(&[]) >= 0.0 && all.max().double_value(&[]) <= 1.0);
            assert_eq!(all.narrow(0, 1, 1), restored(&defence, &x.narrow(0, 1, 1), Draw::OWN));
            assert_eq!(restored(&defence, &x, Draw::Vote(1)), all, "nothing is drawn");
        }
    }

    #[test]
    fn gradients_go_through_the_threshold() {
        let defence = Compression::new(fresh(Restorer::Compressor, 1)).unwrap();
        let x = picture([2, 1, 8, 8], 0.3, 0.7);
        let (all, gradients) = with_gradient(&defence, &x, Draw::OWN);
        assert!(gradients.get(1).abs().max().double_value(&[]) > 0.0);
        let (alone, gradient) = with_gradient(&defence, &x.narrow(0, 1, 1), Draw::OWN);
        assert_eq!((alone, gradient), (all.narrow(0, 1, 1), gradients.narrow(0, 1, 1)), "rows are mixed");
    }

    #[test]
    fn a_denoiser_is_no_compressor() {
        let error = Compression::new(fresh(Restorer::Denoiser, 1)).err().unwrap().to_string();
        assert!(error.contains("a denoiser, expected a compressor"), "{error}");
    }
}
