//! Fusion by dynamic filters: the streams say, pixel by pixel, how the gradient stream is filtered.

use talion_onnx::{Builder, Var};
use tch::{Tensor, nn};

use crate::trn::layers::Conv;

/// Groups of channels of the gradient stream, each with kernels of its own. The width has to be a multiple of this.
pub(super) const GROUPS: i64 = 4;
/// Height and width of a kernel.
const SIDE: i64 = 3;
/// Pixels that a kernel weights.
const TAPS: i64 = SIDE * SIDE;

/// Dynamic local filtering (Jia et al. 2016, "Dynamic filter networks", section 3.2): a 1x1 convolution over both streams
/// makes for every pixel a 3x3 kernel for each of four groups of channels of the gradient stream, a softmax over its nine
/// taps. The filtered gradient stream is then merged with the image stream by a 3x3 convolution, added to the image stream,
/// and a ReLU.
///
/// It can move what the gradient stream says by a pixel, as a deformable convolution does by offsets. The border is
/// repeated, so that the weights sum to 1 there, too.
pub(super) struct DynamicFilter {
    kernels: Conv,
    merge: Conv,
}

impl DynamicFilter {
    pub(super) fn new(path: &nn::Path<'_>, width: i64) -> Self {
        Self {
            kernels: Conv::new(&(path / "kernels"), 2 * width, GROUPS * TAPS, 1, 1),
            merge: Conv::new(&(path / "merge"), 2 * width, width, 3, 1),
        }
    }

    /// As [`super::FusionBlock::forward`].
    pub(super) fn forward(&self, image: &Tensor, gradient: &Tensor) -> Tensor {
        let kernels = self.kernels.forward(&Tensor::cat(&[image, gradient], 1));
        let filtered = filter(gradient, &kernels);
        (self.merge.forward(&Tensor::cat(&[image, &filtered], 1)) + image).relu_()
    }

    /// As [`DynamicFilter::forward`], for streams of this height and width.
    pub(super) fn emit(&self, b: &mut Builder, image: &Var, gradient: &Var, sides: [i64; 2]) -> Var {
        let both = b.concat(&[image, gradient], 1);
        let kernels = self.kernels.emit(b, &both);
        let filtered = emit_filter(b, gradient, &kernels, self.merge.outputs(), sides);
        let both = b.concat(&[image, &filtered], 1);
        let merged = self.merge.emit(b, &both);
        let sum = b.add(&merged, image);
        b.relu(&sum)
    }
}

/// Rows and columns that a tap lies below and beside the kernel's first.
fn place(tap: i64) -> (i64, i64) {
    (tap / SIDE, tap % SIDE)
}

/// Filters each pixel by its own kernels.
///
/// # Shapes
/// `gradient` `[N, W, h, w]`; `kernels` `[N, 4 * 9, h, w]`, before the softmax, the taps of a group next to each other, row
/// by row; the result is `[N, W, h, w]`.
fn filter(gradient: &Tensor, kernels: &Tensor) -> Tensor {
    let size = gradient.size();
    let [rows, width, height, breadth] = [size[0], size[1], size[2], size[3]];
    // taps innermost: along any other side the softmax rounds by where a thread's share of the batch ends
    let kernels = kernels.permute([0, 2, 3, 1]).reshape([rows, height, breadth, GROUPS, TAPS]);
    let weights = kernels.softmax(-1, None).permute([4, 0, 3, 1, 2]).unsqueeze(3);
    let padded = gradient.replication_pad2d([1, 1, 1, 1]);
    let padded = padded.reshape([rows, GROUPS, width / GROUPS, height + SIDE - 1, breadth + SIDE - 1]);
    let weighted = |tap| {
        let (down, right) = place(tap);
        padded.narrow(3, down, height).narrow(4, right, breadth) * weights.select(0, tap)
    };
    (0..TAPS).map(weighted).sum::<Tensor>().reshape(size)
}

