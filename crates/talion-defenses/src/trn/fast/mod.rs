//! The restoration network once its weights are final: the same layers on the kernels of the fast engine.

mod backward;
mod learning;
mod tape;

use std::sync::{Arc, Mutex, PoisonError};

use talion_kernels::{
    After, Buffer, Convolution, Geometry, Rectify, Sum, Team, enlarged, from_planes, gated, mask_bytes,
    means, padded, side_by_side, to_planes,
};
use tch::{Device, Kind, Tensor};

pub(super) use tape::TrnTape;

use super::layers::Conv;
use tape::{DecoderTape, EncoderTape, FusionTape, GateTape, Mask, ResidualTape};

/// Features of a batch, `[N, h, w, C]`.
struct Features {
    values: Buffer<f32>,
    sides: [usize; 2],
    channels: usize,
}

/// A convolution whose weights are final.
pub(super) type Layer = Convolution<f32>;

/// What its kernels are made of; nothing where they are no f32 on the CPU.
pub(super) fn layer(conv: &Conv) -> Option<Layer> {
    let (weight, bias, stride) = conv.parts();
    if weight.kind() != Kind::Float || weight.device() != Device::Cpu {
        return None;
    }
    let [outputs, inputs, rows, columns] = weight.size()[..] else { return None };
    let [outputs, inputs, rows, columns] = [outputs, inputs, rows, columns].map(|side| side as usize);
    let geometry = Geometry::new([rows, columns], [stride; 2], [rows / 2, columns / 2]);
    let elements = |tensor: &Tensor| Vec::<f32>::try_from(tensor.detach().contiguous().flatten(0, -1)).ok();
    Some(Layer::new(geometry, [inputs, outputs], elements(weight)?, &elements(bias)?))
}

/// What a pass keeps.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Keeps {
    Nothing,
    /// What the way back to its inputs needs.
    Masks,
    /// What the gradients of its weights need, too.
    Inputs,
}

/// Where a batch is worked on.
struct Bench {
    team: Arc<Team<f32>>,
    rows: usize,
    keeps: Keeps,
}

/// Teams are kept: their memory is what is worth keeping.
static TEAM: Mutex<Option<Arc<Team<f32>>>> = Mutex::new(None);

impl Bench {
    /// For a batch of so many rows, with as many threads as libtorch uses.
    fn new(rows: usize, keeps: Keeps) -> Self {
        let threads = usize::try_from(tch::get_num_threads()).unwrap_or(1).max(1);
        let mut team = TEAM.lock().unwrap_or_else(PoisonError::into_inner);
        let team = match &*team {
            Some(known) if known.threads() == threads => known.clone(),
            _ => team.insert(Arc::new(Team::new(threads))).clone(),
        };
        Self { team, rows, keeps }
    }

    /// `[N, C, h, w]` as features.
    fn features(&self, tensor: &Tensor) -> Features {
        let size = tensor.size();
        let [channels, height, width] = [size[1], size[2], size[3]].map(|side| side as usize);
        let tensor = tensor.detach().contiguous();
        let mut planes = vec![0.0_f32; tensor.numel()];
        tensor.copy_data(&mut planes, tensor.numel());
        let mut features = self.room([height, width], channels);
        let (zeros, ones) = (vec![0.0; channels], vec![1.0; channels]);
        let shape = [self.rows, channels, height * width];
        from_planes(&planes, shape, &zeros, &ones, &mut features.values);
        features
    }

    /// Features as `[N, C, h, w]`.
    fn tensor(&self, features: &Features, channels: usize) -> Tensor {
        let [height, width] = features.sides;
        let mut planes = vec![0.0_f32; self.rows * channels * height * width];
        let shape = [self.rows, channels, height * width];
        to_planes(&features.values, shape, &vec![1.0; channels], &mut planes);
        Tensor::from_slice(&planes).view([self.rows, channels, height, width].map(|side| side as i64))
    }

    /// The mean over height and width, `[N, C, 1, 1]`.
    fn mean(&self, features: &Features) -> Tensor {
        let summary = self.summary(features);
        let tensor = self.tensor(&summary, summary.channels);
        self.done([summary]);
        tensor
    }

    fn summary(&self, features: &Features) -> Features {
        let mut summary = self.room([1, 1], features.channels);
        let pixels = features.sides[0] * features.sides[1];
        let shape = [self.rows, pixels, padded(features.channels)];
        means(&self.team, &features.values, shape, &mut summary.values);
        summary
    }

