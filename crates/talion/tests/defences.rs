//! Other defences in the same tables, and the training of some, from the command line.

mod common;

use std::{
    path::Path,
    process::{Command, Output},
};

use serde_json::Value;
use talion_data::fashion_mnist_sample;

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

/// Bundled images, ten classes with four each, in `data`.
fn images(folder: &Path) {
    let sample = fashion_mnist_sample().unwrap();
    for class in 0..10 {
        let path = folder.join("data").join(class.to_string());
        std::fs::create_dir_all(&path).unwrap();
        let indices = (0..sample.len()).filter(|&index| sample.labels()[index] == class);
        for (place, index) in indices.take(4).enumerate() {
            let pixels = sample.image_bytes(index).unwrap().to_vec();
            let picture = image::GrayImage::from_raw(28, 28, pixels).unwrap();
            picture.save(path.join(format!("{place}.png"))).unwrap();
        }
    }
}

const PAIR: [&str; 4] = ["--model", "model", "--trn", "trn"];

#[test]
fn every_kind_of_defence_has_a_column_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    common::networks(folder);
    images(folder);
    std::fs::copy(folder.join("other"), folder.join("hardened.safetensors")).unwrap();
    std::fs::copy(folder.join("trn"), folder.join("second.safetensors")).unwrap();
    for what in ["compressor", "denoiser"] {
        let file = format!("{what}.safetensors");
        let train = [
            "--json",
            "train",
            "restorer",
            "--what",
            what,
            "--data",
            "folder:data",
            "-o",
            &file,
            "--width",
            "4",
            "--epochs",
            "1",
            "--batch-size",
            "8",
            "--validation",
            "8",
        ];
        let card: Value = serde_json::from_str(&done(&talion(folder, &train))).unwrap();
        assert_eq!(card["kind"], what);
        assert!(card["metrics"]["validation_mean_squared_error"].as_f64().unwrap() > 0.0);
    }
    let measure = [
        &["--json", "evaluate", "--images", "3", "--attack", "fgsm@0.1", "--attack", "exact:pgd-2@0.1"][..],
        &PAIR,
        &["--defence", "jpeg-50", "--defence", "resize-pad", "--defence", "smooth=gaussian-1"],
        &["--defence", "compressor.safetensors", "--defence", "denoiser.safetensors:sigma=0.1,votes=2"],
        &["--defence", "second.safetensors", "--defence", "hardened.safetensors"],
    ]
    .concat();
    let report: Value = serde_json::from_str(&done(&talion(folder, &measure))).unwrap();
    let rows = report["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 3);
    let own = ["jpeg-50", "resize-pad-0.85", "smooth", "compressor", "denoiser", "second", "hardened"];
    for row in rows {
        let columns = row["measured"].as_array().unwrap();
        let names: Vec<&str> = columns.iter().map(|column| column["name"].as_str().unwrap()).collect();
        assert_eq!(names, [&["undefended", "TRN"][..], &own].concat());
    }
    // the same network twice answers alike, whatever it is called
    for row in rows.iter().take(2) {
        assert_eq!(row["measured"][1]["right"], row["measured"][7]["right"]);
    }
}

#[test]
fn protocols_take_other_defences() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    common::networks(folder);
    std::fs::copy(folder.join("other"), folder.join("instead.safetensors")).unwrap();
    let measure = [
        &["--json", "evaluate", "--images", "12", "--adaptive-images", "2", "--run", "run"][..],
        &PAIR,
        &["--defence", "bits-3", "--defence", "instead.safetensors"],
    ]
    .concat();
    let summary = done(&talion(folder, &measure));
    assert!(summary.contains("bits-3") && summary.contains("3 bits"), "{summary}");
    assert!(folder.join("run/report.html").exists());

    // a classifier in the place of another one restores nothing
    let gallery = std::fs::read(folder.join("run/gallery.json")).unwrap();
    let gallery: Vec<Value> = serde_json::from_slice(&gallery).unwrap();
    let titles = |contender: &str| -> Vec<Vec<&str>> {
        let own = gallery.iter().filter(|exhibit| exhibit["contender"] == contender);
        own.map(|exhibit| {
            let tiles = exhibit["tiles"].as_array().unwrap();
            tiles.iter().map(|tile| tile["title"].as_str().unwrap()).collect()
        })
        .collect()
    };
    assert!(!titles("bits-3").is_empty() && !titles("instead").is_empty(), "{gallery:?}");
    assert!(titles("bits-3").iter().all(|titles| titles.contains(&"restored")));
    assert!(titles("instead").iter().all(|titles| titles[..] == ["clean", "adversarial"]));
}

