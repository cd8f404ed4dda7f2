//! Calibrating suspicion, with small networks and a folder of few images.

use std::{
    collections::BTreeMap,
    ops::ControlFlow,
    path::Path,
    process::{Command, Output},
};

use serde_json::Value;
use talion_core::gaussian_noise;
use talion_data::{Augmentation, Dataset, DatasetSpec, Split, fashion_mnist_sample};
use talion_defenses::{EstimatorSpec, Trn, TrnCard, TrnSpec, training::TrnTraining};
use talion_eval::{Calibration, Pair, fingerprint};
use talion_models::{
    Model,
    training::{ClassifierTraining, Precision, train_classifier},
};
use tch::Device;

/// Bundled classes that are easily told apart.
const CLASSES: [i64; 3] = [1, 8, 9];
/// Training and test images of each class, and the training images that are set aside.
const TRAIN: usize = 20;
const TEST: usize = 8;
const HELD_OUT: usize = 30;
const SPLIT_SEED: u64 = 5;

/// An image folder with both splits, of the bundled images from the `first` of each class on.
fn images(folder: &Path, first: usize) {
    let sample = fashion_mnist_sample().unwrap();
    for class in CLASSES {
        let indices: Vec<usize> =
            (0..sample.len()).filter(|&index| sample.labels()[index] == class).collect();
        for (place, &index) in indices[first..first + TRAIN + TEST].iter().enumerate() {
            let split = if place < TRAIN { "train" } else { "test" };
            let path = folder.join(split).join(class.to_string());
            std::fs::create_dir_all(&path).unwrap();
            let pixels = sample.image_bytes(index).unwrap().to_vec();
            let picture = image::GrayImage::from_raw(28, 28, pixels).unwrap();
            picture.save(path.join(format!("{place:02}.png"))).unwrap();
        }
    }
}

/// A TRN that does something, whose card says that images were set aside by this seed.
fn trn(split_seed: u64) -> Trn {
    let spec = TrnSpec { width: 8, scales: 2, ..TrnSpec::one_stream("tiny", 1).unwrap() };
    let spec = spec.with_estimator(EstimatorSpec::Predicted);
    let training = TrnTraining::new(spec.clone(), HELD_OUT, split_seed);
    let card = TrnCard {
        kind: TrnCard::KIND.into(),
        spec,
        classes: CLASSES.len() as i64,
        classifier: "cnn-small-w4".into(),
        dataset: "made up".into(),
        seed: 3,
        training: serde_json::to_value(training).unwrap(),
        metrics: BTreeMap::new(),
    };
    let trn = Trn::new(card, Device::Cpu).unwrap();
    tch::no_grad(|| {
        for (name, mut tensor) in trn.store().variables() {
            if name.contains("output") {
                tensor.copy_(&(gaussian_noise(&tensor.size(), &[3], 1, &name, 0).squeeze_dim(0) * 0.3));
            }
        }
    });
    trn
}

/// Images in `data`, a classifier trained on them in `model`, a network for it in `trn`; the training split.
fn prepared(folder: &Path) -> Dataset {
    images(&folder.join("data"), 0);
    let data = talion_data::load(&DatasetSpec::Folder(folder.join("data")), Split::Train, None).unwrap();
    let config = ClassifierTraining {
        architecture: "cnn-small-w4".parse().unwrap(),
        epochs: 4,
        batch_size: 10,
        peak_rate: 0.05,
        augmentation: Augmentation { pad: 0, flip: false, cutout: 0 },
        precision: Precision::F32,
        validation: HELD_OUT,
        seed: SPLIT_SEED,
        ..ClassifierTraining::default()
    };
    let model =
        train_classifier(&config, &data, Device::Cpu, None, &mut |_| ControlFlow::Continue(())).unwrap();
    model.save(&folder.join("model")).unwrap();
    trn(SPLIT_SEED).save(&folder.join("trn")).unwrap();
    data
}

fn talion(folder: &Path, arguments: &[&str]) -> Output {
    // no data set of the user's
    let mut command = Command::new(env!("CARGO_BIN_EXE_talion"));
    command.current_dir(folder).env("TALION_DATA", folder.join("nothing")).args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[track_caller]
fn done(output: &Output) -> String {
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout)
}

const CALIBRATE: [&str; 13] = [
    "calibrate",
    "--model",
    "model",
    "--trn",
    "trn",
    "--adaptive-images",
    "24",
    "--attack",
    "noise@0.05",
    "--attack",
    "fgsm@0.1",
    "--attack",
    "exact:pgd-2@0.1",
];

