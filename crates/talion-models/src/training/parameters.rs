//! A network's weights as one vector, so that an optimiser step is a handful of operations whatever the network.

use std::collections::BTreeMap;

use talion_core::{Error, Result, Tensors, gaussian_noise, uniform_noise};
use tch::{Kind, Tensor, nn};

/// The trainable weights of a network, laid out in one contiguous vector that the weights are views of.
pub struct Parameters {
    flat: Tensor,
    decayed: Tensor,
    weights: Vec<Tensor>,
    buffers: BTreeMap<String, Tensor>,
}

impl Parameters {
    /// Moves the weights of `store` into one vector, in the order of their names.
    pub fn new(store: &nn::VarStore) -> Self {
        let (mut weights, mut buffers) = (Vec::new(), BTreeMap::new());
        for (name, tensor) in BTreeMap::from_iter(store.variables()) {
            if tensor.requires_grad() {
                weights.push(tensor);
            } else {
                buffers.insert(name, tensor);
            }
        }
        tch::no_grad(|| {
            let flat =
                Tensor::cat(&weights.iter().map(|weight| weight.flatten(0, -1)).collect::<Vec<_>>(), 0);
            // Norms and biases are not decayed: pulling them to zero regularises nothing (He et al. 2019, section 3.1).
            let decayed = weights.iter().map(|weight| {
                let value = if weight.dim() > 1 { 1.0 } else { 0.0 };
                Tensor::full([weight.numel() as i64], value, (Kind::Float, flat.device()))
            });
            let decayed = Tensor::cat(&decayed.collect::<Vec<_>>(), 0);
            let mut offset = 0;
            for weight in &mut weights {
                let length = weight.numel() as i64;
                let view = flat.narrow(0, offset, length).view(weight.size().as_slice());
                weight.set_data(&view);
                offset += length;
            }
            Self { flat, decayed, weights, buffers }
        })
    }

    /// All weights as one vector.
    pub fn flat(&self) -> &Tensor {
        &self.flat
    }

    /// 1 where weight decay applies, else 0; as long as the vector.
    pub fn decayed(&self) -> &Tensor {
        &self.decayed
    }

    /// Overwrites all weights.
    pub fn assign(&mut self, flat: &Tensor) {
        tch::no_grad(|| self.flat.copy_(flat));
    }

    /// The gradient of `loss` with respect to the vector.
    pub fn gradient(&self, loss: &Tensor) -> Tensor {
        let gradients = Tensor::run_backward(&[loss], &self.weights, false, false);
        Tensor::cat(&gradients.iter().map(|gradient| gradient.flatten(0, -1)).collect::<Vec<_>>(), 0)
    }

    /// A direction as long as the weights, tensor by tensor: the part of `gradient` that belongs to a tensor, brought to the
    /// length of that tensor. Zero for norms and biases (Wu et al. 2020, "Adversarial weight perturbation helps robust
    /// generalization", equation 10, and their reference program, which leaves those out).
    pub fn relative(&self, gradient: &Tensor) -> Tensor {
        let length = |part: &Tensor| part.square().sum(Kind::Float).sqrt();
        let mut offset = 0;
        let parts: Vec<Tensor> = self
            .weights
            .iter()
            .map(|weight| {
                let count = weight.numel() as i64;
                let part = gradient.narrow(0, offset, count);
                offset += count;
                if weight.dim() > 1 {
                    &part * (length(&weight.detach()) / (length(&part) + 1e-12))
                } else {
                    part.zeros_like()
                }
            })
            .collect();
        Tensor::cat(&parts, 0)
    }

    /// What is not trained but belongs to the network: running statistics.
    pub fn buffers(&self) -> &BTreeMap<String, Tensor> {
        &self.buffers
    }
}

/// Every variable of `store`, detached, by name.
pub fn variables(store: &nn::VarStore) -> Tensors {
    store.variables().into_iter().map(|(name, tensor)| (name, tensor.detach())).collect()
}

/// Overwrites every variable of `store`.
///
/// # Errors
/// Names a variable that is missing, left over, or of another shape; nothing has been overwritten then.
pub fn load_variables(store: &nn::VarStore, tensors: &Tensors) -> Result<()> {
    let mut wanted = store.variables();
    for (name, tensor) in &wanted {
        let found = tensors.get(name).ok_or_else(|| Error::Refused(format!("tensor {name} is missing")))?;
        if found.size() != tensor.size() {
            let expected = format!("{:?}", tensor.size());
            return Err(Error::range(
                format!("the shape of {name}"),
                expected,
                format!("{:?}", found.size()),
            ));
        }
    }
    if let Some(name) = tensors.keys().find(|name| !wanted.contains_key(*name)) {
        return Err(Error::Refused(format!("tensor {name} is not part of this network")));
    }
    tch::no_grad(|| {
        for (name, tensor) in &mut wanted {
            tensor.copy_(&tensors[name]);
        }
    });
    Ok(())
}

/// Initial weights that depend on `seed` and each weight's name alone: He et al. 2015 for convolutions (fan out),
/// uniform in `1/sqrt(fan in)` for linear layers; norms and biases keep what they were built with.
///
/// libtorch's own initialisers draw from one global generator, which another thread may be using.
pub fn initialise(store: &nn::VarStore, seed: u64) {
    tch::no_grad(|| {
        for (name, mut tensor) in store.variables() {
            let shape = tensor.size();
            let weights = match *shape.as_slice() {
                [outputs, _, height, width] => {
                    let fan_out = (outputs * height * width) as f64;
                    gaussian_noise(&shape, &[0], seed, &name, 0) * (2.0 / fan_out).sqrt()
                }
                [_, inputs] => uniform_noise(&shape, &[0], seed, &name, 0) / (inputs as f64).sqrt(),
                _ => continue,
            };
            tensor.copy_(&weights.squeeze_dim(0));
        }
    });
}
