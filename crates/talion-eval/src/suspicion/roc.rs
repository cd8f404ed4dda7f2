//! How well a score tells two groups apart, whatever the threshold.

use std::collections::BTreeSet;

use talion_core::{Error, Result};

/// Detection against false alarms, as the threshold falls from above all scores to below them.
#[derive(Clone, Debug, PartialEq)]
pub struct Roc {
    /// The chance that an attacked image scores higher than a clean one, ties counted half (Mann and Whitney 1947): the
    /// area under the whole curve, of which `points` are a part.
    pub auc: f64,
    /// Points of the curve from `[0, 0]` to `[1, 1]`: the shares of clean and of attacked images that are flagged. Of many
    /// points at most 60 are kept, corners first, so that straight lines between them miss as little as possible.
    pub points: Vec<[f64; 2]>,
}

/// Points that are kept of a curve.
const KEPT: usize = 60;
/// A corner nearer than this to the line that is drawn already is none.
const STRAIGHT: f64 = 1e-9;

/// The curve of scores of clean and of attacked images.
///
/// # Errors
/// If there are no clean or no attacked scores, or one is NaN.
pub fn roc(clean: &[f64], attacked: &[f64]) -> Result<Roc> {
    let numbers = !clean.iter().chain(attacked).any(|score| score.is_nan());
    if clean.is_empty() || attacked.is_empty() || !numbers {
        let found = format!("{} clean and {} attacked", clean.len(), attacked.len());
        let found = if numbers { found } else { format!("{found}, some of them NaN") };
        return Err(Error::range("scores", "numbers, at least one clean and one attacked", found));
    }
    let tagged = |scores: &[f64], attacked: bool| -> Vec<(f64, bool)> {
        scores.iter().map(|&score| (score, attacked)).collect()
    };
    let mut scores = [tagged(clean, false), tagged(attacked, true)].concat();
    scores.sort_by(|one, other| other.0.total_cmp(&one.0));
    let (mut alarms, mut detected, mut halves) = (0_u64, 0_u64, 0_u64);
    let mut points = vec![[0.0, 0.0]];
    for equal in scores.chunk_by(|one, other| one.0 == other.0) {
        let hits = equal.iter().filter(|(_, attacked)| *attacked).count() as u64;
        let misses = equal.len() as u64 - hits;
        // these clean images lie below all attacked ones so far, and level with those of the same score
        halves += misses * (2 * detected + hits);
        (alarms, detected) = (alarms + misses, detected + hits);
        points.push([alarms as f64 / clean.len() as f64, detected as f64 / attacked.len() as f64]);
    }
    let auc = halves as f64 / 2.0 / (clean.len() as f64 * attacked.len() as f64);
    Ok(Roc { auc, points: thinned(&points) })
}

/// The ends, and then again and again the point that is farthest from the line drawn so far (after Douglas and Peucker
/// 1973), until none is off it or there are enough.
fn thinned(points: &[[f64; 2]]) -> Vec<[f64; 2]> {
    let mut kept = BTreeSet::from([0, points.len() - 1]);
    while kept.len() < KEPT {
        let segments = kept.iter().zip(kept.iter().skip(1));
        let farthest = segments
            .flat_map(|(&from, &to)| {
                (from + 1..to).map(move |place| (distance(points[place], points[from], points[to]), place))
            })
            .max_by(|one, other| one.0.total_cmp(&other.0));
        match farthest {
            Some((off, place)) if off > STRAIGHT => kept.insert(place),
            _ => break,
        };
    }
    kept.into_iter().map(|place| points[place]).collect()
}

/// How far a point is from the line through two others, which are not the same.
fn distance(point: [f64; 2], from: [f64; 2], to: [f64; 2]) -> f64 {
    let along = [to[0] - from[0], to[1] - from[1]];
    let off = [point[0] - from[0], point[1] - from[1]];
    (along[0] * off[1] - along[1] * off[0]).abs() / along[0].hypot(along[1])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn area(points: &[[f64; 2]]) -> f64 {
        points.windows(2).map(|pair| (pair[1][0] - pair[0][0]) * (pair[0][1] + pair[1][1]) / 2.0).sum()
    }

    #[test]
    fn separated_and_identical_scores_have_their_closed_forms() {
        let low: Vec<f64> = (0..100).map(f64::from).collect();
        let high: Vec<f64> = (200..250).map(f64::from).collect();
        let separated = roc(&low, &high).unwrap();
        assert_eq!(separated, Roc { auc: 1.0, points: vec![[0.0, 0.0], [0.0, 1.0], [1.0, 1.0]] });
        assert_eq!(roc(&high, &low).unwrap().auc, 0.0);
        let same = roc(&low, &low).unwrap();
        assert_eq!(same, Roc { auc: 0.5, points: vec![[0.0, 0.0], [1.0, 1.0]] });
        assert_eq!(roc(&[0.0; 7], &[0.0, -0.0]).unwrap(), same);
    }

    #[test]
    fn a_curve_by_hand() {
        // of the pairs (1,2) (1,3) (1,3) (3,2) (3,3) (3,3) three are right and two are ties
        let found = roc(&[1.0, 3.0], &[2.0, 3.0, 3.0]).unwrap();
        assert!((found.auc - 4.0 / 6.0).abs() < 1e-12);
        assert_eq!(found.points, [[0.0, 0.0], [0.5, 2.0 / 3.0], [0.5, 1.0], [1.0, 1.0]]);
    }

    #[test]
    fn nothing_and_nan_have_no_curve() {
        assert!(roc(&[], &[1.0]).is_err() && roc(&[1.0], &[]).is_err());
        assert!(roc(&[f64::NAN], &[1.0]).unwrap_err().to_string().contains("NaN"));
        assert!(roc(&[0.0], &[f64::INFINITY]).is_ok());
    }

    #[test]
    fn thinning_keeps_ends_and_shape() {
        let circle: Vec<[f64; 2]> = (0..=5000)
            .map(|step| f64::from(step) / 5000.0)
            .map(|share| [share, (1.0 - (1.0 - share) * (1.0 - share)).sqrt()])
            .collect();
        let few = thinned(&circle);
        assert_eq!((few.len(), few[0], few[KEPT - 1]), (KEPT, [0.0, 0.0], [1.0, 1.0]));
        assert!((area(&few) - area(&circle)).abs() < 1e-3);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn the_area_is_the_share_of_pairs_in_order(
            clean in prop::collection::vec(0..12_u8, 1..20), attacked in prop::collection::vec(0..12_u8, 1..20),
        ) {
            let clean: Vec<f64> = clean.into_iter().map(f64::from).collect();
            let attacked: Vec<f64> = attacked.into_iter().map(f64::from).collect();
            let pairs = clean.iter().flat_map(|low| attacked.iter().map(move |high| (low, high)));
            let order = pairs.map(|(low, high)| match high.total_cmp(low) {
                std::cmp::Ordering::Greater => 1.0,
                std::cmp::Ordering::Equal => 0.5,
                std::cmp::Ordering::Less => 0.0,
            });
            let share = order.sum::<f64>() / (clean.len() * attacked.len()) as f64;
            let found = roc(&clean, &attacked).unwrap();
            prop_assert!((found.auc - share).abs() < 1e-12);
            // so few points are all kept, but for those on straight lines
            prop_assert!((area(&found.points) - share).abs() < 1e-7);
            prop_assert!(found.points.windows(2).all(|pair| pair[0][0] <= pair[1][0] && pair[0][1] <= pair[1][1]));
        }
    }
}
