//! Training against attackers who know the network, on the bundled images.

use std::{ops::ControlFlow, path::Path};

use talion_attacks::{Attack, AttackSpec, Batch, predict_all};
use talion_core::{Budget, Classifier, Error, Norm, Objective};
use talion_data::{Augmentation, Dataset, fashion_mnist_sample};
use talion_defenses::{
    Defended, GradientMode, Trn, TrnSpec,
    gradient_map::MapGraph,
    training::{AdaptiveLosses, AdaptiveTraining, TrnSources, train_adaptive},
};
use talion_models::{
    Model,
    training::{ClassifierTraining, Event, Precision, train_classifier},
};
use tch::{Device, Kind};

fn classifier(data: &Dataset) -> Model {
    let config = ClassifierTraining {
        architecture: "cnn-small-w8".parse().unwrap(),
        epochs: 5,
        batch_size: 32,
        peak_rate: 0.05,
        augmentation: Augmentation { pad: 0, flip: true, cutout: 0 },
        precision: Precision::F32,
        validation: 200,
        ..ClassifierTraining::default()
    };
    train_classifier(&config, data, Device::Cpu, None, &mut |_| ControlFlow::Continue(())).unwrap()
}

fn spec(estimator: &str) -> TrnSpec {
    let small = TrnSpec { width: 8, gate: false, ..TrnSpec::one_stream("tiny", 1).unwrap() };
    small.with_estimator(estimator.parse().unwrap())
}

fn config(spec: TrnSpec) -> AdaptiveTraining {
    AdaptiveTraining {
        steps: 20,
        rounds: 2,
        batch_size: 32,
        peak_rate: 2e-3,
        average: 0.9,
        validation_sample: 32,
        ..AdaptiveTraining::new(spec, "pgd-2@0.05".parse().unwrap(), 200, 1)
    }
}

struct Run<'a> {
    classifier: &'a Model,
    data: &'a Dataset,
    first: Option<&'a Trn>,
    warm: Option<&'a Trn>,
    snapshot: Option<&'a Path>,
}

impl Run<'_> {
    fn train(&self, config: &AdaptiveTraining, stop_at: Option<u64>) -> Result<Trn, Error> {
        let sources = TrnSources {
            architecture: "cnn-small-w8".into(),
            classifier: self.classifier,
            others: &[],
            data: self.data,
            first: self.first,
            snapshot: self.snapshot,
            cache: None,
        };
        train_adaptive(config, &sources, self.warm, &mut |event| match event {
            Event::Progress { step, .. } if Some(*step) == stop_at => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        })
    }
}

/// The share of validation images that the defended classifier still gets right under an attacker who knows everything.
fn robust(classifier: &Model, trn: &Trn, data: &Dataset, epsilon: f64) -> f64 {
    let (_, validation) = data.split_validation(200, 1).unwrap();
    let indices: Vec<usize> = (32..200).collect();
    let (images, labels) = validation.tensor(&indices).unwrap();
    let victim = Defended::new(classifier, trn, GradientMode::Exact).unwrap();
    let batch = Batch {
        images: &images,
        labels: &labels,
        ids: &indices.iter().map(|&index| validation.ids()[index]).collect::<Vec<_>>(),
        budget: Budget::new(Norm::Linf, epsilon).unwrap(),
        objective: Objective::CrossEntropy,
        seed: 1,
        restart: 0,
    };
    let adversarial = "pgd-10".parse::<AttackSpec>().unwrap().perturb(&victim, &batch).unwrap();
    let right = predict_all(&victim, &adversarial).unwrap().labels.eq_tensor(&labels);
    right.to_kind(Kind::Float).mean(Kind::Float).double_value(&[])
}

#[test]
fn a_network_learns_to_withstand_attackers_who_know_it() {
    let data = fashion_mnist_sample().unwrap();
    let classifier = classifier(&data);
    let run = Run { classifier: &classifier, data: &data, first: None, warm: None, snapshot: None };
    let with_patterns = TrnSpec { patterns: Some([28, 28]), bound: 0.4, ..spec("none") };
    let config = AdaptiveTraining {
        attacks: "pgd-2@0.1".parse().unwrap(),
        steps: 160,
        prime: 50,
        losses: AdaptiveLosses { clean: 0.0, ..AdaptiveLosses::default() },
        ..config(with_patterns)
    };
    let trn = run.train(&config, None).unwrap();
    let untrained = Trn::new(trn.card().clone(), Device::Cpu).unwrap().freeze();
    let (before, after) =
        (robust(&classifier, &untrained, &data, 0.1), robust(&classifier, &trn, &data, 0.1));
    println!("robust to PGD-10 at 0.1: {before} before, {after} after");
    assert!(after > before + 0.1, "{before} before, {after} after");
}

