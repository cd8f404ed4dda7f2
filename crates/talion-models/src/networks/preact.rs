//! Networks with normalisation before each convolution: PreActResNet (He et al. 2016, "Identity mappings in deep
//! residual networks") and WideResNet (Zagoruyko and Komodakis 2016), which differ in widths and block counts only.

use talion_onnx::{Builder, Var};
use tch::{Tensor, nn};

use super::Network;
use crate::layers::{Conv, ConvNorm, Dense, Mode, Norm, emit_global_average, global_average};

struct PreActBlock {
    norm: Norm,
    /// The first convolution together with the norm that follows it, so that the pair can fold.
    first: ConvNorm,
    second: Conv,
    shortcut: Option<Conv>,
}

impl PreActBlock {
    fn new(path: &nn::Path<'_>, inputs: i64, outputs: i64, stride: i64) -> Self {
        Self {
            norm: Norm::new(&(path / "norm"), inputs),
            first: ConvNorm::new(&(path / "first"), inputs, outputs, 3, stride),
            second: Conv::new(&(path / "second"), outputs, outputs, 3, 1),
            shortcut: (stride != 1 || inputs != outputs)
                .then(|| Conv::new(&(path / "shortcut"), inputs, outputs, 1, stride)),
        }
    }

    fn forward(&self, x: &Tensor, mode: Mode) -> Tensor {
        let active = self.norm.forward(x, mode).relu_();
        let y = self.second.forward(&self.first.forward(&active, mode).relu_());
        match &self.shortcut {
            Some(shortcut) => y + shortcut.forward(&active),
            None => y + x,
        }
    }

    fn emit(&self, b: &mut Builder, x: &Var) -> Var {
        let active = self.norm.emit(b, x);
        let active = b.relu(&active);
        let y = self.first.emit(b, &active);
        let y = b.relu(&y);
        let y = self.second.emit(b, &y);
        match &self.shortcut {
            Some(shortcut) => {
                let skip = shortcut.emit(b, &active);
                b.add(&y, &skip)
            }
            None => b.add(&y, x),
        }
    }
}

pub(super) struct PreActNet {
    stem: Conv,
    blocks: Vec<PreActBlock>,
    norm: Norm,
    head: Dense,
}

impl PreActNet {
    pub(super) fn new(
        path: &nn::Path<'_>,
        channels: i64,
        classes: i64,
        stem: i64,
        widths: &[i64],
        depth: i64,
    ) -> Self {
        let mut blocks = Vec::new();
        let mut inputs = stem;
        for (stage, &outputs) in widths.iter().enumerate() {
            for index in 0..depth {
                let stride = if stage > 0 && index == 0 { 2 } else { 1 };
                let name = format!("stage{stage}_block{index}");
                blocks.push(PreActBlock::new(&(path / name), inputs, outputs, stride));
                inputs = outputs;
            }
        }
        Self {
            stem: Conv::new(&(path / "stem"), channels, stem, 3, 1),
            blocks,
            norm: Norm::new(&(path / "norm"), inputs),
            head: Dense::new(&(path / "head"), inputs, classes),
        }
    }
}

impl Network for PreActNet {
    fn forward(&self, x: &Tensor, mode: Mode) -> Tensor {
        let stem = self.stem.forward(x);
        let features = self.blocks.iter().fold(stem, |x, block| block.forward(&x, mode));
        self.head.forward(&global_average(&self.norm.forward(&features, mode).relu_()))
    }

    fn emit(&self, b: &mut Builder, x: &Var, _size: [i64; 2]) -> Var {
        let stem = self.stem.emit(b, x);
        let features = self.blocks.iter().fold(stem, |x, block| block.emit(b, &x));
        let features = self.norm.emit(b, &features);
        let features = b.relu(&features);
        let average = emit_global_average(b, &features);
        self.head.emit(b, &average)
    }

    fn fold(&mut self) {
        for block in &mut self.blocks {
            block.norm.fold();
            block.first.fold();
        }
        self.norm.fold();
    }
}
