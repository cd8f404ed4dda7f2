//! Walk back first, then look: at the attacked image the softmax is saturated and the map says little; part of the
//! way towards a first restoration, the map of the label *given to the input* is nearly as telling as the true
//! label's (with opposite sign), and needs no true label. The least likely label gives a map of the other sign.
//!
//! On a clean image that map points at a perturbation that is not there. The evidence tells the two apart: walking
//! back hardly changes the confidence in a clean image's label, and destroys that in an attacked one's.

use tch::Tensor;

use super::{GradientMapEstimator, MapContext, Maps, logits, magnitude, probability, raw_gradient};

/// Three maps: the input's label half-way and at a fifth of the way from the restoration to the input, and the
/// input's least likely label half-way.
pub struct WalkBack;

/// Where maps are taken: 0 is the restoration, 1 the input.
const NEAR: f64 = 0.5;
const FAR: f64 = 0.2;

impl GradientMapEstimator for WalkBack {
    fn maps(&self) -> i64 {
        3
    }

    fn evidence(&self) -> i64 {
        8
    }

    fn estimate(&self, context: &MapContext<'_>, images: &Tensor) -> Maps {
        let restored = context.coarse.unwrap_or(images);
        let rows = images.size()[0];
        let logits = logits(context, images);
        let (given, least) = (logits.argmax(1, false), logits.argmin(1, false));
        let towards = |share: f64| restored + (images - restored) * share;
        let near = towards(NEAR);
        // One batch of three: the classifier's cost a row falls with the batch.
        let points = Tensor::cat(&[near.shallow_clone(), towards(FAR), near], 0);
        let labels = Tensor::cat(&[&given, &given, &least], 0);
        let raw = raw_gradient(context.classifier, &points, &labels, context.graph);
        let maps = context.normalization.apply(&raw.gradient);
        let evidence = Tensor::cat(
            &[
                probability(&logits, &given),
                probability(&raw.logits.narrow(0, 0, rows), &given),
                probability(&raw.logits.narrow(0, rows, rows), &given),
                moved(images, restored),
                magnitude(&raw.gradient.narrow(0, 0, rows)),
                magnitude(&raw.gradient.narrow(0, rows, rows)),
                magnitude(&raw.gradient.narrow(0, 2 * rows, rows)),
                second_best(&raw.logits.narrow(0, rows, rows), &given),
            ],
            1,
        );
        Maps { maps: Tensor::cat(&maps.chunk(3, 0), 1), evidence }
    }
}

/// How far the first restoration moved each image, in units of a usual attack's 8/255.
fn moved(images: &Tensor, restored: &Tensor) -> Tensor {
    let rows = [1_i64, 2, 3];
    (images - restored).abs().mean_dim(rows.as_slice(), false, None).unsqueeze(1) * (255.0 / 8.0)
}

/// The largest probability of any other label.
fn second_best(logits: &Tensor, given: &Tensor) -> Tensor {
    let others = logits.softmax(1, None).scatter_value(1, &given.unsqueeze(1), 0.0);
    others.amax([1_i64].as_slice(), true)
}
