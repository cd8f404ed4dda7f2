//! The fast engine under attacks and in restoration, with the bundled networks.

use std::{ops::ControlFlow, path::PathBuf};

use talion_attacks::{Attack, AttackSpec, Batch, Outcome, RunOptions, run};
use talion_core::{Budget, Classifier, Norm, Objective, Reference, uniform_noise};
use talion_defenses::{Defended, EstimatorSpec, GradientMode, Trn, TrnCard, TrnSpec, gradient_map::MapGraph};
use talion_models::{Model, SearchPrecision, training::variables};
use tch::{Device, Kind, Tensor};

fn bundled(file: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../models/fashion-mnist").join(file)
}

/// Images that are smooth as photographs are: noise, blurred.
fn images(count: u64) -> Tensor {
    let ids: Vec<u64> = (0..count).collect();
    let coarse = uniform_noise(&[1, 7, 7], &ids, 3, "images", 0) * 0.5 + 0.5;
    coarse.upsample_bilinear2d([28, 28], false, None, None).clamp(0.0, 1.0)
}

/// Robust accuracy must not depend on the fast ways. Another rounding is another path, on which single samples at the limit of
/// what an attack can do come out otherwise: 3 of 1,000 may.
#[test]
fn the_fast_engine_finds_what_the_reference_finds() {
    let classifier = Model::load(&bundled("classifier.safetensors"), Device::Cpu).unwrap();
    assert!(classifier.is_fast([28, 28]));
    let images = images(1000);
    let labels = classifier.predict(&images);
    let ids: Vec<u64> = (0..1000).collect();
    let batch = Batch {
        images: &images,
        labels: &labels,
        ids: &ids,
        budget: Budget::new(Norm::Linf, 1.5 / 255.0).unwrap(),
        objective: Objective::CrossEntropy,
        seed: 1,
        restart: 0,
    };
    let attack: AttackSpec = "pgd-5".parse().unwrap();
    let options = RunOptions { until_fooled: true };
    let robust = |classifier: &dyn Classifier| {
        let outcome: Outcome =
            run(&attack as &dyn Attack, classifier, &batch, &options, &mut |_| ControlFlow::Continue(()))
                .unwrap();
        // the judge is the same on both sides
        let fooled = classifier.logits(&outcome.adversarial).argmax(1, false).ne_tensor(&labels);
        assert_eq!(fooled.sum(Kind::Int64), outcome.success.sum(Kind::Int64));
        1000 - fooled.sum(Kind::Int64).int64_value(&[])
    };
    let (fast, reference) = (robust(&classifier), robust(&Reference(&classifier)));
    // on a processor without bf16 this searches in f32 once more
    let short = robust(&classifier.searching_in(SearchPrecision::Bf16));
    println!("robust: {fast} with the fast engine, {short} in bf16, {reference} without");
    assert!((50..=950).contains(&reference), "{reference} of 1000 say nothing");
    assert!(fast <= reference + 3, "{fast} are robust to the fast engine, {reference} to the reference");
    assert!(short <= reference + 3, "{short} are robust to a search in bf16, {reference} to the reference");
}

/// Attacks that look for the boundary itself do so in f32.
#[test]
fn the_smallest_change_is_not_sought_in_bf16() {
    let classifier = Model::load(&bundled("classifier.safetensors"), Device::Cpu).unwrap();
    let (images, ids) = (images(12), (0..12).collect::<Vec<u64>>());
    let labels = classifier.predict(&images);
    let batch = Batch {
        images: &images,
        labels: &labels,
        ids: &ids,
        budget: Budget::new(Norm::Linf, 4.0 / 255.0).unwrap(),
        objective: Objective::CrossEntropy,
        seed: 1,
        restart: 0,
    };
    let found = |attack: &str, classifier: &dyn Classifier| {
        let attack: AttackSpec = attack.parse().unwrap();
        let options = RunOptions::default();
        run(&attack as &dyn Attack, classifier, &batch, &options, &mut |_| ControlFlow::Continue(()))
            .unwrap()
            .adversarial
    };
    let short = classifier.searching_in(SearchPrecision::Bf16);
    assert!(found("fab-5", &short) == found("fab-5", &classifier));
    if short.closer().is_some() {
        assert!(found("pgd-5", &short) != found("pgd-5", &classifier), "others are sought in bf16");
    }
}

/// A network that does something, from a specification.
fn busy(spec: TrnSpec) -> Trn {
    let card = TrnCard {
        kind: TrnCard::KIND.into(),
        spec,
        classes: 10,
        classifier: "resnet18-w16".into(),
        dataset: "noise".into(),
        seed: 3,
        training: serde_json::Value::Null,
        metrics: Default::default(),
    };
    let trn = Trn::new(card, Device::Cpu).unwrap();
    tch::no_grad(|| {
        for (name, tensor) in variables(trn.store()) {
            let noise = uniform_noise(&tensor.size(), &[1], 5, &name, 0).squeeze_dim(0);
            let mut tensor = tensor;
            tensor += noise * 0.1;
        }
    });
    trn
}

