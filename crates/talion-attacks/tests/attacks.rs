//! What every attack promises, and that the checks of these promises find attacks that break them.

mod common;

use common::{ConvNet, Linear, Samples, budget, check_budget, check_independence, check_optimum, run_all};
use proptest::prelude::*;
use talion_attacks::{
    Attack, AttackSpec, Attempt, Batch, Bim, CATALOGUE, Conditions, Fgsm, Mim, Noise, Passes, Pgd, Rows,
};
use talion_core::{Budget, Classifier, InputGradient, Norm, Objective, Result};
use tch::{Device, Kind, Tensor};

const NORMS: [Norm; 2] = [Norm::Linf, Norm::L2];
const OBJECTIVES: [Objective; 3] =
    [Objective::CrossEntropy, Objective::TargetedCrossEntropy, Objective::Margin];

/// Every kind of attack, at a small size.
fn attacks() -> Vec<AttackSpec> {
    [
        "fgsm",
        "bim-5",
        "pgd-5x2",
        "mim-5",
        "mim-5:decay=0.5:step=0.5",
        "pgd-3:step=2",
        "noise",
        "ni-fgsm-3",
        "si-ni-fgsm-3:copies=2",
        "di-fgsm-3:probability=1",
        "ti-fgsm-3:kernel=3",
        "vmi-fgsm-3:neighbours=2",
        "eot-pgd-3:draws=2",
        "spsa-3:pairs=3",
        "apgd-ce-8",
        "apgd-ce-8:faithful",
        "apgd-dlr-8x2",
        "apgd-t-6:targets=2",
        "fab-6",
        "fab-t-6:targets=2",
        "square-20",
        "hsj-60:around=4",
        "cw-10:search=3",
        "ead-15:search=4:rate=0.1",
        "ddn-10",
        "fmn-10",
        "deepfool-10",
        "jsma",
    ]
    .map(|name| name.parse().unwrap())
    .into()
}

/// Whether the attack is defined for the norm, and for attackers that choose a class.
fn applies(attack: &AttackSpec, norm: Norm, objective: Objective) -> bool {
    let entry = attack.entry().unwrap();
    entry.norms.contains(&norm) && (entry.targeted || objective != Objective::TargetedCrossEntropy)
}

fn attacks_in_norms() -> Vec<(AttackSpec, Norm)> {
    let pairs = attacks().into_iter().flat_map(|attack| Norm::ALL.map(|norm| (attack.clone(), norm)));
    pairs.filter(|(attack, norm)| applies(attack, *norm, Objective::CrossEntropy)).collect()
}

