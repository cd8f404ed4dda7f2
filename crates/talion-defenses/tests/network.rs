//! The restoration network: identity at the start, any size, files, and exact second-order gradients.

mod common;

use common::{ESTIMATORS, Smooth, busy_network, card, images, network};
use talion_core::{Classifier, Objective, gaussian_noise};
use talion_defenses::{Defended, FusedScales, Fusion, GradientMode, Trn, TrnSpec, gradient_map::MapGraph};
use tch::{Device, Kind, Tensor};

#[test]
fn a_new_network_is_the_identity() {
    for name in ESTIMATORS {
        for channels in [1, 3] {
            let classifier = Smooth::new(channels, 12, Kind::Float);
            let x = images(2, channels, 12, 12);
            let restored = network(name, channels).freeze().restore(&classifier, &x, MapGraph::Constant);
            assert_eq!(restored, x, "{name}");
        }
    }
}

#[test]
fn a_second_pass_starts_as_the_first_pass_alone() {
    let classifier = Smooth::new(1, 12, Kind::Float);
    let x = images(2, 1, 12, 12);
    let first = busy_network("none", 1);
    let mut second = network("walk-back", 1);
    second.set_first(&first).unwrap();
    let restored = second.freeze().restore(&classifier, &x, MapGraph::Constant);
    assert_eq!(restored, first.restore(&classifier, &x, MapGraph::Constant));
    assert_ne!(restored, x);
    assert!(network("predicted", 1).set_first(&first).is_err());
}

#[test]
fn any_image_size_is_restored_within_bound_and_box() {
    for name in ["none", "predicted", "walk-back"] {
        let trn = busy_network(name, 1);
        for (height, width) in [(4, 4), (5, 9), (28, 28), (31, 64), (1, 1)] {
            // any classifier will do that takes this size
            let model = talion_models_stub::Mean;
            let x = images(2, 1, height, width);
            let restored = trn.restore(&model, &x, MapGraph::Constant);
            assert_eq!(restored.size(), x.size(), "{name} {height}x{width}");
            assert!((&restored - &x).abs().max().double_value(&[]) <= trn.card().spec.bound + 1e-6);
            assert!(restored.min().double_value(&[]) >= 0.0 && restored.max().double_value(&[]) <= 1.0);
        }
    }
}

mod talion_models_stub {
    use super::*;

    /// Classifies by brightness; takes any size.
    pub struct Mean;

    impl Classifier for Mean {
        fn classes(&self) -> i64 {
            common::CLASSES
        }

        fn logits(&self, images: &Tensor) -> Tensor {
            let mean = images.mean_dim([1_i64, 2, 3].as_slice(), false, None).unsqueeze(1);
            let centres = Tensor::from_slice(&[0.2_f32, 0.4, 0.6, 0.8]).to_kind(images.kind());
            -(mean - centres).square() * 20.0
        }
    }
}

/// A network whose output and biases do something.
fn busy(spec: &TrnSpec, estimator: &str) -> Trn {
    let trn = Trn::new(card(spec.with_estimator(estimator.parse().unwrap())), Device::Cpu).unwrap();
    tch::no_grad(|| {
        for (name, mut tensor) in trn.store().variables() {
            if name.contains("decoder.output") || name.ends_with("bias") {
                let noise = gaussian_noise(&tensor.size(), &[3], 1, &name, 0).squeeze_dim(0);
                tensor.copy_(&(noise * 0.1));
            }
        }
    });
    trn.freeze()
}

/// The smallest one-stream network, to which a second stream is joined like this.
fn joined(fusion: Fusion, fused: FusedScales) -> TrnSpec {
    TrnSpec { width: 8, fusion, fused, ..TrnSpec::one_stream("tiny", 1).unwrap() }
}

