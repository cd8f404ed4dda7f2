//! VGG-16 with batch norm (Simonyan and Zisserman 2015, table 1 column D), with one linear layer for small images.

use talion_onnx::{Builder, Var};
use tch::{Tensor, nn};

use super::Network;
use crate::layers::{ConvNorm, Dense, Mode, emit_global_average, global_average};

pub(super) struct Vgg {
    stages: Vec<Vec<ConvNorm>>,
    head: Dense,
}

impl Vgg {
    pub(super) fn new(path: &nn::Path<'_>, channels: i64, classes: i64, width: i64) -> Self {
        let mut inputs = channels;
        let mut stages = Vec::new();
        for (stage, (factor, depth)) in [(1, 2), (2, 2), (4, 3), (8, 3), (8, 3)].into_iter().enumerate() {
            let mut layers = Vec::new();
            for layer in 0..depth {
                let name = format!("stage{stage}_conv{layer}");
                layers.push(ConvNorm::new(&(path / name), inputs, factor * width, 3, 1));
                inputs = factor * width;
            }
            stages.push(layers);
        }
        Self { stages, head: Dense::new(&(path / "head"), inputs, classes) }
    }
}

impl Network for Vgg {
    fn forward(&self, x: &Tensor, mode: Mode) -> Tensor {
        let mut features = x.shallow_clone();
        for stage in &self.stages {
            for layer in stage {
                features = layer.forward(&features, mode).relu_();
            }
            // Images below 32x32 run out of pixels before the fifth pooling.
            if features.size()[2].min(features.size()[3]) >= 2 {
                features = features.max_pool2d_default(2);
            }
        }
        self.head.forward(&global_average(&features))
    }

    fn emit(&self, b: &mut Builder, x: &Var, size: [i64; 2]) -> Var {
        let mut features = x.clone();
        let [mut height, mut width] = size;
        for stage in &self.stages {
            for layer in stage {
                features = layer.emit(b, &features);
                features = b.relu(&features);
            }
            if height.min(width) >= 2 {
                features = b.max_pool(&features, [2, 2], [2, 2], [0, 0]);
                (height, width) = (height / 2, width / 2);
            }
        }
        let average = emit_global_average(b, &features);
        self.head.emit(b, &average)
    }

    fn fold(&mut self) {
        self.stages.iter_mut().flatten().for_each(ConvNorm::fold);
    }
}
