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
rows, the last batch padded with repetitions of its own rows. Where there is less to do than fills one, [`fn@run`] looks
whether this classifier gives the same bits in batches of 8, 16 and 24 rows, and only then goes on with those. The result of a sample then does not depend on the order,
the number or the sharding of the samples, nor on an interruption. It does depend on the kernels: another
device, processor or libtorch may round differently. Rows of one batch on a GPU were not measured.
*/

use std::{collections::VecDeque, ops::ControlFlow};

use talion_core::{Classifier, Error, Objective, Reference, Result, check_images};
use tch::{Device, Kind, Tensor};

use crate::{Attack, Attempt, Batch, Conditions, Passes, Seeks, attempt::admit, spec::entry_of};

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

/// Rows of the smallest batch, and by how many batches grow: batches whose size was not a multiple of 8 gave other bits.
const SMALL_BATCH: usize = 8;
/// Passes of an attack from which on it is worth looking whether smaller batches will do.
const WORTH_LOOKING: u64 = 20;

/// How [`fn@run`] works.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RunOptions {
    /// Whether a sample is left alone as soon as it fools, the misclassified ones from the beginning. Then the work is
    /// proportional to what was needed, and whether a sample can be fooled is known no less; but its image is the first
    /// that fooled, just over the boundary, and says little about any other classifier. Default: every sample goes
    /// through the whole attack, as the papers have it.
    pub until_fooled: bool,
}

/// How far [`fn@run`] has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Samples that are finished.
    pub done: usize,
    /// Samples in all.
    pub total: usize,
    /// Finished samples that the attack did not fool.
    pub resisted: usize,
    /// Passes spent so far, summed over samples.
    pub passes: Passes,
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
    /// Passes spent, summed over samples.
    pub passes: Passes,
    /// What had to be different from the attack's definition, in words.
    pub adjustments: Vec<String>,
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
/// A micro-batch of samples is in work at any time. A row that is finished leaves, and the next waiting sample takes its
/// place, so the batches stay full until nothing waits. A restart is spent only on a sample that resisted those before.
/// For each sample the first image that reaches the objective is kept, or else the one with the highest loss. Restarts
/// count from [`Batch::restart`]. `observer` hears of every step and stops the run with [`ControlFlow::Break`].
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
    batch.check(classifier.classes())?;
    // a search for the boundary itself needs all digits (0.7 % more resisted FAB in bf16, see docs/benchmarks.md)
    let boundary = entry_of(&attack.name()).is_some_and(|entry| entry.seeks == Seeks::SmallestChange);
    let classifier = classifier.closer().filter(|_| boundary).unwrap_or(classifier);
    let mut driver = Driver::new(attack, classifier, batch, *options)?;
    while driver.works() {
        driver.resize()?;
        driver.fill()?;
        driver.step()?;
        driver.dismiss()?;
        if observer(driver.progress).is_break() {
            return Err(Error::Interrupted);
        }
    }
    let (doubtful, last) = (driver.doubtful(), driver.progress);
    let mut outcome = driver.outcome();
    if !doubtful.is_empty() {
        let again = again_more_closely(attack, classifier, batch, options, &doubtful, &mut |passes| {
            let mut together = last;
            together.passes += passes;
            observer(together)
        })?;
        outcome.take_over(&doubtful, &again);
    }
    Ok(outcome)
}

/// Attacks samples that fast ways were wrong about a second time, with slower ones or without any: whether a sample is robust must
/// not depend on them.
fn again_more_closely(
    attack: &dyn Attack,
    classifier: &dyn Classifier,
    batch: &Batch<'_>,
    options: &RunOptions,
    rows: &[i64],
    observer: &mut dyn FnMut(Passes) -> ControlFlow<()>,
) -> Result<Outcome> {
    let ids: Vec<u64> = rows.iter().map(|&row| batch.ids[row as usize]).collect();
    let part = Batch {
        images: &select(batch.images, rows, batch.images.device()),
        labels: &select(batch.labels, rows, batch.labels.device()),
        ids: &ids,
        ..*batch
    };
    let reference = Reference(classifier);
    let closer = classifier.closer().unwrap_or(&reference);
    run(attack, closer, &part, options, &mut |progress| observer(progress.passes))
}

