//! A small network after LeNet-5 (LeCun et al. 1998): two convolutions with pooling, two linear layers, no norm.

use tch::{Tensor, nn};

use super::Network;
use crate::layers::{Conv, Dense, Mode};

pub(super) struct Cnn {
    first: Conv,
    second: Conv,
    hidden: Dense,
    head: Dense,
}

impl Cnn {
    pub(super) fn new(path: &nn::Path<'_>, channels: i64, classes: i64, width: i64) -> Self {
        Self {
            first: Conv::new(&(path / "first"), channels, width, 5, 1),
            second: Conv::new(&(path / "second"), width, 2 * width, 5, 1),
            hidden: Dense::new(&(path / "hidden"), 2 * width * 16, 4 * width),
            head: Dense::new(&(path / "head"), 4 * width, classes),
        }
    }
}

impl Network for Cnn {
    fn forward(&self, x: &Tensor, _mode: Mode) -> Tensor {
        let x = self.first.forward(x).relu_().max_pool2d_default(2);
        let x = self.second.forward(&x).relu_();
        // a fixed 4x4 grid, so that any image size fits the linear layer
        let x = x.adaptive_avg_pool2d([4, 4]).flatten(1, -1);
        self.head.forward(&self.hidden.forward(&x).relu_())
    }

    fn fold(&mut self) {}
}