#[test]
fn every_kind_of_attack_is_tested_and_refuses_what_it_is_not_defined_for() {
    let tested = attacks();
    for entry in CATALOGUE {
        assert!(tested.iter().any(|attack| attack.entry().unwrap().kind == entry.kind), "{}", entry.kind);
    }
    let classifier = ConvNet::random(4, 3, 8.0, 1);
    let samples = Samples::random(2, &[3, 6, 6], 4, 0.0, 1);
    for attack in &tested {
        for (norm, objective) in Norm::ALL.into_iter().flat_map(|norm| OBJECTIVES.map(|goal| (norm, goal))) {
            let batch = samples.batch(budget(norm, 0.5), objective);
            let defined = applies(attack, norm, objective);
            assert_eq!(attack.perturb(&classifier, &batch).is_ok(), defined, "{attack} {norm} {objective:?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn every_attack_respects_budget_and_box(
        norm in 0..4_usize, convolutional in any::<bool>(), objective in 0..3_usize,
        epsilon in prop_oneof![Just(0.0), Just(1e-9), Just(8.0 / 255.0), 0.0..1.0_f64, Just(300.0)],
        scale in prop_oneof![Just(0.0), Just(1e-20), 0.01..10.0_f64, Just(1e6)],
        inset in -0.3..0.5_f64, seed in any::<u64>(),
        count in 1..5_u64, channels in 1..4_i64, height in 3..7_i64, width in 3..7_i64, classes in 2..6_i64
    ) {
        let row = [channels, height, width];
        let classifier: Box<dyn Classifier> = if convolutional {
            Box::new(ConvNet::random(classes, channels, scale, seed))
        } else {
            Box::new(Linear::random(classes, &row, scale, seed))
        };
        let samples = Samples::random(count, &row, classes, inset, seed);
        let (norm, objective) = (Norm::ALL[norm], OBJECTIVES[objective]);
        let batch = samples.batch(budget(norm, epsilon), objective);
        for attack in attacks().into_iter().filter(|attack| applies(attack, norm, objective)) {
            let checked = check_budget(&attack, classifier.as_ref(), &batch);
            prop_assert!(checked.is_ok(), "{attack}: {checked:?}");
        }
    }
}

#[test]
fn a_budget_of_zero_leaves_the_images_as_they_are() {
    let classifier = ConvNet::random(4, 3, 8.0, 1);
    let samples = Samples::random(5, &[3, 6, 6], 4, -0.1, 1);
    for (attack, norm) in &attacks_in_norms() {
        let batch = samples.batch(budget(*norm, 0.0), Objective::CrossEntropy);
        let adversarial = attack.perturb(&classifier, &batch).unwrap();
        assert_eq!(adversarial, samples.images, "{attack} {norm}");
    }
}

#[test]
fn double_precision_images_stay_double() {
    let samples = Samples::random(3, &[1, 4, 4], 2, 0.0, 1);
    let samples = Samples { images: samples.images.to_kind(Kind::Double), ..samples };
    let classifier = Linear { weight: Linear::random(2, &[1, 4, 4], 1.0, 1).weight.to_kind(Kind::Double) };
    for (attack, norm) in &attacks_in_norms() {
        let batch = samples.batch(budget(*norm, 0.1), Objective::CrossEntropy);
        check_budget(attack, &classifier, &batch).unwrap();
    }
}

#[test]
fn every_attack_finds_the_worst_image_of_a_linear_classifier() {
    for name in ["fgsm", "bim-10", "bim-20", "pgd-20", "pgd-100", "mim-10", "mim-20"] {
        let attack: AttackSpec = name.parse().unwrap();
        check_optimum(&attack, Norm::Linf, 0.0).unwrap();
        // see the check: what a random start on the L2 ball leaves
        let tolerance = if name.starts_with("pgd") { 0.3 } else { 0.0 };
        check_optimum(&attack, Norm::L2, tolerance).unwrap();
    }
    assert!(check_optimum(&Noise {}, Norm::Linf, 0.5).is_err());
    assert!(check_optimum(&Noise {}, Norm::L2, 0.5).is_err());
}

#[test]
fn no_sample_depends_on_order_shard_or_neighbours() {
    for (attack, norm) in attacks_in_norms() {
        let epsilon = match norm {
            Norm::Linf => 0.02,
            Norm::L2 => 0.3,
            Norm::L1 => 3.0,
            Norm::L0 => 6.0,
        };
        check_independence(&attack, norm, epsilon)
            .unwrap_or_else(|problem| panic!("{attack} {norm}: {problem}"));
    }
}

#[test]
fn stronger_attacks_have_higher_losses_and_all_beat_noise() {
    let classifier = ConvNet::random(5, 3, 8.0, 3);
    let samples = Samples::random(48, &[3, 9, 9], 5, 0.0, 4);
    for (norm, epsilon) in [(Norm::Linf, 0.03), (Norm::L2, 0.3)] {
        let batch = samples.batch(budget(norm, epsilon), Objective::CrossEntropy);
        let loss = |name: &str| {
            let attack: AttackSpec = name.parse().unwrap();
            run_all(&attack, &classifier, &batch, false).unwrap().loss.mean(Kind::Double).double_value(&[])
        };
        let (noise, fgsm) = (loss("noise"), loss("fgsm"));
        assert!(noise < fgsm, "{norm}: {noise} {fgsm}");
        for name in ["bim-10", "pgd-20", "mim-10"] {
            assert!(fgsm < loss(name), "{norm} {name}: {fgsm}");
        }
    }
}

#[test]
fn a_larger_budget_fools_more() {
    let classifier = ConvNet::random(5, 3, 8.0, 3);
    let samples = Samples::random(32, &[3, 9, 9], 5, -0.05, 4);
    let samples = Samples { labels: classifier.predict(&samples.images), ..samples };
    for (attack, norm) in attacks_in_norms() {
        let (small, large) = match norm {
            Norm::Linf => (0.002, 0.1),
            Norm::L2 => (0.02, 2.0),
            Norm::L1 => (0.1, 20.0),
            Norm::L0 => (1.0, 100.0),
        };
        let fooled = |epsilon| {
            let batch = samples.batch(budget(norm, epsilon), Objective::CrossEntropy);
            let outcome = run_all(&attack, &classifier, &batch, true).unwrap();
            outcome.success.to_kind(Kind::Int64).sum(Kind::Int64).int64_value(&[])
        };
        let (few, many) = (fooled(small), fooled(large));
        assert!(few <= many && many > 0, "{attack} {norm}: {few} at {small}, {many} at {large}");
    }
}

#[test]
fn targeted_attacks_reach_their_targets() {
    let classifier = Linear::random(4, &[3, 5, 5], 1.0, 2);
    for name in ["fgsm", "bim-10", "pgd-20", "mim-10"] {
        let attack: AttackSpec = name.parse().unwrap();
        for (norm, epsilon) in [(Norm::Linf, 0.3), (Norm::L2, 2.5)] {
            for target in 0..4 {
                let samples = Samples::random(8, &[3, 5, 5], 4, 0.3, 5);
                let samples = Samples { labels: samples.labels.full_like(target), ..samples };
                let batch = samples.batch(budget(norm, epsilon), Objective::TargetedCrossEntropy);
                let outcome = run_all(&attack, &classifier, &batch, false).unwrap();
                assert_eq!(outcome.predicted, samples.labels, "{name} {norm} {target}");
                assert!(bool::try_from(outcome.success.all()).unwrap());
            }
        }
    }
}

/// A classifier whose gradient is zero everywhere, or NaN in the pixels of the first column.
struct Masked {
    undefined: bool,
}

impl Classifier for Masked {
    fn classes(&self) -> i64 {
        3
    }

    fn logits(&self, images: &Tensor) -> Tensor {
        let zeros = images * 0.0;
        let base = if self.undefined {
            // the derivative of the root is infinite at 0, and infinity times 0 is NaN
            let first = zeros.narrow(3, 0, 1).sqrt().flatten(1, -1).sum_dim_intlist(1, true, Kind::Float);
            images.narrow(3, 1, 2).flatten(1, -1).sum_dim_intlist(1, true, Kind::Float) + first
        } else {
            zeros.flatten(1, -1).sum_dim_intlist(1, true, Kind::Float)
        };
        base * Tensor::from_slice(&[1.0_f32, 2.0, 3.0]).unsqueeze(0)
    }
}

#[test]
fn zero_and_undefined_gradients_give_finite_images() {
    let samples = Samples::random(4, &[1, 3, 3], 3, -0.1, 1);
    for (attack, norm) in &attacks_in_norms() {
        let batch = samples.batch(budget(*norm, 0.1), Objective::CrossEntropy);
        for undefined in [false, true] {
            check_budget(attack, &Masked { undefined }, &batch).unwrap();
            run_all(attack, &Masked { undefined }, &batch, false).unwrap();
        }
    }
    // what is defined is still followed
    let batch = samples.batch(budget(Norm::Linf, 0.1), Objective::CrossEntropy);
    let change = Bim::default().perturb(&Masked { undefined: true }, &batch).unwrap() - batch.images;
    assert!(change.narrow(3, 1, 2).abs().max().double_value(&[]) > 0.09);
    assert_eq!(change.narrow(3, 0, 1).abs().max().double_value(&[]), 0.0);
}

#[test]
fn bad_input_is_an_error_for_every_attack() {
    let classifier = Linear::random(2, &[1, 3, 3], 1.0, 1);
    let samples = Samples::random(2, &[1, 3, 3], 2, 0.0, 1);
    let good = samples.batch(budget(Norm::Linf, 0.1), Objective::CrossEntropy);
    let float = (Kind::Float, Device::Cpu);
    let images = [
        Tensor::full([2, 1, 3, 3], f64::NAN, float),
        Tensor::full([2, 1, 3, 3], 1.5, float),
        Tensor::full([2, 1, 3, 3], -0.1, float),
        Tensor::zeros([1, 3, 3], float),
        Tensor::zeros([3, 1, 3, 3], float),
        Tensor::zeros([2, 1, 3, 3], (Kind::Uint8, Device::Cpu)),
    ];
    let labels = [
        Tensor::from_slice(&[0_i64]),
        Tensor::from_slice(&[0_i64, 2]),
        Tensor::from_slice(&[0_i64, -1]),
        Tensor::from_slice(&[0_f32, 1.0]),
    ];
    for attack in attacks().into_iter().filter(|attack| applies(attack, Norm::Linf, good.objective)) {
        let batches = (images.iter().map(|images| Batch { images, ..good }))
            .chain(labels.iter().map(|labels| Batch { labels, ..good }))
            .chain([Batch { ids: &[1], ..good }]);
        for batch in batches {
            assert!(attack.perturb(&classifier, &batch).is_err(), "{attack}");
            assert!(run_all(&attack, &classifier, &batch, false).is_err(), "{attack}");
        }
    }
}

#[test]
fn settings_out_of_range_are_errors() {
    let classifier = Linear::random(2, &[1, 3, 3], 1.0, 1);
    let samples = Samples::random(2, &[1, 3, 3], 2, 0.0, 1);
    let batch = samples.batch(budget(Norm::Linf, 0.1), Objective::CrossEntropy);
    let wrong: [Box<dyn Attack>; 6] = [
        Box::new(Bim { steps: 0, step: None }),
        Box::new(Pgd { steps: 0, ..Pgd::default() }),
        Box::new(Mim { steps: 0, ..Mim::default() }),
        Box::new(Bim { step: Some(f64::NAN), ..Bim::default() }),
        Box::new(Pgd { step: Some(-1.0), ..Pgd::default() }),
        Box::new(Mim { decay: f64::INFINITY, ..Mim::default() }),
    ];
    for attack in wrong {
        assert!(attack.perturb(&classifier, &batch).is_err(), "{}", attack.name());
    }
}

/// What the mutants break.
#[derive(Clone, Copy, Debug)]
enum Flaw {
    None,
    WrongSign,
    NoProjection,
    NoBox,
    SwappedLabel,
    HalfBudget,
    NoiseByPlace,
    NormOfTheWholeBatch,
    NanImage,
}

/// PGD as the crate has it, with one flaw.
struct Mutant(Flaw);

/// One restart of a mutant.
struct Broken {
    flaw: Flaw,
    budget: Budget,
    objective: Objective,
    rows: Rows,
    labels: Tensor,
    iterate: Tensor,
}

impl Attack for Mutant {
    fn name(&self) -> String {
        format!("mutant {:?}", self.0)
    }

    fn cost(&self) -> Passes {
        Passes::GRADIENT.times(20)
    }

    fn begin(&self, batch: &Batch<'_>, _: &Conditions<'_>) -> Result<Box<dyn Attempt>> {
        let (budget, flaw) = (batch.budget, self.0);
        let places: Vec<u64> = (0..batch.ids.len() as u64).collect();
        let ids = if matches!(flaw, Flaw::NoiseByPlace) { &places } else { batch.ids };
        let labels = if matches!(flaw, Flaw::SwappedLabel) {
            batch.labels.eq(0).to_kind(Kind::Int64)
        } else {
            batch.labels.copy()
        };
        let iterate = budget.random_start(batch.images, ids, batch.seed, "pgd", batch.restart);
        let objective = batch.objective;
        Ok(Box::new(Broken { flaw, budget, objective, rows: Rows::new(batch), labels, iterate }))
    }
}

impl Attempt for Broken {
    fn step(&mut self, classifier: &dyn Classifier) -> Result<()> {
        let (budget, original, flaw) = (self.budget, &self.rows.original, self.flaw);
        let share = match flaw {
            Flaw::WrongSign => -2.5,
            Flaw::NoProjection | Flaw::NoBox => 4.0,
            _ => 2.5,
        };
        let gradient = classifier.input_gradient(&self.iterate, &self.labels, self.objective).gradient;
        let direction = match flaw {
            Flaw::NormOfTheWholeBatch => &gradient / gradient.abs().max() * 0.5,
            _ => budget.steepest(&gradient),
        };
        let moved = &self.iterate + direction * (share * budget.epsilon() / 20.0);
        let moved = match flaw {
            Flaw::NoProjection => moved.clamp(0.0, 1.0),
            Flaw::NoBox => original + (moved - original).clamp(-budget.epsilon(), budget.epsilon()),
            _ => budget.project(original, &moved),
        };
        self.iterate = self.rows.unfinished(&moved, &self.iterate);
        self.rows.count(20, None);
        Ok(())
    }

    fn state(&mut self) -> Vec<&mut Tensor> {
        let mut state = self.rows.state();
        state.extend([&mut self.labels, &mut self.iterate]);
        state
    }

    fn finished(&self) -> Tensor {
        self.rows.finished.shallow_clone()
    }

    fn adversarial(&self) -> Tensor {
        match self.flaw {
            Flaw::HalfBudget => &self.rows.original + (&self.iterate - &self.rows.original) * 0.5,
            Flaw::NanImage => &self.iterate * f64::NAN,
            _ => self.iterate.shallow_clone(),
        }
    }

    fn passes(&self) -> Passes {
        Passes::GRADIENT
    }
}

/// All checks on one attack in one norm; the first that fails speaks.
fn check_all(attack: &dyn Attack, norm: Norm) -> common::Check {
    let classifier = Linear::random(2, &[2, 3, 4], 0.3, 1);
    let samples = Samples::random(6, &[2, 3, 4], 2, -0.2, 1);
    check_budget(attack, &classifier, &samples.batch(budget(norm, 0.2), Objective::CrossEntropy))?;
    check_optimum(attack, norm, if norm == Norm::L2 { 0.3 } else { 0.0 })?;
    let epsilon = if norm == Norm::L2 { 0.3 } else { 0.02 };
    check_independence(attack, norm, epsilon)
}

#[test]
fn the_checks_find_every_broken_attack() {
    for norm in NORMS {
        check_all(&Mutant(Flaw::None), norm).unwrap();
        check_all(&Pgd::default(), norm).unwrap();
        for flaw in [
            Flaw::WrongSign,
            Flaw::NoProjection,
            Flaw::NoBox,
            Flaw::SwappedLabel,
            Flaw::HalfBudget,
            Flaw::NoiseByPlace,
            Flaw::NormOfTheWholeBatch,
            Flaw::NanImage,
        ] {
            let found = check_all(&Mutant(flaw), norm);
            assert!(found.is_err(), "no check finds {flaw:?} in {norm}");
        }
    }
}

#[test]
fn a_mutant_that_leaves_the_budget_is_refused_by_the_driver() {
    let classifier = Linear::random(2, &[2, 3, 4], 0.3, 1);
    let samples = Samples::random(6, &[2, 3, 4], 2, -0.2, 1);
    let batch = samples.batch(budget(Norm::Linf, 0.2), Objective::CrossEntropy);
    for flaw in [Flaw::NoProjection, Flaw::NoBox, Flaw::NanImage] {
        let error = run_all(&Mutant(flaw), &classifier, &batch, false).unwrap_err().to_string();
        assert!(error.contains("left the budget"), "{error}");
    }
    assert!(run_all(&Fgsm {}, &classifier, &batch, false).is_ok());
}

/// Any attack, broken from outside.
struct Spoiled {
    attack: AttackSpec,
    flaw: Flaw,
}

/// An attempt of a spoiled attack.
struct SpoiledAttempt {
    attempt: Box<dyn Attempt>,
    original: Tensor,
    flaw: Flaw,
}

/// A classifier whose gradients point the wrong way.
struct Reversed<'a>(&'a dyn Classifier);

impl Classifier for Reversed<'_> {
    fn classes(&self) -> i64 {
        self.0.classes()
    }

    fn logits(&self, images: &Tensor) -> Tensor {
        self.0.logits(images)
    }

    fn loss_gradient(&self, images: &Tensor, loss: &dyn Fn(&Tensor) -> Tensor) -> InputGradient {
        let found = self.0.loss_gradient(images, loss);
        // the loss too: an attack that keeps its best image must not be saved by that
        InputGradient { gradient: -found.gradient, loss: -found.loss, ..found }
    }
}

