//! What of attacks is found, and what is taken for one that is none.

use std::ops::ControlFlow;

use serde::{Deserialize, Serialize};
use talion_attacks::{Batch, RunOptions, Sees, in_micro_batches, run};
use talion_core::{Classifier, Error, Objective, Result, check_labels};
use talion_defenses::{Defended, EstimatorSpec, GradientMode, Trn};
use tch::{Device, Kind, Tensor};

use super::{Calibration, evading::Evading, roc, suspicion};
use crate::{Plan, Proportion, Setting, Subjects, facts::proportion, measure::Watch};

/// How well suspicion tells attacked images from clean ones that were not used in calibration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MeasuredDetection {
    /// Clean images that are flagged at the calibration's rate.
    pub false_alarms: Proportion,
    /// A curve an attack.
    pub curves: Vec<DetectionCurve>,
}

/// What is found of one attack.
///
/// Its samples are all images under the attack whose clean original the bare classifier gets right, whether the attack
/// fooled anybody or not: of the others there is nothing to attack. They are held against all clean images.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DetectionCurve {
    /// The attack's name.
    pub attack: String,
    /// Its budget in words, such as `Linf 8/255`.
    pub budget: String,
    /// What the attacker differentiated: `oblivious`, `bpda`, `detached` or `exact`; `none` for noise; `exact, evading W` where
    /// the score was among it, with this weight.
    pub view: String,
    /// Attacked images.
    pub samples: u64,
    /// The area under the curve of all thresholds ([`fn@roc`]).
    pub auc: f64,
    /// Those that are flagged at the calibration's rate.
    pub detected: Proportion,
    /// Those that the defended classifier gets wrong.
    pub fooled: u64,
    /// Those that the defended classifier gets wrong without a flag: the number that hurts.
    pub missed_and_fooled: u64,
    /// Points of the curve, false-alarm rate and detection rate, from `[0, 0]` to `[1, 1]`.
    pub points: Vec<[f64; 2]>,
}

impl MeasuredDetection {
    /// The first thing that does not fit together.
    pub(super) fn problem(&self) -> Option<String> {
        let wrong = self.curves.iter().find(|curve| !curve.fits())?;
        Some(format!(
            "the curve of {} at {} ({}) does not fit together",
            wrong.attack, wrong.budget, wrong.view
        ))
    }
}

impl DetectionCurve {
    fn fits(&self) -> bool {
        let rises = |pair: &[[f64; 2]]| pair[0][0] <= pair[1][0] && pair[0][1] <= pair[1][1];
        (0.0..=1.0).contains(&self.auc)
            && self.detected.total == self.samples
            && self.missed_and_fooled <= self.fooled
            && self.fooled <= self.samples
            && self.points.first() == Some(&[0.0, 0.0])
            && self.points.last() == Some(&[1.0, 1.0])
            && self.points.windows(2).all(rises)
    }
}

/// A classifier and the restoration network in front of it, whose answers are compared.
#[derive(Clone, Copy)]
pub struct Pair<'a> {
    /// The classifier.
    pub classifier: &'a dyn Classifier,
    /// The network that restores images for it.
    pub trn: &'a Trn,
}

/// What a pair says of images, an entry an image.
#[derive(Clone, Debug, PartialEq)]
pub struct Examined {
    /// The classes that the bare classifier predicts.
    pub bare: Vec<i64>,
    /// The classes that the defended classifier predicts.
    pub defended: Vec<i64>,
    /// The scores ([`fn@suspicion`]).
    pub scores: Vec<f64>,
}

