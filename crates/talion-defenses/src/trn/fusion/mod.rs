//! The Fusion Block: joins the two streams at one scale, in one of several ways.

mod attention;
mod dynamic;
mod gated;

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use talion_core::{Error, Result};
use talion_onnx::{Builder, Var};
use tch::{Tensor, nn};

use super::{fast::FastFusion, layers::Conv};
use attention::CrossAttention;
use dynamic::DynamicFilter;
use gated::Merge;

/// How a Fusion Block joins the streams. Written `gated`, `concatenation`, `cross-attention` and `dynamic-filter`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fusion {
    /// Explore: each stream is gated, pixel by pixel and channel by channel, by what both say there, and a gate over
    /// the whole image can close the gradient stream. Then fuse with a 3x3 convolution onto the image stream.
    #[default]
    Gated,
    /// A 3x3 convolution over both streams side by side.
    Concatenation,
    /// Every pixel of the image stream looks up the gradient stream, averaged over small blocks, by attention (Vaswani et
    /// al. 2017, "Attention is all you need"). Sides of the image are padded to multiples of 4.
    CrossAttention,
    /// Both streams say, pixel by pixel, with which 3x3 kernels the gradient stream is filtered (Jia et al. 2016, "Dynamic
    /// filter networks"). Then a 3x3 convolution over both streams. The width has to be a multiple of 4.
    DynamicFilter,
}

impl Fusion {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Gated, Self::Concatenation, Self::CrossAttention, Self::DynamicFilter];

    /// What sides of the image have to be multiples of, a power of two.
    pub(super) fn multiple(self) -> i64 {
        if self == Self::CrossAttention { attention::BLOCK } else { 1 }
    }

    /// Equal parts that channels have to fall into.
    pub(super) fn groups(self) -> i64 {
        if self == Self::DynamicFilter { dynamic::GROUPS } else { 1 }
    }
}

impl fmt::Display for Fusion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Gated => "gated",
            Self::Concatenation => "concatenation",
            Self::CrossAttention => "cross-attention",
            Self::DynamicFilter => "dynamic-filter",
        })
    }
}

impl FromStr for Fusion {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|fusion| fusion.to_string() == text).ok_or_else(|| {
            let known = Self::ALL.map(|fusion| fusion.to_string()).join(", ");
            Error::Unknown { what: "fusion", found: text.into(), known }
        })
    }
}

/// Joins the streams at one scale.
pub(super) struct FusionBlock(Way);

enum Way {
    Merge(Merge),
    CrossAttention(CrossAttention),
    DynamicFilter(DynamicFilter),
}

impl FusionBlock {
    /// For streams of `width` channels at `scale`, of which 0 is full resolution.
    pub(super) fn new(path: &nn::Path<'_>, width: i64, scale: usize, fusion: Fusion) -> Self {
        Self(match fusion {
            Fusion::Gated => Way::Merge(Merge::new(path, width, true)),
            Fusion::Concatenation => Way::Merge(Merge::new(path, width, false)),
            Fusion::CrossAttention => Way::CrossAttention(CrossAttention::new(path, width, scale)),
            Fusion::DynamicFilter => Way::DynamicFilter(DynamicFilter::new(path, width)),
        })
    }

    /// # Shapes
    /// Both streams `[N, W, h, w]`; so is the result.
    pub(super) fn forward(&self, image: &Tensor, gradient: &Tensor) -> Tensor {
        match &self.0 {
            Way::Merge(block) => block.forward(image, gradient),
            Way::CrossAttention(block) => block.forward(image, gradient),
            Way::DynamicFilter(block) => block.forward(image, gradient),
        }
    }

    /// The convolutions that have kernels.
    pub(super) fn layers(&self) -> Vec<&Conv> {
        match &self.0 {
            Way::Merge(block) => block.layers(),
            Way::CrossAttention(_) | Way::DynamicFilter(_) => Vec::new(),
        }
    }

    /// The same on the fast engine's kernels; nothing where there are none for it.
    pub(super) fn fast(&self) -> Option<FastFusion> {
        match &self.0 {
            Way::Merge(block) => block.fast(),
            Way::CrossAttention(_) | Way::DynamicFilter(_) => None,
        }
    }

