/*!
The driver: any number of samples through an attack, with the same result for a sample wherever it sits.

# Why micro-batches
Attacks amplify rounding: one different bit in a gradient near zero flips a sign, and after some steps another image comes
out. So it matters which bits a classifier's kernels give. Measured with libtorch 2.11 on an x86-64 CPU, `f32`, on the logits
and input gradients of a network of four convolutions, an average and two linear layers, with 8 and with 32 channels:

- **places in a batch**: all 63 rotations of a batch of 64 gave the same bits for every row;
- **threads**: one thread and two gave the same bits;
- **batch shapes**: not the same. Against a batch of 64, a batch of 1 moved logits by up to 3e-7, and a batch whose size is not
  a multiple of 8 moved gradients by up to 1e-8 (of at most 2e-2); only multiples of 8 agreed;
- **memory layout**: not the same. Channels-last images moved logits by up to 4e-7 against contiguous ones.

Hence [`fn@run`] and [`predict_all`] show a classifier batches of one shape and one layout only: [`micro_batch`] contiguous
rows, the last batch padded with repetitions of its own rows. The result of a sample then does not depend on the order,
the number or the sharding of the samples, on an interruption, nor on [`RunOptions`]. It does depend on the kernels: another
device, processor or libtorch may round differently. Rows of one batch on a GPU were not measured.
*/

use std::ops::ControlFlow;

use talion_core::{Classifier, Error, Result, check_images};
use tch::{Device, Kind, Tensor};

use crate::{Attack, Batch};

/// The number of rows that [`fn@run`] and [`predict_all`] give to a classifier at once: 32 on a CPU, where larger batches were
/// no faster; 512 elsewhere, since a GPU needs many rows to be busy.
///
/// It is fixed for each device, because results would change with it. To attack one image only, in a hurry, call
/// [`Attack::perturb`], which does not pad.
pub fn micro_batch(device: Device) -> usize {
    match device {
        Device::Cpu => 32,
        _ => 512,
    }
}

/// How [`fn@run`] works. Nothing here changes the result of any sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunOptions {
    /// Samples that are in work together. Restarts are packed over so many samples: more of them make fuller batches,
    /// fewer make finer progress. Default 512.
    pub batch_size: usize,
}

impl Default for RunOptions {
    fn default() -> Self {
        Self { batch_size: 512 }
    }
}

/// How far [`fn@run`] has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Samples that are finished.
    pub done: usize,
    /// Samples in all.
    pub total: usize,
    /// Gradient passes spent so far, summed over samples.
    pub gradients: u64,
}

/// What an attack achieved. Row i belongs to row i of the images that were given.
#[derive(Debug)]
pub struct Outcome {
    /// The adversarial images, `[N, C, H, W]`, inside the budget, on the device of the images that were given.
    pub adversarial: Tensor,
    /// The class that the attacked classifier predicts for each, `[N]`, `i64`, on the CPU.
    pub predicted: Tensor,
    /// Whether the objective was reached, `[N]`, boolean, on the CPU.
    pub success: Tensor,
    /// The objective at the adversarial image, `[N]`, `f64`, on the CPU.
    pub loss: Tensor,
    /// Gradient passes spent, summed over samples.
    pub gradients: u64,
}

/// What a classifier says about images.
#[derive(Debug)]
pub struct Predictions {
    /// `[N, K]`, `f32`, on the CPU.
    pub logits: Tensor,
    /// The predicted classes, `[N]`, `i64`, on the CPU.
    pub labels: Tensor,
}

impl Predictions {
    /// The softmax of the logits.
    ///
    /// # Shapes
    /// `[N, K]`, `f32`, each row with sum 1.
    pub fn probabilities(&self) -> Tensor {
        self.logits.softmax(1, None)
    }
}

