//! AutoAttack: several attacks one after the other, each on the samples that resisted those before.

use std::{fmt, ops::ControlFlow, str::FromStr};

use serde::Serialize;
use talion_core::{Classifier, Error, Norm, Result};
use tch::Tensor;

use crate::{Apgd, ApgdLoss, Attack, AttackSpec, Batch, Eot, Fab, Passes, Progress, RunOptions, Square, run};

/// Which attacks to run.
///
/// # Source
/// Croce and Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks", ICML
/// 2020; the settings of each version are those of the authors' program.
#[derive(Clone, Debug, PartialEq)]
pub enum AutoAttack {
    /// APGD-CE, APGD-T, FAB-T and Square: the figure that papers report.
    Standard,
    /// More restarts, and the untargeted attacks too.
    Plus,
    /// APGD-CE and APGD-DLR on the mean of 20 answers, for classifiers that answer at random.
    Rand,
    /// Any attacks, in this order.
    Custom(Vec<AttackSpec>),
}

/// Answers that [`AutoAttack::Rand`] averages.
const DRAWS: u32 = 20;

impl AutoAttack {
    /// The attacks in their order, for budgets of this norm.
    ///
    /// In `L1` the authors' program has Square, too, which is not defined for it here, and runs APGD on larger budgets
    /// first; [`Cascade::adjustments`] says so.
    pub fn attacks(&self, norm: Norm) -> Vec<AttackSpec> {
        let sparse = norm == Norm::L1;
        let targets = if sparse { 5 } else { 9 };
        let apgd = |loss, restarts| AttackSpec::new(Apgd { loss, restarts, targets, ..Apgd::default() });
        let fab = |targeted, restarts| AttackSpec::new(Fab { targeted, restarts, ..Fab::default() });
        let square = (!sparse).then(|| AttackSpec::new(Square::default()));
        let once = if sparse { 5 } else { 1 };
        match self {
            Self::Standard => [apgd(ApgdLoss::CrossEntropy, once), apgd(ApgdLoss::Targeted, 1), fab(true, 1)]
                .into_iter()
                .chain(square)
                .collect(),
            Self::Plus => [apgd(ApgdLoss::CrossEntropy, 5), apgd(ApgdLoss::Dlr, 5), fab(false, 5)]
                .into_iter()
                .chain(square)
                .chain([apgd(ApgdLoss::Targeted, 1), fab(true, 1)])
                .collect(),
            Self::Rand => vec![apgd(ApgdLoss::CrossEntropy, 1), apgd(ApgdLoss::Dlr, 1)],
            Self::Custom(attacks) => attacks.clone(),
        }
    }

    /// What is different from the authors' program for this norm, in words.
    fn adjustment(&self, norm: Norm) -> Option<String> {
        let theirs = matches!(self, Self::Standard | Self::Plus);
        (theirs && norm == Norm::L1).then(|| {
            "in L1 Square is left out, and APGD does not run on larger budgets first: the accuracy may come out higher \
             than that of the authors' program"
                .into()
        })
    }
}

impl fmt::Display for AutoAttack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Standard => f.write_str("standard"),
            Self::Plus => f.write_str("plus"),
            Self::Rand => f.write_str("rand"),
            Self::Custom(attacks) => {
                let names: Vec<String> = attacks.iter().map(ToString::to_string).collect();
                f.write_str(&names.join(","))
            }
        }
    }
}

impl FromStr for AutoAttack {
    type Err = Error;

    /// Reads `standard`, `plus`, `rand`, or attacks separated by commas.
    fn from_str(text: &str) -> Result<Self> {
        Ok(match text {
            "standard" => Self::Standard,
            "plus" => Self::Plus,
            "rand" => Self::Rand,
            _ => Self::Custom(text.split(',').map(str::parse).collect::<Result<_>>()?),
        })
    }
}

/// What one attack of a cascade did.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Stage {
    /// The attack.
    pub attack: String,
    /// Samples it was given: those that had resisted.
    pub given: usize,
    /// Samples it fooled.
    pub fooled: usize,
    /// Passes it spent.
    pub passes: Passes,
    /// Seconds it took.
    pub seconds: f64,
}

/// What a cascade achieved. Row i belongs to row i of the images that were given.
#[derive(Debug)]
pub struct Cascade {
    /// The image that fooled, `[N, C, H, W]`; or else the benign one, or, without [`RunOptions::until_fooled`], what the last
    /// attack came to.
    pub adversarial: Tensor,
    /// Which attack fooled each sample, counted from 0; [`Fooled::Benign`] for those that were classified wrong from the
    /// beginning.
    pub fooled: Vec<Fooled>,
    /// What each attack did; attacks that found nothing left to attack have no stage.
    pub stages: Vec<Stage>,
    /// What had to be different from the definition, in words.
    pub adjustments: Vec<String>,
}

