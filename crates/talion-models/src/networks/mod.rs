//! The built-in networks, a family a file.

mod cnn;
mod preact;
mod resnet;
mod vgg;

use talion_onnx::{Builder, Var};
use tch::{Tensor, nn};

use crate::{
    architecture::{Architecture, Family},
    layers::Mode,
};

/// A network from standardised images to logits.
pub(crate) trait Network: Send {
    fn forward(&self, x: &Tensor, mode: Mode) -> Tensor;

    /// Writes what [`Network::forward`] computes in `Mode::Eval` for standardised images of this height and width.
    fn emit(&self, b: &mut Builder, x: &Var, size: [i64; 2]) -> Var;

    /// Folds every batch norm into what stands before it; from then on `Mode::Eval` uses the folded weights.
    fn fold(&mut self);
}

pub(crate) fn build(
    path: &nn::Path<'_>,
    architecture: Architecture,
    channels: i64,
    classes: i64,
) -> Box<dyn Network> {
    let width = architecture.width;
    match architecture.family {
        Family::ResNet18 => Box::new(resnet::ResNet::new(path, channels, classes, width)),
        Family::PreActResNet18 => {
            let widths = [width, 2 * width, 4 * width, 8 * width];
            Box::new(preact::PreActNet::new(path, channels, classes, width, &widths, 2))
        }
        Family::WideResNet28 => {
            let widths = [16 * width, 32 * width, 64 * width];
            Box::new(preact::PreActNet::new(path, channels, classes, 16, &widths, 4))
        }
        Family::Vgg16Bn => Box::new(vgg::Vgg::new(path, channels, classes, width)),
        Family::CnnSmall => Box::new(cnn::Cnn::new(path, channels, classes, width)),
    }
}
