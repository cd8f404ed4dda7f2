//! Attacks that search in bf16, and are judged in f32.

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize};
use talion_core::{
    Classifier, Error, InputGradient, Result, autograd_logit_gradients, autograd_loss_gradient,
};
use talion_kernels::Factors;
use tch::{Device, Tensor};

use crate::{Model, fast::Engine};

/// The precision in which an attack takes gradients and looks for images. What counts is decided in f32, whatever it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SearchPrecision {
    /// Single precision.
    #[default]
    F32,
    /// Factors of the fast engine's convolutions in bf16, sums in f32, on processors that multiply bf16 faster (AVX-512 BF16); on
    /// others, and for networks without an engine, the same as [`SearchPrecision::F32`].
    Bf16,
}

impl SearchPrecision {
    /// Whether this machine searches in this precision, or in f32 instead.
    pub fn is_at_hand(self) -> bool {
        self == Self::F32 || talion_kernels::level().has_bf16()
    }

    pub(crate) fn factors(self) -> Factors {
        match self {
            Self::Bf16 if self.is_at_hand() => Factors::Bf16,
            _ => Factors::Full,
        }
    }
}

impl fmt::Display for SearchPrecision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        })
    }
}

impl FromStr for SearchPrecision {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        [Self::F32, Self::Bf16].into_iter().find(|precision| precision.to_string() == text).ok_or_else(|| {
            Error::Unknown { what: "precision", found: text.into(), known: "f32, bf16".into() }
        })
    }
}

/// A classifier whose gradients and searches are in a precision of their own, and whose logits are its own.
///
/// The attack driver judges by the logits, and attacks again without the engine what the search alone took for fooling
/// ([`talion_core::Reference`]), so that no image counts that the classifier itself is not fooled by. Behind a defence this would
/// change the defence's own maps; it is for attacks on the classifier itself.
#[derive(Clone, Copy)]
pub struct Searcher<'a> {
    pub(crate) model: &'a Model,
    pub(crate) precision: SearchPrecision,
}

impl Searcher<'_> {
    fn engine(&self, images: &Tensor) -> Option<Arc<Engine<f32>>> {
        self.model.engine_in(self.precision, images)
    }
}

impl Classifier for Searcher<'_> {
    fn classes(&self) -> i64 {
        self.model.classes()
    }

    fn device(&self) -> Device {
        self.model.device()
    }

    fn logits(&self, images: &Tensor) -> Tensor {
        self.model.logits(images)
    }

    fn search_logits(&self, images: &Tensor) -> Tensor {
        match self.engine(images) {
            Some(engine) => engine.tensor_logits(images),
            None => tch::no_grad(|| self.logits(images)),
        }
    }

    fn is_approximate(&self, images: &Tensor) -> bool {
        self.engine(images).is_some()
    }

    fn closer(&self) -> Option<&dyn Classifier> {
        (self.precision.factors() != Factors::Full).then_some(self.model)
    }

    fn loss_gradient(&self, images: &Tensor, loss: &dyn Fn(&Tensor) -> Tensor) -> InputGradient {
        match self.engine(images) {
            Some(engine) => engine.loss_gradient(images, loss),
            None => autograd_loss_gradient(self.model, images, loss),
        }
    }

    fn logit_gradients(&self, images: &Tensor) -> (Tensor, Tensor) {
        match self.engine(images) {
            Some(engine) => engine.logit_gradients(images),
            None => autograd_logit_gradients(self.model, images),
        }
    }
}
