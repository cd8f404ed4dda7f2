//! The exported graph computes what the defended classifier computes.

#[allow(dead_code, reason = "what the other test files need, too")]
mod common;

use std::collections::BTreeMap;

use common::{CLASSES, ESTIMATORS, card, images};
use talion_core::{Classifier, gaussian_noise};
use talion_defenses::{
    Defended, FusedScales, Fusion, GradientMode, Normalization, Prepared, Trn, TrnSpec, export,
    gradient_map::MapGraph,
};
use talion_models::{Model, ModelCard, ModelSpec};
use talion_onnx::{Graph, Program, read, write};
use tch::{Device, Kind, Tensor};

/// Small versions of all families.
const FAMILIES: [&str; 5] = ["resnet18-w4", "preactresnet18-w4", "vgg16bn-w4", "wrn-28-1", "cnn-small-w4"];
/// One that the scales divide, and one that they do not.
const SIZES: [[i64; 2]; 2] = [[16, 16], [13, 18]];

/// A fresh classifier whose largest logit is about `sureness`.
fn classifier(architecture: &str, channels: i64, classes: i64, sureness: f64) -> Model {
    let card = ModelCard {
        kind: ModelCard::KIND.into(),
        spec: ModelSpec {
            architecture: architecture.parse().unwrap(),
            channels,
            classes,
            mean: vec![0.4; channels as usize],
            std: vec![0.3; channels as usize],
            order: Default::default(),
        },
        dataset: "none".into(),
        image_size: [16, 16],
        class_names: (0..classes).map(|class| class.to_string()).collect(),
        seed: 3,
        training: serde_json::Value::Null,
        metrics: BTreeMap::new(),
    };
    let model = Model::new(card, Device::Cpu).unwrap();
    tch::no_grad(|| {
        let largest = model.logits(&images(4, channels, 16, 16)).abs().max().double_value(&[]);
        for (name, mut tensor) in model.store().variables() {
            if name.starts_with("head.") {
                let scaled = &tensor * (sureness / largest);
                tensor.copy_(&scaled);
            }
        }
    });
    model.freeze()
}

/// A small specification of a one-stream network.
fn small(channels: i64) -> TrnSpec {
    TrnSpec { width: 8, ..TrnSpec::one_stream("tiny", channels).unwrap() }
}

fn busy(spec: &TrnSpec, estimator: &str) -> Trn {
    shaken(spec.with_estimator(estimator.parse().unwrap()))
}

/// A network in which every weight does something.
fn shaken(spec: TrnSpec) -> Trn {
    let trn = Trn::new(card(spec), Device::Cpu).unwrap();
    tch::no_grad(|| {
        for (name, mut tensor) in trn.store().variables() {
            let noise = gaussian_noise(&tensor.size(), &[3], 1, &name, 0).squeeze_dim(0);
            // queries of this length leave attention soft: where it is all or nothing, it magnifies how its inputs round
            let share = if name.contains("query") { 0.1 } else { 1.0 };
            let moved = (&tensor + noise * 0.05) * share;
            tensor.copy_(&moved);
        }
    });
    trn.freeze()
}

/// What the exported graph has to answer: logits, restored images, undefended logits.
fn expected(model: &Model, trn: &Trn, x: &Tensor) -> [Tensor; 3] {
    let defended = Defended::new(model, trn, GradientMode::Exact).unwrap();
    tch::no_grad(|| [defended.logits(x), defended.restore(x), model.logits(x)])
}

/// A unit of the classifier at its kink, or a gradient at its change of sign, may fall either way in the last bit: few
/// values may be further off, and by little.
fn assert_close(found: &Tensor, expected: &Tensor, what: &str) {
    assert_eq!(found.size(), expected.size(), "{what}");
    assert_eq!(found.kind(), Kind::Float, "{what}");
    let scale = expected.abs().max().double_value(&[]).max(1.0);
    let off = (found - expected).abs() / scale;
    let largest = off.max().double_value(&[]);
    let share = off.gt(1e-4).to_kind(Kind::Float).mean(None).double_value(&[]);
    assert!(largest <= 0.02 && share <= 0.005, "{what}: off by up to {largest}, {share} of all by over 1e-4");
}

/// Runs the graph on batches of 1 and 3 and compares.
fn check(graph: &Graph, model: &Model, trn: &Trn, size: [i64; 2], what: &str) {
    let program = Program::new(graph.clone_shallow(), Device::Cpu).unwrap();
    for rows in [1, 3] {
        let x = images(rows, trn.card().spec.channels, size[0], size[1]);
        let found = program.run(&[x.shallow_clone()]).unwrap();
        assert_eq!(found.len(), 3, "{what}");
        for (name, (found, expected)) in
            ["logits", "restored", "undefended"].iter().zip(found.iter().zip(expected(model, trn, &x)))
        {
            assert_close(found, &expected, &format!("{name} of {what}, {rows} rows"));
        }
    }
}

