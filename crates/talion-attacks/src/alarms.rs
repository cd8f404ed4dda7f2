//! Signs that a classifier cannot be evaluated as it is: its figure under attack would flatter it.

use std::fmt;

use serde::Serialize;
use talion_core::{Classifier, Objective, Result, gradients_taken};
use tch::{Kind, Tensor};

use crate::{Batch, micro_batch};

/// A sign, with its evidence.
///
/// # Source
/// The checks of AutoAttack (Croce and Hein 2020) on randomness, probabilities, gradients and classes, and the advice of
/// Carlini et al., "On Evaluating Adversarial Robustness", 2019.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "alarm", rename_all = "kebab-case")]
pub enum Alarm {
    /// The same images gave other logits: gradients point anywhere, and success is a matter of chance.
    Randomised {
        /// Largest difference of a logit between two answers to the same image.
        difference: f64,
    },
    /// The answers are probabilities, not logits: a saturated softmax has no gradient.
    Probabilities {
        /// How many answers were looked at.
        rows: i64,
    },
    /// The answers are rounded: their gradient cannot be right.
    Quantised {
        /// Different values among all logits.
        values: i64,
        /// Logits looked at.
        of: i64,
    },
    /// Gradients that are zero everywhere: there is nothing to climb.
    ZeroGradients {
        /// Images whose gradient of the margin is zero in every pixel.
        rows: i64,
        /// Images looked at.
        of: i64,
    },
    /// Gradients that are NaN or infinite.
    UndefinedGradients {
        /// Images with such a value.
        rows: i64,
        /// Images looked at.
        of: i64,
    },
    /// Inference takes gradients itself: an attacker who does not differentiate through them attacks something else.
    GradientInside {
        /// Gradients taken while the classifier answered once.
        taken: u64,
    },
    /// An attack without gradients fooled samples that no attack with gradients fooled: gradients are masked.
    BlackBoxBetter {
        /// The attack without gradients, and its budget.
        black_box: String,
        /// The attacks with gradients at the same budget.
        with_gradients: Vec<String>,
        /// Samples that only the former fooled.
        samples: usize,
        /// Samples.
        of: usize,
    },
    /// One step along the gradient fooled more than several: steps are too large, too small, or gradients mislead.
    SingleStepBetter {
        /// The single step, and its budget.
        single_step: String,
        /// Samples it fooled.
        fooled: usize,
        /// The iterative attack.
        iterative: String,
        /// Samples that one fooled.
        iterative_fooled: usize,
        /// Samples.
        of: usize,
    },
    /// A larger budget fooled no more, though there was more to fool.
    LargerBudgetNotBetter {
        /// The attack.
        attack: String,
        /// The smaller budget.
        budget: String,
        /// Samples fooled within it.
        fooled: usize,
        /// The larger budget.
        larger: String,
        /// Samples fooled within that.
        larger_fooled: usize,
        /// Samples.
        of: usize,
    },
    /// Twice the steps fooled more: the shorter attack had not converged.
    NotConverged {
        /// The shorter attack, and its budget.
        attack: String,
        /// Samples it fooled.
        fooled: usize,
        /// The longer one.
        longer: String,
        /// Samples that one fooled.
        longer_fooled: usize,
        /// Samples.
        of: usize,
    },
    /// So few classes that losses which compare three or four logits are not defined.
    FewClasses {
        /// Classes.
        classes: i64,
    },
}