impl Outcome {
    /// Takes the samples at `rows` from a second attack on them, where that one fooled.
    fn take_over(&mut self, rows: &[i64], second: &Outcome) {
        self.passes += second.passes;
        for (place, &row) in rows.iter().enumerate() {
            let place = place as i64;
            if second.success.int64_value(&[place]) == 0 {
                continue;
            }
            let tensors = [
                (&self.adversarial, &second.adversarial),
                (&self.predicted, &second.predicted),
                (&self.success, &second.success),
                (&self.loss, &second.loss),
            ];
            for (ours, theirs) in tensors {
                ours.narrow(0, row, 1).copy_(&theirs.narrow(0, place, 1));
            }
        }
    }
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
    let device = classifier.device();
    let parts = in_micro_batches(images, device, &mut |part| Ok(vec![checked_logits(classifier, part)?]))?;
    let empty = || Tensor::zeros([0, classifier.classes()], (Kind::Float, Device::Cpu));
    let logits = parts.into_iter().next().unwrap_or_else(empty).to_kind(Kind::Float);
    let labels = logits.argmax(1, false);
    Ok(Predictions { logits, labels })
}

/// Shows `images` to `each` in the micro-batches of [`fn@run`], on `device`, and joins what it returns for them: tensors
/// with a row an image, the same number of them every time. Results are on the CPU; there are none for no images.
///
/// # Shapes
/// `images` `[N, C, H, W]` in `[0, 1]`, on any device; each result has N rows.
///
/// # Errors
/// If the images do not pass [`check_images`], or `each` fails.
pub fn in_micro_batches(
    images: &Tensor,
    device: Device,
    each: &mut dyn FnMut(&Tensor) -> Result<Vec<Tensor>>,
) -> Result<Vec<Tensor>> {
    check_images(images)?;
    let samples: Vec<i64> = (0..images.size()[0]).collect();
    let mut joined: Vec<Vec<Tensor>> = Vec::new();
    for rows in samples.chunks(micro_batch(device)) {
        let results = each(&select(images, &padded(rows, device), device))?;
        joined.resize_with(results.len(), Vec::new);
        for (all, part) in joined.iter_mut().zip(results) {
            all.push(part.narrow(0, 0, rows.len() as i64).to_device(Device::Cpu));
        }
    }
    Ok(joined.iter().map(|parts| Tensor::cat(parts, 0)).collect())
}

/// One start of one sample.
#[derive(Clone, Copy)]
struct Job {
    row: i64,
    restart: u64,
}

struct Driver<'a> {
    attack: &'a dyn Attack,
    classifier: &'a dyn Classifier,
    batch: &'a Batch<'a>,
    options: RunOptions,
    restarts: u64,
    /// Logits of all benign images, on the CPU, where the attack or the options need them.
    logits: Option<Tensor>,
    waiting: VecDeque<Job>,
    attempt: Option<Box<dyn Attempt>>,
    /// What each row of the attempt works on; nothing in padding and in rows that have left.
    slots: Vec<Option<Job>>,
    /// Whether fewer rows give the same bits; not known until it matters.
    small_batches: Option<bool>,
    /// Samples that the search took for fooling, and the judge did not.
    mistaken: Vec<i64>,
    /// Jobs with their images, to be judged in full batches.
    leaving: Vec<(Job, Tensor)>,
    best: Best,
    progress: Progress,
}

impl<'a> Driver<'a> {
    fn new(
        attack: &'a dyn Attack,
        classifier: &'a dyn Classifier,
        batch: &'a Batch<'a>,
        options: RunOptions,
    ) -> Result<Self> {
        let total = batch.ids.len();
        let mut driver = Self {
            attack,
            classifier,
            batch,
            options,
            restarts: attack.restarts(classifier.classes()).max(1),
            logits: None,
            waiting: (0..total as i64).map(|row| Job { row, restart: 0 }).collect(),
            attempt: None,
            slots: vec![None; micro_batch(classifier.device())],
            small_batches: None,
            mistaken: Vec::new(),
            leaving: Vec::new(),
            best: Best::new(batch),
            progress: Progress { done: 0, total, resisted: 0, passes: Passes::default() },
        };
        if (attack.wants_logits() || options.until_fooled) && total > 0 {
            driver.look_at_benign()?;
        }
        Ok(driver)
    }

