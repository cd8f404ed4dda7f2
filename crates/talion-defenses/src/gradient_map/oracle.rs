//! The map at the true label, which no defender has. It bounds what any label could gain, and nothing else: training
//! on it leaks the label into the map, so training refuses it and evaluation marks it wherever it appears.

use talion_core::{Error, Result};
use tch::Tensor;

use super::{
    Emission, EmittedMaps, GradientMapEstimator, MapContext, Maps, magnitude, probability, raw_gradient,
};

/// One map, at [`MapContext::true_labels`]; where these are unknown, at the predicted ones.
pub struct Oracle;

impl GradientMapEstimator for Oracle {
    fn names(&self) -> Vec<String> {
        vec!["the true label, at the input".into()]
    }

    fn evidence(&self) -> i64 {
        2
    }

    fn estimate(&self, context: &MapContext<'_>, images: &Tensor) -> Maps {
        let labels = match context.true_labels {
            Some(labels) => labels.shallow_clone(),
            None => context.classifier.predict(images),
        };
        let raw = raw_gradient(context.classifier, images, &labels, context.graph);
        let evidence = Tensor::cat(&[magnitude(&raw.gradient), probability(&raw.logits, &labels)], 1);
        Maps { maps: context.normalization.apply(&raw.gradient), evidence }
    }

    fn emit(&self, _emission: &mut Emission<'_>) -> Result<EmittedMaps> {
        Err(Error::Refused(
            "the oracle needs the true label, which no defence has: it cannot be exported".into(),
        ))
    }
}
