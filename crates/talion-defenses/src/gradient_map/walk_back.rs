//! Walk back first, then look: at the attacked image the softmax is saturated and the map says little; part of the
//! way towards a first restoration, the map of the label *given to the input* is nearly as telling as the true
//! label's (with opposite sign), and needs no true label. The least likely label gives a map of the other sign.
//!
//! On a clean image that map points at a perturbation that is not there. The evidence tells the two apart: walking
//! back hardly changes the confidence in a clean image's label, and destroys that in an attacked one's.

use talion_core::{Error, Result};
use talion_onnx::{Builder, Var};
use tch::Tensor;

use super::{
    Emission, EmittedMaps, GradientMapEstimator, MapContext, Maps, emit_magnitude, emit_probability, logits,
    magnitude, probability, raw_gradient,
};

/// Three maps: the input's label half-way and at a fifth of the way from the restoration to the input, and the
/// input's least likely label half-way.
pub struct WalkBack;

/// Where maps are taken: 0 is the restoration, 1 the input.
const NEAR: f64 = 0.5;
const FAR: f64 = 0.2;

impl GradientMapEstimator for WalkBack {
    fn names(&self) -> Vec<String> {
        vec![
            format!("the given label, at {NEAR} of the way"),
            format!("the given label, at {FAR} of the way"),
            format!("the least likely label, at {NEAR} of the way"),
        ]
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

    fn emit(&self, emission: &mut Emission<'_>) -> Result<EmittedMaps> {
        let (images, restored) = (emission.images(), emission.coarse());
        let logits = emission.logits()?;
        let b = &mut *emission.builder;
        let (given, least) = (b.arg_max(&logits, 1), b.arg_min(&logits, 1));
        let way = b.sub(images, restored);
        let near = emit_towards(b, restored, &way, NEAR);
        let far = emit_towards(b, restored, &way, FAR);
        let points = b.concat(&[&near, &far, &near], 0);
        let labels = b.concat(&[&given, &given, &least], 0);
        let raw = emission.label_gradient(&points, &labels)?;
        let maps = emission.normalise(&raw.gradient);
        let magnitudes = emit_magnitude(emission.builder, &raw.gradient);
        let [logits_near, logits_far, _] = thirds(emission, &raw.logits)?;
        let mut evidence = vec![
            emit_probability(emission.builder, &logits, &given),
            emit_probability(emission.builder, &logits_near, &given),
            emit_probability(emission.builder, &logits_far, &given),
            emit_moved(emission.builder, &way),
        ];
        evidence.extend(thirds(emission, &magnitudes)?);
        let classes = emission.classes();
        evidence.push(emit_second_best(emission.builder, &logits_far, &given, classes));
        Ok(EmittedMaps { maps: thirds(emission, &maps)?.into(), evidence })
    }
}

fn thirds(emission: &mut Emission<'_>, stacked: &Var) -> Result<[Var; 3]> {
    let parts = emission.parts(stacked, 3);
    parts.try_into().map_err(|parts: Vec<Var>| Error::range("parts of the batch", "3", parts.len()))
}

fn emit_towards(b: &mut Builder, restored: &Var, way: &Var, share: f64) -> Var {
    let share = b.scalar(share);
    let step = b.mul(way, &share);
    b.add(restored, &step)
}

/// How far the first restoration moved each image, in units of a usual attack's 8/255.
fn moved(images: &Tensor, restored: &Tensor) -> Tensor {
    let rows = [1_i64, 2, 3];
    (images - restored).abs().mean_dim(rows.as_slice(), false, None).unsqueeze(1) * (255.0 / 8.0)
}

/// As [`moved`], of the difference of the two.
fn emit_moved(b: &mut Builder, way: &Var) -> Var {
    let size = b.abs(way);
    let mean = b.reduce_mean(&size, &[1, 2, 3], false);
    let (mean, scale) = (b.unsqueeze(&mean, &[1]), b.scalar(255.0 / 8.0));
    b.mul(&mean, &scale)
}

/// The largest probability of any other label.
fn second_best(logits: &Tensor, given: &Tensor) -> Tensor {
    let others = logits.softmax(1, None).scatter_value(1, &given.unsqueeze(1), 0.0);
    others.amax([1_i64].as_slice(), true)
}

fn emit_second_best(b: &mut Builder, logits: &Var, given: &Var, classes: i64) -> Var {
    let (probabilities, hot, one) = (b.softmax(logits, 1), b.one_hot(given, classes), b.scalar(1.0));
    let other = b.sub(&one, &hot);
    let others = b.mul(&probabilities, &other);
    b.reduce_max(&others, &[1], true)
}