#[test]
fn a_calibration_is_made_from_the_images_set_aside() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let data = prepared(folder);
    let one = [&["--json"][..], &CALIBRATE, &["--false-alarm-rate", "0.1", "-o", "one.json"]].concat();
    let report: Value = serde_json::from_str(&done(&talion(folder, &one))).unwrap();
    assert_eq!(report["clean_images"], HELD_OUT);
    assert_eq!(report["false_alarm_rate"], 0.1);
    assert_eq!(report["measured"]["false_alarms"]["total"], TEST * CLASSES.len());
    let curves = report["measured"]["curves"].as_array().unwrap();
    let views: Vec<_> = curves.iter().map(|curve| curve["view"].as_str().unwrap()).collect();
    assert_eq!(views, ["none", "oblivious", "exact"]);
    assert!(curves.iter().all(|curve| curve["samples"].as_u64().unwrap() > 0));

    // the file holds exactly what the images that training set aside give
    let kept = Calibration::load(&folder.join("one.json")).unwrap();
    let model = Model::load(&folder.join("model"), Device::Cpu).unwrap();
    let trn = Trn::load(&folder.join("trn"), Device::Cpu).unwrap();
    let (_, held_out) = data.split_validation(HELD_OUT, SPLIT_SEED).unwrap();
    let (images, _) = held_out.tensor(&(0..HELD_OUT).collect::<Vec<_>>()).unwrap();
    let pair = Pair { classifier: &model, trn: &trn };
    let scores = pair.examine(&images, &mut |_| ControlFlow::Continue(())).unwrap().scores;
    let sums = [fingerprint(&[&model.tensors()]).unwrap(), fingerprint(&[&trn.tensors()]).unwrap()];
    let mut expected = Calibration::new(&scores, (&sums[0], &sums[1]), data.name(), 0.1).unwrap();
    expected.measured.clone_from(&kept.measured);
    assert_eq!(kept, expected);
    assert_eq!(report["threshold"], kept.threshold(0.1).unwrap());

    // for people, the same again; the data named as it is named in the card
    let named = format!("folder:{}", folder.join("data").display());
    let two = [&CALIBRATE[..], &["--false-alarm-rate", "0.1", "--data", &named, "-o", "two.json"]].concat();
    let said = done(&talion(folder, &two));
    for word in
        ["30 clean images", "false alarms on 24", "AUC", "fgsm", "exact", "missed and fooled", "two.json"]
    {
        assert!(said.contains(word), "{word} is missing:\n{said}");
    }
    let (one, two) = (std::fs::read(folder.join("one.json")), std::fs::read(folder.join("two.json")));
    let (one, two) = (one.unwrap(), two.unwrap());
    assert!(one == two);

    std::fs::write(folder.join("two.json"), &two[..two.len() / 2]).unwrap();
    let problem = Calibration::load(&folder.join("two.json")).unwrap_err().to_string();
    assert!(problem.contains("two.json") && problem.contains("talion calibrate"), "{problem}");
}

#[test]
fn what_cannot_be_calibrated_is_refused_and_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    prepared(folder);
    images(&folder.join("elsewhere"), 30);
    trn(SPLIT_SEED + 1).save(&folder.join("other")).unwrap();
    let mut silent = Model::load(&folder.join("model"), Device::Cpu).unwrap();
    silent.card_mut().training = Value::Null;
    silent.save(&folder.join("silent")).unwrap();

    let pair = ["calibrate", "--model", "model", "--trn", "trn"];
    let with = |more: &[&'static str]| [&pair[..], more].concat();
    for (arguments, says) in [
        (vec!["calibrate"], "talion data fetch fashion-mnist"),
        (vec!["calibrate", "--model", "model"], "--trn"),
        (vec!["calibrate", "--model", "model", "--trn", "other"], "different images aside"),
        (vec!["calibrate", "--model", "silent", "--trn", "trn"], "does not say which images"),
        (with(&["--data", "folder:elsewhere"]), "other training images"),
        (with(&["--data", "folder:nowhere"]), "nowhere"),
        (with(&["--test", "folder:data/train"]), "--test"),
        (with(&["--false-alarm-rate", "0.001"]), "false-alarm rate"),
        (with(&["--false-alarm-rate", "1"]), "false-alarm rate"),
        (with(&["--images", "19", "--false-alarm-rate", "0.5"]), "at least 20"),
        (with(&["--images", "0"]), "number of images"),
        (with(&["--attack", "pgd-20"]), "ATTACK@"),
        (
            with(&["--false-alarm-rate", "0.1", "--adaptive-images", "0", "--attack", "exact:fgsm@0.1"]),
            "first 0",
        ),
    ] {
        let output = talion(folder, &arguments);
        let said = text(&output.stderr);
        assert!(!output.status.success() && said.contains(says), "{arguments:?}: {said}");
    }
    assert!(!folder.join("calibration.json").exists());
}

#[test]
fn help_says_what_a_calibration_is() {
    let folder = tempfile::tempdir().unwrap();
    let help = done(&talion(folder.path(), &["calibrate", "--help"]));
    for word in ["suspicion", "--false-alarm-rate", "--adaptive-images", "--test-images", "calibration.json"]
    {
        assert!(help.contains(word), "{word} is missing:\n{help}");
    }
}
