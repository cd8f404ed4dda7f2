//! The derivative of a pass in its inputs; the weights are final.
//!
//! Convolutions are linear, so their derivatives need no values, and those of ReLUs only which numbers these let pass; only the
//! gates need values. Where a gradient comes out of a convolution, the ReLU before is part of the same step.

use talion_kernels::{After, Rectify, Sum, enlarged_back, gated_back, join, means_back, padded, part};
use tch::Tensor;

use super::{
    Bench, FastDecoder, FastEncoder, FastFusion, FastNetwork, FastResidual, Features, Keeps, Layer,
    learning::Ledger,
    tape::{DecoderTape, EncoderTape, FusionTape, GateTape, ResidualTape, TrnTape},
};

/// Through the ReLU whose mask this is, if there is one.
fn through(mask: Option<&[u8]>) -> Rectify<'_> {
    mask.map_or(Rectify::No, Rectify::Masked)
}

impl Bench {
    /// The gradient of the input of a convolution that keeps the size, plus `other`, then through the ReLU before.
    fn back(
        &self,
        layer: &Layer,
        gradient: &Features,
        other: Option<&Features>,
        mask: Option<&[u8]>,
    ) -> Features {
        let mut output = self.room(gradient.sides, layer.channels()[0]);
        let sum = other.map_or(Sum::Nothing, |other| Sum::Other(&other.values));
        self.run_back(layer, gradient, &mut output, After { sum, rectify: through(mask) });
        output
    }

    /// Adds the gradient of a convolution's input to `output`, which then goes through the ReLU before.
    fn back_onto(&self, layer: &Layer, gradient: &Features, output: &mut Features, mask: Option<&[u8]>) {
        self.run_back(layer, gradient, output, After { sum: Sum::Own, rectify: through(mask) });
    }

    fn run_back(&self, layer: &Layer, gradient: &Features, output: &mut Features, after: After<'_, f32>) {
        let shape = [self.rows, output.sides[0], output.sides[1]];
        layer.backward(&self.team, &gradient.values, shape, &mut output.values, after);
    }

    /// A gradient through a ReLU.
    fn masked(&self, gradient: Features, mask: &[u8]) -> Features {
        let mut output = self.room(gradient.sides, gradient.channels);
        let after = After { sum: Sum::Nothing, rectify: Rectify::Masked(mask) };
        join(&self.team, &gradient.values, &mut output.values, after);
        self.done([gradient]);
        output
    }

    /// Adds to the gradient of features what comes from that of their mean, `[N, 1, 1, C]`.
    fn mean_back(&self, mean: &Features, gradient: &mut Features) {
        let shape = [self.rows, gradient.sides[0] * gradient.sides[1], padded(gradient.channels)];
        means_back(&self.team, &mean.values, shape, &mut gradient.values);
    }

    /// The gradient of both streams from that of what their gates let through.
    fn gated_back(
        &self,
        kept: GateTape,
        gradient: Features,
        (local, global): (&Layer, &Layer),
        ledger: Option<&Ledger<'_>>,
    ) -> Features {
        let GateTape { both, gates, open } = kept;
        let room = |of: &Features| self.room(of.sides, of.channels);
        let (mut to_both, mut to_gates, mut to_open) = (room(&both), room(&gates), room(&open));
        let shape = [self.rows, both.sides[0] * both.sides[1], both.channels];
        gated_back(
            &self.team,
            [&both.values, &gates.values, &open.values],
            &gradient.values,
            shape,
            [&mut to_both.values, &mut to_gates.values, &mut to_open.values],
        );
        if let Some(ledger) = ledger {
            ledger.learn(self, local, &both, &to_gates);
            let summary = self.summary(&both);
            ledger.learn(self, global, &summary, &to_open);
            self.done([summary]);
        }
        self.done([both, gates, open, gradient]);
        self.back_onto(local, &to_gates, &mut to_both, None);
        let to_summary = self.back(global, &to_open, None, None);
        self.mean_back(&to_summary, &mut to_both);
        self.done([to_gates, to_open, to_summary]);
        to_both
    }

