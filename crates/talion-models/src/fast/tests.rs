//! The engine beside autograd.

use std::collections::BTreeMap;

use talion_core::{
    Classifier, Objective, autograd_logit_gradients, autograd_loss_gradient, gaussian_noise, uniform_noise,
};
use talion_kernels::Factors;
use talion_onnx::{Graph, Program, fold};
use tch::{Device, Kind, Tensor};

use super::{Engine, plan};
use crate::{Architecture, Mode, Model, ModelCard, ModelSpec, SearchPrecision};

const CLASSES: i64 = 7;

/// A network whose batch norms have seen something.
fn network(architecture: &str, channels: i64) -> Model {
    let architecture: Architecture = architecture.parse().unwrap();
    let spec = ModelSpec {
        architecture: architecture.into(),
        channels,
        classes: CLASSES,
        mean: vec![0.45; channels as usize],
        std: vec![0.25; channels as usize],
        order: Default::default(),
    };
    let card = ModelCard {
        kind: ModelCard::KIND.into(),
        spec,
        dataset: "noise".into(),
        image_size: [32, 32],
        class_names: (0..CLASSES).map(|class| class.to_string()).collect(),
        seed: 5,
        training: serde_json::Value::Null,
        metrics: BTreeMap::new(),
    };
    let model = Model::new(card, Device::Cpu).unwrap();
    tch::no_grad(|| {
        for round in 0..4 {
            let _ = model.forward(&images(16, channels, [32, 32], 100 + round), Mode::Train, Kind::Float);
        }
    });
    model.freeze()
}

fn images(rows: u64, channels: i64, [height, width]: [i64; 2], seed: u64) -> Tensor {
    let ids: Vec<u64> = (0..rows).collect();
    (uniform_noise(&[channels, height, width], &ids, seed, "images", 0) + 1.0) / 2.0
}

fn labels(rows: i64) -> Tensor {
    Tensor::arange(rows, (Kind::Int64, Device::Cpu)).remainder(CLASSES)
}

/// Every family, with channels that fill vectors and such that do not, and sides that fill tiles and such that do not.
const NETWORKS: [(&str, i64, [i64; 2]); 7] = [
    ("resnet18-w8", 3, [32, 32]),
    ("resnet18-w5", 1, [28, 28]),
    ("preactresnet18-w8", 3, [19, 32]),
    ("vgg16bn-w6", 3, [32, 32]),
    ("wrn-28-1", 3, [21, 17]),
    ("cnn-small-w8", 1, [28, 28]),
    ("cnn-small-w3", 3, [30, 33]),
];

/// The relative error of each row.
fn errors(found: &Tensor, expected: &Tensor) -> Vec<f64> {
    let rows =
        |tensor: &Tensor| tensor.to_kind(Kind::Double).flatten(1, -1).norm_scalaropt_dim(2.0, [1_i64], false);
    let (off, scale) = (rows(&(found.to_kind(Kind::Double) - expected)), rows(expected));
    let mut errors = Vec::<f64>::try_from(off / scale.clamp_min(1e-30)).unwrap();
    errors.sort_by(f64::total_cmp);
    errors
}

fn in_double(engine: &Engine<f64>, images: &Tensor, slope: &Tensor) -> [Tensor; 2] {
    let flat = |tensor: &Tensor| Vec::<f64>::try_from(tensor.contiguous().flatten(0, -1)).unwrap();
    let (logits, tape) = engine.logits_and_tape(2, &flat(images));
    let gradient = engine.backward(2, &tape, &flat(slope));
    assert_eq!(engine.logits(1, &flat(images)), logits, "recording changes nothing, nor do threads");
    [Tensor::from_slice(&logits).view_as(slope), Tensor::from_slice(&gradient).view_as(images)]
}

/// In f64 the engine and autograd through the same graph agree to the last digits: the algebra is right.
fn agrees_in_double(graph: &Graph, copy: Graph, images: &Tensor, what: &str, bound: f64) {
    let engine = Engine::<f64>::new(
        plan(graph, Factors::Full).unwrap_or_else(|why| panic!("{what} has no plan: {why}")),
    );
    let program = Program::new(copy, Device::Cpu).unwrap().to_double();
    let variable = images.to_kind(Kind::Double).set_requires_grad(true);
    let expected = program.run(&[variable.shallow_clone()]).unwrap().remove(0);
    let rows = images.size()[0] as u64;
    let ids: Vec<u64> = (0..rows).collect();
    let slope = gaussian_noise(&[expected.size()[1]], &ids, 3, "slope", 0).to_kind(Kind::Double);
    let along = (&expected * &slope).sum(Kind::Double);
    let gradient = Tensor::run_backward(&[along], &[&variable], false, false).remove(0);
    let [logits, found] = in_double(&engine, &images.to_kind(Kind::Double), &slope);
    for (what, found, expected) in [("logits", logits, expected.detach()), ("gradient", found, gradient)] {
        let worst = *errors(&found, &expected).last().unwrap();
        assert!(worst < bound, "{what}: {worst}");
    }
}

