//! The map of the label that the classifier predicts: the simplest answer to an unknown true label.
//!
//! On an attacked image that label is the attacker's, so the map points the way the attack did not come from; once
//! the softmax is saturated it says little, which is why other estimators exist.

use tch::Tensor;

use super::{GradientMapEstimator, MapContext, Maps, magnitude, probability, raw_gradient};

/// One map, at the predicted label of the input.
pub struct Predicted;

impl GradientMapEstimator for Predicted {
    fn maps(&self) -> i64 {
        1
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
}
