//! A classifier behind a restoration network is a classifier.

use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};
use talion_core::{Classifier, Error, InputGradient, Result};
use tch::{Device, Tensor};

use crate::{
    defence::{Defence, Draw, Pass},
    gradient_map::MapGraph,
};

/// Draws of a random defence that an attacker averages a gradient over.
const ATTACKERS_DRAWS: u64 = 8;

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

/// A classifier whose images go through a defence first, seen by an attacker in one [`GradientMode`].
///
/// Of a defence that draws at random an attacker takes the mean gradient over eight draws of the attacker's own.
pub struct Defended<'a> {
    classifier: &'a dyn Classifier,
    defence: &'a dyn Defence,
    mode: GradientMode,
}

impl<'a> Defended<'a> {
    /// `classifier` behind `defence`.
    ///
    /// # Errors
    /// If the two do not fit each other.
    pub fn new(classifier: &'a dyn Classifier, defence: &'a dyn Defence, mode: GradientMode) -> Result<Self> {
        defence.check(classifier)?;
        Ok(Self { classifier, defence, mode })
    }

    /// The restored images, without gradients.
    ///
    /// # Shapes
    /// `images` `[N, C, H, W]` in `[0, 1]`; the result too.
    pub fn restore(&self, images: &Tensor) -> Tensor {
        self.constant(images, Draw::OWN)
    }

    /// What the defended classifier answers in use, and what it restored the images to, without gradients. The logits are those
    /// of [`Classifier::logits`], bit for bit.
    ///
    /// # Shapes
    /// `images` `[N, C, H, W]` in `[0, 1]`; logits `[N, K]`, restored images like `images`.
    pub fn answer(&self, images: &Tensor) -> (Tensor, Tensor) {
        tch::no_grad(|| {
            let restored = self.restore(images);
            let first = self.classifier.logits(&restored);
            (
                self.with_other_votes(first, &|draw| self.classifier.logits(&self.constant(images, draw))),
                restored,
            )
        })
    }

    fn constant(&self, images: &Tensor, draw: Draw) -> Tensor {
        let pass = Pass { graph: MapGraph::Constant, draw };
        tch::no_grad(|| self.defence.restore(self.classifier, images, pass))
    }

    /// The logits of the first vote, or, where a defence has several, the logarithm of the mean of all votes' probabilities.
    fn with_other_votes(&self, first: Tensor, vote: &dyn Fn(Draw) -> Tensor) -> Tensor {
        let votes = self.defence.votes();
        if votes <= 1 {
            return first;
        }
        let others = (1..votes).map(|number| vote(Draw::Vote(number)).log_softmax(1, None));
        let all: Vec<Tensor> = std::iter::once(first.log_softmax(1, None)).chain(others).collect();
        Tensor::stack(&all, 0).logsumexp(0_i64, false) - (votes as f64).ln()
    }

    /// The restored images as this view differentiates them.
    fn seen(&self, images: &Tensor, draw: Draw) -> Tensor {
        let graph = match self.mode {
            // nobody differentiates: the same value without the second-order graph
            GradientMode::Exact if images.requires_grad() => MapGraph::Differentiable,
            _ => MapGraph::Constant,
        };
        match self.mode {
            GradientMode::Oblivious => images.shallow_clone(),
            // the second term is exactly zero, and its derivative is the identity
            GradientMode::Bpda => self.constant(&images.detach(), draw) + (images - images.detach()),
            GradientMode::Exact if !images.requires_grad() => self.constant(images, draw),
            GradientMode::Detached | GradientMode::Exact => {
                self.defence.restore(self.classifier, images, Pass { graph, draw })
            }
        }
    }

    /// The gradient of one draw.
    fn gradient(&self, images: &Tensor, loss: &dyn Fn(&Tensor) -> Tensor, draw: Draw) -> InputGradient {
        if self.mode == GradientMode::Bpda {
            return self.classifier.loss_gradient(&self.constant(images, draw), loss);
        }
        // the classifier at the restored images has a fast way of its own, and so may have what lies before
        let graph =
            if self.mode == GradientMode::Exact { MapGraph::Differentiable } else { MapGraph::Constant };
        let mut found = None;
        let gradient =
            self.defence.pull_back(self.classifier, images, Pass { graph, draw }, &mut |restored| {
                let answer = self.classifier.loss_gradient(restored, loss);
                let gradient = answer.gradient.shallow_clone();
                found = Some(answer);
                gradient
            });
        match found {
            Some(found) => InputGradient { gradient, ..found },
            // a defence that never asks has nothing to say of the loss
            None => talion_core::autograd_loss_gradient(self, images, loss),
        }
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
        let first = self.classifier.logits(&self.seen(images, Draw::OWN));
        if self.mode == GradientMode::Oblivious {
            return first;
        }
        self.with_other_votes(first, &|draw| self.classifier.logits(&self.seen(images, draw)))
    }

    fn loss_gradient(&self, images: &Tensor, loss: &dyn Fn(&Tensor) -> Tensor) -> InputGradient {
        if self.mode == GradientMode::Oblivious {
            return self.classifier.loss_gradient(images, loss);
        }
        if !self.defence.is_random() {
            return self.gradient(images, loss, Draw::OWN);
        }
        let draws = (0..ATTACKERS_DRAWS).map(|draw| self.gradient(images, loss, Draw::Attackers(draw)));
        let draws: Vec<InputGradient> = draws.collect();
        let mean = |field: fn(&InputGradient) -> &Tensor| {
            let all: Vec<&Tensor> = draws.iter().map(field).collect();
            Tensor::stack(&all, 0).mean_dim(0_i64, false, None)
        };
        // whether the images fool is decided by the answer in use
        let logits = tch::no_grad(|| self.logits(&images.detach())).detach();
        InputGradient { loss: mean(|draw| &draw.loss), gradient: mean(|draw| &draw.gradient), logits }
    }

    fn logit_gradients(&self, images: &Tensor) -> (Tensor, Tensor) {
        match self.mode {
            GradientMode::Oblivious => self.classifier.logit_gradients(images),
            GradientMode::Bpda if self.defence.votes() == 1 => {
                self.classifier.logit_gradients(&self.restore(images))
            }
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