/// The same restoration whether somebody could differentiate it or not.
#[test]
fn quick_restoration_is_the_restoration() {
    let classifier = Model::load(&bundled("classifier.safetensors"), Device::Cpu).unwrap();
    let (x, odd) = (images(5), images(2).narrow(2, 0, 27).narrow(3, 0, 22));
    let mut networks = vec![Trn::load(&bundled("trn.safetensors"), Device::Cpu).unwrap()];
    for (estimator, fusion) in [("none", "gated"), ("walk-back", "concatenation"), ("top3", "gated")] {
        let spec = TrnSpec { width: 8, scales: 3, ..TrnSpec::one_stream("tiny", 1).unwrap() };
        let estimator: EstimatorSpec = estimator.parse().unwrap();
        let spec = TrnSpec {
            fusion: serde_json::from_value(fusion.into()).unwrap(),
            ..spec.with_estimator(estimator)
        };
        networks.push(busy(spec).freeze());
    }
    for trn in &networks {
        for x in [&x, &odd] {
            let victim = Defended::new(&classifier, trn, GradientMode::Detached).unwrap();
            let quick = victim.restore(x);
            let variable = x.copy().set_requires_grad(true);
            let slow = trn.restore(&classifier, &variable, MapGraph::Constant);
            assert!(slow.requires_grad());
            let off = (&quick - slow.detach()).abs().max().double_value(&[]);
            let moved = (&quick - x).abs().max().double_value(&[]);
            assert!(moved > 1e-3, "nothing was restored");
            // maps of images that the classifier is sure of are made of rounding, and carry it on
            assert!(off < 2e-3 * moved.max(0.01) + 1e-5, "{}: {off} of {moved}", trn.card().spec.estimator);
        }
    }
}

/// The derivative of a restoration is that of libtorch's graph.
#[test]
fn gradients_come_back_as_through_the_graph() {
    let classifier = Model::load(&bundled("classifier.safetensors"), Device::Cpu).unwrap();
    let labels = Tensor::from_slice(&[1_i64, 2, 3, 4, 5]);
    let x = (images(5) * 0.6 + uniform_noise(&[1, 28, 28], &[0, 1, 2, 3, 4], 4, "texture", 0) * 0.2 + 0.2)
        .clamp(0.02, 0.98);
    for (estimator, fusion, gate, patterns) in [
        ("none", "gated", true, false),
        ("none", "gated", false, true),
        ("restoration", "gated", true, false),
        ("restoration", "concatenation", false, true),
        ("predicted", "gated", true, false),
        ("top3", "concatenation", false, false),
    ] {
        let small = TrnSpec { width: 8, gate, ..TrnSpec::one_stream("tiny", 1).unwrap() };
        let estimator: EstimatorSpec = estimator.parse().unwrap();
        let patterns = patterns.then_some([28, 28]);
        let fusion = fusion.parse().unwrap();
        let trn = busy(TrnSpec { fusion, patterns, ..small.with_estimator(estimator) }).freeze();
        for (name, x) in [("whole", x.shallow_clone()), ("odd", x.narrow(2, 0, 27).narrow(3, 0, 22))] {
            let towards = uniform_noise(&x.size()[1..], &[0, 1, 2, 3, 4], 2, "towards", 0);
            let found = trn.pull_back(&classifier, &x, MapGraph::Constant, &mut |restored| {
                assert!(!restored.requires_grad());
                towards.shallow_clone()
            });
            let variable = x.copy().set_requires_grad(true);
            let restored = trn.restore(&classifier, &variable, MapGraph::Constant);
            let along = (restored * &towards).sum(Kind::Float);
            let expected = Tensor::run_backward(&[along], &[&variable], false, false).remove(0);
            // what the network adds to the identity
            let own = (&expected - &towards).norm().double_value(&[]);
            let off = (&found - &expected).norm().double_value(&[]);
            assert!(own > 0.05, "{estimator}: {own} says nothing");
            assert!(off < 2e-3 * own, "{estimator} {fusion} {name}: {off} of {own}");
        }
    }
    // second derivatives through the maps stay in the graph
    let trn = Trn::load(&bundled("trn.safetensors"), Device::Cpu).unwrap();
    let gradient = |mode| {
        let victim = Defended::new(&classifier, &trn, mode).unwrap();
        victim.input_gradient(&x, &labels, Objective::CrossEntropy).gradient
    };
    let victim = Defended::new(&classifier, &trn, GradientMode::Exact).unwrap();
    let reference = Reference(&victim).input_gradient(&x, &labels, Objective::CrossEntropy).gradient;
    let cosine = |other: &Tensor| {
        let dot = (&reference * other).sum(Kind::Float).double_value(&[]);
        dot / (reference.norm().double_value(&[]) * other.norm().double_value(&[]))
    };
    assert!(cosine(&gradient(GradientMode::Exact)) > 0.99);
    // few of these images leave the classifier unsure, so that second derivatives are small
    let apart = (gradient(GradientMode::Detached) - gradient(GradientMode::Exact)).norm().double_value(&[]);
    assert!(apart > 1e-5 * reference.norm().double_value(&[]), "{apart}");
}