    fn room(&self, sides: [usize; 2], channels: usize) -> Features {
        let length = self.rows * sides[0] * sides[1] * padded(channels);
        Features { values: self.team.take(length), sides, channels }
    }

    /// Nobody needs these any more.
    fn done(&self, features: impl IntoIterator<Item = Features>) {
        features.into_iter().for_each(|features| self.team.give(features.values));
    }

    /// A convolution.
    fn convolve(&self, layer: &Layer, input: &Features) -> Features {
        let mut output = self.room_for(layer, input);
        self.run(layer, input, &mut output, After::nothing());
        output
    }

    /// A convolution, plus `other`, then a ReLU; and what this let pass, if that is recorded.
    fn rectified(&self, layer: &Layer, input: &Features, other: Option<&Features>) -> (Features, Mask) {
        let mut output = self.room_for(layer, input);
        let mut mask = Mask::new();
        let rectify = if self.keeps >= Keeps::Masks {
            mask.resize(mask_bytes(output.values.len()), 0);
            Rectify::Record(&mut mask)
        } else {
            Rectify::Yes
        };
        let sum = other.map_or(Sum::Nothing, |other| Sum::Other(&other.values));
        self.run(layer, input, &mut output, After { sum, rectify });
        (output, mask)
    }

    fn room_for(&self, layer: &Layer, input: &Features) -> Features {
        let sides = layer.geometry().output(input.sides).unwrap_or([0, 0]);
        self.room(sides, layer.channels()[1])
    }

    fn run(&self, layer: &Layer, input: &Features, output: &mut Features, after: After<'_, f32>) {
        let shape = [self.rows, input.sides[0], input.sides[1]];
        layer.forward(&self.team, &input.values, shape, &mut output.values, after);
    }

    /// Two streams of the same shape, their channels one after the other.
    fn side_by_side(&self, first: &Features, second: &Features) -> Features {
        let mut both = self.room(first.sides, first.channels + second.channels);
        let widths = [first.channels, second.channels].map(padded);
        side_by_side(&self.team, [&first.values, &second.values], widths, &mut both.values);
        both
    }

    /// Both streams as far as their gates let them through: `local` for every number, `global` for the second stream; and what
    /// met there, if that is recorded.
    fn gated(&self, both: Features, local: &Layer, global: &Layer) -> (Features, Option<GateTape>) {
        let gates = self.convolve(local, &both);
        let summary = self.summary(&both);
        let open = self.convolve(global, &summary);
        self.done([summary]);
        let mut output = self.room(both.sides, both.channels);
        let shape = [self.rows, both.sides[0] * both.sides[1], both.channels];
        gated(&self.team, &both.values, &gates.values, &open.values, shape, &mut output.values);
        if self.keeps >= Keeps::Masks {
            return (output, Some(GateTape { both, gates, open }));
        }
        self.done([both, gates, open]);
        (output, None)
    }

    /// Features at half the size, enlarged, plus `other`.
    fn enlarged(&self, small: &Features, other: &Features) -> Features {
        let mut output = self.room(other.sides, other.channels);
        let shape = [self.rows, small.sides[0], small.sides[1], padded(small.channels)];
        enlarged(&self.team, &small.values, &other.values, shape, &mut output.values);
        output
    }
}

/// Two convolutions around a skip.
pub(super) struct FastResidual {
    pub first: Layer,
    pub second: Layer,
}

impl FastResidual {
    fn forward(&self, bench: &Bench, x: Features) -> (Features, ResidualTape) {
        let (hidden, inside) = bench.rectified(&self.first, &x, None);
        let (output, outside) = bench.rectified(&self.second, &hidden, Some(&x));
        let inputs = match bench.keeps {
            Keeps::Inputs => Some([x, hidden]),
            Keeps::Nothing | Keeps::Masks => {
                bench.done([hidden, x]);
                None
            }
        };
        (output, ResidualTape { hidden: inside, output: outside, inputs })
    }
}

/// One stream's features at every scale.
pub(super) struct FastEncoder {
    pub entries: Vec<Layer>,
    pub blocks: Vec<FastResidual>,
}