    /// Keeps the logits of the benign images, and, if that is all that is wanted, those images that fool as they are.
    fn look_at_benign(&mut self) -> Result<()> {
        let predictions = predict_all(self.classifier, self.batch.images)?;
        self.progress.passes += Passes::LOGITS.times(self.progress.total as u64);
        if self.options.until_fooled {
            let labels = self.batch.labels.to_device(Device::Cpu);
            let judged = Judged::new(self.batch, &predictions.logits, &labels)?;
            for row in 0..self.progress.total {
                if judged.success[row] {
                    self.best.keep(row, &judged, row, &self.batch.images.narrow(0, row as i64, 1));
                    self.progress.done += 1;
                }
            }
            let fooled = &self.best.success;
            self.waiting.retain(|job| !fooled[job.row as usize]);
        }
        self.logits = Some(predictions.logits);
        Ok(())
    }

    fn works(&self) -> bool {
        !self.waiting.is_empty() || self.slots.iter().any(Option::is_some)
    }

    /// Takes a smaller batch when there is less to do than a whole one, and a larger one when there is more again, on
    /// classifiers whose answers do not change with it.
    fn resize(&mut self) -> Result<()> {
        let active: Vec<usize> = (0..self.slots.len()).filter(|&slot| self.slots[slot].is_some()).collect();
        let jobs = active.len() + self.waiting.len();
        let largest = micro_batch(self.classifier.device());
        let wanted = jobs.next_multiple_of(SMALL_BATCH).clamp(SMALL_BATCH, largest);
        // fast ways give a row the same bits in every batch; libtorch's own sums in an attack's step were only seen to for
        // multiples of eight
        let known = self.classifier.is_approximate(&self.batch.images.narrow(0, 0, 1));
        if wanted == self.slots.len() || !(known || self.may_be_small()?) {
            return Ok(());
        }
        let mut slots: Vec<Option<Job>> = active.iter().map(|&slot| self.slots[slot]).collect();
        slots.resize(wanted, None);
        self.slots = slots;
        if active.is_empty() {
            self.attempt = None;
        } else if let Some(attempt) = &mut self.attempt {
            // repetitions fill the batch, as at the beginning
            let rows: Vec<i64> = active.iter().map(|&slot| slot as i64).cycle().take(wanted).collect();
            let rows = Tensor::from_slice(&rows);
            for tensor in attempt.state() {
                *tensor = tensor.index_select(0, &rows.to_device(tensor.device()));
            }
        }
        Ok(())
    }

    /// Whether this classifier's answers are known to be the same bits in smaller batches.
    fn may_be_small(&mut self) -> Result<bool> {
        if let Some(known) = self.small_batches {
            return Ok(known);
        }
        let cost = self.attack.cost();
        // looking costs two gradients; on other devices it was never measured what batches agree
        let worth = cost.forward + cost.backward >= WORTH_LOOKING && self.classifier.device() == Device::Cpu;
        let known = worth && small_batches_agree(self.classifier, self.batch)?;
        self.small_batches = Some(known);
        Ok(known)
    }

    /// Begins the attack on `rows`, at most as many as there are slots, repeated to fill them.
    fn begin(&self, rows: &[i64], restart: u64) -> Result<Box<dyn Attempt>> {
        let rows: Vec<i64> = rows.iter().copied().cycle().take(self.slots.len()).collect();
        let device = self.classifier.device();
        let ids: Vec<u64> = rows.iter().map(|&row| self.batch.ids[row as usize]).collect();
        let part = Batch {
            images: &select(self.batch.images, &rows, device),
            labels: &select(self.batch.labels, &rows, device),
            ids: &ids,
            restart: self.batch.restart.wrapping_add(restart),
            ..*self.batch
        };
        let logits = self.logits.as_ref().map(|logits| select(logits, &rows, device));
        let conditions = Conditions { logits: logits.as_ref(), until_fooled: self.options.until_fooled };
        self.attack.begin(&part, &conditions)
    }