impl Pair<'_> {
    /// Predictions and scores, bit for bit the same wherever an image sits. `watch` hears how many images are done, and
    /// stops with [`ControlFlow::Break`].
    ///
    /// # Shapes
    /// `images` `[N, C, H, W]` in `[0, 1]`, on any device.
    ///
    /// # Errors
    /// If the images do not pass [`talion_core::check_images`], the networks do not fit each other or answer NaN, or the
    /// watcher asked to stop.
    pub fn examine(
        &self,
        images: &Tensor,
        watch: &mut dyn FnMut(usize) -> ControlFlow<()>,
    ) -> Result<Examined> {
        if self.trn.card().spec.estimator == EstimatorSpec::Oracle {
            return Err(Error::Refused("a network that is told the true labels judges no images".into()));
        }
        let defended = Defended::new(self.classifier, self.trn, GradientMode::Exact)?;
        let total = images.size().first().copied().unwrap_or(0);
        let mut done = 0;
        let parts = in_micro_batches(images, self.classifier.device(), &mut |part| {
            let answers = tch::no_grad(|| {
                let (before, after) = (self.classifier.logits(part), defended.logits(part));
                let scores = suspicion(&before, &after);
                vec![before.argmax(1, false), after.argmax(1, false), scores]
            });
            // the last batch is padded
            done = total.min(done + part.size()[0]);
            match watch(done as usize) {
                ControlFlow::Continue(()) => Ok(answers),
                ControlFlow::Break(()) => Err(Error::Interrupted),
            }
        })?;
        let mut parts = parts.into_iter();
        let mut next = || parts.next().unwrap_or_else(|| Tensor::zeros([0], (Kind::Double, Device::Cpu)));
        let examined = Examined {
            bare: Vec::<i64>::try_from(next())?,
            defended: Vec::<i64>::try_from(next())?,
            scores: Vec::<f64>::try_from(next())?,
        };
        if examined.scores.iter().any(|score| !score.is_finite()) {
            return Err(Error::Refused(
                "the classifier's logits are not finite on images inside [0, 1]".into(),
            ));
        }
        Ok(examined)
    }
}

/// How attackers are measured who know the defence.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Adaptive {
    /// Images that they attack, the first of them: through the defence everything costs more.
    pub images: usize,
    /// What those with exact gradients give for a nat of suspicion, in units of their loss: 0 are attackers who do not know the
    /// score, and the larger it is the more they would rather fail than be flagged. At least 0.
    pub evasion: f64,
}

/// Measures false alarms on clean images, and what is found of every attack of `plan`. Every sample goes through the whole
/// attack.
///
/// # Shapes
/// `subjects` as they say.
///
/// # Errors
/// If images, labels and networks do not fit each other, the evasion is below 0, the classifier gets none of the images right, an attack fails,
/// or the watcher asked to stop.
pub fn measure_detection(
    calibration: &Calibration,
    pair: &Pair<'_>,
    subjects: Subjects<'_>,
    plan: &Plan,
    adaptive: Adaptive,
    watch: &mut Watch<'_>,
) -> Result<MeasuredDetection> {
    let total = subjects.ids.len();
    check_labels(subjects.labels, total as i64, pair.classifier.classes())?;
    let rows = subjects.images.size().first().copied().unwrap_or(0);
    if rows != total as i64 {
        return Err(Error::range("the number of images", format!("{total}, one an id"), rows));
    }
    if !(adaptive.evasion >= 0.0 && adaptive.evasion.is_finite()) {
        return Err(Error::range("the evasion", "at least 0", adaptive.evasion));
    }
    let clean = pair.examine(subjects.images, &mut |done| watch(None, done, total))?;
    let labels = Vec::<i64>::try_from(subjects.labels.to_device(Device::Cpu))?;
    let false_alarms = proportion(&calibration.flags(&clean.scores)?);
    let mut curves = Vec::new();
    for setting in &plan.settings {
        let first =
            if setting.threat == GradientMode::Oblivious { total } else { adaptive.images.min(total) };
        let right: Vec<usize> = (0..first).filter(|&row| clean.bare[row] == labels[row]).collect();
        if right.is_empty() {
            let problem = format!("{setting}: the classifier gets none of the first {first} images right");
            return Err(Error::Refused(problem));
        }
        let evasion = if setting.threat == GradientMode::Exact { adaptive.evasion } else { 0.0 };
        let adversarial = attacked(pair, (setting, evasion), subjects, (&right, plan.seed), watch)?;
        let found = pair.examine(&adversarial, &mut |_| watch(Some(setting), right.len(), right.len()))?;
        let labels: Vec<i64> = right.iter().map(|&row| labels[row]).collect();
        curves.push(curve(calibration, (setting, evasion), &clean.scores, &found, &labels)?);
    }
    Ok(MeasuredDetection { false_alarms, curves })
}

