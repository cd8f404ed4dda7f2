//! An attack in progress, on rows that come and go.

use talion_core::{Classifier, Result};
use tch::{Kind, Tensor};

use crate::Batch;

/// An attack in progress on a batch of rows.
///
/// All state belongs to rows, none to the batch, so that the driver can replace a row that is finished by a sample that
/// waits, and no sample notices. A step costs every row the same number of passes.
pub trait Attempt {
    /// Moves every unfinished row on. Finished rows stay as they are.
    ///
    /// # Errors
    /// If the classifier answers with logits that cannot be used.
    fn step(&mut self, classifier: &dyn Classifier) -> Result<()>;

    /// The whole state: every tensor has a row a sample, in an order that is the same for all attempts of one attack.
    fn state(&mut self) -> Vec<&mut Tensor>;

    /// Which rows have their answer, `[N]`, boolean.
    fn finished(&self) -> Tensor;

    /// The answer of each row, `[N, C, H, W]`, inside the budget.
    fn adversarial(&self) -> Tensor;

    /// What a step costs each row.
    fn passes(&self) -> Passes;
}

/// Passes through a classifier.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Passes {
    /// Images classified, with or without a gradient.
    pub forward: u64,
    /// Gradients taken.
    pub backward: u64,
}

impl Passes {
    /// One gradient and the logits it needs.
    pub const GRADIENT: Self = Self { forward: 1, backward: 1 };
    /// Logits alone.
    pub const LOGITS: Self = Self { forward: 1, backward: 0 };

    /// So many times as much; numbers that nobody can count to stay at the largest.
    #[must_use]
    pub fn times(self, count: u64) -> Self {
        Self { forward: self.forward.saturating_mul(count), backward: self.backward.saturating_mul(count) }
    }
}

impl std::ops::AddAssign for Passes {
    fn add_assign(&mut self, other: Self) {
        self.forward += other.forward;
        self.backward += other.backward;
    }
}

/// What an attack is told when it begins, beside the batch.
#[derive(Clone, Copy, Debug, Default)]
pub struct Conditions<'a> {
    /// The classifier's logits at the benign images, `[N, K]`, for attacks that [ask](crate::Attack::wants_logits).
    pub logits: Option<&'a Tensor>,
    /// Whether a row is finished as soon as it fools: enough for whoever counts, while whoever shows the images to
    /// another classifier wants the strongest.
    pub until_fooled: bool,
}

/// What every attempt knows of its rows.
#[derive(Debug)]
pub struct Rows {
    /// The benign images, `[N, C, H, W]`.
    pub original: Tensor,
    /// Their labels, `[N]`, or the targets.
    pub labels: Tensor,
    /// Sample ids, `[N]`, `i64` bits of the `u64`.
    ids: Tensor,
    /// Restarts, `[N]`, `i64`.
    restarts: Tensor,
    /// Steps done, `[N]`, `i64`.
    pub iteration: Tensor,
    /// Which rows have their answer, `[N]`, boolean.
    pub finished: Tensor,
}

impl Rows {
    /// The rows of `batch`, nothing done yet.
    pub fn new(batch: &Batch<'_>) -> Self {
        let device = batch.images.device();
        let ids: Vec<i64> = batch.ids.iter().map(|&id| id.cast_signed()).collect();
        let rows = ids.len() as i64;
        Self {
            original: batch.images.detach().copy(),
            labels: batch.labels.copy(),
            ids: Tensor::from_slice(&ids),
            restarts: Tensor::full([rows], batch.restart.cast_signed(), (Kind::Int64, tch::Device::Cpu)),
            iteration: Tensor::zeros([rows], (Kind::Int64, device)),
            finished: Tensor::zeros([rows], (Kind::Bool, device)),
        }
    }

    /// For [`Attempt::state`].
    pub fn state(&mut self) -> Vec<&mut Tensor> {
        vec![
            &mut self.original,
            &mut self.labels,
            &mut self.ids,
            &mut self.restarts,
            &mut self.iteration,
            &mut self.finished,
        ]
    }

    /// Counts a step of every unfinished row, and finishes those that have done `steps`, or that `fooled` says.
    pub fn count(&mut self, steps: i64, fooled: Option<&Tensor>) {
        self.iteration = &self.iteration + self.finished.logical_not().to_kind(Kind::Int64);
        self.finished = self.finished.logical_or(&self.iteration.ge(steps));
        if let Some(fooled) = fooled {
            self.finished = self.finished.logical_or(fooled);
        }
    }

    /// `new` in unfinished rows, `old` in finished ones.
    ///
    /// # Shapes
    /// Both `[N, ..]`.
    pub fn unfinished(&self, new: &Tensor, old: &Tensor) -> Tensor {
        choose(&self.finished, old, new)
    }

    /// The key of each row's draws in this step: id, and a number that tells restarts and steps apart.
    ///
    /// # Errors
    /// If the device cannot be read.
    pub fn keys(&self) -> Result<Vec<(u64, u64)>> {
        let ids = Vec::<i64>::try_from(&self.ids)?;
        let restarts = Vec::<i64>::try_from(&self.restarts)?;
        let steps = Vec::<i64>::try_from(&self.iteration)?;
        let key = |((id, restart), step): ((i64, i64), i64)| {
            (id.cast_unsigned(), (restart.cast_unsigned() << 32) | step.cast_unsigned())
        };
        Ok(ids.into_iter().zip(restarts).zip(steps).map(key).collect())
    }
}

/// Row by row: `first` where `which`, else `second`.
///
/// # Shapes
/// `which` `[N]`, boolean; the others `[N, ..]`.
pub fn choose(which: &Tensor, first: &Tensor, second: &Tensor) -> Tensor {
    first.where_self(&per_row(which, first), second)
}

/// `[N]` as `[N, 1, ..]`, to meet the rows of `like`.
pub fn per_row(values: &Tensor, like: &Tensor) -> Tensor {
    let mut shape = vec![1; like.dim()];
    if let Some(rows) = shape.first_mut() {
        *rows = -1;
    }
    values.view(shape.as_slice())
}

/// Puts the rows `from` of `newcomer` into the rows `into` of `attempt`.
pub(crate) fn admit(attempt: &mut dyn Attempt, into: &[i64], newcomer: &mut dyn Attempt, from: &[i64]) {
    let (into, from) = (Tensor::from_slice(into), Tensor::from_slice(from));
    for (slot, new) in attempt.state().into_iter().zip(newcomer.state()) {
        let device = slot.device();
        // not in place: a state's tensors may share memory with each other
        *slot = slot.index_copy(0, &into.to_device(device), &new.index_select(0, &from.to_device(device)));
    }
}