#[test]
fn every_fusion_joins_the_streams_at_any_scale() {
    let classifier = Smooth::new(1, 12, Kind::Float);
    let x = images(2, 1, 12, 12);
    for fusion in Fusion::ALL {
        for fused in FusedScales::ALL {
            let trn = busy(&joined(fusion, fused), "predicted");
            let mut prepared = trn.prepare(&classifier, &x, MapGraph::Constant, None);
            let with_map = trn.restore_prepared(&x, &prepared);
            prepared.maps = prepared.maps.map(|maps| -maps);
            assert_ne!(with_map, trn.restore_prepared(&x, &prepared), "{fusion} at {fused} ignores the map");
        }
    }
}

#[test]
fn networks_have_the_blocks_and_scales_that_they_use() {
    for fusion in Fusion::ALL {
        let weights = |fused| busy(&joined(fusion, fused), "predicted").tensors();
        let [all, coarsest, finest] = FusedScales::ALL.map(weights);
        let has = |name: &str| {
            [&all, &coarsest, &finest].map(|tensors| tensors.keys().any(|key| key.starts_with(name)))
        };
        assert_eq!(has("main.fusion0."), [true, false, true], "{fusion}");
        assert_eq!(has("main.fusion1."), [true, false, false], "{fusion}");
        assert_eq!(has("main.fusion2."), [true, true, false], "{fusion}");
        assert_eq!(has("main.gradient.scale0."), [true, true, true], "{fusion}");
        assert_eq!(has("main.gradient.scale1."), [true, true, false], "{fusion}");
        assert_eq!(has("main.image.scale2."), [true, true, true], "{fusion}");
    }
}

#[test]
fn every_fusion_takes_any_image_size() {
    for fusion in Fusion::ALL {
        for scales in [2, 5] {
            let trn = busy(&TrnSpec { scales, ..joined(fusion, FusedScales::All) }, "predicted");
            for (height, width) in [(1, 1), (5, 9), (31, 34)] {
                let x = images(2, 1, height, width);
                let restored = trn.restore(&talion_models_stub::Mean, &x, MapGraph::Constant);
                assert_eq!(restored.size(), x.size(), "{fusion}, {scales} scales, {height}x{width}");
                let moved = (&restored - &x).abs().max().double_value(&[]);
                assert!(moved > 0.0 && moved <= trn.card().spec.bound + 1e-6, "{fusion}: {moved}");
            }
        }
    }
}

#[test]
fn files_round_trip() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("trn.safetensors");
    for name in ESTIMATORS {
        let trn = busy_network(name, 1);
        trn.save(&path).unwrap();
        let back = Trn::load(&path, Device::Cpu).unwrap();
        assert_eq!(back.card(), trn.card());
        assert_eq!(back.tensors(), trn.tensors());
    }
    std::fs::write(&path, b"not a network").unwrap();
    let error = Trn::load(&path, Device::Cpu).err().unwrap().to_string();
    assert!(error.contains("trn.safetensors"), "{error}");
}

#[test]
fn impossible_specifications_are_refused() {
    let good = TrnSpec::one_stream("tiny", 1).unwrap();
    assert!(good.validate().is_ok());
    assert!(TrnSpec { channels: 2, ..good.clone() }.validate().is_err());
    assert!(TrnSpec { width: 1, ..good.clone() }.validate().is_err());
    assert!(TrnSpec { scales: 9, ..good.clone() }.validate().is_err());
    assert!(TrnSpec { bound: f64::NAN, ..good.clone() }.validate().is_err());
    assert!(TrnSpec { estimator: "walk-back".parse().unwrap(), ..good }.validate().is_err());
    assert!(TrnSpec::one_stream("huge", 1).is_err());
}

/// The derivative of the loss along `direction`, by central differences.
fn slope(victim: &dyn Classifier, x: &Tensor, labels: &Tensor, direction: &Tensor) -> f64 {
    let step = 1e-6;
    let loss = |x: &Tensor| {
        tch::no_grad(|| Objective::CrossEntropy.per_sample(&victim.logits(x), labels).sum(Kind::Double))
            .double_value(&[])
    };
    (loss(&(x + direction * step)) - loss(&(x - direction * step))) / (2.0 * step)
}