impl Attack for Spoiled {
    fn name(&self) -> String {
        format!("{} {:?}", self.attack, self.flaw)
    }

    fn cost(&self) -> Passes {
        self.attack.cost()
    }

    fn begin(&self, batch: &Batch<'_>, conditions: &Conditions<'_>) -> Result<Box<dyn Attempt>> {
        let swapped = batch.labels.eq(0).to_kind(Kind::Int64);
        let labels = if matches!(self.flaw, Flaw::SwappedLabel) { &swapped } else { batch.labels };
        let attempt = self.attack.begin(&Batch { labels, ..*batch }, conditions)?;
        Ok(Box::new(SpoiledAttempt { attempt, original: batch.images.copy(), flaw: self.flaw }))
    }
}

impl Attempt for SpoiledAttempt {
    fn step(&mut self, classifier: &dyn Classifier) -> Result<()> {
        match self.flaw {
            Flaw::WrongSign => self.attempt.step(&Reversed(classifier)),
            _ => self.attempt.step(classifier),
        }
    }

    fn state(&mut self) -> Vec<&mut Tensor> {
        let mut state = self.attempt.state();
        state.push(&mut self.original);
        state
    }

    fn finished(&self) -> Tensor {
        self.attempt.finished()
    }

    fn adversarial(&self) -> Tensor {
        let adversarial = self.attempt.adversarial();
        match self.flaw {
            Flaw::NoProjection => (&self.original + (adversarial - &self.original) * 2.0).clamp(0.0, 1.0),
            Flaw::HalfBudget => (adversarial + &self.original) * 0.5,
            _ => adversarial,
        }
    }

