//! Attacks by name.

use std::{ops::ControlFlow, sync::Arc};

use pyo3::{prelude::*, types::PyDict};
use pyo3_tch::PyTensor;
use talion_attacks::{
    Attack, AttackSpec, AutoAttack, Batch, CATALOGUE, Fooled, Passes, RunOptions, Sees, Stage, autoattack,
    predict_all, run,
};
use talion_core::{Budget, Classifier, Error, Objective, Result};
use tch::{Kind, Tensor};

use crate::{
    blind::Blind,
    chunked::Chunked,
    error::raise,
    job::{Teller, outside},
    network::Network,
    values::plain,
};

/// What is asked for, beside classifier and images. Python gives it as a dict.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
pub(crate) struct Request {
    attack: String,
    norm: String,
    epsilon: f64,
    objective: String,
    ids: Vec<u64>,
    seed: u64,
    restart: u64,
    until_fooled: bool,
    /// Images shown to the classifier at once, where a micro-batch is too large for it.
    batch: Option<i64>,
}

/// What came of it. Row i belongs to row i of the images.
struct Attacked {
    adversarial: Tensor,
    /// `[N]`, `i64`.
    predicted: Tensor,
    /// `[N]`, boolean.
    success: Tensor,
    passes: Passes,
    adjustments: Vec<String>,
    /// Of cascades only: which stage fooled each sample, [`NEVER`] or [`BENIGN`].
    fooled: Option<Vec<i64>>,
    stages: Vec<Stage>,
}

/// Nothing fooled this sample.
const NEVER: i64 = -1;
/// This sample was classified wrong as it was.
const BENIGN: i64 = -2;

/// Attacks all images, with one attack or with the cascade of AutoAttack; returns a dict.
#[pyfunction]
#[pyo3(signature = (network, images, labels, request, report = None))]
pub(crate) fn attack<'py>(
    py: Python<'py>,
    network: &Network,
    images: PyTensor,
    labels: PyTensor,
    request: Request,
    report: Option<PyObject>,
) -> PyResult<Bound<'py, PyDict>> {
    let source = Arc::clone(&network.source);
    let (images, labels) = (images.0, labels.0);
    let attacked = outside(py, move |trouble| {
        source.check_channels(&images)?;
        let view = source.view(trouble)?;
        let victim = Chunked::new(&view, request.batch)?;
        perform(&request, &victim, &images, &labels, &mut Teller::new(report, trouble))
    })?;
    answer(py, attacked)
}

fn perform(
    request: &Request,
    victim: &dyn Classifier,
    images: &Tensor,
    labels: &Tensor,
    teller: &mut Teller<'_>,
) -> Result<Attacked> {
    let batch = Batch {
        images,
        labels,
        ids: &request.ids,
        budget: Budget::new(request.norm.parse()?, request.epsilon)?,
        objective: objective(&request.objective)?,
        seed: request.seed,
        restart: request.restart,
    };
    let options = RunOptions { until_fooled: request.until_fooled };
    let which: AutoAttack = request.attack.parse()?;
    let needs_gradients =
        |attack: &AttackSpec| attack.entry().is_none_or(|entry| entry.sees == Sees::Gradients);
    let blind = Blind(victim);
    let victim: &dyn Classifier =
        if which.attacks(batch.budget.norm()).iter().any(needs_gradients) { victim } else { &blind };
    if let AutoAttack::Custom(attacks) = &which
        && let [attack] = attacks.as_slice()
    {
        return one(attack, victim, &batch, &options, teller);
    }
    many(&which, victim, &batch, &options, teller)
}

fn one(
    attack: &AttackSpec,
    victim: &dyn Classifier,
    batch: &Batch<'_>,
    options: &RunOptions,
    teller: &mut Teller<'_>,
) -> Result<Attacked> {
    let name = attack.name();
    let outcome = run(attack, victim, batch, options, &mut |progress| {
        teller.tell(progress.done, progress.total, &name);
        ControlFlow::Continue(())
    })?;
    Ok(Attacked {
        adversarial: outcome.adversarial,
        predicted: outcome.predicted,
        success: outcome.success,
        passes: outcome.passes,
        adjustments: outcome.adjustments,
        fooled: None,
        stages: Vec::new(),
    })
}

fn many(
    which: &AutoAttack,
    victim: &dyn Classifier,
    batch: &Batch<'_>,
    options: &RunOptions,
    teller: &mut Teller<'_>,
) -> Result<Attacked> {
    let names: Vec<String> = which.attacks(batch.budget.norm()).iter().map(ToString::to_string).collect();
    let total = batch.ids.len();
    let cascade = autoattack(which, victim, batch, options, &mut |number, stage| {
        // what an earlier attack fooled is done, too
        let waiting = stage.total.saturating_sub(stage.done);
        teller.tell(total.saturating_sub(waiting), total, names.get(number).map_or("", String::as_str));
        ControlFlow::Continue(())
    })?;
    let fooled: Vec<i64> = cascade.fooled.iter().map(number).collect();
    let success: Vec<bool> = fooled.iter().map(|&by| by != NEVER).collect();
    let mut passes = Passes::default();
    cascade.stages.iter().for_each(|stage| passes += stage.passes);
    Ok(Attacked {
        predicted: predict_all(victim, &cascade.adversarial)?.labels,
        adversarial: cascade.adversarial,
        success: Tensor::from_slice(&success).to_kind(Kind::Bool),
        passes,
        adjustments: cascade.adjustments,
        fooled: Some(fooled),
        stages: cascade.stages,
    })
}

fn number(fooled: &Fooled) -> i64 {
    match fooled {
        Fooled::Never => NEVER,
        Fooled::Benign => BENIGN,
        Fooled::By(stage) => i64::try_from(*stage).unwrap_or(i64::MAX),
    }
}

fn answer(py: Python<'_>, attacked: Attacked) -> PyResult<Bound<'_, PyDict>> {
    let home = attacked.adversarial.device();
    let answer = PyDict::new(py);
    answer.set_item("predicted", PyTensor(attacked.predicted.to_device(home)))?;
    answer.set_item("success", PyTensor(attacked.success.to_device(home)))?;
    answer.set_item("adversarial", PyTensor(attacked.adversarial))?;
    answer.set_item("forward", attacked.passes.forward)?;
    answer.set_item("backward", attacked.passes.backward)?;
    answer.set_item("adjustments", attacked.adjustments)?;
    answer.set_item("fooled", attacked.fooled)?;
    answer.set_item("stages", plain(py, &attacked.stages)?)?;
    Ok(answer)
}

fn objective(name: &str) -> Result<Objective> {
    match name {
        "cross-entropy" => Ok(Objective::CrossEntropy),
        "targeted-cross-entropy" => Ok(Objective::TargetedCrossEntropy),
        "margin" => Ok(Objective::Margin),
        "dlr" => Ok(Objective::Dlr),
        _ => Err(Error::Unknown {
            what: "objective",
            found: name.into(),
            known: "cross-entropy, margin, dlr".into(),
        }),
    }
}

/// An attack's name with all its settings, such as `pgd-20` for `pgd`.
#[pyfunction]
pub(crate) fn attack_name(py: Python<'_>, name: &str) -> PyResult<String> {
    name.parse::<AutoAttack>().map(|which| which.to_string()).map_err(|error| raise(py, &error))
}

/// Every kind of attack: a list of dicts.
#[pyfunction]
pub(crate) fn catalogue(py: Python<'_>) -> PyResult<Bound<'_, PyAny>> {
    plain(py, &CATALOGUE)
}
