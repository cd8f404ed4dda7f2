//! Patterns that push an image towards a class: what a network may add that has made up its mind.

use talion_onnx::{Builder, Var};
use tch::{Tensor, nn};

use super::layers::Conv;

/// A pattern for each class, mixed by how likely the network holds each.
///
/// A universal perturbation (Moosavi-Dezfooli et al. 2017, "Universal adversarial perturbations") moves nearly every image
/// into a class. Here it is used for the defence: whoever knows the class can add its pattern, and an attacker has to push
/// against all of it. Convolutions alone cannot draw one, because it differs from place to place.
pub(super) struct Patterns {
    hidden: Conv,
    output: Conv,
    /// `[K, C, H, W]`.
    patterns: Tensor,
}

/// Hidden units of what decides on a class.
const WIDTH: i64 = 64;

impl Patterns {
    /// For features of these widths, and images of this many channels and this height and width.
    pub(super) fn new(path: &nn::Path<'_>, widths: &[i64], classes: i64, image: [i64; 3]) -> Self {
        let [channels, height, width] = image;
        Self {
            hidden: Conv::new(&(path / "hidden"), widths.iter().sum(), WIDTH, 1, 1),
            output: Conv::new(&(path / "output"), WIDTH, classes, 1, 1),
            patterns: path.var("patterns", &[classes, channels, height, width], nn::Init::Const(0.0)),
        }
    }

    /// The class that each image is held for, as logits `[N, K]`.
    ///
    /// # Shapes
    /// `means` of the features, a scale each `[N, W, 1, 1]`.
    pub(super) fn classes(&self, means: &[Tensor]) -> Tensor {
        self.output.forward(&self.hidden.forward(&Tensor::cat(means, 1)).relu_()).flatten(1, -1)
    }

    /// The patterns mixed by the probabilities of the classes.
    ///
    /// # Shapes
    /// `classes` logits `[N, K]`; the result `[N, C, H, W]` for this height and width.
    pub(super) fn mixed(&self, classes: &Tensor, size: [i64; 2]) -> Tensor {
        let patterns = self.fitting(size);
        let shape = patterns.size();
        let mixed = classes.softmax(1, None).matmul(&patterns.flatten(1, -1));
        mixed.view([-1, shape[1], shape[2], shape[3]])
    }

    /// The patterns at this height and width; at another than that of training they are enlarged or shrunk.
    fn fitting(&self, size: [i64; 2]) -> Tensor {
        match self.patterns.size()[2..] == size {
            true => self.patterns.shallow_clone(),
            false => self.patterns.upsample_bilinear2d(size, false, None, None),
        }
    }

    /// As [`Patterns::mixed`] after [`Patterns::classes`], in a graph, from the features of all scales.
    pub(super) fn emit(&self, b: &mut Builder, features: &[Var], size: [i64; 2]) -> Var {
        let means: Vec<Var> = features.iter().map(|scale| b.global_average(scale, true)).collect();
        let known = b.concat(&means.iter().collect::<Vec<_>>(), 1);
        let hidden = self.hidden.emit(b, &known);
        let hidden = b.relu(&hidden);
        let classes = self.output.emit(b, &hidden);
        let classes = b.flatten(&classes);
        let probabilities = b.softmax(&classes, 1);
        let patterns = tch::no_grad(|| self.fitting(size));
        let shape = patterns.size();
        let mixed = b.linear(&probabilities, &patterns.flatten(1, -1).transpose(0, 1).contiguous(), None);
        b.reshape(&mixed, &[-1, shape[1], shape[2], shape[3]])
    }

    /// No pattern does anything yet, and no class is likelier than another.
    pub(super) fn start_as_identity(&self) {
        self.output.scale_weights(0.0);
        let _ = self.patterns.shallow_clone().fill_(0.0);
    }

    /// Overwrites the patterns.
    pub(super) fn set(&self, patterns: &Tensor) {
        tch::no_grad(|| self.patterns.shallow_clone().copy_(patterns));
    }
}
