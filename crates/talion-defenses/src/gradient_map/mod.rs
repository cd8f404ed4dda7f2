//! Gradient maps: what the second stream of TRN sees.
//!
//! The defender does not know the true label, so the gradient that attacked an image cannot be computed; an estimator
//! takes gradients of cross-entropy at labels and points of its own choice. One estimator a file.

mod coarse;
mod emission;
mod learned;
mod oracle;
mod predicted;
mod restoration;
mod spec;
mod top_k;
mod walk_back;

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use talion_core::{Classifier, Error, InputGradient, Objective, Result};
use talion_onnx::{Builder, Var};
use tch::{Kind, Tensor, nn};

pub use coarse::Coarse;
pub(crate) use emission::classify;
pub use emission::{Emission, EmittedMaps};
pub use learned::Learned;
pub use oracle::Oracle;
pub use predicted::Predicted;
pub use restoration::Restoration;
pub use spec::EstimatorSpec;
pub use top_k::TopK;
pub use walk_back::WalkBack;

/// Maps and what else an estimator knows of each image.
#[derive(Debug)]
pub struct Maps {
    /// Normalised gradient maps, `[N, maps * C, H, W]` in `[-1, 1]`.
    pub maps: Tensor,
    /// Numbers about each image that help to tell attacked from clean, `[N, E]`, of order 1.
    pub evidence: Tensor,
}

/// Whether gradients flow through a map into the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapGraph {
    /// The map is a constant.
    Constant,
    /// The map stays in the graph: its derivative is a second derivative of the classifier.
    Differentiable,
}

/// What an estimator works with.
pub struct MapContext<'a> {
    /// The bare classifier whose gradients are taken.
    pub classifier: &'a dyn Classifier,
    /// How maps are brought to a common scale.
    pub normalization: Normalization,
    /// Whether the maps stay in the graph.
    pub graph: MapGraph,
    /// A first restoration of the images, `[N, C, H, W]`, for estimators that [need one](EstimatorSpec::needs_coarse).
    pub coarse: Option<&'a Tensor>,
    /// The true labels, `[N]`, which only [`Oracle`] reads and only a diagnosis has.
    pub true_labels: Option<&'a Tensor>,
    /// Restores images once more, for estimators that refine.
    pub restore: Option<&'a dyn Fn(&Tensor) -> Tensor>,
}

/// Estimates the gradient maps of images whose true labels are unknown.
pub trait GradientMapEstimator: Send {
    /// What each map is of, in words for tables: as many as there are maps per image, each with as many channels as the image.
    fn names(&self) -> Vec<String>;

    /// Numbers of evidence per image.
    fn evidence(&self) -> i64;

    /// The maps of a batch.
    ///
    /// # Shapes
    /// `images` `[N, C, H, W]` in `[0, 1]`; see [`Maps`] for the result.
    fn estimate(&self, context: &MapContext<'_>, images: &Tensor) -> Maps;

    /// Writes what [`GradientMapEstimator::estimate`] computes into a graph, the classifier's derivative spelt out.
    ///
    /// # Errors
    /// If there is no such graph: the estimator needs what a defence does not have, or images of another size, or the
    /// classifier's derivative cannot be written.
    fn emit(&self, emission: &mut Emission<'_>) -> Result<EmittedMaps>;
}

/// Builds the estimator that `spec` names. Learned parts take their weights from `path`.
pub fn build(
    spec: &EstimatorSpec,
    path: &nn::Path<'_>,
    classes: i64,
) -> Option<Box<dyn GradientMapEstimator>> {
    Some(match *spec {
        EstimatorSpec::None => return None,
        EstimatorSpec::Restoration => Box::new(Restoration),
        EstimatorSpec::Predicted => Box::new(Predicted),
        EstimatorSpec::TopK { k } => Box::new(TopK { k: k.min(classes) }),
        EstimatorSpec::Coarse { refinements } => Box::new(Coarse { refinements }),
        EstimatorSpec::WalkBack => Box::new(WalkBack),
        EstimatorSpec::Learned => Box::new(Learned::new(path, classes)),
        EstimatorSpec::Oracle => Box::new(Oracle),
    })
}

/// How a raw gradient becomes a map. All are invariant to the gradient's scale, per sample, and map zero to zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Normalization {
    /// Divided by three times its root mean square, then clamped to `[-1, 1]`: keeps relative sizes, bounds outliers.
    #[default]
    Rms,
    /// Divided by its largest absolute value.
    Max,
    /// Its sign: what an `Linf` attacker follows.
    Sign,
}

impl fmt::Display for Normalization {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Rms => "rms",
            Self::Max => "max",
            Self::Sign => "sign",
        })
    }
}

impl FromStr for Normalization {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|normalization| normalization.to_string() == text).ok_or_else(|| {
            let known = Self::ALL.map(|normalization| normalization.to_string()).join(", ");
            Error::Unknown { what: "normalization of gradient maps", found: text.into(), known }
        })
    }
}

impl Normalization {
    /// All normalisations.
    pub const ALL: [Self; 3] = [Self::Rms, Self::Max, Self::Sign];

