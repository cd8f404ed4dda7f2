//! Layers of the restoration network: no norms, so that a row never depends on its batch.

use talion_models::channels_last;
use talion_onnx::{Builder, Var};
use tch::{Kind, Tensor, nn};

use super::{
    fast::{FastDecoder, FastEncoder, FastResidual, layer},
    texture::{TEXTURES, emit_texture, texture},
};

/// A convolution with bias that keeps the size, or halves it with `stride` 2.
pub(crate) struct Conv {
    weight: Tensor,
    bias: Tensor,
    stride: i64,
    padding: i64,
}

impl Conv {
    pub(crate) fn new(path: &nn::Path<'_>, inputs: i64, outputs: i64, size: i64, stride: i64) -> Self {
        Self {
            weight: path.var("weight", &[outputs, inputs, size, size], nn::Init::Const(0.0)),
            bias: path.var("bias", &[outputs], nn::Init::Const(0.0)),
            stride,
            padding: size / 2,
        }
    }

    pub(crate) fn forward(&self, x: &Tensor) -> Tensor {
        let (stride, padding) = (self.stride, self.padding);
        x.conv2d(&self.weight, Some(&self.bias), [stride, stride], [padding, padding], [1, 1], 1)
    }

    pub(super) fn emit(&self, b: &mut Builder, x: &Var) -> Var {
        let (stride, padding) = ([self.stride, self.stride], [self.padding, self.padding]);
        let (weight, bias) = (self.weight.to_kind(Kind::Float), self.bias.to_kind(Kind::Float));
        b.conv(x, &weight, Some(&bias), stride, padding, 1)
    }

    /// Weight, bias and stride.
    pub(super) fn parts(&self) -> (&Tensor, &Tensor, usize) {
        (&self.weight, &self.bias, self.stride.unsigned_abs() as usize)
    }

    /// Channels that come out.
    pub(super) fn outputs(&self) -> i64 {
        self.bias.numel() as i64
    }

    /// Makes the layer's output zero, or small where zero would stop its inputs from learning.
    pub(crate) fn scale_weights(&self, factor: f64) {
        let _ = self.weight.shallow_clone().g_mul_scalar_(factor);
    }
}

/// Two convolutions around a skip (He et al. 2016).
pub(super) struct Residual {
    first: Conv,
    second: Conv,
}

impl Residual {
    pub(super) fn new(path: &nn::Path<'_>, width: i64) -> Self {
        Self {
            first: Conv::new(&(path / "first"), width, width, 3, 1),
            second: Conv::new(&(path / "second"), width, width, 3, 1),
        }
    }

    pub(super) fn forward(&self, x: &Tensor) -> Tensor {
        (self.second.forward(&self.first.forward(x).relu_()) + x).relu_()
    }

    pub(super) fn emit(&self, b: &mut Builder, x: &Var) -> Var {
        let y = self.first.emit(b, x);
        let y = b.relu(&y);
        let y = self.second.emit(b, &y);
        let sum = b.add(&y, x);
        b.relu(&sum)
    }
}

impl Residual {
    fn layers(&self) -> [&Conv; 2] {
        [&self.first, &self.second]
    }

    fn fast(&self) -> Option<FastResidual> {
        Some(FastResidual { first: layer(&self.first)?, second: layer(&self.second)? })
    }
}

/// One stream's features at every scale.
pub(crate) struct Encoder {
    entries: Vec<Conv>,
    blocks: Vec<Residual>,
}

impl Encoder {
    pub(crate) fn new(path: &nn::Path<'_>, inputs: i64, widths: &[i64]) -> Self {
        let (mut entries, mut blocks) = (Vec::new(), Vec::new());
        let mut channels = inputs;
        for (scale, &width) in widths.iter().enumerate() {
            let path = path / format!("scale{scale}");
            entries.push(Conv::new(&(&path / "entry"), channels, width, 3, if scale == 0 { 1 } else { 2 }));
            blocks.push(Residual::new(&(&path / "block"), width));
            channels = width;
        }
        Self { entries, blocks }
    }

    /// Features from full resolution to the coarsest.
    pub(crate) fn forward(&self, input: &Tensor) -> Vec<Tensor> {
        let mut x = channels_last(input);
        let mut features = Vec::with_capacity(self.blocks.len());
        for (entry, block) in self.entries.iter().zip(&self.blocks) {
            x = block.forward(&entry.forward(&x).relu_());
            features.push(x.shallow_clone());
        }
        features
    }

    /// All convolutions, scale by scale.
    pub(super) fn layers(&self) -> Vec<&Conv> {
        let scales = self.entries.iter().zip(&self.blocks);
        scales.flat_map(|(entry, block)| std::iter::once(entry).chain(block.layers())).collect()
    }

    pub(super) fn fast(&self) -> Option<FastEncoder> {
        let entries = self.entries.iter().map(layer).collect::<Option<_>>()?;
        Some(FastEncoder { entries, blocks: self.blocks.iter().map(Residual::fast).collect::<Option<_>>()? })
    }

    /// As [`Encoder::forward`].
    pub(super) fn emit(&self, b: &mut Builder, input: &Var) -> Vec<Var> {
        let mut x = input.clone();
        let mut features = Vec::with_capacity(self.blocks.len());
        for (entry, block) in self.entries.iter().zip(&self.blocks) {
            x = entry.emit(b, &x);
            x = b.relu(&x);
            x = block.emit(b, &x);
            features.push(x.clone());
        }
        features
    }
}

