//! Training on the bundled images: it learns, and an interruption changes nothing.

use std::ops::ControlFlow;

use talion_core::{Classifier, Error, Objective};
use talion_data::{Augmentation, Dataset, fashion_mnist_sample};
use talion_models::{
    Model,
    training::{
        ClassifierTraining, Event, Perturb, Precision, Shown, train_classifier, train_classifier_against,
    },
};
use tch::Device;

fn config() -> ClassifierTraining {
    ClassifierTraining {
        architecture: "resnet18-w4".parse().unwrap(),
        epochs: 2,
        batch_size: 32,
        peak_rate: 0.05,
        average: Some(0.9),
        augmentation: Augmentation { pad: 1, flip: true, cutout: 0 },
        precision: Precision::F32,
        validation: 64,
        ..ClassifierTraining::default()
    }
}

fn data() -> Dataset {
    fashion_mnist_sample().unwrap().subset(&(0..320).collect::<Vec<_>>()).unwrap()
}

fn train(snapshot: Option<&std::path::Path>, stop_at: Option<u64>) -> Result<Model, Error> {
    train_classifier(&config(), &data(), Device::Cpu, snapshot, &mut |event| match event {
        Event::Progress { step, .. } if Some(*step) == stop_at => ControlFlow::Break(()),
        _ => ControlFlow::Continue(()),
    })
}

#[test]
fn an_interrupted_run_ends_as_an_uninterrupted_one() {
    let folder = tempfile::tempdir().unwrap();
    let snapshot = folder.path().join("run.snapshot");
    let whole = train(None, None).unwrap();
    assert!(matches!(train(Some(&snapshot), Some(10)), Err(Error::Interrupted)));
    assert!(snapshot.exists());
    let resumed = train(Some(&snapshot), None).unwrap();
    assert_eq!(whole.tensors(), resumed.tensors());
    assert!(!snapshot.exists(), "a finished run leaves no snapshot");
}

#[test]
fn a_snapshot_of_another_run_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let snapshot = folder.path().join("run.snapshot");
    assert!(matches!(train(Some(&snapshot), Some(8)), Err(Error::Interrupted)));
    let other = ClassifierTraining { seed: 9, ..config() };
    let error =
        train_classifier(&other, &data(), Device::Cpu, Some(&snapshot), &mut |_| ControlFlow::Continue(()));
    let error = error.err().unwrap().to_string();
    assert!(error.contains("another configuration"), "{error}");
}

#[test]
fn training_learns() {
    let data = fashion_mnist_sample().unwrap();
    let config = ClassifierTraining {
        architecture: "cnn-small-w8".parse().unwrap(),
        epochs: 10,
        batch_size: 32,
        peak_rate: 0.05,
        validation: 200,
        average: None,
        ..config()
    };
    let mut losses = Vec::new();
    let model = train_classifier(&config, &data, Device::Cpu, None, &mut |event| {
        if let Event::Progress { loss, .. } = event {
            losses.push(*loss);
        }
        ControlFlow::Continue(())
    })
    .unwrap();
    let (first, last) = (losses[0], losses[losses.len() - 1]);
    assert!(last < 0.6 * first, "loss went from {first} to {last}");
    let accuracy = model.card().metrics["validation_accuracy"];
    assert!(accuracy > 0.6, "validation accuracy {accuracy}");
}

#[test]
fn impossible_configurations_are_refused_before_any_work() {
    for wrong in [
        ClassifierTraining { epochs: 0, ..config() },
        ClassifierTraining { batch_size: 1, ..config() },
        ClassifierTraining { peak_rate: -1.0, ..config() },
        ClassifierTraining { peak_rate: f64::NAN, ..config() },
        ClassifierTraining { average: Some(1.0), ..config() },
        ClassifierTraining { validation: 10_000, ..config() },
    ] {
        let result = train_classifier(&wrong, &data(), Device::Cpu, None, &mut |_| panic!("work was done"));
        assert!(result.is_err(), "{wrong:?}");
    }
}

/// One step along the sign of the gradient.
fn signed_step(model: &Model, shown: &Shown<'_>) -> Result<tch::Tensor, Error> {
    let gradient = model.input_gradient(shown.images, shown.labels, Objective::CrossEntropy).gradient;
    Ok((shown.images + gradient.sign() * 0.1).clamp(0.0, 1.0))
}

#[test]
fn adversarial_training_is_worth_it_and_needs_an_attack() {
    let data = fashion_mnist_sample().unwrap();
    let plain = ClassifierTraining {
        architecture: "cnn-small-w8".parse().unwrap(),
        epochs: 8,
        batch_size: 32,
        validation: 200,
        average: None,
        ..config()
    };
    let against = ClassifierTraining { adversarial: Some("a signed step of 0.1".into()), ..plain.clone() };
    let train =
        |config: &ClassifierTraining, perturb: Option<&Perturb<'_>>| {
            train_classifier_against(perturb, config, &data, Device::Cpu, None, &mut |_| {
                ControlFlow::Continue(())
            })
        };
    assert!(train(&plain, Some(&signed_step)).is_err() && train(&against, None).is_err());
    let hardened = train(&against, Some(&signed_step)).unwrap();
    let plain = train(&plain, None).unwrap();
    let (images, labels) = data.tensor(&(0..200).collect::<Vec<_>>()).unwrap();
    let stands = |model: &Model| {
        let ids: Vec<u64> = (0..200).collect();
        let shown = Shown { images: &images, labels: &labels, ids: &ids, seed: 1, epoch: 0 };
        let attacked = signed_step(model, &shown).unwrap();
        model.predict(&attacked).eq_tensor(&labels).sum(tch::Kind::Int64).int64_value(&[])
    };
    let (hard, soft) = (stands(&hardened), stands(&plain));
    assert!(hard > soft + 20, "{hard} of 200 against {soft}");
    assert!(hardened.card().metrics.contains_key("validation_attacked_accuracy"));
    assert!(!plain.card().metrics.contains_key("validation_attacked_accuracy"));
}