#[test]
fn every_architecture_agrees_with_autograd_in_double_precision() {
    for (architecture, channels, size) in NETWORKS {
        let model = network(architecture, channels);
        let graph = || fold(model.graph(size).unwrap()).unwrap();
        // a graph holds the shares of a mean over cells of 5 or 7 in f32, the engine counts
        let bound = if architecture.starts_with("cnn") { 1e-7 } else { 1e-10 };
        agrees_in_double(&graph(), graph(), &images(3, channels, size, 1), architecture, bound);
    }
}

/// In f32 rounding decides which of two nearly equal numbers is the larger, so that single images may differ by a ReLU; the
/// usual image does not.
#[test]
fn every_architecture_agrees_with_autograd_in_single_precision() {
    for (architecture, channels, size) in NETWORKS {
        let model = network(architecture, channels);
        assert!(model.is_fast(size), "{architecture}");
        let (x, labels) = (images(24, channels, size, 2), labels(24));
        let loss = |logits: &Tensor| Objective::CrossEntropy.per_sample(logits, &labels);
        let fast = model.loss_gradient(&x, &loss);
        let expected = autograd_loss_gradient(&model, &x, &loss);
        for (what, found, expected) in [
            ("logits", &fast.logits, &expected.logits),
            ("searched logits", &model.search_logits(&x), &expected.logits),
            ("gradient", &fast.gradient, &expected.gradient),
        ] {
            let errors = errors(found, &expected.to_kind(Kind::Double));
            assert!(errors[errors.len() / 2] < 1e-5, "{architecture}, {what}: {errors:?}");
        }
        let few = x.narrow(0, 0, 2);
        let [fast, expected] = [model.logit_gradients(&few), autograd_logit_gradients(&model, &few)];
        assert_eq!(fast.1.size(), expected.1.size());
        let errors = errors(&fast.1.flatten(0, 1), &expected.1.flatten(0, 1).to_kind(Kind::Double));
        assert!(errors[errors.len() / 2] < 1e-5, "{architecture}, all classes: {errors:?}");
    }
}

/// What networks of other people are made of: a stem with stride and pooling, norms on their own, sums of sums, linear layers
/// on a grid.
#[test]
fn other_graphs_agree_too() {
    use talion_onnx::{Attribute, Builder, Side};
    let draw = |shape: &[i64], name: &str| gaussian_noise(shape, &[1], 9, name, 0).squeeze_dim(0) * 0.3;
    let build = || {
        let mut b = Builder::new("other");
        let shape = vec![Side::Named("N".into()), Side::Fixed(3), Side::Fixed(37), Side::Fixed(34)];
        let x = b.input("images", Kind::Float, shape);
        let stem = b.conv(&x, &draw(&[12, 3, 7, 7], "stem"), Some(&draw(&[12], "b")), [2, 2], [3, 3], 1);
        let stem = b.relu(&stem);
        let pooled = b.max_pool(&stem, [3, 3], [2, 2], [1, 1]);
        let [scale, mean] = ["scale", "mean"].map(|name| b.constant(&draw(&[12], name)));
        let variance = b.constant(&draw(&[12], "variance").square());
        let norm = b.node("BatchNormalization", &[&pooled, &scale, &mean, &mean, &variance], vec![]);
        let side = b.conv(&norm, &draw(&[12, 12, 1, 1], "side"), None, [1, 1], [0, 0], 1);
        let main = b.conv(&norm, &draw(&[12, 12, 3, 3], "main"), None, [1, 1], [1, 1], 1);
        let sum = b.add(&main, &side);
        let sum = b.add(&sum, &norm);
        let rectified = b.relu(&sum);
        // read by three: its gradient is a sum of three
        let twice = b.add(&rectified, &rectified);
        let again = b.relu(&sum);
        let sum = b.add(&twice, &again);
        let tall = b.conv(&sum, &draw(&[10, 12, 3, 1], "tall"), None, [2, 1], [1, 0], 1);
        let window = vec![
            ("kernel_shape", Attribute::Ints(vec![2, 3])),
            ("strides", Attribute::Ints(vec![2, 2])),
            ("pads", Attribute::Ints(vec![1, 1, 0, 1])),
            ("count_include_pad", Attribute::Int(1)),
        ];
        let mean = b.node("AveragePool", &[&tall], window);
        let half = b.scalar(0.5);
        let scaled = b.mul(&mean, &half);
        let line = b.flatten(&scaled);
        let hidden = b.linear(&line, &draw(&[9, 10 * 3 * 5], "hidden"), Some(&draw(&[9], "c")));
        let hidden = b.relu(&hidden);
        let logits = b.linear(&hidden, &draw(&[4, 9], "logits"), None);
        let sides = vec![Side::Named("N".into()), Side::Fixed(4)];
        b.finish(&[("logits", &logits, sides)]).unwrap()
    };
    agrees_in_double(&build(), build(), &images(2, 3, [37, 34], 3), "a graph of many parts", 1e-10);
}

