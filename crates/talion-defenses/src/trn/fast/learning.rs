//! The gradients of a pass's weights: what went into a convolution, against the gradient of what came out of it.

use std::cell::RefCell;

use tch::{Device, Kind, Tensor};

use super::{Bench, FastEncoder, FastNetwork, FastResidual, Features, Keeps, Layer, tape::TrnTape};

/// The gradients of the weights of all layers, filled in as the way back passes them.
pub(super) struct Ledger<'a> {
    /// In the order of [`FastNetwork::layers`].
    layers: Vec<&'a Layer>,
    /// Of weight and bias.
    found: RefCell<Vec<Option<[Tensor; 2]>>>,
}

impl<'a> Ledger<'a> {
    fn new(layers: Vec<&'a Layer>) -> Self {
        let found = RefCell::new(layers.iter().map(|_| None).collect());
        Self { layers, found }
    }

    /// Notes the gradients of a layer's weights.
    pub(super) fn learn(&self, bench: &Bench, layer: &Layer, input: &Features, gradient: &Features) {
        let Some(place) = self.layers.iter().position(|known| std::ptr::eq(*known, layer)) else { return };
        let size = shape_of(layer);
        let mut weights = vec![0.0_f32; size.iter().product::<i64>() as usize];
        let mut bias = vec![0.0_f32; size[0] as usize];
        let shape = [bench.rows, input.sides[0], input.sides[1]];
        layer.weights_gradient(&bench.team, &input.values, &gradient.values, shape, &mut weights, &mut bias);
        let found = [Tensor::from_slice(&weights).view(size), Tensor::from_slice(&bias)];
        self.found.borrow_mut()[place] = Some(found);
    }

    /// Of weight and bias of every layer in turn; zero where the way back did not lead past a layer.
    fn gradients(self) -> Vec<Tensor> {
        let none = |layer: &Layer| {
            let size = shape_of(layer);
            [&size[..], &size[..1]].map(|size| Tensor::zeros(size, (Kind::Float, Device::Cpu)))
        };
        let found = self.layers.into_iter().zip(self.found.into_inner());
        found.flat_map(|(layer, found)| found.unwrap_or_else(|| none(layer))).collect()
    }
}

/// The shape of a layer's weight, `[outputs, inputs, rows, columns]`.
fn shape_of(layer: &Layer) -> [i64; 4] {
    let ([inputs, outputs], [rows, columns]) = (layer.channels(), layer.geometry().size);
    [outputs, inputs, rows, columns].map(|side| side as i64)
}

impl Bench {
    /// What a layer's weights will need; given back where nobody learns.
    pub(super) fn kept(&self, features: Features) -> Option<Features> {
        if self.keeps == Keeps::Inputs {
            return Some(features);
        }
        self.done([features]);
        None
    }

    /// A copy for a layer's weights; none where nobody learns.
    pub(super) fn copied(&self, features: &Features) -> Option<Features> {
        (self.keeps == Keeps::Inputs).then(|| {
            let mut copy = self.room(features.sides, features.channels);
            copy.values.copy_from_slice(&features.values);
            copy
        })
    }
}

/// What [`FastNetwork::learn`] finds.
pub(in crate::trn) struct Learnt {
    /// The gradients of `image` and `gradient`, where they were wanted.
    pub inputs: [Option<Tensor>; 2],
    /// Those of weight and bias of every layer in turn, in the order of [`FastNetwork::layers`].
    pub weights: Vec<Tensor>,
}

impl FastNetwork {
    /// As [`FastNetwork::forward_taped`], for [`FastNetwork::learn`].
    pub(in crate::trn) fn forward_learning(
        &self,
        image: &Tensor,
        gradient: Option<&Tensor>,
    ) -> (Option<Tensor>, Vec<Tensor>, TrnTape) {
        self.pass(image, gradient, Keeps::Inputs)
    }

    /// As [`FastNetwork::backward`], with the gradients of all weights, and those of the inputs that are `wanted`.
    pub(in crate::trn) fn learn(
        &self,
        tape: TrnTape,
        residual: &Tensor,
        means: &[Option<Tensor>],
        wanted: [bool; 2],
    ) -> Learnt {
        let ledger = Ledger::new(self.layers());
        let (image, gradient) = self.back_to(tape, residual, means, Some(&ledger), wanted);
        Learnt { inputs: [image, gradient], weights: ledger.gradients() }
    }

    /// All layers: the image's encoder, the gradient's and the Fusion Blocks, the decoder.
    fn layers(&self) -> Vec<&Layer> {
        let mut layers = encoder(&self.image);
        if let Some((other, blocks)) = &self.gradient {
            layers.extend(encoder(other));
            for block in blocks {
                layers.extend(block.gates.iter().flat_map(|(local, global)| [local, global]));
                layers.push(&block.merge);
            }
        }
        let decoder = &self.decoder;
        for (rise, block) in decoder.rises.iter().zip(&decoder.blocks) {
            layers.push(rise);
            layers.extend(residual_block(block));
        }
        layers.push(&decoder.output);
        layers
    }
}

fn encoder(encoder: &FastEncoder) -> Vec<&Layer> {
    let scales = encoder.entries.iter().zip(&encoder.blocks);
    scales.flat_map(|(entry, block)| std::iter::once(entry).chain(residual_block(block))).collect()
}

fn residual_block(block: &FastResidual) -> [&Layer; 2] {
    [&block.first, &block.second]
}
