//! What the driver promises beyond what an attack does.

mod common;

use std::ops::ControlFlow;

use common::{ConvNet, Linear, Samples, budget, run_all};
use talion_attacks::{Attack, Batch, Bim, Noise, Pgd, RunOptions, predict_all, run};
use talion_core::{Budget, Classifier, Error, InputGradient, Norm, Objective};
use tch::{Device, Kind, Tensor};

fn setting() -> (ConvNet, Samples, Budget) {
    (ConvNet::random(5, 3, 8.0, 3), Samples::random(40, &[3, 9, 9], 5, -0.05, 4), budget(Norm::Linf, 0.02))
}

fn flags(outcome: &Tensor) -> Vec<bool> {
    Vec::try_from(outcome).unwrap()
}

#[test]
fn predictions_and_losses_are_those_of_the_images() {
    let (classifier, samples, budget) = setting();
    for objective in [Objective::CrossEntropy, Objective::TargetedCrossEntropy, Objective::Margin] {
        let batch = samples.batch(budget, objective);
        let outcome = run_all(&Pgd { steps: 4, ..Pgd::default() }, &classifier, &batch, false).unwrap();
        let predictions = predict_all(&classifier, &outcome.adversarial).unwrap();
        assert_eq!(outcome.predicted, predictions.labels);
        assert_eq!(outcome.success, objective.reached(&predictions.labels, &samples.labels));
        let loss = objective.per_sample(&predictions.logits, &samples.labels).to_kind(Kind::Double);
        assert_eq!(outcome.loss, loss);
        let sums = predictions.probabilities().sum_dim_intlist(1, false, Kind::Double);
        assert!((sums - 1.0).abs().max().double_value(&[]) < 1e-5);
    }
}

#[test]
fn predictions_do_not_depend_on_order_or_memory_layout() {
    let (classifier, samples, _) = setting();
    let whole = predict_all(&classifier, &samples.images).unwrap();
    let channels_last = samples.images.permute([0, 2, 3, 1]).contiguous().permute([0, 3, 1, 2]);
    assert_eq!(predict_all(&classifier, &channels_last).unwrap().logits, whole.logits);
    let last = predict_all(&classifier, &samples.images.narrow(0, 39, 1)).unwrap();
    assert_eq!(last.logits, whole.logits.narrow(0, 39, 1));
}

#[test]
fn restarts_are_never_worse_than_one_and_keep_the_first_that_fools() {
    let (classifier, samples, _) = setting();
    let labels = classifier.predict(&samples.images);
    let samples = Samples { labels, ..samples };
    let attack = |restarts| Pgd { steps: 2, restarts, step: Some(0.001) };
    for objective in [Objective::CrossEntropy, Objective::Margin] {
        let batch = samples.batch(budget(Norm::Linf, 0.01), objective);
        let one = run_all(&attack(1), &classifier, &batch, false).unwrap();
        let many = run_all(&attack(6), &classifier, &batch, false).unwrap();
        let (first, any) = (flags(&one.success), flags(&many.success));
        let losses = |tensor: &Tensor| Vec::<f64>::try_from(tensor).unwrap();
        for (row, (before, after)) in losses(&one.loss).into_iter().zip(losses(&many.loss)).enumerate() {
            let place = row as i64;
            if first[row] {
                assert_eq!(many.adversarial.get(place), one.adversarial.get(place));
            }
            assert!(any[row] || !first[row]);
            assert!(any[row] || after >= before, "{row}: {before} {after}");
        }

        // restart by restart, by hand
        let mut fooled = vec![false; 40];
        let mut best = vec![f64::NEG_INFINITY; 40];
        let images = samples.images.copy();
        let mut spent = 0;
        for restart in 0..6 {
            let part = Batch { restart, ..batch };
            let trial = run_all(&attack(1), &classifier, &part, false).unwrap();
            let (success, loss) = (flags(&trial.success), losses(&trial.loss));
            for row in 0..40 {
                if fooled[row] {
                    continue;
                }
                fooled[row] = success[row];
                spent += 2;
                if success[row] || loss[row] > best[row] {
                    best[row] = loss[row];
                    images.get(row as i64).copy_(&trial.adversarial.get(row as i64));
                }
            }
        }
        assert_eq!(any, fooled);
        assert_eq!(many.adversarial, images);
        assert_eq!(many.passes.backward, spent);
        assert!(fooled.contains(&true) && fooled.contains(&false), "the test must see both");
        assert_ne!(first, fooled, "some restart must help");
    }
}

