//! Thresholds by hand, the promise they keep, and files that are refused.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::{DetectionCurve, Proportion};

/// 1, 2, ... in another order.
fn scores(count: u32) -> Vec<f64> {
    (0..count).map(|place| f64::from((place * 7) % count + 1)).collect()
}

fn calibrated(scores: &[f64], rate: f64) -> Result<Calibration> {
    Calibration::new(scores, (&"ab".repeat(32), &"0f".repeat(32)), "toy", rate)
}

fn measured() -> Calibration {
    let curve = DetectionCurve {
        attack: "pgd-20".into(),
        budget: "Linf 8/255".into(),
        view: "oblivious".into(),
        samples: 40,
        auc: 0.875,
        detected: Proportion { count: 30, total: 40 },
        fooled: 5,
        missed_and_fooled: 2,
        points: vec![[0.0, 0.0], [0.1, 0.75], [1.0, 1.0]],
    };
    let false_alarms = Proportion { count: 3, total: 50 };
    let uneven: Vec<f64> = scores(99).iter().map(|score| score.sqrt() / 3.0).collect();
    let found = MeasuredDetection { false_alarms, curves: vec![curve] };
    Calibration { measured: Some(found), ..calibrated(&uneven, 0.05).unwrap() }
}

#[test]
fn thresholds_are_the_conformal_quantiles() {
    for (images, rate, rank) in [
        (19, 0.05, 19),
        (19, 0.1, 18),
        (99, 0.01, 99),
        (99, 0.05, 95),
        (99, 0.055, 95),
        // 100 * 0.29 is less than 29 in floating point
        (99, 0.29, 71),
        (99, 0.999, 1),
        (2000, 0.05, 1901),
    ] {
        assert_eq!(conformal_rank(images, rate).unwrap(), rank, "{images} {rate}");
    }
    let ninety_nine = calibrated(&scores(99), 0.05).unwrap();
    assert_eq!(ninety_nine.threshold(0.05).unwrap(), 95.0);
    assert_eq!(ninety_nine.threshold(0.01).unwrap(), 99.0);
}

#[test]
fn rates_that_so_few_images_cannot_promise_are_refused() {
    let ninety_nine = calibrated(&scores(99), 0.05).unwrap();
    for rate in [0.0, -0.1, 0.0099, 1.0, 2.0, f64::NAN, f64::INFINITY] {
        assert!(ninety_nine.threshold(rate).is_err() && ninety_nine.judge(1.0, rate).is_err(), "{rate}");
        assert!(calibrated(&scores(99), rate).is_err(), "{rate}");
    }
    assert!(conformal_rank(19, 0.049).unwrap_err().to_string().contains("0.05"));
    assert!(conformal_rank(0, 0.5).is_err());
}

#[test]
fn scores_that_cannot_be_calibrated_on_are_refused() {
    let with = |extra: f64| calibrated(&[scores(30), vec![extra]].concat(), 0.05);
    assert!(with(0.0).is_ok());
    for wrong in [f64::NAN, f64::INFINITY, -0.5, 1e300] {
        assert!(with(wrong).is_err(), "{wrong}");
    }
    assert!(calibrated(&scores(19), 0.1).unwrap_err().to_string().contains("at least 20"));
    assert!(calibrated(&scores(20), 0.1).is_ok());
    assert!(Calibration::new(&scores(20), ("12", &"0f".repeat(32)), "toy", 0.1).is_err());
}

#[test]
fn images_are_judged_by_their_place_among_clean_ones() {
    let calibration = calibrated(&scores(20), 0.1).unwrap();
    let judged = |score: f64| calibration.judge(score, 0.1).unwrap();
    for (score, quantile) in [(0.0, 0.0), (0.5, 0.0), (1.0, 0.025), (10.5, 0.5), (20.0, 0.975), (21.0, 1.0)] {
        assert_eq!(judged(score).quantile, quantile, "{score}");
    }
    // 21 places, of which two may be above: the 19th is the threshold
    assert!(!judged(19.0).flagged && judged(19.001).flagged);
    assert!(judged(f64::NAN).flagged && judged(f64::INFINITY).flagged);
    assert!(!calibration.judge(19.001, 0.05).unwrap().flagged);
    assert_eq!(judged(3.25).score, 3.25);
}

#[test]
fn other_networks_are_told() {
    let calibration = calibrated(&scores(20), 0.1).unwrap();
    let (classifier, trn) = ("ab".repeat(32), "0f".repeat(32));
    let said = |classifier: &str, trn: &str| {
        calibration.check_networks(classifier, trn, Path::new("here.json")).unwrap_err().to_string()
    };
    assert!(calibration.check_networks(&classifier, &trn, Path::new("here.json")).is_ok());
    assert!(said(&classifier, &classifier).contains("here.json: was made for another TRN"));
    assert!(said(&trn, &trn).contains("another classifier; make"));
    assert!(said(&trn, &classifier).contains("classifier and another TRN"));
}

