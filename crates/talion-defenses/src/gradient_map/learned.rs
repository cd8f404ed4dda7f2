//! Weights over all labels from a small head, trained together with TRN.
//!
//! The expectation of cross-entropy's gradient under the classifier's own softmax is exactly zero, so the weights have
//! to come from elsewhere: here from a head that reads the sorted logits, their order, and the image's contrast.

use talion_core::{Classifier, Error, Result};
use talion_onnx::{Builder, Var};
use tch::{Kind, Tensor, nn};

use super::{
    Emission, EmittedMaps, GradientMapEstimator, MapContext, MapGraph, Maps, emission::saturating_softmax,
    emit_magnitude, magnitude,
};

/// One map: the gradient of the cross-entropy with the head's distribution over labels.
pub struct Learned {
    hidden: (Tensor, Tensor),
    output: (Tensor, Tensor),
}

/// Mean, standard deviation and mean absolute horizontal and vertical differences.
const STATISTICS: i64 = 4;
const HIDDEN: i64 = 64;

impl Learned {
    /// A head for `classes` labels with its weights under `path`.
    pub fn new(path: &nn::Path<'_>, classes: i64) -> Self {
        let layer = |name: &str, inputs: i64, outputs: i64| {
            let path = path / name;
            let weight = path.var("weight", &[outputs, inputs], nn::Init::Const(0.0));
            (weight, path.var("bias", &[outputs], nn::Init::Const(0.0)))
        };
        Self {
            hidden: layer("hidden", 2 * classes + STATISTICS, HIDDEN),
            output: layer("output", HIDDEN, classes),
        }
    }

    /// The head's distribution over labels, `[N, K]`.
    fn distribution(&self, logits: &Tensor, images: &Tensor) -> Tensor {
        let (sorted, _) = logits.sort(1, true);
        let centred = |values: &Tensor| values - values.mean_dim([1_i64].as_slice(), true, None);
        let features = Tensor::cat(&[centred(logits), centred(&sorted), statistics(images)], 1);
        let hidden = features.linear(&self.hidden.0, Some(&self.hidden.1)).relu();
        hidden.linear(&self.output.0, Some(&self.output.1)).softmax(1, None)
    }

    /// As [`Learned::distribution`], from what [`emit_statistics`] says of the images.
    fn emit_distribution(&self, b: &mut Builder, logits: &Var, statistics: &Var) -> Var {
        let (sorted, _) = b.top_k(logits, self.output.1.numel() as i64, 1);
        let (logits, sorted) = (emit_centred(b, logits), emit_centred(b, &sorted));
        let features = b.concat(&[&logits, &sorted, statistics], 1);
        let hidden = emit_layer(b, &features, &self.hidden);
        let hidden = b.relu(&hidden);
        let output = emit_layer(b, &hidden, &self.output);
        b.softmax(&output, 1)
    }
}

impl GradientMapEstimator for Learned {
    fn names(&self) -> Vec<String> {
        vec!["labels weighted by a head, at the input".into()]
    }

    fn evidence(&self) -> i64 {
        1
    }

    fn estimate(&self, context: &MapContext<'_>, images: &Tensor) -> Maps {
        let keep = context.graph == MapGraph::Differentiable;
        let (weights, gradient) =
            tch::with_grad(|| weighted_gradient(self, context.classifier, images, keep));
        let gradient = if keep { gradient } else { gradient.detach() };
        let evidence = (magnitude(&gradient) + weights.amax([1_i64].as_slice(), true)) * 0.5;
        let evidence = if keep { evidence } else { evidence.detach() };
        Maps { maps: context.normalization.apply(&gradient), evidence }
    }

