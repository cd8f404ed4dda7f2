//! One pass of the restoration network: an encoder a stream, Fusion Blocks, a decoder with skips.

use std::cell::OnceCell;

use talion_kernels::LANES;
use talion_onnx::{Builder, Var};
use tch::{Device, Kind, Tensor, nn};

use super::{
    Change, Prepared, TrnSpec,
    change::EmittedChange,
    fast::FastNetwork,
    fusion::FusionBlock,
    journey::Journey,
    layers::{Conv, Decoder, Encoder, Judge},
    patterns::Patterns,
};

/// What goes into a network.
#[derive(Clone, Copy)]
pub(super) struct Streams {
    /// Channels of the image.
    pub channels: i64,
    /// Whether a first pass's residual comes with the image.
    pub first_pass: bool,
    /// Classes that the classifier knows.
    pub classes: i64,
    /// Maps an image and numbers of evidence of the gradient stream; none in a one-stream network.
    pub gradient: Option<(i64, i64)>,
}

impl Streams {
    /// The image alone.
    pub(super) fn one(channels: i64, classes: i64) -> Self {
        Self { channels, classes, first_pass: false, gradient: None }
    }

    fn image_inputs(self) -> i64 {
        self.channels * if self.first_pass { 2 } else { 1 }
    }

    fn gradient_inputs(self) -> Option<i64> {
        let first = if self.first_pass { self.channels } else { 0 };
        self.gradient.map(|(maps, evidence)| maps * self.channels + evidence + first)
    }
}

pub(super) struct Network {
    image: Encoder,
    /// As many scales as are needed, and a block at each of the network's that is fused.
    gradient: Option<(Encoder, Vec<Option<FusionBlock>>)>,
    decoder: Decoder,
    judge: Option<Judge>,
    patterns: Option<Patterns>,
    /// What a new judge says: that the gate is open, or, to correct a first pass, nothing.
    open: f64,
    /// Sides have to be a multiple of this for every scale to be half the one before, and for the Fusion Blocks.
    multiple: i64,
    /// The same on the fast engine's kernels, once the weights are final; nothing where these cannot run it.
    fast: OnceCell<Option<FastNetwork>>,
    frozen: bool,
    /// Whether every scale's channels fill the kernels' vectors.
    filled: bool,
}

impl Network {
    pub(super) fn new(path: &nn::Path<'_>, spec: &TrnSpec, streams: Streams) -> Self {
        let widths: Vec<i64> = (1..=spec.scales as i64).map(|factor| factor * spec.width).collect();
        let gradient = streams.gradient_inputs().map(|inputs| {
            let fused = spec.fused.of(spec.scales);
            // deeper features of the gradient would go nowhere
            let needed = &widths[..fused.end];
            let blocks = widths.iter().enumerate().map(|(scale, &width)| {
                let path = path / format!("fusion{scale}");
                fused.contains(&scale).then(|| FusionBlock::new(&path, width, scale, spec.fusion))
            });
            let blocks: Vec<_> = blocks.collect();
            (Encoder::new(&(path / "gradient"), inputs, needed), blocks)
        });
        let fusible = if gradient.is_some() { spec.fusion.multiple() } else { 1 };
        let evidence = streams.gradient.map_or(0, |(_, evidence)| evidence);
        Self {
            image: Encoder::new(&(path / "image"), streams.image_inputs(), &widths),
            gradient,
            decoder: Decoder::new(&(path / "decoder"), &widths, spec.channels),
            open: if streams.first_pass { 0.0 } else { OPEN },
            judge: spec.gate.then(|| Judge::new(&(path / "judge"), &widths, evidence)),
            patterns: spec.patterns.map(|[height, side]| {
                let image = [spec.channels, height, side];
                Patterns::new(&(path / "patterns"), &widths, streams.classes, image)
            }),
            // both are powers of two
            multiple: fusible.max(1_i64 << (spec.scales - 1)),
            fast: OnceCell::new(),
            frozen: false,
            filled: (spec.width as usize).is_multiple_of(LANES),
        }
    }

    /// Makes the residual zero, so that a new network returns its input.
    pub(super) fn start_as_identity(&self) {
        self.decoder.start_as_identity();
        self.judge.iter().for_each(|judge| judge.start_at(self.open));
        self.patterns.iter().for_each(Patterns::start_as_identity);
    }

