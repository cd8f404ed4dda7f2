//! What the tests of derivative rules share: a network's written gradient beside that of autograd.

use talion_core::Result;
use tch::{Device, Kind, Tensor};

use super::{Derived, Shapes, differentiate};
use crate::{
    build::{Builder, Var},
    graph::{Graph, Side},
    program::Program,
};

/// Numbers in -1..1 that look random.
pub(super) fn numbers(shape: &[i64], seed: f64) -> Tensor {
    let count: i64 = shape.iter().product();
    let wild = (Tensor::arange(count, (Kind::Double, Device::Cpu)) * 12.9898 + seed).sin() * 43758.5453;
    ((&wild - wild.floor()) * 2.0 - 1.0).to_kind(Kind::Float).reshape(shape)
}

/// `[N, ...]`.
pub(super) fn sides(image: &[i64]) -> Vec<Side> {
    let fixed = image.iter().map(|&side| Side::Fixed(side));
    std::iter::once(Side::Named("N".into())).chain(fixed).collect()
}

/// A network from `images` to `logits`, which are what `build` makes, flattened.
pub(super) fn network(image: [i64; 3], build: impl FnOnce(&mut Builder, &Var) -> Var) -> Graph {
    let mut b = Builder::new("network");
    let x = b.input("images", Kind::Float, sides(&image));
    let y = build(&mut b, &x);
    let logits = b.flatten(&y);
    b.finish(&[("logits", &logits, vec![Side::Named("N".into()), Side::Unknown])]).unwrap()
}

/// The derivative with the logits as their own cotangent.
pub(super) fn derived(b: &mut Builder, network: &Graph, shapes: &Shapes, points: &Var) -> Result<Derived> {
    differentiate(b, network, shapes, points, &mut |_, logits| Ok(logits.clone()))
}

/// Checks that logits and gradient as written are those of libtorch, at several batch sizes.
#[track_caller]
pub(super) fn agrees(network: &Graph, image: [i64; 3]) {
    let program = Program::new(network.clone_shallow(), Device::Cpu).unwrap();
    let shapes = Shapes::record(network, image).unwrap();
    let count = program.run(&[numbers(&[1, image[0], image[1], image[2]], 0.0)]).unwrap()[0].size()[1];
    let weights = numbers(&[count], 7.7);
    let written = written(network, &shapes, image, &weights);
    for batch in [1, 2, 5] {
        let x = numbers(&[batch, image[0], image[1], image[2]], batch as f64 + 0.5).set_requires_grad(true);
        let logits = program.run(&[x.shallow_clone()]).unwrap().remove(0);
        let loss = (&logits * (logits.detach() * &weights)).sum(Kind::Float);
        let expected = Tensor::run_backward(&[loss], &[&x], false, false).remove(0);
        let found = written.run(&[x.detach()]).unwrap();
        close(&found[0], &logits.detach(), batch);
        close(&found[1], &expected, batch);
        assert!(expected.abs().max().double_value(&[]) > 0.0, "the gradient vanishes");
    }
}

/// A program of logits and gradient, with the weighted logits as cotangent.
#[track_caller]
fn written(network: &Graph, shapes: &Shapes, image: [i64; 3], weights: &Tensor) -> Program {
    let mut b = Builder::new("gradient");
    let points = b.input("images", Kind::Float, sides(&image));
    let mut seed = |b: &mut Builder, logits: &Var| -> Result<Var> {
        let weights = b.constant(weights);
        Ok(b.mul(logits, &weights))
    };
    let derived = differentiate(&mut b, network, shapes, &points, &mut seed).unwrap();
    let logits = vec![Side::Named("N".into()), Side::Fixed(weights.size()[0])];
    let outputs = [("logits", &derived.logits, logits), ("gradient", &derived.gradient, sides(&image))];
    Program::new(b.finish(&outputs).unwrap(), Device::Cpu).unwrap()
}

#[track_caller]
fn close(found: &Tensor, expected: &Tensor, batch: i64) {
    assert_eq!(found.size(), expected.size(), "at batch {batch}");
    let scale = expected.abs().max().double_value(&[]);
    let error = (found - expected).abs().max().double_value(&[]);
    assert!(error <= 1e-4 * scale, "at batch {batch}: off by {error} of {scale}");
}

/// The message with which the gradient of a network is refused.
#[track_caller]
pub(super) fn refusal(network: &Graph, image: [i64; 3]) -> String {
    let shapes = Shapes::record(network, image).unwrap();
    let mut b = Builder::new("gradient");
    let points = b.input("images", Kind::Float, sides(&image));
    derived(&mut b, network, &shapes, &points).unwrap_err().to_string()
}
