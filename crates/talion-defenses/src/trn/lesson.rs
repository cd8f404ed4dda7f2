//! One step of training, in which the last pass learns on the kernels of the fast engine where it can run on them.

use talion_models::training::Parameters;
use tch::Tensor;

use super::{Change, Prepared, Trn, journey::Journey};

/// What happened in a step.
pub(crate) struct Lesson<'a>(Journey<'a>);

impl<'a> Lesson<'a> {
    /// A step in which nothing has happened yet.
    pub(crate) fn new() -> Self {
        Self(Journey::learning())
    }

    /// As [`Trn::change`]. The derivative in the weights is kept by the lesson: the gradient of a loss of this change has to be
    /// asked of it.
    pub(crate) fn change(&self, trn: &'a Trn, images: &Tensor, prepared: &Prepared) -> Change {
        trn.change_noting(images, prepared, Some(&self.0))
    }

    /// The gradient of `loss`, a number that changes of this lesson led to, with respect to all weights.
    pub(crate) fn gradient(self, parameters: &Parameters, loss: &Tensor) -> Tensor {
        parameters.gradient(&self.0.fold(loss.shallow_clone()))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use talion_core::uniform_noise;
    use tch::{Device, Kind};

    use super::*;
    use crate::{
        EstimatorSpec,
        trn::{Fusion, TrnCard, TrnSpec},
    };

    /// A network whose weights are drawn so that few ReLUs are near zero: rounding would switch these.
    fn network(spec: &TrnSpec) -> Trn {
        let card = TrnCard {
            kind: TrnCard::KIND.into(),
            spec: spec.clone(),
            classes: 4,
            classifier: String::new(),
            dataset: String::new(),
            seed: 1,
            training: serde_json::Value::Null,
            metrics: BTreeMap::new(),
        };
        let trn = Trn::new(card, Device::Cpu).unwrap();
        tch::no_grad(|| {
            for (place, (_, tensor)) in BTreeMap::from_iter(trn.store().variables()).into_iter().enumerate() {
                let size = tensor.size();
                let drawn = uniform_noise(&size, &[place as u64], 1, "weights", 0).squeeze_dim(0);
                let (mut tensor, inputs) = (tensor, size[1..].iter().product::<i64>().max(1) as f64);
                // biases well away from zero, three of four positive
                let drawn = if size.len() == 1 {
                    (&drawn + 0.5).sign() * (drawn.abs() * 0.4 + 0.6)
                } else {
                    drawn * (0.3 / inputs.sqrt())
                };
                tensor.copy_(&drawn);
            }
        });
        trn
    }

    fn spec(change: impl FnOnce(&mut TrnSpec)) -> TrnSpec {
        let mut spec = TrnSpec { width: 8, scales: 3, ..TrnSpec::one_stream("tiny", 1).unwrap() };
        change(&mut spec);
        spec
    }

    fn two_streams(fusion: Fusion) -> TrnSpec {
        let spec = TrnSpec { fusion, ..spec(|_| ()) };
        spec.with_estimator(EstimatorSpec::WalkBack)
    }

    /// What a first pass and an estimator would have prepared.
    fn prepared(spec: &TrnSpec, sides: [i64; 2], rows: &[u64]) -> Prepared {
        let [height, width] = sides;
        let draw = |shape: &[i64], name: &str| uniform_noise(shape, rows, 1, name, 0);
        if spec.estimator == EstimatorSpec::None {
            return Prepared::nothing();
        }
        let first = Change {
            residual: draw(&[1, height, width], "residual") * 0.2,
            gate: spec.gate.then(|| draw(&[1, 1, 1], "gate")),
            classes: None,
        };
        Prepared {
            first: Some(first),
            maps: Some(draw(&[3, height, width], "maps")),
            evidence: Some(draw(&[8], "evidence")),
        }
    }

    /// The gradient of all weights, by a lesson and by autograd.
    fn both(spec: &TrnSpec, sides: [i64; 2]) -> (Tensor, Tensor) {
        let trn = network(spec);
        let parameters = Parameters::new(trn.store());
        let rows: Vec<u64> = (0..5).collect();
        let images = uniform_noise(&[1, sides[0], sides[1]], &rows, 1, "images", 0) * 0.5 + 0.5;
        let prepared = prepared(spec, sides, &rows);
        let loss = |change: &Change| {
            let loss = trn.apply(&images, change).square().sum(Kind::Float);
            let gate = change.gate.as_ref().map(|gate| gate.sum(Kind::Float));
            let classes = change.classes.as_ref().map(|classes| classes.square().sum(Kind::Float));
            gate.into_iter().chain(classes).fold(loss, |loss, part| loss + part)
        };
        let lesson = Lesson::new();
        let change = lesson.change(&trn, &images, &prepared);
        let learnt = lesson.gradient(&parameters, &loss(&change));
        let expected = parameters.gradient(&loss(&trn.change(&images, &prepared)));
        (learnt, expected)
    }

    fn largest(tensor: &Tensor) -> f64 {
        tensor.abs().max().double_value(&[])
    }

    #[test]
    fn lessons_have_the_gradients_of_autograd() {
        let cases = [
            spec(|_| ()),
            spec(|spec| spec.gate = false),
            spec(|spec| (spec.patterns, spec.gate) = (Some([10, 14]), false)),
            two_streams(Fusion::Gated),
            two_streams(Fusion::Concatenation),
        ];
        for spec in &cases {
            // the second size has to be padded
            for sides in [[12, 20], [10, 14]] {
                let trn = network(spec);
                let (learnt, expected) = both(spec, sides);
                let mut offset = 0;
                for (name, tensor) in BTreeMap::from_iter(trn.store().variables()) {
                    if !tensor.requires_grad() {
                        continue;
                    }
                    let count = tensor.numel() as i64;
                    let (learnt, expected) =
                        (learnt.narrow(0, offset, count), expected.narrow(0, offset, count));
                    let error = largest(&(&learnt - &expected)) / largest(&expected).max(1e-6);
                    assert!(error < 1e-4, "{spec:?}, {sides:?}, {name}: {error:.2e}");
                    offset += count;
                }
                assert_eq!(offset, expected.numel() as i64);
                assert!(largest(&expected) > 0.0);
            }
        }
    }

    #[test]
    fn networks_without_kernels_learn_as_before() {
        let cases = [two_streams(Fusion::DynamicFilter), spec(|spec| spec.width = 12)];
        for spec in &cases {
            let (learnt, expected) = both(spec, [12, 20]);
            assert_eq!(learnt, expected, "{spec:?}");
        }
    }
}
