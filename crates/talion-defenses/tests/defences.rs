//! Every defence to compare with, as an attacker meets it.

mod common;

use common::{Smooth, images};
use talion_core::{Classifier, Objective, Result};
use talion_defenses::{
    Defence, Defended, Draw, GradientMode, Pass,
    baselines::{FilterSpec, ResizePad},
    gradient_map::MapGraph,
};
use tch::{Kind, Tensor};

const FILTERS: [&str; 6] = ["jpeg-75", "bits-4", "median-3", "gaussian-0.7", "tv-0.05", "resize-pad-0.85"];

fn defence(name: &str) -> Box<dyn Defence> {
    name.parse::<FilterSpec>().unwrap().build().unwrap()
}

#[test]
fn every_filter_answers_alike_in_all_views_that_know_it() {
    let classifier = Smooth::new(1, 16, Kind::Float);
    let x = images(5, 1, 16, 16);
    for name in FILTERS {
        let defence = defence(name);
        let view = |mode| Defended::new(&classifier, &*defence, mode).unwrap();
        let exact = view(GradientMode::Exact);
        let expected = exact.logits(&x);
        assert_eq!(expected, exact.logits(&x), "{name} answers differently the second time");
        for mode in [GradientMode::Bpda, GradientMode::Detached] {
            let off = (view(mode).logits(&x) - &expected).abs().max().double_value(&[]);
            assert!(off < 1e-6, "{name} {mode}: {off}");
        }
        let (answered, restored) = exact.answer(&x);
        assert_eq!(answered, expected, "{name}");
        assert!((&restored - &x).abs().max().double_value(&[]) > 1e-3, "{name} does nothing");
        assert!(restored.min().double_value(&[]) >= 0.0 && restored.max().double_value(&[]) <= 1.0);
        assert_eq!(view(GradientMode::Oblivious).logits(&x), classifier.logits(&x), "{name}");
    }
}

#[test]
fn attackers_who_know_a_filter_have_gradients_through_it() {
    let classifier = Smooth::new(1, 16, Kind::Float);
    let x = images(6, 1, 16, 16);
    let labels = classifier.predict(&x);
    for name in FILTERS {
        let defence = defence(name);
        let loss_after = |mode| {
            let victim = Defended::new(&classifier, &*defence, mode).unwrap();
            let mut moved = x.copy();
            for _ in 0..5 {
                let found = victim.input_gradient(&moved, &labels, Objective::CrossEntropy);
                moved = (&moved + found.gradient.sign() * 0.02).clamp(0.0, 1.0);
            }
            let found = victim.input_gradient(&moved, &labels, Objective::CrossEntropy);
            found.loss.mean(Kind::Float).double_value(&[])
        };
        let (blind, knows) = (loss_after(GradientMode::Oblivious), loss_after(GradientMode::Exact));
        let victim = Defended::new(&classifier, &*defence, GradientMode::Exact).unwrap();
        let before = victim.input_gradient(&x, &labels, Objective::CrossEntropy).loss;
        let before = before.mean(Kind::Float).double_value(&[]);
        assert!(knows > before + 0.1, "{name}: {before}, then {knows} (blind {blind})");
    }
}

/// An attacker meets draws of its own, new ones for every image, and takes the mean of their gradients.
#[test]
fn gradients_of_random_defences_are_means_over_draws() {
    let classifier = Smooth::new(1, 16, Kind::Float);
    let x = images(3, 1, 16, 16);
    let labels = classifier.predict(&x);
    let defence = ResizePad::new(0.7).unwrap();
    let victim = Defended::new(&classifier, &defence, GradientMode::Exact).unwrap();
    let found = victim.input_gradient(&x, &labels, Objective::CrossEntropy);
    let draws: Vec<Tensor> = (0..8)
        .map(|number| {
            let pass = Pass { graph: MapGraph::Constant, draw: Draw::Attackers(number) };
            defence.pull_back(&classifier, &x, pass, &mut |restored| {
                classifier.input_gradient(restored, &labels, Objective::CrossEntropy).gradient
            })
        })
        .collect();
    let mean = Tensor::stack(&draws, 0).mean_dim(0_i64, false, None);
    assert!((&found.gradient - &mean).abs().max().double_value(&[]) < 1e-6);
    assert!((&draws[0] - &draws[1]).abs().max().double_value(&[]) > 1e-4, "all draws are the same");
    assert_eq!(found.logits, victim.logits(&x), "what fools is decided by the answer in use");
}

/// Adds a number that differs from vote to vote.
struct Votes;

impl Defence for Votes {
    fn description(&self) -> String {
        "votes".into()
    }

    fn restore(&self, _: &dyn Classifier, images: &Tensor, pass: Pass) -> Tensor {
        match pass.draw {
            Draw::Vote(number) => images * (1.0 - 0.2 * number as f64),
            Draw::Attackers(_) => images.shallow_clone(),
        }
    }

    fn is_random(&self) -> bool {
        true
    }

    fn votes(&self) -> u64 {
        3
    }
}

#[test]
fn votes_are_means_of_probabilities() -> Result<()> {
    let classifier = Smooth::new(1, 8, Kind::Float);
    let x = images(4, 1, 8, 8);
    let victim = Defended::new(&classifier, &Votes, GradientMode::Exact)?;
    let each = [1.0, 0.8, 0.6].map(|share| classifier.logits(&(&x * share)).softmax(1, None));
    let expected = (&each[0] + &each[1] + &each[2]) / 3.0;
    let found = victim.logits(&x).softmax(1, None);
    assert!((found - &expected).abs().max().double_value(&[]) < 1e-6);
    assert_eq!(victim.answer(&x).0, victim.logits(&x));
    let (logits, gradients) = victim.logit_gradients(&x);
    assert_eq!((logits.size(), gradients.size()), (vec![4, 4], vec![4, 4, 1, 8, 8]));
    assert!(gradients.abs().max().double_value(&[]) > 0.0);
    Ok(())
}