/// Attacks all samples of `batch`, and judges the result on the attacked classifier.
///
/// The first restart takes every sample; a later one only those that still resist, packed into full batches. For each
/// sample the first image that reaches the objective is kept, or else the one with the highest loss. Restarts count from
/// [`Batch::restart`]. `observer` hears of every micro-batch and stops the run with [`ControlFlow::Break`].
///
/// Images may lie on any device; each micro-batch is moved to the classifier's.
///
/// # Errors
/// If the batch does not pass [`Batch::check`]; if the attack fails, or leaves the budget; if the classifier's logits are
/// NaN; [`Error::Interrupted`] if the observer says so.
pub fn run(
    attack: &dyn Attack,
    classifier: &dyn Classifier,
    batch: &Batch<'_>,
    options: &RunOptions,
    observer: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<Outcome> {
    batch.check(classifier)?;
    let samples: Vec<i64> = (0..batch.ids.len() as i64).collect();
    let restarts = attack.restarts().max(1);
    let mut best = Best::new(batch);
    let mut progress = Progress { done: 0, total: samples.len(), gradients: 0 };
    for group in samples.chunks(options.batch_size.max(1)) {
        let mut open = group.to_vec();
        for restart in 0..restarts {
            for rows in open.chunks(micro_batch(classifier.device())) {
                let trial = Trial::new(attack, classifier, batch, rows, restart)?;
                let fooled = best.keep(rows, &trial, restart == 0);
                progress.done += if restart + 1 == restarts { rows.len() } else { fooled };
                progress.gradients += attack.cost() * rows.len() as u64;
                if observer(progress).is_break() {
                    return Err(Error::Interrupted);
                }
            }
            open.retain(|&row| !best.success[row as usize]);
        }
    }
    Ok(best.outcome(progress.gradients))
}

/// Logits and predicted classes of any number of images, in the same micro-batches as [`fn@run`]: a prediction is the same
/// bits wherever an image sits, and on adversarial images it is what [`Outcome::predicted`] says.
///
/// # Shapes
/// `images` `[N, C, H, W]` in `[0, 1]`, on any device.
///
/// # Errors
/// If the images do not pass [`check_images`], or the logits have the wrong shape or are NaN.
pub fn predict_all(classifier: &dyn Classifier, images: &Tensor) -> Result<Predictions> {
    check_images(images)?;
    let samples: Vec<i64> = (0..images.size()[0]).collect();
    let mut logits = vec![Tensor::zeros([0, classifier.classes()], (Kind::Float, Device::Cpu))];
    for rows in samples.chunks(micro_batch(classifier.device())) {
        let part = select(images, &padded(rows, classifier), classifier.device());
        let part = checked_logits(classifier, &part)?.narrow(0, 0, rows.len() as i64);
        logits.push(part.to_device(Device::Cpu).to_kind(Kind::Float));
    }
    let logits = Tensor::cat(&logits, 0);
    let labels = logits.argmax(1, false);
    Ok(Predictions { logits, labels })
}

/// One restart of one micro-batch, without its padding, on the CPU except for the images.
struct Trial {
    adversarial: Tensor,
    predicted: Vec<i64>,
    success: Vec<bool>,
    loss: Vec<f64>,
}

impl Trial {
    fn new(
        attack: &dyn Attack,
        classifier: &dyn Classifier,
        batch: &Batch<'_>,
        rows: &[i64],
        restart: u64,
    ) -> Result<Self> {
        let padded = padded(rows, classifier);
        let images = select(batch.images, &padded, classifier.device());
        let labels = select(batch.labels, &padded, classifier.device());
        let ids: Vec<u64> = padded.iter().map(|&row| batch.ids[row as usize]).collect();
        let restart = batch.restart.wrapping_add(restart);
        let part = Batch { images: &images, labels: &labels, ids: &ids, restart, ..*batch };
        let adversarial = attack.perturb(classifier, &part)?.detach().contiguous();
        check_inside(attack, &part, &adversarial)?;
        let logits = checked_logits(classifier, &adversarial)?;
        let predicted = logits.argmax(1, false);
        let kept = |tensor: &Tensor| tensor.narrow(0, 0, rows.len() as i64);
        Ok(Self {
            success: Vec::try_from(kept(&batch.objective.reached(&predicted, &labels)))?,
            loss: Vec::try_from(kept(&batch.objective.per_sample(&logits, &labels)).to_kind(Kind::Double))?,
            predicted: Vec::try_from(kept(&predicted))?,
            adversarial: kept(&adversarial).to_device(batch.images.device()),
        })
    }
}

/// The best image so far of every sample.
struct Best {
    adversarial: Tensor,
    predicted: Vec<i64>,
    success: Vec<bool>,
    loss: Vec<f64>,
}

impl Best {
    fn new(batch: &Batch<'_>) -> Self {
        let samples = batch.ids.len();
        Self {
            adversarial: batch.images.detach().empty_like(),
            predicted: vec![0; samples],
            success: vec![false; samples],
            loss: vec![f64::NEG_INFINITY; samples],
        }
    }

    /// Takes over from `trial` what fools or has a higher loss, or everything on the `first` trial of these rows; says how
    /// many it fooled. None of the rows has been fooled before.
    fn keep(&mut self, rows: &[i64], trial: &Trial, first: bool) -> usize {
        let better = |place: usize, row: usize| trial.success[place] || trial.loss[place] > self.loss[row];
        let (places, taken): (Vec<i64>, Vec<i64>) = (0..)
            .zip(rows.iter().copied())
            .filter(|&(place, row)| first || better(place as usize, row as usize))
            .unzip();
        for (&place, &row) in places.iter().zip(&taken) {
            let (place, row) = (place as usize, row as usize);
            self.predicted[row] = trial.predicted[place];
            self.success[row] = trial.success[place];
            self.loss[row] = trial.loss[place];
        }
        let device = self.adversarial.device();
        let images = select(&trial.adversarial, &places, device);
        let _ = self.adversarial.index_copy_(0, &Tensor::from_slice(&taken).to_device(device), &images);
        trial.success.iter().filter(|&&success| success).count()
    }

    fn outcome(self, gradients: u64) -> Outcome {
        Outcome {
            adversarial: self.adversarial,
            predicted: Tensor::from_slice(&self.predicted),
            success: Tensor::from_slice(&self.success),
            loss: Tensor::from_slice(&self.loss),
            gradients,
        }
    }
}

/// `rows` repeated in a circle until they fill a micro-batch.
fn padded(rows: &[i64], classifier: &dyn Classifier) -> Vec<i64> {
    rows.iter().copied().cycle().take(micro_batch(classifier.device())).collect()
}

/// The given rows of a tensor, without gradient history, on `device`, in the one memory layout that all batches have.
fn select(tensor: &Tensor, rows: &[i64], device: Device) -> Tensor {
    let rows = Tensor::from_slice(rows).to_device(tensor.device());
    tensor.detach().index_select(0, &rows).to_device(device).contiguous()
}

/// Whatever an attack claims, an image outside its budget is not counted: a NaN image fools every classifier.
fn check_inside(attack: &dyn Attack, batch: &Batch<'_>, adversarial: &Tensor) -> Result<()> {
    if adversarial.size() != batch.images.size() {
        let expected = format!("{:?}", batch.images.size());
        return Err(Error::Shape { what: "adversarial images", expected, found: adversarial.size() });
    }
    let inside = Vec::<bool>::try_from(batch.budget.contains(batch.images, adversarial))?;
    match inside.iter().position(|&inside| !inside) {
        None => Ok(()),
        Some(row) => Err(Error::Refused(format!(
            "attack {} left the budget {} on sample {}; this is an error in the attack",
            attack.name(),
            batch.budget,
            batch.ids[row]
        ))),
    }
}

/// Logits of one micro-batch, without gradients.
fn checked_logits(classifier: &dyn Classifier, images: &Tensor) -> Result<Tensor> {
    let logits = tch::no_grad(|| classifier.logits(images)).detach();
    let expected = [images.size()[0], classifier.classes()];
    if logits.size() != expected {
        return Err(Error::Shape { what: "logits", expected: format!("{expected:?}"), found: logits.size() });
    }
    if bool::try_from(logits.isnan().any())? {
        return Err(Error::Refused("the classifier's logits are NaN on images inside [0, 1]".into()));
    }
    Ok(logits)
}
