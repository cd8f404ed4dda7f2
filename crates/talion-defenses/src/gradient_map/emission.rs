//! What an estimator writes its maps with, where a graph is written instead of a map computed.

use talion_core::{Error, Result};
use talion_onnx::{Attribute, Builder, Derived, Shapes, Var, differentiate};

use super::{Normalization, emit_magnitude, emit_probability};

/// [`Maps`](super::Maps) in a graph.
pub struct EmittedMaps {
    /// Normalised gradient maps, `[N, C, H, W]` each; there may be none.
    pub maps: Vec<Var>,
    /// Evidence, `[N, E]`, in parts that stand side by side; there may be none.
    pub evidence: Vec<Var>,
}

/// What an estimator works with to write its maps into a graph: a [`MapContext`](super::MapContext) of names instead of
/// tensors.
pub struct Emission<'a> {
    /// Where the maps are written.
    pub builder: &'a mut Builder,
    /// The classifier, with the shapes of its values.
    pub(crate) classifier: &'a Shapes,
    pub(crate) images: &'a Var,
    /// Channels, height and width of the images.
    pub(crate) sides: [i64; 3],
    pub(crate) classes: i64,
    pub(crate) normalization: Normalization,
    pub(crate) coarse: Option<&'a Var>,
    pub(crate) restore: &'a dyn Fn(&mut Builder, &Var) -> Var,
    /// The classifier's logits of the images, once somebody has needed them.
    pub(crate) logits: Option<Var>,
}

impl<'a> Emission<'a> {
    /// The images, `[N, C, H, W]`.
    pub fn images(&self) -> &'a Var {
        self.images
    }

    /// Channels, height and width of the images.
    pub fn sides(&self) -> [i64; 3] {
        self.sides
    }

    /// The number of classes, K.
    pub fn classes(&self) -> i64 {
        self.classes
    }

    /// A first restoration of the images; without one, the images.
    pub fn coarse(&self) -> &'a Var {
        self.coarse.unwrap_or(self.images)
    }

    /// Restores images once more.
    pub fn restore(&mut self, images: &Var) -> Var {
        (self.restore)(self.builder, images)
    }

    /// The map of a gradient.
    pub fn normalise(&mut self, gradient: &Var) -> Var {
        self.normalization.emit(self.builder, gradient)
    }

    /// The classifier's logits of the images, `[N, K]`; written once.
    ///
    /// # Errors
    /// If the classifier's graph does not fit into this one.
    pub fn logits(&mut self) -> Result<Var> {
        let known = match self.logits.take() {
            Some(logits) => logits,
            None => self.classify(self.images)?,
        };
        self.logits = Some(known.clone());
        Ok(known)
    }

    /// The classifier's logits of other points, `[N, K]`.
    ///
    /// # Errors
    /// If the classifier's graph does not fit into this one.
    pub fn classify(&mut self, points: &Var) -> Result<Var> {
        classify(self.builder, self.classifier, points)
    }

    /// Cross-entropy's gradient at `points` for `labels`, and the logits there.
    ///
    /// # Errors
    /// If the classifier's derivative cannot be written.
    pub fn label_gradient(&mut self, points: &Var, labels: &Var) -> Result<Derived> {
        let classes = self.classes;
        self.gradient(points, &mut |b, logits| Ok(surplus(b, logits, labels, classes)))
    }

    /// The classifier's gradient at `points` along the cotangent that `seed` makes of the logits, and the logits there.
    ///
    /// # Errors
    /// If the classifier's derivative cannot be written, or `seed` fails.
    pub fn gradient(
        &mut self,
        points: &Var,
        seed: &mut dyn FnMut(&mut Builder, &Var) -> Result<Var>,
    ) -> Result<Derived> {
        let classifier = self.classifier;
        let derived = self
            .builder
            .scope("classifier", |b| differentiate(b, classifier.graph(), classifier, points, seed))?;
        if points == self.images && self.logits.is_none() {
            self.logits = Some(derived.logits.clone());
        }
        Ok(derived)
    }

    /// The maps of an estimator with one map at one label: its evidence is how long the gradient is and how sure the
    /// classifier is of the label.
    pub(super) fn one_map(&mut self, raw: &Derived, labels: &Var) -> EmittedMaps {
        let evidence = vec![
            emit_magnitude(self.builder, &raw.gradient),
            emit_probability(self.builder, &raw.logits, labels),
        ];
        EmittedMaps { maps: vec![self.normalise(&raw.gradient)], evidence }
    }

    /// The equal parts of a batch that was stacked from `count` batches.
    pub fn parts(&mut self, stacked: &Var, count: usize) -> Vec<Var> {
        if count == 1 {
            return vec![stacked.clone()];
        }
        let axis = vec![("axis", Attribute::Int(0))];
        self.builder.nodes("Split", &[stacked], axis, count)
    }
}

/// Writes the classifier's logits of `points`.
///
/// # Errors
/// If the classifier's graph does not fit into this one.
pub(crate) fn classify(b: &mut Builder, classifier: &Shapes, points: &Var) -> Result<Var> {
    // the form in which it is differentiated, so that all copies share their weights
    let found = b.scope("classifier", |b| b.splice(classifier.graph(), &[points]))?;
    found.into_iter().next().ok_or_else(|| Error::range("the classifier's number of outputs", "1", 0))
}

/// The derivative of cross-entropy by the logits: the softmax less 1 at the label.
pub(super) fn surplus(b: &mut Builder, logits: &Var, labels: &Var, classes: i64) -> Var {
    let (probabilities, hot) = (saturating_softmax(b, logits), b.one_hot(labels, classes));
    b.sub(&probabilities, &hot)
}

/// The softmax by way of its logarithm, as libtorch differentiates it: near 1 the last bit decides how large the
/// gradient of a sure classifier is, so it has to be rounded in the same places.
pub(super) fn saturating_softmax(b: &mut Builder, logits: &Var) -> Var {
    let logarithm = b.log_softmax(logits, 1);
    b.exp(&logarithm)
}
