//! A tiny ablation from the command line, on a folder of few images.

use std::{
    collections::BTreeMap,
    ops::ControlFlow,
    path::Path,
    process::{Command, Output},
    time::SystemTime,
};

use serde_json::Value;
use talion_data::{Augmentation, DatasetSpec, Split, fashion_mnist_sample};
use talion_models::training::{ClassifierTraining, Precision, train_classifier};
use tch::Device;

/// Bundled classes that are easily told apart, and how many images of each are used.
const CLASSES: [i64; 3] = [1, 8, 9];
const IMAGES: usize = 40;
/// Images that the classifier's training sets aside: half choose the best round, the others are measured on.
const HELD_OUT: usize = 30;

/// Images in `data`.
fn images(folder: &Path) {
    let sample = fashion_mnist_sample().unwrap();
    for class in CLASSES {
        let path = folder.join("data").join(class.to_string());
        std::fs::create_dir_all(&path).unwrap();
        let indices = (0..sample.len()).filter(|&index| sample.labels()[index] == class);
        for (place, index) in indices.take(IMAGES).enumerate() {
            let pixels = sample.image_bytes(index).unwrap().to_vec();
            let picture = image::GrayImage::from_raw(28, 28, pixels).unwrap();
            picture.save(path.join(format!("{place:02}.png"))).unwrap();
        }
    }
}

/// A classifier trained on the images in `data`, in a file.
fn classifier(folder: &Path, name: &str, seed: u64) {
    let data = talion_data::load(&DatasetSpec::Folder(folder.join("data")), Split::Train, None).unwrap();
    let config = ClassifierTraining {
        architecture: "cnn-small-w4".parse().unwrap(),
        epochs: 2,
        batch_size: 10,
        peak_rate: 0.05,
        augmentation: Augmentation { pad: 0, flip: false, cutout: 0 },
        precision: Precision::F32,
        validation: HELD_OUT,
        seed,
        ..ClassifierTraining::default()
    };
    let model = train_classifier(&config, &data, Device::Cpu, None, &mut |_| ControlFlow::Continue(()));
    model.unwrap().save(&folder.join(name)).unwrap();
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

/// Two mixtures, so two networks with two first passes.
const ABLATE: [&str; 21] = [
    "--json",
    "ablate",
    "--model",
    "model",
    "--data",
    "folder:data",
    "-o",
    "out",
    "--mixture",
    "clean,fgsm@8/255",
    "--seeds",
    "4,",
    "--pool",
    "64",
    "--rounds",
    "1",
    "--replays",
    "1",
    "--adaptive-images",
    "0",
    "--factors",
];

fn ablate<'a>(factors: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&ABLATE[..], &[factors], more].concat()
}

/// How many networks a list says have to be trained, and how many it has.
fn counts(listed: &Value) -> (u64, usize) {
    (listed["to_train"].as_u64().unwrap(), listed["networks"].as_array().unwrap().len())
}

/// The files of the networks: their bytes, and when they were written.
fn files(folder: &Path) -> BTreeMap<String, (Vec<u8>, SystemTime)> {
    let entries = std::fs::read_dir(folder.join("out/cells")).unwrap();
    let read = |entry: std::io::Result<std::fs::DirEntry>| {
        let path = entry.unwrap().path();
        let written = path.metadata().unwrap().modified().unwrap();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        (name, (std::fs::read(&path).unwrap(), written))
    };
    entries.map(read).collect()
}

#[test]
fn an_ablation_is_trained_once_and_said_again() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    images(folder);
    classifier(folder, "model", 5);

    let list = ablate("mixture", &["--list"]);
    let listed: Value = serde_json::from_str(&done(&talion(folder, &list))).unwrap();
    assert_eq!(counts(&listed), (4, 4));
    assert!(!folder.join("out").exists());

    let whole = done(&talion(folder, &ablate("mixture", &[])));
    let report: Value = serde_json::from_str(&whole).unwrap();
    assert_eq!(report["conditions"]["skipped"], HELD_OUT / 2);
    assert_eq!(report["conditions"]["images"], HELD_OUT / 2);
    let levels = report["tables"][0]["levels"].as_array().unwrap();
    let names: Vec<_> = levels.iter().map(|level| level["level"].as_str().unwrap()).collect();
    assert_eq!(names, ["default", "without one-step"]);
    for level in levels {
        let figures = level["figures"].as_array().unwrap();
        let total = |figure: &Value| figure["seeds"][0]["total"].as_u64().unwrap();
        let totals: Vec<u64> = figures.iter().map(total).collect();
        assert_eq!(totals, [15, 15, 15, 15, 15]);
    }
    let table = std::fs::read_to_string(folder.join("out/table.md")).unwrap();
    assert!(table.contains("| without one-step ") && table.contains("mim-20@8/255"), "{table}");
    assert_eq!(std::fs::read_to_string(folder.join("out/result.json")).unwrap(), whole.trim_end());

    let before = files(folder);
    let networks = before.keys().filter(|name| name.ends_with("-s4.safetensors")).count();
    assert_eq!((networks, before.keys().filter(|name| name.ends_with(".json")).count()), (4, 2));
    let again = done(&talion(folder, &ablate("mixture", &[])));
    assert_eq!(again, whole);
    assert!(files(folder) == before, "something was trained or measured again");

    // another factor around the same base begins with what is there
    let more = done(&talion(folder, &ablate("mixture,normalization", &["--list"])));
    let listed: Value = serde_json::from_str(&more).unwrap();
    assert_eq!(counts(&listed), (2, 6));

    classifier(folder, "other", 6);
    let mut arguments = ablate("mixture", &[]);
    let place = arguments.iter().position(|word| *word == "model").unwrap();
    arguments[place] = "other";
    let other = talion(folder, &arguments);
    assert!(!other.status.success() && text(&other.stderr).contains("another classifier"));
    assert!(files(folder) == before);
}

#[test]
fn what_cannot_be_is_refused_before_any_training() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    images(folder);
    classifier(folder, "model", 5);
    let with = |change: [&'static str; 2]| {
        let mut arguments = ablate("fusion", &[]);
        match arguments.iter().position(|word| *word == change[0]) {
            Some(place) => arguments[place + 1] = change[1],
            None => arguments.extend(change),
        }
        arguments
    };
    for (change, says) in [
        (["--factors", "widths"], "estimator, maps, refinement"),
        (["--seeds", "0"], "such as 1,2,3"),
        (["--seeds", "1,1"], "such as 1,2,3"),
        (["--rounds", "0"], "--rounds"),
        (["--pool", "0"], "pool"),
        (["--pool", "5000"], "at most 90"),
        (["--size", "huge"], "tiny, small, base"),
        (["--images", "0"], "number of images"),
        (["--pixel", "nan"], "losses"),
        (["--mixture", "pgd-7"], "pgd-7"),
        (["--data", "folder:nowhere"], "nowhere"),
    ] {
        let output = talion(folder, &with(change));
        let said = text(&output.stderr);
        assert!(!output.status.success() && said.contains(says), "{change:?}: {said}");
        assert!(!said.contains("panicked"), "{change:?}: {said}");
    }
    assert!(!folder.join("out").exists());
}
