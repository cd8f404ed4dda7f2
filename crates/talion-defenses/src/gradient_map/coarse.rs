//! The map of the label that a restoration of the image is given: closer to the true label than the input's own.

use talion_core::Result;
use tch::Tensor;

use super::{
    Emission, EmittedMaps, GradientMapEstimator, MapContext, Maps, magnitude, probability, raw_gradient,
};

/// One map at the input, at the label predicted for its restoration.
pub struct Coarse {
    /// How often the image is restored before its label is read, at least 1.
    pub refinements: u32,
}

impl GradientMapEstimator for Coarse {
    fn names(&self) -> Vec<String> {
        vec!["the restoration's label, at the input".into()]
    }

    fn evidence(&self) -> i64 {
        2
    }

    fn estimate(&self, context: &MapContext<'_>, images: &Tensor) -> Maps {
        let labels = tch::no_grad(|| {
            let mut restored = context.coarse.unwrap_or(images).shallow_clone();
            for _ in 1..self.refinements {
                if let Some(restore) = context.restore {
                    restored = restore(&restored);
                }
            }
            context.classifier.predict(&restored)
        });
        let raw = raw_gradient(context.classifier, images, &labels, context.graph);
        let evidence = Tensor::cat(&[magnitude(&raw.gradient), probability(&raw.logits, &labels)], 1);
        Maps { maps: context.normalization.apply(&raw.gradient), evidence }
    }

    fn emit(&self, emission: &mut Emission<'_>) -> Result<EmittedMaps> {
        let mut restored = emission.coarse().clone();
        for _ in 1..self.refinements {
            restored = emission.restore(&restored);
        }
        let logits = emission.classify(&restored)?;
        let labels = emission.builder.arg_max(&logits, 1);
        let raw = emission.label_gradient(emission.images(), &labels)?;
        Ok(emission.one_map(&raw, &labels))
    }
}
