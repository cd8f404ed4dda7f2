//! Fusion by one convolution over both streams, which may be gated before.

use talion_onnx::{Builder, Var};
use tch::{Tensor, nn};

use crate::trn::{
    fast::{FastFusion, layer},
    layers::Conv,
};

/// A 3x3 convolution over both streams, added to the image stream, then a ReLU.
pub(super) struct Merge {
    gates: Option<Gates>,
    merge: Conv,
}

struct Gates {
    local: Conv,
    global: Conv,
}

impl Merge {
    pub(super) fn new(path: &nn::Path<'_>, width: i64, gated: bool) -> Self {
        let gates = gated.then(|| Gates {
            local: Conv::new(&(path / "local"), 2 * width, 2 * width, 1, 1),
            global: Conv::new(&(path / "global"), 2 * width, width, 1, 1),
        });
        Self { gates, merge: Conv::new(&(path / "merge"), 2 * width, width, 3, 1) }
    }

    /// As [`super::FusionBlock::forward`].
    pub(super) fn forward(&self, image: &Tensor, gradient: &Tensor) -> Tensor {
        let both = Tensor::cat(&[image, gradient], 1);
        let explored = match &self.gates {
            None => both,
            Some(gates) => {
                let local = gates.local.forward(&both).sigmoid();
                let summary = both.mean_dim([2_i64, 3].as_slice(), true, None);
                let open = gates.global.forward(&summary).sigmoid();
                let gated = both * local;
                let streams = gated.chunk(2, 1);
                Tensor::cat(&[&streams[0], &(&streams[1] * open)], 1)
            }
        };
        (self.merge.forward(&explored) + image).relu_()
    }

    /// All convolutions, the gates' first.
    pub(super) fn layers(&self) -> Vec<&Conv> {
        let gates = self.gates.iter().flat_map(|gates| [&gates.local, &gates.global]);
        gates.chain([&self.merge]).collect()
    }

    pub(super) fn fast(&self) -> Option<FastFusion> {
        let gates = match &self.gates {
            Some(gates) => Some((layer(&gates.local)?, layer(&gates.global)?)),
            None => None,
        };
        Some(FastFusion { gates, merge: layer(&self.merge)? })
    }

    /// As [`Merge::forward`].
    pub(super) fn emit(&self, b: &mut Builder, image: &Var, gradient: &Var) -> Var {
        let both = b.concat(&[image, gradient], 1);
        let explored = match &self.gates {
            None => both,
            Some(gates) => gates.emit(b, &both, self.merge.outputs()),
        };
        let merged = self.merge.emit(b, &explored);
        let sum = b.add(&merged, image);
        b.relu(&sum)
    }
}

impl Gates {
    /// What the gates let through of both streams, `width` channels each.
    fn emit(&self, b: &mut Builder, both: &Var, width: i64) -> Var {
        let local = self.local.emit(b, both);
        let local = b.sigmoid(&local);
        let summary = b.global_average(both, true);
        let open = self.global.emit(b, &summary);
        let open = b.sigmoid(&open);
        let gated = b.mul(both, &local);
        let (image, gradient) = (b.slice(&gated, 1, 0, width), b.slice(&gated, 1, width, width));
        let gradient = b.mul(&gradient, &open);
        b.concat(&[&image, &gradient], 1)
    }
}