#[test]
fn progress_is_told_and_stops_the_run() {
    let (classifier, samples, budget) = setting();
    let batch = samples.batch(budget, Objective::CrossEntropy);
    let attack = Pgd { steps: 2, restarts: 3, step: None };
    let mut seen = Vec::new();
    let options = RunOptions::default();
    let outcome = run(&attack, &classifier, &batch, &options, &mut |progress| {
        seen.push(progress);
        ControlFlow::Continue(())
    })
    .unwrap();
    assert!(
        seen.windows(2)
            .all(|pair| pair[0].done <= pair[1].done && pair[0].passes.forward < pair[1].passes.forward)
    );
    let last = seen.last().unwrap();
    assert_eq!((last.done, last.total, last.passes), (40, 40, outcome.passes));
    let mut calls = 0;
    let stopped = run(&attack, &classifier, &batch, &options, &mut |_| {
        calls += 1;
        if calls == 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    assert!(matches!(stopped, Err(Error::Interrupted)));
    assert_eq!(calls, 2);
}

#[test]
fn no_samples_are_no_work() {
    let (classifier, samples, budget) = setting();
    let none = samples.pick(&[]);
    let outcome =
        run_all(&Bim::default(), &classifier, &none.batch(budget, Objective::Margin), false).unwrap();
    assert_eq!(outcome.adversarial.size(), [0, 3, 9, 9]);
    assert_eq!(outcome.predicted.size(), [0]);
    let predictions = predict_all(&classifier, &none.images).unwrap();
    assert_eq!((predictions.logits.size(), predictions.labels.size()), (vec![0, 5], vec![0]));
}

#[test]
fn the_images_that_were_given_do_not_change() {
    let (classifier, samples, budget) = setting();
    let before = samples.images.copy();
    let batch = samples.batch(budget, Objective::CrossEntropy);
    let attacks: [&dyn Attack; 3] = [&Bim::default(), &Pgd::default(), &Noise {}];
    for attack in attacks {
        let _ = run_all(attack, &classifier, &batch, false).unwrap();
        assert_eq!(samples.images, before);
    }
}

/// Logits of a wrong width, or NaN.
struct Broken(f64, i64);

impl Classifier for Broken {
    fn classes(&self) -> i64 {
        2
    }

    fn logits(&self, images: &Tensor) -> Tensor {
        let sums = images.flatten(1, -1).sum_dim_intlist(1, true, Kind::Float) * self.0;
        sums.expand([-1, self.1], false)
    }
}

#[test]
fn classifiers_that_answer_nonsense_are_refused() {
    let samples = Samples::random(3, &[1, 3, 3], 2, 0.0, 1);
    for broken in [Broken(f64::NAN, 2), Broken(1.0, 3)] {
        assert!(predict_all(&broken, &samples.images).is_err());
        let batch = samples.batch(budget(Norm::L2, 0.1), Objective::CrossEntropy);
        assert!(run_all(&Bim::default(), &broken, &batch, false).is_err());
    }
    let linear = Linear::random(2, &[1, 3, 3], 1.0, 1);
    assert!(predict_all(&linear, &Tensor::full([1, 1, 3, 3], 2.0, (Kind::Float, Device::Cpu))).is_err());
}

/// A classifier whose answers depend, a little, on how many rows it is shown at once, as some kernels' do.
struct ShapeSensitive(ConvNet);

impl Classifier for ShapeSensitive {
    fn classes(&self) -> i64 {
        self.0.classes()
    }

    fn logits(&self, images: &Tensor) -> Tensor {
        let scale = 1.0 + 0.05 * (images.size()[0] as f64).ln();
        self.0.logits(&((images - 0.5) * scale + 0.5)) + Tensor::arange(5, (Kind::Float, Device::Cpu)) * scale
    }
}

#[test]
fn few_samples_get_the_answers_of_many_even_where_small_batches_would_change_them() {
    let (classifier, samples, budget) = setting();
    let sensitive = ShapeSensitive(ConvNet::random(5, 3, 8.0, 3));
    let attack = Pgd { steps: 12, restarts: 2, ..Pgd::default() };
    for classifier in [&classifier as &dyn Classifier, &sensitive] {
        let whole =
            run_all(&attack, classifier, &samples.batch(budget, Objective::CrossEntropy), true).unwrap();
        for count in [1, 3, 9, 20] {
            let part = Samples {
                images: samples.images.narrow(0, 0, count),
                labels: samples.labels.narrow(0, 0, count),
                ids: samples.ids[..count as usize].to_vec(),
            };
            let few =
                run_all(&attack, classifier, &part.batch(budget, Objective::CrossEntropy), true).unwrap();
            assert_eq!(few.adversarial, whole.adversarial.narrow(0, 0, count), "{count} samples");
            assert_eq!(few.loss, whole.loss.narrow(0, 0, count), "{count} samples");
        }
    }
}

/// A classifier whose fast ways are wrong: they find every image fooled, and no way to make it so.
struct Hasty<'a>(&'a ConvNet);

impl Hasty<'_> {
    /// Surely another class than the one that the classifier sees.
    fn wrong(&self, images: &Tensor) -> Tensor {
        let next = (self.0.predict(images) + 1).remainder(self.0.classes());
        next.one_hot(self.0.classes()).to_kind(Kind::Float) * 50.0
    }
}

