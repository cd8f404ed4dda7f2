//! The engine for tensors: one for each image size, made when it is first asked for.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use talion_core::{InputGradient, note_gradient};
use tch::{Kind, Tensor};

use super::{Engine, engine::Tape};

/// Image sizes that are kept ready; each has its own copy of the weights.
const MOST_SIZES: usize = 4;
/// Rows that go through the network together. More take no less time a row, and more memory.
const ROWS: usize = 64;

/// An engine, or why there is none.
type Found = Result<Arc<Engine<f32>>, String>;

/// A network's engines by height and width.
#[derive(Debug, Default)]
pub(crate) struct Engines(Mutex<BTreeMap<[i64; 2], Found>>);

impl Engines {
    /// The engine for images of this height and width, which `make` makes when it is wanted for the first time.
    pub(crate) fn get(&self, size: [i64; 2], make: impl FnOnce() -> Result<Engine<f32>, String>) -> Found {
        let mut engines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if engines.len() >= MOST_SIZES && !engines.contains_key(&size) {
            return Err(format!(
                "engines for {MOST_SIZES} other sizes of images are ready, and no more are kept"
            ));
        }
        engines.entry(size).or_insert_with(|| make().map(Arc::new)).clone()
    }
}

/// The elements of a tensor in order.
fn elements(tensor: &Tensor) -> Vec<f32> {
    let tensor = tensor.detach().to_kind(Kind::Float).contiguous();
    let mut values = vec![0.0; tensor.numel()];
    tensor.copy_data(&mut values, tensor.numel());
    values
}

fn threads() -> usize {
    usize::try_from(tch::get_num_threads()).unwrap_or(1)
}

impl Engine<f32> {
    /// Logits of images, `[N, C, H, W]` in and `[N, K]` out, without a graph.
    pub(crate) fn tensor_logits(&self, images: &Tensor) -> Tensor {
        let values = elements(images);
        let parts = values.chunks((self.image() * ROWS).max(1));
        let logits: Vec<f32> = parts.flat_map(|part| self.logits(threads(), part)).collect();
        self.rows_of_classes(&logits)
    }

    /// As [`talion_core::Classifier::loss_gradient`].
    pub(crate) fn loss_gradient(&self, images: &Tensor, loss: &dyn Fn(&Tensor) -> Tensor) -> InputGradient {
        let (logits, tapes) = self.taped(images);
        let (loss, slope) = tch::with_grad(|| {
            let variable = logits.detach().set_requires_grad(true);
            let loss = loss(&variable);
            let slope = Tensor::run_backward(&[loss.sum(loss.kind())], &[&variable], false, false).remove(0);
            (loss.detach(), slope)
        });
        let gradient = self.back(&tapes, &slope).view_as(images);
        self.recycle_all(tapes);
        InputGradient { loss, gradient, logits }
    }

    /// As [`talion_core::Classifier::logit_gradients`]: one way forwards, and one back for each class.
    pub(crate) fn logit_gradients(&self, images: &Tensor) -> (Tensor, Tensor) {
        let (logits, tapes) = self.taped(images);
        let gradients: Vec<Tensor> = (0..self.classes() as i64)
            .map(|class| {
                let slope = logits.zeros_like();
                let _ = slope.select(1, class).fill_(1.0);
                self.back(&tapes, &slope).view_as(images)
            })
            .collect();
        self.recycle_all(tapes);
        (logits, Tensor::stack(&gradients, 1))
    }

    fn taped(&self, images: &Tensor) -> (Tensor, Vec<Tape>) {
        note_gradient();
        let values = elements(images);
        let (mut logits, mut tapes) = (Vec::new(), Vec::new());
        for part in values.chunks((self.image() * ROWS).max(1)) {
            let (part, tape) = self.logits_and_tape(threads(), part);
            logits.extend(part);
            tapes.push(tape);
        }
        (self.rows_of_classes(&logits), tapes)
    }

    /// The gradient with respect to the images, in one line.
    fn back(&self, tapes: &[Tape], slope: &Tensor) -> Tensor {
        let slope = elements(slope);
        let parts = slope.chunks((self.classes() * ROWS).max(1));
        let values: Vec<f32> =
            tapes.iter().zip(parts).flat_map(|(tape, part)| self.backward(threads(), tape, part)).collect();
        Tensor::from_slice(&values)
    }

    fn recycle_all(&self, tapes: Vec<Tape>) {
        tapes.into_iter().for_each(|tape| self.recycle(tape));
    }

    fn rows_of_classes(&self, logits: &[f32]) -> Tensor {
        Tensor::from_slice(logits).view([-1, self.classes() as i64])
    }
}