#[test]
fn exact_gradients_match_finite_differences_and_the_other_modes_do_not() {
    let classifier = Smooth::new(1, 8, Kind::Double);
    let x = images(2, 1, 8, 8).to_kind(Kind::Double);
    let labels = Tensor::from_slice(&[0_i64, 1]);
    let direction = talion_core::gaussian_noise(&[1, 8, 8], &[0, 1], 3, "direction", 0).to_kind(Kind::Double);
    for name in ["none", "restoration", "predicted", "top3", "coarse1", "walk-back", "learned"] {
        let trn = busy_network(name, 1).to_double();
        let along = |mode| {
            let victim = Defended::new(&classifier, &trn, mode).unwrap();
            let gradient = victim.input_gradient(&x, &labels, Objective::CrossEntropy).gradient;
            (gradient * &direction).sum(Kind::Double).double_value(&[])
        };
        let victim = Defended::new(&classifier, &trn, GradientMode::Exact).unwrap();
        let truth = slope(&victim, &x, &labels, &direction);
        let exact = along(GradientMode::Exact);
        assert!((exact - truth).abs() < 1e-5 * truth.abs().max(1.0), "{name}: {exact} against {truth}");
        for mode in [GradientMode::Bpda, GradientMode::Oblivious] {
            assert!((along(mode) - truth).abs() > 1e-4, "{name} {mode}");
        }
        if !matches!(name, "none" | "restoration") {
            let detached = along(GradientMode::Detached);
            assert!((detached - truth).abs() > 1e-6, "{name}: the map's own derivative is missing");
        }
    }
}

#[test]
fn every_fusion_has_exact_gradients() {
    let classifier = Smooth::new(1, 8, Kind::Double);
    let x = images(2, 1, 8, 8).to_kind(Kind::Double);
    let labels = Tensor::from_slice(&[0_i64, 1]);
    let direction = gaussian_noise(&[1, 8, 8], &[0, 1], 3, "direction", 0).to_kind(Kind::Double);
    for fusion in Fusion::ALL {
        for fused in FusedScales::ALL {
            let trn = busy(&joined(fusion, fused), "walk-back").to_double();
            let along = |mode| {
                let victim = Defended::new(&classifier, &trn, mode).unwrap();
                let gradient = victim.input_gradient(&x, &labels, Objective::CrossEntropy).gradient;
                (gradient * &direction).sum(Kind::Double).double_value(&[])
            };
            let victim = Defended::new(&classifier, &trn, GradientMode::Exact).unwrap();
            let truth = slope(&victim, &x, &labels, &direction);
            let exact = along(GradientMode::Exact);
            let what = format!("{fusion} at {fused}");
            assert!((exact - truth).abs() < 1e-5 * truth.abs().max(1.0), "{what}: {exact} against {truth}");
            let detached = along(GradientMode::Detached);
            assert!((detached - truth).abs() > 1e-6, "{what}: the map's own derivative is missing");
        }
    }
}

#[test]
fn all_views_but_the_oblivious_predict_the_same() {
    let classifier = Smooth::new(1, 8, Kind::Float);
    let trn = busy_network("walk-back", 1);
    let x = images(4, 1, 8, 8);
    let logits = |mode| {
        let victim = Defended::new(&classifier, &trn, mode).unwrap();
        tch::no_grad(|| victim.logits(&x))
    };
    let exact = logits(GradientMode::Exact);
    for mode in [GradientMode::Bpda, GradientMode::Detached] {
        assert!((logits(mode) - &exact).abs().max().double_value(&[]) < 1e-4, "{mode}");
    }
    assert_eq!(logits(GradientMode::Oblivious), classifier.logits(&x));
}
