//! What a pass of the network wants done to each image.

use talion_onnx::{Builder, Var};
use tch::Tensor;

/// A change to a batch of images: what to add, and whether to.
#[derive(Debug)]
pub struct Change {
    /// The residual before its bound, `[N, C, H, W]`.
    pub residual: Tensor,
    /// How surely each image has been attacked, as a logit, `[N, 1, 1, 1]`; `None` in networks without a gate, which
    /// always add the residual.
    pub gate: Option<Tensor>,
    /// The class that each image is held for, as logits `[N, K]`; `None` in networks without patterns.
    pub classes: Option<Tensor>,
}

impl Change {
    /// This change corrected by that of a later pass.
    pub(super) fn then(&self, later: Self) -> Self {
        let gate = match (&self.gate, later.gate) {
            (Some(gate), Some(correction)) => Some(gate + correction),
            (Some(gate), None) => Some(gate.shallow_clone()),
            (None, gate) => gate,
        };
        let classes = later.classes.or_else(|| self.classes.as_ref().map(Tensor::shallow_clone));
        Self { residual: &self.residual + later.residual, gate, classes }
    }

    /// The images plus the bounded residual, as far as the gate is open, inside the box.
    pub(super) fn apply(&self, images: &Tensor, bound: f64) -> Tensor {
        let bounded = self.residual.tanh() * bound;
        let added = match &self.gate {
            Some(gate) => bounded * gate.sigmoid(),
            None => bounded,
        };
        (images + added).clamp(0.0, 1.0)
    }

    /// The rows at `index`.
    #[must_use]
    pub fn select(&self, index: &Tensor) -> Self {
        let rows = |tensor: &Tensor| tensor.index_select(0, index);
        Self {
            residual: rows(&self.residual),
            gate: self.gate.as_ref().map(rows),
            classes: self.classes.as_ref().map(rows),
        }
    }

    /// Batches one after the other; `None` if there is none.
    #[must_use]
    pub fn join(parts: &[&Self]) -> Option<Self> {
        let residuals: Vec<&Tensor> = parts.iter().map(|part| &part.residual).collect();
        let joined = |field: fn(&Self) -> Option<&Tensor>| {
            let all: Vec<&Tensor> = parts.iter().filter_map(|part| field(part)).collect();
            (!all.is_empty()).then(|| Tensor::cat(&all, 0))
        };
        (!parts.is_empty()).then(|| Self {
            residual: Tensor::cat(&residuals, 0),
            gate: joined(|part| part.gate.as_ref()),
            classes: joined(|part| part.classes.as_ref()),
        })
    }
}

/// A [`Change`] in a graph.
pub(super) struct EmittedChange {
    pub(super) residual: Var,
    pub(super) gate: Option<Var>,
}

impl EmittedChange {
    /// As [`Change::then`].
    pub(super) fn then(&self, b: &mut Builder, later: Self) -> Self {
        let gate = match (&self.gate, later.gate) {
            (Some(gate), Some(correction)) => Some(b.add(gate, &correction)),
            (Some(gate), None) => Some(gate.clone()),
            (None, gate) => gate,
        };
        Self { residual: b.add(&self.residual, &later.residual), gate }
    }

    /// As [`Change::apply`].
    pub(super) fn apply(&self, b: &mut Builder, images: &Var, bound: f64) -> Var {
        let (bounded, bound) = (b.tanh(&self.residual), b.scalar(bound));
        let bounded = b.mul(&bounded, &bound);
        let added = match &self.gate {
            Some(gate) => {
                let open = b.sigmoid(gate);
                b.mul(&bounded, &open)
            }
            None => bounded,
        };
        let changed = b.add(images, &added);
        b.clip(&changed, 0.0, 1.0)
    }
}