    /// Gives waiting jobs the rows that are free.
    fn fill(&mut self) -> Result<()> {
        let free: Vec<usize> = (0..self.slots.len()).filter(|&slot| self.slots[slot].is_none()).collect();
        let mut free = free.as_slice();
        while let (false, Some(first)) = (free.is_empty(), self.waiting.front().copied()) {
            let mut jobs = Vec::new();
            while let Some(job) = self.waiting.front().copied() {
                if jobs.len() == free.len() || job.restart != first.restart {
                    break;
                }
                jobs.push(job);
                self.waiting.pop_front();
            }
            let rows: Vec<i64> = jobs.iter().map(|job| job.row).collect();
            let mut newcomer = self.begin(&rows, first.restart)?;
            let (taken, left) = free.split_at(jobs.len());
            match &mut self.attempt {
                Some(attempt) => {
                    let into: Vec<i64> = taken.iter().map(|&slot| slot as i64).collect();
                    let from: Vec<i64> = (0..jobs.len() as i64).collect();
                    admit(attempt.as_mut(), &into, newcomer.as_mut(), &from);
                }
                // all rows are free then, and the jobs lie in the first of them
                None => self.attempt = Some(newcomer),
            }
            for (&slot, job) in taken.iter().zip(jobs) {
                self.slots[slot] = Some(job);
            }
            free = left;
        }
        Ok(())
    }

    fn step(&mut self) -> Result<()> {
        let Some(attempt) = &mut self.attempt else { return Ok(()) };
        attempt.step(self.classifier)?;
        let active = self.slots.iter().flatten().count() as u64;
        self.progress.passes += attempt.passes().times(active);
        Ok(())
    }

    /// Takes finished rows out, and judges those who have left once they fill a batch, or nothing else is left to do.
    fn dismiss(&mut self) -> Result<()> {
        let Some(attempt) = &self.attempt else { return Ok(()) };
        let finished = Vec::<bool>::try_from(attempt.finished())?;
        let done: Vec<usize> =
            (0..finished.len()).filter(|&slot| finished[slot] && self.slots[slot].is_some()).collect();
        if !done.is_empty() {
            let images = attempt.adversarial();
            for slot in done {
                if let Some(job) = self.slots[slot].take() {
                    let image = select(&images, &[slot as i64], self.classifier.device());
                    self.leaving.push((job, image));
                }
            }
        }
        let size = micro_batch(self.classifier.device());
        while self.leaving.len() >= size || (!self.leaving.is_empty() && !self.works()) {
            let rest = self.leaving.split_off(self.leaving.len().min(size));
            let part = std::mem::replace(&mut self.leaving, rest);
            self.judge(&part)?;
        }
        Ok(())
    }

    /// Judges images on the attacked classifier itself, whatever the attack believes of them.
    fn judge(&mut self, part: &[(Job, Tensor)]) -> Result<()> {
        let rows: Vec<i64> = part.iter().map(|(job, _)| job.row).collect();
        let rows = padded(&rows, self.classifier.device());
        let device = self.classifier.device();
        let images: Vec<&Tensor> = part.iter().map(|(_, image)| image).cycle().take(rows.len()).collect();
        let images = Tensor::cat(&images, 0).detach();
        let labels = select(self.batch.labels, &rows, device);
        check_inside(self.attack, self.batch, &rows, &images)?;
        let logits = checked_logits(self.classifier, &images)?;
        self.progress.passes += Passes::LOGITS.times(part.len() as u64);
        let judged = Judged::new(self.batch, &logits, &labels)?;
        let believed = self.believed(&images, &labels, &judged)?;
        for (place, (job, image)) in part.iter().enumerate() {
            let row = job.row as usize;
            if believed[place] && !judged.success[place] && !self.mistaken.contains(&job.row) {
                self.mistaken.push(job.row);
            }
            if job.restart == 0 || judged.success[place] || judged.loss[place] > self.best.loss[row] {
                self.best.keep(row, &judged, place, image);
            }
            if !judged.success[place] && job.restart + 1 < self.restarts {
                self.waiting.push_back(Job { restart: job.restart + 1, ..*job });
            } else {
                self.progress.done += 1;
                self.progress.resisted += usize::from(!judged.success[place]);
            }
        }
        Ok(())
    }

    /// Which images the search takes for fooling: on a classifier with approximate ways they need not be those that the judge
    /// does.
    fn believed(&self, images: &Tensor, labels: &Tensor, judged: &Judged) -> Result<Vec<bool>> {
        if judged.success.iter().all(|&success| success) || !self.classifier.is_approximate(images) {
            return Ok(judged.success.clone());
        }
        let predicted = self.classifier.search_logits(images).argmax(1, false);
        Ok(Vec::try_from(self.batch.objective.reached(&predicted, labels))?)
    }