    /// The map of each row of `gradient`.
    ///
    /// # Shapes
    /// `[N, C, H, W]` in and out; the result lies in `[-1, 1]`. A zero row stays zero.
    pub fn apply(self, gradient: &Tensor) -> Tensor {
        let rows = [1_i64, 2, 3];
        // The largest value first: squares of the tiny gradients of a saturated softmax would underflow to zero.
        let largest = gradient.abs().amax(rows.as_slice(), true);
        let scaled = gradient / largest.where_self(&largest.gt(0.0), &largest.ones_like());
        match self {
            Self::Max => scaled,
            Self::Sign => scaled.sign(),
            Self::Rms => {
                let mean_square = scaled.square().mean_dim(rows.as_slice(), true, None);
                // a row of zeros has mean square 0; any positive number in its place leaves it zero
                let safe = mean_square.where_self(&mean_square.gt(0.0), &mean_square.ones_like());
                (scaled * (safe.rsqrt() / 3.0)).clamp(-1.0, 1.0)
            }
        }
    }

    /// As [`Normalization::apply`], in a graph.
    pub(crate) fn emit(self, b: &mut Builder, gradient: &Var) -> Var {
        let rows = [1, 2, 3];
        let size = b.abs(gradient);
        let largest = b.reduce_max(&size, &rows, true);
        let largest = emit_one_for_zero(b, &largest);
        let scaled = b.div(gradient, &largest);
        match self {
            Self::Max => scaled,
            Self::Sign => b.sign(&scaled),
            Self::Rms => {
                let square = b.mul(&scaled, &scaled);
                let mean_square = b.reduce_mean(&square, &rows, true);
                let safe = emit_one_for_zero(b, &mean_square);
                let root = b.sqrt(&safe);
                let (inverse, three) = (b.reciprocal(&root), b.scalar(3.0));
                let factor = b.div(&inverse, &three);
                let scaled = b.mul(&scaled, &factor);
                b.clip(&scaled, -1.0, 1.0)
            }
        }
    }
}

/// Sizes, none of them negative, with 1 in the place of 0.
fn emit_one_for_zero(b: &mut Builder, sizes: &Var) -> Var {
    let (zero, one) = (b.scalar(0.0), b.scalar(1.0));
    let positive = b.greater(sizes, &zero);
    b.where_(&positive, sizes, &one)
}

/// Cross-entropy's gradient at `points` for `labels`, in the graph or not as `graph` says.
pub(crate) fn raw_gradient(
    classifier: &dyn Classifier,
    points: &Tensor,
    labels: &Tensor,
    graph: MapGraph,
) -> InputGradient {
    if graph == MapGraph::Constant {
        return classifier.input_gradient(&points.detach(), labels, Objective::CrossEntropy);
    }
    tch::with_grad(|| {
        let points = if points.requires_grad() {
            points.shallow_clone()
        } else {
            points.detach().set_requires_grad(true)
        };
        let logits = classifier.logits(&points);
        let loss = Objective::CrossEntropy.per_sample(&logits, labels);
        let gradient = Tensor::run_backward(&[loss.sum(loss.kind())], &[&points], true, true).remove(0);
        InputGradient { loss, gradient, logits }
    })
}

/// The classifier's logits at the images, in the graph where the maps are: evidence read from them has a derivative too.
pub(crate) fn logits(context: &MapContext<'_>, images: &Tensor) -> Tensor {
    match context.graph {
        MapGraph::Constant => context.classifier.search_logits(images),
        MapGraph::Differentiable => context.classifier.logits(images),
    }
}

/// The logarithm of each row's mean absolute gradient, brought to order 1: how hard the classifier can be pushed.
pub(crate) fn magnitude(gradient: &Tensor) -> Tensor {
    let mean = gradient.abs().mean_dim([1_i64, 2, 3].as_slice(), false, None);
    // Saturated gradients reach 1e-12 and below; the sum keeps the logarithm finite.
    ((mean + 1e-12).log() / 10.0 + 1.0).unsqueeze(1)
}

/// As [`magnitude`], in a graph.
pub(crate) fn emit_magnitude(b: &mut Builder, gradient: &Var) -> Var {
    let size = b.abs(gradient);
    let mean = b.reduce_mean(&size, &[1, 2, 3], false);
    let (least, ten, one) = (b.scalar(1e-12), b.scalar(10.0), b.scalar(1.0));
    let mean = b.add(&mean, &least);
    let logarithm = b.log(&mean);
    let logarithm = b.div(&logarithm, &ten);
    let shifted = b.add(&logarithm, &one);
    b.unsqueeze(&shifted, &[1])
}

/// The probability that `logits` give to `labels`, `[N, 1]`.
pub(crate) fn probability(logits: &Tensor, labels: &Tensor) -> Tensor {
    logits.softmax(1, None).gather(1, &labels.unsqueeze(1), false)
}

/// As [`probability`], in a graph.
pub(crate) fn emit_probability(b: &mut Builder, logits: &Var, labels: &Var) -> Var {
    let (probabilities, column) = (b.softmax(logits, 1), b.unsqueeze(labels, &[1]));
    b.gather_elements(&probabilities, &column, 1)
}