    fn emit(&self, emission: &mut Emission<'_>) -> Result<EmittedMaps> {
        let (images, [_, height, width]) = (emission.images(), emission.sides());
        if height.min(width) < 2 {
            let found = format!("{height}x{width}");
            return Err(Error::range("the image size", "2x2 or more for the estimator learned", found));
        }
        let statistics = emit_statistics(emission.builder, images, [height, width]);
        let mut head = None;
        let raw = emission.gradient(images, &mut |b, logits| {
            let weights = self.emit_distribution(b, logits, &statistics);
            let (probabilities, sum) = (saturating_softmax(b, logits), b.reduce_sum(&weights, &[1], true));
            let expected = b.mul(&probabilities, &sum);
            let cotangent = b.sub(&expected, &weights);
            head = Some(weights);
            Ok(cotangent)
        })?;
        let weights = head.ok_or_else(|| Error::Refused("the derivative did not ask for its seed".into()))?;
        let b = &mut *emission.builder;
        let (length, surest) = (emit_magnitude(b, &raw.gradient), b.reduce_max(&weights, &[1], true));
        let (sum, half) = (b.add(&length, &surest), b.scalar(0.5));
        let evidence = vec![b.mul(&sum, &half)];
        Ok(EmittedMaps { maps: vec![emission.normalise(&raw.gradient)], evidence })
    }
}

fn weighted_gradient(
    head: &Learned,
    classifier: &dyn Classifier,
    images: &Tensor,
    keep: bool,
) -> (Tensor, Tensor) {
    // A node of its own: the map is the gradient at fixed weights, although these depend on the image too.
    let points =
        if keep && images.requires_grad() { images * 1.0 } else { images.detach().set_requires_grad(true) };
    let logits = classifier.logits(&points);
    let seen = if keep { classifier.logits(images) } else { logits.detach() };
    let weights = head.distribution(&seen, images);
    let loss = -(logits.log_softmax(1, None) * &weights).sum(Kind::Float);
    let gradient = Tensor::run_backward(&[loss], &[&points], keep, keep).remove(0);
    (weights, gradient)
}

fn statistics(images: &Tensor) -> Tensor {
    let rows = [1_i64, 2, 3];
    let mean = |values: &Tensor| values.mean_dim(rows.as_slice(), false, None).unsqueeze(1);
    let across = images.diff::<Tensor>(1, 3, None, None).abs();
    let down = images.diff::<Tensor>(1, 2, None, None).abs();
    let centre = images.mean_dim(rows.as_slice(), true, None);
    let spread = mean(&(images - &centre).square()).sqrt();
    Tensor::cat(&[mean(images), spread, mean(&across) * 4.0, mean(&down) * 4.0], 1)
}

fn emit_layer(b: &mut Builder, x: &Var, (weight, bias): &(Tensor, Tensor)) -> Var {
    b.linear(x, &weight.to_kind(Kind::Float), Some(&bias.to_kind(Kind::Float)))
}

fn emit_centred(b: &mut Builder, values: &Var) -> Var {
    let mean = b.reduce_mean(values, &[1], true);
    b.sub(values, &mean)
}

/// As [`statistics`], for images of this height and width.
fn emit_statistics(b: &mut Builder, images: &Var, size: [i64; 2]) -> Var {
    let mean = |b: &mut Builder, values: &Var| b.reduce_mean(values, &[1, 2, 3], true);
    let centre = mean(b, images);
    let centred = b.sub(images, &centre);
    let square = b.mul(&centred, &centred);
    let variance = mean(b, &square);
    let spread = b.sqrt(&variance);
    let four = b.scalar(4.0);
    let differences = [(3, size[1]), (2, size[0])].map(|(axis, length)| {
        let (after, before) = (b.slice(images, axis, 1, length - 1), b.slice(images, axis, 0, length - 1));
        let difference = b.sub(&after, &before);
        let difference = b.abs(&difference);
        let difference = mean(b, &difference);
        b.mul(&difference, &four)
    });
    let [across, down] = differences;
    let all = b.concat(&[&centre, &spread, &across, &down], 1);
    b.flatten(&all)
}
