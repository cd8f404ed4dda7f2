//! What a pass keeps for the way back: of a ReLU one bit a number, of a gate what met there.

use super::Features;

/// Which numbers a ReLU let pass, a bit each; empty where nobody wants to know.
pub(super) type Mask = Vec<u8>;

/// The ReLUs of a block.
pub(super) struct ResidualTape {
    /// Between the convolutions.
    pub hidden: Mask,
    /// After the sum.
    pub output: Mask,
}

/// The ReLUs of a stream.
#[derive(Default)]
pub(super) struct EncoderTape {
    /// The first one of a scale and those of its block, from full resolution to the coarsest.
    pub scales: Vec<(Mask, ResidualTape)>,
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
}

/// The ReLUs of the decoder.
#[derive(Default)]
pub(super) struct DecoderTape {
    /// Those of the blocks, from the coarsest scale that has one to full resolution.
    pub blocks: Vec<ResidualTape>,
}

/// What a whole pass keeps.
pub(in crate::trn) struct TrnTape {
    pub(super) rows: usize,
    pub(super) image: EncoderTape,
    /// None where there was no second stream.
    pub(super) gradient: Option<(EncoderTape, Vec<FusionTape>)>,
    pub(super) decoder: DecoderTape,
}
