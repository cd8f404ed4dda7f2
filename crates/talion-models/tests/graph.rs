//! Built-in networks written as graphs compute what the networks compute.

use std::collections::BTreeMap;

use talion_core::{Classifier, gaussian_noise, uniform_noise};
use talion_models::{Model, ModelCard, ModelSpec, import::ChannelOrder};
use talion_onnx::{Program, Side};
use tch::{Device, Tensor};

/// Small versions of all families.
const ALL: [&str; 5] = ["resnet18-w4", "preactresnet18-w4", "vgg16bn-w4", "wrn-28-1", "cnn-small-w4"];

/// A network with norms as after training: statistics and weights that are neither 0 nor 1.
fn model(architecture: &str, channels: i64, order: ChannelOrder) -> Model {
    let card = ModelCard {
        kind: ModelCard::KIND.into(),
        spec: ModelSpec {
            architecture: architecture.parse().unwrap(),
            channels,
            classes: 5,
            mean: [0.4, 0.5, 0.6][..channels as usize].to_vec(),
            std: [0.3, 0.2, 0.25][..channels as usize].to_vec(),
            order,
        },
        dataset: "none".into(),
        image_size: [28, 28],
        class_names: ["a", "b", "c", "d", "e"].map(String::from).to_vec(),
        seed: 3,
        training: serde_json::Value::Null,
        metrics: BTreeMap::new(),
    };
    let model = Model::new(card, Device::Cpu).unwrap();
    tch::no_grad(|| {
        for (name, mut tensor) in model.store().variables() {
            let centre = match name.rsplit('.').next() {
                Some("running_mean" | "bias") => 0.0,
                _ if name.contains("norm") => 1.0,
                _ => continue,
            };
            let noise = gaussian_noise(&tensor.size(), &[1], 1, &name, 0).squeeze_dim(0);
            tensor.copy_(&(noise * 0.2 + centre).clamp_min(if centre > 0.5 { 0.3 } else { -9.0 }));
        }
    });
    model
}

fn images(rows: u64, channels: i64, size: [i64; 2]) -> Tensor {
    let ids: Vec<u64> = (0..rows).collect();
    (uniform_noise(&[channels, size[0], size[1]], &ids, 1, "images", 0) + 1.0) / 2.0
}

/// Largest difference between graph and network, of the largest logit.
fn difference(model: &Model, rows: u64, size: [i64; 2]) -> f64 {
    let x = images(rows, model.card().spec.channels, size);
    let program = Program::new(model.graph(size).unwrap(), Device::Cpu).unwrap();
    let found = program.run(&[x.shallow_clone()]).unwrap().swap_remove(0);
    let expected = tch::no_grad(|| model.logits(&x));
    assert_eq!(found.size(), expected.size());
    let scale = expected.abs().max().double_value(&[]).max(1.0);
    (found - expected).abs().max().double_value(&[]) / scale
}

#[test]
fn graphs_of_all_families_compute_the_logits() {
    for name in ALL {
        for channels in [1, 3] {
            let model = model(name, channels, ChannelOrder::Rgb).freeze();
            for (rows, size) in [(1, [32, 32]), (3, [32, 32]), (3, [28, 28]), (2, [13, 18]), (2, [9, 6])] {
                let off = difference(&model, rows, size);
                assert!(off < 1e-4, "{name}, {channels} channels, {rows} of {size:?}: off by {off}");
            }
        }
    }
}

#[test]
fn a_network_that_has_not_been_folded_gives_the_folded_graph() {
    for name in ALL {
        let unfolded = model(name, 3, ChannelOrder::Rgb);
        let off = difference(&unfolded, 2, [16, 16]);
        assert!(off < 1e-4, "{name}: off by {off}");
        let graph = unfolded.graph([16, 16]).unwrap();
        assert!(graph.nodes.iter().all(|node| node.op != "BatchNormalization"), "{name}");
    }
}

#[test]
fn the_order_of_the_channels_is_part_of_the_graph() {
    let model = model("cnn-small-w4", 3, ChannelOrder::Bgr).freeze();
    let off = difference(&model, 2, [16, 16]);
    assert!(off < 1e-4, "off by {off}");
}

#[test]
fn graphs_say_what_goes_in_and_out() {
    let model = model("resnet18-w4", 3, ChannelOrder::Rgb).freeze();
    let graph = model.graph([28, 20]).unwrap();
    let batch = || Side::Named("N".into());
    assert_eq!((graph.inputs.len(), graph.outputs.len()), (1, 1));
    assert_eq!(graph.inputs[0].name, "images");
    let shape = [Side::Fixed(3), Side::Fixed(28), Side::Fixed(20)];
    assert_eq!(graph.inputs[0].shape, Some(std::iter::once(batch()).chain(shape).collect()));
    assert_eq!(graph.outputs[0].name, "logits");
    assert_eq!(graph.outputs[0].shape, Some(vec![batch(), Side::Fixed(5)]));
    assert!(model.graph([0, 20]).is_err());
}