impl fmt::Display for Alarm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Randomised { difference } => write!(
                f,
                "the classifier answers at random (logits differ by up to {difference:.2e}): use eot-pgd or autoattack-rand, \
                 and repeat the evaluation"
            ),
            Self::Probabilities { rows } => write!(
                f,
                "the classifier's {rows} answers look like probabilities: attack the logits before the softmax, whose gradients \
                 vanish behind it"
            ),
            Self::Quantised { values, of } => write!(
                f,
                "the classifier's answers look rounded ({values} different values among {of} logits): gradients through rounding \
                 are zero or made up"
            ),
            Self::ZeroGradients { rows, of } => write!(
                f,
                "the gradient is zero on {rows} of {of} images: gradient attacks are blind there; compare with square"
            ),
            Self::UndefinedGradients { rows, of } => write!(
                f,
                "the gradient is NaN or infinite on {rows} of {of} images; attacks take such values as 0"
            ),
            Self::GradientInside { taken } => write!(
                f,
                "one answer of the classifier takes gradients itself ({taken} of them): only attacks that differentiate through those, \
                 or that need no gradients, say what it withstands"
            ),
            Self::BlackBoxBetter { black_box, with_gradients, samples, of } => write!(
                f,
                "{black_box}, which needs no gradients, fooled {samples} of {of} samples that {} did not: gradients are masked",
                with_gradients.join(", ")
            ),
            Self::SingleStepBetter { single_step, fooled, iterative, iterative_fooled, of } => write!(
                f,
                "{single_step} fooled {fooled} of {of} samples, but {iterative} only {iterative_fooled}: gradients mislead, or \
                 the step size is wrong"
            ),
            Self::LargerBudgetNotBetter { attack, budget, fooled, larger, larger_fooled, of } => write!(
                f,
                "{attack} fooled {larger_fooled} of {of} samples at {larger}, and {fooled} at {budget}: a larger budget has to \
                 fool more"
            ),
            Self::NotConverged { attack, fooled, longer, longer_fooled, of } => write!(
                f,
                "{attack} fooled {fooled} of {of} samples, {longer} {longer_fooled}: the shorter attack has not converged, and \
                 perhaps neither has the longer"
            ),
            Self::FewClasses { classes } => {
                write!(f, "with {classes} classes losses that compare more logits are replaced by the margin")
            }
        }
    }
}

/// Logits may differ by so much, relative to the largest, without being called random.
const SAME: f64 = 1e-4;

/// Looks at the first micro-batch of `batch` for signs that attacks on `classifier` would fail for the wrong reasons.
///
/// # Errors
/// If the batch does not pass [`Batch::check`].
pub fn alarms(classifier: &dyn Classifier, batch: &Batch<'_>) -> Result<Vec<Alarm>> {
    batch.check(classifier.classes())?;
    let rows = (micro_batch(classifier.device()) as i64).min(batch.ids.len() as i64);
    let mut found = Vec::new();
    let classes = classifier.classes();
    if classes < 4 {
        found.push(Alarm::FewClasses { classes });
    }
    if rows == 0 {
        return Ok(found);
    }
    let device = classifier.device();
    let images = batch.images.narrow(0, 0, rows).to_device(device).contiguous();
    let labels = batch.labels.narrow(0, 0, rows).to_device(device);
    let answer = || tch::no_grad(|| classifier.logits(&images)).to_kind(Kind::Double);
    let before = gradients_taken();
    let logits = answer();
    let taken = gradients_taken() - before;
    found.extend((taken > 0).then_some(Alarm::GradientInside { taken }));
    found.extend(randomised(&logits, &answer));
    found.extend(probabilities(&logits));
    found.extend(quantised(&logits));
    // at the box's edge a gradient may vanish for good reasons: looked at a little inside
    let inside = &images * 0.98 + 0.01;
    let gradient = classifier.input_gradient(&inside, &labels, Objective::Margin).gradient;
    found.extend(gradients(&gradient));
    Ok(found)
}

fn randomised(logits: &Tensor, answer: &dyn Fn() -> Tensor) -> Option<Alarm> {
    let scale = logits.abs().max().double_value(&[]).max(1e-12);
    let difference =
        (0..4).map(|_| (answer() - logits).abs().max().double_value(&[])).fold(0.0_f64, f64::max);
    (difference > SAME * scale).then_some(Alarm::Randomised { difference })
}

fn probabilities(logits: &Tensor) -> Option<Alarm> {
    let sums = logits.sum_dim_intlist(1_i64, false, Kind::Double);
    let sum_to_one = (sums - 1.0).abs().max().double_value(&[]) < 1e-5;
    let inside = logits.min().double_value(&[]) > -1e-5 && logits.max().double_value(&[]) < 1.0 + 1e-5;
    (sum_to_one && inside).then(|| Alarm::Probabilities { rows: logits.size().first().copied().unwrap_or(0) })
}

