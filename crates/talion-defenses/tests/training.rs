//! The whole path on the bundled images: a classifier learns, is attacked, and a network learns to restore it.

use std::{ops::ControlFlow, path::Path};

use talion_attacks::{Attack, AttackSpec, Batch, predict_all};
use talion_core::{Budget, Classifier, Error, Objective};
use talion_data::{Augmentation, Dataset, fashion_mnist_sample};
use talion_defenses::{
    Defended, GradientMode, Trn, TrnSpec,
    training::{TrnSources, TrnTraining, train_trn},
};
use talion_models::{
    Model,
    training::{ClassifierTraining, Event, Precision, train_classifier},
};
use tch::{Device, Kind, Tensor};

fn classifier(data: &Dataset) -> Model {
    classifier_of("cnn-small-w8", data)
}

fn classifier_of(architecture: &str, data: &Dataset) -> Model {
    let config = ClassifierTraining {
        architecture: architecture.parse().unwrap(),
        epochs: 12,
        batch_size: 32,
        peak_rate: 0.05,
        augmentation: Augmentation { pad: 0, flip: true, cutout: 0 },
        precision: Precision::F32,
        validation: 200,
        ..ClassifierTraining::default()
    };
    train_classifier(&config, data, Device::Cpu, None, &mut |_| ControlFlow::Continue(())).unwrap()
}

fn config(estimator: &str) -> TrnTraining {
    let spec = TrnSpec { width: 8, ..TrnSpec::one_stream("tiny", 1).unwrap() };
    TrnTraining {
        mixture: "clean,pgd-5@0.1*3".parse().unwrap(),
        pool: 256,
        replays: 10,
        rounds: 3,
        batch_size: 32,
        peak_rate: 4e-3,
        average: 0.9,
        validation_sample: 64,
        ..TrnTraining::new(spec.with_estimator(estimator.parse().unwrap()), 200, 1)
    }
}

#[derive(Clone, Copy)]
struct Run<'a> {
    classifier: &'a Model,
    others: &'a [&'a dyn Classifier],
    data: &'a Dataset,
    first: Option<&'a Trn>,
    snapshot: Option<&'a Path>,
    cache: Option<&'a Path>,
}

impl Run<'_> {
    fn train(&self, config: &TrnTraining, stop_at: Option<u64>, losses: &mut Vec<f64>) -> Result<Trn, Error> {
        let sources = TrnSources {
            architecture: self.classifier.card().spec.architecture.to_string(),
            classifier: self.classifier,
            others: self.others,
            data: self.data,
            first: self.first,
            snapshot: self.snapshot,
            cache: self.cache,
        };
        train_trn(config, &sources, &mut |event| match event {
            Event::Progress { step, loss, .. } => {
                losses.push(*loss);
                if Some(*step) == stop_at { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            }
            _ => ControlFlow::Continue(()),
        })
    }
}

#[test]
fn a_network_learns_to_restore_what_an_attack_broke() {
    let data = fashion_mnist_sample().unwrap();
    let classifier = classifier(&data);
    let folder = tempfile::tempdir().unwrap();
    let run = Run {
        classifier: &classifier,
        others: &[],
        data: &data,
        first: None,
        snapshot: None,
        cache: Some(folder.path()),
    };
    let mut losses = Vec::new();
    let one_stream = run.train(&config("none"), None, &mut losses).unwrap();
    let first = losses[..3].iter().sum::<f64>() / 3.0;
    let last = losses[losses.len() - 3..].iter().sum::<f64>() / 3.0;
    assert!(last < 0.8 * first, "loss went from {first} to {last}");

    let two = Run { first: Some(&one_stream), ..run };
    let trn = two.train(&config("walk-back"), None, &mut Vec::new()).unwrap();

    // on images that neither the classifier nor the networks have seen
    let (_, validation) = data.split_validation(200, 1).unwrap();
    let indices: Vec<usize> = (64..200).collect();
    let (images, labels) = validation.tensor(&indices).unwrap();
    let ids: Vec<u64> = indices.iter().map(|&index| validation.ids()[index]).collect();
    let budget = Budget::new(talion_core::Norm::Linf, 0.1).unwrap();
    let batch = Batch {
        images: &images,
        labels: &labels,
        ids: &ids,
        budget,
        objective: Objective::CrossEntropy,
        seed: 1,
        restart: 0,
    };
    let attack: AttackSpec = "pgd-10".parse().unwrap();
    let adversarial = attack.perturb(&classifier, &batch).unwrap();
    let accuracy = |predicted: Tensor| {
        predicted.eq_tensor(&labels).to_kind(Kind::Float).mean(Kind::Float).double_value(&[])
    };
    let bare = accuracy(predict_all(&classifier, &adversarial).unwrap().labels);
    for trn in [&one_stream, &trn] {
        let defended = Defended::new(&classifier, trn, GradientMode::Exact).unwrap();
        let restored = accuracy(predict_all(&defended, &adversarial).unwrap().labels);
        assert!(restored > bare + 0.2, "{}: {restored} against {bare}", trn.card().spec.estimator);
    }
}