/// What fooled a sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fooled {
    /// Nothing: it is robust as far as these attacks know.
    Never,
    /// It was classified wrong as it was.
    Benign,
    /// The attack of this number.
    By(usize),
}

impl Cascade {
    /// The share of samples that nothing fooled.
    pub fn robust_accuracy(&self) -> f64 {
        let robust = self.fooled.iter().filter(|&&fooled| fooled == Fooled::Never).count();
        robust as f64 / self.fooled.len().max(1) as f64
    }
}

/// Runs the attacks of `which`, each from the benign image, on the samples that have resisted so far. `observer` hears of
/// every step: the number of the attack, and its progress. With [`RunOptions::until_fooled`] a sample is left alone as soon
/// as it fools, which changes images, not which samples are fooled.
///
/// # Errors
/// As [`fn@run`].
pub fn autoattack(
    which: &AutoAttack,
    classifier: &dyn Classifier,
    batch: &Batch<'_>,
    options: &RunOptions,
    observer: &mut dyn FnMut(usize, Progress) -> ControlFlow<()>,
) -> Result<Cascade> {
    batch.check(classifier.classes())?;
    let averaged = Eot { classifier, draws: DRAWS };
    let attacked: &dyn Classifier = if *which == AutoAttack::Rand { &averaged } else { classifier };
    let mut cascade = Cascade {
        adversarial: batch.images.detach().copy(),
        fooled: vec![Fooled::Never; batch.ids.len()],
        stages: Vec::new(),
        adjustments: which.adjustment(batch.budget.norm()).into_iter().collect(),
    };
    let predicted = crate::predict_all(attacked, batch.images)?.labels;
    let labels = batch.labels.to_device(predicted.device());
    let wrong = Vec::<bool>::try_from(batch.objective.reached(&predicted, &labels))?;
    for (fooled, _) in cascade.fooled.iter_mut().zip(&wrong).filter(|(_, wrong)| **wrong) {
        *fooled = Fooled::Benign;
    }
    for (number, attack) in which.attacks(batch.budget.norm()).iter().enumerate() {
        let rows = resisting(&cascade.fooled);
        if rows.is_empty() {
            break;
        }
        let rows = (batch, rows.as_slice());
        let stage = stage(&mut cascade, (number, attack), attacked, rows, options, &mut |progress| {
            observer(number, progress)
        })?;
        cascade.stages.push(stage);
    }
    Ok(cascade)
}

fn resisting(fooled: &[Fooled]) -> Vec<i64> {
    (0..).zip(fooled).filter(|(_, fooled)| **fooled == Fooled::Never).map(|(row, _)| row).collect()
}

fn stage(
    cascade: &mut Cascade,
    (number, attack): (usize, &AttackSpec),
    classifier: &dyn Classifier,
    (batch, rows): (&Batch<'_>, &[i64]),
    options: &RunOptions,
    observer: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<Stage> {
    let started = std::time::Instant::now();
    let index = Tensor::from_slice(rows).to_device(batch.images.device());
    let ids: Vec<u64> = rows.iter().filter_map(|&row| batch.ids.get(row as usize).copied()).collect();
    let part = Batch {
        images: &batch.images.index_select(0, &index),
        labels: &batch.labels.index_select(0, &index.to_device(batch.labels.device())),
        ids: &ids,
        ..*batch
    };
    let outcome = run(attack, classifier, &part, options, observer)?;
    let mut fooled = 0;
    for (place, (&row, success)) in rows.iter().zip(Vec::<bool>::try_from(&outcome.success)?).enumerate() {
        if let (true, Some(slot)) = (success, cascade.fooled.get_mut(row as usize)) {
            *slot = Fooled::By(number);
            fooled += 1;
        }
        // whoever wants whole runs wants to see how far they came, too
        if success || !options.until_fooled {
            cascade.adversarial.get(row).copy_(&outcome.adversarial.get(place as i64));
        }
    }
    for adjustment in outcome.adjustments {
        cascade.adjustments.push(format!("{attack}: {adjustment}"));
    }
    let seconds = started.elapsed().as_secs_f64();
    Ok(Stage { attack: attack.name(), given: rows.len(), fooled, passes: outcome.passes, seconds })
}