fn quantised(logits: &Tensor) -> Option<Alarm> {
    let of = logits.numel() as i64;
    let (unique, _, _) = logits.flatten(0, -1).internal_unique2(true, false, false);
    let values = unique.numel() as i64;
    // honest logits hardly ever agree; a handful of levels shared by hundreds does not come about by chance
    (of >= 32 && values * 4 < of).then_some(Alarm::Quantised { values, of })
}

fn gradients(gradient: &Tensor) -> Vec<Alarm> {
    let of = gradient.size().first().copied().unwrap_or(0);
    let flat = gradient.flatten(1, -1);
    let count = |rows: Tensor| rows.to_kind(Kind::Int64).sum(Kind::Int64).int64_value(&[]);
    let zero = count(flat.ne(0.0).any_dim(1, false).logical_not());
    let undefined = count(flat.isfinite().logical_not().any_dim(1, false));
    let zero = (zero > 0).then_some(Alarm::ZeroGradients { rows: zero, of });
    let undefined = (undefined > 0).then_some(Alarm::UndefinedGradients { rows: undefined, of });
    zero.into_iter().chain(undefined).collect()
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use talion_core::{Budget, Norm, gaussian_noise, uniform_noise};

    /// A linear classifier whose logits go through something.
    struct Through<F: Fn(Tensor) -> Tensor>(F, i64);

    impl<F: Fn(Tensor) -> Tensor> Classifier for Through<F> {
        fn classes(&self) -> i64 {
            self.1
        }

        fn logits(&self, images: &Tensor) -> Tensor {
            let ids: Vec<u64> = (0..self.1.cast_unsigned()).collect();
            let weight = gaussian_noise(&[12], &ids, 1, "weight", 0);
            (self.0)(images.flatten(1, -1).matmul(&weight.tr()))
        }
    }

    fn found(classifier: &dyn Classifier) -> Vec<Alarm> {
        let ids: Vec<u64> = (0..20).collect();
        let images = uniform_noise(&[1, 3, 4], &ids, 2, "images", 0) * 0.5 + 0.5;
        let labels = Tensor::zeros([20], (Kind::Int64, tch::Device::Cpu));
        let budget = Budget::new(Norm::Linf, 0.1).unwrap();
        let objective = Objective::CrossEntropy;
        let batch =
            Batch { images: &images, labels: &labels, ids: &ids, budget, objective, seed: 1, restart: 0 };
        alarms(classifier, &batch).unwrap()
    }

    #[test]
    fn an_honest_classifier_raises_none_and_each_flaw_its_own() {
        assert_eq!(found(&Through(|x| x, 5)), []);
        assert!(matches!(found(&Through(|x| x, 3))[..], [Alarm::FewClasses { classes: 3 }]));
        let softmax = found(&Through(|x| x.softmax(1, None), 5));
        assert!(matches!(softmax[..], [Alarm::Probabilities { rows: 20 }]), "{softmax:?}");
        let rounded = found(&Through(|x| x.round(), 5));
        assert!(matches!(rounded[..], [Alarm::Quantised { .. }, Alarm::ZeroGradients { rows: 20, of: 20 }]));
        let undefined = found(&Through(|x| &x + (&x * 0.0).sqrt(), 5));
        assert!(matches!(undefined[..], [.., Alarm::UndefinedGradients { .. }]), "{undefined:?}");
        let calls = Cell::new(0.0);
        let random = Through(
            |x| {
                calls.set(calls.get() + 1.0);
                x + calls.get() * 0.1
            },
            5,
        );
        assert!(matches!(found(&random)[..], [Alarm::Randomised { .. }]));
        for alarm in found(&Through(|x| x.round(), 2)) {
            assert!(alarm.to_string().len() > 30 && serde_json::to_string(&alarm).unwrap().contains("alarm"));
        }
    }
}
