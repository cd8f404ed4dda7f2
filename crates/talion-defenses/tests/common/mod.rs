//! Small classifiers and networks for the tests.

use std::collections::BTreeMap;

use talion_core::{Classifier, gaussian_noise, uniform_noise};
use talion_defenses::{EstimatorSpec, Trn, TrnCard, TrnSpec};
use tch::{Device, Kind, Tensor};

pub const CLASSES: i64 = 4;

/// Two linear layers with a smooth nonlinearity, of any precision.
pub struct Smooth {
    first: Tensor,
    second: Tensor,
}

impl Smooth {
    pub fn new(channels: i64, side: i64, kind: Kind) -> Self {
        let inputs = channels * side * side;
        let weights =
            |rows: &[i64], name| gaussian_noise(rows, &[1], 5, name, 0).squeeze_dim(0).to_kind(kind);
        Self {
            first: weights(&[16, inputs], "first") * (4.0 / (inputs as f64).sqrt()),
            second: weights(&[CLASSES, 16], "second"),
        }
    }
}

impl Classifier for Smooth {
    fn classes(&self) -> i64 {
        CLASSES
    }

    fn logits(&self, images: &Tensor) -> Tensor {
        let hidden = (images - 0.5).flatten(1, -1).linear::<Tensor>(&self.first, None).tanh();
        hidden.linear::<Tensor>(&self.second, None)
    }
}

pub fn images(count: u64, channels: i64, height: i64, width: i64) -> Tensor {
    let ids: Vec<u64> = (0..count).collect();
    uniform_noise(&[channels, height, width], &ids, 7, "images", 0) * 0.4 + 0.5
}

pub fn card(spec: TrnSpec) -> TrnCard {
    TrnCard {
        kind: TrnCard::KIND.into(),
        spec,
        classes: CLASSES,
        classifier: "none".into(),
        dataset: "none".into(),
        seed: 2,
        training: serde_json::Value::Null,
        metrics: BTreeMap::new(),
    }
}

/// A fresh network of the smallest size.
pub fn network(estimator: &str, channels: i64) -> Trn {
    let spec = TrnSpec { width: 8, ..TrnSpec::one_stream("tiny", channels).unwrap() };
    let estimator: EstimatorSpec = estimator.parse().unwrap();
    Trn::new(card(spec.with_estimator(estimator)), Device::Cpu).unwrap()
}

/// The same with weights that do something.
#[allow(dead_code, reason = "not every test file uses it")]
pub fn busy_network(estimator: &str, channels: i64) -> Trn {
    let trn = network(estimator, channels);
    tch::no_grad(|| {
        for (name, mut tensor) in trn.store().variables() {
            if name.contains("output") || name.ends_with("bias") {
                let noise = gaussian_noise(&tensor.size(), &[3], 1, &name, 0).squeeze_dim(0);
                tensor.copy_(&(noise * 0.1));
            }
        }
    });
    trn.freeze()
}

#[allow(dead_code, reason = "not every test file uses it")]
pub const ESTIMATORS: [&str; 9] =
    ["none", "restoration", "predicted", "top1", "top3", "coarse1", "coarse2", "walk-back", "learned"];
