//! Layers that know both of their lives: training with batch statistics, and frozen with the norm folded away.

use talion_onnx::{Builder, Var};
use tch::{
    Kind, Tensor,
    nn::{self, ModuleT},
};

/// How a network is being run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Batch statistics, gradients for the weights.
    Train,
    /// Running statistics; folded weights where the network has been folded.
    Eval,
}

/// The same values with channels innermost in memory, the layout that convolution kernels prefer.
///
/// tch has no memory-format argument, so the layout is made by permuting, copying and permuting back.
pub fn channels_last(images: &Tensor) -> Tensor {
    images.permute([0, 2, 3, 1]).contiguous().permute([0, 3, 1, 2])
}

/// A convolution without bias.
#[derive(Debug)]
pub(crate) struct Conv {
    weight: Tensor,
    stride: i64,
    padding: i64,
}

impl Conv {
    pub(crate) fn new(path: &nn::Path<'_>, inputs: i64, outputs: i64, size: i64, stride: i64) -> Self {
        let weight = path.var("weight", &[outputs, inputs, size, size], nn::Init::Const(0.0));
        Self { weight, stride, padding: size / 2 }
    }

    pub(crate) fn forward(&self, x: &Tensor) -> Tensor {
        self.convolve(x, &self.weight.to_kind(x.kind()), None)
    }

    pub(crate) fn emit(&self, b: &mut Builder, x: &Var) -> Var {
        self.emit_convolution(b, x, &self.weight, None)
    }

    fn convolve(&self, x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Tensor {
        x.conv2d(weight, bias, [self.stride, self.stride], [self.padding, self.padding], [1, 1], 1)
    }

    fn emit_convolution(&self, b: &mut Builder, x: &Var, weight: &Tensor, bias: Option<&Tensor>) -> Var {
        let (stride, padding) = ([self.stride, self.stride], [self.padding, self.padding]);
        let (weight, bias) = (weight.to_kind(Kind::Float), bias.map(|bias| bias.to_kind(Kind::Float)));
        b.conv(x, &weight, bias.as_ref(), stride, padding, 1)
    }
}

/// Added to the variance: the default of libtorch, which tch keeps private.
const EPSILON: f64 = 1e-5;

/// Batch norm, which folds into a scale and a shift.
#[derive(Debug)]
pub(crate) struct Norm {
    norm: nn::BatchNorm,
    folded: Option<(Tensor, Tensor)>,
}

impl Norm {
    pub(crate) fn new(path: &nn::Path<'_>, channels: i64) -> Self {
        let config =
            nn::BatchNormConfig { ws_init: nn::Init::Const(1.0), eps: EPSILON, ..Default::default() };
        Self { norm: nn::batch_norm2d(path, channels, config), folded: None }
    }

    pub(crate) fn forward(&self, x: &Tensor, mode: Mode) -> Tensor {
        match (&self.folded, mode) {
            (Some((scale, shift)), Mode::Eval) => x * scale + shift,
            _ => self.norm.forward_t(x, mode == Mode::Train),
        }
    }

    /// The norm with its running statistics, whether folded or not.
    pub(crate) fn emit(&self, b: &mut Builder, x: &Var) -> Var {
        let (scale, shift) = match &self.folded {
            Some((scale, shift)) => (scale.shallow_clone(), shift.shallow_clone()),
            None => self.planes(),
        };
        let (scale, shift) = (scale.to_kind(Kind::Float), shift.to_kind(Kind::Float));
        let (scale, shift) = (b.constant(&scale), b.constant(&shift));
        let scaled = b.mul(x, &scale);
        b.add(&scaled, &shift)
    }

    /// Scale and shift, `[C]` each, that equal the norm with its running statistics.
    fn scale_and_shift(&self) -> (Tensor, Tensor) {
        let norm = &self.norm;
        let inverse = (&norm.running_var + EPSILON).rsqrt();
        let scale = match &norm.ws {
            Some(weight) => weight * inverse,
            None => inverse,
        };
        let shift = match &norm.bs {
            Some(bias) => bias - &norm.running_mean * &scale,
            None => -(&norm.running_mean * &scale),
        };
        (scale.detach(), shift.detach())
    }

    /// Scale and shift, `[1, C, 1, 1]` each.
    fn planes(&self) -> (Tensor, Tensor) {
        let (scale, shift) = self.scale_and_shift();
        (scale.view([1, -1, 1, 1]), shift.view([1, -1, 1, 1]))
    }

    pub(crate) fn fold(&mut self) {
        self.folded = Some(self.planes());
    }
}

/// A convolution followed by batch norm, which folds into one convolution with bias.
#[derive(Debug)]
pub(crate) struct ConvNorm {
    conv: Conv,
    norm: Norm,
    folded: Option<(Tensor, Tensor)>,
}

impl ConvNorm {
    pub(crate) fn new(path: &nn::Path<'_>, inputs: i64, outputs: i64, size: i64, stride: i64) -> Self {
        Self {
            conv: Conv::new(&(path / "conv"), inputs, outputs, size, stride),
            norm: Norm::new(&(path / "norm"), outputs),
            folded: None,
        }
    }

    pub(crate) fn forward(&self, x: &Tensor, mode: Mode) -> Tensor {
        match (&self.folded, mode) {
            (Some((weight, bias)), Mode::Eval) => self.conv.convolve(x, weight, Some(bias)),
            _ => self.norm.forward(&self.conv.forward(x), mode),
        }
    }

    /// One convolution with bias, whether folded or not.
    pub(crate) fn emit(&self, b: &mut Builder, x: &Var) -> Var {
        let (weight, bias) = match &self.folded {
            Some((weight, bias)) => (weight.shallow_clone(), bias.shallow_clone()),
            None => self.merged(),
        };
        self.conv.emit_convolution(b, x, &weight, Some(&bias))
    }

    /// Weight and bias of the one convolution that equals the two.
    fn merged(&self) -> (Tensor, Tensor) {
        let (scale, shift) = self.norm.scale_and_shift();
        (self.conv.weight.detach() * scale.view([-1, 1, 1, 1]), shift)
    }

    pub(crate) fn fold(&mut self) {
        let (weight, bias) = self.merged();
        self.folded = Some((channels_last(&weight), bias));
    }
}

/// A linear layer.
#[derive(Debug)]
pub(crate) struct Dense {
    weight: Tensor,
    bias: Tensor,
}

impl Dense {
    pub(crate) fn new(path: &nn::Path<'_>, inputs: i64, outputs: i64) -> Self {
        Self {
            weight: path.var("weight", &[outputs, inputs], nn::Init::Const(0.0)),
            bias: path.var("bias", &[outputs], nn::Init::Const(0.0)),
        }
    }

    /// Always in the weights' own precision: the last layers are cheap and their rounding shows in the logits.
    pub(crate) fn forward(&self, x: &Tensor) -> Tensor {
        x.to_kind(self.weight.kind()).linear(&self.weight, Some(&self.bias))
    }

    pub(crate) fn emit(&self, b: &mut Builder, x: &Var) -> Var {
        b.linear(x, &self.weight.to_kind(Kind::Float), Some(&self.bias.to_kind(Kind::Float)))
    }
}

/// Mean over height and width.
pub(crate) fn global_average(x: &Tensor) -> Tensor {
    x.mean_dim([2_i64, 3].as_slice(), false, None)
}

/// [`global_average`] in a graph.
pub(crate) fn emit_global_average(b: &mut Builder, x: &Var) -> Var {
    b.global_average(x, false)
}