#[test]
fn an_interrupted_run_ends_as_an_uninterrupted_one() {
    let data = fashion_mnist_sample().unwrap();
    let classifier = classifier(&data);
    let folder = tempfile::tempdir().unwrap();
    let snapshot = folder.path().join("run.snapshot");
    let plain = Run { classifier: &classifier, data: &data, first: None, warm: None, snapshot: None };
    let with_patterns = TrnSpec { patterns: Some([28, 28]), ..spec("none") };
    let config = AdaptiveTraining {
        prime: 5,
        weight_perturbation: Some(0.01),
        losses: AdaptiveLosses { divergence: 1.0, ..AdaptiveLosses::default() },
        ..config(with_patterns)
    };
    let whole = plain.train(&config, None).unwrap();
    let kept = Run { snapshot: Some(&snapshot), ..plain };
    assert!(matches!(kept.train(&config, Some(10)), Err(Error::Interrupted)));
    assert!(snapshot.exists());
    let resumed = kept.train(&config, None).unwrap();
    assert_eq!(whole.tensors(), resumed.tensors());
    assert_eq!(whole.card(), resumed.card());
    let others = plain.train(&AdaptiveTraining { weight_perturbation: None, ..config }, None).unwrap();
    assert_ne!(whole.tensors(), others.tensors(), "the weights were not perturbed");
    answers_are_the_same_in_every_view(&classifier, &whole, &data);
}

/// What an attacker sees of networks with patterns is what they answer.
fn answers_are_the_same_in_every_view(classifier: &Model, trn: &Trn, data: &Dataset) {
    let (images, _) = data.tensor(&[5, 6, 7]).unwrap();
    let view = |mode| Defended::new(classifier, trn, mode).unwrap();
    let exact = view(GradientMode::Exact).logits(&images);
    assert_eq!(exact, view(GradientMode::Detached).logits(&images));
    let (answered, restored) = view(GradientMode::Exact).answer(&images);
    assert_eq!(exact, answered);
    assert!((&restored - &images).abs().max().double_value(&[]) > 1e-3);
    // images of another size are restored with patterns made to fit
    let large = images.upsample_bilinear2d([40, 36], false, None, None);
    assert_eq!(trn.restore(classifier, &large, MapGraph::Constant).size(), large.size());
}

#[test]
fn two_streams_start_from_what_is_there() {
    let data = fashion_mnist_sample().unwrap();
    let classifier = classifier(&data);
    let run = Run { classifier: &classifier, data: &data, first: None, warm: None, snapshot: None };
    let one_stream = run.train(&config(spec("none")), None).unwrap();
    let two = Run { first: Some(&one_stream), ..run };
    let short = AdaptiveTraining { steps: 4, ..config(spec("walk-back")) };
    let trn = two.train(&short, None).unwrap();
    // the first pass is what it was
    for (name, tensor) in trn.tensors() {
        if let Some(rest) = name.strip_prefix("first.") {
            assert_eq!(tensor, one_stream.tensors()[&format!("main.{rest}")], "{name}");
        }
    }
    let warm = Run { warm: Some(&trn), ..two };
    let still =
        AdaptiveTraining { steps: 1, rounds: 1, peak_rate: 1e-12, weight_decay: 0.0, ..short.clone() };
    let continued = warm.train(&still, None).unwrap();
    let (images, _) = data.tensor(&[0, 1]).unwrap();
    let answer = |trn: &Trn| Defended::new(&classifier, trn, GradientMode::Exact).unwrap().logits(&images);
    let off = (answer(&trn) - answer(&continued)).abs().max().double_value(&[]);
    assert!(off < 1e-3, "a step of nothing moved the answers by {off}");
    let other = warm.train(&config(spec("predicted")), None).err().unwrap().to_string();
    assert!(other.contains("the network to start from"), "{other}");
}

#[test]
fn impossible_settings_are_named() {
    let refused = |config: AdaptiveTraining| config.validate().unwrap_err().to_string();
    assert!(refused(config(spec("oracle"))).contains("true label"));
    assert!(
        refused(AdaptiveTraining { attacks: "clean".parse().unwrap(), ..config(spec("none")) })
            .contains("pgd-3@0.1")
    );
    assert!(refused(AdaptiveTraining { exact: 1.5, ..config(spec("none")) }).contains("exact"));
    assert!(
        refused(AdaptiveTraining { weight_perturbation: Some(0.0), ..config(spec("none")) })
            .contains("weight")
    );
    let nothing = AdaptiveLosses { attacked: 0.0, clean: 0.0, divergence: 0.0, ..AdaptiveLosses::default() };
    assert!(refused(AdaptiveTraining { losses: nothing, ..config(spec("none")) }).contains("not all 0"));
    assert!(refused(AdaptiveTraining { steps: 1, ..config(spec("none")) }).contains("rounds"));
}