/// Maps and evidence matter to the network by far more than the tolerance, so that wrong ones would be seen.
fn assert_telling(model: &Model, trn: &Trn, size: [i64; 2], what: &str) {
    let x = images(3, trn.card().spec.channels, size[0], size[1]);
    let prepared = || trn.prepare(model, &x, MapGraph::Constant, None);
    let restored = trn.restore_prepared(&x, &prepared());
    let moved =
        |prepared: Prepared| (trn.restore_prepared(&x, &prepared) - &restored).abs().max().double_value(&[]);
    let restoration = (&restored - &x).abs().max().double_value(&[]);
    assert!(restoration > 1e-3, "{what} hardly restores: {restoration}");
    let Prepared { first, maps, evidence } = prepared();
    let Some(maps) = maps.filter(|maps| maps.numel() > 0) else { return };
    let without_maps = moved(Prepared { first, maps: Some(-maps), evidence });
    let Prepared { first, maps, evidence } = prepared();
    let misled = moved(Prepared { first, maps, evidence: evidence.map(|evidence| evidence + 0.5) });
    assert!(without_maps.min(misled) > 5e-4, "{what}: maps change {without_maps}, evidence {misled}");
}

#[test]
fn every_estimator_fusion_and_normalisation_is_exported() {
    let mut models = BTreeMap::new();
    let mut case = 0;
    for estimator in ESTIMATORS {
        for fusion in Fusion::ALL {
            for normalization in [Normalization::Rms, Normalization::Max, Normalization::Sign] {
                let without_maps = matches!(estimator, "none" | "restoration");
                let asks_much = matches!(fusion, Fusion::CrossAttention | Fusion::DynamicFilter);
                if (without_maps || asks_much) && normalization != Normalization::Rms
                    || estimator == "none" && fusion != Fusion::Gated
                {
                    continue; // nothing to join or to normalise, or normalised the same with other fusions
                }
                let (family, size) = (FAMILIES[case % 5], SIZES[case % 2]);
                let channels = [1, 3][case / 3 % 2];
                case += 1;
                let model = models
                    .entry((family, channels))
                    .or_insert_with(|| classifier(family, channels, CLASSES, 2.0));
                let trn = busy(&TrnSpec { fusion, normalization, ..small(channels) }, estimator);
                let what = format!("{estimator}, {fusion:?}, {normalization:?}, {family}, {size:?}");
                assert_telling(model, &trn, size, &what);
                let graph = export(&model.graph(size).unwrap(), &trn, size).unwrap();
                check(&graph, model, &trn, size, &what);
            }
        }
    }
}

#[test]
fn networks_of_other_shapes_are_exported() {
    let model = classifier("resnet18-w4", 1, CLASSES, 2.0);
    for (estimator, scales, gate) in [("none", 4, false), ("walk-back", 2, false), ("walk-back", 5, true)] {
        let size = [9, 20];
        let trn = busy(&TrnSpec { scales, gate, bound: 0.1, ..small(1) }, estimator);
        let graph = export(&model.graph(size).unwrap(), &trn, size).unwrap();
        check(&graph, &model, &trn, size, &format!("{estimator}, {scales} scales, gate {gate}"));
    }
    // a first pass of another shape, and without a gate
    let spec = TrnSpec { first: Some(Box::new(TrnSpec { scales: 2, gate: false, ..small(1) })), ..small(1) };
    let spec = TrnSpec { estimator: "walk-back".parse().unwrap(), ..spec };
    let trn = shaken(spec);
    let graph = export(&model.graph([16, 16]).unwrap(), &trn, [16, 16]).unwrap();
    check(&graph, &model, &trn, [16, 16], "a small first pass");
    // patterns, at the size that they were made for and at another
    for (estimator, size) in [("none", [16, 16]), ("walk-back", [12, 17])] {
        let trn = busy(&TrnSpec { patterns: Some([16, 16]), ..small(1) }, estimator);
        let graph = export(&model.graph(size).unwrap(), &trn, size).unwrap();
        check(&graph, &model, &trn, size, &format!("patterns, {estimator}, {size:?}"));
    }
}

