//! What several tests of the program need.

use std::{collections::BTreeMap, path::Path};

use talion_core::gaussian_noise;
use talion_defenses::{EstimatorSpec, Trn, TrnCard, TrnSpec};
use talion_models::{Model, ModelCard, ModelSpec};
use tch::Device;

/// Two small classifiers, `model` and `other`, and a small TRN, `trn`, with weights that do something, in files.
pub fn networks(folder: &Path) {
    let card = ModelCard {
        kind: ModelCard::KIND.into(),
        spec: ModelSpec {
            architecture: "cnn-small-w4".parse().unwrap(),
            channels: 1,
            classes: 10,
            mean: vec![0.3],
            std: vec![0.3],
            order: Default::default(),
        },
        dataset: "fashion-mnist".into(),
        image_size: [28, 28],
        class_names: Vec::new(),
        seed: 1,
        training: serde_json::Value::Null,
        metrics: BTreeMap::new(),
    };
    let other = ModelCard { seed: 2, ..card.clone() };
    Model::new(card, Device::Cpu).unwrap().save(&folder.join("model")).unwrap();
    Model::new(other, Device::Cpu).unwrap().save(&folder.join("other")).unwrap();
    let spec = TrnSpec { width: 8, scales: 2, ..TrnSpec::one_stream("tiny", 1).unwrap() };
    let card = TrnCard {
        kind: TrnCard::KIND.into(),
        spec: spec.with_estimator(EstimatorSpec::Predicted),
        classes: 10,
        classifier: "cnn-small-w4".into(),
        dataset: "fashion-mnist".into(),
        seed: 3,
        training: serde_json::Value::Null,
        metrics: BTreeMap::new(),
    };
    let trn = Trn::new(card, Device::Cpu).unwrap();
    tch::no_grad(|| {
        for (name, mut tensor) in trn.store().variables() {
            if name.contains("output") {
                tensor.copy_(&(gaussian_noise(&tensor.size(), &[3], 1, &name, 0).squeeze_dim(0) * 0.3));
            }
        }
    });
    trn.save(&folder.join("trn")).unwrap();
}