/// No evidence: `[N, 0]`.
pub(crate) fn no_evidence(images: &Tensor) -> Tensor {
    Tensor::zeros([images.size()[0], 0], (Kind::Float, images.device())).to_kind(images.kind())
}

#[cfg(test)]
mod tests {
    use super::*;
    use talion_core::gaussian_noise;
    use talion_onnx::{Program, Side};
    use tch::Device;

    /// Two linear layers with a ReLU between: linear around every point, so that all curvature is the loss's.
    struct Piecewise {
        first: Tensor,
        second: Tensor,
    }

    impl Piecewise {
        fn new() -> Self {
            let weights = |shape: &[i64], name| {
                gaussian_noise(shape, &[1], 5, name, 0).squeeze_dim(0).to_kind(Kind::Double)
            };
            Self { first: weights(&[24, 36], "first") * 0.5, second: weights(&[4, 24], "second") * 0.5 }
        }
    }

    impl Classifier for Piecewise {
        fn classes(&self) -> i64 {
            4
        }

        fn logits(&self, images: &Tensor) -> Tensor {
            let hidden = (images - 0.5).flatten(1, -1).linear::<Tensor>(&self.first, None).relu();
            hidden.linear::<Tensor>(&self.second, None)
        }
    }

    /// The derivative of a map of a ReLU network is the Gauss-Newton product `J^T (diag(p) - p p^T) J v`, with the Jacobian
    /// `J` of the logits and their softmax `p`: where the network is linear, the loss alone has curvature.
    #[test]
    fn the_second_derivative_of_a_relu_network_is_the_gauss_newton_product() {
        let classifier = Piecewise::new();
        let ids: Vec<u64> = (0..5).collect();
        let draw = |name: &str| gaussian_noise(&[1, 6, 6], &ids, 3, name, 0).to_kind(Kind::Double);
        let (images, direction) = (draw("images") * 0.2 + 0.5, draw("direction"));
        let labels = Tensor::from_slice(&[0_i64, 1, 2, 3, 0]);

        let points = images.copy().set_requires_grad(true);
        let map = raw_gradient(&classifier, &points, &labels, MapGraph::Differentiable).gradient;
        let along = (&map * &direction).sum(Kind::Double);
        let found = Tensor::run_backward(&[along], &[&points], false, false).remove(0);

        let (logits, gradients) = classifier.logit_gradients(&images);
        let jacobian = gradients.flatten(2, -1); // [N, K, D]
        let probabilities = logits.softmax(1, None);
        let moved = jacobian.matmul(&direction.flatten(1, -1).unsqueeze(2)).squeeze_dim(2); // J v, [N, K]
        let mean = (&probabilities * &moved).sum_dim_intlist(1_i64, true, Kind::Double);
        let curved = &probabilities * (&moved - mean);
        let expected = curved.unsqueeze(1).matmul(&jacobian).view_as(&found);
        let error = (&found - &expected).abs().max().double_value(&[]);
        let scale = expected.abs().max().double_value(&[]);
        assert!(scale > 1e-3 && error < 1e-12 * scale.max(1.0), "{error} of {scale}");
    }

    #[test]
    fn normalizations_have_the_names_that_files_give_them() {
        for normalization in Normalization::ALL {
            let name = normalization.to_string();
            assert_eq!(name.parse::<Normalization>().unwrap(), normalization);
            assert_eq!(serde_json::to_value(normalization).unwrap(), name.as_str());
        }
        let error = "l2".parse::<Normalization>().unwrap_err().to_string();
        assert!(error.contains("rms, max, sign"), "{error}");
    }

    #[test]
    fn graphs_normalise_alike_down_to_rows_of_nothing() {
        let gradient = gaussian_noise(&[3, 4, 5], &[0, 1, 2], 1, "gradient", 0);
        let scales = Tensor::from_slice(&[1.0_f32, 1e-30, 0.0]).view([3, 1, 1, 1]);
        let gradient = gradient * scales;
        for normalization in [Normalization::Rms, Normalization::Max, Normalization::Sign] {
            let mut b = Builder::new("normalization");
            let shape = || vec![Side::Named("N".into()), Side::Fixed(3), Side::Fixed(4), Side::Fixed(5)];
            let x = b.input("gradient", Kind::Float, shape());
            let (map, length) = (normalization.emit(&mut b, &x), emit_magnitude(&mut b, &x));
            let sides = vec![Side::Named("N".into()), Side::Fixed(1)];
            let graph = b.finish(&[("map", &map, shape()), ("length", &length, sides)]).unwrap();
            let found = Program::new(graph, Device::Cpu).unwrap().run(&[gradient.shallow_clone()]).unwrap();
            let expected = [normalization.apply(&gradient), magnitude(&gradient)];
            for (found, expected) in found.iter().zip(&expected) {
                assert_eq!(found.size(), expected.size());
                let off = (found - expected).abs().max().double_value(&[]);
                assert!(off < 1e-5, "{normalization:?}: {off}");
            }
        }
    }
}
