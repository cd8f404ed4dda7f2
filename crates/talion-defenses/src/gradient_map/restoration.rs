//! No gradient at all: the control for estimators that restore twice. What they gain over this one, the maps gained.

use talion_core::Result;
use tch::Tensor;

use super::{Emission, EmittedMaps, GradientMapEstimator, MapContext, Maps, no_evidence};

/// No maps and no evidence; the second stream sees only how far the first restoration moved the image.
pub struct Restoration;

impl GradientMapEstimator for Restoration {
    fn names(&self) -> Vec<String> {
        Vec::new()
    }

    fn evidence(&self) -> i64 {
        0
    }

    fn estimate(&self, _context: &MapContext<'_>, images: &Tensor) -> Maps {
        Maps { maps: images.narrow(1, 0, 0), evidence: no_evidence(images) }
    }

    fn emit(&self, _emission: &mut Emission<'_>) -> Result<EmittedMaps> {
        Ok(EmittedMaps { maps: Vec::new(), evidence: Vec::new() })
    }
}