    /// The second stream's part of a gradient; the first one's is added to `first`.
    fn apart(&self, both: Features, first: &mut Features) -> Features {
        let (half, width) = (padded(first.channels), padded(both.channels));
        let mut second = self.room(both.sides, both.channels - first.channels);
        let own = After { sum: Sum::Own, rectify: Rectify::No };
        part(&self.team, &both.values, width, 0..half, &mut first.values, own);
        part(&self.team, &both.values, width, half..width, &mut second.values, After::nothing());
        self.done([both]);
        second
    }

    /// The gradient of features at half the size from that of what they were enlarged to.
    fn enlarged_back(&self, gradient: &Features) -> Features {
        let sides = gradient.sides.map(|side| side / 2);
        let mut output = self.room(sides, gradient.channels);
        let shape = [self.rows, sides[0], sides[1], padded(gradient.channels)];
        enlarged_back(&self.team, &gradient.values, shape, &mut output.values);
        output
    }
}

impl FastResidual {
    /// The gradient of the input from that of the sum, then through the ReLU before.
    fn backward(
        &self,
        bench: &Bench,
        tape: &ResidualTape,
        gradient: &Features,
        mask: Option<&[u8]>,
        ledger: Option<&Ledger<'_>>,
    ) -> Features {
        let hidden = bench.back(&self.second, gradient, None, Some(&tape.hidden));
        if let (Some(ledger), Some([into_first, into_second])) = (ledger, &tape.inputs) {
            ledger.learn(bench, &self.second, into_second, gradient);
            ledger.learn(bench, &self.first, into_first, &hidden);
        }
        let input = bench.back(&self.first, &hidden, Some(gradient), mask);
        bench.done([hidden]);
        input
    }
}

impl FastEncoder {
    /// The gradient of the input from those of all features; none where there are none, or nobody wants it.
    fn backward(
        &self,
        bench: &Bench,
        tape: &EncoderTape,
        gradients: Vec<Features>,
        ledger: Option<&Ledger<'_>>,
        wanted: bool,
    ) -> Option<Tensor> {
        let mut coarser: Option<(Features, &Layer)> = None;
        let scales = self.entries.iter().zip(&self.blocks).zip(&tape.scales).zip(gradients).enumerate();
        for (scale, (((entry, block), (mask, kept)), mut gradient)) in scales.rev() {
            let sum = match coarser.take() {
                None => bench.masked(gradient, &kept.output),
                Some((entered, entry)) => {
                    bench.back_onto(entry, &entered, &mut gradient, Some(&kept.output));
                    bench.done([entered]);
                    gradient
                }
            };
            let entered = block.backward(bench, kept, &sum, Some(mask), ledger);
            bench.done([sum]);
            if let (Some(ledger), Some(input)) = (ledger, tape.inputs.get(scale)) {
                ledger.learn(bench, entry, input, &entered);
            }
            coarser = Some((entered, entry));
        }
        let (entered, entry) = coarser?;
        if !wanted {
            bench.done([entered]);
            return None;
        }
        let input = bench.back(entry, &entered, None, None);
        let tensor = bench.tensor(&input, input.channels);
        bench.done([entered, input]);
        Some(tensor)
    }
}

impl FastFusion {
    /// The gradients of the image's and of the gradient's features.
    fn backward(
        &self,
        bench: &Bench,
        tape: FusionTape,
        gradient: Features,
        ledger: Option<&Ledger<'_>>,
    ) -> (Features, Features) {
        // the image's features are part of the sum, too
        let mut image = bench.masked(gradient, &tape.output);
        if let (Some(ledger), Some(explored)) = (ledger, &tape.explored) {
            ledger.learn(bench, &self.merge, explored, &image);
        }
        bench.done(tape.explored);
        let explored = bench.back(&self.merge, &image, None, None);
        let both = match (&self.gates, tape.gates) {
            (Some((local, global)), Some(kept)) => bench.gated_back(kept, explored, (local, global), ledger),
            _ => explored,
        };
        let gradient = bench.apart(both, &mut image);
        (image, gradient)
    }
}

