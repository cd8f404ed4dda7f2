//! What a pass keeps for the way back: of a ReLU one bit a number, of a gate what met there, and what went into every
//! convolution where its weights are to learn from that.

use super::Features;

/// Which numbers a ReLU let pass, a bit each; empty where nobody wants to know.
pub(super) type Mask = Vec<u8>;

/// The ReLUs of a block.
pub(super) struct ResidualTape {
    /// Between the convolutions.
    pub hidden: Mask,
    /// After the sum.
    pub output: Mask,
    /// What went into both convolutions, for their weights.
    pub inputs: Option<[Features; 2]>,
}

/// The ReLUs of a stream.
#[derive(Default)]
pub(super) struct EncoderTape {
    /// The first one of a scale and those of its block, from full resolution to the coarsest.
    pub scales: Vec<(Mask, ResidualTape)>,
    /// What went into the first convolution of every scale, for its weights.
    pub inputs: Vec<Features>,
}

/// What a gate multiplies, and both kinds of gates before their sigmoids.
pub(super) struct GateTape {
    pub both: Features,
    pub gates: Features,
    pub open: Features,
}

/// What met in a Fusion Block.
pub(super) struct FusionTape {
    /// None where the streams are only laid side by side.
    pub gates: Option<GateTape>,
    /// The ReLU at the end.
    pub output: Mask,
    /// What went into the last convolution, for its weights.
    pub explored: Option<Features>,
}

/// The ReLUs of the decoder.
#[derive(Default)]
pub(super) struct DecoderTape {
    /// Those of the blocks, from the coarsest scale that has one to full resolution.
    pub blocks: Vec<ResidualTape>,
    /// What went into every convolution outside of blocks, in the order in which they ran, for their weights.
    pub inputs: Vec<Features>,
}

/// What a whole pass keeps.
pub(in crate::trn) struct TrnTape {
    pub(super) rows: usize,
    pub(super) image: EncoderTape,
    /// None where there was no second stream.
    pub(super) gradient: Option<(EncoderTape, Vec<FusionTape>)>,
    pub(super) decoder: DecoderTape,
}

impl ResidualTape {
    fn features(self) -> impl Iterator<Item = Features> {
        self.inputs.into_iter().flatten()
    }
}

impl EncoderTape {
    /// Everything that was kept, to be given back.
    pub(super) fn features(self) -> impl Iterator<Item = Features> {
        self.inputs.into_iter().chain(self.scales.into_iter().flat_map(|(_, block)| block.features()))
    }
}

impl DecoderTape {
    /// As [`EncoderTape::features`].
    pub(super) fn features(self) -> impl Iterator<Item = Features> {
        self.inputs.into_iter().chain(self.blocks.into_iter().flat_map(ResidualTape::features))
    }
}
