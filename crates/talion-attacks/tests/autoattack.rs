//! Several attacks in turn.

mod common;

use std::ops::ControlFlow;

use common::{ConvNet, Samples, budget, run_all};
use talion_attacks::{
    Attack, AttackSpec, AutoAttack, Bpda, Cascade, Eot, Fooled, Pgd, RunOptions, autoattack,
};
use talion_core::{Classifier, Error, Norm, Objective};
use tch::{Kind, Tensor};

fn quick() -> AutoAttack {
    "apgd-ce-8,apgd-t-8:targets=2,fab-t-8:targets=2,square-50".parse().unwrap()
}

/// Half of the samples are classified right.
fn samples(classifier: &dyn Classifier) -> Samples {
    let samples = Samples::random(40, &[3, 9, 9], classifier.classes(), -0.05, 4);
    let half = Tensor::arange(40, (Kind::Int64, tch::Device::Cpu)).remainder(2).to_kind(Kind::Bool);
    let labels = classifier.predict(&samples.images).where_self(&half, &samples.labels);
    Samples { labels, ..samples }
}

fn attacked(which: &AutoAttack, classifier: &dyn Classifier, samples: &Samples, epsilon: f64) -> Cascade {
    let batch = samples.batch(budget(Norm::Linf, epsilon), Objective::CrossEntropy);
    autoattack(which, classifier, &batch, &RunOptions { until_fooled: true }, &mut |_, _| {
        ControlFlow::Continue(())
    })
    .unwrap()
}

#[test]
fn the_worst_case_is_at_least_as_bad_as_each_attack_and_the_images_fool() {
    let classifier = ConvNet::random(5, 3, 8.0, 3);
    let samples = samples(&classifier);
    let cascade = attacked(&quick(), &classifier, &samples, 0.01);
    let batch = samples.batch(budget(Norm::Linf, 0.01), Objective::CrossEntropy);
    for attack in quick().attacks(Norm::Linf) {
        let alone = run_all(&attack, &classifier, &batch, true).unwrap();
        let success = Vec::<bool>::try_from(alone.success).unwrap();
        for (row, &success) in success.iter().enumerate() {
            assert!(!success || cascade.fooled[row] != Fooled::Never, "{attack} alone fools {row}");
        }
    }
    assert!(bool::try_from(batch.budget.contains(&samples.images, &cascade.adversarial).all()).unwrap());
    let predicted = talion_attacks::predict_all(&classifier, &cascade.adversarial).unwrap().labels;
    let wrong = Vec::<bool>::try_from(predicted.ne_tensor(&samples.labels)).unwrap();
    let fooled: Vec<bool> = cascade.fooled.iter().map(|&fooled| fooled != Fooled::Never).collect();
    assert_eq!(wrong, fooled);
    assert!(cascade.fooled.contains(&Fooled::Benign) && cascade.fooled.contains(&Fooled::Never));
    assert!(cascade.fooled.contains(&Fooled::By(0)));
    let given: Vec<usize> = cascade.stages.iter().map(|stage| stage.given).collect();
    assert!(given.is_sorted_by(|a, b| a >= b), "{given:?}");
}

#[test]
fn larger_budgets_leave_fewer_and_order_changes_nothing() {
    let classifier = ConvNet::random(5, 3, 8.0, 3);
    let samples = samples(&classifier);
    let robust = [0.0, 0.003, 0.01, 0.05, 0.5]
        .map(|epsilon| attacked(&quick(), &classifier, &samples, epsilon).robust_accuracy());
    assert!(robust.is_sorted_by(|a, b| a >= b), "{robust:?}");
    assert!(robust[0] >= 0.5 && robust[4] == 0.0, "{robust:?}");
    let whole = attacked(&quick(), &classifier, &samples, 0.01);
    let order = talion_core::shuffled(40, 1, "order", 0);
    let shuffled = attacked(&quick(), &classifier, &samples.pick(&order), 0.01);
    for (place, &row) in order.iter().enumerate() {
        assert_eq!(shuffled.fooled[place], whole.fooled[row]);
        assert_eq!(shuffled.adversarial.get(place as i64), whole.adversarial.get(row as i64));
    }
}

#[test]
fn versions_are_the_authors_and_few_classes_are_stated() {
    let names = |version: &str, norm| -> Vec<String> {
        let version: AutoAttack = version.parse().unwrap();
        version.attacks(norm).iter().map(ToString::to_string).collect()
    };
    assert_eq!(names("standard", Norm::Linf), ["apgd-ce-100", "apgd-t-100", "fab-t-100", "square-5000"]);
    assert_eq!(names("standard", Norm::L1), ["apgd-ce-100x5", "apgd-t-100:targets=5", "fab-t-100"]);
    let plus = ["apgd-ce-100x5", "apgd-dlr-100x5", "fab-100x5", "square-5000", "apgd-t-100", "fab-t-100"];
    assert_eq!(names("plus", Norm::L2), plus);
    assert_eq!(names("rand", Norm::Linf), ["apgd-ce-100", "apgd-dlr-100"]);
    assert!("standard,x".parse::<AutoAttack>().is_err());
    for classes in [2, 3, 5] {
        let classifier = ConvNet::random(classes, 3, 8.0, 3);
        let samples = samples(&classifier);
        let cascade = attacked(&"apgd-t-3,fab-t-3".parse().unwrap(), &classifier, &samples, 0.001);
        assert!(!cascade.adjustments.is_empty(), "{classes} classes instead of ten say nothing");
    }
}

#[test]
fn an_observer_stops_it() {
    let classifier = ConvNet::random(5, 3, 8.0, 3);
    let samples = samples(&classifier);
    let batch = samples.batch(budget(Norm::Linf, 0.01), Objective::CrossEntropy);
    let stopped =
        autoattack(&quick(), &classifier, &batch, &RunOptions::default(), &mut |_, _| ControlFlow::Break(()));
    assert!(matches!(stopped, Err(Error::Interrupted)));
}

#[test]
fn a_step_without_derivative_hides_nothing_from_bpda() {
    let classifier = ConvNet::random(5, 3, 8.0, 3);
    let samples = samples(&classifier);
    // 64 levels a value: the derivative is zero almost everywhere
    let quantise = |images: &Tensor| (images * 63.0).round() / 63.0;
    let bpda = Bpda { classifier: &classifier, forward: &quantise, substitute: None };
    let identity = |images: &Tensor| images.shallow_clone();
    let plain = Bpda { classifier: &classifier, forward: &identity, substitute: None };
    let batch = samples.batch(budget(Norm::Linf, 0.05), Objective::CrossEntropy);
    let fooled = |victim: &dyn Classifier| {
        let outcome = run_all(&Pgd::default(), victim, &batch, true).unwrap();
        outcome.success.to_kind(Kind::Int64).sum(Kind::Int64).int64_value(&[])
    };
    assert!(fooled(&bpda) > 35, "{}", fooled(&bpda));
    assert_eq!(plain.predict(&samples.images), classifier.predict(&samples.images));
    let average = Eot { classifier: &classifier, draws: 3 };
    let gradient = |victim: &dyn Classifier| {
        victim.input_gradient(&samples.images, &samples.labels, Objective::Margin).gradient
    };
    assert!((gradient(&average) - gradient(&classifier)).abs().max().double_value(&[]) < 1e-6);
    let spec: AttackSpec = "eot-pgd-2:draws=2".parse().unwrap();
    assert_eq!(spec.cost().backward, 4);
}
