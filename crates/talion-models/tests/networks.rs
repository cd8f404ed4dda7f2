//! Every built-in architecture: shapes, folding, gradients, checkpoints.

use std::collections::BTreeMap;

use talion_core::{Classifier, Objective, gaussian_noise, uniform_noise};
use talion_models::{Architecture, Mode, Model, ModelCard, ModelSpec};
use tch::{Device, Kind, Tensor};

fn card(architecture: &str, channels: i64) -> ModelCard {
    ModelCard {
        kind: ModelCard::KIND.into(),
        spec: ModelSpec {
            architecture: architecture.parse().unwrap(),
            channels,
            classes: 5,
            mean: vec![0.4; channels as usize],
            std: vec![0.3; channels as usize],
            order: Default::default(),
        },
        dataset: "none".into(),
        image_size: [28, 28],
        class_names: ["a", "b", "c", "d", "e"].map(String::from).to_vec(),
        seed: 3,
        training: serde_json::Value::Null,
        metrics: BTreeMap::new(),
    }
}

/// Small versions of all families.
const ALL: [&str; 5] = ["resnet18-w4", "preactresnet18-w4", "vgg16bn-w4", "wrn-28-1", "cnn-small-w4"];

fn images(channels: i64, side: i64) -> Tensor {
    (uniform_noise(&[channels, side, side], &[1, 2, 3], 1, "images", 0) + 1.0) / 2.0
}

/// Norms as after training: statistics and weights that are neither 0 nor 1.
fn shake(model: &Model) {
    tch::no_grad(|| {
        for (name, mut tensor) in model.store().variables() {
            if name.contains("norm") {
                let noise = gaussian_noise(&tensor.size(), &[1], 1, &name, 0).squeeze_dim(0);
                let centre = if name.ends_with("running_mean") || name.ends_with("bias") { 0.0 } else { 1.0 };
                tensor.copy_(&(noise * 0.2 + centre).clamp_min(if centre > 0.5 { 0.3 } else { -9.0 }));
            }
        }
    });
}

#[test]
fn logits_have_a_row_an_image_at_any_size() {
    for name in ALL {
        for (channels, side) in [(1, 28), (3, 32), (3, 17)] {
            let model = Model::new(card(name, channels), Device::Cpu).unwrap().freeze();
            let logits = model.logits(&images(channels, side));
            assert_eq!(logits.size(), [3, 5], "{name} {side}");
            assert!(logits.isfinite().all().int64_value(&[]) == 1, "{name}");
        }
    }
}

#[test]
fn folding_changes_neither_logits_nor_gradients() {
    let labels = Tensor::from_slice(&[0_i64, 1, 2]);
    for name in ALL {
        let raw = Model::new(card(name, 3), Device::Cpu).unwrap();
        shake(&raw);
        let x = images(3, 32);
        let unfolded = raw.forward(&x, Mode::Eval, Kind::Float).detach();
        let gradient = raw.input_gradient(&x, &labels, Objective::CrossEntropy).gradient;
        let folded = raw.freeze();
        let off = (folded.logits(&x) - &unfolded).abs().max().double_value(&[]);
        let scale = unfolded.abs().max().double_value(&[]);
        assert!(off <= 1e-5 * scale.max(1.0), "{name}: logits off by {off} of {scale}");
        let folded_gradient = folded.input_gradient(&x, &labels, Objective::CrossEntropy).gradient;
        let off = (folded_gradient - &gradient).norm().double_value(&[]);
        let scale = gradient.norm().double_value(&[]);
        assert!(off <= 1e-4 * scale, "{name}: gradients off by {off} of {scale}");
    }
}

#[test]
fn single_and_double_precision_agree() {
    let labels = Tensor::from_slice(&[0_i64, 1, 2]);
    for name in ALL {
        let model = || {
            let model = Model::new(card(name, 1), Device::Cpu).unwrap();
            shake(&model);
            model
        };
        let x = images(1, 28);
        let single = model().freeze().input_gradient(&x, &labels, Objective::CrossEntropy).gradient;
        let x = x.to_kind(Kind::Double);
        let double = model().to_double().input_gradient(&x, &labels, Objective::CrossEntropy).gradient;
        let off = (single.to_kind(Kind::Double) - &double).norm().double_value(&[]);
        let scale = double.norm().double_value(&[]);
        // a ReLU may switch between the precisions, hence not the rounding error alone
        assert!(off <= 2e-2 * scale, "{name}: {off} of {scale}");
    }
}

#[test]
fn checkpoints_round_trip_and_say_what_is_wrong_with_them() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let model = Model::new(card("resnet18-w4", 1), Device::Cpu).unwrap();
    shake(&model);
    model.save(&path).unwrap();
    let back = Model::load(&path, Device::Cpu).unwrap();
    assert_eq!(back.card(), model.card());
    let x = images(1, 28);
    assert_eq!(back.logits(&x), model.freeze().logits(&x));

    let whole = std::fs::read(&path).unwrap();
    std::fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    let error = Model::load(&path, Device::Cpu).err().unwrap().to_string();
    assert!(error.contains("model.safetensors") && error.contains("whole"), "{error}");
    // a header that promises another network than the file holds
    let name = b"resnet18-w4";
    let position = whole.windows(name.len()).position(|window| window == name).unwrap();
    let mut other = whole;
    other[position + 10] = b'8';
    std::fs::write(&path, other).unwrap();
    let error = Model::load(&path, Device::Cpu).err().unwrap().to_string();
    assert!(error.contains("does not fit its own header"), "{error}");
}

#[test]
fn initial_weights_depend_on_the_seed_alone() {
    let weights = |seed| {
        let card = ModelCard { seed, ..card("resnet18-w4", 1) };
        Model::new(card, Device::Cpu).unwrap().tensors()
    };
    assert_eq!(weights(1), weights(1));
    assert_ne!(weights(1), weights(2));
}

#[test]
fn impossible_specifications_are_refused() {
    let spec = card("resnet18-w4", 1).spec;
    assert!(spec.validate().is_ok());
    assert!(ModelSpec { channels: 0, ..spec.clone() }.validate().is_err());
    assert!(ModelSpec { classes: 1, ..spec.clone() }.validate().is_err());
    assert!(ModelSpec { mean: vec![], ..spec.clone() }.validate().is_err());
    assert!(ModelSpec { std: vec![0.0], ..spec.clone() }.validate().is_err());
    assert!(ModelSpec { std: vec![f64::NAN], ..spec }.validate().is_err());
    assert!("resnet18-w4".parse::<Architecture>().is_ok());
}