    /// Samples that resist, although the search took some image of theirs for fooling.
    fn doubtful(&self) -> Vec<i64> {
        let doubtful = self.mistaken.iter().copied().filter(|&row| !self.best.success[row as usize]);
        let mut doubtful: Vec<i64> = doubtful.collect();
        doubtful.sort_unstable();
        doubtful
    }

    fn outcome(self) -> Outcome {
        Outcome {
            adversarial: self.best.adversarial,
            predicted: Tensor::from_slice(&self.best.predicted),
            success: Tensor::from_slice(&self.best.success),
            loss: Tensor::from_slice(&self.best.loss),
            passes: self.progress.passes,
            adjustments: self.attack.adjustment(self.classifier.classes()).into_iter().collect(),
        }
    }
}

/// What the classifier says of some images.
struct Judged {
    predicted: Vec<i64>,
    success: Vec<bool>,
    loss: Vec<f64>,
}

impl Judged {
    fn new(batch: &Batch<'_>, logits: &Tensor, labels: &Tensor) -> Result<Self> {
        let predicted = logits.argmax(1, false);
        Ok(Self {
            success: Vec::try_from(batch.objective.reached(&predicted, labels))?,
            loss: Vec::try_from(batch.objective.per_sample(logits, labels).to_kind(Kind::Double))?,
            predicted: Vec::try_from(predicted)?,
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
            adversarial: batch.images.detach().copy(),
            predicted: vec![0; samples],
            success: vec![false; samples],
            loss: vec![f64::NEG_INFINITY; samples],
        }
    }

    /// Takes the image over, with what was judged of it in `place`.
    fn keep(&mut self, row: usize, judged: &Judged, place: usize, image: &Tensor) {
        self.predicted[row] = judged.predicted[place];
        self.success[row] = judged.success[place];
        self.loss[row] = judged.loss[place];
        self.adversarial.narrow(0, row as i64, 1).copy_(image);
    }
}

/// Whether a classifier gives the same bits for rows of a whole micro-batch and of every smaller batch that the driver
/// uses: logits with and without a graph, and gradients. Kernels are chosen by shape, not by values, so what agrees here in
/// every bit agrees.
fn small_batches_agree(classifier: &dyn Classifier, batch: &Batch<'_>) -> Result<bool> {
    let device = classifier.device();
    let whole = micro_batch(device);
    let rows: Vec<i64> = (0..batch.ids.len() as i64).cycle().take(whole).collect();
    let answers = |count: usize| -> Result<[Tensor; 3]> {
        let images = select(batch.images, &rows[..count], device);
        let labels = select(batch.labels, &rows[..count], device);
        let passes = classifier.input_gradient(&images, &labels, Objective::CrossEntropy);
        let logits = checked_logits(classifier, &images)?;
        Ok([logits, passes.logits, passes.gradient].map(|tensor| tensor.narrow(0, 0, SMALL_BATCH as i64)))
    };
    let reference = answers(whole)?;
    for count in (SMALL_BATCH..whole).step_by(SMALL_BATCH) {
        if answers(count)?.iter().zip(&reference).any(|(small, whole)| small != whole) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// `rows` repeated in a circle until they fill a micro-batch.
fn padded(rows: &[i64], device: Device) -> Vec<i64> {
    rows.iter().copied().cycle().take(micro_batch(device)).collect()
}

/// The given rows of a tensor, without gradient history, on `device`, in the one memory layout that all batches have.
fn select(tensor: &Tensor, rows: &[i64], device: Device) -> Tensor {
    let rows = Tensor::from_slice(rows).to_device(tensor.device());
    tensor.detach().index_select(0, &rows).to_device(device).contiguous()
}

/// Whatever an attack claims, an image outside its budget is not counted: a NaN image fools every classifier.
fn check_inside(attack: &dyn Attack, batch: &Batch<'_>, rows: &[i64], adversarial: &Tensor) -> Result<()> {
    let images = select(batch.images, rows, adversarial.device());
    if adversarial.size() != images.size() {
        let expected = format!("{:?}", images.size());
        return Err(Error::Shape { what: "adversarial images", expected, found: adversarial.size() });
    }
    let inside = Vec::<bool>::try_from(batch.budget.contains(&images, adversarial))?;
    match inside.iter().position(|&inside| !inside) {
        None => Ok(()),
        Some(row) => Err(Error::Refused(format!(
            "attack {} left the budget {} on sample {}; this is an error in the attack",
            attack.name(),
            batch.budget,
            batch.ids[rows[row] as usize]
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
