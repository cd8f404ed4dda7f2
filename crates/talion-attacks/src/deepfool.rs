//! DeepFool.

use serde::{Deserialize, Serialize};
use talion_core::{Classifier, Error, Norm, Result};
use tch::{Kind, Tensor};

use crate::{
    Attack, Attempt, Batch, Conditions, Passes,
    closest::{
        Hunt, Pursuit, chase, check_count, check_norm, check_number, dual, lengths, marked, pick, scaled,
        setting,
    },
};

/// Steps to the nearest boundary of the linearised classifier, until the label is lost.
///
/// The boundaries are those between the *given* label and the other classes, so a sample that is misclassified fools as it
/// is. With targets, which the paper does not have, each step goes to the boundary between the target and the largest other
/// class. No step is longer than the box is wide: where gradients vanish, the boundary seems to lie beyond all images.
///
/// # Budget
/// `L2` and `Linf`. The attack does not aim at the budget: its image counts if it lies inside, and else the benign image is
/// the answer.
///
/// # Passes
/// A step takes one forward pass, and one backward pass for each class, whether a candidate or not.
///
/// # Source
/// Moosavi-Dezfooli, Fawzi and Frossard, "DeepFool: a simple and accurate method to fool deep neural networks", CVPR 2016,
/// algorithm 2 and, for `Linf`, equations 10 and 11; 50 steps, 10 candidates and the added 1e-4 are from the authors'
/// program, and so is the overshoot at every step, not only after the last.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct DeepFool {
    /// Largest number of steps, at least 1. Default 50.
    pub steps: u32,
    /// How much farther than to the boundary the change goes, as a share of it, at least 0. Default 0.02.
    pub overshoot: f64,
    /// Only the classes with so many largest logits at the benign image are tried, at least 2, the label mostly among
    /// them. Default 10.
    pub candidates: u32,
}

impl Default for DeepFool {
    fn default() -> Self {
        Self { steps: 50, overshoot: 0.02, candidates: 10 }
    }
}

impl Attack for DeepFool {
    fn name(&self) -> String {
        let usual = Self::default();
        let overshoot = setting("overshoot", self.overshoot, usual.overshoot);
        let candidates = setting("candidates", self.candidates.into(), usual.candidates.into());
        format!("deepfool-{}{overshoot}{candidates}", self.steps)
    }

    /// On a classifier that has as many classes as there are candidates.
    fn cost(&self) -> Passes {
        Passes { forward: 1, backward: self.candidates.into() }.times(self.steps.into())
    }

    fn wants_logits(&self) -> bool {
        true
    }

    fn begin(&self, batch: &Batch<'_>, conditions: &Conditions<'_>) -> Result<Box<dyn Attempt>> {
        check_norm("deepfool", &batch.budget, &[Norm::L2, Norm::Linf])?;
        check_count("the number of steps", self.steps)?;
        let (overshoot, candidates) = (self.overshoot, f64::from(self.candidates));
        check_number("the overshoot", overshoot, overshoot >= 0.0, "a finite number, at least 0")?;
        check_number("the number of candidates", candidates, candidates >= 2.0, "at least 2")?;
        let logits = conditions
            .logits
            .ok_or_else(|| Error::Refused("deepfool needs the logits of the benign images".into()))?;
        let classes = logits.size().last().copied().unwrap_or_default();
        let (_, largest) = logits.topk(classes.min(self.candidates.into()), 1, true, true);
        let walk = Walk {
            attack: self.clone(),
            candidates: marked(logits, &largest),
            change: batch.images.detach().zeros_like(),
            classes,
        };
        Ok(chase(batch, conditions, walk))
    }
}

/// What is added to every step, in units of the image scale: on the boundary itself a step would have no length.
const BEYOND: f64 = 1e-4;

/// Steps from boundary to boundary.
struct Walk {
    attack: DeepFool,
    /// Which classes are tried, `[N, K]`, boolean.
    candidates: Tensor,
    /// The sum of all steps, without overshoot and box, `[N, C, H, W]`.
    change: Tensor,
    /// K.
    classes: i64,
}

impl Pursuit for Walk {
    fn step(&mut self, hunt: &mut Hunt, classifier: &dyn Classifier) -> Result<Tensor> {
        let images = (&hunt.rows.original + &self.change * (1.0 + self.attack.overshoot)).clamp(0.0, 1.0);
        let (logits, gradients) = classifier.logit_gradients(&images);
        let gradients = gradients.to_kind(images.kind()).nan_to_num(0.0, None, None);
        let fooled = hunt.fools(&logits);
        let _ = hunt.offer(&images, &fooled);
        let slopes = &gradients - pick(&gradients, &hunt.rows.labels).unsqueeze(1);
        let distances = distances(hunt, &logits, &slopes)?;
        let class = self.next_class(hunt, &logits, &distances);
        let slope = pick(&slopes, &class);
        // the other class has to rise above the label; a target above the other class
        let ascent = if hunt.targeted() { -slope } else { slope };
        let length = (pick(&distances, &class) + BEYOND).minimum(&hunt.reach());
        self.change = &self.change + scaled(&hunt.budget.steepest(&ascent), &length);
        Ok(fooled.logical_or(&hunt.is_last_of(self.attack.steps)))
    }

    fn state(&mut self) -> Vec<&mut Tensor> {
        vec![&mut self.candidates, &mut self.change]
    }

    fn passes(&self) -> Passes {
        Passes { forward: 1, backward: self.classes.unsigned_abs() }
    }
}

impl Walk {
    /// The class to whose boundary each row goes, `[N]`.
    fn next_class(&self, hunt: &Hunt, logits: &Tensor, distances: &Tensor) -> Tensor {
        let label = marked(logits, &hunt.rows.labels.unsqueeze(1));
        if hunt.targeted() {
            return logits.masked_fill(&label, f64::NEG_INFINITY).argmax(1, false);
        }
        let excluded = label.logical_or(&self.candidates.logical_not());
        distances.masked_fill(&excluded, f64::INFINITY).argmin(1, false)
    }
}

/// How far the boundary between each class and the label is, if the classifier is linear, `[N, K]`, `f64`.
///
/// # Shapes
/// `logits` `[N, K]`; `slopes` `[N, K, C, H, W]`, the gradient of each class's logit less that of the label's.
fn distances(hunt: &Hunt, logits: &Tensor, slopes: &Tensor) -> Result<Tensor> {
    let gaps = logits - pick(logits, &hunt.rows.labels).unsqueeze(1);
    let steepness = lengths(&slopes.flatten(0, 1), dual(hunt.budget.norm()))?;
    Ok(gaps.abs().to_kind(Kind::Double) / steepness.view_as(logits).clamp_min(1e-12))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::closest::testing::{check_edges, ratios};

    #[test]
    fn the_nearest_point_of_a_plane_is_passed_by_the_overshoot() {
        for norm in [Norm::L2, Norm::Linf] {
            for ratio in ratios(&DeepFool::default(), norm) {
                assert!((1.019..1.04).contains(&ratio), "{norm}: {ratio}");
            }
        }
    }

    #[test]
    fn what_fools_already_is_left_alone_and_other_norms_are_refused() {
        check_edges(&DeepFool::default(), &[Norm::L2, Norm::Linf]);
    }
}