    fn passes(&self) -> Passes {
        self.attempt.passes()
    }
}

#[test]
fn the_checks_find_broken_pgd_and_apgd() {
    for (name, norm) in ["pgd-20", "apgd-ce-20"].into_iter().flat_map(|name| NORMS.map(|norm| (name, norm))) {
        let spoiled = |flaw| Spoiled { attack: name.parse().unwrap(), flaw };
        check_all(&spoiled(Flaw::None), norm).unwrap_or_else(|problem| panic!("{name} {norm}: {problem}"));
        for flaw in [Flaw::WrongSign, Flaw::NoProjection, Flaw::SwappedLabel, Flaw::HalfBudget] {
            assert!(check_all(&spoiled(flaw), norm).is_err(), "no check finds {flaw:?} in {name} {norm}");
        }
    }
}

/// Two classes a row: a network's features, read along the line from the benign image's to those of a planted image in
/// its ball, which is by construction of the other class.
struct Planted {
    net: ConvNet,
    direction: Tensor,
    threshold: Tensor,
}

impl Planted {
    fn new(samples: &Samples, budget: Budget) -> Self {
        let net = ConvNet::random(24, 3, 8.0, 3);
        let planted = Noise {}.perturb(&net, &samples.batch(budget, Objective::CrossEntropy)).unwrap();
        let (benign, wrong) = (net.logits(&samples.images), net.logits(&planted));
        let direction = &wrong - &benign;
        let along = |features: &Tensor| (features * &direction).sum_dim_intlist(1_i64, false, Kind::Float);
        // so near the planted image that hardly any other random one lies beyond
        let threshold = along(&benign) * 0.1 + along(&wrong) * 0.9;
        Self { net, direction, threshold }
    }
}

