//! The map of the label that the classifier predicts: the simplest answer to an unknown true label.
//!
//! On an attacked image that label is the attacker's, so the map points the way the attack did not come from; once
//! the softmax is saturated it says little, which is why other estimators exist.

use talion_core::Result;
use tch::Tensor;

use super::{
    Emission, EmittedMaps, GradientMapEstimator, MapContext, Maps, emission::surplus, magnitude, probability,
    raw_gradient,
};

/// One map, at the predicted label of the input.
pub struct Predicted;

impl GradientMapEstimator for Predicted {
    fn names(&self) -> Vec<String> {
        vec!["the given label, at the input".into()]
    }

    fn evidence(&self) -> i64 {
        2
    }

    fn estimate(&self, context: &MapContext<'_>, images: &Tensor) -> Maps {
        let labels = context.classifier.predict(images);
        let raw = raw_gradient(context.classifier, images, &labels, context.graph);
        let evidence = Tensor::cat(&[magnitude(&raw.gradient), probability(&raw.logits, &labels)], 1);
        Maps { maps: context.normalization.apply(&raw.gradient), evidence }
    }

    fn emit(&self, emission: &mut Emission<'_>) -> Result<EmittedMaps> {
        let (images, classes) = (emission.images(), emission.classes());
        // the labels come out of the pass that is differentiated: one forward pass, not two
        let raw = emission.gradient(images, &mut |b, logits| {
            let labels = b.arg_max(logits, 1);
            Ok(surplus(b, logits, &labels, classes))
        })?;
        let labels = emission.builder.arg_max(&raw.logits, 1);
        Ok(emission.one_map(&raw, &labels))
    }
}
