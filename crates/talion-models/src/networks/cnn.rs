//! A small network after LeNet-5 (LeCun et al. 1998): two convolutions with pooling, two linear layers, no norm.

use talion_onnx::{Builder, Var};
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

    fn emit(&self, b: &mut Builder, x: &Var, size: [i64; 2]) -> Var {
        let x = self.first.emit(b, x);
        let x = b.relu(&x);
        let x = b.max_pool(&x, [2, 2], [2, 2], [0, 0]);
        let x = self.second.emit(b, &x);
        let x = b.relu(&x);
        let x = emit_grid(b, &x, [size[0] / 2, size[1] / 2]);
        let x = b.flatten(&x);
        let x = self.hidden.emit(b, &x);
        let x = b.relu(&x);
        self.head.emit(b, &x)
    }

    fn fold(&mut self) {}
}

/// Rows and columns of the grid that is averaged into.
const GRID: i64 = 4;

/// Adaptive average pooling of features of this height and width, which ONNX has no operator for: a mean over rows and
/// one over columns, each a product with a constant matrix.
fn emit_grid(b: &mut Builder, x: &Var, size: [i64; 2]) -> Var {
    let rows = b.constant(&cells(size[0]));
    let columns = b.constant(&cells(size[1]).transpose(0, 1));
    let x = b.matmul(x, &columns);
    b.matmul(&rows, &x)
}

/// The weight of each of `length` positions in each cell of the grid, `[4, length]`. Cells overlap where 4 does not
/// divide the length.
fn cells(length: i64) -> Tensor {
    let mut weights = Vec::new();
    for cell in 0..GRID {
        let (start, end) = (cell * length / GRID, ((cell + 1) * length + GRID - 1) / GRID);
        let weight = 1.0 / (end - start) as f32;
        weights.extend((0..length).map(|at| if (start..end).contains(&at) { weight } else { 0.0 }));
    }
    Tensor::from_slice(&weights).view([GRID, length])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_are_those_of_adaptive_pooling() {
        for (height, width) in [(16, 8), (14, 14), (7, 5), (3, 1)] {
            let x = Tensor::arange(height * width, tch::kind::FLOAT_CPU).square().view([1, 1, height, width]);
            let found = cells(height).matmul(&x).matmul(&cells(width).transpose(0, 1));
            let expected = x.adaptive_avg_pool2d([GRID, GRID]);
            let error = (found - &expected).abs().max().double_value(&[]);
            assert!(error <= 1e-5 * expected.max().double_value(&[]).max(1.0), "{height}x{width}: {error}");
        }
    }
}