#[test]
fn a_row_has_the_same_bits_in_every_batch() {
    let model = network("resnet18-w8", 3);
    let (x, labels) = (images(70, 3, [32, 32], 4), labels(70));
    let answer = |from: i64, rows: i64| {
        let labels = labels.narrow(0, from, rows);
        let loss = |logits: &Tensor| Objective::CrossEntropy.per_sample(logits, &labels);
        model.loss_gradient(&x.narrow(0, from, rows), &loss)
    };
    let whole = answer(0, 70);
    for (from, rows) in [(0, 1), (3, 1), (5, 7), (63, 2), (30, 33)] {
        let part = answer(from, rows);
        assert!(part.logits == whole.logits.narrow(0, from, rows), "logits of {rows} rows from {from}");
        assert!(
            part.gradient == whole.gradient.narrow(0, from, rows),
            "gradients of {rows} rows from {from}"
        );
    }
}

#[test]
fn there_is_no_engine_where_something_is_unknown_or_still_in_training() {
    use talion_onnx::{Builder, Side};
    let build = |unknown: bool| {
        let mut b = Builder::new("small");
        let shape = vec![Side::Named("N".into()), Side::Fixed(1), Side::Fixed(8), Side::Fixed(8)];
        let x = b.input("images", Kind::Float, shape);
        let x = if unknown { b.sigmoid(&x) } else { b.relu(&x) };
        let x = b.global_average(&x, false);
        let weights = Tensor::from_slice(&[1_f32, -2.0]).view([2, 1]);
        let logits = b.linear(&x, &weights, None);
        b.finish(&[("logits", &logits, vec![Side::Named("N".into()), Side::Fixed(2)])]).unwrap()
    };
    assert!(plan::<f32>(&build(false), Factors::Full).is_ok());
    assert!(plan::<f32>(&build(true), Factors::Full).unwrap_err().contains("Sigmoid"));

    let frozen = network("cnn-small-w4", 1);
    let card = frozen.card().clone();
    assert!(frozen.is_fast([28, 28]));
    assert!(!frozen.to_double().is_fast([28, 28]));
    let training = Model::new(card, Device::Cpu).unwrap();
    assert!(training.fast_engine([28, 28]).unwrap_err().contains("weights"));
}

/// What is left of the digits is left: the gradient in bf16 points where the one in f32 does. Who judges is f32.
#[test]
fn in_bf16_only_the_search_is_another() {
    for (architecture, channels, size) in NETWORKS {
        let model = network(architecture, channels);
        let searcher = model.searching_in(SearchPrecision::Bf16);
        let (x, labels) = (images(24, channels, size, 2), labels(24));
        assert!(searcher.logits(&x) == model.logits(&x), "{architecture} is judged in f32");
        assert!(searcher.is_approximate(&x));
        let loss = |logits: &Tensor| Objective::CrossEntropy.per_sample(logits, &labels);
        let (short, full) = (searcher.loss_gradient(&x, &loss), model.loss_gradient(&x, &loss));
        let logits = errors(&short.logits, &full.logits);
        assert!(logits[12] < 0.1, "{architecture}: {logits:?}");
        let line = |tensor: &Tensor| tensor.flatten(1, -1).to_kind(Kind::Double);
        let (found, expected) = (line(&short.gradient), line(&full.gradient));
        let cosines = Tensor::cosine_similarity(&found, &expected, 1, 1e-12).sort(0, false).0;
        // fresh weights and noise: what is rounded decides many a ReLU
        assert!(cosines.double_value(&[12]) > 0.8, "{architecture}: {cosines}");
        // layers of few channels stay in f32, and this one has no others
        let has_short_layers = architecture != "cnn-small-w3";
        if has_short_layers && talion_kernels::level().has_bf16() {
            assert!(short.gradient != full.gradient, "{architecture} is searched in bf16");
        } else {
            assert!(
                short.gradient == full.gradient,
                "{architecture} is searched in f32 where bf16 brings nothing"
            );
        }
        let few = x.narrow(0, 5, 3);
        assert!(searcher.search_logits(&few) == searcher.search_logits(&x).narrow(0, 5, 3), "{architecture}");
        assert!(searcher.logit_gradients(&few).1 == searcher.logit_gradients(&x).1.narrow(0, 5, 3));
    }
}
