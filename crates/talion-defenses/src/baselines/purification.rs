//! Noise that drowns a perturbation, then a denoiser that removes both.

use talion_core::{Classifier, Error, Result, SampleStream, Tensors};
use talion_models::training::variables;
use tch::{Tensor, nn};

use super::{
    denoiser::{Denoiser, LARGEST, SMALLEST},
    network_file::{Layers, Restorer, RestorerCard, RestorerNetwork, row_by_row, wrong_kind},
};
use crate::defence::{Defence, Draw, Pass, row_streams};

/// Images get Gaussian noise and are denoised.
///
/// In one step, with many votes, this is denoised smoothing (Salman et al., "Denoised Smoothing: A Provable Defense for
/// Pretrained Classifiers", 2020) with a diffusion model's denoiser (Carlini et al., "(Certified!!) Adversarial Robustness
/// for Free!", 2023); votes are averaged probabilities here and no certificate is given. In several steps it is diffusion
/// purification (Nie et al., "Diffusion Models for Adversarial Purification", 2022), with deterministic steps back (Song,
/// Meng and Ermon, "Denoising Diffusion Implicit Models", 2021, section 4.1, in the variance-exploding form).
pub struct Purification {
    card: RestorerCard,
    store: nn::VarStore,
    layers: Denoiser,
    sigma: f64,
    steps: u32,
    votes: u64,
}

impl Purification {
    /// The defence around a trained denoiser: noise of standard deviation `sigma`, removed in `steps`, 1 to 100; a
    /// prediction is averaged over `votes` draws, 1 to 10000.
    ///
    /// # Errors
    /// If the network is another kind of restorer, if it has not been trained on noise of this level (0.02 to 0.5), or if
    /// another value is out of range.
    pub fn new(network: RestorerNetwork, sigma: f64, steps: u32, votes: u64) -> Result<Self> {
        if !(SMALLEST..=LARGEST).contains(&sigma) {
            return Err(Error::range("sigma", format!("{SMALLEST} to {LARGEST}"), sigma));
        }
        if !(1..=100).contains(&steps) {
            return Err(Error::range("the number of denoising steps", "1 to 100", steps));
        }
        if !(1..=10_000).contains(&votes) {
            return Err(Error::range("the number of votes", "1 to 10000", votes));
        }
        let RestorerNetwork { card, store, layers } = network.freeze();
        match layers {
            Layers::Denoiser(layers) => Ok(Self { card, store, layers, sigma, steps, votes }),
            Layers::Compressor(_) => Err(wrong_kind(Restorer::Denoiser, card.kind)),
        }
    }

    /// The network's card.
    pub fn card(&self) -> &RestorerCard {
        &self.card
    }

    /// The images with a draw's noise; it may leave the box.
    fn noisy(&self, images: &Tensor, draw: Draw) -> Tensor {
        let noise = standard_normal(&images.size(), row_streams(images, "purification", draw));
        images + noise.to_kind(images.kind()).to_device(images.device()) * self.sigma
    }

    /// Noisy images, of level `sigma`, brought back into the box.
    fn denoised(&self, noisy: &Tensor) -> Tensor {
        let denoise = |x: &Tensor, sigma: f64| {
            self.layers.denoise(x, &Tensor::full([1, 1, 1, 1], sigma, (x.kind(), x.device())))
        };
        descend(noisy, &levels(self.sigma, self.steps), denoise).clamp(0.0, 1.0).contiguous()
    }
}

impl Defence for Purification {
    fn description(&self) -> String {
        let counted = |count: u64, what: &str| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
        let (steps, votes) = (counted(self.steps.into(), "step"), counted(self.votes, "vote"));
        format!("noise of {} and a denoiser ({steps}, {votes})", self.sigma)
    }

    fn tensors(&self) -> Tensors {
        variables(&self.store)
    }

    fn restore(&self, _classifier: &dyn Classifier, images: &Tensor, pass: Pass) -> Tensor {
        row_by_row(&self.noisy(images, pass.draw), |row| self.denoised(row))
    }

    fn is_random(&self) -> bool {
        true
    }

    fn votes(&self) -> u64 {
        self.votes
    }
}

/// Standard normal draws of this size, each row from its own stream; `f32`, on the CPU.
fn standard_normal(size: &[i64], streams: Vec<SampleStream>) -> Tensor {
    let values = size.iter().skip(1).product::<i64>().unsigned_abs() as usize;
    let mut drawn = Vec::with_capacity(values * streams.len());
    for mut stream in streams {
        let pairs = std::iter::repeat_with(|| stream.normal_pair());
        drawn.extend(pairs.flat_map(|(first, second)| [first, second]).take(values));
    }
    Tensor::from_slice(&drawn).reshape(size)
}

/// Noise levels from `sigma` to the least that the denoiser knows, evenly on a logarithmic scale; one step is at `sigma`.
fn levels(sigma: f64, steps: u32) -> Vec<f64> {
    let last = f64::from(steps.saturating_sub(1).max(1));
    (0..steps).map(|step| sigma * (SMALLEST / sigma).powf(f64::from(step) / last)).collect()
}

/// Follows the line from the noisy image towards the denoised one from level to level, denoising anew at each, and ends with
/// what the last denoising gives.
fn descend(noisy: &Tensor, levels: &[f64], denoise: impl Fn(&Tensor, f64) -> Tensor) -> Tensor {
    let mut x = noisy.shallow_clone();
    for pair in levels.windows(2) {
        let clean = denoise(&x, pair[0]);
        x = &clean + (&x - &clean) * (pair[1] / pair[0]);
    }
    match levels.last() {
        Some(&last) => denoise(&x, last),
        None => x,
    }
}