/// The images that a setting makes of some rows.
fn attacked(
    pair: &Pair<'_>,
    (setting, evasion): (&Setting, f64),
    subjects: Subjects<'_>,
    (rows, seed): (&[usize], u64),
    watch: &mut Watch<'_>,
) -> Result<Tensor> {
    let places: Vec<i64> = rows.iter().map(|&row| row as i64).collect();
    let places = Tensor::from_slice(&places);
    let chosen = |tensor: &Tensor| tensor.index_select(0, &places.to_device(tensor.device()));
    let ids: Vec<u64> = rows.iter().map(|&row| subjects.ids[row]).collect();
    let batch = Batch {
        images: &chosen(subjects.images),
        labels: &chosen(subjects.labels),
        ids: &ids,
        budget: setting.budget,
        objective: Objective::CrossEntropy,
        seed,
        restart: 0,
    };
    // oblivious, it is the bare classifier
    let mut victim: Box<dyn Classifier> = Box::new(Defended::new(pair.classifier, pair.trn, setting.threat)?);
    if evasion > 0.0 {
        victim = Box::new(Evading::new(pair, evasion)?);
    }
    let mut observer =
        |progress: talion_attacks::Progress| watch(Some(setting), progress.done, progress.total);
    Ok(run(&setting.attack, victim.as_ref(), &batch, &RunOptions::default(), &mut observer)?.adversarial)
}

