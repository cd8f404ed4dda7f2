//! Somebody else's classifier from end to end: described, checked, attacked, defended, evaluated, exported.
//!
//! The foreign file is the bundled classifier, written as plain ONNX: whatever talion says of the one, it has to say of
//! the other.

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
    foreign(folder);
    said(folder, &["model", "describe", "foreign.onnx", "--dataset", "fashion-mnist"]);
    let (ours, trn) = (models("classifier"), models("trn"));
    let rows = |model: &str| {
        let report = said(
            folder,
            &[
                "evaluate",
                "--model",
                model,
                "--trn",
                &trn,
                "--images",
                "24",
                "--attack",
                "pgd-5@8/255",
                "--attack",
                "exact:pgd-3@8/255",
            ],
        );
        let measured = |row: usize, who: usize| {
            report["rows"][row]["measured"][who]["accuracy"]["count"].as_i64().unwrap()
        };
        [measured(0, 0), measured(1, 0), measured(1, 1), measured(2, 1)]
    };
    let (own, foreign) = (rows(&ours), rows("foreign.onnx"));
    // kernels round otherwise in another order of operations; a sample may lie on the edge
    for (own, foreign) in own.iter().zip(&foreign) {
        assert!((own - foreign).abs() <= 1, "{own} and {foreign}");
    }

    let run = [
        "evaluate",
        "--model",
        "foreign.onnx",
        "--trn",
        &trn,
        "--images",
        "4",
        "--adaptive-images",
        "2",
        "--run",
        "kept",
    ];
    let summary = said(folder, &run);
    let text = summary.to_string();
    assert!(
        text.contains("onnx:foreign") && text.contains("imported"),
        "the run does not say what it measured"
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
        "adversarial.safetensors",
    ];
    said(folder, &attack);
    assert!(folder.join("adversarial.safetensors").exists());
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

#[test]
fn a_network_is_trained_in_front_of_a_foreign_classifier() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    foreign(folder);
    said(folder, &["model", "describe", "foreign.onnx", "--dataset", DATA, "--channels", "1"]);
    let card = said(
        folder,
        &[
            "train",
            "trn",
            "--model",
            "foreign.onnx",
            "--estimator",
            "none",
            "--pool",
            "64",
            "--rounds",
            "1",
            "--replays",
            "1",
            "--mixture",
            "clean,fgsm@8/255",
            "-o",
            "one.safetensors",
        ],
    );
    assert_eq!(card["classifier"], "onnx:foreign");
    let report = said(
        folder,
        &[
            "evaluate",
            "--model",
            "foreign.onnx",
            "--trn",
            "one.safetensors",
            "--images",
            "8",
            "--attack",
            "fgsm@8/255",
        ],
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