impl FastEncoder {
    fn forward(&self, bench: &Bench, input: Features) -> (Vec<Features>, EncoderTape) {
        let mut features: Vec<Features> = Vec::with_capacity(self.blocks.len());
        let mut tape = EncoderTape::default();
        for (entry, block) in self.entries.iter().zip(&self.blocks) {
            let entered = features.last();
            let (x, mask) = bench.rectified(entry, entered.unwrap_or(&input), None);
            // whoever reads the features next gives them away
            tape.inputs.extend(entered.and_then(|entered| bench.copied(entered)));
            let (x, kept) = block.forward(bench, x);
            tape.scales.push((mask, kept));
            features.push(x);
        }
        match bench.keeps {
            Keeps::Inputs => tape.inputs.insert(0, input),
            Keeps::Nothing | Keeps::Masks => bench.done([input]),
        }
        (features, tape)
    }
}

/// Explores and fuses the streams.
pub(super) struct FastFusion {
    pub gates: Option<(Layer, Layer)>,
    pub merge: Layer,
}

impl FastFusion {
    fn forward(&self, bench: &Bench, image: Features, gradient: Features) -> (Features, FusionTape) {
        let both = bench.side_by_side(&image, &gradient);
        bench.done([gradient]);
        let (explored, gates) = match &self.gates {
            Some((local, global)) => bench.gated(both, local, global),
            None => (both, None),
        };
        let (output, mask) = bench.rectified(&self.merge, &explored, Some(&image));
        bench.done([image]);
        (output, FusionTape { gates, output: mask, explored: bench.kept(explored) })
    }
}

/// From the coarsest scale back to a residual.
pub(super) struct FastDecoder {
    pub rises: Vec<Layer>,
    pub blocks: Vec<FastResidual>,
    pub output: Layer,
}

impl FastDecoder {
    fn forward(&self, bench: &Bench, mut features: Vec<Features>) -> (Option<Tensor>, DecoderTape) {
        let mut tape = DecoderTape::default();
        let Some(mut x) = features.pop() else { return (None, tape) };
        for (skip, (rise, block)) in features.into_iter().zip(self.rises.iter().zip(&self.blocks)).rev() {
            let risen = bench.convolve(rise, &x);
            let sum = bench.enlarged(&risen, &skip);
            tape.inputs.extend(bench.kept(x));
            bench.done([risen, skip]);
            let (output, kept) = block.forward(bench, sum);
            tape.blocks.push(kept);
            x = output;
        }
        let residual = bench.convolve(&self.output, &x);
        let tensor = bench.tensor(&residual, self.output.channels()[1]);
        tape.inputs.extend(bench.kept(x));
        bench.done([residual]);
        (Some(tensor), tape)
    }
}

/// A whole pass.
pub(super) struct FastNetwork {
    pub image: FastEncoder,
    pub gradient: Option<(FastEncoder, Vec<FastFusion>)>,
    pub decoder: FastDecoder,
}

impl FastNetwork {
    /// The residual, and what a judge wants to know: the mean of the features at every scale, `[N, C, 1, 1]` each.
    ///
    /// # Shapes
    /// `image` and `gradient` `[N, .., H, W]`, with sides that every scale halves exactly.
    pub(super) fn forward(&self, image: &Tensor, gradient: Option<&Tensor>) -> (Option<Tensor>, Vec<Tensor>) {
        let (residual, means, _) = self.pass(image, gradient, Keeps::Nothing);
        (residual, means)
    }

    /// The same to the last bit, and what [`FastNetwork::backward`] needs.
    pub(super) fn forward_taped(
        &self,
        image: &Tensor,
        gradient: Option<&Tensor>,
    ) -> (Option<Tensor>, Vec<Tensor>, TrnTape) {
        self.pass(image, gradient, Keeps::Masks)
    }

    /// A pass, and what it keeps.
    fn pass(
        &self,
        image: &Tensor,
        gradient: Option<&Tensor>,
        keeps: Keeps,
    ) -> (Option<Tensor>, Vec<Tensor>, TrnTape) {
        let bench = Bench::new(image.size()[0] as usize, keeps);
        let (mut features, image) = self.image.forward(&bench, bench.features(image));
        let mut explored = None;
        if let (Some((encoder, blocks)), Some(gradient)) = (&self.gradient, gradient) {
            let (others, kept) = encoder.forward(&bench, bench.features(gradient));
            let pairs = features.into_iter().zip(others).zip(blocks);
            let (fused, fusions): (Vec<_>, Vec<_>) =
                pairs.map(|((image, gradient), block)| block.forward(&bench, image, gradient)).unzip();
            features = fused;
            explored = Some((kept, fusions));
        }
        let means = features.iter().map(|features| bench.mean(features)).collect();
        let (residual, decoder) = self.decoder.forward(&bench, features);
        (residual, means, TrnTape { rows: bench.rows, image, gradient: explored, decoder })
    }
}