#[test]
fn what_is_no_defence_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    common::networks(folder);
    std::fs::write(folder.join("text.safetensors"), "no network").unwrap();
    let refused = |defences: &[&str]| {
        let measure = [&["evaluate", "--images", "1", "--attack", "fgsm@0.1"][..], &PAIR, defences].concat();
        let output = talion(folder, &measure);
        assert!(!output.status.success());
        text(&output.stderr)
    };
    for (defences, named) in [
        (&["--defence", "paint"][..], "jpeg"),
        (&["--defence", "jpeg-0"], "1 to 100"),
        (&["--defence", "nothing.safetensors"], "nothing.safetensors"),
        (&["--defence", "text.safetensors"], "text.safetensors"),
        (&["--defence", "bits-4", "--defence", "bits-4"], "two defences are called bits-4"),
        (&["--defence", "TRN=bits-4"], "two defences are called TRN"),
    ] {
        let said = refused(defences);
        assert!(said.contains(named), "{defences:?}: {said}");
        assert!(!said.contains("panicked"), "{said}");
    }
}

#[test]
fn networks_are_trained_against_attackers_who_know_them() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    images(folder);
    let classifier = [
        "--json",
        "train",
        "classifier",
        "--data",
        "folder:data",
        "-o",
        "small.safetensors",
        "--architecture",
        "cnn-small-w4",
        "--epochs",
        "1",
        "--batch-size",
        "8",
        "--validation",
        "8",
        "--pad",
        "0",
        "--no-flip",
    ];
    done(&talion(folder, &classifier));
    for (loss, output) in [("trades:6", "trades.safetensors"), ("mart:5", "mart.safetensors")] {
        let robust = [
            &classifier[..5],
            &["-o", output],
            &classifier[7..],
            &["--adversarial", "pgd-2@0.1", "--loss", loss, "--awp", "0.005"],
        ]
        .concat();
        let card: Value = serde_json::from_str(&done(&talion(folder, &robust))).unwrap();
        assert_eq!(card["training"]["loss"], loss);
        assert!(card["metrics"]["validation_attacked_accuracy"].as_f64().is_some(), "{card}");
    }
    let train = [
        "--json",
        "train",
        "adaptive",
        "--model",
        "small.safetensors",
        "--data",
        "folder:data",
        "-o",
        "adaptive.safetensors",
        "--patterns",
        "--bound",
        "0.4",
        "--prime",
        "2",
        "--attacks",
        "pgd-1@0.1",
        "--steps",
        "2",
        "--rounds",
        "1",
        "--batch-size",
        "8",
    ];
    let card: Value = serde_json::from_str(&done(&talion(folder, &train))).unwrap();
    assert_eq!(card["spec"]["patterns"], serde_json::json!([28, 28]));
    assert!(card["metrics"]["validation_attacked"].as_f64().is_some(), "{card}");
    // an adaptive network is an ordinary one to every other command
    let measure = [
        "--json",
        "evaluate",
        "--images",
        "2",
        "--attack",
        "exact:pgd-2@0.1",
        "--model",
        "small.safetensors",
        "--trn",
        "adaptive.safetensors",
    ];
    let report: Value = serde_json::from_str(&done(&talion(folder, &measure))).unwrap();
    assert_eq!(report["trn"]["training"]["attacks"], "pgd-1@linf:0.1*1");
    let wrong = talion(folder, &[&train[..8], &["x.safetensors", "--attacks", "clean"]].concat());
    assert!(text(&wrong.stderr).contains("pgd-3@0.1"), "{}", text(&wrong.stderr));
}