impl FastDecoder {
    /// The gradients of the features at every scale, from full resolution to the coarsest.
    fn backward(
        &self,
        bench: &Bench,
        tape: &DecoderTape,
        residual: &Tensor,
        ledger: Option<&Ledger<'_>>,
    ) -> Vec<Features> {
        let mut inputs = tape.inputs.iter().rev();
        let mut learn = |reader: &Layer, gradient: &Features| {
            if let (Some(ledger), Some(input)) = (ledger, inputs.next()) {
                ledger.learn(bench, reader, input, gradient);
            }
        };
        let mut gradients = Vec::with_capacity(self.blocks.len() + 1);
        // what the layer that reads a scale's features is given
        let (mut gradient, mut reader) = (bench.features(residual), &self.output);
        for ((rise, block), kept) in self.rises.iter().zip(&self.blocks).zip(tape.blocks.iter().rev()) {
            learn(reader, &gradient);
            let sum = bench.back(reader, &gradient, None, Some(&kept.output));
            let skip = block.backward(bench, kept, &sum, None, ledger);
            let risen = bench.enlarged_back(&skip);
            bench.done([gradient, sum]);
            gradients.push(skip);
            (gradient, reader) = (risen, rise);
        }
        learn(reader, &gradient);
        gradients.push(bench.back(reader, &gradient, None, None));
        bench.done([gradient]);
        gradients
    }
}

impl FastNetwork {
    /// The gradients with respect to `image` and `gradient`, as [`FastNetwork::forward_taped`] was given them, of a loss of
    /// which the gradients with respect to its results are given. A tape serves once.
    ///
    /// # Shapes
    /// `residual` `[N, C, H, W]`; `means` `[N, C, 1, 1]` each, none where the loss does not depend on them, and from some
    /// scale on they may be missing. The gradients have the shapes of the inputs, all of them f32 on the CPU.
    pub(in crate::trn) fn backward(
        &self,
        tape: TrnTape,
        residual: &Tensor,
        means: &[Option<Tensor>],
    ) -> (Tensor, Option<Tensor>) {
        let (first, second) = self.back_to(tape, residual, means, None, [true; 2]);
        // a network without scales would change nothing
        (first.unwrap_or_else(|| residual.zeros_like()), second)
    }

    /// As [`FastNetwork::backward`], for those inputs whose gradients are `wanted`; those of the weights go into the ledger.
    pub(super) fn back_to(
        &self,
        tape: TrnTape,
        residual: &Tensor,
        means: &[Option<Tensor>],
        ledger: Option<&Ledger<'_>>,
        wanted: [bool; 2],
    ) -> (Option<Tensor>, Option<Tensor>) {
        let bench = Bench::new(tape.rows, Keeps::Nothing);
        let mut gradients = self.decoder.backward(&bench, &tape.decoder, residual, ledger);
        bench.done(tape.decoder.features());
        for (gradient, mean) in gradients.iter_mut().zip(means) {
            if let Some(mean) = mean {
                let mean = bench.features(mean);
                bench.mean_back(&mean, gradient);
                bench.done([mean]);
            }
        }
        let mut second = None;
        if let (Some((encoder, blocks)), Some((kept, fusions))) = (&self.gradient, tape.gradient) {
            let scales = gradients.into_iter().zip(fusions).zip(blocks);
            let (images, explored): (Vec<_>, Vec<_>) = scales
                .map(|((gradient, kept), block)| block.backward(&bench, kept, gradient, ledger))
                .unzip();
            gradients = images;
            second = encoder.backward(&bench, &kept, explored, ledger, wanted[1]);
            bench.done(kept.features());
        }
        let first = self.image.backward(&bench, &tape.image, gradients, ledger, wanted[0]);
        bench.done(tape.image.features());
        (first, second)
    }
}
