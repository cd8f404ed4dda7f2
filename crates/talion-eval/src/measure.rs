//! Running a plan.

use std::ops::ControlFlow;

use serde::Serialize;
use talion_attacks::{Batch, RunOptions, micro_batch, predict_all, run};
use talion_core::{Classifier, Error, Objective, Result};
use talion_defenses::{Defence, Defended, EstimatorSpec, GradientMode, Trn, gradient_map::MapGraph};
use tch::{Kind, Tensor};

use crate::{Plan, Proportion, Setting};

/// Something that classifies.
pub struct Contender<'a> {
    /// The column's title.
    pub name: String,
    /// What stands in front of the bare classifier, or in its place.
    pub front: Front<'a>,
}

/// What a contender has in front of the bare classifier, or in its place.
#[derive(Clone, Copy)]
pub enum Front<'a> {
    /// Nothing: the bare classifier itself.
    Nothing,
    /// A defence.
    Defence(&'a dyn Defence),
    /// Another classifier, which needs no defence: one trained to withstand attacks.
    Instead(&'a dyn Classifier),
    /// A network that is told the true labels: for diagnosis only.
    Oracle(&'a Trn),
}

impl<'a> From<&'a Trn> for Front<'a> {
    fn from(trn: &'a Trn) -> Self {
        match trn.card().spec.estimator {
            EstimatorSpec::Oracle => Self::Oracle(trn),
            _ => Self::Defence(trn),
        }
    }
}

/// How one contender did in one row.
#[derive(Clone, Debug, Serialize)]
pub struct Measured {
    /// The contender.
    pub name: String,
    /// Samples classified right.
    pub accuracy: Proportion,
    /// Which samples were classified right, in order.
    pub right: Vec<bool>,
}

/// One line of the table.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// The attack; `None` for clean images.
    pub setting: Option<Setting>,
    /// The contenders that were measured, in their order. An attacker who knows the defence makes images for each
    /// contender; the bare classifier then faces its own, as the control.
    pub measured: Vec<Measured>,
    /// Gradient passes that were spent on a sample, by the attacked classifier, on average.
    pub gradients_per_sample: f64,
    /// Seconds.
    pub seconds: f64,
}

/// Told before each setting (`None`: clean) and as it advances: samples done and in all. `Break` asks to stop.
pub type Watch<'a> = dyn FnMut(Option<&Setting>, usize, usize) -> ControlFlow<()> + 'a;

/// Measures all contenders on clean images and under every setting of `plan`.
///
/// # Shapes
/// `images` `[N, C, H, W]` in `[0, 1]`, `labels` `[N]`, `ids` N sample ids.
///
/// # Errors
/// If images and labels do not fit the classifier, an attack fails, or the watcher asked to stop.
pub fn evaluate(
    classifier: &dyn Classifier,
    contenders: &[Contender<'_>],
    samples: (&Tensor, &Tensor, &[u64]),
    plan: &Plan,
    watch: &mut Watch<'_>,
) -> Result<Vec<Row>> {
    let (images, labels, _) = samples;
    let total = images.size().first().copied().unwrap_or(0) as usize;
    if watch(None, 0, total).is_break() {
        return Err(Error::Interrupted);
    }
    let started = std::time::Instant::now();
    let clean = contenders
        .iter()
        .map(|contender| judge(classifier, contender, images, labels))
        .collect::<Result<Vec<_>>>()?;
    let seconds = started.elapsed().as_secs_f64();
    let mut rows = vec![Row { setting: None, measured: clean, gradients_per_sample: 0.0, seconds }];
    for setting in &plan.settings {
        rows.push(measure(classifier, contenders, samples, setting, plan.seed, watch)?);
    }
    Ok(rows)
}

fn measure(
    classifier: &dyn Classifier,
    contenders: &[Contender<'_>],
    (images, labels, ids): (&Tensor, &Tensor, &[u64]),
    setting: &Setting,
    seed: u64,
    watch: &mut Watch<'_>,
) -> Result<Row> {
    let started = std::time::Instant::now();
    let budget = setting.budget;
    let batch = Batch { images, labels, ids, budget, objective: Objective::CrossEntropy, seed, restart: 0 };
    // Images made for one contender only have to fool it; those shown to all have to be the attack's strongest.
    let options = RunOptions { until_fooled: setting.threat != GradientMode::Oblivious };
    let (mut gradients, mut victims) = (0, 0_u64);
    let mut attack = |victim: &dyn Classifier| {
        let outcome = run(&setting.attack, victim, &batch, &options, &mut |progress| {
            watch(Some(setting), progress.done, progress.total)
        })?;
        gradients += outcome.passes.backward;
        victims += 1;
        Ok::<_, Error>(outcome.adversarial)
    };
    let mut measured = Vec::new();
    if setting.threat == GradientMode::Oblivious {
        let adversarial = attack(classifier)?;
        for contender in contenders {
            measured.push(judge(classifier, contender, &adversarial, labels)?);
        }
    } else {
        for contender in contenders {
            let adversarial = match contender.front {
                Front::Nothing => attack(classifier)?,
                Front::Defence(defence) => attack(&Defended::new(classifier, defence, setting.threat)?)?,
                Front::Instead(other) => attack(other)?,
                // nobody can deploy the oracle, so nobody attacks it
                Front::Oracle(_) => continue,
            };
            measured.push(judge(classifier, contender, &adversarial, labels)?);
        }
    }
    Ok(Row {
        setting: Some(setting.clone()),
        measured,
        gradients_per_sample: gradients as f64 / (victims.max(1) as f64 * ids.len().max(1) as f64),
        seconds: started.elapsed().as_secs_f64(),
    })
}

/// What the whole contender, defence included, says of images.
fn judge(
    classifier: &dyn Classifier,
    contender: &Contender<'_>,
    images: &Tensor,
    labels: &Tensor,
) -> Result<Measured> {
    let predictions = match contender.front {
        Front::Nothing => predict_all(classifier, images)?,
        Front::Defence(defence) => {
            predict_all(&Defended::new(classifier, defence, GradientMode::Exact)?, images)?
        }
        Front::Instead(other) => predict_all(other, images)?,
        Front::Oracle(trn) => predict_all(classifier, &restored_by_oracle(classifier, trn, images, labels))?,
    };
    let labels = labels.to_device(predictions.labels.device());
    let right = Vec::<bool>::try_from(predictions.labels.eq_tensor(&labels).to_kind(Kind::Bool))?;
    let count = right.iter().filter(|&&right| right).count() as u64;
    let accuracy = Proportion { count, total: right.len() as u64 };
    Ok(Measured { name: contender.name.clone(), accuracy, right })
}

/// Restorations by a network that is told the true labels.
fn restored_by_oracle(classifier: &dyn Classifier, trn: &Trn, images: &Tensor, labels: &Tensor) -> Tensor {
    let device = classifier.device();
    let size = micro_batch(device) as i64;
    let rows = images.size().first().copied().unwrap_or(0);
    let mut parts = vec![images.narrow(0, 0, 0).to_device(device)];
    for start in (0..rows).step_by(size as usize) {
        let part = |tensor: &Tensor| tensor.narrow(0, start, size.min(rows - start)).to_device(device);
        let (images, labels) = (part(images), part(labels));
        parts.push(tch::no_grad(|| {
            let prepared = trn.prepare(classifier, &images, MapGraph::Constant, Some(&labels));
            trn.restore_prepared(&images, &prepared)
        }));
    }
    Tensor::cat(&parts, 0)
}