#[test]
fn an_interrupted_run_ends_as_an_uninterrupted_one() {
    let data = fashion_mnist_sample().unwrap();
    let classifier = classifier(&data);
    let folder = tempfile::tempdir().unwrap();
    let snapshot = folder.path().join("run.snapshot");
    let plain =
        Run { classifier: &classifier, others: &[], data: &data, first: None, snapshot: None, cache: None };
    let config = TrnTraining { pool: 64, replays: 2, rounds: 3, ..config("predicted") };
    let whole = plain.train(&config, None, &mut Vec::new()).unwrap();
    let kept = Run { snapshot: Some(&snapshot), ..plain };
    // 4 steps a round: stops in the middle of the third
    assert!(matches!(kept.train(&config, Some(10), &mut Vec::new()), Err(Error::Interrupted)));
    assert!(snapshot.exists());
    let resumed = kept.train(&config, None, &mut Vec::new()).unwrap();
    assert_eq!(whole.tensors(), resumed.tensors());
    assert_eq!(whole.card(), resumed.card());
}

#[test]
fn a_network_is_trained_for_several_classifiers() {
    let data = fashion_mnist_sample().unwrap();
    let (classifier, other) = (classifier(&data), classifier_of("cnn-small-w16", &data));
    let others: [&dyn Classifier; 1] = [&other];
    let folder = tempfile::tempdir().unwrap();
    let cache = Some(folder.path());
    let alone = Run { classifier: &classifier, others: &[], data: &data, first: None, snapshot: None, cache };
    let run = Run { others: &others, ..alone };
    let short = |estimator| TrnTraining { pool: 64, replays: 2, rounds: 3, ..config(estimator) };
    let both = run.train(&short("predicted"), None, &mut Vec::new()).unwrap();
    let one = alone.train(&short("predicted"), None, &mut Vec::new()).unwrap();
    assert_ne!(both.tensors(), one.tensors());

    // what a run keeps is of no use to one for other classifiers
    let snapshot = folder.path().join("run.snapshot");
    let kept = Run { snapshot: Some(&snapshot), ..run };
    assert!(matches!(kept.train(&short("predicted"), Some(10), &mut Vec::new()), Err(Error::Interrupted)));
    let stranger = Run { snapshot: Some(&snapshot), ..alone };
    assert!(stranger.train(&short("predicted"), None, &mut Vec::new()).is_err());
    assert_eq!(kept.train(&short("predicted"), None, &mut Vec::new()).unwrap().tensors(), both.tensors());

    let refused = run.train(&short("learned"), None, &mut Vec::new()).err().unwrap().to_string();
    assert!(refused.contains("learns from one classifier"), "{refused}");
}

#[test]
fn learned_weights_are_trained_together_with_the_network() {
    let data = fashion_mnist_sample().unwrap();
    let classifier = classifier(&data);
    let run =
        Run { classifier: &classifier, others: &[], data: &data, first: None, snapshot: None, cache: None };
    let config = TrnTraining { pool: 64, replays: 2, rounds: 2, ..config("learned") };
    let trn = run.train(&config, None, &mut Vec::new()).unwrap();
    let name = "estimator.output.weight";
    let before = Trn::new(trn.card().clone(), Device::Cpu).unwrap();
    assert_ne!(trn.tensors()[name], before.tensors()[name], "the head has not moved");
}

#[test]
fn training_refuses_the_oracle_and_impossible_settings() {
    let data = fashion_mnist_sample().unwrap();
    let classifier = classifier(&data);
    let run =
        Run { classifier: &classifier, others: &[], data: &data, first: None, snapshot: None, cache: None };
    let refused = |config: TrnTraining| run.train(&config, None, &mut Vec::new()).err().unwrap().to_string();
    assert!(refused(config("oracle")).contains("for diagnosis"));
    assert!(refused(config("walk-back")).contains("first pass"));
    assert!(refused(TrnTraining { rounds: 0, ..config("none") }).contains("rounds"));
    assert!(refused(TrnTraining { pool: 1_000_000, ..config("none") }).contains("pool"));
    assert!(refused(TrnTraining { peak_rate: f64::NAN, ..config("none") }).contains("peak_rate"));
}
