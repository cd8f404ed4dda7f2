//! Fusion by attention: every pixel of the image stream looks up the gradient stream.

use talion_onnx::{Builder, Var};
use tch::{Device, Tensor, nn};

use crate::trn::layers::Conv;

/// Side of the blocks that the gradient stream is averaged over at full resolution. Each scale halves it, so that at most
/// 8x8 places are left of 32x32 pixels; where a block is one pixel, it stays one.
///
/// Sides of the image that are multiples of this are cut into whole blocks at every scale.
pub(super) const BLOCK: i64 = 4;

/// Most numbers of a query.
const QUERY: i64 = 16;

/// Scaled dot-product attention of one head (Vaswani et al. 2017, "Attention is all you need", section 3.2.1). Queries come
/// from the image stream at every pixel, keys and values from the gradient stream, averaged over blocks. What is found is
/// brought back to the stream's width and added to the image stream, then a ReLU.
///
/// There is no positional code: a pixel finds places by what is there alone, wherever they are. The weights of all pixels
/// for all places are held at once, which is a sixteenth of the square of the number of pixels at full resolution.
pub(super) struct CrossAttention {
    query: Conv,
    key: Conv,
    value: Conv,
    output: Conv,
    block: i64,
}

impl CrossAttention {
    pub(super) fn new(path: &nn::Path<'_>, width: i64, scale: usize) -> Self {
        let numbers = width.min(QUERY);
        Self {
            query: Conv::new(&(path / "query"), width, numbers, 1, 1),
            key: Conv::new(&(path / "key"), width, numbers, 1, 1),
            value: Conv::new(&(path / "value"), width, numbers, 1, 1),
            output: Conv::new(&(path / "output"), numbers, width, 1, 1),
            block: (BLOCK >> scale).max(1),
        }
    }

    /// As [`super::FusionBlock::forward`].
    pub(super) fn forward(&self, image: &Tensor, gradient: &Tensor) -> Tensor {
        let places = match self.block {
            1 => gradient.shallow_clone(),
            side => gradient.avg_pool2d([side, side], [side, side], [0, 0], false, true, None),
        };
        let query = self.query.forward(image);
        let (key, value) = (self.key.forward(&places), self.value.forward(&places));
        let found = attend(&listed(&query), &listed(&key), &listed(&value));
        let found = found.transpose(1, 2).reshape(query.size());
        (self.output.forward(&found) + image).relu_()
    }

    /// As [`CrossAttention::forward`], for streams of this height and width.
    pub(super) fn emit(&self, b: &mut Builder, image: &Var, gradient: &Var, sides: [i64; 2]) -> Var {
        let places = match self.block {
            1 => gradient.clone(),
            side => b.average_pool(gradient, [side, side], [side, side]),
        };
        let numbers = self.query.outputs();
        let [query, key, value] =
            [(&self.query, image), (&self.key, &places), (&self.value, &places)].map(|(conv, stream)| {
                let x = conv.emit(b, stream);
                b.reshape(&x, &[0, numbers, -1])
            });
        let scale = b.scalar(1.0 / (numbers as f64).sqrt());
        let query = b.mul(&query, &scale);
        // all of it transposed, so that only the keys have to be turned
        let key = b.transpose(&key, &[0, 2, 1]);
        let likeness = b.matmul(&key, &query);
        let weights = b.softmax(&likeness, 1);
        let found = b.matmul(&value, &weights);
        let found = b.reshape(&found, &[0, numbers, sides[0], sides[1]]);
        let back = self.output.emit(b, &found);
        let sum = b.add(&back, image);
        b.relu(&sum)
    }
}

/// `[N, D, h, w]` as a list of places, `[N, h * w, D]`.
fn listed(x: &Tensor) -> Tensor {
    x.flatten(2, -1).transpose(1, 2)
}

