//! What an attacker maximises.

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

/// A per-sample loss of the logits that an attack maximises.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Objective {
    /// Cross-entropy with the true label: untargeted attacks (Goodfellow et al. 2015).
    #[default]
    CrossEntropy,
    /// Minus the cross-entropy with the label, which is then the *target* class of a targeted attack.
    TargetedCrossEntropy,
    /// Largest other logit minus the label's logit (Carlini and Wagner 2017, with confidence unbounded).
    Margin,
    /// Difference of logits ratio: the margin divided by the distance from the first to the third largest logit, which
    /// no rescaling of the logits can change (Croce and Hein 2020, equation 6). With two classes there is no third: the
    /// margin then.
    Dlr,
}

impl Objective {
    /// The loss of each row; larger is better for the attacker.
    ///
    /// # Shapes
    /// `logits` `[N, K]`, `labels` `[N]` with values in `0..K`; the result is `[N]`.
    pub fn per_sample(self, logits: &Tensor, labels: &Tensor) -> Tensor {
        let column = labels.unsqueeze(1);
        match self {
            Self::CrossEntropy => -logits.log_softmax(1, None).gather(1, &column, false).squeeze_dim(1),
            Self::TargetedCrossEntropy => {
                logits.log_softmax(1, None).gather(1, &column, false).squeeze_dim(1)
            }
            Self::Margin => margin(logits, &column),
            Self::Dlr => {
                let margin = margin(logits, &column);
                if logits.size()[1] < 3 {
                    return margin;
                }
                let (largest, _) = logits.topk(3, 1, true, true);
                margin / (largest.select(1, 0) - largest.select(1, 2) + 1e-12)
            }
        }
    }

    /// Whether an attacker with this objective has succeeded, given the predicted labels.
    ///
    /// # Shapes
    /// Both `[N]`, `i64`; the result is `[N]`, boolean.
    pub fn reached(self, predicted: &Tensor, labels: &Tensor) -> Tensor {
        match self {
            Self::TargetedCrossEntropy => predicted.eq_tensor(labels),
            Self::CrossEntropy | Self::Margin | Self::Dlr => predicted.ne_tensor(labels),
        }
    }
}

/// Largest other logit minus the label's, `[N]`.
fn margin(logits: &Tensor, column: &Tensor) -> Tensor {
    let own = logits.gather(1, column, false).squeeze_dim(1);
    let is_label = logits.zeros_like().to_kind(Kind::Bool).scatter_value(1, column, 1);
    logits.masked_fill(&is_label, f64::NEG_INFINITY).amax([1].as_slice(), false) - own
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_match_the_definitions() {
        let logits = Tensor::from_slice(&[2.0_f64, 1.0, -3.0, -5.0, -6.0, -7.0]).reshape([2, 3]);
        let labels = Tensor::from_slice(&[0_i64, 1]);
        let margin = Vec::<f64>::try_from(Objective::Margin.per_sample(&logits, &labels)).unwrap();
        assert_eq!(margin, [-1.0, 1.0]);
        let entropy = Vec::<f64>::try_from(Objective::CrossEntropy.per_sample(&logits, &labels)).unwrap();
        let expected = -(2.0 - (2f64.exp() + 1f64.exp() + (-3f64).exp()).ln());
        assert!((entropy[0] - expected).abs() < 1e-12);
        let targeted =
            Vec::<f64>::try_from(Objective::TargetedCrossEntropy.per_sample(&logits, &labels)).unwrap();
        assert_eq!(targeted[1], -entropy[1]);
    }
}
