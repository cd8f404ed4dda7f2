//! Optimisers over a parameter vector, with their state in the open so that a run can be resumed exactly.
//!
//! libtorch's own optimisers, as tch offers them, can neither save nor restore their state.

use talion_core::Tensors;
use tch::{Kind, Tensor};

use super::Parameters;

/// An optimiser and its state.
pub enum Optimizer {
    /// SGD with Nesterov momentum (Sutskever et al. 2013) and decoupled-from-norms weight decay.
    Sgd {
        /// Momentum, for instance 0.9.
        momentum: f64,
        /// Weight decay, for instance 5e-4.
        decay: f64,
        /// Running sum of gradients.
        velocity: Tensor,
    },
    /// AdamW (Loshchilov and Hutter 2019) with betas 0.9 and 0.99.
    AdamW {
        /// Weight decay, multiplied by the learning rate.
        decay: f64,
        /// Running mean of gradients.
        mean: Tensor,
        /// Running mean of squared gradients.
        square: Tensor,
    },
}

const BETAS: (f64, f64) = (0.9, 0.99);

impl Optimizer {
    /// SGD at rest.
    pub fn sgd(parameters: &Parameters, momentum: f64, decay: f64) -> Self {
        Self::Sgd { momentum, decay, velocity: parameters.flat().zeros_like() }
    }

    /// AdamW at rest.
    pub fn adamw(parameters: &Parameters, decay: f64) -> Self {
        let zeros = || parameters.flat().zeros_like();
        Self::AdamW { decay, mean: zeros(), square: zeros() }
    }

    /// Moves the parameters one step; `step` counts from 0.
    pub fn step(&mut self, parameters: &mut Parameters, gradient: &Tensor, rate: f64, step: u64) {
        tch::no_grad(|| {
            let updated = match self {
                Self::Sgd { momentum, decay, velocity } => {
                    let gradient = gradient + parameters.decayed() * parameters.flat() * *decay;
                    let _ = velocity.g_mul_scalar_(*momentum).g_add_(&gradient);
                    let nesterov = gradient + &*velocity * *momentum;
                    parameters.flat() - nesterov * rate
                }
                Self::AdamW { decay, mean, square } => {
                    let (first, second) = BETAS;
                    let _ = mean.g_mul_scalar_(first).g_add_(&(gradient * (1.0 - first)));
                    let _ = square.g_mul_scalar_(second).g_add_(&(gradient.square() * (1.0 - second)));
                    let count = (step + 1) as f64;
                    let mean = &*mean / (1.0 - first.powf(count));
                    let scale = (&*square / (1.0 - second.powf(count))).sqrt() + 1e-8;
                    let shrink = parameters.decayed() * parameters.flat() * (*decay * rate);
                    parameters.flat() - mean / scale * rate - shrink
                }
            };
            parameters.assign(&updated);
        });
    }

    /// The state by name, for a snapshot.
    pub fn state(&self) -> Tensors {
        let named = |pairs: &[(&str, &Tensor)]| {
            pairs.iter().map(|(name, tensor)| ((*name).to_owned(), tensor.shallow_clone())).collect()
        };
        match self {
            Self::Sgd { velocity, .. } => named(&[("optimizer/velocity", velocity)]),
            Self::AdamW { mean, square, .. } => {
                named(&[("optimizer/mean", mean), ("optimizer/square", square)])
            }
        }
    }

    /// Mutable state by name, to restore a snapshot into.
    pub fn state_mut(&mut self) -> Vec<(&'static str, &mut Tensor)> {
        match self {
            Self::Sgd { velocity, .. } => vec![("optimizer/velocity", velocity)],
            Self::AdamW { mean, square, .. } => vec![("optimizer/mean", mean), ("optimizer/square", square)],
        }
    }
}

/// Scales a gradient down so that its length is at most `limit`, without asking the device for a number.
pub fn clip_to_norm(gradient: &Tensor, limit: f64) -> Tensor {
    let length = gradient.square().sum(Kind::Float).sqrt();
    gradient * ((length + 1e-12).reciprocal() * limit).clamp_max(1.0)
}

/// The learning rate at `step` of `total`: a straight line up during the first `warmup` share, then a cosine to zero
/// (after Smith and Topin 2019).
pub fn one_cycle(step: u64, total: u64, peak: f64, warmup: f64) -> f64 {
    let done = (step as f64 + 0.5) / total.max(1) as f64;
    if done < warmup {
        peak * done / warmup
    } else {
        let left = ((done - warmup) / (1.0 - warmup)).min(1.0);
        peak * 0.5 * (1.0 + (std::f64::consts::PI * left).cos())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, nn};

    fn minimised_by(make: impl Fn(&Parameters) -> Optimizer, rate: f64) -> f64 {
        let store = nn::VarStore::new(Device::Cpu);
        let weight = store.root().var("weight", &[3, 2], nn::Init::Const(3.0));
        let mut parameters = Parameters::new(&store);
        let mut optimizer = make(&parameters);
        for step in 0..300 {
            let loss = (&weight - 1.0).square().sum(Kind::Float);
            let gradient = parameters.gradient(&loss);
            optimizer.step(&mut parameters, &gradient, one_cycle(step, 300, rate, 0.2), step);
        }
        (&weight - 1.0).abs().max().double_value(&[])
    }

    #[test]
    fn both_optimisers_find_a_minimum_through_the_views() {
        assert!(minimised_by(|parameters| Optimizer::sgd(parameters, 0.9, 0.0), 0.05) < 1e-3);
        assert!(minimised_by(|parameters| Optimizer::adamw(parameters, 0.0), 0.1) < 1e-2);
    }

    #[test]
    fn clipping_keeps_direction_and_short_gradients() {
        let long = Tensor::from_slice(&[3.0_f32, 4.0]);
        let clipped = Vec::<f32>::try_from(clip_to_norm(&long, 1.0)).unwrap();
        assert!((clipped[0] - 0.6).abs() < 1e-6 && (clipped[1] - 0.8).abs() < 1e-6);
        assert_eq!(clip_to_norm(&long, 10.0), long);
    }

    #[test]
    fn the_cycle_rises_then_falls_to_zero() {
        let rates: Vec<f64> = (0..100).map(|step| one_cycle(step, 100, 1.0, 0.25)).collect();
        assert!(rates[..25].is_sorted() && rates[25..].is_sorted_by(|a, b| a >= b));
        assert!(rates[99] < 1e-3 && rates[25] > 0.99);
    }
}