/// What each query finds among the values, which it weights by a softmax of its likeness to their keys.
///
/// On a CPU each row goes alone: how libtorch cuts up the products of a batch of matrices, and with it their rounding, may
/// depend on the batch. Accelerators get the batch whole, since small launches are all they would do.
///
/// # Shapes
/// `queries` `[N, P, D]`, `keys` and `values` `[N, M, D]`; the result is `[N, P, D]`.
fn attend(queries: &Tensor, keys: &Tensor, values: &Tensor) -> Tensor {
    let rows = queries.size()[0];
    if rows == 0 || queries.device() != Device::Cpu {
        return look_up(queries, keys, values);
    }
    let alone = |row| look_up(&own_row(queries, row), &own_row(keys, row), &own_row(values, row));
    let found: Vec<Tensor> = (0..rows).map(alone).collect();
    Tensor::cat(&found, 0)
}

/// A row in memory of its own: how a product rounds may depend on where in memory its factors begin.
fn own_row(x: &Tensor, row: i64) -> Tensor {
    x.narrow(0, row, 1).contiguous().copy()
}

/// As [`attend`], all rows at once.
fn look_up(queries: &Tensor, keys: &Tensor, values: &Tensor) -> Tensor {
    let scale = 1.0 / (queries.size()[2] as f64).sqrt();
    (queries * scale).matmul(&keys.transpose(1, 2)).softmax(-1, None).matmul(values)
}

#[cfg(test)]
mod tests {
    use super::*;
    use talion_core::gaussian_noise;
    use talion_models::training::initialise;

    fn furthest(found: &Tensor, expected: &Tensor) -> f64 {
        assert_eq!(found.size(), expected.size());
        (found - expected).abs().max().double_value(&[])
    }

    #[test]
    fn a_query_weights_values_by_the_softmax_of_their_keys() {
        let list = |numbers: &[f32]| Tensor::from_slice(numbers).view([1, -1, 2]);
        let (keys, values) = (list(&[1.0, 0.0, 0.0, 1.0]), list(&[8.0, 4.0, 0.0, -4.0]));
        let root = 2.0_f32.sqrt();
        // alike to both, and e^(ln 3) = 3 times as much to the first
        let queries = list(&[0.0, 0.0, 3.0_f32.ln() * root, 0.0]);
        let found = attend(&queries, &keys, &values);
        assert!(furthest(&found, &list(&[4.0, 0.0, 6.0, 2.0])) < 1e-5, "{found}");
    }

    #[test]
    fn rows_do_not_know_of_each_other() {
        let list = |places, name| gaussian_noise(&[places, 5], &[0, 1, 2], 1, name, 0);
        let (queries, keys, values) = (list(12, "queries"), list(3, "keys"), list(3, "values"));
        let together = attend(&queries, &keys, &values);
        for row in 0..3 {
            let one = |x: &Tensor| x.narrow(0, row, 1);
            assert_eq!(one(&together), attend(&one(&queries), &one(&keys), &one(&values)));
        }
        let none = |x: &Tensor| x.narrow(0, 0, 0);
        assert_eq!(attend(&none(&queries), &none(&keys), &none(&values)).size(), [0, 12, 5]);
    }

    /// Without a positional code the places of the gradient stream may change, as long as each keeps its pixels.
    #[test]
    fn blocks_are_found_wherever_they_are() {
        for (scale, block) in [(0, 4_i64), (1, 2), (2, 1), (3, 1)] {
            let store = nn::VarStore::new(Device::Cpu);
            let attention = CrossAttention::new(&store.root(), 8, scale);
            initialise(&store, 3);
            let stream = |name| gaussian_noise(&[8, 8, 12], &[0, 1], 2, name, 0);
            let (image, gradient) = (stream("image"), stream("gradient"));
            let answer = |gradient: &Tensor| tch::no_grad(|| attention.forward(&image, gradient));
            let found = answer(&gradient);
            let moved = answer(&gradient.roll([block], [3]));
            assert!(furthest(&moved, &found) < 1e-4, "scale {scale}");
            let torn = answer(&gradient.roll([1], [3]));
            assert_eq!(furthest(&torn, &found) > 1e-3, block > 1, "scale {scale}");
        }
    }
}
