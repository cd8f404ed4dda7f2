//! Gradient maps: what holds for every estimator, and what ties them to each other.

mod common;

use common::{CLASSES, ESTIMATORS, Smooth, busy_network, images};
use proptest::prelude::*;
use talion_core::Classifier;
use talion_defenses::{EstimatorSpec, Normalization, gradient_map::MapGraph};
use tch::{Kind, Tensor};

const ALL: [Normalization; 3] = [Normalization::Rms, Normalization::Max, Normalization::Sign];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn normalised_maps_ignore_scale_and_stay_bounded(exponent in -30.0..20.0_f64, seed in any::<u64>()) {
        let gradient = talion_core::gaussian_noise(&[2, 5, 5], &[1, 2], seed, "g", 0);
        let scaled = &gradient * 10f64.powf(exponent);
        for normalization in ALL {
            let (map, other) = (normalization.apply(&gradient), normalization.apply(&scaled));
            prop_assert!(map.abs().max().double_value(&[]) <= 1.0);
            prop_assert!((map - other).abs().max().double_value(&[]) < 1e-4);
        }
    }
}

#[test]
fn a_zero_gradient_gives_a_zero_map_and_leaves_other_rows_alone() {
    let gradient = talion_core::gaussian_noise(&[1, 4, 4], &[1, 2], 1, "g", 0);
    let mixed = Tensor::cat(&[gradient.narrow(0, 0, 1), gradient.narrow(0, 1, 1) * 0.0], 0);
    for normalization in ALL {
        let map = normalization.apply(&mixed);
        assert_eq!(map.get(1).abs().sum(Kind::Float).double_value(&[]), 0.0);
        assert_eq!(map.get(0), normalization.apply(&gradient).get(0));
    }
}

#[test]
fn every_estimator_keeps_its_promises() {
    let classifier = Smooth::new(3, 12, Kind::Float);
    let x = images(5, 3, 12, 12);
    for name in ESTIMATORS.into_iter().skip(1) {
        let trn = busy_network(name, 3);
        let spec: EstimatorSpec = name.parse().unwrap();
        let all = trn.prepare(&classifier, &x, MapGraph::Constant, None);
        let (maps, evidence) = (all.maps.unwrap(), all.evidence.unwrap());
        assert_eq!(maps.size(), [5, 3 * spec.maps(), 12, 12], "{name}");
        assert_eq!(evidence.size()[0], 5, "{name}");
        assert!(!maps.requires_grad(), "{name}");
        if maps.numel() > 0 {
            assert!(maps.abs().max().double_value(&[]) <= 1.0, "{name}");
        }
        assert!(evidence.isfinite().all().int64_value(&[]) == 1, "{name}");
        // a row depends on no other row
        let one = trn.prepare(&classifier, &x.narrow(0, 2, 1), MapGraph::Constant, None);
        if maps.numel() > 0 {
            let off = (one.maps.unwrap() - maps.narrow(0, 2, 1)).abs().max().double_value(&[]);
            assert!(off < 1e-4, "{name}: {off}");
        }
    }
}

#[test]
fn estimators_agree_where_they_must() {
    let classifier = Smooth::new(1, 8, Kind::Float);
    let x = images(6, 1, 8, 8);
    let maps = |name: &str, labels: Option<&Tensor>| {
        busy_network(name, 1).prepare(&classifier, &x, MapGraph::Constant, labels).maps.unwrap()
    };
    let predicted = classifier.predict(&x);
    assert_eq!(maps("predicted", None), maps("top1", None));
    assert_eq!(maps("predicted", None), maps("oracle", Some(&predicted)));
    assert_eq!(maps("predicted", None), maps("top3", None).narrow(1, 0, 1));
    let other = (predicted + 1).remainder(CLASSES);
    assert_ne!(maps("predicted", None), maps("oracle", Some(&other)));
}

#[test]
fn the_gradient_under_the_own_softmax_is_zero() {
    // Why "probability-weighted" maps need weights from elsewhere.
    let classifier = Smooth::new(1, 8, Kind::Double);
    let x = images(3, 1, 8, 8).to_kind(Kind::Double).set_requires_grad(true);
    let logits = classifier.logits(&x);
    let weights = logits.softmax(1, None).detach();
    let loss = -(logits.log_softmax(1, None) * weights).sum(Kind::Double);
    let gradient = Tensor::run_backward(&[loss], &[&x], false, false).remove(0);
    assert!(gradient.abs().max().double_value(&[]) < 1e-12);
}

#[test]
fn constant_and_differentiable_maps_are_the_same_numbers() {
    let classifier = Smooth::new(1, 8, Kind::Float);
    let x = images(3, 1, 8, 8);
    for name in ["predicted", "top3", "coarse1", "walk-back", "learned"] {
        let trn = busy_network(name, 1);
        let constant = trn.prepare(&classifier, &x, MapGraph::Constant, None).maps.unwrap();
        let watched = x.detach().set_requires_grad(true);
        let graph = trn.prepare(&classifier, &watched, MapGraph::Differentiable, None).maps.unwrap();
        assert!(graph.requires_grad(), "{name}");
        let off = (graph.detach() - constant).abs().max().double_value(&[]);
        assert!(off < 1e-4, "{name}: {off}");
    }
}

#[test]
fn names_round_trip() {
    for name in ESTIMATORS.into_iter().chain(["oracle"]) {
        assert_eq!(name.parse::<EstimatorSpec>().unwrap().to_string(), name);
    }
    for wrong in ["top0", "top17", "coarse0", "coarse9", "walkback", ""] {
        assert!(wrong.parse::<EstimatorSpec>().is_err(), "{wrong}");
    }
}

#[test]
fn the_oracle_takes_the_place_of_one_map_and_says_so() {
    let classifier = Smooth::new(1, 12, Kind::Float);
    let x = images(3, 1, 12, 12);
    let predicted = classifier.predict(&x);
    for name in ["predicted", "coarse1"] {
        let told = busy_network(name, 1).with_oracle().unwrap();
        assert_eq!(told.card().spec.estimator.to_string(), "oracle");
        let maps =
            |labels: &Tensor| told.prepare(&classifier, &x, MapGraph::Constant, Some(labels)).maps.unwrap();
        assert_ne!(maps(&predicted), maps(&(&predicted + 1).remainder(CLASSES)), "{name}");
    }
    for name in ["none", "walk-back", "top3", "learned"] {
        assert!(busy_network(name, 1).with_oracle().is_err(), "{name}");
    }
}