#[test]
fn files_round_trip() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("calibration.json");
    for calibration in [measured(), calibrated(&scores(20), 0.25).unwrap()] {
        calibration.save(&path).unwrap();
        assert_eq!(Calibration::load(&path).unwrap(), calibration);
    }
    let broken = Calibration { clean_images: 7, ..measured() };
    assert!(broken.save(&folder.path().join("broken.json")).is_err());
    assert!(!folder.path().join("broken.json").exists());
    assert!(
        Calibration::load(&folder.path().join("none.json")).unwrap_err().to_string().contains("none.json")
    );
}

/// A change to a file, and a word of what is said of it.
type Damage = (fn(&mut Value), &'static str);

#[test]
fn damaged_files_are_refused_by_name() {
    let whole = serde_json::to_value(measured()).unwrap();
    let damages: [Damage; 21] = [
        (|file| file["kind"] = json!("classifier"), "classifier"),
        (|file| file["version"] = json!(2), "version 2"),
        (|file| file["extra"] = json!(1), "extra"),
        (|file| file["classifier"] = json!("ab"), "`classifier`"),
        (|file| file["trn"] = json!("XY".repeat(32)), "`trn`"),
        (|file| file["clean_images"] = json!(98), "98"),
        (|file| file["false_alarm_rate"] = json!(1.5), "rate"),
        (|file| file["false_alarm_rate"] = json!(0.001), "rate"),
        (|file| file["scores"][0] = json!(5.0), "order"),
        (|file| file["scores"][0] = json!(-0.1), "at least 0"),
        (|file| file["scores"][0] = Value::Null, "null"),
        (|file| file["scores"] = json!([1.0, 2.0]), "at least 20"),
        (|file| file["measured"]["extra"] = json!(1), "extra"),
        (|file| file["measured"]["false_alarms"]["count"] = json!(51), "51"),
        (|file| file["measured"]["curves"][0]["auc"] = json!(1.1), "pgd-20"),
        (|file| file["measured"]["curves"][0]["samples"] = json!(41), "pgd-20"),
        (|file| file["measured"]["curves"][0]["missed_and_fooled"] = json!(6), "pgd-20"),
        (|file| file["measured"]["curves"][0]["points"] = json!([]), "pgd-20"),
        (|file| file["measured"]["curves"][0]["points"][1] = json!([0.5]), "array"),
        (|file| file["measured"]["curves"][0]["points"][1][0] = json!(1.5), "pgd-20"),
        (|file| *file = json!([1]), "calibration"),
    ];
    for (damage, word) in damages {
        let mut file = whole.clone();
        damage(&mut file);
        refused(file.to_string().as_bytes(), word);
    }
    let bytes = whole.to_string().into_bytes();
    for length in [0, 1, 40, bytes.len() / 2, bytes.len() - 1] {
        refused(&bytes[..length], "whole");
    }
    refused(&[&bytes[..], b"{}"].concat(), "whole");
    refused(b"\xff\xfe", "whole");
    assert!(Calibration::from_bytes(&bytes, Path::new("x")).is_ok());
}

#[track_caller]
fn refused(bytes: &[u8], word: &str) {
    let said = Calibration::from_bytes(bytes, Path::new("some.json")).unwrap_err().to_string();
    assert!(said.starts_with("some.json: ") && said.contains("talion calibrate"), "{said}");
    assert!(said.contains(word), "{word} is not in: {said}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Each of n + 1 scores in turn is the new one: the share that is flagged by the others is at most the rate, for any
    /// scores, ties or not. Of exchangeable scores each is the new one with the same probability.
    #[test]
    fn false_alarms_keep_to_their_rate(drawn in prop::collection::vec(0..40_u32, 21..60), rate in 0.05..0.9_f64) {
        let all: Vec<f64> = drawn.iter().map(|&score| f64::from(score) / 7.0).collect();
        let mut flagged = 0;
        for place in 0..all.len() {
            let mut others = all.clone();
            let new = others.remove(place);
            flagged += usize::from(calibrated(&others, rate).unwrap().judge(new, rate).unwrap().flagged);
        }
        prop_assert!(flagged as f64 <= rate * all.len() as f64 + 1e-6, "{flagged} of {}", all.len());
    }

    #[test]
    fn quantiles_rise_with_the_score(
        drawn in prop::collection::vec(0.0..4.0_f64, 20..60), one in -1.0..5.0_f64, other in -1.0..5.0_f64,
    ) {
        let calibration = calibrated(&drawn, 0.5).unwrap();
        let (low, high) = (calibration.quantile(one.min(other)), calibration.quantile(one.max(other)));
        prop_assert!((0.0..=1.0).contains(&low) && low <= high && high <= 1.0);
    }

    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(Calibration::from_bytes(&bytes, Path::new("x")).is_err());
    }
}
