//! Files that PyTorch wrote, beside what PyTorch answers on them; bench/import/fixtures.py makes both.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use talion_core::Classifier;
use talion_models::{Model, import::Sidecar};
use tch::{Device, Kind, Tensor};

const GRAPHS: [(&str, &str); 4] = [
    ("cnn-opset11.onnx", "cnn"),
    ("cnn-opset25.onnx", "cnn"),
    ("vit-opset17.onnx", "vit"),
    ("vit-opset25.onnx", "vit"),
];
const SCRIPT: &str = "cnn-traced.pt";
const SCRIPT_FACTS: &str = "[input]\nsize = [8, 8]\nchannels = 1\n";
const WEIGHTS: &str = "resnet18-w2.pt";
const WEIGHTS_FACTS: &str = "[input]\nsize = [16, 16]\nmean = [0.5, 0.4, 0.3]\nstd = [0.2, 0.25, 0.3]\n";

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// A copy of a fixture in `folder`, and beside it what it does not say itself.
fn copied(folder: &Path, name: &str, facts: &str) -> PathBuf {
    let path = folder.join(name);
    fs::copy(fixture(name), &path).unwrap();
    if !facts.is_empty() {
        fs::write(Sidecar::path(&path), facts).unwrap();
    }
    path
}

fn load(path: &Path) -> Model {
    Model::load(path, Device::Cpu).unwrap_or_else(|error| panic!("{error}"))
}

/// What PyTorch answered: `images`, `cotangent`, `logits`, and `gradient` of the sum of logits times cotangent.
fn expected(network: &str) -> BTreeMap<String, Tensor> {
    let all = Tensor::read_safetensors(fixture("expected.safetensors")).unwrap();
    let of_network = |(name, tensor): (String, Tensor)| {
        name.strip_prefix(&format!("{network}.")).map(|part| (part.to_owned(), tensor))
    };
    all.into_iter().filter_map(of_network).collect()
}

/// The largest difference by the largest expected value.
fn error(found: &Tensor, expected: &Tensor) -> f64 {
    assert_eq!(found.size(), expected.size());
    let largest = |tensor: &Tensor| tensor.abs().max().double_value(&[]);
    largest(&(found - expected)) / largest(expected)
}

fn assert_answers_as_pytorch(model: &Model, network: &str, what: &str) {
    let expected = expected(network);
    let off = error(&model.logits(&expected["images"]), &expected["logits"]);
    assert!(off <= 1e-5, "{what}: logits off by {off}");
    let loss = |logits: &Tensor| (logits * &expected["cotangent"]).sum_dim_intlist(1_i64, false, Kind::Float);
    let off = error(&model.loss_gradient(&expected["images"], &loss).gradient, &expected["gradient"]);
    assert!(off <= 1e-4, "{what}: gradient off by {off}");
    // a row's answer does not depend on the others, and batches of one are batches
    let first = expected["images"].narrow(0, 0, 1);
    let off = error(&model.logits(&first), &expected["logits"].narrow(0, 0, 1));
    assert!(off <= 1e-5, "{what}: one image off by {off}");
}

#[test]
fn graphs_of_both_exporters_answer_as_pytorch() {
    for (name, network) in GRAPHS {
        let model = load(&fixture(name));
        assert_answers_as_pytorch(&model, network, name);
        let card = model.card();
        let (channels, classes) = if network == "cnn" { (1, 5) } else { (3, 4) };
        assert_eq!(
            (card.spec.channels, card.spec.classes, card.image_size),
            (channels, classes, [8, 8]),
            "{name}"
        );
        assert!(model.origin().is_some(), "{name}");
    }
}

#[test]
fn a_torchscript_program_answers_as_pytorch() {
    let folder = tempfile::tempdir().unwrap();
    let model = load(&copied(folder.path(), SCRIPT, SCRIPT_FACTS));
    assert_answers_as_pytorch(&model, "cnn", SCRIPT);
    assert_eq!((model.card().spec.classes, model.card().image_size), (5, [8, 8]));
}