impl Classifier for Planted {
    fn classes(&self) -> i64 {
        2
    }

    fn logits(&self, images: &Tensor) -> Tensor {
        let along = (self.net.logits(images) * &self.direction).sum_dim_intlist(1_i64, false, Kind::Float);
        let beyond = (along - &self.threshold) * 10.0;
        Tensor::stack(&[&-&beyond, &beyond], 1)
    }
}

/// The active test of Zimmermann et al., "Increasing Confidence in Adversarial Robustness Evaluations", NeurIPS 2022: there is
/// an adversarial image in every ball, and an attack that does not find it says nothing where it finds none.
#[test]
fn attacks_find_what_was_planted() {
    let samples = Samples::random(24, &[3, 9, 9], 2, 0.1, 4);
    let samples = Samples { labels: samples.labels.zeros_like(), ..samples };
    for (norm, epsilon) in [(Norm::Linf, 0.03), (Norm::L2, 0.5)] {
        let budget = budget(norm, epsilon);
        let planted = Planted::new(&samples, budget);
        assert_eq!(planted.predict(&samples.images), samples.labels);
        let share = |name: &str| {
            let attack: AttackSpec = name.parse().unwrap();
            // another seed than the planted images'
            let batch = Batch { seed: 99, ..samples.batch(budget, Objective::CrossEntropy) };
            let adversarial = attack.perturb(&planted, &batch).unwrap();
            planted.predict(&adversarial).to_kind(Kind::Double).mean(Kind::Double).double_value(&[])
        };
        assert!(share("noise") < 0.35, "{norm}: too easy, {}", share("noise"));
        for name in ["bim-20", "pgd-20", "mim-20", "apgd-ce-30", "apgd-dlr-30", "fab-30"] {
            assert!(share(name) >= 0.95, "{norm} {name}: {}", share(name));
        }
    }
}