    /// What to do to the images: a change of its own, or a correction of the first pass's.
    ///
    /// # Shapes
    /// `images` `[N, C, H, W]` with any H and W; the residual too.
    pub(super) fn change<'a>(
        &'a self,
        images: &Tensor,
        prepared: &Prepared,
        journey: Option<&Journey<'a>>,
    ) -> Change {
        let size = images.size();
        let (height, width) = (size[2], size[3]);
        let centred = (images - 0.5) * 4.0;
        let first = prepared.first.as_ref().map(|change| &change.residual * FIRST_SCALE);
        let image = match &first {
            Some(first) => Tensor::cat(&[&centred, first], 1),
            None => centred,
        };
        let image = self.pad(&image);
        let gradient = match (&prepared.maps, &prepared.evidence) {
            (Some(maps), Some(evidence)) => {
                let planes = evidence.unsqueeze(2).unsqueeze(3).expand([-1, -1, height, width], false);
                let input = match &first {
                    Some(first) => Tensor::cat(&[maps, first, &planes], 1),
                    None => Tensor::cat(&[maps, &planes], 1),
                };
                Some(self.pad(&input))
            }
            _ => None,
        };
        let (residual, means) = self.pass(image, gradient, journey);
        let classes = self.patterns.as_ref().map(|patterns| patterns.classes(&means));
        let gate = self.judge.as_ref().map(|judge| judge.forward(images, means, prepared.evidence.as_ref()));
        let residual = match residual {
            Some(residual) => residual.narrow(2, 0, height).narrow(3, 0, width).contiguous(),
            None => images.zeros_like(),
        };
        let residual = match (&self.patterns, &classes) {
            (Some(patterns), Some(classes)) => residual + patterns.mixed(classes, [height, width]),
            _ => residual,
        };
        Change { residual, gate, classes }
    }

    /// The residual, and the mean of the features at every scale, in the fastest way that there is.
    fn pass<'a>(
        &'a self,
        image: Tensor,
        gradient: Option<Tensor>,
        journey: Option<&Journey<'a>>,
    ) -> (Option<Tensor>, Vec<Tensor>) {
        if let Some(journey) = journey.filter(|journey| journey.learns() && !self.frozen) {
            // the weights are others at every step
            return match self.runs(&image, gradient.as_ref(), true).then(|| self.make_fast()).flatten() {
                Some(fast) => self.learning(fast, image, gradient, journey),
                None => self.by_tensors(&image, gradient.as_ref()),
            };
        }
        match (self.fast(&image, gradient.as_ref(), journey.is_some()), journey) {
            (Some(fast), Some(journey)) => self.taped(fast, image, gradient, journey),
            (Some(fast), None) => fast.forward(&image, gradient.as_ref()),
            (None, _) => self.by_tensors(&image, gradient.as_ref()),
        }
    }

    /// As [`FastNetwork::forward_learning`], noted on the journey with the weights among what went in.
    fn learning(
        &self,
        fast: FastNetwork,
        image: Tensor,
        gradient: Option<Tensor>,
        journey: &Journey<'_>,
    ) -> (Option<Tensor>, Vec<Tensor>) {
        let (residual, means, tape) = fast.forward_learning(&image, gradient.as_ref());
        let results = self.read(residual.as_ref(), &means);
        let wanted = [image.requires_grad(), gradient.as_ref().is_some_and(Tensor::requires_grad)];
        let two = gradient.is_some();
        let back = Box::new(move |gradients: &[Tensor]| {
            let Some((residual, means)) = gradients.split_first() else { return Vec::new() };
            let means: Vec<Option<Tensor>> = means.iter().map(|mean| Some(mean.shallow_clone())).collect();
            let learnt = fast.learn(tape, residual, &means, wanted);
            // nobody looks at the gradients of inputs that take none
            let inputs = learnt.inputs.into_iter().take(if two { 2 } else { 1 });
            let inputs = inputs.map(|gradient| gradient.unwrap_or_else(|| residual.zeros_like()));
            inputs.chain(learnt.weights).collect()
        });
        let weights = self.layers().into_iter().flat_map(|layer| {
            let (weight, bias, _) = layer.parts();
            [weight.shallow_clone(), bias.shallow_clone()]
        });
        journey.note(std::iter::once(image).chain(gradient).chain(weights).collect(), &results, back);
        (residual, means)
    }

    /// The layers that have kernels, in the order of [`FastNetwork`]'s.
    fn layers(&self) -> Vec<&Conv> {
        let mut layers = self.image.layers();
        if let Some((encoder, blocks)) = &self.gradient {
            layers.extend(encoder.layers());
            layers.extend(blocks.iter().flatten().flat_map(FusionBlock::layers));
        }
        layers.extend(self.decoder.layers());
        layers
    }

    /// What somebody reads of a pass: the means only a judge and patterns.
    fn read(&self, residual: Option<&Tensor>, means: &[Tensor]) -> Vec<Tensor> {
        let judged = self.judge.is_some() || self.patterns.is_some();
        residual.into_iter().chain(means.iter().filter(|_| judged)).map(Tensor::shallow_clone).collect()
    }

    /// As [`FastNetwork::forward`], noted on the journey.
    fn taped<'a>(
        &self,
        fast: &'a FastNetwork,
        image: Tensor,
        gradient: Option<Tensor>,
        journey: &Journey<'a>,
    ) -> (Option<Tensor>, Vec<Tensor>) {
        let (residual, means, tape) = fast.forward_taped(&image, gradient.as_ref());
        let results = self.read(residual.as_ref(), &means);
        let back = Box::new(move |gradients: &[Tensor]| {
            let Some((residual, means)) = gradients.split_first() else { return Vec::new() };
            let means: Vec<Option<Tensor>> = means.iter().map(|mean| Some(mean.shallow_clone())).collect();
            let (image, gradient) = fast.backward(tape, residual, &means);
            std::iter::once(image).chain(gradient).collect()
        });
        journey.note(std::iter::once(image).chain(gradient).collect(), &results, back);
        (residual, means)
    }

    /// The residual, and the mean of the features at every scale; differentiable.
    fn by_tensors(&self, image: &Tensor, gradient: Option<&Tensor>) -> (Option<Tensor>, Vec<Tensor>) {
        let mut features = self.image.forward(image);
        if let (Some((encoder, blocks)), Some(gradient)) = (&self.gradient, gradient) {
            let explored = encoder.forward(gradient);
            for (image, (gradient, block)) in features.iter_mut().zip(explored.iter().zip(blocks)) {
                if let Some(block) = block {
                    *image = block.forward(image, gradient);
                }
            }
        }
        let means = features.iter().map(|scale| scale.mean_dim([2_i64, 3].as_slice(), true, None)).collect();
        (self.decoder.forward(features), means)
    }

    /// Overwrites the patterns of the classes, `[K, C, H, W]`, where there are any.
    pub(super) fn set_patterns(&self, patterns: &Tensor) {
        self.patterns.iter().for_each(|own| own.set(patterns));
    }

    /// Says whether the weights are final. They may have changed since it was last said.
    pub(super) fn set_frozen(&mut self, frozen: bool) {
        self.frozen = frozen;
        self.fast = OnceCell::new();
    }

    /// The fast way, where the weights are final, and nobody differentiates or the way is `noted`.
    fn fast(&self, image: &Tensor, gradient: Option<&Tensor>, noted: bool) -> Option<&FastNetwork> {
        if !self.frozen || !self.runs(image, gradient, noted) {
            return None;
        }
        self.fast.get_or_init(|| self.make_fast()).as_ref()
    }

    /// Whether the kernels take inputs like these, which may be differentiated only if the way is `noted`.
    fn runs(&self, image: &Tensor, gradient: Option<&Tensor>, noted: bool) -> bool {
        let plain = |tensor: &Tensor| {
            (noted || !tensor.requires_grad())
                && tensor.kind() == Kind::Float
                && tensor.device() == Device::Cpu
        };
        self.filled && plain(image) && gradient.is_none_or(plain) && image.size()[0] > 0
    }

    fn make_fast(&self) -> Option<FastNetwork> {
        let gradient = match &self.gradient {
            Some((encoder, blocks)) => {
                // the kernels only know networks with a block at every scale
                let blocks = blocks.iter().map(|block| block.as_ref()?.fast());
                let blocks = blocks.collect::<Option<_>>()?;
                Some((encoder.fast()?, blocks))
            }
            None => None,
        };
        Some(FastNetwork { image: self.image.fast()?, gradient, decoder: self.decoder.fast()? })
    }

    /// As [`Network::change`], for images of this height and width.
    pub(super) fn emit(
        &self,
        b: &mut Builder,
        images: &Var,
        prepared: &EmittedPrepared,
        size: [i64; 2],
    ) -> EmittedChange {
        let (half, four, scale) = (b.scalar(0.5), b.scalar(4.0), b.scalar(FIRST_SCALE));
        let centred = b.sub(images, &half);
        let centred = b.mul(&centred, &four);
        let first = prepared.first.as_ref().map(|change| b.mul(&change.residual, &scale));
        let image = match &first {
            Some(first) => b.concat(&[&centred, first], 1),
            None => centred,
        };
        let image = self.emit_pad(b, &image, size);
        let padded = size.map(|side| side + self.missing(side));
        let mut features = self.image.emit(b, &image);
        if let (Some((encoder, blocks)), Some(maps)) = (&self.gradient, &prepared.maps) {
            let planes = prepared.evidence.as_ref().map(|evidence| emit_planes(b, evidence, size));
            let input: Vec<&Var> = maps.iter().chain(&first).chain(&planes).collect();
            let input = b.concat(&input, 1);
            let input = self.emit_pad(b, &input, size);
            let explored = encoder.emit(b, &input);
            let streams = features.iter_mut().zip(explored.iter().zip(blocks));
            for (scale, (image, (gradient, block))) in streams.enumerate() {
                if let Some(block) = block {
                    *image = block.emit(b, image, gradient, padded.map(|side| side >> scale));
                }
            }
        }
        let evidence = prepared.evidence.as_ref();
        let gate = self.judge.as_ref().map(|judge| judge.emit(b, images, &features, evidence, size));
        let residual = match self.decoder.emit(b, &features, padded) {
            Some(residual) if padded == size => residual,
            Some(residual) => {
                let rows = b.slice(&residual, 2, 0, size[0]);
                b.slice(&rows, 3, 0, size[1])
            }
            None => b.sub(images, images),
        };
        let residual = match &self.patterns {
            Some(patterns) => {
                let mixed = patterns.emit(b, &features, size);
                b.add(&residual, &mixed)
            }
            None => residual,
        };
        EmittedChange { residual, gate }
    }

    fn emit_pad(&self, b: &mut Builder, x: &Var, size: [i64; 2]) -> Var {
        let [down, right] = size.map(|side| self.missing(side));
        if down == 0 && right == 0 { x.clone() } else { b.pad_edge(x, 0, 0, down, right) }
    }

    /// What a side lacks to the next multiple.
    fn missing(&self, side: i64) -> i64 {
        (self.multiple - side % self.multiple) % self.multiple
    }

    fn pad(&self, x: &Tensor) -> Tensor {
        let size = x.size();
        let (down, right) = (self.missing(size[2]), self.missing(size[3]));
        if down == 0 && right == 0 { x.shallow_clone() } else { x.replication_pad2d([0, right, 0, down]) }
    }
}

/// [`Prepared`] in a graph.
pub(super) struct EmittedPrepared {
    pub(super) first: Option<EmittedChange>,
    /// The maps one by one; there may be none of them in a two-stream network, too.
    pub(super) maps: Option<Vec<Var>>,
    /// None where there are no numbers.
    pub(super) evidence: Option<Var>,
}

impl EmittedPrepared {
    /// As [`Prepared::nothing`].
    pub(super) fn nothing() -> Self {
        Self { first: None, maps: None, evidence: None }
    }
}

/// `[N, E]` as planes of this height and width.
fn emit_planes(b: &mut Builder, evidence: &Var, size: [i64; 2]) -> Var {
    let columns = b.unsqueeze(evidence, &[2, 3]);
    let shape = b.ints(&[1, 1, size[0], size[1]]);
    b.node("Expand", &[&columns, &shape], Vec::new())
}

/// Brings a residual before its bound (0.2 after tanh of 1) to the scale of the other inputs.
const FIRST_SCALE: f64 = 4.0;
/// Logit of a gate that is open to 88 %: a closed one would let nothing through to learn from.
const OPEN: f64 = 2.0;