#[test]
fn a_state_dict_answers_as_pytorch_whether_its_architecture_is_stated_or_found() {
    let folder = tempfile::tempdir().unwrap();
    let stated = format!("architecture = \"resnet18-w2\"\n{WEIGHTS_FACTS}");
    for facts in [WEIGHTS_FACTS, stated.as_str()] {
        let model = load(&copied(folder.path(), WEIGHTS, facts));
        assert_eq!(model.card().spec.architecture.to_string(), "resnet18-w2");
        assert_answers_as_pytorch(&model, "resnet", WEIGHTS);
    }
    let other = WEIGHTS_FACTS.replace("[input]", "architecture = \"resnet18-w4\"\n[input]");
    let path = copied(folder.path(), WEIGHTS, &other);
    let error = Model::load(&path, Device::Cpu).err().unwrap().to_string();
    assert!(error.contains(WEIGHTS), "{error}");
}

#[test]
fn the_file_beside_a_model_says_how_images_are_prepared() {
    let folder = tempfile::tempdir().unwrap();
    let name = "vit-opset17.onnx";
    let answers = expected("vit");
    let images = &answers["images"];
    let plain = load(&fixture(name));
    let reversed = load(&copied(folder.path(), name, "[input]\norder = \"bgr\"\n"));
    let off = error(&reversed.logits(images), &plain.logits(&images.flip([1])));
    assert!(off <= 1e-6, "channels reversed: off by {off}");
    // mean and standard deviation are those of values up to 255, in the network's own order
    let facts =
        "[input]\norder = \"bgr\"\nscale = 255.0\nmean = [127.5, 51.0, 25.5]\nstd = [51.0, 63.75, 127.5]\n";
    let bytes = load(&copied(folder.path(), name, facts));
    let row = |values: [f32; 3]| Tensor::from_slice(&values).view([1, 3, 1, 1]);
    let prepared = (images.flip([1]) - row([0.5, 0.2, 0.1])) / row([0.2, 0.25, 0.5]);
    let off = error(&bytes.logits(images), &plain.logits(&prepared));
    assert!(off <= 1e-5, "byte values: off by {off}");
}

#[test]
fn facts_that_do_not_fit_the_file_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let name = "vit-opset17.onnx";
    let wrong = [
        "[input]\nsize = [16, 16]\n",
        "[input]\nchannels = 1\n",
        "[input]\nmean = [0.5]\nstd = [0.5]\n",
        "[input]\nmean = [0.5, 0.5, 0.5]\nstd = [0.5, 0.0, 0.5]\n",
        "classes = [\"cat\", \"dog\"]\n",
        "[input]\nunknown = 1\n",
        "no toml",
    ];
    for facts in wrong {
        let path = copied(folder.path(), name, facts);
        let error = Model::load(&path, Device::Cpu).err().map(|error| error.to_string());
        assert!(error.as_ref().is_some_and(|error| error.contains(name)), "{facts}: {error:?}");
    }
    let path = copied(folder.path(), SCRIPT, "");
    let error = Model::load(&path, Device::Cpu).err().unwrap().to_string();
    assert!(error.contains(SCRIPT) && error.contains("size"), "{error}");
}

#[test]
fn files_cut_short_are_errors_that_name_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let files = GRAPHS.map(|(name, _)| (name, "")).into_iter();
    for (name, facts) in files.chain([(SCRIPT, SCRIPT_FACTS), (WEIGHTS, WEIGHTS_FACTS)]) {
        let path = copied(folder.path(), name, facts);
        let whole = fs::read(&path).unwrap();
        for length in (0..whole.len()).step_by(97) {
            fs::write(&path, &whole[..length]).unwrap();
            let error = Model::load(&path, Device::Cpu).err().map(|error| error.to_string());
            assert!(
                error.as_ref().is_some_and(|error| error.contains(name)),
                "{name}, {length} bytes: {error:?}"
            );
        }
    }
}

#[test]
fn damaged_files_are_errors_or_other_networks_but_never_a_panic() {
    let folder = tempfile::tempdir().unwrap();
    // not TorchScript: that is a program, and a damaged one is another program
    let files = GRAPHS.map(|(name, _)| (name, "", 61)).into_iter();
    for (name, facts, step) in files.chain([(WEIGHTS, WEIGHTS_FACTS, 997)]) {
        let path = copied(folder.path(), name, facts);
        let whole = fs::read(&path).unwrap();
        for position in (0..whole.len()).step_by(step) {
            let mut damaged = whole.clone();
            damaged[position] ^= 0xff;
            fs::write(&path, damaged).unwrap();
            if let Err(error) = Model::load(&path, Device::Cpu) {
                let error = error.to_string();
                assert!(error.contains(name), "{name}, byte {position}: {error}");
            }
        }
    }
}
