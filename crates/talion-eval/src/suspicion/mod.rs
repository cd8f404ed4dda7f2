/*!
How suspicious an image is: how far restoring it moved the classifier's answer.

A restoration network changes clean images little and attacked ones so that the classifier's answer changes, so the
distance between the two answers tells them apart. The score of an image is the divergence of one from the other
([`fn@suspicion`]). What a score means is learned from clean images alone ([`Calibration`]), so no attack is favoured;
what of each attack is then found is measured on other images ([`measure_detection`]).

A flag is no defence: an attacker who knows the score can keep it low.
*/

mod calibration;
mod detection;
mod evading;
mod roc;

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

pub use calibration::{Calibration, conformal_rank};
pub use detection::{Adaptive, DetectionCurve, Examined, MeasuredDetection, Pair, measure_detection};
pub use roc::{Roc, roc};

/// The Kullback-Leibler divergence of the classifier's answer before restoration from that after it, in nats: 0 where they
/// are the same, and without a bound.
///
/// Computed in `f64` from logarithms, so that it is finite for all finite logits, however sure the classifier is, and
/// differentiable.
///
/// # Shapes
/// Both are logits `[N, K]`, before and after restoration; the result is `[N]`, `f64`.
pub fn suspicion(before: &Tensor, after: &Tensor) -> Tensor {
    let before = before.log_softmax(1, Kind::Double);
    let after = after.log_softmax(1, Kind::Double);
    let divergence = (before.exp() * (&before - &after)).sum_dim_intlist([1].as_slice(), false, None::<Kind>);
    // rounding may leave something below zero of equal answers
    divergence.clamp_min(0.0)
}

/// What is said of one image.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Suspicion {
    /// The score, at least 0.
    pub score: f64,
    /// The share of clean images with a lower score, those with the same score counted half.
    pub quantile: f64,
    /// Whether the score is above the threshold of `false_alarm_rate`.
    pub flagged: bool,
    /// The share of clean images that are flagged at most.
    pub false_alarm_rate: f64,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(before: &[f64], after: &[f64]) -> f64 {
        let row = |logits: &[f64]| Tensor::from_slice(logits).unsqueeze(0);
        let score = suspicion(&row(before), &row(after));
        assert_eq!((score.size(), score.kind()), (vec![1], Kind::Double));
        score.double_value(&[0])
    }

    #[test]
    fn the_same_answer_is_not_suspicious() {
        assert_eq!(of(&[1.0, -2.0, 0.3], &[1.0, -2.0, 0.3]), 0.0);
        // softmax does not see what is added to all logits
        assert!(of(&[1.0, -2.0, 0.3], &[8.0, 5.0, 7.3]) < 1e-12);
    }

    #[test]
    fn two_classes_have_their_closed_form() {
        // 3/4 and 1/4 against 1/2 and 1/2
        let expected = 0.75 * 1.5_f64.ln() + 0.25 * 0.5_f64.ln();
        assert!((of(&[3.0_f64.ln(), 0.0], &[0.0, 0.0]) - expected).abs() < 1e-12);
    }

    #[test]
    fn sure_answers_stay_finite_and_continuous() {
        assert!((of(&[0.0, -1e4], &[-1e4, 0.0]) - 1e4).abs() < 1e-8);
        assert!((of(&[1e4, 0.0, 0.0], &[0.0, 1e4, 0.0]) - 1e4).abs() < 1e-8);
        let (near, far) = (of(&[30.0, 0.0], &[0.0, 30.0]), of(&[30.0, 0.0], &[0.0, 30.001]));
        assert!(far > near && far - near < 0.002, "{near} {far}");
    }

    #[test]
    fn rows_do_not_mix_and_single_precision_is_read() {
        let before = Tensor::from_slice(&[0.0_f32, 0.0, 5.0, 0.0]).view([2, 2]);
        let after = Tensor::from_slice(&[0.0_f32, 0.0, 0.0, 5.0]).view([2, 2]);
        let scores = Vec::<f64>::try_from(suspicion(&before, &after)).unwrap();
        assert_eq!(scores[0], 0.0);
        assert!((scores[1] - of(&[5.0, 0.0], &[0.0, 5.0])).abs() < 1e-12);
    }
}
