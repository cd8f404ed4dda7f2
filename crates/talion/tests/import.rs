//! Somebody else's classifier from end to end: described, checked, attacked, defended, evaluated, exported.
//!
//! The foreign file is a classifier of talion's own, written as plain ONNX: whatever talion says of the one, it has to say
//! of the other.

mod common;

use std::{
    path::Path,
    process::{Command, Output},
};

use serde_json::Value;

fn talion(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_talion")).current_dir(folder).args(arguments).output().unwrap()
}

fn said(folder: &Path, arguments: &[&str]) -> Value {
    let output = talion(folder, &[&["--json"], arguments].concat());
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn refused(folder: &Path, arguments: &[&str]) -> String {
    let output = talion(folder, arguments);
    assert_eq!(output.status.code(), Some(1), "{arguments:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

const DATA: &str = "fashion-mnist-sample";

/// The bundled classifier as somebody else's file.
fn foreign(folder: &Path) {
    let report = said(folder, &["export", "--bare", "-o", "foreign.onnx"]);
    assert!(report["bytes"].as_u64().unwrap() > 100_000);
    assert_eq!(report["compared"]["disagreements"], 0);
}

fn models(file: &str) -> String {
    format!("{}/../../models/fashion-mnist/{file}.safetensors", env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn a_foreign_classifier_is_described_checked_and_inspected() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    foreign(folder);
    let inspected = said(folder, &["model", "inspect", "foreign.onnx", "--batch-size", "2"]);
    assert_eq!(inspected["card"]["spec"]["classes"], 10);
    assert_eq!(inspected["card"]["image_size"], serde_json::json!([28, 28]));
    assert_eq!(inspected["second_order_gradients"], true);
    assert!(inspected["layers"].as_array().unwrap().len() > 20);
    assert!(inspected["timing"]["forward"].as_f64().unwrap() > 0.0);
    // nothing is stated yet
    let refusal = refused(folder, &["model", "check", "foreign.onnx"]);
    assert!(refusal.contains("--data"), "{refusal}");

    let describe = ["model", "describe", "foreign.onnx", "--dataset", "fashion-mnist", "--accuracy", "0.93"];
    let described = said(folder, &describe);
    assert_eq!(described["card"]["class_names"][0], "T-shirt/top");
    assert!(folder.join("foreign.onnx.toml").exists());
    assert!(refused(folder, &describe).contains("--force"));
    let checked = said(folder, &["model", "check", "foreign.onnx", "--data", DATA, "--images", "200"]);
    assert_eq!((checked["stated"].as_f64(), checked["far_below"].as_bool()), (Some(0.93), Some(false)));
    assert!(checked["correct"].as_u64().unwrap() > 180);
}

/// The network is fed byte values by mistake: the check says so, and an evaluation warns.
#[test]
fn a_wrong_preparation_is_found_out() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    foreign(folder);
    said(
        folder,
        &[
            "model",
            "describe",
            "foreign.onnx",
            "--dataset",
            DATA,
            "--channels",
            "1",
            "--scale",
            "255",
            "--accuracy",
            "0.93",
        ],
    );
    let checked = said(folder, &["model", "check", "foreign.onnx", "--images", "200"]);
    assert_eq!(checked["far_below"], true);
    let cause = checked["likely_cause"].as_str().unwrap();
    assert!(cause.contains("from 0 to 1"), "{cause}");
    let output = talion(
        folder,
        &[
            "evaluate",
            "--model",
            "foreign.onnx",
            "--trn",
            &models("trn"),
            "--images",
            "64",
            "--attack",
            "fgsm@8/255",
        ],
    );
    assert!(output.status.success());
    let warned = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(warned.contains("far below") && warned.contains("model check"), "{warned}");
}

#[test]
fn a_foreign_classifier_is_attacked_defended_and_evaluated_like_our_own() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    common::networks(folder);
    said(folder, &["export", "--bare", "--model", "model", "-o", "foreign.onnx"]);
    said(folder, &["model", "describe", "foreign.onnx", "--dataset", "fashion-mnist"]);
    let evaluate = |model: &str| {
        let attacks = ["--attack", "pgd-5@8/255", "--attack", "exact:pgd-3@8/255"];
        let report = said(
            folder,
            &[&["evaluate", "--model", model, "--trn", "trn", "--images", "48"], &attacks[..]].concat(),
        );
        let rows = report["rows"].as_array().unwrap().clone();
        let right = |row: &Value| {
            let measured = row["measured"].as_array().unwrap();
            measured.iter().map(|who| who["accuracy"]["count"].as_i64().unwrap()).collect::<Vec<_>>()
        };
        rows.iter().flat_map(right).collect::<Vec<_>>()
    };
    let (own, foreign) = (evaluate("model"), evaluate("foreign.onnx"));
    assert_eq!(own.len(), foreign.len());
    // kernels round otherwise in another order of operations, and a sample may lie on the edge
    for (own, foreign) in own.iter().zip(&foreign) {
        assert!((own - foreign).abs() <= 2, "{own} and {foreign}");
    }

    let run = ["evaluate", "--model", "foreign.onnx", "--trn", "trn", "--protocol", "paper", "--images", "2"];
    let summary = said(folder, &[&run[..], &["--run", "kept"]].concat()).to_string();
    assert!(
        summary.contains("onnx:foreign") && summary.contains("imported"),
        "the run hides what it measured"
    );
    assert!(folder.join("kept/report.html").exists());

    let attack = [
        "attack",
        "fgsm",
        "--model",
        "foreign.onnx",
        "--data",
        DATA,
        "--images",
        "16",
        "-o",
        "a.safetensors",
    ];
    said(folder, &attack);
    assert!(folder.join("a.safetensors").exists());
}

#[test]
fn the_whole_defence_is_one_plain_file() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let report = said(
        folder,
        &["export", "-o", "defended.onnx", "--images", "16", "--samples", "samples.safetensors"],
    );
    assert_eq!(report["compared"]["disagreements"], 0);
    for output in ["logits", "restored", "undefended"] {
        assert!(report["compared"]["largest"][output].as_f64().unwrap() < 1e-4, "{report}");
    }
    assert!(folder.join("samples.safetensors").exists());
    // the exported defence is a classifier like any other: its first output is the defended answer
    said(folder, &["model", "describe", "defended.onnx", "--dataset", "fashion-mnist"]);
    let checked = said(folder, &["model", "check", "defended.onnx", "--data", DATA, "--images", "100"]);
    assert!(checked["correct"].as_u64().unwrap() > 80, "{checked}");
}

/// An image folder with both splits, of the first bundled images of each class.
fn images(folder: &Path) {
    let sample = talion_data::fashion_mnist_sample().unwrap();
    for class in 0..10 {
        let of_class = (0..sample.len()).filter(|&index| sample.labels()[index] == class);
        for (place, index) in of_class.take(16).enumerate() {
            let path = folder.join(if place < 12 { "train" } else { "test" }).join(class.to_string());
            std::fs::create_dir_all(&path).unwrap();
            let picture =
                image::GrayImage::from_raw(28, 28, sample.image_bytes(index).unwrap().to_vec()).unwrap();
            picture.save(path.join(format!("{place:02}.png"))).unwrap();
        }
    }
}

#[test]
fn a_network_is_trained_in_front_of_a_foreign_classifier() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    common::networks(folder);
    images(&folder.join("data"));
    said(folder, &["export", "--bare", "--model", "model", "-o", "foreign.onnx"]);
    said(folder, &["model", "describe", "foreign.onnx", "--size", "28x28", "--channels", "1"]);
    let train =
        ["train", "trn", "--model", "foreign.onnx", "--estimator", "none", "--size", "tiny", "--rounds", "1"];
    // nobody knows what it was trained on
    let refusal = refused(folder, &[&train[..], &["-o", "one.safetensors"]].concat());
    assert!(refusal.contains("--data"), "{refusal}");
    let few = ["--replays", "1", "--pool", "64", "--mixture", "clean,fgsm@8/255", "--data", "folder:data"];
    let card = said(folder, &[&train[..], &few[..], &["-o", "one.safetensors"]].concat());
    assert_eq!(card["classifier"], "onnx:foreign");
    let networks = ["evaluate", "--model", "foreign.onnx", "--trn", "one.safetensors"];
    let report = said(
        folder,
        &[&networks[..], &["--data", "folder:data", "--images", "8", "--attack", "fgsm@8/255"]].concat(),
    );
    assert_eq!(report["trn"]["classifier"], "onnx:foreign");
}

#[test]
fn what_does_not_fit_is_said_before_any_work() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    foreign(folder);
    std::fs::write(folder.join("nothing.onnx"), b"not a network").unwrap();
    assert!(refused(folder, &["model", "inspect", "nothing.onnx"]).contains("nothing.onnx"));
    std::fs::write(folder.join("foreign.onnx.toml"), "classes = [\"a\", \"b\"]").unwrap();
    let refusal = refused(folder, &["model", "inspect", "foreign.onnx"]);
    assert!(refusal.contains("10 classes") && refusal.contains("names 2"), "{refusal}");
    std::fs::write(folder.join("foreign.onnx.toml"), "colour = 3").unwrap();
    assert!(refused(folder, &["model", "inspect", "foreign.onnx"]).contains("foreign.onnx.toml"));
    std::fs::remove_file(folder.join("foreign.onnx.toml")).unwrap();
    assert!(refused(folder, &["model", "describe", "foreign.onnx", "--size", "32x32"]).contains("32"));
    assert!(!folder.join("foreign.onnx.toml").exists(), "a description that does not fit was kept");
    let operators = said(folder, &["model", "operators"]);
    assert!(operators["supported"].as_array().unwrap().len() > 100);
}