impl Classifier for Hasty<'_> {
    fn classes(&self) -> i64 {
        self.0.classes()
    }

    fn logits(&self, images: &Tensor) -> Tensor {
        self.0.logits(images)
    }

    fn search_logits(&self, images: &Tensor) -> Tensor {
        self.wrong(images)
    }

    fn is_approximate(&self, _images: &Tensor) -> bool {
        true
    }

    fn loss_gradient(&self, images: &Tensor, loss: &dyn Fn(&Tensor) -> Tensor) -> InputGradient {
        let logits = self.wrong(images);
        InputGradient { loss: loss(&logits), gradient: images.zeros_like(), logits }
    }
}

#[test]
fn what_fast_ways_were_wrong_about_is_attacked_again_without_them() {
    let (classifier, samples, _) = setting();
    let labels = classifier.predict(&samples.images);
    let samples = Samples { labels, ..samples };
    let batch = samples.batch(budget(Norm::Linf, 0.01), Objective::CrossEntropy);
    let attack = Bim { steps: 6, step: None };
    for until_fooled in [false, true] {
        let expected = run_all(&attack, &classifier, &batch, until_fooled).unwrap();
        let found = run_all(&attack, &Hasty(&classifier), &batch, until_fooled).unwrap();
        let fooled = flags(&expected.success);
        assert!(fooled.contains(&true) && fooled.contains(&false), "both kinds of samples are needed");
        assert_eq!(flags(&found.success), fooled);
        assert_eq!(found.predicted, expected.predicted.where_self(&expected.success, &found.predicted));
        for (row, &fooled) in fooled.iter().enumerate() {
            let image = |outcome: &Tensor| outcome.narrow(0, row as i64, 1);
            assert!(!fooled || image(&found.adversarial) == image(&expected.adversarial), "sample {row}");
        }
        let spent = |outcome: &talion_attacks::Outcome| outcome.passes.forward;
        assert!(spent(&found) > spent(&expected), "both attacks are counted");
    }
}
