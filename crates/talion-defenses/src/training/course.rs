//! What every training of a restoration network keeps from step to step: weights, optimiser, average, the best so far.

use std::{collections::BTreeMap, ops::ControlFlow};

use talion_core::{Error, Result, Tensors};
use talion_models::training::{Event, Observer, Optimizer, Parameters, Snapshot, clip_to_norm};
use tch::{Tensor, nn};

/// Longest gradient of a step. A batch of images that the first steps destroy would throw the weights far off.
const LONGEST_GRADIENT: f64 = 5.0;

/// The best average so far.
struct Best {
    weights: Tensor,
    score: f64,
    round: u64,
    metrics: BTreeMap<String, f64>,
}

/// The state of a training run.
pub(super) struct Course {
    pub parameters: Parameters,
    optimizer: Optimizer,
    average: Tensor,
    /// Decay of the average, a step.
    decay: f64,
    best: Best,
    snapshot: Snapshot,
    /// The names of the figures that are measured, in the order in which a snapshot keeps them.
    measured: Vec<String>,
}

impl Course {
    /// At the beginning, with AdamW at rest.
    pub(super) fn new(
        store: &nn::VarStore,
        (weight_decay, decay): (f64, f64),
        snapshot: Snapshot,
        measured: Vec<String>,
    ) -> Self {
        let parameters = Parameters::new(store);
        let optimizer = Optimizer::adamw(&parameters, weight_decay);
        let copy = || parameters.flat().copy();
        let best = Best { weights: copy(), score: f64::NEG_INFINITY, round: 0, metrics: BTreeMap::new() };
        let average = copy();
        Self { parameters, optimizer, average, decay, best, snapshot, measured }
    }

    /// Forgets the average and the best for the weights as they are now.
    pub(super) fn start_over(&mut self) {
        self.average = self.parameters.flat().copy();
        self.best.weights = self.parameters.flat().copy();
    }

    /// One step along the gradient of the whole vector of weights.
    pub(super) fn step(&mut self, gradient: &Tensor, rate: f64, step: u64) {
        let gradient = clip_to_norm(gradient, LONGEST_GRADIENT);
        self.optimizer.step(&mut self.parameters, &gradient, rate, step);
        let _ = tch::no_grad(|| self.average.lerp_(self.parameters.flat(), 1.0 - self.decay));
    }

    /// Puts the averaged weights in the place of the current ones, which it returns.
    pub(super) fn show_average(&mut self) -> Tensor {
        let current = self.parameters.flat().copy();
        self.parameters.assign(&self.average);
        current
    }

    /// Puts weights back that [`Course::show_average`] has returned.
    pub(super) fn go_back(&mut self, current: &Tensor) {
        self.parameters.assign(current);
    }

    /// Keeps the average if its figures are the best so far: those whose sum is largest.
    pub(super) fn judge(&mut self, round: u64, metrics: &BTreeMap<String, f64>) {
        let score = metrics.values().sum::<f64>();
        if score >= self.best.score {
            self.best = Best { weights: self.average.copy(), score, round, metrics: metrics.clone() };
        }
    }

    /// Whether so many rounds have passed without a better one.
    pub(super) fn out_of_patience(&self, round: u64, patience: Option<u64>) -> bool {
        patience.is_some_and(|patience| round > self.best.round + patience)
    }

    /// Goes on from the snapshot, if there is one; the steps that are done.
    pub(super) fn resume(&mut self, observe: &mut Observer<'_>) -> Result<u64> {
        let Some((step, mut extra)) = self.snapshot.restore(&mut self.parameters, &mut self.optimizer)?
        else {
            return Ok(0);
        };
        let mut take = |name: &str| {
            extra
                .remove(name)
                .ok_or_else(|| Error::Refused(format!("the snapshot lacks {name}; delete it to start over")))
        };
        self.average.copy_(&take("average")?);
        self.best.weights.copy_(&take("best")?);
        let figures = Vec::<f64>::try_from(take("best_figures")?)?;
        if let [score, round, values @ ..] = &figures[..] {
            self.best.score = *score;
            self.best.round = *round as u64;
            if score.is_finite() {
                self.best.metrics = self.measured.iter().cloned().zip(values.iter().copied()).collect();
            }
        }
        self.tell(observe, step, &Event::Resumed { step })?;
        Ok(step)
    }

    /// Writes the snapshot.
    pub(super) fn save(&self, step: u64) -> Result<()> {
        let figure = |name: &String| self.best.metrics.get(name).copied().unwrap_or(0.0);
        let mut figures = vec![self.best.score, self.best.round as f64];
        figures.extend(self.measured.iter().map(figure));
        let extra = Tensors::from([
            ("average".into(), self.average.shallow_clone()),
            ("best".into(), self.best.weights.shallow_clone()),
            ("best_figures".into(), Tensor::from_slice(&figures)),
        ]);
        self.snapshot.save(step, &self.parameters, &self.optimizer, extra)
    }

    /// Passes an event on; if the observer wants to stop, saves first.
    pub(super) fn tell(&self, observe: &mut Observer<'_>, step: u64, event: &Event) -> Result<()> {
        match observe(event) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => {
                self.save(step)?;
                Err(Error::Interrupted)
            }
        }
    }

    /// Ends with the best weights in their place, and gives their figures.
    pub(super) fn finish(mut self) -> Result<BTreeMap<String, f64>> {
        self.parameters.assign(&self.best.weights);
        self.snapshot.discard()?;
        Ok(self.best.metrics)
    }
}
