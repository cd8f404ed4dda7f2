//! The program from outside: it makes its files, loads them, and does every job.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use serde_json::{Value, json};
use talion_core::{gaussian_noise, read_safetensors};
use talion_defenses::{Trn, TrnCard, TrnSpec};
use tch::Device;

const PROGRAM: &str = env!("CARGO_BIN_EXE_talion-bench");

fn made(folder: &Path, arguments: &[&str]) {
    let output = Command::new(PROGRAM).current_dir(folder).args(arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A small TRN that restores twice, with weights that do something.
fn make_trn(path: &Path) {
    let one_stream = TrnSpec { width: 8, scales: 2, ..TrnSpec::one_stream("tiny", 1).unwrap() };
    let card = TrnCard {
        kind: TrnCard::KIND.into(),
        spec: one_stream.with_estimator("walk-back".parse().unwrap()),
        classes: 4,
        classifier: "cnn-small-w4".into(),
        dataset: "noise".into(),
        seed: 3,
        training: Value::Null,
        metrics: BTreeMap::new(),
    };
    let trn = Trn::new(card, Device::Cpu).unwrap();
    tch::no_grad(|| {
        for (name, mut tensor) in trn.store().variables() {
            if name.contains("output") {
                tensor.copy_(&(gaussian_noise(&tensor.size(), &[3], 1, &name, 0).squeeze_dim(0) * 0.1));
            }
        }
    });
    trn.freeze().save(path).unwrap();
}

/// A running worker; it ends with the test.
struct Worker {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Worker {
    fn start(folder: &Path) -> Self {
        let mut child = Command::new(PROGRAM)
            .current_dir(folder)
            .args(["--threads", "1"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let input = child.stdin.take();
        let output = BufReader::new(child.stdout.take().unwrap());
        let mut worker = Self { child, input, output };
        let ready = worker.line();
        assert_eq!((&ready["ready"], &ready["threads"]), (&json!(true), &json!(1)));
        assert_eq!(ready["about"]["threads"], 1);
        assert!(ready["about"]["version"].is_string() && ready["about"]["features"].is_array());
        worker
    }

    fn line(&mut self) -> Value {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap()
    }

    fn send(&mut self, line: &str) -> Value {
        let input = self.input.as_mut().unwrap();
        writeln!(input, "{line}").unwrap();
        input.flush().unwrap();
        self.line()
    }

    fn ask(&mut self, request: &Value) -> Value {
        let answer = self.send(&request.to_string());
        assert_eq!(answer["ok"], true, "{request}: {answer}");
        answer
    }

    fn refused(&mut self, request: &Value) -> String {
        let answer = self.send(&request.to_string());
        assert_eq!(answer["ok"], false, "{request}: {answer}");
        answer["error"].as_str().unwrap().to_owned()
    }

    /// Runs a job and checks what every answer has.
    fn job(&mut self, job: &Value, images: u64) -> Value {
        let answer = self.ask(&json!({ "op": "run", "job": job }));
        assert!(answer["seconds"].as_f64().unwrap() > 0.0, "{job}: {answer}");
        assert_eq!(answer["images"], images, "{job}: {answer}");
        answer
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // it ends with its input, and is not left behind if it does not
        drop(self.input.take());
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn share(answer: &Value, name: &str) -> f64 {
    let share = answer[name].as_f64().unwrap();
    assert!((0.0..=1.0).contains(&share), "{answer}");
    share
}

/// Classifier, TRN and images in a folder, and a worker that has loaded them.
fn prepared(folder: &Path) -> Worker {
    let model = ["make-model", "cnn-small-w4", "--channels", "1", "--classes", "4", "--size", "16"];
    made(folder, &[&model[..], &["--seed", "2", "-o", "model"]].concat());
    let data = ["make-data", "--channels", "1", "--size", "16", "--classes", "4", "--count", "24"];
    made(folder, &[&data[..], &["--seed", "5", "-o", "data"]].concat());
    make_trn(&folder.join("trn"));
    let mut worker = Worker::start(folder);
    let loaded = worker.ask(&json!({ "op": "load", "model": "model", "trn": "trn", "data": "data" }));
    assert_eq!(loaded, json!({ "ok": true, "images": 24, "size": [1, 16, 16], "classes": 4 }));
    worker
}

#[test]
fn every_kind_of_attack_is_done() {
    let folder = tempfile::tempdir().unwrap();
    let mut worker = prepared(folder.path());
    let gradient = worker.job(&json!({ "kind": "gradient", "batch": 8, "repeat": 3 }), 24);
    assert_eq!(gradient["each"].as_array().unwrap().len(), 3);
    let behind = json!({ "kind": "gradient", "batch": 4, "repeat": 1, "defended": "detached" });
    worker.job(&behind, 4);
    for (attack, steps, eps) in
        [("pgd", 3, 0.03), ("apgd-ce", 4, 0.03), ("fgsm", 1, 0.03), ("cw-l2", 3, 0.5), ("deepfool", 3, 0.5)]
    {
        let job = json!({
            "kind": "attack", "attack": attack, "steps": steps, "eps": eps, "step": 0.01, "images": 9, "batch": 4,
            "setting": "best", "peer": "foolbox",
        });
        share(&worker.job(&job, 9), "robust");
    }
    let behind = json!({
        "kind": "attack", "attack": "pgd-3", "eps": 0.03, "images": 5, "defended": "exact",
    });
    let answer = worker.job(&behind, 5);
    share(&answer, "robust");
    assert_eq!(answer["attack"], "pgd-3");
    // the whole box is the budget, so the cheap first attack mostly leaves nothing for the long ones
    for defended in [Value::Null, json!("detached")] {
        let job = json!({ "kind": "autoattack", "eps": 1.0, "images": 4, "batch": 4, "defended": defended });
        let answer = worker.job(&job, 4);
        assert!(share(&answer, "robust") <= share(&answer, "clean"), "{answer}");
    }
    let memory = worker.ask(&json!({ "op": "memory" }));
    assert!(memory["peak_kib"].as_u64().unwrap() > 10_000, "{memory}");
}

#[test]
fn restoration_and_training_are_done() {
    let folder = tempfile::tempdir().unwrap();
    let mut worker = prepared(folder.path());
    let restored = worker.job(&json!({ "kind": "restore", "batch": 2, "repeat": 4 }), 8);
    let each = restored["each"].as_array().unwrap();
    assert!(each.len() == 4 && each.iter().all(|seconds| seconds.as_f64().unwrap() > 0.0));

    worker.job(&json!({ "kind": "answers", "count": 8, "output": "answers" }), 8);
    let answers = read_safetensors(&folder.path().join("answers")).unwrap();
    assert_eq!(answers["logits"].size(), [8, 4]);
    assert_eq!(answers["restored"].size(), [8, 1, 16, 16]);
    let images = read_safetensors(&folder.path().join("data")).unwrap().remove("images").unwrap();
    assert_ne!(answers["restored"], images.narrow(0, 0, 8), "the TRN does nothing");

    let round = json!({ "kind": "train-trn", "pool": 16, "batch": 8, "attack": "pgd-2@8/255" });
    let trained = worker.job(&round, 16);
    assert_eq!(trained["steps"], 2);
    let alone = trained["without_validation"].as_f64().unwrap();
    assert!(alone > 0.0 && alone < trained["seconds"].as_f64().unwrap());

    // a classifier is trained without one, on all images that there are
    worker.ask(&json!({ "op": "load", "data": "data" }));
    let job = json!({
        "kind": "train-classifier", "architecture": "resnet18-w4", "images": 24, "batch": 8, "epochs": 1,
    });
    assert_eq!(worker.job(&job, 24)["steps"], 3);
    let gradient = json!({ "op": "run", "job": { "kind": "gradient", "batch": 1 } });
    assert!(worker.refused(&gradient).contains("classifier"));
}

#[test]
fn what_cannot_be_done_is_refused_and_the_worker_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let mut worker = prepared(folder.path());
    let run = |job: Value| json!({ "op": "run", "job": job });
    assert_eq!(worker.send("nonsense")["ok"], false);
    assert!(worker.refused(&json!({ "op": "dance" })).contains("dance"));
    assert!(worker.refused(&run(json!({ "kind": "matmul", "n": 4 }))).contains("matmul"));
    assert!(worker.refused(&run(json!({ "kind": "gradient", "batch": 25 }))).contains("24"));
    assert!(worker.refused(&run(json!({ "kind": "gradient", "batch": 0 }))).contains("1 to 24"));
    let attack = |name: &str, eps: f64| {
        run(json!({ "kind": "attack", "attack": name, "eps": eps, "images": 2, "steps": 2 }))
    };
    assert!(worker.refused(&attack("nothing", 0.1)).contains("nothing"));
    assert!(worker.refused(&attack("pgd", -0.1)).contains("epsilon"));
    let unlimited = run(json!({ "kind": "attack", "attack": "pgd", "images": 2 }));
    assert!(worker.refused(&unlimited).contains("eps"));
    let large = run(json!({ "kind": "train-trn", "pool": 4, "batch": 8, "attack": "pgd-2@8/255" }));
    assert!(worker.refused(&large).contains("pool"));
    worker.job(&json!({ "kind": "gradient", "batch": 1 }), 1);
    assert!(worker.refused(&json!({ "op": "load", "data": "nowhere" })).contains("nowhere"));
    // what was loaded before is gone
    assert!(worker.refused(&run(json!({ "kind": "gradient", "batch": 1 }))).contains("load"));
    assert_eq!(worker.ask(&json!({ "op": "quit" })), json!({ "ok": true }));
    drop(worker.input.take());
    assert!(worker.child.wait().unwrap().success());
}

#[test]
fn files_fit_one_another_or_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mut worker = prepared(folder.path());
    let folder = folder.path();
    // a network with batch norm, on the images of a data set, read again by another worker's rules
    let model = ["make-model", "resnet18-w4", "--channels", "1", "--size", "28", "-o", "deep"];
    made(folder, &model);
    made(folder, &["data", "--dataset", "fashion-mnist-sample", "--count", "6", "-o", "photographs"]);
    let file = read_safetensors(&folder.join("photographs")).unwrap();
    let sample = talion_data::fashion_mnist_sample().unwrap();
    assert_eq!(file["images"], sample.tensor(&[0, 1, 2, 3, 4, 5]).unwrap().0);
    worker.ask(&json!({ "op": "load", "model": "deep", "trn": null, "data": "photographs" }));
    worker.job(&json!({ "kind": "gradient", "batch": 6, "repeat": 1 }), 6);

    made(folder, &["make-data", "--channels", "3", "--size", "28", "--count", "2", "-o", "colour"]);
    assert!(worker.refused(&json!({ "op": "load", "model": "deep", "data": "colour" })).contains("28"));
    let mixed = json!({ "op": "load", "model": "deep", "trn": "trn", "data": "photographs" });
    assert!(worker.refused(&mixed).contains("classes"));
    let alone = json!({ "op": "load", "trn": "trn", "data": "data" });
    assert!(worker.refused(&alone).contains("classifier"));
    assert!(worker.refused(&json!({ "op": "load", "data": "model" })).contains("images"));
}
