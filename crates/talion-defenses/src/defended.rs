//! A classifier behind a restoration network is a classifier.

use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};
use talion_core::{Classifier, Error, InputGradient, Result};
use tch::{Device, Tensor};

use crate::{gradient_map::MapGraph, trn::Trn};

/// Which view of the defended classifier an attacker differentiates. Predictions are the same in every view but
/// `Oblivious`, whose attacker does not know that there is a defence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GradientMode {
    /// Through TRN and through the gradient map: second derivatives of the classifier. The strongest view.
    Exact,
    /// Through TRN, with the gradient map taken as a constant.
    Detached,
    /// Restoration forward, identity backward (Athalye et al. 2018, "Obfuscated gradients", section 4.1).
    Bpda,
    /// The bare classifier: the attacker of the TRN paper.
    Oblivious,
}

impl GradientMode {
    /// All modes, the weakest attacker first.
    pub const ALL: [Self; 4] = [Self::Oblivious, Self::Bpda, Self::Detached, Self::Exact];

    /// What the attacker knows, in plain language.
    pub fn description(self) -> &'static str {
        match self {
            Self::Exact => "knows the whole defence and differentiates through restoration and gradient map",
            Self::Detached => {
                "knows the defence and differentiates through the restoration, not through the map"
            }
            Self::Bpda => {
                "runs the defence but pretends that restoration is the identity when differentiating"
            }
            Self::Oblivious => "attacks the bare classifier and does not know that there is a defence",
        }
    }
}

impl fmt::Display for GradientMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Exact => "exact",
            Self::Detached => "detached",
            Self::Bpda => "bpda",
            Self::Oblivious => "oblivious",
        })
    }
}

impl FromStr for GradientMode {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|mode| mode.to_string() == text).ok_or_else(|| Error::Unknown {
            what: "gradient mode",
            found: text.into(),
            known: "oblivious, bpda, detached, exact".into(),
        })
    }
}

/// A classifier whose images go through a TRN first, seen by an attacker in one [`GradientMode`].
pub struct Defended<'a> {
    classifier: &'a dyn Classifier,
    trn: &'a Trn,
    mode: GradientMode,
}

impl<'a> Defended<'a> {
    /// `classifier` behind `trn`.
    ///
    /// # Errors
    /// If the two were made for different numbers of classes.
    pub fn new(classifier: &'a dyn Classifier, trn: &'a Trn, mode: GradientMode) -> Result<Self> {
        if classifier.classes() != trn.card().classes {
            let expected = format!("{}, as the TRN was trained with", trn.card().classes);
            return Err(Error::range("the classifier's number of classes", expected, classifier.classes()));
        }
        Ok(Self { classifier, trn, mode })
    }

    /// The restored images, without gradients.
    ///
    /// # Shapes
    /// `images` `[N, C, H, W]` in `[0, 1]`; the result too.
    pub fn restore(&self, images: &Tensor) -> Tensor {
        tch::no_grad(|| self.trn.restore(self.classifier, images, MapGraph::Constant))
    }
}

impl Classifier for Defended<'_> {
    fn classes(&self) -> i64 {
        self.classifier.classes()
    }

    fn device(&self) -> Device {
        self.classifier.device()
    }

    fn logits(&self, images: &Tensor) -> Tensor {
        match self.mode {
            GradientMode::Oblivious => self.classifier.logits(images),
            GradientMode::Bpda => {
                // the second term is exactly zero, and its derivative is the identity
                let restored = self.restore(&images.detach());
                self.classifier.logits(&(restored + (images - images.detach())))
            }
            GradientMode::Detached => {
                self.classifier.logits(&self.trn.restore(self.classifier, images, MapGraph::Constant))
            }
            GradientMode::Exact if images.requires_grad() => {
                self.classifier.logits(&self.trn.restore(self.classifier, images, MapGraph::Differentiable))
            }
            // nobody differentiates: the same value without the second-order graph
            GradientMode::Exact => self.classifier.logits(&self.restore(images)),
        }
    }

    fn loss_gradient(&self, images: &Tensor, loss: &dyn Fn(&Tensor) -> Tensor) -> InputGradient {
        let graph = match self.mode {
            GradientMode::Oblivious => return self.classifier.loss_gradient(images, loss),
            GradientMode::Bpda => return self.classifier.loss_gradient(&self.restore(images), loss),
            GradientMode::Detached => MapGraph::Constant,
            GradientMode::Exact => MapGraph::Differentiable,
        };
        // the classifier at the restored images has a fast way of its own; only what lies before needs a graph
        tch::with_grad(|| {
            let images = images.detach().set_requires_grad(true);
            let restored = self.trn.restore(self.classifier, &images, graph);
            let found = self.classifier.loss_gradient(&restored.detach(), loss);
            let along = (&restored * &found.gradient).sum(restored.kind());
            let gradient = Tensor::run_backward(&[along], &[&images], false, false).remove(0);
            InputGradient { gradient: gradient.detach(), ..found }
        })
    }

    fn logit_gradients(&self, images: &Tensor) -> (Tensor, Tensor) {
        match self.mode {
            GradientMode::Oblivious => self.classifier.logit_gradients(images),
            GradientMode::Bpda => self.classifier.logit_gradients(&self.restore(images)),
            _ => talion_core::autograd_logit_gradients(self, images),
        }
    }

    fn search_logits(&self, images: &Tensor) -> Tensor {
        match self.mode {
            GradientMode::Oblivious => self.classifier.search_logits(images),
            // searching and judging through the restoration are the same: its own last step is what costs least
            _ => tch::no_grad(|| self.logits(images)).detach(),
        }
    }

    fn is_approximate(&self, images: &Tensor) -> bool {
        self.mode == GradientMode::Oblivious && self.classifier.is_approximate(images)
    }
}