    /// As [`FusionBlock::forward`], for streams of this height and width.
    pub(super) fn emit(&self, b: &mut Builder, image: &Var, gradient: &Var, sides: [i64; 2]) -> Var {
        match &self.0 {
            Way::Merge(block) => block.emit(b, image, gradient),
            Way::CrossAttention(block) => block.emit(b, image, gradient, sides),
            Way::DynamicFilter(block) => block.emit(b, image, gradient, sides),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use talion_core::gaussian_noise;
    use talion_models::training::initialise;
    use talion_onnx::{Program, Side};
    use tch::{Device, Kind};

    const WIDTH: i64 = 8;

    /// A block in which every weight does something.
    fn busy(fusion: Fusion, scale: usize) -> FusionBlock {
        let store = nn::VarStore::new(Device::Cpu);
        let block = FusionBlock::new(&store.root(), WIDTH, scale, fusion);
        initialise(&store, 3);
        tch::no_grad(|| {
            for (name, mut tensor) in store.variables() {
                if name.ends_with("bias") {
                    tensor.copy_(&gaussian_noise(&tensor.size(), &[0], 5, &name, 0).squeeze_dim(0));
                }
            }
        });
        block
    }

    /// Features of three images.
    fn streams(height: i64, width: i64) -> [Tensor; 2] {
        let features = |name| gaussian_noise(&[WIDTH, height, width], &[0, 1, 2], 1, name, 0).relu();
        ["image", "gradient"].map(features)
    }

    #[test]
    fn names_are_those_of_files() {
        for fusion in Fusion::ALL {
            let name = fusion.to_string();
            assert_eq!(name.parse::<Fusion>().unwrap(), fusion);
            assert_eq!(serde_json::to_value(fusion).unwrap(), serde_json::Value::from(name));
        }
        let error = "sum".parse::<Fusion>().unwrap_err().to_string();
        assert!(error.contains("`sum`; known: gated, concatenation, cross-attention, "), "{error}");
    }

    #[test]
    fn graphs_join_alike() {
        for fusion in Fusion::ALL {
            for scale in 0..3 {
                let block = busy(fusion, scale);
                let sides = [8, 12];
                let [image, gradient] = streams(sides[0], sides[1]);
                let shape = || {
                    let fixed = [WIDTH, sides[0], sides[1]].map(Side::Fixed);
                    std::iter::once(Side::Named("N".into())).chain(fixed).collect::<Vec<_>>()
                };
                let mut b = Builder::new("fusion");
                let inputs = ["image", "gradient"].map(|name| b.input(name, Kind::Float, shape()));
                let joined = block.emit(&mut b, &inputs[0], &inputs[1], sides);
                let graph = b.finish(&[("joined", &joined, shape())]).unwrap();
                let expected = tch::no_grad(|| block.forward(&image, &gradient));
                let program = Program::new(graph, Device::Cpu).unwrap();
                let found = program.run(&[image, gradient]).unwrap().remove(0);
                assert_eq!(found.size(), expected.size());
                let largest = expected.max().double_value(&[]);
                let off = (found - expected).abs().max().double_value(&[]);
                assert!(largest > 0.1, "{fusion}, {scale}: {largest}");
                assert!(off < 1e-4 * largest.max(1.0), "{fusion}, {scale}: {off} of {largest}");
            }
        }
    }

    #[test]
    fn rows_sit_anywhere_in_their_batch() {
        for fusion in Fusion::ALL {
            let block = busy(fusion, 0);
            let [image, gradient] = streams(8, 12);
            let join = |image: &Tensor, gradient: &Tensor| tch::no_grad(|| block.forward(image, gradient));
            let turned = join(&image.flip([0]), &gradient.flip([0])).flip([0]);
            assert_eq!(turned, join(&image, &gradient), "{fusion}");
        }
    }

    #[test]
    fn only_convolutions_and_gates_have_kernels() {
        for (fusion, known) in Fusion::ALL.into_iter().zip([true, true, false, false]) {
            assert_eq!(busy(fusion, 1).fast().is_some(), known, "{fusion}");
        }
    }
}
