//! The fast engine under attacks and in restoration, with the bundled networks.

use std::{ops::ControlFlow, path::PathBuf};

use talion_attacks::{Attack, AttackSpec, Batch, Outcome, RunOptions, run};
use talion_core::{Budget, Classifier, Norm, Objective, Reference, uniform_noise};
use talion_defenses::{Defended, EstimatorSpec, GradientMode, Trn, TrnCard, TrnSpec, gradient_map::MapGraph};
use talion_models::{Model, training::variables};
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
    println!("robust: {fast} with the fast engine, {reference} without");
    assert!((50..=950).contains(&reference), "{reference} of 1000 say nothing");
    assert!(fast <= reference + 3, "{fast} are robust to the fast engine, {reference} to the reference");
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