/// From the coarsest scale back to an image-like residual, taking in each scale's features on the way.
pub(crate) struct Decoder {
    rises: Vec<Conv>,
    blocks: Vec<Residual>,
    output: Conv,
}

impl Decoder {
    pub(crate) fn new(path: &nn::Path<'_>, widths: &[i64], outputs: i64) -> Self {
        let (mut rises, mut blocks) = (Vec::new(), Vec::new());
        for scale in 0..widths.len() - 1 {
            let path = path / format!("scale{scale}");
            rises.push(Conv::new(&(&path / "rise"), widths[scale + 1], widths[scale], 1, 1));
            blocks.push(Residual::new(&(&path / "block"), widths[scale]));
        }
        Self { rises, blocks, output: Conv::new(&(path / "output"), widths[0], outputs, 3, 1) }
    }

    pub(crate) fn forward(&self, mut features: Vec<Tensor>) -> Option<Tensor> {
        let mut x = features.pop()?;
        for (skip, (rise, block)) in features.iter().zip(self.rises.iter().zip(&self.blocks)).rev() {
            let size = skip.size();
            // 1x1 before enlarging: the same result at a quarter of the work
            let risen = rise.forward(&x).upsample_nearest2d([size[2], size[3]], None, None);
            x = block.forward(&(risen + skip));
        }
        Some(self.output.forward(&x))
    }

    /// All convolutions, scale by scale, the last one at the end.
    pub(super) fn layers(&self) -> Vec<&Conv> {
        let scales = self.rises.iter().zip(&self.blocks);
        let layers = scales.flat_map(|(rise, block)| std::iter::once(rise).chain(block.layers()));
        layers.chain([&self.output]).collect()
    }

    pub(super) fn fast(&self) -> Option<FastDecoder> {
        Some(FastDecoder {
            rises: self.rises.iter().map(layer).collect::<Option<_>>()?,
            blocks: self.blocks.iter().map(Residual::fast).collect::<Option<_>>()?,
            output: layer(&self.output)?,
        })
    }

    /// As [`Decoder::forward`], for features of which the finest have this height and width.
    pub(super) fn emit(&self, b: &mut Builder, features: &[Var], size: [i64; 2]) -> Option<Var> {
        let (coarsest, skips) = features.split_last()?;
        let mut x = coarsest.clone();
        let scales = skips.iter().zip(self.rises.iter().zip(&self.blocks));
        for (scale, (skip, (rise, block))) in scales.enumerate().rev() {
            x = rise.emit(b, &x);
            x = b.upsample_nearest(&x, size[0] >> scale, size[1] >> scale);
            x = b.add(&x, skip);
            x = block.emit(b, &x);
        }
        Some(self.output.emit(b, &x))
    }

    pub(crate) fn start_as_identity(&self) {
        self.output.scale_weights(0.0);
    }
}

/// Judges from the finest texture, from the features at all scales, and from what else is known of each image, whether
/// it has been attacked.
pub(super) struct Judge {
    hidden: Conv,
    output: Conv,
}

/// Hidden units of the judge.
const JUDGE_WIDTH: i64 = 32;

impl Judge {
    pub(super) fn new(path: &nn::Path<'_>, widths: &[i64], evidence: i64) -> Self {
        let inputs = widths.iter().sum::<i64>() + TEXTURES + evidence;
        Self {
            hidden: Conv::new(&(path / "hidden"), inputs, JUDGE_WIDTH, 1, 1),
            output: Conv::new(&(path / "output"), JUDGE_WIDTH, 1, 1, 1),
        }
    }

    /// # Shapes
    /// `images` `[N, C, H, W]`, `means` of the features a scale each `[N, W, 1, 1]`, `evidence` `[N, E]`; the logits
    /// `[N, 1, 1, 1]`.
    pub(super) fn forward(&self, images: &Tensor, means: Vec<Tensor>, evidence: Option<&Tensor>) -> Tensor {
        let mut known = means;
        known.push(texture(images).unsqueeze(2).unsqueeze(3));
        known.extend(evidence.map(|evidence| evidence.unsqueeze(2).unsqueeze(3)));
        self.output.forward(&self.hidden.forward(&Tensor::cat(&known, 1)).relu_())
    }

    /// As [`Judge::forward`], for images of this height and width.
    pub(super) fn emit(
        &self,
        b: &mut Builder,
        images: &Var,
        features: &[Var],
        evidence: Option<&Var>,
        size: [i64; 2],
    ) -> Var {
        let mut known: Vec<Var> = features.iter().map(|scale| b.global_average(scale, true)).collect();
        let texture = emit_texture(b, images, size);
        known.push(b.unsqueeze(&texture, &[2, 3]));
        known.extend(evidence.map(|evidence| b.unsqueeze(evidence, &[2, 3])));
        let known = b.concat(&known.iter().collect::<Vec<_>>(), 1);
        let hidden = self.hidden.emit(b, &known);
        let hidden = b.relu(&hidden);
        self.output.emit(b, &hidden)
    }

    /// Makes every answer `logit`.
    pub(super) fn start_at(&self, logit: f64) {
        self.output.scale_weights(0.0);
        let _ = self.output.bias.shallow_clone().fill_(logit);
    }
}