/// As [`filter`], for a gradient stream of this width and these sides.
fn emit_filter(b: &mut Builder, gradient: &Var, kernels: &Var, width: i64, sides: [i64; 2]) -> Var {
    let [height, breadth] = sides;
    let kernels = b.reshape(kernels, &[0, GROUPS, TAPS, height, breadth]);
    let weights = b.softmax(&kernels, 2);
    let padded = b.pad_edge(gradient, 1, 1, 1, 1);
    let shape = [0, GROUPS, width / GROUPS, height + SIDE - 1, breadth + SIDE - 1];
    let padded = b.reshape(&padded, &shape);
    let weighted: Vec<Var> = (0..TAPS)
        .map(|tap| {
            let (down, right) = place(tap);
            let lines = b.slice(&padded, 3, down, height);
            let moved = b.slice(&lines, 4, right, breadth);
            let weight = b.slice(&weights, 2, tap, 1);
            b.mul(&moved, &weight)
        })
        .collect();
    let sum = b.node("Sum", &weighted.iter().collect::<Vec<_>>(), Vec::new());
    b.reshape(&sum, &[0, width, height, breadth])
}

#[cfg(test)]
mod tests {
    use super::*;
    use talion_core::gaussian_noise;
    use tch::{Device, Kind};

    fn furthest(found: &Tensor, expected: &Tensor) -> f64 {
        assert_eq!(found.size(), expected.size());
        (found - expected).abs().max().double_value(&[])
    }

    /// Kernels of which each group's has one tap alone.
    fn only(taps: [i64; 4], height: i64, width: i64) -> Tensor {
        let kernels = Tensor::zeros([1, GROUPS * TAPS, height, width], (Kind::Float, Device::Cpu));
        for (group, tap) in (0..GROUPS).zip(taps) {
            let _ = kernels.narrow(1, group * TAPS + tap, 1).fill_(100.0);
        }
        kernels
    }

    #[test]
    fn each_group_moves_by_its_own_tap() {
        let columns = Tensor::arange(5, (Kind::Float, Device::Cpu)).view([1, 1, 1, 5]);
        let gradient = columns.expand([1, 8, 3, 5], false);
        // the centre, its left, its right, and what is below
        let found = filter(&gradient, &only([4, 3, 5, 7], 3, 5));
        let moved = |by: f64| (&columns + by).clamp(0.0, 4.0).expand([1, 2, 3, 5], false);
        let expected = Tensor::cat(&[moved(0.0), moved(-1.0), moved(1.0), moved(0.0)], 1);
        assert!(furthest(&found, &expected) < 1e-5);
        let gradient = gradient.permute([0, 1, 3, 2]).contiguous();
        let found = filter(&gradient, &only([1, 3, 5, 7], 5, 3));
        let lines = |by| moved(by).permute([0, 1, 3, 2]);
        let expected = Tensor::cat(&[lines(-1.0), lines(0.0), lines(0.0), lines(1.0)], 1);
        assert!(furthest(&found, &expected) < 1e-5);
    }

    #[test]
    fn equal_weights_are_a_mean() {
        let gradient = gaussian_noise(&[4, 5, 6], &[0, 1], 1, "gradient", 0);
        let kernels = Tensor::full([2, GROUPS * TAPS, 5, 6], 0.7, (Kind::Float, Device::Cpu));
        let padded = gradient.replication_pad2d([1, 1, 1, 1]);
        let expected = padded.avg_pool2d([3, 3], [1, 1], [0, 0], false, true, None);
        assert!(furthest(&filter(&gradient, &kernels), &expected) < 1e-5);
    }

    #[test]
    fn rows_do_not_know_of_each_other() {
        let gradient = gaussian_noise(&[8, 5, 7], &[0, 1, 2], 1, "gradient", 0);
        let kernels = gaussian_noise(&[GROUPS * TAPS, 5, 7], &[0, 1, 2], 1, "kernels", 0);
        let together = filter(&gradient, &kernels);
        for row in 0..3 {
            let one = |x: &Tensor| x.narrow(0, row, 1);
            assert_eq!(one(&together), filter(&one(&gradient), &one(&kernels)));
        }
    }
}
