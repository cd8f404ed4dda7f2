//! The program as its users meet it.

use std::{
    path::Path,
    process::{Command, Output},
};

fn talion(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_talion")).current_dir(folder).args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The first bundled test image as a PNG file.
fn picture(path: &Path) {
    let data = talion_data::fashion_mnist_sample().unwrap();
    let pixels = data.image_bytes(0).unwrap().to_vec();
    image::GrayImage::from_raw(28, 28, pixels).unwrap().save(path).unwrap();
}

#[test]
fn help_teaches() {
    let folder = tempfile::tempdir().unwrap();
    let help = text(&talion(folder.path(), &["--help"]).stdout);
    for word in ["demo", "data", "train", "evaluate", "restore", "model", "export", "reproduce", "Exit codes"]
    {
        assert!(help.contains(word), "{word} is missing:\n{help}");
    }
    for command in [
        &["demo", "--help"][..],
        &["data", "fetch", "--help"],
        &["data", "info", "--help"],
        &["data", "export", "--help"],
        &["runs", "verify", "--help"],
        &["report", "--help"],
        &["train", "classifier", "--help"],
        &["train", "trn", "--help"],
        &["evaluate", "--help"],
        &["attack", "--help"],
        &["maps", "--help"],
        &["restore", "--help"],
        &["model", "--help"],
        &["model", "inspect", "--help"],
        &["model", "describe", "--help"],
        &["model", "check", "--help"],
        &["export", "--help"],
        &["reproduce", "--help"],
    ] {
        let output = talion(folder.path(), command);
        assert!(output.status.success() && output.stdout.len() > 200, "{command:?}");
    }
}

#[test]
fn the_demo_measures_and_draws() {
    let folder = tempfile::tempdir().unwrap();
    let output = talion(folder.path(), &["--json", "demo", "--images", "4", "-o", "demo.png"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let rows = report["oblivious"].as_array().unwrap();
    // clean and five attacks at two budgets
    assert_eq!(rows.len(), 11);
    assert_eq!(rows[0]["measured"].as_array().unwrap().len(), 3);
    assert_eq!(report["adaptive"].as_array().unwrap().len(), 2);
    let picture = image::open(folder.path().join("demo.png")).unwrap();
    assert!(picture.width() > 500 && picture.height() > 100);
}

#[test]
fn maps_are_compared_with_what_attacks_added() {
    let folder = tempfile::tempdir().unwrap();
    let measure = [
        "--json",
        "maps",
        "--images",
        "8",
        "--attack",
        "pgd-5@8/255",
        "--attack",
        "exact:fgsm@8/255",
        "-o",
        "maps.json",
    ];
    let output = talion(folder.path(), &measure);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let kept: serde_json::Value =
        serde_json::from_slice(&std::fs::read(folder.path().join("maps.json")).unwrap()).unwrap();
    assert_eq!(report, kept);
    let rows = report["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 2);
    // two references, three maps, two passes
    assert!(rows.iter().all(|row| row["directions"].as_array().unwrap().len() == 7));
    // the bundled network undoes most of an attack that does not see it
    let undone = rows[0]["directions"][6]["undone"]["mean"].as_f64().unwrap();
    assert!(undone > 0.3 && undone < 1.2, "{undone}");

    let alone = talion(folder.path(), &["maps", "--trn", "maps.json"]);
    assert!(!alone.status.success() && text(&alone.stderr).contains("--model"));
}

#[test]
fn the_demo_says_that_its_attacks_are_blind() {
    let folder = tempfile::tempdir().unwrap();
    let output = talion(folder.path(), &["demo", "--images", "2"]);
    let said = text(&output.stdout);
    assert!(said.contains("do not see the defence") && said.contains("KNOWS (exact)"), "{said}");
}

#[test]
fn evaluation_is_the_same_whatever_else_is_measured() {
    let folder = tempfile::tempdir().unwrap();
    let right = |images: &str| {
        let arguments = ["--json", "evaluate", "--images", images, "--attack", "pgd-5@0.1"];
        let output = talion(folder.path(), &arguments);
        assert!(output.status.success(), "{}", text(&output.stderr));
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        report["rows"][1]["measured"][1]["right"].as_array().unwrap().clone()
    };
    let few = right("5");
    assert_eq!(right("40")[..5], few);
}

#[test]
fn restore_writes_images_and_says_what_was_seen() {
    let folder = tempfile::tempdir().unwrap();
    picture(&folder.path().join("a.png"));
    picture(&folder.path().join("b.png"));
    let output = talion(folder.path(), &["restore", "a.png", "-o", "one.png"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(image::image_dimensions(folder.path().join("one.png")).unwrap(), (28, 28));
    let output = talion(folder.path(), &["--json", "restore", "a.png", "b.png", "-o", "out"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(text(&output.stdout).lines().count(), 2);
    let (one, both) = (folder.path().join("one.png"), folder.path().join("out/a.png"));
    assert_eq!(std::fs::read(one).unwrap(), std::fs::read(both).unwrap());
}

#[test]
fn bad_input_is_named_and_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    picture(&folder.path().join("good.png"));
    std::fs::write(folder.path().join("bad.png"), b"no picture").unwrap();
    let output = talion(folder.path(), &["restore", "good.png", "bad.png", "-o", "out"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("bad.png"), "{}", text(&output.stderr));
    assert!(!folder.path().join("out").exists());

    let cases: [(&[&str], &str); 6] = [
        (&["restore", "none.png", "-o", "out"], "none.png"),
        (&["restore", "good.png", "good.png", "-o", "out"], "both"),
        (&["evaluate", "--model", "good.png", "--trn", "good.png"], "good.png"),
        (&["evaluate", "--model", "good.png"], "--trn"),
        (&["evaluate", "--attack", "pgd-20"], "ATTACK@"),
        (&["train", "classifier", "--data", "nothing", "-o", "x"], "nothing"),
    ];
    for (arguments, word) in cases {
        let output = talion(folder.path(), arguments);
        assert!(!output.status.success(), "{arguments:?}");
        assert!(text(&output.stderr).contains(word), "{arguments:?}: {}", text(&output.stderr));
    }
}

#[test]
fn attacks_are_listed() {
    let folder = tempfile::tempdir().unwrap();
    let listed = text(&talion(folder.path(), &["attacks"]).stdout);
    for name in ["fgsm", "apgd-t", "fab-t", "square", "cw", "deepfool"] {
        assert!(listed.contains(name), "{name} is missing:\n{listed}");
    }
    let output = talion(folder.path(), &["--json", "attacks"]);
    let all: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(all.as_array().unwrap().len() >= 20);
    assert!(all[0]["cost"]["forward"].as_u64().is_some() && all[0]["attack"]["norms"].is_array());
}

#[test]
fn an_attack_keeps_its_images_and_refuses_nonsense_before_any_work() {
    let folder = tempfile::tempdir().unwrap();
    let good =
        ["--json", "attack", "pgd-3,square-5", "--images", "6", "--eps", "0.1", "-o", "adv.safetensors"];
    let output = talion(folder.path(), &good);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["robust"]["total"], 6);
    assert_eq!(report["stages"][0]["attack"], "pgd-3");
    assert!(folder.path().join("adv.safetensors").exists());
    assert!(!folder.path().join("adv.partial").exists());

    // what another run left is neither used nor overwritten
    std::fs::copy(folder.path().join("adv.safetensors"), folder.path().join("adv.partial")).unwrap();
    let output = talion(folder.path(), &good);
    assert!(!output.status.success() && text(&output.stderr).contains("--resume"));
    let other = ["attack", "fgsm", "--images", "6", "--resume", "-o", "adv.safetensors"];
    let output = talion(folder.path(), &other);
    assert!(!output.status.success() && text(&output.stderr).contains("other settings"));
    // the same settings go on: here there is nothing left to do
    let resumed: Vec<&str> = good.iter().copied().chain(["--resume"]).collect();
    let output = talion(folder.path(), &resumed);
    assert!(output.status.success(), "{}", text(&output.stderr));

    // searched in bf16 or, where the processor gains nothing by that, in f32: the result says which
    let short =
        ["--json", "attack", "pgd-3", "--images", "6", "--precision", "bf16", "-o", "short.safetensors"];
    let output = talion(folder.path(), &short);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let instead = text(&output.stderr).contains("searching in f32");
    assert_eq!(report["header"]["precision"], if instead { "f32" } else { "bf16" });

    for (wrong, says) in [
        (&["attack", "pdg-20"][..], "pdg-20"),
        (&["attack", "pgd-2", "--eps=-1"], "epsilon"),
        (&["attack", "pgd-2", "--norm", "l7"], "l7"),
        (&["attack", "square-5", "--norm", "l0"], "L0"),
        (&["attack", "apgd-ce-2", "--target", "77"], "label"),
        (&["attack", "pgd-2", "--images", "0"], "images"),
        (&["attack", "pgd-2", "--precision", "f16"], "bf16"),
        (&["attack", "pgd-2", "--precision", "bf16", "--threat", "exact"], "classifier itself"),
    ] {
        let output = talion(folder.path(), wrong);
        let said = text(&output.stderr);
        assert!(!output.status.success() && said.contains(says), "{wrong:?}: {said}");
    }
}

#[test]
fn images_are_exported_and_smallest_changes_are_found() {
    let folder = tempfile::tempdir().unwrap();
    let export = ["data", "export", "fashion-mnist-sample", "--images", "7", "-o", "images.safetensors"];
    let output = talion(folder.path(), &export);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let file = std::fs::read(folder.path().join("images.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&file).unwrap();
    assert_eq!(tensors.tensor("images").unwrap().shape(), [7, 1, 28, 28]);
    assert_eq!(tensors.tensor("labels").unwrap().shape(), [7]);

    // as pictures, larger, they are a data set of their own
    let export =
        ["data", "export", "fashion-mnist-sample", "--images", "20", "--folder", "large", "--side", "40"];
    let output = talion(folder.path(), &export);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let output = talion(folder.path(), &["data", "info", "folder:large", "--json"]);
    let info: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        [&info["images"], &info["height"], &info["width"]].map(serde_json::Value::as_u64),
        [Some(20), Some(40), Some(40)]
    );
    let again = talion(folder.path(), &export);
    assert!(text(&again.stderr).contains("there already"), "{}", text(&again.stderr));

    // within a budget that holds every image, an attack that stops at the first error goes farther than one that does not
    let largest = |whole: &[&str]| {
        let attack =
            ["attack", "fmn-15", "--norm", "l2", "--eps", "28", "--images", "7", "-o", "adv.safetensors"];
        let arguments: Vec<&str> = attack.iter().chain(whole).copied().collect();
        let output = talion(folder.path(), &arguments);
        assert!(output.status.success(), "{}", text(&output.stderr));
        let file = std::fs::read(folder.path().join("adv.safetensors")).unwrap();
        let values = |file: &[u8], name: &str| -> Vec<f32> {
            let tensors = safetensors::SafeTensors::deserialize(file).unwrap();
            let bytes = tensors.tensor(name).unwrap().data().to_vec();
            bytes.chunks_exact(4).map(|four| f32::from_le_bytes(four.try_into().unwrap())).collect()
        };
        let clean = std::fs::read(folder.path().join("images.safetensors")).unwrap();
        let (clean, adversarial) = (values(&clean, "images"), values(&file, "adversarial"));
        clean.iter().zip(&adversarial).map(|(a, b)| f64::from((a - b) * (a - b))).sum::<f64>()
    };
    let (nearest, first) = (largest(&["--whole"]), largest(&[]));
    assert!(nearest > 0.0 && nearest < first, "{nearest} and {first}");
}
