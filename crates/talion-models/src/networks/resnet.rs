//! ResNet-18 for small images: He et al. 2016, section 4.2's stem with the block counts of table 1.

use talion_onnx::{Builder, Var};
use tch::{Tensor, nn};

use super::Network;
use crate::layers::{ConvNorm, Dense, Mode, emit_global_average, global_average};

struct BasicBlock {
    first: ConvNorm,
    second: ConvNorm,
    shortcut: Option<ConvNorm>,
}

impl BasicBlock {
    fn new(path: &nn::Path<'_>, inputs: i64, outputs: i64, stride: i64) -> Self {
        Self {
            first: ConvNorm::new(&(path / "first"), inputs, outputs, 3, stride),
            second: ConvNorm::new(&(path / "second"), outputs, outputs, 3, 1),
            shortcut: (stride != 1 || inputs != outputs)
                .then(|| ConvNorm::new(&(path / "shortcut"), inputs, outputs, 1, stride)),
        }
    }

    fn forward(&self, x: &Tensor, mode: Mode) -> Tensor {
        let y = self.second.forward(&self.first.forward(x, mode).relu_(), mode);
        match &self.shortcut {
            Some(shortcut) => (y + shortcut.forward(x, mode)).relu_(),
            None => (y + x).relu_(),
        }
    }

    fn emit(&self, b: &mut Builder, x: &Var) -> Var {
        let y = self.first.emit(b, x);
        let y = b.relu(&y);
        let y = self.second.emit(b, &y);
        let sum = match &self.shortcut {
            Some(shortcut) => {
                let skip = shortcut.emit(b, x);
                b.add(&y, &skip)
            }
            None => b.add(&y, x),
        };
        b.relu(&sum)
    }

    fn fold(&mut self) {
        self.first.fold();
        self.second.fold();
        self.shortcut.iter_mut().for_each(ConvNorm::fold);
    }
}

pub(super) struct ResNet {
    stem: ConvNorm,
    blocks: Vec<BasicBlock>,
    head: Dense,
}

impl ResNet {
    pub(super) fn new(path: &nn::Path<'_>, channels: i64, classes: i64, width: i64) -> Self {
        let mut blocks = Vec::new();
        let mut inputs = width;
        for stage in 0..4 {
            let outputs = width << stage;
            for index in 0..2 {
                let stride = if stage > 0 && index == 0 { 2 } else { 1 };
                let name = format!("stage{stage}_block{index}");
                blocks.push(BasicBlock::new(&(path / name), inputs, outputs, stride));
                inputs = outputs;
            }
        }
        Self {
            stem: ConvNorm::new(&(path / "stem"), channels, width, 3, 1),
            blocks,
            head: Dense::new(&(path / "head"), inputs, classes),
        }
    }
}

impl Network for ResNet {
    fn forward(&self, x: &Tensor, mode: Mode) -> Tensor {
        let stem = self.stem.forward(x, mode).relu_();
        let features = self.blocks.iter().fold(stem, |x, block| block.forward(&x, mode));
        self.head.forward(&global_average(&features))
    }

    fn emit(&self, b: &mut Builder, x: &Var, _size: [i64; 2]) -> Var {
        let stem = self.stem.emit(b, x);
        let stem = b.relu(&stem);
        let features = self.blocks.iter().fold(stem, |x, block| block.emit(b, &x));
        let average = emit_global_average(b, &features);
        self.head.emit(b, &average)
    }

    fn fold(&mut self) {
        self.stem.fold();
        self.blocks.iter_mut().for_each(BasicBlock::fold);
    }
}