fn curve(
    calibration: &Calibration,
    (setting, evasion): (&Setting, f64),
    clean: &[f64],
    found: &Examined,
    labels: &[i64],
) -> Result<DetectionCurve> {
    let flags = calibration.flags(&found.scores)?;
    let fooled: Vec<bool> = found.defended.iter().zip(labels).map(|(said, label)| said != label).collect();
    let missed = fooled.iter().zip(&flags).filter(|(fooled, flagged)| **fooled && !**flagged).count();
    let blind = setting.attack.entry().is_some_and(|entry| entry.sees == Sees::Nothing);
    let roc = roc(clean, &found.scores)?;
    Ok(DetectionCurve {
        attack: setting.attack.to_string(),
        budget: setting.budget.to_string(),
        view: match (blind, evasion > 0.0) {
            (true, _) => "none".into(),
            (false, true) => format!("exact, evading {evasion}"),
            (false, false) => setting.threat.to_string(),
        },
        samples: labels.len() as u64,
        auc: roc.auc,
        detected: proportion(&flags),
        fooled: proportion(&fooled).count,
        missed_and_fooled: missed as u64,
        points: roc.points,
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use talion_core::{gaussian_noise, uniform_noise};
    use talion_defenses::{TrnCard, TrnSpec};

    use super::*;

    /// Three classes, linear in the pixels.
    struct Linear(Tensor);

    impl Linear {
        fn new() -> Self {
            Self(gaussian_noise(&[64, 3], &[1], 1, "weights", 0).squeeze_dim(0))
        }
    }

    impl Classifier for Linear {
        fn classes(&self) -> i64 {
            3
        }

        fn logits(&self, images: &Tensor) -> Tensor {
            (images - 0.5).flatten(1, -1).matmul(&self.0)
        }
    }

    /// A TRN whose last layers have weights of this size: with 0 it returns its input.
    fn trn(size: f64) -> Trn {
        let spec = TrnSpec { width: 8, scales: 2, ..TrnSpec::one_stream("tiny", 1).unwrap() };
        let card = TrnCard {
            kind: TrnCard::KIND.into(),
            spec: spec.with_estimator(EstimatorSpec::Predicted),
            classes: 3,
            classifier: "linear".into(),
            dataset: "noise".into(),
            seed: 3,
            training: serde_json::Value::Null,
            metrics: BTreeMap::new(),
        };
        let trn = Trn::new(card, Device::Cpu).unwrap();
        if size > 0.0 {
            tch::no_grad(|| {
                for (name, mut tensor) in trn.store().variables() {
                    if name.contains("output") {
                        let drawn = gaussian_noise(&tensor.size(), &[3], 1, &name, 0).squeeze_dim(0);
                        tensor.copy_(&(drawn * size));
                    }
                }
            });
        }
        trn.freeze()
    }

    fn few(images: usize) -> Adaptive {
        Adaptive { images, evasion: 0.0 }
    }

    fn go_on(_: usize) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }

    fn unwatched(_: Option<&Setting>, _: usize, _: usize) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }

    /// So many images, which the classifier gets right.
    fn samples(classifier: &Linear, count: u64) -> (Tensor, Tensor, Vec<u64>) {
        let ids: Vec<u64> = (100..100 + count).collect();
        let images = (uniform_noise(&[1, 8, 8], &ids, 1, "images", 0) + 1.0) / 2.0;
        let labels = classifier.predict(&images);
        (images, labels, ids)
    }

    fn calibrated(pair: &Pair<'_>, images: &Tensor) -> Calibration {
        let scores = pair.examine(images, &mut go_on).unwrap().scores;
        Calibration::new(&scores, (&"ab".repeat(32), &"cd".repeat(32)), "noise", 0.1).unwrap()
    }

    fn plan(settings: &[&str]) -> Plan {
        Plan { settings: settings.iter().map(|setting| setting.parse().unwrap()).collect(), seed: 1 }
    }

    #[test]
    fn a_network_that_changes_nothing_detects_nothing() {
        let (classifier, trn) = (Linear::new(), trn(0.0));
        let pair = Pair { classifier: &classifier, trn: &trn };
        let (images, labels, ids) = samples(&classifier, 24);
        let examined = pair.examine(&images, &mut go_on).unwrap();
        assert_eq!(examined.scores, [0.0; 24]);
        assert_eq!((examined.bare.len(), &examined.bare), (24, &examined.defended));
        let calibration = calibrated(&pair, &images);
        let subjects = Subjects { images: &images, labels: &labels, ids: &ids };
        let plan = plan(&["noise@0.01", "fgsm@0.3", "exact:pgd-2@0.3"]);
        let measured =
            measure_detection(&calibration, &pair, subjects, &plan, few(7), &mut unwatched).unwrap();
        assert_eq!(measured.problem(), None);
        assert_eq!(measured.false_alarms, Proportion { count: 0, total: 24 });
        let said =
            |curve: &DetectionCurve| (curve.view.clone(), curve.samples, curve.auc, curve.detected.count);
        let said: Vec<_> = measured.curves.iter().map(said).collect();
        let expected = [("none", 24_u64), ("oblivious", 24), ("exact", 7)];
        assert_eq!(said, expected.map(|(view, samples)| (view.to_owned(), samples, 0.5, 0_u64)));
        // whoever is fooled is fooled unseen, and a step of 0.3 fools a linear classifier
        assert!(measured.curves.iter().all(|curve| curve.missed_and_fooled == curve.fooled));
        assert!(measured.curves[1].fooled > 12 && measured.curves[0].budget == "Linf 0.01");
    }

    #[test]
    fn what_is_detected_follows_from_scores_and_threshold() {
        let (classifier, trn) = (Linear::new(), trn(0.5));
        let pair = Pair { classifier: &classifier, trn: &trn };
        let (images, labels, ids) = samples(&classifier, 40);
        let calibration = calibrated(&pair, &images);
        let subjects = Subjects { images: &images, labels: &labels, ids: &ids };
        let mut told = Vec::new();
        let measured = measure_detection(
            &calibration,
            &pair,
            subjects,
            &plan(&["pgd-3@0.1"]),
            few(0),
            &mut |setting, done, total| {
                told.push((setting.is_some(), done, total));
                ControlFlow::Continue(())
            },
        )
        .unwrap();
        // of the images it was calibrated on, 41 places of which 4 may be above
        assert!(measured.false_alarms.count <= 4);
        let curve = &measured.curves[0];
        assert_eq!(
            (curve.samples, curve.points.first(), curve.points.last()),
            (40, Some(&[0.0, 0.0]), Some(&[1.0, 1.0]))
        );
        assert!((0.0..=1.0).contains(&curve.auc) && curve.fits() && curve.missed_and_fooled <= curve.fooled);
        assert_eq!((told[0], told.last()), ((false, 32, 40), Some(&(true, 40, 40))));
    }

    #[test]
    fn a_score_does_not_depend_on_neighbours() {
        let (classifier, trn) = (Linear::new(), trn(0.5));
        let pair = Pair { classifier: &classifier, trn: &trn };
        let (images, _, _) = samples(&classifier, 40);
        let all = pair.examine(&images, &mut go_on).unwrap();
        let few = pair.examine(&images.narrow(0, 0, 5), &mut go_on).unwrap();
        assert_eq!((&all.scores[..5], &all.defended[..5]), (&few.scores[..], &few.defended[..]));
        assert!(all.scores.iter().any(|&score| score > 0.0));
        assert!(pair.examine(&images.narrow(0, 0, 0), &mut go_on).unwrap().scores.is_empty());
    }

    #[test]
    fn what_cannot_be_measured_is_refused() {
        let (classifier, trn) = (Linear::new(), trn(0.5));
        let pair = Pair { classifier: &classifier, trn: &trn };
        let (images, labels, ids) = samples(&classifier, 24);
        let calibration = calibrated(&pair, &images);
        let measured = |labels: &Tensor, ids: &[u64], adaptive: usize| {
            let subjects = Subjects { images: &images, labels, ids };
            let plan = plan(&["exact:fgsm@0.1"]);
            measure_detection(&calibration, &pair, subjects, &plan, few(adaptive), &mut unwatched)
        };
        assert!(measured(&labels, &ids, 2).is_ok());
        assert!(measured(&labels, &ids, 0).unwrap_err().to_string().contains("none of the first 0"));
        let wrong = (&labels + 1_i64).remainder(3_i64);
        assert!(measured(&wrong, &ids, 9).unwrap_err().to_string().contains("none of the first 9"));
        assert!(measured(&labels, &ids[..5], 9).is_err());
        assert!(measured(&(&labels + 5_i64), &ids, 9).is_err());
        let stopped = pair.examine(&images, &mut |_| ControlFlow::Break(()));
        assert!(matches!(stopped, Err(Error::Interrupted)));
    }
    #[test]
    fn an_attacker_who_knows_the_score_keeps_it_lower() {
        let (classifier, trn) = (Linear::new(), trn(0.5));
        let pair = Pair { classifier: &classifier, trn: &trn };
        let (images, labels, ids) = samples(&classifier, 24);
        let setting: Setting = "exact:pgd-10@0.1".parse().unwrap();
        let subjects = || Subjects { images: &images, labels: &labels, ids: &ids };
        let rows: Vec<usize> = (0..24).collect();
        let total = |evasion: f64| {
            let made = attacked(&pair, (&setting, evasion), subjects(), (&rows, 1), &mut unwatched).unwrap();
            pair.examine(&made, &mut go_on).unwrap().scores.iter().sum::<f64>()
        };
        let (careless, careful) = (total(0.0), total(20.0));
        assert!(careful < 0.5 * careless, "{careful} and {careless}");

        let calibration = calibrated(&pair, &images);
        let measured = |evasion: f64| {
            let adaptive = Adaptive { images: 24, evasion };
            let plan = plan(&["exact:pgd-2@0.1", "pgd-2@0.1"]);
            measure_detection(&calibration, &pair, subjects(), &plan, adaptive, &mut unwatched)
        };
        let views: Vec<_> = measured(0.5).unwrap().curves.into_iter().map(|curve| curve.view).collect();
        assert_eq!(views, ["exact, evading 0.5", "oblivious"]);
        assert!(measured(-1.0).is_err() && measured(f64::NAN).is_err());
    }

    #[test]
    fn the_gradient_of_an_attacker_who_knows_the_score_is_the_slope_of_its_loss() {
        let (classifier, trn) = (Linear::new(), trn(0.5));
        let classifier = Linear(classifier.0.to_kind(Kind::Double));
        let trn = trn.to_double();
        let pair = Pair { classifier: &classifier, trn: &trn };
        let images = (uniform_noise(&[1, 8, 8], &[1, 2], 1, "images", 0).to_kind(Kind::Double) + 1.0) / 2.0;
        let labels = Tensor::from_slice(&[0_i64, 2]);
        let view = Evading::new(&pair, 0.7).unwrap();
        let at = |images: &Tensor| view.input_gradient(images, &labels, Objective::CrossEntropy);
        let found = at(&images);
        let direction = gaussian_noise(&[1, 8, 8], &[5, 6], 1, "direction", 0).to_kind(Kind::Double);
        let step = &direction * 1e-6;
        let slope = (at(&(&images + &step)).loss - at(&(&images - &step)).loss) / 2e-6;
        let told =
            (found.gradient * direction).sum_dim_intlist([1_i64, 2, 3].as_slice(), false, None::<Kind>);
        let difference = (&slope - &told).abs().max().double_value(&[]);
        assert!(difference < 1e-4 * (1.0 + slope.abs().max().double_value(&[])), "{slope} {told}");
    }
}