#[cfg(test)]
mod tests {
    use talion_core::gaussian_noise;
    use tch::Kind;

    use super::*;
    use crate::baselines::{
        network_file::testing::{busy, fresh},
        testing::{picture, restored},
    };

    const DRAWS: [Draw; 3] = [Draw::OWN, Draw::Vote(1), Draw::Attackers(0)];

    #[test]
    fn levels_fall_geometrically() {
        assert_eq!(levels(0.5, 1), [0.5]);
        let three = levels(0.5, 3);
        assert_eq!(three.len(), 3);
        let wanted = [0.5, 0.1, 0.02];
        assert!(three.iter().zip(wanted).all(|(found, wanted)| (found - wanted).abs() < 1e-12), "{three:?}");
        assert_eq!(levels(SMALLEST, 2), [SMALLEST; 2]);
    }

    #[test]
    fn steps_follow_the_line_to_the_denoised_image() {
        let x = Tensor::from_slice(&[1.0_f64, -2.0]);
        // 1 is denoised to 0.5, half the way there is 0.75, which is denoised to 0.375
        let halved = descend(&x, &[0.5, 0.25], |x, _| x * 0.5);
        assert_eq!(Vec::<f64>::try_from(halved).unwrap(), [0.375, -0.75]);
        let last = descend(&x, &[0.5, 0.25], |x, sigma| x.full_like(sigma));
        assert_eq!(Vec::<f64>::try_from(last).unwrap(), [0.25, 0.25]);
    }

    #[test]
    fn draws_belong_to_the_image_and_not_to_its_batch() {
        for (channels, steps) in [(1, 1), (3, 3)] {
            let defence = Purification::new(busy(Restorer::Denoiser, channels), 0.1, steps, 5).unwrap();
            assert!(defence.is_random() && defence.votes() == 5);
            // of an odd number of values
            let x = picture([3, channels, 9, 11], 0.0, 1.0);
            let draws = DRAWS.map(|draw| {
                let all = restored(&defence, &x, draw);
                assert_eq!(all.size(), x.size());
                assert!(all.min().double_value(&[]) >= 0.0 && all.max().double_value(&[]) <= 1.0);
                assert_eq!(restored(&defence, &x, draw), all, "{draw:?}");
                assert_eq!(restored(&defence, &x.narrow(0, 1, 1), draw), all.narrow(0, 1, 1), "{draw:?}");
                all
            });
            assert!(draws[0] != draws[1] && draws[0] != draws[2] && draws[1] != draws[2]);
            assert_eq!(restored(&defence, &x.narrow(0, 0, 0), Draw::OWN).size(), [0, channels, 9, 11]);
        }
    }

    #[test]
    fn a_denoiser_that_finds_nothing_leaves_noise_of_the_level_asked_for() {
        let defence = Purification::new(fresh(Restorer::Denoiser, 3), 0.05, 4, 1).unwrap();
        let x = picture([4, 3, 20, 20], 0.4, 0.6);
        let noise = restored(&defence, &x, Draw::OWN) - &x;
        let level = noise.std(true).double_value(&[]);
        assert!((level - 0.05).abs() < 0.003, "{level}");
        assert!(noise.mean(Kind::Double).double_value(&[]).abs() < 0.004);
    }

    #[test]
    fn gradients_go_through_every_step() {
        let defence = Purification::new(busy(Restorer::Denoiser, 1).to_double(), 0.05, 3, 1).unwrap();
        let x = picture([2, 1, 8, 8], 0.3, 0.7).to_kind(Kind::Double);
        let loss = |restored: &Tensor| restored.square().sum(Kind::Double);
        let variable = x.copy().set_requires_grad(true);
        let through = loss(&restored(&defence, &variable, Draw::OWN));
        let gradient = Tensor::run_backward(&[through], &[&variable], false, false).remove(0);
        // the noise belongs to the image, so only what comes after it has a derivative
        let noisy = defence.noisy(&x, Draw::OWN);
        let direction = gaussian_noise(&[1, 8, 8], &[0, 1], 3, "direction", 0).to_kind(Kind::Double);
        let at = |step: f64| loss(&defence.denoised(&(&noisy + &direction * step))).double_value(&[]);
        let truth = (at(1e-6) - at(-1e-6)) / 2e-6;
        let found = (gradient * &direction).sum(Kind::Double).double_value(&[]);
        assert!(found.abs() > 1e-3, "{found}");
        assert!((found - truth).abs() < 1e-4 * truth.abs().max(1.0), "{found} against {truth}");
    }

    #[test]
    fn what_cannot_be_done_is_refused() {
        let refused = |kind, sigma, steps, votes| {
            Purification::new(fresh(kind, 1), sigma, steps, votes).err().unwrap().to_string()
        };
        let denoiser = Restorer::Denoiser;
        assert!(refused(denoiser, 0.01, 1, 1).contains("sigma"));
        assert!(refused(denoiser, f64::NAN, 1, 1).contains("sigma"));
        assert!(refused(denoiser, 0.25, 0, 1).contains("steps"));
        assert!(refused(denoiser, 0.25, 1, 0).contains("votes"));
        assert!(refused(Restorer::Compressor, 0.25, 1, 1).contains("a compressor, expected a denoiser"));
    }
}