#[test]
fn every_fusion_is_exported_at_any_scale_and_size() {
    let model = classifier("resnet18-w4", 1, CLASSES, 2.0);
    for fusion in Fusion::ALL {
        for (fused, scales, size) in [
            (FusedScales::All, 2, [9, 21]),
            (FusedScales::Coarsest, 3, [16, 16]),
            (FusedScales::Finest, 3, [13, 18]),
            (FusedScales::Coarsest, 5, [17, 15]),
        ] {
            let trn = busy(&TrnSpec { fusion, fused, scales, ..small(1) }, "predicted");
            let what = format!("{fusion}, {fused}, {scales} scales, {size:?}");
            let graph = export(&model.graph(size).unwrap(), &trn, size).unwrap();
            check(&graph, &model, &trn, size, &what);
        }
    }
}

#[test]
fn a_classifier_without_a_gradient_gets_an_empty_map() {
    let model = classifier("cnn-small-w4", 1, CLASSES, 1e6);
    let size = [16, 16];
    for normalization in [Normalization::Rms, Normalization::Max, Normalization::Sign] {
        let trn = busy(&TrnSpec { normalization, ..small(1) }, "predicted");
        let maps = trn.prepare(&model, &images(3, 1, 16, 16), MapGraph::Constant, None).maps.unwrap();
        assert_eq!(maps.abs().max().double_value(&[]), 0.0);
        let graph = export(&model.graph(size).unwrap(), &trn, size).unwrap();
        check(&graph, &model, &trn, size, &format!("{normalization:?}"));
    }
}

fn elements<'a>(tensors: impl Iterator<Item = &'a Tensor>) -> usize {
    tensors.map(Tensor::numel).sum()
}

#[test]
fn files_of_it_compute_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("defended.onnx");
    let model = classifier("preactresnet18-w4", 3, CLASSES, 2.0);
    let size = [13, 18];
    let x = images(2, 3, size[0], size[1]);
    for estimator in ESTIMATORS {
        let trn = busy(&small(3), estimator);
        let graph = export(&model.graph(size).unwrap(), &trn, size).unwrap();
        let weights = elements(model.tensors().values()) + trn.parameters();
        // copies of the classifier share its weights; what else there is are numbers and shapes
        let kept = elements(graph.constants.values());
        assert!(kept <= weights + 1000, "{estimator}: {kept} elements for {weights} weights");
        write(&graph, &path, &[("estimator".into(), estimator.into())]).unwrap();
        let back = read(&path).unwrap();
        let names = |graph: &Graph| graph.outputs.iter().map(|port| port.name.clone()).collect::<Vec<_>>();
        assert_eq!(names(&back), ["logits", "restored", "undefended"]);
        assert_eq!((&back.inputs, &back.outputs), (&graph.inputs, &graph.outputs), "{estimator}");
        check(&back, &model, &trn, size, estimator);
        let run = |graph: Graph| Program::new(graph, Device::Cpu).unwrap().run(&[x.shallow_clone()]).unwrap();
        for (found, expected) in run(back).iter().zip(run(graph)) {
            assert!((found - expected).abs().max().double_value(&[]) < 1e-6, "{estimator}");
        }
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let size = [16, 16];
    let graph = |channels, classes| classifier("resnet18-w4", channels, classes, 2.0).graph(size).unwrap();
    let fits = graph(1, CLASSES);
    let trn = busy(&small(1), "predicted");
    let refusal = |graph: &Graph, trn: &Trn, size| export(graph, trn, size).err().unwrap().to_string();
    let error = refusal(&graph(3, CLASSES), &trn, size);
    assert!(error.contains("channels is 3, expected 1"), "{error}");
    let error = refusal(&graph(1, 7), &trn, size);
    assert!(error.contains("number of classes is 7, expected 4"), "{error}");
    let mut silent = graph(1, 7);
    silent.outputs[0].shape = None;
    let error = refusal(&silent, &trn, size);
    assert!(error.contains("number of classes is 7, expected 4"), "{error}");
    let error = refusal(&fits, &trn, [16, 20]);
    assert!(error.contains("width is 16, expected 20"), "{error}");
    for size in [[0, 16], [16, -1], [i64::MAX, 16]] {
        let error = refusal(&fits, &trn, size);
        assert!(error.contains("image size"), "{error}");
    }
    let error = refusal(&fits, &trn.with_oracle().unwrap(), size);
    assert!(error.contains("oracle"), "{error}");
    let line = classifier("resnet18-w4", 1, CLASSES, 2.0).graph([1, 8]).unwrap();
    let error = refusal(&line, &busy(&small(1), "learned"), [1, 8]);
    assert!(error.contains("learned"), "{error}");
}
