//! One pass of the restoration network: an encoder a stream, a Fusion Block at every scale, a decoder with skips.

use tch::{Tensor, nn};

use super::{
    Change, Prepared, TrnSpec,
    fusion::FusionBlock,
    layers::{Decoder, Encoder, Judge},
};

/// What goes into a network.
#[derive(Clone, Copy)]
pub(super) struct Streams {
    /// Channels of the image.
    pub channels: i64,
    /// Whether a first pass's residual comes with the image.
    pub first_pass: bool,
    /// Maps an image and numbers of evidence of the gradient stream; none in a one-stream network.
    pub gradient: Option<(i64, i64)>,
}

impl Streams {
    /// The image alone.
    pub(super) fn one(channels: i64) -> Self {
        Self { channels, first_pass: false, gradient: None }
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
    gradient: Option<(Encoder, Vec<FusionBlock>)>,
    decoder: Decoder,
    judge: Option<Judge>,
    /// What a new judge says: that the gate is open, or, to correct a first pass, nothing.
    open: f64,
    /// Sides have to be a multiple of this for every scale to be half the one before.
    multiple: i64,
}

impl Network {
    pub(super) fn new(path: &nn::Path<'_>, spec: &TrnSpec, streams: Streams) -> Self {
        let widths: Vec<i64> = (1..=spec.scales as i64).map(|factor| factor * spec.width).collect();
        let gradient = streams.gradient_inputs().map(|inputs| {
            let blocks = widths.iter().enumerate().map(|(scale, &width)| {
                FusionBlock::new(&(path / format!("fusion{scale}")), width, spec.fusion)
            });
            let blocks: Vec<_> = blocks.collect();
            (Encoder::new(&(path / "gradient"), inputs, &widths), blocks)
        });
        let evidence = streams.gradient.map_or(0, |(_, evidence)| evidence);
        Self {
            image: Encoder::new(&(path / "image"), streams.image_inputs(), &widths),
            gradient,
            decoder: Decoder::new(&(path / "decoder"), &widths, spec.channels),
            open: if streams.first_pass { 0.0 } else { OPEN },
            judge: spec.gate.then(|| Judge::new(&(path / "judge"), &widths, evidence)),
            multiple: 1 << (spec.scales - 1),
        }
    }

    /// Makes the residual zero, so that a new network returns its input.
    pub(super) fn start_as_identity(&self) {
        self.decoder.start_as_identity();
        self.judge.iter().for_each(|judge| judge.start_at(self.open));
    }

    /// What to do to the images: a change of its own, or a correction of the first pass's.
    ///
    /// # Shapes
    /// `images` `[N, C, H, W]` with any H and W; the residual too.
    pub(super) fn change(&self, images: &Tensor, prepared: &Prepared) -> Change {
        let size = images.size();
        let (height, width) = (size[2], size[3]);
        let centred = (images - 0.5) * 4.0;
        let first = prepared.first.as_ref().map(|change| &change.residual * FIRST_SCALE);
        let image = match &first {
            Some(first) => Tensor::cat(&[&centred, first], 1),
            None => centred,
        };
        let mut features = self.image.forward(&self.pad(&image));
        if let (Some((encoder, blocks)), Some(maps), Some(evidence)) =
            (&self.gradient, &prepared.maps, &prepared.evidence)
        {
            let planes = evidence.unsqueeze(2).unsqueeze(3).expand([-1, -1, height, width], false);
            let input = match &first {
                Some(first) => Tensor::cat(&[maps, first, &planes], 1),
                None => Tensor::cat(&[maps, &planes], 1),
            };
            let explored = encoder.forward(&self.pad(&input));
            features = features
                .iter()
                .zip(explored.iter().zip(blocks))
                .map(|(image, (gradient, block))| block.forward(image, gradient))
                .collect();
        }
        let gate =
            self.judge.as_ref().map(|judge| judge.forward(images, &features, prepared.evidence.as_ref()));
        let residual = match self.decoder.forward(features) {
            Some(residual) => residual.narrow(2, 0, height).narrow(3, 0, width).contiguous(),
            None => images.zeros_like(),
        };
        Change { residual, gate }
    }

    fn pad(&self, x: &Tensor) -> Tensor {
        let size = x.size();
        let missing = |side: i64| (self.multiple - side % self.multiple) % self.multiple;
        let (down, right) = (missing(size[2]), missing(size[3]));
        if down == 0 && right == 0 { x.shallow_clone() } else { x.replication_pad2d([0, right, 0, down]) }
    }
}

/// Brings a residual before its bound (0.2 after tanh of 1) to the scale of the other inputs.
const FIRST_SCALE: f64 = 4.0;
/// Logit of a gate that is open to 88 %: a closed one would let nothing through to learn from.
const OPEN: f64 = 2.0;
